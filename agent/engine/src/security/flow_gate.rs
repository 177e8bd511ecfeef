//! Decides whether a packet passes a NIC with security groups. A packet of a known flow passes. The rules decide about
//! the first packet of a flow (N6, D31).

use super::classifier::RuleKey;
use super::flow_key::{Belongs, Fragment, Segment, belongs_to, fragment_of};
use super::flow_table::{FlowKey, FlowRef, FlowTable};
use super::nic_rules::{Judgement, NicRules, RuleRef};
use crate::packet::{PacketInfo, TCP, UDP};
use crate::tables::{Choice, KeptChoices};
use foldhash::fast::FixedState;
use std::hash::BuildHasher;
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
        self.admit_flow(table, rules, at, decided).0
    }

    /// Does the same as [`admit`](Self::admit), and returns the packet's flow too, if the table has it now. The flow of an
    /// ICMP error is that of the packet that it quotes.
    pub fn admit_flow(
        &mut self,
        table: &FlowTable,
        rules: &NicRules,
        at: &AtNic<'_>,
        mut decided: impl FnMut(RuleRef),
    ) -> (Admission, Option<FlowRef>) {
        if rules.is_empty() && at.balanced == Balanced::No {
            return (Admission::Allowed(None), None);
        }
        let (key, tcp) = match belongs_to(at.packet, at.info, at.nic, at.direction) {
            Belongs::Malformed => return (Admission::Malformed, None),
            Belongs::Fragment { of, data } => {
                let admission = match self.fragments.end_of_first(&of, at) {
                    // Such a fragment would overwrite headers after the rules have decided about them. Linux drops the
                    // whole datagram (RFC 5722).
                    Some(end) if data.start < end => Admission::Malformed,
                    Some(_) => Admission::Known,
                    None if rules.is_empty() => Admission::Allowed(None),
                    None => Admission::UnknownFragment,
                };
                return (admission, None);
            }
            Belongs::Error { quoted } => {
                if let Some(flow) = table.find(&quoted, at.now) {
                    return match self.deny_again(table, rules, (&quoted, &flow), at.now, &mut decided) {
                        Some(by) => (Admission::Denied(by), None),
                        None => (Admission::Known, Some(flow.against())),
                    };
                }
                let judgement = rules.judge_and(at.direction, &rule_key(at.info, None), decided);
                return (admission(judgement), None);
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
        let (admission, flow) = match known {
            Some(flow) => match self.deny_again(table, rules, (&key, &flow), at.now, &mut decided) {
                Some(by) => (Admission::Denied(by), None),
                None => {
                    table.touch(&flow, tcp.flags, at.now);
                    (Admission::Known, Some(flow))
                }
            },
            None if rules.is_empty() && matches!(at.balanced, Balanced::MayReply | Balanced::Direct) => {
                (Admission::Allowed(None), None)
            }
            None => self.admit_new(table, rules, at, (&key, tcp), &mut decided),
        };
        if matches!(admission, Admission::Known | Admission::Allowed(_)) {
            // Later fragments have returned above, so this fragment is the first one of its datagram.
            if let Some((fragment, data)) = fragment_of(at.packet, at.info) {
                self.fragments.insert(fragment, data.end, at);
            }
        }
        (admission, flow)
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
    ) -> (Admission, Option<FlowRef>) {
        let forward = first_packet(key);
        let is_midstream = key.protocol == TCP && tcp.acknowledges && !tcp.flags.syn && !tcp.flags.rst;
        if is_midstream
            && at.now < self.adopt_until
            && let Judgement::Denied(_) = rules.judge(at.direction, &forward)
            && let Some(adopted) = adopt(table, rules, at, key)
        {
            return (adopted, None);
        }
        let judgement = rules.judge_and(at.direction, &forward, decided);
        if let Judgement::Denied(by) = judgement {
            return (Admission::Denied(by), None);
        }
        if at.ends_idle && is_midstream {
            return (Admission::Ended, None);
        }
        let choices = match at.balanced {
            Balanced::Chosen(choice) => choice.0,
            Balanced::No | Balanced::MayReply | Balanced::Direct => 0,
        };
        match table.insert_chosen(key, (at.link, at.idle_timeout), at.now, choices) {
            Ok(flow) => (admission(judgement), Some(flow)),
            Err(_) => (Admission::NoRoom, None),
        }
    }
}

/// Adds the flow of a TCP segment as one that the other end began. `None`: the rules deny the first packet of such a
/// flow too.
fn adopt(table: &FlowTable, rules: &NicRules, at: &AtNic<'_>, key: &FlowKey) -> Option<Admission> {
    let reversed = reverse(key);
    if matches!(
        rules.judge(reversed.direction, &first_packet(&reversed)),
        Judgement::Denied(_)
    ) {
        return None;
    }
    Some(match table.insert(&reversed, at.link, at.idle_timeout, at.now) {
        // The flow is one without a reply until a second segment comes: a flood of single segments must not displace
        // established flows (D32).
        Ok(_) => Admission::Adopted,
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

/// The fields of the packet with this flow key to which rules apply.
const fn first_packet(key: &FlowKey) -> RuleKey {
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

/// The datagrams whose first fragment one lane has admitted within the last 30 s.
#[derive(Debug)]
struct Fragments {
    places: Box<[Option<Admitted>]>,
    hash: FixedState,
}

#[derive(Debug, Clone, Copy)]
struct Admitted {
    fragment: Fragment,
    /// The length of the first fragment's data, in bytes.
    end_of_first: usize,
    nic: u8,
    direction: Direction,
    /// The last second in which later fragments pass, in seconds since the flow table was made.
    until: u32,
}

impl Fragments {
    /// Largest number of datagrams that are remembered; a power of two, so that a mask of the hash selects a place. If
    /// two datagrams have the same place, the newer one replaces the older one, and further fragments of the older one
    /// are dropped. So few places suffice because hosts reassemble few datagrams at once: Linux keeps 4 MiB of
    /// fragments.
    const PLACES: usize = 256;

    /// Time for which a datagram is remembered, in seconds. It is the time for which Linux keeps a datagram that is not
    /// complete (`ipfrag_time`).
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

    fn insert(&mut self, fragment: Fragment, end_of_first: usize, at: &AtNic<'_>) {
        let place = self.place(&fragment);
        self.places[place] = Some(Admitted {
            fragment,
            end_of_first,
            nic: at.nic,
            direction: at.direction,
            until: at.now.saturating_add(Self::TIMEOUT),
        });
    }

    /// The length of the data in the first fragment of a datagram, in bytes. `None`: the first fragment was not
    /// admitted.
    fn end_of_first(&self, fragment: &Fragment, at: &AtNic<'_>) -> Option<usize> {
        let admitted = self.places[self.place(fragment)].filter(|admitted| {
            admitted.fragment == *fragment
                && admitted.nic == at.nic
                && admitted.direction == at.direction
                && at.now <= admitted.until
        })?;
        Some(admitted.end_of_first)
    }
}

#[cfg(test)]
mod tests;
