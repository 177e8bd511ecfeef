//! The question and the answer of the fabric API, in their JSON form.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::route::RouteSource;

/// The initial TTL (hop limit) of a packet if the question has none: the default of Linux.
pub const DEFAULT_TTL: u8 = 64;

/// The packet to walk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Question {
    /// The source: a VM or NIC (name or id), an agent, or the address of a NIC.
    pub from: String,
    /// The destination: the same, or any address.
    pub to: String,
    /// The protocol; ICMP by default.
    #[serde(default)]
    pub protocol: Protocol,
    /// The destination port, for TCP and UDP only.
    #[serde(default)]
    pub destination_port: Option<u16>,
    /// The initial TTL, 1 to 255; [`DEFAULT_TTL`] by default.
    #[serde(default)]
    pub ttl: Option<u8>,
}

/// The protocol of the packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Protocol {
    /// An ICMP echo request.
    #[default]
    Icmp,
    /// A TCP SYN segment.
    Tcp,
    /// A UDP datagram.
    Udp,
}

/// The result of the agents' decisions, by their own code and configurations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The source address of the packet.
    pub source: IpAddr,
    /// The destination address of the packet.
    pub destination: IpAddr,
    /// The protocol of the question.
    pub protocol: Protocol,
    /// Whether the packet arrives and a reply comes back.
    pub reachable: bool,
    /// One sentence: the path, or the reason of the stop and the remedy.
    pub summary: String,
    /// The walk of the packet.
    pub request: Walk,
    /// The walk of the reply. `None`: the packet does not arrive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply: Option<Walk>,
    /// The output of traceroute, one line for each TTL, up to the last hop that the packet reaches.
    pub trace: Vec<TraceHop>,
}

/// The walk of one packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Walk {
    /// Whether the packet arrives.
    pub delivered: bool,
    /// One entry for each decision of an agent.
    pub hops: Vec<Hop>,
    /// The reason why the packet does not arrive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop: Option<Stop>,
}

/// One agent's decision on the packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hop {
    /// The agent that decides.
    pub agent: AgentId,
    /// The VNet of the agent, or the circuit of an edge.
    pub vnet: ResourceId,
    /// The interface on which the packet arrives.
    pub ingress: Ingress,
    /// The TTL on arrival.
    pub ttl: u8,
    /// The subnet whose routes decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subnet: Option<ResourceId>,
    /// The effective route that matched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<MatchedRoute>,
    /// The decision in words.
    pub verdict: String,
    /// The agent that gets the packet next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<AgentId>,
    /// The relation of the next agent to this one, such as `vnetLocal`, `peering`, `gateway`, `gatewayClient` or
    /// `connection`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relation: Option<String>,
}

/// The interface on which a packet arrives at an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Ingress {
    /// The TUN device: the packet comes from the host.
    Device {},
    /// A link with another agent.
    Link {
        /// The agent at the other end of the link.
        from: AgentId,
    },
}

/// A route in Azure's terms (R21).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MatchedRoute {
    /// The name of a user-defined route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The source of the route.
    pub source: RouteSource,
    /// The destination prefix.
    pub address_prefix: IpNet,
    /// The next hop type: `VnetLocal`, `VNetPeering`, …
    pub next_hop_type: String,
    /// The addresses of the next hop.
    pub next_hop_ip_address: Vec<IpAddr>,
}

/// The reason why a packet stops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stop {
    /// The agent at which the packet stops.
    pub agent: AgentId,
    /// The drop reason under which that agent counts the packet.
    pub reason: String,
    /// The resource that needs a change, if there is one: a peering half, a subnet, a network interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<ResourceId>,
    /// The tag of the rule or decision in docs/rules, e.g. `P18`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Cause and remedy in one sentence, joined by a colon.
    pub text: String,
    /// The cause: the state that stops the packet.
    pub cause: String,
    /// The remedy: the change that would let the packet pass.
    pub remedy: String,
}

/// One line of a traceroute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TraceHop {
    /// The initial TTL of the probe, from 1.
    pub ttl: u8,
    /// The agent that gets the packet.
    pub agent: AgentId,
    /// The address that answers. `None`: a silent hop (`*`).
    pub address: Option<IpAddr>,
}
