//! Agents and the tokens with which they join.

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use tombolo_proto::config::CircuitLink;
use tombolo_proto::id::{AgentId, PublicKey, ResourceId};

/// An agent: what joined, and what it stands for (D7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Agent {
    /// Its name.
    pub id: AgentId,
    /// What it stands for.
    pub binding: Binding,
    /// Its identity on links.
    pub public_key: PublicKey,
    /// SHA-256 of its certificate's SubjectPublicKeyInfo, hex: its identity towards the controller.
    pub certificate_key: String,
    /// How others reach it.
    #[serde(flatten)]
    pub reach: Reach,
    /// Cut off. Kept so that the name and the reason stay visible; nobody gets a link to it.
    pub revoked: bool,
}

/// How an agent is reached, as it says itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reach {
    /// Where its first lane is, best first.
    pub endpoints: Vec<SocketAddr>,
    /// Where it takes QUIC besides (D6).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic_endpoint: Option<SocketAddr>,
    /// How many lanes it runs, 1 to [`MAX_LANES`](tombolo_proto::config::MAX_LANES) (D15).
    #[serde(default = "one_lane")]
    pub lanes: u16,
}

const fn one_lane() -> u16 {
    1
}

impl Reach {
    /// An agent with one lane, at these endpoints alone.
    #[must_use]
    pub const fn at(endpoints: Vec<SocketAddr>) -> Self {
        Self {
            endpoints,
            quic_endpoint: None,
            lanes: one_lane(),
        }
    }
}

/// What a join token, and then an agent, stands for (D7): exactly one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "type",
    rename_all = "camelCase",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum Binding {
    /// A virtual machine.
    Vm {
        /// `…/Microsoft.Compute/virtualMachines/{name}`: the read-only view that ARM clients look for.
        vm: ResourceId,
        /// Its NICs, the primary one first; all in one VNet, none bound elsewhere.
        nics: Vec<ResourceId>,
        /// Subnets of that VNet whose other machines sit behind this host (D8).
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

/// A one-time token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinToken {
    /// Public part; the secret's hash stands in `hash`.
    pub id: String,
    /// BLAKE3 of the secret, hex.
    pub hash: String,
    /// The name that the agent gets.
    pub agent: AgentId,
    /// What it will stand for.
    pub binding: Binding,
    /// Unix seconds; not valid after.
    pub expires: u64,
}
