//! Which flow log covers a NIC (N14).

use crate::resource::FlowLog;
use std::collections::BTreeMap;
use tombolo_proto::config::SecuredNic;
use tombolo_proto::id::ResourceId;

/// The flow logs that are enabled, by target. A target has one log.
#[derive(Debug)]
pub(super) struct ByTarget<'t>(BTreeMap<&'t ResourceId, &'t FlowLog>);

impl<'t> ByTarget<'t> {
    pub(super) fn new(logs: impl Iterator<Item = &'t FlowLog>) -> Self {
        Self(logs.filter(|log| log.enabled).map(|log| (&log.target, log)).collect())
    }

    /// Whether there is no enabled log.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a resource is the target of an enabled log.
    pub(super) fn has(&self, target: &ResourceId) -> bool {
        self.0.contains_key(target)
    }

    /// The log that has the flows of a NIC, whatever rule decides: that of the NIC comes before that of its subnet, and that
    /// before that of the VNet.
    pub(super) fn of_nic(&self, nic: &SecuredNic, vnet: &ResourceId) -> Option<&'t FlowLog> {
        let targets = [&nic.id, &nic.subnet, vnet];
        targets.into_iter().find_map(|target| self.0.get(target)).copied()
    }

    /// The logs of the groups of a NIC.
    pub(super) fn of_groups(&self, nic: &SecuredNic) -> impl Iterator<Item = &'t FlowLog> {
        let (subnet, own) = (nic.subnet_group.as_ref(), nic.nic_group.as_ref());
        // A group can be both.
        let own = own.filter(|own| Some(*own) != subnet);
        let logs = [subnet, own].map(|group| group.and_then(|group| self.0.get(group)).copied());
        logs.into_iter().flatten()
    }
}
