//! Live ping, traceroute and TCP connections between two addresses. The agent whose NIC has the source address runs them.

use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// A probe that an agent is asked to run. The agent refuses values out of the given ranges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProbeRequest {
    /// Source address: one of the agent's NIC addresses.
    pub source: IpAddr,
    /// Destination address, of the same family as `source`.
    pub destination: IpAddr,
    /// What is sent.
    pub kind: ProbeKind,
    /// Ping: number of echo requests, 1 to 100. Connect: number of connections, 1 to 20. Trace: number of probes for each
    /// TTL, 1 to 10.
    pub count: u32,
    /// Ping and connect: time between two echo requests or connections in milliseconds, 10 to 60,000.
    pub interval_ms: u32,
    /// Time to wait for the reply to each echo request, or for each connection, in milliseconds, 10 to 10,000.
    pub timeout_ms: u32,
    /// Trace: the largest TTL, 1 to 64. Otherwise the TTL of the packets.
    pub max_ttl: u8,
    /// Connect: the destination port, 1 to 65,535. Otherwise `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// The kind of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProbeKind {
    /// Echo requests with TTL `max_ttl`.
    Ping,
    /// Echo requests with TTL 1, 2, … until the destination replies or `max_ttl` is reached.
    Trace,
    /// TCP connections to `port`, each of which is closed as soon as it is open. Only for agents with
    /// [`Feature::ConnectProbe`](crate::config::Feature::ConnectProbe).
    Connect,
}

/// The result of a probe.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProbeReport {
    /// Number of echo requests sent, or of connections tried.
    pub sent: u32,
    /// Number of replies from the destination itself, or of connections that were opened.
    pub received: u32,
    /// Round-trip time of each reply from the destination, or the time until each connection was open, in milliseconds.
    pub rtts_ms: Vec<f64>,
    /// Trace: one entry for each TTL, starting at 1. Otherwise empty.
    pub hops: Vec<Hop>,
    /// Connect: number of connections that were refused, by a TCP reset or an ICMP error about the port. Otherwise: number of
    /// echo requests to which the destination itself has answered with an ICMP error.
    #[serde(skip_serializing_if = "is_zero")]
    pub refused: u32,
    /// Connect: number of connections for which an ICMP error said that the destination cannot be reached. The connections
    /// that are in none of these numbers have timed out.
    #[serde(skip_serializing_if = "is_zero")]
    pub unreachable: u32,
    /// The reason why nothing could be sent, as text; `None` if the probe ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// The replies to one TTL of a traceroute.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hop {
    /// The address that replied. `None`: nothing replied in time (`*`).
    pub address: Option<IpAddr>,
    /// Round-trip time of each reply, in milliseconds.
    pub rtts_ms: Vec<f64>,
}
