//! Join tokens of agents, the packages that new machines install, and API tokens.

use super::request::ListResponse;
use crate::client::{Body, Client};
use crate::error::Error;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::time::Duration;
use tombolo_proto::config::CircuitLink;
use tombolo_proto::fabric::{NewApiToken, NewToken};
use tombolo_proto::id::{AgentId, ResourceId};

/// What a join token, and then an agent, stands for (D7): exactly one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Binding {
    /// A virtual machine.
    Vm {
        /// `…/Microsoft.Compute/virtualMachines/{name}`.
        vm: ResourceId,
        /// Its NICs, the primary one first.
        nics: Vec<ResourceId>,
        /// Subnets whose other machines sit behind this host (D8).
        #[serde(default)]
        served: Vec<ResourceId>,
    },
    /// One instance of a gateway.
    Gateway {
        /// The gateway.
        gateway: ResourceId,
        /// The name of the `ipConfiguration`.
        ip_configuration: String,
    },
    /// The provider edge of one link of a circuit.
    Edge {
        /// The circuit.
        circuit: ResourceId,
        /// Which link.
        link: CircuitLink,
    },
}

/// A join token that waits to be used.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Token {
    /// To delete it by.
    pub id: String,
    /// The name that the agent will have.
    pub agent: AgentId,
    /// What the agent will stand for.
    pub binding: Binding,
    /// Unix seconds.
    pub expires: u64,
}

/// The packages of agents that a controller serves.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Packages {
    /// The folder on the controller's host.
    pub folder: String,
    /// What is in it, by name.
    pub value: Vec<Package>,
}

/// A package that anybody may download from the controller, at `/packages/NAME`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Package {
    /// The file's name: `tombolo-agent_VERSION_ARCHITECTURE.deb`.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// In hexadecimal digits.
    pub sha256: String,
}

impl Client {
    /// Makes a one-time token with which an agent joins. Without `ttl` the controller chooses how long it lives.
    ///
    /// # Errors
    /// Those of the controller: the binding names what does not exist or is bound already, the name is taken.
    pub async fn create_token(
        &self,
        agent: &AgentId,
        binding: &Binding,
        ttl: Option<Duration>,
    ) -> Result<NewToken, Error> {
        let mut body = json!({"agent": agent, "binding": binding});
        if let Some(ttl) = ttl {
            body["ttlSeconds"] = ttl.as_secs().into();
        }
        let response = self.fabric(Method::POST, "tokens", Body::Json(&body)).await?;
        self.typed(response).await
    }

    /// The tokens that were not used yet.
    ///
    /// # Errors
    /// Those of the controller.
    pub async fn tokens(&self) -> Result<Vec<Token>, Error> {
        let response = self.fabric(Method::GET, "tokens", Body::None).await?;
        Ok(self.typed::<ListResponse<_>>(response).await?.value)
    }

    /// Withdraws a token.
    ///
    /// # Errors
    /// Those of the controller.
    pub async fn delete_token(&self, id: &str) -> Result<(), Error> {
        self.fabric(Method::DELETE, &format!("tokens/{id}"), Body::None)
            .await
            .map(drop)
    }

    /// The packages of agents that the controller serves.
    ///
    /// # Errors
    /// Those of the controller.
    pub async fn packages(&self) -> Result<Packages, Error> {
        let response = self.fabric(Method::GET, "packages", Body::None).await?;
        self.typed(response).await
    }

    /// Makes a token for the REST interface.
    ///
    /// # Errors
    /// Those of the controller.
    pub async fn create_api_token(&self, name: &str) -> Result<NewApiToken, Error> {
        let response = self
            .fabric(Method::POST, "api-tokens", Body::Json(&json!({"name": name})))
            .await?;
        self.typed(response).await
    }

    /// The tokens for the REST interface, without their text.
    ///
    /// # Errors
    /// Those of the controller.
    pub async fn api_tokens(&self) -> Result<Vec<Value>, Error> {
        let response = self.fabric(Method::GET, "api-tokens", Body::None).await?;
        Ok(self.typed::<ListResponse<_>>(response).await?.value)
    }

    /// Withdraws a token for the REST interface.
    ///
    /// # Errors
    /// Those of the controller.
    pub async fn delete_api_token(&self, id: &str) -> Result<(), Error> {
        self.fabric(Method::DELETE, &format!("api-tokens/{id}"), Body::None)
            .await
            .map(drop)
    }
}
