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
    /// The endpoints at which other agents reach this agent, the preferred one first.
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
    /// The largest revision that is in force on the agent; 0 if the agent has not connected since the controller
    /// started. `None`: the agent was revoked.
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
    /// The agent's refusal of the configuration that the controller has compiled for it. `None`: the agent has not
    /// refused this configuration.
    #[serde(default)]
    pub rejected: Option<Rejected>,
    /// The agent's last status report. `None`: the agent has sent no report since the controller started.
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
    /// One entry for each agent that is not revoked.
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
    /// The largest revision that is in force on the agent; 0 if the agent has not connected since the controller
    /// started. This controller never sends `None`.
    #[serde(default)]
    pub applied: Option<Revision>,
    /// Whether the agent has applied the newest configuration that the controller has for it.
    pub up_to_date: bool,
    /// The agent's refusal of the configuration that the controller has compiled for it. `None`: the agent has not
    /// refused this configuration.
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
