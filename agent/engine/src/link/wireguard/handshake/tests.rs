#![allow(clippy::disallowed_methods, reason = "the clock is the test's")]

use super::*;
use proptest::prelude::*;
use std::net::SocketAddr;

const OLD: u32 = 0x0102_0305;
const NEW: u32 = 0x0102_0306;

fn ms(number: u64) -> Duration {
    Duration::from_millis(number)
}

fn path(port: u16) -> Path {
    SocketAddr::from(([192, 0, 2, 1], port)).into()
}

/// A model of the state machine, in which each fact about the handshakes is an independent flag with its own rules. The
/// tests compare the state machine with this model.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Flags {
    initiated: Option<Instant>,
    retry_at: Option<Instant>,
    answered: Option<Instant>,
    gave_up: Option<Instant>,
    session: Option<Session>,
    attempts: usize,
    target: Option<Path>,
    is_requested: bool,
    is_rejected: bool,
}

impl Flags {
    fn of(handshakes: &Handshakes) -> Self {
        let retry_at = match handshakes.state {
            Handshake::Initiated { retry_at, .. } => retry_at,
            _ => None,
        };
        Self {
            initiated: handshakes.initiated_since(),
            retry_at,
            answered: handshakes.response_sent_at(),
            gave_up: handshakes.gave_up(),
            session: handshakes.session(),
            attempts: handshakes.attempts,
            target: handshakes.target,
            is_requested: handshakes.is_requested,
            is_rejected: handshakes.is_rejected,
        }
    }

    fn handle(&mut self, event: Event, now: Instant) -> Action {
        match event {
            Event::Requested => self.is_requested = true,
            Event::InitiationSent(to) => {
                (self.target, self.gave_up, self.is_requested) = (Some(to), None, false);
                self.initiated.get_or_insert(now);
                self.retry_at = RETRY_BACKOFF.get(self.attempts).map(|pause| now + *pause);
                self.attempts += 1;
            }
            Event::ResponseSent => {
                self.answered.get_or_insert(now);
                if self.initiated.is_some() {
                    self.retry_at = Some(now + UNCONFIRMED_TIMEOUT);
                }
            }
            Event::Rejected => (self.is_rejected, self.initiated, self.retry_at) = (true, None, None),
            Event::Proven(index) => {
                let ahead = |s: Session| (index as u8).wrapping_sub(s.index as u8);
                if self.session.is_none_or(|s| (1..128).contains(&ahead(s))) {
                    self.session = Some(Session { index, since: now });
                    (self.answered, self.is_rejected) = (None, false);
                }
                if !self.is_rejected {
                    (self.initiated, self.retry_at, self.gave_up, self.attempts) = (None, None, None, 0);
                }
            }
            Event::SessionLost => self.session = None,
            Event::Expired if self.gave_up.is_none() => {
                (self.initiated, self.retry_at, self.answered, self.session) = (None, None, None, None);
                (self.gave_up, self.attempts) = (Some(now), 0);
                return Action::DropWaiting;
            }
            Event::Expired => {}
            Event::Closed | Event::KeyChanged { .. } => {
                *self = Self {
                    is_requested: self.is_requested,
                    ..Self::of(&Handshakes::default())
                };
                if let Event::KeyChanged { request } = event {
                    self.is_requested = request;
                }
                return Action::DropWaiting;
            }
        }
        Action::None
    }

    fn is_due(&self, now: Instant, policy: &Policy, traffic: &Traffic, state: LinkState) -> bool {
        let past = |then: Option<Instant>, wait| then.is_some_and(|then| now.saturating_duration_since(then) >= wait);
        if self.is_requested || self.retry_at.is_some_and(|at| at <= now) {
            return true;
        }
        if self.gave_up.is_some() {
            let again = past(self.gave_up, ATTEMPT_PAUSE);
            return policy.always_on && policy.initiator || state == LinkState::Unreachable && again;
        }
        if self.initiated.is_some() || self.is_rejected || !policy.always_on {
            return false;
        }
        let silent = traffic.last_rx.is_none() || past(traffic.last_rx, policy.silence_timeout());
        let unanswered = policy.third_party && past(traffic.first_unanswered_tx, policy.unanswered_tx_timeout());
        traffic.can_seal && (silent || unanswered)
            || past(self.answered, UNCONFIRMED_TIMEOUT)
            || policy.initiator && !traffic.can_seal && self.answered.is_none()
    }
}

/// All states, with each combination of contents that makes a difference.
fn all_states(now: Instant) -> Vec<Handshakes> {
    let (at, session) = (
        Some(now - ms(100)),
        Some(Session {
            index: OLD,
            since: now - ms(200),
        }),
    );
    let mut states = Vec::new();
    for gave_up in [None, at] {
        states.push(Handshake::Idle { gave_up });
    }
    for session in [None, session] {
        for response_sent in [None, at] {
            for retry_at in [None, at, Some(now + ms(100))] {
                states.push(Handshake::Initiated {
                    since: now - ms(300),
                    retry_at,
                    response_sent,
                    session,
                });
            }
        }
    }
    for (gave_up, session) in [(None, None), (at, None), (None, session)] {
        states.push(Handshake::ResponseSent {
            since: now - ms(300),
            gave_up,
            session,
        });
    }
    states.extend(session.map(|session| Handshake::Confirmed { session }));
    let mut all = Vec::new();
    for state in states {
        for (is_requested, is_rejected, attempts) in
            [(false, false, 0), (true, false, 1), (false, true, 2), (true, true, 3)]
        {
            all.push(Handshakes {
                state,
                attempts,
                target: Some(path(1)),
                is_requested,
                is_rejected,
            });
        }
    }
    all
}

fn all_events() -> Vec<Event> {
    vec![
        Event::Requested,
        Event::InitiationSent(path(2)),
        Event::ResponseSent,
        Event::Rejected,
        Event::Proven(NEW),
        Event::Proven(OLD),
        Event::Proven(OLD - 1),
        Event::SessionLost,
        Event::Expired,
        Event::Closed,
        Event::KeyChanged { request: false },
        Event::KeyChanged { request: true },
    ]
}

fn all_policies() -> Vec<Policy> {
    let mut all = Vec::new();
    for (always_on, initiator) in [(false, false), (true, false), (true, true)] {
        for (third_party, dpd_timeout) in [(false, None), (true, None), (true, Some(Duration::from_secs(30)))] {
            all.push(Policy {
                always_on,
                initiator,
                third_party,
                dpd_timeout,
            });
        }
    }
    all
}

fn name(state: &Handshake) -> &'static str {
    match state {
        Handshake::Idle { .. } => "Idle",
        Handshake::Initiated { .. } => "Initiated",
        Handshake::ResponseSent { .. } => "ResponseSent",
        Handshake::Confirmed { .. } => "Confirmed",
    }
}

#[test]
fn every_event_in_every_state_has_the_effect_of_the_flags() {
    let now = Instant::now();
    for before in all_states(now) {
        for event in all_events() {
            let (mut after, mut flags) = (before.clone(), Flags::of(&before));
            let actions = (after.handle(event, now), flags.handle(event, now));
            assert_eq!(actions.0, actions.1, "{before:?} {event:?}");
            assert_eq!(Flags::of(&after), flags, "{before:?} {event:?}");
        }
    }
}

/// Each cell of the table in the documentation of `handshake` is true.
#[test]
fn every_event_leads_to_the_documented_state() {
    let now = Instant::now();
    let session = Session { index: OLD, since: now };
    let states = [
        Handshake::Idle { gave_up: None },
        Handshake::Initiated {
            since: now,
            retry_at: None,
            response_sent: None,
            session: None,
        },
        Handshake::ResponseSent {
            since: now,
            gave_up: None,
            session: Some(session),
        },
        Handshake::Confirmed { session },
    ];
    for (event, expected) in [
        (Event::InitiationSent(path(1)), ["Initiated"; 4]),
        (
            Event::ResponseSent,
            ["ResponseSent", "Initiated", "ResponseSent", "ResponseSent"],
        ),
        (Event::Proven(NEW), ["Confirmed"; 4]),
        (Event::Rejected, ["Idle", "Idle", "ResponseSent", "Confirmed"]),
        (Event::SessionLost, ["Idle", "Initiated", "ResponseSent", "Idle"]),
        (Event::Expired, ["Idle"; 4]),
        (Event::Closed, ["Idle"; 4]),
        (Event::KeyChanged { request: true }, ["Idle"; 4]),
        (Event::Requested, ["Idle", "Initiated", "ResponseSent", "Confirmed"]),
    ] {
        for (state, expected) in states.iter().zip(expected) {
            let mut handshakes = Handshakes {
                state: *state,
                ..Handshakes::default()
            };
            handshakes.handle(event, now);
            assert_eq!(name(&handshakes.state), expected, "{event:?} in {}", name(state));
        }
    }
}

/// If the peer rejects or ignores a handshake that renews a session, the earlier session stays usable.
#[test]
fn a_session_survives_its_renewal() {
    let now = Instant::now();
    for (event, is_rejected) in [(Event::Rejected, true), (Event::Proven(OLD), false)] {
        let mut handshakes = Handshakes::default();
        handshakes.handle(Event::Proven(OLD), now);
        handshakes.handle(Event::InitiationSent(path(1)), now);
        assert!(!handshakes.is_settled(OLD));
        handshakes.handle(event, now);
        assert_eq!(handshakes.session().map(|s| s.index), Some(OLD));
        assert_eq!(
            (handshakes.initiated_since(), handshakes.is_rejected),
            (None, is_rejected)
        );
        assert_eq!(handshakes.is_settled(OLD), !is_rejected);
        // After a rejection, data on the earlier session does not end the next handshake, which may establish a new
        // session.
        handshakes.handle(Event::InitiationSent(path(1)), now);
        handshakes.handle(Event::Proven(OLD), now);
        assert_eq!(handshakes.initiated_since().is_some(), is_rejected);
        handshakes.handle(Event::Proven(NEW), now);
        assert!(handshakes.is_settled(NEW) && !handshakes.is_rejected);
    }
}

/// `Unreachable` and `AuthenticationFailed` stay until a handshake succeeds.
#[test]
fn failures_are_reported_until_a_handshake_succeeds() {
    let (now, policy) = (Instant::now(), all_policies()[0]);
    let mut handshakes = Handshakes::default();
    handshakes.handle(Event::InitiationSent(path(1)), now);
    let state = |handshakes: &Handshakes, before, at| handshakes.link_state(before, at, &policy);
    assert_eq!(
        state(&handshakes, LinkState::Idle, now + ms(9_999)),
        LinkState::Connecting
    );
    let late = now + ms(10_000);
    assert_eq!(state(&handshakes, LinkState::Connecting, late), LinkState::Unreachable);
    handshakes.handle(Event::Expired, late);
    assert_eq!(state(&handshakes, LinkState::Unreachable, late), LinkState::Unreachable);
    handshakes.handle(Event::ResponseSent, late);
    assert_eq!(state(&handshakes, LinkState::Unreachable, late), LinkState::Unreachable);
    handshakes.handle(Event::Proven(NEW), late);
    assert_eq!(state(&handshakes, LinkState::Unreachable, late), LinkState::Up);
    handshakes.handle(Event::Rejected, late);
    assert_eq!(state(&handshakes, LinkState::Up, late), LinkState::AuthenticationFailed);
    handshakes.handle(Event::InitiationSent(path(1)), late);
    assert_eq!(
        state(&handshakes, LinkState::AuthenticationFailed, late),
        LinkState::AuthenticationFailed
    );
}

#[test]
fn initiations_are_repeated_three_times_beside_boringtuns_own() {
    let mut now = Instant::now();
    let (policy, traffic) = (all_policies()[0], Traffic::default());
    let mut handshakes = Handshakes::default();
    assert!(!handshakes.is_due(now, &policy, &traffic, LinkState::Idle));
    handshakes.handle(Event::Requested, now);
    let (begin, mut sent) = (now, Vec::new());
    while now < begin + ms(5000) {
        if handshakes.is_due(now, &policy, &traffic, LinkState::Idle) {
            sent.push((now - begin).as_millis());
            handshakes.handle(Event::InitiationSent(path(1)), now);
        }
        now += ms(200);
    }
    assert_eq!(sent, [0, 400, 1200, 2800]);
}

proptest! {
    /// After any sequence of events, with any time between them, the state machine and the model ([`Flags`]) agree.
    #[test]
    fn any_sequence_of_events_has_the_effect_of_the_flags(
        steps in proptest::collection::vec((0..all_events().len(), 0u64..20_000), 1..60),
        policy in proptest::sample::select(all_policies()),
        traffic in (any::<bool>(), proptest::option::of(0u64..20_000), proptest::option::of(0u64..20_000)),
    ) {
        let begin = Instant::now();
        let (mut now, mut state) = (begin, LinkState::Idle);
        let (mut handshakes, events) = (Handshakes::default(), all_events());
        let mut flags = Flags::of(&handshakes);
        let traffic = Traffic {
            can_seal: traffic.0,
            last_rx: traffic.1.map(|at| begin + ms(at)),
            first_unanswered_tx: traffic.2.map(|at| begin + ms(at)),
        };
        for (event, wait) in steps {
            now += ms(wait);
            prop_assert_eq!(handshakes.handle(events[event], now), flags.handle(events[event], now));
            prop_assert_eq!(&Flags::of(&handshakes), &flags);
            prop_assert_eq!(
                handshakes.is_due(now, &policy, &traffic, state),
                flags.is_due(now, &policy, &traffic, state)
            );
            state = handshakes.link_state(state, now, &policy);
            prop_assert_eq!(state == LinkState::AuthenticationFailed, flags.is_rejected);
            prop_assert!(state != LinkState::Up || flags.session.is_some());
            if let Handshake::Confirmed { session } = handshakes.state {
                prop_assert_eq!(handshakes.is_settled(session.index), !flags.is_rejected);
            }
        }
    }
}
