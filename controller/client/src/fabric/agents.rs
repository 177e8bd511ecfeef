//! Agents and the revisions that they have in force.

use super::request::ListResponse;
use super::tokens::Binding;
use crate::client::{Body, Client};
use crate::error::Error;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tombolo_proto::config::AgentConfig;
use tombolo_proto::fabric::{Rejected, Revisions, Waited};
use tombolo_proto::id::{AgentId, PublicKey, Revision};
use tombolo_proto::installed::InstalledTables;
use tombolo_proto::status::AgentStatus;

/// Waits of the controller are cut into pieces of this length, so that a lost answer is noticed.
const WAIT_PIECE: Duration = Duration::from_secs(20);

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

impl Client {
    /// All agents.
    ///
    /// # Errors
    /// Those of the controller.
    pub async fn agents(&self) -> Result<Vec<AgentView>, Error> {
        let response = self.fabric(Method::GET, "agents", Body::None).await?;
        Ok(self.typed::<ListResponse<_>>(response).await?.value)
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
}
