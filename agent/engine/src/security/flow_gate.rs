//! Decides whether a packet passes a NIC with security groups. A packet of a known flow passes. The rules decide about
//! the first packet of a flow (N6, D31).

mod fragments;

use super::classifier::RuleKey;
use super::flow_key::{Belongs, Segment, belongs_to, fragment_of};
use super::flow_table::{FlowKey, FlowRef, FlowReport, FlowTable, Full};
use super::nic_rules::{Judgement, NicRules, RuleRef};
use crate::packet::{PacketInfo, TCP, UDP};
use crate::tables::{Choice, KeptChoices};
use fragments::Fragments;
use tombolo_proto::config::Direction;

/// The decision about a packet at a NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// The packet passes, and no rule is counted: it belongs to a known flow, or it is an ICMP error about a packet of
    /// a known flow, or a later fragment whose first fragment was admitted.
    Known,
    /// The packet passes, and no rule is counted: it is a segment of a TCP connection that is adopted because the rules
    /// allow the opposite direction (D34).
    Adopted,
    /// The packet passes, because this rule allows it in the last group. `None`: no group applies to the NIC.
    Allowed(Option<RuleRef>),
    /// This rule denies the packet. The packet must be dropped without an answer (N7).
    Denied(RuleRef),
    /// The packet's transport header is truncated, or the packet is a later fragment that would overwrite a part of the
    /// TCP header (RFC 1858) or of the first fragment (RFC 5722).
    Malformed,
    /// The packet is a later fragment, and the lane does not remember that it admitted the first fragment of the same
    /// datagram at this NIC and in this direction.
    UnknownFragment,
    /// The rules allow the packet, but the flow table has no room for its flow.
    NoRoom,
    /// The rules allow the packet, but the NIC has as many flows as it may have (X16).
    NicFull,
    /// The packet is a segment from the middle of a TCP connection whose flow is not known any more
    /// ([`AtNic::ends_idle`]).
    Ended,
}

/// A packet that passes a NIC in one direction.
#[derive(Debug, Clone, Copy)]
pub struct AtNic<'p> {
    /// The packet, from its IP header on.
    pub packet: &'p [u8],
    /// The fields that `packet::parse` has read from the packet.
    pub info: &'p PacketInfo,
    /// The number of the NIC: its position in `Security::nics`.
    pub nic: u8,
    /// Whether the packet comes to the NIC or leaves the NIC.
    pub direction: Direction,
    /// The number of the link over which the packet came, or [`FROM_HOST`](super::FROM_HOST).
    pub link: u32,
    /// The present time, in seconds since the flow table was made.
    pub now: u32,
    /// The idle timeout of a new flow, in seconds (`flowTimeoutInMinutes`).
    pub idle_timeout: u32,
    /// The part that a load balancer has in the packet.
    pub balanced: Balanced,
    /// Whether a segment from the middle of a TCP connection must belong to a known flow.
    pub ends_idle: bool,
    /// Whether the NIC has a flow log: its flows are kept even if no group applies to it.
    pub is_logged: bool,
}

/// The part that a flow log has in a decision.
pub trait FlowObserver {
    /// The number with which the counting of a new flow's packets begins; 0: they are not counted. `rule`: it allows the
    /// flow; `None`: no group applies.
    fn number(&self, rule: Option<RuleRef>) -> u32;

    /// Takes the last state of a counted flow that a new one replaces.
    fn ended(&mut self, report: &FlowReport);

    /// Takes a denial: the rule `by` has denied the packet with this key. It is the packet that began the flow, if the rules
    /// have decided about a known flow again.
    fn denied(&mut self, key: &FlowKey, by: RuleRef);
}

impl FlowObserver for () {
    fn number(&self, _rule: Option<RuleRef>) -> u32 {
        0
    }

    fn ended(&mut self, _report: &FlowReport) {}

    fn denied(&mut self, _key: &FlowKey, _by: RuleRef) {}
}

/// The decision about a packet, and the flow to which it belongs.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// The decision.
    pub admission: Admission,
    /// The packet's flow, if the table has it now. The flow of an ICMP error is that of the packet that it quotes.
    pub flow: Option<FlowRef>,
    /// The flow for which the packet counts in a flow log. A later fragment counts for the flow of its datagram, an ICMP
    /// error for none.
    pub counts_for: Option<FlowRef>,
    /// Whether the packet is a TCP segment that cannot be the first one of its flow, at a NIC without a group: the connection
    /// is from before the flow log.
    pub is_late: bool,
}

impl Outcome {
    const fn without_flow(admission: Admission) -> Self {
        Self {
            admission,
            flow: None,
            counts_for: None,
            is_late: false,
        }
    }

    const fn of(admission: Admission, flow: FlowRef) -> Self {
        Self {
            admission,
            flow: Some(flow),
            counts_for: Some(flow),
            is_late: false,
        }
    }
}

/// The part that a load balancer has in a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balanced {
    /// None.
    No,
    /// It has made this choice for the packet. The packet's flow is kept even if no group applies to the NIC.
    Chosen(Choice),
    /// The packet may be a reply of a flow for which a load balancer has made a choice: it comes from a back end's NIC, or
    /// from a front end.
    MayReply,
    /// None, and the packet comes to a NIC with back ends. The back end cannot distinguish such a packet from one with the
    /// same addresses and ports that a load balancer has sent to it. So the flow is from now on one without a choice, and
    /// replies are not translated.
    Direct,
}

/// The state that one lane needs for its decisions about packets, besides the [`FlowTable`] that all lanes share.
#[derive(Debug)]
pub struct FlowGate {
    fragments: Fragments,
    /// The end of the time in which TCP connections are adopted, in seconds since the flow table was made.
    adopt_until: u32,
    /// Whether the rules decide about the packets of known flows too.
    judges_known: bool,
}

impl FlowGate {
    /// A gate that remembers no fragments. `seed` must be secret and random, so that no sender can choose datagrams
    /// that displace each other. `adopt_until` is the end of the time in which TCP connections are adopted (see
    /// [`Self::admit`]), in seconds since the flow table was made. 0: no connection is adopted.
    #[must_use]
    pub fn new(seed: u64, adopt_until: u32) -> Self {
        Self {
            fragments: Fragments::new(seed),
            adopt_until,
            judges_known: false,
        }
    }

    /// Sets whether the rules decide about every flow again, as if each flow were marked in the table
    /// ([`FlowRef::judge_again`]). It is set after a change, until all affected flows are marked.
    pub const fn judge_known(&mut self, judges: bool) {
        self.judges_known = judges;
    }

    /// Adopts TCP connections until `until`, in seconds since the flow table was made (see [`Self::admit`]). Changes
    /// nothing if they are adopted for longer already.
    pub fn adopt_until(&mut self, until: u32) {
        self.adopt_until = self.adopt_until.max(until);
    }

    /// Decides whether a packet passes the NIC. If the rules allow the packet, adds its flow to `table`. If the flow is
    /// known, notes the packet in the flow's entry.
    ///
    /// * A packet of a known flow passes, even if the present rules would deny it (N6). The rules decide about a SYN
    ///   without ACK, because it asks for a new connection. The exception is a repeated SYN of a connection that the
    ///   other end has not answered yet.
    /// * The rules decide about a flow again if its entry is marked ([`FlowRef::judge_again`]). They decide about the
    ///   packet that began the flow, whichever direction the present packet has. If they allow it, the flow goes on. If
    ///   they deny it, the entry stays, so that no packet of the other end can begin the flow anew.
    /// * An ICMP error passes if the packet that it quotes belongs to a known flow. If that flow is not known, the
    ///   rules decide about the error, and no flow is added.
    /// * A later fragment passes if the first fragment of its datagram passed the same NIC in the same direction and
    ///   lane, at most 30 s before, and if it overwrites none of the first one's data.
    /// * Before the time `adopt_until`, a TCP segment without SYN also passes if the rules would allow its connection
    ///   in the opposite direction: the connection may have begun there before the agent started, or before the NIC had
    ///   a group (D34). The connection is adopted: its flow is added as an established one.
    ///
    /// Calls `decided` with the deciding rule of each group that was asked, so at most once for each group. Does not
    /// call it if the result is [`Admission::Known`].
    pub fn admit(
        &mut self,
        table: &FlowTable,
        rules: &NicRules,
        at: &AtNic<'_>,
        decided: impl FnMut(RuleRef),
    ) -> Admission {
        self.admit_flow(table, rules, at, decided, &mut ()).admission
    }

    /// Does the same as [`admit`](Self::admit), and returns the packet's flow too. `observer` is the flow log of the NIC.
    pub fn admit_flow(
        &mut self,
        table: &FlowTable,
        rules: &NicRules,
        at: &AtNic<'_>,
        mut decided: impl FnMut(RuleRef),
        observer: &mut impl FlowObserver,
    ) -> Outcome {
        let is_open = rules.is_empty() && at.balanced == Balanced::No;
        if is_open && !at.is_logged {
            return Outcome::without_flow(Admission::Allowed(None));
        }
        let (key, tcp) = match belongs_to(at.packet, at.info, at.nic, at.direction) {
            // A flow log must not stop a packet.
            Belongs::Malformed if is_open => return Outcome::without_flow(Admission::Allowed(None)),
            Belongs::Malformed => return Outcome::without_flow(Admission::Malformed),
            Belongs::Fragment { of, data } => {
                let first = self.fragments.find(&of, at);
                let admission = match first {
                    // Such a fragment would overwrite headers after the rules have decided about them. Linux drops the
                    // whole datagram (RFC 5722).
                    Some(first) if data.start < first.end && !is_open => Admission::Malformed,
                    Some(_) => Admission::Known,
                    None if rules.is_empty() => Admission::Allowed(None),
                    None => Admission::UnknownFragment,
                };
                return Outcome {
                    counts_for: first.and_then(|first| first.flow),
                    ..Outcome::without_flow(admission)
                };
            }
            Belongs::Error { quoted } => {
                if let Some(flow) = table.find(&quoted, at.now) {
                    let known = (&quoted, &flow);
                    return match self.deny_again(table, rules, known, at.now, &mut decided, observer) {
                        Some(by) => Outcome::without_flow(Admission::Denied(by)),
                        None => Outcome {
                            flow: Some(flow.against()),
                            ..Outcome::without_flow(Admission::Known)
                        },
                    };
                }
                let judgement = rules.judge_and(at.direction, &rule_key(at.info, None), decided);
                if let Judgement::Denied(by) = judgement {
                    observer.denied(&error_key(at), by);
                }
                return Outcome::without_flow(admission(judgement));
            }
            Belongs::Flow { key, tcp } => (key, tcp),
        };
        let mut found = table.find(&key, at.now);
        if at.balanced == Balanced::Direct
            && let Some(flow) = found.as_mut()
            && flow.forward
            && KeptChoices(flow.choices).forward().is_some()
        {
            table.set_choices(flow, 0);
            flow.choices = 0;
        }
        let known = found
            .filter(|flow| !tcp.opens || flow.is_repeated_syn())
            .filter(|flow| !tcp.asks || flow.forward);
        let outcome = match known {
            Some(flow) => match self.deny_again(table, rules, (&key, &flow), at.now, &mut decided, observer) {
                Some(by) => Outcome::without_flow(Admission::Denied(by)),
                None => {
                    table.touch(&flow, tcp.flags, at.now);
                    Outcome::of(Admission::Known, flow)
                }
            },
            // An entry without a choice for what may be the reply of a balanced flow would break that flow. A SYN is no reply,
            // so a flow log may keep its flow.
            None if rules.is_empty()
                && !(at.is_logged && tcp.opens)
                && matches!(at.balanced, Balanced::MayReply | Balanced::Direct) =>
            {
                Outcome::without_flow(Admission::Allowed(None))
            }
            None => self.admit_new(table, rules, at, (&key, tcp), &mut decided, observer),
        };
        if matches!(outcome.admission, Admission::Known | Admission::Allowed(_)) {
            // Later fragments have returned above, so this fragment is the first one of its datagram.
            if let Some((fragment, data)) = fragment_of(at.packet, at.info) {
                self.fragments.insert(fragment, data.end, outcome.counts_for, at);
            }
        }
        outcome
    }

    /// Lets the rules decide again about a known flow, if they must. Returns the rule that denies it. `key` is the key
    /// with which the flow was found.
    fn deny_again(
        &self,
        table: &FlowTable,
        rules: &NicRules,
        (key, flow): (&FlowKey, &FlowRef),
        now: u32,
        decided: &mut impl FnMut(RuleRef),
        observer: &mut impl FlowObserver,
    ) -> Option<RuleRef> {
        if !flow.judge_again && !self.judges_known {
            return None;
        }
        let first = if flow.forward { *key } else { reverse(key) };
        let packet = first_packet(&first);
        match rules.judge(first.direction, &packet) {
            Judgement::Denied(by) => {
                rules.judge_and(first.direction, &packet, decided);
                table.deny(flow, now);
                observer.denied(&first, by);
                Some(by)
            }
            Judgement::NoGroup | Judgement::Allowed(_) => {
                if flow.judge_again {
                    table.allow_again(flow);
                }
                None
            }
        }
    }

    /// Lets the rules decide about a packet whose flow is not known, or adopts its TCP connection (see
    /// [`Self::admit`]).
    fn admit_new(
        &self,
        table: &FlowTable,
        rules: &NicRules,
        at: &AtNic<'_>,
        (key, tcp): (&FlowKey, Segment),
        decided: &mut impl FnMut(RuleRef),
        observer: &mut impl FlowObserver,
    ) -> Outcome {
        let forward = first_packet(key);
        let is_midstream = key.protocol == TCP && tcp.acknowledges && !tcp.flags.syn && !tcp.flags.rst;
        if is_midstream
            && at.now < self.adopt_until
            && let Judgement::Denied(_) = rules.judge(at.direction, &forward)
            && let Some(adopted) = adopt(table, rules, at, key, observer)
        {
            return adopted;
        }
        let judgement = rules.judge_and(at.direction, &forward, decided);
        if let Judgement::Denied(by) = judgement {
            observer.denied(key, by);
            return Outcome::without_flow(Admission::Denied(by));
        }
        if at.ends_idle && is_midstream {
            return Outcome::without_flow(Admission::Ended);
        }
        let choices = match at.balanced {
            Balanced::Chosen(choice) => choice.0,
            Balanced::No | Balanced::MayReply | Balanced::Direct => 0,
        };
        let admission = admission(judgement);
        let rule = match admission {
            Admission::Allowed(rule) => rule,
            _ => None,
        };
        let new = (choices, observer.number(rule));
        let origin = (at.link, at.idle_timeout);
        match table.insert_counted(key, origin, at.now, new, &mut |report| observer.ended(report)) {
            Ok(flow) => Outcome {
                is_late: rules.is_empty() && key.protocol == TCP && !tcp.opens,
                ..Outcome::of(admission, flow)
            },
            Err(_) if rules.is_empty() && choices == 0 => Outcome::without_flow(admission),
            Err(full) => Outcome::without_flow(no_room(full)),
        }
    }
}

/// Adds the flow of a TCP segment as one that the other end began. `None`: the rules deny the first packet of such a
/// flow too.
fn adopt(
    table: &FlowTable,
    rules: &NicRules,
    at: &AtNic<'_>,
    key: &FlowKey,
    observer: &mut impl FlowObserver,
) -> Option<Outcome> {
    let reversed = reverse(key);
    let rule = match rules.judge(reversed.direction, &first_packet(&reversed)) {
        Judgement::Denied(_) => return None,
        Judgement::Allowed(rule) => Some(rule),
        Judgement::NoGroup => None,
    };
    let (origin, new) = ((at.link, at.idle_timeout), (0, observer.number(rule)));
    let added = table.insert_counted(&reversed, origin, at.now, new, &mut |report| observer.ended(report));
    Some(match added {
        // The flow is one without a reply until a second segment comes: a flood of single segments must not displace
        // established flows (D32).
        Ok(flow) => Outcome {
            counts_for: Some(flow.against()),
            ..Outcome::without_flow(Admission::Adopted)
        },
        Err(full) => Outcome::without_flow(no_room(full)),
    })
}

/// The decision about a packet whose flow was not added.
const fn no_room(full: Full) -> Admission {
    match full {
        Full::Nic => Admission::NicFull,
        Full::Unanswered | Full::Bucket => Admission::NoRoom,
    }
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

/// The fields of the packet with this flow key to which rules apply.
pub(super) const fn first_packet(key: &FlowKey) -> RuleKey {
    RuleKey {
        source: key.source,
        destination: key.destination,
        protocol: key.protocol,
        ports: match key.protocol {
            TCP | UDP => Some(key.ports),
            _ => None,
        },
    }
}

/// The key of an ICMP error in a flow log.
const fn error_key(at: &AtNic<'_>) -> FlowKey {
    FlowKey {
        nic: at.nic,
        direction: at.direction,
        protocol: at.info.protocol,
        source: at.info.source,
        destination: at.info.destination,
        ports: (0, 0),
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

#[cfg(test)]
mod tests;
