//! The reset that ends a TCP connection through a load balancer in place of the back end.

use super::PacketContext;
use crate::buffer::{DeliverSink, TransmitSink};
use crate::decide::Ingress;
use crate::link::{LinkSet, Sealed};
use crate::packet::PacketInfo;
use crate::packet::reset::reset;
use crate::verdict::DropReason;
use std::net::IpAddr;

impl<L: LinkSet, R> PacketContext<'_, L, R> {
    /// Answers a TCP segment with a reset, which goes back to where the segment came from. `from`: the address and port to
    /// which the client sent the segment. If no reset is possible or allowed now, counts the segment as dropped for
    /// `reason`.
    pub(super) fn reset(
        &mut self,
        reason: DropReason,
        ingress: Ingress,
        (packet, info): (&[u8], &PacketInfo),
        from: (IpAddr, u16),
        (tx, rx): (&mut impl TransmitSink, &mut impl DeliverSink),
    ) {
        // All fragments have the port 0, so the port of the front end is not known.
        let reset = reset(packet, info, from).filter(|_| info.ports != 0 && self.resets.allow(self.now));
        let is_sent = reset.is_some_and(|reset| match ingress {
            Ingress::Tun(nic) => {
                rx.deliver(nic, reset.packet());
                true
            }
            Ingress::Link(back) => self.links.seal(back, reset.packet(), 0, self.now, tx) == Sealed::Sent,
        });
        if is_sent {
            self.stats.totals.replied += 1;
        } else {
            self.stats.dropped(reason);
        }
    }
}
