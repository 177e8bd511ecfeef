//! The choices of load balancers for flows that only pass an agent, such as a gateway (L4, D35). All lanes of the agent
//! share one table.
//!
//! An entry has three words, which are read and written without a lock:
//!
//! ```text
//! check    hash of the flow, XOR choice
//! choice
//! state    last second with a packet (32 bits), idle timeout in seconds (24 bits), stage (8 bits)
//! ```
//!
//! A lane that reads an entry while another lane writes it finds a check that does not fit the choice, and takes the
//! entry for that of another flow. The whole hash stands for the flow: it has 64 bits and depends on a secret, so two
//! flows with the same hash do not occur in practice.

use super::flow_table::{scale, zeroed};
use crate::packet::{PacketInfo, TCP, UDP, opens_connection};
use crate::tables::Choice;
use foldhash::fast::FixedState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Number of flows for each lane of the agent. The entries of a lane take 1.5 MiB, which the kernel allocates page by
/// page as flows come.
pub(super) const FLOWS_OF_LANE: usize = 65_536;

/// Number of entries from which a new flow takes one. A flow can be in no other entries.
const SET: usize = 8;

/// Number of words of an entry.
const WORDS: usize = 3;

/// A connection of which only SYNs have come ends after this time, in seconds, as in the table of flows (D31).
const HALF_OPEN_TIMEOUT: u32 = 60;

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

/// A table of choices. Its size never changes.
#[derive(Debug)]
pub(super) struct Choices {
    words: Box<[AtomicU64]>,
    hash: FixedState,
    began: Instant,
    /// Number of choices of flows in use that were replaced by those of other flows.
    replaced: AtomicU64,
}

impl Choices {
    /// A table for about `flows` flows. `seed` must be secret and random, so that no sender can choose flows that replace
    /// each other. `now`: the present time; later times must not be before it.
    pub(super) fn new(flows: usize, seed: u64, now: Instant) -> Self {
        Self {
            words: zeroed(flows.div_ceil(SET).max(1) * SET * WORDS),
            hash: FixedState::with_seed(seed),
            began: now,
            replaced: AtomicU64::new(0),
        }
    }

    /// Number of choices of flows in use that were replaced by those of other flows, because the table was full.
    pub(super) fn replaced(&self) -> u64 {
        self.replaced.load(Ordering::Relaxed)
    }

    /// The choice for the flow of a packet. `None`: it is not known, or the packet asks for a new connection and does not
    /// repeat the SYN of one that has just begun.
    pub(super) fn find(&self, packet: &PacketInfo, part: Part, now: Instant) -> Option<Choice> {
        let now = self.second(now);
        let (hash, set) = self.place(packet);
        let (_, choice, state) = self.search(hash, set)?;
        let is_known = !state.is_over(now) && (part != Part::Begin || state.stage == ASKED);
        is_known.then_some(choice)
    }

    /// Notes a packet of a flow and the choice for it. `timeout`: time without packets after which the flow ends, in
    /// seconds.
    pub(super) fn note(&self, packet: &PacketInfo, part: Part, choice: Choice, timeout: u32, now: Instant) {
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
        let [check, place, of_state] = self.entry(at);
        if known.is_none_or(|(_, known, _)| known != choice) {
            place.store(choice.0, Ordering::Relaxed);
            check.store(hash ^ choice.0, Ordering::Relaxed);
        }
        // The word is written once a second at most for most flows, so that several cores can keep the cache line.
        if of_state.load(Ordering::Relaxed) != state.pack() {
            of_state.store(state.pack(), Ordering::Relaxed);
        }
    }

    /// Frees the entry of a set that is replaced first, and returns its position.
    fn free(&self, set: Range<usize>, now: u32) -> usize {
        let state = |at: &usize| State::unpack(self.entry(*at)[2].load(Ordering::Relaxed));
        let first = set.start;
        let at = set.min_by_key(|at| state(at).rank(now)).unwrap_or(first);
        let replaced = state(&at);
        if replaced.stage == USED && !replaced.is_over(now) {
            self.replaced.fetch_add(1, Ordering::Relaxed);
        }
        at
    }

    /// The position, choice and state of the entry with this hash.
    fn search(&self, hash: u64, mut set: Range<usize>) -> Option<(usize, Choice, State)> {
        set.find_map(|at| {
            let [check, choice, state] = self.entry(at).each_ref().map(|word| word.load(Ordering::Relaxed));
            let state = State::unpack(state);
            (check ^ choice == hash && state.stage != 0).then_some((at, Choice(choice), state))
        })
    }

    fn entry(&self, at: usize) -> [&AtomicU64; WORDS] {
        std::array::from_fn(|word| &self.words[at * WORDS + word])
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
        let sets = (self.words.len() / (SET * WORDS)) as u64;
        #[expect(clippy::cast_possible_truncation, reason = "the number of a set fits into usize")]
        let set = scale((hash >> 32) as u32, sets) as usize * SET;
        (hash, set..set + SET)
    }

    /// A time by the clock of the table, in seconds.
    #[expect(clippy::cast_possible_truncation, reason = "135 years")]
    fn second(&self, now: Instant) -> u32 {
        now.saturating_duration_since(self.began).as_secs() as u32
    }
}

#[cfg(test)]
mod tests;
