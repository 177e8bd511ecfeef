//! The state of agents that the controller keeps in memory only: their control streams, the configurations that they
//! run, and their reports.
//!
//! After a restart of the controller, each agent sends its configuration's digest again in its Hello, and its report
//! again as a Status message.
//!
//! * [`capture`]: packet captures. [`tail`]: tails of flow logs. `listed`: one of both. [`live`]: their bytes. [`probe`]: the
//!   probes that agents send.

pub mod capture;
mod listed;
pub mod live;
pub mod probe;
pub mod tail;

use crate::compiled::Compiled;
use crate::writer::Published;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tombolo_proto::config::Feature;
use tombolo_proto::control_stream;
use tombolo_proto::fabric::Binding;
use tombolo_proto::id::{AgentId, ResourceId, Revision};
use tombolo_proto::probe::ProbeReport;
use tombolo_proto::status::{AgentStatus, HealthVersion, Meters};
use tombolo_topology::topology::AgentStatuses;
use uuid::Uuid;

/// Maximum number of messages that other tasks have sent to a control stream and that wait to be passed on. If there
/// are more, the sender waits, so none is lost.
const OUTGOING_CAPACITY: usize = 32;

/// An agent's rejection of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// The revision of the configuration.
    pub revision: Revision,
    /// The reason, as the agent states it.
    pub reason: String,
}

/// How far an agent has applied the desired state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentProgress {
    /// The agent that the other fields are about.
    pub agent: AgentId,
    /// Whether the agent's control stream is up.
    pub connected: bool,
    /// The largest revision that is in force on the agent. A revision that does not change the agent's configuration is
    /// in force as soon as it is compiled.
    pub applied: Revision,
    /// Whether the agent runs the configuration that the newest revision requires of it.
    pub up_to_date: bool,
    /// The digest of the configuration that the agent runs; empty before the agent's first Hello.
    pub digest: String,
    /// The digest of the configuration that is compiled for the agent; empty if there is none.
    pub desired_digest: String,
    /// The agent's rejection of the configuration that it should run now. `None`: it has not rejected this
    /// configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected: Option<Refusal>,
}

/// Whether two reports of an agent have the same health of its back ends, and the same version of it. Reasons do not count,
/// because the other agents are not told them.
fn is_health_equal(one: &AgentStatus, other: &AgentStatus) -> bool {
    fn states(status: &AgentStatus) -> impl Iterator<Item = (&ResourceId, IpAddr, bool)> {
        status.health.iter().map(|h| (&h.probe, h.address, h.up))
    }
    one.health_version == other.health_version && states(one).eq(states(other))
}

/// What the owners of some back ends have reported about them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReportedHealth {
    /// The back ends that are down, each with its probe.
    pub down: Vec<(ResourceId, IpAddr)>,
    /// The owners that have reported since this controller started, each with the version of its last report. The version of
    /// an owner that does not number its reports is 0.
    pub owners: BTreeMap<AgentId, HealthVersion>,
}

/// The soft state of all agents.
#[derive(Debug)]
pub struct Agents {
    entries: Mutex<BTreeMap<AgentId, Entry>>,
    published: watch::Receiver<Published>,
    compiled: watch::Receiver<Compiled>,
    /// Notified after each change of an entry. The value is a counter that no receiver reads.
    changed: watch::Sender<u64>,
    /// Notified when the health of a back end has changed by an agent's report (L6).
    health_changed: watch::Sender<u64>,
    /// Notified when a list of captures, or a report about one, has changed (D42).
    captures_changed: watch::Sender<u64>,
    /// The number of the next stream or probe.
    next: AtomicU64,
}

#[derive(Debug, Default)]
struct Entry {
    connection: Option<Connection>,
    applied: Revision,
    digest: String,
    /// The features that the agent named in its last Hello. `None`: it has not connected since this controller started.
    features: Option<BTreeSet<Feature>>,
    /// The digest of the configuration that was sent and is neither applied nor rejected yet.
    in_flight: Option<String>,
    /// The last rejection, after the digest of the rejected configuration.
    rejected: Option<(String, Refusal)>,
    status: AgentStatus,
    /// Whether the agent has reported a status since this controller started.
    has_reported: bool,
    /// Callers that wait for the results of probes, by id.
    probes: BTreeMap<u64, oneshot::Sender<ProbeReport>>,
    /// The packet captures of the agent, and its tails of flow logs.
    captures: BTreeMap<Uuid, listed::Listed>,
}

#[derive(Debug)]
struct Connection {
    number: u64,
    messages: mpsc::Sender<control_stream::ControllerMessage>,
    /// Dropping this value completes [`Stream::superseded`], so the stream's task ends. It is dropped when a newer
    /// stream of the agent replaces this stream, and when the agent is reset.
    _hold: oneshot::Sender<()>,
}

/// The control stream of an agent, as its task holds it.
#[derive(Debug)]
pub struct Stream {
    /// The agent that has opened the stream.
    pub agent: AgentId,
    /// The features of configurations that the agent understands.
    pub features: BTreeSet<Feature>,
    number: u64,
    /// Completes when a newer stream of the agent replaces this stream, and when the agent is reset.
    pub superseded: oneshot::Receiver<()>,
    /// Messages of other tasks for the agent: probes.
    pub outgoing: mpsc::Receiver<control_stream::ControllerMessage>,
}

impl Agents {
    /// A state without any agent. The reports of agents are compared with the desired state, which `published` and
    /// `compiled` provide.
    #[must_use]
    pub fn new(published: watch::Receiver<Published>, compiled: watch::Receiver<Compiled>) -> Self {
        Self {
            entries: Mutex::default(),
            published,
            compiled,
            changed: watch::channel(0).0,
            health_changed: watch::channel(0).0,
            captures_changed: watch::channel(0).0,
            next: AtomicU64::new(1),
        }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<AgentId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the entry of an agent, and notifies the tasks that wait for a revision to be in force.
    fn update<T>(&self, agent: &AgentId, change: impl FnOnce(&mut Entry) -> T) -> T {
        let result = change(self.entries().entry(agent.clone()).or_default());
        self.changed.send_modify(|n| *n += 1);
        result
    }

    /// Registers a new stream after its Hello, with the revision and the digest of the configuration that the agent
    /// runs, and the features that it understands. An older stream of the agent ends: its [`Stream::superseded`] completes, its probes fail, and calls of the
    /// methods below for this older stream are ignored from now on. An earlier rejection is forgotten. The caller has
    /// authorized the agent.
    pub fn connected(&self, agent: &AgentId, revision: Revision, digest: &str, features: BTreeSet<Feature>) -> Stream {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (messages, outgoing) = mpsc::channel(OUTGOING_CAPACITY);
        let (hold, superseded) = oneshot::channel();
        self.update(agent, |entry| {
            entry.connection = Some(Connection {
                number,
                messages,
                _hold: hold,
            });
            entry.applied = revision;
            entry.digest = digest.to_owned();
            entry.features = Some(features.clone());
            entry.in_flight = None;
            entry.rejected = None;
            // These probes were requested over the older stream, so their reports will not arrive.
            entry.probes.clear();
            entry.end_live_streams();
        });
        Stream {
            agent: agent.clone(),
            features,
            number,
            superseded,
            outgoing,
        }
    }

    /// Removes a stream that has ended; probes that were requested over the stream fail. The agent's revision, digest
    /// and last status are kept. If a newer stream of the agent has replaced this one, nothing is removed. In both
    /// cases [`Self::forget_deleted`] is called at the end.
    pub fn disconnected(&self, stream: &Stream) {
        self.update_by(stream, |entry| {
            entry.connection = None;
            entry.probes.clear();
            entry.end_live_streams();
        });
        self.forget_deleted();
    }

    /// Ends the control stream of an agent, if it has one. The agent opens a new stream at once, reports everything
    /// again, and gets its configuration again if it runs another one. Its links and the packets in them are not
    /// affected.
    pub fn reset(&self, agent: &AgentId) {
        tracing::info!(%agent, "the control stream is reset");
        self.update(agent, |entry| {
            // Dropping the connection completes [`Stream::superseded`].
            entry.connection = None;
            entry.probes.clear();
            entry.end_live_streams();
        });
    }

    /// As [`Self::update`], but does nothing if a newer stream of the agent has replaced `stream`, because the newer
    /// stream has brought the newer state.
    fn update_by(&self, stream: &Stream, change: impl FnOnce(&mut Entry)) {
        self.update(&stream.agent, |entry| {
            if entry.connection.as_ref().is_some_and(|c| c.number == stream.number) {
                change(entry);
            }
        });
    }

    /// Notes that the configuration with this digest is in flight to an agent. Until the agent answers or opens a new
    /// stream, [`Self::progress`] does not show the agent as up to date. Call this method before the configuration is
    /// sent, and while the compiled state from which it was taken is still borrowed. Then a caller of
    /// [`Self::progress`] that sees a newer compiled state also sees that a configuration is in flight. Ignored if a
    /// newer stream has replaced this one.
    pub fn sent(&self, stream: &Stream, digest: &str) {
        self.update_by(stream, |entry| entry.in_flight = Some(digest.to_owned()));
    }

    /// Notes that a configuration is in force on an agent: its tables and kernel routes are those of the configuration
    /// (D2). `revision` and `digest` are those of the agent's message; they are not compared with the configuration
    /// that was sent. No configuration is in flight any more, and an earlier rejection is forgotten. Ignored if a newer
    /// stream has replaced this one.
    pub fn applied(&self, stream: &Stream, revision: Revision, digest: &str) {
        self.update_by(stream, |entry| {
            entry.in_flight = None;
            entry.applied = revision;
            entry.digest = digest.to_owned();
            entry.rejected = None;
        });
    }

    /// Notes that an agent rejected a configuration. The agent still runs the configuration that it had before.
    /// `revision` and `digest` are those of the rejected configuration, as the agent's message states them; they are
    /// not compared with the configuration that was sent. `reason` is the agent's text. It is kept unchanged, so the
    /// caller must limit its length.
    ///
    /// No configuration is in flight any more. The note replaces an earlier one. It is kept until the agent applies a
    /// configuration or opens a new stream, and [`Self::progress`] shows it while the configuration compiled for the
    /// agent has this digest. If a newer stream has replaced this one, nothing is noted. A warning is logged in any
    /// case.
    pub fn rejected(&self, stream: &Stream, revision: Revision, digest: &str, reason: String) {
        tracing::warn!(agent = %stream.agent, %revision, reason, "agent rejected its configuration");
        self.update_by(stream, |entry| {
            entry.in_flight = None;
            entry.rejected = Some((digest.to_owned(), Refusal { revision, reason }));
        });
    }

    /// Replaces the status of an agent by a newer one. Ignored if a newer stream has replaced this one. The status is
    /// kept after the stream has ended, until the agent is deleted.
    pub fn status(&self, stream: &Stream, status: AgentStatus) {
        let mut changed = false;
        self.update_by(stream, |entry| {
            changed = !is_health_equal(&entry.status, &status);
            entry.status = status;
            entry.has_reported = true;
        });
        if changed {
            self.health_changed.send_modify(|n| *n += 1);
        }
    }

    /// A receiver that is notified when the health of a back end has changed.
    #[must_use]
    pub fn watch_health(&self) -> watch::Receiver<u64> {
        self.health_changed.subscribe()
    }

    /// What the agents that own the back ends `probed` have reported about them. Of agents that have not reported yet, nothing
    /// is known. What an agent reports about back ends of others is ignored.
    #[must_use]
    pub fn health(&self, probed: &[(ResourceId, IpAddr, AgentId)]) -> ReportedHealth {
        let entries = self.entries();
        let mut all = ReportedHealth::default();
        for (probe, address, owner) in probed {
            let Some(entry) = entries.get(owner).filter(|entry| entry.has_reported) else {
                continue;
            };
            let version = entry.status.health_version.unwrap_or_default();
            all.owners.insert(owner.clone(), version);
            let mut reported = entry.status.health.iter();
            if reported.any(|health| health.probe == *probe && health.address == *address && !health.up) {
                all.down.push((probe.clone(), *address));
            }
        }
        all
    }

    /// Removes the state of agents that are not in the published desired state. The caller calls this method after an
    /// agent was deleted; a second call changes nothing. An agent that is connected stays until its stream has ended.
    /// Before it ends, the stream sends the reason to the agent.
    pub fn forget_deleted(&self) {
        let topology = self.published.borrow().topology.clone();
        self.entries()
            .retain(|agent, entry| entry.connection.is_some() || topology.agents.contains_key(agent));
        self.changed.send_modify(|n| *n += 1);
    }

    /// The totals of the links of each agent that reports any, as of its last report.
    #[must_use]
    pub fn meters(&self) -> BTreeMap<AgentId, Meters> {
        let entries = self.entries();
        let with_meters = entries
            .iter()
            .filter_map(|(agent, entry)| Some((agent, entry.status.meters.as_ref()?)));
        with_meters
            .map(|(agent, meters)| (agent.clone(), meters.clone()))
            .collect()
    }

    /// Returns what the API's responses show about agents: the last status of each agent that has sent one since this
    /// controller started, and the set of agents whose stream is up. A status that equals [`AgentStatus::default`] counts as none.
    #[must_use]
    pub fn statuses(&self) -> AgentStatuses {
        let entries = self.entries();
        let has_status = |e: &Entry| e.status != AgentStatus::default();
        AgentStatuses {
            agents: entries
                .iter()
                .filter(|(_, e)| has_status(e))
                .map(|(a, e)| (a.clone(), e.status.clone()))
                .collect(),
            connected: entries
                .iter()
                .filter(|(_, e)| e.connection.is_some())
                .map(|(a, _)| a.clone())
                .collect(),
        }
    }

    /// The progress of all agents of the desired state except revoked ones, ordered by id. An agent that has not
    /// connected since this controller started has an empty digest and the revision 0. The result is a snapshot: the
    /// method does not wait until the newest revision is compiled.
    #[must_use]
    pub fn progress(&self) -> Vec<AgentProgress> {
        let published = self.published.borrow().clone();
        let compiled = self.compiled.borrow().clone();
        let entries = self.entries();
        let agents = published.topology.agents.values().filter(|a| !a.revoked);
        agents
            .map(|agent| {
                let entry = entries.get(&agent.id);
                let config = compiled.configs.get(&agent.id);
                let features = entry.and_then(|e| e.features.as_ref());
                let shortcoming = features.zip(config).and_then(|(f, c)| c.shortcoming(f));
                let desired_digest = match (config, features) {
                    (Some(config), Some(features)) => config.for_agent(features).0.to_owned(),
                    (Some(config), None) => config.digest.clone(),
                    (None, _) => String::new(),
                };
                let digest = entry.map(|e| e.digest.clone()).unwrap_or_default();
                // While a configuration is in flight, the agent may switch to it at any moment. So until the agent has
                // answered, the digest that it reported before proves nothing.
                let idle = entry.is_none_or(|e| e.in_flight.is_none());
                // M10: a site probe gets no configuration, so it has nothing to apply.
                let is_probe = matches!(agent.binding, Binding::Site { .. });
                let same = is_probe || (idle && !digest.is_empty() && digest == desired_digest);
                let reported = entry.map(|e| e.applied).unwrap_or_default();
                let applied = if same {
                    compiled.revision
                } else {
                    // The agent does not run the newest configuration, so the result is less than the newest revision.
                    // The agent may have reported a larger one, because an older backup was restored.
                    reported.min(Revision(compiled.revision.0.saturating_sub(1)))
                };
                let rejected = entry
                    .and_then(|e| e.rejected.as_ref())
                    .filter(|(d, _)| *d == desired_digest);
                // The agent runs what it was sent, which is not the configuration that the revision asks for.
                let too_old = shortcoming.map(|reason| Refusal {
                    revision: compiled.revision,
                    reason,
                });
                AgentProgress {
                    agent: agent.id.clone(),
                    connected: entry.is_some_and(|e| e.connection.is_some()),
                    applied,
                    up_to_date: same && compiled.revision == published.revision,
                    digest,
                    desired_digest,
                    rejected: rejected.map(|(_, r)| r.clone()).or(too_old),
                }
            })
            .collect()
    }

    /// Waits until `revision` is compiled and in force on every connected agent, for `limit` at most. Returns the
    /// connected agents on which the revision is not in force when the wait ends, ordered by id. Agents that are not
    /// connected, or that disconnect during the wait, do not count. An empty result does not mean that `revision` is
    /// compiled: if no agent is connected, the result is empty also after a timeout. Dropping the future changes
    /// nothing.
    ///
    /// # Panics
    /// Outside of a Tokio runtime, or if the present time plus `limit` overflows an [`Instant`](std::time::Instant).
    pub async fn wait(&self, revision: Revision, limit: Duration) -> Vec<AgentId> {
        let deadline = tokio::time::Instant::now() + limit;
        let mut changed = self.changed.subscribe();
        let mut compiled = self.compiled.clone();
        loop {
            changed.borrow_and_update();
            let ready = compiled.borrow_and_update().revision >= revision;
            let behind = |p: &AgentProgress| p.connected && p.applied < revision;
            let waiting: Vec<_> = self.progress().into_iter().filter(behind).map(|p| p.agent).collect();
            if ready && waiting.is_empty() {
                return waiting;
            }
            tokio::select! {
                () = tokio::time::sleep_until(deadline) => return waiting,
                _ = changed.changed() => {}
                _ = compiled.changed() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Instant;
    use tombolo_topology::topology::Topology;

    fn agents() -> Agents {
        let topology = Arc::new(Topology::default());
        let published = Published {
            revision: Revision(1),
            topology: topology.clone(),
            since: Instant::now(),
        };
        let compiled = Compiled {
            revision: Revision(1),
            topology,
            since: Instant::now(),
            configs: Arc::default(),
        };
        Agents::new(watch::channel(published).1, watch::channel(compiled).1)
    }

    #[test]
    fn a_replaced_stream_changes_nothing_any_more() {
        let agents = agents();
        let agent: AgentId = "vm-a".parse().unwrap();
        let status = |digest: &str| AgentStatus {
            digest: digest.into(),
            ..AgentStatus::default()
        };
        let older = agents.connected(&agent, Revision(1), "one", BTreeSet::new());
        let newer = agents.connected(&agent, Revision(2), "two", BTreeSet::new());
        agents.status(&newer, status("new"));
        agents.status(&older, status("old"));
        agents.applied(&older, Revision(1), "one");
        agents.disconnected(&older);
        let statuses = agents.statuses();
        assert_eq!(statuses.agents[&agent].digest, "new");
        assert!(statuses.connected.contains(&agent));
        assert_eq!(agents.entries()[&agent].digest, "two");
    }
}
