//! Counts what passes the links with each peer, over restarts of the agent (Meter-6, D39). The file is written every 10
//! seconds, so a crash loses at most what these seconds have added, and nothing is counted twice.
//!
//! ```text
//! lane: SecureLinks::take_traffic ──what is new──▶ Traffic ──▶ Meter: totals by peer ──▶ status, file
//! ```
//! Lanes pass on differences and not counters, so it does not matter when a lane or a link ends or begins.

use crate::state::{StateDir, file};
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tombolo_proto::config::AgentConfig;
use tombolo_proto::id::AgentId;
use tombolo_proto::status::{LinkMeter, MAX_METERS, Meters, Volume};

/// Shortest time between two writes of the file.
const INTERVAL: Duration = Duration::from_secs(10);

/// Time for which a peer that the configuration does not have any more is reported. Only time with a connection to the
/// controller counts, so that the controller gets the last total.
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// Longest time between two updates that counts: the agent updates the totals every 2 seconds.
const LONGEST_STEP: Duration = Duration::from_secs(10);

/// Largest number of peers that are reported although the configuration does not have them any more.
const MAX_ABSENT: usize = 10_000;

/// Largest number of peers whose totals are kept after they were reported for the last time. With long names their file has
/// 2 MB.
const MAX_EARLIER: usize = 10_000;

/// Time for which an agent with more than [`MAX_METERS`] peers reports the same ones. The controller reads the totals every
/// 10 seconds.
const TURN: Duration = Duration::from_secs(30);

/// The file [`file::METERS`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Saved {
    /// [`Meters::epoch`].
    pub epoch: u64,
    /// What has passed the links with each peer.
    pub links: BTreeMap<AgentId, Volume>,
}

/// The file [`file::EARLIER_METERS`].
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SavedEarlier {
    /// [`Meters::epoch`].
    pub epoch: u64,
    /// What had passed the links with each peer that is not reported any more. The one that was reported last is the last.
    pub links: Vec<LinkMeter>,
}

/// What has passed the links of all lanes and is in no total yet. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Traffic(Arc<Mutex<BTreeMap<AgentId, Volume>>>);

impl Traffic {
    /// Adds what has passed links. A lane calls it between two turns, never for a packet.
    pub fn add(&self, more: BTreeMap<AgentId, Volume>) {
        if more.is_empty() {
            return;
        }
        let mut all = lock(&self.0);
        for (peer, volume) in more {
            let sum = all.entry(peer).or_default();
            *sum = sum.plus(volume);
        }
    }

    /// Takes everything.
    pub(crate) fn take(&self) -> BTreeMap<AgentId, Volume> {
        std::mem::take(&mut lock(&self.0))
    }
}

/// Locks a mutex, and ignores poisoning: the release profile aborts on a panic, so no other thread sees a poisoned
/// mutex.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The totals of all links.
///
/// A peer that is not reported any more keeps its total, because the controller knows it: if the peer comes back, its total
/// must not begin at 0 again, as what passes then would count only from the old total on.
#[derive(Debug)]
pub(crate) struct Meter {
    epoch: u64,
    /// The peers that are reported.
    links: BTreeMap<AgentId, Count>,
    /// The totals of other peers, each with the number of peers that had left before it.
    earlier: BTreeMap<AgentId, (u64, Volume)>,
    left: u64,
    /// The time of the first and of the last update.
    began: Instant,
    updated: Instant,
}

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    total: Volume,
    /// For how long the configuration has not had the peer while the controller was connected.
    absent: Duration,
}

impl Meter {
    fn new(saved: Saved, earlier: SavedEarlier, now: Instant) -> Self {
        // Totals of another epoch are of a file of totals that was lost.
        let earlier = earlier.links.into_iter().filter(|_| earlier.epoch == saved.epoch);
        let earlier: BTreeMap<_, _> = (1..)
            .zip(earlier)
            .map(|(n, link)| (link.peer, (n, link.volume)))
            .collect();
        // After a crash the file of totals may be older than the other one.
        let newest = |peer: &AgentId, total: Volume| earlier.get(peer).map_or(total, |(_, e)| total.largest(*e));
        let count = |total| Count {
            total,
            absent: Duration::ZERO,
        };
        let links = saved.links.into_iter();
        Self {
            epoch: saved.epoch,
            links: links
                .map(|(peer, total)| {
                    let total = newest(&peer, total);
                    (peer, count(total))
                })
                .collect(),
            left: earlier.len() as u64,
            earlier,
            began: now,
            updated: now,
        }
    }

    /// Adds what has passed links since the last call. `has` says whether the configuration has a peer. Returns whether a
    /// peer is not reported any more.
    fn update(
        &mut self,
        counted: BTreeMap<AgentId, Volume>,
        has: impl Fn(&AgentId) -> bool,
        is_connected: bool,
        now: Instant,
    ) -> bool {
        for (peer, more) in counted {
            let earlier = &self.earlier;
            let count = self.links.entry(peer).or_insert_with_key(|peer| Count {
                total: earlier.get(peer).map_or_else(Volume::default, |(_, total)| *total),
                absent: Duration::ZERO,
            });
            count.total = count.total.plus(more);
        }
        let passed = now.saturating_duration_since(self.updated).min(LONGEST_STEP);
        self.updated = now;
        for (peer, count) in &mut self.links {
            if has(peer) {
                count.absent = Duration::ZERO;
            } else if is_connected {
                count.absent += passed;
            }
        }
        let absent = self.links.iter().filter(|(peer, _)| !has(peer));
        let mut absent: Vec<(Duration, AgentId)> = absent.map(|(peer, count)| (count.absent, peer.clone())).collect();
        absent.sort_by(|a, b| b.cmp(a));
        let too_many = absent.len().saturating_sub(MAX_ABSENT);
        let leave = absent.into_iter().enumerate();
        let leave = leave.filter(|(place, (absent, _))| *absent >= KEPT || *place < too_many);
        let mut changed = false;
        for (_, (_, peer)) in leave {
            changed = true;
            self.leave(peer);
        }
        self.forget_oldest();
        changed
    }

    /// Ends the reports of a peer, and keeps its total.
    fn leave(&mut self, peer: AgentId) {
        let Some(count) = self.links.remove(&peer) else { return };
        self.left += 1;
        self.earlier.insert(peer, (self.left, count.total));
    }

    /// Forgets the totals of the peers that left first, if there are too many.
    fn forget_oldest(&mut self) {
        let too_many = self.earlier.len().saturating_sub(MAX_EARLIER);
        if too_many == 0 {
            return;
        }
        let mut numbers: Vec<u64> = self.earlier.values().map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        if let Some(last) = numbers.get(too_many - 1) {
            self.earlier.retain(|_, earlier| earlier.0 > *last);
        }
    }

    fn report(&self, now: Instant) -> Meters {
        let turns = self.links.len().div_ceil(MAX_METERS).max(1);
        let turn = now.saturating_duration_since(self.began).as_secs() / TURN.as_secs();
        #[expect(clippy::cast_possible_truncation, reason = "smaller than the number of turns")]
        let turn = (turn % turns as u64) as usize;
        let links = self.links.iter().skip(turn * MAX_METERS).take(MAX_METERS);
        let links = links.map(|(peer, count)| LinkMeter {
            peer: peer.clone(),
            volume: count.total,
        });
        Meters {
            epoch: self.epoch,
            links: links.collect(),
        }
    }

    fn saved(&self) -> Saved {
        let links = self.links.iter();
        Saved {
            epoch: self.epoch,
            links: links.map(|(peer, count)| (peer.clone(), count.total)).collect(),
        }
    }

    fn saved_earlier(&self) -> SavedEarlier {
        let mut all: Vec<_> = self.earlier.iter().collect();
        all.sort_by_key(|(_, (number, _))| *number);
        let links = all.into_iter().map(|(peer, (_, volume))| LinkMeter {
            peer: peer.clone(),
            volume: *volume,
        });
        SavedEarlier {
            epoch: self.epoch,
            links: links.collect(),
        }
    }
}

/// The totals, and their files.
#[derive(Debug)]
pub(crate) struct MeterFile {
    state: StateDir,
    meter: Meter,
    written: Option<Instant>,
    /// Whether the file of peers that are not reported any more has to be written. A failed write sets it again.
    earlier_changed: Arc<AtomicBool>,
}

impl MeterFile {
    /// Continues the totals of the files. If there is none, or it cannot be read, begins to count at 0.
    pub(crate) fn open(state: StateDir) -> Self {
        let saved = read(&state, file::METERS).unwrap_or_else(|| Saved {
            epoch: now_in_milliseconds(),
            links: BTreeMap::new(),
        });
        let earlier = read(&state, file::EARLIER_METERS).unwrap_or_default();
        Self {
            state,
            meter: Meter::new(saved, earlier, Instant::now()),
            written: None,
            earlier_changed: Arc::default(),
        }
    }

    /// Adds what has passed links since the last call, and returns the totals. `config` is the configuration in force;
    /// `None`: there is none yet, so it is not known which peers it has.
    pub(crate) fn update(
        &mut self,
        counted: BTreeMap<AgentId, Volume>,
        config: Option<&AgentConfig>,
        is_connected: bool,
    ) -> Meters {
        let has = |peer: &AgentId| {
            let found = |config: &AgentConfig| config.links.binary_search_by(|link| link.peer.cmp(peer)).is_ok();
            config.is_none_or(found)
        };
        if self.meter.update(counted, has, is_connected, Instant::now()) {
            self.earlier_changed.store(true, Ordering::Relaxed);
        }
        self.report()
    }

    /// The totals as of the last update.
    pub(crate) fn report(&self) -> Meters {
        self.meter.report(Instant::now())
    }

    /// A write of the files that is due: they were not written for 10 s. The caller runs it where it may block.
    pub(crate) fn due(&mut self) -> Option<impl FnOnce() + Send + 'static> {
        if self.written.is_some_and(|written| written.elapsed() < INTERVAL) {
            return None;
        }
        self.written = Some(Instant::now());
        Some(self.write())
    }

    /// Writes the files now, at the end of the agent. Blocks.
    pub(crate) fn flush(&self) {
        self.write()();
    }

    /// A write of the totals as of now. A failure is logged, and a later write may succeed.
    fn write(&self) -> impl FnOnce() + Send + use<> {
        let (state, saved, changed) = (self.state.clone(), self.meter.saved(), self.earlier_changed.clone());
        let earlier = changed
            .swap(false, Ordering::Relaxed)
            .then(|| self.meter.saved_earlier());
        move || {
            // A peer leaves one file only after the other one has it, so that a crash loses no total.
            let before = earlier.map_or(Ok(()), |earlier| write(&state, file::EARLIER_METERS, &earlier));
            let before = before.inspect_err(|_| changed.store(true, Ordering::Relaxed));
            if let Err(e) = before.and_then(|()| write(&state, file::METERS, &saved)) {
                tracing::warn!(error = %format!("{e:#}"), "totals of links not stored; will retry");
            }
        }
    }
}

/// Reads a file. `None`: there is none, or it cannot be read, which is logged.
fn read<T: serde::de::DeserializeOwned>(state: &StateDir, name: &str) -> Option<T> {
    let read = state.read(name).and_then(|bytes| {
        let saved = bytes.map(|bytes| serde_json::from_slice(&bytes)).transpose();
        saved.context("malformed")
    });
    read.unwrap_or_else(|e| {
        tracing::warn!(error = %format!("{e:#}"), file = name, "totals of links not read: they begin at 0");
        None
    })
}

fn write(state: &StateDir, name: &str, saved: &impl Serialize) -> anyhow::Result<()> {
    state.write(name, &serde_json::to_vec(saved)?)
}

fn now_in_milliseconds() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
