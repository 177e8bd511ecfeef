//! Counts what passes each link, over restarts of the agent (Meter-6, D39). The file is written every 10 seconds, so a crash
//! loses at most what these seconds have added, and nothing is counted twice.

use crate::state::{StateDir, file};
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tombolo_proto::id::AgentId;
use tombolo_proto::status::{LinkMeter, LinkStatus, Meters, Volume};

/// Shortest time between two writes of the file.
const INTERVAL: Duration = Duration::from_secs(10);

/// The file [`file::METERS`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Saved {
    /// [`Meters::epoch`].
    pub epoch: u64,
    /// What has passed the links with each peer.
    pub links: BTreeMap<AgentId, Volume>,
}

/// The totals of all links. The counters of a link begin at 0 with each start of the agent, and with each new link to the
/// same peer.
#[derive(Debug)]
pub(crate) struct Meter {
    epoch: u64,
    links: BTreeMap<AgentId, Count>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    /// What earlier links with the peer have counted.
    before: Volume,
    /// The counters of the link now, or of the last link that there was.
    now: Volume,
}

impl Meter {
    fn new(saved: Saved) -> Self {
        let count = |before| Count {
            before,
            now: Volume::default(),
        };
        Self {
            epoch: saved.epoch,
            links: saved
                .links
                .into_iter()
                .map(|(peer, before)| (peer, count(before)))
                .collect(),
        }
    }

    /// Takes over the counters of the present links.
    fn update(&mut self, links: &[LinkStatus]) {
        for link in links {
            let now = Volume {
                rx_bytes: link.rx_bytes,
                tx_bytes: link.tx_bytes,
                rx_packets: link.rx_packets,
                tx_packets: link.tx_packets,
            };
            if now.is_empty() && !self.links.contains_key(&link.peer) {
                continue;
            }
            let count = self.links.entry(link.peer.clone()).or_default();
            if now.is_behind(count.now) {
                count.before = count.before.plus(count.now);
            }
            count.now = now;
        }
    }

    fn totals(&self) -> impl Iterator<Item = (&AgentId, Volume)> {
        let links = self.links.iter();
        links.map(|(peer, count)| (peer, count.before.plus(count.now)))
    }

    fn report(&self) -> Meters {
        let links = self.totals().map(|(peer, volume)| LinkMeter {
            peer: peer.clone(),
            volume,
        });
        Meters {
            epoch: self.epoch,
            links: links.collect(),
        }
    }

    fn saved(&self) -> Saved {
        Saved {
            epoch: self.epoch,
            links: self.totals().map(|(peer, volume)| (peer.clone(), volume)).collect(),
        }
    }
}

/// The totals, and their file.
#[derive(Debug)]
pub(crate) struct MeterFile {
    state: StateDir,
    meter: Meter,
    written: Option<Instant>,
}

impl MeterFile {
    /// Continues the totals of the file. If there is none, or it cannot be read, begins to count at 0.
    pub(crate) fn open(state: StateDir) -> Self {
        let read = state.read(file::METERS).and_then(|bytes| {
            let saved = bytes.map(|bytes| serde_json::from_slice(&bytes)).transpose();
            saved.context("malformed")
        });
        let saved = read.unwrap_or_else(|e| {
            tracing::warn!(error = %format!("{e:#}"), file = file::METERS, "totals of links not read: they begin at 0");
            None
        });
        let saved = saved.unwrap_or_else(|| Saved {
            epoch: now_in_milliseconds(),
            links: BTreeMap::new(),
        });
        Self {
            state,
            meter: Meter::new(saved),
            written: None,
        }
    }

    /// Takes over the counters of the present links, and returns the totals.
    pub(crate) fn update(&mut self, links: &[LinkStatus]) -> Meters {
        self.meter.update(links);
        self.meter.report()
    }

    /// The totals as of the last update.
    pub(crate) fn report(&self) -> Meters {
        self.meter.report()
    }

    /// A write of the file that is due: it was not written for 10 s. The caller runs it where it may block.
    pub(crate) fn due(&mut self) -> Option<impl FnOnce() + Send + 'static> {
        if self.written.is_some_and(|written| written.elapsed() < INTERVAL) {
            return None;
        }
        self.written = Some(Instant::now());
        let (state, saved) = (self.state.clone(), self.meter.saved());
        Some(move || write(&state, &saved))
    }

    /// Writes the file now, at the end of the agent. Blocks.
    pub(crate) fn flush(&self) {
        write(&self.state, &self.meter.saved());
    }
}

/// Writes the file. A failure is logged, and a later write may succeed.
fn write(state: &StateDir, saved: &Saved) {
    let written = serde_json::to_vec(saved).map_err(anyhow::Error::from);
    let written = written.and_then(|bytes| state.write(file::METERS, &bytes));
    if let Err(e) = written {
        tracing::warn!(error = %format!("{e:#}"), "totals of links not stored; will retry");
    }
}

fn now_in_milliseconds() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(peer: &str, bytes: u64) -> LinkStatus {
        LinkStatus {
            rx_bytes: bytes,
            tx_bytes: 2 * bytes,
            rx_packets: bytes / 100,
            tx_packets: bytes / 50,
            ..LinkStatus::new(AgentId::new(peer).unwrap())
        }
    }

    fn received(meters: &Meters) -> Vec<(&str, u64)> {
        let links = meters.links.iter();
        links.map(|link| (link.peer.as_str(), link.volume.rx_bytes)).collect()
    }

    #[test]
    fn meter_6_totals_go_on_over_new_links_and_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path());
        let mut meters = MeterFile::open(state.clone());
        let first = meters.update(&[link("a", 1000), link("b", 0)]);
        assert_eq!(received(&first), [("a", 1000)], "nothing has passed the other link");
        meters.due().unwrap()();
        assert!(meters.due().is_none(), "once in 10 s");
        // The link is gone, and there is a new one with the same peer.
        assert_eq!(received(&meters.update(&[])), [("a", 1000)]);
        assert_eq!(received(&meters.update(&[link("a", 300)])), [("a", 1300)]);
        // After a crash, what was not written is lost, and nothing else.
        let mut crashed = MeterFile::open(state.clone());
        let after = crashed.update(&[link("a", 50)]);
        assert_eq!((received(&after), after.epoch), (vec![("a", 1050)], first.epoch));
        meters.flush();
        let mut stopped = MeterFile::open(state.clone());
        assert_eq!(received(&stopped.update(&[link("a", 50)])), [("a", 1350)]);

        // A file that cannot be read is replaced, and the totals have another epoch.
        state.write(file::METERS, b"{").unwrap();
        std::thread::sleep(Duration::from_millis(2));
        let mut lost = MeterFile::open(state);
        let after = lost.update(&[link("a", 50)]);
        assert_eq!(received(&after), [("a", 50)]);
        assert_ne!(after.epoch, first.epoch);
    }
}
