//! Files that are kept beside the path of a change: the last good configuration, and where peers were last heard from.
//! Their writers run where blocking is allowed, and a newer file is never replaced by an older one.

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

/// Places of peers change in bursts, and each write waits for the disk.
const ENDPOINTS_EVERY: Duration = Duration::from_secs(1);

/// The file that an agent starts from without a controller.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LastGood {
    /// The revision that was applied.
    pub revision: Revision,
    /// Its digest, as the controller gave it.
    pub digest: String,
    /// The configuration.
    pub config: AgentConfig,
}

/// Keeps the last good configuration on disk.
#[derive(Clone)]
pub struct Keeper {
    state: StateDir,
    /// What is to be on disk, counted.
    latest: watch::Sender<(u64, Option<Arc<LastGood>>)>,
    /// The count of what is on disk; held while it is written, so that two writers do not overtake each other.
    written: Arc<Mutex<u64>>,
}

impl Keeper {
    /// Nothing to keep yet.
    #[must_use]
    pub fn new(state: StateDir) -> Self {
        Self {
            state,
            latest: watch::Sender::default(),
            written: Arc::default(),
        }
    }

    /// Takes what is to be kept from now on; returns at once.
    pub fn keep(&self, last: LastGood) {
        self.latest.send_modify(|latest| {
            latest.0 += 1;
            latest.1 = Some(Arc::new(last));
        });
    }

    /// Writes what is to be kept, as it changes; never returns.
    pub async fn run(&self) {
        let mut latest = self.latest.subscribe();
        while latest.changed().await.is_ok() {
            latest.mark_unchanged();
            let keeper = self.clone();
            let written = tokio::task::spawn_blocking(move || keeper.flush()).await;
            if let Err(e) = written.context("writer").flatten() {
                tracing::error!(error = %format!("{e:#}"), "configuration not kept: a restart would lose it");
            }
        }
    }

    /// Writes what is to be kept, unless it is on disk already; waits for a writer that is on its way.
    ///
    /// # Errors
    /// It cannot be written.
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

/// Where peers were last heard from, and what of it is on disk.
pub(crate) struct Places {
    state: StateDir,
    known: BTreeMap<AgentId, SocketAddr>,
    /// Something of it is not on disk.
    unwritten: bool,
    last: Option<Instant>,
}

impl Places {
    pub(crate) fn new(state: StateDir) -> Self {
        Self {
            state,
            known: BTreeMap::new(),
            unwritten: false,
            last: None,
        }
    }

    /// Takes what is known now, and writes it if something changed and the last time is long enough ago. A peer that
    /// went away keeps its last place: it is the best guess for the next start.
    pub(crate) async fn learn(&mut self, seen: BTreeMap<AgentId, SocketAddr>) {
        self.unwritten |= seen.iter().any(|(peer, at)| self.known.get(peer) != Some(at));
        self.known.extend(seen);
        if !self.unwritten || self.last.is_some_and(|t| t.elapsed() < ENDPOINTS_EVERY) {
            return;
        }
        (self.unwritten, self.last) = (false, Some(Instant::now()));
        let (state, known) = (self.state.clone(), self.known.clone());
        let written = tokio::task::spawn_blocking(move || state.write(file::ENDPOINTS, &serde_json::to_vec(&known)?));
        if let Err(e) = written.await.context("writer").flatten() {
            self.unwritten = true;
            tracing::warn!(error = %format!("{e:#}"), "endpoints of peers not remembered");
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

    /// A shutdown writes while the keeper still does: the newer one stays, and no writer fails.
    #[test]
    fn writers_do_not_overtake_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        let keeper = Keeper::new(state.clone());
        for round in 0..20u64 {
            keeper.keep(last(2 * round));
            let early = thread::spawn({
                let keeper = keeper.clone();
                move || keeper.flush()
            });
            keeper.keep(last(2 * round + 1));
            keeper.flush().unwrap();
            early.join().unwrap().unwrap();
            assert_eq!(on_disk(&state), 2 * round + 1);
        }
        // What is on disk already is not written again.
        state.remove(file::LAST_GOOD).unwrap();
        keeper.flush().unwrap();
        assert_eq!(state.read(file::LAST_GOOD).unwrap(), None);
    }

    #[tokio::test]
    async fn places_are_written_once_a_second_at_most() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        let mut places = Places::new(state.clone());
        let seen = |port: u16| BTreeMap::from([(AgentId::new("b").unwrap(), SocketAddr::from(([192, 0, 2, 1], port)))]);
        let text = || String::from_utf8(state.read(file::ENDPOINTS).unwrap().unwrap()).unwrap();
        places.learn(seen(1)).await;
        assert!(text().contains("192.0.2.1:1"));
        places.learn(seen(2)).await;
        assert!(text().contains("192.0.2.1:1"), "too soon");
        places.last = Instant::now().checked_sub(ENDPOINTS_EVERY);
        places.learn(BTreeMap::new()).await;
        assert!(text().contains("192.0.2.1:2"), "remembered until it may be written");
    }
}
