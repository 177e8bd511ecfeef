//! Whether the other end of a link answers: statistics of the echoes of one link over one transport.

use super::in_band::Message;
use std::time::{Duration, Instant};
use tombolo_proto::config::Probes;

/// Echoes that are remembered: 6.4 s of them at the default interval.
const WINDOW: usize = 64;

/// A reply that takes longer counts as lost.
const REPLY_TIMEOUT: Duration = Duration::from_secs(1);

/// Least silence that counts while the round-trip time is not known: the time after which a reply counts as lost.
const UNKNOWN_RTT_SILENCE: Duration = REPLY_TIMEOUT;

/// After this much silence the path was down, not rate-limited: the losses of that period are ignored. Loss by chance
/// rarely takes six echoes in a row.
const DOWN_SILENCE: Duration = Duration::from_millis(600);

/// The echoes of one link over one transport, and what they say about it.
#[derive(Debug, Clone)]
pub(super) struct Liveness {
    /// By number modulo [`WINDOW`]: when the echo went out, and the time until its reply.
    sent: [Option<(Instant, Option<Duration>)>; WINDOW],
    /// Number of the next echo.
    next: u32,
    /// Smoothed round-trip time (RFC 6298).
    rtt: Option<Duration>,
    /// Number of echoes in a row that were answered, and since when.
    answered: Option<(u32, Instant)>,
    /// When anything was received last.
    last_rx: Option<Instant>,
    /// Number of echoes sent after that, and when the first of them was.
    unanswered: Option<(u32, Instant)>,
    /// Unanswered echoes from which the peer is silent (D19), and the time that they take.
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

    /// Sets how silence is noticed.
    pub(super) fn set_probes(&mut self, probes: Probes) {
        self.misses = probes.misses;
        self.misses_take = Duration::from_millis(u64::from(probes.interval)) * probes.misses;
    }

    /// Returns the next echo, which the caller sends now.
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

    /// When the last echo went out.
    pub(super) fn last_sent(&self) -> Option<Instant> {
        let last = self.next.wrapping_sub(1);
        self.sent.get(last as usize % WINDOW)?.map(|(at, _)| at)
    }

    /// Notes that anything was received over this transport.
    pub(super) fn received(&mut self, now: Instant) {
        let was_down = self.silent(now).is_some_and(|silence| silence >= DOWN_SILENCE);
        if let Some((_, since)) = self.unanswered.filter(|_| was_down) {
            // Replies to younger echoes may be under way.
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

    /// When anything was received last.
    pub(super) fn last_rx(&self) -> Option<Instant> {
        self.last_rx
    }

    /// Takes the reply to the echo with this number. Replies that are late, repeated, or to an unknown number count as
    /// received packets only.
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
        self.rtt = Some(self.rtt.map_or(took, |rtt| rtt - rtt / 8 + took / 8));
        let (count, _) = self.answered.get_or_insert((0, now));
        *count += 1;
    }

    /// Sets the round-trip time unless one was measured: that of the other transport over the same path.
    pub(super) fn assume_rtt(&mut self, rtt: Option<Duration>) {
        self.rtt = self.rtt.or(rtt);
    }

    /// The smoothed round-trip time.
    pub(super) fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// Share of the remembered echoes that were lost, from 0 to 1, and the number of echoes that it is taken of. Echoes
    /// of the last second may still be answered and do not count. `None`: fewer than ten.
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

    /// How long the peer has been silent, if it is too long: as many echoes as configured (D19), and two round trips
    /// more.
    pub(super) fn silent(&self, now: Instant) -> Option<Duration> {
        let (count, since) = self.unanswered?;
        let silence = now.saturating_duration_since(since);
        let allowed = self.rtt.map_or(UNKNOWN_RTT_SILENCE.max(self.misses_take), |rtt| {
            self.misses_take + 2 * rtt
        });
        (count >= self.misses && silence >= allowed).then_some(silence)
    }

    /// Starts to count answers from zero.
    pub(super) fn forget_answers(&mut self) {
        self.answered = None;
    }

    /// Number of echoes in a row that were answered, and since when. `None`: none since the last silence.
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

    /// Losses from while a path was down do not count when it is up again.
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

    /// A restart of the peer takes a second or two: its path is not rate-limited.
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

    /// Random loss of a half is noticed as such, although it has longer runs of losses.
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

    /// The silence of a standby connection is noticed as fast as that of the one in use.
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
