//! Changes of user-defined routes, of their tables, and of IP forwarding.

use super::change::{RepairChange, free_name};
use super::stopped::{Candidate, Stopped, vnets_with};
use crate::lookup::gateways_of;
use crate::path::parent_id;
use crate::resource::{Subnet, UserNextHop};
use serde_json::json;
use std::collections::BTreeSet;
use std::net::IpAddr;
use tombolo_proto::config::GatewayKind;
use tombolo_proto::id::ResourceId;
use tombolo_proto::route::RouteSource;

/// Drop reasons for which IP forwarding of a network interface may help.
const NEEDS_FORWARDING: [&str; 2] = ["not_forwarding", "spoofed_source"];

/// Drop reasons for which a route to an appliance or gateway may help.
const NEEDS_ROUTE: [&str; 3] = ["no_route", "route_none", "route_internet"];

pub(super) fn candidates(stopped: &Stopped<'_>) -> Vec<Candidate> {
    let mut all = Vec::new();
    let mut tables = BTreeSet::new();
    // The reply may take another way than the packet because of a route on the way there, and the reverse.
    let walks = [Some(&stopped.explanation.request), stopped.explanation.reply.as_ref()];
    for hop in walks.into_iter().flatten().flat_map(|walk| &walk.hops) {
        let Some(table) = hop.subnet.as_ref().and_then(|subnet| table_of(stopped, subnet)) else {
            continue;
        };
        tables.insert(table.clone());
        let Some(route) = hop.route.as_ref().filter(|route| route.source == RouteSource::User) else {
            continue;
        };
        if let Some(name) = &route.name {
            let text = format!(
                "delete the route {name} ({}) of the table {}",
                route.address_prefix,
                table.name()
            );
            let id = ResourceId::new(format!("{table}/routes/{name}"));
            all.push(RepairChange::delete(text, &id).into());
        }
    }
    // The reply begins where the packet arrives, and no hop of the packet names that subnet.
    for address in [stopped.source, stopped.destination] {
        let subnets = vnets_with(stopped.topology, address).flat_map(|vnet| &vnet.subnets);
        let of_end = subnets.filter(|subnet| subnet.prefixes.iter().any(|prefix| prefix.contains(&address)));
        tables.extend(of_end.filter_map(|subnet| subnet.route_table.clone()));
    }
    for table in tables.iter().filter_map(|id| stopped.topology.route_tables.get(id)) {
        if table.disable_bgp_route_propagation {
            let id = &table.envelope.id;
            let text = format!(
                "let the table {} have the routes of gateways (disableBgpRoutePropagation false)",
                id.name()
            );
            let pointer = "/properties/disableBgpRoutePropagation";
            all.extend(RepairChange::set(stopped.topology, text, id, pointer, json!(false)).map(Candidate::from));
        }
    }
    all.extend(forwarding(stopped));
    all.extend(by_new_route(stopped));
    all
}

/// The subnet with this id.
fn subnet<'a>(stopped: &Stopped<'a>, id: &ResourceId) -> Option<&'a Subnet> {
    let vnet = stopped.topology.vnets.get(&parent_id(id))?;
    vnet.subnets.iter().find(|subnet| subnet.id == *id)
}

fn table_of(stopped: &Stopped<'_>, id: &ResourceId) -> Option<ResourceId> {
    subnet(stopped, id)?.route_table.clone()
}

/// Lets the network interfaces of the agent at which the packet stops forward, and of the agent that sent it there.
fn forwarding(stopped: &Stopped<'_>) -> Vec<Candidate> {
    if !NEEDS_FORWARDING.contains(&stopped.stop.reason.as_str()) {
        return Vec::new();
    }
    let mut agents: Vec<_> = stopped.walk.hops.iter().rev().take(2).map(|hop| &hop.agent).collect();
    agents.push(&stopped.stop.agent);
    agents.dedup();
    let nics: BTreeSet<ResourceId> = agents.into_iter().flat_map(|agent| stopped.nics_of(agent)).collect();
    let mut all = Vec::new();
    for id in nics {
        if stopped
            .topology
            .nics
            .get(&id)
            .is_some_and(|nic| !nic.enable_ip_forwarding)
        {
            let text = format!("set enableIPForwarding of the network interface {}", id.name());
            let pointer = "/properties/enableIPForwarding";
            all.extend(RepairChange::set(stopped.topology, text, &id, pointer, json!(true)).map(Candidate::from));
        }
    }
    all
}

/// Routes the destination's network over an appliance of a network near the path, or over the VPN gateway, from the subnet where
/// the packet stops.
fn by_new_route(stopped: &Stopped<'_>) -> Vec<Candidate> {
    if !NEEDS_ROUTE.contains(&stopped.stop.reason.as_str()) {
        return Vec::new();
    }
    let Some(from) = stopped.walk.hops.last().and_then(|hop| hop.subnet.as_ref()) else {
        return Vec::new();
    };
    let spaces = vnets_with(stopped.topology, stopped.destination).flat_map(|vnet| &vnet.address_space);
    let Some(prefix) = spaces.into_iter().find(|prefix| prefix.contains(&stopped.destination)) else {
        return Vec::new();
    };
    let mut all = Vec::new();
    let by_appliances = appliances(stopped).into_iter().map(|(appliance, address)| {
        let what = format!("{prefix} over the appliance {} ({address})", appliance.name());
        let properties = json!({
            "addressPrefix": prefix, "nextHopType": "VirtualAppliance", "nextHopIpAddress": address,
        });
        (what, properties)
    });
    let by_gateway = uses_vpn_gateway(stopped, &parent_id(from)).then(|| {
        let properties = json!({"addressPrefix": prefix, "nextHopType": "VirtualNetworkGateway"});
        (format!("{prefix} over the VPN gateway"), properties)
    });
    let name = format!("to-{}", prefix.to_string().replace(['/', ':'], "-"));
    for (what, properties) in by_appliances.chain(by_gateway) {
        let body = json!({"properties": properties});
        match table_of(stopped, from) {
            Some(table) => {
                let name = free_name(stopped.topology, &format!("{table}/routes"), &name);
                let text = format!("add the route {name} to the table {}: {what}", table.name());
                let id = ResourceId::new(format!("{table}/routes/{name}"));
                all.push(RepairChange::put(text, &id, body).into());
            }
            None => all.extend(with_new_table(stopped, from, &name, &what, &body)),
        }
    }
    all
}

/// Whether a network has a VPN gateway, or uses one of a peer, to which a route can lead (R14).
fn uses_vpn_gateway(stopped: &Stopped<'_>, vnet: &ResourceId) -> bool {
    let topology = stopped.topology;
    let has_one =
        |vnet: &ResourceId| gateways_of(topology, vnet).any(|gateway| gateway.gateway_type == GatewayKind::Vpn);
    let own = topology.vnets.get(vnet);
    let mut halves = own.into_iter().flat_map(|vnet| &vnet.peerings);
    has_one(vnet) || halves.any(|half| half.use_remote_gateways && has_one(&half.remote_vnet))
}

/// Creates a table with a route, and gives it to a subnet that has none.
fn with_new_table(
    stopped: &Stopped<'_>,
    from: &ResourceId,
    name: &str,
    what: &str,
    route: &serde_json::Value,
) -> Option<Candidate> {
    let vnet = stopped.topology.vnets.get(&parent_id(from))?;
    let group = vnet.envelope.id.as_str().split("/providers/").next()?;
    let tables = format!("{group}/providers/Microsoft.Network/routeTables");
    let table = format!("{}-{}-routes", vnet.envelope.id.name(), from.name());
    let table = free_name(stopped.topology, &tables, &table);
    let id = ResourceId::new(format!("{tables}/{table}"));
    let body = json!({"location": vnet.envelope.location, "properties": {
        "routes": [{"name": name, "properties": route["properties"]}],
    }});
    let text = format!("create the route table {table} with the route {name}: {what}");
    let create = RepairChange::put(text, &id, body);
    let text = format!(
        "give the table {table} to the subnet {}/{}",
        vnet.envelope.id.name(),
        from.name()
    );
    let attach = RepairChange::set(
        stopped.topology,
        text,
        from,
        "/properties/routeTable",
        json!({"id": id}),
    )?;
    Some(Candidate::of(vec![create, attach]))
}

/// The network interfaces near the path that forward, with an address of the destination's family. Those that a route names
/// already come first.
fn appliances(stopped: &Stopped<'_>) -> Vec<(ResourceId, IpAddr)> {
    let named: BTreeSet<IpAddr> = stopped
        .topology
        .route_tables
        .values()
        .flat_map(|table| &table.routes)
        .filter_map(|route| match &route.next_hop {
            UserNextHop::VirtualAppliance { address } => Some(*address),
            _ => None,
        })
        .collect();
    let forwarding = stopped.topology.nics.values().filter(|nic| nic.enable_ip_forwarding);
    let mut found = Vec::new();
    for nic in forwarding {
        let configurations = nic.ip_configurations.iter();
        let fitting = configurations.filter(|c| stopped.near.contains(&parent_id(&c.subnet)));
        let address = fitting
            .map(|c| c.address)
            .find(|a| a.is_ipv4() == stopped.destination.is_ipv4());
        found.extend(address.map(|address| (nic.envelope.id.clone(), address)));
    }
    found.sort_by_key(|(id, address)| (!named.contains(address), id.clone()));
    found
}
