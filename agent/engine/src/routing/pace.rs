//! Rate limit for the changes of one sender, by exponential backoff that recovers in quiet times. A change after a
//! quiet time is processed at once. After each further change, the pause until the next change may be processed is
//! twice as long. This limit applies to the route advertisements of agents and to the routes of BGP neighbours.

use std::time::{Duration, Instant};

/// Pause after the first change that causes a pause. The pause doubles with each further change.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Longest pause, and therefore the longest delay of a change.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// Number of doublings that are counted. More doublings would have no effect, because 100 ms × 2⁷ already exceeds
/// [`MAX_PAUSE`].
const MAX_DOUBLINGS: u32 = 8;

/// Each time that the sender makes no change for this long takes back one doubling of the pause.
const RECOVERY_INTERVAL: Duration = Duration::from_secs(2);

/// The record of one sender's changes that the rate limit needs. Times that are passed to the methods must not go back.
#[derive(Debug, Default)]
pub struct Pace {
    /// The first `free` changes after a quiet time cause no pause.
    free: u32,
    /// Number of processed changes, less those that quiet time has taken back; it determines the pause.
    recent: u32,
    /// Time of the last change, processed or not.
    changed: Option<Instant>,
    /// Time of the last processed change.
    used: Option<Instant>,
}

impl Pace {
    /// Creates a rate limit for a sender whose single change may arrive in several pieces: the first `free` changes
    /// after a quiet time cause no pause. [`Pace::default`] has no free changes, as with `free` 0.
    #[must_use]
    pub fn with_free(free: u32) -> Self {
        Self {
            free,
            ..Self::default()
        }
    }

    /// Records that the sender changed its routes at `now`, whether the change is processed or not. The caller makes
    /// this call for each change, before it asks [`allows`](Self::allows). Every two seconds without a change before
    /// `now` take back one processed change, so the next pause is half as long; no other method takes back anything.
    /// Does not process a change: see [`used`](Self::used).
    pub fn changed(&mut self, now: Instant) {
        self.recent = self.recent.saturating_sub(self.recovered(now));
        self.changed = Some(now);
    }

    /// Number of doublings that the quiet time before `now` takes back.
    fn recovered(&self, now: Instant) -> u32 {
        let quiet = self.changed.map(|t| now.saturating_duration_since(t).as_secs());
        let recovered = quiet.map_or(u64::from(self.max_recent()), |quiet| {
            quiet / RECOVERY_INTERVAL.as_secs()
        });
        recovered.try_into().unwrap_or(self.max_recent())
    }

    const fn max_recent(&self) -> u32 {
        self.free + MAX_DOUBLINGS
    }

    /// Time from `now` until the next change may be processed; zero if it may be processed now. At most ten seconds.
    /// Zero if no change was processed yet. Records nothing; quiet time since the last call of
    /// [`changed`](Self::changed) is not taken into account.
    #[must_use]
    pub fn wait(&self, now: Instant) -> Duration {
        let doublings = self.recent.min(self.max_recent()).checked_sub(self.free + 1);
        let pause = doublings.map_or(Duration::ZERO, |doublings| {
            (FIRST_PAUSE * (1 << doublings)).min(MAX_PAUSE)
        });
        let since = self.used.map(|used| now.saturating_duration_since(used));
        since.map_or(Duration::ZERO, |since| pause.saturating_sub(since))
    }

    /// Whether a change may be processed at `now`, i.e. [`wait`](Self::wait) is zero. Records nothing.
    #[must_use]
    pub fn allows(&self, now: Instant) -> bool {
        self.wait(now).is_zero()
    }

    /// Records that a change was processed at `now`, which begins the next pause. The first `free` calls (see
    /// [`with_free`](Self::with_free)) cause no pause, the next call causes one of 100 ms, and each further call
    /// doubles the pause, up to 10 s. The caller asks [`allows`](Self::allows) before, because this method does not
    /// check it. This call does not replace the call of [`changed`](Self::changed) for the same change.
    pub fn used(&mut self, now: Instant) {
        self.recent = (self.recent + 1).min(self.max_recent());
        self.used = Some(now);
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the clock is the test's")]
mod tests {
    use super::*;

    /// The number of processed changes within `total`, if the sender changes its routes at intervals of `every`.
    fn processed(every: Duration, total: Duration) -> u32 {
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
            now += RECOVERY_INTERVAL;
        }
    }

    #[test]
    fn a_sender_that_never_rests_is_heard_ever_more_rarely() {
        let minute = Duration::from_secs(60);
        // The changes after 0, 0.1, 0.3, 0.7, 1.5, 3.1, 6.3, 12.7, 22.7 s and so on are processed.
        let flooding = processed(Duration::from_millis(1), minute);
        assert_eq!(flooding, 12);
        for every in [20, 100, 500, 1000, 1900, 2500] {
            let times = processed(Duration::from_millis(every), minute);
            assert!(times <= 31, "every {every} ms: {times} times a minute");
        }
    }

    /// If a long table arrives in several pieces, the first `free` pieces cause no pause.
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
        let later = begin + RECOVERY_INTERVAL * 6;
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
        now += RECOVERY_INTERVAL * MAX_DOUBLINGS;
        pace.changed(now);
        assert!(pace.allows(now));
    }
}
