//! Who is told of what. The rules of what must not leak stand here, one line each.

use super::{Dynamic, MAX_ROUTES, Taken, encode, taken};
use crate::tables::LinkIndex;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::sync::Arc;
use tombolo_proto::config::{AgentConfig, CircuitNetwork, GatewayConnection, GatewayKind, Link, Relation, Role};
use tombolo_proto::id::ResourceId;
use tombolo_proto::net::overlap;
use tombolo_proto::route::{Route, RouteOrigin};

/// The tables that an agent tells, as bytes, for every link whose other end is to hear one, be it empty.
#[must_use]
pub fn tables_to_tell(config: &AgentConfig, dynamic: &Dynamic) -> Vec<(LinkIndex, Arc<[u8]>)> {
    let mut tables = Vec::new();
    // Clients are many, and told the same.
    let mut to_clients: Option<Arc<[u8]>> = None;
    for (position, link) in config.links.iter().enumerate() {
        let client = matches!(link.relation, Relation::GatewayClient {});
        let tells = match (&config.role, &link.relation) {
            (Role::VpnGateway { .. }, Relation::GatewayClient {} | Relation::Connection { .. })
            | (Role::ExpressRouteGateway { .. }, Relation::GatewayClient {} | Relation::OtherGateway {})
            | (Role::CircuitEdge { .. }, Relation::CircuitGateway { .. }) => !link.stock && link.always_on,
            _ => false,
        };
        let (true, Ok(position)) = (tells, u32::try_from(position)) else {
            continue;
        };
        let table = match &to_clients {
            Some(table) if client => table.clone(),
            _ => {
                let mut routes = tell_peer(config, dynamic, link);
                // More would not be taken at all.
                routes.truncate(MAX_ROUTES);
                encode(&routes).into()
            }
        };
        if client {
            to_clients = Some(table.clone());
        }
        tables.push((LinkIndex(position), table));
    }
    tables
}

/// Whether the other end of a link may advertise routes to an agent with this role: the other side of [`tables_to_tell`].
#[must_use]
pub fn may_advertise(role: &Role, link: &Link) -> bool {
    let sender = match role {
        Role::Vm { .. } => matches!(link.relation, Relation::Gateway {}),
        Role::VpnGateway { .. } => matches!(link.relation, Relation::Connection { .. } | Relation::OtherGateway {}),
        Role::ExpressRouteGateway { .. } => matches!(link.relation, Relation::Edge { .. }),
        Role::CircuitEdge { .. } => false,
    };
    sender && !link.stock
}

/// What an agent tells the other end of a link, ordered. A pure function: the same at both ends of a look.
#[must_use]
pub fn tell_peer(config: &AgentConfig, dynamic: &Dynamic, link: &Link) -> Vec<Route> {
    let mut routes = match (&config.role, &link.relation) {
        (Role::VpnGateway { .. }, Relation::GatewayClient {}) => to_client(config, dynamic),
        (
            Role::VpnGateway {
                connections,
                asn,
                own_side,
                ..
            },
            Relation::Connection { connection },
        ) => match connections.iter().find(|c| c.connection == *connection && c.exchange) {
            Some(to) => {
                let mut routes = beyond(config, dynamic, to, own_side);
                for route in &mut routes {
                    route.as_path.insert(0, *asn);
                }
                routes
            }
            None => Vec::new(),
        },
        // E5, E8: the ExpressRoute gateway hears nothing from the VPN gateway.
        (Role::ExpressRouteGateway { .. }, Relation::GatewayClient {} | Relation::OtherGateway {}) => {
            over_circuits(config, dynamic)
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
            Some(to) => through_circuit(config, dynamic, networks, *vnet_to_vnet, bgp.asn, to),
            None => Vec::new(),
        },
        _ => Vec::new(),
    };
    routes.sort();
    routes.dedup();
    routes
}

/// What an agent announces to a BGP neighbour, ordered; its own ASN is not in the paths.
#[must_use]
pub fn tell_neighbour(config: &AgentConfig, dynamic: &Dynamic, neighbour: &ResourceId) -> Vec<Route> {
    let mut routes = match &config.role {
        Role::VpnGateway {
            connections, own_side, ..
        } => match connections.iter().find(|c| c.connection == *neighbour && c.exchange) {
            Some(to) => {
                // G18: the own address space, and the spokes that use this gateway.
                let own = own_side.iter().map(|p| vnet(*p, Vec::new()));
                own.chain(beyond(config, dynamic, to, own_side)).collect()
            }
            None => Vec::new(),
        },
        // E6: the prefixes of all linked VNets; the customer sees the edge's ASN alone.
        Role::CircuitEdge { networks, .. } => {
            let reached = networks.iter().filter(|n| is_reached(dynamic, n));
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

/// R5: what the VPN gateway knows beyond its configuration, best of each prefix, to VMs of its VNet and its spokes.
fn to_client(config: &AgentConfig, dynamic: &Dynamic) -> Vec<Route> {
    let taken = taken(config, dynamic);
    let mut best: BTreeMap<IpNet, &Taken<'_>> = BTreeMap::new();
    for t in taken.iter().filter(|t| t.kind == GatewayKind::Vpn && !t.down) {
        let slot = best.entry(t.route.prefix).or_insert(t);
        if order(t) < order(slot) {
            *slot = t;
        }
    }
    let tell = |t: &Taken<'_>| Route {
        via: None,
        weight: weight(t),
        ..t.route.clone()
    };
    best.into_values().map(tell).collect()
}

fn weight(t: &Taken<'_>) -> u32 {
    t.connection.map_or(t.route.weight, |c| c.weight)
}

/// The best first: the higher weight, the shorter path, then any fixed order.
fn order<'a>(t: &'a Taken<'_>) -> (std::cmp::Reverse<u32>, usize, Option<&'a ResourceId>, &'a str) {
    (
        std::cmp::Reverse(weight(t)),
        t.route.as_path.len(),
        t.connection.map(|c| &c.connection),
        t.via.as_str(),
    )
}

/// G18, G19: what lies behind the other connections over which routes are exchanged, and the configured prefixes of sites
/// without BGP. Never the default route, nothing that overlaps the own side, nothing that was learned from a circuit (G20),
/// nothing that has been there (G22).
fn beyond(config: &AgentConfig, dynamic: &Dynamic, to: &GatewayConnection, own_side: &[IpNet]) -> Vec<Route> {
    let Role::VpnGateway {
        connections,
        transit,
        bgp,
        ..
    } = &config.role
    else {
        return Vec::new();
    };
    // The address of a site's device is for the session alone.
    let neighbours = bgp.iter().flat_map(|b| &b.neighbours);
    let devices: Vec<IpNet> = neighbours.map(|n| IpNet::from(n.address)).collect();
    let mut routes = Vec::new();
    for entry in transit.iter().filter(|t| !devices.contains(&t.prefix)) {
        let by = connections.iter().find(|c| c.connection == entry.connection);
        let answers = entry.via.iter().any(|end| !dynamic.down.contains(end));
        let Some(by) = by.filter(|by| by.is_advertised() && by.connection != to.connection && answers) else {
            continue;
        };
        routes.push(Route {
            prefix: entry.prefix,
            via: None,
            // A site without BGP has no AS here: the route originates at this gateway.
            as_path: if by.exchange { vec![by.asn] } else { Vec::new() },
            weight: 0,
            origin: if by.site { RouteOrigin::Site } else { RouteOrigin::Vnet },
        });
    }
    let taken = taken(config, dynamic);
    let passed_on = taken.iter().filter(|t| {
        // G20
        let learned_here = t.kind == GatewayKind::Vpn;
        let elsewhere = t.connection.is_some_and(|c| c.connection != to.connection);
        learned_here && elsewhere && !t.down
    });
    routes.extend(passed_on.map(|t| Route {
        via: None,
        weight: 0,
        ..t.route.clone()
    }));
    routes.retain(|r| {
        let default = r.prefix.prefix_len() == 0;
        let overlaps = own_side.iter().any(|own| overlap(own, &r.prefix));
        !default && !overlaps && !r.as_path.contains(&to.asn)
    });
    // One of each prefix: the shortest path.
    routes.sort_by(|a, b| (a.prefix, a.as_path.len(), a).cmp(&(b.prefix, b.as_path.len(), b)));
    routes.dedup_by(|later, earlier| later.prefix == earlier.prefix);
    routes
}

/// What lies behind circuits, to the VMs, which send to the edges themselves (T4); and to the VPN gateway, which shows it.
fn over_circuits(config: &AgentConfig, dynamic: &Dynamic) -> Vec<Route> {
    let Role::ExpressRouteGateway { circuits, .. } = &config.role else {
        return Vec::new();
    };
    let taken = taken(config, dynamic);
    let up = taken.iter().filter(|t| !t.down);
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

/// E6: the site's prefixes to all linked gateways; those of the other linked VNets where that is switched on.
fn through_circuit(
    config: &AgentConfig,
    dynamic: &Dynamic,
    networks: &[CircuitNetwork],
    vnet_to_vnet: bool,
    asn: u32,
    to: &CircuitNetwork,
) -> Vec<Route> {
    let mut routes: Vec<Route> = taken(config, dynamic)
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
    for other in others.filter(|n| vnet_to_vnet && is_reached(dynamic, n)) {
        routes.extend(other.prefixes.iter().map(|p| vnet(*p, vec![asn, other.asn])));
    }
    routes.retain(|r| !to.prefixes.iter().any(|own| own.contains(&r.prefix)));
    routes
}

/// An instance of the VNet's gateway answers.
fn is_reached(dynamic: &Dynamic, network: &CircuitNetwork) -> bool {
    network.gateways.iter().any(|g| !dynamic.down.contains(g))
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
