//! One check of a connection monitor: echo requests or connections from the source's agent.

use crate::app::App;
use std::time::{SystemTime, UNIX_EPOCH};
use tombolo_proto::fabric::{MonitorOutcome, MonitorResult, Protocol};
use tombolo_proto::probe::{ProbeKind, ProbeReport, ProbeRequest};
use tombolo_topology::connectivity::mean;
use tombolo_topology::explain::{DEFAULT_TTL, ends};
use tombolo_topology::monitor::MonitorTest;

/// Number of probes of a check.
const PROBES: u32 = 5;
/// Time between two of them, in milliseconds.
const INTERVAL_MS: u32 = 100;
/// Time to wait for an echo, in milliseconds.
const ECHO_TIMEOUT_MS: u32 = 1000;
/// Time to wait for a connection, in milliseconds: long enough for one repeated SYN.
const CONNECT_TIMEOUT_MS: u32 = 3000;

/// Makes a check. It ends at the latest some seconds after its last probe.
pub(super) async fn check(app: &App, test: &MonitorTest) -> MonitorResult {
    let probed = probe(app, test).await;
    let time = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    match probed {
        Ok(report) => {
            let failed = PROBES - report.received.min(PROBES);
            let round_trip = mean(&report.rtts_ms).filter(|_| failed < PROBES);
            MonitorResult {
                time,
                outcome: test.outcome(PROBES, failed, round_trip),
                checks_failed_percent: u8::try_from(failed * 100 / PROBES).ok(),
                round_trip_time_ms: round_trip,
                reason: None,
            }
        }
        Err(reason) => MonitorResult {
            time,
            outcome: MonitorOutcome::Indeterminate,
            checks_failed_percent: None,
            round_trip_time_ms: None,
            reason: Some(shown(&reason)),
        },
    }
}

/// The report of the probes, or why none could be sent.
async fn probe(app: &App, test: &MonitorTest) -> Result<ProbeReport, String> {
    let topology = app.writer.current().topology;
    let ends = ends(&topology, &test.from, &test.to)?;
    let (kind, timeout_ms) = match test.protocol {
        Protocol::Tcp => (ProbeKind::Connect, CONNECT_TIMEOUT_MS),
        Protocol::Icmp | Protocol::Udp => (ProbeKind::Ping, ECHO_TIMEOUT_MS),
    };
    let request = ProbeRequest {
        source: ends.source,
        destination: ends.destination,
        kind,
        count: PROBES,
        interval_ms: INTERVAL_MS,
        timeout_ms,
        max_ttl: DEFAULT_TTL,
        port: test.port,
    };
    let mut report = app
        .agents
        .probe(&ends.agent, &request)
        .await
        .map_err(|e| e.to_string())?;
    if let Some(error) = report.error.take() {
        return Err(format!("the agent could not send: {error}"));
    }
    report.rtts_ms.truncate(usize::try_from(PROBES).unwrap_or_default());
    Ok(report)
}

/// A text that may be an agent's, without control characters and at most 300 characters long.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}
