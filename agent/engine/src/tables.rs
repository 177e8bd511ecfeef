//! What one agent's lookups run on: built once from policy and from what agents learn by themselves, never edited.

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

pub use crate::routing::Dynamic;

/// A position in [`AgentConfig::links`](tombolo_proto::config::AgentConfig::links), and so in [`Tables`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkIndex(pub u32);

impl LinkIndex {
    /// As an array index.
    #[must_use]
    pub const fn get(self) -> usize {
        self.0 as usize
    }
}

/// Most links of one agent: what the 16 bits of a datagram's link number tell apart.
pub const MAX_LINKS: usize = 65_536;

/// A configuration from which no tables can be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BuildError(String);

/// Ready for lookup; shared as `Arc`.
#[derive(Debug, Clone)]
pub struct Tables {
    /// The agent itself.
    pub agent: AgentId,
    /// MTU of the TUN device, bytes.
    pub mtu: u16,
    /// How the silence of a link is noticed.
    pub probes: Probes,
    pub(crate) role: RoleTable,
    pub(crate) subnets: Vec<SubnetTable>,
    pub(crate) spaces: Vec<SpaceTable>,
    pub(crate) own_space: Lpm<()>,
    /// P17: addresses of peered VNets with `allowVirtualNetworkAccess` off here. They left the `VirtualNetwork` tag,
    /// whatever path their packets take.
    pub(crate) denied: Lpm<()>,
    pub(crate) links: Vec<LinkTable>,
    /// Some route shares flows between links.
    pub(crate) spreads: bool,
}

#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "one to a set of tables")]
pub(crate) enum RoleTable {
    Vm {
        /// NIC address or served prefix → position of its subnet. These are delivered to the TUN device.
        own: Lpm<usize>,
        /// The NICs' addresses alone.
        addresses: BTreeSet<IpAddr>,
        /// The subnet of the first NIC with `enableIPForwarding`: packets with foreign sources leave through it.
        forwarding: Option<usize>,
    },
    Gateway {
        addresses: Vec<IpAddr>,
        own_side: Lpm<()>,
        /// VPN routes alone, whatever the VNet prefers (G21). None: of the own side, though a learned route contains it.
        transit: Lpm<Option<Transit>>,
        /// Those of connections over which routes are exchanged, and of sites without BGP (G18): the way on for what comes
        /// out of another connection (G19).
        onward: Lpm<Option<Transit>>,
        /// Where sites are, if their packets keep their TTL (T6).
        sites: Lpm<()>,
    },
    CircuitGateway {
        addresses: Vec<IpAddr>,
    },
    Edge {
        /// The own ends of the tunnels.
        addresses: BTreeSet<IpAddr>,
        /// The linked VNets: what each is reached over.
        networks: Lpm<Option<LinkIndex>>,
        /// What the customer announced.
        customer: Lpm<()>,
        /// E6.
        vnet_to_vnet: bool,
    },
}

/// What lies behind a connection.
#[derive(Debug, Clone)]
pub(crate) struct Transit {
    pub(crate) connection: ResourceId,
    pub(crate) link: Option<LinkIndex>,
    /// Routes are exchanged over the connection (G19).
    pub(crate) exchange: bool,
}

/// A few links that share flows, or one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Group {
    links: [LinkIndex; Self::MOST],
    count: u8,
}

impl Group {
    /// More than two edges of each of 16 circuits share no prefix.
    const MOST: usize = 8;

    fn of(links: &[LinkIndex]) -> Option<Self> {
        let mut group = Self {
            links: [*links.first()?; Self::MOST],
            count: 0,
        };
        for (place, link) in group.links.iter_mut().zip(links) {
            *place = *link;
            group.count += 1;
        }
        Some(group)
    }

    /// The link of a flow (E4), by addresses and ports.
    pub(crate) fn pick(&self, packet: &PacketInfo) -> LinkIndex {
        if self.count == 1 {
            return self.links[0];
        }
        let bits = |a: IpAddr| match a {
            IpAddr::V4(a) => u128::from(u32::from(a)),
            IpAddr::V6(a) => u128::from(a),
        };
        // Any fixed mixing does; it must be the same wherever somebody asks which way a flow takes.
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

#[derive(Debug, Clone)]
pub(crate) struct SubnetTable {
    pub(crate) id: ResourceId,
    /// The active routes; positions refer to `all`.
    pub(crate) routes: Lpm<RouteTable>,
    pub(crate) all: Vec<EffectiveRoute>,
    /// Gateway routes that a peering's covers: used while the peering's link does not answer.
    pub(crate) standby: Lpm<RouteTable>,
}

#[derive(Debug, Clone)]
pub(crate) struct RouteTable {
    pub(crate) position: usize,
    pub(crate) hop: Hop,
}

/// A next hop, looked up as far as it can be without a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hop {
    /// To the owner in this space.
    Space(usize),
    /// A peering that packets are not delivered into from here.
    NoSpace,
    Gateway(Option<Group>),
    /// The space that the appliance's address lies in, and the address.
    Appliance(Option<usize>, IpAddr),
    Internet,
    None,
}

#[derive(Debug, Clone)]
pub(crate) struct SpaceTable {
    pub(crate) vnet: ResourceId,
    pub(crate) kind: SpaceKind,
    pub(crate) prefixes: Lpm<()>,
    pub(crate) owners: Lpm<OwnerTable>,
}

impl SpaceTable {
    /// P17: a peering with the flag off carries nothing.
    pub(crate) fn access(&self) -> bool {
        match &self.kind {
            SpaceKind::Peered { allow_access, .. } => *allow_access,
            SpaceKind::Local {} | SpaceKind::GatewayClient {} => true,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OwnerTable {
    Own,
    Link(LinkIndex),
    /// Owned by an agent that there is no link to.
    NoLink,
}

#[derive(Debug, Clone)]
pub(crate) struct LinkTable {
    pub(crate) peer: AgentId,
    pub(crate) relation: RelationTable,
    pub(crate) sources: Sources,
    pub(crate) foreign: ForeignSources,
    /// It does not answer, and something may stand in.
    pub(crate) down: bool,
    /// The other end may advertise routes.
    pub(crate) advertises: bool,
    /// What comes out of it may go on to other connections.
    pub(crate) onward: Onward,
}

/// Where packets out of a connection may go, besides the gateway's own side (G18, G19).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Onward {
    /// Routes are exchanged over it: to connections that exchange routes, and to sites without BGP.
    All,
    /// It leads to a site without BGP: to connections that exchange routes.
    Exchanging,
    /// Nowhere.
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RelationTable {
    VnetLocal,
    /// The peering's space.
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
    /// With an index that is not from these tables.
    #[must_use]
    pub fn peer(&self, link: LinkIndex) -> &AgentId {
        &self.links[link.get()].peer
    }

    /// The link with an agent.
    #[must_use]
    pub fn link_with(&self, peer: &AgentId) -> Option<LinkIndex> {
        let position = self.links.binary_search_by(|l| l.peer.cmp(peer)).ok()?;
        u32::try_from(position).ok().map(LinkIndex)
    }

    /// How many links there are; indices run from 0.
    #[must_use]
    pub fn link_count(&self) -> usize {
        self.links.len()
    }

    /// Whether a gateway answers packets with this source when it cannot pass them on (T5, D23). False at a VM.
    #[must_use]
    pub fn on_own_side(&self, source: IpAddr) -> bool {
        match &self.role {
            RoleTable::Gateway { own_side, .. } => own_side.get(source).is_some(),
            RoleTable::Vm { .. } | RoleTable::CircuitGateway { .. } | RoleTable::Edge { .. } => false,
        }
    }

    /// At an edge: whether its customer announced the address.
    #[must_use]
    pub fn is_customers(&self, address: IpAddr) -> bool {
        match &self.role {
            RoleTable::Edge { customer, networks, .. } => {
                networks.get(address).is_none() && customer.get(address).is_some()
            }
            RoleTable::Vm { .. } | RoleTable::Gateway { .. } | RoleTable::CircuitGateway { .. } => false,
        }
    }

    /// The address that a gateway answers from, of the family of `like`.
    #[must_use]
    pub fn gateway_address(&self, like: IpAddr) -> Option<IpAddr> {
        match &self.role {
            RoleTable::Gateway { addresses, .. } => addresses.iter().copied().find(|a| a.is_ipv4() == like.is_ipv4()),
            RoleTable::Vm { .. } | RoleTable::CircuitGateway { .. } | RoleTable::Edge { .. } => None,
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
