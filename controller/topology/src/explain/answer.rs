//! The question and the answer, as they travel.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::route::RouteSource;

/// TTL (hop limit) that a packet starts with unless asked otherwise.
pub const DEFAULT_TTL: u8 = 64;

/// Which packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Question {
    /// A VM (name or id), a NIC (name or id), an agent, or the address of a NIC.
    pub from: String,
    /// The same, or any address.
    pub to: String,
    /// ICMP unless given.
    #[serde(default)]
    pub protocol: Protocol,
    /// TCP and UDP only.
    #[serde(default)]
    pub destination_port: Option<u16>,
    /// 1 to 255; [`DEFAULT_TTL`] unless given.
    #[serde(default)]
    pub ttl: Option<u8>,
}

/// What the packet carries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Protocol {
    /// An echo request.
    #[default]
    Icmp,
    /// A SYN.
    Tcp,
    /// A datagram.
    Udp,
}

/// What the agents would do, by their own code and their own configurations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The address that the packet comes from.
    pub source: IpAddr,
    /// The address that it goes to.
    pub destination: IpAddr,
    /// As asked.
    pub protocol: Protocol,
    /// The packet arrives, and an answer to it comes back.
    pub reachable: bool,
    /// One sentence: the path, or what stops it and what to do.
    pub summary: String,
    /// The way there.
    pub request: Walk,
    /// The way back; none if the packet does not arrive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply: Option<Walk>,
    /// What traceroute would print, one line a TTL, as far as the packet gets.
    pub trace: Vec<TraceHop>,
}

/// One direction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Walk {
    /// It arrives.
    pub delivered: bool,
    /// One entry for each time that an agent decides on the packet.
    pub hops: Vec<Hop>,
    /// Why it does not arrive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop: Option<Stop>,
}

/// An agent's decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hop {
    /// Who decides.
    pub agent: AgentId,
    /// The VNet that it stands for.
    pub vnet: ResourceId,
    /// Where the packet comes from.
    pub ingress: Ingress,
    /// TTL when it comes.
    pub ttl: u8,
    /// The subnet whose routes were used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subnet: Option<ResourceId>,
    /// The effective route that matched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<MatchedRoute>,
    /// What it does, in words.
    pub verdict: String,
    /// Who gets the packet next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<AgentId>,
    /// What the next one is to this agent: `vnetLocal`, `peering`, `gateway`, `gatewayClient`, `connection`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relation: Option<String>,
}

/// Where a packet comes into an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Ingress {
    /// From the host itself, through the TUN device.
    Device {},
    /// From another agent.
    Link {
        /// Which.
        from: AgentId,
    },
}

/// A route in Azure's words (R21).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MatchedRoute {
    /// The user-defined route's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where it comes from.
    pub source: RouteSource,
    /// The destination.
    pub address_prefix: IpNet,
    /// `VnetLocal`, `VNetPeering`, …
    pub next_hop_type: String,
    /// `nextHopIpAddress`.
    pub next_hop_ip_address: Vec<IpAddr>,
}

/// What stops a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stop {
    /// Where.
    pub agent: AgentId,
    /// The name under which that agent counts it.
    pub reason: String,
    /// The resource to look at, where there is one: a peering half, a subnet, a network interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<ResourceId>,
    /// The tag of the rule or decision in docs/rules, e.g. `P18`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// What is wrong and what to do, in one sentence: `cause` and `remedy` joined by a colon.
    pub text: String,
    /// What is wrong.
    pub cause: String,
    /// What to do.
    pub remedy: String,
}

/// One line of a traceroute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TraceHop {
    /// From 1.
    pub ttl: u8,
    /// Who takes the packet there.
    pub agent: AgentId,
    /// The address that answers; none: silent (`*`).
    pub address: Option<IpAddr>,
}
