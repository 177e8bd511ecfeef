//! How long a packet a path carries whole, found by probes inside the link (RFC 8899, D20): no ICMP is needed.
//!
//! ```text
//!   Check ── full size answered ──▶ Rest ── a while later ──▶ Check
//!     │ only the known size answered ──▶ Rest
//!     │ neither
//!     ▼
//!   Search: sixteen sizes at once between what passes and what does not, again between two neighbours, ──▶ Rest
//! ```
//! Probes may not be cut on their way; packets may, until the size is known, so that a path that carries pieces carries
//! everything in the meantime. Sizes are those of inner packets.

use std::time::{Duration, Instant};

/// What is taken to pass where nothing else is known, bytes: an underlay of 1,280 less the tunnel's own over IPv6.
pub(super) const BASE: u16 = 1280 - 40 - 8 - 32;

/// No path is narrower: the smallest that IPv4 hosts must take, 576 bytes, less the tunnel's own.
const FLOOR: u16 = 576 - 20 - 8 - 32;

/// Sizes that are tried at once.
const GRID: u16 = 16;

/// A size that is so near to one that does not pass is good enough.
const PRECISION: u16 = 2;

/// How often a size is tried.
const TRIES: u32 = 3;

/// Least time for an answer, besides three round trips.
const PATIENCE: Duration = Duration::from_millis(150);

/// What is known is looked at again so often.
const REST: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Check,
    /// Between a size that passes (or is taken to) and one that does not.
    Search {
        below: u16,
    },
    Rest {
        until: Instant,
    },
}

/// The path of one link.
#[derive(Debug, Clone)]
pub(super) struct PathMtu {
    phase: Phase,
    /// Longest packet that is known to pass.
    known: Option<u16>,
    /// Longest answered in this phase.
    best: u16,
    tries: u32,
    sent: Option<Instant>,
    /// Sizes that were sent in this phase: nothing else can have been answered.
    asked: Vec<u16>,
}

impl Default for PathMtu {
    fn default() -> Self {
        Self {
            phase: Phase::Check,
            known: None,
            best: 0,
            tries: 0,
            sent: None,
            asked: Vec::new(),
        }
    }
}

impl PathMtu {
    /// Longest packet that is sent whole: what is known to pass, or, while it is being looked for, what surely does.
    /// None: there is no sign of a limit.
    pub(super) fn limit(&self) -> Option<u16> {
        match self.phase {
            Phase::Search { .. } => Some(self.best.max(BASE)),
            Phase::Check | Phase::Rest { .. } => self.known,
        }
    }

    /// The path may be another one now: look at once.
    pub(super) fn check_now(&mut self) {
        if !matches!(self.phase, Phase::Search { .. }) {
            self.enter(Phase::Check);
        }
    }

    /// A probe of this size was answered, as the other end says. Sizes that were not sent are ignored.
    pub(super) fn answered(&mut self, size: u16) {
        if self.asked.contains(&size) {
            self.best = self.best.max(size);
        }
    }

    /// What to send now, for packets of up to `full` bytes: nothing most of the time. To be called only while the other
    /// end answers short messages.
    pub(super) fn probes(&mut self, now: Instant, full: u16, rtt: Option<Duration>) -> Vec<u16> {
        // The known size is of another time.
        if self.known.is_some_and(|known| known > full) {
            self.known = Some(full);
        }
        if matches!(self.phase, Phase::Rest { until } if until <= now) {
            self.enter(Phase::Check);
        }
        if !matches!(self.phase, Phase::Rest { .. }) {
            self.conclude(now, full, rtt);
        }
        let due = match self.phase {
            Phase::Rest { .. } => return Vec::new(),
            Phase::Check | Phase::Search { .. } => self.sent.is_none(),
        };
        if !due {
            return Vec::new();
        }
        self.sent = Some(now);
        self.tries += 1;
        let sizes = match self.phase {
            Phase::Search { below } => grid(self.low(), below),
            Phase::Check | Phase::Rest { .. } => self.known.filter(|k| *k < full).into_iter().chain([full]).collect(),
        };
        let sizes: Vec<u16> = sizes.into_iter().filter(|size| *size > self.best).collect();
        for size in &sizes {
            if !self.asked.contains(size) {
                self.asked.push(*size);
            }
        }
        sizes
    }

    /// Ends a phase if there is nothing more to wait for, and a try if it is over.
    fn conclude(&mut self, now: Instant, full: u16, rtt: Option<Duration>) {
        if self.best >= full {
            return self.rest(now, full);
        }
        let wait = PATIENCE + 3 * rtt.unwrap_or_default();
        if self.sent.is_none_or(|sent| now.saturating_duration_since(sent) < wait) {
            return;
        }
        self.sent = None;
        if self.tries < TRIES {
            return;
        }
        match self.phase {
            Phase::Check => match self.known {
                Some(known) if self.best >= known => self.rest(now, known),
                Some(known) => self.enter(Phase::Search { below: known }),
                None => self.enter(Phase::Search { below: full }),
            },
            Phase::Search { below } => {
                let low = self.low();
                let above = grid(low, below).into_iter().find(|s| *s > self.best).unwrap_or(below);
                let best = self.best.max(low);
                if above.saturating_sub(best) <= PRECISION {
                    self.rest(now, best);
                } else {
                    (self.phase, self.tries, self.known) = (Phase::Search { below: above }, 0, Some(best));
                    self.asked.clear();
                }
            }
            Phase::Rest { .. } => {}
        }
    }

    /// The lower end of a search.
    fn low(&self) -> u16 {
        self.known.filter(|k| self.best >= *k).unwrap_or(FLOOR)
    }

    fn rest(&mut self, now: Instant, known: u16) {
        self.known = Some(known);
        self.enter(Phase::Rest { until: now + REST });
    }

    fn enter(&mut self, phase: Phase) {
        (self.phase, self.best, self.tries, self.sent) = (phase, 0, 0, None);
        self.asked.clear();
    }
}

/// Sizes between two, ascending, without the upper one.
fn grid(low: u16, below: u16) -> Vec<u16> {
    let width = below.saturating_sub(low);
    let step = width.div_ceil(GRID).max(1);
    let sizes = (1..GRID).map(|n| low.saturating_add(n.saturating_mul(step)));
    sizes.take_while(|size| *size < below).collect()
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the clock is the test's")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STEP: Duration = Duration::from_millis(50);

    /// A path of a width, which loses every `lose`th probe, and the limits it was given, in order.
    fn walk(path: &mut PathMtu, mut now: Instant, width: u16, full: u16, lose: usize, steps: u32) -> (Instant, usize) {
        let mut sent = 0;
        for _ in 0..steps {
            for size in path.probes(now, full, Some(STEP / 5)) {
                sent += 1;
                if size <= width && (lose == 0 || sent % lose != 0) {
                    path.answered(size);
                }
            }
            now += STEP;
        }
        (now, sent)
    }

    #[test]
    fn a_wide_path_costs_one_probe_now_and_then() {
        let mut path = PathMtu::default();
        assert_eq!(path.limit(), None);
        let (_, sent) = walk(&mut path, Instant::now(), 9000, 1420, 0, 200 * 3);
        assert_eq!((path.limit(), sent), (Some(1420), 3));
    }

    #[test]
    fn a_path_that_narrows_and_widens_is_followed() {
        let mut path = PathMtu::default();
        let (now, _) = walk(&mut path, Instant::now(), 1500, 1420, 0, 20);
        assert_eq!(path.limit(), Some(1420));
        let (now, _) = walk(&mut path, now, 1233, 1420, 0, 300);
        assert!((1232..=1233).contains(&path.limit().unwrap()), "{path:?}");
        let (now, _) = walk(&mut path, now, 900, 1420, 0, 300);
        assert!((899..=900).contains(&path.limit().unwrap()), "{path:?}");
        walk(&mut path, now, 1500, 1420, 0, 300);
        assert_eq!(path.limit(), Some(1420));
    }

    #[test]
    fn while_it_is_looked_for_packets_stay_short() {
        let mut path = PathMtu::default();
        let mut now = Instant::now();
        walk(&mut path, now, 1300, 1420, 0, 1);
        let mut limits = Vec::new();
        for _ in 0..60 {
            (now, _) = walk(&mut path, now + STEP, 1300, 1420, 0, 1);
            limits.push(path.limit());
        }
        assert!(limits.iter().flatten().all(|l| (BASE..=1300).contains(l)), "{limits:?}");
        assert!(limits.iter().flatten().next().is_some_and(|l| *l < 1298), "{limits:?}");
        // Three tries of the full size, and two rounds of the search.
        assert!(limits[40].is_some_and(|l| l >= 1298), "{limits:?}");
    }

    /// What the other end says of sizes that were never sent to it, above what is being looked for or anywhere, counts for nothing.
    #[test]
    fn answers_to_sizes_that_were_not_asked_for_are_ignored() {
        let mut path = PathMtu::default();
        let (mut now, _) = walk(&mut path, Instant::now(), 1000, 1420, 0, 300);
        // It narrows: what is looked for is below what was known.
        for step in 0..300u16 {
            for size in [0, 701 + step, 1001, 1419, 1421, 9000, u16::MAX] {
                path.answered(size);
            }
            (now, _) = walk(&mut path, now, 700, 1420, 0, 1);
        }
        assert!((699..=700).contains(&path.limit().unwrap()), "{path:?}");
    }

    proptest! {
        /// Whatever the path: what is found passes, and no more than the precision is given away.
        #[test]
        fn any_width_is_found(width in 600u16..1500, full in 1280u16..1500, lose in prop_oneof![Just(0), 4usize..9]) {
            let mut path = PathMtu::default();
            walk(&mut path, Instant::now(), width, full, lose, 190);
            let limit = path.limit().unwrap();
            prop_assert!(limit <= width.min(full), "{} over {}", limit, width);
            // What is lost every time by bad luck is taken for too long.
            let given_away = if lose == 0 { PRECISION } else { 60 };
            prop_assert!(limit + given_away >= width.min(full), "{} of {}", limit, width);
        }
    }
}
