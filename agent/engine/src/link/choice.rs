//! Which transport a link uses: a pure state machine (D6).
//!
//! ```text
//!               nothing heard, or too much lost, and QUIC is up
//!   WireGuard ───────────────────────────────────────────────────▶ QUIC
//!       ▲                                                            │
//!       └────────────────────────────────────────────────────────────┘
//!          WireGuard has answered for a while, or QUIC is gone
//! ```
//! Each end decides for what it sends; both transports are always heard. An end whose peer sends over QUIC follows it, and
//! goes back when the peer has.

use super::transport::SessionState;
use std::time::{Duration, Instant};
use tombolo_proto::status::Carrier;

/// A WireGuard handshake unanswered for so long is a reason to try QUIC.
const UNANSWERED: Duration = Duration::from_millis(800);

/// Share of echoes lost above which WireGuard counts as shaped, and of how many at least.
const LOSS: f64 = 0.25;
const OF: u32 = 20;

/// WireGuard must have answered so many echoes, for so long, before it is used again (D19).
const ANSWERS: u32 = 10;
const ANSWERING: Duration = Duration::from_secs(3);

/// After a change because of loss: what polices a flow lets it begin again each time.
const SHAPED: Duration = Duration::from_secs(60);

/// Waits between attempts to connect that came to nothing.
const FIRST_WAIT: Duration = Duration::from_secs(2);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// After going back to WireGuard the other end is not followed for so long: it finds out by itself, a little later, that
/// WireGuard works again. Only if it does not, the way back must be closed for it.
const ALONE: Duration = Duration::from_secs(6);

/// A connection that is not needed is kept for so long: the trouble may come back.
const SPARE: Duration = Duration::from_secs(20);

/// What is known of one transport.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Side {
    /// Its session.
    pub(super) session: SessionState,
    /// How long nothing has been heard, if it is too long.
    pub(super) silent: Option<Duration>,
    /// When anything was heard last, if ever.
    pub(super) heard: Option<Instant>,
    /// Echoes in a row that were answered, and since when.
    pub(super) answers: Option<(u32, Instant)>,
    /// Share of echoes lost, and of how many.
    pub(super) loss: Option<(f64, u32)>,
    /// The other end's packets come this way.
    pub(super) used: bool,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Open a QUIC connection.
    Connect,
    /// Close it.
    Disconnect,
    /// Use the other transport, for this reason.
    Switch(Carrier, String),
}

/// The state of one link's choice.
#[derive(Debug, Clone)]
pub(super) struct Choice {
    current: Carrier,
    /// QUIC is used because the other end does.
    followed: bool,
    /// WireGuard is not used again before.
    not_before: Option<Instant>,
    /// When WireGuard was taken up again.
    back: Option<Instant>,
    /// No attempt to connect before; and the wait after it.
    attempt: Option<Instant>,
    wait: Duration,
    /// Since when QUIC is up and not needed.
    spare: Option<Instant>,
}

impl Default for Choice {
    fn default() -> Self {
        Self {
            current: Carrier::WireGuard,
            followed: false,
            not_before: None,
            back: None,
            attempt: None,
            wait: FIRST_WAIT,
            spare: None,
        }
    }
}

impl Side {
    /// Whether packets can go.
    pub(super) fn is_up(&self) -> bool {
        self.session == SessionState::Up
    }
}

impl Choice {
    /// What is used now.
    pub(super) fn current(&self) -> Carrier {
        self.current
    }

    /// The next step, if there is one.
    pub(super) fn step(&mut self, now: Instant, wireguard: Side, quic: Side) -> Option<Step> {
        match self.current {
            Carrier::WireGuard => {
                let Some((trouble, shaped)) = trouble(now, wireguard) else {
                    let alone = self.back.is_some_and(|t| now.saturating_duration_since(t) < ALONE);
                    if quic.is_up() && quic.used && !alone {
                        self.followed = true;
                        return Some(self.switch(now, Carrier::Quic, "the other end uses QUIC".into()));
                    }
                    return self.at_ease(now, quic);
                };
                self.spare = None;
                // A connection that has said nothing since either is not better: the whole path may be cut.
                let since = wireguard.silent.and_then(|silence| now.checked_sub(silence));
                let as_silent = quic.heard.zip(since).is_some_and(|(heard, since)| heard < since);
                if quic.is_up() && quic.silent.is_none() && as_silent {
                    return None;
                }
                if quic.is_up() && quic.silent.is_none() {
                    self.followed = false;
                    self.not_before = shaped.then_some(now + SHAPED);
                    return Some(self.switch(now, Carrier::Quic, trouble));
                }
                self.connect(now, quic)
            }
            Carrier::Quic => {
                let answering = |count, time| {
                    let enough = |(n, since)| n >= count && now.saturating_duration_since(since) >= time;
                    wireguard.is_up() && wireguard.answers.is_some_and(enough)
                };
                if !quic.is_up() && answering(1, Duration::ZERO) {
                    return Some(self.switch(now, Carrier::WireGuard, "the QUIC connection is gone".into()));
                }
                if let Some(silence) = quic.silent.filter(|_| answering(1, Duration::ZERO)) {
                    let reason = format!("nothing heard over QUIC for {} ms", silence.as_millis());
                    return Some(self.switch(now, Carrier::WireGuard, reason));
                }
                if self.followed && quic.is_up() && quic.used {
                    return None;
                }
                if self.not_before.is_none_or(|t| t <= now) && answering(ANSWERS, ANSWERING) {
                    return Some(self.switch(now, Carrier::WireGuard, "WireGuard works again".into()));
                }
                if quic.is_up() { None } else { self.connect(now, quic) }
            }
        }
    }

    /// Nothing is wrong with WireGuard.
    fn at_ease(&mut self, now: Instant, quic: Side) -> Option<Step> {
        (self.attempt, self.wait) = (None, FIRST_WAIT);
        if quic.session == SessionState::Down {
            self.spare = None;
            return None;
        }
        let since = *self.spare.get_or_insert(now);
        (now.saturating_duration_since(since) >= SPARE).then(|| {
            self.spare = None;
            Step::Disconnect
        })
    }

    fn connect(&mut self, now: Instant, quic: Side) -> Option<Step> {
        let is_connecting = matches!(quic.session, SessionState::Connecting { .. });
        if is_connecting || self.attempt.is_some_and(|t| now < t) {
            return None;
        }
        self.attempt = Some(now + self.wait);
        self.wait = (2 * self.wait).min(LONGEST_WAIT);
        Some(Step::Connect)
    }

    fn switch(&mut self, now: Instant, to: Carrier, reason: String) -> Step {
        self.current = to;
        self.back = (to == Carrier::WireGuard).then_some(now);
        self.spare = None;
        (self.attempt, self.wait) = (None, FIRST_WAIT);
        Step::Switch(to, reason)
    }
}

/// Why WireGuard is not good enough, and whether it is because of loss.
fn trouble(now: Instant, side: Side) -> Option<(String, bool)> {
    if !side.is_up() {
        let SessionState::Connecting { since: Some(since) } = side.session else {
            return None;
        };
        let waited = now.saturating_duration_since(since);
        let reason = || format!("WireGuard's handshake is not answered since {} ms", waited.as_millis());
        return (waited >= UNANSWERED).then(|| (reason(), false));
    }
    if let Some(silence) = side.silent {
        return Some((
            format!("nothing heard over WireGuard for {} ms", silence.as_millis()),
            false,
        ));
    }
    let (share, of) = side.loss.filter(|(share, of)| *share >= LOSS && *of >= OF)?;
    Some((format!("WireGuard loses {:.0} % of {of} echoes", share * 100.0), true))
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the clock is the test's")]
mod tests {
    use super::*;

    const UP: Side = Side {
        session: SessionState::Up,
        silent: None,
        heard: None,
        answers: None,
        loss: None,
        used: false,
    };
    const GONE: Side = Side {
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
        let asking = Side {
            session: SessionState::Connecting { since: Some(begin) },
            ..GONE
        };
        assert_eq!(choice.step(begin + ms(700), asking, GONE), None);
        assert_eq!(choice.step(begin + ms(800), asking, GONE), Some(Step::Connect));
        let connecting = Side {
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
        let silent = Side {
            silent: Some(ms(350)),
            ..UP
        };
        assert!(matches!(
            choice.step(now, silent, UP),
            Some(Step::Switch(Carrier::Quic, _))
        ));
        let answering = |n, since| Side {
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
        let silent = Side {
            silent: Some(ms(350)),
            ..UP
        };
        let heard = |ago| Side {
            heard: Some(now - ms(ago)),
            ..UP
        };
        assert_eq!(Choice::default().step(now, silent, heard(380)), None);
        assert!(Choice::default().step(now, silent, heard(100)).is_some());
    }

    #[test]
    fn what_is_shaped_is_left_for_longer() {
        let now = Instant::now();
        let mut choice = Choice::default();
        let lossy = Side {
            loss: Some((0.3, 40)),
            ..UP
        };
        let step = choice.step(now, lossy, UP);
        assert!(matches!(step, Some(Step::Switch(Carrier::Quic, reason)) if reason.contains("30 %")));
        let fine = Side {
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
        let used = Side { used: true, ..UP };
        assert!(matches!(
            choice.step(now, UP, used),
            Some(Step::Switch(Carrier::Quic, _))
        ));
        let fine = Side {
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

    /// Both ends find out at about the same time that WireGuard works again, and neither is taken along by the other, which
    /// has not yet.
    #[test]
    fn two_ends_that_go_back_do_not_chase_each_other() {
        let begin = Instant::now();
        let mut ends = [Choice::default(), Choice::default()];
        let silent = Side {
            silent: Some(ms(350)),
            ..UP
        };
        for end in &mut ends {
            end.step(begin, silent, UP);
        }
        let mut switches = 0;
        for n in 1..400u64 {
            let now = begin + ms(50 * n);
            // The second one's echoes began to be answered a little later.
            for (i, lag) in [(0, 0), (1, 700)] {
                let other = ends[1 - i].current();
                let wireguard = Side {
                    answers: Some((n as u32, begin + ms(lag))),
                    ..UP
                };
                let quic = Side {
                    used: other == Carrier::Quic,
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
        let asking = Side {
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
        let silent = Side {
            silent: Some(ms(350)),
            ..UP
        };
        for quic in [GONE, silent] {
            let mut choice = Choice::default();
            choice.step(now, silent, UP);
            let answering = Side {
                answers: Some((1, now)),
                ..UP
            };
            let step = choice.step(now + ms(100), answering, quic);
            assert!(matches!(step, Some(Step::Switch(Carrier::WireGuard, _))), "{quic:?}");
        }
    }
}
