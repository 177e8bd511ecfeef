//! Connection monitors, which are resources below a watcher (D42). Their results are metrics and in the fabric API, because
//! Azure has no request for them.

use super::super::call::Call;
use crate::monitors::{MAX_BODY, MAX_MONITORS};
use crate::rest::Rest;
use crate::rest::failure::{Failure, empty, excerpt, ok, reply};
use axum::response::Response;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tombolo_proto::arm::check_name;
use tombolo_proto::id::ResourceId;
use tombolo_topology::monitor::tests;
use uuid::Uuid;

/// GET of the monitors below a watcher. `watcher`: the id of the watcher.
pub(super) fn list(rest: &Rest, call: &Call, watcher: &str) -> Result<Response, Failure> {
    if call.method != Method::GET {
        return Err(Failure::method(&call.method, &call.text()));
    }
    Ok(ok(&json!({"value": rest.monitors.below(watcher)})))
}

/// A request for one monitor. `location`: the region of the watcher.
pub(super) async fn item(rest: &Rest, call: &Call, watcher: &str, location: &str) -> Result<Response, Failure> {
    let name = &call.segments[9];
    let id = ResourceId::new(format!("{watcher}/connectionMonitors/{name}"));
    match call.method {
        Method::GET => Ok(ok(&found(rest, &id)?)),
        Method::PUT => put(rest, call, id, location).await,
        Method::PATCH => {
            let tags = tags(&call.object()?)?;
            let body = change(rest, id, move |body| body["tags"] = tags).await?;
            Ok(ok(&body))
        }
        // Azure's clients accept only 202 and 204 here.
        Method::DELETE => {
            let gone = |_, _| Ok::<_, Failure>(None);
            rest.monitors.change(&rest.app.writer, id, gone).await?;
            Ok(empty(StatusCode::NO_CONTENT))
        }
        _ => Err(Failure::method(&call.method, &call.text())),
    }
}

/// POST `start` and `stop`, which end or begin the checks.
pub(super) async fn action(rest: &Rest, call: &Call, watcher: &str) -> Result<Response, Failure> {
    let id = ResourceId::new(format!("{watcher}/connectionMonitors/{}", call.segments[9]));
    found(rest, &id)?;
    let status = match call.lower[10].as_str() {
        "start" => "Running",
        "stop" => "Stopped",
        other => {
            let message = format!(
                "The action '{}' of connection monitors is not supported; start and stop are. The results are metrics of the \
                 controller, and in the answer to GET /fabric/v1/monitors.",
                excerpt(other)
            );
            return Err(Failure::bad("XActionNotSupported", message));
        }
    };
    change(rest, id, move |body| {
        body["properties"]["monitoringStatus"] = json!(status)
    })
    .await?;
    Ok(empty(StatusCode::OK))
}

fn found(rest: &Rest, id: &ResourceId) -> Result<Value, Failure> {
    rest.monitors.get(id).ok_or_else(|| missing(id))
}

fn missing(id: &ResourceId) -> Failure {
    Failure::missing("NotFound", format!("Resource {} not found.", excerpt(id.as_str())))
}

/// Changes the body of a monitor that exists, and returns the new one.
async fn change(rest: &Rest, id: ResourceId, edit: impl FnOnce(&mut Value) + Send + 'static) -> Result<Value, Failure> {
    let of = id.clone();
    let changed = move |present: Option<Value>, _| {
        let mut body = present.ok_or_else(|| missing(&of))?;
        edit(&mut body);
        Ok::<_, Failure>(Some(stamped(&of, body)))
    };
    let body = rest.monitors.change(&rest.app.writer, id, changed).await?;
    Ok(body.unwrap_or_default())
}

async fn put(rest: &Rest, call: &Call, id: ResourceId, location: &str) -> Result<Response, Failure> {
    let body = call.object()?;
    check_name(id.name()).map_err(|message| Failure::bad("InvalidResourceName", message))?;
    let given = body.get("location").and_then(Value::as_str).unwrap_or(location);
    let given: String = given.chars().filter(|c| *c != ' ').collect();
    if !given.eq_ignore_ascii_case(location) {
        let message = format!(
            "location: '{}' is not the region of the watcher, {location}",
            excerpt(&given)
        );
        return Err(Failure::bad("InvalidResourceLocation", message).at("location"));
    }
    let properties = body.get("properties").cloned().unwrap_or_else(|| json!({}));
    tests(&properties).map_err(|problem| {
        Failure::bad("InvalidRequestFormat", excerpt(&problem.message)).at(format!("properties.{}", problem.field))
    })?;
    let (location, tags) = (location.to_owned(), tags(&body)?);
    let of = id.clone();
    let made = move |present: Option<Value>, count| {
        if present.is_none() && count >= MAX_MONITORS {
            let message = format!(
                "There are {MAX_MONITORS} connection monitors already, and no more are possible; delete one first."
            );
            return Err(Failure::bad("XConnectionMonitorLimitReached", message));
        }
        let body = stamped(&of, whole(&of, &location, tags, &properties, present.as_ref()));
        let length = body.to_string().len();
        if length > MAX_BODY {
            let message = format!("The body has {length} bytes; a connection monitor can have {MAX_BODY}.");
            return Err(Failure::bad("XConnectionMonitorTooLarge", message));
        }
        Ok(Some(body))
    };
    let is_new = rest.monitors.get(&id).is_none();
    let body = rest.monitors.change(&rest.app.writer, id, made).await?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok(reply(status, &body.unwrap_or_default()))
}

/// The stored body of a monitor after a PUT with these properties. `present`: the body before.
fn whole(id: &ResourceId, location: &str, tags: Value, properties: &Value, present: Option<&Value>) -> Value {
    let before = |pointer: &str| present.and_then(|body| body.pointer(pointer).cloned());
    let now = || OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
    let list = |name: &str| {
        properties
            .get(name)
            .filter(|v| v.is_array())
            .cloned()
            .unwrap_or_else(|| json!([]))
    };
    json!({
        "name": id.name(),
        "type": "Microsoft.Network/networkWatchers/connectionMonitors",
        "location": location,
        "tags": tags,
        "properties": {
            "endpoints": list("endpoints"),
            "testConfigurations": list("testConfigurations"),
            "testGroups": list("testGroups"),
            "outputs": list("outputs"),
            "notes": properties.get("notes"),
            "provisioningState": "Succeeded",
            "startTime": before("/properties/startTime").unwrap_or_else(|| json!(now())),
            "monitoringStatus": before("/properties/monitoringStatus").unwrap_or_else(|| json!("Running")),
            "connectionMonitorType": "MultiEndpoint",
        },
    })
}

/// The tags of a body. Stock clients fail on a tag that is no text.
fn tags(body: &Value) -> Result<Value, Failure> {
    match body.get("tags") {
        None | Some(Value::Null) => Ok(json!({})),
        Some(Value::Object(tags)) if tags.len() <= 50 && tags.values().all(Value::is_string) => Ok(json!(tags)),
        Some(_) => {
            let message = "tags: an object with at most 50 texts is needed";
            Err(Failure::bad("InvalidRequestFormat", message).at("tags"))
        }
    }
}

/// A body with its id, and the etag of its content.
fn stamped(id: &ResourceId, mut body: Value) -> Value {
    body["id"] = json!(id);
    body["etag"] = Value::Null;
    let content = format!("{body}");
    body["etag"] = json!(format!(
        "W/\"{}\"",
        Uuid::new_v5(&Uuid::NAMESPACE_URL, content.as_bytes())
    ));
    body
}
