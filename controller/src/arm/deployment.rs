//! Template deployments: what two commands of stock clients send instead of a PUT of the resource.
//!
//! The resources of a template are written in the order of `dependsOn`; the answer comes when all are there. What stands
//! before one that is refused stays, as in Azure.

mod template;

use super::call::Call;
use super::resource::missing;
use crate::rest::Rest;
use crate::rest::failure::{Failure, empty, ok, reply, shown};
use axum::response::Response;
use http::header::{HeaderName, HeaderValue, RETRY_AFTER};
use http::{Method, StatusCode};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};
use template::Template;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tombolo_topology::change::Change;
use tombolo_topology::path::ArmPath;
use uuid::Uuid;

/// Where their documents stand in the store.
pub(crate) const DOCUMENTS: &str = "own/deployments/";
/// Most that are kept; the oldest ones go.
const MOST: usize = 200;

/// What was deployed, by the id in lower case.
#[derive(Debug, Default)]
pub(crate) struct Deployments(RwLock<BTreeMap<String, Value>>);

impl Deployments {
    /// Reads those of the store.
    pub(crate) fn open(documents: &BTreeMap<String, Vec<u8>>) -> Self {
        let own = documents.iter().filter_map(|(key, value)| {
            let id = key.strip_prefix(DOCUMENTS)?;
            // History alone: one that cannot be read any more is as good as forgotten.
            Some((id.to_owned(), serde_json::from_slice(value).ok()?))
        });
        Self(RwLock::new(own.collect()))
    }

    fn get(&self, id: &str) -> Option<Value> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.get(&id.to_ascii_lowercase()).cloned()
    }

    fn below(&self, group: &str) -> Vec<Value> {
        let prefix = format!(
            "{}/providers/microsoft.resources/deployments/",
            group.to_ascii_lowercase()
        );
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let found = all.iter().filter(|(id, _)| id.starts_with(&prefix));
        found.map(|(_, body)| body.clone()).collect()
    }

    /// Keeps a deployment, or forgets it; returns the ids of those that had to go for it.
    fn set(&self, id: &str, body: Option<Value>) -> Vec<String> {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        match body {
            Some(body) => all.insert(id.to_ascii_lowercase(), body),
            None => all.remove(&id.to_ascii_lowercase()),
        };
        let age = |body: &Value| body["properties"]["timestamp"].as_str().map(ToOwned::to_owned);
        let mut gone = Vec::new();
        while all.len() > MOST {
            let Some(oldest) = all.iter().min_by_key(|(_, body)| age(body)).map(|(id, _)| id.clone()) else {
                break;
            };
            all.remove(&oldest);
            gone.push(oldest);
        }
        gone
    }
}

/// Serves `deployments` of a group.
pub(super) async fn serve(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    let group = call.item(4)?;
    let topology = rest.app.writer.current().topology;
    if !topology.resource_groups.contains_key(&group.id()) {
        return Err(missing(&topology, &group));
    }
    let Some(name) = call.segments.get(7) else {
        return match call.method {
            Method::GET => Ok(ok(&json!({"value": rest.deployments.below(group.id().as_str())}))),
            _ => Err(Failure::method(&call.method, &call.text())),
        };
    };
    let id = format!("{}/providers/Microsoft.Resources/deployments/{name}", group.id());
    let known = || {
        let message = format!("Deployment '{}' could not be found.", shown(name));
        rest.deployments
            .get(&id)
            .ok_or_else(|| Failure::missing("DeploymentNotFound", message))
    };
    match (&call.method, call.lower.get(8).map(String::as_str), call.lower.len()) {
        (&Method::PUT, None, _) => put(rest, call, &group, name, &id).await,
        (&Method::POST, Some("validate"), 9) => {
            Template::read(&call.object()?)?;
            Ok(ok(
                &json!({"properties": {"provisioningState": "Succeeded", "validatedResources": []}}),
            ))
        }
        (&Method::GET, None, _) => Ok(ok(&known()?)),
        (&Method::HEAD, None, _) => Ok(empty(known().map_or(StatusCode::NOT_FOUND, |_| StatusCode::NO_CONTENT))),
        (&Method::GET, Some("operationstatuses"), 10) => known().map(|_| ok(&json!({"status": "Succeeded"}))),
        (&Method::GET, Some("operations"), 9) => known().map(|_| ok(&json!({"value": []}))),
        (&Method::DELETE, None, _) => {
            rest.deployments.set(&id, None);
            store(rest, &id, None).await?;
            Ok(empty(StatusCode::NO_CONTENT))
        }
        _ => Err(Failure::method(&call.method, &call.text())),
    }
}

async fn store(rest: &Rest, id: &str, body: Option<&Value>) -> Result<(), Failure> {
    let key = format!("{DOCUMENTS}{}", id.to_ascii_lowercase());
    let document = body.map(|b| b.to_string().into_bytes());
    Ok(rest.app.writer.set_document(key, document).await?)
}

async fn put(rest: &Rest, call: &Call, group: &ArmPath, name: &str, id: &str) -> Result<Response, Failure> {
    let template = Template::read(&call.object()?)?;
    let mut written = Vec::new();
    for resource in &template.resources {
        let path = resource.path(group)?;
        let change = Change::Put {
            path: path.clone(),
            body: resource.body.clone(),
            if_match: None,
            sync_remote_address_space: false,
        };
        rest.app.writer.change(change).await?;
        written.push((resource.name.clone(), path));
    }
    let topology = rest.app.writer.current().topology;
    let live = rest.app.agents.live();
    let mut outputs = Map::new();
    for (output, referred) in &template.outputs {
        let path = written
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(referred))
            .map(|(_, p)| p);
        let view = path.and_then(|p| topology.view(p, &live));
        let value = view.and_then(|mut v| v.get_mut("properties").map(Value::take));
        outputs.insert(output.clone(), json!({"type": "Object", "value": value}));
    }
    let resources: Vec<_> = written.iter().map(|(_, path)| json!({"id": path.id()})).collect();
    let timestamp = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
    let mut body = json!({
        "id": id,
        "name": name,
        "type": "Microsoft.Resources/deployments",
        "properties": {
            "provisioningState": "Succeeded",
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
    store(rest, id, Some(&body)).await?;
    for gone in rest.deployments.set(id, Some(body.clone())) {
        store(rest, &gone, None).await?;
    }
    // Clients expect to wait; what they then read is there already.
    body["properties"]["provisioningState"] = json!("Accepted");
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
    Ok(response)
}
