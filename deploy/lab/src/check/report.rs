//! Runs all checks of a lab and prints their results.

use super::{LearnedResult, Phase, RowResult, SiteViewPhase, SiteViewRow, mark};
use crate::lab::Lab;
use crate::progress::Progress;
use anyhow::Result;

/// Runs the checks of [`super::phases()`], if the topology has expectations, and of [`super::all`], and prints their
/// results. `events`: whether the phases include the events. Returns whether everything was as expected.
///
/// # Errors
/// As the two checks. Results until then have been printed.
pub(crate) async fn check_all(lab: &Lab, events: bool, progress: &Progress) -> Result<bool> {
    let mut good = true;
    let mut counts = (0, 0);
    if lab.topology().expected.is_empty() {
        progress
            .print("the topology has no expectations: comparing the controller's answers with agents and live packets");
    } else {
        good &= super::phases(lab, events, |title, phase| match phase {
            None => progress.set_activity(title),
            Some(phase) => {
                let (rows, right) = phase.outcome.counts();
                counts = (counts.0 + rows, counts.1 + right);
                progress.print(&table(phase));
            }
        })
        .await?;
    }
    progress.set_activity("comparing routes and explain with the agents and with live packets");
    let agreement = super::all(lab).await?;
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

/// Formats a phase as a table of expectations and results, with a title line.
fn table(phase: &Phase) -> String {
    let learned = phase.outcome.learned.iter().map(learned_cells);
    let rows: Vec<[String; 4]> = phase.outcome.rows.iter().map(row_cells).chain(learned).collect();
    let mut text = phase.title.clone();
    if let Some(after) = phase.outcome.after {
        text += &format!(": as expected after {:.1} s", after.as_secs_f64());
    } else {
        let (rows, right) = phase.outcome.counts();
        text += &format!(": {} of {rows} rows were NOT as expected", rows - right);
    }
    text += &lines(&["FROM → TO", "EXPECTED", "SEEN"], &rows);
    text
}

/// Runs the checks of [`super::site_view()`], and prints their results. Returns whether everything was as expected.
///
/// # Errors
/// As the check. Results until then have been printed.
pub(crate) async fn check_site_view(lab: &Lab, events: bool, progress: &Progress) -> Result<bool> {
    let mut counts = (0, 0);
    let good = super::site_view(lab, events, |title, phase| match phase {
        None => progress.set_activity(title),
        Some(phase) => {
            let right = phase.rows.iter().filter(|row| row.good()).count();
            counts = (counts.0 + phase.rows.len(), counts.1 + right);
            progress.print(&site_view_table(phase));
        }
    })
    .await?;
    progress.print(&format!(
        "{} of {} rows were as expected, seen and predicted",
        counts.1, counts.0
    ));
    Ok(good)
}

/// Formats a phase of the sites' view as a table, with a title line.
fn site_view_table(phase: &SiteViewPhase) -> String {
    let rows: Vec<[String; 5]> = phase.rows.iter().map(SiteViewRow::cells).collect();
    let head = ["FROM → TO", "EXPECTED", "SEEN BY THE PROBE", "PREDICTED"];
    phase.title.clone() + &lines(&head, &rows)
}

/// Formats a table. The first cell of each row is its mark, and the others are below the titles.
fn lines<const N: usize>(head: &[&str], rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|r| r[column + 1].chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |mark: &str, cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        let text = padded.collect::<Vec<_>>().join("  ");
        format!("\n  {mark} {}", text.trim_end())
    };
    let mut text = line(" ", head.to_vec());
    for row in rows {
        text += &line(&row[0], row[1..].iter().map(String::as_str).collect());
    }
    text
}

/// Returns the table cells for an expectation of learned prefixes: mark, router and neighbour, expectation, result.
fn learned_cells(learned: &LearnedResult) -> [String; 4] {
    [
        mark(learned.good()).to_owned(),
        learned.neighbour(),
        learned.expected(),
        learned.seen(),
    ]
}

/// Returns the table cells for a row of the topology: mark, pair, expectation, result.
fn row_cells(tried: &RowResult) -> [String; 4] {
    [
        mark(tried.good()).to_owned(),
        format!("{} → {}", tried.row.from, tried.row.to),
        tried.expected(),
        tried.seen(),
    ]
}
