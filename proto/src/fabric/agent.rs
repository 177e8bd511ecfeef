//! Agents and the revisions that they have in force.

use super::Binding;
use crate::id::{AgentId, PublicKey, Revision};
use crate::status::AgentStatus;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// An agent as the controller sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentView {
    /// The agent's name.
    pub id: AgentId,
    /// The VM, gateway instance or edge that the agent represents.
    pub binding: Binding,
    /// The agent's WireGuard public key, which is the agent's identity on links.
    pub public_key: PublicKey,
    /// The endpoints at which other agents reach it, the preferred one first.
    pub endpoints: Vec<SocketAddr>,
    /// The endpoint of the agent's second port, which accepts only QUIC. `None`: the agent has no second port.
    #[serde(default)]
    pub quic_endpoint: Option<SocketAddr>,
    /// The number of the agent's lanes. `None`: the controller does not report it.
    #[serde(default)]
    pub lanes: Option<u16>,
    /// Whether the agent was revoked.
    pub revoked: bool,
    /// Whether the agent's control stream is open.
    pub connected: bool,
    /// The revision that the agent has in force. `None`: the agent has not connected since the controller started.
    #[serde(default)]
    pub applied_revision: Option<Revision>,
    /// The digest of the configuration that the agent has in force. `None`: the agent has no configuration in force, or
    /// the controller does not know its digest.
    #[serde(default)]
    pub applied_digest: Option<String>,
    /// The digest of the configuration that the controller has compiled for the agent. `None`: there is no
    /// configuration for the agent.
    #[serde(default)]
    pub desired_digest: Option<String>,
    /// The last configuration that the agent refused. `None`: it has accepted every one since.
    #[serde(default)]
    pub rejected: Option<Rejected>,
    /// The agent's last status report. `None`: it has sent none since the controller started.
    #[serde(default)]
    pub status: Option<AgentStatus>,
}

/// A configuration that an agent refused.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Rejected {
    /// The revision of that configuration.
    pub revision: Revision,
    /// The reason, as the agent gave it.
    pub reason: String,
}

/// The revisions of the desired state and of all agents.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Revisions {
    /// The newest revision of the desired state.
    pub desired: Revision,
    /// The newest revision that every connected agent has applied.
    pub in_force: Revision,
    /// One entry for each agent.
    pub agents: Vec<AgentRevision>,
}

/// The revision of one agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentRevision {
    /// The name of the agent.
    pub agent: AgentId,
    /// Whether its control stream is connected.
    pub connected: bool,
    /// The newest revision that the agent has applied; `None` before the first one.
    #[serde(default)]
    pub applied: Option<Revision>,
    /// Whether the agent has applied the newest configuration that the controller has for it.
    pub up_to_date: bool,
    /// The last configuration that it refused; `None`: none.
    #[serde(default)]
    pub rejected: Option<Rejected>,
}

/// The result of waiting until a revision is in force.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Waited {
    /// Whether every connected agent has applied the revision.
    pub in_force: bool,
    /// The connected agents that have not applied the revision yet.
    #[serde(default)]
    pub waiting_for: Vec<AgentId>,
}
