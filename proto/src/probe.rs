//! Live ping and traceroute between two addresses, run by the agent that owns the source.

use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// What to send.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProbeRequest {
    /// One of the agent's NIC addresses.
    pub source: IpAddr,
    /// Any address of the same family.
    pub destination: IpAddr,
    /// Ping or traceroute.
    pub kind: ProbeKind,
    /// Ping: echoes to send, 1 to 100. Trace: probes a TTL, 1 to 10.
    pub count: u32,
    /// Between two echoes of a ping, milliseconds, at least 10.
    pub interval_ms: u32,
    /// For an answer to each echo, milliseconds, 10 to 10,000.
    pub timeout_ms: u32,
    /// Trace: the largest TTL, 1 to 64. Ping: the TTL to send with.
    pub max_ttl: u8,
}

/// Ping or traceroute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProbeKind {
    /// Echoes with a full TTL.
    Ping,
    /// Echoes with TTL 1, 2, … until the destination answers or `max_ttl` is reached.
    Trace,
}

/// What came back.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProbeReport {
    /// Echoes sent.
    pub sent: u32,
    /// Answers of the destination itself.
    pub received: u32,
    /// Round-trip time of each answer of the destination, milliseconds.
    pub rtts_ms: Vec<f64>,
    /// Trace: one entry a TTL, from 1.
    pub hops: Vec<Hop>,
    /// Why nothing could be sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// One TTL of a trace.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hop {
    /// Who answered; none: silent (`*`).
    pub address: Option<IpAddr>,
    /// Round-trip times, milliseconds.
    pub rtts_ms: Vec<f64>,
}
