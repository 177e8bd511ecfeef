//! Answers the controller's requests for probes over the control stream.

use super::run;
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc};
use tombolo_proto::control_stream::agent_message::Message as FromAgent;
use tombolo_proto::control_stream::{AgentMessage, Probe, ProbeResult};
use tombolo_proto::probe::{ProbeReport, ProbeRequest};

/// Largest number of probes at a time. Each probe has a raw socket and sends a bounded number of packets. Further
/// probes wait.
pub(crate) const MAX_PROBES: usize = 16;

/// The probes of one control stream.
pub(crate) struct Probes(Arc<Semaphore>);

impl Probes {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(MAX_PROBES)))
    }

    /// Runs a probe in a task of its own, and returns at once. The task sends the report on `outbox`. `device` returns the
    /// device by which the packets must leave, see [`run`].
    pub(crate) fn answer(
        &self,
        probe: Probe,
        outbox: &mpsc::Sender<AgentMessage>,
        device: impl FnOnce(&ProbeRequest) -> Option<String> + Send + 'static,
    ) {
        let (running, outbox) = (self.0.clone(), outbox.clone());
        tokio::spawn(async move {
            let _permit = running.acquire().await;
            let report = match serde_json::from_slice::<ProbeRequest>(&probe.request) {
                Ok(request) => run(&request, device(&request).as_deref()).await,
                Err(e) => ProbeReport {
                    error: Some(format!("malformed probe: {e}")),
                    ..ProbeReport::default()
                },
            };
            // Serialization cannot fail, because a report consists of numbers and strings. The send fails only if the
            // stream has ended; the controller then no longer waits for the report.
            let report = serde_json::to_vec(&report).unwrap_or_default();
            let result = FromAgent::ProbeResult(ProbeResult { id: probe.id, report });
            let _ = outbox.send(AgentMessage { message: Some(result) }).await;
        });
    }
}
