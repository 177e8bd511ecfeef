//! Agents: what joined, how far each is, waiting until a change is in force; cutting off and forgetting.

use crate::agents::{AgentProgress, Refusal};
use crate::compiled::Compiled;
use crate::rest::Rest;
use crate::rest::failure::{Failure, at_revision, empty, ok, shown};
use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tombolo_proto::config::AgentConfig;
use tombolo_proto::fabric::{AgentRevision, Rejected, Revisions, Waited};
use tombolo_proto::id::{AgentId, Revision};
use tombolo_topology::change::Change;
use tombolo_topology::learned_routes::{self, LearnedReports};
use tombolo_topology::resource::Agent;
use tombolo_topology::topology::AgentStatuses;

/// Seconds that one wait lasts unless asked otherwise, and at most.
const WAIT: (u64, u64) = (30, 600);

fn missing(id: &str) -> Failure {
    Failure::missing("NotFound", format!("Agent '{}' not found.", shown(id)))
}

fn view(agent: &Agent, progress: Option<&AgentProgress>, live: &AgentStatuses) -> Value {
    let digest = |text: Option<&String>| text.filter(|d| !d.is_empty()).cloned();
    json!({
        "id": agent.id,
        "binding": agent.binding,
        "publicKey": agent.public_key,
        "endpoints": agent.reach.endpoints,
        "quicEndpoint": agent.reach.quic_endpoint,
        "lanes": agent.reach.lanes,
        "revoked": agent.revoked,
        "connected": live.connected.contains(&agent.id),
        "appliedRevision": progress.map(|p| p.applied),
        "appliedDigest": digest(progress.map(|p| &p.digest)),
        "desiredDigest": digest(progress.map(|p| &p.desired_digest)),
        "rejected": progress.and_then(|p| p.rejected.as_ref()),
        "status": live.agents.get(&agent.id),
    })
}

/// Of every agent, and against the newest state: what is compiled lags what was answered.
async fn progress(rest: &Rest) -> Result<BTreeMap<AgentId, AgentProgress>, Failure> {
    compiled_now(rest).await?;
    let all = rest.app.agents.progress().into_iter();
    Ok(all.map(|p| (p.agent.clone(), p)).collect())
}

/// GET `agents`.
pub(super) async fn list(State(rest): State<Arc<Rest>>) -> Result<Response, Failure> {
    let (progress, live) = (progress(&rest).await?, rest.app.agents.live());
    let topology = rest.app.writer.current().topology;
    let agents = topology.agents.values();
    let value: Vec<_> = agents.map(|a| view(a, progress.get(&a.id), &live)).collect();
    Ok(ok(&json!({"value": value})))
}

/// GET `agents/{id}`.
pub(super) async fn one(State(rest): State<Arc<Rest>>, Path(id): Path<String>) -> Result<Response, Failure> {
    let agent = find(&rest, &id)?;
    let progress = progress(&rest).await?;
    Ok(ok(&view(&agent, progress.get(&agent.id), &rest.app.agents.live())))
}

fn find(rest: &Rest, id: &str) -> Result<Arc<Agent>, Failure> {
    let topology = rest.app.writer.current().topology;
    let found = AgentId::new(id).ok().and_then(|id| topology.agents.get(&id).cloned());
    found.ok_or_else(|| missing(id))
}

/// POST `agents/{id}/revoke`.
pub(super) async fn revoke(State(rest): State<Arc<Rest>>, Path(id): Path<String>) -> Result<Response, Failure> {
    let agent = find(&rest, &id)?.id.clone();
    let committed = rest.app.writer.change(Change::RevokeAgent(agent.clone())).await?;
    tracing::info!(%agent, "agent revoked");
    Ok(at_revision(empty(StatusCode::NO_CONTENT), committed.published.revision))
}

/// DELETE `agents/{id}`.
pub(super) async fn delete(State(rest): State<Arc<Rest>>, Path(id): Path<String>) -> Result<Response, Failure> {
    let agent = AgentId::new(&*id).map_err(|_| missing(&id))?;
    let committed = rest.app.writer.change(Change::DeleteAgent(agent.clone())).await?;
    if committed.created_or_removed {
        tracing::info!(%agent, "agent deleted");
    }
    rest.app.agents.forget_deleted();
    Ok(at_revision(empty(StatusCode::NO_CONTENT), committed.published.revision))
}

/// What is compiled of the newest state: who has had a change answered sees it here.
async fn compiled_now(rest: &Rest) -> Result<Compiled, Failure> {
    let revision = rest.app.writer.current().revision;
    let mut compiled = rest.app.compiled.clone();
    let caught_up = compiled.wait_for(|c| c.revision >= revision).await;
    let stopped = |_| {
        let message = "the controller is shutting down: nothing is compiled any more";
        Failure::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message)
    };
    caught_up.map(|c| c.clone()).map_err(stopped)
}

/// GET `agents/{id}/config`: what it should run, without secrets.
pub(super) async fn config(State(rest): State<Arc<Rest>>, Path(id): Path<String>) -> Result<Response, Failure> {
    let agent = find(&rest, &id)?;
    let compiled = compiled_now(&rest).await?;
    let nothing = || {
        let message = format!("Agent '{id}' has no configuration: it was revoked, or what it stands for is gone.");
        Failure::missing("NotFound", message)
    };
    let config = compiled.configs.get(&agent.id).ok_or_else(nothing)?;
    let parsed = AgentConfig::from_bytes(&config.bytes);
    let mut parsed = parsed.map_err(|e| {
        let message = format!("the compiled configuration breaks its own rules: {e}");
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", message)
    })?;
    parsed.blank_secrets();
    Ok(at_revision(ok(&json!(parsed)), compiled.revision))
}

/// GET `agents/{id}/tables`: what it should have installed, with what agents report to have learned.
pub(super) async fn tables(State(rest): State<Arc<Rest>>, Path(id): Path<String>) -> Result<Response, Failure> {
    let agent = find(&rest, &id)?;
    let current = rest.app.writer.current();
    let reports = LearnedReports::of(&rest.app.agents.live());
    let (topology, of) = (current.topology.clone(), agent.id.clone());
    let built = tokio::task::spawn_blocking(move || learned_routes::tables(&topology, &reports, &of)).await;
    let broken = |what: String| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", what);
    let built = built.map_err(|e| broken(format!("tables: {e}")))?;
    let nothing = || {
        let message = format!("Agent '{id}' has no configuration: it was revoked, or what it stands for is gone.");
        Failure::missing("NotFound", message)
    };
    let tables = built.ok_or_else(nothing)?.map_err(broken)?;
    Ok(at_revision(ok(&json!(tables)), current.revision))
}

/// GET `revisions`.
pub(super) async fn revisions(State(rest): State<Arc<Rest>>) -> Response {
    let desired = rest.app.writer.current().revision;
    let progress = rest.app.agents.progress();
    let connected = progress.iter().filter(|p| p.connected);
    let in_force = connected.map(|p| p.applied).min().unwrap_or(desired);
    let line = |p: &AgentProgress| AgentRevision {
        agent: p.agent.clone(),
        connected: p.connected,
        applied: Some(p.applied),
        up_to_date: p.up_to_date,
        rejected: p.rejected.as_ref().map(rejected),
    };
    let agents = progress.iter().map(line).collect();
    ok(&json!(Revisions {
        desired,
        in_force,
        agents
    }))
}

fn rejected(refusal: &Refusal) -> Rejected {
    Rejected {
        revision: refusal.revision,
        reason: refusal.reason.clone(),
    }
}

/// GET `revisions/{n}/wait`.
pub(super) async fn wait(
    State(rest): State<Arc<Rest>>,
    Path(revision): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Failure> {
    let number = |name: &str, text: &str| {
        text.parse::<u64>().map_err(|_| {
            let message = format!("{name}: '{}' is not a number", shown(text));
            Failure::bad("InvalidRequestFormat", message).at(name)
        })
    };
    let revision = Revision(number("revision", &revision)?);
    let mut limit = WAIT.0;
    for pair in query.unwrap_or_default().split('&').filter(|p| !p.is_empty()) {
        match pair.split_once('=') {
            Some(("timeoutSeconds", text)) => limit = number("timeoutSeconds", text)?.min(WAIT.1),
            _ => {
                let message = format!("the query parameter '{}' is not known", shown(pair));
                return Err(Failure::bad("InvalidRequestFormat", message));
            }
        }
    }
    let agents = &rest.app.agents;
    let waiting = agents.wait(revision, Duration::from_secs(limit)).await;
    let reached = rest.app.compiled.borrow().revision >= revision;
    Ok(ok(&json!(Waited {
        in_force: waiting.is_empty() && reached,
        waiting_for: waiting,
    })))
}
