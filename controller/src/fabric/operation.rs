//! Operation of the controller: health, the authority's certificate, metrics, settings, API tokens and backup.

use crate::app::BACKUP_PREFIX;
use crate::auth::ApiToken;
use crate::rest::failure::{Failure, at_revision, empty, ok, reply};
use crate::rest::{Rest, json};
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue};
use serde_json::json as object;
use std::sync::Arc;
use tombolo_proto::fabric::{ApiTokenRequest, NewApiToken};
use tombolo_topology::change::Change;
use tombolo_topology::resource::Settings;
use uuid::Uuid;

/// GET `health`: the newest revision. Needs no token.
pub(super) async fn health(State(rest): State<Arc<Rest>>) -> Response {
    let revision = rest.app.writer.current().revision;
    ok(&object!({"status": "ok", "revision": revision}))
}

/// GET `ca`: the authority's certificate in PEM. Needs no token. A joining agent compares the certificate with the PIN
/// of its join token.
pub(super) async fn authority(State(rest): State<Arc<Rest>>) -> Response {
    typed_body(rest.app.authority.pem().to_owned().into(), "application/x-pem-file")
}

fn typed_body(body: Body, content_type: &'static str) -> Response {
    let mut response = Response::new(body);
    let value = HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, value);
    response
}

/// GET `/metrics`: Prometheus' text format.
pub(super) async fn metrics(State(rest): State<Arc<Rest>>) -> Response {
    let app = &rest.app;
    let text = app
        .metrics
        .text(&app.writer.current(), &app.agents, &app.connections.counts());
    typed_body(text.into(), tombolo_proto::exposition::CONTENT_TYPE)
}

/// GET `settings`.
pub(super) async fn settings(State(rest): State<Arc<Rest>>) -> Response {
    ok(&object!(*rest.app.writer.current().topology.settings))
}

/// PUT `settings`.
pub(super) async fn set_settings(State(rest): State<Arc<Rest>>, request: Request) -> Result<Response, Failure> {
    let settings: Settings = json::typed(request).await?;
    let committed = rest.change(Change::SetSettings(settings)).await?;
    let body = object!(*committed.published.topology.settings);
    Ok(at_revision(ok(&body), committed.published.revision))
}

/// POST `api-tokens`: creates an API token. The response has its text, which is not stored.
pub(super) async fn create_api_token(State(rest): State<Arc<Rest>>, request: Request) -> Result<Response, Failure> {
    let ApiTokenRequest { name } = json::typed(request).await?;
    if name.trim().is_empty() || name.len() > 80 || name.chars().any(char::is_control) {
        let message = "name: must have 1 to 80 bytes, no control characters, and not be blank";
        return Err(Failure::bad("InvalidRequestFormat", message).at("name"));
    }
    let (token, text) = rest.auth.create(&rest.app.writer, &name).await?;
    let body = object!(NewApiToken {
        id: token.id,
        name: token.name,
        token: text,
    });
    let revision = rest.app.writer.current().revision;
    Ok(at_revision(reply(StatusCode::CREATED, &body), revision))
}

/// GET `api-tokens`: API tokens without their secrets.
pub(super) async fn api_tokens(State(rest): State<Arc<Rest>>) -> Response {
    let view = |t: &ApiToken| object!({"id": t.id, "name": t.name, "created": t.created});
    let value: Vec<_> = rest.auth.list().iter().map(view).collect();
    ok(&object!({"value": value}))
}

/// DELETE `api-tokens/{id}`: deletes an API token; login tokens that were issued for it become invalid. The admin token
/// cannot be deleted.
pub(super) async fn delete_api_token(
    State(rest): State<Arc<Rest>>,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    if id == crate::auth::ADMIN {
        let message = "The admin token cannot be deleted. To replace it, remove the file admin.token from the data directory and restart the controller.";
        return Err(Failure::new(StatusCode::CONFLICT, "XAdminToken", message));
    }
    rest.auth.delete(&rest.app.writer, &id).await?;
    let revision = rest.app.writer.current().revision;
    Ok(at_revision(empty(StatusCode::NO_CONTENT), revision))
}

/// POST `backup`: the response is a consistent copy of the store, from which the controller can be restored.
pub(super) async fn backup(State(rest): State<Arc<Rest>>) -> Result<Response, Failure> {
    // This runs in a separate task, so that the copy is removed even if the client disconnects.
    let content = tokio::spawn(async move {
        let file = rest.app.data_dir.join(format!("{BACKUP_PREFIX}{}", Uuid::new_v4()));
        let content = match rest.app.writer.backup(file.clone()).await {
            Ok(()) => tokio::fs::read(&file).await.map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        };
        // The file is no longer needed: its content is in memory, or the backup has failed. If it cannot be removed
        // now, the next start removes it.
        let _ = tokio::fs::remove_file(&file).await;
        content
    });
    let content = content.await.unwrap_or_else(|e| Err(e.to_string()));
    let content = content.map_err(|e| Failure::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", e))?;
    Ok(typed_body(content.into(), "application/octet-stream"))
}
