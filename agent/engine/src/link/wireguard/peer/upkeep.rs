//! The work of a peer's timers: boringtun's timers, handshakes, keepalives, and the state that is reported.

use super::{Event, INITIATION, MAX_HANDSHAKE_LEN, Peer, kind_of};
use crate::buffer::{Path, TransmitSink};
use crate::link::commit;
use crate::link::transport::TransportEvent;
use crate::link::wireguard::TransportEvents;
use crate::link::wireguard::handshake::SILENCE_TIMEOUT;
use boringtun::noise::TunnResult;
use boringtun::noise::errors::WireGuardError;
use std::time::{Duration, Instant};
use tombolo_proto::status::{LinkState, LinkStatus};

/// If an end of an `always_on` link has a session and has sent nothing for this time, it sends a keepalive. The peer
/// tolerates the loss of two keepalives ([`SILENCE_TIMEOUT`]).
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

impl Peer {
    /// Runs boringtun's timers and those of this module. The owner calls it every 200 ms. Does nothing without session
    /// state.
    pub(in super::super) fn tick(&mut self, now: Instant, tx: &mut impl TransmitSink, events: &mut TransportEvents) {
        let Some(tunn) = self.tunn.as_mut() else { return };
        let mut message = [0; MAX_HANDSHAKE_LEN];
        let produced = match tunn.update_timers(&mut message) {
            TunnResult::WriteToNetwork(message) => Some(message.len()),
            TunnResult::Err(WireGuardError::ConnectionExpired) => {
                self.handle(Event::Expired, now, events);
                None
            }
            _ => None,
        };
        let tunn = self.tunn.as_ref();
        self.traffic.can_seal = tunn.is_some_and(|tunn| tunn.time_since_last_handshake().is_some());
        if !self.traffic.can_seal {
            self.session_lost(now);
        }
        if let Some(message) = produced.and_then(|len| message.get(..len)) {
            let is_initiation = kind_of(message) == INITIATION;
            let to = if is_initiation {
                self.next_target(now)
            } else {
                self.endpoint
            };
            if let Some(to) = to {
                commit(tx, &to.into(), message);
                self.last_tx = Some(now);
                if is_initiation {
                    self.initiation_sent(to, now);
                }
            }
        } else if self.handshakes.is_due(now, &self.policy(), &self.traffic, self.state) {
            self.initiate(now, tx, events);
        } else if self.config.always_on && self.traffic.can_seal {
            self.keep_alive(now, tx);
        }
        self.evaluate(now, events);
    }

    /// The path for the next initiation: the present endpoint or, if the last initiation is unanswered, the next of the
    /// known paths in turn. In the second case packets use this path too, unless a session still works on the present
    /// path.
    pub(super) fn next_target(&mut self, now: Instant) -> Option<Path> {
        if self.handshakes.initiated_since().is_none() {
            return self.endpoint;
        }
        let last = self.handshakes.target().or(self.endpoint);
        let configured = self.configured_endpoint();
        // The address of this host to which the peer sent may not work any more. So one of the known paths has no
        // source address, and the kernel chooses it.
        let from_any = self.heard.map(|path| Path::from(path.remote));
        let from_any = from_any.filter(|path| ![self.heard, configured].contains(&Some(*path)));
        let known = [self.heard, configured, from_any];
        let next = known.iter().position(|path| *path == last).map_or(1, |at| at + 1);
        let target = known.iter().cycle().skip(next).take(known.len()).find_map(|path| *path);
        let target = target.or(self.endpoint);
        // If data came on the session within [`SILENCE_TIMEOUT`], the session works although the handshake was lost.
        let is_recent = |at| now.saturating_duration_since(at) < SILENCE_TIMEOUT;
        let works = self.traffic.can_seal && self.traffic.last_rx.is_some_and(is_recent);
        if !works {
            self.endpoint = target;
        }
        target
    }

    /// Sends a keepalive if nothing was sent to the peer within [`KEEPALIVE_INTERVAL`].
    fn keep_alive(&mut self, now: Instant, tx: &mut impl TransmitSink) {
        let is_recent = |at| now.saturating_duration_since(at) < KEEPALIVE_INTERVAL;
        let (Some(tunn), Some(to)) = (self.tunn.as_mut(), self.endpoint) else {
            return;
        };
        if self.last_tx.is_some_and(is_recent) {
            return;
        }
        if let TunnResult::WriteToNetwork(sealed) = tunn.encapsulate(&[], tx.reserve(&to.into(), MAX_HANDSHAKE_LEN)) {
            let len = sealed.len();
            tx.commit(len);
            self.last_tx = Some(now);
        }
    }

    /// Updates the state that is reported. If the new state means that the link is up or has failed, adds the event.
    pub(super) fn evaluate(&mut self, now: Instant, events: &mut TransportEvents) {
        let mut state = self.handshakes.link_state(self.state, now, &self.policy());
        let is_needed = self.is_endpoint_missing || self.config.always_on;
        if state == LinkState::Idle && self.endpoint.is_none() && is_needed {
            state = LinkState::NoEndpoint;
        }
        if std::mem::replace(&mut self.state, state) == state {
            return;
        }
        let peer = self.config.peer.clone();
        match state {
            LinkState::Up => events.queue.push_back(TransportEvent::Up(peer)),
            LinkState::Unreachable | LinkState::AuthenticationFailed | LinkState::NoEndpoint => {
                events.queue.push_back(TransportEvent::Down(peer, None));
            }
            // Neither state means that the link has failed.
            LinkState::Idle | LinkState::Connecting => {}
        }
    }

    /// The status of the link at `now`, without counters. `None`: the link was never used and is not `always_on`.
    pub(in super::super) fn status(&self, now: Instant) -> Option<LinkStatus> {
        if !self.is_open() && !self.config.always_on && self.state == LinkState::Idle && !self.has_sent {
            return None;
        }
        let reason = match self.state {
            LinkState::Up | LinkState::Idle => None,
            LinkState::Connecting => Some("a handshake is running"),
            LinkState::Unreachable => Some("the other end does not answer handshakes"),
            LinkState::AuthenticationFailed => Some("the other end answers with another shared key"),
            LinkState::NoEndpoint => Some("no endpoint is known, and the other end has sent no handshake"),
        };
        let age = |since| now.saturating_duration_since(since).as_secs_f64();
        Some(LinkStatus {
            state: self.state,
            reason: reason.map(str::to_owned),
            endpoint: self.endpoint.map(|path| path.remote),
            handshake_age: self.handshakes.session().map(|session| age(session.since)),
            ..LinkStatus::new(self.config.peer.clone())
        })
    }
}
