//! The security groups of an agent in one lane: admits packets at NICs, and counts how often each rule decided.

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

/// Capacity of a table of flows whose owner gives none, in flows. The kernel gives its 90 MB as flows come.
pub const DEFAULT_FLOWS: usize = 1_000_000;

/// TCP in mid-stream is adopted for this time, in seconds, after a group was attached to a NIC that had none, or after the agent has
/// started: the connections began when no table kept them (D34).
const ADOPTION: u32 = 60;

/// The flows of all lanes of an agent. The table is made when the first group is attached.
#[derive(Debug)]
pub struct Flows {
    /// The table, and the time when it was made.
    table: OnceLock<(FlowTable, Instant)>,
    capacity: usize,
    seed: u64,
}

impl Flows {
    /// Room for `capacity` flows, within [`CAPACITY`](super::CAPACITY). `seed` is a secret random number, so that no sender
    /// can choose flows that displace each other.
    #[must_use]
    pub const fn new(capacity: usize, seed: u64) -> Self {
        Self {
            table: OnceLock::new(),
            capacity,
            seed,
        }
    }

    /// The table, if a group has been attached to a NIC since the start.
    #[must_use]
    pub fn table(&self) -> Option<&FlowTable> {
        self.table.get().map(|(table, _)| table)
    }

    /// The table, which is made now if there is none, and `now` as its entries count the time: in seconds since it was
    /// made.
    fn made(&self, now: Instant) -> (&FlowTable, u32) {
        // Links whose share of the table is counted (D32). An agent with more links has shares for the first ones only.
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

/// What one lane needs to admit packets.
#[derive(Debug)]
pub(crate) struct Guard {
    flows: Arc<Flows>,
    gate: FlowGate,
    /// How often each rule decided, by the number of the rule in the tables that are installed.
    hits: Vec<u64>,
    /// The same for rules of earlier configurations, by name.
    earlier: BTreeMap<RuleName, u64>,
    /// Where the next sweep of the table begins.
    sweep_at: usize,
    /// The number of the present period, and its end.
    period: u32,
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

    /// Keeps flows in `flows` from now on.
    pub(crate) fn share(&mut self, flows: Arc<Flows>) {
        self.flows = flows;
    }

    /// Prepares for another configuration. Counters of rules continue by their names.
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
        // Counters of rules that are gone end with them.
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

    /// Applies the security groups to a packet with this verdict. `slot` remembers the result for the packets of the flow
    /// that follow within a second, so that most packets need no lookup in the table that all lanes share (D33). Returns
    /// the reason if the groups drop the packet.
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
        // Ports of 0 stand for a fragment or for another protocol; the slot does not tell their flows apart.
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

    /// The number of the present period. A period ends at the first packet after a second.
    fn period(&mut self, now: Instant) -> u32 {
        /// For so long a lane does not ask the shared table about a flow again: the resolution of its times.
        const PERIOD: Duration = Duration::from_secs(1);
        if self.period_ends.is_none_or(|ends| now >= ends) {
            self.period = self.period.wrapping_add(1);
            self.period_ends = Some(now + PERIOD);
        }
        self.period
    }

    /// Applies the security groups to a packet with this verdict. Returns the reason if they drop the packet.
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
            // The addresses and the direction of a packet determine its NIC. The NIC's number is left out of flows, because
            // it changes when the host serves further machines, and the flows of the others must go on.
            nic: 0,
            direction: passage.direction,
            link: match ingress {
                Ingress::Tun => FROM_HOST,
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

    /// Removes a part of the flows that are over. A call each 100 ms visits the whole table in about a minute.
    pub(crate) fn sweep(&mut self, now: Instant) {
        /// Parts of the table: one for each call within a minute, at ten calls a second.
        const PARTS: usize = 600;
        let Some((table, began)) = self.flows.table.get() else {
            return;
        };
        let seconds = seconds_since(*began, now);
        self.sweep_at = table.sweep(self.sweep_at, table.entries().div_ceil(PARTS), seconds);
    }

    /// How often each rule of `nics` decided about a packet, without those that never did.
    pub(crate) fn hits<'a>(&'a self, nics: Option<&'a SecuredNics>) -> impl Iterator<Item = (RuleName, u64)> + 'a {
        // Names are made only for rules that have decided: a lane calls this between packets.
        let counted = self.hits.iter().enumerate().filter(|(_, n)| **n > 0);
        counted.filter_map(move |(number, n)| Some((nics?.name_of_number(number)?, *n)))
    }
}

/// Whether a packet may begin or end its flow: a TCP segment with SYN, FIN or RST.
fn changes_state(packet: &[u8], info: &PacketInfo) -> bool {
    const FLAGS: usize = 13;
    const SYN_FIN_RST: u8 = 0x02 | 0x01 | 0x04;
    info.protocol == TCP
        && info
            .transport
            .and_then(|at| packet.get(at + FLAGS))
            .is_none_or(|flags| flags & SYN_FIN_RST != 0)
}
