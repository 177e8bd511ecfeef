//! POST `troubleshoot` and `queryTroubleshootResult`: the faults of a gateway or a connection (M8). The result is computed at
//! once. It is kept in memory only, and written to no storage account.

use crate::rest::Rest;
use crate::rest::failure::{Failure, excerpt, ok};
use axum::response::Response;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tombolo_proto::id::ResourceId;
use tombolo_topology::topology::Topology;
use tombolo_topology::troubleshoot::{Fault, FaultKind, diagnose};

fn target(body: &Value) -> ResourceId {
    ResourceId::new(body.get("targetResourceId").and_then(Value::as_str).unwrap_or_default())
}

fn now() -> String {
    OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default()
}

/// POST `troubleshoot`.
pub(super) fn start(rest: &Rest, topology: &Topology, body: &Value) -> Result<Response, Failure> {
    let (begin, target) = (now(), target(body));
    let faults = diagnose(topology, &rest.app.agents.statuses(), &target).ok_or_else(|| {
        let message = format!(
            "targetResourceId: '{}' is neither a virtual network gateway nor a connection",
            excerpt(target.as_str())
        );
        Failure::bad("InvalidResourceReference", message).at("targetResourceId")
    })?;
    let is_healthy = faults.iter().all(|fault| fault.kind == FaultKind::NoFault);
    let result = json!({
        "startTime": begin,
        "endTime": now(),
        "code": if is_healthy { "Healthy" } else { "UnHealthy" },
        "results": faults.iter().map(shown).collect::<Vec<_>>(),
    });
    let exists = |id: &ResourceId| topology.gateways.contains_key(id) || topology.connections.contains_key(id);
    rest.troubleshooting.set(target, result.clone(), exists);
    Ok(ok(&result))
}

/// POST `queryTroubleshootResult`.
pub(super) fn last(rest: &Rest, body: &Value) -> Result<Response, Failure> {
    let target = target(body);
    let result = rest.troubleshooting.get(&target).ok_or_else(|| {
        let message = format!(
            "There is no result for {}; call the action troubleshoot first.",
            excerpt(target.as_str())
        );
        Failure::missing("NotFound", message)
    })?;
    Ok(ok(&result))
}

fn shown(fault: &Fault) -> Value {
    let actions = match fault.action.as_str() {
        "" => json!([]),
        action => json!([{"actionText": action, "actionUri": "", "actionUriText": ""}]),
    };
    json!({
        "id": fault.kind.name(),
        "reasonType": fault.kind.name(),
        "summary": fault.summary,
        "detail": fault.detail,
        "recommendedActions": actions,
    })
}
