//! A topology's expectations, phase by phase: the steady state, each event, and the steady state again.

use super::rows::{self, Outcome};
use crate::lab::Lab;
use crate::topology::{Learned, Row};
use anyhow::Result;
use std::time::Duration;

/// Longest that routes may take to converge: a few seconds, and room for a busy machine.
const CONVERGENCE_TIMEOUT: Duration = Duration::from_secs(60);

/// One phase and its result.
#[derive(Debug, Clone)]
pub struct Phase {
    /// Title for people.
    pub title: String,
    /// Result of the phase.
    pub outcome: Outcome,
}

/// Checks all phases of a lab: the steady state, and with `events` each event and its restoration. Returns whether all
/// rows were as expected.
///
/// Calls `report` before a phase with its title, and after it with its result. All events are undone at the end, also
/// after an error.
///
/// # Errors
/// A program cannot run, or an event cannot be triggered.
pub async fn phases(lab: &Lab, events: bool, mut report: impl FnMut(&str, Option<&Phase>)) -> Result<bool> {
    let good = walk(lab, events, &mut report).await;
    lab.undo_events()?;
    good
}

async fn walk(lab: &Lab, events: bool, report: &mut impl FnMut(&str, Option<&Phase>)) -> Result<bool> {
    lab.undo_events()?;
    let topology = lab.topology();
    let mut good = phase(
        lab,
        "steady state".into(),
        (&topology.expected, &topology.learned),
        report,
    )
    .await?;
    if !events {
        return Ok(good);
    }
    for (name, event) in topology.events.iter() {
        lab.trigger(event)?;
        let after = (topology.rows_after(event), topology.learned_after(event));
        good &= phase(lab, format!("after '{name}'"), (&after.0, &after.1), report).await?;
        lab.undo_events()?;
        let steady = (&topology.expected[..], &topology.learned[..]);
        good &= phase(lab, format!("restored after '{name}'"), steady, report).await?;
    }
    Ok(good)
}

async fn phase(
    lab: &Lab,
    title: String,
    (expected, learned): (&[Row], &[Learned]),
    report: &mut impl FnMut(&str, Option<&Phase>),
) -> Result<bool> {
    report(&title, None);
    let outcome = rows::rows(lab, expected, learned, CONVERGENCE_TIMEOUT).await?;
    let good = outcome.good();
    let phase = Phase { title, outcome };
    report(&phase.title, Some(&phase));
    Ok(good)
}
