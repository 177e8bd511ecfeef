//! Sets of protocols and ports: the traffic that rules admit between two addresses, exactly and for all ports at once.

use std::ops::RangeInclusive;
use tombolo_proto::config::PortRange;

/// A set of packets between two addresses, by protocol and ports. Equal sets are equal values.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Traffic {
    /// The pairs of ports for TCP.
    pub tcp: Ports,
    /// The pairs of ports for UDP.
    pub udp: Ports,
    /// Whether ICMP is in the set: ICMPv4 between IPv4 addresses, ICMPv6 between IPv6 addresses.
    pub icmp: bool,
}

/// A set of pairs of a source port and a destination port.
///
/// Each entry has an interval of source ports, and the destination ports that the set has for all of them. The
/// intervals of source ports are in ascending order and do not overlap, and two that touch have different destination
/// ports. The intervals of destination ports are in ascending order and do not touch. So there is one value for a set.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ports(Vec<PortPairs>);

/// One entry of [`Ports`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortPairs {
    /// The source ports.
    pub sources: Interval,
    /// The destination ports: at least one interval.
    pub destinations: Vec<Interval>,
}

/// Ports from the first to the last number, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interval(pub u16, pub u16);

impl Interval {
    /// All ports.
    pub const ALL: Self = Self(0, u16::MAX);

    /// The interval as a range.
    #[must_use]
    pub const fn range(self) -> RangeInclusive<u16> {
        self.0..=self.1
    }
}

impl From<PortRange> for Interval {
    fn from(range: PortRange) -> Self {
        Self(range.first, range.last)
    }
}

impl std::fmt::Display for Interval {
    /// `443`, or `8000-8080`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 == self.1 {
            true => write!(f, "{}", self.0),
            false => write!(f, "{}-{}", self.0, self.1),
        }
    }
}

/// How two sets are combined: whether the result has what the first and the second have.
type Combine = fn(bool, bool) -> bool;

/// The first of the two, and not the second.
const fn without(first: bool, second: bool) -> bool {
    first && !second
}

const fn both(first: bool, second: bool) -> bool {
    first && second
}

const fn either(first: bool, second: bool) -> bool {
    first || second
}

impl Ports {
    /// All pairs of ports.
    #[must_use]
    pub fn all() -> Self {
        Self::between(&[Interval::ALL], &[Interval::ALL])
    }

    /// All pairs of one of these source ports and one of these destination ports. The intervals may be in any order and
    /// may overlap.
    #[must_use]
    pub fn between(sources: &[Interval], destinations: &[Interval]) -> Self {
        let destinations = combine(destinations, &[], either);
        if destinations.is_empty() {
            return Self::default();
        }
        let sources = combine(sources, &[], either).into_iter();
        let entries = sources.map(|sources| PortPairs {
            sources,
            destinations: destinations.clone(),
        });
        Self(entries.collect())
    }

    /// Whether the set has no pair.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the set has the pair.
    #[must_use]
    pub fn contains(&self, source: u16, destination: u16) -> bool {
        let entry = self.0.iter().find(|entry| entry.sources.range().contains(&source));
        entry.is_some_and(|entry| entry.destinations.iter().any(|d| d.range().contains(&destination)))
    }

    /// The entries, in ascending order of source ports.
    #[must_use]
    pub fn entries(&self) -> &[PortPairs] {
        &self.0
    }

    /// The set in which source and destination ports have changed places: the replies to the packets of this set.
    #[must_use]
    pub fn reversed(&self) -> Self {
        let mut reversed = Self::default();
        for entry in &self.0 {
            let part = Self::between(&entry.destinations, &[entry.sources]);
            reversed = reversed.or(&part);
        }
        reversed
    }

    /// The destination ports `from` of this set, renumbered to the single port `to`. Source ports stay.
    #[must_use]
    pub fn moved(&self, from: u16, to: u16) -> Self {
        let has = |entry: &&PortPairs| entry.destinations.iter().any(|d| d.range().contains(&from));
        let sources: Vec<Interval> = self.0.iter().filter(has).map(|entry| entry.sources).collect();
        Self::between(&sources, &[Interval(to, to)])
    }

    /// The pairs that both sets have.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        self.combined(other, both)
    }

    /// The pairs that at least one of the sets has.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        self.combined(other, either)
    }

    /// The pairs of this set that `other` does not have.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        self.combined(other, without)
    }

    /// Combines two sets pair by pair.
    fn combined(&self, other: &Self, keep: Combine) -> Self {
        // The boundaries of both lists of source intervals: between two of them, the destinations are the same.
        let sets = [self, other];
        let mut starts: Vec<u32> = Vec::with_capacity(2 * (self.0.len() + other.0.len()));
        for entry in sets.iter().flat_map(|set| &set.0) {
            starts.push(entry.sources.0.into());
            starts.push(u32::from(entry.sources.1) + 1);
        }
        starts.sort_unstable();
        starts.dedup();
        let mut result: Vec<PortPairs> = Vec::new();
        let mut positions = [0; 2];
        for pair in starts.windows(2) {
            let (Ok(first), Ok(last)) = (u16::try_from(pair[0]), u16::try_from(pair[1] - 1)) else {
                break;
            };
            let mut destinations: [&[Interval]; 2] = [&[], &[]];
            for ((set, position), found) in sets.iter().zip(&mut positions).zip(&mut destinations) {
                while set.0.get(*position).is_some_and(|entry| entry.sources.1 < first) {
                    *position += 1;
                }
                if let Some(entry) = set.0.get(*position).filter(|entry| entry.sources.0 <= first) {
                    *found = &entry.destinations;
                }
            }
            let destinations = combine(destinations[0], destinations[1], keep);
            if destinations.is_empty() {
                continue;
            }
            match result.last_mut() {
                Some(before)
                    if u32::from(before.sources.1) + 1 == u32::from(first) && before.destinations == destinations =>
                {
                    before.sources.1 = last;
                }
                _ => result.push(PortPairs {
                    sources: Interval(first, last),
                    destinations,
                }),
            }
        }
        Self(result)
    }
}

/// Combines two lists of intervals. The intervals of a list may be in any order and may overlap; those of the result
/// are in ascending order and do not touch.
fn combine(first: &[Interval], second: &[Interval], keep: Combine) -> Vec<Interval> {
    // How many intervals of each list begin (+1) or have ended (-1) at a port.
    let mut changes: Vec<(u32, usize, i32)> = Vec::with_capacity(2 * (first.len() + second.len()));
    for (list, intervals) in [first, second].into_iter().enumerate() {
        for interval in intervals {
            changes.push((interval.0.into(), list, 1));
            changes.push((u32::from(interval.1) + 1, list, -1));
        }
    }
    changes.sort_unstable_by_key(|(port, ..)| *port);
    let mut open = [0; 2];
    let mut result: Vec<Interval> = Vec::new();
    let mut begun: Option<u16> = None;
    let mut at = 0;
    while at < changes.len() {
        let port = changes[at].0;
        while let Some((_, list, change)) = changes.get(at).filter(|(p, ..)| *p == port) {
            open[*list] += change;
            at += 1;
        }
        let kept = keep(open[0] > 0, open[1] > 0);
        match (begun, kept) {
            (None, true) => begun = u16::try_from(port).ok(),
            (Some(first), false) => {
                // The interval ends before this port, which is therefore not 0.
                result.push(Interval(first, u16::try_from(port - 1).unwrap_or(u16::MAX)));
                begun = None;
            }
            (Some(_), true) | (None, false) => {}
        }
    }
    result
}

impl Traffic {
    /// TCP and UDP with all ports, and ICMP.
    #[must_use]
    pub fn all() -> Self {
        Self {
            tcp: Ports::all(),
            udp: Ports::all(),
            icmp: true,
        }
    }

    /// Whether the set has no packet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.icmp && self.tcp.is_empty() && self.udp.is_empty()
    }

    /// The packets that both sets have.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        self.combined(other, both)
    }

    /// The packets that at least one of the sets has.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        self.combined(other, either)
    }

    /// The packets of this set that `other` does not have.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        self.combined(other, without)
    }

    /// The replies to the packets of this set.
    #[must_use]
    pub fn reversed(&self) -> Self {
        Self {
            tcp: self.tcp.reversed(),
            udp: self.udp.reversed(),
            icmp: self.icmp,
        }
    }

    fn combined(&self, other: &Self, keep: Combine) -> Self {
        Self {
            tcp: self.tcp.combined(&other.tcp, keep),
            udp: self.udp.combined(&other.udp, keep),
            icmp: keep(self.icmp, other.icmp),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The boundaries of a few intervals, and the ports beside them.
    const PORTS: [u16; 9] = [0, 1, 21, 22, 23, 443, 444, 65_534, 65_535];

    fn interval() -> impl Strategy<Value = Interval> {
        (prop::sample::select(&PORTS[..]), prop::sample::select(&PORTS[..]))
            .prop_map(|(a, b)| Interval(a.min(b), a.max(b)))
    }

    fn ports() -> impl Strategy<Value = Ports> {
        let rectangle = (
            prop::collection::vec(interval(), 0..3),
            prop::collection::vec(interval(), 0..3),
        );
        prop::collection::vec(rectangle, 0..4).prop_map(|rectangles| {
            let each = rectangles.iter().map(|(s, d)| Ports::between(s, d));
            each.fold(Ports::default(), |all, part| all.or(&part))
        })
    }

    fn pairs() -> impl Iterator<Item = (u16, u16)> {
        PORTS.into_iter().flat_map(|s| PORTS.into_iter().map(move |d| (s, d)))
    }

    fn canonical(set: &Ports) -> bool {
        let ordered = |list: &[Interval]| list.windows(2).all(|w| u32::from(w[0].1) + 1 < u32::from(w[1].0));
        let entries = set.entries();
        let each = entries
            .iter()
            .all(|e| !e.destinations.is_empty() && ordered(&e.destinations));
        let apart = entries.windows(2).all(|w| {
            w[0].sources.1 < w[1].sources.0
                && (w[0].destinations != w[1].destinations || u32::from(w[0].sources.1) + 1 < u32::from(w[1].sources.0))
        });
        each && apart
    }

    proptest! {
        #[test]
        fn sets_are_combined_pair_by_pair(a in ports(), b in ports()) {
            for keep in [both as Combine, either, without] {
                let result = a.combined(&b, keep);
                prop_assert!(canonical(&result), "{result:?}");
                for (s, d) in pairs() {
                    prop_assert_eq!(result.contains(s, d), keep(a.contains(s, d), b.contains(s, d)), "{}:{}", s, d);
                }
            }
        }

        #[test]
        fn equal_sets_are_equal_values(a in ports(), b in ports()) {
            // Two ways to the same set.
            let once = a.or(&b);
            let again = a.minus(&b).or(&b).or(&a.and(&b));
            prop_assert_eq!(once, again);
        }

        #[test]
        fn replies_have_the_ports_reversed(a in ports()) {
            let reversed = a.reversed();
            prop_assert!(canonical(&reversed));
            for (s, d) in pairs() {
                prop_assert_eq!(reversed.contains(d, s), a.contains(s, d));
            }
            prop_assert_eq!(reversed.reversed(), a);
        }
    }

    #[test]
    fn a_port_is_renumbered() {
        let set = Ports::between(&[Interval(1000, 2000)], &[Interval(8080, 8090)]);
        let moved = set.moved(8085, 80);
        assert_eq!(moved, Ports::between(&[Interval(1000, 2000)], &[Interval(80, 80)]));
        assert!(set.moved(80, 8085).is_empty());
        assert_eq!(Interval(80, 80).to_string(), "80");
        assert_eq!(Interval(0, 65_535).to_string(), "0-65535");
    }
}
