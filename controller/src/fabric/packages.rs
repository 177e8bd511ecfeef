//! Packages of agents for new machines: the download, which needs no token, and the list.

use crate::connections;
use crate::metrics::Download;
use crate::packages::{self, MAX_DOWNLOADS, MAX_DOWNLOADS_OF_ADDRESS};
use crate::peer::PeerAddr;
use crate::rest::Rest;
use crate::rest::failure::{Failure, excerpt, ok};
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse as _, Response};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Method, StatusCode};
use serde_json::json;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

/// Value of `Retry-After`, in seconds, when too many downloads are in progress. It is short, so that a waiting machine
/// loses little time.
const RETRY_AFTER_SECONDS: u64 = 2;

/// GET and HEAD `/packages/{name}`: downloads a package; needs no token. 503 with `Retry-After` if too many downloads
/// are in progress. A HEAD does not count as a download.
pub(super) async fn download(
    State(rest): State<Arc<Rest>>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, Failure> {
    let (packages, requested) = (rest.packages.clone(), name.clone());
    let opened = tokio::task::spawn_blocking(move || packages.open(&requested)).await;
    let (file, size) = match opened.map_err(io::Error::from).flatten() {
        Ok(Some(opened)) => opened,
        Ok(None) => {
            rest.app.metrics.downloaded(Download::NotFound);
            let message = format!(
                "{}: this controller has no such package. Packages are named tombolo-agent_VERSION_ARCHITECTURE.deb; \
                 GET /fabric/v1/packages lists them.",
                excerpt(&name)
            );
            return Err(Failure::missing("XPackageNotFound", message));
        }
        Err(error) => return Err(unreadable(&error)),
    };
    let head = |body: Body| {
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        let kind = HeaderValue::from_static("application/vnd.debian.binary-package");
        headers.insert(CONTENT_TYPE, kind);
        headers.insert(CONTENT_LENGTH, size.into());
        response
    };
    if request.method() == Method::HEAD {
        return Ok(head(Body::empty()));
    }
    let peer = request.extensions().get::<PeerAddr>();
    let peer = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |p| p.0.ip());
    let Some(slot) = rest.packages.begin(peer.into()) else {
        rest.app.metrics.downloaded(Download::Busy);
        let message = format!(
            "Too many downloads are in progress ({MAX_DOWNLOADS} are possible at a time, {MAX_DOWNLOADS_OF_ADDRESS} by one \
             address): try again in {RETRY_AFTER_SECONDS} s."
        );
        let mut busy = Failure::new(StatusCode::SERVICE_UNAVAILABLE, "ServerBusy", message).into_response();
        busy.headers_mut().insert(RETRY_AFTER, RETRY_AFTER_SECONDS.into());
        return Ok(busy);
    };
    if let Some(open) = request.extensions().get::<connections::Request>() {
        open.download_started();
    }
    let body = packages::content(file, size, slot, rest.app.metrics.clone());
    Ok(head(Body::from_stream(body)))
}

/// GET `/fabric/v1/packages`: the folder, and its packages with size and SHA-256. The request needs a token, because
/// the controller reads each package to answer it.
pub(super) async fn list(State(rest): State<Arc<Rest>>) -> Result<Response, Failure> {
    let packages = rest.packages.clone();
    let listed = tokio::task::spawn_blocking(move || packages.list()).await;
    let value = listed
        .map_err(io::Error::from)
        .flatten()
        .map_err(|error| unreadable(&error))?;
    Ok(ok(&json!({"folder": rest.packages.folder(), "value": value})))
}

/// The status 500, for a folder or package that cannot be read. The reason is logged and not sent, because clients
/// without a token must not see paths of this host.
fn unreadable(error: &io::Error) -> Failure {
    tracing::warn!(%error, "the folder of packages (--packages-dir) cannot be read");
    let message = "The controller cannot read its folder of packages; its log says why.";
    Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", message)
}
