//! How often the changes of one sender are acted on: the first after a quiet time at once, and the more of them come the more
//! rarely. For advertisements of other agents and for what BGP neighbours announce.

use std::time::{Duration, Instant};

/// The pause after a first change; it doubles with each further one.
const FIRST: Duration = Duration::from_millis(100);

/// The longest pause.
const LONGEST: Duration = Duration::from_secs(10);

/// Doublings after which it is reached.
const MOST: u32 = 8;

/// A quiet time that takes one doubling back.
const RECOVERY: Duration = Duration::from_secs(2);

/// The state of one sender.
#[derive(Debug, Default)]
pub struct Pace {
    /// Changes after a quiet time that are acted on without a pause.
    free: u32,
    /// Changes lately, less what was forgiven for being quiet.
    recent: u32,
    /// When one came last, acted on or not.
    changed: Option<Instant>,
    /// When one was acted on last.
    used: Option<Instant>,
}

impl Pace {
    /// The pace of a sender who tells one change in several pieces perhaps: so many are acted on without a pause.
    #[must_use]
    pub fn with_free(free: u32) -> Self {
        Self {
            free,
            ..Self::default()
        }
    }

    /// The sender changed what it says.
    pub fn changed(&mut self, now: Instant) {
        self.recent = self.recent.saturating_sub(self.forgiven(now));
        self.changed = Some(now);
    }

    /// Doublings that the quiet time since the last change takes back.
    fn forgiven(&self, now: Instant) -> u32 {
        let quiet = self.changed.map(|t| now.saturating_duration_since(t).as_secs());
        let forgiven = quiet.map_or(u64::from(self.most()), |quiet| quiet / RECOVERY.as_secs());
        forgiven.try_into().unwrap_or(self.most())
    }

    const fn most(&self) -> u32 {
        self.free + MOST
    }

    /// How long the next change has to wait.
    #[must_use]
    pub fn wait(&self, now: Instant) -> Duration {
        let doublings = self.recent.min(self.most()).checked_sub(self.free + 1);
        let pause = doublings.map_or(Duration::ZERO, |doublings| (FIRST * (1 << doublings)).min(LONGEST));
        let since = self.used.map(|used| now.saturating_duration_since(used));
        since.map_or(Duration::ZERO, |since| pause.saturating_sub(since))
    }

    /// Whether a change may be acted on.
    #[must_use]
    pub fn allows(&self, now: Instant) -> bool {
        self.wait(now).is_zero()
    }

    /// One was acted on.
    pub fn used(&mut self, now: Instant) {
        self.recent = (self.recent + 1).min(self.most());
        self.used = Some(now);
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the clock is the test's")]
mod tests {
    use super::*;

    /// How often a sender is heard that changes what it says every `every` for `total`.
    fn heard(every: Duration, total: Duration) -> u32 {
        let (mut pace, begin) = (Pace::default(), Instant::now());
        let mut now = begin;
        let mut times = 0;
        while now < begin + total {
            pace.changed(now);
            if pace.allows(now) {
                pace.used(now);
                times += 1;
            }
            now += every;
        }
        times
    }

    #[test]
    fn a_change_after_a_quiet_time_is_acted_on_at_once() {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        for _ in 0..20 {
            pace.changed(now);
            assert!(pace.allows(now));
            pace.used(now);
            now += RECOVERY;
        }
    }

    #[test]
    fn a_sender_that_never_rests_is_heard_ever_more_rarely() {
        let minute = Duration::from_secs(60);
        // 0, 0.1, 0.3, 0.7, 1.5, 3.1, 6.3, 12.7, 22.7 and so on.
        let flooding = heard(Duration::from_millis(1), minute);
        assert_eq!(flooding, 12);
        for every in [20, 100, 500, 1000, 1900, 2500] {
            let times = heard(Duration::from_millis(every), minute);
            assert!(times <= 31, "every {every} ms: {times} times a minute");
        }
    }

    /// A long table comes in several pieces.
    #[test]
    fn a_few_pieces_are_free() {
        let (mut pace, begin) = (Pace::with_free(3), Instant::now());
        let mut waits = Vec::new();
        for _ in 0..6 {
            pace.changed(begin);
            pace.used(begin);
            waits.push(pace.wait(begin).as_millis());
        }
        assert_eq!(waits, [0, 0, 0, 100, 200, 400]);
        let later = begin + RECOVERY * 6;
        pace.changed(later);
        assert!(pace.allows(later));
    }

    #[test]
    fn who_was_quiet_long_enough_is_forgiven() {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        for _ in 0..2000 {
            pace.changed(now);
            if pace.allows(now) {
                pace.used(now);
            }
            now += Duration::from_millis(10);
        }
        assert!(!pace.allows(now));
        now += RECOVERY * MOST;
        pace.changed(now);
        assert!(pace.allows(now));
    }
}
