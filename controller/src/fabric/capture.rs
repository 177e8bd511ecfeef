//! The request `capture`: a live capture of packets, whose response is a stream in pcapng; the request `captures`: packet
//! captures with their states (D42).

use crate::agents::live::LiveBytes;
use crate::rest::failure::{Failure, excerpt, ok};
use crate::rest::{Rest, json};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use futures::stream;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue};
use serde_json::json as object;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tombolo_proto::capture::{CaptureDelivery, CaptureLayer, CaptureRequest};
use tombolo_proto::fabric::LiveCapture;
use tombolo_topology::capture::{filters, target, time_limit, total_bytes};

/// Longest time until the agent sends the beginning of a live capture.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// POST `capture`: the packets of a machine, a network interface or an agent. The capture ends at its limits, and when the
/// client ends the response.
pub(super) async fn live(State(rest): State<Arc<Rest>>, request: Request) -> Result<Response, Failure> {
    let asked: LiveCapture = json::typed(request).await?;
    let filters = filters(&asked.filters)
        .map_err(|problem| Failure::bad("InvalidRequestFormat", excerpt(&problem.message)).at(problem.field))?;
    let topology = rest.app.writer.current().topology;
    let target = target(&topology, &asked.target).map_err(|message| {
        Failure::bad("InvalidResourceReference", format!("target: {}", excerpt(&message))).at("target")
    })?;
    let request = CaptureRequest {
        name: asked.target,
        nics: target.nics,
        layer: match asked.sealed {
            true => CaptureLayer::Datagrams,
            false => CaptureLayer::Packets,
        },
        filters,
        bytes_per_packet: asked.bytes_per_packet.unwrap_or_default(),
        total_bytes: total_bytes(asked.total_bytes),
        seconds: time_limit(asked.seconds),
        delivery: CaptureDelivery::Stream,
    };
    if let Err(message) = request.check() {
        return Err(Failure::bad("InvalidRequestFormat", message));
    }
    let mut live = rest.app.agents.capture_live(&target.agent, &request)?;
    // The agent sends the beginning of the file at once, or says why it cannot capture.
    let failed = |message: String| Failure::new(StatusCode::CONFLICT, "XAgentNotReached", message);
    let first = tokio::time::timeout(START_TIMEOUT, live.next()).await;
    let first = first.map_err(|_| failed(format!("agent {} has not begun within {START_TIMEOUT:?}", target.agent)))?;
    let first = first
        .unwrap_or(Ok(Bytes::new()))
        .map_err(|end| failed(end.to_string()))?;
    let mut response = Response::new(Body::from_stream(body(first, live)));
    let kind = HeaderValue::from_static("application/x-pcapng");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    Ok(response)
}

/// GET `captures`: the packet captures of all watchers in ARM's form, ordered by id, each with its state as `status`.
pub(super) async fn list(State(rest): State<Arc<Rest>>) -> Response {
    ok(&object!({"value": rest.captures.views()}))
}

/// The bytes of a live capture, of which `first` are read already. An error breaks the response off, so that the client sees that something is missing.
fn body(first: Bytes, live: LiveBytes) -> impl stream::Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::try_unfold((Some(first), live), |(first, mut live)| async move {
        if let Some(first) = first {
            return Ok(Some((first, (None, live))));
        }
        match live.next().await {
            Some(Ok(bytes)) => Ok(Some((bytes, (None, live)))),
            Some(Err(reason)) => Err(io::Error::other(reason)),
            None => Ok(None),
        }
    })
}
