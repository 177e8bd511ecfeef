//! Separates the packets that come out of a link: messages between agents are handled here, and other packets go to the
//! engine. Also sends messages between agents.

use super::SecureLinks;
use super::link_entry::{LinkEntry, Topic};
use crate::buffer::{Outer, TransmitSink};
use crate::link::in_band::{MESSAGE_LEN, Message};
use crate::link::table_sync::{MAX_MESSAGE_LEN, TableSync};
use crate::link::transport::SessionState;
use crate::link::{Event, Sealed, index_of};
use crate::tables::LinkIndex;
use std::time::Instant;
use tombolo_proto::status::Carrier;

impl SecureLinks {
    /// Processes a packet that came out of a link. Returns `true` if the engine must process the packet further, and
    /// `false` if it was a message between agents, which is handled here. If the message was the last fragment of a
    /// packet, the complete packet is in `reassembled` afterwards.
    pub(super) fn receive(
        &mut self,
        link: LinkIndex,
        carrier: Carrier,
        packet: &[u8],
        now: Instant,
        tx: &mut impl TransmitSink,
    ) -> bool {
        if Message::is_in_band(packet) {
            let contents = packet.get(MESSAGE_LEN..).unwrap_or_default();
            if let Some(message) = Message::decode(packet) {
                self.handle_message(link, carrier, (message, contents), now, tx);
            }
            return false;
        }
        let Some(entry) = self.links.get_mut(link.get()) else {
            return false;
        };
        entry.rx.count(packet);
        self.mark_used(link, now);
        if let Some(monitor) = self.monitor_mut(link) {
            monitor.of_mut(carrier).received(now);
            monitor.last_rx = Some((carrier, now));
        }
        true
    }

    fn handle_message(
        &mut self,
        link: LinkIndex,
        carrier: Carrier,
        (message, contents): (Message, &[u8]),
        now: Instant,
        tx: &mut impl TransmitSink,
    ) {
        match message {
            Message::Echo(number) => {
                self.send_message(link, carrier, Message::Reply(number), now, tx);
                self.heard(link, carrier, now);
            }
            Message::Reply(number) => {
                if let Some(monitor) = self.monitor_mut(link) {
                    monitor.of_mut(carrier).reply(number, now);
                }
            }
            Message::Probe(size) => {
                self.send_message(link, carrier, Message::ProbeAck(size), now, tx);
            }
            Message::ProbeAck(size) => {
                if let Some(monitor) = self.monitor_mut(link) {
                    monitor.path_mtu.acknowledged(size);
                }
            }
            Message::Fragment { packet, index, count } => {
                self.mark_used(link, now);
                let Some(LinkEntry { monitor, rx, .. }) = self.links.get_mut(link.get()) else {
                    return;
                };
                if let Some(monitor) = monitor {
                    monitor.of_mut(carrier).received(now);
                    if let Some(packet) = monitor.reassembly.take(packet, (index, count), contents) {
                        rx.count(packet);
                        self.reassembled.extend_from_slice(packet);
                    }
                }
            }
            Message::Routes => {
                self.heard(link, carrier, now);
                self.receive_table(link, Topic::Routes, contents, now, tx);
            }
            Message::Health => {
                self.heard(link, carrier, now);
                self.receive_table(link, Topic::Health, contents, now, tx);
            }
            Message::Drain => self.peer_drains(link),
        }
    }

    /// Sends a message without contents over the transport `carrier`. If this transport has no session, it starts to
    /// establish one.
    pub(super) fn send_message(
        &mut self,
        link: LinkIndex,
        carrier: Carrier,
        message: Message,
        now: Instant,
        tx: &mut impl TransmitSink,
    ) -> Sealed {
        self.send(link, carrier, &message.encode(), Outer::default(), now, tx)
    }

    fn heard(&mut self, link: LinkIndex, carrier: Carrier, now: Instant) {
        if let Some(monitor) = self.monitor_mut(link) {
            monitor.of_mut(carrier).received(now);
        }
    }

    /// Handles a message about tables of a topic. If the message completes a table, confirms the table.
    fn receive_table(
        &mut self,
        link: LinkIndex,
        topic: Topic,
        message: &[u8],
        now: Instant,
        tx: &mut impl TransmitSink,
    ) {
        let Some(entry) = self.links.get_mut(link.get()) else {
            return;
        };
        let stats = match topic {
            Topic::Routes => &mut self.advertisements,
            Topic::Health => &mut self.health_statements,
        };
        match entry.sync_mut(topic) {
            Some(sync) => sync.receive(message, now, stats),
            None => stats.refused += 1,
        }
        self.report_table(link, topic, now);
        if self.links.get(link.get()).is_some_and(LinkEntry::has_table) {
            // The rate limit may delay the report of the table. The monitor makes this report later, and only links in
            // use have a monitor, so the link must stay in use.
            self.mark_used(link, now);
        }
        self.sync_tables(link, topic, now, tx, TableSync::poll_confirmation);
    }

    /// Reports the newest table of the peer, if there is one and the rate limit allows it now.
    pub(super) fn report_table(&mut self, link: LinkIndex, topic: Topic, now: Instant) {
        let Some(entry) = self.links.get_mut(link.get()) else {
            return;
        };
        let stats = match topic {
            Topic::Routes => &mut self.advertisements,
            Topic::Health => &mut self.health_statements,
        };
        if let Some(table) = entry.sync_mut(topic).and_then(|sync| sync.next_table(now, stats)) {
            let peer = entry.peer.clone();
            self.events.push_back(match topic {
                Topic::Routes => Event::RoutesReceived(peer, table),
                Topic::Health => Event::HealthReceived(peer, table),
            });
        }
    }

    /// Sends the messages that `poll` produces for a topic, if the link has a session.
    pub(super) fn sync_tables(
        &mut self,
        link: LinkIndex,
        topic: Topic,
        now: Instant,
        tx: &mut impl TransmitSink,
        poll: impl FnOnce(&mut TableSync, Instant, &mut dyn FnMut(&[u8])),
    ) {
        let Some(carrier) = self.established(link) else {
            return;
        };
        let entry = self.links.get_mut(link.get());
        let Some(mut sync) = entry.and_then(|entry| entry.sync_mut(topic)).map(std::mem::take) else {
            return;
        };
        poll(&mut sync, now, &mut |message| {
            let mut packet = [0; MESSAGE_LEN + MAX_MESSAGE_LEN];
            let Some(packet) = packet.get_mut(..MESSAGE_LEN + message.len()) else {
                return;
            };
            if let Some(contents) = packet.get_mut(MESSAGE_LEN..) {
                contents.copy_from_slice(message);
            }
            topic.message().put(packet);
            self.send(link, carrier, packet, Outer::default(), now, tx);
        });
        let entry = self.links.get_mut(link.get());
        if let Some(place) = entry.and_then(|entry| entry.sync_mut(topic)) {
            *place = sync;
        }
    }

    /// The transport that a link uses; `None` if the link has no session over it.
    pub(super) fn established(&self, link: LinkIndex) -> Option<Carrier> {
        let carrier = self.links.get(link.get())?.carrier();
        let transport = self.transport(carrier)?;
        (transport.session(link) == SessionState::Up).then_some(carrier)
    }

    /// Tells all peers with which there is a session that this agent is about to stop.
    pub(super) fn announce_drain(&mut self, now: Instant, tx: &mut impl TransmitSink) {
        for position in 0..self.links.len() {
            let link = index_of(position);
            // D16: a third-party device does not understand the message.
            if self.links.get(position).is_some_and(|entry| entry.third_party) {
                continue;
            }
            if let Some(carrier) = self.established(link) {
                self.send_message(link, carrier, Message::Drain, now, tx);
            }
        }
    }
}
