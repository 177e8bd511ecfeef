//! Computes which traffic passes between two classes of ends: one walk there and back for each pair of classes, and the
//! rules of the security groups on the way for all ports at once.

use super::checks::Checks;
use super::ends::{Block, Class, End, Start};
use super::memo::Memo;
use super::path::Path;
use crate::explain::node::{Packet, Passed};
use crate::explain::walk::{Agents, End as WalkEnd, Fabric};
use std::collections::BTreeSet;
use std::net::IpAddr;
use tombolo_engine::security::{Interval, Ports, Traffic};
use tombolo_proto::config::{BalancedProtocol, BalancingRule};
use tombolo_proto::fabric::Protocol;
use tombolo_proto::id::AgentId;

/// The initial TTL of the packets of walks.
const TTL: u8 = 64;

/// The packets of a question, whose path does not depend on their ports within the given ones.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kind {
    protocol: Protocol,
    /// The destination ports. ICMP: none.
    ports: Vec<Interval>,
}

/// What a walk there and back has found.
struct Way {
    arrives: bool,
    there: Vec<(AgentId, Passed)>,
    back: Vec<(AgentId, Passed)>,
    back_ends: BTreeSet<IpAddr>,
    rules: Vec<BalancingRule>,
}

pub(super) struct Survey<'a> {
    pub(super) agents: &'a Agents<'a>,
    pub(super) ends: &'a [End],
    pub(super) classes: &'a [Class],
    pub(super) blocks: &'a [Block],
    pub(super) memo: &'a Memo,
}

impl Survey<'_> {
    /// The traffic from the classes of one block to all classes.
    pub(super) fn rows(&self, from: usize) -> Vec<Path> {
        let mut paths = Vec::new();
        let first = |block: &Block| block.first().and_then(|class| self.classes[*class].first());
        let Some(source) = first(&self.blocks[from]) else {
            return paths;
        };
        for to in self.blocks {
            // Routes decide most pairs of a large network, and they need no walk. Within a block, two different ends
            // stand for all pairs.
            let others = to.iter().flat_map(|class| &self.classes[*class]);
            let Some(destination) = others.into_iter().find(|end| *end != source) else {
                continue;
            };
            if !self.may_leave(&self.ends[*source], &self.ends[*destination]) {
                continue;
            }
            for from in &self.blocks[from] {
                for to in to {
                    paths.extend(self.pair(*from, *to));
                }
            }
        }
        paths
    }

    /// The path from one class to another. `None`: nothing arrives, whatever security rules say.
    fn pair(&self, from: usize, to: usize) -> Option<Path> {
        // Within a class, two different ends stand for all pairs.
        let source = self.classes[from].first()?;
        let destination = self.classes[to].iter().find(|end| *end != source)?;
        let (source, destination) = (&self.ends[*source], &self.ends[*destination]);
        if source.address.is_ipv4() != destination.address.is_ipv4() {
            return None;
        }
        let mut parts = Vec::new();
        match &source.start {
            Start::Host(agent) => self.parts((source, destination), (agent, None), &mut parts),
            Start::Site(doors) => {
                for door in doors {
                    self.parts((source, destination), (&door.gateway, Some(&door.device)), &mut parts);
                }
            }
            Start::Nowhere => return None,
        }
        let of = (self.ends, self.classes);
        (!parts.is_empty()).then(|| Path::new((from, to), parts, of, self.memo))
    }

    /// Finds what arrives if packets begin at this agent, over the link with this device of a site, whatever security rules
    /// say: the parts that take different ways, each with the rules on it.
    fn parts(
        &self,
        (source, destination): (&End, &End),
        start: (&AgentId, Option<&AgentId>),
        parts: &mut Vec<(Traffic, Checks)>,
    ) {
        let way = |kind: &Kind, back_end| self.way((source, destination), start, kind, back_end);
        let checks = |way: &Way, port| Checks::of(self.agents, (source, destination), &way.there, &way.back, port);
        let any = Kind {
            protocol: Protocol::Tcp,
            ports: vec![Interval::ALL],
        };
        let Some(first) = way(&any, None) else { return };
        if first.rules.is_empty() {
            if first.arrives {
                parts.push((Traffic::all(), checks(&first, None)));
            }
            return;
        }
        // A load balancer is on the way, so the path depends on protocol and port, and on the back end that is chosen.
        for kind in kinds(&first.rules) {
            let Some(first) = way(&kind, None) else { continue };
            let chosen: Vec<Option<IpAddr>> = match first.back_ends.is_empty() {
                true => vec![None],
                false => first.back_ends.iter().copied().map(Some).collect(),
            };
            let ways: Vec<Way> = chosen.into_iter().filter_map(|back_end| way(&kind, back_end)).collect();
            // What arrives whichever back end is chosen.
            if ways.is_empty() || ways.iter().any(|way| !way.arrives) {
                continue;
            }
            let mut all = Checks::default();
            let port = kind.ports.first().map(|ports| ports.0);
            for way in &ways {
                all.add(checks(way, port));
            }
            parts.push((kind.traffic(), all));
        }
    }

    /// Whether a route of the source's subnet leads to the destination. True for a source in a site, whose routes are not
    /// known.
    fn may_leave(&self, source: &End, destination: &End) -> bool {
        if source.address.is_ipv4() != destination.address.is_ipv4() {
            return false;
        }
        match &source.start {
            Start::Host(agent) => {
                let node = self.agents.get(agent);
                node.is_some_and(|node| node.has_route(source.address, destination.address))
            }
            Start::Site(_) => true,
            Start::Nowhere => false,
        }
    }

    /// Walks there and back. `None`: no packet can be built.
    fn way(
        &self,
        (source, destination): (&End, &End),
        (start, from): (&AgentId, Option<&AgentId>),
        kind: &Kind,
        back_end: Option<IpAddr>,
    ) -> Option<Way> {
        let port = kind.ports.first().map(|ports| ports.0);
        let mut fabric = Fabric::without_rules(self.agents, back_end);
        let mut sent = Packet::request(source.address, destination.address, kind.protocol, port, TTL).ok()?;
        let (_, end) = fabric.walk(start, from, &mut sent);
        let there = fabric.take_passed();
        let back = match &end {
            WalkEnd::Delivered(last) if destination.is_at(last) => Some((last.clone(), None)),
            WalkEnd::LeftFabric { agent, device } if destination.is_behind(device.as_ref()) => {
                Some((agent.clone(), device.clone()))
            }
            WalkEnd::Delivered(_) | WalkEnd::LeftFabric { .. } | WalkEnd::Expired(..) | WalkEnd::Stopped => None,
        };
        let mut arrives = false;
        let mut passed_back = Vec::new();
        if let Some((at, device)) = back {
            let (_, end) = fabric.walk(&at, device.as_ref(), &mut sent.reply().ok()?);
            passed_back = fabric.take_passed();
            // The reply to a site may come over another of its connections.
            arrives = match &end {
                WalkEnd::Delivered(last) => source.is_at(last),
                WalkEnd::LeftFabric { device, .. } => source.is_behind(device.as_ref()),
                WalkEnd::Expired(..) | WalkEnd::Stopped => false,
            };
        }
        Some(Way {
            arrives,
            there,
            back: passed_back,
            back_ends: fabric.possible_back_ends(),
            rules: fabric.rules_met().to_vec(),
        })
    }
}

impl Kind {
    /// All packets of this kind.
    fn traffic(&self) -> Traffic {
        let ports = Ports::between(&[Interval::ALL], &self.ports);
        match self.protocol {
            Protocol::Tcp => Traffic {
                tcp: ports,
                ..Traffic::default()
            },
            Protocol::Udp => Traffic {
                udp: ports,
                ..Traffic::default()
            },
            Protocol::Icmp => Traffic {
                icmp: true,
                ..Traffic::default()
            },
        }
    }
}

/// The kinds of packets that these load-balancing rules treat differently: each port of a rule, and for each protocol
/// all other ports.
fn kinds(rules: &[BalancingRule]) -> Vec<Kind> {
    let mut all = vec![Kind {
        protocol: Protocol::Icmp,
        ports: Vec::new(),
    }];
    for (protocol, of_rule) in [
        (Protocol::Tcp, BalancedProtocol::Tcp),
        (Protocol::Udp, BalancedProtocol::Udp),
    ] {
        let ports: BTreeSet<u16> = rules
            .iter()
            .filter(|rule| rule.protocol == of_rule)
            .map(|rule| rule.port)
            .collect();
        let each: Vec<Interval> = ports.iter().map(|port| Interval(*port, *port)).collect();
        let others = Ports::all().minus(&Ports::between(&[Interval::ALL], &each));
        let others = others.entries().first().map(|entry| entry.destinations.clone());
        all.extend(each.into_iter().map(|port| Kind {
            protocol,
            ports: vec![port],
        }));
        all.extend(others.map(|ports| Kind { protocol, ports }));
    }
    all
}
