//! Requests and answers of the fabric API that client and controller share. Requests refuse unknown fields (D3); answers
//! do not, so that a client reads those of a later controller.

use crate::id::{AgentId, Revision};
use crate::probe::ProbeKind;
use serde::{Deserialize, Serialize};

/// A join token as it is handed out: the only time that its text is seen.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NewToken {
    /// To delete it by.
    pub id: String,
    /// What `tombolo-agent join --token-file` reads. A secret.
    pub token: String,
    /// The name that the agent will have.
    pub agent: AgentId,
    /// Unix seconds.
    pub expires: u64,
}

/// A configuration that an agent refused.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Rejected {
    /// Which.
    pub revision: Revision,
    /// In the agent's words.
    pub reason: String,
}

/// Which revision holds where.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Revisions {
    /// Of the desired state.
    pub desired: Revision,
    /// The largest that every connected agent has applied.
    pub in_force: Revision,
    /// One entry an agent.
    pub agents: Vec<AgentRevision>,
}

/// Which revision holds at one agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentRevision {
    /// Which agent.
    pub agent: AgentId,
    /// Its control stream is up.
    pub connected: bool,
    /// What it has applied.
    #[serde(default)]
    pub applied: Option<Revision>,
    /// It has what it should have.
    pub up_to_date: bool,
    /// The last configuration that it refused.
    #[serde(default)]
    pub rejected: Option<Rejected>,
}

/// Whether a revision is in force.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Waited {
    /// Every connected agent has it.
    pub in_force: bool,
    /// Those that do not have it yet.
    #[serde(default)]
    pub waiting_for: Vec<AgentId>,
}

/// What to probe, live.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Probe {
    /// Name or id of a VM, a NIC or an agent.
    pub from: String,
    /// The same, or an address.
    pub to: String,
    /// Ping or traceroute.
    pub kind: ProbeKind,
    /// Ping: echoes; trace: probes a TTL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// Between two echoes, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<u32>,
    /// For an answer, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u32>,
    /// Trace: the largest TTL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ttl: Option<u8>,
}

/// A token for the REST interface, as it is handed out: the only time that its text is seen.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NewApiToken {
    /// To delete it by.
    pub id: String,
    /// Chosen by its maker.
    pub name: String,
    /// What `Authorization: Bearer` wants. A secret.
    pub token: String,
}
