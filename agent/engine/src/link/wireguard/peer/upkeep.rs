//! What a link does as time passes: boringtun's timers, handshakes, keepalives, and the judgement of its state.

use super::{
    HANDSHAKE, KEEPALIVE, Peer, SILENCE, SILENCE_RESPONDER, STOCK_UNREACHABLE_AFTER, TRY_AGAIN_AFTER, UNCONFIRMED,
    UNHEARD, UNREACHABLE_AFTER, past, past_some,
};
use crate::buffer::{Path, TransmitSink};
use crate::link::Event;
use crate::link::wireguard::News;
use boringtun::noise::TunnResult;
use boringtun::noise::errors::WireGuardError;
use std::time::{Duration, Instant};
use tombolo_proto::status::{LinkState, LinkStatus};

impl Peer {
    /// Runs boringtun's timers and ours.
    pub(in super::super) fn tick(&mut self, now: Instant, tx: &mut impl TransmitSink, news: &mut News) {
        let Some(tunn) = self.tunn.as_mut() else { return };
        let mut message = [0; HANDSHAKE];
        let produced = match tunn.update_timers(&mut message) {
            TunnResult::WriteToNetwork(message) => Some(message.len()),
            TunnResult::Err(WireGuardError::ConnectionExpired) => {
                if self.gave_up.is_none() {
                    self.gave_up = Some(now);
                    (self.asking_since, self.retry, self.retry_at) = (None, 0, None);
                    self.answered = None;
                    self.lose_waiting(news);
                }
                None
            }
            _ => None,
        };
        self.sealing = self
            .tunn
            .as_ref()
            .is_some_and(|t| t.time_since_last_handshake().is_some());
        if !self.sealing {
            self.session = None;
            self.settled = false;
        }
        if let Some(len) = produced {
            let init = super::kind_of(&message) == 1;
            let to = if init { self.place_to_ask(now) } else { self.endpoint };
            if let Some(to) = to {
                super::super::send(message.get(..len).unwrap_or_default(), to, tx);
                self.last_sent = Some(now);
                if init {
                    self.asked(to, now);
                }
            }
        } else if self.should_ask(now) {
            self.initiate(now, tx, news);
        } else if self.config.always_on && self.sealing && past(self.last_sent, now, KEEPALIVE) {
            self.keep_alive(now, tx);
        }
        self.evaluate(now, news);
    }

    /// Whether to start a handshake that boringtun does not start by itself.
    fn should_ask(&self, now: Instant) -> bool {
        if self.ask || self.retry_at.is_some_and(|t| t <= now) {
            return true;
        }
        if let Some(gave_up) = self.gave_up {
            let again = now.saturating_duration_since(gave_up) >= TRY_AGAIN_AFTER;
            return self.config.always_on && self.config.initiator || self.state == LinkState::Unreachable && again;
        }
        if self.asking_since.is_some() || self.authentication_failed || !self.config.always_on {
            return false;
        }
        let silence = if self.config.initiator {
            SILENCE
        } else {
            SILENCE_RESPONDER
        };
        let silent = self.sealing && past(self.last_received, now, silence);
        let unheard = self.config.third_party && self.sealing && past_some(self.unheard, now, self.patience().0);
        let unconfirmed = past_some(self.answered, now, UNCONFIRMED);
        let missing = self.config.initiator && !self.sealing && self.answered.is_none();
        silent || unheard || unconfirmed || missing
    }

    /// How long the other end may be silent before it is asked, and how long it may leave that unanswered.
    fn patience(&self) -> (Duration, Duration) {
        match self.config.dpd_timeout {
            Some(seconds) => {
                let third = Duration::from_secs(seconds.into()) / 3;
                (third, 2 * third)
            }
            None if self.config.third_party => (UNHEARD, STOCK_UNREACHABLE_AFTER),
            None => (SILENCE, UNREACHABLE_AFTER),
        }
    }

    /// Where a handshake goes: after an unanswered one, to the next known place. Packets follow there, but not those
    /// of a session that works: a lost handshake says nothing against it.
    pub(super) fn place_to_ask(&mut self, now: Instant) -> Option<Path> {
        if self.asking_since.is_none() {
            return self.endpoint;
        }
        let last = self.asked.or(self.endpoint);
        let configured = self.configured();
        // It may be our own address that leads nowhere any more.
        let anywhere = self.heard.map(|path| Path::from(path.remote));
        let anywhere = anywhere.filter(|path| ![self.heard, configured].contains(&Some(*path)));
        let places = [self.heard, configured, anywhere];
        let next = places.iter().position(|place| *place == last).map_or(1, |at| at + 1);
        let place = places
            .iter()
            .cycle()
            .skip(next)
            .take(places.len())
            .find_map(|place| *place);
        let place = place.or(self.endpoint);
        let works = self.sealing && !past(self.last_received, now, SILENCE);
        if !works {
            self.endpoint = place;
        }
        place
    }

    fn keep_alive(&mut self, now: Instant, tx: &mut impl TransmitSink) {
        let (Some(tunn), Some(to)) = (self.tunn.as_mut(), self.endpoint) else {
            return;
        };
        if let TunnResult::WriteToNetwork(sealed) = tunn.encapsulate(&[], tx.reserve(to, HANDSHAKE)) {
            let len = sealed.len();
            tx.commit(len);
            self.last_sent = Some(now);
        }
    }

    pub(super) fn lose_waiting(&mut self, news: &mut News) {
        if !self.waiting.is_empty() {
            let packets = self.waiting.len() as u64;
            self.waiting.clear();
            news.lost += packets;
        }
    }

    pub(super) fn evaluate(&mut self, now: Instant, news: &mut News) {
        let up = self.sealing && self.session.is_some();
        let (_, patience) = self.patience();
        let unanswered = |since: Instant| now.saturating_duration_since(since) >= patience;
        let state = if self.authentication_failed {
            LinkState::AuthenticationFailed
        } else if self.asking_since.is_some_and(unanswered)
            || self.state == LinkState::Unreachable && !(up && self.asking_since.is_none())
        {
            LinkState::Unreachable
        } else if up {
            LinkState::Up
        } else if self.asking_since.is_some() || self.answered.is_some() {
            LinkState::Connecting
        } else if self.endpoint.is_none() && (self.wanted_without_endpoint || self.config.always_on) {
            LinkState::NoEndpoint
        } else {
            LinkState::Idle
        };
        if state != self.state {
            self.state = state;
            let peer = || self.config.peer.clone();
            match state {
                LinkState::Up => news.events.push_back(Event::Up(peer())),
                LinkState::Unreachable | LinkState::AuthenticationFailed | LinkState::NoEndpoint => {
                    news.events.push_back(Event::Down(peer()));
                }
                // Neither says that it cannot be used.
                LinkState::Idle | LinkState::Connecting => {}
            }
        }
    }

    /// None: never used.
    pub(in super::super) fn status(&self, now: Instant) -> Option<LinkStatus> {
        if !self.is_open() && !self.config.always_on && self.state == LinkState::Idle && self.tx_packets == 0 {
            return None;
        }
        let reason = match self.state {
            LinkState::Up | LinkState::Idle => None,
            LinkState::Connecting => Some("a handshake is running"),
            LinkState::Unreachable => Some("the other end does not answer handshakes"),
            LinkState::AuthenticationFailed => Some("the other end answers with another shared key"),
            LinkState::NoEndpoint => Some("nobody has told where the other end is, and it has not called"),
        };
        Some(LinkStatus {
            state: self.state,
            reason: reason.map(str::to_owned),
            endpoint: self.endpoint.map(|path| path.remote),
            handshake_age: self
                .session
                .map(|(_, since)| now.saturating_duration_since(since).as_secs_f64()),
            rx_bytes: self.rx_bytes,
            tx_bytes: self.tx_bytes,
            rx_packets: self.rx_packets,
            tx_packets: self.tx_packets,
            ..LinkStatus::new(self.config.peer.clone())
        })
    }
}
