//! The bytes that have passed the tunnels of a VPN gateway in the last minute (G5).

use std::collections::BTreeMap;
use std::time::Instant;
use tombolo_proto::config::{AgentConfig, Relation};
use tombolo_proto::id::AgentId;
use tombolo_proto::status::{LinkMeter, Meters};

/// Number of seconds in the sum.
const SECONDS: usize = 60;

/// A sum over the last minute, in steps of a second.
#[derive(Debug)]
pub(crate) struct LastMinute {
    /// Bytes of each second, at the position of the second's number modulo [`SECONDS`].
    bytes: [u64; SECONDS],
    /// The present second, since the first update.
    second: u64,
    began: Option<Instant>,
    /// The total of each tunnel at the last update.
    known: BTreeMap<AgentId, u64>,
}

impl Default for LastMinute {
    fn default() -> Self {
        Self {
            bytes: [0; SECONDS],
            second: 0,
            began: None,
            known: BTreeMap::new(),
        }
    }
}

impl LastMinute {
    /// Adds what has passed the tunnels of `config` since the last update. What had passed a tunnel before its first
    /// update does not count, because it is unknown when that was.
    pub(crate) fn update(&mut self, config: &AgentConfig, meters: &Meters, now: Instant) {
        let is_tunnel = |peer: &AgentId| {
            let found = config.links.binary_search_by(|link| link.peer.cmp(peer));
            let relation = found.map(|at| &config.links[at].relation);
            matches!(relation, Ok(Relation::Connection { .. } | Relation::Site { .. }))
        };
        let tunnels = meters.links.iter().filter(|link| is_tunnel(&link.peer));
        let total = |link: &LinkMeter| link.volume.rx_bytes.saturating_add(link.volume.tx_bytes);
        let totals: BTreeMap<AgentId, u64> = tunnels.map(|link| (link.peer.clone(), total(link))).collect();
        let grown = |(peer, total): (&AgentId, &u64)| Some(total.saturating_sub(*self.known.get(peer)?));
        let added: u64 = totals.iter().filter_map(grown).sum();
        self.add(added, now);
        self.known = totals;
    }

    fn add(&mut self, bytes: u64, now: Instant) {
        let began = *self.began.get_or_insert(now);
        let second = now.saturating_duration_since(began).as_secs().max(self.second);
        for passed in (self.second + 1..=second).take(SECONDS) {
            self.bytes[position(passed)] = 0;
        }
        self.second = second;
        let slot = &mut self.bytes[position(second)];
        *slot = slot.saturating_add(bytes);
    }

    /// The bytes of the last minute, as of the last update.
    pub(crate) fn sum(&self) -> u64 {
        self.bytes.iter().fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }
}

#[expect(clippy::cast_possible_truncation, reason = "below 60")]
const fn position(second: u64) -> usize {
    (second % SECONDS as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// G5: each byte counts for a minute, also if updates are rare.
    #[test]
    fn g5_a_byte_counts_for_a_minute() {
        let (mut sum, begin) = (LastMinute::default(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        sum.add(5, at(0));
        sum.add(7, at(30));
        sum.add(1, at(59));
        assert_eq!(sum.sum(), 13);
        sum.add(0, at(60));
        assert_eq!(sum.sum(), 8);
        sum.add(2, at(95));
        assert_eq!(sum.sum(), 3);
        sum.add(4, at(1000));
        assert_eq!(sum.sum(), 4);
        // The clock of another thread may be behind.
        sum.add(1, at(10));
        assert_eq!(sum.sum(), 5);
    }
}
