//! Selects the transport of each link whose configuration allows both (D6).

use super::SecureLinks;
use crate::buffer::TransmitSink;
use crate::link::choice::Step;
use crate::link::{Event, LinkSet};
use crate::tables::LinkIndex;
use std::time::Instant;
use tombolo_proto::status::Carrier;

impl SecureLinks {
    /// Lets the link's [`Choice`](crate::link::choice::Choice) decide, and carries out its decision.
    pub(super) fn select(&mut self, link: LinkIndex, now: Instant, tx: &mut impl TransmitSink) {
        let [wireguard, quic] = [Carrier::WireGuard, Carrier::Quic].map(|carrier| self.health(link, carrier, now));
        let Some(entry) = self.links.get_mut(link.get()) else {
            return;
        };
        match entry.choice.step(now, wireguard, quic) {
            None => {}
            Some(Step::Connect) => {
                self.connect(link, Carrier::Quic, now);
                self.flush(now, tx);
            }
            Some(Step::Disconnect) => {
                if let Some(quic) = self.transport_mut(Carrier::Quic) {
                    quic.close(link, now, "WireGuard is in use");
                    quic.flush(now, tx);
                }
            }
            Some(Step::Switch(to, reason)) => {
                if let Some(monitor) = entry.monitor_mut() {
                    // Both transports use the same path, so their round-trip times are about the same. With WireGuard's
                    // round-trip time, silence over QUIC is detected fast even before the first echo over QUIC is
                    // answered.
                    let rtt = monitor.of(Carrier::WireGuard).rtt();
                    monitor.of_mut(Carrier::Quic).assume_rtt(rtt);
                }
                self.events.push_back(Event::Switched(entry.peer.clone(), to, reason));
            }
        }
    }
}
