//! Routes and sessions of gateways and circuits, in ARM's words (M7).
//!
//! Which sessions there should be is desired state; how they are is what agents last reported. What agents tell each other
//! inside their links follows from that by their own rules (see [`crate::moving`]).

mod circuit;
mod session;

pub(crate) use circuit::{circuit_routes, circuit_summary};
pub(crate) use session::bgp_peers;

use crate::compile::Compiler;
use crate::lookup::{behind, vnet_of};
use crate::moving::{Moving, Reports};
use crate::resource::{Binding, Connection, VirtualNetworkGateway};
use crate::topology::{Live, Topology};
use ipnet::IpNet;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_engine::routing::{self, routes_for_neighbour, routes_for_peer};
use tombolo_proto::config::{CircuitLink, GatewayKind, Relation};
use tombolo_proto::id::{AgentId, ResourceId};

/// E9: observed weights, by the kind of gateway that a route came by.
const fn weight(kind: GatewayKind) -> u32 {
    match kind {
        GatewayKind::Vpn => 32_768,
        GatewayKind::ExpressRoute => 32_769,
    }
}

/// `getLearnedRoutes`: the own VNet and those that use the gateway, and what its instances have taken of all that they were
/// told. None: no such gateway.
pub(crate) fn learned(topology: &Topology, live: &Live, gateway: &ResourceId) -> Option<Vec<Value>> {
    let gateway = topology.gateways.get(gateway)?;
    let local = gateway.peering_address(0).to_string();
    let mut all = Vec::new();
    for net in behind(topology, gateway) {
        all.push(route(
            &local,
            net,
            [&local, &local],
            "Network",
            &[],
            weight(GatewayKind::Vpn),
        ));
    }
    let moving = moving(topology, live);
    for (number, agent) in instances(topology, gateway) {
        let local = gateway.peering_address(number).to_string();
        let Some(config) = moving.config(&agent) else { continue };
        let dynamic = moving.dynamic(config);
        for accepted in routing::accept_routes(config, &dynamic).iter().filter(|t| !t.down) {
            let address = |agent: &AgentId| address_of(topology, gateway, agent);
            let source = accepted.from.as_ref().map_or_else(String::new, address);
            let origin = match &accepted.from {
                Some(from) if is_beside(topology, gateway, from) => "IBgp",
                _ => "EBgp",
            };
            let (hop, path) = (address(&accepted.via), &accepted.route.as_path);
            let prefix = accepted.route.prefix;
            all.push(route(
                &local,
                prefix,
                [&hop, &source],
                origin,
                path,
                weight(accepted.kind),
            ));
        }
    }
    Some(all)
}

/// `getAdvertisedRoutes` to a peer, by its address. None: no such gateway.
pub(crate) fn advertised(topology: &Topology, live: &Live, gateway: &ResourceId, peer: IpAddr) -> Option<Vec<Value>> {
    let gateway = topology.gateways.get(gateway)?;
    let moving = moving(topology, live);
    let mut all = Vec::new();
    for (number, agent) in instances(topology, gateway) {
        let local = gateway.peering_address(number).to_string();
        let Some(config) = moving.config(&agent) else { continue };
        let dynamic = moving.dynamic(config);
        let mut told: Vec<(IpNet, Vec<u32>)> = Vec::new();
        for link in &config.links {
            if address_of(topology, gateway, &link.peer) != peer.to_string() {
                continue;
            }
            match &link.relation {
                Relation::Site { connection } => {
                    let routes = routes_for_neighbour(config, &dynamic, connection);
                    // The own ASN comes into the path on the way.
                    let seen = routes
                        .into_iter()
                        .map(|r| (r.prefix, [&[gateway.asn], &*r.as_path].concat()));
                    told.extend(seen);
                }
                // The own side needs no telling inside links: both ends have it from the controller.
                Relation::Connection { connection } if exchanges(topology, connection) => {
                    told.extend(own_side(topology, gateway));
                    told.extend(
                        routes_for_peer(config, &dynamic, link)
                            .into_iter()
                            .map(|r| (r.prefix, r.as_path)),
                    );
                }
                Relation::Edge { .. } => told.extend(own_side(topology, gateway)),
                _ => {}
            }
        }
        let lines = told.into_iter();
        all.extend(lines.map(|(net, path)| route(&local, net, [&local, &local], "Igp", &path, 0)));
    }
    Some(all)
}

fn own_side(topology: &Topology, gateway: &VirtualNetworkGateway) -> impl Iterator<Item = (IpNet, Vec<u32>)> {
    let asn = gateway.asn;
    behind(topology, gateway).into_iter().map(move |net| (net, vec![asn]))
}

/// Routes are exchanged over a connection between two gateways: BGP is on at both ends, with unlike ASNs (G4).
fn exchanges(topology: &Topology, connection: &ResourceId) -> bool {
    let Some(own) = topology.connections.get(connection) else {
        return false;
    };
    let asn = |gateway: &ResourceId| topology.gateways.get(gateway).map(|g| g.asn);
    let back = |c: &&Arc<Connection>| c.gateway1 == own.gateway2 && c.gateway2 == own.gateway1;
    let back = topology.connections.values().find(back);
    own.enable_bgp && back.is_some_and(|b| b.enable_bgp) && asn(&own.gateway1) != asn(&own.gateway2)
}

fn moving(topology: &Topology, live: &Live) -> Moving {
    Moving::new(topology, &Compiler::new(topology), Reports::of(live))
}

/// `hops`: the next hop, and who told.
fn route(local: &str, network: IpNet, hops: [&str; 2], origin: &str, path: &[u32], weight: u32) -> Value {
    let path: Vec<String> = path.iter().map(ToString::to_string).collect();
    json!({
        "localAddress": local,
        "network": network,
        "nextHop": hops[0],
        "sourcePeer": hops[1],
        "origin": origin,
        "asPath": path.join("-"),
        "weight": weight,
    })
}

/// The address by which ARM's words know a neighbour of a gateway; its name if there is none.
fn address_of(topology: &Topology, gateway: &VirtualNetworkGateway, neighbour: &AgentId) -> String {
    let found = match topology.agents.get(neighbour).map(|a| &a.binding) {
        Some(Binding::Gateway {
            gateway: far,
            ip_configuration,
        }) => topology.gateways.get(far).and_then(|far| {
            let is = |name: &str| name.eq_ignore_ascii_case(ip_configuration);
            let number = far.ip_configurations.iter().position(|c| is(&c.name))?;
            Some(far.peering_address(number))
        }),
        Some(Binding::Edge { circuit, link }) => {
            // Of this gateway, or of the VNet's other one, which tells of it.
            let beside = |c: &&Arc<Connection>| {
                let theirs = topology.gateways.get(&c.gateway1);
                c.gateway2 == *circuit && theirs.is_some_and(|g| vnet_of(g) == vnet_of(gateway))
            };
            let connection = topology.connections.values().find(beside);
            let index = usize::from(*link == CircuitLink::Secondary);
            connection.and_then(|c| c.tunnel_addresses.get(index).copied())
        }
        Some(Binding::Vm { .. }) | None => {
            let mut all = topology.connections.values();
            let own = |c: &&Arc<Connection>| {
                c.gateway1 == gateway.envelope.id && AgentId::of_site(&c.envelope.id) == *neighbour
            };
            let site = all.find(own).and_then(|c| topology.local_gateways.get(&c.gateway2));
            site.and_then(|s| s.bgp.map(|b| b.address).or(s.address))
        }
    };
    found.map_or_else(|| neighbour.to_string(), |address| address.to_string())
}

/// It is an instance of the other gateway of the same VNet (G2).
fn is_beside(topology: &Topology, gateway: &VirtualNetworkGateway, neighbour: &AgentId) -> bool {
    let binding = topology.agents.get(neighbour).map(|a| &a.binding);
    let Some(Binding::Gateway { gateway: far, .. }) = binding else {
        return false;
    };
    let far = topology.gateways.get(far);
    far.is_some_and(|far| far.envelope.id != gateway.envelope.id && vnet_of(far) == vnet_of(gateway))
}

/// The agents of a gateway's instances, with the instances' numbers.
fn instances(topology: &Topology, gateway: &VirtualNetworkGateway) -> Vec<(usize, AgentId)> {
    let configurations = gateway.ip_configurations.iter().enumerate();
    let agent = |name: &str| {
        let serves = |binding: &Binding| {
            matches!(binding, Binding::Gateway { gateway: g, ip_configuration }
                if *g == gateway.envelope.id && ip_configuration.eq_ignore_ascii_case(name))
        };
        let mut agents = topology.agents.values().filter(|a| !a.revoked);
        agents.find(|a| serves(&a.binding)).map(|a| a.id.clone())
    };
    configurations
        .filter_map(|(number, c)| Some((number, agent(&c.name)?)))
        .collect()
}

/// The agent of a circuit's edge.
fn edge(topology: &Topology, circuit: &ResourceId, link: CircuitLink) -> Option<AgentId> {
    let serves =
        |binding: &Binding| matches!(binding, Binding::Edge { circuit: c, link: l } if c == circuit && *l == link);
    let mut agents = topology.agents.values().filter(|a| !a.revoked);
    agents.find(|a| serves(&a.binding)).map(|a| a.id.clone())
}

/// Seconds as ARM writes time spans: `1.02:03:04`.
fn duration(seconds: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "whole seconds; what is no time saturates"
    )]
    let seconds = seconds as u64;
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let clock = format!("{:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60);
    if days > 0 { format!("{days}.{clock}") } else { clock }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_written_as_arm_does() {
        assert_eq!(duration(0.9), "00:00:00");
        assert_eq!(duration(3_723.0), "01:02:03");
        assert_eq!(duration(90_123.0), "1.01:02:03");
        assert_eq!(duration(-1.0), "00:00:00");
    }
}
