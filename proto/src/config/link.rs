//! The links of an agent: peers, keys, transports, and the sources that each peer may use.

use crate::id::{AgentId, KeyPin, PresharedKey, PublicKey, ResourceId};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// The link with one agent or third-party device. The first packet starts the handshake of the link's session. If the
/// link is `always_on`, the handshake starts without a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Link {
    /// The other end of the link: an agent, or [`AgentId::of_site`] for the device of a site.
    pub peer: AgentId,
    /// The WireGuard public key that the peer must prove to hold. It is pinned and never learned (D14).
    pub public_key: PublicKey,
    /// WireGuard preshared key, derived from the shared key of the connection (D14). Only on links of VPN connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preshared_key: Option<PresharedKey>,
    /// Pin of the TLS key that the peer must prove to hold over QUIC. `None`: the peer has no QUIC, or the link must
    /// not use QUIC. Links of VPN connections never use QUIC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic: Option<KeyPin>,
    /// The transports that may carry this link (D6). Default: [`Transport::Automatic`].
    #[serde(default)]
    pub transport: Transport,
    /// The peer's address and port for the first packet. `None`: this end waits until the peer sends first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<SocketAddr>,
    /// Second address and port at which the peer accepts QUIC (D6). This endpoint is tried if no QUIC connection is
    /// established at `endpoint`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic_endpoint: Option<SocketAddr>,
    /// Number of lanes of the peer, 1 to [`MAX_LANES`](super::MAX_LANES), default 1 (D15). Lane n of this agent sends
    /// to lane n of the peer. If the peer has no lane n, lane n of this agent passes its packets for the peer to lane 0
    /// of this agent.
    #[serde(rename = "lanes", default = "one", skip_serializing_if = "is_one")]
    pub peer_lanes: u16,
    /// Whether the peer reads advertised tables of more than 4,000 routes. Set only where this agent may advertise that
    /// many: it is an edge of a Premium circuit, or a gateway that is connected to one (E13).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub many_routes: bool,
    /// Whether a session is kept up without traffic. If so, each end sends a keepalive when it has sent nothing for 5
    /// s. Set on links that carry advertised routes, and on links of VPN connections.
    pub always_on: bool,
    /// Whether this end starts the handshakes of an `always_on` link. Exactly one of two agents starts them, so that
    /// the handshakes of both do not collide. The other agent starts a handshake only after a longer silence.
    pub initiator: bool,
    /// The role of the peer towards this agent.
    pub relation: Relation,
    /// Prefixes that contain the permitted source addresses of packets from this link (D10). The prefixes of routes
    /// that are learned from the peer are permitted too.
    pub sources: Vec<IpNet>,
    /// Further sources that packets from this link may have, because the peer forwards packets of other hosts.
    pub foreign: ForeignSources,
    /// The NICs of this host at which packets from the peer arrive because a route of the peer names a NIC, or a front end
    /// whose back end it is, as virtual appliance. Ordered by source and destination. Empty at hosts with one NIC. See
    /// [`Arrival`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arrivals: Vec<Arrival>,
    /// Whether another path can replace this link. If so, a failure of the link is detected fast while the link is in
    /// use (D19): after [`Probes::misses`](super::Probes::misses) unanswered probes, or later if the round-trip time is
    /// long.
    #[serde(rename = "watched", default, skip_serializing_if = "std::ops::Not::not")]
    pub monitored: bool,
    /// Whether the peer is a WireGuard device of a third party (D16). If so, this agent sends no probes and no routes
    /// inside the link.
    #[serde(rename = "stock", default, skip_serializing_if = "std::ops::Not::not")]
    pub third_party: bool,
    /// `dpdTimeoutSeconds` of the connection with a third-party device, 9 to 3600 seconds: if the device sends nothing
    /// for this time after a packet to it, the link is down. `None`: the link is down after 6 seconds if packets to the
    /// device stay unanswered, and after 15 seconds of silence if the link is idle (20 seconds if `endpoint` is
    /// `None`).
    #[serde(rename = "deadAfter", default, skip_serializing_if = "Option::is_none")]
    pub dpd_timeout: Option<u16>,
}

const fn one() -> u16 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
const fn is_one(n: &u16) -> bool {
    *n == 1
}

/// The transports that may carry a link (D6).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Transport {
    /// The link begins with WireGuard. It uses QUIC while the network blocks or rate-limits WireGuard, and returns to
    /// WireGuard when WireGuard works again.
    #[default]
    Automatic,
    /// Packets go only over WireGuard.
    WireGuard,
    /// Packets go only over QUIC.
    Quic,
}

/// The role of a peer towards this agent. `connection` is the connection resource on this agent's side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "type",
    rename_all = "camelCase",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum Relation {
    /// The peer is a VM of the same VNet.
    VnetLocal {},
    /// The peer is a VM of a peered VNet.
    Peering {
        /// This VNet's half of the peering. One [`SpaceKind::Peered`](super::SpaceKind::Peered) space has the same
        /// `peering`, and its flags apply to this link.
        peering: ResourceId,
    },
    /// The peer is an instance of a gateway that this agent's VNet uses: its own gateway, or that of a peered VNet.
    Gateway {},
    /// This agent is a gateway; the peer is a VM of its VNet, or of a spoke that uses this gateway
    /// (`useRemoteGateways`).
    GatewayClient {},
    /// Both ends are gateways, joined by a VPN connection.
    Connection {
        /// The connection resource on this agent's side.
        connection: ResourceId,
    },
    /// This agent is a VPN gateway; the peer is the device of a site (D16).
    Site {
        /// This gateway's connection to the site.
        connection: ResourceId,
    },
    /// The peer is an edge of a circuit. This agent is a gateway connected to that circuit, or a VM that uses such a
    /// gateway.
    Edge {
        /// The gateway's connection to the circuit.
        connection: ResourceId,
    },
    /// This agent is an edge; the peer is an instance of an ExpressRoute gateway.
    CircuitGateway {
        /// The connection of the VNet's gateway to the circuit.
        connection: ResourceId,
    },
    /// This agent is an edge; the peer is a VM of a linked VNet, or of a spoke that uses the linked VNet's gateway. The
    /// VM sends to the edge directly. The edge sends nothing back on this link (T4).
    CircuitClient {
        /// The connection of the VNet's gateway to the circuit.
        connection: ResourceId,
    },
    /// Both ends are gateways of the same VNet: one is a VPN gateway, the other an ExpressRoute gateway (G2).
    OtherGateway {},
}

/// The kind of a virtual network gateway.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum GatewayKind {
    /// A VPN gateway (`gatewayType` is `Vpn`).
    #[default]
    Vpn,
    /// An ExpressRoute gateway (`gatewayType` is `ExpressRoute`).
    ExpressRoute,
}

/// The NIC of this host at which certain packets from a peer arrive (D37): those that a user-defined route of the
/// peer's subnet sends to an address of the NIC, or to a front end of which it is a back end, as the route's virtual
/// appliance (R11). Of the entries whose
/// `source` contains the packet's source, those with the longest `source` are used. Of these, the one with the longest
/// `destination` that contains the packet's destination names the NIC. Without such an entry, a packet arrives at the
/// NIC that has its destination. If the destination is in a served subnet, it arrives at the first NIC, and otherwise
/// at the first NIC with IP forwarding.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Arrival {
    /// The sources of the packets: addresses of the peer, or all addresses for packets that the peer forwards.
    pub source: IpNet,
    /// The destinations of the packets: the prefix of the route; or one address of this host to which the peer sends
    /// directly, although the prefix of a route to a virtual appliance contains it.
    pub destination: IpNet,
    /// The position of the NIC in [`Role::Vm`](super::Role::Vm).
    pub nic: u8,
}

/// Sources that packets from a link may have in addition to [`Link::sources`], because the link's peer has a NIC with
/// `enableIPForwarding` (D10, P18).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ForeignSources {
    /// No further source is permitted.
    None,
    /// The peer is an appliance in a peered VNet, and the receiver's half of the peering has `allowForwardedTraffic`
    /// on. Packets may have any source outside of the receiver's own address space.
    OutsideOwnSpace,
    /// The peer is an appliance in the receiver's VNet. Packets may have any source except the receiver's own
    /// addresses.
    Any,
}
