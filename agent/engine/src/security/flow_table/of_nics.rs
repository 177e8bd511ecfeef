//! Counts the flows of each NIC, and limits them (X16). Only the addition and the removal of a flow change a count, so
//! packets of known flows cost nothing.

use super::entry::{is_over, nic_of, status_of};
use super::{BUCKET, FlowReport, FlowTable};
use std::sync::atomic::{AtomicU32, Ordering};
use tombolo_proto::config::MAX_FLOWS_OF_NIC;

/// The numbers of flows by NIC.
#[derive(Debug)]
pub(super) struct OfNics {
    counts: Box<[AtomicU32]>,
    /// Largest number of flows of each NIC.
    most: AtomicU32,
}

impl Default for OfNics {
    fn default() -> Self {
        Self {
            // One for each number that a flow key can have.
            counts: (0..=u8::MAX).map(|_| AtomicU32::new(0)).collect(),
            most: AtomicU32::new(MAX_FLOWS_OF_NIC),
        }
    }
}

impl OfNics {
    fn count(&self, nic: u8) -> &AtomicU32 {
        &self.counts[usize::from(nic)]
    }

    /// Largest number of flows of each NIC.
    pub(super) fn most(&self) -> u32 {
        self.most.load(Ordering::Relaxed)
    }
}

impl FlowTable {
    /// Limits the number of flows of each NIC (X16). Flows beyond it stay, and new ones are refused until there are
    /// fewer. A new table has the limit [`MAX_FLOWS_OF_NIC`].
    pub fn limit_flows_of_nics(&self, most: u32) {
        self.of_nics.most.store(most, Ordering::Relaxed);
    }

    /// The number of flows of a NIC, including flows that are over and were not removed yet.
    #[must_use]
    pub fn flows_of_nic(&self, nic: u8) -> usize {
        self.of_nics.count(nic).load(Ordering::Relaxed) as usize
    }

    /// Counts a new flow of a NIC. Returns false, and counts nothing, if the NIC has as many flows as it may have. Then
    /// flows of the NIC that are over, in the buckets of the new flow, have been removed to make room.
    pub(super) fn count_at_nic(
        &self,
        nic: u8,
        buckets: [usize; 2],
        now: u32,
        report: &mut impl FnMut(&FlowReport),
    ) -> bool {
        let count = || {
            let most = self.of_nics.most();
            let more = |flows| (flows < most).then_some(flows + 1);
            let counted = self.of_nics.count(nic);
            counted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
        };
        if count() {
            return true;
        }
        for slot in buckets.into_iter().flat_map(|bucket| bucket..bucket + BUCKET) {
            let header = self.header(slot).load(Ordering::Acquire);
            let body = self.body(slot);
            if status_of(header).is_some() && nic_of(body[4]) == nic && is_over(header, &body, now) {
                self.remove(slot, header, report);
            }
        }
        count()
    }

    /// Counts a flow that is there already, whatever the limit.
    pub(super) fn add_to_nic(&self, nic: u8) {
        self.of_nics.count(nic).fetch_add(1, Ordering::Relaxed);
    }

    /// Takes a flow off the number of a NIC's flows.
    pub(super) fn take_from_nic(&self, nic: u8) {
        self.of_nics.count(nic).fetch_sub(1, Ordering::Relaxed);
    }
}
