//! Explanations of packets, and live probes.

use crate::probe::{ProbeKind, ProbeReport};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// The packet that the controller explains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExplainRequest {
    /// The source: name or id of a VM or a NIC, the name of an agent, or the address of a NIC.
    pub from: String,
    /// The destination, in the same forms as `from`, or any IP address.
    pub to: String,
    /// The protocol; [`Protocol::Icmp`] if absent.
    #[serde(default, skip_serializing_if = "Protocol::is_default")]
    pub protocol: Protocol,
    /// The destination port, for TCP and UDP only; 49152 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<u16>,
    /// The initial TTL, 1 to 255; 64 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u8>,
    /// Whether the answer is about the design: as if all agents had joined, and all links and back ends were up.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub design: bool,
}

/// The protocol of a packet that is explained.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Protocol {
    /// An ICMP echo request.
    #[default]
    Icmp,
    /// A TCP SYN segment.
    Tcp,
    /// A UDP datagram without a payload.
    Udp,
}

impl Protocol {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A request for a connectivity check (M5): live probes from the agent of the source, compared with `explain`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CheckRequest {
    /// The source, as in [`ExplainRequest::from`].
    pub from: String,
    /// The destination, as in [`ExplainRequest::to`].
    pub to: String,
    /// What is sent: echo requests, or TCP connections; [`Protocol::Icmp`] if absent. [`Protocol::Udp`] is refused.
    #[serde(default, skip_serializing_if = "Protocol::is_default")]
    pub protocol: Protocol,
    /// The destination port, 1 to 65,535; for TCP only, and required there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// A request for a live ping, traceroute or TCP connections. Its numbers have the same ranges as those of
/// [`ProbeRequest`](crate::probe::ProbeRequest).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Probe {
    /// Name or resource id of a VM or NIC, or the name of an agent.
    pub from: String,
    /// Name or resource id of a VM or NIC, name of an agent, or an IP address.
    pub to: String,
    /// What is sent.
    pub kind: ProbeKind,
    /// Ping and connect: number of echo requests or connections, default 5. Trace: number of probes for each TTL, default 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// Ping and connect: time between two echo requests or connections in milliseconds, default 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<u32>,
    /// Time to wait for each reply or connection in milliseconds, default 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u32>,
    /// Trace: the largest TTL, default 30. Otherwise the TTL of the packets, default 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ttl: Option<u8>,
    /// Connect: the destination port; required there. Otherwise absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// The result of a probe.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProbeAnswer {
    /// The source address of the probe's packets. `None`: the controller is older than this field.
    #[serde(default)]
    pub from: Option<IpAddr>,
    /// The destination address of the probe's packets. `None`: the controller is older than this field.
    #[serde(default)]
    pub to: Option<IpAddr>,
    /// The report of the agent that sent the packets.
    #[serde(flatten)]
    pub report: ProbeReport,
}
