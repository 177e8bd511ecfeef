//! Applies the security groups of an agent in one lane: decides whether packets pass the agent's NICs, and counts how
//! often each rule has decided.

use super::flow_gate::{Admission, AtNic, FlowGate};
use super::flow_table::{FROM_HOST, FlowTable};
use super::secured_nics::{RuleName, SecuredNics};
use crate::decide::Ingress;
use crate::flow::Admission as Admitted;
use crate::packet::{PacketInfo, TCP};
use crate::verdict::{DropReason, Verdict};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Capacity of the flow table of an agent that sets no other one, in flows. Such a table takes 90 MB, which the kernel
/// allocates page by page as flows come.
pub const DEFAULT_FLOWS: usize = 1_000_000;

/// Time for which TCP connections in progress are adopted, in seconds, after the agent has started or after a NIC has
/// got its first group. Such connections began when no table kept their flows (D34).
const ADOPTION: u32 = 60;

/// The flow table that all lanes of an agent share. It is made when a group is attached to a NIC of the agent for the
/// first time.
#[derive(Debug)]
pub struct Flows {
    /// The table, and the time when it was made.
    table: OnceLock<(FlowTable, Instant)>,
    capacity: usize,
    seed: u64,
}

impl Flows {
    /// Room for `capacity` flows. A number outside of [`CAPACITY`](super::CAPACITY) becomes the nearest number inside.
    /// `seed` must be secret and random, so that no sender can choose flows that displace each other.
    #[must_use]
    pub const fn new(capacity: usize, seed: u64) -> Self {
        Self {
            table: OnceLock::new(),
            capacity,
            seed,
        }
    }

    /// The table. `None`: no group has been attached to a NIC since the agent started.
    #[must_use]
    pub fn table(&self) -> Option<&FlowTable> {
        self.table.get().map(|(table, _)| table)
    }

    /// The table, and the time `now` in seconds since the table was made. Makes the table if there is none.
    fn made(&self, now: Instant) -> (&FlowTable, u32) {
        // Number of links for which flows without a reply are counted and limited (D32). Links with this number or a
        // higher one have no limit of their own.
        const COUNTED_LINKS: usize = 4096;
        let make = || (FlowTable::new(self.capacity, COUNTED_LINKS, self.seed), now);
        let (table, began) = self.table.get_or_init(make);
        (table, seconds_since(*began, now))
    }
}

#[expect(clippy::cast_possible_truncation, reason = "136 years")]
fn seconds_since(began: Instant, now: Instant) -> u32 {
    now.saturating_duration_since(began).as_secs() as u32
}

/// The state with which one lane applies the security groups to packets.
#[derive(Debug)]
pub(crate) struct Guard {
    flows: Arc<Flows>,
    gate: FlowGate,
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
            flows,
            gate: FlowGate::new(seed, 0),
            hits: Vec::new(),
            earlier: BTreeMap::new(),
            sweep_at: 0,
            period: 0,
            period_ends: None,
        }
    }

    /// Keeps flows in `flows` from now on. Flows that are in another table are not moved.
    pub(crate) fn share(&mut self, flows: Arc<Flows>) {
        self.flows = flows;
    }

    /// Replaces the configuration `before` by `after`; `None` is a configuration without security groups. If both
    /// configurations have a rule with the same [`RuleName`], its counter continues. If a NIC has its first group in
    /// `after`, TCP connections at all NICs are adopted for 60 s (D34).
    pub(crate) fn install(&mut self, before: Option<&SecuredNics>, after: Option<&SecuredNics>, now: Instant) {
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
        if newly_secured {
            let (_, seconds) = self.flows.made(now);
            self.gate.adopt_until(seconds + ADOPTION);
        }
    }

    /// Applies the security groups to a packet about which the engine has decided `verdict`.
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
        nics: &SecuredNics,
        ingress: Ingress,
        (packet, info): (&[u8], &PacketInfo),
        verdict: Verdict,
        slot: Option<&mut Option<Admitted>>,
        now: Instant,
    ) -> Result<(), DropReason> {
        // If `ports` is 0, the packet is a fragment or has no ports. Several flows of such packets can have the same
        // slot, so the slot is not used.
        let remembered = slot.filter(|_| info.ports != 0 && !changes_state(packet, info));
        let Some(slot) = remembered else {
            return self.check(nics, ingress, (packet, info), verdict, now);
        };
        let admission = Some(Admitted {
            protocol: info.protocol,
            period: self.period(now),
        });
        if *slot != admission {
            self.check(nics, ingress, (packet, info), verdict, now)?;
            *slot = admission;
        }
        Ok(())
    }

    /// The number of the present period. Begins a new period if the present one has lasted a second or more.
    fn period(&mut self, now: Instant) -> u32 {
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
        nics: &SecuredNics,
        ingress: Ingress,
        (packet, info): (&[u8], &PacketInfo),
        verdict: Verdict,
        now: Instant,
    ) -> Result<(), DropReason> {
        let Some(passage) = nics.passage(ingress, info, verdict) else {
            return Ok(());
        };
        let Some(rules) = nics.rules(passage.nic).filter(|rules| !rules.is_empty()) else {
            return Ok(());
        };
        let (table, seconds) = self.flows.made(now);
        let at = AtNic {
            packet,
            info,
            nic: nics.flow_nic(passage.nic),
            direction: passage.direction,
            link: match ingress {
                Ingress::Tun(_) => FROM_HOST,
                Ingress::Link(link) => link.0,
            },
            now: seconds,
            idle_timeout: nics.idle_timeout(),
        };
        let hits = &mut self.hits;
        let decided = |rule| {
            if let Some(count) = nics.rule_number(passage.nic, rule).and_then(|n| hits.get_mut(n)) {
                *count += 1;
            }
        };
        match self.gate.admit(table, rules, &at, decided) {
            Admission::Known | Admission::Allowed(_) => Ok(()),
            Admission::Denied(_) => Err(DropReason::SecurityRule),
            Admission::Malformed => Err(DropReason::Malformed),
            Admission::UnknownFragment => Err(DropReason::UnknownFragment),
            Admission::NoRoom => Err(DropReason::FlowTableFull),
        }
    }

    /// Visits a 600th of the table's entries, and removes those flows that are over. With a call each 100 ms, the whole
    /// table is visited in about a minute.
    pub(crate) fn sweep(&mut self, now: Instant) {
        /// Number of calls that visit the whole table: ten calls a second for one minute.
        const PARTS: usize = 600;
        let Some((table, began)) = self.flows.table.get() else {
            return;
        };
        let seconds = seconds_since(*began, now);
        self.sweep_at = table.sweep(self.sweep_at, table.entries().div_ceil(PARTS), seconds);
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
