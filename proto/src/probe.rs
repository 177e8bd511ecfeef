//! Live ping and traceroute between two addresses. The agent whose NIC has the source address runs them.

use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// A ping or traceroute that an agent is asked to run. The agent refuses values out of the given ranges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProbeRequest {
    /// Source address: one of the agent's NIC addresses.
    pub source: IpAddr,
    /// Destination address, of the same family as `source`.
    pub destination: IpAddr,
    /// Whether it is a ping or a traceroute.
    pub kind: ProbeKind,
    /// Ping: number of echo requests, 1 to 100. Trace: number of probes for each TTL, 1 to 10.
    pub count: u32,
    /// Ping: time between two echo requests in milliseconds, 10 to 60,000.
    pub interval_ms: u32,
    /// Time to wait for the reply to each echo request, in milliseconds, 10 to 10,000.
    pub timeout_ms: u32,
    /// Trace: the largest TTL, 1 to 64. Ping: the TTL of the echo requests.
    pub max_ttl: u8,
}

/// The kind of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProbeKind {
    /// Echo requests with TTL `max_ttl`.
    Ping,
    /// Echo requests with TTL 1, 2, … until the destination replies or `max_ttl` is reached.
    Trace,
}

/// The result of a ping or traceroute.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProbeReport {
    /// Number of echo requests sent.
    pub sent: u32,
    /// Number of replies from the destination itself.
    pub received: u32,
    /// Round-trip time of each reply from the destination, in milliseconds.
    pub rtts_ms: Vec<f64>,
    /// Trace: one entry for each TTL, starting at 1. Empty for a ping.
    pub hops: Vec<Hop>,
    /// The reason why nothing could be sent, as text; `None` if the probe ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
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
