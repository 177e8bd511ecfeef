//! `tombolo lab check` and `tombolo lab event`: what is expected, and what can happen.

use super::find::one;
use crate::check::{self, Heard, Phase, Tried};
use crate::lab::Lab;
use crate::progress::Progress;
use anyhow::{Result, bail};
use std::path::Path;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// Undoes every event.
const RESTORE: &str = "restore";

/// Tries every expected row in every phase, and compares what the controller says with what is.
pub(super) async fn check(dir: Option<&Path>, lab: Option<&str>, events: bool) -> Result<ExitCode> {
    let lab = Lab::attach(&one(dir, lab)?.0)?;
    let progress = Progress::stderr();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let good = tokio::select! {
        good = all(&lab, events, &progress) => good,
        _ = interrupt.recv() => Err(interrupted(&lab)),
        _ = terminate.recv() => Err(interrupted(&lab)),
    };
    progress.finish();
    Ok(if good? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A lab that goes on must not stay as some event left it.
fn interrupted(lab: &Lab) -> anyhow::Error {
    match lab.undo_events() {
        Ok(()) => anyhow::anyhow!("interrupted; every event was undone"),
        Err(e) => e.context("interrupted, and not every event was undone"),
    }
}

/// All that there is to try, printed as it is seen. Whether it was as expected.
pub(crate) async fn all(lab: &Lab, events: bool, progress: &Progress) -> Result<bool> {
    let mut good = true;
    let mut counts = (0, 0);
    if lab.topology().expected.is_empty() {
        progress.print("the topology expects nothing: comparing what the controller says with what is");
    } else {
        good &= check::phases(lab, events, |title, phase| match phase {
            None => progress.doing(title),
            Some(phase) => {
                let (rows, right) = phase.outcome.counts();
                counts = (counts.0 + rows, counts.1 + right);
                progress.print(&table(phase));
            }
        })
        .await?;
    }
    progress.doing("comparing routes and explain with the agents and with live packets");
    let agreement = check::all(lab).await?;
    let mut text = agreement.to_string();
    for problem in &agreement.problems {
        text += &format!("\n  ✗ {problem}");
    }
    progress.print(&text);
    good &= agreement.problems.is_empty();
    if counts.0 > 0 {
        progress.print(&format!("{} of {} rows were as expected", counts.1, counts.0));
    }
    Ok(good)
}

/// A phase as a table: what was expected and what was seen.
fn table(phase: &Phase) -> String {
    let heard = phase.outcome.heard.iter().map(heard_cells);
    let rows: Vec<[String; 4]> = phase.outcome.rows.iter().map(cells).chain(heard).collect();
    let head = ["FROM → TO", "EXPECTED", "SEEN"].map(str::to_owned);
    let width = |column: usize| {
        let cells = rows.iter().map(|r| r[column + 1].chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or_default()
    };
    let widths = [width(0), width(1)];
    let line = |mark: &str, cells: &[String]| {
        let padded = |n: usize| {
            format!(
                "{}{}",
                cells[n],
                " ".repeat(widths[n].saturating_sub(cells[n].chars().count()))
            )
        };
        format!("\n  {mark} {}  {}  {}", padded(0), padded(1), cells[2])
    };
    let mut text = phase.title.clone();
    if let Some(after) = phase.outcome.after {
        text += &format!(": as expected after {:.1} s", after.as_secs_f64());
    } else {
        let (rows, right) = phase.outcome.counts();
        text += &format!(": {} of {rows} rows were NOT as expected", rows - right);
    }
    text += &line(" ", &head);
    for row in &rows {
        text += &line(&row[0], &row[1..]);
    }
    text
}

const fn mark(good: bool) -> &'static str {
    if good { "✓" } else { "✗" }
}

fn heard_cells(heard: &Heard) -> [String; 4] {
    [
        mark(heard.good()).to_owned(),
        heard.who(),
        heard.expected(),
        heard.saw(),
    ]
}

fn cells(tried: &Tried) -> [String; 4] {
    [
        mark(tried.good()).to_owned(),
        format!("{} → {}", tried.row.from, tried.row.to),
        tried.expected(),
        tried.seen(),
    ]
}

/// Makes an event of the topology happen, or undoes all of them.
pub(super) fn event(dir: Option<&Path>, lab: Option<&str>, name: &str) -> Result<ExitCode> {
    let lab = Lab::attach(&one(dir, lab)?.0)?;
    if name == RESTORE {
        lab.undo_events()?;
        return Ok(ExitCode::SUCCESS);
    }
    let Some(event) = lab.topology().events.find(name) else {
        let names: Vec<_> = lab.topology().events.iter().map(|(name, _)| name).collect();
        bail!(
            "lab {} has no event '{name}': there are {}",
            lab.topology().name,
            names.into_iter().chain([RESTORE]).collect::<Vec<_>>().join(", ")
        );
    };
    lab.happen(event)?;
    Ok(ExitCode::SUCCESS)
}
