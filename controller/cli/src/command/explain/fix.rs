//! `tombolo explain --fix`: the smallest set of changes that lets a packet arrive and its reply come back.

use crate::command::reach::{is_empty, show_difference};
use crate::context::Context;
use crate::output::{at, items};
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::process::ExitCode;
use tombolo_client::fabric::ExplainRequest;

/// Prints the repairs, and makes the first one if `applies` is set and the user agrees. The exit code is 1 if the packet
/// does not arrive and nothing was changed.
pub(super) async fn run(c: &Context, request: &ExplainRequest, applies: bool) -> Result<ExitCode> {
    let work = c.client.repair(request);
    let answer = c.progress("trying changes", work).await?;
    let is_reachable = answer.get("reachable").and_then(Value::as_bool) == Some(true);
    let repair = items(&answer, "/repairs").next().filter(|_| applies && !is_reachable);
    if !c.out.is_json() {
        show(c, &answer);
    } else if repair.is_none() {
        c.out.json(&answer)?;
    }
    if is_reachable {
        return Ok(match is_empty(&answer, "/byHand") {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        });
    }
    let Some(repair) = repair else {
        return Ok(ExitCode::FAILURE);
    };
    let changes: Vec<Value> = items(repair, "/changes").cloned().collect();
    if c.out.is_json() {
        // Standard output has one document, which tells the end.
        for change in &changes {
            c.out.note(&format!("- {}", at(change, "/text")));
        }
    }
    if !c.confirm("Make the changes of the first repair?")? {
        if c.out.is_json() {
            c.out.json(&answer)?;
        }
        c.out.note("Nothing was changed.");
        return Ok(ExitCode::FAILURE);
    }
    if let Some(path) = c.client.changed_since(&changes).await? {
        bail!("{path} has changed since the repair was computed, so nothing was changed; run the command again");
    }
    for change in &changes {
        let text = at(change, "/text");
        c.out.note(&format!("{text} …"));
        c.client.make_change(change).await.with_context(|| text)?;
    }
    c.wait_if_requested().await?;
    // Repairs are about the design; links come up a moment later.
    let designed = ExplainRequest {
        design: true,
        ttl: None,
        ..request.clone()
    };
    let explained = c.client.explain(&designed).await?;
    if c.out.is_json() {
        c.out.json(&explained)?;
    } else {
        c.out.line(&at(&explained, "/summary"));
    }
    Ok(match explained.get("reachable").and_then(Value::as_bool) {
        Some(true) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// Prints what the user must do where no change of the configuration helps.
fn show_by_hand(c: &Context, answer: &Value) {
    if is_empty(answer, "/byHand") {
        return;
    }
    c.out.title("\nWhat you must do");
    for entry in items(answer, "/byHand") {
        let after: Vec<&str> = items(entry, "/after").filter_map(Value::as_str).collect();
        if !after.is_empty() {
            c.out.line(&format!("First: {}", after.join("; then ")));
        }
        c.out.line(&format!("- {}", at(entry, "/text")));
        c.out.line(&format!("  Cause: {}", at(entry, "/cause")));
        c.out
            .line(&format!("  Why --fix does not do it: {}", at(entry, "/why")));
    }
}

fn show(c: &Context, answer: &Value) {
    if answer.get("reachable").and_then(Value::as_bool) == Some(true) {
        c.out.line(&at(answer, "/summary"));
        show_by_hand(c, answer);
        return;
    }
    if is_empty(answer, "/repairs") {
        c.out.line(&format!("No repair: {}", at(answer, "/summary")));
        show_by_hand(c, answer);
        return;
    }
    let is_cut_off = answer.get("cutOff").and_then(Value::as_bool) == Some(true);
    for (number, repair) in items(answer, "/repairs").enumerate() {
        let count = items(repair, "/changes").count();
        let title = match number {
            0 if is_cut_off => "Smallest repair that was found before the search was cut off",
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
