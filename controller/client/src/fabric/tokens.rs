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

/// The one thing that an agent represents: a VM, a gateway instance, or an edge of a circuit (D7). A join token carries
/// it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Binding {
    /// A virtual machine.
    Vm {
        /// Id of the VM: `…/Microsoft.Compute/virtualMachines/{name}`.
        vm: ResourceId,
        /// The VM's network interfaces, the primary one first.
        nics: Vec<ResourceId>,
        /// Subnets whose other machines are reached through this host (D8).
        #[serde(default)]
        served: Vec<ResourceId>,
    },
    /// One instance of a gateway.
    Gateway {
        /// Id of the gateway.
        gateway: ResourceId,
        /// Name of the instance's `ipConfiguration`.
        ip_configuration: String,
    },
    /// The provider edge of one link of a circuit.
    Edge {
        /// Id of the circuit.
        circuit: ResourceId,
        /// Primary or secondary link.
        link: CircuitLink,
    },
}

/// A join token that was not used yet, without its text.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Token {
    /// Identifies the token in [`Client::delete_token`].
    pub id: String,
    /// Name of the agent that joins with it.
    pub agent: AgentId,
    /// Binding of the agent that joins with it.
    pub binding: Binding,
    /// Expiry, Unix seconds.
    pub expires: u64,
}

/// The agent packages that a controller serves to new machines.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Packages {
    /// Folder of the packages on the controller's host.
    pub folder: String,
    /// The packages, sorted by name.
    pub value: Vec<Package>,
}

/// A package. The controller serves it at `/packages/NAME` without authentication.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Package {
    /// File name: `tombolo-agent_VERSION_ARCHITECTURE.deb`.
    pub name: String,
    /// Size of the file, bytes.
    pub size: u64,
    /// SHA-256 of the file, in hexadecimal digits.
    pub sha256: String,
}

impl Client {
    /// Creates a join token, which admits one agent once. Without `ttl` the token has the controller's default
    /// lifetime.
    ///
    /// # Errors
    /// Errors of the controller: the binding names a missing resource or one that is bound already, or the agent's name
    /// is in use.
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

    /// Lists the join tokens that were not used yet.
    ///
    /// # Errors
    /// Errors of the controller.
    pub async fn tokens(&self) -> Result<Vec<Token>, Error> {
        let response = self.fabric(Method::GET, "tokens", Body::None).await?;
        Ok(self.typed::<ListResponse<_>>(response).await?.value)
    }

    /// Deletes a join token, so that it cannot be used any more.
    ///
    /// # Errors
    /// Errors of the controller.
    pub async fn delete_token(&self, id: &str) -> Result<(), Error> {
        self.fabric(Method::DELETE, &format!("tokens/{id}"), Body::None)
            .await
            .map(drop)
    }

    /// Lists the agent packages that the controller serves.
    ///
    /// # Errors
    /// Errors of the controller.
    pub async fn packages(&self) -> Result<Packages, Error> {
        let response = self.fabric(Method::GET, "packages", Body::None).await?;
        self.typed(response).await
    }

    /// Creates a token for the REST interface. The answer is the only one that contains its text.
    ///
    /// # Errors
    /// Errors of the controller.
    pub async fn create_api_token(&self, name: &str) -> Result<NewApiToken, Error> {
        let response = self
            .fabric(Method::POST, "api-tokens", Body::Json(&json!({"name": name})))
            .await?;
        self.typed(response).await
    }

    /// Lists the tokens for the REST interface, without their texts.
    ///
    /// # Errors
    /// Errors of the controller.
    pub async fn api_tokens(&self) -> Result<Vec<Value>, Error> {
        let response = self.fabric(Method::GET, "api-tokens", Body::None).await?;
        Ok(self.typed::<ListResponse<_>>(response).await?.value)
    }

    /// Deletes a token for the REST interface. Requests with it are refused from then on.
    ///
    /// # Errors
    /// Errors of the controller.
    pub async fn delete_api_token(&self, id: &str) -> Result<(), Error> {
        self.fabric(Method::DELETE, &format!("api-tokens/{id}"), Body::None)
            .await
            .map(drop)
    }
}
