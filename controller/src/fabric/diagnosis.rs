//! The request `explain`, which walks a packet through the compiled configurations, the request `probe`, which
//! sends packets, and the request `check`, which compares both. If `explain` says that the destination is reachable and no probe is answered, a link may be down or a
//! host may be misconfigured.

use crate::agents::probe::ProbeError;
use crate::connectivity;
use crate::rest::failure::{Failure, ok};
use crate::rest::{Rest, json};
use axum::extract::{Request, State};
use axum::response::Response;
use http::StatusCode;
use serde_json::json as object;
use std::sync::Arc;
use tombolo_proto::fabric::{CheckRequest, ExplainRequest, ListResponse, Probe, ProbeAnswer, Protocol};
use tombolo_proto::probe::{ProbeKind, ProbeRequest};
use tombolo_topology::explain;
use tombolo_topology::learned_routes::LearnedReports;
use tombolo_topology::reach::as_designed;

/// POST `explain`: the path of a packet, or the rule that stops it.
pub(super) async fn explain(State(rest): State<Arc<Rest>>, request: Request) -> Result<Response, Failure> {
    let question: ExplainRequest = json::typed(request).await?;
    Ok(ok(&object!(answer(&rest, question).await?)))
}

/// Answers on a thread for blocking work, because the walk may take long in a large topology and must not delay the
/// agents' streams.
async fn answer(rest: &Rest, question: ExplainRequest) -> Result<explain::Explanation, Failure> {
    let topology = rest.app.writer.current().topology;
    let reports = LearnedReports::of(&rest.app.agents.statuses());
    let walked = tokio::task::spawn_blocking(move || match question.design {
        false => explain::explain(&topology, &reports, &question),
        true => explain::explain(&as_designed(&topology), &reports.of_routes_only(), &question),
    })
    .await;
    let walked = walked.map_err(|e| {
        Failure::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalServerError",
            format!("explain: {e}"),
        )
    })?;
    walked.map_err(|message| Failure::bad("InvalidResourceReference", message))
}

/// POST `check`: a connectivity check (M5).
pub(super) async fn check(State(rest): State<Arc<Rest>>, request: Request) -> Result<Response, Failure> {
    let question: CheckRequest = json::typed(request).await?;
    Ok(ok(&object!(connectivity::check(&rest.app, &question).await?)))
}

/// GET `monitors`: the connection monitors with the results of their tests.
pub(super) async fn monitors(State(rest): State<Arc<Rest>>) -> Response {
    ok(&object!(ListResponse {
        value: rest.monitors.views(),
    }))
}

/// POST `probe`: lets the agent of the source ping, trace or connect to the destination.
pub(super) async fn probe(State(rest): State<Arc<Rest>>, request: Request) -> Result<Response, Failure> {
    let requested: Probe = json::typed(request).await?;
    // A trace sends `count` probes to each hop, so its `count` is smaller than that of a ping. 3 probes a hop and 30
    // hops are traceroute's defaults; 64 is the initial TTL of Linux.
    let (max_count, count, ttl) = match requested.kind {
        ProbeKind::Ping => (100, 5, 64),
        ProbeKind::Connect => (20, 5, 64),
        ProbeKind::Trace => (10, 3, 30),
    };
    if !matches!(
        (requested.kind, requested.port),
        (ProbeKind::Connect, Some(1..)) | (ProbeKind::Ping | ProbeKind::Trace, None)
    ) {
        let message = "port: a port from 1 to 65535 is needed with the kind connect, and not possible with other kinds";
        return Err(Failure::bad("InvalidRequestFormat", message).at("port"));
    }
    let within = |name: &str, value: u32, low: u32, high: u32| {
        if (low..=high).contains(&value) {
            return Ok(value);
        }
        let message = format!("{name}: {value} is not within {low} to {high}");
        Err(Failure::bad("InvalidRequestFormat", message).at(name))
    };
    let count = within("count", requested.count.unwrap_or(count), 1, max_count)?;
    let interval_ms = within("intervalMs", requested.interval_ms.unwrap_or(1000), 10, 60_000)?;
    let timeout_ms = within("timeoutMs", requested.timeout_ms.unwrap_or(1000), 10, 10_000)?;
    let max_ttl = requested.max_ttl.unwrap_or(ttl);
    within("maxTtl", max_ttl.into(), 1, 64)?;
    // `explain` resolves the names, so that `explain` and `probe` use the same two addresses.
    let question = ExplainRequest {
        from: requested.from,
        to: requested.to,
        protocol: match requested.kind {
            ProbeKind::Ping | ProbeKind::Trace => Protocol::Icmp,
            ProbeKind::Connect => Protocol::Tcp,
        },
        destination_port: requested.port,
        ttl: None,
        design: false,
    };
    let explained = answer(&rest, question).await?;
    let request = ProbeRequest {
        source: explained.source,
        destination: explained.destination,
        kind: requested.kind,
        count,
        interval_ms,
        timeout_ms,
        max_ttl,
        port: requested.port,
    };
    let agent = explained.request.hops.first().map(|hop| hop.agent.clone());
    let agent =
        agent.ok_or_else(|| Failure::bad("InvalidResourceReference", "from: no agent is bound to it").at("from"))?;
    let report = rest.app.agents.probe(&agent, &request).await;
    let report = report.map_err(|e| match e {
        ProbeError::NotSupported(_) => Failure::bad("XAgentTooOld", e.to_string()),
        ProbeError::NotConnected(_) | ProbeError::NoReport(_) => {
            Failure::new(StatusCode::CONFLICT, "XAgentNotReached", e.to_string())
        }
    })?;
    Ok(ok(&object!(ProbeAnswer {
        from: Some(explained.source),
        to: Some(explained.destination),
        report,
    })))
}
