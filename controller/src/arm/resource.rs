//! Resources and collections: reads HTTP requests, calls the rules and views of the topology, and makes the responses.

use super::call::Call;
use crate::rest::Rest;
use crate::rest::failure::{Failure, at_revision, empty, excerpt, ok, reply};
use axum::response::Response;
use http::header::{ETAG, HeaderValue, LOCATION, RETRY_AFTER};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tombolo_topology::change::Change;
use tombolo_topology::path::{ArmPath, Kind};
use tombolo_topology::topology::Topology;
use uuid::Uuid;

/// Types of `Microsoft.Network` that stock clients read and that this controller does not support. Their lists are
/// empty, and their resources do not exist. If a type becomes a [`Kind`], its entry here has no effect.
const UNSUPPORTED_TYPES: [&str; 9] = [
    "natgateways",
    "expressroutegateways",
    "publicipprefixes",
    "privateendpoints",
    "bastionhosts",
    "azurefirewalls",
    "applicationgateways",
    "virtualwans",
    "virtualhubs",
];

/// Whether a type is one of [`UNSUPPORTED_TYPES`]. Types are compared case-insensitively.
fn is_unsupported(provider: &str, types: &str) -> bool {
    let known = UNSUPPORTED_TYPES.iter().any(|t| t.eq_ignore_ascii_case(types));
    provider.eq_ignore_ascii_case("Microsoft.Network") && known && Kind::of(provider, types).is_none()
}

/// GET of a collection in a resource group, a subscription or a parent resource: all its items in one response, without
/// pages.
pub(super) fn collection(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    if call.method != Method::GET {
        return Err(Failure::method(&call.method, &call.text()));
    }
    let topology = rest.app.writer.current().topology;
    match topology.list(&call.text(), &rest.app.agents.statuses()) {
        Ok(value) => Ok(ok(&json!({"value": value}))),
        Err(rejection) => match call.segments.as_slice() {
            [.., provider, types] if is_unsupported(provider, types) => {
                if let [_, _, groups, group, ..] = call.segments.as_slice()
                    && groups.eq_ignore_ascii_case("resourceGroups")
                {
                    require_group(&topology, &call.item(4)?, group)?;
                }
                Ok(ok(&json!({"value": []})))
            }
            _ => Err(rejection.into()),
        },
    }
}

/// Checks that a resource group exists.
fn require_group(topology: &Topology, path: &ArmPath, name: &str) -> Result<(), Failure> {
    if topology.resource_groups.contains_key(&path.group_id()) {
        return Ok(());
    }
    let message = format!("Resource group '{}' could not be found.", excerpt(name));
    Err(Failure::missing("ResourceGroupNotFound", message))
}

/// Serves any method on one resource or resource group: GET, HEAD, PUT, PATCH (tags only) and DELETE.
pub(super) async fn item(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    let path = call.item(usize::MAX)?;
    let types = path.types();
    if let Some(provider) = path.provider.as_deref().filter(|p| is_unsupported(p, &types)) {
        return unsupported_item(rest, call, &path, &format!("{provider}/{types}"));
    }
    match call.method {
        Method::GET => get(&rest.app.writer.current().topology, rest, &path),
        Method::HEAD => match get(&rest.app.writer.current().topology, rest, &path) {
            Ok(_) => Ok(empty(StatusCode::NO_CONTENT)),
            Err(_) => Ok(empty(StatusCode::NOT_FOUND)),
        },
        Method::PUT => put(rest, call, path).await,
        Method::PATCH => patch(rest, call, path).await,
        Method::DELETE => delete(rest, call, path).await,
        _ => Err(Failure::method(&call.method, &call.text())),
    }
}

/// Serves any method on a resource of a type in [`UNSUPPORTED_TYPES`]: refuses writes, answers reads as for a resource
/// that does not exist, and does nothing for a DELETE.
fn unsupported_item(rest: &Rest, call: &Call, path: &ArmPath, types: &str) -> Result<Response, Failure> {
    match call.method {
        Method::PUT | Method::PATCH => {
            let message = format!("Resources of type '{types}' are not supported by this controller.");
            Err(Failure::bad("XResourceTypeNotSupported", message).at(path.id().to_string()))
        }
        Method::DELETE => Ok(empty(StatusCode::NO_CONTENT)),
        _ => Err(missing(&rest.app.writer.current().topology, path)),
    }
}

fn get(topology: &Topology, rest: &Rest, path: &ArmPath) -> Result<Response, Failure> {
    match topology.view(path, &rest.app.agents.statuses()) {
        Some(body) => Ok(tagged(ok(&body), &body)),
        None => Err(missing(topology, path)),
    }
}

/// The 404 for a path. Its code is Azure's for what does not exist: the resource group, the type or the resource.
pub(super) fn missing(topology: &Topology, path: &ArmPath) -> Failure {
    if !topology.resource_groups.contains_key(&path.group_id()) {
        let message = format!("Resource group '{}' could not be found.", excerpt(&path.resource_group));
        return Failure::missing("ResourceGroupNotFound", message);
    }
    let provider = path.provider.as_deref().unwrap_or_default();
    let types = path.types();
    if path.kind().is_none() && !is_unsupported(provider, &types) {
        let message = format!(
            "The resource type '{}' could not be found in the namespace '{}'.",
            excerpt(&types),
            excerpt(provider)
        );
        return Failure::missing("InvalidResourceType", message);
    }
    match path.parent() {
        Some(_) => Failure::missing(
            "NotFound",
            format!("Resource {} not found.", excerpt(path.id().as_str())),
        ),
        None => {
            let message = format!(
                "The Resource '{provider}/{types}/{}' under resource group '{}' was not found.",
                excerpt(path.name()),
                excerpt(&path.resource_group)
            );
            Failure::missing("ResourceNotFound", message)
        }
    }
}

/// Adds the `etag` of the body as the header `ETag`.
fn tagged(mut response: Response, body: &Value) -> Response {
    let tag = body.get("etag").and_then(Value::as_str);
    if let Some(tag) = tag.and_then(|t| HeaderValue::from_str(t).ok()) {
        response.headers_mut().insert(ETAG, tag);
    }
    response
}

async fn put(rest: &Rest, call: &Call, path: ArmPath) -> Result<Response, Failure> {
    let sync = call.query.get("syncremoteaddressspace");
    let change = Change::Put {
        path: path.clone(),
        body: call.object()?,
        if_match: call.if_match(),
        sync_remote_address_space: sync.is_some_and(|v| v.eq_ignore_ascii_case("true")),
    };
    written(rest, change, &path).await
}

async fn patch(rest: &Rest, call: &Call, path: ArmPath) -> Result<Response, Failure> {
    let change = Change::PatchTags {
        path: path.clone(),
        body: call.object()?,
        if_match: call.if_match(),
    };
    written(rest, change, &path).await
}

/// Carries out a change of a resource, and waits until it is durable. The response has the new state of the resource:
/// 201 if a PUT created it, otherwise 200.
pub(super) async fn written(rest: &Rest, change: Change, path: &ArmPath) -> Result<Response, Failure> {
    let put = matches!(change, Change::Put { .. });
    let committed = rest.change(change).await?;
    let topology = &committed.published.topology;
    let body = topology.view(path, &rest.app.agents.statuses());
    let body = body.ok_or_else(|| missing(topology, path))?;
    let status = if put && committed.created_or_removed {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    Ok(at_revision(
        tagged(reply(status, &body), &body),
        committed.published.revision,
    ))
}

/// The response 202 to a request that Azure carries out asynchronously, with the URL of the result of the operation.
/// The operation has ended already.
pub(super) fn accepted(call: &Call) -> Response {
    let mut response = empty(StatusCode::ACCEPTED);
    let operation = format!(
        "{}/subscriptions/{}/operationresults/{}{}",
        call.base,
        call.segments[1],
        Uuid::new_v4(),
        call.api_version()
    );
    if let Ok(location) = HeaderValue::from_str(&operation) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
        .headers_mut()
        .insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// Deletes a resource (status 200), or a resource group with all its resources (status 202). The status is 204 if the
/// resource or group does not exist. A virtual machine's agent is removed with the machine.
async fn delete(rest: &Rest, call: &Call, path: ArmPath) -> Result<Response, Failure> {
    let group = path.kind() == Some(Kind::ResourceGroup);
    let may_remove_agents = group || path.kind() == Some(Kind::VirtualMachine);
    let id = path.id();
    let change = Change::Delete {
        path,
        if_match: call.if_match(),
    };
    let committed = rest.change(change).await?;
    if group && committed.created_or_removed {
        rest.deployments.forget_group(&rest.app.writer, &id).await?;
    }
    if group {
        rest.monitors.delete_below(&rest.app.writer, id.as_str()).await?;
    }
    if may_remove_agents && committed.created_or_removed {
        tracing::info!(%id, "deleted with its agents");
        rest.app.agents.forget_deleted();
    }
    let response = match (committed.created_or_removed, group) {
        (true, false) => empty(StatusCode::OK),
        // Clients expect that the deletion of a resource group is asynchronous. Here it has ended before a client first
        // asks for its state.
        (true, true) => accepted(call),
        (false, _) => empty(StatusCode::NO_CONTENT),
    };
    Ok(at_revision(response, committed.published.revision))
}
