//! Builds [`Tables`] from a configuration and the routing state. Names become positions, and routes become next hops.

use super::limits::{self, Buckets};
use super::lpm::Lpm;
use super::sources::{Assigned, Sources};
use super::transit::{site_prefixes, transit_table};
use super::{
    AddressSpace, AgentRole, Arrivals, BuildError, Conditions, FrontEnds, Hop, LinkGroup, LinkIndex, LinkPolicy,
    MAX_LINKS, Owner, PeerRole, RouteEntry, RoutingState, SubnetRoutes, Tables, TransitScope, VmNics, set,
};
use crate::routing::{self, AcceptedRoute, accept_routes};
use crate::security::{PreparedGroups, Reuse, SecuredNics};
use std::cell::LazyCell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use tombolo_proto::config::{AgentConfig, CircuitNetwork, Link, Relation, Role, SiteTtl, Space, SpaceKind, Subnet};
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::route::{EffectiveRoute, GatewayHop, NextHop, RouteSource, RouteState};

impl Tables {
    /// Builds the tables of one agent from its configuration and the state that it has learned. The import policy is
    /// applied to the routes in `state`, so the caller need not filter them. Entries of agents and neighbours that are
    /// not in the configuration are ignored. The result depends on the arguments alone. A build runs on the calling
    /// thread, and takes long if the configuration is large.
    ///
    /// # Errors
    /// The configuration violates an invariant of [`AgentConfig::check`], has more than [`MAX_LINKS`] links, or names a
    /// subnet or peering that it does not have. Or a subnet has two active routes for one prefix, or a served prefix
    /// lies outside of all subnets.
    pub fn build(config: &AgentConfig, state: &RoutingState) -> Result<Self, BuildError> {
        Self::build_after(config, state, None)
    }

    /// Does the same as [`build`](Self::build), and takes from `before`, the tables that the result replaces, what has not
    /// changed: the prepared rules of security groups, and the levels of token buckets. For load-balancing rules that have
    /// changed, the result remembers the back ends that they had in `before` (D35). Otherwise, the result is the same for
    /// any `before`.
    ///
    /// # Errors
    /// As for [`build`](Self::build).
    pub fn build_after(config: &AgentConfig, state: &RoutingState, before: Option<&Self>) -> Result<Self, BuildError> {
        let reuse = before.and_then(Self::security).map_or(Reuse::Nothing, Reuse::Unchanged);
        Self::build_reusing(config, state, before, reuse)
    }

    /// Does the same as [`build`](Self::build), but takes the rules of security groups from `groups`; the configuration need
    /// not have them. For a diagnosis of many agents.
    ///
    /// # Errors
    /// As for [`build`](Self::build).
    pub fn build_sharing(
        config: &AgentConfig,
        state: &RoutingState,
        groups: &PreparedGroups,
    ) -> Result<Self, BuildError> {
        Self::build_reusing(config, state, None, Reuse::Shared(groups))
    }

    fn build_reusing(
        config: &AgentConfig,
        state: &RoutingState,
        before: Option<&Self>,
        reuse: Reuse<'_>,
    ) -> Result<Self, BuildError> {
        config.check().map_err(|e| BuildError(e.0))?;
        let resolver = Resolver::new(config, state)?;
        let spaces = resolver.build_spaces();
        let subnets = resolver.build_subnets(&spaces)?;
        let role = resolver.build_role()?;
        let links = resolver.build_links(&spaces)?;
        let nics = match &role {
            AgentRole::Vm(nics) => Some(nics),
            AgentRole::Gateway { .. } | AgentRole::CircuitGateway { .. } | AgentRole::Edge { .. } => None,
        };
        let conditions = Conditions::new(state, &links);
        let front_ends_before = before.map(|before| &before.front_ends);
        let front_ends = FrontEnds::new(&config.front_ends, &spaces.all, nics, &conditions, front_ends_before);
        let security = config.security.as_ref().map(|security| {
            let routes_of = |id: &ResourceId| subnets.iter().find(|s| s.id == *id).map_or(&[][..], |s| &s.all[..]);
            SecuredNics::new(config, security, routes_of, reuse)
        });
        Ok(Self {
            security,
            front_ends,
            buckets: Buckets::new(config, before.and_then(|before| before.buckets.as_ref())),
            flows_of_nic: limits::flows_of_nic(config),
            agent: config.agent.clone(),
            mtu: config.mtu,
            probes: config.probes,
            own_space: set(&config.address_space),
            denied: resolver.build_denied(&spaces),
            spreads: subnets.iter().any(SubnetRoutes::spreads),
            role,
            subnets,
            spaces: spaces.all,
            links,
        })
    }
}

impl SubnetRoutes {
    /// Whether a route of the subnet shares flows between links.
    fn spreads(&self) -> bool {
        let mut routes = self.routes.iter().chain(self.standby.iter());
        routes.any(|(_, route)| matches!(route.hop, Hop::Gateway(Some(group)) if group.links().len() > 1))
    }
}

/// All spaces, in the order of the configuration.
struct Spaces {
    all: Vec<AddressSpace>,
    /// Position of the agent's own VNet.
    local: usize,
}

impl Spaces {
    /// The position of the space that belongs to a peering; `None` if there is none.
    fn of_peering(&self, peering: &ResourceId) -> Option<usize> {
        let is_it = |s: &AddressSpace| matches!(&s.kind, SpaceKind::Peered { peering: p, .. } if p == peering);
        self.all.iter().position(is_it)
    }

    /// The position of the first space that contains the address; `None` if there is none. The own VNet's space is
    /// searched first.
    fn covering(&self, address: IpAddr) -> Option<usize> {
        let covers = |i: &usize| self.all[*i].prefixes.get(address).is_some();
        let others = (0..self.all.len()).filter(|i| *i != self.local);
        std::iter::once(self.local).chain(others).find(covers)
    }
}

/// Resolves names of agents and resources within one configuration to positions.
pub(super) struct Resolver<'a> {
    pub(super) config: &'a AgentConfig,
    state: &'a RoutingState,
    by_peer: BTreeMap<&'a AgentId, LinkIndex>,
    pub(super) accepted: Vec<AcceptedRoute<'a>>,
}

impl<'a> Resolver<'a> {
    fn new(config: &'a AgentConfig, state: &'a RoutingState) -> Result<Self, BuildError> {
        if config.links.len() > MAX_LINKS {
            let links = config.links.len();
            return Err(BuildError(format!(
                "links: {links} links; at most {MAX_LINKS} are possible"
            )));
        }
        let positions = config.links.iter().zip(0..);
        let by_peer = positions.map(|(link, position)| (&link.peer, LinkIndex(position)));
        Ok(Self {
            config,
            state,
            by_peer: by_peer.collect(),
            accepted: accept_routes(config, state),
        })
    }

    /// The links to those of `agents` that are up, in the given order. If all are down, the result is the link to the
    /// first of them that has one: packets are then dropped at this link, and the link's status says why. Empty if
    /// there is no link to any of the agents.
    fn links_up<'b>(&self, agents: impl Iterator<Item = &'b AgentId>) -> Vec<LinkIndex> {
        let linked: Vec<_> = agents.filter_map(|a| Some((a, *self.by_peer.get(a)?))).collect();
        let up = linked.iter().filter(|(a, _)| !self.state.down.contains(*a));
        let up: Vec<LinkIndex> = up.map(|(_, link)| *link).collect();
        match (up.is_empty(), linked.first()) {
            (true, Some((_, first))) => vec![*first],
            (_, _) => up,
        }
    }

    /// The first link of [`links_up`](Self::links_up), if there is one.
    pub(super) fn usable<'b>(&self, agents: impl Iterator<Item = &'b AgentId>) -> Option<LinkIndex> {
        self.links_up(agents).first().copied()
    }

    /// The links of a gateway route: if the route spreads flows, all links that are up, otherwise the first of them.
    /// `None`: there is no link to any of the gateways.
    fn group(&self, gateways: &[GatewayHop], spread: bool) -> Option<LinkGroup> {
        let links = self.links_up(gateways.iter().map(|g| &g.agent));
        LinkGroup::of(if spread { &links } else { &links[..links.len().min(1)] })
    }

    fn build_spaces(&self) -> Spaces {
        let is_local = |s: &Space| matches!(s.kind, SpaceKind::Local {});
        let table = |space: &Space| {
            let mut owners = Lpm::default();
            for owner in &space.owners {
                let target = match self.by_peer.get(&owner.agent) {
                    _ if owner.agent == self.config.agent => Owner::Own,
                    Some(link) => Owner::Link(*link),
                    None => Owner::NoLink,
                };
                owners.insert(owner.prefix, target);
            }
            AddressSpace {
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

    /// The prefixes of all VNets whose peering has `allowVirtualNetworkAccess` off (P17).
    fn build_denied(&self, spaces: &Spaces) -> Lpm<()> {
        let closed = spaces.all.iter().zip(&self.config.spaces);
        let closed = closed.filter(|(table, _)| !table.access());
        let denied: Vec<_> = closed.flat_map(|(_, space)| space.prefixes.clone()).collect();
        set(&denied)
    }

    fn build_subnets(&self, spaces: &Spaces) -> Result<Vec<SubnetRoutes>, BuildError> {
        let subnets = self.config.subnets.iter();
        subnets.map(|subnet| self.build_subnet(subnet, spaces)).collect()
    }

    fn build_subnet(&self, subnet: &Subnet, spaces: &Spaces) -> Result<SubnetRoutes, BuildError> {
        let all = routing::effective(self.config, subnet, self.state);
        let mut routes = Lpm::default();
        let mut standby = Lpm::default();
        for (position, route) in all.iter().enumerate() {
            let hop = self.hop(route, spaces);
            let entry = RouteEntry { position, hop };
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
        Ok(SubnetRoutes {
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
                spaces.of_peering(peering).map_or(Hop::PeeringNotDelivered, Hop::Space)
            }
            NextHop::VirtualNetworkGateway { gateways, spread } => Hop::Gateway(self.group(gateways, *spread)),
            NextHop::VirtualAppliance { address } => Hop::Appliance(spaces.covering(*address), *address),
            NextHop::Internet {} => Hop::Internet,
            NextHop::None {} => Hop::None,
        }
    }

    fn build_role(&self) -> Result<AgentRole, BuildError> {
        Ok(match &self.config.role {
            Role::Vm { nics, served, .. } => {
                let front_ends = self.config.front_ends.iter().filter(|f| f.vnet == self.config.vnet);
                let addresses = front_ends.map(|f| f.address);
                AgentRole::Vm(VmNics::new(nics, served, &self.config.subnets, addresses)?)
            }
            Role::VpnGateway {
                addresses,
                local_prefixes,
                site_ttl,
                ..
            } => AgentRole::Gateway {
                addresses: addresses.clone(),
                local_prefixes: set(local_prefixes),
                transit: transit_table(self, false),
                bgp_transit: transit_table(self, true),
                sites: match site_ttl {
                    SiteTtl::SilentHop => Lpm::default(),
                    SiteTtl::Transparent => site_prefixes(self),
                },
            },
            Role::ExpressRouteGateway { addresses, .. } => AgentRole::CircuitGateway {
                addresses: addresses.clone(),
            },
            Role::CircuitEdge {
                networks, vnet_to_vnet, ..
            } => self.build_edge(networks, *vnet_to_vnet),
        })
    }

    fn build_edge(&self, networks: &[CircuitNetwork], vnet_to_vnet: bool) -> AgentRole {
        let mut reached = Lpm::default();
        for network in networks {
            let link = self.usable(network.gateways.iter());
            for prefix in &network.prefixes {
                reached.insert(*prefix, link);
            }
        }
        let customer: Vec<_> = self.accepted.iter().map(|t| t.route.prefix).collect();
        AgentRole::Edge {
            addresses: networks.iter().map(|n| n.address).collect(),
            networks: reached,
            customer: set(&customer),
            vnet_to_vnet,
        }
    }

    fn build_links(&self, spaces: &Spaces) -> Result<Vec<LinkPolicy>, BuildError> {
        // The value is computed on first use: only links with learned routes need it, and most agents have none.
        let assigned = LazyCell::new(|| Assigned::of(self.config));
        let build = |link: &Link| {
            let relation = match &link.relation {
                Relation::VnetLocal {} => PeerRole::VnetLocal,
                Relation::Peering { peering } => {
                    let space = spaces.of_peering(peering);
                    PeerRole::Peering(space.ok_or_else(|| BuildError(format!("links: unknown peering {peering}")))?)
                }
                Relation::Gateway {} => PeerRole::Gateway,
                Relation::GatewayClient {} => PeerRole::GatewayClient,
                Relation::Connection { .. } | Relation::Site { .. } => PeerRole::Connection,
                Relation::Edge { .. } => PeerRole::Edge,
                Relation::CircuitGateway { .. } => PeerRole::CircuitGateway,
                Relation::CircuitClient { .. } => PeerRole::CircuitClient,
                Relation::OtherGateway {} => PeerRole::OtherGateway,
            };
            // D10: learned routes extend the sources of a link. At a VM, a route learned from one gateway extends the
            // sources of the links with all gateways that the VNet uses, because these gateways replace each other. For
            // example, when a site returns from VPN to its circuit, its packets come through the edge and the
            // ExpressRoute gateway possibly before the agent has learned the route from this gateway.
            let of_link = |t: &&AcceptedRoute<'_>| match relation {
                PeerRole::Gateway => true,
                PeerRole::Connection | PeerRole::Edge => t.from.as_ref() == Some(&link.peer),
                _ => false,
            };
            let learned = self.accepted.iter().filter(of_link).map(|t| t.route);
            let sources = match learned.clone().next() {
                None => Sources::configured(&link.sources),
                Some(_) => assigned.sources(link, learned),
            };
            Ok(LinkPolicy {
                peer: link.peer.clone(),
                relation,
                sources,
                foreign: link.foreign,
                arrivals: Arrivals::new(&link.arrivals),
                down: self.state.down.contains(&link.peer),
                advertises: routing::may_advertise(&self.config.role, link),
                transit_scope: self.transit_scope(&link.peer),
            })
        };
        self.config.links.iter().map(build).collect()
    }

    fn transit_scope(&self, peer: &AgentId) -> TransitScope {
        let connections = match &self.config.role {
            Role::VpnGateway { connections, .. } => connections.as_slice(),
            Role::Vm { .. } | Role::ExpressRouteGateway { .. } | Role::CircuitEdge { .. } => &[],
        };
        let of_peer = || connections.iter().filter(|c| c.ends.contains(peer));
        match (of_peer().any(|c| c.exchange), of_peer().any(|c| c.site)) {
            (true, _) => TransitScope::AllConnections,
            (false, true) => TransitScope::BgpConnections,
            (false, false) => TransitScope::None,
        }
    }
}
