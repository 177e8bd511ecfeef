//! Applies the security groups of an agent in one lane: decides whether packets pass the agent's NICs, and counts how
//! often each rule has decided. Keeps the choices of load balancers in the same flow table.

mod choices;
mod log;
mod observer;

use super::flow_gate::{Admission, AtNic, Balanced, FlowGate};
use super::flow_log::LaneLog;
use super::flow_table::{CountedFlow, FROM_HOST};
use super::flows::Flows;
use super::nic_rules::NicRules;
use super::recheck::Recheck;
use super::secured_nics::{Passage, RuleName, SecuredNics};
use crate::decide::Ingress;
use crate::flow::{Admission as Admitted, COUNTED};
use crate::packet::{PacketInfo, TCP};
use crate::tables::{Choice, KeptChoices, Tables};
use crate::verdict::{DropReason, Verdict};
use observer::{Observer, note};
use std::collections::BTreeMap;
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
    seed: u64,
    /// The flow log. `None`: no NIC has one.
    log: Option<LaneLog>,
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
            seed,
            log: None,
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
        self.log = None;
    }

    /// Replaces the tables `before`, if there are any, by those of another configuration. If both configurations have a
    /// rule with the same [`RuleName`], its counter continues. If a NIC has its first group in `after`, TCP connections
    /// at all NICs are adopted for 60 s, unless the agent has just loaded the flows of its previous process (D34).
    pub(crate) fn install(&mut self, before: Option<&Arc<Tables>>, after: &Tables, now: Instant) {
        self.begin_recheck(before, after, now);
        self.flows.limit_flows_of_nics(after.flows_of_nic);
        self.install_log(after, now);
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
        if let Some(admitted) = slot
            && admitted.protocol == info.protocol
            && admitted.period == period | COUNTED
            && let Some(flow) = &admitted.counted
            && self.count_again(flow, info.len, now)
        {
            return Ok(admitted.replies_to);
        }
        let (replies_to, counted) = self.check_and_count(tables, ingress, (packet, info), (verdict, choice), now)?;
        *slot = Some(Admitted {
            protocol: info.protocol,
            period: if counted.is_some() { period | COUNTED } else { period },
            replies_to,
            counted,
        });
        Ok(replies_to)
    }

    /// The number of the present period. Begins a new period if the present one has lasted a second or more.
    pub(crate) fn period(&mut self, now: Instant) -> u32 {
        /// Shortest length of a period. It is one second because the shared table keeps times in seconds.
        const PERIOD: Duration = Duration::from_secs(1);
        if self.period_ends.is_none_or(|ends| now >= ends) {
            self.period = self.period.wrapping_add(1) & !COUNTED;
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
        self.check_and_count(tables, ingress, (packet, info), (verdict, choice), now)
            .map(|(replies_to, _)| replies_to)
    }

    /// Does the same as [`Self::check`]. Returns the packet's flow too, if its packets are counted for a flow log.
    fn check_and_count(
        &mut self,
        tables: &Tables,
        ingress: Ingress,
        (packet, info): (&[u8], &PacketInfo),
        (verdict, choice): (Verdict, Option<Choice>),
        now: Instant,
    ) -> Result<(Option<Choice>, Option<CountedFlow>), DropReason> {
        let nics = tables.security.as_ref();
        let passage = match nics {
            Some(nics) => nics.passage(ingress, info, verdict),
            None => Passage::of(ingress, info, verdict).map(|(_, passage)| passage),
        };
        let Some(passage) = passage else {
            self.note_choice(tables, ingress, (packet, info), choice, now);
            return Ok((None, None));
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
        let logged = self.logged_at(nics, passage, ingress, verdict);
        if rules.is_empty() && balanced == Balanced::No && logged.is_none() {
            return Ok((None, None));
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
            is_logged: logged.is_some(),
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
        let mut observer = Observer {
            log: self.log.as_mut(),
            at: logged,
            flows: &self.flows,
            now,
        };
        let outcome = self.gate.admit_flow(table, rules, &at, decided, &mut observer);
        let counted = match (observer.log, &logged) {
            (Some(log), Some(logged)) => note(log, (table, seconds), (rules, logged), &outcome, info.len, now),
            _ => None,
        };
        match outcome.admission {
            Admission::Known | Admission::Allowed(_) => {}
            Admission::Adopted => self.adopted += 1,
            Admission::Denied(_) => return Err(DropReason::SecurityRule),
            Admission::Malformed => return Err(DropReason::Malformed),
            Admission::UnknownFragment => return Err(DropReason::UnknownFragment),
            Admission::NoRoom => return Err(DropReason::FlowTableFull),
            Admission::NicFull => return Err(DropReason::NicFlowLimit),
            Admission::Ended => return Err(DropReason::FlowEnded),
        }
        let Some(flow) = outcome.flow else {
            return Ok((None, counted));
        };
        let kept = KeptChoices(flow.choices);
        match choice {
            // The back end of the earlier choice is gone. The choice for replies was made for the earlier one.
            Some(choice) if flow.forward && kept.forward() != Some(choice) => table.set_choices(&flow, choice.0),
            // R11: the reply goes to an appliance.
            Some(choice) if !flow.forward && kept.with_replies(choice) != kept => {
                table.change_choices(&flow, kept.with_replies(choice).0);
            }
            _ => {}
        }
        let is_reply = passage.direction == Direction::Outbound && !flow.forward;
        Ok((kept.forward().filter(|_| is_reply), counted))
    }

    /// Visits a 600th of the table's entries, and removes those flows that are over. With a call each 100 ms, the whole
    /// table is visited in about a minute. With a flow log, the parts are larger, and flows get their records.
    pub(crate) fn sweep(&mut self, now: Instant) {
        /// Number of calls that visit the whole table: ten calls a second for one minute.
        const PARTS: usize = 600;
        /// The same with a flow log: the record of the end of a flow comes at most 20 s late.
        const PARTS_WITH_LOG: usize = 200;
        let Some((table, seconds)) = self.flows.present(now) else {
            return;
        };
        let Some(log) = &mut self.log else {
            self.sweep_at = table.sweep(self.sweep_at, table.entries().div_ceil(PARTS), seconds);
            return;
        };
        let flows = &self.flows;
        let part = table.entries().div_ceil(PARTS_WITH_LOG);
        self.sweep_at = table.sweep_counted(self.sweep_at, part, seconds, &mut |report| {
            let at = if report.is_over {
                flows.instant(report.last_seen, now)
            } else {
                now
            };
            log.report(report, at);
        });
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
