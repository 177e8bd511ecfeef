//! Network Watcher: each region has a watcher, which need not be created. The answer of the action `nextHop` is
//! computed from the effective routes, that of `ipFlowVerify` from the effective security rules.
//!
//! * `captures`: packet captures, which are resources below a watcher.
//! * `connectivity`: the action `connectivityCheck`.
//! * `diagnostic`: the action `networkConfigurationDiagnostic`.
//! * `associations`: the action `topology`.
//! * `group_view`: the action `securityGroupView`.
//! * `monitors`: connection monitors, which are resources below a watcher.
//! * `troubleshoot`: the actions `troubleshoot` and `queryTroubleshootResult`.
//! * `fields`: reads properties of bodies.
//! * `flow_logs`: flow logs, which are resources below a watcher, and the actions `queryFlowLogStatus` and
//!   `configureFlowLog`.

mod associations;
mod captures;
mod connectivity;
mod diagnostic;
mod fields;
mod flow_logs;
mod group_view;
mod monitors;
mod troubleshoot;

use super::action::nic_security;
use super::call::Call;
use super::subscription::locations;
use crate::rest::Rest;
use crate::rest::failure::{Failure, empty, excerpt, ok};
use axum::response::Response;
use fields::{port, word};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_proto::config::{Access, Direction, GatewayKind};
use tombolo_proto::fabric::Protocol;
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::route::{NextHop, RouteSource, RouteState};
use tombolo_topology::learned_routes::{self, LearnedReports};
use tombolo_topology::nic_security::FirstPacket;
use tombolo_topology::resource::{Binding, NetworkInterface, WATCHER_GROUP as GROUP, WATCHER_PREFIX as PREFIX};
use tombolo_topology::topology::Topology;
use uuid::Uuid;

/// The 404 for a watcher that does not exist.
fn missing(call: &Call, name: &str) -> Failure {
    let message = format!(
        "The Resource 'Microsoft.Network/networkWatchers/{}' under resource group '{}' was not found.",
        excerpt(name),
        excerpt(&call.segments[3])
    );
    Failure::missing("ResourceNotFound", message)
}

/// The refusal of a PUT of a watcher with another name or group than those that Azure gives to watchers. `all`: the
/// regions that have a watcher.
fn second_watcher(all: &BTreeSet<String>, body: &Value) -> Failure {
    let text = body.get("location").and_then(Value::as_str).unwrap_or_default();
    let location: String = text
        .chars()
        .filter(|c| *c != ' ')
        .collect::<String>()
        .to_ascii_lowercase();
    if all.contains(&location) {
        let message = format!(
            "Cannot create more than 1 network watchers for this subscription in this region. The watcher of region \
             '{location}' is {PREFIX}{location} in resource group {GROUP}."
        );
        return Failure::bad("NetworkWatcherCountLimitReached", message).at("location");
    }
    let message = format!(
        "location: '{}' is not a region that has resources; each region that has resources has a network watcher, which \
         need not be created",
        excerpt(text)
    );
    Failure::bad("LocationNotAvailableForResourceType", message).at("location")
}

/// The id of the watcher of a region.
fn watcher_id(subscription: &str, location: &str) -> String {
    format!(
        "/subscriptions/{subscription}/resourceGroups/{GROUP}/providers/Microsoft.Network/networkWatchers/{PREFIX}{location}"
    )
}

fn watcher(subscription: &str, location: &str) -> Value {
    let id = watcher_id(subscription, location);
    json!({
        "name": format!("{PREFIX}{location}"),
        "etag": format!("W/\"{}\"", Uuid::new_v5(&Uuid::NAMESPACE_URL, id.as_bytes())),
        "id": id,
        "type": "Microsoft.Network/networkWatchers",
        "location": location,
        "properties": {"provisioningState": "Succeeded"},
    })
}

/// GET of the network watchers of a subscription.
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

/// Serves the watchers of a resource group, one watcher, and its actions.
pub(super) async fn serve(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    let topology = rest.app.writer.current().topology;
    let here = call.segments[3].eq_ignore_ascii_case(GROUP);
    let all = locations(&topology);
    let Some(name) = call.segments.get(7) else {
        if call.method != Method::GET {
            return Err(Failure::method(&call.method, &call.text()));
        }
        let shown = all.iter().filter(|_| here);
        let value: Vec<_> = shown.map(|l| watcher(&call.segments[1], l)).collect();
        return Ok(ok(&json!({"value": value})));
    };
    let found = all.iter().find(|l| format!("{PREFIX}{l}").eq_ignore_ascii_case(name));
    let child = call.lower.get(8).map(String::as_str);
    let Some(location) = found.filter(|_| here) else {
        let own = format!("/{}", call.segments[..8].join("/"));
        return match call.method {
            // A child stays when the last resource of its region is deleted.
            Method::DELETE if here && child == Some("flowlogs") && call.lower.len() == 10 => {
                flow_logs::item(rest, call).await
            }
            Method::DELETE if here && child == Some("connectionmonitors") && call.lower.len() == 10 => {
                monitors::item(rest, call, &own, "").await
            }
            // Azure's clients accept only 202 and 204 for a DELETE of a watcher, and of everything below it.
            Method::DELETE => Ok(empty(StatusCode::NO_CONTENT)),
            Method::PUT if child.is_none() => Err(second_watcher(&all, &call.object()?)),
            _ => Err(missing(call, name)),
        };
    };
    let id = watcher_id(&call.segments[1], location);
    match (&call.method, call.lower.get(8).map(String::as_str), call.lower.len()) {
        // Clients may send a PUT to create a watcher. The response is the watcher that exists already.
        (&Method::GET | &Method::PUT, None, _) => Ok(ok(&watcher(&call.segments[1], location))),
        (&Method::POST, Some("nexthop"), 9) => {
            let body = call.object()?;
            next_hop(&topology, &LearnedReports::of(&rest.app.agents.statuses()), &body)
        }
        (&Method::POST, Some("ipflowverify"), 9) => {
            let body = call.object()?;
            verify_flow(&topology, &LearnedReports::of(&rest.app.agents.statuses()), &body)
        }
        (&Method::POST, Some("networkconfigurationdiagnostic"), 9) => {
            let body = call.object()?;
            diagnostic::answer(&topology, &LearnedReports::of(&rest.app.agents.statuses()), &body)
        }
        (&Method::POST, Some("connectivitycheck"), 9) => connectivity::answer(rest, &call.object()?).await,
        (&Method::POST, Some("securitygroupview"), 9) => {
            let body = call.object()?;
            group_view::answer(&topology, &LearnedReports::of(&rest.app.agents.statuses()), &body)
        }
        (&Method::POST, Some("troubleshoot"), 9) => troubleshoot::start(rest, &topology, &call.object()?),
        (&Method::POST, Some("querytroubleshootresult"), 9) => troubleshoot::last(rest, &call.object()?),
        (&Method::POST, Some("queryflowlogstatus"), 9) => flow_logs::status(&topology, &call.object()?),
        (&Method::POST, Some("configureflowlog"), 9) => flow_logs::configure(rest, call, &id, location).await,
        (_, Some("flowlogs"), 9) => flow_logs::list(rest, call),
        (_, Some("flowlogs"), 10) => flow_logs::item(rest, call).await,
        (&Method::POST, Some("topology"), 9) => associations::answer(&topology, &call.segments[1], &call.object()?),
        (_, Some("connectionmonitors"), 9) => monitors::list(rest, call, &id),
        (_, Some("connectionmonitors"), 10) => monitors::item(rest, call, &id, location).await,
        (&Method::POST, Some("connectionmonitors"), 11) => monitors::action(rest, call, &id).await,
        (_, Some("packetcaptures"), 9) => captures::list(rest, call, &id),
        (_, Some("packetcaptures"), 10) => captures::item(rest, call, &id).await,
        (&Method::POST, Some("packetcaptures"), 11) => captures::action(rest, call, &id).await,
        // The watcher of a region stays while the region has resources, and a client may create it again at any time.
        (&Method::DELETE, ..) => Ok(empty(StatusCode::NO_CONTENT)),
        (&Method::POST, Some(other), 9) => {
            let message = format!(
                "The action '{}' of network watchers is not supported; connectivityCheck, nextHop, ipFlowVerify, \
                 networkConfigurationDiagnostic, securityGroupView, topology, troubleshoot, queryTroubleshootResult and \
                 queryFlowLogStatus are.",
                excerpt(other)
            );
            Err(Failure::bad("XActionNotSupported", message))
        }
        _ => Err(Failure::method(&call.method, &call.text())),
    }
}

/// POST `nextHop`: the active route with the longest prefix by which a machine reaches a destination. The next hop is
/// `None` if no route matches.
fn next_hop(topology: &Topology, reports: &LearnedReports, body: &Value) -> Result<Response, Failure> {
    let source = address(body, "sourceIPAddress")?;
    let destination = address(body, "destinationIPAddress")?;
    let nic = target_nic(topology, body, "sourceIPAddress", source)?;
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
    Ok(ok(&json!({
        "nextHopType": next_hop_type(topology, &route.next_hop),
        "nextHopIpAddress": route.next_hop.addresses().first(),
        "routeTableId": table.as_ref().map_or("System Route", ResourceId::as_str),
    })))
}

/// The type of a next hop in the words of Network Watcher, which differ from those of effective routes (M3): local and
/// global peerings are both `VnetPeering`, and an ExpressRoute gateway, or an edge of its circuits, is
/// `HyperNetGateway`.
fn next_hop_type(topology: &Topology, hop: &NextHop) -> &'static str {
    let is_express_route = |agent: &AgentId| match topology.agents.get(agent).map(|a| &a.binding) {
        Some(Binding::Edge { .. }) => true,
        Some(Binding::Gateway { gateway, .. }) => {
            let gateway = topology.gateways.get(gateway);
            gateway.is_some_and(|g| g.gateway_type == GatewayKind::ExpressRoute)
        }
        Some(Binding::Vm { .. } | Binding::Site { .. }) | None => false,
    };
    match hop {
        NextHop::VnetPeering { .. } | NextHop::VnetGlobalPeering { .. } => "VnetPeering",
        NextHop::VirtualNetworkGateway { gateways, .. } if gateways.iter().any(|g| is_express_route(&g.agent)) => {
            "HyperNetGateway"
        }
        other => other.type_name(),
    }
}

/// POST `ipFlowVerify`: whether the security rules of a network interface allow the first packet of a flow, and the rule
/// that decides (M4). Routes have no part in the answer. Without a group every packet is allowed, and no rule is named.
fn verify_flow(topology: &Topology, reports: &LearnedReports, body: &Value) -> Result<Response, Failure> {
    let direction = word(
        body,
        "direction",
        [("Inbound", Direction::Inbound), ("Outbound", Direction::Outbound)],
    )?;
    let protocol = word(body, "protocol", [("TCP", Protocol::Tcp), ("UDP", Protocol::Udp)])?;
    let local = address(body, "localIPAddress")?;
    let remote = address(body, "remoteIPAddress")?;
    if local.is_ipv4() != remote.is_ipv4() {
        let message = format!("remoteIPAddress: {remote} is not of the address family of localIPAddress, {local}");
        return Err(Failure::bad("InvalidRequestFormat", message).at("remoteIPAddress"));
    }
    let nic = target_nic(topology, body, "localIPAddress", local)?;
    let (local_port, remote_port) = (port(body, "localPort")?, port(body, "remotePort")?);
    let one = |field: &str, port: Option<u16>| {
        port.ok_or_else(|| {
            let message =
                format!("{field}: '*' is possible for the port of the sender only; name one destination port");
            Failure::bad("InvalidRequestFormat", message).at(field)
        })
    };
    let packet = match direction {
        Direction::Inbound => FirstPacket {
            direction,
            protocol,
            source: remote,
            destination: local,
            source_port: remote_port,
            destination_port: one("localPort", local_port)?,
        },
        Direction::Outbound => FirstPacket {
            direction,
            protocol,
            source: local,
            destination: remote,
            source_port: local_port,
            destination_port: one("remotePort", remote_port)?,
        },
    };
    let security = nic_security(topology, reports, &nic)?;
    let (access, rule) = match security.as_ref().map(|security| security.decide(&packet)) {
        Some(decided) => (decided.access, decided.rule.map(|rule| rule.name.as_str())),
        None => (Access::Allow, None),
    };
    Ok(ok(&json!({"access": access, "ruleName": rule})))
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
        let message = format!("{field}: an IP address is required; it is missing or malformed");
        Failure::bad("InvalidRequestFormat", message).at(field)
    })
}

/// The NIC of `targetNicResourceId`, if that is given, otherwise the NIC with the address `own` of the virtual machine
/// `targetResourceId`. `field`: the property that has the address.
fn target_nic(topology: &Topology, body: &Value, field: &str, own: IpAddr) -> Result<Arc<NetworkInterface>, Failure> {
    let text = |field: &str| body.get(field).and_then(Value::as_str).map(ResourceId::new);
    let unknown = |field: &str, id: &ResourceId| {
        let message = format!("{field}: resource {} was not found", excerpt(id.as_str()));
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
        Binding::Vm { .. } | Binding::Gateway { .. } | Binding::Edge { .. } | Binding::Site { .. } => None,
    });
    let nics: Vec<_> = nics.flatten().filter_map(|id| topology.nics.get(id)).collect();
    let owner = nics
        .iter()
        .find(|n| n.ip_configurations.iter().any(|c| c.address == own));
    match (owner, nics.first()) {
        (Some(nic), _) => Ok((*nic).clone()),
        (None, Some(_)) => {
            let message = format!("{field}: {own} is not an address of {vm}");
            Err(Failure::bad("InvalidRequestFormat", message).at(field))
        }
        (None, None) => Err(unknown("targetResourceId", &vm)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tombolo_proto::config::CircuitLink;
    use tombolo_proto::id::PublicKey;
    use tombolo_proto::route::GatewayHop;
    use tombolo_topology::resource::{Agent, Reach};

    fn id(tail: &str) -> ResourceId {
        ResourceId::new(format!(
            "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/{tail}"
        ))
    }

    /// A next hop by an agent with this name.
    fn by(agent: &str) -> NextHop {
        NextHop::VirtualNetworkGateway {
            gateways: vec![GatewayHop {
                agent: AgentId::new(agent).unwrap(),
                address: "10.0.255.4".parse().unwrap(),
            }],
            spread: false,
        }
    }

    /// M3: local and global peerings have one name, and next hops by ExpressRoute have their own.
    #[test]
    fn m3_the_words_of_network_watcher() {
        let mut topology = Topology::default();
        let circuit = id("expressRouteCircuits/c");
        for (name, binding) in [
            (
                "edge",
                Binding::Edge {
                    circuit,
                    link: CircuitLink::Primary,
                },
            ),
            (
                "vpn",
                Binding::Gateway {
                    gateway: id("virtualNetworkGateways/vpn"),
                    ip_configuration: "default".to_owned(),
                },
            ),
        ] {
            let agent = Agent {
                id: AgentId::new(name).unwrap(),
                binding,
                public_key: PublicKey([0; 32]),
                certificate_key: String::new(),
                reach: Reach::at(Vec::new()),
                revoked: false,
            };
            topology.agents.insert(agent.id.clone(), Arc::new(agent));
        }
        let peering = id("virtualNetworks/v/virtualNetworkPeerings/p");
        let global = NextHop::VnetGlobalPeering {
            peering: peering.clone(),
        };
        for (hop, expected) in [
            (NextHop::VnetPeering { peering }, "VnetPeering"),
            (global, "VnetPeering"),
            (by("edge"), "HyperNetGateway"),
            (by("vpn"), "VirtualNetworkGateway"),
            (by("gone"), "VirtualNetworkGateway"),
            (NextHop::Internet {}, "Internet"),
        ] {
            assert_eq!(next_hop_type(&topology, &hop), expected, "{hop:?}");
        }
    }
}
