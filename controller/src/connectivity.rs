//! Connectivity checks (M5): lets the agent of the source send probes, and compares the results with `explain`.

use crate::agents::probe::ProbeError;
use crate::app::App;
use std::sync::Arc;
use tombolo_proto::fabric::{CheckRequest, Protocol};
use tombolo_proto::id::AgentId;
use tombolo_proto::probe::{ProbeKind, ProbeReport, ProbeRequest};
use tombolo_topology::connectivity::{Connectivity, Expected, Observed};
use tombolo_topology::explain::DEFAULT_TTL;
use tombolo_topology::learned_routes::LearnedReports;
use tombolo_topology::topology::Topology;

/// Number of echo requests or connections of a check.
const PROBES: u32 = 10;
/// Time between two of them, in milliseconds.
const INTERVAL_MS: u32 = 100;
/// Time to wait for a reply, in milliseconds.
const ECHO_TIMEOUT_MS: u32 = 1000;
/// Time to wait for a connection, in milliseconds. Linux repeats a SYN after 1 s, so a connection that loses one packet
/// still opens.
const CONNECT_TIMEOUT_MS: u32 = 3000;
/// Number of probes of a trace for each TTL, of which one may be lost.
const TRACE_PROBES: u32 = 2;
/// Time to wait for the answers of a trace, in milliseconds, for every four TTLs.
const TRACE_TIMEOUT_MS: u32 = 500;

/// The reason why a check could not be made. Its text is a message for the user.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckError {
    /// A value of the request is not possible: the field, and the message.
    #[error("{1}")]
    Invalid(&'static str, String),
    /// The source or the destination is unknown or ambiguous, or the source has no agent.
    #[error("{0}")]
    Unresolved(String),
    /// The agent of the source could not make the probes.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The controller could not compute the expected path.
    #[error("explain: {0}")]
    Internal(#[from] tokio::task::JoinError),
}

/// Makes a check. It sends 10 probes and at most two traces, and takes at most about 15 s if the agent answers.
///
/// # Errors
/// See [`CheckError`]. A destination that is not reached is no error.
pub(crate) async fn check(app: &App, question: &CheckRequest) -> Result<Connectivity, CheckError> {
    let kind = kind(question)?;
    let topology = app.writer.current().topology;
    let reports = LearnedReports::of(&app.agents.statuses());
    let (known, asked) = (topology.clone(), question.clone());
    // The walks may take long in a large topology, and must not delay the agents' streams.
    let expected = tokio::task::spawn_blocking(move || Expected::of(&known, &reports, &asked)).await?;
    let expected = Arc::new(expected.map_err(CheckError::Unresolved)?);
    let first = expected.explained.request.hops.first();
    let first = first.ok_or_else(|| CheckError::Unresolved("from: no agent is bound to it".to_owned()))?;
    let agent = first.agent.clone();
    let probe = ProbeRequest {
        source: expected.explained.source,
        destination: expected.explained.destination,
        kind,
        count: PROBES,
        interval_ms: INTERVAL_MS,
        timeout_ms: match kind {
            ProbeKind::Connect => CONNECT_TIMEOUT_MS,
            ProbeKind::Ping | ProbeKind::Trace => ECHO_TIMEOUT_MS,
        },
        max_ttl: DEFAULT_TTL,
        port: question.port,
    };
    // The trace comes after the probes, which have brought up the links by then.
    let probed = app.agents.probe(&agent, &probe).await?;
    let mut judged = traced(app, &topology, &agent, &expected, &probed).await?;
    if judged.difference.is_some() {
        // Agents limit the rate of their ICMP errors, so an answer may be missing by chance.
        judged = traced(app, &topology, &agent, &expected, &probed).await?;
    }
    Ok(judged)
}

/// Traces, and judges the check.
async fn traced(
    app: &App,
    topology: &Arc<Topology>,
    agent: &AgentId,
    expected: &Arc<Expected>,
    probed: &ProbeReport,
) -> Result<Connectivity, CheckError> {
    let request = ProbeRequest {
        source: expected.explained.source,
        destination: expected.explained.destination,
        kind: ProbeKind::Trace,
        count: TRACE_PROBES,
        interval_ms: INTERVAL_MS,
        timeout_ms: TRACE_TIMEOUT_MS,
        max_ttl: expected.max_ttl(topology),
        port: None,
    };
    let trace = app.agents.probe(agent, &request).await?;
    let statuses = app.agents.statuses();
    let observed = Observed {
        probe: probed,
        trace: Some(&trace),
    };
    Ok(expected.judge(topology, &statuses, observed))
}

/// What is sent.
fn kind(question: &CheckRequest) -> Result<ProbeKind, CheckError> {
    match (question.protocol, question.port) {
        (Protocol::Icmp, None) => Ok(ProbeKind::Ping),
        (Protocol::Tcp, Some(1..)) => Ok(ProbeKind::Connect),
        (Protocol::Icmp, Some(port)) => {
            let message = format!("port: {port} is possible with TCP only; leave it out, or check with TCP");
            Err(CheckError::Invalid("port", message))
        }
        (Protocol::Tcp, _) => {
            let message = "port: a check with TCP needs a destination port from 1 to 65535";
            Err(CheckError::Invalid("port", message.to_owned()))
        }
        (Protocol::Udp, _) => {
            let message =
                "protocol: udp is not possible, because nothing says whether a datagram has arrived; use tcp or icmp";
            Err(CheckError::Invalid("protocol", message.to_owned()))
        }
    }
}
