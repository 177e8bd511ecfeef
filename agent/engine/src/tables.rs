//! What one agent's lookups run on: built once from policy and from what agents learn by themselves, never edited.

mod installed;
pub mod lpm;

use lpm::Lpm;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use tombolo_proto::config::{AgentConfig, ForeignSources, Relation, Role, SpaceKind};
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::route::{EffectiveRoute, NextHop, RouteState};

/// What agents learn by themselves (D11).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dynamic {
    /// Agents that do not answer: passed over where another one can stand in.
    pub down: BTreeSet<AgentId>,
}

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
    pub(crate) role: RoleTable,
    pub(crate) subnets: Vec<SubnetTable>,
    pub(crate) spaces: Vec<SpaceTable>,
    pub(crate) own_space: Lpm<()>,
    /// P17: addresses of peered VNets with `allowVirtualNetworkAccess` off here. They left the `VirtualNetwork` tag,
    /// whatever path their packets take.
    pub(crate) denied: Lpm<()>,
    pub(crate) links: Vec<LinkTable>,
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
        transit: Lpm<Transit>,
    },
}

/// What lies behind a connection.
#[derive(Debug, Clone)]
pub(crate) struct Transit {
    pub(crate) connection: ResourceId,
    pub(crate) link: Option<LinkIndex>,
}

#[derive(Debug, Clone)]
pub(crate) struct SubnetTable {
    pub(crate) id: ResourceId,
    /// The active routes; positions refer to `all`.
    pub(crate) routes: Lpm<RouteTable>,
    pub(crate) all: Vec<EffectiveRoute>,
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
    Gateway(Option<LinkIndex>),
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
    pub(crate) sources: Lpm<()>,
    pub(crate) foreign: ForeignSources,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RelationTable {
    VnetLocal,
    /// The peering's space.
    Peering(usize),
    Gateway,
    GatewayClient,
    Connection,
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
        let usable = |agents: &mut dyn Iterator<Item = &AgentId>| {
            let linked: Vec<_> = agents.filter_map(|a| Some((a, *by_peer.get(a)?))).collect();
            // With every candidate down the first one stays: its link says so.
            linked
                .iter()
                .find(|(a, _)| !dynamic.down.contains(*a))
                .or(linked.first())
                .map(|(_, link)| *link)
        };

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
            let mut routes = Lpm::default();
            for (position, route) in subnet.routes.iter().enumerate() {
                if route.state == RouteState::Invalid {
                    continue;
                }
                let hop = match &route.next_hop {
                    NextHop::VnetLocal {} => Hop::Space(local),
                    NextHop::VnetPeering { peering } | NextHop::VnetGlobalPeering { peering } => {
                        space_of(peering).map_or(Hop::NoSpace, Hop::Space)
                    }
                    NextHop::VirtualNetworkGateway { gateways } => {
                        Hop::Gateway(usable(&mut gateways.iter().map(|g| &g.agent)))
                    }
                    NextHop::VirtualAppliance { address } => Hop::Appliance(covering(*address), *address),
                    NextHop::Internet {} => Hop::Internet,
                    NextHop::None {} => Hop::None,
                };
                if routes.insert(route.prefix, RouteTable { position, hop }).is_some() {
                    return Err(BuildError(format!(
                        "subnets: {} is active twice in {}",
                        route.prefix, subnet.id
                    )));
                }
            }
            subnets.push(SubnetTable {
                id: subnet.id.clone(),
                routes,
                all: subnet.routes.clone(),
            });
        }

        let role = match &config.role {
            Role::Vm { nics, served } => {
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
                transit,
                ..
            } => {
                let mut table = Lpm::default();
                for route in transit {
                    let link = usable(&mut route.via.iter());
                    table.insert(
                        route.prefix,
                        Transit {
                            connection: route.connection.clone(),
                            link,
                        },
                    );
                }
                RoleTable::Gateway {
                    addresses: addresses.clone(),
                    own_side: set(own_side),
                    transit: table,
                }
            }
        };

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
                    Relation::Connection { .. } => RelationTable::Connection,
                };
                Ok(LinkTable {
                    peer: link.peer.clone(),
                    relation,
                    sources: set(&link.sources),
                    foreign: link.foreign,
                })
            })
            .collect::<Result<_, BuildError>>()?;

        let closed = spaces.iter().zip(&config.spaces).filter(|(table, _)| !table.access());
        let denied: Vec<_> = closed.flat_map(|(_, space)| space.prefixes.clone()).collect();

        Ok(Self {
            agent: config.agent.clone(),
            mtu: config.mtu,
            role,
            subnets,
            spaces,
            own_space: set(&config.address_space),
            denied: set(&denied),
            links,
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
            RoleTable::Vm { .. } => false,
        }
    }

    /// The address that a gateway answers from, of the family of `like`.
    #[must_use]
    pub fn gateway_address(&self, like: IpAddr) -> Option<IpAddr> {
        match &self.role {
            RoleTable::Gateway { addresses, .. } => addresses.iter().copied().find(|a| a.is_ipv4() == like.is_ipv4()),
            RoleTable::Vm { .. } => None,
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
