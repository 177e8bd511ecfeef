//! `tombolo lab check` and `tombolo lab event`.

use super::find::find_lab;
use crate::check::report::check_all;
use crate::lab::Lab;
use crate::progress::Progress;
use anyhow::{Result, bail};
use std::path::Path;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// The name that undoes all events; no event of a topology may have it.
const RESTORE: &str = "restore";

/// Checks the topology's expectations in every phase, and the controller's answers. A signal undoes all events.
pub(super) async fn check(dir: Option<&Path>, lab: Option<&str>, events: bool) -> Result<ExitCode> {
    let lab = Lab::attach(&find_lab(dir, lab)?.0)?;
    let progress = Progress::stderr();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let good = tokio::select! {
        good = check_all(&lab, events, &progress) => good,
        _ = interrupt.recv() => Err(interrupted(&lab)),
        _ = terminate.recv() => Err(interrupted(&lab)),
    };
    progress.finish();
    Ok(if good? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Undoes all events, because the lab stays up. Returns the error to report.
fn interrupted(lab: &Lab) -> anyhow::Error {
    match lab.undo_events() {
        Ok(()) => anyhow::anyhow!("interrupted; every event was undone"),
        Err(e) => e.context("interrupted, and not every event was undone"),
    }
}

/// Triggers an event of the topology, or undoes all events.
pub(super) fn event(dir: Option<&Path>, lab: Option<&str>, name: &str) -> Result<ExitCode> {
    let lab = Lab::attach(&find_lab(dir, lab)?.0)?;
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
    lab.trigger(event)?;
    Ok(ExitCode::SUCCESS)
}
