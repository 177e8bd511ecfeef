//! What load balancers remember of flows that have no entry in the flow table (L4, D35). All lanes of an agent share one
//! memory.
//!
//! An entry has words of 64 bits, which are read and written without a lock:
//!
//! ```text
//! check     hash of the flow, XOR hash of the value
//! value     N words
//! state     last second with a packet (32 bits), idle timeout in seconds (24 bits), stage (8 bits)
//! ```
//!
//! A lane that reads an entry while another lane writes it finds a check that does not fit the value, and takes the entry
//! for that of another flow. The whole hash stands for the flow: it has 64 bits and depends on a secret, so two flows
//! with the same hash do not occur in practice.

use super::flow_table::{scale, zeroed};
use crate::packet::{PacketInfo, TCP, UDP, opens_connection};
use foldhash::fast::FixedState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Number of entries from which a new flow takes one. A flow can be in no other entries.
const SET: usize = 8;

/// A connection of which only SYNs have come ends after this time, in seconds, as in the table of flows (D31).
pub(super) const HALF_OPEN_TIMEOUT: u32 = 60;

/// The part of a TCP connection to which a packet belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// SYN without ACK: the packet asks for a new connection.
    Begin,
    /// Any other segment, and all packets of other protocols.
    Middle,
    /// FIN or RST.
    End,
}

impl Part {
    /// The part of a packet. `info` must be the result of parsing `packet`.
    pub(super) fn of(packet: &[u8], info: &PacketInfo) -> Self {
        const FLAGS: usize = 13;
        const FIN: u8 = 0x01;
        const RST: u8 = 0x04;
        let at = info.transport.filter(|_| info.protocol == TCP);
        match at.and_then(|at| packet.get(at + FLAGS)) {
            _ if opens_connection(packet, info) => Self::Begin,
            Some(flags) if flags & (FIN | RST) != 0 => Self::End,
            Some(_) | None => Self::Middle,
        }
    }
}

// The stages of a flow. An entry without a flow has the state 0.
/// A packet with FIN or RST has come.
const ENDED: u64 = 1;
/// Only SYNs have come.
const ASKED: u64 = 2;
/// One packet without SYN has come.
const BEGUN: u64 = 3;
/// Several packets have come.
const USED: u64 = 4;

/// A state word, unpacked.
#[derive(Clone, Copy)]
struct State {
    last_seen: u32,
    timeout: u32,
    stage: u64,
}

impl State {
    const fn unpack(word: u64) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "each value has its place in the word")]
        Self {
            last_seen: (word >> 32) as u32,
            timeout: (word as u32) >> 8,
            stage: word & 0xff,
        }
    }

    const fn pack(self) -> u64 {
        const LONGEST: u32 = 0xff_ffff;
        let timeout = if self.timeout > LONGEST { LONGEST } else { self.timeout };
        (self.last_seen as u64) << 32 | (timeout as u64) << 8 | self.stage
    }

    fn is_over(self, now: u32) -> bool {
        let timeout = match self.stage {
            ASKED => self.timeout.min(HALF_OPEN_TIMEOUT),
            _ => self.timeout,
        };
        self.stage == 0 || now.saturating_sub(self.last_seen) > timeout
    }

    /// Of a full set, the entry with the lowest rank is replaced: one without a flow, then a flow that has ended, then
    /// one of which a single packet has come, and then the one that was idle the longest.
    fn rank(self, now: u32) -> (u8, u32) {
        match self.stage {
            _ if self.is_over(now) => (0, 0),
            ENDED => (1, self.last_seen),
            ASKED | BEGUN => (2, self.last_seen),
            _ => (3, self.last_seen),
        }
    }
}

/// A memory that keeps a value of N words for each flow. Its size never changes.
#[derive(Debug)]
pub(super) struct FlowMemory<const N: usize> {
    words: Box<[AtomicU64]>,
    hash: FixedState,
    began: Instant,
    /// Number of flows in use that were replaced by other flows.
    replaced: AtomicU64,
}

impl<const N: usize> FlowMemory<N> {
    /// Number of words of an entry.
    const ENTRY: usize = N + 2;

    /// A memory for about `flows` flows. `seed` must be secret and random, so that no sender can choose flows that replace
    /// each other. `now`: the present time; later times must not be before it.
    pub(super) fn new(flows: usize, seed: u64, now: Instant) -> Self {
        Self {
            words: zeroed(flows.div_ceil(SET).max(1) * SET * Self::ENTRY),
            hash: FixedState::with_seed(seed),
            began: now,
            replaced: AtomicU64::new(0),
        }
    }

    /// Number of flows in use that were replaced by other flows, because the memory was full.
    pub(super) fn replaced(&self) -> u64 {
        self.replaced.load(Ordering::Relaxed)
    }

    /// The value of a packet's flow. `None`: it is not known, or the packet asks for a new connection and does not
    /// repeat the SYN of one that has just begun.
    pub(super) fn find(&self, packet: &PacketInfo, part: Part, now: Instant) -> Option<[u64; N]> {
        let now = self.second(now);
        let (hash, set) = self.place(packet);
        let (_, value, state) = self.search(hash, set)?;
        let is_known = !state.is_over(now) && (part != Part::Begin || state.stage == ASKED);
        is_known.then_some(value)
    }

    /// Notes a packet of a flow and the flow's value. `timeout`: time without packets after which the flow ends, in
    /// seconds.
    pub(super) fn note(&self, packet: &PacketInfo, part: Part, value: [u64; N], timeout: u32, now: Instant) {
        let now = self.second(now);
        let (hash, set) = self.place(packet);
        let known = self.search(hash, set.clone());
        let before = known.map_or(0, |(_, _, state)| if state.is_over(now) { 0 } else { state.stage });
        let stage = match (part, before) {
            (Part::Begin, _) => ASKED,
            // A connection that is not known ends: no more packets will come.
            (Part::End, 0) => return,
            (Part::End, _) | (Part::Middle, ENDED) => ENDED,
            (Part::Middle, 0) => BEGUN,
            (Part::Middle, _) => USED,
        };
        let state = State {
            last_seen: now,
            timeout,
            stage,
        };
        let at = match known {
            Some((at, _, _)) => at,
            None => self.free(set, now),
        };
        let [check, words @ .., of_state] = self.entry(at) else {
            return;
        };
        if known.is_none_or(|(_, known, _)| known != value) {
            for (word, value) in words.iter().zip(value) {
                word.store(value, Ordering::Relaxed);
            }
            check.store(hash ^ hash_of_value(&value), Ordering::Relaxed);
        }
        // The word is written once a second at most for most flows, so that several cores can keep the cache line.
        if of_state.load(Ordering::Relaxed) != state.pack() {
            of_state.store(state.pack(), Ordering::Relaxed);
        }
    }

    /// Frees the entry of a set that is replaced first, and returns its position.
    fn free(&self, set: Range<usize>, now: u32) -> usize {
        let state = |at: &usize| {
            let word = self.entry(*at).last();
            State::unpack(word.map_or(0, |word| word.load(Ordering::Relaxed)))
        };
        let first = set.start;
        let at = set.min_by_key(|at| state(at).rank(now)).unwrap_or(first);
        let replaced = state(&at);
        if replaced.stage == USED && !replaced.is_over(now) {
            self.replaced.fetch_add(1, Ordering::Relaxed);
        }
        at
    }

    /// The position, value and state of the entry with this hash.
    fn search(&self, hash: u64, mut set: Range<usize>) -> Option<(usize, [u64; N], State)> {
        set.find_map(|at| {
            let [check, words @ .., state] = self.entry(at) else {
                return None;
            };
            let state = State::unpack(state.load(Ordering::Relaxed));
            let mut value = [0; N];
            for (value, word) in value.iter_mut().zip(words) {
                *value = word.load(Ordering::Relaxed);
            }
            let is_it = check.load(Ordering::Relaxed) ^ hash_of_value(&value) == hash;
            (is_it && state.stage != 0).then_some((at, value, state))
        })
    }

    fn entry(&self, at: usize) -> &[AtomicU64] {
        &self.words[at * Self::ENTRY..(at + 1) * Self::ENTRY]
    }

    /// The hash of a packet's flow, and the entries in which the flow may be. Both directions of a flow have the same.
    fn place(&self, packet: &PacketInfo) -> (u64, Range<usize>) {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(a) => u128::from(a.to_bits()),
            IpAddr::V6(a) => a.to_bits(),
        };
        let (from, to) = match packet.protocol {
            TCP | UDP => (packet.ports >> 16, packet.ports & 0xffff),
            _ => (0, 0),
        };
        let (source, destination) = ((bits(packet.source), from), (bits(packet.destination), to));
        let (first, second) = (source.min(destination), source.max(destination));
        let hash = self
            .hash
            .hash_one((first, second, packet.protocol, packet.source.is_ipv6()));
        let sets = (self.words.len() / (SET * Self::ENTRY)) as u64;
        #[expect(clippy::cast_possible_truncation, reason = "the number of a set fits into usize")]
        let set = scale((hash >> 32) as u32, sets) as usize * SET;
        (hash, set..set + SET)
    }

    /// A time by the clock of the memory, in seconds.
    #[expect(clippy::cast_possible_truncation, reason = "135 years")]
    fn second(&self, now: Instant) -> u32 {
        now.saturating_duration_since(self.began).as_secs() as u32
    }
}

/// A hash of a value: if a lane reads words of two values, the result is that of neither.
fn hash_of_value(value: &[u64]) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    value
        .iter()
        .fold(0, |hash: u64, word| (hash ^ word).wrapping_mul(ODD).rotate_left(29))
}

#[cfg(test)]
mod tests;
