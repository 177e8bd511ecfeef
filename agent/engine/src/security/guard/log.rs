//! The part of the guard that serves flow logs (N14, D38).

use super::Guard;
use crate::decide::Ingress;
use crate::security::flow_log::{LaneLog, LoggedAt};
use crate::security::flow_table::{CountedFlow, FROM_HOST};
use crate::security::secured_nics::{Passage, SecuredNics};
use crate::tables::Tables;
use crate::verdict::Verdict;
use std::time::Instant;

impl Guard {
    /// Takes the flow logs of a new configuration. Without one, flows that were counted are counted no more.
    pub(super) fn install_log(&mut self, after: &Tables, now: Instant) {
        let nics = after.security.as_ref().filter(|nics| nics.has_logs());
        let Some(nics) = nics else {
            self.log = None;
            return;
        };
        self.flows.made(now).0.keep_counters();
        let numbers = self.flows.log_numbers(nics, now);
        let new = || LaneLog::new(self.flows.log().clone(), self.seed);
        self.log.get_or_insert_with(new).install(numbers);
    }

    /// The place of a packet for the flow log of its NIC. `None`: the NIC has no log.
    pub(super) fn logged_at<'n>(
        &self,
        nics: Option<&'n SecuredNics>,
        passage: Passage,
        ingress: Ingress,
        verdict: Verdict,
    ) -> Option<LoggedAt<'n>> {
        let log = self.log.as_ref()?;
        let link = match (ingress, verdict) {
            (Ingress::Link(link), _) | (Ingress::Tun(_), Verdict::Forward { link, .. }) => link.0,
            _ => FROM_HOST,
        };
        log.covers(passage.nic).then_some(LoggedAt {
            nics: nics?,
            nic: passage.nic,
            is_local: link == FROM_HOST,
        })
    }

    /// Counts a packet of a flow that the lane remembers. Returns false if the table does not have the flow any more.
    pub(super) fn count_again(&mut self, flow: &CountedFlow, bytes: usize, now: Instant) -> bool {
        match (self.log.as_mut(), self.flows.present(now)) {
            (Some(log), Some((table, seconds))) => log.count(table, flow, bytes, (seconds, now)),
            _ => false,
        }
    }
}
