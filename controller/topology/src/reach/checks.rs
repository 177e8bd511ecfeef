//! The security groups on a path, and what their rules admit between the ends of two classes.

use super::cell::{Cell, TrafficId};
use super::ends::{Class, End};
use super::memo::Memo;
use crate::explain::node::Passed;
use crate::explain::walk::Agents;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_engine::security::{GroupRules, NicRules, RuleSet, Traffic};
use tombolo_proto::config::Direction;
use tombolo_proto::id::AgentId;

/// The network interfaces whose rules decide about the packets between two classes.
#[derive(Debug, Clone, Default)]
pub(super) struct Checks(Vec<Check>);

/// One network interface whose rules decide.
#[derive(Debug, Clone)]
struct Check {
    rules: Arc<NicRules>,
    direction: Direction,
    source: Side,
    destination: Side,
    /// Whether the rules decide about the replies, because the packets themselves do not pass here (N6).
    is_reply: bool,
    /// The port at the back end, and the port of the front end to which it belongs, if a load balancer has replaced it.
    moved: Option<(u16, u16)>,
}

/// The address that rules see on one side of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// That of the end that asks.
    From,
    /// That of the end that is asked.
    To,
    /// A back end.
    Fixed(IpAddr),
}

/// The place of rules in memory, by which changes name them.
pub(super) fn place(rules: &Arc<NicRules>) -> usize {
    Arc::as_ptr(rules) as usize
}

impl Checks {
    /// The checks on the way of packets from `ends.0` to `ends.1`, and on the way of their replies. The rules do not
    /// decide about a reply where the packet has passed before (N6). `port`: the destination port of the packets, if the
    /// checks are for one port.
    pub(super) fn of(
        agents: &Agents<'_>,
        ends: (&End, &End),
        there: &[(AgentId, Passed)],
        back: &[(AgentId, Passed)],
        port: Option<u16>,
    ) -> Self {
        let side = |address: IpAddr| match address {
            address if address == ends.0.address => Side::From,
            address if address == ends.1.address => Side::To,
            address => Side::Fixed(address),
        };
        let is_known = |(agent, reply): &&(AgentId, Passed)| {
            there.iter().any(|(other, request)| {
                other == agent
                    && request.flow_nic == reply.flow_nic
                    && request.source == reply.destination
                    && request.destination == reply.source
            })
        };
        let requests = there.iter().map(|passed| (passed, false));
        let replies = back
            .iter()
            .filter(|passed| !is_known(passed))
            .map(|passed| (passed, true));
        let mut all = Vec::new();
        for ((agent, passed), is_reply) in requests.chain(replies) {
            let rules = agents.get(agent).and_then(|node| node.rules(passed.nic));
            let Some(rules) = rules.filter(|rules| !rules.is_empty()) else {
                continue;
            };
            // The port at the end that is asked.
            let here = passed.ports.map(|(from, to)| if is_reply { from } else { to });
            all.push(Check {
                rules: rules.clone(),
                direction: passed.direction,
                source: side(passed.source),
                destination: side(passed.destination),
                is_reply,
                moved: here.zip(port).filter(|(here, port)| here != port),
            });
        }
        Self(all)
    }

    /// The same checks with other rules. `changed` has the network interfaces whose rules are others, by the place of the old
    /// rules in memory. `None`: it has none of these.
    pub(super) fn with(&self, changed: &HashMap<usize, Arc<NicRules>>) -> Option<Self> {
        let is_changed = |check: &Check| changed.contains_key(&place(&check.rules));
        self.0.iter().any(is_changed).then(|| {
            let checks = self.0.iter().map(|check| Check {
                rules: changed.get(&place(&check.rules)).unwrap_or(&check.rules).clone(),
                ..check.clone()
            });
            Self(checks.collect())
        })
    }

    /// The rules of all checks.
    pub(super) fn rules(&self) -> impl Iterator<Item = &Arc<NicRules>> {
        self.0.iter().map(|check| &check.rules)
    }

    /// Adds further checks: a packet must pass all of them.
    pub(super) fn add(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// Adds a cell for each set of traffic that passes from ends of `from` to ends of `to`. Ends whose addresses match
    /// the same rules are in one cell. `limit`: the traffic that the question is about.
    pub(super) fn cells(
        &self,
        ends: &[End],
        from: &Class,
        to: &Class,
        memo: &Memo,
        limit: &Traffic,
        cells: &mut Vec<Cell>,
    ) {
        let limit = memo.id(limit.clone());
        let senders = self.alike(ends, from, Side::From);
        let receivers = self.alike(ends, to, Side::To);
        let mut found: BTreeMap<(usize, TrafficId), Vec<u32>> = BTreeMap::new();
        for (number, (sending, _)) in senders.iter().enumerate() {
            for (receiving, members) in &receivers {
                let traffic = self.admitted(sending, receiving, memo, limit);
                if !memo.get(traffic).is_empty() {
                    found.entry((number, traffic)).or_default().extend(members);
                }
            }
        }
        let lists: Vec<Arc<[u32]>> = senders.into_values().map(Arc::from).collect();
        for ((number, traffic), mut to) in found {
            to.sort_unstable();
            let from = lists[number].clone();
            // A single end does not send to itself.
            if from.len() == 1 && *from == *to {
                continue;
            }
            cells.push(Cell {
                from,
                to: to.into(),
                traffic,
            });
        }
    }

    /// The ends of a class, by the rules that match their address on this side, for each check and each of its groups.
    fn alike(&self, ends: &[End], class: &Class, side: Side) -> BTreeMap<Vec<RuleSet>, Vec<u32>> {
        let mut groups: BTreeMap<Vec<RuleSet>, Vec<u32>> = BTreeMap::new();
        for position in class {
            let address = ends[*position].address;
            let mut matching = Vec::new();
            for check in &self.0 {
                for (is_source, of) in [(true, check.source), (false, check.destination)] {
                    if of == side {
                        matching.extend(check.matching(is_source, address).map(|(_, rules)| rules));
                    }
                }
            }
            let position = u32::try_from(*position).unwrap_or(u32::MAX);
            groups.entry(matching).or_default().push(position);
        }
        groups
    }

    /// The traffic that passes all checks. `sending` and `receiving` are the rules that match the two ends' addresses,
    /// in the order of [`alike`](Self::alike).
    fn admitted(&self, sending: &[RuleSet], receiving: &[RuleSet], memo: &Memo, limit: TrafficId) -> TrafficId {
        let (mut sending, mut receiving) = (sending.iter(), receiving.iter());
        let mut admitted = limit;
        for check in &self.0 {
            let mut of_side = |is_source: bool, side: Side| -> Vec<RuleSet> {
                let count = check.rules.group_count();
                match side {
                    Side::From => sending.by_ref().take(count).cloned().collect(),
                    Side::To => receiving.by_ref().take(count).cloned().collect(),
                    Side::Fixed(address) => check.matching(is_source, address).map(|(_, rules)| rules).collect(),
                }
            };
            let sources = of_side(true, check.source);
            let destinations = of_side(false, check.destination);
            let groups = check.rules.groups(check.direction);
            for ((group, source), destination) in groups.zip(&sources).zip(&destinations) {
                let mut allowed = memo.allowed(group, check.direction, check.is_reply, source.and_set(destination));
                if let Some((here, front)) = check.moved {
                    let set = memo.get(allowed);
                    allowed = memo.id(Traffic {
                        tcp: set.tcp.moved(here, front),
                        udp: set.udp.moved(here, front),
                        icmp: set.icmp,
                    });
                }
                admitted = memo.both(admitted, allowed);
            }
        }
        admitted
    }
}

impl Check {
    fn matching(&self, is_source: bool, address: IpAddr) -> impl Iterator<Item = (&Arc<GroupRules>, RuleSet)> {
        self.rules.matching(self.direction, is_source, address)
    }
}
