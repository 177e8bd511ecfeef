//! Numbers for Prometheus: how far the agents are, how long compiling and converging take.

use crate::admission::{Counts, Stage, Why};
use crate::agents::Agents;
use crate::compiled::Compiled;
use crate::writer::Published;
use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Upper bounds of the buckets, microseconds: the target for convergence, 100 ms, is one of them.
const BOUNDS: [u64; 12] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 5_000_000, 30_000_000,
];
/// A revision that is not in force everywhere by then is counted in no bucket but the last.
const PATIENCE: Duration = Duration::from_secs(60);

/// Counts durations.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS.len()],
    count: AtomicU64,
    micros: AtomicU64,
}

impl Histogram {
    /// Counts one.
    pub fn observe(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        for (bucket, bound) in self.buckets.iter().zip(BOUNDS) {
            if micros <= bound {
                bucket.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.micros.fetch_add(micros, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    fn write(&self, out: &mut String, name: &str, help: &str) -> fmt::Result {
        let seconds = |micros: u64| Duration::from_micros(micros).as_secs_f64();
        let read = |n: &AtomicU64| n.load(Ordering::Relaxed);
        writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram")?;
        for (bucket, bound) in self.buckets.iter().zip(BOUNDS) {
            writeln!(out, "{name}_bucket{{le=\"{}\"}} {}", seconds(bound), read(bucket))?;
        }
        writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {}", read(&self.count))?;
        writeln!(out, "{name}_sum {}", seconds(read(&self.micros)))?;
        writeln!(out, "{name}_count {}", read(&self.count))
    }
}

/// What is measured as it happens; the rest is read when asked for.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Compiling one revision for all agents.
    pub compile: Histogram,
    /// From a revision's publication until every connected agent has it in force.
    pub convergence: Histogram,
    /// Requests to the agents' service without the certificate of an agent that may call.
    pub control_refused: AtomicU64,
}

impl Metrics {
    /// Everything, in Prometheus' text format.
    #[must_use]
    pub fn text(&self, published: &Published, agents: &Agents, connections: &Counts) -> String {
        let progress = agents.progress();
        let connected = || progress.iter().filter(|p| p.connected);
        let in_force = connected().map(|p| p.applied).min().unwrap_or(published.revision);
        let behind = connected().filter(|p| !p.up_to_date).count();
        let refused = progress.iter().filter(|p| p.rejected.is_some()).count();
        let mut out = String::new();
        let mut write = || -> fmt::Result {
            writeln!(
                out,
                "# HELP tombolo_revision Desired state, and what every connected agent has.\n# TYPE tombolo_revision gauge"
            )?;
            writeln!(out, "tombolo_revision{{state=\"desired\"}} {}", published.revision)?;
            writeln!(out, "tombolo_revision{{state=\"in_force\"}} {in_force}")?;
            writeln!(
                out,
                "# HELP tombolo_agents Agents that are not revoked.\n# TYPE tombolo_agents gauge"
            )?;
            for (state, n) in [
                ("known", progress.len()),
                ("connected", connected().count()),
                ("behind", behind),
                ("refusing", refused),
            ] {
                writeln!(out, "tombolo_agents{{state=\"{state}\"}} {n}")?;
            }
            self.compile.write(
                &mut out,
                "tombolo_compile_seconds",
                "Compiling one revision for all agents.",
            )?;
            let help = "From a change's commit until every connected agent has it in force.";
            self.convergence.write(&mut out, "tombolo_convergence_seconds", help)?;
            self.write_connections(&mut out, connections)
        };
        // Writing to a string does not fail.
        let _ = write();
        out
    }

    fn write_connections(&self, out: &mut String, counts: &Counts) -> fmt::Result {
        let head = |out: &mut String, name: &str, help: &str, kind: &str| {
            writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}")
        };
        let name = "tombolo_connections";
        head(out, name, "Connections of the port, by how far they are.", "gauge")?;
        for (stage, n) in Stage::NAMES.iter().zip(counts.open) {
            writeln!(out, "{name}{{stage=\"{stage}\"}} {n}")?;
        }
        let name = "tombolo_connections_accepted_total";
        head(out, name, "Connections that were accepted.", "counter")?;
        writeln!(out, "{name} {}", counts.accepted)?;
        let name = "tombolo_connections_closed_total";
        head(
            out,
            name,
            "Connections that were refused, or closed for others or by a timeout.",
            "counter",
        )?;
        for (stage, reasons) in Stage::NAMES.iter().zip(counts.closed) {
            for (reason, n) in Why::NAMES.iter().zip(reasons) {
                writeln!(out, "{name}{{stage=\"{stage}\",reason=\"{reason}\"}} {n}")?;
            }
        }
        let name = "tombolo_stranger_body_bytes";
        head(
            out,
            name,
            "Bytes of request bodies that are held for connections without a token.",
            "gauge",
        )?;
        writeln!(out, "{name} {}", counts.body_bytes)?;
        let name = "tombolo_control_refused_total";
        head(
            out,
            name,
            "Requests to the agents' service without the certificate of an agent that may call.",
            "counter",
        )?;
        writeln!(out, "{name} {}", self.control_refused.load(Ordering::Relaxed))
    }
}

/// Measures how long revisions take to be in force; of several that overtake each other, the newest.
pub async fn measure_convergence(metrics: Arc<Metrics>, agents: Arc<Agents>, mut compiled: watch::Receiver<Compiled>) {
    while compiled.changed().await.is_ok() {
        let (revision, since): (_, Instant) = {
            let now = compiled.borrow_and_update();
            (now.revision, now.since)
        };
        agents.wait(revision, PATIENCE).await;
        metrics.convergence.observe(since.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative() {
        let histogram = Histogram::default();
        histogram.observe(Duration::from_millis(3));
        histogram.observe(Duration::from_millis(90));
        histogram.observe(Duration::from_secs(100));
        let mut out = String::new();
        histogram.write(&mut out, "x", "y").unwrap();
        for line in [
            "x_bucket{le=\"0.0025\"} 0",
            "x_bucket{le=\"0.005\"} 1",
            "x_bucket{le=\"0.1\"} 2",
            "x_bucket{le=\"+Inf\"} 3",
            "x_count 3",
        ] {
            assert!(out.lines().any(|l| l == line), "{line}\n{out}");
        }
    }
}
