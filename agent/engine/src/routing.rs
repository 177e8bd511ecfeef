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

mod accept;
mod pace;
mod select;
mod tell;
mod wire;

pub use accept::{LONGEST_PATH, MARTIANS, MOST_FROM_GATEWAY, Refusal, RefusedRoutes, refused};
pub use pace::Pace;
pub use select::{Offer, effective, settle};
pub use tell::{may_advertise, tables_to_tell, tell_neighbour, tell_peer};
pub use wire::{MAX_AS_PATH, MAX_ROUTES, Unreadable, decode, encode};

use accept::Acceptance;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tombolo_proto::config::{AgentConfig, GatewayConnection, GatewayKind, Role};
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
        for route in how.accepted(config, routes) {
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
        for route in how.accepted(config, routes) {
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
