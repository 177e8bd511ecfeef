//! What one agent's lookups run on: built once from policy and from what agents learn by themselves, never edited.

mod installed;
pub mod lpm;
mod sources;

use crate::packet::PacketInfo;
use crate::routing::{self, Taken, taken};
use lpm::Lpm;
use sources::{Assigned, Sources};
use std::cell::{Cell, LazyCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use tombolo_proto::config::{
    AgentConfig, ForeignSources, GatewayConnection, GatewayKind, Probes, Relation, Role, SiteTtl, SpaceKind,
};
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::route::{EffectiveRoute, NextHop, RouteOrigin, RouteSource, RouteState};

pub use crate::routing::Dynamic;

/// A position in [`AgentConfig::links`], and so in [`Tables`].
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
    /// Builds tables from policy and from what was learned.
    ///
    /// # Errors
    /// A promise of the configuration's types is broken; see [`AgentConfig::check`].
    pub fn build(config: &AgentConfig, dynamic: &Dynamic) -> Result<Self, BuildError> {
        config.check().map_err(|e| BuildError(e.0))?;
        if config.links.len() > MAX_LINKS {
            return Err(BuildError(format!(
                "links: {} are more than {MAX_LINKS}",
                config.links.len()
            )));
        }
        let mut by_peer = BTreeMap::new();
        for (position, link) in config.links.iter().enumerate() {
            let position = u32::try_from(position).map_err(|_| BuildError("links: too many".into()))?;
            by_peer.insert(&link.peer, LinkIndex(position));
        }
        let answering = |agents: &mut dyn Iterator<Item = &AgentId>| {
            let linked: Vec<_> = agents.filter_map(|a| Some((a, *by_peer.get(a)?))).collect();
            let up = linked.iter().filter(|(a, _)| !dynamic.down.contains(*a));
            let up: Vec<LinkIndex> = up.map(|(_, link)| *link).collect();
            // With every candidate down the first one stays: its link says so.
            match (up.is_empty(), linked.first()) {
                (true, Some((_, first))) => vec![*first],
                (_, _) => up,
            }
        };
        let usable = |agents: &mut dyn Iterator<Item = &AgentId>| answering(agents).first().copied();
        let spreads = Cell::new(false);
        let group = |gateways: &[tombolo_proto::route::GatewayHop], spread: bool| {
            let links = answering(&mut gateways.iter().map(|g| &g.agent));
            spreads.set(spreads.get() || spread && links.len() > 1);
            Group::of(if spread { &links } else { &links[..links.len().min(1)] })
        };
        let taken = taken(config, dynamic);

        let mut spaces = Vec::with_capacity(config.spaces.len());
        let mut local = 0;
        for space in &config.spaces {
            if matches!(space.kind, SpaceKind::Local {}) {
                local = spaces.len();
            }
            let mut owners = Lpm::default();
            for owner in &space.owners {
                let target = if owner.agent == config.agent {
                    OwnerTable::Own
                } else {
                    by_peer
                        .get(&owner.agent)
                        .map_or(OwnerTable::NoLink, |l| OwnerTable::Link(*l))
                };
                owners.insert(owner.prefix, target);
            }
            spaces.push(SpaceTable {
                vnet: space.vnet.clone(),
                kind: space.kind.clone(),
                prefixes: set(&space.prefixes),
                owners,
            });
        }
        let space_of = |peering: &ResourceId| {
            spaces
                .iter()
                .position(|s| matches!(&s.kind, SpaceKind::Peered { peering: p, .. } if p == peering))
        };
        let covering = |address: IpAddr| {
            let mut order: Vec<usize> = (0..spaces.len()).collect();
            order.sort_by_key(|i| *i != local);
            order.into_iter().find(|i| spaces[*i].prefixes.get(address).is_some())
        };

        let mut subnets = Vec::with_capacity(config.subnets.len());
        for subnet in &config.subnets {
            let all = routing::effective(config, subnet, dynamic);
            let mut routes = Lpm::default();
            let mut standby = Lpm::default();
            for (position, route) in all.iter().enumerate() {
                let hop = match &route.next_hop {
                    NextHop::VnetLocal {} => Hop::Space(local),
                    NextHop::VnetPeering { peering } | NextHop::VnetGlobalPeering { peering } => {
                        space_of(peering).map_or(Hop::NoSpace, Hop::Space)
                    }
                    NextHop::VirtualNetworkGateway { gateways, spread } => Hop::Gateway(group(gateways, *spread)),
                    NextHop::VirtualAppliance { address } => Hop::Appliance(covering(*address), *address),
                    NextHop::Internet {} => Hop::Internet,
                    NextHop::None {} => Hop::None,
                };
                let entry = RouteTable { position, hop };
                if route.state == RouteState::Invalid {
                    if route.source == RouteSource::VirtualNetworkGateway && standby.exact(route.prefix).is_none() {
                        standby.insert(route.prefix, entry);
                    }
                    continue;
                }
                if routes.insert(route.prefix, entry).is_some() {
                    return Err(BuildError(format!(
                        "subnets: {} is active twice in {}",
                        route.prefix, subnet.id
                    )));
                }
            }
            subnets.push(SubnetTable {
                id: subnet.id.clone(),
                routes,
                all,
                standby,
            });
        }

        let role = match &config.role {
            Role::Vm { nics, served, .. } => {
                let position = |id: &ResourceId| config.subnets.iter().position(|s| s.id == *id);
                let mut own = Lpm::default();
                for prefix in served {
                    let subnet = config
                        .subnets
                        .iter()
                        .position(|s| s.prefixes.iter().any(|p| p.contains(prefix)));
                    let subnet = subnet.ok_or_else(|| BuildError(format!("served: {prefix} is in no subnet")))?;
                    own.insert(*prefix, subnet);
                }
                let mut addresses = BTreeSet::new();
                let mut forwarding = None;
                for nic in nics {
                    let subnet = position(&nic.subnet)
                        .ok_or_else(|| BuildError(format!("nics: {} is in an unknown subnet", nic.id)))?;
                    for address in &nic.addresses {
                        own.insert(address.addr().into(), subnet);
                        addresses.insert(address.addr());
                    }
                    if nic.ip_forwarding {
                        forwarding.get_or_insert(subnet);
                    }
                }
                RoleTable::Vm {
                    own,
                    addresses,
                    forwarding,
                }
            }
            Role::VpnGateway {
                addresses,
                own_side,
                site_ttl,
                ..
            } => RoleTable::Gateway {
                addresses: addresses.clone(),
                own_side: set(own_side),
                transit: transit(config, &taken, &usable, false),
                onward: transit(config, &taken, &usable, true),
                sites: match site_ttl {
                    SiteTtl::SilentHop => Lpm::default(),
                    SiteTtl::Transparent => sites(config, &taken),
                },
            },
            Role::ExpressRouteGateway { addresses, .. } => RoleTable::CircuitGateway {
                addresses: addresses.clone(),
            },
            Role::CircuitEdge {
                networks, vnet_to_vnet, ..
            } => {
                let mut reached = Lpm::default();
                for network in networks {
                    let link = usable(&mut network.gateways.iter());
                    for prefix in &network.prefixes {
                        reached.insert(*prefix, link);
                    }
                }
                let customer: Vec<_> = taken.iter().map(|t| t.route.prefix).collect();
                RoleTable::Edge {
                    addresses: networks.iter().map(|n| n.address).collect(),
                    networks: reached,
                    customer: set(&customer),
                    vnet_to_vnet: *vnet_to_vnet,
                }
            }
        };

        let onward = |peer: &AgentId| {
            let connections = match &config.role {
                Role::VpnGateway { connections, .. } => connections.as_slice(),
                Role::Vm { .. } | Role::ExpressRouteGateway { .. } | Role::CircuitEdge { .. } => &[],
            };
            let of_peer = || connections.iter().filter(|c| c.ends.contains(peer));
            match (of_peer().any(|c| c.exchange), of_peer().any(|c| c.site)) {
                (true, _) => Onward::All,
                (false, true) => Onward::Exchanging,
                (false, false) => Onward::None,
            }
        };
        let assigned = LazyCell::new(|| Assigned::of(config));
        let links = config
            .links
            .iter()
            .map(|link| {
                let relation = match &link.relation {
                    Relation::VnetLocal {} => RelationTable::VnetLocal,
                    Relation::Peering { peering } => RelationTable::Peering(
                        space_of(peering).ok_or_else(|| BuildError(format!("links: unknown peering {peering}")))?,
                    ),
                    Relation::Gateway {} => RelationTable::Gateway,
                    Relation::GatewayClient {} => RelationTable::GatewayClient,
                    Relation::Connection { .. } | Relation::Site { .. } => RelationTable::Connection,
                    Relation::Edge { .. } => RelationTable::Edge,
                    Relation::CircuitGateway { .. } => RelationTable::CircuitGateway,
                    Relation::CircuitClient { .. } => RelationTable::CircuitClient,
                    Relation::OtherGateway {} => RelationTable::OtherGateway,
                };
                // D10: also the sources of the routes that were learned there. Of a VNet's gateways each may bring what
                // another knows: a site that goes back to its circuit is heard there before that is told.
                let of_link = |t: &&Taken<'_>| match relation {
                    RelationTable::Gateway => true,
                    RelationTable::Connection | RelationTable::Edge => t.from.as_ref() == Some(&link.peer),
                    _ => false,
                };
                let learned = taken.iter().filter(of_link).map(|t| t.route);
                let sources = match learned.clone().next() {
                    None => Sources::configured(&link.sources),
                    Some(_) => assigned.sources(link, learned),
                };
                Ok(LinkTable {
                    peer: link.peer.clone(),
                    relation,
                    sources,
                    foreign: link.foreign,
                    down: dynamic.down.contains(&link.peer),
                    advertises: routing::may_advertise(&config.role, link),
                    onward: onward(&link.peer),
                })
            })
            .collect::<Result<_, BuildError>>()?;

        let closed = spaces.iter().zip(&config.spaces).filter(|(table, _)| !table.access());
        let denied: Vec<_> = closed.flat_map(|(_, space)| space.prefixes.clone()).collect();

        Ok(Self {
            agent: config.agent.clone(),
            mtu: config.mtu,
            probes: config.probes,
            role,
            subnets,
            spaces,
            own_space: set(&config.address_space),
            denied: set(&denied),
            links,
            spreads: spreads.get(),
        })
    }

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

/// At a VPN gateway: what lies behind its connections, configured or learned; of one prefix what answers before what does
/// not, the higher weight, the shorter path. `exchanged`: only of connections that are known to others by exchange (G18, G19).
fn transit(
    config: &AgentConfig,
    taken: &[Taken<'_>],
    usable: &impl Fn(&mut dyn Iterator<Item = &AgentId>) -> Option<LinkIndex>,
    exchanged: bool,
) -> Lpm<Option<Transit>> {
    let Role::VpnGateway {
        transit,
        connections,
        own_side,
        ..
    } = &config.role
    else {
        return Lpm::default();
    };
    let of = |id: &ResourceId| connections.iter().find(|c| c.connection == *id);
    let mut offers = Vec::new();
    for route in transit {
        let connection = of(&route.connection);
        let entry = Transit {
            connection: route.connection.clone(),
            link: usable(&mut route.via.iter()),
            exchange: connection.is_some_and(|c| c.exchange),
        };
        if exchanged && !connection.is_some_and(GatewayConnection::is_advertised) {
            continue;
        }
        let weight = connection.map_or(0, |c| c.weight);
        offers.push((route.prefix, false, std::cmp::Reverse(weight), 1, entry));
    }
    // G21: what was learned from a circuit is no way on from here.
    for t in taken.iter().filter(|t| t.kind == GatewayKind::Vpn) {
        let Some(connection) = t.connection else { continue };
        let entry = Transit {
            connection: connection.connection.clone(),
            link: usable(&mut std::iter::once(&t.via)),
            exchange: connection.exchange,
        };
        let weight = std::cmp::Reverse(connection.weight);
        offers.push((t.route.prefix, t.down, weight, t.route.as_path.len(), entry));
    }
    // Stable: configured before learned, then in the order of names.
    offers.sort_by_key(|(prefix, down, weight, hops, _)| (*prefix, *down, *weight, *hops));
    let mut table = Lpm::default();
    for (prefix, .., entry) in offers {
        if table.exact(prefix).is_none() {
            table.insert(prefix, Some(entry));
        }
    }
    // The longest prefix decides: a site that announces everything around the own side does not get what is sent there.
    let configured = set(&transit.iter().map(|t| t.prefix).collect::<Vec<_>>());
    let learned = taken.iter().filter(|t| t.connection.is_some()).map(|t| t.route.prefix);
    let learned = set(&learned.collect::<Vec<_>>());
    for own in own_side
        .iter()
        .filter(|p| learned.covers(**p) && !configured.covers(**p))
    {
        if table.exact(*own).is_none() {
            table.insert(*own, None);
        }
    }
    table
}

/// T6: the prefixes of sites, as far as a VPN gateway knows them.
fn sites(config: &AgentConfig, taken: &[Taken<'_>]) -> Lpm<()> {
    let mut prefixes: Vec<ipnet::IpNet> = taken
        .iter()
        .filter(|t| t.kind == GatewayKind::Vpn && t.route.origin == RouteOrigin::Site)
        .map(|t| t.route.prefix)
        .collect();
    if let Role::VpnGateway {
        transit, connections, ..
    } = &config.role
    {
        let of_site = |id: &ResourceId| connections.iter().any(|c| c.site && c.connection == *id);
        prefixes.extend(transit.iter().filter(|t| of_site(&t.connection)).map(|t| t.prefix));
    }
    set(&prefixes)
}

fn set(prefixes: &[ipnet::IpNet]) -> Lpm<()> {
    let mut lpm = Lpm::default();
    for prefix in prefixes {
        lpm.insert(*prefix, ());
    }
    lpm
}
