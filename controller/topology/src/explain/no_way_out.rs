//! Explains why a site has no route to an address (M10): an attachment is down, or nothing that attaches the site
//! advertises the address.

use super::finding::{Facts, Finding, gateway_agents};
use super::gateways::{edges_of, far_end, missing_flags, reported_down, tunnels_of};
use super::no_route;
use crate::lookup::{advertised_prefixes, half_towards, vnet_of};
use crate::resource::{Connection, VirtualNetworkGateway};
use crate::topology::Topology;
use ipnet::IpNet;
use std::net::IpAddr;
use tombolo_proto::id::{AgentId, ResourceId};

/// Explains why a site with these attachments has no route to `to`. `source`: the address of the probe.
pub(super) fn finding(facts: Facts<'_>, attachments: &[ResourceId], source: IpAddr, to: IpAddr) -> Finding {
    let topology = facts.topology;
    let name = site_name(attachments);
    let all: Vec<Attached<'_>> = attachments.iter().flat_map(|id| attached(topology, id)).collect();
    if all.is_empty() {
        let first = attachments.first();
        let finding = Finding::new(
            "G9",
            format!("no connection joins the site {name} with a gateway"),
            "create a connection from a gateway to the local network gateway or circuit",
        );
        return match first {
            Some(first) => finding.at(first),
            None => finding,
        };
    }
    let leads = |one: &&Attached<'_>| contains(&advertised_prefixes(topology, one.gateway), to);
    if let Some(down) = all.iter().find(leads) {
        return not_up(facts, down, &name);
    }
    if is_inside(facts, attachments, source, to) {
        return Finding::new(
            "M10",
            format!("{to} is inside the site {name} itself, so no agent carries packets to it"),
            "check it from the site's own network",
        );
    }
    let hubs: Vec<ResourceId> = all.iter().filter_map(|one| vnet_of(one.gateway)).collect();
    let target = topology.vnets.values().find(|v| contains(&v.address_space, to));
    if let Some(target) = target {
        let there = format!("the site {name}");
        if let Some(flags) = hubs.iter().find_map(|hub| missing_flags(topology, target, hub, &there)) {
            return flags;
        }
        // The VNet is peered with that of a gateway, and no flag is missing: the peering itself is the cause.
        let is_peer = |hub: &&ResourceId| {
            let hub = topology.vnets.get(hub);
            hub.is_some_and(|hub| half_towards(hub, &target.envelope.id).is_some())
        };
        if let Some(hub) = hubs.iter().find(is_peer) {
            return no_route::no_route(facts, hub, to);
        }
    }
    let place = match target {
        Some(vnet) => format!("{to} is in {}", vnet.envelope.id.name()),
        None => format!("no virtual network has {to}"),
    };
    let finding = Finding::new(
        "M10",
        format!("{place}, and nothing that attaches the site {name} advertises a route to it"),
        "join that network with a gateway of the site, by a peering with gateway transit or a connection with BGP; circuits are \
         not bridged, and VPN and ExpressRoute gateways do not relay to each other (E7, E8)",
    );
    match target {
        Some(vnet) => finding.at(&vnet.envelope.id),
        None => finding,
    }
}

/// A connection between a site and a gateway.
struct Attached<'t> {
    attachment: &'t ResourceId,
    connection: &'t Connection,
    gateway: &'t VirtualNetworkGateway,
}

fn attached<'t>(topology: &'t Topology, attachment: &'t ResourceId) -> Vec<Attached<'t>> {
    let of = |(connection, gateway)| Attached {
        attachment,
        connection,
        gateway,
    };
    if !topology.circuits.contains_key(attachment) {
        return tunnels_of(topology, attachment).map(of).collect();
    }
    let links = topology.connections.values().filter(|c| c.gateway2 == *attachment);
    links
        .filter_map(|c| Some((&**c, &**topology.gateways.get(&c.gateway1)?)))
        .map(of)
        .collect()
}

/// Explains why an attachment that should lead to the destination carries no packets now.
fn not_up(facts: Facts<'_>, down: &Attached<'_>, name: &str) -> Finding {
    let topology = facts.topology;
    if let Some(finding) = gateway_agents(topology, down.gateway) {
        return finding;
    }
    let (id, attachment) = (&down.connection.envelope.id, down.attachment);
    if topology.circuits.contains_key(attachment) {
        if edges_of(topology, attachment).next().is_none() {
            return Finding::new(
                "D7",
                format!("no agent has joined for an edge of the circuit {}", attachment.name()),
                "create a join token for each of its lines and join them",
            )
            .at(attachment);
        }
        return Finding::new(
            "R6",
            format!(
                "the router of the site {name} announces nothing over the circuit {}, so its line or its BGP session is down",
                attachment.name()
            ),
            "bring the line up, and let the router announce the site's prefixes",
        )
        .at(attachment);
    }
    let site = topology.local_gateways.get(attachment);
    if down.connection.shared_key.is_none() || site.is_none_or(|site| site.public_key.is_none()) {
        return far_end(topology, id);
    }
    if reported_down(facts, &down.connection.gateway1, &AgentId::of_site(id)) {
        return Finding::new(
            "R6",
            format!(
                "the device of the site {name} does not answer over the connection {}",
                id.name()
            ),
            format!(
                "bring its tunnel up: tombolo connection show {} shows why it is down",
                id.name()
            ),
        )
        .at(id);
    }
    Finding::new(
        "R6",
        format!(
            "the device of the site {name} announces nothing over the connection {}, so their BGP session is down",
            id.name()
        ),
        format!(
            "see the session: tombolo gateway bgp-peers {}",
            down.connection.gateway1.name()
        ),
    )
    .at(id)
}

/// Whether an address is in a prefix that the site has or announces, and in which the probe is too.
fn is_inside(facts: Facts<'_>, attachments: &[ResourceId], source: IpAddr, to: IpAddr) -> bool {
    let topology = facts.topology;
    let holds = |prefix: &IpNet| prefix.prefix_len() > 0 && prefix.contains(&source) && prefix.contains(&to);
    let sites = attachments.iter().filter_map(|id| topology.local_gateways.get(id));
    if sites.flat_map(|site| &site.address_space).any(holds) {
        return true;
    }
    let leads_there = |neighbour: &ResourceId| {
        let connection = topology.connections.get(neighbour);
        attachments.contains(neighbour) || connection.is_some_and(|c| attachments.contains(&c.gateway2))
    };
    let mut learned = facts.reports.learned.values().flatten().filter(|(n, _)| leads_there(n));
    learned.any(|(_, routes)| routes.iter().any(|route| holds(&route.prefix)))
}

/// The name of a site for messages: the names of its attachments.
fn site_name(attachments: &[ResourceId]) -> String {
    let names: Vec<&str> = attachments.iter().map(ResourceId::name).collect();
    names.join(", ")
}

fn contains(prefixes: &[IpNet], address: IpAddr) -> bool {
    prefixes.iter().any(|p| p.contains(&address))
}
