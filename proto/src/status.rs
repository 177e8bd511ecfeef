//! What agents report, and what their local admin socket shows.

use crate::id::{AgentId, ResourceId, Revision};
use crate::route::Route;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

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
    /// Agents and devices that this one has links with and that do not answer, ordered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub down: Vec<AgentId>,
    /// What BGP neighbours announce, ordered by neighbour.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub learned: Vec<Heard>,
    /// The sessions with them, ordered by neighbour.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bgp: Vec<BgpPeerStatus>,
    /// Routes that others send now and that are not used, by sender and reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused_routes: Vec<RefusedRoutes>,
}

/// Routes that an agent does not use, for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusedRoutes {
    /// The agent or the BGP neighbour that sends them. None: whoever does, the agent's host does not take them into its
    /// own routing (D22); packets of the overlay use them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<String>,
    /// Why: a stable name, such as `first_as`, `martian` or `host_connected`.
    pub reason: String,
    /// How many there are.
    pub count: u64,
    /// The first of them.
    pub example: IpNet,
    /// Why the first one, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What one BGP neighbour announces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Heard {
    /// [`Neighbour::id`](crate::config::Neighbour::id).
    pub neighbour: ResourceId,
    /// All of it, ordered.
    pub routes: Vec<Route>,
}

/// A BGP session, in the words of `getBgpPeerStatus`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpPeerStatus {
    /// [`Neighbour::id`](crate::config::Neighbour::id).
    pub neighbour: ResourceId,
    /// The neighbour's address.
    pub address: IpAddr,
    /// The own one.
    pub local_address: IpAddr,
    /// Its ASN.
    pub asn: u32,
    /// How far the session has come.
    pub state: BgpPeerState,
    /// For how long, seconds.
    pub since: f64,
    /// Routes that it announces, and that are announced to it.
    pub received: u64,
    /// See `received`.
    pub sent: u64,
    /// What ended it last, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// Azure's `BgpPeerState`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum BgpPeerState {
    /// Nobody says.
    #[default]
    Unknown,
    /// Shut: too many prefixes, or the operator's wish.
    Stopped,
    /// Not trying.
    Idle,
    /// Trying.
    Connecting,
    /// Established.
    Connected,
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
    /// What carries packets now.
    #[serde(default)]
    pub transport: Carrier,
    /// Round-trip time inside the link, milliseconds; while it is in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_ms: Option<f64>,
    /// Longest packet that the path carries whole, bytes; while it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Share of echoes inside the link that were lost lately, 0 to 1; while it is in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
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

impl LinkStatus {
    /// A link that nothing is known of yet.
    #[must_use]
    pub const fn new(peer: AgentId) -> Self {
        Self {
            peer,
            state: LinkState::Idle,
            reason: None,
            endpoint: None,
            transport: Carrier::WireGuard,
            rtt_ms: None,
            mtu: None,
            loss: None,
            handshake_age: None,
            rx_bytes: 0,
            tx_bytes: 0,
            rx_packets: 0,
            tx_packets: 0,
        }
    }
}

/// What carries a link's packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Carrier {
    /// WireGuard.
    #[default]
    WireGuard,
    /// QUIC datagrams.
    Quic,
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
