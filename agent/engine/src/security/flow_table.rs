//! The flows that security rules have allowed (N6): one table for all lanes of an agent.
//!
//! One entry serves both directions of a flow. Lanes find, add and change entries at the same time, with atomic operations
//! and without a lock. A bucket has eight entries; a flow is in one of the two buckets that its hash selects.
//!
//! ```text
//! headers   [ 8 header words of a bucket = one cache line ]…    status, flags, version, tag of the hash
//! bodies    [ 8 words of an entry        = one cache line ]…    addresses, ports, times, origin
//! ```
//!
//! An entry is written like a seqlock: the writer claims the header (status `BUSY`, next version), writes the body, and
//! publishes the header. A reader compares the body and then checks that the header has the same version as before.
//! A reader that loses the race sees no flow, so that the rules decide about its packet again.

use foldhash::fast::FixedState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::time::Duration;
use tombolo_proto::config::Direction;
use zerocopy::FromZeros;

/// Entries of a bucket: their headers fill a cache line.
const BUCKET: usize = 8;

/// Words of an entry's body: a cache line.
const BODY: usize = 8;

/// Smallest and largest capacity, flows. The largest takes 9 GiB.
pub const CAPACITY: std::ops::RangeInclusive<usize> = 1024..=1 << 27;

/// TCP whose handshake is not complete is forgotten after this silence: 60 s (D31), so that a flood of SYNs leaves soon, and a
/// client's second to fifth attempt (RFC 6298: 1, 3, 7, 15 s) still finds its flow.
const HALF_OPEN_TIMEOUT: Duration = Duration::from_secs(60);

/// TCP that both ends have closed is forgotten after this silence: long enough for a last ACK that was lost (D31).
const CLOSING_TIMEOUT: Duration = Duration::from_secs(10);

/// Flows without a reply may use this part of the table (D32).
const UNANSWERED_SHARE: usize = 4;

/// Flows without a reply over one link may use this part of the table: half of the share of all links (D32).
const LINK_SHARE: usize = 8;

/// What names a flow at one NIC, as the packet at hand has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowKey {
    /// The position of the NIC among those of the agent.
    pub nic: u8,
    /// Whether the packet comes to the NIC or leaves it. An appliance's NIC sees a packet that it forwards twice: the flow
    /// that comes in and the flow that goes out are two flows, because the rules of both directions apply (D25).
    pub direction: Direction,
    /// The IP protocol's number.
    pub protocol: u8,
    /// The source address.
    pub source: IpAddr,
    /// The destination address.
    pub destination: IpAddr,
    /// Source and destination port; for ICMP echo the identifier, twice; zeros for protocols that have neither.
    pub ports: (u16, u16),
}

/// Where a flow stands (D31).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowStatus {
    /// No packet of the other end has come yet.
    Unanswered,
    /// Packets have come from both ends.
    Established,
    /// TCP: both ends have sent FIN, or one has sent RST.
    Closing,
}

/// A flow that was found or added. It names an entry and the version that it had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowRef {
    slot: u32,
    version: u16,
    /// Whether the packet at hand goes the way of the packet that began the flow.
    pub forward: bool,
    /// Where the flow stood before the packet at hand.
    pub status: FlowStatus,
}

impl FlowRef {
    /// Whether a SYN of this flow is the one that began it, sent again.
    #[must_use]
    pub fn is_repeated_syn(&self) -> bool {
        self.forward && self.status == FlowStatus::Unanswered
    }
}

/// Why a flow was not added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// Flows without a reply use their share of the table, or of the link's.
    Unanswered,
    /// Both buckets are full of flows that must not be evicted for it.
    Bucket,
}

/// Flows that were removed before their time, by what they were.
#[derive(Debug, Default)]
pub struct Evictions {
    /// Without a reply.
    pub unanswered: AtomicU64,
    /// Closing.
    pub closing: AtomicU64,
    /// Established.
    pub established: AtomicU64,
}

/// The TCP flags of a packet that matter here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TcpFlags {
    /// FIN.
    pub fin: bool,
    /// RST.
    pub rst: bool,
    /// SYN, with or without ACK: the segment belongs to a handshake.
    pub syn: bool,
}

/// The table.
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
/// The flow began at the end that is the second one in the key's order.
const FROM_SECOND: u64 = 1 << 8;
/// FIN came from the end that began the flow, and from the other one.
const FIN_FORWARD: u64 = 1 << 9;
const FIN_BACKWARD: u64 = 1 << 10;
/// The other end has answered a SYN by a segment with SYN, and the handshake is not complete yet.
const SYN_ANSWERED: u64 = 1 << 11;
const VERSION_SHIFT: u32 = 16;
const TAG_SHIFT: u32 = 32;

// Body: words 0 to 3 are the two addresses; word 4 has the ports, the protocol, the NIC, the direction (bit 1) and the family
// (bit 0); word 5 is free; word 6 has the times, word 7 the link and the idle timeout.
const TIMES: usize = 6;
const ORIGIN: usize = 7;

/// No link: the flow began at this host.
pub const FROM_HOST: u32 = u32::MAX;

/// A key in the order of its ends, so that both directions have the same words.
struct Ordered {
    words: [u64; 6],
    /// The packet at hand goes from the second end to the first.
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
        // The direction of packets from the first end to the second one: the same for both directions of a flow.
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

/// A body as a reader saw it.
type Body = [u64; BODY];

#[derive(Debug, Clone, Copy)]
struct Times {
    /// Seconds since the table was made.
    last_seen: u32,
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
    /// The link that the first packet came over, or [`FROM_HOST`].
    link: u32,
    /// Silence after which an established flow is forgotten, seconds.
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

/// A claimed or published header of the version after the one in `before`.
const fn next_version(before: u64, rest: u64) -> u64 {
    rest | (version_of(before).wrapping_add(1) as u64) << VERSION_SHIFT
}

impl FlowTable {
    /// A table for `capacity` flows, within [`CAPACITY`]. `links` is the number of links whose
    /// share is counted; flows over other links count for the table alone. `seed` is a number that strangers do not know:
    /// it keeps them from choosing flows that fall into one bucket.
    ///
    /// Memory is 90 bytes a flow, a fifth of it for entries that stay empty, so that buckets do not overflow before the table is
    /// full. The kernel gives it page by page, as flows come.
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

    /// How many flows it is made for.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many entries it has: the range of [`sweep`](Self::sweep) and [`remove_where`](Self::remove_where).
    #[must_use]
    pub const fn entries(&self) -> usize {
        self.headers.len()
    }

    /// How many flows it holds, those included that are over and not swept yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.total.load(Ordering::Relaxed) as usize
    }

    /// Whether it holds no flow.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Flows without a reply.
    #[must_use]
    pub fn unanswered(&self) -> usize {
        self.unanswered.load(Ordering::Relaxed) as usize
    }

    /// How many flows were removed before their time.
    #[must_use]
    pub const fn evictions(&self) -> &Evictions {
        &self.evictions
    }

    /// The flow of a packet; `None` if there is none, or if it has been idle for too long. `now` is seconds since the table
    /// was made.
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

    /// Adds the flow of a packet that the rules have allowed, or renews the one that is there.
    ///
    /// # Errors
    /// The table, or the link's share of it, is full: nothing was added, and the caller drops the packet.
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
            // Another lane took the entry. Each lost race means that another lane went on.
            attempts += 1;
            if attempts == BUCKET * 2 {
                return Err(Full::Bucket);
            }
        }
    }

    /// Notes a packet of the flow: the time, and for TCP its flags. A flow that another lane removed meanwhile stays removed.
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
            // Read before the exchange: as long as the version is the same, so is the body.
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
        // Lanes write to the line once a second at most, so that a busy flow's line stays shared between cores.
        let times = &self.bodies[slot * BODY + TIMES];
        let seen = Times::unpack(times.load(Ordering::Relaxed));
        if seen.last_seen < now {
            times.store(Times { last_seen: now, ..seen }.pack(), Ordering::Relaxed);
        }
    }

    /// Removes flows that have been idle for too long from `count` entries, beginning at `from`. Returns where to go on.
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

    /// Removes every flow for which `ends` says so, of `count` entries, beginning at `from`. Returns where to go on; 0 when all
    /// entries were seen.
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
        // Another bucket than the first one, whatever the hash.
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

    /// The entry to use for a new flow. While there is room, an empty one of the bucket that has more of them: so both buckets
    /// of a flow are full only when the whole table nearly is (Y. Azar et al., "Balanced Allocations", 1994). Else, by D32, the
    /// oldest flow without a reply, the oldest that closes, the one that was idle the longest.
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
                // A flow without a reply takes no other flow's place while such flows have their share already.
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

    /// How many entries of a bucket are empty, and one of them.
    fn empty_entries(&self, bucket: usize) -> (usize, Option<(usize, u64)>) {
        let entries = (bucket..bucket + BUCKET).map(|slot| (slot, self.headers[slot].load(Ordering::Acquire)));
        let mut empty = entries.filter(|(_, header)| header & STATUS == EMPTY);
        let one = empty.next();
        (usize::from(one.is_some()) + empty.count(), one)
    }

    fn is_share_used(&self, link: u32) -> bool {
        let of_link = self
            .per_link
            .get(link as usize)
            .map_or(0, |c| c.load(Ordering::Relaxed));
        self.unanswered() >= self.capacity() / UNANSWERED_SHARE || of_link as usize >= self.capacity() / LINK_SHARE
    }

    /// Makes an entry this lane's to write, if it is still as it was.
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

    fn publish(&self, slot: usize, key: &[u64; 6], times: Times, origin: Origin, header: u64) {
        let words = key.iter().copied().chain([times.pack(), origin.pack()]);
        for (atomic, word) in self.bodies[slot * BODY..(slot + 1) * BODY].iter().zip(words) {
            atomic.store(word, Ordering::Relaxed);
        }
        self.headers[slot].store(header, Ordering::Release);
    }

    fn remove(&self, slot: usize, header: u64) {
        if self.claim(slot, header) {
            self.uncount(slot, header);
            self.headers[slot].store(next_version(header, EMPTY), Ordering::Release);
        }
    }

    /// Counts what a claimed entry was before it is written anew.
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

    fn uncount(&self, slot: usize, header: u64) {
        self.total.fetch_sub(1, Ordering::Relaxed);
        if header & STATUS == UNANSWERED {
            let origin = Origin::unpack(self.bodies[slot * BODY + ORIGIN].load(Ordering::Relaxed));
            self.count_unanswered(origin.link, -1);
        }
    }

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

/// The header after a packet of the flow.
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

/// Whether a flow was idle for longer than its status allows.
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

/// Memory that the kernel has zeroed, and gives page by page at the first write.
fn zeroed(count: usize) -> Box<[AtomicU64]> {
    <[AtomicU64]>::new_box_zeroed_with_elems(count).unwrap_or_else(|_| (0..count).map(|_| AtomicU64::new(0)).collect())
}

#[cfg(test)]
mod tests;
