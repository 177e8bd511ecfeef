//! The flows that security rules have allowed (N6): one table for all lanes of an agent.
//!
//! One entry serves both directions of a flow. Several lanes find, add and change entries at the same time, with atomic
//! operations and without a lock. A bucket has eight entries; a flow is in one of the two buckets that the flow's hash
//! selects. A slot is the position of an entry in the table.
//!
//! ```text
//! headers   [ 8 header words of a bucket = one cache line ]…    status, flags, version, tag of the hash
//! bodies    [ 8 words of an entry        = one cache line ]…    addresses, ports, times, origin
//! ```
//!
//! An entry is protected like data under a seqlock: the writer claims the header (status `BUSY`, next version), writes
//! the body, and publishes the header. A reader reads the header, compares the body with the key, and then checks that
//! the header still has the same version. If the version has changed, the reader reports that there is no flow, and the
//! rules decide about the packet again.

use foldhash::fast::FixedState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::time::Duration;
use tombolo_proto::config::Direction;
use zerocopy::FromZeros;

/// Number of entries in a bucket. Their headers fill a cache line of 64 bytes.
const BUCKET: usize = 8;

/// Number of 64-bit words in the body of an entry. They fill a cache line of 64 bytes.
const BODY: usize = 8;

/// Smallest and largest capacity of a table, in flows. At 90 bytes for each flow, the largest table takes 11.25 GiB.
pub const CAPACITY: std::ops::RangeInclusive<usize> = 1024..=1 << 27;

/// A TCP flow that the other end has not answered ends after this time without packets (D31). The time is short, so
/// that the flows of a SYN flood end soon. It is longer than the intervals between the first five SYNs of a client,
/// which come after 0, 1, 3, 7 and 15 s (RFC 6298), so that each of them finds the flow of the first one.
const HALF_OPEN_TIMEOUT: Duration = Duration::from_secs(60);

/// A TCP flow that both ends have closed, or that one end has reset, ends after this time without packets (D31). Within
/// this time, a FIN can be repeated whose ACK was lost.
const CLOSING_TIMEOUT: Duration = Duration::from_secs(10);

/// The capacity divided by this number is the largest number of flows without a reply (D32).
const UNANSWERED_SHARE: usize = 4;

/// The capacity divided by this number is the largest number of flows without a reply that began over one link: half of
/// the number for all links together (D32).
const LINK_SHARE: usize = 8;

/// The fields of a packet that identify its flow at one NIC. A packet and its reply have different keys, with which the
/// same entry is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
}

impl FlowRef {
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
    headers: Box<[AtomicU64]>,
    bodies: Box<[AtomicU64]>,
    hash: FixedState,
    unanswered: AtomicU32,
    total: AtomicU32,
    per_link: Box<[AtomicU32]>,
    evictions: Evictions,
}

// Header: status in bits 0 to 7, flags in 8 to 15, version in 16 to 31, tag in 32 to 63.
const EMPTY: u64 = 0;
const BUSY: u64 = 1;
const UNANSWERED: u64 = 2;
const ESTABLISHED: u64 = 3;
const CLOSING: u64 = 4;
const STATUS: u64 = 0xff;
/// Flag of a header: the flow began at the second end of the [`Ordered`] key.
const FROM_SECOND: u64 = 1 << 8;
/// Flag of a header: the end that began the flow has sent FIN.
const FIN_FORWARD: u64 = 1 << 9;
/// Flag of a header: the other end has sent FIN.
const FIN_BACKWARD: u64 = 1 << 10;
/// The other end has answered a SYN by a segment with SYN, and the handshake is not complete yet.
const SYN_ANSWERED: u64 = 1 << 11;
const VERSION_SHIFT: u32 = 16;
const TAG_SHIFT: u32 = 32;

// Body: words 0 to 3 are the two addresses; word 4 has the ports, the protocol, the NIC, the direction (bit 1) and the
// family (bit 0); word 5 is free; word 6 has the times, word 7 the link and the idle timeout.
const TIMES: usize = 6;
const ORIGIN: usize = 7;

/// The value that stands for the host in place of a link: the packet came from the host and not over a link.
pub const FROM_HOST: u32 = u32::MAX;

/// A key whose two ends (address and port) are in ascending order, so that the keys of both directions of a flow have
/// the same words.
struct Ordered {
    words: [u64; 6],
    /// Whether the packet of the key goes from the second end to the first one.
    from_second: bool,
}

impl Ordered {
    fn new(key: &FlowKey) -> Self {
        let (source, destination) = (bits(key.source), bits(key.destination));
        let from_second = (source, key.ports.0) > (destination, key.ports.1);
        let (first, second, ports) = if from_second {
            (destination, source, (key.ports.1, key.ports.0))
        } else {
            (source, destination, key.ports)
        };
        let family = u64::from(key.source.is_ipv6());
        // This is the direction of packets from the first end to the second one, which is the same for both directions
        // of a flow.
        let inbound = u64::from((key.direction == Direction::Inbound) != from_second);
        let rest = u64::from(ports.0) << 48 | u64::from(ports.1) << 32 | u64::from(key.protocol) << 24;
        Self {
            words: [
                high(first),
                low(first),
                high(second),
                low(second),
                rest | u64::from(key.nic) << 16 | inbound << 1 | family,
                0,
            ],
            from_second,
        }
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(a.to_bits()),
        IpAddr::V6(a) => a.to_bits(),
    }
}

const fn high(bits: u128) -> u64 {
    (bits >> 64) as u64
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half is wanted")]
const fn low(bits: u128) -> u64 {
    bits as u64
}

/// A copy of a body. The copy is valid only if the header has the same version before and after the copying.
type Body = [u64; BODY];

#[derive(Debug, Clone, Copy)]
struct Times {
    /// When the last packet came, in seconds since the table was made.
    last_seen: u32,
    /// When the flow was added, in seconds since the table was made.
    created: u32,
}

impl Times {
    const fn pack(self) -> u64 {
        (self.last_seen as u64) << 32 | self.created as u64
    }

    #[expect(clippy::cast_possible_truncation, reason = "each half of the word is one value")]
    const fn unpack(word: u64) -> Self {
        Self {
            last_seen: (word >> 32) as u32,
            created: word as u32,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Origin {
    /// The link over which the first packet came, or [`FROM_HOST`].
    link: u32,
    /// Time without packets after which an established flow ends, in seconds.
    idle_timeout: u32,
}

impl Origin {
    const fn pack(self) -> u64 {
        (self.link as u64) << 32 | self.idle_timeout as u64
    }

    #[expect(clippy::cast_possible_truncation, reason = "each half of the word is one value")]
    const fn unpack(word: u64) -> Self {
        Self {
            link: (word >> 32) as u32,
            idle_timeout: word as u32,
        }
    }
}

const fn status_of(header: u64) -> Option<FlowStatus> {
    match header & STATUS {
        UNANSWERED => Some(FlowStatus::Unanswered),
        ESTABLISHED => Some(FlowStatus::Established),
        CLOSING => Some(FlowStatus::Closing),
        _ => None,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the version's bits alone")]
const fn version_of(header: u64) -> u16 {
    (header >> VERSION_SHIFT) as u16
}

/// A header with the bits `rest` and with the version that follows the version of `before`.
const fn next_version(before: u64, rest: u64) -> u64 {
    rest | (version_of(before).wrapping_add(1) as u64) << VERSION_SHIFT
}

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
        let slots = (capacity + capacity / 4).next_multiple_of(BUCKET);
        Self {
            capacity,
            headers: zeroed(slots),
            bodies: zeroed(slots * BODY),
            hash: FixedState::with_seed(seed),
            unanswered: AtomicU32::new(0),
            total: AtomicU32::new(0),
            per_link: (0..links).map(|_| AtomicU32::new(0)).collect(),
            evictions: Evictions::default(),
        }
    }

    /// The number of flows for which the table was made.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// The number of entries, which is higher than the capacity. [`sweep`](Self::sweep) and
    /// [`remove_where`](Self::remove_where) visit the positions below this number.
    #[must_use]
    pub const fn entries(&self) -> usize {
        self.headers.len()
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
        let (slot, header) = self.search(&ordered, tag, buckets)?;
        let body = self.body(slot);
        if is_over(header, &body, now) {
            return None;
        }
        Some(flow_ref(slot, header, ordered.from_second))
    }

    /// Adds the flow of a packet that the rules have allowed. If the table has the flow already, removes the old entry
    /// first. `link` is the link over which the packet came, or [`FROM_HOST`]. `idle_timeout` is in seconds, and `now`
    /// in seconds since the table was made.
    ///
    /// # Errors
    /// There is no room, for the reason in [`Full`]. Nothing was added, and the caller must drop the packet.
    pub fn insert(&self, key: &FlowKey, link: u32, idle_timeout: u32, now: u32) -> Result<FlowRef, Full> {
        let ordered = Ordered::new(key);
        let (tag, buckets) = self.place(&ordered);
        if let Some((slot, header)) = self.search(&ordered, tag, buckets) {
            self.remove(slot, header);
        }
        let share_used = self.is_share_used(link);
        let mut attempts = 0;
        loop {
            let (slot, before) = self.choose(buckets, share_used, now)?;
            if self.claim(slot, before) {
                self.count_removed(slot, before, now);
                let flags = if ordered.from_second { FROM_SECOND } else { 0 };
                let header = next_version(before, UNANSWERED | flags | u64::from(tag) << TAG_SHIFT);
                let times = Times {
                    last_seen: now,
                    created: now,
                };
                let origin = Origin { link, idle_timeout };
                self.publish(slot, &ordered.words, times, origin, header);
                self.total.fetch_add(1, Ordering::Relaxed);
                self.count_unanswered(link, 1);
                return Ok(flow_ref(slot, header, ordered.from_second));
            }
            // Another lane took the entry. So whenever this lane fails, another lane has succeeded.
            attempts += 1;
            if attempts == BUCKET * 2 {
                return Err(Full::Bucket);
            }
        }
    }

    /// Notes a packet of the flow: the time `now`, in seconds since the table was made, and for TCP the packet's flags.
    /// Does nothing if another lane has removed the flow meanwhile.
    pub fn touch(&self, flow: &FlowRef, tcp: TcpFlags, now: u32) {
        let slot = flow.slot as usize;
        let header = &self.headers[slot];
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
            let origin = Origin::unpack(self.bodies[slot * BODY + ORIGIN].load(Ordering::Relaxed));
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
        // The word is written once a second at most, so that several cores can keep the cache line of a busy flow in
        // their caches.
        let times = &self.bodies[slot * BODY + TIMES];
        let seen = Times::unpack(times.load(Ordering::Relaxed));
        if seen.last_seen < now {
            times.store(Times { last_seen: now, ..seen }.pack(), Ordering::Relaxed);
        }
    }

    /// Visits `count` entries from the position `from` on, and removes flows that have been idle for too long. `now` is
    /// in seconds since the table was made. Returns the position at which the next call must begin: 0 after the last
    /// entry.
    pub fn sweep(&self, from: usize, count: usize, now: u32) -> usize {
        let from = if from < self.headers.len() { from } else { 0 };
        let end = (from + count).min(self.headers.len());
        for slot in from..end {
            let header = self.headers[slot].load(Ordering::Acquire);
            if status_of(header).is_some() && is_over(header, &self.body(slot), now) {
                self.remove(slot, header);
            }
        }
        if end == self.headers.len() { 0 } else { end }
    }

    /// Visits `count` entries from the position `from` on, and removes each flow for whose key `ends` returns true. The
    /// key is that of the packet that began the flow. Returns the position at which the next call must begin: 0 after
    /// the last entry.
    pub fn remove_where(&self, from: usize, count: usize, mut ends: impl FnMut(&FlowKey) -> bool) -> usize {
        let end = (from + count).min(self.headers.len());
        for slot in from..end {
            let header = self.headers[slot].load(Ordering::Acquire);
            if status_of(header).is_none() {
                continue;
            }
            let body = self.body(slot);
            fence(Ordering::Acquire);
            let unchanged = version_of(self.headers[slot].load(Ordering::Relaxed)) == version_of(header);
            if unchanged && ends(&key_of(header, &body)) {
                self.remove(slot, header);
            }
        }
        if end >= self.headers.len() { 0 } else { end }
    }

    fn place(&self, ordered: &Ordered) -> (u32, [usize; 2]) {
        let hash = self.hash.hash_one(ordered.words);
        let buckets = (self.headers.len() / BUCKET) as u64;
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

    fn search(&self, ordered: &Ordered, tag: u32, buckets: [usize; 2]) -> Option<(usize, u64)> {
        for bucket in buckets {
            for slot in bucket..bucket + BUCKET {
                let header = self.headers[slot].load(Ordering::Acquire);
                if header >> TAG_SHIFT != u64::from(tag) || status_of(header).is_none() {
                    continue;
                }
                let body = self.body(slot);
                fence(Ordering::Acquire);
                let again = self.headers[slot].load(Ordering::Relaxed);
                if version_of(again) == version_of(header) && body[..5] == ordered.words[..5] {
                    return Some((slot, header));
                }
            }
        }
        None
    }

    fn body(&self, slot: usize) -> Body {
        let mut body = [0; BODY];
        for (word, atomic) in body.iter_mut().zip(&self.bodies[slot * BODY..(slot + 1) * BODY]) {
            *word = atomic.load(Ordering::Relaxed);
        }
        body
    }

    /// Chooses the entry for a new flow, and returns its position and its present header. `share_used` says that flows
    /// without a reply have used up a share.
    ///
    /// If no share is used up, chooses an empty entry in the bucket that has more empty ones. So both buckets of a flow
    /// are full only when the whole table nearly is (Y. Azar et al., "Balanced Allocations", 1994). If there is none,
    /// chooses the entry of another flow, in this order (D32): a flow that is over, a flow without a reply, a closing
    /// flow, an established flow; of several, the one that was idle the longest. If a share is used up, chooses only
    /// the entry of a flow without a reply.
    fn choose(&self, buckets: [usize; 2], share_used: bool, now: u32) -> Result<(usize, u64), Full> {
        if !share_used {
            let [first, second] = buckets.map(|bucket| self.empty_entries(bucket));
            let more = if second.0 > first.0 { second.1 } else { first.1 };
            if let Some(found) = more {
                return Ok(found);
            }
        }
        let candidates = buckets.into_iter().flat_map(|bucket| bucket..bucket + BUCKET);
        let ranked = candidates.filter_map(|slot| {
            let header = self.headers[slot].load(Ordering::Acquire);
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
        let entries = (bucket..bucket + BUCKET).map(|slot| (slot, self.headers[slot].load(Ordering::Acquire)));
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
        let header = &self.headers[slot];
        let done = header
            .compare_exchange(before, claimed, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok();
        // The words of the body must not become visible before the claim.
        fence(Ordering::Release);
        done
    }

    /// Writes the body of a claimed entry, and then its header. The header ends the claim.
    fn publish(&self, slot: usize, key: &[u64; 6], times: Times, origin: Origin, header: u64) {
        let words = key.iter().copied().chain([times.pack(), origin.pack()]);
        for (atomic, word) in self.bodies[slot * BODY..(slot + 1) * BODY].iter().zip(words) {
            atomic.store(word, Ordering::Relaxed);
        }
        self.headers[slot].store(header, Ordering::Release);
    }

    /// Empties an entry, unless its header is no longer `header`.
    fn remove(&self, slot: usize, header: u64) {
        if self.claim(slot, header) {
            self.uncount(slot, header);
            self.headers[slot].store(next_version(header, EMPTY), Ordering::Release);
        }
    }

    /// Updates the counters for the flow that a claimed entry had under the header `before`, if it had one. Counts an
    /// eviction if this flow was not over at the time `now`.
    fn count_removed(&self, slot: usize, before: u64, now: u32) {
        let Some(status) = status_of(before) else { return };
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
        if header & STATUS == UNANSWERED {
            let origin = Origin::unpack(self.bodies[slot * BODY + ORIGIN].load(Ordering::Relaxed));
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

/// Maps all values of `part` evenly to numbers below `count`, which is less than 2^32.
const fn scale(part: u32, count: u64) -> u64 {
    (part as u64 * count) >> 32
}

fn flow_ref(slot: usize, header: u64, from_second: bool) -> FlowRef {
    #[expect(clippy::cast_possible_truncation, reason = "a table has at most 2^27 entries")]
    let slot = slot as u32;
    FlowRef {
        slot,
        version: version_of(header),
        forward: (header & FROM_SECOND != 0) == from_second,
        status: status_of(header).unwrap_or(FlowStatus::Unanswered),
    }
}

/// The header `before` as a packet with the flags `tcp` changes it. `forward`: the packet came from the end that began
/// the flow.
const fn advance(before: u64, forward: bool, tcp: TcpFlags) -> u64 {
    let status = before & STATUS;
    let mut after = before;
    if tcp.fin {
        after |= if forward { FIN_FORWARD } else { FIN_BACKWARD };
    }
    let both_closed = after & FIN_FORWARD != 0 && after & FIN_BACKWARD != 0;
    // An answer to a SYN proves nothing about the sender: its address may be forged. Only the segment that completes the
    // handshake shows that the sender gets the answers (D31, D32).
    let completes = forward && !tcp.syn && before & SYN_ANSWERED != 0;
    if !forward && tcp.syn {
        after |= SYN_ANSWERED;
    }
    let next = if tcp.rst || both_closed {
        CLOSING
    } else if status == UNANSWERED && ((!forward && !tcp.syn) || completes) {
        ESTABLISHED
    } else {
        status
    };
    after & !STATUS | next
}

/// Whether a flow has been idle for longer than its state allows, at the time `now` in seconds since the table was
/// made.
fn is_over(header: u64, body: &Body, now: u32) -> bool {
    let idle = now.saturating_sub(Times::unpack(body[TIMES]).last_seen);
    let idle_timeout = Origin::unpack(body[ORIGIN]).idle_timeout;
    let tcp = body[4] >> 24 & 0xff == u64::from(crate::packet::TCP);
    let timeout = match header & STATUS {
        UNANSWERED if tcp => seconds(HALF_OPEN_TIMEOUT).min(idle_timeout),
        CLOSING => seconds(CLOSING_TIMEOUT).min(idle_timeout),
        _ => idle_timeout,
    };
    idle > timeout
}

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}

/// The key of an entry, in the direction of the packet that began the flow.
fn key_of(header: u64, body: &Body) -> FlowKey {
    let address = |high: u64, low: u64| {
        let bits = u128::from(high) << 64 | u128::from(low);
        if body[4] & 1 == 1 {
            IpAddr::from(bits.to_be_bytes())
        } else {
            #[expect(clippy::cast_possible_truncation, reason = "an IPv4 address has 32 bits")]
            IpAddr::from((bits as u32).to_be_bytes())
        }
    };
    #[expect(clippy::cast_possible_truncation, reason = "each value has its place in the word")]
    let (port1, port2, protocol, nic) = (
        (body[4] >> 48) as u16,
        (body[4] >> 32) as u16,
        (body[4] >> 24) as u8,
        (body[4] >> 16) as u8,
    );
    let (first, second) = (address(body[0], body[1]), address(body[2], body[3]));
    let (source, destination, ports) = match header & FROM_SECOND {
        0 => (first, second, (port1, port2)),
        _ => (second, first, (port2, port1)),
    };
    let began_inbound = (body[4] >> 1 & 1 == 1) != (header & FROM_SECOND != 0);
    FlowKey {
        nic,
        direction: if began_inbound {
            Direction::Inbound
        } else {
            Direction::Outbound
        },
        protocol,
        source,
        destination,
        ports,
    }
}

/// `count` words that are 0. The kernel allocates their memory page by page, at the first write.
fn zeroed(count: usize) -> Box<[AtomicU64]> {
    <[AtomicU64]>::new_box_zeroed_with_elems(count).unwrap_or_else(|_| (0..count).map(|_| AtomicU64::new(0)).collect())
}

#[cfg(test)]
mod tests;
