//! `getLearnedRoutes` and `getAdvertisedRoutes` of gateways.

use super::instances::{exchanges, instances, learned_routes};
use crate::lookup::{advertised_prefixes, vnet_of};
use crate::resource::{Binding, Connection, VirtualNetworkGateway};
use crate::topology::{AgentStatuses, Topology};
use ipnet::IpNet;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_engine::routing::{self, routes_for_neighbour, routes_for_peer};
use tombolo_proto::config::{CircuitLink, GatewayKind, Relation};
use tombolo_proto::id::{AgentId, ResourceId};

/// The weight that Azure shows for a route, by the type of the gateway from which the route was learned (E9: values
/// observed in Azure).
const fn weight(kind: GatewayKind) -> u32 {
    match kind {
        GatewayKind::Vpn => 32_768,
        GatewayKind::ExpressRoute => 32_769,
    }
}

/// `getLearnedRoutes`: the prefixes of the gateway's VNet and of the spokes that use the gateway, and the learned
/// routes of each instance, except routes from neighbours that do not answer. `None`: the gateway does not exist.
pub(crate) fn learned(topology: &Topology, statuses: &AgentStatuses, gateway: &ResourceId) -> Option<Vec<Value>> {
    let gateway = topology.gateways.get(gateway)?;
    let local = gateway.peering_address(0).to_string();
    let mut all = Vec::new();
    for net in advertised_prefixes(topology, gateway) {
        all.push(route(
            &local,
            net,
            [&local, &local],
            "Network",
            &[],
            weight(GatewayKind::Vpn),
        ));
    }
    let learned = learned_routes(topology, statuses);
    for (number, agent) in instances(topology, gateway) {
        let local = gateway.peering_address(number).to_string();
        let Some(config) = learned.config(&agent) else { continue };
        let dynamic = learned.routing_state(config);
        for taken in routing::accept_routes(config, &dynamic).iter().filter(|t| !t.down) {
            let address = |agent: &AgentId| address_of(topology, gateway, agent);
            let source = taken.from.as_ref().map_or_else(String::new, address);
            let origin = match &taken.from {
                Some(from) if is_in_same_vnet(topology, gateway, from) => "IBgp",
                _ => "EBgp",
            };
            let (hop, path) = (address(&taken.via), &taken.route.as_path);
            let prefix = taken.route.prefix;
            all.push(route(&local, prefix, [&hop, &source], origin, path, weight(taken.kind)));
        }
    }
    Some(all)
}

/// `getAdvertisedRoutes`: the routes that each instance advertises to the peer with the address `peer`. Empty if no
/// peer has the address. `None`: the gateway does not exist.
pub(crate) fn advertised(
    topology: &Topology,
    statuses: &AgentStatuses,
    gateway: &ResourceId,
    peer: IpAddr,
) -> Option<Vec<Value>> {
    let gateway = topology.gateways.get(gateway)?;
    let learned = learned_routes(topology, statuses);
    let mut all = Vec::new();
    for (number, agent) in instances(topology, gateway) {
        let local = gateway.peering_address(number).to_string();
        let Some(config) = learned.config(&agent) else { continue };
        let dynamic = learned.routing_state(config);
        let mut advertised: Vec<(IpNet, Vec<u32>)> = Vec::new();
        for link in &config.links {
            if address_of(topology, gateway, &link.peer) != peer.to_string() {
                continue;
            }
            match &link.relation {
                Relation::Site { connection } => {
                    let routes = routes_for_neighbour(config, &dynamic, connection);
                    // `routes_for_neighbour` returns AS paths without the gateway's ASN, because BIRD prepends this ASN
                    // when it sends a route to the site. The peer therefore sees it in the path.
                    let seen = routes
                        .into_iter()
                        .map(|r| (r.prefix, [&[gateway.asn], &*r.as_path].concat()));
                    advertised.extend(seen);
                }
                // The far end knows this gateway's own prefixes from its configuration, so agents do not advertise them
                // over a link. ARM shows them as advertised, as Azure does.
                Relation::Connection { connection } if exchanges(topology, connection) => {
                    advertised.extend(local_prefixes(topology, gateway));
                    advertised.extend(
                        routes_for_peer(config, &dynamic, link)
                            .into_iter()
                            .map(|r| (r.prefix, r.as_path)),
                    );
                }
                Relation::Edge { .. } => advertised.extend(local_prefixes(topology, gateway)),
                _ => {}
            }
        }
        let lines = advertised.into_iter();
        all.extend(lines.map(|(net, path)| route(&local, net, [&local, &local], "Igp", &path, 0)));
    }
    Some(all)
}

/// The prefixes of the gateway's VNet and of the spokes that use the gateway, each with the AS path that a peer sees:
/// only the gateway's ASN.
fn local_prefixes(topology: &Topology, gateway: &VirtualNetworkGateway) -> impl Iterator<Item = (IpNet, Vec<u32>)> {
    let asn = gateway.asn;
    advertised_prefixes(topology, gateway)
        .into_iter()
        .map(move |net| (net, vec![asn]))
}

/// A route in ARM's format. `hops`: the next hop, and the peer that advertised the route.
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

/// The address that ARM shows for a neighbour of a gateway. For an instance of another gateway it is the instance's BGP
/// address, for an edge its tunnel address, and for a site's device its BGP address or else its underlay address. If
/// the neighbour has no such address, ARM shows its name.
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
            // The circuit is connected to this gateway, or to the VNet's ExpressRoute gateway, from which this VPN
            // gateway learns the edge's routes.
            let beside = |c: &&Arc<Connection>| {
                let theirs = topology.gateways.get(&c.gateway1);
                c.gateway2 == *circuit && theirs.is_some_and(|g| vnet_of(g) == vnet_of(gateway))
            };
            let connection = topology.connections.values().find(beside);
            let index = usize::from(*link == CircuitLink::Secondary);
            connection.and_then(|c| c.tunnel_addresses.get(index).copied())
        }
        Some(Binding::Vm { .. } | Binding::Site { .. }) | None => {
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

/// Whether a neighbour is an instance of the other gateway of the same VNet (G2).
fn is_in_same_vnet(topology: &Topology, gateway: &VirtualNetworkGateway, neighbour: &AgentId) -> bool {
    let binding = topology.agents.get(neighbour).map(|a| &a.binding);
    let Some(Binding::Gateway { gateway: far, .. }) = binding else {
        return false;
    };
    let far = topology.gateways.get(far);
    far.is_some_and(|far| far.envelope.id != gateway.envelope.id && vnet_of(far) == vnet_of(gateway))
}
