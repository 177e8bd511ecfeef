//! Detects whether the peer of a link answers, from the echoes that were sent over one of the link's transports.

use super::in_band::Message;
use std::time::{Duration, Instant};
use tombolo_proto::config::Probes;

/// Number of echoes that are remembered. At the default interval of 100 ms they are sent in 6.4 s.
const WINDOW: usize = 64;

/// A reply that takes longer counts as lost.
const REPLY_TIMEOUT: Duration = Duration::from_secs(1);

/// While the round-trip time is unknown, a peer is taken to be silent only after this time. After a shorter time the
/// first reply may still be under way: a reply is in time until [`REPLY_TIMEOUT`].
const UNKNOWN_RTT_SILENCE: Duration = REPLY_TIMEOUT;

/// After a silence of at least this length the path is taken to have been down, not rate-limited, so the echoes that
/// were lost during the silence do not count as lost. At the default interval of 100 ms, six echoes in a row must be
/// lost, which random loss rarely causes.
const DOWN_SILENCE: Duration = Duration::from_millis(600);

/// The echoes of one link over one transport, and the statistics of their replies. Times that are passed to it must not
/// go back.
#[derive(Debug, Clone)]
pub(super) struct Liveness {
    /// The time at which each remembered echo was sent, and the round-trip time of its reply. The echo with number N
    /// has position N modulo [`WINDOW`].
    sent: [Option<(Instant, Option<Duration>)>; WINDOW],
    /// The number of the next echo. It wraps.
    next: u32,
    /// Smoothed round-trip time (RFC 6298).
    rtt: Option<Duration>,
    /// Number of echoes that were answered since the last silence, and the time of the first answer.
    answered: Option<(u32, Instant)>,
    /// Time at which something was last received over this transport.
    last_rx: Option<Instant>,
    /// Number of echoes sent since `last_rx`, and the time of the first of them.
    unanswered: Option<(u32, Instant)>,
    /// Number of unanswered echoes after which the peer counts as silent (D19), and the time in which this number of
    /// echoes is sent.
    misses: u32,
    misses_take: Duration,
}

impl Default for Liveness {
    fn default() -> Self {
        Self {
            sent: [None; WINDOW],
            next: 0,
            rtt: None,
            answered: None,
            last_rx: None,
            unanswered: None,
            misses: 0,
            misses_take: Duration::ZERO,
        }
        .with(Probes::default())
    }
}

impl Liveness {
    fn with(mut self, probes: Probes) -> Self {
        self.set_probes(probes);
        self
    }

    /// Sets the interval of echoes, and the number of unanswered echoes after which the peer counts as silent.
    pub(super) fn set_probes(&mut self, probes: Probes) {
        self.misses = probes.misses;
        self.misses_take = Duration::from_millis(u64::from(probes.interval)) * probes.misses;
    }

    /// Returns the next echo, which the caller must send now. If the peer is silent, the count of answered echoes
    /// ([`answers`](Self::answers)) starts from zero again.
    pub(super) fn send(&mut self, now: Instant) -> Message {
        let number = self.next;
        self.next = number.wrapping_add(1);
        if let Some(place) = self.sent.get_mut(number as usize % WINDOW) {
            *place = Some((now, None));
        }
        self.unanswered.get_or_insert((0, now)).0 += 1;
        if self.silent(now).is_some() {
            self.answered = None;
        }
        Message::Echo(number)
    }

    /// The time of the last [`send`](Self::send); `None` before the first.
    pub(super) fn last_sent(&self) -> Option<Instant> {
        let last = self.next.wrapping_sub(1);
        self.sent.get(last as usize % WINDOW)?.map(|(at, _)| at)
    }

    /// Records that something was received over this transport at `now`. A silence of the peer ends. If the silence
    /// lasted [`DOWN_SILENCE`] or longer, the echoes that were sent during it do not count as lost.
    pub(super) fn received(&mut self, now: Instant) {
        let was_down = self.silent(now).is_some_and(|silence| silence >= DOWN_SILENCE);
        if let Some((_, since)) = self.unanswered.filter(|_| was_down) {
            // A reply to an echo that was sent less than two round-trip times ago may still arrive.
            let under_way = 2 * self.rtt.unwrap_or(REPLY_TIMEOUT);
            let missed = |(at, reply): &mut (Instant, Option<Duration>)| {
                reply.is_none() && *at >= since && now.saturating_duration_since(*at) > under_way
            };
            for echo in &mut self.sent {
                echo.take_if(missed);
            }
        }
        self.last_rx = Some(now);
        self.unanswered = None;
    }

    /// The time at which something was last received over this transport; `None`: nothing was received yet.
    pub(super) fn last_rx(&self) -> Option<Instant> {
        self.last_rx
    }

    /// Records the reply to the echo with this number. A late or repeated reply, or a reply to an unknown number, does
    /// not count in the statistics, but ends a silence of the peer.
    pub(super) fn reply(&mut self, number: u32, now: Instant) {
        self.measure(number, now);
        self.received(now);
    }

    fn measure(&mut self, number: u32, now: Instant) {
        let Some(Some((at, reply @ None))) = self.sent.get_mut(number as usize % WINDOW) else {
            return;
        };
        let took = now.saturating_duration_since(*at);
        if self.next.wrapping_sub(number) > WINDOW as u32 || took > REPLY_TIMEOUT {
            return;
        }
        *reply = Some(took);
        // RFC 6298's smoothing factor of 1/8.
        self.rtt = Some(self.rtt.map_or(took, |rtt| rtt - rtt / 8 + took / 8));
        let (count, _) = self.answered.get_or_insert((0, now));
        *count += 1;
    }

    /// Sets the round-trip time unless it is known already. `rtt` is the round-trip time over the link's other
    /// transport, which uses the same path.
    pub(super) fn assume_rtt(&mut self, rtt: Option<Duration>) {
        self.rtt = self.rtt.or(rtt);
    }

    /// The smoothed round-trip time, or the assumed one; `None`: neither is known.
    pub(super) fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// The share of the remembered echoes that were lost, from 0 to 1, and the number of echoes from which this share
    /// is computed. Unanswered echoes of the last second are not counted, because they may still be answered. `None`:
    /// fewer than ten echoes count.
    pub(super) fn loss(&self, now: Instant) -> Option<(f64, u32)> {
        let due = self.sent.iter().flatten();
        let due = due.filter(|(at, reply)| reply.is_some() || now.saturating_duration_since(*at) > REPLY_TIMEOUT);
        let (mut all, mut lost) = (0u32, 0u32);
        for (_, reply) in due {
            all += 1;
            lost += u32::from(reply.is_none());
        }
        (all >= 10).then(|| (f64::from(lost) / f64::from(all), all))
    }

    /// The length of the peer's silence; `None`: the peer does not count as silent. The peer counts as silent when the
    /// configured number of echoes (D19) is unanswered, and two more round-trip times have passed, in which replies may
    /// still arrive.
    pub(super) fn silent(&self, now: Instant) -> Option<Duration> {
        let (count, since) = self.unanswered?;
        let silence = now.saturating_duration_since(since);
        let allowed = self.rtt.map_or(UNKNOWN_RTT_SILENCE.max(self.misses_take), |rtt| {
            self.misses_take + 2 * rtt
        });
        (count >= self.misses && silence >= allowed).then_some(silence)
    }

    /// Starts to count answered echoes from zero again; the statistics of losses stay.
    pub(super) fn forget_answers(&mut self) {
        self.answered = None;
    }

    /// Number of echoes that were answered since the last silence or [`forget_answers`](Self::forget_answers), and the
    /// time of the first answer. `None`: none was answered since then.
    pub(super) fn answers(&self) -> Option<(u32, Instant)> {
        self.answered
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the clock is the test's")]
mod tests {
    use super::*;

    const TIME_STEP: Duration = Duration::from_millis(100);

    #[test]
    fn replies_make_a_round_trip_time_and_silence_is_counted() {
        let mut now = Instant::now();
        let mut liveness = Liveness::default();
        for _ in 0..40 {
            let Message::Echo(n) = liveness.send(now) else { panic!() };
            liveness.reply(n, now + Duration::from_millis(4));
            liveness.reply(n, now + Duration::from_millis(90));
            now += TIME_STEP;
        }
        assert_eq!(liveness.rtt(), Some(Duration::from_millis(4)));
        assert_eq!(liveness.loss(now), Some((0.0, 40)));
        assert_eq!(
            (liveness.answers().map(|a| a.0), liveness.silent(now)),
            (Some(40), None)
        );
        for sent in 1..=20 {
            liveness.send(now);
            assert_eq!(
                liveness.silent(now).is_some(),
                sent > 4,
                "{sent}: 300 ms and two round trips"
            );
            now += TIME_STEP;
        }
        assert_eq!(liveness.silent(now), Some(20 * TIME_STEP));
        assert_eq!(liveness.answers(), None);
        let (loss, of) = liveness.loss(now).unwrap();
        assert!(
            loss > 0.1 && loss < 0.3 && of < 60,
            "{loss} of {of}: the last second is under way"
        );
        liveness.received(now);
        assert_eq!(liveness.silent(now), None, "any packet shows that the path is open");
    }

    /// When a path that was down is up again, the echoes that were lost in between do not count as lost.
    #[test]
    fn a_way_that_opens_again_begins_anew() {
        let mut now = Instant::now();
        let mut liveness = Liveness::default();
        let mut say = |liveness: &mut Liveness, times: u32, step: Duration, answered: bool| {
            for _ in 0..times {
                let Message::Echo(n) = liveness.send(now) else { panic!() };
                if answered {
                    liveness.reply(n, now + Duration::from_millis(4));
                }
                now += step;
            }
            now
        };
        say(&mut liveness, 30, TIME_STEP, true);
        say(&mut liveness, 30, Duration::from_secs(1), false);
        let now = say(&mut liveness, 30, TIME_STEP, true);
        let (loss, _) = liveness.loss(now).unwrap();
        assert!(loss < 0.05, "{loss}");
    }

    /// A peer that restarts is silent for up to three seconds. The echoes that are lost in this time do not make the
    /// path count as rate-limited, i.e. the measured loss stays below a quarter.
    #[test]
    fn an_end_that_was_away_for_a_moment_lost_nothing() {
        for away in [3, 7, 15, 29] {
            let mut now = Instant::now();
            let mut liveness = Liveness::default();
            for (times, answered) in [(15, true), (away, false), (30, true)] {
                for _ in 0..times {
                    let Message::Echo(n) = liveness.send(now) else { panic!() };
                    if answered {
                        liveness.reply(n, now + Duration::from_millis(1));
                    }
                    now += TIME_STEP;
                    let loss = liveness.loss(now).filter(|(_, of)| answered && *of >= 20);
                    assert!(loss.is_none_or(|(share, _)| share < 0.25), "{away}: {loss:?}");
                }
            }
        }
    }

    /// If a path loses half of the packets at random, the measured loss is nearly always more than a quarter. Some
    /// losses come in long runs, and are ignored because the path is taken to have been down, but they are few.
    #[test]
    fn a_way_that_loses_half_loses_more_than_a_quarter() {
        let (mut now, mut chance) = (Instant::now(), 7u64);
        let mut liveness = Liveness::default();
        let (mut looked, mut noticed) = (0, 0);
        for sent in 0..1000 {
            let Message::Echo(n) = liveness.send(now) else { panic!() };
            chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            if chance >> 63 == 0 {
                liveness.reply(n, now + Duration::from_millis(1));
            }
            now += TIME_STEP;
            if sent >= 100 {
                looked += 1;
                noticed += u32::from(liveness.loss(now).unwrap().0 > 0.25);
            }
        }
        assert!(10 * noticed > 9 * looked, "{noticed} of {looked}");
    }

    /// If the round-trip time of the transport in use is assumed for the other transport, silence is detected as fast
    /// over the other one, even before its first echo is answered.
    #[test]
    fn silence_needs_no_round_trip_of_its_own() {
        for assumed in [None, Some(Duration::from_millis(2))] {
            let mut now = Instant::now();
            let mut liveness = Liveness::default();
            liveness.assume_rtt(assumed);
            for _ in 0..5 {
                liveness.send(now);
                now += TIME_STEP;
            }
            assert_eq!(liveness.silent(now).is_some(), assumed.is_some());
        }
    }

    #[test]
    fn numbers_that_nobody_sent_mean_nothing() {
        let now = Instant::now();
        let mut liveness = Liveness::default();
        liveness.reply(3, now);
        liveness.send(now);
        liveness.reply(64, now);
        assert_eq!((liveness.rtt(), liveness.answers()), (None, None));
        liveness.reply(0, now + 2 * REPLY_TIMEOUT);
        assert_eq!(liveness.rtt(), None, "too late");
    }
}
