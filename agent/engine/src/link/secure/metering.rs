//! Counts what passes the links, for charges (Meter-6).

use super::SecureLinks;
use super::link_entry::LinkEntry;
use std::collections::BTreeMap;
use tombolo_proto::id::AgentId;
use tombolo_proto::status::Volume;

impl SecureLinks {
    /// What has passed the links since the last call, by peer; without peers for which that is nothing. Each packet is in
    /// the result of one call, also if its link was removed meanwhile. A packet that waits for a handshake counts as sent.
    pub fn take_traffic(&mut self) -> BTreeMap<AgentId, Volume> {
        let mut all = std::mem::take(&mut self.gone);
        for entry in &mut self.links {
            add(&mut all, entry);
        }
        all
    }

    /// Keeps what has passed a link that is removed, for [`take_traffic`](Self::take_traffic).
    pub(super) fn keep_traffic(&mut self, mut removed: LinkEntry) {
        add(&mut self.gone, &mut removed);
    }
}

fn add(all: &mut BTreeMap<AgentId, Volume>, entry: &mut LinkEntry) {
    let more = entry.take_volume();
    if !more.is_empty() {
        let sum = all.entry(entry.peer.clone()).or_default();
        *sum = sum.plus(more);
    }
}
