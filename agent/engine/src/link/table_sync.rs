//! Sends a table from one end of a link to the other: routes (D11), or the health of back ends (D36). The sender repeats
//! the whole table with its digest until the receiver confirms the digest. So the protocol needs no special treatment of
//! lost and reordered messages and of restarts. The code reads no clock and sends nothing itself: time is an argument, and messages are
//! passed to the caller.
//!
//! ```text
//! sender                                       receiver
//!   fragments of the table, digest d ──────────▶  reassembles the table
//!   ◀───────────────────────────── confirms d     at once, then every second
//! ```
//!
//! The receiver does not trust the sender. The receiver reads advertisements only if [`accept`](TableSync::accept)
//! allows them, keeps at most one complete table, and passes tables on at a [`Pace`] that slows down a sender whose
//! table keeps changing.

use super::AdvertisementStats;
use crate::routing::Pace;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Number of bytes of a table in one message. Together with all headers, including those of the tunnel (141 bytes over
/// IPv6), such a message fits into 1,280 bytes, the least MTU of IPv6.
const FRAGMENT_LEN: usize = 1000;

/// Longest table of routes, in bytes: enough for [`MAX_ROUTES`](crate::routing::MAX_ROUTES) routes of 87 bytes each. A usual
/// route has 10 to 40 bytes.
const MAX_ROUTES_LEN: usize = 2 << 20;

/// Largest number of messages that one call of [`poll_messages`](TableSync::poll_messages) sends, so that a long table
/// does not cause a burst of 2,000 datagrams. The next call is 50 ms later.
const MAX_MESSAGES: usize = 64;

/// First and longest pause before an unconfirmed table is sent again. The pause doubles each time.
const MIN_RETRY_BACKOFF: Duration = Duration::from_millis(200);
const MAX_RETRY_BACKOFF: Duration = Duration::from_secs(3);

/// Interval at which a receiver repeats its confirmation. A receiver that has restarted has no table and confirms
/// [`NO_TABLE`], so the sender detects the restart within this time.
const CONFIRM_INTERVAL: Duration = Duration::from_secs(1);

/// Least time between two confirmations, even if the received table changes more often.
const MIN_CONFIRM_INTERVAL: Duration = Duration::from_millis(20);

/// Number of bytes in a message before the fragment of the table: those of kind, digest, index and count.
const HEADER_LEN: usize = 1 + 8 + 2 + 2;

/// Length of the longest message, in bytes.
pub(super) const MAX_MESSAGE_LEN: usize = HEADER_LEN + FRAGMENT_LEN;

/// The kind of a message, in its first byte.
const TABLE: u8 = 1;
const CONFIRM: u8 = 2;

/// The digest that a receiver without a table confirms. A real table has it with a probability of 2⁻⁶⁴.
const NO_TABLE: u64 = 0;

/// The exchange of the tables of one kind at one end of a link, as sender and as receiver.
#[derive(Debug)]
pub(super) struct TableSync {
    /// Longest table that this end sends or receives, in bytes.
    max_len: usize,
    /// Whether this end sends its table. If it does so on request, this becomes true with the first confirmation of the
    /// other end.
    sends: bool,
    /// The table that this end advertises, and its digest.
    advertised: Option<(u64, Arc<[u8]>)>,
    /// The digest that the other end confirmed last.
    confirmed: Option<u64>,
    /// Index of the next fragment to send, and the time at which a fragment was sent last.
    next: usize,
    last_sent: Option<Instant>,
    /// Pause before the whole table is sent again.
    backoff: Duration,
    /// Whether the other end may advertise tables.
    accepts: bool,
    /// Digest of the newest complete table; `None` until one has been received.
    received: Option<u64>,
    /// Time at which this end last sent a confirmation.
    confirmed_at: Option<Instant>,
    /// Whether the next confirmation is due after [`MIN_CONFIRM_INTERVAL`] instead of [`CONFIRM_INTERVAL`].
    confirm_soon: bool,
    /// A table that was received in part.
    incomplete: Option<Incomplete>,
    /// The newest complete table, until [`next_table`](Self::next_table) returns it.
    pending: Option<Vec<u8>>,
    /// Digest of the table that [`next_table`](Self::next_table) returned last.
    passed_on: Option<u64>,
    pace: Pace,
}

#[derive(Debug)]
struct Incomplete {
    digest: u64,
    fragments: Vec<Option<Box<[u8]>>>,
    missing: usize,
}

impl Default for TableSync {
    fn default() -> Self {
        Self::of_routes()
    }
}

impl TableSync {
    /// An exchange of tables of at most `max_len` bytes, without a table yet. `on_request`: this end sends its table only
    /// after the other end has confirmed a table, or [`NO_TABLE`], or after [`request`](Self::request). An end that
    /// accepts tables confirms once a second, so an end that does not accept them, or does not know messages of this kind,
    /// is sent nothing.
    pub(super) fn new(max_len: usize, on_request: bool) -> Self {
        Self {
            max_len,
            sends: !on_request,
            advertised: None,
            confirmed: None,
            next: 0,
            last_sent: None,
            backoff: Duration::ZERO,
            accepts: false,
            received: None,
            confirmed_at: None,
            confirm_soon: false,
            incomplete: None,
            pending: None,
            passed_on: None,
            pace: Pace::default(),
        }
    }

    /// An exchange of routes, which are sent without a request.
    pub(super) fn of_routes() -> Self {
        Self::new(MAX_ROUTES_LEN, false)
    }

    /// Sends the table although the other end has not asked for it.
    pub(super) const fn request(&mut self) {
        self.sends = true;
    }

    /// Whether this end has a table that the other end has not confirmed, and sends it.
    pub(super) fn is_unconfirmed(&self) -> bool {
        let advertised = self.advertised.as_ref().map(|(digest, _)| *digest);
        self.sends && advertised.is_some() && self.confirmed != advertised
    }

    /// Sets whether the other end may advertise tables; at first it may not. If it may not, its advertisements are
    /// counted as refused, and a table that [`next_table`](Self::next_table) has not returned yet is discarded.
    pub(super) fn accept(&mut self, accepts: bool) {
        self.accepts = accepts;
        if !accepts {
            (self.incomplete, self.pending) = (None, None);
            // The digests are forgotten, so that this end accepts the same table again if the other end may advertise
            // later.
            (self.received, self.passed_on) = (None, None);
        }
    }

    /// Sets the table that this end advertises, in place of the earlier table. The new table is sent with the next
    /// [`poll_messages`](Self::poll_messages), and repeated until it is confirmed. A table that is too long
    /// is ignored. A table that equals the earlier one changes nothing.
    pub(super) fn advertise(&mut self, table: Arc<[u8]>) {
        let digest = digest_of(&table);
        if self.advertised.as_ref().is_none_or(|(d, _)| *d != digest) && table.len() <= self.max_len {
            self.advertised = Some((digest, table));
            (self.next, self.backoff) = (0, MIN_RETRY_BACKOFF);
        }
    }

    /// Passes the messages that are due now to `send`: up to [`MAX_MESSAGES`] fragments of the table, and the
    /// confirmation. The owner calls this method every 50 ms while the link has a session.
    pub(super) fn poll_messages(&mut self, now: Instant, send: &mut dyn FnMut(&[u8])) {
        if let Some((digest, table)) = self.advertised.as_ref().filter(|_| self.is_unconfirmed()) {
            let count = table.len().div_ceil(FRAGMENT_LEN).max(1);
            let is_due = |sent| now.saturating_duration_since(sent) >= self.backoff;
            if self.next >= count && self.last_sent.is_none_or(is_due) {
                self.next = 0;
                self.backoff = (2 * self.backoff).min(MAX_RETRY_BACKOFF);
            }
            let mut message = Vec::with_capacity(MAX_MESSAGE_LEN);
            // A table without bytes has one fragment, which is empty.
            let fragments = table.chunks(FRAGMENT_LEN).chain(table.is_empty().then_some(&[][..]));
            for (index, fragment) in fragments.enumerate().skip(self.next).take(MAX_MESSAGES) {
                #[expect(clippy::cast_possible_truncation, reason = "the longest table has 2,098 fragments")]
                let (index, count) = (index as u16, count as u16);
                message.clear();
                message.push(TABLE);
                message.extend_from_slice(&digest.to_be_bytes());
                message.extend_from_slice(&index.to_be_bytes());
                message.extend_from_slice(&count.to_be_bytes());
                message.extend_from_slice(fragment);
                send(&message);
                self.next += 1;
                self.last_sent = Some(now);
            }
        }
        self.poll_confirmation(now, send);
    }

    /// Passes the confirmation of the received table to `send`, if it is due: one second after the last confirmation,
    /// or 20 ms after it if the table is new or the sender has repeated it. Sends none if the other end may not
    /// advertise tables.
    pub(super) fn poll_confirmation(&mut self, now: Instant, send: &mut dyn FnMut(&[u8])) {
        let interval = if self.confirm_soon {
            MIN_CONFIRM_INTERVAL
        } else {
            CONFIRM_INTERVAL
        };
        let is_due = |at| now.saturating_duration_since(at) >= interval;
        // A receiver without a table sends a confirmation too. Otherwise the sender would not detect that the receiver
        // restarted.
        let received = self.received.or(self.accepts.then_some(NO_TABLE));
        if let Some(digest) = received.filter(|_| self.confirmed_at.is_none_or(is_due)) {
            let mut message = [CONFIRM; 9];
            message[1..].copy_from_slice(&digest.to_be_bytes());
            send(&message);
            (self.confirmed_at, self.confirm_soon) = (Some(now), false);
        }
    }

    /// Takes a message of the other end, which is untrusted input. `stats` counts it if it completes a table, is
    /// malformed, or is not permitted.
    pub(super) fn receive(&mut self, message: &[u8], now: Instant, stats: &mut AdvertisementStats) {
        let Some((kind, rest)) = message.split_first() else {
            return stats.malformed += 1;
        };
        let Some((digest, rest)) = rest.split_first_chunk() else {
            return stats.malformed += 1;
        };
        let digest = u64::from_be_bytes(*digest);
        match *kind {
            CONFIRM if self.advertised.is_some() => (self.confirmed, self.sends) = (Some(digest), true),
            TABLE if self.accepts => {
                if self.receive_fragment(digest, rest, now, stats).is_none() {
                    stats.malformed += 1;
                }
            }
            CONFIRM | TABLE => stats.refused += 1,
            _ => stats.malformed += 1,
        }
    }

    /// Takes a fragment of the table with this digest. `None`: the message is malformed, or the complete table has
    /// another digest.
    fn receive_fragment(
        &mut self,
        digest: u64,
        message: &[u8],
        now: Instant,
        stats: &mut AdvertisementStats,
    ) -> Option<()> {
        let (index, rest) = message.split_first_chunk()?;
        let (count, fragment) = rest.split_first_chunk()?;
        let index = usize::from(u16::from_be_bytes(*index));
        let count = usize::from(u16::from_be_bytes(*count));
        let max_count = self.max_len.div_ceil(FRAGMENT_LEN);
        if index >= count || count > max_count || fragment.len() > FRAGMENT_LEN {
            return None;
        }
        if self.received == Some(digest) {
            // The sender repeats a table that this end has completely, so the sender has not received the confirmation.
            self.confirm_soon = true;
            return Some(());
        }
        let incomplete = match &mut self.incomplete {
            Some(same) if same.digest == digest && same.fragments.len() == count => same,
            other => other.insert(Incomplete {
                digest,
                fragments: vec![None; count],
                missing: count,
            }),
        };
        let slot = incomplete.fragments.get_mut(index)?;
        if slot.is_none() {
            *slot = Some(fragment.into());
            incomplete.missing = incomplete.missing.saturating_sub(1);
        }
        if incomplete.missing > 0 {
            return Some(());
        }
        let fragments = self.incomplete.take()?.fragments;
        let table = fragments.into_iter().flatten().collect::<Vec<_>>().concat();
        (digest_of(&table) == digest).then(|| self.completed(digest, table, now, stats))
    }

    /// Takes a complete table, which replaces one that [`next_table`](Self::next_table) has not returned yet.
    fn completed(&mut self, digest: u64, table: Vec<u8>, now: Instant, stats: &mut AdvertisementStats) {
        stats.received += 1;
        (self.received, self.confirm_soon) = (Some(digest), true);
        self.pace.changed(now);
        stats.superseded += u64::from(self.pending.take().is_some());
        if self.passed_on == Some(digest) {
            // The sender has returned to the table that is in use.
            stats.superseded += 1;
        } else {
            self.pending = Some(table);
        }
    }

    /// Returns the newest complete table, if no earlier call has returned it and the rate limit allows it now. The
    /// owner calls this method every 50 ms.
    pub(super) fn next_table(&mut self, now: Instant, stats: &mut AdvertisementStats) -> Option<Vec<u8>> {
        let table = self.pending.take_if(|_| self.pace.allows(now))?;
        self.pace.used(now);
        self.passed_on = self.received;
        stats.applied += 1;
        Some(table)
    }

    /// Whether a complete table waits for [`next_table`](Self::next_table), which the rate limit may still delay.
    pub(super) fn has_table(&self) -> bool {
        self.pending.is_some()
    }
}

/// The FNV-1a hash, which is the same on every machine. The digest only detects accidental differences. The hash need
/// not resist attacks, because only the authenticated peer can send messages on the link.
fn digest_of(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests;
