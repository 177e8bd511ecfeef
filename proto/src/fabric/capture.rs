//! Live captures of packets.

use serde::{Deserialize, Serialize};

/// A request for a live capture. The response is a stream in pcapng, which ends when the capture ends.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LiveCapture {
    /// Name or id of a VM or NIC, or the name of an agent. A NIC stands for the packets of this NIC alone.
    pub target: String,
    /// Whether the datagrams of the links in the underlay are captured instead of the packets at the network interfaces.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sealed: bool,
    /// A packet is captured if one of the filters matches, or if there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<CaptureFilterText>,
    /// Number of bytes that are kept of each packet; all if absent or 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_packet: Option<u32>,
    /// Largest length of the stream in bytes, 1 to 4,294,967,295; the largest if absent or 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    /// Longest time in seconds, 1 to 18,000; the longest if absent or 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u32>,
}

/// A filter in Azure's words. Addresses and ports are lists with `;` of single values and of ranges with `-`, such as
/// `10.0.0.4;10.0.1.0-10.0.1.9`. The local end is the machine that is captured at. What is absent or empty matches
/// everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CaptureFilterText {
    /// `TCP`, `UDP` or `Any`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Addresses of the local end.
    #[serde(default, rename = "localIPAddress", skip_serializing_if = "Option::is_none")]
    pub local_address: Option<String>,
    /// Ports of the local end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_port: Option<String>,
    /// Addresses of the other end.
    #[serde(default, rename = "remoteIPAddress", skip_serializing_if = "Option::is_none")]
    pub remote_address: Option<String>,
    /// Ports of the other end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_port: Option<String>,
}
