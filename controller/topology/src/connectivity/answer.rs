//! The result of a connectivity check in its JSON form, which has the properties of ARM's `ConnectivityInformation`.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use tombolo_proto::fabric::Protocol;
use tombolo_proto::id::ResourceId;

/// The result of a connectivity check (M5): what live probes have found, and where this differs from `explain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Connectivity {
    /// The source address of the probes.
    pub source: IpAddr,
    /// The destination address of the probes.
    pub destination: IpAddr,
    /// The protocol of the probes.
    pub protocol: Protocol,
    /// The destination port; `None` for ICMP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Whether `explain` says that the destination is reachable.
    pub explained: bool,
    /// The summary of `explain`.
    pub summary: String,
    /// The first hop at which the trace differs from the one that `explain` expects. `None`: they are equal as far as the
    /// trace reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub difference: Option<Difference>,
    /// The part of the result that ARM has too.
    #[serde(flatten)]
    pub information: ConnectivityInformation,
}

/// A hop at which a trace differs from the expected one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// The TTL of the probes, from 1. The routers of a site with the source count too.
    pub ttl: u8,
    /// The address that should answer. `None`: none, because the hop is silent or the trace should have ended before.
    pub expected: Option<IpAddr>,
    /// The address that has answered. `None`: none has.
    pub observed: Option<IpAddr>,
}

/// ARM's `ConnectivityInformation`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectivityInformation {
    /// Whether the destination has answered a probe.
    pub connection_status: ConnectionStatus,
    /// Mean of the latencies in whole milliseconds, at least 1. `None`: no probe was answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub avg_latency_in_ms: Option<u32>,
    /// Smallest latency, as [`avg_latency_in_ms`](Self::avg_latency_in_ms).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_latency_in_ms: Option<u32>,
    /// Largest latency, as [`avg_latency_in_ms`](Self::avg_latency_in_ms).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_latency_in_ms: Option<u32>,
    /// Number of probes that were sent.
    pub probes_sent: u32,
    /// Number of probes that were not answered by the destination, or refused by it.
    pub probes_failed: u32,
    /// The source, the hops between, and the destination or the hop at which the probes stop.
    pub hops: Vec<ConnectivityHop>,
}

/// Whether the destination of a check has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConnectionStatus {
    /// At least one probe was answered.
    Reachable,
    /// No probe was answered.
    Unreachable,
    /// The agent could not send probes.
    Unknown,
}

/// A hop of a connectivity check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectivityHop {
    /// What the hop is.
    #[serde(rename = "type")]
    pub kind: HopKind,
    /// The name by which other hops refer to this one; unique in the answer.
    pub id: String,
    /// The address that has answered, or else the address of the agent that should have. `None`: unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The ip configuration of a network interface, the gateway, or the circuit; for a site probe, the preferred attachment
    /// of its site. `None`: the address belongs to nothing that is known, such as a router of a site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_id: Option<ResourceId>,
    /// The ids of the next hops: one, or none for the last hop.
    pub next_hop_ids: Vec<String>,
    /// The ids of the hops before: one, or none for the source.
    pub previous_hop_ids: Vec<String>,
    /// The way to the next hop: one entry, or none for the last hop.
    pub links: Vec<HopLink>,
    /// The way from the hop before: one entry, or none for the source.
    pub previous_links: Vec<HopLink>,
    /// The reasons why probes stop here, and differences from `explain`.
    pub issues: Vec<Issue>,
}

/// What a hop is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HopKind {
    /// The network interface or the site from which the probes are sent.
    Source,
    /// A network interface that forwards packets.
    VirtualAppliance,
    /// A network interface in a virtual network.
    VnetLocal,
    /// An instance of a gateway.
    VirtualNetworkGateway,
    /// The edge of a circuit.
    ExpressRouteCircuit,
    /// A router that belongs to no virtual network.
    Internet,
    /// A destination that belongs to no virtual network.
    Destination,
}

/// The way from a hop to the next one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HopLink {
    /// The id of the hop at the other end.
    pub next_hop_id: String,
    /// The next hop type of the effective route that leads there. `None`: no route is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_type: Option<String>,
    /// Always empty: issues are at the hops.
    pub issues: Vec<Issue>,
    /// Always empty.
    pub context: BTreeMap<String, String>,
    /// The resource of the hop at the other end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_id: Option<ResourceId>,
    /// The measurements.
    pub properties: HopLinkProperties,
}

/// Round-trip times between the source and the hop at the far end of a link, in whole milliseconds, at least 1. All are
/// `None` if the hop has not answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HopLinkProperties {
    /// The smallest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round_trip_time_min: Option<u32>,
    /// The mean.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round_trip_time_avg: Option<u32>,
    /// The largest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round_trip_time_max: Option<u32>,
}

/// A reason why probes stop at a hop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Issue {
    /// The side of the hop.
    pub origin: Origin,
    /// `Error` if the destination is not reachable, otherwise `Warning`.
    pub severity: Severity,
    /// The kind of the reason.
    #[serde(rename = "type")]
    pub kind: IssueKind,
    /// Details.
    pub context: Vec<ContextEntry>,
}

/// The side of a hop to which an issue belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// The hop itself.
    Local,
    /// The way from the hop before.
    Inbound,
    /// The way to the next hop.
    Outbound,
}

/// The weight of an issue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Severity {
    /// The destination is not reachable.
    Error,
    /// The destination is reachable.
    Warning,
}

/// The kind of an issue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum IssueKind {
    /// A rule of a security group denies the probes. Context: `RuleName`, `NetworkSecurityGroup`.
    NetworkSecurityRule,
    /// The route at the hop does not lead to the destination. Context: `RouteType`, `User` or `System`, and `Reason`.
    UserDefinedRoute,
    /// The probes should arrive, and the machine of the destination refuses them or does not answer. Context: `Reason`.
    GuestFirewall,
    /// The agent of the hop is not connected to the controller.
    AgentStopped,
    /// The agent of the source cannot send from the address. Context: `Reason`.
    SocketBind,
    /// The agents do not carry the probes, or carry them in another way than `explain` expects. Context: `Reason`, or
    /// `Expected` and `Observed`.
    Platform,
    /// Nothing that is known explains the result.
    Unknown,
}

/// A detail of an issue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContextEntry {
    /// The name of the detail.
    pub key: String,
    /// Its value.
    pub value: String,
}
