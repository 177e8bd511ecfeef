//! Active queue management in the style of CoDel (RFC 8289), which keeps the queue in front of a lane short: a ping
//! must not wait behind a bulk transfer.
//!
//! CoDel acts on a standing queue, i.e. one in which even the shortest delay within an interval is too long. To measure
//! the delay of each packet would cost a clock reading for each packet. So this implementation only notes when the
//! queue is empty: a queue that was empty once during an interval is not a standing one. While the queue is a standing
//! one, long packets are marked (RFC 3168) or, if their senders do not support ECN, dropped. The rate of marks and
//! drops grows until the queue is empty. Short packets (acknowledgements, echoes, DNS, voice) are neither marked nor
//! dropped, because they do not fill a queue.

use crate::packet::{self, Ecn};
use std::time::{Duration, Instant};

/// A queue that was not empty for this long is a standing queue. CoDel has an interval of 100 ms, but tolerates a short
/// permanent queue. This implementation tolerates none: the queue must be empty once in each interval. A much shorter
/// interval costs throughput: with 8 ms, the throughput was lower by a tenth.
const INTERVAL: Duration = Duration::from_millis(50);

/// Packets shorter than this pass unchanged, in bytes. Packets of bulk transfers are longer.
const MIN_LEN: usize = 512;

/// The treatment of a packet that leaves the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Advice {
    /// Forward the packet unchanged.
    Keep,
    /// Forward the packet. It has the CE mark, so that its sender slows down.
    Marked,
    /// Drop the packet, because its sender does not support ECN.
    Drop,
}

/// The state of one queue. The engine passes each packet that leaves the queue to [`advise`](Self::advise), and reports
/// each time at which the queue is empty.
#[derive(Debug, Default)]
pub(crate) struct Codel {
    /// Time of the first packet since the queue was last empty; `None`: no packet has come since then.
    not_empty_since: Option<Instant>,
    /// Time of the next mark or drop. `None`: the queue is not a standing one.
    next_drop: Option<Instant>,
    /// Number of marks and drops in this standing queue. If it follows soon after an earlier one, the number does not
    /// start from zero, but near the earlier queue's number.
    count: u32,
    /// The time at which the last standing queue ended, and the value of `count` at that time.
    last_run: Option<(Instant, u32)>,
}

impl Codel {
    /// Records that the queue is empty at `now`. If it was a standing queue, it is none any more.
    pub(crate) fn drained(&mut self, now: Instant) {
        if self.next_drop.take().is_some() {
            self.last_run = Some((now, self.count));
        }
        self.not_empty_since = None;
    }

    /// Decides about a packet that leaves the queue at `now`, and sets the CE mark in the packet if that is the
    /// decision. The packet must have been parsed.
    pub(crate) fn advise(&mut self, packet: &mut [u8], now: Instant) -> Advice {
        let since = *self.not_empty_since.get_or_insert(now);
        if packet.len() < MIN_LEN || now.saturating_duration_since(since) < INTERVAL {
            return Advice::Keep;
        }
        match self.next_drop {
            None => {
                // As in RFC 8289, if a queue becomes a standing one again within 16 intervals, the rate of drops starts
                // near its last value, because the senders are probably the same.
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

    /// The number of long packets that are dropped in `steps` steps of 0.5 ms, during which the queue is never empty.
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
