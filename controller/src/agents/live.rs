//! Live streams of bytes from agents to clients: packets of live captures (D42), and records of flow logs (D38). The agent sends no
//! more than a window before the client has read what came before.

pub use super::listed::LiveEnd;
use super::listed::{Listed, ListedKind, Live, Unlisted};
use super::{Agents, Entry};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tombolo_proto::control_stream::{self, controller_message};
use tombolo_proto::id::AgentId;
use uuid::Uuid;

/// Largest number of messages of a live stream that wait for the client. An agent sends at most one every few
/// milliseconds, and waits when a window of bytes is not read.
const STREAM_QUEUE: usize = 4096;

/// Largest number of entries in an agent's list, those that have ended and are not forgotten yet included.
const MAX_LISTED: usize = 64;

/// Longest time to tell an agent how much of a live stream was read.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// The bytes of a live stream. When it is dropped, the agent ends the stream.
#[derive(Debug)]
pub struct LiveBytes {
    agents: Arc<Agents>,
    agent: AgentId,
    id: Uuid,
    bytes: mpsc::Receiver<Result<Bytes, LiveEnd>>,
    read: u64,
    /// Whether the agent does not know how much was read, so that it may wait for ever.
    is_stalled: bool,
}

impl Entry {
    /// Removes the live streams, because the control stream has ended over which their bytes came.
    pub(super) fn end_live_streams(&mut self) {
        for listed in self.captures.values().filter_map(|listed| listed.live.as_ref()) {
            // If the queue is full, the client gets the end of the stream without a reason.
            let _ = listed.try_send(Err(LiveEnd::Disconnected));
        }
        self.captures.retain(|_, listed| listed.live.is_none());
    }
}

impl Agents {
    /// Adds an entry to the list of a connected agent, in which it takes the place of `replaced`. `id` must be new.
    pub(super) fn list(
        &self,
        agent: &AgentId,
        (id, replaced): (Uuid, Option<Uuid>),
        listed: Listed,
    ) -> Result<(), Unlisted> {
        let mut entries = self.entries();
        let entry = entries.get_mut(agent).filter(|entry| entry.connection.is_some());
        let entry = entry.ok_or(Unlisted::NotConnected)?;
        let kind: ListedKind = listed.kind;
        if !entry.features.as_ref().is_some_and(|features| kind.is_known(features)) {
            return Err(Unlisted::NotSupported);
        }
        let others = entry.captures.iter().filter(|(other, _)| Some(**other) != replaced);
        let running = others.filter(|(_, c)| c.kind == kind && !c.is_stopped && !c.report.is_final());
        if running.count() >= kind.most() || entry.captures.len() >= MAX_LISTED {
            return Err(Unlisted::TooMany);
        }
        if let Some(replaced) = replaced.and_then(|id| entry.captures.get_mut(&id)) {
            replaced.is_stopped = true;
        }
        entry.captures.insert(id, listed);
        drop(entries);
        self.captures_changed.send_modify(|n| *n += 1);
        Ok(())
    }

    /// Begins a live stream at a connected agent. `listed` makes the entry of its list.
    pub(super) fn begin_live(
        self: &Arc<Self>,
        agent: &AgentId,
        listed: impl FnOnce(Uuid, Live) -> Listed,
    ) -> Result<LiveBytes, Unlisted> {
        let id = Uuid::new_v4();
        let (sender, bytes) = mpsc::channel(STREAM_QUEUE);
        self.list(agent, (id, None), listed(id, sender))?;
        Ok(LiveBytes {
            agents: self.clone(),
            agent: agent.clone(),
            id,
            bytes,
            read: 0,
            is_stalled: false,
        })
    }
}

impl LiveBytes {
    /// The next bytes. `None`: the stream has ended. An error says why it has ended before its time. Cancel safe, except
    /// that the agent may not learn of bytes that were read.
    pub async fn next(&mut self) -> Option<Result<Bytes, LiveEnd>> {
        if self.is_stalled {
            return Some(Err(LiveEnd::Disconnected));
        }
        let next = self.bytes.recv().await?;
        if let Ok(bytes) = &next {
            self.read += bytes.len() as u64;
            self.acknowledge().await;
        }
        Some(next)
    }

    /// Tells the agent how much was read, so that it sends more.
    async fn acknowledge(&mut self) {
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
            // An agent that does not read its stream does not send either.
            self.is_stalled = messages.send_timeout(message, READ_TIMEOUT).await.is_err();
        }
    }
}

impl Drop for LiveBytes {
    fn drop(&mut self) {
        self.agents.forget_capture(&self.agent, self.id);
    }
}
