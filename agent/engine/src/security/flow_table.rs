//! The flows that security rules have allowed (N6): one table for all lanes of an agent.
//!
//! One entry serves both directions of a flow. Several lanes find, add and change entries at the same time, with atomic
//! operations and without a lock. A bucket has eight entries; a flow is in one of the two buckets that the flow's hash
//! selects. A slot is the position of an entry in the table.
//!
//! ```text
//! header    8 words, one for each entry     status, flags, version, tag of the hash
//! bodies    8 × 8 words, one entry each     addresses, ports, times, origin
//! ```
//!
//! An entry is protected like data under a seqlock: the writer claims the header (status `BUSY`, next version), writes
//! the body, and publishes the header. A reader reads the header, compares the body with the key, and then checks that
//! the header still has the same version. If the version has changed, the reader reports that there is no flow, and the
//! rules decide about the packet again.

mod choices;
mod counters;
mod entry;
mod of_nics;
mod saved;

pub use counters::{Count, Counted, CountedFlow, FlowReport, RECORD_INTERVAL};
pub use saved::{BootTime, MAX_SAVED_AGE, Unusable};

use counters::Counters;
use entry::{
    BODY, BUSY, Body, CHOICES, EMPTY, FROM_SECOND, JUDGE_AGAIN, ORIGIN, Ordered, Origin, STATUS, TAG_SHIFT, TIMES,
    Times, UNANSWERED, advance, is_over, key_of, next_version, nic_of, status_of, version_of,
};
use foldhash::fast::FixedState;
use of_nics::OfNics;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use tombolo_proto::config::Direction;
use zerocopy::FromZeros;

/// Number of entries in a bucket. Their headers fill a cache line of 64 bytes.
const BUCKET: usize = 8;

/// Number of words of a cache line.
const LINE: usize = 8;

/// Number of words of a bucket: the headers, and the bodies.
const BUCKET_WORDS: usize = BUCKET + BUCKET * BODY;

/// Smallest and largest capacity of a table, in flows. At 90 bytes for each flow, the largest table takes 11.25 GiB.
pub const CAPACITY: std::ops::RangeInclusive<usize> = 1024..=1 << 27;

/// A new flow goes to its first bucket without a look at the second one if the first one has at least this many empty
/// entries.
const FEW: usize = 4;

/// The capacity divided by this number is the largest number of flows without a reply (D32).
const UNANSWERED_SHARE: usize = 4;

/// The capacity divided by this number is the largest number of flows without a reply that began over one link: half of
/// the number for all links together (D32).
const LINK_SHARE: usize = 8;

/// The fields of a packet that identify its flow at one NIC. A packet and its reply have different keys, with which the
/// same entry is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The number of the NIC: its position in `Security::nics`.
    pub nic: u8,
    /// Whether the packet comes to the NIC or leaves the NIC. A packet that an appliance forwards passes the
    /// appliance's NIC twice. It belongs to two flows there, an inbound one and an outbound one, because the rules of
    /// both directions apply to it (D25).
    pub direction: Direction,
    /// The IP protocol's number.
    pub protocol: u8,
    /// The source address.
    pub source: IpAddr,
    /// The destination address.
    pub destination: IpAddr,
    /// Source and destination port of TCP and UDP. For ICMP messages with an identifier, such as echo, both numbers are
    /// the identifier. For all other packets, both are 0.
    pub ports: (u16, u16),
}

/// The state of a flow (D31).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowStatus {
    /// The end that did not begin the flow has sent no packet yet.
    Unanswered,
    /// Packets have come from both ends.
    Established,
    /// TCP: both ends have sent FIN, or one has sent RST.
    Closing,
}

/// A reference to a flow that was found or added: the flow's entry, and the version of the entry at that time. If the
/// entry has another version later, the flow is no longer there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowRef {
    /// The position of the entry.
    slot: u32,
    version: u16,
    /// Whether the packet that was looked up or added has the same direction as the packet that began the flow.
    pub forward: bool,
    /// The state of the flow before this packet.
    pub status: FlowStatus,
    /// Whether the rules must decide about the flow again, as about a new one: it has lost its route, or the rules have
    /// changed (D34).
    pub judge_again: bool,
    /// The choices that load balancers have made for the flow ([`KeptChoices`](crate::tables::KeptChoices)); 0: none.
    pub choices: u64,
}

impl FlowRef {
    /// The same flow, for a packet that goes against the packet that was looked up.
    #[must_use]
    pub const fn against(self) -> Self {
        Self {
            forward: !self.forward,
            ..self
        }
    }

    /// Whether the packet, if it is a SYN, repeats the SYN that began the flow.
    #[must_use]
    pub fn is_repeated_syn(&self) -> bool {
        self.forward && self.status == FlowStatus::Unanswered
    }
}

/// Why a flow was not added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// The flows without a reply have used up their share of the table or of the link, and neither bucket has such a
    /// flow, whose entry the new flow could take.
    Unanswered,
    /// Other lanes were changing the entries of both buckets, so that this lane could take none of them.
    Bucket,
    /// The NIC has as many flows as it may have (X16).
    Nic,
}

/// The numbers of flows that a new flow has displaced before their timeout, by state.
#[derive(Debug, Default)]
pub struct Evictions {
    /// Flows without a reply.
    pub unanswered: AtomicU64,
    /// Closing flows.
    pub closing: AtomicU64,
    /// Established flows.
    pub established: AtomicU64,
}

/// The TCP flags with which a connection ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TcpFlags {
    /// FIN.
    pub fin: bool,
    /// RST.
    pub rst: bool,
    /// SYN, with or without ACK: the segment belongs to a handshake.
    pub syn: bool,
}

/// A table of flows.
#[derive(Debug)]
pub struct FlowTable {
    capacity: usize,
    /// The buckets, one after the other. A lookup touches few pages of memory, because an entry's header and body are close.
    words: Box<[AtomicU64]>,
    /// The position of the first word, with which a cache line begins.
    start: usize,
    entries: usize,
    /// Counters of the flows at NICs with a flow log; made with the first log.
    counters: OnceLock<Counters>,
    hash: FixedState,
    unanswered: AtomicU32,
    total: AtomicU32,
    per_link: Box<[AtomicU32]>,
    of_nics: OfNics,
    evictions: Evictions,
}

/// The value that stands for the host in place of a link: the packet came from the host and not over a link.
pub const FROM_HOST: u32 = u32::MAX;

/// The link of a flow that began before the agent started: its number is unknown.
const UNKNOWN_LINK: u32 = u32::MAX - 1;

impl FlowTable {
    /// A table for `capacity` flows. A number outside of [`CAPACITY`] becomes the nearest number inside. Flows without
    /// a reply are limited for each link with a number below `links`. Over other links only the limit of the whole
    /// table applies. `seed` must be secret and random, so that no sender can choose flows that have the same buckets.
    ///
    /// The table takes 90 bytes for each flow. A fifth of the memory is for entries that stay empty, so that buckets do
    /// not overflow before the table is full. The kernel allocates the memory page by page, as flows come.
    #[must_use]
    pub fn new(capacity: usize, links: usize, seed: u64) -> Self {
        let capacity = capacity.clamp(*CAPACITY.start(), *CAPACITY.end());
        let slots = entries_for(capacity);
        // The allocator aligns large memory to 16 bytes only, if it shall come zeroed from the kernel.
        let words = zeroed(slots / BUCKET * BUCKET_WORDS + LINE - 1);
        let start = words.as_ptr().align_offset(LINE * size_of::<u64>());
        Self {
            capacity,
            words,
            start: start.min(LINE - 1),
            entries: slots,
            counters: OnceLock::new(),
            hash: FixedState::with_seed(seed),
            unanswered: AtomicU32::new(0),
            total: AtomicU32::new(0),
            per_link: (0..links).map(|_| AtomicU32::new(0)).collect(),
            of_nics: OfNics::default(),
            evictions: Evictions::default(),
        }
    }

    /// The number of flows for which the table was made.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// The number of entries, which is higher than the capacity. [`sweep`](Self::sweep) and
    /// [`judge_again_where`](Self::judge_again_where) visit the positions below this number.
    #[must_use]
    pub const fn entries(&self) -> usize {
        self.entries
    }

    /// The header of an entry.
    fn header(&self, slot: usize) -> &AtomicU64 {
        &self.words[self.start + slot / BUCKET * BUCKET_WORDS + slot % BUCKET]
    }

    /// The words of an entry's body.
    fn words_of(&self, slot: usize) -> &[AtomicU64] {
        let at = self.start + slot / BUCKET * BUCKET_WORDS + BUCKET + slot % BUCKET * BODY;
        &self.words[at..at + BODY]
    }

    /// The number of flows in the table, including flows that are over and were not removed yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.total.load(Ordering::Relaxed) as usize
    }

    /// Whether the table has no flow.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of flows without a reply.
    #[must_use]
    pub fn unanswered(&self) -> usize {
        self.unanswered.load(Ordering::Relaxed) as usize
    }

    /// The numbers of flows that were displaced before their timeout.
    #[must_use]
    pub const fn evictions(&self) -> &Evictions {
        &self.evictions
    }

    /// The flow of a packet. `now` is in seconds since the table was made. `None`: the table does not have the flow, or
    /// the flow has been idle for too long, or another lane was changing the entry.
    #[must_use]
    pub fn find(&self, key: &FlowKey, now: u32) -> Option<FlowRef> {
        let ordered = Ordered::new(key);
        let (tag, buckets) = self.place(&ordered);
        let (slot, header, choices) = self.search(&ordered, tag, buckets)?;
        let body = self.body(slot);
        if is_over(header, &body, now) {
            return None;
        }
        Some(flow_ref(slot, header, ordered.from_second, choices))
    }

    /// Adds the flow of a packet that the rules have allowed. If the table has the flow already, removes the old entry
    /// first. `link` is the link over which the packet came, or [`FROM_HOST`]. `idle_timeout` is in seconds, and `now`
    /// in seconds since the table was made.
    ///
    /// # Errors
    /// There is no room, for the reason in [`Full`]. Nothing was added, and the caller must drop the packet.
    pub fn insert(&self, key: &FlowKey, link: u32, idle_timeout: u32, now: u32) -> Result<FlowRef, Full> {
        self.insert_chosen(key, (link, idle_timeout), now, 0)
    }

    /// Does the same as [`insert`](Self::insert) for a flow for which load balancers have made these choices; 0: none.
    /// `origin` is the link and the idle timeout.
    ///
    /// # Errors
    /// As for [`insert`](Self::insert).
    pub fn insert_chosen(&self, key: &FlowKey, origin: (u32, u32), now: u32, choices: u64) -> Result<FlowRef, Full> {
        self.insert_counted(key, origin, now, (choices, 0), &mut |_| ())
    }

    /// Does the same as [`insert_chosen`](Self::insert_chosen), and begins to count the flow's packets. `new` is the
    /// choices, and the number that reports of the flow will have; 0: its packets are not counted. Passes the last state
    /// of a counted flow that the new one replaces to `report`.
    ///
    /// # Errors
    /// As for [`insert`](Self::insert).
    pub fn insert_counted(
        &self,
        key: &FlowKey,
        origin: (u32, u32),
        now: u32,
        new: (u64, u32),
        report: &mut impl FnMut(&FlowReport),
    ) -> Result<FlowRef, Full> {
        let (link, idle_timeout) = origin;
        let (choices, number) = new;
        let ordered = Ordered::new(key);
        let (tag, buckets) = self.place(&ordered);
        if let Some((slot, header, _)) = self.search(&ordered, tag, buckets) {
            self.remove(slot, header, report);
        }
        if !self.count_at_nic(key.nic, buckets, now, report) {
            return Err(Full::Nic);
        }
        let share_used = self.is_share_used(link);
        let mut attempts = 0;
        loop {
            let chosen = self.choose(buckets, share_used, now);
            let (slot, before) = chosen.inspect_err(|_| self.take_from_nic(key.nic))?;
            if self.claim(slot, before) {
                self.count_removed(slot, before, now, report);
                if let Some(counters) = self.counters.get() {
                    counters.begin(slot, number, now);
                }
                let flags = if ordered.from_second { FROM_SECOND } else { 0 };
                let header = next_version(before, UNANSWERED | flags | u64::from(tag) << TAG_SHIFT);
                let times = Times {
                    last_seen: now,
                    created: now,
                };
                let origin = Origin { link, idle_timeout };
                let mut key = ordered.words;
                key[CHOICES] = choices;
                self.publish(slot, &key, times, origin, header);
                self.total.fetch_add(1, Ordering::Relaxed);
                self.count_unanswered(link, 1);
                return Ok(flow_ref(slot, header, ordered.from_second, choices));
            }
            // Another lane took the entry. So whenever this lane fails, another lane has succeeded.
            attempts += 1;
            if attempts == BUCKET * 2 {
                self.take_from_nic(key.nic);
                return Err(Full::Bucket);
            }
        }
    }

    /// Notes a packet of the flow: the time `now`, in seconds since the table was made, and for TCP the packet's flags.
    /// Does nothing if another lane has removed the flow meanwhile.
    pub fn touch(&self, flow: &FlowRef, tcp: TcpFlags, now: u32) {
        let slot = flow.slot as usize;
        let header = self.header(slot);
        let mut before = header.load(Ordering::Acquire);
        loop {
            if version_of(before) != flow.version || status_of(before).is_none() {
                return;
            }
            let after = advance(before, flow.forward, tcp);
            if after == before {
                break;
            }
            // The body is read before the exchange. If the exchange succeeds, the version was still the same, and so
            // the body belonged to this flow.
            let origin = Origin::unpack(self.words_of(slot)[ORIGIN].load(Ordering::Relaxed));
            match header.compare_exchange_weak(before, after, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    if before & STATUS == UNANSWERED && after & STATUS != UNANSWERED {
                        self.count_unanswered(origin.link, -1);
                    }
                    break;
                }
                Err(now_there) => before = now_there,
            }
        }
        self.renew(slot, now);
    }

    /// Notes that a packet of a flow has come at the time `now`.
    fn renew(&self, slot: usize, now: u32) {
        // The word is written once a second at most, so that several cores can keep the cache line of a busy flow in
        // their caches.
        let times = &self.words_of(slot)[TIMES];
        let seen = Times::unpack(times.load(Ordering::Relaxed));
        if seen.last_seen < now {
            times.store(Times { last_seen: now, ..seen }.pack(), Ordering::Relaxed);
        }
    }

    /// Visits `count` entries from the position `from` on, and removes flows that have been idle for too long. `now` is
    /// in seconds since the table was made. Returns the position at which the next call must begin: 0 after the last
    /// entry.
    pub fn sweep(&self, from: usize, count: usize, now: u32) -> usize {
        self.sweep_counted(from, count, now, &mut |_| ())
    }

    /// Does the same as [`sweep`](Self::sweep). Passes the last state of each counted flow that it removes to `report`, and
    /// the present state of each counted flow that needs a record.
    pub fn sweep_counted(&self, from: usize, count: usize, now: u32, report: &mut impl FnMut(&FlowReport)) -> usize {
        let from = if from < self.entries() { from } else { 0 };
        let end = (from + count).min(self.entries());
        for slot in from..end {
            let header = self.header(slot).load(Ordering::Acquire);
            if status_of(header).is_none() {
                continue;
            }
            if is_over(header, &self.body(slot), now) {
                self.remove(slot, header, report);
            } else {
                self.report_due(slot, now, report);
            }
        }
        if end == self.entries() { 0 } else { end }
    }

    /// Marks the flows in the entries `slots` for whose key `applies` returns true: the rules must decide about these
    /// flows again ([`FlowRef::judge_again`]). The key is that of the packet that began the flow. Positions outside of
    /// the table are ignored.
    pub fn judge_again_where(&self, slots: Range<usize>, mut applies: impl FnMut(&FlowKey) -> bool) {
        for slot in slots.start..slots.end.min(self.entries()) {
            let header = self.header(slot).load(Ordering::Acquire);
            if status_of(header).is_none() || header & JUDGE_AGAIN != 0 {
                continue;
            }
            let body = self.body(slot);
            fence(Ordering::Acquire);
            let unchanged = version_of(self.header(slot).load(Ordering::Relaxed)) == version_of(header);
            if unchanged && applies(&key_of(header, &body)) {
                self.change_header(slot, version_of(header), |header| header | JUDGE_AGAIN);
            }
        }
    }

    /// Notes that the rules have denied a known flow at the time `now`. Marks its entry, so that the rules decide about
    /// each further packet ([`FlowRef::judge_again`]). The entry stays until the flow has been idle for longer than its
    /// state allows. Does nothing if another lane has removed the flow meanwhile.
    pub fn deny(&self, flow: &FlowRef, now: u32) {
        if self.change_header(flow.slot as usize, flow.version, |header| header | JUDGE_AGAIN) {
            self.renew(flow.slot as usize, now);
        }
    }

    /// Notes that the rules have allowed the flow again. Does nothing if another lane has removed the flow meanwhile.
    pub fn allow_again(&self, flow: &FlowRef) {
        self.change_header(flow.slot as usize, flow.version, |header| header & !JUDGE_AGAIN);
    }

    /// Changes flags in the header of a flow. Returns false and changes nothing if the entry has another version by
    /// now.
    fn change_header(&self, slot: usize, version: u16, change: impl Fn(u64) -> u64) -> bool {
        let header = self.header(slot);
        let mut before = header.load(Ordering::Acquire);
        while version_of(before) == version && status_of(before).is_some() {
            match header.compare_exchange_weak(before, change(before), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(now_there) => before = now_there,
            }
        }
        false
    }

    fn place(&self, ordered: &Ordered) -> (u32, [usize; 2]) {
        let hash = self.hash.hash_one(ordered.words);
        let buckets = (self.entries() / BUCKET) as u64;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the tag is half of the hash; bucket numbers fit into usize"
        )]
        let (tag, first, offset) = (
            (hash >> 32) as u32,
            scale(hash as u32, buckets) as usize,
            scale((hash >> 16) as u32, buckets - 1) as usize,
        );
        // `offset` is below `buckets - 1`, so the second bucket is never the first one.
        let second = (first + 1 + offset) % buckets as usize;
        (tag, [first * BUCKET, second * BUCKET])
    }

    /// The position, header and choices of the flow's entry.
    fn search(&self, ordered: &Ordered, tag: u32, buckets: [usize; 2]) -> Option<(usize, u64, u64)> {
        for bucket in buckets {
            for slot in bucket..bucket + BUCKET {
                let header = self.header(slot).load(Ordering::Acquire);
                if header >> TAG_SHIFT != u64::from(tag) || status_of(header).is_none() {
                    continue;
                }
                let body = self.body(slot);
                fence(Ordering::Acquire);
                let again = self.header(slot).load(Ordering::Relaxed);
                if version_of(again) == version_of(header) && body[..5] == ordered.words[..5] {
                    return Some((slot, header, body[CHOICES]));
                }
            }
        }
        None
    }

    fn body(&self, slot: usize) -> Body {
        let mut body = [0; BODY];
        for (word, atomic) in body.iter_mut().zip(self.words_of(slot)) {
            *word = atomic.load(Ordering::Relaxed);
        }
        body
    }

    /// Chooses the entry for a new flow, and returns its position and its present header. `share_used` says that flows
    /// without a reply have used up a share.
    ///
    /// If no share is used up, chooses an empty entry in the first bucket; if that has few empty ones, in the bucket that has
    /// more of them. So both buckets of a flow are full only when the whole table nearly is (Y. Azar et al., "Balanced
    /// Allocations", 1994). If there is none,
    /// chooses the entry of another flow, in this order (D32): a flow that is over, a flow without a reply, a closing
    /// flow, an established flow; of several, the one that was idle the longest. If a share is used up, chooses only
    /// the entry of a flow without a reply.
    fn choose(&self, buckets: [usize; 2], share_used: bool, now: u32) -> Result<(usize, u64), Full> {
        if !share_used {
            let first = self.empty_entries(buckets[0]);
            let found = match first {
                // Lookups of flows in the first bucket are cheaper.
                (FEW.., found) => found,
                (left, found) => {
                    let second = self.empty_entries(buckets[1]);
                    if second.0 > left { second.1 } else { found }
                }
            };
            if let Some(found) = found {
                return Ok(found);
            }
        }
        let candidates = buckets.into_iter().flat_map(|bucket| bucket..bucket + BUCKET);
        let ranked = candidates.filter_map(|slot| {
            let header = self.header(slot).load(Ordering::Acquire);
            let status = status_of(header)?;
            let body = self.body(slot);
            let seen = Times::unpack(body[TIMES]).last_seen;
            let rank = match status {
                FlowStatus::Unanswered if is_over(header, &body, now) => (0, 0),
                FlowStatus::Unanswered => (1, seen),
                // The new flow has no reply yet. While such flows have used up a share, it may take only the entry of
                // one of them.
                FlowStatus::Closing | FlowStatus::Established if share_used => return None,
                _ if is_over(header, &body, now) => (0, 0),
                FlowStatus::Closing => (2, seen),
                FlowStatus::Established => (3, seen),
            };
            Some((rank, (slot, header)))
        });
        let full = if share_used { Full::Unanswered } else { Full::Bucket };
        ranked.min_by_key(|(rank, _)| *rank).map(|(_, found)| found).ok_or(full)
    }

    /// The number of empty entries in a bucket, and the position and header of one of them.
    fn empty_entries(&self, bucket: usize) -> (usize, Option<(usize, u64)>) {
        let entries = (bucket..bucket + BUCKET).map(|slot| (slot, self.header(slot).load(Ordering::Acquire)));
        let mut empty = entries.filter(|(_, header)| header & STATUS == EMPTY);
        let one = empty.next();
        (usize::from(one.is_some()) + empty.count(), one)
    }

    /// Whether the flows without a reply have used up the share of the whole table or that of the link (D32).
    fn is_share_used(&self, link: u32) -> bool {
        let of_link = self
            .per_link
            .get(link as usize)
            .map_or(0, |c| c.load(Ordering::Relaxed));
        self.unanswered() >= self.capacity() / UNANSWERED_SHARE || of_link as usize >= self.capacity() / LINK_SHARE
    }

    /// Claims an entry, so that only this lane may write it. Returns false and changes nothing if the header is no
    /// longer `before`.
    fn claim(&self, slot: usize, before: u64) -> bool {
        let claimed = next_version(before, BUSY);
        let header = self.header(slot);
        let done = header
            .compare_exchange(before, claimed, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok();
        // The words of the body must not become visible before the claim.
        fence(Ordering::Release);
        done
    }

    /// Writes the body of a claimed entry, and then its header. The header ends the claim. `key` has the flow's choices in
    /// the word [`CHOICES`].
    fn publish(&self, slot: usize, key: &[u64; 6], times: Times, origin: Origin, header: u64) {
        let words = key.iter().copied().chain([times.pack(), origin.pack()]);
        for (atomic, word) in self.words_of(slot).iter().zip(words) {
            atomic.store(word, Ordering::Relaxed);
        }
        self.header(slot).store(header, Ordering::Release);
    }

    /// Empties an entry, unless its header is no longer `header`.
    fn remove(&self, slot: usize, header: u64, report: &mut impl FnMut(&FlowReport)) {
        if self.claim(slot, header) {
            self.uncount(slot, header);
            self.report_end(slot, header, report);
            self.header(slot).store(next_version(header, EMPTY), Ordering::Release);
        }
    }

    /// Updates the counters for the flow that a claimed entry had under the header `before`, if it had one. Counts an
    /// eviction if this flow was not over at the time `now`.
    fn count_removed(&self, slot: usize, before: u64, now: u32, report: &mut impl FnMut(&FlowReport)) {
        let Some(status) = status_of(before) else { return };
        self.report_end(slot, before, report);
        if !is_over(before, &self.body(slot), now) {
            let counter = match status {
                FlowStatus::Unanswered => &self.evictions.unanswered,
                FlowStatus::Closing => &self.evictions.closing,
                FlowStatus::Established => &self.evictions.established,
            };
            counter.fetch_add(1, Ordering::Relaxed);
        }
        self.uncount(slot, before);
    }

    /// Takes the flow of a claimed entry, which had this header, off the numbers of flows.
    fn uncount(&self, slot: usize, header: u64) {
        self.total.fetch_sub(1, Ordering::Relaxed);
        self.take_from_nic(nic_of(self.words_of(slot)[4].load(Ordering::Relaxed)));
        if header & STATUS == UNANSWERED {
            let origin = Origin::unpack(self.words_of(slot)[ORIGIN].load(Ordering::Relaxed));
            self.count_unanswered(origin.link, -1);
        }
    }

    /// Adds `change` to the number of flows without a reply, in total and for the link.
    fn count_unanswered(&self, link: u32, change: i32) {
        for counter in [Some(&self.unanswered), self.per_link.get(link as usize)]
            .into_iter()
            .flatten()
        {
            counter.fetch_add(change.cast_unsigned(), Ordering::Relaxed);
        }
    }
}

/// The number of entries of a table with this capacity. A fifth of them stays empty, so that buckets do not overflow
/// before the table is full.
fn entries_for(capacity: usize) -> usize {
    let capacity = capacity.clamp(*CAPACITY.start(), *CAPACITY.end());
    (capacity + capacity / 4).next_multiple_of(BUCKET)
}

/// Maps all values of `part` evenly to numbers below `count`, which is less than 2^32.
pub(super) const fn scale(part: u32, count: u64) -> u64 {
    (part as u64 * count) >> 32
}

fn flow_ref(slot: usize, header: u64, from_second: bool, choices: u64) -> FlowRef {
    #[expect(clippy::cast_possible_truncation, reason = "a table has at most 2^27 entries")]
    let slot = slot as u32;
    FlowRef {
        slot,
        version: version_of(header),
        forward: (header & FROM_SECOND != 0) == from_second,
        status: status_of(header).unwrap_or(FlowStatus::Unanswered),
        judge_again: header & JUDGE_AGAIN != 0,
        choices,
    }
}

/// `count` words that are 0. The kernel allocates their memory page by page, at the first write.
pub(super) fn zeroed(count: usize) -> Box<[AtomicU64]> {
    <[AtomicU64]>::new_box_zeroed_with_elems(count).unwrap_or_else(|_| (0..count).map(|_| AtomicU64::new(0)).collect())
}

#[cfg(test)]
mod tests;
