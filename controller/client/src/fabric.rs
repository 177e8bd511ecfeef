//! The fabric API: agents, join tokens, revisions, diagnosis, settings. Everything that Azure has no word for.

mod device;

pub use device::{DeviceBgp, DeviceConfig, DeviceTunnel};
pub use tombolo_proto::fabric::{AgentRevision, NewApiToken, NewToken, Probe, Rejected, Revisions, Waited};

use crate::client::{Body, Client};
use crate::error::Error;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};
use tombolo_proto::config::{AgentConfig, CircuitLink};
use tombolo_proto::id::{AgentId, PublicKey, ResourceId, Revision};
use tombolo_proto::installed::InstalledTables;
use tombolo_proto::probe::{ProbeKind, ProbeReport};
use tombolo_proto::status::AgentStatus;

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

/// An agent as the controller sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentView {
    /// Its name.
    pub id: AgentId,
    /// What it stands for.
    pub binding: Binding,
    /// Its identity on links.
    pub public_key: PublicKey,
    /// Where others reach it, best first.
    pub endpoints: Vec<SocketAddr>,
    /// Where it takes QUIC besides.
    #[serde(default)]
    pub quic_endpoint: Option<SocketAddr>,
    /// Lanes that it runs; none: the controller does not say.
    #[serde(default)]
    pub lanes: Option<u16>,
    /// Cut off.
    pub revoked: bool,
    /// Its control stream is up.
    pub connected: bool,
    /// The revision in force there.
    #[serde(default)]
    pub applied_revision: Option<Revision>,
    /// Digest of the configuration in force there.
    #[serde(default)]
    pub applied_digest: Option<String>,
    /// Digest of the configuration that it should have.
    #[serde(default)]
    pub desired_digest: Option<String>,
    /// The last configuration that it refused.
    #[serde(default)]
    pub rejected: Option<Rejected>,
    /// The last it said of itself.
    #[serde(default)]
    pub status: Option<AgentStatus>,
}

/// What packet to explain.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainRequest {
    /// Name or id of a VM, a NIC or an agent.
    pub from: String,
    /// The same, or an address.
    pub to: String,
    /// `icmp`, `tcp` or `udp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// For `tcp` and `udp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<u16>,
    /// Time to live of the packet, 64 unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u8>,
}

/// What a probe brought.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Probed {
    /// The address probed from.
    #[serde(default)]
    pub from: Option<IpAddr>,
    /// The address probed.
    #[serde(default)]
    pub to: Option<IpAddr>,
    /// What came back.
    #[serde(flatten)]
    pub report: ProbeReport,
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

/// `{"value": […]}`.
#[derive(Deserialize)]
struct Listed<T> {
    value: Vec<T>,
}

/// Waits of the controller are cut into pieces of this length, so that a lost answer is noticed.
const WAIT_PIECE: Duration = Duration::from_secs(20);

impl Client {
    async fn fabric(&self, method: Method, path: &str, body: Body<'_>) -> Result<reqwest::Response, Error> {
        self.send(method, &format!("/fabric/v1/{path}"), &[], body, None).await
    }

    /// The controller's liveness and revision; needs no token.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn health(&self) -> Result<Value, Error> {
        let response = self.fabric(Method::GET, "health", Body::None).await?;
        self.json(response).await
    }

    /// The controller's CA certificate, PEM; needs no token.
    ///
    /// # Errors
    /// Those of the controller.
    pub async fn ca(&self) -> Result<String, Error> {
        let response = self.fabric(Method::GET, "ca", Body::None).await?;
        response
            .text()
            .await
            .map_err(|e| Error::transport(self.base(), "GET /fabric/v1/ca", &e))
    }

    /// The controller's metrics, as Prometheus text.
    ///
    /// # Errors
    /// Those of the controller.
    pub async fn metrics(&self) -> Result<String, Error> {
        let response = self.send(Method::GET, "/metrics", &[], Body::None, None).await?;
        response
            .text()
            .await
            .map_err(|e| Error::transport(self.base(), "GET /metrics", &e))
    }

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
        Ok(self.typed::<Listed<_>>(response).await?.value)
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

    /// All agents.
    ///
    /// # Errors
    /// Those of the controller.
    pub async fn agents(&self) -> Result<Vec<AgentView>, Error> {
        let response = self.fabric(Method::GET, "agents", Body::None).await?;
        Ok(self.typed::<Listed<_>>(response).await?.value)
    }

    /// One agent.
    ///
    /// # Errors
    /// Those of the controller.
    pub async fn agent(&self, id: &str) -> Result<AgentView, Error> {
        let response = self.fabric(Method::GET, &format!("agents/{id}"), Body::None).await?;
        self.typed(response).await
    }

    /// Cuts an agent off, everywhere and at once. What it stood for stays bound to it.
    ///
    /// # Errors
    /// Those of the controller.
    pub async fn revoke_agent(&self, id: &str) -> Result<(), Error> {
        let path = format!("agents/{id}/revoke");
        self.fabric(Method::POST, &path, Body::None).await.map(drop)
    }

    /// Forgets an agent: what it stood for is free again.
    ///
    /// # Errors
    /// Those of the controller.
    pub async fn delete_agent(&self, id: &str) -> Result<(), Error> {
        self.fabric(Method::DELETE, &format!("agents/{id}"), Body::None)
            .await
            .map(drop)
    }

    /// The configuration that an agent should have, preshared keys blanked.
    ///
    /// # Errors
    /// Those of the controller.
    pub async fn agent_config(&self, id: &str) -> Result<AgentConfig, Error> {
        let response = self
            .fabric(Method::GET, &format!("agents/{id}/config"), Body::None)
            .await?;
        self.typed(response).await
    }

    /// What an agent should have installed, with what agents report to have learned.
    ///
    /// # Errors
    /// Those of the controller.
    pub async fn agent_tables(&self, id: &str) -> Result<InstalledTables, Error> {
        let response = self
            .fabric(Method::GET, &format!("agents/{id}/tables"), Body::None)
            .await?;
        self.typed(response).await
    }

    /// Which revision holds where.
    ///
    /// # Errors
    /// Those of the controller.
    pub async fn revisions(&self) -> Result<Revisions, Error> {
        let response = self.fabric(Method::GET, "revisions", Body::None).await?;
        self.typed(response).await
    }

    /// Waits until every connected agent has applied `revision` (D2), or for `timeout`; the answer says which.
    ///
    /// # Errors
    /// Those of the controller.
    pub async fn wait_in_force(&self, revision: Revision, timeout: Duration) -> Result<Waited, Error> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).min(WAIT_PIECE);
            // Whole seconds, rounded up: a short timeout must still be able to wait.
            let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
            let path = format!("/fabric/v1/revisions/{revision}/wait");
            let query = [("timeoutSeconds", &*seconds.to_string())];
            let limit = Some(left + Duration::from_secs(15));
            let response = self.send(Method::GET, &path, &query, Body::None, limit).await?;
            let waited: Waited = self.typed(response).await?;
            if waited.in_force || Instant::now() >= deadline {
                return Ok(waited);
            }
        }
    }

    /// What the agents would do with a packet, hop by hop.
    ///
    /// # Errors
    /// Those of the controller: an end that is not known.
    pub async fn explain(&self, request: &ExplainRequest) -> Result<Value, Error> {
        let response = self
            .fabric(Method::POST, "explain", Body::Json(&json!(request)))
            .await?;
        self.json(response).await
    }

    /// Pings or traces, live, from the agent of the source.
    ///
    /// # Errors
    /// Those of the controller: an end that is not known, an agent that is not connected.
    pub async fn probe(&self, probe: &Probe) -> Result<Probed, Error> {
        let each = |ms: Option<u32>, default: u32| u64::from(ms.unwrap_or(default));
        let count = u64::from(probe.count.unwrap_or(5));
        let longest = match probe.kind {
            ProbeKind::Ping => count * each(probe.interval_ms, 1000) + each(probe.timeout_ms, 1000),
            ProbeKind::Trace => u64::from(probe.max_ttl.unwrap_or(30)) * count * each(probe.timeout_ms, 1000),
        };
        let limit = Some(Duration::from_millis(longest) + Duration::from_secs(20));
        let body = json!(probe);
        let response = self
            .send(Method::POST, "/fabric/v1/probe", &[], Body::Json(&body), limit)
            .await?;
        self.typed(response).await
    }

    /// The operator's switches.
    ///
    /// # Errors
    /// Those of the controller.
    pub async fn settings(&self) -> Result<Value, Error> {
        let response = self.fabric(Method::GET, "settings", Body::None).await?;
        self.json(response).await
    }

    /// Sets the operator's switches; what is left out goes back to its default.
    ///
    /// # Errors
    /// Those of the controller: unknown names, wrong values.
    pub async fn put_settings(&self, settings: &Value) -> Result<Value, Error> {
        let response = self.fabric(Method::PUT, "settings", Body::Json(settings)).await?;
        self.json(response).await
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
        Ok(self.typed::<Listed<_>>(response).await?.value)
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

    /// A backup of the controller's store, taken while it runs.
    ///
    /// # Errors
    /// Those of the controller.
    pub async fn backup(&self) -> Result<Vec<u8>, Error> {
        let path = "/fabric/v1/backup";
        let limit = Some(Duration::from_secs(600));
        let response = self.send(Method::POST, path, &[], Body::None, limit).await?;
        let bytes = response
            .bytes()
            .await
            .map_err(|e| Error::transport(self.base(), path, &e))?;
        Ok(bytes.to_vec())
    }
}
