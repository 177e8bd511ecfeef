//! The links of an agent: with whom, over what, and what may come out of them.

use crate::id::{AgentId, KeyPin, PresharedKey, PublicKey, ResourceId};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// One agent that this one may have an encrypted link with. Brought up by the first packet unless `always_on`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Link {
    /// The other end.
    pub peer: AgentId,
    /// Its pinned identity (D14).
    pub public_key: PublicKey,
    /// Derived from the connection's shared key (D14); only on links of VPN connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preshared_key: Option<PresharedKey>,
    /// Its pinned key for QUIC; none: it has no QUIC, or must not use it here (links of VPN connections).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic: Option<KeyPin>,
    /// What may carry the link.
    #[serde(default)]
    pub transport: Transport,
    /// Where to send the first packet; none: wait for the other end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<SocketAddr>,
    /// Where the other end takes QUIC besides (D6): tried when no connection comes up at its `endpoint`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic_endpoint: Option<SocketAddr>,
    /// Lanes of the other end, 1 to [`MAX_LANES`](super::MAX_LANES) (D15): a lane of this end beyond them has no counterpart there, and
    /// leaves its packets to the first.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub lanes: u16,
    /// Keep a session up without traffic (VPN connections).
    pub always_on: bool,
    /// This end starts handshakes of an `always_on` link and sends its keepalives (one end only, chosen by id).
    pub initiator: bool,
    /// What the other end is to this one.
    pub relation: Relation,
    /// What the other end may speak for: sources of packets that may arrive on this link (D10).
    pub sources: Vec<IpNet>,
    /// What it may carry beyond `sources`, being an appliance.
    pub foreign: ForeignSources,
    /// Another way stands in for it: while it is in use its silence is noticed within 300 ms (D19).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub watched: bool,
    /// The other end is a stock WireGuard device: it understands WireGuard and nothing of what agents say inside (D16).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stock: bool,
    /// `dpdTimeoutSeconds` of the connection with a stock device: silence after which it is given up, seconds, 9 to 3600. None: six
    /// seconds where packets want an answer, else fifteen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_after: Option<u16>,
}

const fn one() -> u16 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
const fn is_one(n: &u16) -> bool {
    *n == 1
}

/// What may carry a link (D6).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Transport {
    /// WireGuard first, QUIC where that is blocked or shaped, and back when it works again.
    #[default]
    Automatic,
    /// WireGuard alone.
    WireGuard,
    /// QUIC alone.
    Quic,
}

/// What the other end of a link is to this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "type",
    rename_all = "camelCase",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum Relation {
    /// A VM of the same VNet.
    VnetLocal {},
    /// A VM of a peered VNet.
    Peering {
        /// The own half: the `peering` of a [`SpaceKind::Peered`](super::SpaceKind::Peered) space, whose flags apply.
        peering: ResourceId,
    },
    /// A gateway that this agent's VNet uses, its own or a peer's.
    Gateway {},
    /// This agent is a gateway, the other end a VM of its VNet or of a spoke that uses it.
    GatewayClient {},
    /// Both ends are gateways, joined by a VPN connection.
    Connection {
        /// This side's connection resource.
        connection: ResourceId,
    },
    /// This agent is a VPN gateway, the other end the device of a site (D16).
    Site {
        /// The connection resource.
        connection: ResourceId,
    },
    /// The other end is an edge of a circuit: of a gateway that is connected to it, or of a VM that uses that gateway.
    Edge {
        /// The connection resource.
        connection: ResourceId,
    },
    /// This agent is an edge, the other end an instance of an ExpressRoute gateway.
    CircuitGateway {
        /// The connection resource.
        connection: ResourceId,
    },
    /// This agent is an edge, the other end a VM of a linked VNet or of a spoke of it: packets come, none go (T4).
    CircuitClient {
        /// The connection resource.
        connection: ResourceId,
    },
    /// The VNet's other gateway, of the other kind (G2).
    OtherGateway {},
}

/// The kind of a virtual network gateway.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum GatewayKind {
    /// `Vpn`.
    #[default]
    Vpn,
    /// `ExpressRoute`.
    ExpressRoute,
}

/// Sources beyond `sources` that a link may carry because its far end has a NIC with `enableIPForwarding` (D10, P18).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ForeignSources {
    /// Nothing.
    None,
    /// An appliance in a peered VNet, `allowForwardedTraffic` on: anything outside the receiver's own address space.
    OutsideOwnSpace,
    /// An appliance in the own VNet: anything but the receiver's own addresses.
    Any,
}
