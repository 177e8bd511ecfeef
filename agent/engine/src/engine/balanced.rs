//! Packets to the front ends of load balancers: the choice that was made for earlier packets of the flow, and the reset
//! that ends a TCP connection in place of its back end.

use super::PacketContext;
use crate::buffer::{DeliverSink, TransmitSink};
use crate::decide::{Ingress, decide_after};
use crate::link::{LinkSet, Sealed};
use crate::packet::PacketInfo;
use crate::packet::reset::{opens_connection, reset};
use crate::security::Guard;
use crate::tables::{Choice, Tables};
use crate::verdict::{DropReason, Verdict};
use std::net::IpAddr;
use std::time::Instant;

/// Decides about a packet, and takes the choice of a load balancer from the flow of the packet if there is one (L4, L7).
/// Returns the choice too, if the verdict depends on one.
pub(super) fn decide_in_flow(
    guard: &Guard,
    tables: &Tables,
    ingress: Ingress,
    (packet, info): (&[u8], &PacketInfo),
    now: Instant,
) -> (Verdict, Option<Choice>) {
    let fresh = decide_after(tables, ingress, info, None, None);
    let is_balanced = match fresh {
        (_, Some(_)) => true,
        // No new flow is possible. An established one may go on (L8).
        (Verdict::Drop(DropReason::NoBackEnd | DropReason::BackEndItself), None) => true,
        (_, None) => false,
    };
    if !is_balanced {
        return fresh;
    }
    let earlier = guard.earlier_choice(tables, ingress, (packet, info), now);
    let Some(earlier) = earlier.filter(|earlier| fresh.1 != Some(*earlier)) else {
        return fresh;
    };
    let decided = decide_after(tables, ingress, info, Some(earlier), None);
    let is_lost = match decided.0 {
        Verdict::Forward { link, .. } => tables.links[link.get()].down,
        Verdict::Drop(reason) => reason == DropReason::BackEndGone,
        Verdict::Deliver(_) | Verdict::Translate(_) | Verdict::TimeExceeded => false,
    };
    // D36: an earlier SYN of the connection was not answered. The connection can still have another back end.
    if is_lost && opens_connection(packet, info) {
        return fresh;
    }
    decided
}

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
