//! Actions that show BGP routes and sessions of gateways and circuits. The figures come from the last reports of the
//! gateways' instances and the circuits' edges. All actions respond synchronously.

use super::call::Call;
use super::resource::missing;
use crate::rest::Rest;
use crate::rest::failure::{Failure, excerpt, ok};
use axum::response::Response;
use http::Method;
use serde_json::{Value, json};
use std::net::IpAddr;
use tombolo_proto::config::CircuitLink;
use tombolo_topology::path::parent_id;

/// Checks that the method is POST. Every action is a POST in ARM.
fn require_post(call: &Call) -> Result<(), Failure> {
    if call.method == Method::POST {
        return Ok(());
    }
    Err(Failure::method(&call.method, &call.text()))
}

/// The address of the query parameter `peer`, if it is given.
fn peer(call: &Call) -> Result<Option<IpAddr>, Failure> {
    let Some(text) = call.query.get("peer") else {
        return Ok(None);
    };
    let wrong = || {
        let message = format!("peer: '{}' is not an IP address", excerpt(text));
        Failure::bad("InvalidIPAddressFormat", message).at("peer")
    };
    text.parse().map(Some).map_err(|_| wrong())
}

/// POST `virtualNetworkGateways/{g}/getLearnedRoutes`, `…/getAdvertisedRoutes?peer=` and `…/getBgpPeerStatus`. Learned
/// routes of an instance that has not reported yet are missing.
pub(super) fn gateway(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    require_post(call)?;
    let path = call.item(call.segments.len() - 1)?;
    let (topology, live) = (rest.app.writer.current().topology, rest.app.agents.statuses());
    let peer = peer(call)?;
    let id = path.id();
    let value = match call.lower.last().map(String::as_str) {
        Some("getlearnedroutes") => topology.learned_routes(&id, &live),
        Some("getbgppeerstatus") => topology.bgp_peers(&id, &live).map(|mut all| {
            // As in Azure, `peer` restricts the list to one peer.
            all.retain(|p| peer.is_none_or(|peer| p["neighbor"] == json!(peer)));
            all
        }),
        _ => {
            let message = "peer: the query parameter is required: ?peer=ADDRESS";
            let peer = peer.ok_or_else(|| Failure::bad("InvalidRequestFormat", message).at("peer"))?;
            topology.advertised_routes(&id, peer, &live)
        }
    };
    let value: Vec<Value> = value.ok_or_else(|| missing(&topology, &path))?;
    Ok(ok(&json!({"value": value})))
}

/// POST `expressRouteCircuits/{c}/peerings/{p}/routeTables/{link}` and `…/routeTablesSummary/{link}`: routes of the
/// circuit's primary or secondary link.
pub(super) fn circuit(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    require_post(call)?;
    let path = call.item(call.segments.len() - 2)?;
    let last = call.lower.last().map(String::as_str).unwrap_or_default();
    let link = match last {
        "primary" => CircuitLink::Primary,
        "secondary" => CircuitLink::Secondary,
        other => {
            let message = format!(
                "devicePath: '{}' is not valid; allowed are primary and secondary (E1)",
                excerpt(other)
            );
            return Err(Failure::bad("InvalidRequestFormat", message).at("devicePath"));
        }
    };
    let (topology, live) = (rest.app.writer.current().topology, rest.app.agents.statuses());
    if topology.view(&path, &live).is_none() {
        return Err(missing(&topology, &path));
    }
    let circuit = parent_id(&path.id());
    let summary = call.lower.iter().any(|s| s == "routetablessummary");
    let value = match summary {
        true => topology.circuit_routes_summary(&circuit, link, &live),
        false => topology.circuit_routes(&circuit, link, &live),
    };
    let value: Vec<Value> = value.ok_or_else(|| missing(&topology, &path))?;
    Ok(ok(&json!({"value": value})))
}
