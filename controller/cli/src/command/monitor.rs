//! `tombolo monitor`: connection monitors with the results of their checks.

use crate::context::Context;
use crate::output::state;
use anyhow::Result;
use clap::Subcommand;
use comfy_table::Cell;
use tombolo_client::fabric::{MonitorOutcome, MonitorResult, MonitorView};

#[derive(Debug, Subcommand)]
pub(crate) enum Monitor {
    /// List the tests of all monitors, each with its last result
    List,
}

impl Monitor {
    pub(crate) async fn run(&self, c: &Context) -> Result<()> {
        let Self::List = self;
        let monitors = c.client.monitors().await?;
        if c.out.is_json() {
            return c.out.json(&monitors);
        }
        let rows = monitors.iter().flat_map(rows).collect();
        c.out.table(
            &[
                "Monitor",
                "Group",
                "Test",
                "Source",
                "Destination",
                "Result",
                "Failed",
                "Round trip",
                "Checks",
            ],
            rows,
            "no monitor; create one with Azure's API (connectionMonitors of a network watcher)",
        );
        Ok(())
    }
}

/// The rows of a monitor: one for each test, or one that says that it is stopped.
fn rows(monitor: &MonitorView) -> Vec<Vec<Cell>> {
    let name = monitor.id.name();
    if monitor.tests.is_empty() {
        let mut row = vec![Cell::new(name)];
        row.extend(
            [
                "",
                "",
                "",
                "",
                if monitor.running { "no tests" } else { "stopped" },
                "",
                "",
                "",
            ]
            .map(Cell::new),
        );
        return vec![row];
    }
    let row = |test: &tombolo_client::fabric::MonitorTestView| {
        let last = test.history.last();
        let failed = last.and_then(|last| last.checks_failed_percent);
        let time = last.and_then(|last| last.round_trip_time_ms);
        vec![
            Cell::new(name),
            Cell::new(&test.group),
            Cell::new(&test.configuration),
            Cell::new(&test.source),
            Cell::new(&test.destination),
            last.map_or_else(|| Cell::new("not yet"), result),
            Cell::new(failed.map(|percent| format!("{percent} %")).unwrap_or_default()),
            Cell::new(time.map(|time| format!("{time} ms")).unwrap_or_default()),
            Cell::new(test.history.len()),
        ]
    };
    monitor.tests.iter().map(row).collect()
}

fn result(last: &MonitorResult) -> Cell {
    match (last.outcome, &last.reason) {
        (MonitorOutcome::Pass, _) => state("ok"),
        (MonitorOutcome::Fail, _) => state("failed"),
        (MonitorOutcome::Indeterminate, Some(reason)) => Cell::new(format!("unknown: {reason}")),
        (MonitorOutcome::Indeterminate, None) => Cell::new("unknown"),
    }
}
