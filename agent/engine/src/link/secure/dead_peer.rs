//! Dead-peer detection (D19): sends echoes on the links in use, and reports links as up or down.

use super::SecureLinks;
use super::link_entry::Topic;
use crate::buffer::TransmitSink;
use crate::link::Event;
use crate::link::choice::TransportHealth;
use crate::link::table_sync::TableSync;
use crate::link::transport::{SessionState, TransportEvent};
use crate::tables::LinkIndex;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tombolo_proto::id::AgentId;
use tombolo_proto::status::Carrier;

/// Least interval of echoes where a failure need not be detected at once: on a link that no other path can replace, and
/// over the transport not in use until the peer has answered over it. Elsewhere, and on links that are down, the interval
/// is the configured one ([`Probes`](tombolo_proto::config::Probes)).
const IDLE_ECHO_INTERVAL: Duration = Duration::from_secs(1);

/// If the peer's last packet is younger than this, the peer is taken to use the transport over which this packet came.
const RECENT_RX_TIMEOUT: Duration = Duration::from_secs(1);

/// If a handshake on a monitored link (one that another path can replace) is unanswered for this time, the link is
/// down. The time is half a second, because failover may take no longer (D19).
const HANDSHAKE_TIMEOUT: Duration = Duration::from_millis(500);

/// A link counts as in use for this time after its last packet. Then the link's monitor is dropped, so that idle links
/// cost no time and little memory.
const USED_TIMEOUT: Duration = Duration::from_secs(5);

const fn millis(number: u32) -> Duration {
    Duration::from_millis(number as u64)
}

fn elapsed(since: Instant, now: Instant) -> Duration {
    now.saturating_duration_since(since)
}

impl SecureLinks {
    /// Monitors one link in use; called every 50 ms. Returns `false` if the link is not in use any more.
    pub(super) fn monitor(&mut self, link: LinkIndex, now: Instant, tx: &mut impl TransmitSink) -> bool {
        let Some(entry) = self.links.get_mut(link.get()) else {
            return false;
        };
        let is_first = self.lane == 0;
        let is_used = entry.last_used.is_some_and(|at| elapsed(at, now) <= USED_TIMEOUT);
        let is_needed = is_first && (entry.always_on || entry.is_dead || entry.has_table());
        if !(is_used || is_needed) {
            entry.monitor = None;
            return false;
        }
        // D16: a third-party device does not answer the messages that agents send inside links; it only takes part in
        // WireGuard's handshakes.
        if entry.third_party {
            return true;
        }
        let (carrier, has_choice) = (entry.carrier(), entry.has_choice());
        self.send_echoes(link, now, tx);
        if !self.discovers_path_mtu(carrier) {
            self.probe_path(link, carrier, now, tx);
        }
        if has_choice {
            self.select(link, now, tx);
        }
        if is_first {
            self.detect_dead_peer(link, now);
            for topic in Topic::ALL {
                self.report_table(link, topic, now);
                self.sync_tables(link, topic, now, tx, TableSync::poll_messages);
            }
        } else {
            self.update_readiness(link, now);
        }
        true
    }

    /// Sends the echoes that are due over the transport in use, and over the other transport if the link may have to
    /// switch to it.
    fn send_echoes(&mut self, link: LinkIndex, now: Instant, tx: &mut impl TransmitSink) {
        let Some(entry) = self.links.get(link.get()) else {
            return;
        };
        let (carrier, has_choice) = (entry.carrier(), entry.has_choice());
        let is_urgent = has_choice || entry.monitored || entry.is_dead;
        let is_up = |this: &Self, carrier| this.health(link, carrier, now).is_up();
        let standby = match carrier {
            // If there is a QUIC connection, it is probed too, so that it is known whether the connection works at the
            // time when WireGuard fails.
            Carrier::WireGuard => (has_choice && is_up(self, Carrier::Quic)).then_some(Carrier::Quic),
            Carrier::Quic => has_choice.then_some(Carrier::WireGuard),
        };
        for (carrier, is_main) in [(Some(carrier), true), (standby, false)] {
            let Some(carrier) = carrier else { continue };
            // Without a session, no echo is sent over the transport in use, because ordinary packets will establish the
            // session. Over the other transport, on which no packets are sent, the echo establishes the session.
            if is_main && !is_up(self, carrier) {
                continue;
            }
            let (interval, lane) = (millis(self.probes.interval), self.lane);
            let Some(monitor) = self.monitor_mut(link) else {
                continue;
            };
            let liveness = monitor.of_mut(carrier);
            // D19: echoes are sent at the short configured interval only if another path can replace this one. For a
            // lane other than 0, lane 0 is another path.
            let has_alternative = is_urgent && (is_main || liveness.answers().is_some()) || lane > 0;
            let interval = if has_alternative {
                interval
            } else {
                interval.max(IDLE_ECHO_INTERVAL)
            };
            if liveness.last_sent().is_none_or(|at| elapsed(at, now) >= interval) {
                let echo = liveness.send(now);
                self.send_message(link, carrier, echo, now, tx);
            }
        }
    }

    /// D19: by default, a monitored link goes down when three echoes are not answered, and comes up again after ten
    /// answers that span three seconds. The link also goes down when the peer does not answer a handshake for 500 ms.
    /// So does the link with an owner of back ends (D36), which takes up to three seconds with echoes that are sent once a
    /// second.
    fn detect_dead_peer(&mut self, link: LinkIndex, now: Instant) {
        let entry = self.links.get(link.get());
        let Some(entry) = entry.filter(|entry| entry.detects_failure() || entry.is_dead) else {
            return;
        };
        let (is_dead, health) = (entry.is_dead, self.health(link, entry.carrier(), now));
        let is_unanswered = match health.session {
            SessionState::Connecting { since: Some(since) } => elapsed(since, now) >= HANDSHAKE_TIMEOUT,
            SessionState::Connecting { since: None } | SessionState::Down | SessionState::Up => false,
        };
        let is_lost = health.silent.is_some() || is_unanswered;
        let (answers, hold) = (self.probes.answers, millis(self.probes.hold));
        let is_enough = |(count, since)| count >= answers && elapsed(since, now) >= hold;
        let is_back = health.is_up() && health.silent.is_none() && health.answers.is_some_and(is_enough);
        if is_lost && !is_dead || is_back && is_dead {
            if let Some(entry) = self.links.get_mut(link.get()) {
                entry.is_dead = is_lost;
            }
            self.report(link, !is_lost);
        }
    }

    /// Handles the peer's message that it is about to stop. The peer's earlier answers no longer count, so that the
    /// answers that it still sends do not bring the link up at once: like a peer that was silent, it must first answer
    /// for a while.
    pub(super) fn peer_drains(&mut self, link: LinkIndex) {
        let Some(entry) = self.links.get_mut(link.get()) else {
            return;
        };
        if let Some(monitor) = entry.monitor_mut() {
            monitor.forget_answers();
        }
        if entry.detects_failure() && self.lane == 0 && !entry.is_dead {
            entry.is_dead = true;
            self.report(link, false);
        }
    }

    /// Updates whether a lane other than 0 may send over a link: the link must have a session, and the peer must not be
    /// silent.
    pub(super) fn update_readiness(&mut self, link: LinkIndex, now: Instant) {
        let Some(carrier) = self.links.get(link.get()).map(|entry| entry.carrier()) else {
            return;
        };
        let health = self.health(link, carrier, now);
        if let Some(entry) = self.links.get_mut(link.get()) {
            entry.is_ready = health.is_up() && health.silent.is_none();
        }
    }

    fn discovers_path_mtu(&self, carrier: Carrier) -> bool {
        self.transport(carrier)
            .is_none_or(|transport| transport.discovers_path_mtu())
    }

    /// The present condition of one transport of a link. A transport that does not exist has no session.
    pub(super) fn health(&self, link: LinkIndex, carrier: Carrier, now: Instant) -> TransportHealth {
        let session = self.transport(carrier).map(|transport| transport.session(link));
        let monitor = self.links.get(link.get()).and_then(|entry| entry.monitor.as_deref());
        let last_rx = monitor.and_then(|monitor| monitor.last_rx);
        let is_recent = |(by, at)| by == carrier && elapsed(at, now) < RECENT_RX_TIMEOUT;
        let liveness = monitor.map(|monitor| monitor.of(carrier));
        TransportHealth {
            session: session.unwrap_or_default(),
            silent: liveness.and_then(|l| l.silent(now)),
            last_rx: liveness.and_then(|l| l.last_rx()),
            answers: liveness.and_then(|l| l.answers()),
            loss: liveness.and_then(|l| l.loss(now)),
            used_by_peer: last_rx.is_some_and(is_recent),
        }
    }

    /// Reports that a link is up or down, if this differs from the last report. A link is up while any of its
    /// transports has a session.
    fn report(&mut self, link: LinkIndex, is_up: bool) {
        let has_session = |transport: &super::AnyTransport| transport.session(link) == SessionState::Up;
        let is_any_up = is_up || self.transports.iter().any(has_session);
        let Some(entry) = self.links.get_mut(link.get()) else {
            return;
        };
        // boringtun keeps its session with a third-party device after the device has failed. So for such a device only
        // the argument `is_up`, which comes from the transport's events, decides; the session does not.
        let is_up = is_any_up && !entry.is_dead && (is_up || !entry.third_party);
        if entry.reported_up != Some(is_up) {
            entry.reported_up = Some(is_up);
            let peer = entry.peer.clone();
            self.events
                .push_back(if is_up { Event::Up(peer) } else { Event::Down(peer) });
        }
    }

    /// Reports the peer's new endpoint. If the last unread event is about the same peer, it is replaced, so that an
    /// endpoint that changes with every datagram leaves only one event.
    fn report_endpoint(&mut self, peer: AgentId, to: SocketAddr) {
        match self.events.back_mut() {
            Some(Event::EndpointChanged(before, at)) if *before == peer => *at = to,
            _ => self.events.push_back(Event::EndpointChanged(peer, to)),
        }
    }

    /// Converts the waiting events of the transports to events of links.
    pub(super) fn take_transport_events(&mut self) {
        for number in 0..self.transports.len() {
            while let Some((event, has_path_mtu)) = self.transports.get_mut(number).and_then(|transport| {
                let event = transport.poll_event()?;
                Some((event, transport.discovers_path_mtu()))
            }) {
                self.take_transport_event(event, has_path_mtu);
            }
        }
    }

    fn take_transport_event(&mut self, event: TransportEvent, has_path_mtu: bool) {
        match event {
            TransportEvent::Up(peer) => {
                if let Some(link) = self.position(&peer) {
                    self.report(link, true);
                }
            }
            TransportEvent::Down(peer, reason) => {
                if let Some(reason) = reason {
                    tracing::debug!(link = %peer, reason, "QUIC connection gone");
                }
                if let Some(link) = self.position(&peer) {
                    self.report(link, false);
                }
            }
            TransportEvent::EndpointChanged(peer, to) => {
                let link = self.position(&peer).filter(|_| !has_path_mtu);
                if let Some(monitor) = link.and_then(|link| self.monitor_mut(link)) {
                    monitor.path_mtu.check_now();
                }
                self.report_endpoint(peer, to);
            }
        }
    }
}
