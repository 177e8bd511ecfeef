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
        let mut broken = reach.broken(&from, &to, &wanted, is_always);
        let pairs = broken.len();
        let Some(((from, to), traffic)) = broken.pop_first() else {
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

impl Reach {
    /// The pairs that break an assertion, each with what arrives and must not, or does not and must.
    fn broken(
        &self,
        from: &BTreeSet<u32>,
        to: &BTreeSet<u32>,
        wanted: &Traffic,
        is_always: bool,
    ) -> BTreeMap<(u32, u32), Traffic> {
        let mut broken = BTreeMap::new();
        if is_always {
            for sender in from {
                let sends = self.ends[*sender as usize].sends();
                let is_v4 = self.ends[*sender as usize].address.is_ipv4();
                let same_family = to
                    .iter()
                    .filter(|to| self.ends[**to as usize].address.is_ipv4() == is_v4);
                for receiver in same_family.filter(|to| *to != sender && sends) {
                    broken.insert((*sender, *receiver), wanted.clone());
                }
            }
        }
        for cell in self.cells() {
            let traffic = self.traffic(cell.traffic);
            let rest = if is_always {
                wanted.minus(traffic)
            } else {
                wanted.and(traffic)
            };
            for sender in cell.from.iter().filter(|end| from.contains(end)) {
                for receiver in cell.to.iter().filter(|end| *end != sender && to.contains(end)) {
                    if rest.is_empty() {
                        broken.remove(&(*sender, *receiver));
                    } else {
                        broken.insert((*sender, *receiver), rest.clone());
                    }
                }
            }
        }
        broken
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
