//! Why no route leads to an address that no VNet has: it may be in a site, behind a connection or a circuit.

use super::gateways::{self, chain, circuits, missing_flags, not_in_force, reported_down, used, without_bgp};
use super::why::{Facts, Why, connected, gateway_agents};
use crate::resource::{Connection, ConnectionType, ExpressRouteCircuit, LocalNetworkGateway, VirtualNetwork};
use std::net::IpAddr;
use tombolo_proto::config::GatewayKind;
use tombolo_proto::id::{AgentId, ResourceId};

/// Where an address outside the VNets is known to be.
enum Holder<'t> {
    /// In a site, by its configuration or by what its device announces.
    Site(&'t LocalNetworkGateway),
    /// Behind a circuit, by what its customer announces.
    Circuit(&'t ExpressRouteCircuit),
}

/// Why packets from a VNet have no route to an address that is in no VNet.
pub(super) fn no_route(facts: Facts<'_>, own: &VirtualNetwork, to: IpAddr) -> Why {
    match holder(facts, to) {
        Some(Holder::Site(site)) => to_site(facts, own, site, to),
        Some(Holder::Circuit(circuit)) => to_circuit(facts, own, circuit, to),
        None => unknown(facts, own, to),
    }
}

/// Who has the longest prefix around an address. A default route says nothing of where an address is.
fn holder(facts: Facts<'_>, to: IpAddr) -> Option<Holder<'_>> {
    let topology = facts.topology;
    let site_of = |connection: &Connection| topology.local_gateways.get(&connection.gateway2);
    let mut found: Vec<(u8, Holder<'_>)> = Vec::new();
    for site in topology.local_gateways.values() {
        let around = site.address_space.iter().filter(|p| p.contains(&to));
        found.extend(around.map(|p| (p.prefix_len(), Holder::Site(site))));
    }
    for (neighbour, routes) in facts.reports.learned.values().flatten() {
        let around = routes
            .iter()
            .map(|r| r.prefix)
            .filter(|p| p.contains(&to) && p.prefix_len() > 0);
        let Some(longest) = around.map(|p| p.prefix_len()).max() else {
            continue;
        };
        if let Some(site) = topology.connections.get(neighbour).and_then(|c| site_of(c)) {
            found.push((longest, Holder::Site(site)));
        } else if let Some(circuit) = topology.circuits.get(neighbour) {
            found.push((longest, Holder::Circuit(circuit)));
        }
    }
    let longest = found.into_iter().max_by_key(|(length, _)| *length);
    longest.map(|(_, holder)| holder)
}

/// The site has it: what keeps it from the VNet.
fn to_site(facts: Facts<'_>, own: &VirtualNetwork, site: &LocalNetworkGateway, to: IpAddr) -> Why {
    let topology = facts.topology;
    let (here, name) = (own.envelope.id.name(), site.envelope.id.name());
    let there = format!("the site {name}");
    let doors = || topology.connections.values().filter(|c| c.gateway2 == site.envelope.id);
    let Some(first) = doors().next() else {
        return Why::new(
            "G9",
            format!("{to} is in the local network gateway {name}, which no connection joins with a gateway"),
            format!("create a connection of type IPsec from a VPN gateway that {here} uses to {name}"),
        )
        .at(&site.envelope.id);
    };
    let Some((hub, near)) = used(topology, own, GatewayKind::Vpn) else {
        let peers = connected(own);
        let leads = |peer: &&ResourceId| {
            let gateway = gateways::in_vnet(topology, peer, GatewayKind::Vpn);
            gateway.is_some_and(|g| doors().any(|c| c.gateway1 == g.envelope.id))
        };
        let missing = peers
            .iter()
            .find(leads)
            .and_then(|hub| missing_flags(topology, own, hub, &there));
        return missing.unwrap_or_else(|| no_gateway(here, to, &there, "VPN", &first.gateway1, &first.envelope.id));
    };
    let near = &near.envelope.id;
    if let Some(door) = doors().find(|c| c.gateway1 == *near) {
        return at_the_door(facts, (hub, near), door, site);
    }
    // Over other gateways, as far as routes are exchanged (G18, G19).
    let ways = doors().filter_map(|door| Some((door, chain(topology, near, &door.gateway1)?)));
    match ways.min_by_key(|(_, way)| way.len()) {
        Some((door, way)) => {
            without_bgp(topology, &way, &there).unwrap_or_else(|| at_the_door(facts, (hub, near), door, site))
        }
        None => Why::new(
            "G19",
            format!(
                "{to} is in {there}, which the connection {} joins with gateway {}; no connection leads from gateway {} \
                 there",
                first.envelope.id.name(),
                first.gateway1.name(),
                near.name()
            ),
            format!(
                "connect the two gateways, both objects with enableBgp, or {} with {name}",
                near.name()
            ),
        )
        .at(&first.envelope.id),
    }
}

/// A gateway that the VNet uses is joined with the site, directly or over others: what keeps the route away.
fn at_the_door(
    facts: Facts<'_>,
    (hub, near): (&ResourceId, &ResourceId),
    door: &Connection,
    site: &LocalNetworkGateway,
) -> Why {
    let topology = facts.topology;
    let there = format!("the site {}", site.envelope.id.name());
    let gateway = topology.gateways.get(near);
    if let Some(why) = gateway.and_then(|gateway| gateway_agents(topology, gateway)) {
        return why;
    }
    if door.shared_key.is_none() || site.public_key.is_none() {
        return gateways::far_end(topology, &door.envelope.id);
    }
    if silent(facts, door) {
        return Why::new(
            "R6",
            format!(
                "{there} does not answer over the connection {}, so what it announces is withdrawn",
                door.envelope.id.name()
            ),
            format!(
                "bring its tunnel up: tombolo connection show {} says why it is down",
                door.envelope.id.name()
            ),
        )
        .at(&door.envelope.id);
    }
    not_in_force(facts, hub, there)
}

/// The device at the end of a connection to a site does not answer.
fn silent(facts: Facts<'_>, door: &Connection) -> bool {
    reported_down(facts, &door.gateway1, &AgentId::of_site(&door.envelope.id))
}

/// A circuit leads to it: what keeps it from the VNet.
fn to_circuit(facts: Facts<'_>, own: &VirtualNetwork, circuit: &ExpressRouteCircuit, to: IpAddr) -> Why {
    let topology = facts.topology;
    let (here, id) = (own.envelope.id.name(), &circuit.envelope.id);
    let there = format!("the site behind the circuit {}", id.name());
    if let Some((hub, near)) = used(topology, own, GatewayKind::ExpressRoute) {
        if !circuits(topology, near).contains(&id) {
            return Why::new(
                "E7",
                format!(
                    "{to} is in {there}, which gateway {} is not connected to, and circuits are not bridged",
                    near.envelope.id.name()
                ),
                format!(
                    "create a connection of type ExpressRoute from {} to {}",
                    near.envelope.id.name(),
                    id.name()
                ),
            )
            .at(id);
        }
        return gateway_agents(topology, near).unwrap_or_else(|| not_in_force(facts, hub, there));
    }
    let peers = connected(own);
    let leads = |peer: &&ResourceId| {
        let gateway = gateways::in_vnet(topology, peer, GatewayKind::ExpressRoute);
        gateway.is_some_and(|g| circuits(topology, g).contains(&id))
    };
    if let Some(why) = peers
        .iter()
        .find(leads)
        .and_then(|hub| missing_flags(topology, own, hub, &there))
    {
        return why;
    }
    if used(topology, own, GatewayKind::Vpn).is_some() {
        return Why::new(
            "E8",
            format!(
                "{to} is in {there}, {here} is attached by VPN, and gateways of the two types do not relay to each other"
            ),
            format!(
                "give {here} an ExpressRoute gateway with a connection to {}, or join the site with a VPN gateway too",
                id.name()
            ),
        )
        .at(id);
    }
    let links = topology.connections.values().find(|c| c.gateway2 == *id);
    let linked = links.map_or(id, |c| &c.gateway1);
    no_gateway(here, to, &there, "ExpressRoute", linked, id)
}

/// The VNet uses no gateway of the kind that leads there.
fn no_gateway(here: &str, to: IpAddr, there: &str, kind: &str, leads: &ResourceId, at: &ResourceId) -> Why {
    Why::new(
        "R3",
        format!("{to} is in {there}, and {here} uses no {kind} gateway that leads there"),
        format!(
            "peer {here} with the virtual network of gateway {}, with allowGatewayTransit there and useRemoteGateways \
             here, or give it a gateway of its own",
            leads.name()
        ),
    )
    .at(at)
}

/// Nobody says that the address is his: the VNet's own sites are named, as what is down announces nothing (R6).
fn unknown(facts: Facts<'_>, own: &VirtualNetwork, to: IpAddr) -> Why {
    let topology = facts.topology;
    let here = own.envelope.id.name();
    let mut doors = Vec::new();
    let mut first = None;
    let learned = |neighbour: &ResourceId| {
        let mut all = facts.reports.learned.values().filter_map(|by| by.get(neighbour));
        all.any(|routes| !routes.is_empty())
    };
    let announces = |neighbour: &ResourceId| match learned(neighbour) {
        true => "announces other networks",
        false => "announces nothing",
    };
    let connections = |gateway: &ResourceId| -> Vec<&Connection> {
        let all = topology.connections.values().filter(|c| c.gateway1 == *gateway);
        all.map(|c| &**c).collect()
    };
    if let Some((_, near)) = used(topology, own, GatewayKind::Vpn) {
        for door in connections(&near.envelope.id) {
            let site =
                (door.connection_type == ConnectionType::IPsec).then(|| topology.local_gateways.get(&door.gateway2));
            let Some(site) = site.flatten() else { continue };
            let state = match (silent(facts, door), door.enable_bgp) {
                (true, _) => "its device does not answer",
                (false, true) => announces(&door.envelope.id),
                (false, false) => "has other prefixes, and no BGP",
            };
            doors.push(format!(
                "the site {} (connection {}): {state}",
                site.envelope.id.name(),
                door.envelope.id.name()
            ));
            first.get_or_insert(&door.envelope.id);
        }
    }
    if let Some((_, near)) = used(topology, own, GatewayKind::ExpressRoute) {
        for door in connections(&near.envelope.id) {
            let state = announces(&door.gateway2);
            doors.push(format!("the customer of the circuit {}: {state}", door.gateway2.name()));
            first.get_or_insert(&door.gateway2);
        }
    }
    let Some(first) = first else {
        return Why::new(
            "R1",
            format!("no virtual network and no site has {to}, as far as is known"),
            format!(
                "check the address; for a network outside, create a local network gateway with its prefix and a connection \
                 from a VPN gateway of {here}"
            ),
        );
    };
    Why::new(
        "R6",
        format!(
            "no virtual network has {to}, and no site of {here} announces it now ({})",
            doors.join("; ")
        ),
        "if it is in one of these, bring its tunnel or line up and let its router announce the prefix; else check the address",
    )
    .at(first)
}
