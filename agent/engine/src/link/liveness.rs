//! Whether the other end of a link answers: statistics of the echoes of one link over one transport.

use super::in_band::Message;
use std::time::{Duration, Instant};
use tombolo_proto::config::Probes;

/// Liveness that are remembered.
const WINDOW: usize = 64;

/// A reply later than this is none.
const LATE: Duration = Duration::from_secs(1);

/// Where the round trip is not known, a way does not count as closed before.
const UNKNOWN: Duration = Duration::from_millis(1000);

/// A way that was silent for so long was closed, or its other end away, and not shaped: what was lost then says nothing of how
/// it is now. Shorter than what it takes to lose a quarter of the fewest echoes that a share is taken of.
const CLOSED: Duration = Duration::from_millis(600);

/// The echoes of one link over one transport.
#[derive(Debug, Clone)]
pub(super) struct Liveness {
    /// By number modulo [`WINDOW`]: when it went out, and what the reply took.
    sent: [Option<(Instant, Option<Duration>)>; WINDOW],
    next: u32,
    /// Smoothed as TCP does (RFC 6298).
    rtt: Option<Duration>,
    /// Liveness in a row that were answered, and since when.
    answered: Option<(u32, Instant)>,
    /// When anything was heard last over this transport.
    heard: Option<Instant>,
    /// The oldest echo that was sent after that.
    waiting: Option<(u32, Instant)>,
    /// Liveness in a row without anything heard after which a way counts as closed (D19), and how long they take.
    misses: u32,
    patience: Duration,
}

impl Default for Liveness {
    fn default() -> Self {
        Self {
            sent: [None; WINDOW],
            next: 0,
            rtt: None,
            answered: None,
            heard: None,
            waiting: None,
            misses: 0,
            patience: Duration::ZERO,
        }
        .with(Probes::default())
    }
}

impl Liveness {
    fn with(mut self, probes: Probes) -> Self {
        self.set_probes(probes);
        self
    }

    /// How silence is noticed from now on.
    pub(super) fn set_probes(&mut self, probes: Probes) {
        self.misses = probes.misses;
        self.patience = Duration::from_millis(u64::from(probes.interval)) * probes.misses;
    }

    /// The next echo to send.
    pub(super) fn send(&mut self, now: Instant) -> Message {
        let number = self.next;
        self.next = number.wrapping_add(1);
        if let Some(place) = self.sent.get_mut(number as usize % WINDOW) {
            *place = Some((now, None));
        }
        self.waiting.get_or_insert((0, now)).0 += 1;
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

    /// Anything arrived over this transport.
    pub(super) fn heard(&mut self, now: Instant) {
        let closed = self.silent(now).is_some_and(|silence| silence >= CLOSED);
        if let Some((_, since)) = self.waiting.filter(|_| closed) {
            let under_way = 2 * self.rtt.unwrap_or(LATE);
            let missed = |(at, reply): &mut (Instant, Option<Duration>)| {
                reply.is_none() && *at >= since && now.saturating_duration_since(*at) > under_way
            };
            for echo in &mut self.sent {
                echo.take_if(missed);
            }
        }
        self.heard = Some(now);
        self.waiting = None;
    }

    /// When anything was heard last over this transport.
    pub(super) fn last_heard(&self) -> Option<Instant> {
        self.heard
    }

    /// A reply arrived.
    pub(super) fn reply(&mut self, number: u32, now: Instant) {
        self.replied(number, now);
        self.heard(now);
    }

    fn replied(&mut self, number: u32, now: Instant) {
        let Some(Some((at, reply @ None))) = self.sent.get_mut(number as usize % WINDOW) else {
            return;
        };
        let took = now.saturating_duration_since(*at);
        if self.next.wrapping_sub(number) > WINDOW as u32 || took > LATE {
            return;
        }
        *reply = Some(took);
        self.rtt = Some(self.rtt.map_or(took, |rtt| rtt - rtt / 8 + took / 8));
        let (count, _) = self.answered.get_or_insert((0, now));
        *count += 1;
    }

    /// What a round trip takes, as long as none was measured: that of another transport over the same path.
    pub(super) fn assume_rtt(&mut self, rtt: Option<Duration>) {
        self.rtt = self.rtt.or(rtt);
    }

    /// Smoothed round-trip time.
    pub(super) fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// Share of the remembered echoes that were not answered, and how many they are; those of the last second are
    /// under way. None: too few to say.
    pub(super) fn loss(&self, now: Instant) -> Option<(f64, u32)> {
        let due = self.sent.iter().flatten();
        let due = due.filter(|(at, reply)| reply.is_some() || now.saturating_duration_since(*at) > LATE);
        let (mut all, mut lost) = (0u32, 0u32);
        for (_, reply) in due {
            all += 1;
            lost += u32::from(reply.is_none());
        }
        (all >= 10).then(|| (f64::from(lost) / f64::from(all), all))
    }

    /// How long nothing has been heard, if it is too long: some echoes (D19), and longer than a reply may take.
    pub(super) fn silent(&self, now: Instant) -> Option<Duration> {
        let (count, since) = self.waiting?;
        let silence = now.saturating_duration_since(since);
        let allowed = self
            .rtt
            .map_or(UNKNOWN.max(self.patience), |rtt| self.patience + 2 * rtt);
        (count >= self.misses && silence >= allowed).then_some(silence)
    }

    /// What was answered so far says nothing of what comes.
    pub(super) fn forget_answers(&mut self) {
        self.answered = None;
    }

    /// How many echoes in a row were answered, and since when.
    pub(super) fn answers(&self) -> Option<(u32, Instant)> {
        self.answered
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the clock is the test's")]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(100);

    #[test]
    fn replies_make_a_round_trip_time_and_silence_is_counted() {
        let mut now = Instant::now();
        let mut liveness = Liveness::default();
        for _ in 0..40 {
            let Message::Echo(n) = liveness.send(now) else { panic!() };
            liveness.reply(n, now + Duration::from_millis(4));
            liveness.reply(n, now + Duration::from_millis(90));
            now += STEP;
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
            now += STEP;
        }
        assert_eq!(liveness.silent(now), Some(20 * STEP));
        assert_eq!(liveness.answers(), None);
        let (loss, of) = liveness.loss(now).unwrap();
        assert!(
            loss > 0.1 && loss < 0.3 && of < 60,
            "{loss} of {of}: the last second is under way"
        );
        liveness.heard(now);
        assert_eq!(liveness.silent(now), None, "any packet shows that the way is open");
    }

    /// What was lost while a way was closed is not held against it when it is open again.
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
        say(&mut liveness, 30, STEP, true);
        say(&mut liveness, 30, Duration::from_secs(1), false);
        let now = say(&mut liveness, 30, STEP, true);
        let (loss, _) = liveness.loss(now).unwrap();
        assert!(loss < 0.05, "{loss}");
    }

    /// The other end was started again, which takes a second or two: its way is not shaped.
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
                    now += STEP;
                    let loss = liveness.loss(now).filter(|(_, of)| answered && *of >= 20);
                    assert!(loss.is_none_or(|(share, _)| share < 0.25), "{away}: {loss:?}");
                }
            }
        }
    }

    /// One in two is lost at random: that is shaping, whatever longer runs of losses there are among them.
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
            now += STEP;
            if sent >= 100 {
                looked += 1;
                noticed += u32::from(liveness.loss(now).unwrap().0 > 0.25);
            }
        }
        assert!(10 * noticed > 9 * looked, "{noticed} of {looked}");
    }

    /// A spare connection to an end that is gone is found out as soon as the main one was.
    #[test]
    fn silence_needs_no_round_trip_of_its_own() {
        for assumed in [None, Some(Duration::from_millis(2))] {
            let mut now = Instant::now();
            let mut liveness = Liveness::default();
            liveness.assume_rtt(assumed);
            for _ in 0..5 {
                liveness.send(now);
                now += STEP;
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
        liveness.reply(0, now + 2 * LATE);
        assert_eq!(liveness.rtt(), None, "too late");
    }
}
