//! Admits packets at a NIC with security groups: packets of known flows at once, the first packet of a flow where the rules
//! allow it (N6, D31).

use super::classifier::RuleKey;
use super::flow_key::{Belongs, Fragment, Segment, belongs_to, fragment_of};
use super::flow_table::{FlowKey, FlowTable};
use super::nic_rules::{Judgement, NicRules, RuleRef};
use crate::packet::{PacketInfo, TCP, UDP};
use foldhash::fast::FixedState;
use std::hash::BuildHasher;
use tombolo_proto::config::Direction;

/// What becomes of a packet at a NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It belongs to a flow that was allowed before.
    Known,
    /// The rules allow it; `None`: no group applies.
    Allowed(Option<RuleRef>),
    /// This rule denies it: it is dropped silently (N7).
    Denied(RuleRef),
    /// Its headers are truncated or contradict each other.
    Malformed,
    /// It is a fragment of a datagram whose first fragment was not admitted here.
    UnknownFragment,
    /// The rules allow it, and the table of flows has no room for it.
    NoRoom,
}

/// One packet at a NIC.
#[derive(Debug, Clone, Copy)]
pub struct AtNic<'p> {
    /// The packet, which must have been parsed.
    pub packet: &'p [u8],
    /// What was parsed.
    pub info: &'p PacketInfo,
    /// The position of the NIC among those of the agent.
    pub nic: u8,
    /// Whether it comes to the NIC or leaves it.
    pub direction: Direction,
    /// The link that it came over, or [`FROM_HOST`](super::FROM_HOST).
    pub link: u32,
    /// Seconds since the table of flows was made.
    pub now: u32,
    /// `flowTimeoutInMinutes`, in seconds.
    pub idle_timeout: u32,
}

/// What one lane remembers to admit packets.
#[derive(Debug)]
pub struct FlowGate {
    fragments: Fragments,
    /// Until then, TCP in mid-stream is adopted, in seconds since the table was made.
    adopt_until: u32,
}

impl FlowGate {
    /// A gate without memory. `seed` is a number that strangers do not know. `adopt_until`: see [`Self::admit`]; 0 for never.
    #[must_use]
    pub fn new(seed: u64, adopt_until: u32) -> Self {
        Self {
            fragments: Fragments::new(seed),
            adopt_until,
        }
    }

    /// Adopts TCP in mid-stream until `until`, in seconds since the table was made; see [`Self::admit`].
    pub fn adopt_until(&mut self, until: u32) {
        self.adopt_until = self.adopt_until.max(until);
    }

    /// Says what becomes of a packet, and keeps its flow.
    ///
    /// * A packet of a known flow is admitted, whatever the rules say today (N6). A SYN asks for a new connection, so the rules
    ///   decide about it; the exception is a repeated SYN of a connection that has not been answered yet.
    /// * An ICMP error is admitted if the packet that it quotes belongs to a known flow.
    /// * A later fragment is admitted if its first fragment was.
    /// * After a crash of the agent (`adopt_until`), TCP in mid-stream is adopted where the rules allow the flow in either
    ///   direction: its SYN was judged before the crash.
    ///
    /// Calls `decided` with each rule that decided, which is at most one in each group. No rule decides about a packet of a
    /// known flow.
    pub fn admit(
        &mut self,
        table: &FlowTable,
        rules: &NicRules,
        at: &AtNic<'_>,
        mut decided: impl FnMut(RuleRef),
    ) -> Admission {
        if rules.is_empty() {
            return Admission::Allowed(None);
        }
        let (key, tcp) = match belongs_to(at.packet, at.info, at.nic, at.direction) {
            Belongs::Malformed => return Admission::Malformed,
            Belongs::Fragment(fragment) => {
                return match self.fragments.contains(&fragment, at) {
                    true => Admission::Known,
                    false => Admission::UnknownFragment,
                };
            }
            Belongs::Error { quoted } => {
                if table.find(&quoted, at.now).is_some() {
                    return Admission::Known;
                }
                return admission(rules.judge_and(at.direction, &rule_key(at.info, None), decided));
            }
            Belongs::Flow { key, tcp } => (key, tcp),
        };
        let known = table
            .find(&key, at.now)
            .filter(|flow| !tcp.opens || flow.is_repeated_syn())
            .filter(|flow| !tcp.asks || flow.forward);
        let admission = match known {
            Some(flow) => {
                table.touch(&flow, tcp.flags, at.now);
                Admission::Known
            }
            None => self.admit_new(table, rules, at, (&key, tcp), &mut decided),
        };
        if matches!(admission, Admission::Known | Admission::Allowed(_)) {
            // Only the first fragment of a datagram gets here.
            if let Some((fragment, _)) = fragment_of(at.packet, at.info) {
                self.fragments.insert(fragment, at);
            }
        }
        admission
    }

    /// Lets the rules decide about the first packet of a flow, or adopts its flow.
    fn admit_new(
        &self,
        table: &FlowTable,
        rules: &NicRules,
        at: &AtNic<'_>,
        (key, tcp): (&FlowKey, Segment),
        decided: &mut impl FnMut(RuleRef),
    ) -> Admission {
        let ports = matches!(key.protocol, TCP | UDP).then_some(key.ports);
        let forward = rule_key(at.info, ports);
        let is_midstream = key.protocol == TCP && tcp.acknowledges && !tcp.flags.syn && !tcp.flags.rst;
        if is_midstream
            && at.now < self.adopt_until
            && let Judgement::Denied(_) = rules.judge(at.direction, &forward)
            && let Some(adopted) = adopt(table, rules, at, key)
        {
            return adopted;
        }
        let judgement = rules.judge_and(at.direction, &forward, decided);
        if let Judgement::Denied(by) = judgement {
            return Admission::Denied(by);
        }
        match table.insert(key, at.link, at.idle_timeout, at.now) {
            Ok(_) => admission(judgement),
            Err(_) => Admission::NoRoom,
        }
    }
}

/// Adds the flow of a TCP segment as one that the other end has opened. `None`: the rules do not allow that either.
fn adopt(table: &FlowTable, rules: &NicRules, at: &AtNic<'_>, key: &FlowKey) -> Option<Admission> {
    let reversed = reverse(key);
    let backward = RuleKey {
        source: reversed.source,
        destination: reversed.destination,
        protocol: reversed.protocol,
        ports: Some(reversed.ports),
    };
    if matches!(rules.judge(reversed.direction, &backward), Judgement::Denied(_)) {
        return None;
    }
    Some(match table.insert(&reversed, at.link, at.idle_timeout, at.now) {
        // The flow is one without a reply until a second segment comes: a flood of single segments must not displace
        // established flows (D32).
        Ok(_) => Admission::Known,
        Err(_) => Admission::NoRoom,
    })
}

const fn reverse(key: &FlowKey) -> FlowKey {
    FlowKey {
        nic: key.nic,
        direction: key.direction.opposite(),
        protocol: key.protocol,
        source: key.destination,
        destination: key.source,
        ports: (key.ports.1, key.ports.0),
    }
}

const fn rule_key(info: &PacketInfo, ports: Option<(u16, u16)>) -> RuleKey {
    RuleKey {
        source: info.source,
        destination: info.destination,
        protocol: info.protocol,
        ports,
    }
}

const fn admission(judgement: Judgement) -> Admission {
    match judgement {
        Judgement::NoGroup => Admission::Allowed(None),
        Judgement::Allowed(by) => Admission::Allowed(Some(by)),
        Judgement::Denied(by) => Admission::Denied(by),
    }
}

/// Datagrams whose first fragment was admitted lately.
#[derive(Debug)]
struct Fragments {
    places: Box<[Option<Admitted>]>,
    hash: FixedState,
}

#[derive(Debug, Clone, Copy)]
struct Admitted {
    fragment: Fragment,
    nic: u8,
    direction: Direction,
    until: u32,
}

impl Fragments {
    /// Datagrams that are remembered; a power of two. A datagram that falls on the place of another one takes it, and the
    /// later fragments of that one are lost. Hosts reassemble few datagrams at once: Linux keeps 4 MiB of fragments.
    const PLACES: usize = 256;

    /// How long later fragments are waited for, in seconds: as long as Linux keeps a datagram that is not complete
    /// (`ipfrag_time`).
    const TIMEOUT: u32 = 30;

    fn new(seed: u64) -> Self {
        Self {
            places: vec![None; Self::PLACES].into_boxed_slice(),
            hash: FixedState::with_seed(seed),
        }
    }

    fn place(&self, fragment: &Fragment) -> usize {
        #[expect(clippy::cast_possible_truncation, reason = "the lowest bits are as good as any")]
        let hash = self.hash.hash_one(fragment) as usize;
        hash & (Self::PLACES - 1)
    }

    fn insert(&mut self, fragment: Fragment, at: &AtNic<'_>) {
        let place = self.place(&fragment);
        self.places[place] = Some(Admitted {
            fragment,
            nic: at.nic,
            direction: at.direction,
            until: at.now.saturating_add(Self::TIMEOUT),
        });
    }

    fn contains(&self, fragment: &Fragment, at: &AtNic<'_>) -> bool {
        self.places[self.place(fragment)].is_some_and(|admitted| {
            admitted.fragment == *fragment
                && admitted.nic == at.nic
                && admitted.direction == at.direction
                && at.now <= admitted.until
        })
    }
}

#[cfg(test)]
mod tests;
