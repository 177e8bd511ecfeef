//! How one end of a link tells the other a table of routes (D11): the whole of it, with its digest, until the other end
//! says that it has it. Sans-IO; loss, reordering and restarts of either end heal by themselves.
//!
//! ```text
//! teller                          listener
//!   parts of table d ──────────────▶  puts them together
//!   ◀────────────────────── have d    at once, and every second
//! ```
//! The listener does not trust the other end to be sparing. It reads advertisements only where [`accept`](RouteSync::accept) says so, keeps
//! one complete table at most, and hands tables over at a [`Pace`] that a sender slows down by changing often.

use super::AdvertisementStats;
use crate::routing::Pace;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of a table in one message: with everything around it less than the narrowest path carries whole.
const PART: usize = 1000;

/// Longest table, bytes: [`MAX_ROUTES`](crate::routing::MAX_ROUTES) routes of 130 bytes each.
const LONGEST: usize = 512 << 10;

/// Parts in one go; the next go is a step later.
const AT_ONCE: usize = 64;

/// A table that nobody confirmed is told again after so long, and each time after twice as long.
const AGAIN: Duration = Duration::from_millis(200);
const SELDOM: Duration = Duration::from_secs(3);

/// A listener says what it has so often.
const SAY: Duration = Duration::from_secs(1);

/// Shortest time between two confirmations, however often the received table changes.
const SAY_AGAIN: Duration = Duration::from_millis(20);

/// Bytes before the part of a table: kind, digest, index, count.
const HEAD: usize = 1 + 8 + 2 + 2;

/// Longest message, bytes.
pub(super) const MAX_MESSAGE_LEN: usize = HEAD + PART;

const TABLE: u8 = 1;
const HAVE: u8 = 2;

/// Stands for the digest where there is no table. That a table has it is as likely as that it has any other.
const NOTHING: u64 = 0;

/// Both sides of one link's exchange.
#[derive(Debug, Default)]
pub(super) struct RouteSync {
    /// What this end tells, with its digest.
    mine: Option<(u64, Arc<[u8]>)>,
    /// What the other end said it has.
    confirmed: Option<u64>,
    /// The next part to send, and when the last one went.
    next: usize,
    sent: Option<Instant>,
    again: Duration,
    /// Whether the other end may advertise routes.
    accepts: bool,
    /// Digest of the newest complete table; `None` until one has been received.
    have: Option<u64>,
    /// When that was said, and whether it is to be said once more.
    said: Option<Instant>,
    say: bool,
    /// Parts of a table that is not complete.
    coming: Option<Coming>,
    /// The newest complete table, while it is not handed over.
    waiting: Option<Vec<u8>>,
    /// What was handed over last, by digest.
    handed: Option<u64>,
    pace: Pace,
}

#[derive(Debug)]
struct Coming {
    digest: u64,
    parts: Vec<Option<Box<[u8]>>>,
    missing: usize,
}

impl RouteSync {
    /// Whether the other end may advertise routes from now on. What it advertises otherwise is not read.
    pub(super) fn accept(&mut self, accepts: bool) {
        self.accepts = accepts;
        if !accepts {
            (self.coming, self.waiting) = (None, None);
            // If it may again, it is asked for everything.
            (self.have, self.handed) = (None, None);
        }
    }

    /// From now on this is what the other end is to be told.
    pub(super) fn advertise(&mut self, table: Arc<[u8]>) {
        let digest = digest(&table);
        if self.mine.as_ref().is_none_or(|(d, _)| *d != digest) && table.len() <= LONGEST {
            self.mine = Some((digest, table));
            (self.next, self.again) = (0, AGAIN);
        }
    }

    /// What is to be sent now.
    pub(super) fn poll_messages(&mut self, now: Instant, send: &mut dyn FnMut(&[u8])) {
        if let Some((digest, table)) = self.mine.as_ref().filter(|(d, _)| self.confirmed != Some(*d)) {
            let count = table.len().div_ceil(PART).max(1);
            let due = |sent| now.saturating_duration_since(sent) >= self.again;
            if self.next >= count && self.sent.is_none_or(due) {
                self.next = 0;
                self.again = (2 * self.again).min(SELDOM);
            }
            let mut message = Vec::with_capacity(MAX_MESSAGE_LEN);
            // A table without bytes has one part, which is empty.
            let parts = table.chunks(PART).chain(table.is_empty().then_some(&[][..]));
            for (index, part) in parts.enumerate().skip(self.next).take(AT_ONCE) {
                #[expect(clippy::cast_possible_truncation, reason = "LONGEST / PART fits")]
                let (index, count) = (index as u16, count as u16);
                message.clear();
                message.push(TABLE);
                message.extend_from_slice(&digest.to_be_bytes());
                message.extend_from_slice(&index.to_be_bytes());
                message.extend_from_slice(&count.to_be_bytes());
                message.extend_from_slice(part);
                send(&message);
                self.next += 1;
                self.sent = Some(now);
            }
        }
        self.poll_confirmation(now, send);
    }

    /// Says what this end has, if that is due.
    pub(super) fn poll_confirmation(&mut self, now: Instant, send: &mut dyn FnMut(&[u8])) {
        let pause = if self.say { SAY_AGAIN } else { SAY };
        let due = |said| now.saturating_duration_since(said) >= pause;
        // Whoever has nothing says so as well: after a restart the other end would believe that everything is there.
        let have = self.have.or(self.accepts.then_some(NOTHING));
        if let Some(have) = have.filter(|_| self.said.is_none_or(due)) {
            let mut message = [HAVE; 9];
            message[1..].copy_from_slice(&have.to_be_bytes());
            send(&message);
            (self.said, self.say) = (Some(now), false);
        }
    }

    /// A message of the other end.
    pub(super) fn receive(&mut self, message: &[u8], now: Instant, stats: &mut AdvertisementStats) {
        let Some((kind, rest)) = message.split_first() else {
            return stats.malformed += 1;
        };
        let Some((told, rest)) = rest.split_first_chunk() else {
            return stats.malformed += 1;
        };
        let told = u64::from_be_bytes(*told);
        match *kind {
            HAVE if self.mine.is_some() => self.confirmed = Some(told),
            TABLE if self.accepts => {
                if self.part(told, rest, now, stats).is_none() {
                    stats.malformed += 1;
                }
            }
            HAVE | TABLE => stats.refused += 1,
            _ => stats.malformed += 1,
        }
    }

    /// A part of a table; none: there is no such part.
    fn part(&mut self, told: u64, message: &[u8], now: Instant, stats: &mut AdvertisementStats) -> Option<()> {
        let (index, rest) = message.split_first_chunk()?;
        let (count, part) = rest.split_first_chunk()?;
        let index = usize::from(u16::from_be_bytes(*index));
        let count = usize::from(u16::from_be_bytes(*count));
        if index >= count || count > LONGEST.div_ceil(PART) || part.len() > PART {
            return None;
        }
        if self.have == Some(told) {
            // Said once more: what was said before got lost.
            self.say = true;
            return Some(());
        }
        let coming = match &mut self.coming {
            Some(coming) if coming.digest == told && coming.parts.len() == count => coming,
            other => other.insert(Coming {
                digest: told,
                parts: vec![None; count],
                missing: count,
            }),
        };
        let place = coming.parts.get_mut(index)?;
        if place.is_none() {
            *place = Some(part.into());
            coming.missing = coming.missing.saturating_sub(1);
        }
        if coming.missing > 0 {
            return Some(());
        }
        let parts = self.coming.take()?.parts;
        let table = parts.into_iter().flatten().collect::<Vec<_>>().concat();
        if digest(&table) != told {
            return None;
        }
        stats.received += 1;
        (self.have, self.say) = (Some(told), true);
        self.pace.changed(now);
        // The one that waited is of no interest any more; nor is this one, if it is what was before.
        let replaced = self.waiting.take().is_some();
        stats.superseded += u64::from(replaced);
        if self.handed == Some(told) {
            stats.superseded += 1;
        } else {
            self.waiting = Some(table);
        }
        Some(())
    }

    /// The table to act on now, if there is one and the pace allows it.
    pub(super) fn next_table(&mut self, now: Instant, stats: &mut AdvertisementStats) -> Option<Vec<u8>> {
        let table = self.waiting.take_if(|_| self.pace.allows(now))?;
        self.pace.used(now);
        self.handed = self.have;
        stats.applied += 1;
        Some(table)
    }

    /// Whether a table waits for its time.
    pub(super) fn has_table(&self) -> bool {
        self.waiting.is_some()
    }
}

/// FNV-1a: the same on every machine. Against chance, not against enemies: the link is authenticated.
fn digest(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests;
