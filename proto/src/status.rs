//! What agents report, and what their local admin socket shows.

use crate::id::{AgentId, Revision};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// What an agent says of itself, on change and every few seconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AgentStatus {
    /// The revision whose tables and kernel routes are in force (D2).
    pub applied: Revision,
    /// Digest of the configuration in force; empty: none yet.
    pub digest: String,
    /// One entry a link that was used or is `always_on`, ordered by `peer`.
    pub links: Vec<LinkStatus>,
    /// Packets dropped, by the reason's name; zero ones left out.
    pub drops: BTreeMap<String, u64>,
    /// Packets and bytes since start.
    pub totals: Totals,
}

/// Packets and bytes since start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Totals {
    /// Read from the TUN device.
    pub tun_in: u64,
    /// Written to the TUN device.
    pub tun_out: u64,
    /// Opened from links.
    pub link_in: u64,
    /// Sealed into links.
    pub link_out: u64,
    /// Answered by the engine itself (ICMP).
    pub replied: u64,
    /// Dropped, all reasons.
    pub dropped: u64,
}

/// One link as its agent sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkStatus {
    /// The other end.
    pub peer: AgentId,
    /// What state it is in.
    pub state: LinkState,
    /// Why it is not up, in words; none when it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Where packets go now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<SocketAddr>,
    /// Seconds since the last handshake ended well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handshake_age: Option<f64>,
    /// Inner bytes received.
    pub rx_bytes: u64,
    /// Inner bytes sent.
    pub tx_bytes: u64,
    /// Inner packets received.
    pub rx_packets: u64,
    /// Inner packets sent.
    pub tx_packets: u64,
}

/// The state of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LinkState {
    /// Never needed so far.
    Idle,
    /// A handshake is running.
    Connecting,
    /// A session is in force.
    Up,
    /// No session: the other end does not answer (`PeerReachability`, M8).
    Unreachable,
    /// The other end answers, and its answer does not verify: the shared keys differ (`Authentication`, M8, G11).
    AuthenticationFailed,
    /// Neither end knows where the other is (D18).
    NoEndpoint,
}
