//! Template deployments. Two commands of Azure's command line use them instead of a PUT of the resource.
//!
//! The resources of a template are written in the order of `dependsOn`, before the response is sent. If one resource is
//! refused, the resources that were written before it stay, and the deployment has failed, as in Azure.

mod template;

use super::call::Call;
use super::resource::missing;
use crate::rest::Rest;
use crate::rest::failure::{Failure, empty, excerpt, ok, reply};
use crate::writer::WriteError;
use axum::response::Response;
use http::header::{HeaderName, HeaderValue, RETRY_AFTER};
use http::{Method, StatusCode};
use serde_json::{Map, Value, json};
use template::Template;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tombolo_proto::id::ResourceId;
use tombolo_topology::change::{Change, Rejection};
use tombolo_topology::path::ArmPath;
use uuid::Uuid;

/// Serves the deployments of a resource group: their list, one deployment, its validation and its operations.
pub(super) async fn serve(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    let group = call.item(4)?;
    let topology = rest.app.writer.current().topology;
    if !topology.resource_groups.contains_key(&group.id()) {
        return Err(missing(&topology, &group));
    }
    let Some(name) = call.segments.get(7) else {
        return match call.method {
            Method::GET => Ok(ok(&json!({"value": rest.deployments.of_group(group.id().as_str())}))),
            _ => Err(Failure::method(&call.method, &call.text())),
        };
    };
    let id = format!("{}/providers/Microsoft.Resources/deployments/{name}", group.id());
    let known = || {
        let message = format!("Deployment '{}' could not be found.", excerpt(name));
        rest.deployments
            .get(&id)
            .ok_or_else(|| Failure::missing("DeploymentNotFound", message))
    };
    match (&call.method, call.lower.get(8).map(String::as_str), call.lower.len()) {
        (&Method::PUT, None, _) => put(rest, call, &group, name, &id).await,
        (&Method::POST, Some("validate"), 9) => {
            let template = Template::read(&call.object()?)?;
            template.paths(&group)?;
            Ok(ok(
                &json!({"properties": {"provisioningState": "Succeeded", "validatedResources": []}}),
            ))
        }
        (&Method::GET, None, _) => Ok(ok(&known()?)),
        (&Method::HEAD, None, _) => Ok(empty(known().map_or(StatusCode::NOT_FOUND, |_| StatusCode::NO_CONTENT))),
        (&Method::GET, Some("operationstatuses"), 10) => known().map(|d| ok(&operation(&d))),
        (&Method::GET, Some("operations"), 9) => known().map(|_| ok(&json!({"value": []}))),
        (&Method::DELETE, None, _) => {
            rest.deployments.set(&rest.app.writer, &id, None).await?;
            Ok(empty(StatusCode::NO_CONTENT))
        }
        _ => Err(Failure::method(&call.method, &call.text())),
    }
}

/// The state of a deployment as a response of its asynchronous operation.
fn operation(deployment: &Value) -> Value {
    let properties = &deployment["properties"];
    let mut body = json!({"status": properties["provisioningState"]});
    if let Some(error) = properties.get("error") {
        body["error"] = error.clone();
    }
    body
}

/// Carries out a deployment and stores its result. If one of its resources was refused, the deployment is stored as
/// failed, but the response has status 201, as in Azure.
async fn put(rest: &Rest, call: &Call, group: &ArmPath, name: &str, id: &str) -> Result<Response, Failure> {
    let template = Template::read(&call.object()?)?;
    let (written, refused) = write_resources(rest, &template, group).await?;
    let outputs = match refused {
        Some(_) => Map::new(),
        None => outputs(rest, &template, &written),
    };
    let resources: Vec<_> = written.iter().map(|(_, path)| json!({"id": path.id()})).collect();
    let timestamp = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
    let mut body = json!({
        "id": id,
        "name": name,
        "type": "Microsoft.Resources/deployments",
        "properties": {
            "provisioningState": if refused.is_some() { "Failed" } else { "Succeeded" },
            "mode": "Incremental",
            "timestamp": timestamp,
            "duration": "PT0S",
            "correlationId": Uuid::new_v4(),
            "parameters": template.shown_parameters,
            "outputs": outputs,
            "outputResources": resources,
            "providers": [],
            "dependencies": [],
        },
    });
    if let Some(error) = refused {
        body["properties"]["error"] = error;
    }
    rest.deployments.set(&rest.app.writer, id, Some(body.clone())).await?;
    Ok(accepted(call, id, body))
}

/// Writes the resources of a template in the order of their dependencies. Returns the written resources by name. If a
/// resource was refused, also returns the error of the deployment: the resources that were written before it stay, so
/// the request succeeds and the deployment has failed.
///
/// # Errors
/// Either the template is malformed, and nothing is written. Or the store failed, and the resources that were written
/// before the failure stay.
async fn write_resources<'t>(
    rest: &Rest,
    template: &'t Template,
    group: &ArmPath,
) -> Result<(Vec<(&'t str, ArmPath)>, Option<Value>), Failure> {
    // All paths are checked before the first write, so that a malformed path does not end a deployment of which some
    // resources are already written.
    let paths = template.paths(group)?;
    let mut written = Vec::new();
    for (resource, path) in template.resources.iter().zip(paths) {
        let change = Change::Put {
            path: path.clone(),
            body: resource.body.clone(),
            if_match: None,
            sync_remote_address_space: false,
        };
        match rest.change(change).await {
            Ok(_) => written.push((resource.name.as_str(), path)),
            Err(WriteError::Rejected(rejection)) => return Ok((written, Some(failed(path.id(), rejection)))),
            Err(error) => return Err(error.into()),
        }
    }
    Ok((written, None))
}

/// The outputs of a deployment: the present properties of the resources that the outputs refer to.
fn outputs(rest: &Rest, template: &Template, written: &[(&str, ArmPath)]) -> Map<String, Value> {
    let topology = rest.app.writer.current().topology;
    let live = rest.app.agents.statuses();
    let mut outputs = Map::new();
    for (output, referred) in &template.outputs {
        let found = written.iter().find(|(name, _)| name.eq_ignore_ascii_case(referred));
        let view = found.and_then(|(_, path)| topology.view(path, &live));
        let value = view.and_then(|mut v| v.get_mut("properties").map(Value::take));
        outputs.insert(output.clone(), json!({"type": "Object", "value": value}));
    }
    outputs
}

/// 201 with the URL of an asynchronous operation, which clients expect. The operation has ended before the client first
/// asks for it.
fn accepted(call: &Call, id: &str, mut body: Value) -> Response {
    body["properties"]["provisioningState"] = json!("Accepted");
    if let Some(properties) = body["properties"].as_object_mut() {
        properties.remove("error");
    }
    let mut response = reply(StatusCode::CREATED, &body);
    let operation = format!(
        "{}{id}/operationStatuses/{}{}",
        call.base,
        Uuid::new_v4().simple(),
        call.api_version()
    );
    if let Ok(operation) = HeaderValue::from_str(&operation) {
        let header = HeaderName::from_static("azure-asyncoperation");
        response.headers_mut().insert(header, operation);
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// The error of a deployment whose resource was refused.
fn failed(resource: ResourceId, rejection: Rejection) -> Value {
    let mut cause = Failure::from(rejection).object();
    if cause["target"].is_null() {
        cause["target"] = json!(resource);
    }
    json!({
        "code": "DeploymentFailed",
        "message": format!("At least one resource deployment operation failed: {resource}. See details."),
        "target": resource,
        "details": [cause],
    })
}
