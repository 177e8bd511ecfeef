//! The request `flow-logs/tail`: the records of flow logs while agents make them (D38).

use crate::flow_tail::{FlowTail, MAX_TAILS, Selection, SelectionError};
use crate::rest::failure::Failure;
use crate::rest::{Rest, json};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use http::StatusCode;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use std::sync::Arc;
use std::time::Duration;
use tombolo_proto::fabric::FlowLogTail;

/// Longest wait for the compilation of the last write. It takes less than a second for thousands of agents.
const COMPILE_TIMEOUT: Duration = Duration::from_secs(5);

/// POST `flow-logs/tail`: the records of flow logs, as lines of JSON. It ends when the client ends the response.
pub(super) async fn tail(State(rest): State<Arc<Rest>>, request: Request) -> Result<Response, Failure> {
    let authorization = request.headers().get(AUTHORIZATION).cloned();
    let asked: FlowLogTail = json::typed(request).await?;
    let current = rest.app.writer.current();
    let selection = Selection::of(&current.topology, asked).map_err(|problem| {
        let code = match problem {
            SelectionError::Unknown(_) => "InvalidResourceReference",
            SelectionError::TooMany(_) | SelectionError::Disabled(_) | SelectionError::OtherRegion(..) => {
                "InvalidRequestFormat"
            }
        };
        Failure::bad(code, problem.to_string()).at(problem.field())
    })?;
    let place = rest.tails.clone().try_acquire_owned().map_err(|_| {
        let message =
            format!("{MAX_TAILS} tails of flow logs run at this controller already, and no more are possible; end one");
        Failure::new(StatusCode::CONFLICT, "XTailLimitReached", message)
    })?;
    // The agents of the first lines are those of the state that the client knows from its writes.
    let mut compiled = rest.app.compiled.clone();
    let is_compiled = compiled.wait_for(|compiled| compiled.revision >= current.revision);
    // Later lines correct the first ones if that takes longer.
    let _ = tokio::time::timeout(COMPILE_TIMEOUT, is_compiled).await.map(drop);
    let agents = rest.app.agents.clone();
    // A tail has no end of its own, so it must not outlive its token.
    let is_allowed = move || {
        let authorization = authorization.as_ref().and_then(|value| value.to_str().ok());
        rest.auth.check(authorization).is_ok()
    };
    let tail = FlowTail::new(agents, compiled, selection, Box::new(is_allowed), place);
    let mut response = Response::new(Body::from_stream(tail.into_stream()));
    let kind = HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    Ok(response)
}
