//! Learned routes (D11): which routes an agent accepts, uses and advertises.
//!
//! VPN gateways, ExpressRoute gateways and circuit edges advertise routes to other agents inside their links, if their
//! configurations allow it:
//!
//! ```text
//! customer edge ─BGP─▶ circuit edge ─▶ ExpressRoute gateway ─▶ VMs of its VNet and its spokes, which send to the edge
//!                                                  └─────────▶ VPN gateway of the same VNet, which passes none on (G20)
//! site's device ─BGP─▶ VPN gateway ─▶ VMs of its VNet and its spokes, which send to the gateway
//!                           └───────▶ VPN gateways that it has a connection with, and its other sites (G18, G19)
//! ```
//! All functions are pure: their results depend on the configuration and the [`RoutingState`] alone. Agents call them
//! to route packets, and the controller calls them to show the routes that agents use.
//!
//! | Module | Contents |
//! |---|---|
//! | `accept` | Import: which routes of others are accepted, and why others are refused |
//! | `select` | Selection: the effective routes of a subnet |
//! | `export` | Export: which routes go to which peer and BGP neighbour |
//! | `encoding` | The bytes of an advertised table |
//! | `pace` | Rate limit for changes of one sender |

mod accept;
mod encoding;
mod export;
mod pace;
mod select;

pub use accept::{MARTIANS, MAX_AS_PATH, MAX_ROUTES_FROM_GATEWAY, Refusal, RefusedRoutes, refused};
pub use encoding::{DecodeError, FEW_ROUTES, MAX_ROUTES, decode, encode};
pub use export::{may_advertise, route_advertisements, routes_for_neighbour, routes_for_peer};
pub use pace::Pace;
pub use select::{Candidate, effective, select_best};

use accept::ImportPolicy;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_proto::config::{AgentConfig, GatewayConnection, GatewayKind, Role};
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::route::Route;

/// The state that agents learn by themselves (D11); no configuration contains it. The state is unfiltered input: each
/// function of this module that uses it checks it against the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RoutingState {
    /// Peers that are down: other agents, and devices of sites. A route with several next hops uses one that is up.
    pub down: BTreeSet<AgentId>,
    /// Routes that other agents advertised inside their links, by sender: the last table of each sender, complete and
    /// unfiltered.
    pub received: BTreeMap<AgentId, Arc<Vec<Route>>>,
    /// Routes that BGP neighbours announce, unfiltered, by [`Neighbour::id`](tombolo_proto::config::Neighbour::id).
    pub learned: BTreeMap<ResourceId, Arc<Vec<Route>>>,
    /// Back ends of load balancers that do not answer their probe, by the probe and the back end's address (L6). Those
    /// of which nothing is known count as up.
    pub unhealthy: BTreeSet<(ResourceId, IpAddr)>,
    /// Agents that own back ends of load balancers and are gone, as [`OwnerWatch::gone`](crate::owners::OwnerWatch::gone)
    /// returns them (D36).
    pub gone: BTreeMap<AgentId, u32>,
}

impl RoutingState {
    /// Removes the health of back ends that are not in `config`, the state of agents with which `config` has no link, and of BGP neighbours that are not in `config`. The
    /// state of all other senders stays, even if the import policy refuses their routes. A second call with the same
    /// configuration changes nothing.
    pub fn keep(&mut self, config: &AgentConfig) {
        let linked = |a: &AgentId| config.links.binary_search_by(|l| l.peer.cmp(a)).is_ok();
        self.down.retain(|a| linked(a));
        self.gone.retain(|a, _| linked(a));
        self.received.retain(|a, _| linked(a));
        let speaker = match &config.role {
            Role::VpnGateway { bgp, .. } => bgp.as_ref(),
            Role::CircuitEdge { bgp, .. } => Some(bgp),
            Role::Vm { .. } | Role::ExpressRouteGateway { .. } => None,
        };
        let neighbours = speaker.map(|s| s.neighbours.as_slice()).unwrap_or_default();
        self.learned.retain(|id, _| neighbours.iter().any(|n| n.id == *id));
        self.unhealthy.retain(|(probe, address)| {
            let mut rules = config.front_ends.iter().flat_map(|front_end| &front_end.rules);
            rules.any(|r| r.probe.as_ref().is_some_and(|p| p.id == *probe) && r.back_ends.contains(address))
        });
    }
}

/// A route that the import policy accepts, with its next hop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptedRoute<'a> {
    /// The route as it was received.
    pub route: &'a Route,
    /// The agent or site device that sent the route. `None`: this agent is an edge, and the customer announced the
    /// route.
    pub from: Option<AgentId>,
    /// The agent or site device to which packets are sent; for routes that the customer of an edge announced, the edge
    /// itself. This agent may have no link with that agent or device.
    pub via: AgentId,
    /// The kind of the gateway by which the route was learned.
    pub kind: GatewayKind,
    /// At a VPN gateway: the connection over which the route was received. `None` for other roles, and for routes of
    /// the VNet's ExpressRoute gateway.
    pub connection: Option<&'a GatewayConnection>,
    /// Whether the sender or the next hop is down. Even then the route stays accepted, but other routes for its prefix
    /// are preferred.
    pub down: bool,
}

/// Whether the import policy may accept routes that `sender`, the peer of a link, advertises. If not, all of its
/// advertisements are ignored. False for an agent with which `config` has no link.
#[must_use]
pub fn accepts_routes_from(config: &AgentConfig, sender: &AgentId) -> bool {
    ImportPolicy::of(config, sender).is_some()
}

/// Applies the import policy to all routes in `state`, and returns the accepted routes: first the routes of agents,
/// then those of BGP neighbours. In both groups the senders are ordered by name, and the routes of one sender are in
/// the order of its table. Several routes may have the same prefix. [`refused`] tells how many routes were not
/// accepted, by reason.
#[must_use]
pub fn accept_routes<'a>(config: &'a AgentConfig, state: &'a RoutingState) -> Vec<AcceptedRoute<'a>> {
    let mut accepted = Vec::new();
    let is_down = |a: &AgentId| state.down.contains(a);
    for (sender, routes) in &state.received {
        let Some(policy) = ImportPolicy::of(config, sender) else {
            continue;
        };
        for route in policy.accepted(config, routes) {
            let via = route.via.as_ref().unwrap_or(sender);
            accepted.push(AcceptedRoute {
                route,
                from: Some(sender.clone()),
                via: via.clone(),
                kind: policy.kind,
                connection: policy.connection,
                down: is_down(sender) || is_down(via),
            });
        }
    }
    for (neighbour, routes) in &state.learned {
        let Some((policy, via)) = ImportPolicy::of_neighbour(config, neighbour) else {
            continue;
        };
        for route in policy.accepted(config, routes) {
            accepted.push(AcceptedRoute {
                route,
                from: policy.connection.map(|_| via.clone()),
                down: is_down(&via),
                via: via.clone(),
                kind: policy.kind,
                connection: policy.connection,
            });
        }
    }
    accepted
}
