//! Checks the assertions of a topology's resources: what must never, and what must always be reachable.

use crate::lab::Lab;
use anyhow::{Context, Result};
use serde_json::Value;
use tombolo_client::fabric::ReachDiffRequest;

/// The assertions of the topology's resources that do not hold, each as a sentence. The controller decides, from the
/// configuration that agents should run.
///
/// # Errors
/// The controller does not answer, or an assertion names something that does not exist.
pub(super) async fn broken(lab: &Lab) -> Result<Vec<String>> {
    let assertions = lab.topology().resources.assertions.clone();
    if assertions.is_empty() {
        return Ok(Vec::new());
    }
    let question = ReachDiffRequest {
        assertions,
        ..ReachDiffRequest::default()
    };
    let answer = lab
        .client()?
        .reach_diff(&question)
        .await
        .context("check the assertions")?;
    let violations = answer.get("violations").and_then(Value::as_array).into_iter().flatten();
    let text = |violation: &Value| {
        violation
            .get("text")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    Ok(violations
        .map(|violation| format!("assertion: {}", text(violation)))
        .collect())
}
