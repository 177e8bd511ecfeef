//! What the controller knows of the agents right now: who is connected, what each runs, what each reports.
//!
//! Soft state: agents tell it anew with their next Hello.

use crate::compiled::Compiled;
use crate::writer::Published;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::sync::{mpsc, oneshot, watch};
use tombolo_proto::id::{AgentId, Revision};
use tombolo_proto::probe::{ProbeReport, ProbeRequest};
use tombolo_proto::status::AgentStatus;
use tombolo_proto::wire;
use tombolo_topology::topology::AgentStatuses;

/// For a stream to take a probe.
const SENDING: Duration = Duration::from_secs(5);

/// What an agent refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// The revision that it was sent.
    pub revision: Revision,
    /// Why, in the agent's words.
    pub reason: String,
}

/// How far an agent is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentProgress {
    /// Which.
    pub agent: AgentId,
    /// Its control stream is up.
    pub connected: bool,
    /// The largest revision that is in force there: an unchanged configuration counts as applied.
    pub applied: Revision,
    /// It runs what it should.
    pub up_to_date: bool,
    /// Digest of what it runs.
    pub digest: String,
    /// Digest of what it should run.
    pub desired_digest: String,
    /// What it refused, if that is still what it should run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected: Option<Refusal>,
}

/// All agents' soft state.
#[derive(Debug)]
pub struct Agents {
    entries: Mutex<BTreeMap<AgentId, Entry>>,
    published: watch::Receiver<Published>,
    compiled: watch::Receiver<Compiled>,
    /// Moves whenever an agent's progress does.
    moved: watch::Sender<u64>,
    next: AtomicU64,
}

#[derive(Debug, Default)]
struct Entry {
    connection: Option<Connection>,
    applied: Revision,
    digest: String,
    /// Digest of what it was sent and has not answered.
    in_flight: Option<String>,
    refused: Option<(String, Refusal)>,
    status: AgentStatus,
    probes: BTreeMap<u64, oneshot::Sender<ProbeReport>>,
}

#[derive(Debug)]
struct Connection {
    number: u64,
    messages: mpsc::Sender<wire::ControllerMessage>,
    /// Dropped when a newer stream of the same agent takes over.
    _hold: oneshot::Sender<()>,
}

/// An agent's stream, as its task holds it.
#[derive(Debug)]
pub struct Stream {
    /// Whose.
    pub agent: AgentId,
    number: u64,
    /// Ends when a newer stream of the same agent takes over.
    pub superseded: oneshot::Receiver<()>,
    /// What others want to have sent: probes.
    pub outgoing: mpsc::Receiver<wire::ControllerMessage>,
}

impl Agents {
    /// Knows nobody yet.
    #[must_use]
    pub fn new(published: watch::Receiver<Published>, compiled: watch::Receiver<Compiled>) -> Self {
        Self {
            entries: Mutex::default(),
            published,
            compiled,
            moved: watch::channel(0).0,
            next: AtomicU64::new(1),
        }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<AgentId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update<T>(&self, agent: &AgentId, change: impl FnOnce(&mut Entry) -> T) -> T {
        let result = change(self.entries().entry(agent.clone()).or_default());
        self.moved.send_modify(|n| *n += 1);
        result
    }

    /// An agent said Hello on a new stream; an older one of its ends.
    pub fn connected(&self, agent: &AgentId, revision: Revision, digest: &str) -> Stream {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (messages, outgoing) = mpsc::channel(32);
        let (hold, superseded) = oneshot::channel();
        self.update(agent, |entry| {
            entry.connection = Some(Connection {
                number,
                messages,
                _hold: hold,
            });
            entry.applied = revision;
            entry.digest = digest.to_owned();
            entry.in_flight = None;
            entry.refused = None;
            // They were asked on the stream that ends now.
            entry.probes.clear();
        });
        Stream {
            agent: agent.clone(),
            number,
            superseded,
            outgoing,
        }
    }

    /// A stream ended.
    pub fn disconnected(&self, stream: &Stream) {
        self.update_by(stream, |entry| {
            entry.connection = None;
            entry.probes.clear();
        });
        self.forget_deleted();
    }

    /// As [`Self::update`], unless a newer stream has taken over: it tells anew, and better.
    fn update_by(&self, stream: &Stream, change: impl FnOnce(&mut Entry)) {
        self.update(&stream.agent, |entry| {
            if entry.connection.as_ref().is_some_and(|c| c.number == stream.number) {
                change(entry);
            }
        });
    }

    /// A configuration is on its way to an agent.
    pub fn sent(&self, stream: &Stream, digest: &str) {
        self.update_by(stream, |entry| entry.in_flight = Some(digest.to_owned()));
    }

    /// An agent's tables and kernel routes are those of this configuration (D2).
    pub fn applied(&self, stream: &Stream, revision: Revision, digest: &str) {
        self.update_by(stream, |entry| {
            entry.in_flight = None;
            entry.applied = revision;
            entry.digest = digest.to_owned();
            entry.refused = None;
        });
    }

    /// An agent refused a configuration and goes on with the one before.
    pub fn rejected(&self, stream: &Stream, revision: Revision, digest: &str, reason: String) {
        tracing::warn!(agent = %stream.agent, %revision, reason, "configuration refused");
        self.update_by(stream, |entry| {
            entry.in_flight = None;
            entry.refused = Some((digest.to_owned(), Refusal { revision, reason }));
        });
    }

    /// What an agent says of itself.
    pub fn status(&self, agent: &AgentId, status: AgentStatus) {
        self.update(agent, |entry| entry.status = status);
    }

    /// The answer to a probe.
    pub fn probe_result(&self, agent: &AgentId, id: u64, report: ProbeReport) {
        if let Some(waiting) = self.update(agent, |entry| entry.probes.remove(&id)) {
            let _ = waiting.send(report);
        }
    }

    /// Forgets agents that are gone from the desired state. One that is still connected is forgotten when its stream has
    /// ended: the stream itself tells it why.
    pub fn forget_deleted(&self) {
        let topology = self.published.borrow().topology.clone();
        self.entries()
            .retain(|agent, entry| entry.connection.is_some() || topology.agents.contains_key(agent));
        self.moved.send_modify(|n| *n += 1);
    }

    /// For views: statuses, and who is connected.
    #[must_use]
    pub fn live(&self) -> AgentStatuses {
        let entries = self.entries();
        let told = |e: &Entry| e.status != AgentStatus::default();
        AgentStatuses {
            agents: entries
                .iter()
                .filter(|(_, e)| told(e))
                .map(|(a, e)| (a.clone(), e.status.clone()))
                .collect(),
            connected: entries
                .iter()
                .filter(|(_, e)| e.connection.is_some())
                .map(|(a, _)| a.clone())
                .collect(),
        }
    }

    /// How far every agent of the desired state is, ordered by id; revoked ones are left out.
    #[must_use]
    pub fn progress(&self) -> Vec<AgentProgress> {
        let published = self.published.borrow().clone();
        let compiled = self.compiled.borrow().clone();
        let entries = self.entries();
        let agents = published.topology.agents.values().filter(|a| !a.revoked);
        agents
            .map(|agent| {
                let desired_digest = compiled
                    .configs
                    .get(&agent.id)
                    .map(|c| c.digest.clone())
                    .unwrap_or_default();
                let entry = entries.get(&agent.id);
                let digest = entry.map(|e| e.digest.clone()).unwrap_or_default();
                // While something else is in flight, what it runs is about to change: "in force" waits for its answer.
                let settled = entry.is_none_or(|e| e.in_flight.is_none());
                let same = settled && !digest.is_empty() && digest == desired_digest;
                let told = entry.map(|e| e.applied).unwrap_or_default();
                let applied = if same {
                    compiled.revision
                } else {
                    // What it told may be a number of a time that a restored backup does not know.
                    told.min(Revision(compiled.revision.0.saturating_sub(1)))
                };
                let refused = entry
                    .and_then(|e| e.refused.as_ref())
                    .filter(|(d, _)| *d == desired_digest);
                AgentProgress {
                    agent: agent.id.clone(),
                    connected: entry.is_some_and(|e| e.connection.is_some()),
                    applied,
                    up_to_date: same && compiled.revision == published.revision,
                    digest,
                    desired_digest,
                    rejected: refused.map(|(_, r)| r.clone()),
                }
            })
            .collect()
    }

    /// Waits until every connected agent has applied `revision`, at most for `limit`. Returns those that have not.
    pub async fn wait(&self, revision: Revision, limit: Duration) -> Vec<AgentId> {
        let deadline = tokio::time::Instant::now() + limit;
        let mut moved = self.moved.subscribe();
        let mut compiled = self.compiled.clone();
        loop {
            moved.borrow_and_update();
            let ready = compiled.borrow_and_update().revision >= revision;
            let behind = |p: &AgentProgress| p.connected && p.applied < revision;
            let waiting: Vec<_> = self.progress().into_iter().filter(behind).map(|p| p.agent).collect();
            if ready && waiting.is_empty() {
                return waiting;
            }
            tokio::select! {
                () = tokio::time::sleep_until(deadline) => return waiting,
                _ = moved.changed() => {}
                _ = compiled.changed() => {}
            }
        }
    }

    /// Has an agent's host send echoes.
    ///
    /// # Errors
    /// It is not connected, or does not answer in time; in words.
    pub async fn probe(&self, agent: &AgentId, request: &ProbeRequest) -> Result<ProbeReport, String> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let _asked = Asked {
            agents: self,
            agent,
            id,
        };
        let (answer, answered) = oneshot::channel();
        let messages = {
            let mut entries = self.entries();
            let entry = entries.get_mut(agent).filter(|e| e.connection.is_some());
            let entry = entry.ok_or_else(|| format!("agent {agent} is not connected"))?;
            entry.probes.insert(id, answer);
            entry.connection.as_ref().map(|c| c.messages.clone())
        };
        let messages = messages.ok_or_else(|| format!("agent {agent} is not connected"))?;
        let request_json = serde_json::to_vec(request).map_err(|e| e.to_string())?;
        let message = wire::controller_message::Message::Probe(wire::Probe {
            id,
            request: request_json,
        });
        let sent = messages.send_timeout(wire::ControllerMessage { message: Some(message) }, SENDING);
        sent.await.map_err(|e| match e {
            SendTimeoutError::Timeout(_) => format!("agent {agent} takes nothing"),
            SendTimeoutError::Closed(_) => format!("agent {agent} went away"),
        })?;
        let each = u64::from(request.timeout_ms) + u64::from(request.interval_ms);
        let probes = u64::from(request.count) * u64::from(request.max_ttl.max(1));
        let limit = Duration::from_millis(each * probes.min(300)) + Duration::from_secs(5);
        match tokio::time::timeout(limit.min(Duration::from_secs(120)), answered).await {
            Ok(Ok(report)) => Ok(report),
            Ok(Err(_)) => Err(format!("agent {agent} went away")),
            Err(_) => Err(format!("agent {agent} did not answer in time")),
        }
    }
}

/// A probe that is under way; forgotten however it ends, also when nobody waits for it any more.
struct Asked<'a> {
    agents: &'a Agents,
    agent: &'a AgentId,
    id: u64,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if let Some(entry) = self.agents.entries().get_mut(self.agent) {
            entry.probes.remove(&self.id);
        }
    }
}
