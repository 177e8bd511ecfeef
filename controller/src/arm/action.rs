//! Actions of network interfaces and connections. All answer at once.

use super::call::Call;
use super::resource::missing;
use crate::rest::Rest;
use crate::rest::failure::{Failure, at_revision, ok};
use crate::secret;
use axum::response::Response;
use http::Method;
use serde_json::{Value, json};
use tombolo_proto::id::ResourceId;
use tombolo_proto::route::EffectiveRoute;
use tombolo_topology::change::Change;
use tombolo_topology::learned_routes::{self, LearnedReports};
use tombolo_topology::path::{ArmPath, Kind, parent_id};
use tombolo_topology::resource::NetworkInterface;
use tombolo_topology::topology::Topology;

/// Characters of a shared key that is made here, unless asked otherwise, and at most (G11).
const KEY_LENGTH: (u64, u64) = (32, 128);

fn nic<'t>(topology: &'t Topology, call: &Call) -> Result<&'t NetworkInterface, Failure> {
    if call.method != Method::POST {
        return Err(Failure::method(&call.method, &call.text()));
    }
    let path = call.item(call.segments.len() - 1)?;
    if path.kind() != Some(Kind::NetworkInterface) {
        return Err(super::unknown(call));
    }
    let found = topology.nics.get(&path.id());
    found.map(|nic| &**nic).ok_or_else(|| missing(topology, &path))
}

/// POST `networkInterfaces/{n}/effectiveRouteTable`: what its agent has for the subnet of its primary address (R20).
pub(super) fn effective_routes(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    let topology = rest.app.writer.current().topology;
    let nic = nic(&topology, call)?;
    let subnet = nic.ip_configurations.first().map(|c| &c.subnet);
    let reports = LearnedReports::of(&rest.app.agents.live());
    let routes = learned_routes::effective_routes(&topology, &reports, &nic.envelope.id).unwrap_or_default();
    let propagation_off = subnet.is_some_and(|s| propagation_off(&topology, s));
    let value: Vec<_> = routes.iter().map(|r| route(r, propagation_off)).collect();
    Ok(ok(&json!({"value": value})))
}

/// `disableBgpRoutePropagation` of the subnet's route table (R15).
fn propagation_off(topology: &Topology, subnet: &ResourceId) -> bool {
    let vnet = topology.vnets.get(&parent_id(subnet));
    let found = vnet.and_then(|v| v.subnets.iter().find(|s| s.id == *subnet));
    let table = found.and_then(|s| s.route_table.as_ref());
    table
        .and_then(|t| topology.route_tables.get(t))
        .is_some_and(|t| t.disable_bgp_route_propagation)
}

/// The output object (R21).
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

/// POST `networkInterfaces/{n}/effectiveNetworkSecurityGroups`: there are none yet.
pub(super) fn effective_security_groups(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    nic(&rest.app.writer.current().topology, call)?;
    Ok(ok(&json!({"value": []})))
}

/// GET and PUT `connections/{c}/sharedkey`, POST `…/sharedkey/reset`.
pub(super) async fn shared_key(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    let reset = call.lower.last().is_some_and(|last| last == "reset");
    let path = call.item(call.segments.len() - if reset { 2 } else { 1 })?;
    if path.kind() != Some(Kind::Connection) {
        return Err(super::unknown(call));
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
                    let message = "value: the shared key is missing, or is no text";
                    return Err(Failure::bad("InvalidRequestFormat", message).at("value"));
                }
            };
            set_key(rest, call, &path, value, |value| json!({"value": value})).await
        }
        (&Method::POST, true) => {
            let body = call.object()?;
            let length = match body.get("keyLength") {
                None | Some(Value::Null) => KEY_LENGTH.0,
                Some(length) => length
                    .as_u64()
                    .filter(|n| (1..=KEY_LENGTH.1).contains(n))
                    .ok_or_else(|| {
                        let message = format!("keyLength: {length} is not a number within 1 to {}", KEY_LENGTH.1);
                        Failure::bad("InvalidRequestFormat", message).at("keyLength")
                    })?,
            };
            // Letters and digits alone: G11 forbids some of the others.
            let random = std::iter::repeat_with(secret::random).take(8).collect::<String>();
            let letters = random.chars().filter(char::is_ascii_alphanumeric);
            let value: String = letters.take(usize::try_from(length).unwrap_or_default()).collect();
            set_key(rest, call, &path, value, |_| json!({"keyLength": length})).await
        }
        _ => Err(Failure::method(&call.method, &call.text())),
    }
}

/// GET `expressRouteCircuits/{c}/peerings/{p}/sharedkey`: no other answer shows it. Our own, made like the one of
/// connections, so that a declarative client can tell whether it has to write the key.
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
    let committed = rest.app.writer.change(change).await?;
    let topology = &committed.published.topology;
    let connection = topology.connections.get(&id).ok_or_else(|| missing(topology, path))?;
    let mut body = body(&value);
    if let Value::Object(fields) = &mut body {
        fields.insert("id".into(), json!(format!("{}/sharedkey", connection.envelope.id)));
    }
    Ok(at_revision(ok(&body), committed.published.revision))
}
