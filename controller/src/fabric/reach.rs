//! The requests `reach`, which addresses reach which; `reach/diff`, what proposed changes would connect and cut; and
//! `repair`, which changes would let a packet arrive.

use crate::asserted::Broken;
use crate::reach_cache::{Known, in_parallel};
use crate::rest::failure::{Failure, ok};
use crate::rest::{Rest, json};
use crate::writer::HistoryError;
use axum::extract::{Request, State};
use axum::response::Response;
use http::StatusCode;
use serde_json::json as object;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::OwnedMutexGuard;
use tombolo_proto::arm::ArmPath;
use tombolo_proto::fabric::{
    ExplainRequest, MAX_ASSERTIONS, MAX_PROPOSED_CHANGES, ProposedChange, ReachDiffRequest, ReachRequest,
};
use tombolo_proto::id::Revision;
use tombolo_topology::change::Change;
use tombolo_topology::learned_routes::LearnedReports;
use tombolo_topology::reach::{check_assertions, difference};
use tombolo_topology::repair;
use tombolo_topology::topology::Topology;
use uuid::Uuid;

/// Longest search for repairs. Computing the effects of those that were found takes some seconds more.
const REPAIR_LIMIT: Duration = Duration::from_secs(60);

/// POST `reach`: which addresses reach which.
pub(super) async fn reach(State(rest): State<Arc<Rest>>, request: Request) -> Result<Response, Failure> {
    let question: ReachRequest = json::typed(request).await?;
    let answer = with_reach(&rest, move |known| {
        let answer = known.reach.answer(&known.topology, &question);
        answer.map_err(|message| Failure::bad("InvalidResourceReference", message))
    });
    Ok(ok(&object!(answer.await?)))
}

/// POST `reach/diff`: what changes would connect and cut, and which assertions would not hold after them, those of the
/// request and the stored ones. Nothing is changed.
pub(super) async fn diff(State(rest): State<Arc<Rest>>, request: Request) -> Result<Response, Failure> {
    let question: ReachDiffRequest = json::typed(request).await?;
    for (field, count, limit) in [
        ("changes", question.changes.len(), MAX_PROPOSED_CHANGES),
        ("assertions", question.assertions.len(), MAX_ASSERTIONS),
    ] {
        if count > limit {
            let message = format!("{field}: {count} entries; at most {limit} are possible");
            return Err(Failure::bad("InvalidRequestFormat", message).at(field));
        }
    }
    let stored = rest.asserted.all().await;
    let since = earlier(&rest, "since", question.since).await?;
    let until = earlier(&rest, "until", question.until).await?;
    let answer = with_reach(&rest, move |known| {
        let present = until.as_ref().unwrap_or(&known.topology);
        let old = since.as_ref().or(until.as_ref()).map(|topology| known.after(topology));
        let old = old.as_ref().unwrap_or(&known.reach);
        let after = proposed(present, question.changes)?;
        let reach = known.after(&after);
        let check = |assertions| check_assertions(&reach, &after, assertions);
        let violations = check(&question.assertions);
        let violations = violations.map_err(|message| Failure::bad("InvalidResourceReference", message))?;
        let difference = difference(old, &reach);
        Ok(object!({
            "connects": difference.connects,
            "cuts": difference.cuts,
            "violations": violations,
            "refused": Broken::of(&reach, &after, &stored).since(&Broken::of(&known.reach, &known.topology, &stored)),
        }))
    });
    Ok(ok(&answer.await?))
}

/// The state of an earlier revision that the field `name` of a request has. `None`: the request does not have the field.
async fn earlier(rest: &Rest, name: &str, revision: Option<Revision>) -> Result<Option<Arc<Topology>>, Failure> {
    let Some(revision) = revision else {
        return Ok(None);
    };
    match rest.app.writer.history(revision).await {
        Ok(topology) => Ok(Some(Arc::new(topology))),
        Err(error @ HistoryError::OutOfRange { .. }) => {
            Err(Failure::bad("InvalidRequestFormat", format!("{name}: {error}")).at(name))
        }
        Err(error @ HistoryError::Failed(..)) => Err(Failure::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "ServiceUnavailable",
            format!("{name}: {error}"),
        )),
    }
}

/// POST `repair`: the smallest sets of changes that let a packet arrive and its reply come back. Nothing is changed.
pub(super) async fn repair(State(rest): State<Arc<Rest>>, request: Request) -> Result<Response, Failure> {
    let question: ExplainRequest = json::typed(request).await?;
    // One search at a time, because it keeps many states of the network. The state is read after the wait.
    let turn = rest.repairs.clone().lock_owned().await;
    let topology = rest.app.writer.current().topology;
    let reports = LearnedReports::of(&rest.app.agents.statuses());
    let reach = rest.reach.0.clone();
    let found = tokio::task::spawn_blocking(move || {
        let end = Instant::now() + REPAIR_LIMIT;
        // The computation of reachability uses all processors, and writes with assertions wait for it, but not for the search.
        let run = |tasks: usize, work: &(dyn Fn(usize) + Sync)| {
            let _turn = reach.blocking_lock();
            in_parallel(tasks, work);
        };
        let found = repair::repair(&topology, &reports, &question, &run, &|| Instant::now() >= end);
        drop(turn);
        found
    });
    let found = found.await.map_err(|e| {
        Failure::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalServerError",
            format!("repair: {e}"),
        )
    })?;
    let found = found.map_err(|message| Failure::bad("InvalidResourceReference", message))?;
    Ok(ok(&object!(found)))
}

/// The topology after changes that are only proposed.
///
/// # Errors
/// The error of the first change that is refused.
fn proposed(topology: &Topology, changes: Vec<ProposedChange>) -> Result<Topology, Failure> {
    let mut after = topology.clone();
    for (number, change) in changes.into_iter().enumerate() {
        let path = ArmPath::parse(&change.path)
            .map_err(|what| Failure::bad("InvalidResourceId", format!("changes[{number}].path: {what}")).at("path"))?;
        let change = match change.body {
            Some(body) => Change::Put {
                path,
                body,
                if_match: None,
                sync_remote_address_space: change.sync_remote_address_space,
            },
            None => Change::Delete { path, if_match: None },
        };
        after = after.apply(&change, &mut Uuid::new_v4)?.topology;
    }
    Ok(after)
}

/// Runs `work` on a thread for blocking work, with the reachability of the newest revision.
pub(super) async fn with_reach<T: Send + 'static>(
    rest: &Rest,
    work: impl FnOnce(&Known) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let mut cache: OwnedMutexGuard<Option<Known>> = rest.reach.0.clone().lock_owned().await;
    let published = rest.app.writer.current();
    let reports = LearnedReports::of(&rest.app.agents.statuses()).of_routes_only();
    let done = tokio::task::spawn_blocking(move || {
        let known = Known::of(published, reports, cache.take());
        let result = work(&known);
        *cache = Some(known);
        result
    });
    done.await.map_err(|e| {
        Failure::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalServerError",
            format!("reach: {e}"),
        )
    })?
}
