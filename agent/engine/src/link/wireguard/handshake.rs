//! The handshakes of one WireGuard peer, as a pure state machine. boringtun does the cryptography and runs its own
//! timers; the results of its calls are the events of this machine.
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
//! 1. The state remembers that this end responded. If the session of this response is not confirmed by data, this end
//!    initiates again after [`UNCONFIRMED_TIMEOUT`].
//! 2. The renewal ends, and the earlier session stays: the new state is `ResponseSent` if this end has responded
//!    meanwhile, otherwise `Confirmed` or `Idle`. If the peer has rejected a handshake, data on an older session proves
//!    nothing about the new keys, so the handshake in progress continues.
//! 3. If boringtun had given up a handshake before this end responded, nothing changes: boringtun repeats the report of
//!    that failure with each tick.
//!
//! The peer's initiation proves nothing, because it may be a replay. An authentic response, or authentic data, proves
//! that the peer holds the keys (D18).

use crate::buffer::Path;
use std::time::{Duration, Instant};
use tombolo_proto::config::Link;
use tombolo_proto::status::LinkState;

/// Pauses before the first repetitions of an unanswered initiation. The pauses are short because the first initiation
/// may have come too early: the peer's agent may receive the configuration with this link only a moment later.
/// boringtun sends the later repetitions, one every 5 s (the protocol's `REKEY_TIMEOUT`).
const RETRY_BACKOFF: [Duration; 3] = [
    Duration::from_millis(400),
    Duration::from_millis(800),
    Duration::from_millis(1600),
];

/// Pause after boringtun has given up (after 90 s, the protocol's `REKEY_ATTEMPT_TIME`) until the next attempt with a
/// peer that is reported as unreachable. The initiator of an `always_on` link tries again at once instead.
const ATTEMPT_PAUSE: Duration = Duration::from_secs(30);

/// Time to wait for data on a session after this end responded to the peer's initiation. If none has come by then, and
/// the link is `always_on` or this end's own handshake was in progress, the peer is taken to have rejected the
/// response. This end then initiates a handshake itself, and the peer's response shows the cause.
const UNCONFIRMED_TIMEOUT: Duration = Duration::from_secs(2);

/// Age of an unanswered initiation from which the peer counts as unreachable: twice the protocol's `REKEY_TIMEOUT`.
const UNREACHABLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Silence of the peer on an `always_on` link after which the [initiator](Policy::initiator) starts a handshake. The
/// peer sends a keepalive every 5 s, so at least two keepalives were lost or not sent.
pub(super) const SILENCE_TIMEOUT: Duration = Duration::from_secs(12);

/// Silence after which the other end, the responder, starts a handshake. This time is longer than [`SILENCE_TIMEOUT`]
/// by one interval of keepalives, so that the two ends do not start at the same time.
const RESPONDER_SILENCE_TIMEOUT: Duration = Duration::from_secs(17);

/// If a third-party device has sent nothing for this time after a packet to it, this end initiates a handshake to see
/// whether the device answers (D19). Echoes would not show that, because the device does not answer messages of agents.
const THIRD_PARTY_SILENCE_TIMEOUT: Duration = Duration::from_secs(3);

/// If the handshake with a third-party device is unanswered for this time, the device counts as unreachable. Together
/// with [`THIRD_PARTY_SILENCE_TIMEOUT`] this takes six seconds.
const THIRD_PARTY_UNREACHABLE_TIMEOUT: Duration = Duration::from_secs(3);

/// A session whose keys the peer has proven to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Session {
    /// The receiver index of this end. boringtun increments the index's lowest byte with each session.
    pub(super) index: u32,
    /// Time at which the peer proved to hold the keys.
    pub(super) since: Instant,
}

impl Session {
    /// Whether the session with `index` is newer than this one. The session before this one, whose data may arrive
    /// late, is not newer. The comparison allows for the byte's wrap.
    fn is_before(self, index: u32) -> bool {
        (1..128).contains(&(index as u8).wrapping_sub(self.index as u8))
    }
}

/// The state of the handshakes with a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Handshake {
    /// There is neither a session nor a handshake.
    Idle {
        /// Time at which boringtun gave up the last handshake; `None`: the last handshake or session ended in another
        /// way, or there was none.
        gave_up: Option<Instant>,
    },
    /// This end sent an initiation, and has received no datagram since then that proves that the peer holds the keys.
    Initiated {
        /// Time of the first unanswered initiation.
        since: Instant,
        /// Time at which this module repeats the initiation, in addition to boringtun's repetitions; `None`: only
        /// boringtun repeats it.
        retry_at: Option<Instant>,
        /// Time at which this end responded to an initiation of the peer while its own handshake was in progress or
        /// just before; `None`: it has not responded.
        response_sent: Option<Instant>,
        /// The earlier session, which stays in use while this handshake renews it.
        session: Option<Session>,
    },
    /// This end responded to an initiation of the peer. Data on the new session will confirm that session.
    ResponseSent {
        /// Time of the first of these responses.
        since: Instant,
        /// Time at which boringtun, before this response, gave up a handshake of this end; `None`: it had not given up.
        gave_up: Option<Instant>,
        /// The earlier session, which stays in use until the new one is confirmed.
        session: Option<Session>,
    },
    /// The peer has proven that it holds the session's keys, and no handshake is in progress.
    Confirmed {
        /// The newest session whose keys the peer has proven to hold.
        session: Session,
    },
}

impl Handshake {
    /// The state that follows when a handshake that this end initiated ends without a new session.
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

/// An event that may change the state of the handshakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// A session is needed. An initiation is sent with the next tick.
    Requested,
    /// An initiation was sent on this path.
    InitiationSent(Path),
    /// This end responded to an initiation that contains the peer's key.
    ResponseSent,
    /// The peer's response does not verify, because the peer has another preshared key.
    Rejected,
    /// The peer has proven that it holds the keys of the session with this index.
    Proven(u32),
    /// boringtun has no session to encrypt with.
    SessionLost,
    /// boringtun gave up a handshake, or dropped sessions that were not renewed.
    Expired,
    /// The owner dropped boringtun's state.
    Closed,
    /// The owner dropped boringtun's state because a key changed. `request` replaces an earlier request.
    KeyChanged {
        /// Whether an initiation is sent with the next tick.
        request: bool,
    },
}

/// The action that the owner must take after an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// No action is necessary for this event.
    None,
    /// Drop the packets that wait for a session.
    DropWaiting,
}

/// The settings of a peer's link that handshakes depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Policy {
    /// Whether the session is kept up without traffic.
    pub(super) always_on: bool,
    /// Whether this end initiates the handshakes. On an `always_on` link between agents, this is true at exactly one
    /// end.
    pub(super) initiator: bool,
    /// Whether the peer is a third-party device (D16).
    pub(super) third_party: bool,
    /// Configured time from the first unanswered packet until the link is down; `None`: the default applies.
    pub(super) dpd_timeout: Option<Duration>,
}

impl Policy {
    /// The settings in the configuration of a link.
    pub(super) fn of(link: &Link) -> Self {
        Self {
            always_on: link.always_on,
            initiator: link.initiator,
            third_party: link.third_party,
            dpd_timeout: link.dpd_timeout.map(|seconds| Duration::from_secs(seconds.into())),
        }
    }

    /// Time without an answer from a third-party device after which this end initiates a handshake: a third of
    /// `dpd_timeout` or, if that is not configured, [`THIRD_PARTY_SILENCE_TIMEOUT`].
    fn unanswered_tx_timeout(&self) -> Duration {
        self.dpd_timeout.map_or(THIRD_PARTY_SILENCE_TIMEOUT, |total| total / 3)
    }

    /// Age of an unanswered initiation from which the peer is unreachable: the other two thirds of `dpd_timeout`, or a
    /// constant if that is not configured.
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

/// The facts about the traffic with the peer on which handshakes depend.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    /// Whether boringtun has a session with which it can encrypt, confirmed or not.
    pub(super) can_seal: bool,
    /// Time at which the last authentic datagram was received.
    pub(super) last_rx: Option<Instant>,
    /// Time of the first packet to the peer since the peer last sent something.
    pub(super) first_unanswered_tx: Option<Instant>,
}

/// The state machine of the handshakes with one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Handshakes {
    state: Handshake,
    /// Number of initiations since the last success, or since boringtun gave up. It selects the next pause of
    /// [`RETRY_BACKOFF`].
    attempts: usize,
    /// The path of the last initiation. Only a response from this path counts as a rejection, because responses from
    /// elsewhere may be forged.
    target: Option<Path>,
    /// Whether an initiation is sent with the next tick.
    is_requested: bool,
    /// Whether the peer has rejected a handshake by a response with another preshared key, and no newer session has
    /// been confirmed since.
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
    /// Handles an event, and returns the action that the owner must take.
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
            // boringtun reports `Expired` with each tick until the next handshake, so only the first report counts.
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
            // In boringtun, sending the response has ended the handshake that this end had initiated. So, if no data
            // comes on the session of the response, this end must initiate again.
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

    /// Ends a handshake that this end initiated. The earlier session stays.
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

    /// The newest session whose keys the peer has proven to hold; it is also returned while it is being renewed.
    /// `None`: there is no such session.
    pub(super) const fn session(&self) -> Option<Session> {
        match self.state {
            Handshake::Idle { .. } => None,
            Handshake::Initiated { session, .. } | Handshake::ResponseSent { session, .. } => session,
            Handshake::Confirmed { session } => Some(session),
        }
    }

    /// Time of the first unanswered initiation; `None`: no handshake of this end is in progress.
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

    /// The path of the last initiation; `None`: no initiation was sent since the state was dropped.
    pub(super) const fn target(&self) -> Option<Path> {
        self.target
    }

    /// Whether the state stays as it is when data on the session with this index arrives. Called for each packet, so it
    /// must be cheap.
    pub(super) fn is_settled(&self, index: u32) -> bool {
        matches!(self.state, Handshake::Confirmed { session } if session.index == index) && !self.is_rejected
    }

    /// Whether the next tick sends an initiation because one was requested.
    pub(super) const fn is_requested(&self) -> bool {
        self.is_requested
    }

    /// Whether [`Event::Requested`] would have an effect: no handshake is requested or in progress, the last one was
    /// not rejected, and boringtun has not given it up.
    pub(super) const fn may_be_requested(&self) -> bool {
        !self.is_requested && !self.is_rejected && self.initiated_since().is_none() && self.gave_up().is_none()
    }

    /// Whether this end initiates a handshake now, in addition to boringtun's repetitions. `state` is the state that
    /// was reported last.
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

    /// The state of the link that must be reported now; `before` is the state that was reported last. `Unreachable` and
    /// `AuthenticationFailed` last until a handshake succeeds. If the result is `Idle` and no endpoint is known, the
    /// owner reports `NoEndpoint` instead.
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
