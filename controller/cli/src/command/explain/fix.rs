//! `tombolo explain --fix`: the smallest set of changes that lets a packet arrive and its reply come back.

use crate::command::reach::{is_empty, show_difference};
use crate::context::Context;
use crate::output::{at, items};
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::process::ExitCode;
use tombolo_client::fabric::ExplainRequest;

/// Prints the repairs, and makes the first one if `applies` is set and the user agrees. The exit code is 1 if the packet
/// does not arrive and nothing was changed.
pub(super) async fn run(c: &Context, request: &ExplainRequest, applies: bool) -> Result<ExitCode> {
    let work = c.client.repair(request);
    let answer = c.progress("trying changes", work).await?;
    if c.out.is_json() && !applies {
        c.out.json(&answer)?;
    } else if !c.out.is_json() {
        show(c, &answer);
    }
    if answer.get("reachable").and_then(Value::as_bool) == Some(true) {
        return Ok(ExitCode::SUCCESS);
    }
    let Some(repair) = items(&answer, "/repairs").next().filter(|_| applies) else {
        return Ok(ExitCode::FAILURE);
    };
    if !c.confirm("Make the changes of the first repair?")? {
        c.out.note("Nothing was changed.");
        return Ok(ExitCode::FAILURE);
    }
    for change in items(repair, "/changes") {
        let text = at(change, "/text");
        c.out.note(&format!("{text} …"));
        make(c, change).await.with_context(|| text)?;
    }
    let explained = c.client.explain(request).await?;
    if c.out.is_json() {
        c.out.json(&explained)?;
    } else {
        c.out.line(&at(&explained, "/summary"));
    }
    c.wait_if_requested().await?;
    Ok(match explained.get("reachable").and_then(Value::as_bool) {
        Some(true) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// Makes one change of a repair.
async fn make(c: &Context, change: &Value) -> Result<()> {
    let path = at(change, "/path");
    match change.get("body") {
        Some(body) => {
            let syncs = change.get("syncRemoteAddressSpace").and_then(Value::as_bool) == Some(true);
            let query: &[_] = if syncs {
                &[("syncRemoteAddressSpace", "true")]
            } else {
                &[]
            };
            c.client.arm_put_with(&path, query, body).await?;
        }
        None => {
            c.client.arm_delete(&path).await?;
        }
    }
    Ok(())
}

fn show(c: &Context, answer: &Value) {
    if answer.get("reachable").and_then(Value::as_bool) == Some(true) {
        c.out.line(&at(answer, "/summary"));
        return;
    }
    if is_empty(answer, "/repairs") {
        c.out.line(&format!("No repair: {}", at(answer, "/summary")));
        return;
    }
    for (number, repair) in items(answer, "/repairs").enumerate() {
        let count = items(repair, "/changes").count();
        let title = match number {
            0 => "Smallest repair with the fewest side effects",
            _ => "Another of the same size",
        };
        c.out.title(&format!(
            "{}{title} ({count} change{})",
            if number == 0 { "" } else { "\n" },
            if count == 1 { "" } else { "s" }
        ));
        for change in items(repair, "/changes") {
            c.out.line(&format!("- {}", at(change, "/text")));
        }
        show_difference(c.out, repair);
    }
}
