//! The metrics of the controller in Prometheus' text format.
//!
//! The text is written by `tombolo_proto::exposition`, which the agent uses too. The crate `prometheus-client` is not
//! used, because it writes the format OpenMetrics, whose end marker and help lines differ from those in the golden
//! files.

pub mod histogram;

use crate::admission::{CloseReason, Counts, Stage};
use crate::agents::Agents;
use crate::compiled::Compiled;
use crate::writer::Published;
use histogram::Histogram;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tombolo_proto::exposition::{Kind, Text};

/// Longest time that the measurement waits for one revision. If the revision is not in force on every connected agent
/// by then, the time that has passed is observed, so that a connected agent that never applies the revision does not
/// stop the measurement. The time is twice the largest bound of the histogram, so such a revision counts only in the
/// bucket `+Inf`.
const CONVERGENCE_TIMEOUT: Duration = Duration::from_secs(60);

/// The counters and histograms that events update. The values of all other metrics are read when Prometheus scrapes
/// them.
#[derive(Debug, Default)]
pub struct Metrics {
    /// The duration of compiling one revision for all agents.
    pub compile: Arc<Histogram>,
    /// The time from a revision's publication until every connected agent has it in force.
    pub convergence: Histogram,
    /// Number of requests to the control service that were refused because of their client certificate.
    pub control_refused: AtomicU64,
    /// Numbers of requests for packages by their result, in the order of [`Download::NAMES`].
    downloads: [AtomicU64; Download::NAMES.len()],
}

/// How a request for a package ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Download {
    /// All bytes of the package were sent.
    Complete,
    /// The connection ended before all bytes were sent.
    Incomplete,
    /// Refused, because too many downloads were in progress.
    Busy,
    /// No package has that name.
    NotFound,
}

impl Download {
    /// The values of the label `result`, in the order of the variants.
    pub const NAMES: [&str; 4] = ["complete", "incomplete", "busy", "not_found"];

    const fn index(self) -> usize {
        match self {
            Self::Complete => 0,
            Self::Incomplete => 1,
            Self::Busy => 2,
            Self::NotFound => 3,
        }
    }
}

impl Metrics {
    /// Counts a request for a package by its result.
    pub fn downloaded(&self, how: Download) {
        if let Some(counter) = self.downloads.get(how.index()) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// All metrics of the controller in Prometheus' text format: the counters of this value, and figures about the
    /// present state that the arguments give. `docs/operations.md` describes each of them.
    #[must_use]
    pub fn text(&self, published: &Published, agents: &Agents, connections: &Counts) -> String {
        let progress = agents.progress();
        let connected = || progress.iter().filter(|p| p.connected);
        let in_force = connected().map(|p| p.applied).min().unwrap_or(published.revision);
        let behind = connected().filter(|p| !p.up_to_date).count();
        let refused = progress.iter().filter(|p| p.rejected.is_some()).count();
        let mut out = Text::default();
        out.metric("tombolo_build_info", Kind::Gauge, "1, with the program's version.")
            .add(&[("program", "controller"), ("version", env!("CARGO_PKG_VERSION"))], 1);
        let help = "The revision of the desired state, and the one that every connected agent has in force.";
        out.metric("tombolo_revision", Kind::Gauge, help)
            .add(&[("state", "desired")], published.revision)
            .add(&[("state", "in_force")], in_force);
        let mut samples = out.metric("tombolo_agents", Kind::Gauge, "Agents that are not revoked, by state.");
        for (state, n) in [
            ("known", progress.len()),
            ("connected", connected().count()),
            ("behind", behind),
            ("refusing", refused),
        ] {
            samples.add(&[("state", state)], n);
        }
        let help = "1: the agent's stream is up. Agents that are not revoked.";
        let mut samples = out.metric("tombolo_agent_connected", Kind::Gauge, help);
        for agent in &progress {
            samples.add(&[("agent", agent.agent.as_str())], u8::from(agent.connected));
        }
        let help = "1: the agent has in force what it should.";
        let mut samples = out.metric("tombolo_agent_up_to_date", Kind::Gauge, help);
        for agent in &progress {
            samples.add(&[("agent", agent.agent.as_str())], u8::from(agent.up_to_date));
        }
        let help = "Compiling one revision for all agents.";
        self.compile.write(&mut out, "tombolo_compile_seconds", help);
        let help = "From a change's commit until every connected agent has it in force.";
        self.convergence.write(&mut out, "tombolo_convergence_seconds", help);
        self.write_connections(&mut out, connections);
        out.finish()
    }

    fn write_connections(&self, out: &mut Text, counts: &Counts) {
        let help = "Connections of the port, by how far they are.";
        let mut samples = out.metric("tombolo_connections", Kind::Gauge, help);
        for (stage, n) in Stage::NAMES.iter().zip(counts.open) {
            samples.add(&[("stage", stage)], n);
        }
        let help = "Connections that were accepted.";
        out.metric("tombolo_connections_accepted_total", Kind::Counter, help)
            .add(&[], counts.accepted);
        let help = "Connections that were refused, or closed for others or by a limit of time or rate.";
        let mut samples = out.metric("tombolo_connections_closed_total", Kind::Counter, help);
        for (stage, reasons) in Stage::NAMES.iter().zip(counts.closed) {
            for (reason, n) in CloseReason::NAMES.iter().zip(reasons) {
                samples.add(&[("stage", stage), ("reason", reason)], n);
            }
        }
        let help = "Bytes of request bodies that are held for connections without a token.";
        out.metric("tombolo_stranger_body_bytes", Kind::Gauge, help)
            .add(&[], counts.body_bytes);
        let help = "Requests to the agents' service without the certificate of an agent that may call.";
        out.metric("tombolo_control_refused_total", Kind::Counter, help)
            .add(&[], self.control_refused.load(Ordering::Relaxed));
        let help = "Requests for packages of agents, by how they ended.";
        let mut samples = out.metric("tombolo_package_downloads_total", Kind::Counter, help);
        for (result, n) in Download::NAMES.iter().zip(&self.downloads) {
            samples.add(&[("result", result)], n.load(Ordering::Relaxed));
        }
    }
}

/// Observes in [`Metrics::convergence`], for each revision that is compiled after the call, the time from its
/// publication until it is in force on every connected agent. If this takes more than 60 s, the time that has passed
/// then is observed. Returns when the compiler has ended. Only one call should run, because each call observes every
/// revision. Of the revisions that are compiled while the measurement waits for an earlier one, only the newest is
/// observed.
///
/// # Panics
/// Outside of a Tokio runtime.
pub async fn measure_convergence(metrics: Arc<Metrics>, agents: Arc<Agents>, mut compiled: watch::Receiver<Compiled>) {
    while compiled.changed().await.is_ok() {
        let (revision, since): (_, Instant) = {
            let now = compiled.borrow_and_update();
            (now.revision, now.since)
        };
        agents.wait(revision, CONVERGENCE_TIMEOUT).await;
        metrics.convergence.observe(since.elapsed());
    }
}
