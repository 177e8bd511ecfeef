//! The question and the answer of the fabric API, in their JSON form.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use tombolo_proto::config::{Access, Direction};
use tombolo_proto::fabric::Protocol;
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::route::RouteSource;

/// The initial TTL (hop limit) of a packet if the question has none: the default of Linux.
pub const DEFAULT_TTL: u8 = 64;

/// The answer to an [`ExplainRequest`](tombolo_proto::fabric::ExplainRequest): what each agent decides, computed with
/// the agents' own code and configurations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The source address of the packet.
    pub source: IpAddr,
    /// The destination address of the packet.
    pub destination: IpAddr,
    /// The protocol of the question.
    pub protocol: Protocol,
    /// Whether the packet arrives and its reply comes back.
    pub reachable: bool,
    /// One sentence: the path, or the reason of the stop and the remedy.
    pub summary: String,
    /// The walk of the packet.
    pub request: Walk,
    /// The walk of the reply. `None`: the packet does not arrive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply: Option<Walk>,
    /// The output of a traceroute, one line for each TTL from 1, up to the destination or to the last agent that the
    /// packet reaches. At most as many lines as the packet's TTL. From a site probe, TTL 1 is that of the first agent,
    /// because the controller does not know how many routers the site has (M10).
    pub trace: Vec<TraceHop>,
}

/// The walk of one packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Walk {
    /// Whether the packet arrives. It arrives if it reaches its destination, or the device or customer edge of a site.
    pub delivered: bool,
    /// One entry for each decision of an agent, in order. An appliance that forwards the packet has two entries: one
    /// for the delivery to its host, and one for the packet that the host's kernel sends back to the agent. An edge
    /// whose kernel sends the packet on to a VNet has two entries too. From a site probe, the first entry stands for the
    /// routers of the site (M10).
    pub hops: Vec<Hop>,
    /// The reason why the packet does not arrive. `None`: it arrives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop: Option<Stop>,
}

/// One agent's decision on the packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hop {
    /// The agent that decides.
    pub agent: AgentId,
    /// The VNet of the agent, or the circuit of an edge. For a site probe, the attachment by which the packet leaves the
    /// site.
    pub vnet: ResourceId,
    /// Where the packet arrives: from the host or over a link.
    pub ingress: Ingress,
    /// The TTL on arrival.
    pub ttl: u8,
    /// The subnet whose routes decided. `None`: the agent used no subnet's routes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subnet: Option<ResourceId>,
    /// The effective route that matched. `None`: the agent decided without a route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<MatchedRoute>,
    /// The security groups that the packet passed at a network interface of the agent, on its way in or out. `None`: it
    /// passed no network interface with a security group (N5).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security: Option<SecurityCheck>,
    /// The limit of bandwidth to which the packet is subject at this agent (P32, G5). A packet beyond the limit waits
    /// or is dropped; a single packet passes. `None`: there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<BandwidthLimit>,
    /// The decision in words.
    pub verdict: String,
    /// The agent, or the device of a site, that gets the packet next. `None`: this hop does not send the packet over a
    /// link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<AgentId>,
    /// What the next agent is to this one, such as `vnetLocal`, `peering`, `gateway`, `gatewayClient` or `connection`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relation: Option<String>,
}

/// A limit of bandwidth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BandwidthLimit {
    /// The network interface, whose limit is for all that it sends; or the VPN gateway, whose limit is for all its tunnels
    /// together.
    pub resource: ResourceId,
    /// The limit in Mbit/s. Each instance of an active-active gateway has a part of the gateway's limit.
    pub mbps: u64,
}

/// Where a packet arrives at an agent.
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
    /// The name of the route, if it is user-defined.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The source of the route.
    pub source: RouteSource,
    /// The prefix of destinations for which the route applies.
    pub address_prefix: IpNet,
    /// The next hop type: `VnetLocal`, `VNetPeering`, …
    pub next_hop_type: String,
    /// The addresses of the next hop, if it is an appliance or a gateway (then the addresses of its instances). Empty
    /// for other types of next hops.
    pub next_hop_ip_address: Vec<IpAddr>,
}

/// The decision of the security groups at one network interface about a packet (D25).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecurityCheck {
    /// The network interface, or the subnet of machines without an agent.
    pub at: ResourceId,
    /// `Inbound`: the packet comes to the network interface. `Outbound`: it leaves the network interface.
    pub direction: Direction,
    /// Whether the packet belongs to a flow that was admitted here before, such as the reply to a request. No rule
    /// decides about such a packet (N6).
    pub known_flow: bool,
    /// The groups in the order in which they decide, up to the first one that denies (N4). Empty for a known flow.
    pub groups: Vec<GroupCheck>,
}

/// The decision of one security group about a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupCheck {
    /// The security group.
    pub group: ResourceId,
    /// The subnet or the network interface to which the group is attached.
    pub attached_to: ResourceId,
    /// The decision.
    pub access: Access,
    /// The first rule that matches the packet, which decides (N3). `None`: no rule matches, which denies the packet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<DecidingRule>,
    /// The rules before the deciding one, in order of priority. If there are more than 20, the last 20.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_matched: Vec<OtherRule>,
    /// The number of further rules that do not match, before those of `not_matched`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub not_matched_earlier: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// The security rule that decides about a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DecidingRule {
    /// `securityRules/NAME`, or `defaultSecurityRules/NAME` (N2).
    pub name: String,
    /// The priority; the lowest number decides first.
    pub priority: u16,
    /// The part of the rule's sources that contains the packet's source.
    pub source: MatchedAddresses,
    /// The part of the rule's destinations that contains the packet's destination.
    pub destination: MatchedAddresses,
}

/// The part of a rule's addresses that contains an address of the packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MatchedAddresses {
    /// `*`, a prefix, a service tag, or the id of an application security group in lower case.
    pub name: String,
    /// The prefix of the tag, or the address of the application security group, that contains the packet's address.
    /// `None`: the name is `*` or a prefix, or the tag is `Internet`, which has every address outside of other prefixes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<IpNet>,
}

/// A security rule that does not match a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OtherRule {
    /// `securityRules/NAME`, or `defaultSecurityRules/NAME` (N2).
    pub name: String,
    /// The priority.
    pub priority: u16,
    /// The decision of the rule about packets that match it.
    pub access: Access,
    /// The fields in which the packet differs from the rule; at least one.
    pub differs: Vec<RuleField>,
}

/// A field of a security rule (N1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RuleField {
    /// The protocol.
    Protocol,
    /// The source addresses.
    Source,
    /// The source ports.
    SourcePort,
    /// The destination addresses.
    Destination,
    /// The destination ports.
    DestinationPort,
}

/// The reason why a packet stops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stop {
    /// The agent at which the packet stops.
    pub agent: AgentId,
    /// The name of the drop reason under which that agent counts the packet. If the agent would count no drop, the
    /// reason is `no_configuration`, `unusable_configuration` or `loop`.
    pub reason: String,
    /// The resource that needs a change, such as a peering half, a subnet or a network interface. `None`: no single
    /// resource needs a change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<ResourceId>,
    /// The tag of the rule or decision in docs/rules, e.g. `P18`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The cause and the remedy in one sentence, joined by a colon.
    pub text: String,
    /// The cause: the state that stops the packet.
    pub cause: String,
    /// The remedy: the change that would let the packet pass.
    pub remedy: String,
}

/// One line of a traceroute's output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TraceHop {
    /// The initial TTL of the probe, from 1.
    pub ttl: u8,
    /// The agent at which the probe's TTL expires, or the agent that delivers the probe.
    pub agent: AgentId,
    /// The address that answers. `None`: a silent hop (`*`).
    pub address: Option<IpAddr>,
}
