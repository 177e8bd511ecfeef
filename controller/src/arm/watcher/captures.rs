//! Packet captures, which are resources below a watcher (D42). A capture begins with its PUT.

use super::super::call::Call;
use crate::captures::{CaptureDocument, CreateError, MAX_CAPTURES, now};
use crate::rest::Rest;
use crate::rest::failure::{Failure, empty, excerpt, ok, reply};
use axum::response::Response;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tombolo_proto::arm::check_name;
use tombolo_proto::capture::{CaptureDelivery, CaptureLayer, CaptureRequest};
use tombolo_proto::id::ResourceId;
use tombolo_topology::capture::{CaptureSpec, read, target};
use uuid::Uuid;

/// GET of the captures below a watcher. `watcher`: the id of the watcher.
pub(super) fn list(rest: &Rest, call: &Call, watcher: &str) -> Result<Response, Failure> {
    if call.method != Method::GET {
        return Err(Failure::method(&call.method, &call.text()));
    }
    Ok(ok(&json!({"value": rest.captures.below(watcher)})))
}

/// A request for one capture.
pub(super) async fn item(rest: &Rest, call: &Call, watcher: &str) -> Result<Response, Failure> {
    let id = ResourceId::new(format!("{watcher}/packetCaptures/{}", call.segments[9]));
    match call.method {
        Method::GET => Ok(ok(&found(rest, &id)?.body)),
        Method::PUT => put(rest, call, id).await,
        // Azure's clients accept only 202 and 204 here.
        Method::DELETE => {
            rest.captures.delete(&id).await?;
            Ok(empty(StatusCode::NO_CONTENT))
        }
        _ => Err(Failure::method(&call.method, &call.text())),
    }
}

/// POST `stop` and `queryStatus`.
pub(super) async fn action(rest: &Rest, call: &Call, watcher: &str) -> Result<Response, Failure> {
    let id = ResourceId::new(format!("{watcher}/packetCaptures/{}", call.segments[9]));
    let document = found(rest, &id)?;
    match call.lower[10].as_str() {
        "stop" => {
            rest.captures.stop(&id).await?;
            Ok(empty(StatusCode::OK))
        }
        "querystatus" => Ok(ok(&rest.captures.status(&document))),
        other => {
            let message = format!(
                "The action '{}' of packet captures is not supported; stop and queryStatus are.",
                excerpt(other)
            );
            Err(Failure::bad("XActionNotSupported", message))
        }
    }
}

fn found(rest: &Rest, id: &ResourceId) -> Result<CaptureDocument, Failure> {
    rest.captures.get(id).ok_or_else(|| {
        let message = format!("Resource {} not found.", excerpt(id.as_str()));
        Failure::missing("NotFound", message)
    })
}

async fn put(rest: &Rest, call: &Call, id: ResourceId) -> Result<Response, Failure> {
    let body = call.object()?;
    check_name(id.name()).map_err(|message| Failure::bad("InvalidResourceName", message))?;
    let properties = body.get("properties").cloned().unwrap_or_else(|| json!({}));
    let spec = read(&properties).map_err(|problem| {
        Failure::bad("InvalidRequestFormat", excerpt(&problem.message)).at(format!("properties.{}", problem.field))
    })?;
    let topology = rest.app.writer.current().topology;
    let target = target(&topology, &spec.target).map_err(|message| {
        Failure::bad("InvalidResourceReference", format!("target: {}", excerpt(&message))).at("properties.target")
    })?;
    let earlier = rest.captures.get(&id);
    if earlier.is_none() && rest.captures.count() >= MAX_CAPTURES {
        let message =
            format!("There are {MAX_CAPTURES} packet captures already, and no more are possible; delete one first.");
        return Err(Failure::bad("XPacketCaptureLimitReached", message));
    }
    let stored = view(&id, &properties, &spec);
    let request = CaptureRequest {
        name: id.name().to_owned(),
        nics: target.nics,
        layer: CaptureLayer::Packets,
        filters: spec.filters,
        bytes_per_packet: spec.bytes_per_packet,
        total_bytes: spec.total_bytes,
        seconds: spec.seconds,
        delivery: CaptureDelivery::File,
    };
    // A client that repeats its request gets the capture that it has started already.
    let is_same = |earlier: &CaptureDocument| {
        earlier.body == stored && earlier.agent == target.agent && !rest.captures.report(earlier).is_final()
    };
    if earlier.as_ref().is_some_and(is_same) {
        return Ok(reply(StatusCode::CREATED, &stored));
    }
    let document = CaptureDocument {
        body: stored.clone(),
        run: Uuid::new_v4(),
        agent: target.agent,
        request,
        created: now(),
        result: None,
    };
    rest.captures.create(id, document).await.map_err(|error| match error {
        CreateError::Refused(refusal) => refusal.into(),
        CreateError::Write(error) => Failure::from(error),
    })?;
    // Azure's clients accept only 201 here, also for a capture that existed.
    Ok(reply(StatusCode::CREATED, &stored))
}

/// The capture in ARM's form.
fn view(id: &ResourceId, properties: &Value, spec: &CaptureSpec) -> Value {
    let mut storage = properties["storageLocation"].clone();
    if let Value::Object(storage) = &mut storage {
        storage.retain(|name, value| {
            ["storageId", "storagePath", "filePath", "localPath"].contains(&name.as_str()) && value.is_string()
        });
    }
    let filters = properties["filters"].as_array().into_iter().flatten().map(|filter| {
        let text = |name: &str| filter[name].as_str().unwrap_or_default().to_owned();
        let protocol = Some(text("protocol")).filter(|word| !word.is_empty());
        json!({
            "protocol": protocol.unwrap_or_else(|| "Any".to_owned()),
            "localIPAddress": text("localIPAddress"),
            "localPort": text("localPort"),
            "remoteIPAddress": text("remoteIPAddress"),
            "remotePort": text("remotePort"),
        })
    });
    let mut body = json!({
        "id": id,
        "name": id.name(),
        "type": "Microsoft.Network/networkWatchers/packetCaptures",
        "properties": {
            "provisioningState": "Succeeded",
            "target": spec.target,
            "targetType": "AzureVM",
            "bytesToCapturePerPacket": spec.bytes_per_packet,
            "totalBytesPerSession": spec.total_bytes,
            "timeLimitInSeconds": spec.seconds,
            "storageLocation": storage,
            "filters": filters.collect::<Vec<_>>(),
            "scope": {"include": [], "exclude": []},
        },
    });
    let etag = Uuid::new_v5(&Uuid::NAMESPACE_URL, body.to_string().as_bytes());
    body["etag"] = json!(format!("W/\"{etag}\""));
    body
}
