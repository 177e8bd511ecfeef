//! Flow logs below a network watcher, and the action `queryFlowLogStatus` (N14).

use crate::arm::call::Call;
use crate::arm::resource;
use crate::rest::Rest;
use crate::rest::failure::{Failure, empty, excerpt, ok};
use axum::response::Response;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tombolo_proto::id::ResourceId;
use tombolo_topology::topology::Topology;

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
    if !exists {
        let message = format!("targetResourceId: resource {} was not found", excerpt(target.as_str()));
        return Err(Failure::bad("InvalidResourceReference", message).at("targetResourceId"));
    }
    let log = topology.flow_logs.values().find(|log| log.target == target);
    let (storage, enabled, version) = log.map_or(("", false, 2), |log| {
        (log.storage_id.as_str(), log.enabled, log.version)
    });
    let (days, retains) = log.map_or((0, false), |log| (log.retention_days, log.retention_enabled));
    let echoed = log.and_then(|log| log.envelope.echoed.get("properties"));
    let analytics = echoed.and_then(|properties| properties.get("flowAnalyticsConfiguration"));
    let off = json!({"networkWatcherFlowAnalyticsConfiguration": {"enabled": false}});
    Ok(ok(&json!({
        "targetResourceId": target,
        "properties": {
            "storageId": storage,
            "enabled": enabled,
            "retentionPolicy": {"days": days, "enabled": retains},
            "format": {"type": "JSON", "version": version},
        },
        "flowAnalyticsConfiguration": analytics.unwrap_or(&off),
    })))
}
