//! The stored assertions: every later change must leave them true.

use super::reach::with_reach;
use crate::asserted::Broken;
use crate::reach_cache::Known;
use crate::rest::failure::{Failure, ok};
use crate::rest::{Rest, json};
use axum::extract::{Request, State};
use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json as object};
use std::sync::Arc;
use tombolo_proto::fabric::{Assertion, MAX_ASSERTIONS, StoredAssertions};
use tombolo_topology::reach::check_assertions;

/// GET `assertions`: the stored assertions, and the reasons for those that do not hold now.
pub(super) async fn get(State(rest): State<Arc<Rest>>) -> Result<Response, Failure> {
    let all = rest.asserted.all().await;
    let body = if all.is_empty() {
        body(&[], &[])
    } else {
        let work = move |known: &Known| {
            let broken = Broken::of(&known.reach, &known.topology, &all);
            Ok(body(&all, &broken.texts()))
        };
        with_reach(&rest, work).await?
    };
    Ok(ok(&body))
}

/// PUT `assertions`: replaces all stored assertions. All of them must hold now.
pub(super) async fn put(State(rest): State<Arc<Rest>>, request: Request) -> Result<Response, Failure> {
    let StoredAssertions { assertions } = json::typed(request).await?;
    if assertions.len() > MAX_ASSERTIONS {
        let count = assertions.len();
        let message = format!("assertions: {count} entries; at most {MAX_ASSERTIONS} are possible");
        return Err(Failure::bad("InvalidRequestFormat", message).at("assertions"));
    }
    let checked = assertions.clone();
    let check = async || match checked.is_empty() {
        true => Ok(()),
        false => with_reach(&rest, move |known| all_hold(known, &checked)).await,
    };
    rest.asserted
        .replace(&rest.app.writer, assertions.clone(), check)
        .await?;
    Ok(ok(&body(&assertions, &[])))
}

/// # Errors
/// 400 if an assertion names nothing, 409 if one does not hold.
fn all_hold(known: &Known, assertions: &[Assertion]) -> Result<(), Failure> {
    let violations = check_assertions(&known.reach, &known.topology, assertions);
    let violations = violations.map_err(|message| Failure::bad("InvalidResourceReference", message))?;
    let Some(first) = violations.first() else {
        return Ok(());
    };
    let message = format!(
        "assertions: {} of {} do not hold now, and only those that hold can be stored; the first is: {}",
        violations.len(),
        assertions.len(),
        first.text
    );
    Err(Failure::new(StatusCode::CONFLICT, "XAssertionViolated", message).at("assertions"))
}

fn body(assertions: &[Assertion], violations: &[&str]) -> Value {
    object!({"assertions": assertions, "violations": violations})
}
