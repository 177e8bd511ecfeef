//! Applies the security groups of an agent in one lane: decides whether packets pass the agent's NICs, and counts how
//! often each rule has decided. Keeps the choices of load balancers in the same flow table.

use super::flow_gate::{Admission, AtNic, Balanced, FlowGate};
use super::flow_key::{Belongs, belongs_to};
use super::flow_memory::Part;
use super::flow_table::FROM_HOST;
use super::flows::Flows;
use super::local_flows::{self, LocalFlow};
use super::nic_rules::NicRules;
use super::recheck::Recheck;
use super::secured_nics::{Passage, RuleName, SecuredNics};
use crate::decide::Ingress;
use crate::flow::Admission as Admitted;
use crate::packet::quoted::flow_of_error;
use crate::packet::{PacketInfo, TCP};
use crate::tables::{BalancingRule, Choice, NicIndex, Tables};
use crate::verdict::{DropReason, Verdict};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tombolo_proto::config::{DEFAULT_FLOW_TIMEOUT, Direction};

/// Time for which TCP connections in progress are adopted, in seconds, after the agent has started or after a NIC has
/// got its first group. Such connections began when no table kept their flows (D34).
const ADOPTION: u32 = 60;

/// For this many seconds after a change, the rules decide about the flow of each packet again, even if the flow is not
/// marked yet. Within this time, all lanes have marked all flows (D34).
const REEVALUATION: u32 = 2;

/// The state with which one lane applies the security groups to packets.
#[derive(Debug)]
pub(crate) struct Guard {
    flows: Arc<Flows>,
    /// The number of the lane among those that share the flows.
    lane: usize,
    gate: FlowGate,
    /// The rules of a NIC to which no group applies.
    no_rules: NicRules,
    /// The check of flows after a change.
    recheck: Recheck,
    /// Until this time, in seconds since the flow table was made, the rules decide about packets of known flows too.
    judge_until: u32,
    /// Until this time, in seconds since the flow table was made, TCP connections through load balancers may have begun
    /// before the agent started, and are taken up.
    taken_up_until: u32,
    /// Number of TCP connections that were adopted.
    adopted: u64,
    /// How often each rule has decided, by the number of the rule in the installed configuration
    /// (`SecuredNics::rule_number`).
    hits: Vec<u64>,
    /// The counters of the previous configuration by rule name, while [`Self::install`] runs. Empty at all other times.
    earlier: BTreeMap<RuleName, u64>,
    /// The position of the table's entry at which the next sweep begins.
    sweep_at: usize,
    /// The number of the present period (see [`Self::admit`]).
    period: u32,
    /// The time at which the present period can end. `None`: there was no period yet.
    period_ends: Option<Instant>,
}

impl Guard {
    /// A guard that keeps flows in `flows`. `seed`: as for [`Flows::new`].
    pub(crate) fn new(flows: Arc<Flows>, seed: u64) -> Self {
        Self {
            lane: flows.add_lane(),
            flows,
            gate: FlowGate::new(seed, 0),
            no_rules: NicRules::default(),
            recheck: Recheck::default(),
            judge_until: 0,
            taken_up_until: 0,
            adopted: 0,
            hits: Vec::new(),
            earlier: BTreeMap::new(),
            sweep_at: 0,
            period: 0,
            period_ends: None,
        }
    }

    /// Keeps flows in `flows` from now on. Flows that are in another table are not moved.
    pub(crate) fn share(&mut self, flows: Arc<Flows>) {
        self.lane = flows.add_lane();
        self.flows = flows;
    }

    /// Replaces the tables `before`, if there are any, by those of another configuration. If both configurations have a
    /// rule with the same [`RuleName`], its counter continues. If a NIC has its first group in `after`, TCP connections
    /// at all NICs are adopted for 60 s, unless the agent has just loaded the flows of its previous process (D34).
    pub(crate) fn install(&mut self, before: Option<&Arc<Tables>>, after: &Tables, now: Instant) {
        self.begin_recheck(before, after, now);
        let starts = before.is_none();
        if starts && !after.front_ends.is_empty() && !self.flows.are_loaded() {
            let (_, seconds) = self.flows.made(now);
            self.taken_up_until = seconds + ADOPTION;
        }
        let (before, after) = (before.and_then(|t| t.security.as_ref()), after.security.as_ref());
        if let Some(before) = before {
            let counted = before.rule_names().zip(&self.hits).filter(|(_, n)| **n > 0);
            for (name, n) in counted {
                *self.earlier.entry(name).or_default() += n;
            }
        }
        self.hits.clear();
        let Some(after) = after else {
            self.earlier.clear();
            return;
        };
        self.hits = after
            .rule_names()
            .map(|name| self.earlier.remove(&name).unwrap_or_default())
            .collect();
        // A rule that `after` does not have loses its counter.
        self.earlier.clear();
        let newly_secured = (0..after.count()).filter_map(|n| u8::try_from(n).ok()).any(|n| {
            let was = before
                .zip(after.id(n))
                .is_some_and(|(before, id)| before.is_secured_by_id(id));
            after.is_secured(n) && !was
        });
        if newly_secured && !(starts && self.flows.are_loaded()) {
            let (_, seconds) = self.flows.made(now);
            self.gate.adopt_until(seconds + ADOPTION);
        }
    }

    /// Replaces the tables `before` by tables of the same configuration with other learned routes.
    pub(crate) fn refresh(&mut self, before: Option<&Arc<Tables>>, after: &Tables, now: Instant) {
        self.begin_recheck(before, after, now);
    }

    /// Begins to check the flows after a change. Flows that have lost their route end: if the route returns, the rules
    /// decide about them again (P13). With the setting `reevaluate`, or if the machine has other NICs than before, the
    /// rules decide about all flows again (D34).
    fn begin_recheck(&mut self, before: Option<&Arc<Tables>>, after: &Tables, now: Instant) {
        self.flows.set_tables(self.lane, after);
        self.flows.balance(after, now);
        let (Some(nics), Some((_, seconds))) = (&after.security, self.flows.present(now)) else {
            return;
        };
        // Flows name NICs by their position. If the list of NICs has changed, a flow can name another NIC than the one
        // whose rules allowed it.
        let moved = before
            .and_then(|before| before.security.as_ref())
            .is_some_and(|before| !before.own_ids().eq(nics.own_ids()));
        let all = nics.reevaluates() || moved;
        if all {
            self.judge_until = seconds + REEVALUATION;
        }
        let part = self.flows.part(self.lane).len();
        self.recheck.begin(part, before, all);
    }

    /// Checks a few flows of this lane's part of the table after a change. Returns whether flows are left to check.
    pub(crate) fn recheck(&mut self, tables: &Tables) -> bool {
        self.recheck.step(&self.flows, self.lane, tables)
    }

    /// The choice that `rule` has made for an earlier packet of the same flow. `None`: there was no such packet, or the
    /// present one asks for a new connection, which may not go to the back end of an earlier one.
    pub(crate) fn earlier_choice(
        &self,
        tables: &Tables,
        ingress: Ingress,
        (packet, info): (&[u8], &PacketInfo),
        rule: &BalancingRule,
        now: Instant,
    ) -> Option<Choice> {
        let part = Part::of(packet, info);
        let earlier = match ingress {
            Ingress::Link(_) if tables.chooses_for_others() => {
                let error = flow_of_error(packet, info);
                let flow = error.as_ref().unwrap_or(info);
                let known = self.flows.choices().and_then(|choices| choices.find(flow, part, now));
                let known = known.map(|[choice]| Choice(choice));
                // D35: the packet may belong to a flow from before the last change of the rule.
                known.or_else(|| rule.choose_as_before(flow, now).filter(|_| part != Part::Begin))
            }
            _ => self.choice_in_table(tables, ingress, (packet, info), now),
        };
        // L7, D36: a back end that is down, or whose agent is not reached, gets no new connection, also if its SYN is
        // repeated.
        earlier.filter(|choice| part != Part::Begin || rule.takes_new_flows(*choice))
    }

    /// The choice in the flow table for a packet that passes a NIC of this agent. See [`Self::earlier_choice`].
    fn choice_in_table(
        &self,
        tables: &Tables,
        ingress: Ingress,
        (packet, info): (&[u8], &PacketInfo),
        now: Instant,
    ) -> Option<Choice> {
        let (table, seconds) = self.flows.present(now)?;
        let known = |address: IpAddr, nic: NicIndex, direction, to: Option<(IpAddr, u16)>| {
            let nic = flow_nic(tables, address, nic);
            let (mut key, opens, is_quoted) = match belongs_to(packet, info, nic, direction) {
                Belongs::Flow { key, tcp } => (key, tcp.opens, false),
                Belongs::Error { quoted } => (quoted, false, true),
                Belongs::Fragment { .. } | Belongs::Malformed => return None,
            };
            if let Some((address, port)) = to {
                // The quoted packet has the opposite direction.
                let (of_key, port_of_key) = match is_quoted {
                    true => (&mut key.source, &mut key.ports.0),
                    false => (&mut key.destination, &mut key.ports.1),
                };
                *of_key = address;
                *port_of_key = if port == 0 { *port_of_key } else { port };
            }
            let flow = table.find(&key, seconds)?;
            // An error goes to the end that has sent the quoted packet.
            let choice = Choice::of_kept(flow.choice, flow.forward != is_quoted);
            choice.filter(|_| !opens || flow.is_repeated_syn())
        };
        match ingress {
            Ingress::Tun(nic) => known(info.source, nic, Direction::Outbound, None),
            // The flow table knows a flow to a back end by the back end's own address and port, while this packet still
            // has those of the front end.
            Ingress::Link(_) => {
                let error = flow_of_error(packet, info);
                let mut own = tables.front_ends.own_back_ends_for(error.as_ref().unwrap_or(info));
                own.find_map(|back_end| {
                    let to = (!back_end.floating_ip).then_some(back_end.back);
                    let address = to.map_or(info.destination, |(address, _)| address);
                    known(address, back_end.nic, Direction::Inbound, to).filter(|choice| *choice == back_end.choice)
                })
            }
        }
    }

    /// The source port with which a back end behind this agent knows the flow of a client behind this agent. `packet` is
    /// already for the back end's own address and port, and still has the client's. `None`: no port is free, or the
    /// packet is a fragment, whose ports are not known; or it is an ICMP error about no such flow.
    pub(crate) fn local_port(
        &self,
        tables: &Tables,
        (packet, info): (&[u8], &PacketInfo),
        front: IpAddr,
        choice: Choice,
        now: Instant,
    ) -> Option<u16> {
        let error = flow_of_error(packet, info);
        let flow = error.as_ref().unwrap_or(info);
        if flow.ports == 0 {
            return None;
        }
        let remember = tables.front_ends.idle_timeout(choice).filter(|_| error.is_none());
        let packet = (flow, Part::of(packet, info));
        local_flows::source_port(&self.flows, packet, front, choice, remember, now)
    }

    /// Whether there was a flow between a client and a back end behind this agent since the agent started.
    pub(crate) fn has_local_flows(&self) -> bool {
        self.flows.known_local_flows().is_some()
    }

    /// The flow between a client and a back end behind this agent to which a packet from the back end to the front end
    /// belongs, or about which it reports as an ICMP error. `None`: there is no such flow.
    pub(crate) fn local_client(
        &self,
        tables: &Tables,
        (packet, info): (&[u8], &PacketInfo),
        now: Instant,
    ) -> Option<LocalFlow> {
        let error = flow_of_error(packet, info);
        let part = Part::of(packet, info);
        let flow = local_flows::client_of(&self.flows, (error.as_ref().unwrap_or(info), part), now)?;
        if error.is_none()
            && let Some(timeout) = tables.front_ends.idle_timeout(flow.choice)
        {
            local_flows::note_reply(&self.flows, (info, part), flow, timeout, now);
        }
        Some(flow)
    }

    /// Applies the security groups to a packet about which the engine has decided `verdict`. `choice` is the choice of a
    /// load balancer for the packet. Returns the choice to whose flow the packet is a reply, if it is a back end's.
    ///
    /// `slot` is the packet's place in the lane's cache of decisions. It stores the period in which the groups last let
    /// a packet of the same flow pass. In this period further packets of the flow pass without a lookup in the flow
    /// table that all lanes share (D33). A period ends with the first packet that comes one second or more after the
    /// beginning of the period. `None`: the flow is looked up.
    ///
    /// # Errors
    /// The reason for which the groups drop the packet.
    #[inline]
    pub(crate) fn admit(
        &mut self,
        tables: &Tables,
        ingress: Ingress,
        (packet, info): (&[u8], &PacketInfo),
        (verdict, choice): (Verdict, Option<Choice>),
        slot: Option<&mut Option<Admitted>>,
        now: Instant,
    ) -> Result<Option<Choice>, DropReason> {
        // If `ports` is 0, the packet is a fragment or has no ports. Several flows of such packets can have the same
        // slot, so the slot is not used.
        let changes_state = changes_state(packet, info);
        let mut slot = slot.filter(|_| info.ports != 0);
        if changes_state && let Some(slot) = slot.take() {
            // What is remembered may be of an earlier connection with the same ports.
            *slot = None;
        }
        let Some(slot) = slot else {
            return self.check(tables, ingress, (packet, info), (verdict, choice), now);
        };
        let period = self.period(now);
        if let Some(admitted) = slot
            && admitted.protocol == info.protocol
            && admitted.period == period
        {
            return Ok(admitted.replies_to);
        }
        let replies_to = self.check(tables, ingress, (packet, info), (verdict, choice), now)?;
        *slot = Some(Admitted {
            protocol: info.protocol,
            period,
            replies_to,
        });
        Ok(replies_to)
    }

    /// The number of the present period. Begins a new period if the present one has lasted a second or more.
    pub(crate) fn period(&mut self, now: Instant) -> u32 {
        /// Shortest length of a period. It is one second because the shared table keeps times in seconds.
        const PERIOD: Duration = Duration::from_secs(1);
        if self.period_ends.is_none_or(|ends| now >= ends) {
            self.period = self.period.wrapping_add(1);
            self.period_ends = Some(now + PERIOD);
        }
        self.period
    }

    /// Does the same as [`Self::admit`], but always looks up the packet's flow in the shared flow table.
    ///
    /// # Errors
    /// The reason for which the groups drop the packet.
    pub(crate) fn check(
        &mut self,
        tables: &Tables,
        ingress: Ingress,
        (packet, info): (&[u8], &PacketInfo),
        (verdict, choice): (Verdict, Option<Choice>),
        now: Instant,
    ) -> Result<Option<Choice>, DropReason> {
        let nics = tables.security.as_ref();
        let passage = match nics {
            Some(nics) => nics.passage(ingress, info, verdict),
            None => Passage::of(ingress, info, verdict).map(|(_, passage)| passage),
        };
        let Some(passage) = passage else {
            self.note_choice(tables, ingress, (packet, info), choice, now);
            return Ok(None);
        };
        let balanced = match (choice, ingress) {
            (Some(choice), _) => Balanced::Chosen(choice),
            (None, Ingress::Tun(nic)) if tables.front_ends.has_back_ends(nic) => Balanced::MayReply,
            (None, Ingress::Link(_)) => match verdict {
                Verdict::Deliver(nic) if tables.front_ends.has_back_ends(nic) => Balanced::Direct,
                // A reply from a back end keeps the client's flow alive, and with it the choice (L4). With HA ports it may
                // have any source.
                _ if !tables.front_ends.is_empty() => Balanced::MayReply,
                _ => Balanced::No,
            },
            (None, Ingress::Tun(_)) => Balanced::No,
        };
        let rules = nics.and_then(|nics| nics.rules(passage.nic)).unwrap_or(&self.no_rules);
        if rules.is_empty() && balanced == Balanced::No {
            return Ok(None);
        }
        let (table, seconds) = self.flows.made(now);
        let idle_timeout = choice.and_then(|choice| tables.front_ends.idle_timeout(choice));
        let of_vnet = || nics.map_or(u32::from(DEFAULT_FLOW_TIMEOUT) * 60, SecuredNics::idle_timeout);
        let at = AtNic {
            packet,
            info,
            nic: nics.map_or(passage.nic, |nics| nics.flow_nic(passage.nic)),
            direction: passage.direction,
            link: match ingress {
                Ingress::Tun(_) => FROM_HOST,
                Ingress::Link(link) => link.0,
            },
            now: seconds,
            idle_timeout: idle_timeout.unwrap_or_else(of_vnet),
            balanced,
            // An agent cannot tell a flow that was idle for too long from one that comes another way since a change. So a flow
            // ends only if the client learns of it by a reset.
            ends_idle: seconds >= self.taken_up_until
                && choice.is_some_and(|choice| tables.front_ends.resets_idle_flows(choice)),
        };
        let judges_known = self.recheck.concerns_all() || seconds < self.judge_until;
        self.gate.judge_known(judges_known);
        let hits = &mut self.hits;
        let decided = |rule| {
            let number = nics.and_then(|nics| nics.rule_number(passage.nic, rule));
            if let Some(count) = number.and_then(|n| hits.get_mut(n)) {
                *count += 1;
            }
        };
        let (admission, flow) = self.gate.admit_flow(table, rules, &at, decided);
        match admission {
            Admission::Known | Admission::Allowed(_) => {}
            Admission::Adopted => self.adopted += 1,
            Admission::Denied(_) => return Err(DropReason::SecurityRule),
            Admission::Malformed => return Err(DropReason::Malformed),
            Admission::UnknownFragment => return Err(DropReason::UnknownFragment),
            Admission::NoRoom => return Err(DropReason::FlowTableFull),
            Admission::Ended => return Err(DropReason::FlowEnded),
        }
        let Some(flow) = flow else { return Ok(None) };
        let of_forward = Choice::of_kept(flow.choice, true);
        match choice.map(|choice| choice.kept(flow.forward)) {
            // The back end of the earlier choice is gone. The choice for replies never replaces one for the other direction,
            // because replies are translated by that one.
            Some(kept) if flow.choice != kept && (flow.forward || of_forward.is_none()) => {
                table.set_choice(&flow, kept)
            }
            _ => {}
        }
        // A packet about which a load balancer decides itself goes to an appliance (R11). It is no reply of a back end to
        // translate.
        let is_reply = choice.is_none() && passage.direction == Direction::Outbound && !flow.forward;
        Ok(of_forward.filter(|_| is_reply))
    }

    /// Remembers the choice for a packet that passes none of the agent's NICs.
    fn note_choice(
        &self,
        tables: &Tables,
        ingress: Ingress,
        (packet, info): (&[u8], &PacketInfo),
        choice: Option<Choice>,
        now: Instant,
    ) {
        if let (Ingress::Link(_), Some(choice), Some(choices)) = (ingress, choice, self.flows.choices())
            && let Some(timeout) = tables.front_ends.idle_timeout(choice)
            && flow_of_error(packet, info).is_none()
        {
            choices.note(info, Part::of(packet, info), [choice.0], timeout, now);
        }
    }

    /// Visits a 600th of the table's entries, and removes those flows that are over. With a call each 100 ms, the whole
    /// table is visited in about a minute.
    pub(crate) fn sweep(&mut self, now: Instant) {
        /// Number of calls that visit the whole table: ten calls a second for one minute.
        const PARTS: usize = 600;
        let Some((table, seconds)) = self.flows.present(now) else {
            return;
        };
        self.sweep_at = table.sweep(self.sweep_at, table.entries().div_ceil(PARTS), seconds);
    }

    /// Number of TCP connections in progress that were adopted since the start (D34).
    pub(crate) const fn adopted(&self) -> u64 {
        self.adopted
    }

    /// How often each rule of `nics` has decided about a packet, in the order of [`SecuredNics::rule_names`]. Rules
    /// that have not decided are left out. `nics` must be the installed configuration.
    pub(crate) fn hits<'a>(&'a self, nics: Option<&'a SecuredNics>) -> impl Iterator<Item = (RuleName, u64)> + 'a {
        // Names are made only for rules that have decided: a lane calls this between packets.
        let counted = self.hits.iter().enumerate().filter(|(_, n)| **n > 0);
        counted.filter_map(move |(number, n)| Some((nics?.name_of_number(number)?, *n)))
    }
}

/// The number that the flow table keeps for the NIC of a flow; see [`SecuredNics::flow_nic`].
fn flow_nic(tables: &Tables, address: IpAddr, nic: NicIndex) -> u8 {
    match &tables.security {
        Some(nics) => nics.flow_nic(nics.number_of(address, nic)),
        None => nic.0,
    }
}

/// Whether a packet may begin or end its flow: it is a TCP segment with SYN, FIN or RST, or its flags are missing.
fn changes_state(packet: &[u8], info: &PacketInfo) -> bool {
    const FLAGS: usize = 13;
    const SYN_FIN_RST: u8 = 0x02 | 0x01 | 0x04;
    info.protocol == TCP
        && info
            .transport
            .and_then(|at| packet.get(at + FLAGS))
            .is_none_or(|flags| flags & SYN_FIN_RST != 0)
}
