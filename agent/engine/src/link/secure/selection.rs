//! Which transport a link uses, where its configuration leaves that open (D6).

use super::SecureLinks;
use crate::buffer::TransmitSink;
use crate::link::choice::Step;
use crate::link::{Event, LinkSet};
use crate::tables::LinkIndex;
use std::time::Instant;
use tombolo_proto::status::Carrier;

impl SecureLinks {
    /// Takes the next step of the link's choice, if there is one.
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
                    // Both transports use one path: silence is noticed before the first echo over QUIC is answered.
                    let rtt = monitor.of(Carrier::WireGuard).rtt();
                    monitor.of_mut(Carrier::Quic).assume_rtt(rtt);
                }
                self.events.push_back(Event::Switched(entry.peer.clone(), to, reason));
            }
        }
    }
}
