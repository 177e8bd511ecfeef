//! The handshakes of one WireGuard peer: a pure state machine. boringtun does the cryptography and its own timers; its
//! results are the events here.
//!
//! ```text
//!                ResponseSent
//!   ┌──────┐ ──────────────────▶ ┌──────────────┐      Proven
//!   │      │                     │ ResponseSent │ ───────────────┐
//!   │      │ ◀────────────────── └──────────────┘ ◀────────────┐ │
//!   │      │   Expired                  │ InitiationSent       │ ▼
//!   │ Idle │                            ▼         ResponseSent ┌───────────┐
//!   │      │   InitiationSent    ┌──────────────┐    Proven    │ Confirmed │
//!   │      │ ──────────────────▶ │  Initiated   │ ───────────▶ └───────────┘
//!   │      │ ◀────────────────── └──────────────┘ ◀────────────┘ │
//!   └──────┘   Expired, Rejected                InitiationSent   │
//!       ▲                                 Expired, SessionLost   │
//!       └────────────────────────────────────────────────────────┘
//!
//!   event             Idle          Initiated     ResponseSent   Confirmed
//!   InitiationSent    Initiated     Initiated     Initiated      Initiated
//!   ResponseSent      ResponseSent  Initiated ¹   ResponseSent   ResponseSent
//!   Proven, newer     Confirmed     Confirmed     Confirmed      Confirmed
//!   Proven, older     –             ²             ResponseSent   Confirmed
//!   Rejected          Idle          ²             ResponseSent   Confirmed
//!   SessionLost       Idle          Initiated     ResponseSent   Idle
//!   Expired           Idle          Idle          Idle ³         Idle
//!   Closed            Idle          Idle          Idle           Idle
//! ```
//! 1. It notes the response. If no data comes on that session, this end initiates again.
//! 2. The renewal ends and the session of before stays: `ResponseSent` if a response was noted, else `Confirmed` or
//!    `Idle`. After a rejection an older session proves nothing about the new keys, so the handshake goes on.
//! 3. Nothing changes if boringtun gave up before the response: it reports that again with each tick.
//!
//! The peer's initiation proves nothing, as it may be a replay. A response or data that verifies does (D18).

use crate::buffer::Path;
use std::time::{Duration, Instant};
use tombolo_proto::config::Link;
use tombolo_proto::status::LinkState;

/// Pauses before the first repetitions of an initiation that nobody answers: the peer may be learning of this agent at
/// this moment. Later ones are boringtun's, every 5 s (the protocol's `REKEY_TIMEOUT`).
const RETRY_BACKOFF: [Duration; 3] = [
    Duration::from_millis(400),
    Duration::from_millis(800),
    Duration::from_millis(1600),
];

/// Pause between boringtun's end of trying (90 s, the protocol's `REKEY_ATTEMPT_TIME`) and the next attempt with a peer
/// that never answered.
const ATTEMPT_PAUSE: Duration = Duration::from_secs(30);

/// Without data on a session this long after this end answered the initiation, the peer has rejected the response. An
/// initiation of this end shows why.
const UNCONFIRMED_TIMEOUT: Duration = Duration::from_secs(2);

/// Age of an unanswered initiation from which the peer counts as unreachable: twice the protocol's `REKEY_TIMEOUT`.
const UNREACHABLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Silence on an `always_on` link, in spite of two keepalives of the peer, after which this end initiates a handshake.
pub(super) const SILENCE_TIMEOUT: Duration = Duration::from_secs(12);

/// The same at the end that is not the initiator: one keepalive later, so that both ends do not initiate at once.
const RESPONDER_SILENCE_TIMEOUT: Duration = Duration::from_secs(17);

/// A third-party device answers no probes of ours. This long after the first packet that nothing came back for, a
/// handshake asks whether the device is there (D19).
const THIRD_PARTY_SILENCE_TIMEOUT: Duration = Duration::from_secs(3);

/// Age of that handshake from which the device counts as unreachable: six seconds together with the silence
/// before it.
const THIRD_PARTY_UNREACHABLE_TIMEOUT: Duration = Duration::from_secs(3);

/// A session whose keys the peer has proven to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Session {
    /// The receiver index at this end. boringtun counts up its lowest byte with each session.
    pub(super) index: u32,
    /// When the peer proved it.
    pub(super) since: Instant,
}

impl Session {
    /// Whether a session with this index is newer. Late data of the session before is not.
    fn is_before(self, index: u32) -> bool {
        (1..128).contains(&(index as u8).wrapping_sub(self.index as u8))
    }
}

/// Where the handshakes of a peer are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Handshake {
    /// There is neither a session nor a handshake.
    Idle {
        /// When boringtun gave up, if that is how the last handshake or session ended.
        gave_up: Option<Instant>,
    },
    /// This end sent an initiation, and nothing that came since has proven the peer.
    Initiated {
        /// When the first unanswered initiation went out.
        since: Instant,
        /// When to send the next one, in addition to boringtun's repetitions.
        retry_at: Option<Instant>,
        /// When this end answered an initiation of the peer meanwhile.
        response_sent: Option<Instant>,
        /// The session of before.
        session: Option<Session>,
    },
    /// This end answered an initiation of the peer; data on the new session will confirm it.
    ResponseSent {
        /// When it answered the first of them.
        since: Instant,
        /// When boringtun gave up before that.
        gave_up: Option<Instant>,
        /// The session of before.
        session: Option<Session>,
    },
    /// The peer has proven that it holds the session's keys, and no handshake is in progress.
    Confirmed {
        /// The newest one.
        session: Session,
    },
}

impl Handshake {
    /// The state after a handshake of this end ended without a new session.
    const fn without_initiation(response_sent: Option<Instant>, session: Option<Session>) -> Self {
        match (response_sent, session) {
            (Some(since), session) => Self::ResponseSent {
                since,
                gave_up: None,
                session,
            },
            (None, Some(session)) => Self::Confirmed { session },
            (None, None) => Self::Idle { gave_up: None },
        }
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// Somebody needs a session: an initiation goes out with the next tick.
    Requested,
    /// An initiation went out to this path.
    InitiationSent(Path),
    /// This end answered an initiation that carries the peer's key.
    ResponseSent,
    /// The peer's response does not verify: it has another preshared key.
    Rejected,
    /// The peer has proven that it holds the keys of the session with this index.
    Proven(u32),
    /// boringtun has no session to seal with.
    SessionLost,
    /// boringtun gave up a handshake, or dropped sessions that nobody renewed.
    Expired,
    /// The owner dropped boringtun's state.
    Closed,
    /// The same because a key changed. The flag replaces an earlier request.
    KeyChanged {
        /// Negotiate at once.
        request: bool,
    },
}

/// What the owner does after an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Nothing.
    None,
    /// Drop the packets that wait for a session.
    DropWaiting,
}

/// The configuration of a peer, as far as handshakes depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Policy {
    /// The session is kept up without traffic.
    pub(super) always_on: bool,
    /// This end initiates; of two ends that are always on, one does.
    pub(super) initiator: bool,
    /// The peer is a third-party device (D16).
    pub(super) third_party: bool,
    /// Time from the first unanswered packet until the link is down, as configured.
    pub(super) dpd_timeout: Option<Duration>,
}

impl Policy {
    pub(super) fn of(link: &Link) -> Self {
        Self {
            always_on: link.always_on,
            initiator: link.initiator,
            third_party: link.third_party,
            dpd_timeout: link.dpd_timeout.map(|seconds| Duration::from_secs(seconds.into())),
        }
    }

    /// Time without any answer from a third-party device after which this end initiates: a third of the configured one.
    fn unanswered_tx_timeout(&self) -> Duration {
        self.dpd_timeout.map_or(THIRD_PARTY_SILENCE_TIMEOUT, |total| total / 3)
    }

    /// Age of an unanswered initiation from which the peer is unreachable: the other two thirds.
    fn unreachable_timeout(&self) -> Duration {
        match self.dpd_timeout {
            Some(total) => 2 * (total / 3),
            None if self.third_party => THIRD_PARTY_UNREACHABLE_TIMEOUT,
            None => UNREACHABLE_TIMEOUT,
        }
    }

    const fn silence_timeout(&self) -> Duration {
        if self.initiator {
            SILENCE_TIMEOUT
        } else {
            RESPONDER_SILENCE_TIMEOUT
        }
    }
}

/// What is known about traffic with the peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    /// boringtun has a session to seal with, confirmed or not.
    pub(super) can_seal: bool,
    /// When the last datagram that verified came in.
    pub(super) last_rx: Option<Instant>,
    /// When the first packet went out that nothing has come back for.
    pub(super) first_unanswered_tx: Option<Instant>,
}

/// The handshakes of one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Handshakes {
    state: Handshake,
    /// Initiations since the last success or end of trying; selects the next pause of [`RETRY_BACKOFF`].
    attempts: usize,
    /// Where the last initiation went. Only a response from there can be a rejection: others may be forged.
    target: Option<Path>,
    /// An initiation goes out with the next tick.
    is_requested: bool,
    /// The peer answered with another preshared key; until a newer session is confirmed.
    is_rejected: bool,
}

impl Default for Handshakes {
    fn default() -> Self {
        Self {
            state: Handshake::Idle { gave_up: None },
            attempts: 0,
            target: None,
            is_requested: false,
            is_rejected: false,
        }
    }
}

impl Handshakes {
    /// Takes an event, and says what the owner has to do.
    pub(super) fn handle(&mut self, event: Event, now: Instant) -> Action {
        match event {
            Event::Requested => self.is_requested = true,
            Event::InitiationSent(to) => self.initiation_sent(to, now),
            Event::ResponseSent => self.response_sent(now),
            Event::Rejected => {
                self.is_rejected = true;
                self.end_initiation();
            }
            Event::Proven(index) => self.proven(index, now),
            Event::SessionLost => self.session_lost(),
            Event::Expired if self.gave_up().is_none() => {
                self.attempts = 0;
                self.state = Handshake::Idle { gave_up: Some(now) };
                return Action::DropWaiting;
            }
            // boringtun repeats it with each tick until the next handshake.
            Event::Expired => {}
            Event::Closed => {
                let is_requested = self.is_requested;
                *self = Self {
                    is_requested,
                    ..Self::default()
                };
                return Action::DropWaiting;
            }
            Event::KeyChanged { request } => {
                *self = Self {
                    is_requested: request,
                    ..Self::default()
                };
                return Action::DropWaiting;
            }
        }
        Action::None
    }

    fn initiation_sent(&mut self, to: Path, now: Instant) {
        let (since, response_sent, session) = match self.state {
            Handshake::Idle { .. } => (now, None, None),
            Handshake::Initiated {
                since,
                response_sent,
                session,
                ..
            } => (since, response_sent, session),
            Handshake::ResponseSent { since, session, .. } => (now, Some(since), session),
            Handshake::Confirmed { session } => (now, None, Some(session)),
        };
        self.state = Handshake::Initiated {
            since,
            retry_at: RETRY_BACKOFF.get(self.attempts).map(|pause| now + *pause),
            response_sent,
            session,
        };
        self.attempts += 1;
        self.target = Some(to);
        self.is_requested = false;
    }

    fn response_sent(&mut self, now: Instant) {
        match &mut self.state {
            Handshake::Idle { gave_up } => {
                self.state = Handshake::ResponseSent {
                    since: now,
                    gave_up: *gave_up,
                    session: None,
                }
            }
            // The response ends this end's handshake in boringtun: without data on this session, initiate again.
            Handshake::Initiated {
                retry_at,
                response_sent,
                ..
            } => {
                response_sent.get_or_insert(now);
                *retry_at = Some(now + UNCONFIRMED_TIMEOUT);
            }
            Handshake::ResponseSent { .. } => {}
            Handshake::Confirmed { session } => {
                self.state = Handshake::ResponseSent {
                    since: now,
                    gave_up: None,
                    session: Some(*session),
                }
            }
        }
    }

    fn proven(&mut self, index: u32, now: Instant) {
        if self.session().is_none_or(|session| session.is_before(index)) {
            self.is_rejected = false;
            self.attempts = 0;
            self.state = Handshake::Confirmed {
                session: Session { index, since: now },
            };
        } else if !self.is_rejected {
            self.attempts = 0;
            self.end_initiation();
        }
    }

    /// Ends a handshake of this end, and keeps the session of before.
    fn end_initiation(&mut self) {
        if let Handshake::Initiated {
            response_sent, session, ..
        } = self.state
        {
            self.state = Handshake::without_initiation(response_sent, session);
        }
    }

    fn session_lost(&mut self) {
        match &mut self.state {
            Handshake::Idle { .. } => {}
            Handshake::Initiated { session, .. } | Handshake::ResponseSent { session, .. } => *session = None,
            Handshake::Confirmed { .. } => self.state = Handshake::Idle { gave_up: None },
        }
    }

    /// The newest session that the peer has proven, also while it is renewed.
    pub(super) const fn session(&self) -> Option<Session> {
        match self.state {
            Handshake::Idle { .. } => None,
            Handshake::Initiated { session, .. } | Handshake::ResponseSent { session, .. } => session,
            Handshake::Confirmed { session } => Some(session),
        }
    }

    /// Since when initiations are unanswered.
    pub(super) const fn initiated_since(&self) -> Option<Instant> {
        match self.state {
            Handshake::Initiated { since, .. } => Some(since),
            Handshake::Idle { .. } | Handshake::ResponseSent { .. } | Handshake::Confirmed { .. } => None,
        }
    }

    const fn response_sent_at(&self) -> Option<Instant> {
        match self.state {
            Handshake::Initiated { response_sent, .. } => response_sent,
            Handshake::ResponseSent { since, .. } => Some(since),
            Handshake::Idle { .. } | Handshake::Confirmed { .. } => None,
        }
    }

    const fn gave_up(&self) -> Option<Instant> {
        match self.state {
            Handshake::Idle { gave_up } | Handshake::ResponseSent { gave_up, .. } => gave_up,
            Handshake::Initiated { .. } | Handshake::Confirmed { .. } => None,
        }
    }

    /// Where the last initiation went.
    pub(super) const fn target(&self) -> Option<Path> {
        self.target
    }

    /// Whether data on the session with this index changes nothing. Asked for each packet.
    pub(super) fn is_settled(&self, index: u32) -> bool {
        matches!(self.state, Handshake::Confirmed { session } if session.index == index) && !self.is_rejected
    }

    /// Whether an initiation goes out with the next tick because of a request.
    pub(super) const fn is_requested(&self) -> bool {
        self.is_requested
    }

    /// Whether a request would start something new: no handshake is in progress, requested, rejected or given up.
    pub(super) const fn may_be_requested(&self) -> bool {
        !self.is_requested && !self.is_rejected && self.initiated_since().is_none() && self.gave_up().is_none()
    }

    /// Whether this end initiates now, in addition to boringtun's repetitions. `state` is what was reported last.
    pub(super) fn is_due(&self, now: Instant, policy: &Policy, traffic: &Traffic, state: LinkState) -> bool {
        let is_past = |since: Option<Instant>, timeout| since.is_some_and(|since| elapsed(since, now) >= timeout);
        match self.state {
            _ if self.is_requested => true,
            Handshake::Initiated { retry_at, .. } => retry_at.is_some_and(|at| at <= now),
            Handshake::Idle { gave_up: Some(at) } | Handshake::ResponseSent { gave_up: Some(at), .. } => {
                policy.always_on && policy.initiator
                    || state == LinkState::Unreachable && elapsed(at, now) >= ATTEMPT_PAUSE
            }
            _ if self.is_rejected || !policy.always_on => false,
            Handshake::Idle { .. } | Handshake::ResponseSent { .. } | Handshake::Confirmed { .. } => {
                let response_sent = self.response_sent_at();
                let is_silent = traffic
                    .last_rx
                    .is_none_or(|at| elapsed(at, now) >= policy.silence_timeout());
                let is_unanswered =
                    policy.third_party && is_past(traffic.first_unanswered_tx, policy.unanswered_tx_timeout());
                traffic.can_seal && (is_silent || is_unanswered)
                    || is_past(response_sent, UNCONFIRMED_TIMEOUT)
                    || policy.initiator && !traffic.can_seal && response_sent.is_none()
            }
        }
    }

    /// The state to report, after `before`. `Unreachable` and `AuthenticationFailed` last until a handshake succeeds.
    /// The owner reports `NoEndpoint` in the place of `Idle` where it knows no endpoint.
    pub(super) fn link_state(&self, before: LinkState, now: Instant, policy: &Policy) -> LinkState {
        let (has_session, initiated) = (self.session().is_some(), self.initiated_since());
        let is_overdue = initiated.is_some_and(|since| elapsed(since, now) >= policy.unreachable_timeout());
        let is_recovered = has_session && initiated.is_none();
        if self.is_rejected {
            LinkState::AuthenticationFailed
        } else if is_overdue || before == LinkState::Unreachable && !is_recovered {
            LinkState::Unreachable
        } else if has_session {
            LinkState::Up
        } else if initiated.is_some() || self.response_sent_at().is_some() {
            LinkState::Connecting
        } else {
            LinkState::Idle
        }
    }
}

fn elapsed(since: Instant, now: Instant) -> Duration {
    now.saturating_duration_since(since)
}

#[cfg(test)]
mod tests;
