//! The packets and bytes of flows at NICs with a flow log (N14). Each entry of the table has three words here, which are
//! allocated when the first NIC gets a log:
//!
//! ```text
//! forward    packets, bytes     since the last record, in the direction of the packet that began the flow
//! backward   packets, bytes     in the other direction
//! record     tag, time          0: the flow's packets are not counted
//! ```
//!
//! Packets and bytes share a word, so that a packet costs one atomic addition.

use super::entry::{TIMES, Times, key_of, status_of, version_of};
use super::{FlowKey, FlowRef, FlowTable, zeroed};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Number of words of an entry.
const WORDS: usize = 3;
const FORWARD: usize = 0;
const BACKWARD: usize = 1;
const RECORD: usize = 2;

/// Number of bytes in one direction after which a flow gets a record before its time, so that the 32 bits of the counter
/// do not overflow. Each lane adds at most 64 KiB at a time, so the second half of the range is enough for any number of
/// lanes.
const MUST_RECORD: u32 = 1 << 31;

/// Stands for the time of the last record while a lane takes the counters.
const TAKING: u32 = u32::MAX;

/// Time between two records of a flow that goes on, in seconds (N14).
pub const RECORD_INTERVAL: u32 = 300;

/// The counters of one direction of a flow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Number of packets.
    pub packets: u32,
    /// Sum of the packets' lengths, from their IP headers on.
    pub bytes: u32,
}

impl Counted {
    #[expect(clippy::cast_possible_truncation, reason = "each half of the word is one value")]
    const fn of(word: u64) -> Self {
        Self {
            packets: (word >> 32) as u32,
            bytes: word as u32,
        }
    }
}

/// The state of a flow for a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowReport {
    /// The key of the packet that began the flow.
    pub key: FlowKey,
    /// The number with which counting began. Never 0.
    pub tag: u32,
    /// The packets since the last record in the direction of the packet that began the flow.
    pub forward: Counted,
    /// The packets since the last record in the other direction.
    pub backward: Counted,
    /// The time of the flow's last packet, in seconds since the table was made.
    pub last_seen: u32,
    /// Whether the flow has ended: the table does not have it any more.
    pub is_over: bool,
}

/// A flow whose packets are counted, as a lane's cache remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CountedFlow {
    slot: u32,
    version: u16,
    /// Whether the packet has the direction of the packet that began the flow.
    forward: bool,
}

/// The outcome of the counting of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// It is counted.
    Done,
    /// It is counted. The counters must soon be taken by [`FlowTable::record_now`].
    Full,
    /// The table does not have the flow any more.
    Gone,
}

/// The words of all entries.
#[derive(Debug)]
pub(super) struct Counters(Box<[AtomicU64]>);

impl Counters {
    fn word(&self, slot: usize, word: usize) -> &AtomicU64 {
        &self.0[slot * WORDS + word]
    }

    fn tag(&self, slot: usize) -> u32 {
        (self.word(slot, RECORD).load(Ordering::Relaxed) >> 32) as u32
    }

    /// Begins to count for the flow of an entry. To be called while the entry is claimed.
    pub(super) fn begin(&self, slot: usize, tag: u32, now: u32) {
        self.word(slot, FORWARD).store(0, Ordering::Relaxed);
        self.word(slot, BACKWARD).store(0, Ordering::Relaxed);
        self.word(slot, RECORD).store(record(tag, now), Ordering::Relaxed);
    }

    /// Takes the counters of a flow, if its packets are counted and `wants` returns true for the time of its last record. If
    /// several lanes try at once, one of them gets the counters.
    fn take(&self, slot: usize, now: u32, wants: impl Fn(u32) -> bool) -> Option<(u32, Counted, Counted)> {
        let tag = self.claim(slot, wants)?;
        let counted = self.reset(slot);
        let (word, taking) = (self.word(slot, RECORD), record(tag, TAKING));
        // If the flow has ended meanwhile, the word is that of the next flow.
        let _ = word.compare_exchange(taking, record(tag, now), Ordering::Relaxed, Ordering::Relaxed);
        Some((tag, counted.0, counted.1))
    }

    /// Marks the counters of a flow as being taken, and returns its tag. `None`: its packets are not counted, another lane takes
    /// them, or `wants` returns false for the time of its last record.
    fn claim(&self, slot: usize, wants: impl Fn(u32) -> bool) -> Option<u32> {
        let word = self.word(slot, RECORD);
        let before = word.load(Ordering::Relaxed);
        #[expect(clippy::cast_possible_truncation, reason = "each half of the word is one value")]
        let (tag, last) = ((before >> 32) as u32, before as u32);
        if tag == 0 || last == TAKING || !wants(last) {
            return None;
        }
        let claimed = word.compare_exchange(before, record(tag, TAKING), Ordering::Relaxed, Ordering::Relaxed);
        claimed.ok().map(|_| tag)
    }

    /// Takes the counters of a flow that has ended, whatever other lanes do, and counts no more. To be called while the entry
    /// is claimed.
    fn take_last(&self, slot: usize) -> Option<(u32, Counted, Counted)> {
        let tag = (self.word(slot, RECORD).swap(0, Ordering::Relaxed) >> 32) as u32;
        let (forward, backward) = self.reset(slot);
        (tag != 0).then_some((tag, forward, backward))
    }

    fn reset(&self, slot: usize) -> (Counted, Counted) {
        let take = |direction| Counted::of(self.word(slot, direction).swap(0, Ordering::Relaxed));
        (take(FORWARD), take(BACKWARD))
    }
}

/// The third word of an entry. It is 0 without a tag.
const fn record(tag: u32, now: u32) -> u64 {
    if tag == 0 { 0 } else { (tag as u64) << 32 | now as u64 }
}

impl FlowRef {
    /// The flow for [`FlowTable::count`].
    #[must_use]
    pub const fn counted(&self) -> CountedFlow {
        CountedFlow {
            slot: self.slot,
            version: self.version,
            forward: self.forward,
        }
    }
}

impl FlowTable {
    /// Lets the table have counters for its flows. They take 30 bytes for each flow, which the kernel allocates page by page.
    pub fn keep_counters(&self) {
        self.counters.get_or_init(|| Counters(zeroed(self.entries() * WORDS)));
    }

    /// Counts the packets of no flow any more. To be called while no lane counts.
    pub fn forget_counters(&self) {
        let Some(counters) = self.counters.get() else { return };
        for slot in 0..self.entries() {
            if counters.tag(slot) != 0 {
                counters.begin(slot, 0, 0);
            }
        }
    }

    /// The numbers with which the counting of all flows began.
    #[must_use]
    pub fn tags(&self) -> BTreeSet<u32> {
        let Some(counters) = self.counters.get() else {
            return BTreeSet::new();
        };
        (0..self.entries())
            .map(|slot| counters.tag(slot))
            .filter(|tag| *tag != 0)
            .collect()
    }

    /// The number with which the counting of a flow began. `None`: its packets are not counted, or the table does not have
    /// the flow any more.
    #[must_use]
    pub fn tag_of(&self, flow: &CountedFlow) -> Option<u32> {
        let tag = self.counters.get()?.tag(flow.slot as usize);
        (tag != 0 && self.has(flow)).then_some(tag)
    }

    /// Begins to count the packets of a flow that the table has already. `tag`: a number that its records will have; not 0.
    pub fn begin_counting(&self, flow: &CountedFlow, tag: u32, now: u32) {
        let Some(counters) = self.counters.get() else { return };
        if self.has(flow) {
            // Another lane may have begun meanwhile.
            let word = counters.word(flow.slot as usize, RECORD);
            let _ = word.compare_exchange(0, record(tag, now), Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Counts a packet of `bytes` bytes.
    #[inline]
    pub fn count(&self, flow: &CountedFlow, bytes: usize) -> Count {
        let Some(counters) = self.counters.get().filter(|_| self.has(flow)) else {
            return Count::Gone;
        };
        let direction = if flow.forward { FORWARD } else { BACKWARD };
        let one = 1 << 32 | bytes as u64 & 0xffff;
        // If another lane replaces the flow at this moment, the packet counts for the new flow of the entry.
        let before = counters
            .word(flow.slot as usize, direction)
            .fetch_add(one, Ordering::Relaxed);
        if Counted::of(before.wrapping_add(one)).bytes >= MUST_RECORD {
            Count::Full
        } else {
            Count::Done
        }
    }

    /// Passes the state of a flow whose counters are full to `report`.
    pub fn record_now(&self, flow: &CountedFlow, now: u32, report: &mut impl FnMut(&FlowReport)) {
        if self.has(flow) {
            self.report(flow.slot as usize, now, |_| true, report);
        }
    }

    /// Passes the state of every counted flow to `report`.
    pub fn record_all(&self, now: u32, report: &mut impl FnMut(&FlowReport)) {
        for slot in 0..self.entries() {
            self.report(slot, now, |_| true, report);
        }
    }

    /// The key of the packet that began a flow. `None`: the table does not have the flow any more.
    #[must_use]
    pub fn key(&self, flow: &CountedFlow) -> Option<FlowKey> {
        let (key, _) = self.read(flow.slot as usize)?;
        self.has(flow).then_some(key)
    }

    /// Passes the state of the flow of an entry to `report`, if its last record is [`RECORD_INTERVAL`] old.
    pub(super) fn report_due(&self, slot: usize, now: u32, report: &mut impl FnMut(&FlowReport)) {
        let is_due = |last: u32| now.saturating_sub(last) >= RECORD_INTERVAL;
        self.report(slot, now, is_due, report);
    }

    /// Passes the last state of the flow of an entry to `report`. The entry is claimed, and had the header `before`.
    pub(super) fn report_end(&self, slot: usize, before: u64, report: &mut impl FnMut(&FlowReport)) {
        let Some(counters) = self.counters.get() else { return };
        if let Some((tag, forward, backward)) = counters.take_last(slot) {
            let body = self.body(slot);
            report(&FlowReport {
                key: key_of(before, &body),
                tag,
                forward,
                backward,
                last_seen: Times::unpack(body[TIMES]).last_seen,
                is_over: true,
            });
        }
    }

    fn report(&self, slot: usize, now: u32, wants: impl Fn(u32) -> bool, report: &mut impl FnMut(&FlowReport)) {
        let Some(counters) = self.counters.get() else { return };
        if counters.tag(slot) == 0 {
            return;
        }
        let Some((key, last_seen)) = self.read(slot) else {
            return;
        };
        if let Some((tag, forward, backward)) = counters.take(slot, now, wants) {
            report(&FlowReport {
                key,
                tag,
                forward,
                backward,
                last_seen,
                is_over: false,
            });
        }
    }

    /// The key of the flow of an entry, and the time of its last packet. `None`: it has no flow, or another lane was changing
    /// it.
    fn read(&self, slot: usize) -> Option<(FlowKey, u32)> {
        let header = self.header(slot).load(Ordering::Acquire);
        status_of(header)?;
        let body = self.body(slot);
        fence(Ordering::Acquire);
        let again = self.header(slot).load(Ordering::Relaxed);
        let last_seen = Times::unpack(self.words_of(slot)[TIMES].load(Ordering::Relaxed)).last_seen;
        (version_of(again) == version_of(header)).then(|| (key_of(header, &body), last_seen))
    }

    /// Whether the table still has the flow.
    pub(super) fn has(&self, flow: &CountedFlow) -> bool {
        let header = self.header(flow.slot as usize).load(Ordering::Acquire);
        version_of(header) == flow.version && status_of(header).is_some()
    }
}

#[cfg(test)]
mod tests;
