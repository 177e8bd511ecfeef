//! Probes that agents send on request, and the wait for their reports.

use super::Agents;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::sync::oneshot;
use tombolo_proto::config::Feature;
use tombolo_proto::control_stream;
use tombolo_proto::id::AgentId;
use tombolo_proto::probe::{ProbeKind, ProbeReport, ProbeRequest};

/// Longest time to put the request for a probe into a control stream's queue. Only an agent that does not read keeps
/// the queue full for so long.
const PROBE_SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// Time that a probe's request and report may need on the control stream, in addition to the time that the probes
/// themselves may take.
const REPORT_DELAY: Duration = Duration::from_secs(5);

/// Maximum number of probes for which the time limit of one request is computed: enough for a trace over 64 hops with 4
/// probes for each.
const MAX_COUNTED_PROBES: u64 = 300;

/// Longest time that a caller waits for the report of a probe.
const MAX_PROBE_TIMEOUT: Duration = Duration::from_secs(120);

/// The reason why there is no report of a probe. Its text is a message for the user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// The agent is not connected, or disconnects before it has reported.
    #[error("{0}")]
    NotConnected(String),
    /// The agent is connected, but does not accept the request or does not report in time.
    #[error("{0}")]
    NoReport(String),
    /// The agent's version does not know this kind of probe.
    #[error("agent {0} cannot open connections as probes; update the agent, or probe with ICMP")]
    NotSupported(AgentId),
}

impl Agents {
    /// Passes the report of probe `id` to the call of [`Self::probe`] that waits for it. The report is dropped if no
    /// call waits for it any more. `id` is the id in the request that the agent received.
    pub fn probe_result(&self, agent: &AgentId, id: u64, report: ProbeReport) {
        let waiting = self.entries().get_mut(agent).and_then(|entry| entry.probes.remove(&id));
        if let Some(waiting) = waiting {
            // A caller that no longer waits has no use for the report.
            let _ = waiting.send(report);
        }
    }

    /// Lets an agent send probes, and waits for its report. `request` is not checked here; the agent checks it. Its
    /// source must be an address of the agent. Several calls may run at the same time, also for one agent.
    ///
    /// Waits at most 5 s until the agent's stream accepts the request, and then for the time that `request` allows for
    /// at most 300 probes plus 5 s, but not for more than 120 s. Dropping the future does not stop the probes; the
    /// agent's report is then dropped. The report has no more numbers than the request permits, and an error of at most 300
    /// characters.
    ///
    /// # Errors
    /// The agent is not connected or disconnects meanwhile, its version does not know the kind of probe, its stream does
    /// not accept the request within 5 s, or its report does not arrive in time.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub async fn probe(&self, agent: &AgentId, request: &ProbeRequest) -> Result<ProbeReport, ProbeError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let _pending = PendingProbe {
            agents: self,
            agent,
            id,
        };
        let (answer, answered) = oneshot::channel();
        let absent = || ProbeError::NotConnected(format!("agent {agent} is not connected"));
        let messages = {
            let mut entries = self.entries();
            let entry = entries.get_mut(agent).ok_or_else(absent)?;
            let messages = entry.connection.as_ref().ok_or_else(absent)?.messages.clone();
            // An older agent cannot read such a request (D27).
            let knows = |feature| entry.features.as_ref().is_some_and(|f| f.contains(&feature));
            if request.kind == ProbeKind::Connect && !knows(Feature::ConnectProbe) {
                return Err(ProbeError::NotSupported(agent.clone()));
            }
            entry.probes.insert(id, answer);
            messages
        };
        let request_json = serde_json::to_vec(request).map_err(|e| ProbeError::NoReport(e.to_string()))?;
        let message = control_stream::controller_message::Message::Probe(control_stream::Probe {
            id,
            request: request_json,
        });
        let gone = || ProbeError::NotConnected(format!("agent {agent} has disconnected"));
        let sent = messages.send_timeout(
            control_stream::ControllerMessage { message: Some(message) },
            PROBE_SEND_TIMEOUT,
        );
        sent.await.map_err(|e| match e {
            SendTimeoutError::Timeout(_) => ProbeError::NoReport(format!(
                "agent {agent} did not accept the probe within {PROBE_SEND_TIMEOUT:?}"
            )),
            SendTimeoutError::Closed(_) => gone(),
        })?;
        let each = u64::from(request.timeout_ms) + u64::from(request.interval_ms);
        let ttls = match request.kind {
            ProbeKind::Ping | ProbeKind::Connect => 1,
            ProbeKind::Trace => request.max_ttl.max(1),
        };
        let probes = u64::from(request.count) * u64::from(ttls);
        // This is an upper bound, because a trace ends at the TTL at which its destination answers.
        let limit = Duration::from_millis(each * probes.min(MAX_COUNTED_PROBES)) + REPORT_DELAY;
        let limit = limit.min(MAX_PROBE_TIMEOUT);
        match tokio::time::timeout(limit, answered).await {
            Ok(Ok(report)) => Ok(bounded(report, request)),
            Ok(Err(_)) => Err(gone()),
            Err(_) => Err(ProbeError::NoReport(format!(
                "agent {agent} did not report within {limit:?}"
            ))),
        }
    }
}

/// Longest error of a report that is kept, in characters.
const MAX_ERROR: usize = 300;

/// The report, without numbers and texts that the request does not permit: the agent may be hostile.
fn bounded(mut report: ProbeReport, request: &ProbeRequest) -> ProbeReport {
    match request.kind {
        ProbeKind::Trace => report.sent = report.sent.min(request.count.saturating_mul(request.max_ttl.into())),
        ProbeKind::Ping | ProbeKind::Connect if report.error.is_none() => report.sent = request.count,
        ProbeKind::Ping | ProbeKind::Connect => report.sent = report.sent.min(request.count),
    }
    report.received = report.received.min(report.sent);
    report.refused = report.refused.min(report.sent);
    report.unreachable = report.unreachable.min(report.sent);
    let times = usize::try_from(request.count).unwrap_or(usize::MAX);
    report.rtts_ms.truncate(times);
    report.hops.truncate(request.max_ttl.into());
    for hop in &mut report.hops {
        hop.rtts_ms.truncate(times);
    }
    if let Some(error) = &mut report.error {
        *error = error.chars().filter(|c| !c.is_control()).take(MAX_ERROR).collect();
    }
    report
}

/// A probe in progress. Dropping this value removes the probe's entry, also if the caller stops waiting.
struct PendingProbe<'a> {
    agents: &'a Agents,
    agent: &'a AgentId,
    id: u64,
}

impl Drop for PendingProbe<'_> {
    fn drop(&mut self) {
        if let Some(entry) = self.agents.entries().get_mut(self.agent) {
            entry.probes.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tombolo_proto::probe::Hop;

    /// M10: whatever a host reports, the answer has no more than the request permits.
    #[test]
    fn m10_a_report_has_no_more_than_the_request_permits() {
        let request = ProbeRequest {
            source: "192.168.7.10".parse().unwrap(),
            destination: "10.1.0.4".parse().unwrap(),
            kind: ProbeKind::Trace,
            count: 2,
            interval_ms: 100,
            timeout_ms: 500,
            max_ttl: 3,
            port: None,
        };
        let hop = Hop {
            address: None,
            rtts_ms: vec![1.0; 1000],
        };
        let hostile = ProbeReport {
            sent: u32::MAX,
            received: u32::MAX,
            rtts_ms: vec![1.0; 1000],
            hops: vec![hop; 1000],
            refused: u32::MAX,
            unreachable: u32::MAX,
            error: Some("x\u{1b}[2J".repeat(1000)),
        };
        let kept = bounded(hostile.clone(), &request);
        assert_eq!((kept.sent, kept.received, kept.refused, kept.unreachable), (6, 6, 6, 6));
        assert_eq!((kept.rtts_ms.len(), kept.hops.len()), (2, 3));
        assert!(kept.hops.iter().all(|hop| hop.rtts_ms.len() == 2));
        let error = kept.error.unwrap();
        assert!(
            error.chars().count() == MAX_ERROR && !error.contains('\u{1b}'),
            "{error}"
        );
        let ping = ProbeRequest {
            kind: ProbeKind::Ping,
            ..request
        };
        assert_eq!(bounded(hostile, &ping).sent, 2);
    }
}
