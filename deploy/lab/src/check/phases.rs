//! Checks a topology's expectations phase by phase: in the steady state, after each event, and in the steady state
//! again.

use super::rows::{self, Outcome};
use crate::lab::Lab;
use crate::topology::{Learned, Row};
use anyhow::Result;
use std::time::Duration;

/// Longest time that routes may take to converge in a phase. Routes converge in a few seconds; the rest of the time
/// allows for a busy machine.
const CONVERGENCE_TIMEOUT: Duration = Duration::from_secs(60);

/// A phase in which expectations were checked, and its result.
#[derive(Debug, Clone)]
pub struct Phase {
    /// Title for people: `steady state`, `after 'EVENT'` or `restored after 'EVENT'`.
    pub title: String,
    /// Results of the phase's rows and of the learned prefixes.
    pub outcome: Outcome,
}

/// Checks the steady state of a lab. If `events` is set, then also checks, for each event in the file's order, the
/// state after the event and the steady state after the event was undone. Returns true if all results of all phases
/// were as expected. A phase ends when all its results are as expected, or after a minute.
///
/// Calls `report` twice for a phase: before the phase with its title and `None`, and after the phase with its title and
/// result. All events are undone before the first phase and after the last one, and also after an error. If the future
/// is dropped, events are not undone.
///
/// # Errors
/// A ping or traceroute cannot run, a routing daemon does not answer, or an event cannot be triggered or undone.
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
