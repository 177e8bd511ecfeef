//! The tail of flow logs (D38): the records of all agents that write some flow logs, as one stream of lines. Agents that connect
//! or get the log later are followed too.
//!
//! * `lines`: what an agent sends, read and checked. `selection`: which flow logs are followed. `task`: where a tail runs.

mod lines;
mod selection;
mod task;

pub(crate) use selection::{Selection, SelectionError};

use crate::agents::Agents;
use crate::agents::live::{LiveBytes, LiveEnd};
use crate::agents::tail::TailRefusal;
use crate::compiled::Compiled;
use bytes::Bytes;
use futures::stream::{self, BoxStream, SelectAll, StreamExt};
use lines::Lines;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use task::in_a_task;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep_until};
use tombolo_proto::capture::STREAM_WINDOW;
use tombolo_proto::fabric::{TailLine, TailState};
use tombolo_proto::flow_tail::{FlowRecord, MIN_WINDOW, TailEntry, TailRequest};
use tombolo_proto::id::AgentId;

/// Largest number of tails at a time.
pub(crate) const MAX_TAILS: usize = 16;

/// Largest number of agents that one tail follows. Each has a window of at least 8 KiB.
pub(crate) const MAX_AGENTS: usize = 1024;

/// Number of bytes of all agents of a tail that wait for the client, if all agents are there at the beginning. Agents that come
/// later have smaller windows than those before, so the sum stays below five times as much.
const WINDOWS: usize = 8 << 20;

/// Wait after a change before the agents are looked through. A change of a VNet concerns many of them.
const DEBOUNCE: Duration = Duration::from_millis(200);

/// Wait before an agent that has disconnected is followed again.
const RECONNECT_WAIT: Duration = Duration::from_secs(1);

/// Wait before an agent that could not be followed is asked again.
const RETRY_WAIT: Duration = Duration::from_secs(30);

/// Time without a line after which an empty one is sent. A client that has gone without a word is noticed by it.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Longest time for which a client takes nothing.
const CLIENT_WAIT: Duration = Duration::from_secs(120);

/// An agent that writes the logs.
#[derive(Debug, PartialEq, Eq)]
struct Followed {
    state: TailState,
    message: Option<String>,
    /// The earliest time at which it is asked again. `None`: it is followed.
    retry: Option<Instant>,
}

/// What comes from an agent.
enum Event {
    Entries(Vec<TailEntry>),
    /// Why its records end.
    End(End),
}

enum End {
    /// The agent has gone, and may come back.
    Lost(String),
    Failed(String),
}

/// A tail. When it is dropped, all agents end it.
pub(crate) struct FlowTail {
    agents: Arc<Agents>,
    compiled: watch::Receiver<Compiled>,
    changed: watch::Receiver<u64>,
    selection: Selection,
    followed: BTreeMap<AgentId, Followed>,
    streams: SelectAll<BoxStream<'static, (AgentId, Event)>>,
    /// Number of agents that write the logs. `None`: not told yet.
    count: Option<usize>,
    /// The time of the next look through the agents.
    look: Option<Instant>,
    lines: Vec<u8>,
    /// Whether the client's token is still valid, and when it was checked last.
    is_allowed: Box<dyn Fn() -> bool + Send>,
    checked: Instant,
    /// The place of this tail among all.
    _place: OwnedSemaphorePermit,
}

impl FlowTail {
    pub(crate) fn new(
        agents: Arc<Agents>,
        compiled: watch::Receiver<Compiled>,
        selection: Selection,
        is_allowed: Box<dyn Fn() -> bool + Send>,
        place: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            changed: agents.watch(),
            agents,
            compiled,
            selection,
            followed: BTreeMap::new(),
            streams: SelectAll::new(),
            count: None,
            look: Some(Instant::now()),
            lines: Vec::new(),
            is_allowed,
            checked: Instant::now(),
            _place: place,
        }
    }

    /// The lines as one stream of bytes. It ends when the controller stops, the client's token is not valid any more, or the
    /// client takes nothing for [`CLIENT_WAIT`].
    pub(crate) fn into_stream(self) -> impl stream::Stream<Item = std::io::Result<Bytes>> + Send + 'static {
        let lines = stream::unfold(self, |mut tail| async move {
            let bytes = tail.next().await?;
            Some((bytes, tail))
        });
        in_a_task(lines, CLIENT_WAIT)
    }

    /// The next lines. `None`: the tail ends.
    async fn next(&mut self) -> Option<Bytes> {
        if self.checked.elapsed() >= HEARTBEAT {
            self.checked = Instant::now();
            (self.is_allowed)().then_some(())?;
        }
        let heartbeat = Instant::now() + HEARTBEAT;
        while self.lines.is_empty() {
            let look = self.look.unwrap_or(heartbeat);
            tokio::select! {
                changed = self.compiled.changed() => {
                    changed.ok()?;
                    self.look_by(Instant::now() + DEBOUNCE);
                }
                Ok(()) = self.changed.changed() => self.look_by(Instant::now() + DEBOUNCE),
                Some((agent, event)) = self.streams.next(), if !self.streams.is_empty() => self.take(agent, event),
                () = sleep_until(look), if self.look.is_some() => self.look_through(),
                () = sleep_until(heartbeat) => self.lines.push(b'\n'),
            }
        }
        Some(std::mem::take(&mut self.lines).into())
    }

    fn look_by(&mut self, at: Instant) {
        self.look = Some(self.look.map_or(at, |before| before.min(at)));
    }

    /// Begins to follow the agents that write the logs and are not followed yet.
    fn look_through(&mut self) {
        self.look = None;
        let compiled = self.compiled.borrow().clone();
        let covered: Vec<AgentId> = self.selection.agents(&compiled).cloned().collect();
        if self.count != Some(covered.len()) {
            self.count = Some(covered.len());
            self.line(&TailLine::Agents { count: covered.len() });
        }
        let is_covered = |agent: &AgentId| covered.binary_search(agent).is_ok();
        // The records of an agent that is followed end by themselves.
        self.followed
            .retain(|agent, followed| followed.retry.is_none() || is_covered(agent));
        let request = TailRequest {
            logs: self.selection.logs(),
            window: window(covered.len()),
        };
        let now = Instant::now();
        for agent in covered {
            match self.followed.get(&agent).map(|followed| followed.retry) {
                Some(None) => continue,
                Some(Some(retry)) if retry > now => {
                    self.look_by(retry);
                    continue;
                }
                Some(Some(_)) | None => {}
            }
            if self.streams.len() >= MAX_AGENTS {
                let message =
                    format!("{MAX_AGENTS} agents are followed, and no more are possible; name fewer flow logs");
                self.set(&agent, TailState::Failed, Some(message), Some(now + RETRY_WAIT));
                self.look_by(now + RETRY_WAIT);
                continue;
            }
            match self.agents.tail(&agent, &request) {
                Ok(live) => {
                    self.streams.push(events(agent.clone(), live));
                    self.set(&agent, TailState::Following, None, None);
                }
                // A change of the agent's entry is followed by another look, and another version of the agent connects anew.
                Err(why @ TailRefusal::NotConnected(_)) => {
                    self.set(&agent, TailState::Waiting, Some(why.to_string()), Some(now));
                }
                Err(why @ TailRefusal::NotSupported(_)) => {
                    self.set(&agent, TailState::Failed, Some(why.to_string()), Some(now));
                }
                // Another tail may end at any time.
                Err(why @ TailRefusal::TooMany(_)) => {
                    let retry = now + RECONNECT_WAIT;
                    self.set(&agent, TailState::Failed, Some(why.to_string()), Some(retry));
                    self.look_by(retry);
                }
            }
        }
    }

    /// Notes the state of an agent, and writes a line if it has changed.
    fn set(&mut self, agent: &AgentId, state: TailState, message: Option<String>, retry: Option<Instant>) {
        let new = Followed { state, message, retry };
        // Of an agent that is away, the first reason says more than that it is still away.
        let is_same = |old: &Followed| old.state == state && (state != TailState::Failed || old.message == new.message);
        if !self.followed.get(agent).is_some_and(is_same) {
            self.line(&TailLine::Agent {
                agent: agent.clone(),
                state,
                message: new.message.clone(),
            });
        }
        self.followed.insert(agent.clone(), new);
    }

    fn take(&mut self, agent: AgentId, event: Event) {
        match event {
            Event::Entries(entries) => {
                let compiled = self.compiled.borrow().clone();
                let own = compiled.configs.get(&agent).map(|config| &config.flow_logs);
                let is_own = |record: &FlowRecord| {
                    let nics = own.and_then(|logs| logs.get(&record.log));
                    nics.is_some_and(|nics| nics.contains(&record.nic))
                };
                let mut dropped = 0u64;
                for entry in entries {
                    match entry {
                        TailEntry::Record(record)
                            if self.selection.has(&compiled.topology, &record.log) && is_own(&record) =>
                        {
                            let agent = agent.clone();
                            self.line(&TailLine::Record { agent, record });
                        }
                        // The log or the network interface was deleted, or the agent invents records of others.
                        TailEntry::Record(_) => {}
                        TailEntry::Dropped(records) => dropped = dropped.saturating_add(records),
                    }
                }
                if dropped > 0 {
                    self.line(&TailLine::Dropped {
                        agent,
                        records: dropped,
                    });
                }
            }
            Event::End(end) => {
                let (state, message, wait) = match end {
                    End::Lost(message) => (TailState::Waiting, message, RECONNECT_WAIT),
                    End::Failed(message) => (TailState::Failed, message, RETRY_WAIT),
                };
                let retry = Instant::now() + wait;
                self.set(&agent, state, Some(message), Some(retry));
                self.look_by(retry);
            }
        }
    }

    fn line(&mut self, line: &TailLine) {
        // Serialization into memory cannot fail: a line consists of numbers and texts.
        let _ = serde_json::to_writer(&mut self.lines, line);
        self.lines.push(b'\n');
    }
}

/// The window of each agent, if there are this many.
fn window(agents: usize) -> u32 {
    let window = (WINDOWS / agents.max(1)).clamp(MIN_WINDOW, STREAM_WINDOW);
    u32::try_from(window).unwrap_or(u32::MAX)
}

/// What comes from an agent, until its records end.
fn events(agent: AgentId, live: LiveBytes) -> BoxStream<'static, (AgentId, Event)> {
    let events = stream::unfold(Some((live, Lines::default())), |state| async move {
        let (mut live, mut lines) = state?;
        let end = match live.next().await {
            Some(Ok(bytes)) => match lines.read(&bytes) {
                Ok(entries) => return Some((Event::Entries(entries), Some((live, lines)))),
                Err(problem) => End::Failed(format!("the agent has sent a malformed record: {problem}")),
            },
            Some(Err(why @ LiveEnd::Disconnected)) => End::Lost(why.to_string()),
            Some(Err(why @ (LiveEnd::Refused(..) | LiveEnd::TooMuch))) => End::Failed(why.to_string()),
            None => End::Lost("the agent has ended its records".to_owned()),
        };
        Some((Event::End(end), None))
    });
    events.map(move |event| (agent.clone(), event)).boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d38_the_windows_of_a_tail_are_bounded_together() {
        for agents in [0, 1, 100, MAX_AGENTS] {
            let window = window(agents);
            assert!((8192..=262_144).contains(&window), "{window}");
            assert!(agents as u64 * u64::from(window) <= WINDOWS as u64);
        }
        assert_eq!(window(1), 262_144);
    }
}
