//! Routes that move (D11): which of those that were told or learned are taken, which one is used, and who is told of what.
//!
//! Three kinds of agents tell each other of routes inside their links, within what the configuration allows:
//!
//! ```text
//! customer edge ─BGP─▶ circuit edge ─▶ ExpressRoute gateway ─▶ VMs of its VNet and its spokes, which send to the edge
//!                                                  └─────────▶ VPN gateway of the same VNet, which passes none on (G20)
//! site's device ─BGP─▶ VPN gateway ─▶ VMs of its VNet and its spokes, which send to the gateway
//!                           └───────▶ VPN gateways that it has a connection with, and its other sites (G18, G19)
//! ```
//! All of it is plain functions over the configuration and what was learned: agents run them, and so does the controller
//! to show what agents do.

mod select;
mod tell;
mod wire;

pub use select::{Offer, effective, settle};
pub use tell::{may_advertise, tables_to_tell, tell_neighbour, tell_peer};
pub use wire::{MAX_AS_PATH, MAX_ROUTES, Unreadable, decode, encode};

use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tombolo_proto::config::{AgentConfig, GatewayConnection, GatewayKind, Relation, Role};
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::route::Route;

/// What agents learn by themselves (D11).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dynamic {
    /// Agents that do not answer: passed over where another one can stand in.
    pub down: BTreeSet<AgentId>,
    /// What other agents told inside their links.
    pub told: BTreeMap<AgentId, Arc<Vec<Route>>>,
    /// What BGP neighbours announced, by [`Neighbour::id`](tombolo_proto::config::Neighbour::id).
    pub learned: BTreeMap<ResourceId, Arc<Vec<Route>>>,
}

impl Dynamic {
    /// Forgets what was learned of agents and neighbours that the configuration does not have.
    pub fn keep(&mut self, config: &AgentConfig) {
        let linked = |a: &AgentId| config.links.binary_search_by(|l| l.peer.cmp(a)).is_ok();
        self.down.retain(|a| linked(a));
        self.told.retain(|a, _| linked(a));
        let speaker = match &config.role {
            Role::VpnGateway { bgp, .. } => bgp.as_ref(),
            Role::CircuitEdge { bgp, .. } => Some(bgp),
            Role::Vm { .. } | Role::ExpressRouteGateway { .. } => None,
        };
        let neighbours = speaker.map(|s| s.neighbours.as_slice()).unwrap_or_default();
        self.learned.retain(|id, _| neighbours.iter().any(|n| n.id == *id));
    }
}

/// A route that was told or learned, and taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken<'a> {
    /// The route.
    pub route: &'a Route,
    /// Whose word it is: an agent, or the device of a site. None at an edge: its customer's.
    pub from: Option<AgentId>,
    /// Where packets go.
    pub via: AgentId,
    /// By what kind of gateway.
    pub kind: GatewayKind,
    /// The connection that it came by, at a VPN gateway.
    pub connection: Option<&'a GatewayConnection>,
    /// Nobody is there now to send to, or who told it is gone.
    pub down: bool,
}

/// Whether anything that an agent advertises is taken. Otherwise it changes nothing.
#[must_use]
pub fn listens_to(config: &AgentConfig, sender: &AgentId) -> bool {
    Acceptance::of(config, sender).is_some()
}

/// What is taken of all that was told and learned, in a fixed order.
#[must_use]
pub fn taken<'a>(config: &'a AgentConfig, dynamic: &'a Dynamic) -> Vec<Taken<'a>> {
    let mut taken = Vec::new();
    let is_down = |a: &AgentId| dynamic.down.contains(a);
    for (teller, routes) in &dynamic.told {
        let Some(how) = Acceptance::of(config, teller) else {
            continue;
        };
        for route in routes.iter().filter(|r| how.accepts(config, r)) {
            let via = route.via.as_ref().unwrap_or(teller);
            taken.push(Taken {
                route,
                from: Some(teller.clone()),
                via: via.clone(),
                kind: how.kind,
                connection: how.connection,
                down: is_down(teller) || is_down(via),
            });
        }
    }
    for (neighbour, routes) in &dynamic.learned {
        let Some((how, via)) = Acceptance::of_neighbour(config, neighbour) else {
            continue;
        };
        for route in routes.iter().filter(|r| how.accepts(config, r)) {
            taken.push(Taken {
                route,
                from: how.connection.map(|_| via.clone()),
                down: is_down(&via),
                via: via.clone(),
                kind: how.kind,
                connection: how.connection,
            });
        }
    }
    taken
}

/// What is taken of one teller.
struct Acceptance<'a> {
    kind: GatewayKind,
    connection: Option<&'a GatewayConnection>,
    /// A path that has this ASN has been here before (G22).
    own_asn: Option<u32>,
    /// Nothing inside these (G22): they are nobody else's to speak for.
    own: &'a [IpNet],
    /// Where routes may lead besides the teller itself.
    vias: Vec<&'a AgentId>,
}

impl<'a> Acceptance<'a> {
    fn of(config: &'a AgentConfig, teller: &AgentId) -> Option<Self> {
        let link = config.links.binary_search_by(|l| l.peer.cmp(teller)).ok();
        let link = &config.links[link?];
        let from = |kind, own_asn, own: &'a [IpNet]| Self {
            kind,
            connection: None,
            own_asn,
            own,
            vias: Vec::new(),
        };
        match (&config.role, &link.relation) {
            (Role::Vm { gateways, .. }, Relation::Gateway {}) => {
                let used = gateways
                    .iter()
                    .find(|g| g.instances.iter().any(|i| i.agent == *teller))?;
                Some(Self {
                    vias: used.edges.iter().map(|e| &e.agent).collect(),
                    ..from(used.kind, None, &config.address_space)
                })
            }
            (
                Role::VpnGateway {
                    connections,
                    asn,
                    own_side,
                    ..
                },
                Relation::Connection { connection },
            ) => {
                let connection = connections.iter().find(|c| c.exchange && c.connection == *connection)?;
                Some(Self {
                    connection: Some(connection),
                    ..from(GatewayKind::Vpn, Some(*asn), own_side)
                })
            }
            // Seen, and used for nothing (G20, G21).
            (Role::VpnGateway { own_side, .. }, Relation::OtherGateway {}) => Some(Self {
                vias: Vec::new(),
                ..from(GatewayKind::ExpressRoute, None, own_side)
            }),
            (Role::ExpressRouteGateway { own_side, .. }, Relation::Edge { .. }) => {
                Some(from(GatewayKind::ExpressRoute, None, own_side))
            }
            _ => None,
        }
    }

    /// And where packets go: to the device of a site, or, at an edge, down its line.
    fn of_neighbour(config: &'a AgentConfig, neighbour: &ResourceId) -> Option<(Self, AgentId)> {
        match &config.role {
            Role::VpnGateway {
                connections,
                asn,
                own_side,
                ..
            } => {
                let connection = connections
                    .iter()
                    .find(|c| c.site && c.exchange && c.connection == *neighbour)?;
                let how = Self {
                    kind: GatewayKind::Vpn,
                    connection: Some(connection),
                    own_asn: Some(*asn),
                    own: own_side,
                    vias: Vec::new(),
                };
                Some((how, AgentId::of_site(neighbour)))
            }
            Role::CircuitEdge { circuit, bgp, .. } if circuit == neighbour => {
                let how = Self {
                    kind: GatewayKind::ExpressRoute,
                    connection: None,
                    own_asn: Some(bgp.asn),
                    own: &[],
                    vias: Vec::new(),
                };
                Some((how, config.agent.clone()))
            }
            Role::Vm { .. } | Role::ExpressRouteGateway { .. } | Role::CircuitEdge { .. } => None,
        }
    }

    fn accepts(&self, config: &AgentConfig, route: &Route) -> bool {
        let networks = match &config.role {
            Role::CircuitEdge { networks, .. } => networks.as_slice(),
            Role::Vm { .. } | Role::VpnGateway { .. } | Role::ExpressRouteGateway { .. } => &[],
        };
        let mut taken = self.own.iter().chain(networks.iter().flat_map(|n| &n.prefixes));
        // G22: neither a VNet's range nor a part of it; more than it is fine.
        let inside = taken.any(|own| own.contains(&route.prefix));
        let loops = self.own_asn.is_some_and(|asn| route.as_path.contains(&asn));
        let leads = route.via.as_ref().is_none_or(|via| self.vias.contains(&via));
        // At the VPN gateway an edge is no next hop, and the routes over it are for show.
        let leads = leads || (self.kind == GatewayKind::ExpressRoute && matches!(config.role, Role::VpnGateway { .. }));
        !inside && !loops && leads
    }
}

/// Whether two prefixes have an address in common.
fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}
