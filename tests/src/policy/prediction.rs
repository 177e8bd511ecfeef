//! Reads from an answer of `explain` which rules will count a packet and its reply.

use super::Port;
use crate::operation::Protocol;
use std::collections::BTreeMap;
use std::net::IpAddr;
use tombolo_engine::security::RuleName;
use tombolo_proto::config::{Access, Direction};
use tombolo_proto::fabric;
use tombolo_topology::explain::{Explanation, SecurityCheck, Walk};
use tombolo_topology::nic_security::FirstPacket;

/// How often rules have decided, or will decide.
pub type Counters = BTreeMap<RuleName, u64>;

/// The decision of the rules at one NIC about a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Whether all groups allow the packet.
    pub access: Access,
    /// The rules that decide, in the order of the groups up to the first group that denies.
    pub rules: Vec<RuleName>,
}

/// The rules that will decide about the packets of one question.
#[derive(Debug, Clone, Default)]
pub struct Prediction {
    /// Whether the packet arrives and its reply comes back.
    pub reachable: bool,
    /// The decisions that let the packet or the reply pass: each about the first packet of a flow, however often the
    /// packet is repeated.
    pub allowed: Vec<Decision>,
    /// The decision that drops the packet or the reply. The same rules decide again about each repetition of the
    /// packet.
    pub denied: Option<Decision>,
}

impl Prediction {
    /// What an answer of `explain` predicts.
    #[must_use]
    pub fn of(answer: &Explanation) -> Self {
        let walks = [Some(&answer.request), answer.reply.as_ref()];
        let mut prediction = Self {
            reachable: answer.reachable,
            ..Self::default()
        };
        for decision in walks.into_iter().flatten().flat_map(decisions) {
            match decision.access {
                Access::Allow => prediction.allowed.push(decision),
                Access::Deny => prediction.denied = Some(decision),
            }
        }
        prediction
    }

    /// The counters of a packet that is sent once, and of its reply.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut counters = Counters::new();
        for rule in self.allowed.iter().chain(&self.denied).flat_map(|d| &d.rules) {
            *counters.entry(rule.clone()).or_default() += 1;
        }
        counters
    }
}

/// Counters as text, one line for each rule.
#[must_use]
pub fn text(counters: &Counters) -> String {
    let line = |(rule, count): (&RuleName, &u64)| {
        let (nic, group) = (rule.nic.name(), rule.group.name());
        format!("\n    {nic} {:?} {group} {}: {count}", rule.direction, rule.rule)
    };
    counters.iter().map(line).collect()
}

/// The decisions of rules on a walk, in order. Packets of known flows have none.
pub fn decisions(walk: &Walk) -> impl Iterator<Item = Decision> {
    walk.hops.iter().filter_map(|hop| decision(hop.security.as_ref()?))
}

/// The decision of a check. `None`: the packet belongs to a known flow.
#[must_use]
pub fn decision(check: &SecurityCheck) -> Option<Decision> {
    let last = check.groups.last()?;
    let named = check.groups.iter().filter_map(|group| {
        Some(RuleName {
            nic: check.at.clone(),
            group: group.group.clone(),
            direction: check.direction,
            rule: group.rule.as_ref()?.name.clone(),
        })
    });
    Some(Decision {
        access: last.access,
        rules: named.collect(),
    })
}

/// The protocol, as requests of the fabric API have it.
#[must_use]
pub const fn protocol(protocol: Protocol) -> fabric::Protocol {
    match protocol {
        Protocol::Tcp => fabric::Protocol::Tcp,
        Protocol::Udp => fabric::Protocol::Udp,
        Protocol::Icmp => fabric::Protocol::Icmp,
    }
}

/// A packet of a flow as the rules of a NIC see it.
#[must_use]
pub const fn first_packet(
    direction: Direction,
    (source, source_port): (IpAddr, u16),
    (destination, Port(kind, port)): (IpAddr, Port),
) -> FirstPacket {
    FirstPacket {
        direction,
        protocol: protocol(kind),
        source,
        destination,
        source_port: Some(source_port),
        destination_port: port,
    }
}
