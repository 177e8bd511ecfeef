//! Flow logs below a network watcher, and the actions `queryFlowLogStatus` and `configureFlowLog` (N14).

use crate::arm::call::Call;
use crate::arm::resource;
use crate::rest::Rest;
use crate::rest::failure::{Failure, empty, excerpt, ok};
use axum::response::Response;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tombolo_proto::id::ResourceId;
use tombolo_topology::change::Change;
use tombolo_topology::path::ArmPath;
use tombolo_topology::topology::Topology;

/// Longest name of a flow log, in characters.
const MAX_NAME: usize = 80;

/// GET of the flow logs below a watcher that exists.
pub(super) fn list(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    if call.method != Method::GET {
        return Err(Failure::method(&call.method, &call.text()));
    }
    let topology = rest.app.writer.current().topology;
    // The resource group of watchers exists from the first flow log on.
    let value = topology
        .list(&call.text(), &rest.app.agents.statuses())
        .unwrap_or_default();
    Ok(ok(&json!({"value": value})))
}

/// Serves any method on one flow log.
pub(super) async fn item(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    let path = call.item(usize::MAX)?;
    let is_read = matches!(call.method, Method::GET | Method::PATCH);
    if is_read && !rest.app.writer.current().topology.flow_logs.contains_key(&path.id()) {
        let message = format!("Resource {} not found.", excerpt(&call.text()));
        return Err(Failure::missing("NotFound", message));
    }
    let response = resource::item(rest, call).await?;
    if call.method == Method::DELETE && response.status() == StatusCode::OK {
        // Azure's clients accept only 202 and 204 for a DELETE of anything below a watcher.
        let mut accepted = empty(StatusCode::NO_CONTENT);
        accepted.headers_mut().extend(response.headers().clone());
        return Ok(accepted);
    }
    Ok(response)
}

/// POST `queryFlowLogStatus`: the flow log of a resource, or one that is off if there is none.
pub(super) fn status(topology: &Topology, body: &Value) -> Result<Response, Failure> {
    let target = target(topology, body)?;
    Ok(ok(&status_of(topology, &target)))
}

/// POST `configureFlowLog`: changes the flow log of a resource, or creates it. What the request leaves out stays. `watcher`
/// and `location`: the id and the region of the watcher.
pub(super) async fn configure(rest: &Rest, call: &Call, watcher: &str, location: &str) -> Result<Response, Failure> {
    let mut body = call.object()?;
    let topology = rest.app.writer.current().topology;
    let target = target(&topology, &body)?;
    let known = topology.flow_logs.values().find(|log| log.target == target);
    let id = match known {
        Some(log) => log.envelope.id.clone(),
        None => ResourceId::new(format!("{watcher}/flowLogs/{}", name_for(&target))),
    };
    let path = ArmPath::parse(id.as_str()).map_err(|why| Failure::missing("NotFound", format!("{why}.")))?;
    let Value::Object(mut given) = body["properties"].take() else {
        let message = "properties: an object with storageId and enabled is required";
        return Err(Failure::bad("InvalidRequestFormat", message).at("properties"));
    };
    given.insert("targetResourceId".to_owned(), json!(target));
    if let Some(analytics) = body.get_mut("flowAnalyticsConfiguration").map(Value::take) {
        given.insert("flowAnalyticsConfiguration".to_owned(), analytics);
    }
    let present = topology.view(&path, &rest.app.agents.statuses());
    let mut whole = present.unwrap_or_else(|| json!({"location": location, "properties": {}}));
    if let Some(properties) = whole["properties"].as_object_mut() {
        properties.extend(given);
    }
    let change = Change::Put {
        path: path.clone(),
        body: whole,
        if_match: None,
        sync_remote_address_space: false,
    };
    let written = resource::written(rest, change, &path).await?;
    let topology = rest.app.writer.current().topology;
    let mut response = ok(&status_of(&topology, &target));
    let headers = written
        .headers()
        .iter()
        .filter(|(name, _)| name.as_str().starts_with("x-"));
    for (name, value) in headers {
        response.headers_mut().insert(name.clone(), value.clone());
    }
    Ok(response)
}

/// The name of a flow log that a request does not name: that of the target and of its resource group.
fn name_for(target: &ResourceId) -> String {
    let group = ArmPath::parse(target.as_str()).map(|path| path.resource_group);
    let name = target.as_str().rsplit('/').next().unwrap_or_default();
    let name = format!("{name}-{}-flowlog", group.unwrap_or_default());
    name.chars().take(MAX_NAME).collect()
}

/// The resource in the field `targetResourceId`.
///
/// # Errors
/// 400: the field is missing, or nothing that can have a flow log is there.
fn target(topology: &Topology, body: &Value) -> Result<ResourceId, Failure> {
    let Some(target) = body.get("targetResourceId").and_then(Value::as_str) else {
        let message = "targetResourceId: the id of a network security group is required";
        return Err(Failure::bad("InvalidRequestFormat", message).at("targetResourceId"));
    };
    let target = ResourceId::new(target);
    let exists = topology.network_security_groups.contains_key(&target)
        || topology.vnets.contains_key(&target)
        || topology.nics.contains_key(&target)
        || topology
            .vnets
            .values()
            .any(|vnet| vnet.subnets.iter().any(|s| s.id == target));
    if exists {
        return Ok(target);
    }
    let message = format!("targetResourceId: resource {} was not found", excerpt(target.as_str()));
    Err(Failure::bad("InvalidResourceReference", message).at("targetResourceId"))
}

fn status_of(topology: &Topology, target: &ResourceId) -> Value {
    let log = topology.flow_logs.values().find(|log| log.target == *target);
    let (storage, enabled, version) = log.map_or(("", false, 2), |log| {
        (log.storage_id.as_str(), log.enabled, log.version)
    });
    let (days, retains) = log.map_or((0, false), |log| (log.retention_days, log.retention_enabled));
    let echoed = log.and_then(|log| log.envelope.echoed.get("properties"));
    let analytics = echoed.and_then(|properties| properties.get("flowAnalyticsConfiguration"));
    let off = json!({"networkWatcherFlowAnalyticsConfiguration": {"enabled": false}});
    json!({
        "targetResourceId": target,
        "properties": {
            "storageId": storage,
            "enabled": enabled,
            "retentionPolicy": {"days": days, "enabled": retains},
            "format": {"type": "JSON", "version": version},
        },
        "flowAnalyticsConfiguration": analytics.unwrap_or(&off),
    })
}
