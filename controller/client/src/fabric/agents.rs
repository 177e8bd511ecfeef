//! Agents and the revisions that they have in force.

use crate::client::{Body, Client};
use crate::error::Error;
use reqwest::Method;
use std::time::{Duration, Instant};
use tombolo_proto::config::AgentConfig;
use tombolo_proto::fabric::{AgentView, ListResponse, Revisions, Waited};
use tombolo_proto::id::Revision;
use tombolo_proto::installed::InstalledTables;

/// Longest time that the controller holds back the response to one request. A longer wait is split into several
/// requests, so that a broken connection is detected.
const MAX_WAIT_PER_REQUEST: Duration = Duration::from_secs(20);
/// Time that a request may take in addition to the wait, for the network and the controller.
const WAIT_MARGIN: Duration = Duration::from_secs(15);

impl Client {
    /// Lists all agents, including revoked ones, ordered by name.
    ///
    /// # Errors
    /// Any [`Error`]: the controller cannot be reached, or refuses the request.
    pub async fn agents(&self) -> Result<Vec<AgentView>, Error> {
        let response = self.fabric(Method::GET, "agents", Body::None).await?;
        Ok(self.typed::<ListResponse<_>>(response).await?.value)
    }

    /// Returns the agent with the name `id`.
    ///
    /// # Errors
    /// Any [`Error`]: the controller cannot be reached, or refuses the request. An unknown agent is an [`Error::Api`]
    /// with status 404.
    pub async fn agent(&self, id: &str) -> Result<AgentView, Error> {
        let response = self.fabric(Method::GET, &format!("agents/{id}"), Body::None).await?;
        self.typed(response).await
    }

    /// Revokes the agent with the name `id`: the controller closes its control stream, and all other agents refuse it
    /// as soon as they apply the new configuration. Returns before they do (see [`Self::wait_in_force`]). Revoking an
    /// agent again succeeds. Until the revoked agent is deleted, no other agent can have its name or binding.
    ///
    /// # Errors
    /// Any [`Error`]: the controller cannot be reached, or refuses the request. An unknown agent is an [`Error::Api`]
    /// with status 404.
    pub async fn revoke_agent(&self, id: &str) -> Result<(), Error> {
        let path = format!("agents/{id}/revoke");
        self.fabric(Method::POST, &path, Body::None).await.map(drop)
    }

    /// Deletes the agent with the name `id`, revoked or not. Its control stream ends, and other agents lose their links
    /// with it. Succeeds also if no such agent exists. Another agent can then have its name and be bound to the same
    /// object.
    ///
    /// # Errors
    /// Any [`Error`]: the controller cannot be reached, or refuses the request. A text that cannot be the name of an
    /// agent is an [`Error::Api`] with status 404.
    pub async fn delete_agent(&self, id: &str) -> Result<(), Error> {
        self.fabric(Method::DELETE, &format!("agents/{id}"), Body::None)
            .await
            .map(drop)
    }

    /// Returns the configuration that the controller has compiled from its newest state for the agent with the name
    /// `id`. Its secrets are replaced: preshared keys by zeros, passwords by `…`.
    ///
    /// # Errors
    /// Any [`Error`]: the controller cannot be reached, or refuses the request. If the agent is unknown, revoked, or
    /// bound to a deleted resource, it is an [`Error::Api`] with status 404.
    pub async fn agent_config(&self, id: &str) -> Result<AgentConfig, Error> {
        let response = self
            .fabric(Method::GET, &format!("agents/{id}/config"), Body::None)
            .await?;
        self.typed(response).await
    }

    /// Returns the tables that the agent with the name `id` should have, computed by the controller. They include the
    /// learned routes that agents have reported.
    ///
    /// # Errors
    /// Any [`Error`]: the controller cannot be reached, or refuses the request. If the agent is unknown, revoked, or
    /// bound to a deleted resource, it is an [`Error::Api`] with status 404. If the agent would reject its
    /// configuration, the status is 500.
    pub async fn agent_tables(&self, id: &str) -> Result<InstalledTables, Error> {
        let response = self
            .fabric(Method::GET, &format!("agents/{id}/tables"), Body::None)
            .await?;
        self.typed(response).await
    }

    /// Returns the newest revision of the controller's state, and for each agent the largest revision that is in force
    /// on it.
    ///
    /// # Errors
    /// Any [`Error`]: the controller cannot be reached, or refuses the request.
    pub async fn revisions(&self) -> Result<Revisions, Error> {
        let response = self.fabric(Method::GET, "revisions", Body::None).await?;
        self.typed(response).await
    }

    /// Waits until `revision` is in force on every connected agent (D2), at most for `timeout`, which is rounded up to
    /// whole seconds. The answer lists the connected agents on which `revision` is not in force. If the time is over,
    /// the result is no error but an answer whose `in_force` is false. A long wait is split into requests of 20 s.
    ///
    /// # Errors
    /// Any [`Error`]: the controller cannot be reached, or refuses the request.
    ///
    /// # Panics
    /// The present time plus `timeout` overflows an [`Instant`].
    pub async fn wait_in_force(&self, revision: Revision, timeout: Duration) -> Result<Waited, Error> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = left.min(MAX_WAIT_PER_REQUEST);
            // The number is rounded up, because a timeout of less than one second would otherwise become 0.
            let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
            let path = format!("/fabric/v1/revisions/{revision}/wait");
            let query = [("timeoutSeconds", &*seconds.to_string())];
            let limit = Some(left + WAIT_MARGIN);
            let response = self.send(Method::GET, &path, &query, Body::None, limit).await?;
            let waited: Waited = self.typed(response).await?;
            if waited.in_force || Instant::now() >= deadline {
                return Ok(waited);
            }
        }
    }
}
