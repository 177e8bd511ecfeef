//! Finds the rule of a security group that decides about a packet (N3), in a time that does not depend on how the rules
//! are written.
//!
//! Each field of a packet (source and destination address, source and destination port, protocol) selects a set of rules
//! that it matches, as a bit vector in order of priority. The lowest bit of the AND of the five vectors is the deciding
//! rule (T. Lakshman and D. Stiliadis, "High-speed policy-based packet forwarding using efficient multi-dimensional range
//! matching", SIGCOMM 1998).

use super::address_sets::{AddressSets, SetId};
use crate::packet::{ICMP, ICMPV6, TCP, UDP};
use crate::tables::lpm::Lpm;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::IpAddr;
use tombolo_proto::config::{ALL_PORTS, AddressMatch, PortRange, RuleProtocol, SecurityRule};

const ESP: u8 = 50;
const AH: u8 = 51;

/// The five fields that rules look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuleKey {
    /// The source address.
    pub source: IpAddr,
    /// The destination address.
    pub destination: IpAddr,
    /// The IP protocol's number.
    pub protocol: u8,
    /// Source and destination port. `None`: the protocol has none.
    pub ports: Option<(u16, u16)>,
}

/// Which fields of a packet one rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FieldMatches {
    /// The protocol.
    pub protocol: bool,
    /// The source address.
    pub source: bool,
    /// The source port.
    pub source_port: bool,
    /// The destination address.
    pub destination: bool,
    /// The destination port.
    pub destination_port: bool,
}

impl FieldMatches {
    /// Whether the rule matches the packet.
    #[must_use]
    pub const fn all(self) -> bool {
        self.protocol && self.source && self.source_port && self.destination && self.destination_port
    }
}

/// The rules of one group in one direction.
#[derive(Debug)]
pub struct Classifier {
    rules: usize,
    source: AddressField,
    destination: AddressField,
    source_port: PortField,
    destination_port: PortField,
    protocol: ProtocolField,
}

impl Classifier {
    /// Prepares rules, which must be in ascending order of priority. `sets` gives names their ids. A rule that names a
    /// set which is not in `sets` matches no address by it.
    #[must_use]
    pub fn new<'r>(rules: impl ExactSizeIterator<Item = &'r SecurityRule> + Clone, sets: &AddressSets) -> Self {
        let count = rules.len();
        Self {
            rules: count,
            source: AddressField::new(count, rules.clone().map(|r| &r.source), sets),
            destination: AddressField::new(count, rules.clone().map(|r| &r.destination), sets),
            source_port: PortField::new(count, rules.clone().map(|r| ports_of(r, &r.source_ports))),
            destination_port: PortField::new(count, rules.clone().map(|r| ports_of(r, &r.destination_ports))),
            protocol: ProtocolField::new(count, rules.map(|r| r.protocol)),
        }
    }

    /// The position of the first rule that matches.
    #[must_use]
    pub fn decide(&self, key: &RuleKey, sets: &AddressSets) -> Option<usize> {
        let mut position = None;
        self.fields(key, sets, |word, [a, b, c, d, e]| {
            let hits = a & b & c & d & e;
            if hits != 0 {
                position = Some(word * WORD_BITS + hits.trailing_zeros() as usize);
            }
            position.is_none()
        });
        position
    }

    /// For each rule in order, which fields of the packet it matches: the answer to "why this rule, and why none before it?"
    #[must_use]
    pub fn explain(&self, key: &RuleKey, sets: &AddressSets) -> Vec<FieldMatches> {
        let mut all = Vec::with_capacity(self.rules);
        self.fields(
            key,
            sets,
            |word, [source, destination, source_port, destination_port, protocol]| {
                for bit in 0..WORD_BITS.min(self.rules - word * WORD_BITS) {
                    let matches = |field: u64| field >> bit & 1 == 1;
                    all.push(FieldMatches {
                        protocol: matches(protocol),
                        source: matches(source),
                        source_port: matches(source_port),
                        destination: matches(destination),
                        destination_port: matches(destination_port),
                    });
                }
                true
            },
        );
        all
    }

    /// Memory of the lookup structures, bytes, without the trie's own nodes.
    #[must_use]
    pub fn memory(&self) -> usize {
        let words = self.source.vectors.memory()
            + self.destination.vectors.memory()
            + self.source_port.vectors.memory()
            + self.destination_port.vectors.memory()
            + self.protocol.vectors.memory();
        words + size_of::<Self>()
    }

    /// Calls `take` with the five vectors, word by word, until it returns false.
    fn fields(&self, key: &RuleKey, sets: &AddressSets, mut take: impl FnMut(usize, [u64; 5]) -> bool) {
        let source = self.source.select(key.source, sets);
        let destination = self.destination.select(key.destination, sets);
        let (source_port, destination_port) = match key.ports {
            Some((from, to)) => (self.source_port.select(from), self.destination_port.select(to)),
            None => (self.source_port.without_ports(), self.destination_port.without_ports()),
        };
        let protocol = self.protocol.select(key.protocol);
        for word in 0..words_for(self.rules) {
            let fields = [
                source.word(word),
                destination.word(word),
                source_port.get(word).copied().unwrap_or(0),
                destination_port.get(word).copied().unwrap_or(0),
                protocol.get(word).copied().unwrap_or(0),
            ];
            if !take(word, fields) {
                return;
            }
        }
    }
}

/// A rule for a protocol without ports matches whatever ports it names: Azure's clients send ports for ICMP too.
fn ports_of<'r>(rule: &SecurityRule, ports: &'r [PortRange]) -> &'r [PortRange] {
    match rule.protocol {
        RuleProtocol::Any | RuleProtocol::Tcp | RuleProtocol::Udp => ports,
        RuleProtocol::Icmp | RuleProtocol::Esp | RuleProtocol::Ah => &[ALL_PORTS],
    }
}

const WORD_BITS: usize = u64::BITS as usize;

/// Bits that a lookup may OR together before it needs memory of its own: [`tombolo_proto::config::MAX_RULES`] rules.
const MAX_WORDS: usize = 16;

const fn words_for(rules: usize) -> usize {
    rules.div_ceil(WORD_BITS)
}

/// Bit vectors of equal length, one after the other.
#[derive(Debug)]
struct Vectors {
    words: usize,
    all: Vec<u64>,
}

impl Vectors {
    fn new(rules: usize) -> Self {
        Self {
            words: words_for(rules),
            all: Vec::new(),
        }
    }

    /// Adds a vector without bits, or a copy of another one.
    fn push(&mut self, copy_of: Option<usize>) -> usize {
        let position = self.all.len() / self.words.max(1);
        match copy_of {
            Some(of) => self.all.extend_from_within(of * self.words..(of + 1) * self.words),
            None => self.all.resize(self.all.len() + self.words, 0),
        }
        position
    }

    fn insert(&mut self, vector: usize, rule: usize) {
        self.all[vector * self.words + rule / WORD_BITS] |= 1 << (rule % WORD_BITS);
    }

    fn get(&self, vector: usize) -> &[u64] {
        self.all
            .get(vector * self.words..(vector + 1) * self.words)
            .unwrap_or(&[])
    }

    fn memory(&self) -> usize {
        self.all.capacity() * size_of::<u64>()
    }
}

/// Rules by address.
#[derive(Debug)]
struct AddressField {
    vectors: Vectors,
    /// Rules that match every address.
    any: usize,
    /// Prefix → the rules of that prefix, of all prefixes around it, and those that match every address.
    prefixes: Lpm<usize>,
    /// Set → the rules that name it.
    sets: BTreeMap<SetId, usize>,
}

impl AddressField {
    fn new<'r>(rules: usize, sides: impl Iterator<Item = &'r AddressMatch>, names: &AddressSets) -> Self {
        let mut vectors = Vectors::new(rules);
        let any = vectors.push(None);
        let mut by_prefix: BTreeMap<(u8, IpNet), Vec<usize>> = BTreeMap::new();
        let mut sets = BTreeMap::new();
        for (rule, side) in sides.enumerate() {
            match side {
                AddressMatch::Any => vectors.insert(any, rule),
                AddressMatch::Prefixes(prefixes) => {
                    for prefix in prefixes {
                        let rules = by_prefix.entry((prefix.prefix_len(), prefix.trunc())).or_default();
                        rules.push(rule);
                    }
                }
                AddressMatch::Sets(members) => {
                    for id in members.iter().filter_map(|name| names.id(name)) {
                        let vector = *sets.entry(id).or_insert_with(|| vectors.push(None));
                        vectors.insert(vector, rule);
                    }
                }
            }
        }
        // Shorter prefixes come first, so that the longest prefix found for a new one has all rules around it.
        let mut prefixes = Lpm::default();
        for ((_, prefix), rules) in by_prefix {
            let around = prefixes.get(prefix.network()).copied().unwrap_or(any);
            let vector = vectors.push(Some(around));
            for rule in rules {
                vectors.insert(vector, rule);
            }
            prefixes.insert(prefix, vector);
        }
        vectors.all.shrink_to_fit();
        Self {
            vectors,
            any,
            prefixes,
            sets,
        }
    }

    fn select(&self, address: IpAddr, names: &AddressSets) -> Selected<'_> {
        let base = self.prefixes.get(address).copied().unwrap_or(self.any);
        let mut selected = Selected {
            base: self.vectors.get(base),
            extra: [0; MAX_WORDS],
        };
        if !self.sets.is_empty() {
            names.containing(address, |id| {
                if let Some(vector) = self.sets.get(&id) {
                    for (extra, word) in selected.extra.iter_mut().zip(self.vectors.get(*vector)) {
                        *extra |= word;
                    }
                }
            });
        }
        selected
    }
}

/// The rules that an address matches: by prefix, and by the sets that it is in.
struct Selected<'v> {
    base: &'v [u64],
    extra: [u64; MAX_WORDS],
}

impl Selected<'_> {
    fn word(&self, word: usize) -> u64 {
        self.base.get(word).copied().unwrap_or(0) | self.extra.get(word).copied().unwrap_or(0)
    }
}

/// Rules by port.
#[derive(Debug)]
struct PortField {
    vectors: Vectors,
    /// The first port of each interval in which the same rules match; ascending, the first one is 0. The interval at a
    /// position has the vector at that position.
    starts: Vec<u16>,
    /// Rules that match every port, and so packets without ports.
    all: usize,
}

impl PortField {
    fn new<'r>(rules: usize, ranges: impl Iterator<Item = &'r [PortRange]> + Clone) -> Self {
        let mut starts = vec![0];
        for range in ranges.clone().flatten() {
            starts.push(range.first);
            starts.extend(range.last.checked_add(1));
        }
        starts.sort_unstable();
        starts.dedup();
        let mut vectors = Vectors::new(rules);
        for _ in &starts {
            vectors.push(None);
        }
        let all = vectors.push(None);
        for (rule, ranges) in ranges.enumerate() {
            for range in ranges {
                let begin = starts.partition_point(|s| *s < range.first);
                let end = starts.partition_point(|s| *s <= range.last);
                for vector in begin..end {
                    vectors.insert(vector, rule);
                }
                if *range == ALL_PORTS {
                    vectors.insert(all, rule);
                }
            }
        }
        Self { vectors, starts, all }
    }

    fn select(&self, port: u16) -> &[u64] {
        // The first start is 0, so at least one is not above the port.
        self.vectors.get(self.starts.partition_point(|s| *s <= port) - 1)
    }

    fn without_ports(&self) -> &[u64] {
        self.vectors.get(self.all)
    }
}

/// Rules by protocol.
#[derive(Debug)]
struct ProtocolField {
    vectors: Vectors,
}

impl ProtocolField {
    const CLASSES: [RuleProtocol; 6] = [
        RuleProtocol::Any,
        RuleProtocol::Tcp,
        RuleProtocol::Udp,
        RuleProtocol::Icmp,
        RuleProtocol::Esp,
        RuleProtocol::Ah,
    ];

    fn new(rules: usize, protocols: impl Iterator<Item = RuleProtocol>) -> Self {
        let mut vectors = Vectors::new(rules);
        for _ in Self::CLASSES {
            vectors.push(None);
        }
        for (rule, protocol) in protocols.enumerate() {
            for (class, of) in Self::CLASSES.iter().enumerate() {
                if protocol == RuleProtocol::Any || protocol == *of {
                    vectors.insert(class, rule);
                }
            }
        }
        Self { vectors }
    }

    fn select(&self, protocol: u8) -> &[u64] {
        self.vectors.get(match protocol {
            TCP => 1,
            UDP => 2,
            ICMP | ICMPV6 => 3,
            ESP => 4,
            AH => 5,
            _ => 0,
        })
    }
}

#[cfg(test)]
mod tests;
