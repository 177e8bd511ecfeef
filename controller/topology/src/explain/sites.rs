//! Explains why no route leads to an address that is in no VNet. Such an address may be in a site to which a connection
//! or a circuit leads.

use super::finding::{Facts, Finding, connected, gateway_agents};
use super::gateways::{self, chain, circuits, missing_flags, not_in_force, reported_down, used, without_bgp};
use crate::resource::{Connection, ConnectionType, ExpressRouteCircuit, LocalNetworkGateway, VirtualNetwork};
use std::net::IpAddr;
use tombolo_proto::config::GatewayKind;
use tombolo_proto::id::{AgentId, ResourceId};

/// The known location of an address outside of the VNets.
enum Location<'t> {
    /// The address is in a site, according to the site's local network gateway or the announcements of the site's
    /// device.
    Site(&'t LocalNetworkGateway),
    /// The address is on the customer's side of a circuit, according to the customer's announcements.
    Circuit(&'t ExpressRouteCircuit),
}

/// Explains why a VNet has no route to an address that is in no VNet.
pub(super) fn no_route(facts: Facts<'_>, own: &VirtualNetwork, to: IpAddr) -> Finding {
    match location(facts, to) {
        Some(Location::Site(site)) => to_site(facts, own, site, to),
        Some(Location::Circuit(circuit)) => to_circuit(facts, own, circuit, to),
        None => unknown(facts, own, to),
    }
}

/// The known location of an address. Of all prefixes that sites have or announce and that contain the address, the
/// longest one decides. An announced default route contains every address, so it is skipped.
fn location(facts: Facts<'_>, to: IpAddr) -> Option<Location<'_>> {
    let topology = facts.topology;
    let site_of = |connection: &Connection| topology.local_gateways.get(&connection.gateway2);
    let mut found: Vec<(u8, Location<'_>)> = Vec::new();
    for site in topology.local_gateways.values() {
        let around = site.address_space.iter().filter(|p| p.contains(&to));
        found.extend(around.map(|p| (p.prefix_len(), Location::Site(site))));
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
            found.push((longest, Location::Site(site)));
        } else if let Some(circuit) = topology.circuits.get(neighbour) {
            found.push((longest, Location::Circuit(circuit)));
        }
    }
    let longest = found.into_iter().max_by_key(|(length, _)| *length);
    longest.map(|(_, location)| location)
}

/// Explains why a VNet does not reach an address in a site.
fn to_site(facts: Facts<'_>, own: &VirtualNetwork, site: &LocalNetworkGateway, to: IpAddr) -> Finding {
    let topology = facts.topology;
    let (here, name) = (own.envelope.id.name(), site.envelope.id.name());
    let there = format!("the site {name}");
    let connections = || topology.connections.values().filter(|c| c.gateway2 == site.envelope.id);
    let Some(first) = connections().next() else {
        return Finding::new(
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
            gateway.is_some_and(|g| connections().any(|c| c.gateway1 == g.envelope.id))
        };
        let missing = peers
            .iter()
            .find(leads)
            .and_then(|hub| missing_flags(topology, own, hub, &there));
        return missing.unwrap_or_else(|| no_gateway(here, to, &there, "VPN", &first.gateway1, &first.envelope.id));
    };
    let near = &near.envelope.id;
    if let Some(connection) = connections().find(|c| c.gateway1 == *near) {
        return at_connection(facts, (hub, near), connection, site);
    }
    // The VNet's gateway has no connection to the site. A chain over other gateways may lead there, if all its
    // connections exchange routes (G18, G19).
    let chains =
        connections().filter_map(|connection| Some((connection, chain(topology, near, &connection.gateway1)?)));
    match chains.min_by_key(|(_, way)| way.len()) {
        Some((connection, way)) => {
            without_bgp(topology, &way, &there).unwrap_or_else(|| at_connection(facts, (hub, near), connection, site))
        }
        None => Finding::new(
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

/// Explains why the route to a site is missing, although the VNet's gateway is connected to the site, directly or over
/// other gateways.
fn at_connection(
    facts: Facts<'_>,
    (hub, near): (&ResourceId, &ResourceId),
    connection: &Connection,
    site: &LocalNetworkGateway,
) -> Finding {
    let topology = facts.topology;
    let there = format!("the site {}", site.envelope.id.name());
    let gateway = topology.gateways.get(near);
    if let Some(finding) = gateway.and_then(|gateway| gateway_agents(topology, gateway)) {
        return finding;
    }
    if connection.shared_key.is_none() || site.public_key.is_none() {
        return gateways::far_end(topology, &connection.envelope.id);
    }
    if device_is_silent(facts, connection) {
        return Finding::new(
            "R6",
            format!(
                "{there} does not answer over the connection {}, so what it announces is withdrawn",
                connection.envelope.id.name()
            ),
            format!(
                "bring its tunnel up: tombolo connection show {} shows why it is down",
                connection.envelope.id.name()
            ),
        )
        .at(&connection.envelope.id);
    }
    not_in_force(facts, hub, there)
}

/// Whether all agents of a connection's gateway report that the site's device at its far end does not answer.
fn device_is_silent(facts: Facts<'_>, connection: &Connection) -> bool {
    reported_down(facts, &connection.gateway1, &AgentId::of_site(&connection.envelope.id))
}

/// Explains why a VNet does not reach an address of a circuit's customer.
fn to_circuit(facts: Facts<'_>, own: &VirtualNetwork, circuit: &ExpressRouteCircuit, to: IpAddr) -> Finding {
    let topology = facts.topology;
    let (here, id) = (own.envelope.id.name(), &circuit.envelope.id);
    let there = format!("the site behind the circuit {}", id.name());
    if let Some((hub, near)) = used(topology, own, GatewayKind::ExpressRoute) {
        if !circuits(topology, near).contains(&id) {
            return Finding::new(
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
    if let Some(finding) = peers
        .iter()
        .find(leads)
        .and_then(|hub| missing_flags(topology, own, hub, &there))
    {
        return finding;
    }
    if used(topology, own, GatewayKind::Vpn).is_some() {
        return Finding::new(
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

/// The finding that the address `to` is in a site or behind a circuit, and the VNet `here` uses no gateway of the type
/// that leads there.
fn no_gateway(here: &str, to: IpAddr, there: &str, kind: &str, leads: &ResourceId, at: &ResourceId) -> Finding {
    Finding::new(
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

/// Explains an address that no network is known to have. A site that is down announces nothing, so the address may be
/// in such a site. The text therefore lists the sites and circuits that the VNet's gateways are connected to, with
/// their state (R6).
fn unknown(facts: Facts<'_>, own: &VirtualNetwork, to: IpAddr) -> Finding {
    let topology = facts.topology;
    let here = own.envelope.id.name();
    let mut candidates = Vec::new();
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
        for connection in connections(&near.envelope.id) {
            let site = (connection.connection_type == ConnectionType::IPsec)
                .then(|| topology.local_gateways.get(&connection.gateway2));
            let Some(site) = site.flatten() else { continue };
            let state = match (device_is_silent(facts, connection), connection.enable_bgp) {
                (true, _) => "its device does not answer",
                (false, true) => announces(&connection.envelope.id),
                (false, false) => "has other prefixes, and no BGP",
            };
            candidates.push(format!(
                "the site {} (connection {}): {state}",
                site.envelope.id.name(),
                connection.envelope.id.name()
            ));
            first.get_or_insert(&connection.envelope.id);
        }
    }
    if let Some((_, near)) = used(topology, own, GatewayKind::ExpressRoute) {
        for connection in connections(&near.envelope.id) {
            let state = announces(&connection.gateway2);
            candidates.push(format!(
                "the customer of the circuit {}: {state}",
                connection.gateway2.name()
            ));
            first.get_or_insert(&connection.gateway2);
        }
    }
    let Some(first) = first else {
        return Finding::new(
            "R1",
            format!("no virtual network and no site has {to}, as far as the controller knows"),
            format!(
                "check the address; for a network outside, create a local network gateway with its prefix and a connection \
                 from a VPN gateway of {here}"
            ),
        );
    };
    Finding::new(
        "R6",
        format!(
            "no virtual network has {to}, and no site of {here} announces it now ({})",
            candidates.join("; ")
        ),
        "if it is in one of these, bring its tunnel or line up and let its router announce the prefix; else check the address",
    )
    .at(first)
}
