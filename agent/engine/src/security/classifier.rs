//! Finds the rule of a security group that decides about a packet (N3), in a time that does not depend on how the rules
//! are written.
//!
//! For each field of a packet (source and destination address, source and destination port, protocol), a lookup gives
//! the rules that match this field, as a bit vector. Bit 0 stands for the rule that comes first in the order of
//! priority. The lowest bit that is set in the AND of the five vectors stands for the deciding rule (T. Lakshman and D.
//! Stiliadis, "High-speed policy-based packet forwarding using efficient multi-dimensional range matching", SIGCOMM
//! 1998).

use super::address_sets::{AddressSets, SetId};
use super::traffic::{Interval, Ports, Traffic};
use crate::packet::{ICMP, ICMPV6, TCP, UDP};
use crate::tables::lpm::Lpm;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::IpAddr;
use tombolo_proto::config::{ALL_PORTS, Access, AddressMatch, PortRange, RuleProtocol, SecurityRule};

const ESP: u8 = 50;
const AH: u8 = 51;

/// The five fields of a packet with which rules are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuleKey {
    /// The source address.
    pub source: IpAddr,
    /// The destination address.
    pub destination: IpAddr,
    /// The IP protocol's number.
    pub protocol: u8,
    /// Source and destination port. `None`: the packet has none, because its protocol has no ports.
    pub ports: Option<(u16, u16)>,
}

/// The result of the comparison of one rule with a packet: for each field, whether the rule matches it.
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

/// A set of rules of one group in one direction, by their positions in the order of priority.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleSet(Vec<u64>);

impl RuleSet {
    /// The rules that both sets have.
    #[must_use]
    pub fn and_set(&self, other: &Self) -> Self {
        self.and(&other.0)
    }

    fn and(&self, other: &[u64]) -> Self {
        Self(self.0.iter().zip(other).map(|(a, b)| a & b).collect())
    }

    /// The positions, in ascending order.
    pub fn positions(&self) -> impl Iterator<Item = usize> {
        let words = self.0.iter().enumerate();
        words.flat_map(|(word, bits)| {
            let mut left = *bits;
            std::iter::from_fn(move || {
                let bit = left.trailing_zeros() as usize;
                left &= left.wrapping_sub(1);
                (bit < WORD_BITS).then_some(word * WORD_BITS + bit)
            })
        })
    }
}

/// The rules of one group in one direction, prepared for lookups.
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
    /// Prepares rules, which must be in ascending order of priority. `sets` has the ids of the sets that rules name. A
    /// name that is not in `sets` matches no address.
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

    /// The position of the first rule that matches, from 0, in the order in which [`new`](Self::new) got the rules.
    /// `None`: no rule matches. Names must have the same ids in `sets` as in the sets that `new` got.
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

    /// Compares all rules with a packet, and returns the result for each rule, in the order in which [`new`](Self::new)
    /// got the rules. The results show why one rule decides, and why no rule before it matches.
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

    /// The rules whose source (`is_source`) or destination matches an address, whatever the other fields are.
    #[must_use]
    pub fn matching(&self, is_source: bool, address: IpAddr, sets: &AddressSets) -> RuleSet {
        let field = if is_source { &self.source } else { &self.destination };
        let selected = field.select(address, sets);
        RuleSet((0..words_for(self.rules)).map(|word| selected.word(word)).collect())
    }

    /// The packets that are allowed if exactly the rules in `matching` match their addresses. `rules` are those of
    /// [`new`](Self::new). For each packet, the first rule of `matching` that matches its protocol and ports decides, as
    /// in [`decide`](Self::decide); if there is none, the packet is denied.
    #[must_use]
    pub fn traffic(&self, rules: &[SecurityRule], matching: &RuleSet) -> Traffic {
        Traffic {
            tcp: self.ports_allowed(rules, matching, TCP),
            udp: self.ports_allowed(rules, matching, UDP),
            icmp: self.allows_without_ports(rules, matching, ICMP),
        }
    }

    fn ports_allowed(&self, rules: &[SecurityRule], matching: &RuleSet, protocol: u8) -> Ports {
        let intervals = |ranges: &[PortRange]| ranges.iter().map(|r| Interval::from(*r)).collect::<Vec<_>>();
        let (mut undecided, mut allowed) = (Ports::all(), Ports::default());
        let matching = matching.and(self.protocol.select(protocol));
        for rule in matching.positions() {
            let Some(rule) = rules.get(rule) else { break };
            let pairs = Ports::between(
                &intervals(ports_of(rule, &rule.source_ports)),
                &intervals(ports_of(rule, &rule.destination_ports)),
            );
            if rule.access == Access::Allow {
                allowed = allowed.or(&undecided.and(&pairs));
            }
            undecided = undecided.minus(&pairs);
            if undecided.is_empty() {
                break;
            }
        }
        allowed
    }

    fn allows_without_ports(&self, rules: &[SecurityRule], matching: &RuleSet, protocol: u8) -> bool {
        let matching = matching.and(self.protocol.select(protocol));
        let matching = matching.and(self.source_port.without_ports());
        let matching = matching.and(self.destination_port.without_ports());
        let first = matching.positions().next().and_then(|rule| rules.get(rule));
        first.is_some_and(|rule| rule.access == Access::Allow)
    }

    /// Calls `take` for each 64-bit word of the vectors, in ascending order, until `take` returns false. The arguments
    /// are the position of the word, and this word of the vectors for source, destination, source port, destination
    /// port and protocol.
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

/// The port ranges by which a rule is matched. For ICMP, ESP and AH these are all ports, whatever ranges the rule has:
/// the protocols have no ports, but Azure's clients send ranges for ICMP too.
fn ports_of<'r>(rule: &SecurityRule, ports: &'r [PortRange]) -> &'r [PortRange] {
    match rule.protocol {
        RuleProtocol::Any | RuleProtocol::Tcp | RuleProtocol::Udp => ports,
        RuleProtocol::Icmp | RuleProtocol::Esp | RuleProtocol::Ah => &[ALL_PORTS],
    }
}

const WORD_BITS: usize = u64::BITS as usize;

/// Length of the vector in [`Selected`], in 64-bit words: enough for [`tombolo_proto::config::MAX_RULES`] rules. It is
/// fixed, so that a lookup allocates no memory.
const MAX_WORDS: usize = 16;

const fn words_for(rules: usize) -> usize {
    rules.div_ceil(WORD_BITS)
}

/// Bit vectors of equal length, stored one after the other. Bit `n` stands for the rule at position `n`.
#[derive(Debug)]
struct Vectors {
    /// Length of each vector, in 64-bit words.
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

    /// Adds a vector, and returns its position. The vector is a copy of the vector at position `copy_of`, or has no bit
    /// set.
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
}

/// Finds the rules that match an address, on one side of the rules: source or destination.
#[derive(Debug)]
struct AddressField {
    vectors: Vectors,
    /// The position of the vector of rules that match every address.
    any: usize,
    /// Prefix → the position of the vector of rules that match the addresses of the prefix: by this prefix, by a
    /// shorter prefix that contains it, or because they match every address.
    prefixes: Lpm<usize>,
    /// Set → the position of the vector of rules that name the set.
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
        // Shorter prefixes come first. So when a prefix is added, the longest prefix that contains it has the rules of
        // all shorter prefixes already, and its vector is the beginning of the new vector.
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

/// The rules that match an address: `base` by prefixes, `extra` by the sets that contain the address.
struct Selected<'v> {
    base: &'v [u64],
    extra: [u64; MAX_WORDS],
}

impl Selected<'_> {
    fn word(&self, word: usize) -> u64 {
        self.base.get(word).copied().unwrap_or(0) | self.extra.get(word).copied().unwrap_or(0)
    }
}

/// Finds the rules that match a port, on one side of the rules: source or destination.
#[derive(Debug)]
struct PortField {
    vectors: Vectors,
    /// The first port of each interval within which the same rules match, in ascending order from port 0. The vector of
    /// an interval has the same position as the interval.
    starts: Vec<u16>,
    /// The position of the vector of rules that match every port. These rules also match packets without ports.
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
        // The first interval begins at port 0, so at least one interval begins at this port or below, and the
        // subtraction cannot underflow.
        self.vectors.get(self.starts.partition_point(|s| *s <= port) - 1)
    }

    fn without_ports(&self) -> &[u64] {
        self.vectors.get(self.all)
    }
}

/// Finds the rules that match a protocol.
#[derive(Debug)]
struct ProtocolField {
    vectors: Vectors,
}

impl ProtocolField {
    /// The protocols that rules can name. A protocol's vector has the position that the protocol has here; position 0
    /// is for protocols of packets that no rule names.
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
