//! The router of the REST interface, with authorization and request ids.

use super::failure::Failure;
use super::recorder::{self, RequestId};
use super::state::Rest;
use crate::app::App;
use crate::asserted::Asserted;
use crate::auth::Auth;
use crate::captures::Captures;
use crate::deployments::Deployments;
use crate::flow_tail::MAX_TAILS;
use crate::monitors::Monitors;
use crate::packages::Packages;
use crate::reach_cache::ReachCache;
use crate::troubleshooting::Troubleshooting;
use crate::{arm, fabric};
use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use http::header::{HeaderName, HeaderValue};
use std::sync::Arc;
use tokio::sync::Semaphore;
use uuid::Uuid;

/// Makes the router of the REST interface. Paths that do not belong to the fabric API are served by the ARM dialect.
/// Every response gets Azure's request ids. This function also reads the API tokens, and creates the admin token at the
/// first start. Call it once for each `app`: a second call may not see what the first one has stored, and would then
/// replace the key of the login tokens. Reads and writes the file `admin.token` of the data directory, for which it
/// blocks. `packages` are the packages that the routes serve.
///
/// # Errors
/// A document with a token is malformed, the store holds a document that this version does not know, the file of the
/// admin token holds no admin token, or a token or the key of the login tokens cannot be created or stored.
///
/// # Panics
/// Outside of a Tokio runtime.
pub async fn router(app: &Arc<App>, packages: Packages) -> anyhow::Result<Router> {
    let rest = Arc::new(Rest {
        app: app.clone(),
        auth: Auth::open(app).await?,
        captures: Captures::start(app),
        deployments: Deployments::open(&app.own_documents),
        monitors: Monitors::start(app),
        packages: Arc::new(packages),
        tails: Arc::new(Semaphore::new(MAX_TAILS)),
        reach: ReachCache::default(),
        repairs: Arc::default(),
        troubleshooting: Troubleshooting::default(),
        asserted: Asserted::open(&app.own_documents)?,
    });
    let guarded = fabric::guarded().route_layer(middleware::from_fn_with_state(rest.clone(), authorize));
    Ok(fabric::open()
        .merge(guarded)
        .fallback(arm::serve)
        .method_not_allowed_fallback(async |request: Request| Failure::method(request.method(), request.uri().path()))
        .layer(middleware::from_fn_with_state(rest.clone(), recorder::record))
        .layer(middleware::from_fn(add_request_ids))
        .with_state(rest))
}

/// Middleware that refuses requests without a valid token.
async fn authorize(State(rest): State<Arc<Rest>>, request: Request, next: Next) -> Response {
    match rest.check(request.headers(), request.uri(), request.extensions()) {
        Ok(()) => next.run(request).await,
        Err(failure) => failure.into_response(),
    }
}

/// The headers that contain the ids by which users of Azure's clients find a request in logs.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-request-id");
const CORRELATION_ID: HeaderName = HeaderName::from_static("x-ms-correlation-request-id");
const CLIENT_ID: HeaderName = HeaderName::from_static("x-ms-client-request-id");

/// Middleware that adds Azure's request, correlation and client ids to every response, and logs the request.
async fn add_request_ids(mut request: Request, next: Next) -> Response {
    let id = Uuid::new_v4().to_string();
    request.extensions_mut().insert(RequestId(id.clone()));
    let correlation = request.headers().get(CORRELATION_ID).cloned();
    let client = request.headers().get(CLIENT_ID).cloned();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let begin = std::time::Instant::now();
    let mut response = next.run(request).await;
    let status = response.status().as_u16();
    let micros = begin.elapsed().as_micros();
    tracing::debug!(%method, path, status, micros, id, "request");
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(CORRELATION_ID, correlation.unwrap_or_else(|| id.clone()));
        headers.insert(REQUEST_ID, id);
    }
    if let Some(client) = client {
        headers.insert(CLIENT_ID, client);
    }
    response
}
