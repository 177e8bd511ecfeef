//! How often each of many holders may ask for something that costs: the generic cell rate algorithm. Without IO or clock.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Holders that are remembered before those with a whole budget are looked for.
const MANY: usize = 1024;

/// So many at once, and then so many a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// That a holder without recent ones gets at once.
    pub burst: u32,
    /// That become due each second.
    pub per_second: u32,
}

impl Rate {
    /// This, and `each` for each of so many.
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

/// What each of many holders has used of its budget.
#[derive(Debug)]
pub struct Budgets<K> {
    /// When the budget is whole again, of those who used some.
    whole: HashMap<K, Instant>,
    /// So many are remembered before it is looked who may be forgotten.
    look_at: usize,
}

impl<K> Default for Budgets<K> {
    fn default() -> Self {
        Self {
            whole: HashMap::new(),
            look_at: MANY,
        }
    }
}

impl<K: Eq + Hash> Budgets<K> {
    /// How long the next one of a holder has to wait.
    #[must_use]
    pub fn wait(&self, holder: &K, rate: Rate, now: Instant) -> Duration {
        let Some(whole) = self.whole.get(holder) else {
            return Duration::ZERO;
        };
        let free = rate.interval() * rate.burst.max(1).saturating_sub(1);
        whole.saturating_duration_since(now).saturating_sub(free)
    }

    /// Takes one, and says how long it has to wait.
    pub fn take(&mut self, holder: K, rate: Rate, now: Instant) -> Duration {
        let wait = self.wait(&holder, rate, now);
        if self.whole.len() >= self.look_at {
            self.whole.retain(|_, whole| *whole > now);
            self.look_at = (2 * self.whole.len()).max(MANY);
        }
        let whole = self.whole.entry(holder).or_insert(now);
        *whole = (*whole).max(now) + rate.interval();
        wait
    }

    /// Takes one if it does not have to wait.
    pub fn try_take(&mut self, holder: K, rate: Rate, now: Instant) -> bool {
        let now_or_never = self.wait(&holder, rate, now).is_zero();
        if now_or_never {
            self.take(holder, rate, now);
        }
        now_or_never
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
        // Others have a budget of their own.
        assert_eq!(budgets.take(2, RATE, now), Duration::ZERO);
        // Asking takes nothing.
        assert_eq!(budgets.wait(&1, RATE, now), Duration::from_millis(300));
        assert_eq!(budgets.wait(&1, RATE, now), Duration::from_millis(300));
        let later = now + Duration::from_millis(300);
        assert_eq!(budgets.take(1, RATE, later), Duration::ZERO);
        assert_eq!(budgets.take(1, RATE, later), Duration::from_millis(100));
        assert!(!budgets.try_take(1, RATE, later));
        assert_eq!(budgets.wait(&1, RATE, later), Duration::from_millis(200));
        assert!(budgets.try_take(1, RATE, later + Duration::from_millis(200)));
        // What was not used does not add up to more than a burst.
        let much_later = now + Duration::from_secs(3600);
        assert_eq!(waits(&mut budgets, much_later), [0, 0, 0, 0, 100, 200]);
    }

    #[test]
    fn holders_whose_budget_is_whole_are_forgotten() {
        let (mut budgets, now) = (Budgets::default(), Instant::now());
        for holder in 0..10 * MANY {
            budgets.take(holder, RATE, now + Duration::from_millis(holder as u64));
        }
        assert!(budgets.whole.len() <= 2 * MANY, "{}", budgets.whole.len());
    }
}
