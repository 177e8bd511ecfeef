//! Export: the routes that an agent advertises to peers and BGP neighbours. Each rule that forbids the advertisement of
//! a route is applied in one place of this file.

use super::{AcceptedRoute, FEW_ROUTES, MAX_ROUTES, RoutingState, accept_routes, encode};
use crate::tables::LinkIndex;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::sync::Arc;
use tombolo_proto::config::{AgentConfig, CircuitNetwork, GatewayConnection, GatewayKind, Link, Relation, Role};
use tombolo_proto::id::ResourceId;
use tombolo_proto::net::overlap;
use tombolo_proto::route::{Route, RouteOrigin};

/// The encoded tables that an agent advertises, in the order of links: one for each link whose peer accepts routes from
/// this agent. A table has at most [`MAX_ROUTES`] routes, and at most [`FEW_ROUTES`] without [`Link::many_routes`]: the
/// first ones in ascending order; further ones are left out.
/// There is no table for third-party devices and for links that are not `always_on`. A table may be empty, which
/// withdraws all routes.
#[must_use]
pub fn route_advertisements(config: &AgentConfig, state: &RoutingState) -> Vec<(LinkIndex, Arc<[u8]>)> {
    let mut tables = Vec::new();
    // All peers that use the gateway receive the same table, or its first routes. Each of the two is encoded only once,
    // because there may be thousands of such peers.
    let mut to_clients: [Option<Arc<[u8]>>; 2] = [None, None];
    for (position, link) in config.links.iter().enumerate() {
        let client = matches!(link.relation, Relation::GatewayClient {});
        let advertises = match (&config.role, &link.relation) {
            (Role::VpnGateway { .. }, Relation::GatewayClient {} | Relation::Connection { .. })
            | (Role::ExpressRouteGateway { .. }, Relation::GatewayClient {} | Relation::OtherGateway {})
            | (Role::CircuitEdge { .. }, Relation::CircuitGateway { .. }) => !link.third_party && link.always_on,
            _ => false,
        };
        let (true, Ok(position)) = (advertises, u32::try_from(position)) else {
            continue;
        };
        let of_clients = &mut to_clients[usize::from(link.many_routes)];
        let table = match of_clients {
            Some(table) if client => table.clone(),
            _ => {
                let mut routes = routes_for_peer(config, state, link);
                // The peer refuses a longer table as a whole.
                routes.truncate(if link.many_routes { MAX_ROUTES } else { FEW_ROUTES });
                encode(&routes).into()
            }
        };
        if client {
            *of_clients = Some(table.clone());
        }
        tables.push((LinkIndex(position), table));
    }
    tables
}

/// Whether an agent with this role accepts route advertisements from the peer of `link`: the receiver's counterpart of
/// [`route_advertisements`]. Always false for a third-party device. The import policy then decides about each route.
#[must_use]
pub fn may_advertise(role: &Role, link: &Link) -> bool {
    let sender = match role {
        Role::Vm { .. } => matches!(link.relation, Relation::Gateway {}),
        Role::VpnGateway { .. } => matches!(link.relation, Relation::Connection { .. } | Relation::OtherGateway {}),
        Role::ExpressRouteGateway { .. } => matches!(link.relation, Relation::Edge { .. }),
        Role::CircuitEdge { .. } => false,
    };
    sender && !link.third_party
}

/// The routes that an agent advertises to the peer of `link`, sorted and without duplicates. `link` must be one of
/// `config`. Empty if a peer with this relation gets none. This function does not check the conditions of
/// [`route_advertisements`] that the peer is no third-party device and that the link is `always_on`. Routes via peers
/// that are down are left out. Pure: agents and the controller compute the same. The number of routes is not limited
/// here.
#[must_use]
pub fn routes_for_peer(config: &AgentConfig, state: &RoutingState, link: &Link) -> Vec<Route> {
    let mut routes = match (&config.role, &link.relation) {
        (Role::VpnGateway { .. }, Relation::GatewayClient {}) => routes_for_clients(config, state),
        (
            Role::VpnGateway {
                connections,
                asn,
                local_prefixes,
                ..
            },
            Relation::Connection { connection },
        ) => match connections.iter().find(|c| c.connection == *connection && c.exchange) {
            Some(to) => {
                let mut routes = reachable_via(config, state, to, local_prefixes);
                for route in &mut routes {
                    route.as_path.insert(0, *asn);
                }
                routes
            }
            None => Vec::new(),
        },
        // E5, E8: an ExpressRoute gateway advertises no routes of VPN connections. It needs no filter for that: it
        // knows no such routes, because the VPN gateway advertises nothing to it.
        (Role::ExpressRouteGateway { .. }, Relation::GatewayClient {} | Relation::OtherGateway {}) => {
            circuit_routes(config, state)
        }
        (
            Role::CircuitEdge {
                networks,
                vnet_to_vnet,
                bgp,
                ..
            },
            Relation::CircuitGateway { connection },
        ) => match networks.iter().find(|n| n.connection == *connection) {
            Some(to) => routes_for_circuit_gateway(config, state, networks, *vnet_to_vnet, bgp.asn, to),
            None => Vec::new(),
        },
        _ => Vec::new(),
    };
    routes.sort();
    routes.dedup();
    routes
}

/// The routes that an agent announces to a BGP neighbour, sorted, one for each prefix. `neighbour` is the
/// [`id`](tombolo_proto::config::Neighbour::id) of the neighbour. At a VPN gateway this is a connection; the result is
/// empty if the gateway has no such connection, or exchanges no routes over it. At a circuit edge all neighbours get
/// the same routes, so `neighbour` is ignored. Empty for other roles. The AS paths lack the agent's own ASN, which the
/// BGP speaker adds. Routes via peers that are down are left out.
#[must_use]
pub fn routes_for_neighbour(config: &AgentConfig, state: &RoutingState, neighbour: &ResourceId) -> Vec<Route> {
    let mut routes = match &config.role {
        Role::VpnGateway {
            connections,
            local_prefixes,
            ..
        } => match connections.iter().find(|c| c.connection == *neighbour && c.exchange) {
            Some(to) => {
                // G18: the prefixes of the VNet, and of the spokes that use this gateway.
                let own = local_prefixes.iter().map(|p| vnet(*p, Vec::new()));
                own.chain(reachable_via(config, state, to, local_prefixes)).collect()
            }
            None => Vec::new(),
        },
        // E6: the prefixes of all linked VNets. The ASNs of the VNets' gateways are left out, because the customer sees
        // only the edge's ASN.
        Role::CircuitEdge { networks, .. } => {
            let reached = networks.iter().filter(|n| is_reached(state, n));
            reached
                .flat_map(|n| &n.prefixes)
                .map(|p| vnet(*p, Vec::new()))
                .collect()
        }
        Role::Vm { .. } | Role::ExpressRouteGateway { .. } => Vec::new(),
    };
    routes.sort();
    routes.dedup_by(|later, earlier| later.prefix == earlier.prefix);
    routes
}

/// R5: the best learned VPN route of each prefix, for VMs of the gateway's VNet and of spokes that use the gateway.
fn routes_for_clients(config: &AgentConfig, state: &RoutingState) -> Vec<Route> {
    let accepted = accept_routes(config, state);
    let mut best: BTreeMap<IpNet, &AcceptedRoute<'_>> = BTreeMap::new();
    for t in accepted.iter().filter(|t| t.kind == GatewayKind::Vpn && !t.down) {
        let slot = best.entry(t.route.prefix).or_insert(t);
        if preference(t) < preference(slot) {
            *slot = t;
        }
    }
    let advertised = |t: &AcceptedRoute<'_>| Route {
        via: None,
        weight: weight(t),
        ..t.route.clone()
    };
    best.into_values().map(advertised).collect()
}

fn weight(t: &AcceptedRoute<'_>) -> u32 {
    t.connection.map_or(t.route.weight, |c| c.weight)
}

/// Sort key, best route first: the higher weight, then the shorter AS path. Between equal routes the names of the
/// connection and the next hop decide, so that all agents choose the same route.
fn preference<'a>(t: &'a AcceptedRoute<'_>) -> (std::cmp::Reverse<u32>, usize, Option<&'a ResourceId>, &'a str) {
    (
        std::cmp::Reverse(weight(t)),
        t.route.as_path.len(),
        t.connection.map(|c| &c.connection),
        t.via.as_str(),
    )
}

/// The routes via other connections than `to` (G18, G19): all routes of connections with route exchange, and the
/// configured routes of sites without BGP. Default routes are left out, and so are prefixes that overlap the local
/// ones, routes learned from a circuit (G20), and routes whose AS path has the ASN of `to` (G22). The result has one
/// route for each prefix.
fn reachable_via(
    config: &AgentConfig,
    state: &RoutingState,
    to: &GatewayConnection,
    local_prefixes: &[IpNet],
) -> Vec<Route> {
    let Role::VpnGateway {
        connections,
        transit,
        bgp,
        ..
    } = &config.role
    else {
        return Vec::new();
    };
    // The address of a site's device is not advertised: it is in `transit` only so that the packets of the BGP session
    // reach the device.
    let neighbours = bgp.iter().flat_map(|b| &b.neighbours);
    let devices: Vec<IpNet> = neighbours.map(|n| IpNet::from(n.address)).collect();
    let mut routes = Vec::new();
    for entry in transit.iter().filter(|t| !devices.contains(&t.prefix)) {
        let by = connections.iter().find(|c| c.connection == entry.connection);
        let is_up = entry.via.iter().any(|end| !state.down.contains(end));
        let Some(by) = by.filter(|by| by.is_advertised() && by.connection != to.connection && is_up) else {
            continue;
        };
        routes.push(Route {
            prefix: entry.prefix,
            via: None,
            // A site without BGP has no ASN. So the AS path of its route is empty, as if this gateway originated the
            // route.
            as_path: if by.exchange { vec![by.asn] } else { Vec::new() },
            weight: 0,
            origin: if by.site { RouteOrigin::Site } else { RouteOrigin::Vnet },
        });
    }
    let accepted = accept_routes(config, state);
    let forwarded = accepted.iter().filter(|t| {
        // G20: routes of circuits are not passed on to connections.
        let learned_here = t.kind == GatewayKind::Vpn;
        let elsewhere = t.connection.is_some_and(|c| c.connection != to.connection);
        learned_here && elsewhere && !t.down
    });
    routes.extend(forwarded.map(|t| Route {
        via: None,
        weight: 0,
        ..t.route.clone()
    }));
    routes.retain(|r| {
        let default = r.prefix.prefix_len() == 0;
        let overlaps = local_prefixes.iter().any(|own| overlap(own, &r.prefix));
        !default && !overlaps && !r.as_path.contains(&to.asn)
    });
    // Of several routes for one prefix, the one with the shortest AS path is kept.
    routes.sort_by(|a, b| (a.prefix, a.as_path.len(), a).cmp(&(b.prefix, b.as_path.len(), b)));
    routes.dedup_by(|later, earlier| later.prefix == earlier.prefix);
    routes
}

/// The accepted routes of circuits whose edge is up. The ExpressRoute gateway advertises them to VMs, which send
/// packets directly to the edges (T4), and to the VPN gateway, which only displays them.
fn circuit_routes(config: &AgentConfig, state: &RoutingState) -> Vec<Route> {
    let Role::ExpressRouteGateway { circuits, .. } = &config.role else {
        return Vec::new();
    };
    let accepted = accept_routes(config, state);
    let up = accepted.iter().filter(|t| !t.down);
    up.filter_map(|t| {
        let circuit = circuits.iter().find(|c| c.edges.iter().any(|e| e.agent == t.via))?;
        Some(Route {
            via: Some(t.via.clone()),
            weight: circuit.weight,
            ..t.route.clone()
        })
    })
    .collect()
}

/// E6: the customer's routes, for the gateways of all linked VNets; and the prefixes of other linked VNets, if linked
/// VNets may reach each other.
fn routes_for_circuit_gateway(
    config: &AgentConfig,
    state: &RoutingState,
    networks: &[CircuitNetwork],
    vnet_to_vnet: bool,
    asn: u32,
    to: &CircuitNetwork,
) -> Vec<Route> {
    let mut routes: Vec<Route> = accept_routes(config, state)
        .into_iter()
        .map(|t| {
            let mut route = t.route.clone();
            route.as_path.insert(0, asn);
            Route {
                via: None,
                weight: 0,
                origin: RouteOrigin::Site,
                ..route
            }
        })
        .collect();
    let others = networks.iter().filter(|n| n.connection != to.connection);
    for other in others.filter(|n| vnet_to_vnet && is_reached(state, n)) {
        routes.extend(other.prefixes.iter().map(|p| vnet(*p, vec![asn, other.asn])));
    }
    routes.retain(|r| !to.prefixes.iter().any(|own| own.contains(&r.prefix)));
    routes
}

/// Whether at least one instance of the gateway of a linked VNet is up.
fn is_reached(state: &RoutingState, network: &CircuitNetwork) -> bool {
    network.gateways.iter().any(|g| !state.down.contains(g))
}

const fn vnet(prefix: IpNet, as_path: Vec<u32>) -> Route {
    Route {
        prefix,
        via: None,
        as_path,
        weight: 0,
        origin: RouteOrigin::Vnet,
    }
}
