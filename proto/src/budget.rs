//! Rate limits by the generic cell rate algorithm (GCRA). Each holder, e.g. a client address, has a budget of requests.
//! The code reads no clock: the caller passes the time.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// If fewer holders than this number are stored, none of them is removed. A removal visits all holders, so it must be
/// rare.
const MIN_SWEEP: usize = 1024;

/// A rate limit: a sustained rate, and a burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Number of requests that a holder with a full budget may make at once. 0 counts as 1.
    pub burst: u32,
    /// Number of requests by which the budget grows each second, up to the burst. 0 counts as 1.
    pub per_second: u32,
}

impl Rate {
    /// The rate for a group of `number` members: this rate, plus `each` multiplied by `number`. Saturates at
    /// `u32::MAX`.
    #[must_use]
    pub fn and(self, each: Self, number: usize) -> Self {
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        Self {
            burst: self.burst.saturating_add(each.burst.saturating_mul(number)),
            per_second: self.per_second.saturating_add(each.per_second.saturating_mul(number)),
        }
    }

    fn interval(self) -> Duration {
        Duration::from_secs(1) / self.per_second.max(1)
    }
}

/// The used part of each holder's budget. Whenever the number of stored holders has doubled, the holders with a full
/// budget are removed, so memory is bounded by the number of holders that were active lately. Times that are passed to
/// the methods must not go back, and the rate that is passed for a holder should always be the same.
#[derive(Debug)]
pub struct Budgets<K> {
    /// Time at which the budget of each holder is full again. A holder that is not in the map has a full budget.
    full_at: HashMap<K, Instant>,
    /// Number of stored holders that causes the next removal of the holders with a full budget.
    sweep_at: usize,
}

impl<K> Default for Budgets<K> {
    fn default() -> Self {
        Self {
            full_at: HashMap::new(),
            sweep_at: MIN_SWEEP,
        }
    }
}

impl<K: Eq + Hash> Budgets<K> {
    /// The time from `now` until the budget of `holder` allows the next request; zero if it allows one now. Uses
    /// nothing of the budget.
    #[must_use]
    pub fn wait(&self, holder: &K, rate: Rate, now: Instant) -> Duration {
        let Some(full_at) = self.full_at.get(holder) else {
            return Duration::ZERO;
        };
        let free = rate.interval() * rate.burst.max(1).saturating_sub(1);
        full_at.saturating_duration_since(now).saturating_sub(free)
    }

    /// Uses one unit of the budget, even if no unit is left, and returns the time that the request must wait; zero if a
    /// unit was left. Each unit that is used in advance lengthens the wait of the holder's next request.
    pub fn take(&mut self, holder: K, rate: Rate, now: Instant) -> Duration {
        let wait = self.wait(&holder, rate, now);
        if self.full_at.len() >= self.sweep_at {
            self.full_at.retain(|_, full_at| *full_at > now);
            self.sweep_at = (2 * self.full_at.len()).max(MIN_SWEEP);
        }
        let full_at = self.full_at.entry(holder).or_insert(now);
        *full_at = (*full_at).max(now) + rate.interval();
        wait
    }

    /// Uses one unit of the budget, and returns `true`. If no unit is left, returns `false` and leaves the budget
    /// unchanged.
    pub fn try_take(&mut self, holder: K, rate: Rate, now: Instant) -> bool {
        let allowed = self.wait(&holder, rate, now).is_zero();
        if allowed {
            self.take(holder, rate, now);
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate {
        burst: 4,
        per_second: 10,
    };

    #[test]
    fn so_many_at_once_and_then_so_many_a_second() {
        let (mut budgets, now) = (Budgets::default(), Instant::now());
        let waits = |budgets: &mut Budgets<u32>, now| {
            (0..6)
                .map(|_| budgets.take(1, RATE, now).as_millis())
                .collect::<Vec<_>>()
        };
        assert_eq!(waits(&mut budgets, now), [0, 0, 0, 0, 100, 200]);
        // Other holders have their own budgets.
        assert_eq!(budgets.take(2, RATE, now), Duration::ZERO);
        // `wait` uses no budget.
        assert_eq!(budgets.wait(&1, RATE, now), Duration::from_millis(300));
        assert_eq!(budgets.wait(&1, RATE, now), Duration::from_millis(300));
        let later = now + Duration::from_millis(300);
        assert_eq!(budgets.take(1, RATE, later), Duration::ZERO);
        assert_eq!(budgets.take(1, RATE, later), Duration::from_millis(100));
        assert!(!budgets.try_take(1, RATE, later));
        assert_eq!(budgets.wait(&1, RATE, later), Duration::from_millis(200));
        assert!(budgets.try_take(1, RATE, later + Duration::from_millis(200)));
        // An unused budget does not grow beyond the burst.
        let much_later = now + Duration::from_secs(3600);
        assert_eq!(waits(&mut budgets, much_later), [0, 0, 0, 0, 100, 200]);
    }

    #[test]
    fn holders_whose_budget_is_whole_are_forgotten() {
        let (mut budgets, now) = (Budgets::default(), Instant::now());
        for holder in 0..10 * MIN_SWEEP {
            budgets.take(holder, RATE, now + Duration::from_millis(holder as u64));
        }
        assert!(budgets.full_at.len() <= 2 * MIN_SWEEP, "{}", budgets.full_at.len());
    }
}
