//! A topology's expectations, phase by phase: all is well, something has happened, all is well again.

use super::rows::{self, Outcome};
use crate::lab::Lab;
use crate::topology::{Learned, Row};
use anyhow::Result;
use std::time::Duration;

/// Longest that routes may take until they are as expected: a few seconds, and room for a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// One phase.
#[derive(Debug, Clone)]
pub struct Phase {
    /// For a person.
    pub title: String,
    /// What was seen.
    pub outcome: Outcome,
}

/// Goes through the phases of a lab: the steady state, and each event with the way back. `tell` is called before a
/// phase with its title, and after it with what was seen. Whatever happens, all events are undone at the end.
///
/// # Errors
/// A probe cannot run at all, or an event cannot happen.
pub async fn phases(lab: &Lab, events: bool, mut tell: impl FnMut(&str, Option<&Phase>)) -> Result<bool> {
    let gone_through = walk(lab, events, &mut tell).await;
    lab.undo_events()?;
    gone_through
}

async fn walk(lab: &Lab, events: bool, tell: &mut impl FnMut(&str, Option<&Phase>)) -> Result<bool> {
    lab.undo_events()?;
    let topology = lab.topology();
    let mut good = phase(
        lab,
        "steady state".into(),
        (&topology.expected, &topology.learned),
        tell,
    )
    .await?;
    if !events {
        return Ok(good);
    }
    for (name, event) in topology.events.iter() {
        lab.happen(event)?;
        let after = (topology.rows_after(event), topology.learned_after(event));
        good &= phase(lab, format!("after '{name}'"), (&after.0, &after.1), tell).await?;
        lab.undo_events()?;
        let steady = (&topology.expected[..], &topology.learned[..]);
        good &= phase(lab, format!("restored after '{name}'"), steady, tell).await?;
    }
    Ok(good)
}

async fn phase(
    lab: &Lab,
    title: String,
    (expected, learned): (&[Row], &[Learned]),
    tell: &mut impl FnMut(&str, Option<&Phase>),
) -> Result<bool> {
    tell(&title, None);
    let outcome = rows::rows(lab, expected, learned, LIMIT).await?;
    let good = outcome.good();
    let phase = Phase { title, outcome };
    tell(&phase.title, Some(&phase));
    Ok(good)
}
