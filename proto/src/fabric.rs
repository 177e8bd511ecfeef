//! Requests and responses of the fabric API that client and controller share. Requests refuse unknown fields (D3).
//! Responses ignore them, so that a client can read the responses of a newer controller.

use crate::id::{AgentId, Revision};
use crate::probe::ProbeKind;
use serde::{Deserialize, Serialize};

/// A new join token. The token's text is only in this response: the controller does not store it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NewToken {
    /// The token's name in later requests, e.g. to delete it.
    pub id: String,
    /// The text for the file of `tombolo-agent join --token-file`. It is a secret.
    pub token: String,
    /// The name of the agent that joins with the token.
    pub agent: AgentId,
    /// End of validity, in seconds since 1970-01-01 UTC.
    pub expires: u64,
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
    /// The newest revision that it has applied; `None` before the first.
    #[serde(default)]
    pub applied: Option<Revision>,
    /// Whether it has applied the newest configuration that the controller has for it.
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

/// A request for a live ping or traceroute. For ranges see [`ProbeRequest`](crate::probe::ProbeRequest).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Probe {
    /// Name or resource id of a VM or NIC, or the name of an agent.
    pub from: String,
    /// Name or resource id of a VM or NIC, name of an agent, or an IP address.
    pub to: String,
    /// Whether it is a ping or a traceroute.
    pub kind: ProbeKind,
    /// Ping: number of echo requests, default 5. Trace: number of probes for each TTL, default 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// Ping: time between two echo requests in milliseconds, default 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<u32>,
    /// Time to wait for each reply in milliseconds, default 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u32>,
    /// Trace: the largest TTL, default 30. Ping: the TTL of the echo requests, default 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ttl: Option<u8>,
}

/// A new token for the REST API. The token's text is only in this response: the controller does not store it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NewApiToken {
    /// The token's name in later requests, e.g. to delete it.
    pub id: String,
    /// The name that its creator chose.
    pub name: String,
    /// The text for the header `Authorization: Bearer`. It is a secret.
    pub token: String,
}
