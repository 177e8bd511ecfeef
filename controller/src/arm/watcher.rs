//! Network watchers: one a region, there without being made. Next hop is answered from the compiled routes.

use super::call::Call;
use super::subscription::locations;
use crate::rest::Rest;
use crate::rest::failure::{Failure, ok, shown};
use axum::response::Response;
use http::Method;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_proto::id::ResourceId;
use tombolo_proto::route::{NextHop, RouteSource, RouteState};
use tombolo_topology::learned_routes::{self, LearnedReports};
use tombolo_topology::resource::{Binding, NetworkInterface};
use tombolo_topology::topology::Topology;
use uuid::Uuid;

/// Where Azure puts them.
const GROUP: &str = "NetworkWatcherRG";
const PREFIX: &str = "NetworkWatcher_";

fn watcher(subscription: &str, location: &str) -> Value {
    let id = format!(
        "/subscriptions/{subscription}/resourceGroups/{GROUP}/providers/Microsoft.Network/networkWatchers/{PREFIX}{location}"
    );
    json!({
        "name": format!("{PREFIX}{location}"),
        "etag": format!("W/\"{}\"", Uuid::new_v5(&Uuid::NAMESPACE_URL, id.as_bytes())),
        "id": id,
        "type": "Microsoft.Network/networkWatchers",
        "location": location,
        "properties": {"provisioningState": "Succeeded"},
    })
}

/// GET of all watchers of a subscription.
pub(super) fn list(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    if call.method != Method::GET {
        return Err(Failure::method(&call.method, &call.text()));
    }
    let topology = rest.app.writer.current().topology;
    let value: Vec<_> = locations(&topology)
        .iter()
        .map(|l| watcher(&call.segments[1], l))
        .collect();
    Ok(ok(&json!({"value": value})))
}

/// A group's watchers, one watcher, and what it can be asked.
pub(super) fn serve(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    let topology = rest.app.writer.current().topology;
    let here = call.segments[3].eq_ignore_ascii_case(GROUP);
    let all = locations(&topology);
    let Some(name) = call.segments.get(7) else {
        let shown = all.iter().filter(|_| here);
        let value: Vec<_> = shown.map(|l| watcher(&call.segments[1], l)).collect();
        return Ok(ok(&json!({"value": value})));
    };
    let found = all.iter().find(|l| format!("{PREFIX}{l}").eq_ignore_ascii_case(name));
    let Some(location) = found.filter(|_| here) else {
        let message = format!(
            "The Resource 'Microsoft.Network/networkWatchers/{}' under resource group '{}' was not found.",
            shown(name),
            shown(&call.segments[3])
        );
        return Err(Failure::missing("ResourceNotFound", message));
    };
    match (&call.method, call.lower.get(8).map(String::as_str), call.lower.len()) {
        // Clients that make one get the one that is there.
        (&Method::GET | &Method::PUT, None, _) => Ok(ok(&watcher(&call.segments[1], location))),
        (&Method::POST, Some("nexthop"), 9) => {
            let body = call.object()?;
            next_hop(&topology, &LearnedReports::of(&rest.app.agents.live()), &body)
        }
        (&Method::POST, Some(other), 9) => {
            let message = format!("A network watcher cannot be asked for '{}' here yet.", shown(other));
            Err(Failure::bad("XActionNotSupported", message))
        }
        _ => Err(Failure::method(&call.method, &call.text())),
    }
}

/// POST `nextHop`: the route that a packet of a machine takes, by the routes that its agent runs.
fn next_hop(topology: &Topology, reports: &LearnedReports, body: &Value) -> Result<Response, Failure> {
    let source = address(body, "sourceIPAddress")?;
    let destination = address(body, "destinationIPAddress")?;
    let nic = source_nic(topology, body, source)?;
    let subnet = nic
        .ip_configurations
        .iter()
        .find(|c| c.address == source)
        .or(nic.ip_configurations.first());
    let subnet = subnet.map(|c| &c.subnet);
    let routes = learned_routes::effective_routes(topology, reports, &nic.envelope.id).unwrap_or_default();
    let active = routes
        .iter()
        .filter(|r| r.state == RouteState::Active && r.prefix.contains(&destination));
    let Some(route) = active.max_by_key(|r| r.prefix.prefix_len()) else {
        return Ok(ok(&json!({"nextHopType": "None", "routeTableId": "System Route"})));
    };
    let table = match route.source {
        RouteSource::User => subnet.and_then(|s| route_table(topology, s)),
        RouteSource::Default | RouteSource::VirtualNetworkGateway => None,
    };
    // M3: Network Watcher has words of its own, and one for both kinds of peerings.
    let kind = match &route.next_hop {
        NextHop::VnetPeering { .. } | NextHop::VnetGlobalPeering { .. } => "VnetPeering",
        other => other.type_name(),
    };
    Ok(ok(&json!({
        "nextHopType": kind,
        "nextHopIpAddress": route.next_hop.addresses().first(),
        "routeTableId": table.as_ref().map_or("System Route", ResourceId::as_str),
    })))
}

fn route_table(topology: &Topology, subnet: &ResourceId) -> Option<ResourceId> {
    let mut subnets = topology.vnets.values().flat_map(|v| &v.subnets);
    subnets.find(|s| s.id == *subnet)?.route_table.clone()
}

fn address(body: &Value, field: &str) -> Result<IpAddr, Failure> {
    let parsed = body
        .get(field)
        .and_then(Value::as_str)
        .and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| {
        let message = format!("{field}: an IP address is required");
        Failure::bad("InvalidRequestFormat", message).at(field)
    })
}

/// The NIC that is named, or the one of the named machine that has the source address.
fn source_nic(topology: &Topology, body: &Value, source: IpAddr) -> Result<Arc<NetworkInterface>, Failure> {
    let text = |field: &str| body.get(field).and_then(Value::as_str).map(ResourceId::new);
    let unknown = |field: &str, id: &ResourceId| {
        let message = format!("{field}: resource {} was not found", shown(id.as_str()));
        Failure::bad("InvalidResourceReference", message).at(field)
    };
    if let Some(id) = text("targetNicResourceId") {
        return topology
            .nics
            .get(&id)
            .cloned()
            .ok_or_else(|| unknown("targetNicResourceId", &id));
    }
    let Some(vm) = text("targetResourceId") else {
        let message = "targetResourceId: the id of a virtual machine is required";
        return Err(Failure::bad("InvalidRequestFormat", message).at("targetResourceId"));
    };
    let agents = topology.agents.values().filter(|a| !a.revoked);
    let nics = agents.filter_map(|agent| match &agent.binding {
        Binding::Vm { vm: id, nics, .. } if *id == vm => Some(nics),
        Binding::Vm { .. } | Binding::Gateway { .. } | Binding::Edge { .. } => None,
    });
    let nics: Vec<_> = nics.flatten().filter_map(|id| topology.nics.get(id)).collect();
    let owner = nics
        .iter()
        .find(|n| n.ip_configurations.iter().any(|c| c.address == source));
    match (owner, nics.first()) {
        (Some(nic), _) => Ok((*nic).clone()),
        (None, Some(_)) => {
            let message = format!("sourceIPAddress: {source} is not an address of {vm}");
            Err(Failure::bad("InvalidRequestFormat", message).at("sourceIPAddress"))
        }
        (None, None) => Err(unknown("targetResourceId", &vm)),
    }
}
