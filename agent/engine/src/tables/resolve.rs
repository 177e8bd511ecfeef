//! Builds [`Tables`] from a configuration and the routing state: names become positions, routes become lookups.

use super::lpm::Lpm;
use super::sources::{Assigned, Sources};
use super::transit::{site_prefixes, transit_table};
use super::{
    BuildError, Dynamic, Group, Hop, LinkIndex, LinkTable, MAX_LINKS, Onward, OwnerTable, RelationTable, RoleTable,
    RouteTable, SpaceTable, SubnetTable, Tables, set,
};
use crate::routing::{self, Taken, taken};
use ipnet::IpNet;
use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use tombolo_proto::config::{
    AgentConfig, CircuitNetwork, Link, Nic, Relation, Role, SiteTtl, Space, SpaceKind, Subnet,
};
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::route::{EffectiveRoute, GatewayHop, NextHop, RouteSource, RouteState};

impl Tables {
    /// Builds tables from policy and from what was learned.
    ///
    /// # Errors
    /// A promise of the configuration's types is broken; see [`AgentConfig::check`].
    pub fn build(config: &AgentConfig, dynamic: &Dynamic) -> Result<Self, BuildError> {
        config.check().map_err(|e| BuildError(e.0))?;
        let resolver = Resolver::new(config, dynamic)?;
        let spaces = resolver.build_spaces();
        let subnets = resolver.build_subnets(&spaces)?;
        let role = resolver.build_role()?;
        let links = resolver.build_links(&spaces)?;
        Ok(Self {
            agent: config.agent.clone(),
            mtu: config.mtu,
            probes: config.probes,
            own_space: set(&config.address_space),
            denied: resolver.build_denied(&spaces),
            spreads: subnets.iter().any(SubnetTable::spreads),
            role,
            subnets,
            spaces: spaces.all,
            links,
        })
    }
}

impl SubnetTable {
    /// Whether a route of the subnet shares flows between links.
    fn spreads(&self) -> bool {
        let mut routes = self.routes.iter().chain(self.standby.iter());
        routes.any(|(_, route)| matches!(route.hop, Hop::Gateway(Some(group)) if group.links().len() > 1))
    }
}

/// The spaces of a configuration, in its order.
struct Spaces {
    all: Vec<SpaceTable>,
    /// Position of the local one.
    local: usize,
}

impl Spaces {
    /// The position of a peering's space.
    fn of_peering(&self, peering: &ResourceId) -> Option<usize> {
        let is_it = |s: &SpaceTable| matches!(&s.kind, SpaceKind::Peered { peering: p, .. } if p == peering);
        self.all.iter().position(is_it)
    }

    /// The position of the first space with this address, the local one before all others.
    fn covering(&self, address: IpAddr) -> Option<usize> {
        let covers = |i: &usize| self.all[*i].prefixes.get(address).is_some();
        let others = (0..self.all.len()).filter(|i| *i != self.local);
        std::iter::once(self.local).chain(others).find(covers)
    }
}

/// Resolves the names of one configuration.
pub(super) struct Resolver<'a> {
    pub(super) config: &'a AgentConfig,
    dynamic: &'a Dynamic,
    by_peer: BTreeMap<&'a AgentId, LinkIndex>,
    pub(super) taken: Vec<Taken<'a>>,
}

impl<'a> Resolver<'a> {
    fn new(config: &'a AgentConfig, dynamic: &'a Dynamic) -> Result<Self, BuildError> {
        if config.links.len() > MAX_LINKS {
            let links = config.links.len();
            return Err(BuildError(format!("links: {links} are more than {MAX_LINKS}")));
        }
        let positions = config.links.iter().zip(0..);
        let by_peer = positions.map(|(link, position)| (&link.peer, LinkIndex(position)));
        Ok(Self {
            config,
            dynamic,
            by_peer: by_peer.collect(),
            taken: taken(config, dynamic),
        })
    }

    /// The links to those of `agents` that answer, in the given order. With every candidate down it is the link to the
    /// first one: its own state says why packets are lost.
    fn answering<'b>(&self, agents: impl Iterator<Item = &'b AgentId>) -> Vec<LinkIndex> {
        let linked: Vec<_> = agents.filter_map(|a| Some((a, *self.by_peer.get(a)?))).collect();
        let up = linked.iter().filter(|(a, _)| !self.dynamic.down.contains(*a));
        let up: Vec<LinkIndex> = up.map(|(_, link)| *link).collect();
        match (up.is_empty(), linked.first()) {
            (true, Some((_, first))) => vec![*first],
            (_, _) => up,
        }
    }

    /// The first link of [`answering`](Self::answering).
    pub(super) fn usable<'b>(&self, agents: impl Iterator<Item = &'b AgentId>) -> Option<LinkIndex> {
        self.answering(agents).first().copied()
    }

    /// The links of a gateway route: all that answer if it spreads flows, otherwise the first.
    fn group(&self, gateways: &[GatewayHop], spread: bool) -> Option<Group> {
        let links = self.answering(gateways.iter().map(|g| &g.agent));
        Group::of(if spread { &links } else { &links[..links.len().min(1)] })
    }

    fn build_spaces(&self) -> Spaces {
        let is_local = |s: &Space| matches!(s.kind, SpaceKind::Local {});
        let table = |space: &Space| {
            let mut owners = Lpm::default();
            for owner in &space.owners {
                let target = match self.by_peer.get(&owner.agent) {
                    _ if owner.agent == self.config.agent => OwnerTable::Own,
                    Some(link) => OwnerTable::Link(*link),
                    None => OwnerTable::NoLink,
                };
                owners.insert(owner.prefix, target);
            }
            SpaceTable {
                vnet: space.vnet.clone(),
                kind: space.kind.clone(),
                prefixes: set(&space.prefixes),
                owners,
            }
        };
        Spaces {
            all: self.config.spaces.iter().map(table).collect(),
            local: self.config.spaces.iter().position(is_local).unwrap_or_default(),
        }
    }

    /// P17: the prefixes of peerings that are closed here.
    fn build_denied(&self, spaces: &Spaces) -> Lpm<()> {
        let closed = spaces.all.iter().zip(&self.config.spaces);
        let closed = closed.filter(|(table, _)| !table.access());
        let denied: Vec<_> = closed.flat_map(|(_, space)| space.prefixes.clone()).collect();
        set(&denied)
    }

    fn build_subnets(&self, spaces: &Spaces) -> Result<Vec<SubnetTable>, BuildError> {
        let subnets = self.config.subnets.iter();
        subnets.map(|subnet| self.build_subnet(subnet, spaces)).collect()
    }

    fn build_subnet(&self, subnet: &Subnet, spaces: &Spaces) -> Result<SubnetTable, BuildError> {
        let all = routing::effective(self.config, subnet, self.dynamic);
        let mut routes = Lpm::default();
        let mut standby = Lpm::default();
        for (position, route) in all.iter().enumerate() {
            let hop = self.hop(route, spaces);
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
        Ok(SubnetTable {
            id: subnet.id.clone(),
            routes,
            all,
            standby,
        })
    }

    fn hop(&self, route: &EffectiveRoute, spaces: &Spaces) -> Hop {
        match &route.next_hop {
            NextHop::VnetLocal {} => Hop::Space(spaces.local),
            NextHop::VnetPeering { peering } | NextHop::VnetGlobalPeering { peering } => {
                spaces.of_peering(peering).map_or(Hop::NoSpace, Hop::Space)
            }
            NextHop::VirtualNetworkGateway { gateways, spread } => Hop::Gateway(self.group(gateways, *spread)),
            NextHop::VirtualAppliance { address } => Hop::Appliance(spaces.covering(*address), *address),
            NextHop::Internet {} => Hop::Internet,
            NextHop::None {} => Hop::None,
        }
    }

    fn build_role(&self) -> Result<RoleTable, BuildError> {
        Ok(match &self.config.role {
            Role::Vm { nics, served, .. } => self.build_vm(nics, served)?,
            Role::VpnGateway {
                addresses,
                own_side,
                site_ttl,
                ..
            } => RoleTable::Gateway {
                addresses: addresses.clone(),
                own_side: set(own_side),
                transit: transit_table(self, false),
                onward: transit_table(self, true),
                sites: match site_ttl {
                    SiteTtl::SilentHop => Lpm::default(),
                    SiteTtl::Transparent => site_prefixes(self),
                },
            },
            Role::ExpressRouteGateway { addresses, .. } => RoleTable::CircuitGateway {
                addresses: addresses.clone(),
            },
            Role::CircuitEdge {
                networks, vnet_to_vnet, ..
            } => self.build_edge(networks, *vnet_to_vnet),
        })
    }

    fn build_vm(&self, nics: &[Nic], served: &[IpNet]) -> Result<RoleTable, BuildError> {
        let subnets = &self.config.subnets;
        let mut own = Lpm::default();
        for prefix in served {
            let contains = |s: &Subnet| s.prefixes.iter().any(|p| p.contains(prefix));
            let subnet = subnets.iter().position(contains);
            let subnet = subnet.ok_or_else(|| BuildError(format!("served: {prefix} is in no subnet")))?;
            own.insert(*prefix, subnet);
        }
        let mut addresses = BTreeSet::new();
        let mut forwarding = None;
        for nic in nics {
            let subnet = subnets.iter().position(|s| s.id == nic.subnet);
            let subnet = subnet.ok_or_else(|| BuildError(format!("nics: {} is in an unknown subnet", nic.id)))?;
            for address in &nic.addresses {
                own.insert(address.addr().into(), subnet);
                addresses.insert(address.addr());
            }
            if nic.ip_forwarding {
                forwarding.get_or_insert(subnet);
            }
        }
        Ok(RoleTable::Vm {
            own,
            addresses,
            forwarding,
        })
    }

    fn build_edge(&self, networks: &[CircuitNetwork], vnet_to_vnet: bool) -> RoleTable {
        let mut reached = Lpm::default();
        for network in networks {
            let link = self.usable(network.gateways.iter());
            for prefix in &network.prefixes {
                reached.insert(*prefix, link);
            }
        }
        let customer: Vec<_> = self.taken.iter().map(|t| t.route.prefix).collect();
        RoleTable::Edge {
            addresses: networks.iter().map(|n| n.address).collect(),
            networks: reached,
            customer: set(&customer),
            vnet_to_vnet,
        }
    }

    fn build_links(&self, spaces: &Spaces) -> Result<Vec<LinkTable>, BuildError> {
        // Only links with learned routes need it, and most agents have none.
        let assigned = LazyCell::new(|| Assigned::of(self.config));
        let build = |link: &Link| {
            let relation = match &link.relation {
                Relation::VnetLocal {} => RelationTable::VnetLocal,
                Relation::Peering { peering } => {
                    let space = spaces.of_peering(peering);
                    RelationTable::Peering(
                        space.ok_or_else(|| BuildError(format!("links: unknown peering {peering}")))?,
                    )
                }
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
            let learned = self.taken.iter().filter(of_link).map(|t| t.route);
            let sources = match learned.clone().next() {
                None => Sources::configured(&link.sources),
                Some(_) => assigned.sources(link, learned),
            };
            Ok(LinkTable {
                peer: link.peer.clone(),
                relation,
                sources,
                foreign: link.foreign,
                down: self.dynamic.down.contains(&link.peer),
                advertises: routing::may_advertise(&self.config.role, link),
                onward: self.onward(&link.peer),
            })
        };
        self.config.links.iter().map(build).collect()
    }

    fn onward(&self, peer: &AgentId) -> Onward {
        let connections = match &self.config.role {
            Role::VpnGateway { connections, .. } => connections.as_slice(),
            Role::Vm { .. } | Role::ExpressRouteGateway { .. } | Role::CircuitEdge { .. } => &[],
        };
        let of_peer = || connections.iter().filter(|c| c.ends.contains(peer));
        match (of_peer().any(|c| c.exchange), of_peer().any(|c| c.site)) {
            (true, _) => Onward::All,
            (false, true) => Onward::Exchanging,
            (false, false) => Onward::None,
        }
    }
}
