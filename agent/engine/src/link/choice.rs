//! Chooses the transport of a link, as a pure state machine (D6).
//!
//! ```text
//!               silence or loss on WireGuard, and QUIC is up
//!   WireGuard ───────────────────────────────────────────────────▶ QUIC
//!       ▲                                                            │
//!       └────────────────────────────────────────────────────────────┘
//!          WireGuard has answered for 3 s, or QUIC is gone
//! ```
//! Each end of a link decides only about the packets that it sends, and receives over both transports at any time. An
//! end whose peer sends over QUIC also sends over QUIC, and returns to WireGuard after the peer has returned.

use super::transport::SessionState;
use std::time::{Duration, Instant};
use tombolo_proto::status::Carrier;

/// If a WireGuard handshake has had no answer for this long, the link tries QUIC. The time is enough for the first
/// repetition of the handshake, which is sent after 400 ms, and for the answer to this repetition.
const UNANSWERED_TIMEOUT: Duration = Duration::from_millis(800);

/// WireGuard counts as rate-limited by the network if at least `MAX_LOSS` (a quarter) of the echoes over it is lost,
/// among at least `MIN_LOSS_SAMPLES` echoes. At the default interval of 100 ms, 20 echoes are sent in 2 s.
const MAX_LOSS: f64 = 0.25;
const MIN_LOSS_SAMPLES: u32 = 20;

/// A link returns to WireGuard when at least `MIN_ANSWERS` echoes over WireGuard were answered since its last silence,
/// and these answers span at least `MIN_ANSWERING`. By default, a link that is down comes up again under the same
/// conditions (D19).
const MIN_ANSWERS: u32 = 10;
const MIN_ANSWERING: Duration = Duration::from_secs(3);

/// Least time for which a link stays on QUIC after WireGuard was rate-limited. A policer (rate limiter) in the network
/// lets the first packets of a flow pass, so WireGuard would seem to work for a moment after each return to it.
const RATE_LIMITED_HOLD: Duration = Duration::from_secs(60);

/// First and longest pause between attempts to connect over QUIC. The pause doubles with each failed attempt.
const MIN_CONNECT_BACKOFF: Duration = Duration::from_secs(2);
const MAX_CONNECT_BACKOFF: Duration = Duration::from_secs(30);

/// Time after this end's return to WireGuard during which it does not follow a peer that still sends over QUIC. The
/// peer needs this time, because it returns only after its own [`MIN_ANSWERING`]. A peer that still sends over QUIC
/// afterwards probably has a path on which WireGuard does not work.
const RETURN_GRACE: Duration = Duration::from_secs(6);

/// Time for which an unused QUIC connection is kept, because WireGuard may fail again soon.
const STANDBY_TIMEOUT: Duration = Duration::from_secs(20);

/// The condition of one transport of a link.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct TransportHealth {
    /// The state of its session.
    pub(super) session: SessionState,
    /// The length of the peer's silence over this transport; `None`: the peer is not silent, by the definition of
    /// [`Liveness::silent`](super::liveness::Liveness::silent).
    pub(super) silent: Option<Duration>,
    /// The time at which something was last received over this transport.
    pub(super) last_rx: Option<Instant>,
    /// Number of echoes over this transport that were answered since the last silence, and the time of the first of
    /// these answers.
    pub(super) answers: Option<(u32, Instant)>,
    /// Share of the echoes over this transport that were lost, from 0 to 1, and the number of echoes from which this
    /// share is computed.
    pub(super) loss: Option<(f64, u32)>,
    /// Whether the peer sends its packets over this transport.
    pub(super) used_by_peer: bool,
}

/// The next action of the owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Open a QUIC connection to the peer.
    Connect,
    /// Close the QUIC connections of the link.
    Disconnect,
    /// Send over this transport from now on. The text is the reason.
    Switch(Carrier, String),
}

/// The state of the choice of one link.
#[derive(Debug, Clone)]
pub(super) struct Choice {
    current: Carrier,
    /// QUIC is used only because the peer uses it.
    follows: bool,
    /// Time before which WireGuard is not used again; `None`: it may be used at any time.
    return_not_before: Option<Instant>,
    /// Time at which this end returned to WireGuard; `None` while it uses QUIC.
    returned_at: Option<Instant>,
    /// Time before which no attempt to connect is made.
    next_attempt: Option<Instant>,
    /// The pause after the next attempt to connect.
    backoff: Duration,
    /// Time since which QUIC has a session and is not needed.
    standby_since: Option<Instant>,
}

impl Default for Choice {
    fn default() -> Self {
        Self {
            current: Carrier::WireGuard,
            follows: false,
            return_not_before: None,
            returned_at: None,
            next_attempt: None,
            backoff: MIN_CONNECT_BACKOFF,
            standby_since: None,
        }
    }
}

impl TransportHealth {
    /// Whether the transport has a session, so that packets can be sent over it.
    pub(super) fn is_up(&self) -> bool {
        self.session == SessionState::Up
    }
}

impl Choice {
    /// The transport over which the link's packets are sent.
    pub(super) fn current(&self) -> Carrier {
        self.current
    }

    /// Returns the next action for the present condition of both transports; `None`: nothing is to be done. When
    /// `Switch` is returned, [`current`](Self::current) is already the new transport. The owner calls this method every
    /// 50 ms.
    pub(super) fn step(&mut self, now: Instant, wireguard: TransportHealth, quic: TransportHealth) -> Option<Step> {
        match self.current {
            Carrier::WireGuard => self.step_from_wireguard(now, wireguard, quic),
            Carrier::Quic => self.step_from_quic(now, wireguard, quic),
        }
    }

    fn step_from_wireguard(&mut self, now: Instant, wireguard: TransportHealth, quic: TransportHealth) -> Option<Step> {
        let Some((trouble, is_rate_limited)) = trouble(now, wireguard) else {
            let is_recent = |at| now.saturating_duration_since(at) < RETURN_GRACE;
            if quic.is_up() && quic.used_by_peer && !self.returned_at.is_some_and(is_recent) {
                self.follows = true;
                return Some(self.switch(now, Carrier::Quic, "the other end uses QUIC".into()));
            }
            return self.retire_quic(now, quic);
        };
        self.standby_since = None;
        if !quic.is_up() || quic.silent.is_some() {
            return self.connect(now, quic);
        }
        // If nothing has come over QUIC either since WireGuard became silent, the path itself may be cut, and a switch
        // to QUIC would not help.
        let silent_since = wireguard.silent.and_then(|silence| now.checked_sub(silence));
        if quic
            .last_rx
            .zip(silent_since)
            .is_some_and(|(last_rx, since)| last_rx < since)
        {
            return None;
        }
        self.follows = false;
        self.return_not_before = is_rate_limited.then_some(now + RATE_LIMITED_HOLD);
        Some(self.switch(now, Carrier::Quic, trouble))
    }

    fn step_from_quic(&mut self, now: Instant, wireguard: TransportHealth, quic: TransportHealth) -> Option<Step> {
        let has_answered = |min_count, min_time| {
            let is_enough = |(count, since)| count >= min_count && now.saturating_duration_since(since) >= min_time;
            wireguard.is_up() && wireguard.answers.is_some_and(is_enough)
        };
        if !quic.is_up() && has_answered(1, Duration::ZERO) {
            return Some(self.switch(now, Carrier::WireGuard, "the QUIC connection is gone".into()));
        }
        if let Some(silence) = quic.silent.filter(|_| has_answered(1, Duration::ZERO)) {
            let reason = format!("nothing received over QUIC for {} ms", silence.as_millis());
            return Some(self.switch(now, Carrier::WireGuard, reason));
        }
        if self.follows && quic.is_up() && quic.used_by_peer {
            return None;
        }
        let may_return = self.return_not_before.is_none_or(|at| at <= now);
        if may_return && has_answered(MIN_ANSWERS, MIN_ANSWERING) {
            return Some(self.switch(now, Carrier::WireGuard, "WireGuard works again".into()));
        }
        if quic.is_up() { None } else { self.connect(now, quic) }
    }

    /// Ends the attempts to connect over QUIC. Returns `Disconnect` if a QUIC connection was not needed for
    /// [`STANDBY_TIMEOUT`].
    fn retire_quic(&mut self, now: Instant, quic: TransportHealth) -> Option<Step> {
        (self.next_attempt, self.backoff) = (None, MIN_CONNECT_BACKOFF);
        if quic.session == SessionState::Down {
            self.standby_since = None;
            return None;
        }
        let since = *self.standby_since.get_or_insert(now);
        (now.saturating_duration_since(since) >= STANDBY_TIMEOUT).then(|| {
            self.standby_since = None;
            Step::Disconnect
        })
    }

    fn connect(&mut self, now: Instant, quic: TransportHealth) -> Option<Step> {
        let is_connecting = matches!(quic.session, SessionState::Connecting { .. });
        if is_connecting || self.next_attempt.is_some_and(|at| now < at) {
            return None;
        }
        self.next_attempt = Some(now + self.backoff);
        self.backoff = (2 * self.backoff).min(MAX_CONNECT_BACKOFF);
        Some(Step::Connect)
    }

    fn switch(&mut self, now: Instant, to: Carrier, reason: String) -> Step {
        self.current = to;
        self.returned_at = (to == Carrier::WireGuard).then_some(now);
        self.standby_since = None;
        (self.next_attempt, self.backoff) = (None, MIN_CONNECT_BACKOFF);
        Step::Switch(to, reason)
    }
}

/// Why WireGuard is not good enough. The flag is true if WireGuard loses too many echoes, and false if it does not
/// answer at all. `None`: WireGuard works, or it is too early to say.
fn trouble(now: Instant, wireguard: TransportHealth) -> Option<(String, bool)> {
    if !wireguard.is_up() {
        let SessionState::Connecting { since: Some(since) } = wireguard.session else {
            return None;
        };
        let waited = now.saturating_duration_since(since);
        let reason = || {
            format!(
                "WireGuard's handshake has not been answered for {} ms",
                waited.as_millis()
            )
        };
        return (waited >= UNANSWERED_TIMEOUT).then(|| (reason(), false));
    }
    if let Some(silence) = wireguard.silent {
        let reason = format!("nothing received over WireGuard for {} ms", silence.as_millis());
        return Some((reason, false));
    }
    let is_lossy = |(share, samples): &(f64, u32)| *share >= MAX_LOSS && *samples >= MIN_LOSS_SAMPLES;
    let (share, samples) = wireguard.loss.filter(is_lossy)?;
    Some((
        format!("WireGuard loses {:.0} % of {samples} echoes", share * 100.0),
        true,
    ))
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the clock is the test's")]
mod tests {
    use super::*;

    const UP: TransportHealth = TransportHealth {
        session: SessionState::Up,
        silent: None,
        last_rx: None,
        answers: None,
        loss: None,
        used_by_peer: false,
    };
    const GONE: TransportHealth = TransportHealth {
        session: SessionState::Down,
        ..UP
    };

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn blocked_from_the_start() {
        let begin = Instant::now();
        let mut choice = Choice::default();
        let asking = TransportHealth {
            session: SessionState::Connecting { since: Some(begin) },
            ..GONE
        };
        assert_eq!(choice.step(begin + ms(700), asking, GONE), None);
        assert_eq!(choice.step(begin + ms(800), asking, GONE), Some(Step::Connect));
        let connecting = TransportHealth {
            session: SessionState::Connecting {
                since: Some(begin + ms(800)),
            },
            ..GONE
        };
        assert_eq!(choice.step(begin + ms(850), asking, connecting), None);
        let step = choice.step(begin + ms(900), asking, UP);
        assert!(matches!(step, Some(Step::Switch(Carrier::Quic, reason)) if reason.contains("900 ms")));
    }

    #[test]
    fn back_when_wireguard_has_answered_for_a_while() {
        let now = Instant::now();
        let mut choice = Choice::default();
        let silent = TransportHealth {
            silent: Some(ms(350)),
            ..UP
        };
        assert!(matches!(
            choice.step(now, silent, UP),
            Some(Step::Switch(Carrier::Quic, _))
        ));
        let answering = |n, since| TransportHealth {
            answers: Some((n, since)),
            ..UP
        };
        assert_eq!(choice.step(now + ms(2900), answering(29, now), UP), None);
        assert_eq!(choice.step(now + ms(3000), answering(9, now), UP), None);
        let back = choice.step(now + ms(3000), answering(30, now), UP);
        assert_eq!(
            back,
            Some(Step::Switch(Carrier::WireGuard, "WireGuard works again".into()))
        );
        assert_eq!(choice.step(now + ms(4000), UP, UP), None);
        assert_eq!(
            choice.step(now + ms(24_000), UP, UP),
            Some(Step::Disconnect),
            "not needed"
        );
    }

    #[test]
    fn a_connection_that_is_as_silent_is_no_way_out() {
        let now = Instant::now();
        let silent = TransportHealth {
            silent: Some(ms(350)),
            ..UP
        };
        let heard = |ago| TransportHealth {
            last_rx: Some(now - ms(ago)),
            ..UP
        };
        assert_eq!(Choice::default().step(now, silent, heard(380)), None);
        assert!(Choice::default().step(now, silent, heard(100)).is_some());
    }

    #[test]
    fn what_is_shaped_is_left_for_longer() {
        let now = Instant::now();
        let mut choice = Choice::default();
        let lossy = TransportHealth {
            loss: Some((0.3, 40)),
            ..UP
        };
        let step = choice.step(now, lossy, UP);
        assert!(matches!(step, Some(Step::Switch(Carrier::Quic, reason)) if reason.contains("30 %")));
        let fine = TransportHealth {
            answers: Some((100, now)),
            ..UP
        };
        assert_eq!(choice.step(now + ms(10_000), fine, UP), None);
        assert!(choice.step(now + ms(60_000), fine, UP).is_some());
    }

    #[test]
    fn one_end_follows_the_other() {
        let now = Instant::now();
        let mut choice = Choice::default();
        let used = TransportHealth {
            used_by_peer: true,
            ..UP
        };
        assert!(matches!(
            choice.step(now, UP, used),
            Some(Step::Switch(Carrier::Quic, _))
        ));
        let fine = TransportHealth {
            answers: Some((100, now)),
            ..UP
        };
        assert_eq!(
            choice.step(now + ms(9000), fine, used),
            None,
            "as long as the other end does"
        );
        let back = choice.step(now + ms(9100), fine, UP);
        assert!(matches!(back, Some(Step::Switch(Carrier::WireGuard, _))));
    }

    /// Both ends detect at about the same time that WireGuard works again. The first end that returns does not follow
    /// the other end, which still uses QUIC for a moment.
    #[test]
    fn two_ends_that_go_back_do_not_chase_each_other() {
        let begin = Instant::now();
        let mut ends = [Choice::default(), Choice::default()];
        let silent = TransportHealth {
            silent: Some(ms(350)),
            ..UP
        };
        for end in &mut ends {
            end.step(begin, silent, UP);
        }
        let mut switches = 0;
        for n in 1..400u64 {
            let now = begin + ms(50 * n);
            // The second end got its first answer 700 ms after the first end.
            for (i, lag) in [(0, 0), (1, 700)] {
                let other = ends[1 - i].current();
                let wireguard = TransportHealth {
                    answers: Some((n as u32, begin + ms(lag))),
                    ..UP
                };
                let quic = TransportHealth {
                    used_by_peer: other == Carrier::Quic,
                    ..UP
                };
                let step = ends[i].step(now, wireguard, quic);
                switches += usize::from(matches!(step, Some(Step::Switch(..))));
            }
        }
        assert_eq!(switches, 2);
        assert!(ends.iter().all(|end| end.current() == Carrier::WireGuard));
    }

    #[test]
    fn a_peer_that_is_simply_gone_is_asked_more_and_more_rarely() {
        let begin = Instant::now();
        let mut choice = Choice::default();
        let asking = TransportHealth {
            session: SessionState::Connecting { since: Some(begin) },
            ..GONE
        };
        let steps = (1..1200).filter(|i| choice.step(begin + ms(100 * i), asking, GONE).is_some());
        assert_eq!(
            steps.count(),
            7,
            "in two minutes: waits of 2, 4, 8, 16, and 30 seconds each"
        );
        assert_eq!(choice.current(), Carrier::WireGuard);
    }

    #[test]
    fn a_dead_connection_gives_way_to_what_answers() {
        let now = Instant::now();
        let silent = TransportHealth {
            silent: Some(ms(350)),
            ..UP
        };
        for quic in [GONE, silent] {
            let mut choice = Choice::default();
            choice.step(now, silent, UP);
            let answering = TransportHealth {
                answers: Some((1, now)),
                ..UP
            };
            let step = choice.step(now + ms(100), answering, quic);
            assert!(matches!(step, Some(Step::Switch(Carrier::WireGuard, _))), "{quic:?}");
        }
    }
}
