//! Assertions: what must never, or always, be reachable.

use super::answer::{EndView, TrafficView};
use super::select::select;
use super::sets::Reach;
use crate::topology::Topology;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use tombolo_engine::security::{Interval, Ports, Traffic};
use tombolo_proto::fabric::{AssertedTraffic, Assertion, Protocol};

/// An assertion that does not hold, with the first pair of addresses that breaks it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Violation {
    /// Position of the assertion in the question, from 0.
    pub assertion: usize,
    /// The assertion, as it was given.
    pub asserted: Assertion,
    /// The sender of the first pair.
    pub from: EndView,
    /// The receiver.
    pub to: EndView,
    /// Number of pairs that break the assertion.
    pub pairs: usize,
    /// What arrives and must not, or what does not arrive and must.
    #[serde(flatten)]
    pub traffic: TrafficView,
    /// The violation as a sentence.
    pub text: String,
}

/// The assertions that do not hold. `topology` is the one that `reach` was computed from.
///
/// # Errors
/// An assertion names something that does not send or receive, or a port that is not one. The text begins with
/// `assert[N]`.
pub fn check_assertions(
    reach: &Reach,
    topology: &Topology,
    assertions: &[Assertion],
) -> Result<Vec<Violation>, String> {
    let mut violations = Vec::new();
    for (number, assertion) in assertions.iter().enumerate() {
        let at = |text: String| format!("assert[{number}].{text}");
        let (asserted, is_always) = match assertion {
            Assertion::Never(asserted) => (asserted, false),
            Assertion::Always(asserted) => (asserted, true),
        };
        let from = select(topology, &reach.ends, "from", &asserted.from).map_err(at)?;
        let to = select(topology, &reach.ends, "to", &asserted.to).map_err(at)?;
        let wanted = traffic(asserted).map_err(at)?;
        let broken = match is_always {
            true => reach.missing(&from, &to, &wanted),
            false => reach.forbidden(&from, &to, &wanted),
        };
        let Some(Pairs {
            count: pairs,
            first: (from, to),
            traffic,
        }) = broken
        else {
            continue;
        };
        let (from, to) = (&reach.ends[from as usize], &reach.ends[to as usize]);
        let view = TrafficView::from(&traffic);
        let text = text(
            asserted,
            is_always,
            pairs,
            [from, to].map(|end| format!("{} ({})", end.id.name(), end.address)),
            &view,
        );
        violations.push(Violation {
            assertion: number,
            asserted: assertion.clone(),
            from: EndView::from(from),
            to: EndView::from(to),
            pairs,
            traffic: view,
            text,
        });
    }
    Ok(violations)
}

/// The pairs of ends that break an assertion. Their number grows with the square of that of the ends, so they are counted and
/// not listed.
struct Pairs {
    count: usize,
    /// The first one, by the positions of sender and receiver.
    first: (u32, u32),
    /// What arrives there and must not, or the reverse.
    traffic: Traffic,
}

/// The ends of a cell that an assertion names.
struct Named {
    from: Vec<u32>,
    to: BTreeSet<u32>,
}

impl Named {
    /// Number of receivers of a sender. An end is no receiver of itself.
    fn receivers(&self, sender: u32) -> usize {
        self.to.len() - usize::from(self.to.contains(&sender))
    }

    /// The first pair, by the positions of sender and receiver.
    fn first(&self) -> Option<(u32, u32)> {
        let mut pairs = self.from.iter().filter_map(|sender| {
            let receiver = self.to.iter().find(|receiver| *receiver != sender)?;
            Some((*sender, *receiver))
        });
        pairs.next()
    }
}

impl Reach {
    /// Each cell with ends that an assertion names, and what the cell has of `wanted`.
    fn named<'r>(
        &'r self,
        from: &'r BTreeSet<u32>,
        to: &'r BTreeSet<u32>,
    ) -> impl Iterator<Item = (Named, &'r Traffic)> {
        let of = |ends: &[u32], named: &BTreeSet<u32>| ends.iter().filter(|end| named.contains(end)).copied().collect();
        self.cells().filter_map(move |cell| {
            let from: Vec<u32> = of(&cell.from, from);
            let to: Vec<u32> = if from.is_empty() { Vec::new() } else { of(&cell.to, to) };
            let named = Named {
                from,
                to: to.into_iter().collect(),
            };
            (!named.to.is_empty()).then(|| (named, self.traffic(cell.traffic)))
        })
    }

    /// The pairs between which something of `wanted` arrives.
    fn forbidden(&self, from: &BTreeSet<u32>, to: &BTreeSet<u32>, wanted: &Traffic) -> Option<Pairs> {
        let mut all: Option<Pairs> = None;
        for (named, traffic) in self.named(from, to) {
            let arrives = wanted.and(traffic);
            let Some(first) = named.first().filter(|_| !arrives.is_empty()) else {
                continue;
            };
            let more: usize = named.from.iter().map(|sender| named.receivers(*sender)).sum();
            let before = all.as_ref().map_or(0, |pairs| pairs.count);
            let earlier = all.filter(|pairs| pairs.first < first);
            let mut pairs = earlier.unwrap_or(Pairs {
                count: 0,
                first,
                traffic: arrives,
            });
            pairs.count = before + more;
            all = Some(pairs);
        }
        all
    }

    /// The pairs between which not all of `wanted` arrives.
    fn missing(&self, from: &BTreeSet<u32>, to: &BTreeSet<u32>, wanted: &Traffic) -> Option<Pairs> {
        let is_v4 = |end: u32| self.ends[end as usize].address.is_ipv4();
        let of_family = |v4: bool| to.iter().filter(|end| is_v4(**end) == v4).count();
        let (v4, v6) = (of_family(true), of_family(false));
        // The number of receivers that each sender does not reach yet.
        let mut left: BTreeMap<u32, usize> = BTreeMap::new();
        for sender in from.iter().filter(|sender| self.ends[**sender as usize].sends()) {
            let all = if is_v4(*sender) { v4 } else { v6 };
            left.insert(*sender, all - usize::from(to.contains(sender)));
        }
        for (named, traffic) in self.named(from, to) {
            if wanted.minus(traffic).is_empty() {
                for sender in &named.from {
                    if let Some(left) = left.get_mut(sender) {
                        *left = left.saturating_sub(named.receivers(*sender));
                    }
                }
            }
        }
        let count = left.values().sum();
        let (sender, _) = left.into_iter().find(|(_, left)| *left > 0)?;
        let only = BTreeSet::from([sender]);
        let mut first: BTreeMap<u32, Traffic> = to
            .iter()
            .filter(|end| **end != sender && is_v4(**end) == is_v4(sender))
            .map(|end| (*end, wanted.clone()))
            .collect();
        for (named, traffic) in self.named(&only, to) {
            let rest = wanted.minus(traffic);
            for receiver in &named.to {
                if rest.is_empty() {
                    first.remove(receiver);
                } else if let Some(missing) = first.get_mut(receiver) {
                    missing.clone_from(&rest);
                }
            }
        }
        let (receiver, traffic) = first.pop_first()?;
        Some(Pairs {
            count,
            first: (sender, receiver),
            traffic,
        })
    }
}

/// The traffic that an assertion names.
fn traffic(asserted: &AssertedTraffic) -> Result<Traffic, String> {
    let mut ports = Vec::with_capacity(asserted.ports.len());
    for text in &asserted.ports {
        ports.push(
            interval(text).ok_or_else(|| {
                format!("ports: '{text}' is not a port from 0 to 65535, or a range such as 8000-8080")
            })?,
        );
    }
    let has_ports = !ports.is_empty();
    if asserted.protocol == Some(Protocol::Icmp) && has_ports {
        return Err("ports: ICMP has no ports; remove them, or name tcp or udp as the protocol".into());
    }
    let pairs = Ports::between(&[Interval::ALL], if has_ports { &ports } else { &[Interval::ALL] });
    let of = |protocol: Protocol| asserted.protocol.is_none_or(|asserted| asserted == protocol);
    Ok(Traffic {
        tcp: if of(Protocol::Tcp) {
            pairs.clone()
        } else {
            Ports::default()
        },
        udp: if of(Protocol::Udp) { pairs } else { Ports::default() },
        icmp: of(Protocol::Icmp) && !has_ports,
    })
}

/// A port, or a range of ports.
fn interval(text: &str) -> Option<Interval> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (first <= last).then_some(Interval(first, last))
}

fn text(
    asserted: &AssertedTraffic,
    is_always: bool,
    pairs: usize,
    [from, to]: [String; 2],
    traffic: &TrafficView,
) -> String {
    let mut parts = Vec::new();
    for (protocol, ports) in [("tcp", &traffic.tcp), ("udp", &traffic.udp)] {
        if !ports.is_empty() {
            parts.push(format!("{protocol} {}", ports.join(", ")));
        }
    }
    if traffic.icmp {
        parts.push("icmp".to_owned());
    }
    let what = parts.join("; ");
    let more = match pairs {
        1 => String::new(),
        pairs => format!(", and {} more pairs", pairs - 1),
    };
    let (word, verb) = match is_always {
        true => ("always", "does not reach"),
        false => ("never", "reaches"),
    };
    format!(
        "{word} from {} to {}: {from} {verb} {to} by {what}{more}",
        asserted.from, asserted.to
    )
}
