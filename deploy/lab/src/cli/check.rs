//! `tombolo lab check` and `tombolo lab event`.

use super::find::find_lab;
use crate::check::report::{check_all, check_site_view};
use crate::lab::Lab;
use crate::progress::Progress;
use anyhow::{Result, bail};
use std::path::Path;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// Name under which `tombolo lab event` undoes all events. No event of a topology may have this name.
const RESTORE: &str = "restore";

/// Checks the topology's expectations and the controller's answers. If `events` is set, the expectations are checked in
/// all phases, otherwise only in the steady state. With `site_view`, only the view of the sites is checked. A signal ends the check and undoes all events. Returns exit code 1
/// if anything was not as expected.
pub(super) async fn check(dir: Option<&Path>, lab: Option<&str>, events: bool, site_view: bool) -> Result<ExitCode> {
    let lab = Lab::attach(&find_lab(dir, lab)?.0)?;
    let progress = Progress::stderr();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let checks = async {
        match site_view {
            true => check_site_view(&lab, events, &progress).await,
            false => check_all(&lab, events, &progress).await,
        }
    };
    let good = tokio::select! {
        good = checks => good,
        _ = interrupt.recv() => Err(interrupted(&lab)),
        _ = terminate.recv() => Err(interrupted(&lab)),
    };
    progress.finish();
    Ok(if good? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Undoes all events after a signal has ended the check, because the lab stays up. Returns the error to report.
fn interrupted(lab: &Lab) -> anyhow::Error {
    match lab.undo_events() {
        Ok(()) => anyhow::anyhow!("interrupted; every event was undone"),
        Err(e) => e.context("interrupted, and not every event was undone"),
    }
}

/// Triggers an event of the topology by its name, or undoes all events if the name is `restore`. Does not wait until
/// routes have converged.
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
