//! Files that are written some time after the change that they record: the last good configuration, and the last known
//! endpoints of peers. Writes run on blocking threads, and an older version never replaces a newer one.

use crate::state::{StateDir, file};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tombolo_proto::config::AgentConfig;
use tombolo_proto::id::{AgentId, Revision};

/// Shortest time between two writes of peers' endpoints. Endpoints change in bursts, and each write waits for `fsync`.
const ENDPOINTS_INTERVAL: Duration = Duration::from_secs(1);

/// The last good configuration, with which an agent starts before it reaches the controller.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LastGood {
    /// The revision that was applied.
    pub revision: Revision,
    /// Digest of the configuration, as the controller announced it.
    pub digest: String,
    /// The configuration of that revision.
    pub config: AgentConfig,
}

/// Stores the last good configuration on disk. Clones share one store.
#[derive(Clone)]
pub struct LastGoodStore {
    state: StateDir,
    /// The configuration to store, with a sequence number.
    latest: watch::Sender<(u64, Option<Arc<LastGood>>)>,
    /// Sequence number of the configuration on disk. A writer locks this number while it writes, so that an older
    /// configuration is never written after a newer one.
    written: Arc<Mutex<u64>>,
}

impl LastGoodStore {
    /// A store that writes to the directory `state`. It has no configuration to write yet.
    #[must_use]
    pub fn new(state: StateDir) -> Self {
        Self {
            state,
            latest: watch::Sender::default(),
            written: Arc::default(),
        }
    }

    /// Sets the configuration to store. It takes the place of an earlier one that was not written yet. Returns at once;
    /// [`run`](Self::run) or [`flush`](Self::flush) writes it.
    pub fn set(&self, last: LastGood) {
        self.latest.send_modify(|latest| {
            latest.0 += 1;
            latest.1 = Some(Arc::new(last));
        });
    }

    /// Whenever a configuration is set, writes the latest one on a blocking thread. A failed write is logged and not
    /// repeated. Runs until its task is cancelled. A configuration that was set before the call is not written until
    /// the next one is set: call [`flush`](Self::flush) for it. A write that has begun is completed if the task is
    /// cancelled.
    pub async fn run(&self) {
        let mut latest = self.latest.subscribe();
        while latest.changed().await.is_ok() {
            latest.mark_unchanged();
            let store = self.clone();
            let written = tokio::task::spawn_blocking(move || store.flush()).await;
            if let Err(e) = written.context("writer").flatten() {
                tracing::error!(error = %format!("{e:#}"), "configuration not stored: a restart would use an older one");
            }
        }
    }

    /// Writes the latest configuration, and returns when it is on disk (`fsync`). Does nothing if it is on disk already
    /// or none was set. Blocks while another writer is active. May be called from any thread, but blocks it.
    ///
    /// # Errors
    /// The file cannot be written. A later call tries again.
    pub fn flush(&self) -> Result<()> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, last) = self.latest.borrow().clone();
        let Some(last) = last.filter(|_| count > *written) else {
            return Ok(());
        };
        self.state.write(file::LAST_GOOD, &serde_json::to_vec(&*last)?)?;
        *written = count;
        Ok(())
    }
}

/// Stores the last known endpoints of peers on disk.
pub(crate) struct EndpointStore {
    state: StateDir,
    known: BTreeMap<AgentId, SocketAddr>,
    /// Whether an endpoint has changed since the last write.
    unwritten: bool,
    last: Option<Instant>,
}

impl EndpointStore {
    /// A store that writes to the directory `state`. It knows no endpoint yet. An existing file is not read, and the
    /// first write replaces it.
    pub(crate) fn new(state: StateDir) -> Self {
        Self {
            state,
            known: BTreeMap::new(),
            unwritten: false,
            last: None,
        }
    }

    /// Adds the present endpoints of peers (`seen`) to the known ones. Writes the file if an endpoint has changed and
    /// the last write is at least [`ENDPOINTS_INTERVAL`] ago; waits for that write. A failed write is logged, and
    /// repeated at a later call. A peer that is missing from `seen` keeps its last known endpoint, because the next
    /// start has no better endpoint for that peer.
    pub(crate) async fn update(&mut self, seen: BTreeMap<AgentId, SocketAddr>) {
        self.unwritten |= seen.iter().any(|(peer, at)| self.known.get(peer) != Some(at));
        self.known.extend(seen);
        if !self.unwritten || self.last.is_some_and(|t| t.elapsed() < ENDPOINTS_INTERVAL) {
            return;
        }
        (self.unwritten, self.last) = (false, Some(Instant::now()));
        let (state, known) = (self.state.clone(), self.known.clone());
        let written = tokio::task::spawn_blocking(move || state.write(file::ENDPOINTS, &serde_json::to_vec(&known)?));
        if let Err(e) = written.await.context("writer").flatten() {
            self.unwritten = true;
            tracing::warn!(error = %format!("{e:#}"), "endpoints of peers not stored; will retry");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    fn last(revision: u64) -> LastGood {
        let config = serde_json::json!({
            "agent": "vm", "vnet": "v", "addressSpace": [], "mtu": 1420, "links": [], "subnets": [], "spaces": [],
            "role": {"type": "vm", "nics": [], "served": []},
        });
        LastGood {
            revision: Revision(revision),
            digest: "x".into(),
            config: serde_json::from_value(config).unwrap(),
        }
    }

    fn on_disk(state: &StateDir) -> u64 {
        let bytes = state.read(file::LAST_GOOD).unwrap().unwrap();
        serde_json::from_slice::<LastGood>(&bytes).unwrap().revision.0
    }

    /// At a shutdown two writers of the last good configuration may run at the same time. The newer configuration stays
    /// on disk, and neither writer fails.
    #[test]
    fn writers_do_not_overtake_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        let store = LastGoodStore::new(state.clone());
        for round in 0..20u64 {
            store.set(last(2 * round));
            let early = thread::spawn({
                let store = store.clone();
                move || store.flush()
            });
            store.set(last(2 * round + 1));
            store.flush().unwrap();
            early.join().unwrap().unwrap();
            assert_eq!(on_disk(&state), 2 * round + 1);
        }
        // A configuration that is on disk already is not written again.
        state.remove(file::LAST_GOOD).unwrap();
        store.flush().unwrap();
        assert_eq!(state.read(file::LAST_GOOD).unwrap(), None);
    }

    #[tokio::test]
    async fn endpoints_are_written_once_a_second_at_most() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        let mut endpoints = EndpointStore::new(state.clone());
        let seen = |port: u16| BTreeMap::from([(AgentId::new("b").unwrap(), SocketAddr::from(([192, 0, 2, 1], port)))]);
        let text = || String::from_utf8(state.read(file::ENDPOINTS).unwrap().unwrap()).unwrap();
        endpoints.update(seen(1)).await;
        assert!(text().contains("192.0.2.1:1"));
        endpoints.update(seen(2)).await;
        assert!(text().contains("192.0.2.1:1"), "too soon");
        endpoints.last = Instant::now().checked_sub(ENDPOINTS_INTERVAL);
        endpoints.update(BTreeMap::new()).await;
        assert!(text().contains("192.0.2.1:2"), "remembered until it may be written");
    }
}
