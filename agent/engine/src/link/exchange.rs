//! How one end of a link tells the other a table of routes (D11): the whole of it, with its digest, until the other end
//! says that it has it. Sans-IO; loss, reordering and restarts of either end heal by themselves.
//!
//! ```text
//! teller                          listener
//!   parts of table d ──────────────▶  puts them together
//!   ◀────────────────────── have d    at once, and every second
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of a table in one message: with everything around it less than the narrowest path carries whole.
const PART: usize = 1000;

/// Longest table, bytes: some 30,000 routes.
const LONGEST: usize = 1 << 20;

/// Parts in one go; the next go is a step later.
const AT_ONCE: usize = 64;

/// A table that nobody confirmed is told again after so long, and each time after twice as long.
const AGAIN: Duration = Duration::from_millis(200);
const SELDOM: Duration = Duration::from_secs(3);

/// A listener says what it has so often.
const SAY: Duration = Duration::from_secs(1);

/// Bytes before the part of a table: kind, digest, index, count.
const HEAD: usize = 1 + 8 + 2 + 2;

/// Longest message, bytes.
pub(super) const LONGEST_MESSAGE: usize = HEAD + PART;

const TABLE: u8 = 1;
const HAVE: u8 = 2;

/// Both sides of one link's exchange.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    /// What this end tells, with its digest.
    mine: Option<(u64, Arc<[u8]>)>,
    /// What the other end said it has.
    confirmed: Option<u64>,
    /// The next part to send, and when the last one went.
    next: usize,
    sent: Option<Instant>,
    again: Duration,
    /// What this end was told, by digest; none: nothing ever.
    have: Option<u64>,
    said: Option<Instant>,
    /// Parts of a table that is not complete.
    coming: Option<Coming>,
}

#[derive(Debug)]
struct Coming {
    digest: u64,
    parts: Vec<Option<Box<[u8]>>>,
    missing: usize,
}

impl Exchange {
    /// From now on this is what the other end is to be told.
    pub(super) fn tell(&mut self, table: Arc<[u8]>) {
        let digest = digest(&table);
        if self.mine.as_ref().is_none_or(|(d, _)| *d != digest) && table.len() <= LONGEST {
            self.mine = Some((digest, table));
            (self.next, self.again) = (0, AGAIN);
        }
    }

    /// What is to be sent now.
    pub(super) fn messages(&mut self, now: Instant, mut send: impl FnMut(&[u8])) {
        if let Some((digest, table)) = self.mine.as_ref().filter(|(d, _)| self.confirmed != Some(*d)) {
            let count = table.len().div_ceil(PART).max(1);
            let due = |sent| now.saturating_duration_since(sent) >= self.again;
            if self.next >= count && self.sent.is_none_or(due) {
                self.next = 0;
                self.again = (2 * self.again).min(SELDOM);
            }
            let mut message = [0; LONGEST_MESSAGE];
            for index in (self.next..count).take(AT_ONCE) {
                let part = &table[index * PART..table.len().min((index + 1) * PART)];
                message[0] = TABLE;
                message[1..9].copy_from_slice(&digest.to_be_bytes());
                #[expect(clippy::cast_possible_truncation, reason = "LONGEST / PART fits")]
                let (index, count) = (index as u16, count as u16);
                message[9..11].copy_from_slice(&index.to_be_bytes());
                message[11..13].copy_from_slice(&count.to_be_bytes());
                message[HEAD..HEAD + part.len()].copy_from_slice(part);
                send(&message[..HEAD + part.len()]);
                self.next += 1;
                self.sent = Some(now);
            }
        }
        let due = |said| now.saturating_duration_since(said) >= SAY;
        if let Some(have) = self.have.filter(|_| self.said.is_none_or(due)) {
            let mut message = [HAVE; 9];
            message[1..].copy_from_slice(&have.to_be_bytes());
            send(&message);
            self.said = Some(now);
        }
    }

    /// A message of the other end. Gives the table that it completes, if that is news.
    pub(super) fn take(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        let told = u64::from_be_bytes(*message.get(1..)?.first_chunk()?);
        match message[0] {
            HAVE => {
                self.confirmed = Some(told);
                None
            }
            TABLE => {
                let number = |at: usize| Some(usize::from(u16::from_be_bytes(*message.get(at..)?.first_chunk()?)));
                let (index, count, part) = (number(9)?, number(11)?, message.get(HEAD..)?);
                self.part(told, index, count, part)
            }
            _ => None,
        }
    }

    fn part(&mut self, told: u64, index: usize, count: usize, part: &[u8]) -> Option<Vec<u8>> {
        if index >= count || count > LONGEST.div_ceil(PART) || part.len() > PART {
            return None;
        }
        if self.have == Some(told) {
            // Said once more: what was said before got lost.
            self.said = None;
            return None;
        }
        let coming = match &mut self.coming {
            Some(coming) if coming.digest == told && coming.parts.len() == count => coming,
            other => other.insert(Coming {
                digest: told,
                parts: (0..count).map(|_| None).collect(),
                missing: count,
            }),
        };
        if coming.parts[index].is_none() {
            coming.parts[index] = Some(part.into());
            coming.missing -= 1;
        }
        if coming.missing > 0 {
            return None;
        }
        let table = self
            .coming
            .take()?
            .parts
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .concat();
        if digest(&table) != told {
            return None;
        }
        (self.have, self.said) = (Some(told), None);
        Some(table)
    }
}

/// FNV-1a: the same on every machine. Against chance, not against enemies: the link is authenticated.
fn digest(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the clock is the test's")]
mod tests {
    use super::*;

    /// Runs both ends for `steps` of 50 ms; every message is lost that `lost` says so of. Gives what `b` took.
    fn run(
        a: &mut Exchange,
        b: &mut Exchange,
        now: &mut Instant,
        steps: u32,
        mut lost: impl FnMut() -> bool,
    ) -> Vec<Vec<u8>> {
        let mut taken = Vec::new();
        for _ in 0..steps {
            let (mut to_a, mut to_b) = (Vec::new(), Vec::new());
            a.messages(*now, |m| to_b.push(m.to_vec()));
            for m in to_b.iter().filter(|_| !lost()) {
                taken.extend(b.take(m));
            }
            b.messages(*now, |m| to_a.push(m.to_vec()));
            for m in to_a.iter().filter(|_| !lost()) {
                assert_eq!(a.take(m), None);
            }
            *now += Duration::from_millis(50);
        }
        taken
    }

    fn table(len: usize, seed: u8) -> Arc<[u8]> {
        (0..len)
            .map(|n| (n as u8).wrapping_mul(31) ^ seed)
            .collect::<Vec<_>>()
            .into()
    }

    #[test]
    fn a_table_arrives_whole_and_once_and_then_there_is_silence() {
        let (mut a, mut b, mut now) = (Exchange::default(), Exchange::default(), Instant::now());
        for len in [0, 1, PART, PART + 1, 300 * PART] {
            let table = table(len, 7);
            a.tell(table.clone());
            assert_eq!(run(&mut a, &mut b, &mut now, 40, || false), [table.to_vec()]);
            let mut said = 0;
            for _ in 0..20 {
                a.messages(now, |_| panic!("it was confirmed"));
                b.messages(now, |_| said += 1);
                now += Duration::from_millis(50);
            }
            assert!(said <= 2, "{said}");
        }
    }

    #[test]
    fn half_of_all_messages_lost_is_no_obstacle() {
        let (mut a, mut b, mut now) = (Exchange::default(), Exchange::default(), Instant::now());
        let mut seed = 1u64;
        let mut lost = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            seed >> 63 == 1
        };
        a.tell(table(10 * PART, 1));
        let taken = run(&mut a, &mut b, &mut now, 1000, &mut lost);
        assert_eq!(taken, [table(10 * PART, 1).to_vec()]);
        assert_eq!(a.confirmed, a.mine.as_ref().map(|m| m.0));
    }

    #[test]
    fn an_end_that_restarts_is_told_again_and_a_newer_table_replaces_the_older() {
        let (mut a, mut b, mut now) = (Exchange::default(), Exchange::default(), Instant::now());
        a.tell(table(5000, 1));
        run(&mut a, &mut b, &mut now, 10, || false);
        // The listener restarts: it has something else, and says so.
        let mut b = Exchange::default();
        a.tell(table(5000, 2));
        assert_eq!(run(&mut a, &mut b, &mut now, 10, || false), [table(5000, 2).to_vec()]);
        // The teller restarts with less.
        let mut a = Exchange::default();
        a.tell(table(0, 0));
        assert_eq!(run(&mut a, &mut b, &mut now, 10, || false), [Vec::<u8>::new()]);
    }

    #[test]
    fn nonsense_is_no_table() {
        let mut b = Exchange::default();
        for message in [
            &[][..],
            &[TABLE],
            &[9; 20],
            &[TABLE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1],
            &[TABLE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff],
            &[TABLE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 5],
        ] {
            assert_eq!(b.take(message), None, "{message:?}");
        }
        assert_eq!(b.have, None);
    }
}
