//! Packet captures at agents: the list that each agent should have, the reports, and the bytes of live captures (D42).
//!
//! An agent gets its whole list over its control stream, and again over each new stream, so a lost stream loses no capture
//! that goes into a file. A live capture ends with the stream.

use super::listed::Listed;
use super::{Agents, Entry, Stream};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tombolo_proto::capture::{CaptureReport, CaptureRequest, MAX_RUNNING, STREAM_WINDOW};
use tombolo_proto::config::Feature;
use tombolo_proto::control_stream::{self, controller_message};
use tombolo_proto::id::AgentId;
use uuid::Uuid;

/// Largest number of messages of a live capture that wait for the client. An agent sends at most one every few
/// milliseconds, and waits when [`STREAM_WINDOW`] bytes are not read.
const STREAM_QUEUE: usize = 4096;

/// Largest number of captures in an agent's list, those that have ended and are not forgotten yet included.
const MAX_LISTED: usize = 64;

/// Longest time to tell an agent how much of a live capture was read.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Largest text in a report, in characters. Agents may be hostile.
const MAX_TEXT: usize = 300;

/// Why a capture cannot be made. Its text is a message for the user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CaptureRefusal {
    /// The agent is not connected.
    #[error("agent {0} is not connected, so it cannot capture; start it, or wait until it is connected")]
    NotConnected(AgentId),
    /// The agent's version has no packet captures.
    #[error("agent {0} cannot capture packets; update the agent")]
    NotSupported(AgentId),
    /// Too many captures run at the agent.
    #[error("agent {0} makes {MAX_RUNNING} packet captures already, and no more are possible; stop one first")]
    TooMany(AgentId),
}

/// The bytes of a live capture. When it is dropped, the agent ends the capture.
#[derive(Debug)]
pub struct LiveBytes {
    agents: std::sync::Arc<Agents>,
    agent: AgentId,
    id: Uuid,
    bytes: mpsc::Receiver<Result<Bytes, String>>,
    read: u64,
}

impl Entry {
    /// Removes the live captures, because the stream has ended over which their bytes came.
    pub(super) fn end_live_captures(&mut self) {
        for listed in self.captures.values().filter_map(|listed| listed.live.as_ref()) {
            // If the queue is full, the client gets the end of the response without a reason.
            let _ = listed.try_send(Err("the agent has disconnected".to_owned()));
        }
        self.captures.retain(|_, listed| listed.live.is_none());
    }
}

impl Agents {
    /// Adds a capture to the list of a connected agent, in which it takes the place of the capture `replaced`. `id` must be
    /// new.
    ///
    /// # Errors
    /// [`CaptureRefusal`]; the list has not changed.
    pub fn capture(
        &self,
        agent: &AgentId,
        id: Uuid,
        request: &CaptureRequest,
        replaced: Option<Uuid>,
    ) -> Result<(), CaptureRefusal> {
        self.list_capture(agent, (id, replaced), request, None)
    }

    /// Begins a live capture at a connected agent.
    ///
    /// # Errors
    /// [`CaptureRefusal`].
    pub fn capture_live(
        self: &std::sync::Arc<Self>,
        agent: &AgentId,
        request: &CaptureRequest,
    ) -> Result<LiveBytes, CaptureRefusal> {
        let id = Uuid::new_v4();
        let (sender, bytes) = mpsc::channel(STREAM_QUEUE);
        self.list_capture(agent, (id, None), request, Some(sender))?;
        Ok(LiveBytes {
            agents: self.clone(),
            agent: agent.clone(),
            id,
            bytes,
            read: 0,
        })
    }

    fn list_capture(
        &self,
        agent: &AgentId,
        (id, replaced): (Uuid, Option<Uuid>),
        request: &CaptureRequest,
        live: Option<mpsc::Sender<Result<Bytes, String>>>,
    ) -> Result<(), CaptureRefusal> {
        let mut entries = self.entries();
        let entry = entries.get_mut(agent).filter(|entry| entry.connection.is_some());
        let entry = entry.ok_or_else(|| CaptureRefusal::NotConnected(agent.clone()))?;
        // An older agent cannot read such a request (D27).
        let knows = |features: &std::collections::BTreeSet<_>| features.contains(&Feature::PacketCapture);
        if !entry.features.as_ref().is_some_and(knows) {
            return Err(CaptureRefusal::NotSupported(agent.clone()));
        }
        let others = entry.captures.iter().filter(|(other, _)| Some(**other) != replaced);
        let running = others.filter(|(_, c)| !c.is_stopped && !c.report.is_final());
        if running.count() >= MAX_RUNNING || entry.captures.len() >= MAX_LISTED {
            return Err(CaptureRefusal::TooMany(agent.clone()));
        }
        if let Some(replaced) = replaced.and_then(|id| entry.captures.get_mut(&id)) {
            replaced.is_stopped = true;
        }
        entry.captures.insert(id, Listed::new(request, live));
        drop(entries);
        self.captures_changed.send_modify(|n| *n += 1);
        Ok(())
    }

    /// Adds a stored capture to the list of an agent, which need not be connected.
    pub fn restore_capture(&self, agent: &AgentId, id: Uuid, request: &CaptureRequest, report: CaptureReport) {
        let mut listed = Listed::new(request, None);
        listed.report = report;
        let mut entries = self.entries();
        entries.entry(agent.clone()).or_default().captures.insert(id, listed);
        drop(entries);
        self.captures_changed.send_modify(|n| *n += 1);
    }

    /// Lets the agent end a capture. Its last report is still taken.
    pub fn stop_capture(&self, agent: &AgentId, id: Uuid) {
        if let Some(listed) = self
            .entries()
            .get_mut(agent)
            .and_then(|entry| entry.captures.get_mut(&id))
        {
            listed.is_stopped = true;
        }
        self.captures_changed.send_modify(|n| *n += 1);
    }

    /// Removes a capture from an agent's list, so that the agent ends it.
    pub fn forget_capture(&self, agent: &AgentId, id: Uuid) {
        if let Some(entry) = self.entries().get_mut(agent) {
            entry.captures.remove(&id);
        }
        self.captures_changed.send_modify(|n| *n += 1);
    }

    /// The last report of a capture. `None`: it is not in the agent's list.
    #[must_use]
    pub fn capture_report(&self, agent: &AgentId, id: Uuid) -> Option<CaptureReport> {
        let entries = self.entries();
        Some(entries.get(agent)?.captures.get(&id)?.report.clone())
    }

    /// A receiver that is notified when a list or a report has changed.
    #[must_use]
    pub fn watch_captures(&self) -> watch::Receiver<u64> {
        self.captures_changed.subscribe()
    }

    /// The list for an agent.
    pub(crate) fn captures_of(&self, agent: &AgentId) -> BTreeMap<Uuid, Vec<u8>> {
        let entries = self.entries();
        let Some(entry) = entries.get(agent) else {
            return BTreeMap::new();
        };
        let wanted = entry.captures.iter().filter(|(_, listed)| !listed.is_stopped);
        wanted.map(|(id, listed)| (*id, listed.request.clone())).collect()
    }

    /// Takes the report of an agent about a capture. Returns false if the capture is not in its list, so that the agent has
    /// to get the list. Ignored if a newer stream has replaced this one.
    pub(crate) fn take_capture_report(&self, stream: &Stream, id: Uuid, report: CaptureReport) -> bool {
        let mut is_listed = true;
        self.with_entry(stream, |entry| match entry.captures.get_mut(&id) {
            Some(listed) => {
                listed.report = bounded(report);
                // A live capture that could not start sends no bytes.
                if let (Some(message), Some(live)) = (&listed.report.message, &listed.live) {
                    let _ = live.try_send(Err(format!("the agent could not capture: {message}")));
                }
            }
            None => is_listed = report.is_final(),
        });
        self.captures_changed.send_modify(|n| *n += 1);
        is_listed
    }

    /// Changes the entry of an agent, unless a newer stream has replaced `stream`. Notifies nobody: bytes come often.
    fn with_entry(&self, stream: &Stream, change: impl FnOnce(&mut Entry)) {
        let mut entries = self.entries();
        let entry = entries.get_mut(&stream.agent);
        let is_current = |entry: &&mut Entry| entry.connection.as_ref().is_some_and(|c| c.number == stream.number);
        if let Some(entry) = entry.filter(is_current) {
            change(entry);
        }
    }

    /// Takes bytes of a live capture, and passes them on. A capture whose agent does not keep to the window ends.
    pub(crate) fn take_capture_data(&self, stream: &Stream, data: control_stream::CaptureData) {
        let Ok(id) = Uuid::try_parse(&data.id) else { return };
        let mut ended = false;
        self.with_entry(stream, |entry| {
            let Some(listed) = entry.captures.get_mut(&id) else {
                return;
            };
            let Some(live) = &listed.live else { return };
            listed.received += data.data.len() as u64;
            let waiting = listed.received.saturating_sub(listed.read);
            let is_within = waiting <= STREAM_WINDOW as u64;
            let sent = is_within && (data.data.is_empty() || live.try_send(Ok(data.data.into())).is_ok());
            ended = data.end || !sent;
            if !sent {
                let _ = live.try_send(Err("the agent has sent more than it may".to_owned()));
            }
            if ended {
                entry.captures.remove(&id);
            }
        });
        if ended {
            self.captures_changed.send_modify(|n| *n += 1);
        }
    }
}

/// The report with texts of a bounded length and without control characters.
fn bounded(mut report: CaptureReport) -> CaptureReport {
    let shown = |text: String| {
        text.chars()
            .filter(|c| !c.is_control())
            .take(MAX_TEXT)
            .collect::<String>()
    };
    report.message = report.message.map(shown);
    report.file = report.file.map(shown);
    report
}

impl LiveBytes {
    /// The next bytes. `None`: the capture has ended. An error says why it has ended before its time. Cancel safe, except
    /// that the agent may not learn of bytes that were read.
    pub async fn next(&mut self) -> Option<Result<Bytes, String>> {
        let next = self.bytes.recv().await?;
        if let Ok(bytes) = &next {
            self.read += bytes.len() as u64;
            self.acknowledge().await;
        }
        Some(next)
    }

    /// Tells the agent how much was read, so that it sends more.
    async fn acknowledge(&self) {
        let messages = {
            let mut entries = self.agents.entries();
            let Some(entry) = entries.get_mut(&self.agent) else {
                return;
            };
            if let Some(listed) = entry.captures.get_mut(&self.id) {
                listed.read = self.read;
            }
            entry.connection.as_ref().map(|connection| connection.messages.clone())
        };
        let message = controller_message::Message::CaptureRead(control_stream::CaptureRead {
            id: self.id.to_string(),
            bytes: self.read,
        });
        let message = control_stream::ControllerMessage { message: Some(message) };
        if let Some(messages) = messages {
            // An agent that does not read its stream does not capture either.
            let _ = messages.send_timeout(message, READ_TIMEOUT).await;
        }
    }
}

impl Drop for LiveBytes {
    fn drop(&mut self) {
        self.agents.forget_capture(&self.agent, self.id);
    }
}
