//! What the flow log of a NIC does with a packet about which the rules decide.

use crate::security::flow_gate::{Admission, FlowObserver, Outcome, first_packet};
use crate::security::flow_log::{LaneLog, LoggedAt};
use crate::security::flow_table::{CountedFlow, FlowKey, FlowReport, FlowTable};
use crate::security::flows::Flows;
use crate::security::nic_rules::{Judgement, NicRules, RuleRef};
use std::time::Instant;

/// The flow log of a lane while it decides about a packet.
pub(super) struct Observer<'g> {
    /// `None`: no NIC of the agent has a log.
    pub(super) log: Option<&'g mut LaneLog>,
    /// `None`: the packet's NIC has no log.
    pub(super) at: Option<LoggedAt<'g>>,
    pub(super) flows: &'g Flows,
    pub(super) now: Instant,
}

impl FlowObserver for Observer<'_> {
    fn number(&self, rule: Option<RuleRef>) -> u32 {
        match (&self.log, &self.at) {
            (Some(log), Some(at)) => log.number(at, rule),
            _ => 0,
        }
    }

    fn ended(&mut self, report: &FlowReport) {
        if let Some(log) = self.log.as_mut() {
            log.report(report, self.flows.instant(report.last_seen, self.now));
        }
    }

    fn denied(&mut self, key: &FlowKey, by: RuleRef) {
        if let (Some(log), Some(at)) = (self.log.as_mut(), &self.at) {
            log.denied(at, key, by, self.now);
        }
    }
}

/// Reports and counts a packet about which the rules of a NIC with a log have decided. Returns the flow for which further
/// packets of the same flow count.
pub(super) fn note(
    log: &mut LaneLog,
    (table, seconds): (&FlowTable, u32),
    (rules, at): (&NicRules, &LoggedAt<'_>),
    outcome: &Outcome,
    bytes: usize,
    now: Instant,
) -> Option<CountedFlow> {
    let flow = outcome.counts_for?.counted();
    if table.tag_of(&flow).is_none() {
        // The flow began before the NIC had a log, or before the agent's present process.
        let key = table.key(&flow)?;
        let rule = match rules.judge(key.direction, &first_packet(&key)) {
            Judgement::NoGroup => None,
            Judgement::Allowed(rule) | Judgement::Denied(rule) => Some(rule),
        };
        table.begin_counting(&flow, log.number(at, rule), seconds);
    } else if matches!(outcome.admission, Admission::Allowed(_) | Admission::Adopted) && !outcome.is_late {
        log.began(table, &flow, now);
    }
    log.count(table, &flow, bytes, (seconds, now)).then_some(flow)
}
