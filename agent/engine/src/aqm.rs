//! Keeping the queue in front of a lane short, as CoDel does it (RFC 8289), so that a ping does not wait behind a bulk
//! transfer.
//!
//! CoDel acts on a queue that stands: the least time that a packet waited within an interval is too long. Here that is
//! seen without a clock on each packet: a queue that was found empty within the interval does not stand. While it stands,
//! one long packet after the other is marked (RFC 3168) where its sender understands that, or dropped, at a growing rate,
//! until the senders have slowed down. Short packets (acknowledgements, echoes, names, voice) are left alone: they are
//! not what fills a queue.

use crate::packet::{self, Ecn};
use std::time::{Duration, Instant};

/// A queue that was not empty for so long stands. CoDel's interval is 100 ms, an ocean's round trip, and it tolerates a
/// short queue for ever; this one has to see it empty, which costs throughput if it is asked for too often (a tenth at 8 ms).
const INTERVAL: Duration = Duration::from_millis(50);

/// Shorter packets are left alone, bytes.
const LONG: usize = 512;

/// What to do with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Advice {
    /// Nothing.
    Keep,
    /// It was marked: its sender will slow down.
    Marked,
    /// Drop it.
    Drop,
}

/// The state of one queue.
#[derive(Debug, Default)]
pub(crate) struct Codel {
    /// When it was last empty, since it was not.
    standing: Option<Instant>,
    /// When the next packet is to go; none: not dropping.
    next: Option<Instant>,
    /// How many went since it began to stand.
    count: u32,
    /// When dropping ended, and at which count.
    left: Option<(Instant, u32)>,
}

impl Codel {
    /// The queue is empty.
    pub(crate) fn drained(&mut self, now: Instant) {
        if self.next.take().is_some() {
            self.left = Some((now, self.count));
        }
        self.standing = None;
    }

    /// What to do with a packet that left the queue.
    pub(crate) fn advise(&mut self, packet: &mut [u8], now: Instant) -> Advice {
        let since = *self.standing.get_or_insert(now);
        if packet.len() < LONG || now.saturating_duration_since(since) < INTERVAL {
            return Advice::Keep;
        }
        match self.next {
            None => {
                // Soon after the last time it goes on about where it was.
                let soon = |(at, _): &(Instant, u32)| now.saturating_duration_since(*at) < 16 * INTERVAL;
                self.count = self
                    .left
                    .filter(soon)
                    .map_or(1, |(_, count)| count.saturating_sub(2).max(1));
            }
            Some(next) if next <= now => self.count = self.count.saturating_add(1),
            Some(_) => return Advice::Keep,
        }
        self.next = Some(now + INTERVAL.div_f64(f64::from(self.count).sqrt()));
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

    /// How many of the long packets that leave a standing queue in so many steps are dropped.
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
