//! Agents, and the tokens with which they join.

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use tombolo_proto::config::CircuitLink;
use tombolo_proto::id::{AgentId, PublicKey, ResourceId};

/// An agent: a host that joined, bound to one thing (D7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Agent {
    /// The agent's name.
    pub id: AgentId,
    /// The machine, gateway instance or circuit link that the agent is bound to.
    pub binding: Binding,
    /// The WireGuard public key, which identifies the agent on links.
    pub public_key: PublicKey,
    /// SHA-256 of the certificate's SubjectPublicKeyInfo in hex, which identifies the agent at the controller.
    pub certificate_key: String,
    /// The endpoints of the agent's links.
    #[serde(flatten)]
    pub reach: Reach,
    /// Whether the agent is revoked. A revoked agent gets no configuration and no links; its record stays so that
    /// operators see it.
    pub revoked: bool,
}

/// How other agents reach this one, as the agent reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reach {
    /// Underlay addresses of lane 0, the best one first.
    pub endpoints: Vec<SocketAddr>,
    /// The address that also accepts QUIC. `None`: QUIC is off (D6).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic_endpoint: Option<SocketAddr>,
    /// The number of lanes, 1 to [`MAX_LANES`](tombolo_proto::config::MAX_LANES) (D15).
    #[serde(default = "one_lane")]
    pub lanes: u16,
}

const fn one_lane() -> u16 {
    1
}

impl Reach {
    /// One lane, these endpoints, and no QUIC.
    #[must_use]
    pub const fn at(endpoints: Vec<SocketAddr>) -> Self {
        Self {
            endpoints,
            quic_endpoint: None,
            lanes: one_lane(),
        }
    }
}

/// The one thing that a join token, and later its agent, represents (D7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "type",
    rename_all = "camelCase",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum Binding {
    /// A virtual machine with its NICs.
    Vm {
        /// `…/Microsoft.Compute/virtualMachines/{name}`, which ARM clients see as a read-only resource.
        vm: ResourceId,
        /// The VM's NICs, the primary one first. All are in one VNet, and no other agent has one of them.
        nics: Vec<ResourceId>,
        /// Subnets of that VNet whose machines without an agent are behind this host (D8).
        #[serde(default)]
        served: Vec<ResourceId>,
    },
    /// One instance of a gateway.
    Gateway {
        /// The id of the virtual network gateway.
        gateway: ResourceId,
        /// The name of the gateway's `ipConfiguration`.
        ip_configuration: String,
    },
    /// The provider edge of one link of a circuit.
    Edge {
        /// The id of the circuit.
        circuit: ResourceId,
        /// The circuit's primary or secondary link.
        link: CircuitLink,
    },
}

/// A join token, which one agent can use once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinToken {
    /// The public part of the token. The secret part is stored as `hash` only.
    pub id: String,
    /// BLAKE3 hash of the secret, in hex.
    pub hash: String,
    /// The name of the agent that joins.
    pub agent: AgentId,
    /// The binding of the agent that joins.
    pub binding: Binding,
    /// Unix time in seconds after which the token is invalid.
    pub expires: u64,
}
