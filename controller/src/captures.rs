//! Packet captures as resources (D42): their documents in the store, and the results that agents report.
//!
//! ```text
//! PUT ──▶ document ──▶ list of the agent ──▶ reports ──▶ Stopped or Error: into the document, out of the list
//! ```

use crate::agents::Agents;
use crate::agents::capture::CaptureRefusal;
use crate::app::App;
use crate::writer::{CAPTURES_PREFIX, WriteError, Writer};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::{MissedTickBehavior, interval};
use tombolo_proto::capture::{CaptureError, CaptureReport, CaptureRequest, CaptureState, CaptureStop};
use tombolo_proto::id::{AgentId, ResourceId};
use uuid::Uuid;

/// Largest number of packet captures, those that have ended included. Azure permits 10,000 in a region.
pub(crate) const MAX_CAPTURES: usize = 1000;

/// Time between two looks for captures whose agents do not report.
const TICK: Duration = Duration::from_secs(5);

/// Time after the end of a capture for its agent to report it, in seconds. An agent that is away for longer has stopped, or
/// its capture ends unnoticed.
const REPORT_GRACE: u64 = 60;

/// Longest wait for the report of an agent about a capture that was stopped.
const STOP_WAIT: Duration = Duration::from_secs(2);

/// A packet capture in the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CaptureDocument {
    /// The ARM body.
    pub(crate) body: Value,
    /// The id of the capture at the agent. Each creation has a new one.
    pub(crate) run: Uuid,
    /// The agent that makes the capture.
    pub(crate) agent: AgentId,
    /// What the agent is asked.
    pub(crate) request: CaptureRequest,
    /// The time of the creation in seconds of Unix time.
    pub(crate) created: u64,
    /// The last report, when the capture has ended. `None`: it has not ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) result: Option<CaptureReport>,
}

/// The packet captures of all watchers. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Captures(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    all: Mutex<BTreeMap<ResourceId, CaptureDocument>>,
    agents: Arc<Agents>,
    writer: Writer,
    /// Locked while a write changes first the store and then the memory, so that both get all writes in the same order.
    writing: tokio::sync::Mutex<()>,
}

/// Why a capture was not created.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateError {
    #[error(transparent)]
    Refused(#[from] CaptureRefusal),
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl Captures {
    /// Reads the captures from the controller's own documents (see [`crate::writer::OWN_PREFIX`]), puts those that have not
    /// ended into the lists of their agents, and starts the task that takes the results. The task ends with the runtime.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub(crate) fn start(app: &Arc<App>) -> Self {
        let own = app.own_documents.iter().filter_map(|(key, document)| {
            key.strip_prefix(CAPTURES_PREFIX)?;
            let document: CaptureDocument = serde_json::from_slice(document).ok()?;
            Some((ResourceId::new(document.body["id"].as_str()?), document))
        });
        let all: BTreeMap<_, _> = own.collect();
        for document in all.values().filter(|document| document.result.is_none()) {
            let (agent, run) = (&document.agent, document.run);
            app.agents
                .restore_capture(agent, run, &document.request, CaptureReport::default());
        }
        let captures = Self(Arc::new(Shared {
            all: Mutex::new(all),
            agents: app.agents.clone(),
            writer: app.writer.clone(),
            writing: tokio::sync::Mutex::default(),
        }));
        tokio::spawn(captures.clone().take_results());
        captures
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<ResourceId, CaptureDocument>> {
        self.0.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of captures.
    pub(crate) fn count(&self) -> usize {
        self.all().len()
    }

    /// A capture. `None`: it does not exist.
    pub(crate) fn get(&self, id: &ResourceId) -> Option<CaptureDocument> {
        self.all().get(id).cloned()
    }

    /// The ARM bodies of the captures below a watcher, ordered by id.
    pub(crate) fn below(&self, watcher: &str) -> Vec<Value> {
        let prefix = format!("{}/packetcaptures/", watcher.to_ascii_lowercase());
        let all = self.all();
        let own = all.iter().filter(|(id, _)| id.key().starts_with(&prefix));
        own.map(|(_, document)| document.body.clone()).collect()
    }

    /// The ARM bodies of all captures, ordered by id, each with its state as `status`.
    pub(crate) fn views(&self) -> Vec<Value> {
        let all: Vec<CaptureDocument> = self.all().values().cloned().collect();
        let view = |document: CaptureDocument| {
            let mut body = document.body.clone();
            body["status"] = self.status(&document);
            body
        };
        all.into_iter().map(view).collect()
    }

    /// The answer to `queryStatus`. The fields after the error are additions of this controller.
    pub(crate) fn status(&self, document: &CaptureDocument) -> Value {
        let report = self.report(document);
        let started = OffsetDateTime::from_unix_timestamp_nanos(i128::from(report.started_ms) * 1_000_000).ok();
        let started = started.filter(|_| report.started_ms > 0);
        let errors: Vec<_> = report.error.into_iter().collect();
        json!({
            "id": document.body["id"],
            "name": document.body["name"],
            "captureStartTime": started.and_then(|at| at.format(&Rfc3339).ok()),
            "packetCaptureStatus": report.state,
            "stopReason": report.stop_reason,
            "packetCaptureError": errors,
            "message": report.message,
            "agent": document.agent,
            "agentFilePath": report.file,
            "packets": report.packets,
            "bytes": report.bytes,
            "lostPackets": report.lost,
        })
    }

    /// The state of a capture: its result, or what the agent has reported last.
    pub(crate) fn report(&self, document: &CaptureDocument) -> CaptureReport {
        let reported = || self.0.agents.capture_report(&document.agent, document.run);
        document.result.clone().or_else(reported).unwrap_or_default()
    }

    /// Starts a capture, and stores it. An earlier one with the same id ends and is replaced. Runs in a separate task, so
    /// that it is completed even if the caller is cancelled.
    ///
    /// # Errors
    /// The agent cannot make it, and an earlier capture with the same id has not changed; or the store failed.
    pub(crate) async fn create(&self, id: ResourceId, document: CaptureDocument) -> Result<(), CreateError> {
        let own = self.clone();
        let task = tokio::spawn(async move {
            let _one = own.0.writing.lock().await;
            let agents = &own.0.agents;
            let earlier = own.get(&id);
            let replaced = earlier.as_ref().map(|earlier| earlier.run);
            agents.capture(&document.agent, document.run, &document.request, replaced)?;
            if let Err(error) = own.store(&id, Some(document.clone())).await {
                agents.forget_capture(&document.agent, document.run);
                return Err(error.into());
            }
            if let Some(earlier) = earlier {
                agents.forget_capture(&earlier.agent, earlier.run);
            }
            Ok(())
        });
        let joined = task.await;
        joined.unwrap_or_else(|e| Err(CreateError::Write(WriteError::Store(e.to_string()))))
    }

    /// Ends a capture, and waits a moment for the agent's last report. One that has ended already stays as it is.
    ///
    /// # Errors
    /// The store failed.
    pub(crate) async fn stop(&self, id: &ResourceId) -> Result<(), WriteError> {
        let Some(document) = self.get(id).filter(|document| document.result.is_none()) else {
            return Ok(());
        };
        let agents = &self.0.agents;
        let mut changed = agents.watch_captures();
        agents.stop_capture(&document.agent, document.run);
        let ended = async { while !self.report(&document).is_final() && changed.changed().await.is_ok() {} };
        // An agent that is away gets the list without the capture when it comes back.
        let _ = tokio::time::timeout(STOP_WAIT, ended).await;
        let mut report = self.report(&document);
        if !report.is_final() {
            report.state = CaptureState::Stopped;
            report.stop_reason = Some(CaptureStop::Stopped);
        }
        self.finish(id, document.run, report).await
    }

    /// Deletes a capture. The agent ends it, and its file stays. Deleting one that does not exist succeeds.
    ///
    /// # Errors
    /// The store failed.
    pub(crate) async fn delete(&self, id: &ResourceId) -> Result<(), WriteError> {
        let (own, id) = (self.clone(), id.clone());
        let task = tokio::spawn(async move {
            let _one = own.0.writing.lock().await;
            let Some(document) = own.get(&id) else { return Ok(()) };
            own.store(&id, None).await?;
            own.0.agents.forget_capture(&document.agent, document.run);
            Ok(())
        });
        task.await.unwrap_or_else(|e| Err(WriteError::Store(e.to_string())))
    }

    /// Stores the result of a capture, unless another one has replaced it meanwhile.
    async fn finish(&self, id: &ResourceId, run: Uuid, result: CaptureReport) -> Result<(), WriteError> {
        let (own, id) = (self.clone(), id.clone());
        let task = tokio::spawn(async move {
            let _one = own.0.writing.lock().await;
            let Some(mut document) = own.get(&id).filter(|d| d.run == run && d.result.is_none()) else {
                return Ok(());
            };
            document.result = Some(result);
            let agent = document.agent.clone();
            own.store(&id, Some(document)).await?;
            own.0.agents.forget_capture(&agent, run);
            Ok(())
        });
        task.await.unwrap_or_else(|e| Err(WriteError::Store(e.to_string())))
    }

    /// Changes first the store and then the memory. The caller holds the lock of writes.
    async fn store(&self, id: &ResourceId, document: Option<CaptureDocument>) -> Result<(), WriteError> {
        let bytes = match &document {
            Some(document) => Some(serde_json::to_vec(document).map_err(|e| WriteError::Store(e.to_string()))?),
            None => None,
        };
        let key = format!("{CAPTURES_PREFIX}{}", id.key());
        self.0.writer.set_document(key, bytes).await?;
        let mut all = self.all();
        match document {
            Some(document) => drop(all.insert(id.clone(), document)),
            None => drop(all.remove(id)),
        }
        Ok(())
    }

    /// Stores the results of captures that have ended, for ever.
    async fn take_results(self) {
        let mut changed = self.0.agents.watch_captures();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                Ok(()) = changed.changed() => {}
            }
            for (id, run, result) in self.results(now()) {
                if let Err(error) = self.finish(&id, run, result).await {
                    tracing::warn!(capture = %id, %error, "the result of a packet capture is not stored; will retry");
                }
            }
        }
    }

    /// The results of the captures that have ended and are not stored yet. `now`: seconds of Unix time.
    fn results(&self, now: u64) -> Vec<(ResourceId, Uuid, CaptureReport)> {
        let all = self.all();
        let open = all.iter().filter(|(_, document)| document.result.is_none());
        let ended = open.filter_map(|(id, document)| {
            let mut report = self.report(document);
            let limit = document.created + u64::from(document.request.seconds) + REPORT_GRACE;
            if !report.is_final() && now > limit {
                report.state = CaptureState::Error;
                report.error = Some(CaptureError::AgentStopped);
                report.message = Some("the agent has not reported the end of the capture".to_owned());
            }
            report.is_final().then(|| (id.clone(), document.run, report))
        });
        ended.collect()
    }
}

/// The time in seconds of Unix time.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

#[cfg(test)]
mod golden {
    use super::*;
    use tombolo_golden::golden;
    use tombolo_proto::capture::{CaptureDelivery, CaptureLayer};

    #[test]
    fn golden_documents_of_captures() {
        let open = CaptureDocument {
            body: json!({"id": "/watcher/packetCaptures/web", "name": "web"}),
            run: Uuid::nil(),
            agent: "vm-a".parse().unwrap(),
            request: CaptureRequest {
                name: "web".into(),
                nics: Vec::new(),
                layer: CaptureLayer::Packets,
                filters: Vec::new(),
                bytes_per_packet: 0,
                total_bytes: 1_073_741_824,
                seconds: 18_000,
                delivery: CaptureDelivery::File,
            },
            created: 1_800_000_000,
            result: None,
        };
        let ended = CaptureDocument {
            result: Some(CaptureReport {
                state: CaptureState::Stopped,
                stop_reason: Some(CaptureStop::TimeExceeded),
                packets: 10,
                ..CaptureReport::default()
            }),
            ..open.clone()
        };
        golden!().cases("packet_capture", &[("full", ended), ("minimal", open)]);
    }
}
