//! Records writes in the activity log.

use super::failure::{ErrorObject, Failure};
use super::state::{Caller, Rest};
use crate::activity::Write;
use crate::peer::PeerAddr;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, Method, StatusCode};
use percent_encoding::percent_decode_str;
use std::sync::Arc;
use time::OffsetDateTime;
use uuid::Uuid;

/// Requests of the fabric API that are sent by POST and change nothing.
const QUESTIONS: [&str; 8] = [
    "/fabric/v1/check",
    "/fabric/v1/explain",
    "/fabric/v1/probe",
    "/fabric/v1/reach",
    "/fabric/v1/reach/diff",
    "/fabric/v1/repair",
    "/fabric/v1/usage",
    "/fabric/v1/device-config",
];

/// Longest text of a header that is recorded, in bytes.
const MAX_HEADER: usize = 100;

/// The id that the response gets, for records of requests without an id of the client.
#[derive(Debug, Clone)]
pub(super) struct RequestId(pub(super) String);

/// Middleware that records each write of an authorized client with its result. The response waits until the record survives
/// a crash of the controller. Writes of strangers are refused, and are not recorded: they would fill the log.
///
/// A write is a task of its own. If the client disconnects while it is made, it is completed and recorded all the same.
pub(super) async fn record(State(rest): State<Arc<Rest>>, request: Request, next: Next) -> Response {
    if !is_write(request.method(), request.uri().path()) {
        return next.run(request).await;
    }
    let write = tokio::spawn(made_and_recorded(rest, request, next));
    write.await.unwrap_or_else(|error| {
        tracing::error!(%error, "a write has failed");
        let message = "The write has failed; the controller's log says why.";
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", message).into_response()
    })
}

async fn made_and_recorded(rest: Arc<Rest>, mut request: Request, next: Next) -> Response {
    let caller = Caller::default();
    request.extensions_mut().insert(caller.clone());
    let client = request.extensions().get::<PeerAddr>().map(|peer| peer.0.ip());
    let id = request.extensions().get::<RequestId>().map(|id| id.0.clone());
    let (method, headers) = (request.method().to_string(), request.headers().clone());
    let path = percent_decode_str(request.uri().path())
        .decode_utf8_lossy()
        .into_owned();
    let began = OffsetDateTime::now_utc();
    let response = next.run(request).await;
    let Some(caller) = caller.get() else {
        return response;
    };
    let error = response.extensions().get::<ErrorObject>().map(|error| error.0.clone());
    let correlation = text(&headers, "x-ms-correlation-request-id");
    let write = Write {
        began,
        ended: OffsetDateTime::now_utc(),
        method,
        path,
        client,
        caller,
        tenant: rest.auth.tenant,
        correlation: if correlation.is_empty() {
            id.unwrap_or_else(|| Uuid::new_v4().to_string())
        } else {
            correlation
        },
        client_request: text(&headers, "x-ms-client-request-id"),
        status: response.status(),
        error,
    };
    rest.app.activity.add(write).await;
    response
}

fn is_write(method: &Method, path: &str) -> bool {
    let changes = [Method::PUT, Method::PATCH, Method::DELETE].contains(method);
    changes || *method == Method::POST && !QUESTIONS.contains(&path)
}

/// The text of a header. Empty: it is missing, too long, or no text.
fn text(headers: &HeaderMap, name: &str) -> String {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value
        .filter(|value| value.len() <= MAX_HEADER)
        .unwrap_or_default()
        .to_owned()
}
