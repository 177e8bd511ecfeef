//! Agents, and the tokens with which they join.

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use tombolo_proto::config::CircuitLink;
use tombolo_proto::id::{AgentId, PublicKey, ResourceId};

/// An agent: a host that has joined. It is bound to one VM, gateway instance or circuit link (D7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Agent {
    /// The agent's name, unique among all agents including revoked ones.
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
    /// Whether the agent is revoked. A revoked agent gets no configuration and no links, and cannot connect. Its record
    /// stays so that operators see it, and so that its name and keys stay in use until it is deleted.
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
}

/// The number of lanes of agents that report none: versions before lanes had one thread.
const fn one_lane() -> u16 {
    1
}

impl Reach {
    /// The reach of a host with these endpoints, the best one first, with one lane and without QUIC.
    #[must_use]
    pub const fn at(endpoints: Vec<SocketAddr>) -> Self {
        Self {
            endpoints,
            quic_endpoint: None,
            lanes: one_lane(),
        }
    }
}

/// The one resource that a join token, and later its agent, represents (D7).
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
        /// The id of the VM, `…/Microsoft.Compute/virtualMachines/{name}`. ARM clients see the VM as a read-only
        /// resource.
        vm: ResourceId,
        /// The VM's NICs, the primary one first. All are in one VNet, and no other agent has one of them.
        nics: Vec<ResourceId>,
        /// Subnets of that VNet whose machines have no agent and reach the network through this host (D8).
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

/// A join token: the permission for one agent to join once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinToken {
    /// The public part of the token, by which it is found. Of the secret part, only `hash` is stored.
    pub id: String,
    /// BLAKE3 hash of the secret, in hex.
    pub hash: String,
    /// The name of the agent that joins.
    pub agent: AgentId,
    /// The binding of the agent that joins.
    pub binding: Binding,
    /// The Unix time, in seconds, from which on the token is invalid. This crate has no clock: the controller checks it
    /// when an agent joins.
    pub expires: u64,
}
