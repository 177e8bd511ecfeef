//! The lookup tables of one agent: built from its configuration and routing state, never modified afterwards.

mod installed;
pub mod lpm;
mod resolve;
mod sources;
mod transit;

use crate::packet::PacketInfo;
use lpm::Lpm;
use sources::Sources;
use std::collections::BTreeSet;
use std::net::IpAddr;
use tombolo_proto::config::{ForeignSources, Probes, SpaceKind};
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::route::EffectiveRoute;

pub use crate::routing::RoutingState;

/// The position of a link in [`AgentConfig::links`](tombolo_proto::config::AgentConfig::links) and in [`Tables`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkIndex(pub u32);

impl LinkIndex {
    /// The position as an array index.
    #[must_use]
    pub const fn get(self) -> usize {
        self.0 as usize
    }
}

/// Largest number of links of one agent: a link's number has 16 bits in datagrams.
pub const MAX_LINKS: usize = 65_536;

/// The reason why no tables can be built from a configuration, as text that names the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BuildError(String);

/// The lookup tables of one agent. Lanes share them as an `Arc`.
#[derive(Debug, Clone)]
pub struct Tables {
    /// The agent that the tables are for.
    pub agent: AgentId,
    /// MTU of the TUN device, in bytes.
    pub mtu: u16,
    /// How fast a failed link is detected.
    pub probes: Probes,
    pub(crate) role: AgentRole,
    pub(crate) subnets: Vec<SubnetRoutes>,
    pub(crate) spaces: Vec<AddressSpace>,
    pub(crate) own_space: Lpm<()>,
    /// Addresses of peered VNets with `allowVirtualNetworkAccess` off here. They are not in the `VirtualNetwork`
    /// service tag, so packets from and to them are dropped on every path (P17).
    pub(crate) denied: Lpm<()>,
    pub(crate) links: Vec<LinkPolicy>,
    /// Whether a route shares flows between links, so that decisions depend on ports.
    pub(crate) spreads: bool,
}

/// The role of the agent, prepared for lookups; see [`Role`](tombolo_proto::config::Role).
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "each set of tables has one")]
pub(crate) enum AgentRole {
    Vm {
        /// Address of a NIC, or served prefix, to the position of its subnet. Packets to these are delivered to the TUN
        /// device.
        own: Lpm<usize>,
        /// The addresses of the NICs, without served prefixes.
        addresses: BTreeSet<IpAddr>,
        /// The subnet of the first NIC with `enableIPForwarding`. Its routes apply to packets with foreign sources.
        forwarding: Option<usize>,
    },
    /// An instance of a VPN gateway.
    Gateway {
        addresses: Vec<IpAddr>,
        local_prefixes: Lpm<()>,
        /// Prefixes behind the connections, by VPN routes alone, whatever routes the VNet itself prefers (G21). `None`:
        /// a local prefix within a learned route, which must not attract the packets to it.
        transit: Lpm<Option<Transit>>,
        /// The part of `transit` that packets from another connection may use: connections with route exchange, and
        /// sites without BGP, whose prefixes are configured (G18, G19).
        bgp_transit: Lpm<Option<Transit>>,
        /// The prefixes of sites whose packets keep their TTL; empty unless [`SiteTtl`](tombolo_proto::config::SiteTtl)
        /// says so (T6).
        sites: Lpm<()>,
    },
    /// An instance of an ExpressRoute gateway.
    CircuitGateway { addresses: Vec<IpAddr> },
    Edge {
        /// The edge's ends of its tunnels.
        addresses: BTreeSet<IpAddr>,
        /// The prefixes of the linked VNets, each with the link to its gateway; `None` if there is no link.
        networks: Lpm<Option<LinkIndex>>,
        /// The prefixes that the customer announced.
        customer: Lpm<()>,
        /// Whether linked VNets reach each other through the circuit (E6).
        vnet_to_vnet: bool,
    },
}

/// The way to a prefix behind a VPN connection.
#[derive(Debug, Clone)]
pub(crate) struct Transit {
    pub(crate) connection: ResourceId,
    pub(crate) link: Option<LinkIndex>,
    /// Whether routes are exchanged over the connection (G19).
    pub(crate) exchange: bool,
}

/// The links of one gateway route: one, or several that share its flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LinkGroup {
    links: [LinkIndex; Self::MAX_MEMBERS],
    count: u8,
}

impl LinkGroup {
    /// The two edges of each of four circuits. Further links of a route carry no flows.
    const MAX_MEMBERS: usize = 8;

    fn of(links: &[LinkIndex]) -> Option<Self> {
        let mut group = Self {
            links: [*links.first()?; Self::MAX_MEMBERS],
            count: 0,
        };
        for (place, link) in group.links.iter_mut().zip(links) {
            *place = *link;
            group.count += 1;
        }
        Some(group)
    }

    /// The link that carries the flow of a packet, by addresses and ports (E4). Every engine computes the same.
    pub(crate) fn pick(&self, packet: &PacketInfo) -> LinkIndex {
        if self.count == 1 {
            return self.links[0];
        }
        let bits = |a: IpAddr| match a {
            IpAddr::V4(a) => u128::from(u32::from(a)),
            IpAddr::V6(a) => u128::from(a),
        };
        // The constant is odd, so that multiplication loses no bits. Any fixed one will do: agents and the controller's
        // `explain` must agree on the link of a flow.
        const ODD: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;
        let mixed = bits(packet.source)
            .wrapping_mul(ODD)
            .wrapping_add(bits(packet.destination))
            .wrapping_mul(ODD)
            .wrapping_add(u128::from(packet.ports))
            .wrapping_mul(ODD);
        let high = (mixed >> 96) as u32;
        self.links[high as usize % usize::from(self.count)]
    }

    pub(crate) fn links(&self) -> &[LinkIndex] {
        &self.links[..usize::from(self.count)]
    }
}

/// The effective routes of one subnet, prepared for lookups.
#[derive(Debug, Clone)]
pub(crate) struct SubnetRoutes {
    pub(crate) id: ResourceId,
    /// The active routes. Positions refer to `all`.
    pub(crate) routes: Lpm<RouteEntry>,
    pub(crate) all: Vec<EffectiveRoute>,
    /// Gateway routes that a peering's route overrides. Used while the peering's link is down.
    pub(crate) standby: Lpm<RouteEntry>,
}

/// One route: its position in [`SubnetRoutes::all`], and its next hop.
#[derive(Debug, Clone)]
pub(crate) struct RouteEntry {
    pub(crate) position: usize,
    pub(crate) hop: Hop,
}

/// A next hop, resolved as far as possible without a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hop {
    /// To the owner of the destination in this space.
    Space(usize),
    /// To a peered VNet that this agent does not deliver into.
    PeeringNotDelivered,
    Gateway(Option<LinkGroup>),
    /// To the owner of the appliance's address in this space. `None`: no space has the address.
    Appliance(Option<usize>, IpAddr),
    Internet,
    None,
}

/// One VNet whose owners of addresses are known (D8).
#[derive(Debug, Clone)]
pub(crate) struct AddressSpace {
    pub(crate) vnet: ResourceId,
    pub(crate) kind: SpaceKind,
    pub(crate) prefixes: Lpm<()>,
    pub(crate) owners: Lpm<Owner>,
}

impl AddressSpace {
    /// Whether packets may cross: false for a peering with `allowVirtualNetworkAccess` off (P17).
    pub(crate) fn access(&self) -> bool {
        match &self.kind {
            SpaceKind::Peered { allow_access, .. } => *allow_access,
            SpaceKind::Local {} | SpaceKind::GatewayClient {} => true,
        }
    }
}

/// The agent that owns a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// This agent.
    Own,
    Link(LinkIndex),
    /// An agent that this one has no link with.
    NoLink,
}

/// The rules for packets and routes that come out of one link.
#[derive(Debug, Clone)]
pub(crate) struct LinkPolicy {
    pub(crate) peer: AgentId,
    pub(crate) relation: PeerRole,
    pub(crate) sources: Sources,
    pub(crate) foreign: ForeignSources,
    /// The link is down, and another path may replace it.
    pub(crate) down: bool,
    /// The peer may advertise routes.
    pub(crate) advertises: bool,
    /// Where packets from this link may go, at a VPN gateway.
    pub(crate) transit_scope: TransitScope,
}

/// The connections that packets from a connection may be forwarded to, besides the gateway's local prefixes (G18, G19).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TransitScope {
    /// The source connection exchanges routes: to connections that exchange routes, and to sites without BGP.
    AllConnections,
    /// The source connection leads to a site without BGP: to connections that exchange routes.
    BgpConnections,
    /// To no other connection.
    None,
}

/// The role of the peer of a link; see [`Relation`](tombolo_proto::config::Relation).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PeerRole {
    VnetLocal,
    /// The position of the peering's space.
    Peering(usize),
    Gateway,
    GatewayClient,
    Connection,
    Edge,
    CircuitGateway,
    CircuitClient,
    OtherGateway,
}

impl Tables {
    /// The agent at the other end of a link.
    ///
    /// # Panics
    /// If the index is not from these tables.
    #[must_use]
    pub fn peer(&self, link: LinkIndex) -> &AgentId {
        &self.links[link.get()].peer
    }

    /// The link with an agent; `None` if there is none.
    #[must_use]
    pub fn link_with(&self, peer: &AgentId) -> Option<LinkIndex> {
        let position = self.links.binary_search_by(|l| l.peer.cmp(peer)).ok()?;
        u32::try_from(position).ok().map(LinkIndex)
    }

    /// Number of links; indices are below it.
    #[must_use]
    pub fn link_count(&self) -> usize {
        self.links.len()
    }

    /// Whether the source is a local prefix of this VPN gateway, which answers its packets with ICMP errors (T5, D23).
    /// Always false for other roles.
    #[must_use]
    pub fn is_local(&self, source: IpAddr) -> bool {
        match &self.role {
            AgentRole::Gateway { local_prefixes, .. } => local_prefixes.get(source).is_some(),
            AgentRole::Vm { .. } | AgentRole::CircuitGateway { .. } | AgentRole::Edge { .. } => false,
        }
    }

    /// Whether the customer of this edge announced the address. Always false for other roles.
    #[must_use]
    pub fn is_customers(&self, address: IpAddr) -> bool {
        match &self.role {
            AgentRole::Edge { customer, networks, .. } => {
                networks.get(address).is_none() && customer.get(address).is_some()
            }
            AgentRole::Vm { .. } | AgentRole::Gateway { .. } | AgentRole::CircuitGateway { .. } => false,
        }
    }

    /// The address that this VPN gateway sends ICMP errors from, of the same family as `like`. `None` for other roles.
    #[must_use]
    pub fn gateway_address(&self, like: IpAddr) -> Option<IpAddr> {
        match &self.role {
            AgentRole::Gateway { addresses, .. } => addresses.iter().copied().find(|a| a.is_ipv4() == like.is_ipv4()),
            AgentRole::Vm { .. } | AgentRole::CircuitGateway { .. } | AgentRole::Edge { .. } => None,
        }
    }
}

fn set(prefixes: &[ipnet::IpNet]) -> Lpm<()> {
    let mut lpm = Lpm::default();
    for prefix in prefixes {
        lpm.insert(*prefix, ());
    }
    lpm
}
