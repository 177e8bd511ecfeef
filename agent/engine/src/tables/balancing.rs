//! The front ends of load balancers, and the choice of a back end (L4, L9, L11, D35).

mod candidates;
mod choice;
mod condition;
mod previous;

use super::vm_nics::Place;
use super::{AddressSpace, LinkIndex, LinkPolicy, NicIndex, Owner, VmNics};
use crate::packet::{PacketInfo, TCP, UDP};
use crate::verdict::DropReason;
pub(crate) use candidates::Among;
use candidates::Candidates;
pub use choice::{Choice, KeptChoices};
pub(crate) use condition::Conditions;
use previous::Previous;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tombolo_proto::config::{self, BalancedProtocol, Distribution};
use tombolo_proto::id::ResourceId;

/// All front ends that an agent can reach, and the back ends that it owns.
#[derive(Debug, Clone, Default)]
pub(crate) struct FrontEnds {
    /// The position in `all`, by the address and the position of the space.
    by_address: BTreeMap<(IpAddr, usize), usize>,
    all: Vec<FrontEnd>,
    /// The back ends that this agent owns, once for each rule. [`BackEndIndex`] is a position in this list.
    own: Vec<BackEnd>,
    /// The NICs of `own`.
    nics_with_back_ends: BTreeSet<NicIndex>,
    /// The NIC of the first back end in `own` behind each front end.
    nic_behind: BTreeMap<IpAddr, NicIndex>,
    /// The position in `own` of each choice.
    own_by_choice: BTreeMap<Choice, BackEndIndex>,
    /// What happens to idle flows with each choice.
    idle: BTreeMap<Choice, Idle>,
}

/// A front end.
#[derive(Debug, Clone)]
struct FrontEnd {
    address: IpAddr,
    rules: Vec<Rule>,
}

/// A load-balancing rule or an inbound NAT rule.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub(crate) id: ResourceId,
    protocol: BalancedProtocol,
    port: u16,
    distribution: Distribution,
    /// Whether established TCP flows end now, because all back ends are down (L8).
    ends_flows: bool,
    /// Time without packets after which a flow ends, in seconds.
    idle_timeout: u32,
    members: Vec<Member>,
    candidates: Candidates,
    /// The position in `members` of each choice, in ascending order.
    by_choice: Vec<(Choice, usize)>,
    /// The rule as it was before its last change.
    previous: Option<Arc<Previous>>,
}

/// A back end of a rule.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) choice: Choice,
    pub(crate) address: IpAddr,
    pub(crate) owner: Owner,
    /// If this agent owns the back end: its position in [`FrontEnds::own`].
    pub(crate) own: Option<BackEndIndex>,
    /// Whether new flows may go to the back end (L7).
    is_up: bool,
    /// Whether the link with the back end's agent is down. New flows go to others if there are any.
    is_link_down: bool,
    /// Whether the back end is gone: the link has been down for too long (D36).
    is_gone: bool,
    /// A hash of the address.
    hash: u64,
}

/// What happens to the idle flows of a rule.
#[derive(Debug, Clone, Copy)]
struct Idle {
    /// Time without packets after which a flow ends, in seconds.
    timeout: u32,
    /// Whether the client gets a reset if it goes on with a TCP flow that has ended.
    resets: bool,
}

/// The position of a back end among those that this agent owns. An index is valid only with the same [`Tables`](super::Tables).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackEndIndex(pub u32);

/// A back end that this agent owns, as a rule uses it.
#[derive(Debug, Clone)]
pub(crate) struct BackEnd {
    pub(crate) choice: Choice,
    /// The NIC that has the back end's address, or that serves the subnet of it.
    pub(crate) nic: NicIndex,
    /// The subnet of the back end's address, and the NIC that has it.
    place: Place,
    /// Address and port of the front end. The port is 0 in a rule for all ports.
    pub(crate) front: (IpAddr, u16),
    /// Address and port of the back end. The port is 0 in a rule for all ports.
    pub(crate) back: (IpAddr, u16),
    /// Whether packets are delivered with the front end's address and port.
    pub(crate) floating_ip: bool,
}

impl FrontEnds {
    /// Prepares front ends for lookups. `nics`: the NICs of this agent; `None`: it is no VM.
    /// `before`: the front ends in the tables before.
    pub(crate) fn new(
        front_ends: &[config::FrontEnd],
        spaces: &[AddressSpace],
        nics: Option<&VmNics>,
        conditions: &Conditions<'_>,
        before: Option<&Self>,
    ) -> Self {
        let rules_before = before.into_iter().flat_map(|before| &before.all).flat_map(|f| &f.rules);
        let rules_before: BTreeMap<&ResourceId, &Rule> = rules_before.map(|rule| (&rule.id, rule)).collect();
        let mut all = Self::default();
        for front_end in front_ends {
            let Some(space) = spaces.iter().position(|s| s.vnet == front_end.vnet) else {
                continue;
            };
            let rules = front_end.rules.iter();
            let rules = rules.map(|rule| {
                let mut prepared = all.rule(front_end.address, rule, &spaces[space], nics, conditions);
                let before = rules_before.get(&rule.id);
                prepared.previous = before.and_then(|before| Previous::of(before, &prepared));
                prepared
            });
            let prepared = FrontEnd {
                address: front_end.address,
                rules: rules.collect(),
            };
            all.by_address.insert((front_end.address, space), all.all.len());
            all.all.push(prepared);
        }
        all
    }

    fn rule(
        &mut self,
        front: IpAddr,
        rule: &config::BalancingRule,
        space: &AddressSpace,
        nics: Option<&VmNics>,
        conditions: &Conditions<'_>,
    ) -> Rule {
        let idle = Idle {
            timeout: u32::from(rule.idle_timeout_minutes) * 60,
            resets: rule.tcp_reset,
        };
        let of_rule = hash_text(&rule.id.key());
        let back_ends = rule.back_ends.iter().map(|address| {
            let owner = space.owners.get(*address).copied().unwrap_or(Owner::NoLink);
            (*address, owner, conditions.of(rule, *address, owner))
        });
        let back_ends: Vec<_> = back_ends.collect();
        let all_down = !back_ends.iter().any(|(_, _, c)| c.is_healthy && !c.is_gone);
        let counts_as_up = all_down && rule.probe.as_ref().is_some_and(|probe| probe.all_up_when_all_down);
        let mut members = Vec::with_capacity(back_ends.len());
        for (address, owner, condition) in back_ends {
            let hash = hash_address(address);
            let choice = Choice::of(of_rule, hash);
            self.idle.insert(choice, idle);
            let place = nics
                .filter(|_| owner == Owner::Own)
                .and_then(|nics| nics.owner(address));
            let own = place.and_then(|place| {
                let index = BackEndIndex(u32::try_from(self.own.len()).ok()?);
                let nic = place.nic.unwrap_or(NicIndex::FIRST);
                self.nics_with_back_ends.insert(nic);
                self.nic_behind.entry(front).or_insert(nic);
                self.own.push(BackEnd {
                    choice,
                    nic,
                    place,
                    front: (front, rule.port),
                    back: (address, rule.back_end_port),
                    floating_ip: rule.floating_ip,
                });
                self.own_by_choice.insert(choice, index);
                Some(index)
            });
            members.push(Member {
                choice,
                address,
                owner,
                own,
                is_up: !condition.is_gone && !condition.is_out && (counts_as_up || condition.is_healthy),
                is_link_down: condition.is_link_down,
                is_gone: condition.is_gone,
                hash,
            });
        }
        let mut by_choice: Vec<_> = members.iter().map(|member| member.choice).zip(0..).collect();
        by_choice.sort_unstable();
        Rule {
            candidates: Candidates::of(&members),
            by_choice,
            id: rule.id.clone(),
            protocol: rule.protocol,
            port: rule.port,
            distribution: rule.distribution,
            ends_flows: all_down && !counts_as_up && rule.ends_flows,
            idle_timeout: idle.timeout,
            members,
            previous: None,
        }
    }

    /// Notes that a lane has installed these front ends at `now`. `counts`: whether flows can have begun before the changes
    /// that no lane had installed yet.
    pub(crate) fn begin(&self, now: Instant, counts: bool) {
        let rules = self.all.iter().flat_map(|front_end| &front_end.rules);
        for previous in rules.filter_map(|rule| rule.previous.as_ref()) {
            previous.begin(now, counts);
        }
    }

    /// The links with the agents that own back ends. A link occurs once for each of them.
    pub(crate) fn owner_links(&self) -> impl Iterator<Item = LinkIndex> + '_ {
        let rules = self.all.iter().flat_map(|front_end| &front_end.rules);
        rules
            .flat_map(|rule| &rule.members)
            .filter_map(|member| match member.owner {
                Owner::Link(link) => Some(link),
                Owner::Own | Owner::NoLink => None,
            })
    }

    /// Whether there is no front end.
    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether `address` is a front end in the space at this position.
    pub(crate) fn contains(&self, space: usize, address: IpAddr) -> bool {
        self.by_address.contains_key(&(address, space))
    }

    /// Whether `address` is a front end in any space.
    pub(crate) fn has_address(&self, address: IpAddr) -> bool {
        let mut from_it = self.by_address.range((address, 0)..);
        from_it.next().is_some_and(|((found, _), _)| *found == address)
    }

    /// The NIC of this agent that has a back end, or serves its subnet. `None`: no back end of this agent has the address.
    pub(crate) fn nic_of_back_end(&self, address: IpAddr) -> Option<NicIndex> {
        self.own.iter().find(|b| b.back.0 == address).map(|b| b.nic)
    }

    /// The NIC of this agent that has a back end of the front end `address`, or serves its subnet. `None`: the agent owns no
    /// back end of it.
    pub(crate) fn nic_behind(&self, address: IpAddr) -> Option<NicIndex> {
        self.nic_behind.get(&address).copied()
    }

    /// The place of a back end behind the front end `address` from which packets come to this agent by the device of a NIC.
    /// With floating IP its replies have this address as source (L5).
    pub(crate) fn place_behind(&self, address: IpAddr, nic: NicIndex) -> Option<Place> {
        let may_leave = |back_end: &&BackEnd| back_end.place.nic.is_none_or(|of| of == nic);
        let mut back_ends = self.own.iter().filter(|b| b.front.0 == address);
        back_ends.find(may_leave).map(|b| b.place)
    }

    /// Whether a NIC of this agent has a back end.
    pub(crate) fn has_back_ends(&self, nic: NicIndex) -> bool {
        self.nics_with_back_ends.contains(&nic)
    }

    /// A back end that this agent owns.
    pub(crate) fn back_end(&self, index: BackEndIndex) -> Option<&BackEnd> {
        self.own.get(index.0 as usize)
    }

    /// The back end of an earlier choice. `None`: this agent does not own it, or the rule or the back end is gone.
    pub(crate) fn back_end_of(&self, choice: Choice) -> Option<&BackEnd> {
        self.back_end(*self.own_by_choice.get(&choice)?)
    }

    /// Time without packets after which a flow with this choice ends, in seconds. `None`: the rule or the back end is gone.
    pub(crate) fn idle_timeout(&self, choice: Choice) -> Option<u32> {
        self.idle.get(&choice).map(|idle| idle.timeout)
    }

    /// Whether a TCP segment of a flow with this choice is answered with a reset if the flow has ended by its idle timeout.
    pub(crate) fn resets_idle_flows(&self, choice: Choice) -> bool {
        self.idle.get(&choice).is_some_and(|idle| idle.resets)
    }

    /// The back ends of this agent whose replies have this front end's address and port as source.
    pub(crate) fn own_back_ends_behind(&self, (address, port): (IpAddr, u16)) -> impl Iterator<Item = &BackEnd> {
        let is_of = move |front: (IpAddr, u16)| front.0 == address && (front.1 == port || front.1 == 0);
        self.own.iter().filter(move |back_end| is_of(back_end.front))
    }

    /// Whether this agent owns a back end with this address, which answers probes.
    pub(crate) fn has_own_back_end(&self, address: IpAddr) -> bool {
        self.own.iter().any(|back_end| back_end.back.0 == address)
    }

    /// The back ends of this agent to which `rule` may send packets.
    pub(crate) fn own_back_ends_of(&self, rule: &Rule) -> impl Iterator<Item = &BackEnd> {
        rule.members.iter().filter_map(|member| self.back_end(member.own?))
    }

    /// The rule of the front end `address` that applies to a packet (L3, L9).
    ///
    /// # Errors
    /// No rule applies: the packet is neither TCP nor UDP, or there is no rule for its protocol and port.
    pub(crate) fn rule_for(&self, space: usize, address: IpAddr, packet: &PacketInfo) -> Result<&Rule, DropReason> {
        let position = self.by_address.get(&(address, space)).ok_or(DropReason::NoOwner)?;
        self.all[*position].rule_for(packet)
    }

    /// The rule of a front end for packets that come to one of this agent's back ends. See [`Self::rule_for`].
    ///
    /// # Errors
    /// As for [`Self::rule_for`].
    pub(crate) fn own_rule_for(&self, packet: &PacketInfo) -> Result<&Rule, DropReason> {
        let front_end = self.all.iter().find(|f| {
            let mut members = f.rules.iter().flat_map(|rule| &rule.members);
            f.address == packet.destination && members.any(|member| member.own.is_some())
        });
        front_end.ok_or(DropReason::NoOwner)?.rule_for(packet)
    }
}

impl FrontEnd {
    fn rule_for(&self, packet: &PacketInfo) -> Result<&Rule, DropReason> {
        let protocol = match packet.protocol {
            TCP => BalancedProtocol::Tcp,
            UDP => BalancedProtocol::Udp,
            _ => return Err(DropReason::BalancerProtocol),
        };
        #[expect(clippy::cast_possible_truncation, reason = "the lower half is the destination port")]
        let port = packet.ports as u16;
        // Fragments have no ports, so only a rule for all ports applies to them, as in Azure.
        let exact = |rule: &&Rule| rule.protocol == protocol && rule.port == port && packet.ports != 0;
        let found = self.rules.iter().find(exact);
        let found = found.or_else(|| self.rules.iter().find(|rule| rule.protocol == BalancedProtocol::All));
        found.ok_or(DropReason::NoBalancingRule)
    }
}

impl Rule {
    /// The back end for a packet by rendezvous hashing: of all back ends, the one whose hash together with the flow's is
    /// the highest. So a back end that leaves moves only its own flows. Back ends that are down get no new flow (L7).
    /// A back end with whose agent the link is down is chosen only if there is no other. `None`: no back end among those
    /// of `among` is up (L8).
    pub(crate) fn choose(&self, packet: &PacketInfo, among: Among) -> Option<&Member> {
        let flow = hash_flow(packet, self.distribution);
        self.members.get(self.candidates.choose(flow, among)?)
    }

    fn of_choice(&self, choice: Choice) -> Option<&Member> {
        let at = self.by_choice.partition_point(|(other, _)| *other < choice);
        let (found, position) = self.by_choice.get(at)?;
        self.members.get(*position).filter(|_| *found == choice)
    }

    /// The choice of the back end with this address. `None`: the rule does not have it.
    pub(crate) fn choice_of(&self, address: IpAddr) -> Option<Choice> {
        let member = self.members.iter().find(|member| member.address == address)?;
        Some(member.choice)
    }

    /// Whether the back end of an earlier choice for the flow of a TCP segment is gone, so that the flow ends (D36).
    pub(crate) fn has_lost(&self, choice: Choice, packet: &PacketInfo) -> bool {
        packet.protocol == TCP && self.of_choice(choice).is_some_and(|member| member.is_gone)
    }

    /// The back end of an earlier choice for the flow of a packet. While the back end is down, TCP flows stay with it, and
    /// UDP flows move (L7). `None`: the flow moves, or the rule does not have this back end any more, or established
    /// flows end (L8).
    pub(crate) fn member(&self, choice: Choice, packet: &PacketInfo) -> Option<&Member> {
        let member = self.of_choice(choice)?;
        let stays = member.is_up || packet.protocol == TCP && !self.ends_flows;
        stays.then_some(member)
    }

    /// The choice for the replies of a flow, of which `kept` has a part. `packet` is a reply. If several back ends have the
    /// same part, the hash of the flow decides, as it did when the choice was made. `None`: the rule made no choice for
    /// the replies, or does not have the back end any more.
    pub(crate) fn choice_for_replies(&self, kept: KeptChoices, packet: &PacketInfo) -> Option<Choice> {
        let part = kept.for_replies()?;
        let flow = hash_flow(packet, self.distribution);
        let members = self.members.iter().filter(|member| member.choice.part() == part);
        let chosen = members.max_by_key(|member| (mix(flow ^ member.hash), member.address))?;
        Some(chosen.choice)
    }

    /// Whether the rule has the back end of this choice, new flows may go to it, and the link with its agent is not down.
    pub(crate) fn takes_new_flows(&self, choice: Choice) -> bool {
        let member = self.of_choice(choice);
        member.is_some_and(|member| member.is_up && !member.is_link_down)
    }

    /// The back end that the rule would have chosen for a packet before its last change (D35). `None`: the change was longer
    /// ago than flows last without packets, or there was no change.
    pub(crate) fn choose_as_before(&self, packet: &PacketInfo, now: Instant) -> Option<Choice> {
        self.previous.as_ref()?.choose(packet, self.idle_timeout, now)
    }

    /// Whether the rule's back ends, or those that are up, have changed within `time` before `now`.
    pub(crate) fn has_changed_within(&self, time: Duration, now: Instant) -> bool {
        let previous = self.previous.as_ref();
        previous.is_some_and(|previous| previous.is_within(time, now))
    }

    /// Whether both rules choose the same back end for every packet.
    fn has_membership_of(&self, other: &Self) -> bool {
        let members = |rule: &Self| rule.members.iter().map(|m| (m.choice, m.is_up)).collect::<Vec<_>>();
        self.distribution == other.distribution && members(self) == members(other)
    }
}

/// Maps all 64-bit values to others, so that each bit of the result depends on all bits of `x`. It is the last step of
/// `SplitMix64`. The function must not change: agents of different versions and the controller's `explain` must choose
/// the same back end.
pub(crate) const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Increment of `SplitMix64`: the golden ratio as a fraction of 2⁶⁴.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

#[expect(clippy::cast_possible_truncation, reason = "both halves are used")]
pub(crate) fn hash_address(address: IpAddr) -> u64 {
    let bits = match address {
        IpAddr::V4(a) => u128::from(a.to_bits()),
        IpAddr::V6(a) => a.to_bits(),
    };
    mix(mix((bits as u64).wrapping_add(STEP)) ^ (bits >> 64) as u64)
}

pub(crate) fn hash_text(text: &str) -> u64 {
    text.bytes()
        .fold(STEP, |hash, byte| mix(hash ^ u64::from(byte)).wrapping_add(STEP))
}

/// A hash of the fields of a packet that the distribution names (L4). It is the same for both directions of a flow, so
/// that both pass the same one of several appliances (R11).
fn hash_flow(packet: &PacketInfo, distribution: Distribution) -> u64 {
    #[expect(clippy::cast_possible_truncation, reason = "each half is one port")]
    let (source_port, destination_port, protocol) = match distribution {
        Distribution::Default => ((packet.ports >> 16) as u16, packet.ports as u16, packet.protocol),
        Distribution::SourceIPProtocol => (0, 0, packet.protocol),
        Distribution::SourceIP => (0, 0, 0),
    };
    let end = |address, port: u16| mix(hash_address(address) ^ u64::from(port).wrapping_mul(STEP));
    let ends = end(packet.source, source_port).wrapping_add(end(packet.destination, destination_port));
    mix(ends ^ u64::from(protocol))
}

#[cfg(test)]
mod tests;
