//! When a target is probed.

use std::time::{Duration, Instant};

/// The first probes of new targets are spread over this time, and not over the interval: a back end must not stay down
/// for a whole interval after each start of the agent.
const FIRST_PROBE_WINDOW: Duration = Duration::from_secs(1);

/// Azure allows 5 seconds and more. One second bounds the load if the caller does not check that.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
const MAX_INTERVAL: Duration = Duration::from_secs(86_400);

/// The interval that is used instead of `interval`.
pub(super) fn clamp(interval: Duration) -> Duration {
    interval.clamp(MIN_INTERVAL, MAX_INTERVAL)
}

/// The starts of a target's probes. The first start is within [`FIRST_PROBE_WINDOW`]. The others are one interval apart,
/// at a fixed phase of the interval, beginning between one and two intervals after the creation.
#[derive(Debug)]
pub(super) struct Cadence {
    interval: Duration,
    next: Instant,
    /// The second start, until the first one is done.
    second: Option<Instant>,
}

impl Cadence {
    /// `phase` is a fraction of the interval in units of 2⁻³².
    pub(super) fn new(now: Instant, interval: Duration, phase: u32) -> Self {
        let interval = clamp(interval);
        let fraction = f64::from(phase) / (f64::from(u32::MAX) + 1.0);
        Self {
            interval,
            next: now + FIRST_PROBE_WINDOW.mul_f64(fraction),
            second: Some(now + interval + interval.mul_f64(fraction)),
        }
    }

    /// The next start.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// Whether a probe starts now. If the start is due, `next` advances to the next start after `now`.
    ///
    /// A start is skipped if it is late by more than a quarter of the interval: the probe would have too little time
    /// before the next one, and after a pause of the agent all targets would be probed at once.
    pub(super) fn start(&mut self, now: Instant) -> bool {
        if now < self.next {
            return false;
        }
        let Some(second) = self.second.take() else {
            let late = self.advance(now);
            return late <= self.interval / 4;
        };
        self.next = second;
        if second <= now {
            self.advance(now);
        }
        true
    }

    /// Moves `next` after `now`, and returns how long the latest start is past.
    fn advance(&mut self, now: Instant) -> Duration {
        let elapsed = now.saturating_duration_since(self.next).as_nanos();
        // A remainder is less than the interval, which fits by `MAX_INTERVAL`.
        let late = Duration::from_nanos((elapsed % self.interval.as_nanos()) as u64);
        self.next = now + (self.interval - late);
        late
    }
}
