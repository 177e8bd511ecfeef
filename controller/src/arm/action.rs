//! Actions of network interfaces and connections. All of them respond synchronously with 200. Azure may respond to the
//! same requests with 202.

use super::call::Call;
use super::effective_security;
use super::resource::{accepted, missing};
use crate::rest::Rest;
use crate::rest::failure::{Failure, at_revision, ok};
use crate::secret;
use axum::response::Response;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tombolo_proto::id::ResourceId;
use tombolo_proto::route::EffectiveRoute;
use tombolo_topology::change::Change;
use tombolo_topology::learned_routes::{self, LearnedReports};
use tombolo_topology::nic_security::NicSecurity;
use tombolo_topology::path::{ArmPath, Kind, parent_id};
use tombolo_topology::resource::{Binding, NetworkInterface};
use tombolo_topology::topology::Topology;

/// Number of characters of a generated shared key if the request has no `keyLength`.
const DEFAULT_KEY_LENGTH: u64 = 32;
/// Maximum number of characters of a generated shared key: Azure's limit for shared keys (G11).
const MAX_KEY_LENGTH: u64 = 128;

/// The network interface that the path of an action names.
///
/// # Errors
/// 405 if the method is not POST, 404 if the path names no network interface or one that does not exist.
fn nic<'t>(topology: &'t Topology, call: &Call) -> Result<&'t NetworkInterface, Failure> {
    if call.method != Method::POST {
        return Err(Failure::method(&call.method, &call.text()));
    }
    let path = call.item(call.segments.len() - 1)?;
    if path.kind() != Some(Kind::NetworkInterface) {
        return Err(call.not_found());
    }
    let found = topology.nics.get(&path.id());
    found.map(|nic| &**nic).ok_or_else(|| missing(topology, &path))
}

/// POST `networkInterfaces/{n}/effectiveRouteTable`: the routes that the machine's agent uses for the subnet of the
/// network interface's primary address (R20). If the machine has no agent: the subnet's routes as the controller
/// compiles them, without learned routes.
pub(super) fn effective_routes(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    let topology = rest.app.writer.current().topology;
    let nic = nic(&topology, call)?;
    let subnet = nic.ip_configurations.first().map(|c| &c.subnet);
    let reports = LearnedReports::of(&rest.app.agents.statuses());
    let routes = learned_routes::effective_routes(&topology, &reports, &nic.envelope.id).unwrap_or_default();
    let propagation_off = subnet.is_some_and(|s| propagation_off(&topology, s));
    let value: Vec<_> = routes.iter().map(|r| route(r, propagation_off)).collect();
    Ok(ok(&json!({"value": value})))
}

/// Whether the route table of a subnet has `disableBgpRoutePropagation` (R15).
fn propagation_off(topology: &Topology, subnet: &ResourceId) -> bool {
    let vnet = topology.vnets.get(&parent_id(subnet));
    let found = vnet.and_then(|v| v.subnets.iter().find(|s| s.id == *subnet));
    let table = found.and_then(|s| s.route_table.as_ref());
    table
        .and_then(|t| topology.route_tables.get(t))
        .is_some_and(|t| t.disable_bgp_route_propagation)
}

/// An effective route in Azure's JSON (R21). `propagation_off`: the subnet's route table has
/// `disableBgpRoutePropagation`.
fn route(route: &EffectiveRoute, propagation_off: bool) -> Value {
    json!({
        "name": route.name,
        "source": route.source,
        "state": route.state,
        "addressPrefix": [route.prefix],
        "nextHopType": route.next_hop.type_name(),
        "nextHopIpAddress": route.next_hop.addresses(),
        "disableBgpRoutePropagation": propagation_off,
    })
}

/// POST `networkInterfaces/{n}/effectiveNetworkSecurityGroups`: the rules of the groups that apply to the network
/// interface, with the meaning that tags have for the machine's agent, learned routes included (N8). If the machine has
/// no agent: without learned routes.
pub(super) fn effective_security_groups(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    let topology = rest.app.writer.current().topology;
    let nic = nic(&topology, call)?;
    let reports = LearnedReports::of(&rest.app.agents.statuses());
    let security = nic_security(&topology, &reports, nic)?;
    let groups = security
        .iter()
        .flat_map(|s| s.groups().map(move |g| effective_security::group(s, &g, nic)));
    Ok(ok(&json!({"value": groups.collect::<Vec<_>>(), "nextLink": null})))
}

/// The security groups of a network interface; `None` if none applies (N5).
pub(super) fn nic_security(
    topology: &Topology,
    reports: &LearnedReports,
    nic: &NetworkInterface,
) -> Result<Option<NicSecurity>, Failure> {
    let id = &nic.envelope.id;
    NicSecurity::of(topology, reports, id).map_err(|what| {
        // Clients would repeat a request that is answered with 500, although the answer stays the same.
        let message = format!("The configuration of the agent of {id} cannot be used: {what}");
        Failure::new(StatusCode::CONFLICT, "XConfigurationNotUsable", message).at(id.to_string())
    })
}

/// POST `virtualNetworkGateways/{g}/reset`: resets the control streams of the gateway's agents ([`Agents::reset`]), and
/// returns the gateway. Packets keep flowing.
///
/// [`Agents::reset`]: crate::agents::Agents::reset
pub(super) fn reset_gateway(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    let path = posted(call)?;
    let topology = rest.app.writer.current().topology;
    let body = topology.view(&path, &rest.app.agents.statuses());
    let body = body.ok_or_else(|| missing(&topology, &path))?;
    reset_agents(rest, &topology, &path.id());
    Ok(ok(&body))
}

/// POST `connections/{c}/resetconnection`: resets the control streams of the agents of the connection's gateway. The
/// status is 202, the only one that Azure's clients accept.
pub(super) fn reset_connection(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    let path = posted(call)?;
    let topology = rest.app.writer.current().topology;
    let connection = topology.connections.get(&path.id());
    let gateway = connection.ok_or_else(|| missing(&topology, &path))?.gateway1.clone();
    reset_agents(rest, &topology, &gateway);
    Ok(accepted(call))
}

/// The resource on which the last segment of the path, an action, is called.
///
/// # Errors
/// 405 if the method is not POST, 404 if the path is not that of a resource.
pub(super) fn posted(call: &Call) -> Result<ArmPath, Failure> {
    if call.method != Method::POST {
        return Err(Failure::method(&call.method, &call.text()));
    }
    call.item(call.segments.len() - 1)
}

/// Resets the control streams of the agents of a gateway's instances.
fn reset_agents(rest: &Rest, topology: &Topology, gateway: &ResourceId) {
    for agent in topology.agents.values().filter(|a| !a.revoked) {
        if matches!(&agent.binding, Binding::Gateway { gateway: g, .. } if g == gateway) {
            rest.app.agents.reset(&agent.id);
        }
    }
}

/// GET and PUT `connections/{c}/sharedkey`, and POST `…/sharedkey/reset`, which generates a key of `keyLength`
/// characters and does not return it.
pub(super) async fn shared_key(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    let reset = call.lower.last().is_some_and(|last| last == "reset");
    let path = call.item(call.segments.len() - if reset { 2 } else { 1 })?;
    if path.kind() != Some(Kind::Connection) {
        return Err(call.not_found());
    }
    let id = path.id();
    let topology = rest.app.writer.current().topology;
    let connection = topology.connections.get(&id).ok_or_else(|| missing(&topology, &path))?;
    match (&call.method, reset) {
        (&Method::GET, false) => {
            let value = connection.shared_key.as_deref().unwrap_or_default();
            Ok(ok(
                &json!({"id": format!("{}/sharedkey", connection.envelope.id), "value": value}),
            ))
        }
        (&Method::PUT, false) => {
            let body = call.object()?;
            let value = match body.get("value") {
                Some(Value::String(value)) => value.clone(),
                _ => {
                    let message = "value: the shared key is missing, or is not a string";
                    return Err(Failure::bad("InvalidRequestFormat", message).at("value"));
                }
            };
            set_key(rest, call, &path, value, |value| json!({"value": value})).await
        }
        (&Method::POST, true) => {
            let body = call.object()?;
            let length = match body.get("keyLength") {
                None | Some(Value::Null) => DEFAULT_KEY_LENGTH,
                Some(length) => length
                    .as_u64()
                    .filter(|n| (1..=MAX_KEY_LENGTH).contains(n))
                    .ok_or_else(|| {
                        let message = format!("keyLength: {length} is not a whole number from 1 to {MAX_KEY_LENGTH}");
                        Failure::bad("InvalidRequestFormat", message).at("keyLength")
                    })?,
            };
            // The key is Base64url without `-` and `_`, because letters and digits are allowed at every position of a
            // key (G11). 8 secrets have 344 characters, of which some 333 remain.
            let random = std::iter::repeat_with(secret::random).take(8).collect::<String>();
            let letters = random.chars().filter(char::is_ascii_alphanumeric);
            let value: String = letters.take(usize::try_from(length).unwrap_or_default()).collect();
            set_key(rest, call, &path, value, |_| json!({"keyLength": length})).await
        }
        _ => Err(Failure::method(&call.method, &call.text())),
    }
}

/// GET `expressRouteCircuits/{c}/peerings/{p}/sharedkey`: returns the shared key of a peering, which no other response
/// contains. Azure has no such path. It has the same form as the path for connections, so that declarative clients can
/// compare the key before they write it.
pub(super) fn circuit_key(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    if call.method != Method::GET {
        return Err(Failure::method(&call.method, &call.text()));
    }
    let path = call.item(call.segments.len() - 1)?;
    let topology = rest.app.writer.current().topology;
    let circuit = topology.circuits.get(&parent_id(&path.id()));
    let peering = circuit
        .and_then(|c| c.private_peering.as_ref())
        .filter(|p| p.id == path.id());
    let peering = peering.ok_or_else(|| missing(&topology, &path))?;
    let value = peering.shared_key.as_deref().unwrap_or_default();
    Ok(ok(&json!({"id": format!("{}/sharedkey", peering.id), "value": value})))
}

/// Sets the shared key of a connection, and returns when the key is durable. `body` makes the response's body from the
/// key; this function adds the id to the body.
async fn set_key(
    rest: &Rest,
    call: &Call,
    path: &ArmPath,
    value: String,
    body: impl FnOnce(&str) -> Value,
) -> Result<Response, Failure> {
    let id = path.id();
    let change = Change::SetSharedKey {
        connection: id.clone(),
        value: value.clone(),
        if_match: call.if_match(),
    };
    let committed = rest.change(change).await?;
    let topology = &committed.published.topology;
    let connection = topology.connections.get(&id).ok_or_else(|| missing(topology, path))?;
    let mut body = body(&value);
    if let Value::Object(fields) = &mut body {
        fields.insert("id".into(), json!(format!("{}/sharedkey", connection.envelope.id)));
    }
    Ok(at_revision(ok(&body), committed.published.revision))
}
