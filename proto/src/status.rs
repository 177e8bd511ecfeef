//! The status that agents report to the controller, and that their admin socket shows.

mod meters;
mod probe_failure;

pub use meters::{LinkMeter, MAX_METERS, Meters, TunnelUse, Volume};
pub use probe_failure::ProbeFailure;

use crate::config::Direction;
use crate::id::{AgentId, ResourceId, Revision};
use crate::route::Route;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// The status of one agent. The agent reports its status after each change, and at least every 2 seconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AgentStatus {
    /// The revision whose tables and kernel routes are in force (D2); 0 before the agent has applied its first
    /// configuration.
    pub applied: Revision,
    /// Digest of the configuration in force; empty before the agent has applied its first configuration.
    pub digest: String,
    /// The links that were used or are `always_on`, ordered by `peer`.
    pub links: Vec<LinkStatus>,
    /// Numbers of dropped packets and refused datagrams since the start of the agent, by reason. Reasons without a drop
    /// are omitted.
    pub drops: BTreeMap<String, u64>,
    /// Numbers of packets since the start of the agent.
    pub totals: Totals,
    /// Peers of this agent's links that do not respond (agents and devices of sites), ordered by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub down: Vec<AgentId>,
    /// Routes that BGP neighbours announce now, ordered by neighbour.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub learned: Vec<NeighbourRoutes>,
    /// Sessions with BGP neighbours, ordered by neighbour.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bgp: Vec<BgpPeerStatus>,
    /// Routes that BGP neighbours and other agents announce now and that the agent does not use, ordered by sender and
    /// reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused_routes: Vec<RefusedRoutes>,
    /// How often security rules decided, ordered by NIC, group, direction and rule; without rules that never did. At most
    /// [`MAX_RULE_HITS`] entries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rule_hits: Vec<RuleHits>,
    /// The health of the back ends that this agent owns, ordered by probe and address (L6).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub health: Vec<BackEndHealth>,
    /// The version of `health`; `None`: the agent does not number its changes, or never had a back end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_version: Option<HealthVersion>,
    /// What has passed the links, over restarts of the agent (Meter-6). `None`: the agent does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meters: Option<Meters>,
    /// What has passed the tunnels of a VPN gateway (G5). `None`: the agent is no VPN gateway, or is of a version that does
    /// not report this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnels: Option<TunnelUse>,
}

/// The number of a state of the health of an agent's back ends (D36). The agent uses the same numbers in its reports and in
/// its statements to other agents, so that these know which is newer. A later state has a larger version.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthVersion {
    /// Time of the agent's start, in milliseconds of Unix time.
    pub start: u64,
    /// Number of changes since then, from 1. 0: there is no state yet.
    pub change: u64,
}

/// The health of one back end by one probe (L6).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackEndHealth {
    /// The probe.
    pub probe: ResourceId,
    /// The address of the back end.
    pub address: IpAddr,
    /// Whether the back end is up. It is down until the first result of the probe.
    pub up: bool,
    /// Why the last probe failed, if the back end is down. `None`: it is up, or the agent does not report reasons.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<ProbeFailure>,
}

/// Largest number of [`AgentStatus::rule_hits`]. With long names an entry has 400 bytes, and the controller accepts messages
/// of at most 1 MiB from agents.
pub const MAX_RULE_HITS: usize = 1000;

/// How often one security rule decided at one NIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleHits {
    /// The NIC, or the subnet of machines without an agent.
    pub nic: ResourceId,
    /// The security group.
    pub group: ResourceId,
    /// Whether the rule judges packets that come to the NIC or that leave it.
    pub direction: Direction,
    /// `securityRules/NAME` or `defaultSecurityRules/NAME`.
    pub rule: String,
    /// Number of packets about which the rule decided since the rule came into force on the agent: the first packets of
    /// flows, and packets that belong to no flow. Packets of known flows need no rule (N6) and are not counted.
    pub packets: u64,
}

/// The unused routes of one sender with the same reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusedRoutes {
    /// The agent or BGP neighbour that announces the routes. `None`: packets of the overlay use these routes, which may
    /// come from several senders, but the agent does not install the routes in its host's kernel (D22).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<String>,
    /// The reason: a stable name, e.g. `first_as`, `martian` or `host_connected`.
    pub reason: String,
    /// Number of the routes that are not used for this reason.
    pub count: u64,
    /// The first of these routes.
    pub example: IpNet,
    /// The reason why the first route is not used, in words; `None` if `reason` says all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// The routes of one BGP neighbour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NeighbourRoutes {
    /// The neighbour: [`Neighbour::id`](crate::config::Neighbour::id).
    pub neighbour: ResourceId,
    /// All routes that the neighbour announces, ordered.
    pub routes: Vec<Route>,
}

/// A BGP session, with the fields of Azure's `getBgpPeerStatus`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpPeerStatus {
    /// The neighbour: [`Neighbour::id`](crate::config::Neighbour::id).
    pub neighbour: ResourceId,
    /// The neighbour's address.
    pub address: IpAddr,
    /// The agent's own address on this session.
    pub local_address: IpAddr,
    /// The neighbour's ASN.
    pub asn: u32,
    /// The state of the session.
    pub state: BgpPeerState,
    /// Seconds since the session entered that state.
    pub since: f64,
    /// Number of routes that the neighbour announces.
    pub received: u64,
    /// Number of routes that the agent announces to the neighbour.
    pub sent: u64,
    /// The error that ended the previous session, in words; `None` if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// The state of a BGP session, in the words of Azure's `BgpPeerState`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum BgpPeerState {
    /// No state is known, e.g. because the routing daemon does not answer.
    #[default]
    Unknown,
    /// Shut down, because the neighbour announced too many prefixes or because an operator stopped it.
    Stopped,
    /// Waits before the next attempt to connect.
    Idle,
    /// Tries to establish the session.
    Connecting,
    /// The session is established and exchanges routes.
    Connected,
}

/// Numbers of packets since the start of the agent, by their origin and by their outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Totals {
    /// Packets read from the TUN device.
    pub tun_in: u64,
    /// Packets written to the TUN device.
    pub tun_out: u64,
    /// Packets received from links.
    pub link_in: u64,
    /// Packets sent into links. Packets that wait for a handshake are included.
    pub link_out: u64,
    /// Packets answered by the engine with an ICMP error.
    pub replied: u64,
    /// Packets that were dropped, for any reason.
    pub dropped: u64,
}

/// The state of one link at one end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkStatus {
    /// The peer of the link.
    pub peer: AgentId,
    /// The state of the session.
    pub state: LinkState,
    /// The reason why the link is not up, in words; `None` if it is up or was never used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The peer's address and port, to which packets are sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<SocketAddr>,
    /// The transport that carries the link's packets now.
    #[serde(default)]
    pub transport: Carrier,
    /// Round-trip time inside the link in milliseconds. `None` while the link is not in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_ms: Option<f64>,
    /// Longest packet that the path carries without fragmentation, in bytes. `None` while unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Share of the last 64 probes inside the link that were lost, 0 to 1. `None` while fewer than ten are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Seconds since the last completed handshake; `None`: there is no session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handshake_age: Option<f64>,
    /// Bytes of inner packets received.
    pub rx_bytes: u64,
    /// Bytes of inner packets sent.
    pub tx_bytes: u64,
    /// Number of inner packets received.
    pub rx_packets: u64,
    /// Number of inner packets sent.
    pub tx_packets: u64,
}

impl LinkStatus {
    /// The status of a link before its first use: idle, without measurements, and all counters 0.
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

/// The transport that carries a link's packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Carrier {
    /// The WireGuard protocol over UDP.
    #[default]
    WireGuard,
    /// Datagrams of a QUIC connection (RFC 9221).
    Quic,
}

/// The state of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LinkState {
    /// No packet needed the link so far.
    Idle,
    /// A handshake is in progress.
    Connecting,
    /// A session with the peer exists.
    Up,
    /// No session: the peer does not respond (Azure's `PeerReachability`, M8).
    Unreachable,
    /// The peer responds, but its response does not verify, because the shared keys differ (Azure's `Authentication`,
    /// M8, G11).
    AuthenticationFailed,
    /// No address of the peer is known, and the peer has not sent a packet (D18).
    NoEndpoint,
}
