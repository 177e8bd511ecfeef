//! Active queue management in the style of CoDel (RFC 8289), which keeps the queue in front of a lane short: a ping
//! must not wait behind a bulk transfer.
//!
//! CoDel acts on a standing queue, i.e. one in which even the shortest delay of an interval is too long. This
//! implementation needs no clock reading per packet: a queue that was empty during the interval is not a standing one.
//! While a queue stands, long packets are marked (RFC 3168) if their senders support ECN, or dropped, at a growing
//! rate, until the senders have slowed down. Short packets (acknowledgements, echoes, DNS, voice) pass unchanged,
//! because they do not fill a queue.

use crate::packet::{self, Ecn};
use std::time::{Duration, Instant};

/// A queue that was not empty for this long is a standing queue. CoDel's interval is 100 ms, an intercontinental
/// round-trip time, but CoDel tolerates a short permanent queue. This implementation requires an empty queue, and a
/// shorter interval costs throughput: a tenth at 8 ms.
const INTERVAL: Duration = Duration::from_millis(50);

/// Packets below this length pass unchanged, in bytes.
const MIN_LEN: usize = 512;

/// The treatment of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Advice {
    /// Forward it.
    Keep,
    /// Forward it; it is marked now, so that its sender slows down.
    Marked,
    /// Drop it.
    Drop,
}

/// The state of one queue.
#[derive(Debug, Default)]
pub(crate) struct Codel {
    /// Time since which the queue has not been empty; `None`: it is empty.
    not_empty_since: Option<Instant>,
    /// Time of the next mark or drop. `None`: the queue does not stand.
    next_drop: Option<Instant>,
    /// Number of marks and drops since the queue stands.
    count: u32,
    /// Time and count at the end of the last standing queue.
    last_run: Option<(Instant, u32)>,
}

impl Codel {
    /// Records that the queue is empty.
    pub(crate) fn drained(&mut self, now: Instant) {
        if self.next_drop.take().is_some() {
            self.last_run = Some((now, self.count));
        }
        self.not_empty_since = None;
    }

    /// Decides on a packet that leaves the queue, and marks it if that is the decision.
    pub(crate) fn advise(&mut self, packet: &mut [u8], now: Instant) -> Advice {
        let since = *self.not_empty_since.get_or_insert(now);
        if packet.len() < MIN_LEN || now.saturating_duration_since(since) < INTERVAL {
            return Advice::Keep;
        }
        match self.next_drop {
            None => {
                // A queue that stands again soon continues near its last rate, as in RFC 8289.
                let soon = |(at, _): &(Instant, u32)| now.saturating_duration_since(*at) < 16 * INTERVAL;
                self.count = self
                    .last_run
                    .filter(soon)
                    .map_or(1, |(_, count)| count.saturating_sub(2).max(1));
            }
            Some(next) if next <= now => self.count = self.count.saturating_add(1),
            Some(_) => return Advice::Keep,
        }
        self.next_drop = Some(now + INTERVAL.div_f64(f64::from(self.count).sqrt()));
        match packet::ecn(packet) {
            Ecn::Capable => {
                packet::mark(packet);
                Advice::Marked
            }
            Ecn::Marked => Advice::Marked,
            Ecn::Not => Advice::Drop,
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the clock is the test's")]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_micros(500);

    fn packet(len: usize, tos: u8) -> Vec<u8> {
        let mut packet = vec![0; len];
        (packet[0], packet[1]) = (0x45, tos);
        packet
    }

    /// Number of long packets dropped in `steps` steps while the queue stands.
    fn drops(codel: &mut Codel, now: &mut Instant, steps: u32) -> usize {
        let mut dropped = 0;
        for _ in 0..steps {
            *now += STEP;
            assert_eq!(codel.advise(&mut packet(64, 0), *now), Advice::Keep, "a short packet");
            dropped += usize::from(codel.advise(&mut packet(1400, 0), *now) == Advice::Drop);
        }
        dropped
    }

    #[test]
    fn a_queue_that_empties_is_left_alone() {
        let (mut codel, mut now) = (Codel::default(), Instant::now());
        for _ in 0..100 {
            assert_eq!(drops(&mut codel, &mut now, 70), 0);
            codel.drained(now);
        }
    }

    #[test]
    fn a_standing_queue_loses_more_and_more_until_it_empties() {
        let (mut codel, mut now) = (Codel::default(), Instant::now());
        assert_eq!(drops(&mut codel, &mut now, 95), 0);
        let (first, second) = (drops(&mut codel, &mut now, 400), drops(&mut codel, &mut now, 400));
        assert!(first >= 5 && second > first, "{first}, {second}");
        codel.drained(now);
        assert_eq!(drops(&mut codel, &mut now, 95), 0);
    }

    #[test]
    fn who_understands_marks_is_marked() {
        let (mut codel, mut now) = (Codel::default(), Instant::now());
        codel.advise(&mut packet(1400, 2), now);
        now += INTERVAL;
        let mut capable = packet(1400, 2);
        assert_eq!(codel.advise(&mut capable, now), Advice::Marked);
        assert_eq!(packet::ecn(&capable), Ecn::Marked);
    }
}
