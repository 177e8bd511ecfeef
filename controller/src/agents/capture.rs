//! Packet captures at agents: the list that each agent should have, with the tails of flow logs, and the reports (D42).
//!
//! An agent gets its whole list over its control stream, and again over each new stream, so a lost stream loses no capture
//! that goes into a file. A live capture ends with the stream.

use super::listed::{Listed, Unlisted};
use super::live::LiveBytes;
use super::{Agents, Entry, Stream};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;
use tombolo_proto::capture::{CaptureReport, CaptureRequest, MAX_RUNNING};
use tombolo_proto::control_stream;
use tombolo_proto::id::AgentId;
use uuid::Uuid;

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

impl CaptureRefusal {
    fn of(agent: &AgentId, why: Unlisted) -> Self {
        let agent = agent.clone();
        match why {
            Unlisted::NotConnected => Self::NotConnected(agent),
            Unlisted::NotSupported => Self::NotSupported(agent),
            Unlisted::TooMany => Self::TooMany(agent),
        }
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
        let listed = self.list(agent, (id, replaced), Listed::capture(id, request, None));
        listed.map_err(|why| CaptureRefusal::of(agent, why))
    }

    /// Begins a live capture at a connected agent.
    ///
    /// # Errors
    /// [`CaptureRefusal`].
    pub fn capture_live(
        self: &Arc<Self>,
        agent: &AgentId,
        request: &CaptureRequest,
    ) -> Result<LiveBytes, CaptureRefusal> {
        let live = self.begin_live(agent, |id, live| Listed::capture(id, request, Some(live)));
        live.map_err(|why| CaptureRefusal::of(agent, why))
    }

    /// Adds a stored capture to the list of an agent, which need not be connected.
    pub fn restore_capture(&self, agent: &AgentId, id: Uuid, request: &CaptureRequest, report: CaptureReport) {
        let mut listed = Listed::capture(id, request, None);
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
    pub(crate) fn captures_of(&self, agent: &AgentId) -> BTreeMap<Uuid, control_stream::Capture> {
        let entries = self.entries();
        let Some(entry) = entries.get(agent) else {
            return BTreeMap::new();
        };
        let wanted = entry.captures.iter().filter(|(_, listed)| !listed.is_stopped);
        wanted.map(|(id, listed)| (*id, listed.wanted.clone())).collect()
    }

    /// Takes the report of an agent about a capture. Returns false if the capture is not in its list, so that the agent has
    /// to get the list. Ignored if a newer stream has replaced this one.
    pub(crate) fn take_capture_report(&self, stream: &Stream, id: Uuid, report: CaptureReport) -> bool {
        let (mut is_listed, mut is_awaited) = (true, false);
        self.with_entry(stream, |entry| match entry.captures.get_mut(&id) {
            Some(listed) => {
                // Nobody waits for the report of a live stream.
                is_awaited = listed.live.is_none();
                listed.take_report(bounded(report));
            }
            None => is_listed = report.is_final(),
        });
        if is_awaited {
            self.captures_changed.send_modify(|n| *n += 1);
        }
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

    /// Takes bytes of a live stream, and passes them on. A stream whose agent does not keep to the window ends.
    pub(crate) fn take_stream_data(&self, stream: &Stream, data: control_stream::CaptureData) {
        let Ok(id) = Uuid::try_parse(&data.id) else { return };
        let mut ended = false;
        self.with_entry(stream, |entry| {
            let listed = entry.captures.get_mut(&id);
            ended = listed.is_some_and(|listed| listed.take_data(data.data, data.end));
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
