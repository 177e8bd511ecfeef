//! Agents, and the tokens with which they join.

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use tombolo_proto::fabric::Binding;
use tombolo_proto::id::{AgentId, PublicKey};

/// An agent: a host that has joined. The agent is bound to one VM, one instance of a gateway, or one line of a circuit
/// (D7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Agent {
    /// The agent's name, unique among all agents including revoked ones.
    pub id: AgentId,
    /// The machine, instance of a gateway, or line of a circuit to which the agent is bound.
    pub binding: Binding,
    /// The WireGuard public key, which identifies the agent on links.
    pub public_key: PublicKey,
    /// SHA-256 of the certificate's SubjectPublicKeyInfo in hex, which identifies the agent at the controller.
    pub certificate_key: String,
    /// The endpoints of the agent's links.
    #[serde(flatten)]
    pub reach: Reach,
    /// Whether the agent is revoked. A revoked agent gets no configuration and no links, and cannot connect. Its record
    /// stays until the agent is deleted: operators can see the agent, and no other agent can use its name and keys.
    pub revoked: bool,
}

/// How other agents reach this one, as the agent reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reach {
    /// The underlay addresses and UDP ports of lane 0, the best one first. Peers get the first one only. Empty:
    /// unknown.
    pub endpoints: Vec<SocketAddr>,
    /// The address and UDP port at which the agent accepts QUIC. `None`: QUIC is off (D6).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic_endpoint: Option<SocketAddr>,
    /// The number of lanes, 1 to [`MAX_LANES`](tombolo_proto::config::MAX_LANES) (D15).
    #[serde(default = "one_lane")]
    pub lanes: u16,
    /// Whether the agent reads advertised tables of more than 4,000 routes; agents of version 0.1 do not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub many_routes: bool,
}

/// The number of lanes of an agent that reports none: it runs a version without lanes, which has one thread.
const fn one_lane() -> u16 {
    1
}

impl Reach {
    /// How to reach a host that has these endpoints (the best one first), one lane, no QUIC, and no further features.
    #[must_use]
    pub const fn at(endpoints: Vec<SocketAddr>) -> Self {
        Self {
            endpoints,
            quic_endpoint: None,
            lanes: one_lane(),
            many_routes: false,
        }
    }
}

/// A join token: the permission for one agent to join once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinToken {
    /// The public part of the token, by which the controller finds the token. The token's secret part is not stored,
    /// only its hash ([`Self::hash`]).
    pub id: String,
    /// BLAKE3 hash of the secret, in hex.
    pub hash: String,
    /// The name of the agent that joins.
    pub agent: AgentId,
    /// The binding of the agent that joins.
    pub binding: Binding,
    /// The Unix time, in seconds, at which the token expires. This crate has no clock, so the controller checks this
    /// time when an agent joins.
    pub expires: u64,
}
