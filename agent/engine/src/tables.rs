//! The lookup tables of one agent. The tables are built from the agent's configuration and routing state, and are never
//! modified afterwards.

mod balancing;
mod installed;
mod limits;
pub mod lpm;
mod resolve;
mod sources;
mod transit;
mod vm_nics;

use crate::packet::quoted::translate;
use crate::packet::rewrite::End;
use crate::packet::{self, PacketInfo};
use crate::security::SecuredNics;
pub(crate) use balancing::{
    Among, BackEnd, Conditions, FrontEnds, Member, Rule as BalancingRule, hash_address, hash_text, mix,
};
pub use balancing::{BackEndIndex, Choice, KeptChoices};
pub use limits::BandwidthLimit;
pub(crate) use limits::{Buckets, MAX_BUCKETS};
use lpm::Lpm;
use sources::Sources;
use std::collections::BTreeSet;
use std::net::IpAddr;
use tombolo_proto::config::{ForeignSources, Probes, SpaceKind};
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::route::EffectiveRoute;
pub(crate) use vm_nics::{Arrivals, VmNics};

pub use crate::routing::RoutingState;

/// The position of a link in [`AgentConfig::links`](tombolo_proto::config::AgentConfig::links), from 0, and in the
/// [`Tables`] that were built from it. An index is valid only with this configuration: in another configuration the
/// same index may stand for another link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkIndex(pub u32);

impl LinkIndex {
    /// The position as an index of an array or `Vec`.
    #[must_use]
    pub const fn get(self) -> usize {
        self.0 as usize
    }
}

/// The position of a NIC in [`Role::Vm`](tombolo_proto::config::Role::Vm), from 0, and of its TUN device. An agent with
/// another role has one device, with index 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NicIndex(pub u8);

impl NicIndex {
    /// The first NIC, or the only device of an agent that is no VM.
    pub const FIRST: Self = Self(0);

    /// The position as an index of an array or `Vec`.
    #[must_use]
    pub const fn get(self) -> usize {
        self.0 as usize
    }
}

/// Largest number of links of one agent: 16 bits of the receiver index of a WireGuard session stand for the link.
pub const MAX_LINKS: usize = 65_536;

/// The reason why no tables can be built from a configuration, as text that names the field and its value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BuildError(String);

/// The lookup tables of one agent. All lanes of the agent share one value as an `Arc`.
#[derive(Debug, Clone)]
pub struct Tables {
    /// The agent that the tables are for.
    pub agent: AgentId,
    /// MTU of the TUN device, in bytes.
    pub mtu: u16,
    /// Intervals and counts of the probes that detect a failed link.
    pub probes: Probes,
    pub(crate) role: AgentRole,
    pub(crate) subnets: Vec<SubnetRoutes>,
    pub(crate) spaces: Vec<AddressSpace>,
    pub(crate) own_space: Lpm<()>,
    /// Prefixes of peered VNets whose peering has `allowVirtualNetworkAccess` off in this agent's half. These prefixes
    /// do not belong to the `VirtualNetwork` service tag, so packets from and to them are dropped on every path (P17).
    pub(crate) denied: Lpm<()>,
    pub(crate) links: Vec<LinkPolicy>,
    /// The security groups of the agent's NICs. `None`: no group applies to any of them (N5).
    pub(crate) security: Option<SecuredNics>,
    /// The front ends of load balancers.
    pub(crate) front_ends: FrontEnds,
    /// Whether a route shares flows between links. If so, decisions depend on ports.
    pub(crate) spreads: bool,
    /// The limits of bandwidth. `None`: there are none.
    pub(crate) buckets: Option<Buckets>,
    /// Largest number of flows of each NIC (X16).
    pub(crate) flows_of_nic: u32,
}

/// The role of the agent, prepared for lookups; see [`Role`](tombolo_proto::config::Role).
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "each set of tables has one")]
pub(crate) enum AgentRole {
    Vm(VmNics),
    /// An instance of a VPN gateway.
    Gateway {
        addresses: Vec<IpAddr>,
        local_prefixes: Lpm<()>,
        /// Maps each prefix that is reached over a connection to this connection. Only routes of VPN connections count;
        /// routes that the VNet itself prefers, for example those of a circuit, have no influence (G21). `None`: a
        /// local prefix within a larger learned one. Without such an entry, packets to the local prefix would follow
        /// the larger prefix to a connection.
        transit: Lpm<Option<Transit>>,
        /// The entries of `transit` that also apply to packets which themselves come from a connection. These are the
        /// prefixes of connections with route exchange, and the configured prefixes of sites without BGP (G18, G19).
        bgp_transit: Lpm<Option<Transit>>,
        /// The prefixes of sites whose packets keep their TTL (T6). Empty unless the configuration has
        /// [`SiteTtl::Transparent`](tombolo_proto::config::SiteTtl::Transparent).
        sites: Lpm<()>,
    },
    /// An instance of an ExpressRoute gateway.
    CircuitGateway {
        addresses: Vec<IpAddr>,
    },
    Edge {
        /// The edge's own addresses: its ends of the tunnels to the gateways of linked VNets.
        addresses: BTreeSet<IpAddr>,
        /// The prefixes of the linked VNets, each with the link to the VNet's gateway. `None`: the edge has no link to
        /// any instance of this gateway.
        networks: Lpm<Option<LinkIndex>>,
        /// The prefixes that the customer announced by BGP and that were accepted.
        customer: Lpm<()>,
        /// Whether linked VNets reach each other through the circuit (E6).
        vnet_to_vnet: bool,
    },
}

/// The connection and the link that lead to a prefix behind a VPN connection.
#[derive(Debug, Clone)]
pub(crate) struct Transit {
    pub(crate) connection: ResourceId,
    pub(crate) link: Option<LinkIndex>,
    /// Whether routes are exchanged over the connection (G19).
    pub(crate) exchange: bool,
}

/// The links of one gateway route: one link that carries all flows, or several links that share the flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LinkGroup {
    links: [LinkIndex; Self::MAX_MEMBERS],
    count: u8,
}

impl LinkGroup {
    /// Largest number of links that share the flows of a route: the two edges of each of four circuits. Further links
    /// of the route get no flows.
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

    /// The link that carries the flow of a packet, chosen by a hash of addresses and ports (E4). The choice depends
    /// only on addresses, ports and the links of the route, so that every engine and the controller choose the same
    /// link.
    pub(crate) fn pick(&self, packet: &PacketInfo) -> LinkIndex {
        if self.count == 1 {
            return self.links[0];
        }
        let bits = |a: IpAddr| match a {
            IpAddr::V4(a) => u128::from(u32::from(a)),
            IpAddr::V6(a) => u128::from(a),
        };
        // Multiplication by an odd factor is reversible, so no bits of the input are lost. This factor is the golden
        // ratio as a fraction of 2¹²⁸; it maps values that are close together to values far apart. The factor must not
        // change: agents of different versions and the controller's `explain` must agree on the link of a flow.
        const ODD: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;
        let mixed = bits(packet.source)
            .wrapping_mul(ODD)
            .wrapping_add(bits(packet.destination))
            .wrapping_mul(ODD)
            .wrapping_add(u128::from(packet.ports))
            .wrapping_mul(ODD);
        // The highest bits depend on all bits of the input.
        let high = (mixed >> 96) as u32;
        self.links[high as usize % usize::from(self.count)]
    }

    /// The links, in order of preference; at least one.
    pub(crate) fn links(&self) -> &[LinkIndex] {
        &self.links[..usize::from(self.count)]
    }
}

/// The effective routes of one subnet, prepared for lookups.
#[derive(Debug, Clone)]
pub(crate) struct SubnetRoutes {
    pub(crate) id: ResourceId,
    /// The active routes. Their positions refer to `all`.
    pub(crate) routes: Lpm<RouteEntry>,
    pub(crate) all: Vec<EffectiveRoute>,
    /// The `Invalid` gateway routes; of several with one prefix, the preferred one. They apply while the link to the
    /// destination's owner, to which an active VNet or peering route leads, is down.
    pub(crate) standby: Lpm<RouteEntry>,
}

/// One route: its position in [`SubnetRoutes::all`], and its next hop.
#[derive(Debug, Clone)]
pub(crate) struct RouteEntry {
    pub(crate) position: usize,
    pub(crate) hop: Hop,
}

/// A next hop, resolved as far as this is possible before a packet's addresses are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hop {
    /// To the owner of the destination in the space at this position.
    Space(usize),
    /// To a peered VNet for which the configuration has no list of owners, so that this agent does not deliver packets
    /// into it.
    PeeringNotDelivered,
    Gateway(Option<LinkGroup>),
    /// To the owner of the appliance's address in the space at this position. `None`: no space contains the address.
    Appliance(Option<usize>, IpAddr),
    Internet,
    None,
}

/// One VNet, with the owners of its addresses (D8).
#[derive(Debug, Clone)]
pub(crate) struct AddressSpace {
    pub(crate) vnet: ResourceId,
    pub(crate) kind: SpaceKind,
    pub(crate) prefixes: Lpm<()>,
    pub(crate) owners: Lpm<Owner>,
}

impl AddressSpace {
    /// Whether packets may be sent into this VNet: false for a peering with `allowVirtualNetworkAccess` off (P17).
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
    /// This agent owns the prefix.
    Own,
    Link(LinkIndex),
    /// The owner is an agent with which this agent has no link.
    NoLink,
}

/// The rules for packets and routes that come out of one link.
#[derive(Debug, Clone)]
pub(crate) struct LinkPolicy {
    pub(crate) peer: AgentId,
    pub(crate) relation: PeerRole,
    pub(crate) sources: Sources,
    pub(crate) foreign: ForeignSources,
    /// At a VM with several NICs: the NIC at which packets arrive.
    pub(crate) arrivals: Arrivals,
    /// Whether the peer is down according to the routing state. If so, packets take another path if one exists.
    pub(crate) down: bool,
    /// Whether route advertisements of the peer are accepted.
    pub(crate) advertises: bool,
    /// At a VPN gateway: the connections to which packets from this link may be forwarded.
    pub(crate) transit_scope: TransitScope,
}

/// The connections to which a VPN gateway may forward packets that come from a certain other connection (G18, G19).
/// Packets to the gateway's local prefixes are forwarded whatever this value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TransitScope {
    /// Packets may be forwarded to connections that exchange routes and to sites without BGP, because the connection
    /// that they come from exchanges routes.
    AllConnections,
    /// Packets may be forwarded only to connections that exchange routes, because they come from a site without BGP.
    BgpConnections,
    /// Packets may not be forwarded to another connection.
    None,
}

/// The role of the peer of a link; see [`Relation`](tombolo_proto::config::Relation).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PeerRole {
    VnetLocal,
    /// A VM of the peered VNet whose space has this position.
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
    /// The agent, or device of a site, at the other end of a link. `link` must be an index of these tables: an index of
    /// another configuration may return another agent.
    ///
    /// # Panics
    /// If `link` is not below [`link_count`](Self::link_count).
    #[must_use]
    pub fn peer(&self, link: LinkIndex) -> &AgentId {
        &self.links[link.get()].peer
    }

    /// The link with an agent or device of a site; `None` if the configuration has none. Whether the link has a session
    /// does not matter. The index is valid only with these tables.
    #[must_use]
    pub fn link_with(&self, peer: &AgentId) -> Option<LinkIndex> {
        let position = self.links.binary_search_by(|l| l.peer.cmp(peer)).ok()?;
        u32::try_from(position).ok().map(LinkIndex)
    }

    /// The security groups of the agent's NICs. `None`: no group applies to any of them (N5).
    #[must_use]
    pub const fn security(&self) -> Option<&SecuredNics> {
        self.security.as_ref()
    }

    /// Replaces the destination of a packet by a back end of this agent, as the engine does before it delivers the packet
    /// (L5). In an ICMP error, replaces the source of the quoted packet too. Returns the back end's NIC and the packet's
    /// new header fields. `None`: there is no such back end, it is of another address family than the packet, or the
    /// packet is malformed.
    #[must_use]
    pub fn translate(&self, back_end: BackEndIndex, packet: &mut [u8]) -> Option<(NicIndex, PacketInfo)> {
        let mut info = packet::parse(packet)?;
        let back_end = self.front_ends.back_end(back_end)?;
        let front = info.destination;
        let done = back_end.floating_ip || translate(packet, &mut info, End::Destination, front, back_end.back);
        done.then_some((back_end.nic, info))
    }

    /// At a VM: the NIC that has an address; `Some(None)`: the address is in a served subnet. `None`: the agent does not own
    /// the address.
    pub(crate) fn nic_of(&self, address: IpAddr) -> Option<Option<NicIndex>> {
        match &self.role {
            AgentRole::Vm(nics) => nics.owner(address).map(|place| place.nic),
            AgentRole::Gateway { .. } | AgentRole::CircuitGateway { .. } | AgentRole::Edge { .. } => None,
        }
    }

    /// Whether the agent chooses back ends for flows that pass none of its NICs: it is a gateway.
    pub(crate) fn chooses_for_others(&self) -> bool {
        !self.front_ends.is_empty() && !matches!(self.role, AgentRole::Vm(_))
    }

    /// Whether packets may belong to flows that the agent keeps: security groups or load balancers apply to some.
    pub(crate) fn keeps_flows(&self) -> bool {
        self.security.is_some() || !self.front_ends.is_empty()
    }

    /// Number of links in the configuration. Every [`LinkIndex`] of these tables is below it.
    #[must_use]
    pub fn link_count(&self) -> usize {
        self.links.len()
    }

    /// Whether `source` lies within a local prefix of this VPN gateway, which answers packets from there with ICMP
    /// errors (T5, D23). Always false for other roles.
    #[must_use]
    pub fn is_local(&self, source: IpAddr) -> bool {
        match &self.role {
            AgentRole::Gateway { local_prefixes, .. } => local_prefixes.get(source).is_some(),
            AgentRole::Vm(_) | AgentRole::CircuitGateway { .. } | AgentRole::Edge { .. } => false,
        }
    }

    /// Whether `address` lies within a prefix that the customer of this edge announced, and not within a linked VNet.
    /// Always false for other roles.
    #[must_use]
    pub fn is_customers(&self, address: IpAddr) -> bool {
        match &self.role {
            AgentRole::Edge { customer, networks, .. } => {
                networks.get(address).is_none() && customer.get(address).is_some()
            }
            AgentRole::Vm(_) | AgentRole::Gateway { .. } | AgentRole::CircuitGateway { .. } => false,
        }
    }

    /// The address from which this VPN gateway sends ICMP errors to `like`: the gateway's first address of the same
    /// address family. `None`: the gateway has no address of this family, or the agent is no VPN gateway.
    #[must_use]
    pub fn gateway_address(&self, like: IpAddr) -> Option<IpAddr> {
        match &self.role {
            AgentRole::Gateway { addresses, .. } => addresses.iter().copied().find(|a| a.is_ipv4() == like.is_ipv4()),
            AgentRole::Vm(_) | AgentRole::CircuitGateway { .. } | AgentRole::Edge { .. } => None,
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
