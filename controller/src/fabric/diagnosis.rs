//! Explain (what policy says) and probe (what the network does). Where they disagree, a link is down.

use crate::rest::failure::{Failure, ok};
use crate::rest::{Rest, json};
use axum::extract::{Request, State};
use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json as object};
use std::sync::Arc;
use tombolo_proto::fabric::Probe;
use tombolo_proto::probe::{ProbeKind, ProbeRequest};
use tombolo_topology::explain::{self, Question};
use tombolo_topology::learned_routes::LearnedReports;

/// POST `explain`.
pub(super) async fn explain(State(rest): State<Arc<Rest>>, request: Request) -> Result<Response, Failure> {
    let question: Question = json::typed(request).await?;
    Ok(ok(&object!(answer(&rest, question).await?)))
}

/// Walks on a thread of its own: a large topology must not hold up the agents' streams.
async fn answer(rest: &Rest, question: Question) -> Result<explain::Explanation, Failure> {
    let topology = rest.app.writer.current().topology;
    let reports = LearnedReports::of(&rest.app.agents.live());
    let walked = tokio::task::spawn_blocking(move || explain::explain(&topology, &reports, &question)).await;
    let walked = walked.map_err(|e| {
        Failure::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalServerError",
            format!("explain: {e}"),
        )
    })?;
    walked.map_err(|message| Failure::bad("InvalidResourceReference", message))
}

/// POST `probe`.
pub(super) async fn probe(State(rest): State<Arc<Rest>>, request: Request) -> Result<Response, Failure> {
    let wanted: Probe = json::typed(request).await?;
    let (most, count, ttl) = match wanted.kind {
        ProbeKind::Ping => (100, 5, 64),
        ProbeKind::Trace => (10, 3, 30),
    };
    let within = |name: &str, value: u32, low: u32, high: u32| {
        if (low..=high).contains(&value) {
            return Ok(value);
        }
        let message = format!("{name}: {value} is not within {low} to {high}");
        Err(Failure::bad("InvalidRequestFormat", message).at(name))
    };
    let count = within("count", wanted.count.unwrap_or(count), 1, most)?;
    let interval_ms = within("intervalMs", wanted.interval_ms.unwrap_or(1000), 10, 60_000)?;
    let timeout_ms = within("timeoutMs", wanted.timeout_ms.unwrap_or(1000), 10, 10_000)?;
    let max_ttl = wanted.max_ttl.unwrap_or(ttl);
    within("maxTtl", max_ttl.into(), 1, 64)?;
    // Names are resolved as `explain` does it, so that both speak of the same two addresses.
    let question = Question {
        from: wanted.from,
        to: wanted.to,
        protocol: explain::Protocol::Icmp,
        destination_port: None,
        ttl: None,
    };
    let explained = answer(&rest, question).await?;
    let request = ProbeRequest {
        source: explained.source,
        destination: explained.destination,
        kind: wanted.kind,
        count,
        interval_ms,
        timeout_ms,
        max_ttl,
    };
    let agent = explained.request.hops.first().map(|hop| hop.agent.clone());
    let agent =
        agent.ok_or_else(|| Failure::bad("InvalidResourceReference", "from: nobody stands for it").at("from"))?;
    let report = rest.app.agents.probe(&agent, &request).await;
    let report = report.map_err(|message| Failure::new(StatusCode::CONFLICT, "XAgentNotReached", message))?;
    let mut body = object!(report);
    if let Value::Object(fields) = &mut body {
        fields.insert("from".into(), object!(explained.source));
        fields.insert("to".into(), object!(explained.destination));
    }
    Ok(ok(&body))
}
