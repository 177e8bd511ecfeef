//! Probes for the path MTU, over transports that do not discover it (D20).

use super::SecureLinks;
use crate::buffer::{Outer, TransmitSink};
use crate::link::in_band::Message;
use crate::link::transport::position_of;
use crate::tables::LinkIndex;
use std::time::Instant;
use tombolo_proto::status::Carrier;

impl SecureLinks {
    /// Sends the probes of a link that are due, and applies the path limit that earlier probes have found. Does nothing
    /// while the peer is silent.
    pub(super) fn probe_path(&mut self, link: LinkIndex, carrier: Carrier, now: Instant, tx: &mut impl TransmitSink) {
        let Some(entry) = self.links.get_mut(link.get()) else {
            return;
        };
        let Some(monitor) = entry.monitor.as_deref_mut() else {
            return;
        };
        let liveness = monitor.of(carrier);
        // A peer that answers no echo answers no probe either, so the loss of a probe would not show that the probe was
        // too long.
        if liveness.answers().is_none() || liveness.silent(now).is_some() {
            return;
        }
        let rtt = liveness.rtt();
        let sizes = monitor.path_mtu.probes(now, self.mtu, rtt);
        let limit = monitor.path_mtu.limit();
        if limit.is_some() && limit != entry.path_limit {
            entry.path_limit = limit;
            tracing::debug!(link = %entry.peer, bytes = entry.path_limit, "longest packet that the path carries whole");
        }
        let outer = Outer {
            ecn: 0,
            dont_fragment: true,
        };
        let Some(transport) = self.transports.get_mut(position_of(carrier)) else {
            return;
        };
        for size in sizes {
            let probe = Message::probe(size, &mut self.probe);
            // An error is ignored: no acknowledgement will come, and the discovery handles this like a lost probe.
            let _ = transport.seal(link, probe, outer, now, tx);
        }
    }
}
