//! Path MTU discovery by probes inside the link (RFC 8899, D20). Discovery needs no ICMP errors. All sizes are lengths
//! of inner packets, in bytes.
//!
//! ```text
//!   Check ── full size answered ──────────▶ Done ── 10 s ──▶ Check
//!     │ ──── only the known size answered ──▶ Done
//!     │ neither answered
//!     ▼
//!   Search ── neighbouring sizes found ──▶ Done
//! ```
//!
//! A search probes up to 15 sizes at once, between a size that passes and a size that does not. In the next round it
//! probes sizes between the largest size that passed and the next larger one that was probed. Probes are sent with
//! don't-fragment. All other datagrams are sent without don't-fragment. If the path carries IP fragments, they arrive
//! even before the limit is known.

use std::time::{Duration, Instant};

/// Longest packet in bytes during a search, until a longer probe is acknowledged: 1,280 (the least MTU of IPv6) less
/// the IPv6, UDP and WireGuard headers.
pub(super) const BASE: u16 = 1280 - 40 - 8 - 32;

/// The least limit in bytes: the 576 bytes that every IPv4 host must accept (RFC 791), less the IPv4, UDP and WireGuard
/// headers.
const MIN_SIZE: u16 = 576 - 20 - 8 - 32;

/// Number of parts into which a search divides its interval of sizes. With 16 parts, two rounds of probes find a limit
/// among 256 sizes.
const GRID: u16 = 16;

/// A search ends when a size that passes and a size that does not are at most this number of bytes apart.
const PRECISION: u16 = 2;

/// Number of attempts with each size, as RFC 8899 recommends (`MAX_PROBES`).
const MAX_PROBES: u32 = 3;

/// The wait for acknowledgements of probes lasts three round-trip times and this time, because the peer may be busy,
/// and acknowledgements are evaluated only every 50 ms.
const PROBE_TIMEOUT: Duration = Duration::from_millis(150);

/// Interval at which the result is checked. RFC 8899 recommends 10 minutes. The interval is shorter here because, if
/// the path MTU has fallen, longer packets are lost until the next check.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Probes the full size (the MTU of the TUN device) and the known limit.
    Check,
    /// Probes sizes between a size that passes, or is assumed to pass, and a size that does not.
    Search {
        /// The least size that is known not to pass.
        below: u16,
    },
    /// The limit is known, and nothing is probed.
    Done {
        /// Time of the next check.
        until: Instant,
    },
}

/// Path MTU discovery of one link.
#[derive(Debug, Clone)]
pub(super) struct PathMtu {
    phase: Phase,
    /// The limit that the last search or check found.
    known: Option<u16>,
    /// Largest size that was acknowledged in this phase; 0: none.
    best: u16,
    /// Number of attempts in this phase.
    attempts: u32,
    /// Time at which the probes in flight were sent; `None`: none are in flight.
    sent_at: Option<Instant>,
    /// Sizes that were probed in this phase. Acknowledgements of other sizes are ignored.
    probed: Vec<u16>,
}

impl Default for PathMtu {
    fn default() -> Self {
        Self {
            phase: Phase::Check,
            known: None,
            best: 0,
            attempts: 0,
            sent_at: None,
            probed: Vec::new(),
        }
    }
}

impl PathMtu {
    /// Longest packet that may be sent without fragmentation, in bytes. During a search the limit is the larger of
    /// [`BASE`] and the largest size acknowledged in this search. In the other phases it is the result of the last
    /// search or check. `None`: nothing shows that the path has a limit.
    pub(super) fn limit(&self) -> Option<u16> {
        match self.phase {
            Phase::Search { .. } => Some(self.best.max(BASE)),
            Phase::Check | Phase::Done { .. } => self.known,
        }
    }

    /// Checks the limit with the next [`probes`](Self::probes), because the path may have changed. A search in progress
    /// continues.
    pub(super) fn check_now(&mut self) {
        if !matches!(self.phase, Phase::Search { .. }) {
            self.enter(Phase::Check);
        }
    }

    /// Records that the peer has acknowledged a probe of `size` bytes. Sizes that were not probed in this phase are
    /// ignored.
    pub(super) fn acknowledged(&mut self, size: u16) {
        if self.probed.contains(&size) {
            self.best = self.best.max(size);
        }
    }

    /// Returns the sizes in bytes that the caller must probe now; most of the time there are none. `full` is the MTU of
    /// the device, `rtt` the round-trip time of the link if it is known. The owner calls this method every 50 ms, but
    /// only while the peer answers short messages. If the peer answered nothing at all, a lost probe would not show
    /// that the probe was too long.
    pub(super) fn probes(&mut self, now: Instant, full: u16, rtt: Option<Duration>) -> Vec<u16> {
        // The MTU of the device was lowered.
        if self.known.is_some_and(|known| known > full) {
            self.known = Some(full);
        }
        if matches!(self.phase, Phase::Done { until } if until <= now) {
            self.enter(Phase::Check);
        }
        if !matches!(self.phase, Phase::Done { .. }) {
            self.conclude(now, full, rtt);
        }
        let due = match self.phase {
            Phase::Done { .. } => return Vec::new(),
            Phase::Check | Phase::Search { .. } => self.sent_at.is_none(),
        };
        if !due {
            return Vec::new();
        }
        self.sent_at = Some(now);
        self.attempts += 1;
        let sizes = match self.phase {
            Phase::Search { below } => grid(self.low(), below),
            Phase::Check | Phase::Done { .. } => self.known.filter(|k| *k < full).into_iter().chain([full]).collect(),
        };
        let sizes: Vec<u16> = sizes.into_iter().filter(|size| *size > self.best).collect();
        for size in &sizes {
            if !self.probed.contains(size) {
                self.probed.push(*size);
            }
        }
        sizes
    }

    /// Ends the phase if its result is certain. Ends the present attempt if the time to wait for its acknowledgements
    /// has passed.
    fn conclude(&mut self, now: Instant, full: u16, rtt: Option<Duration>) {
        if self.best >= full {
            return self.finish(now, full);
        }
        let wait = PROBE_TIMEOUT + 3 * rtt.unwrap_or_default();
        if self
            .sent_at
            .is_none_or(|sent| now.saturating_duration_since(sent) < wait)
        {
            return;
        }
        self.sent_at = None;
        if self.attempts < MAX_PROBES {
            return;
        }
        match self.phase {
            Phase::Check => match self.known {
                Some(known) if self.best >= known => self.finish(now, known),
                Some(known) => self.enter(Phase::Search { below: known }),
                None => self.enter(Phase::Search { below: full }),
            },
            Phase::Search { below } => {
                let low = self.low();
                let above = grid(low, below).into_iter().find(|s| *s > self.best).unwrap_or(below);
                let best = self.best.max(low);
                if above.saturating_sub(best) <= PRECISION {
                    self.finish(now, best);
                } else {
                    (self.phase, self.attempts, self.known) = (Phase::Search { below: above }, 0, Some(best));
                    self.probed.clear();
                }
            }
            Phase::Done { .. } => {}
        }
    }

    /// The lower end of a search: the known limit if a probe of this size was acknowledged in this phase, otherwise
    /// [`MIN_SIZE`].
    fn low(&self) -> u16 {
        self.known.filter(|k| self.best >= *k).unwrap_or(MIN_SIZE)
    }

    fn finish(&mut self, now: Instant, known: u16) {
        self.known = Some(known);
        self.enter(Phase::Done {
            until: now + CHECK_INTERVAL,
        });
    }

    fn enter(&mut self, phase: Phase) {
        (self.phase, self.best, self.attempts, self.sent_at) = (phase, 0, 0, None);
        self.probed.clear();
    }
}

/// At most 15 sizes between `low` and `below`, ascending and without these two.
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

    const TIME_STEP: Duration = Duration::from_millis(50);

    /// Runs discovery for `steps` of 50 ms on a path that carries `width` bytes and loses every `lose`th probe (0:
    /// none). Returns the time at the end, and the number of probes.
    fn walk(path: &mut PathMtu, mut now: Instant, width: u16, full: u16, lose: usize, steps: u32) -> (Instant, usize) {
        let mut sent = 0;
        for _ in 0..steps {
            for size in path.probes(now, full, Some(TIME_STEP / 5)) {
                sent += 1;
                if size <= width && (lose == 0 || sent % lose != 0) {
                    path.acknowledged(size);
                }
            }
            now += TIME_STEP;
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
            (now, _) = walk(&mut path, now + TIME_STEP, 1300, 1420, 0, 1);
            limits.push(path.limit());
        }
        assert!(limits.iter().flatten().all(|l| (BASE..=1300).contains(l)), "{limits:?}");
        assert!(limits.iter().flatten().next().is_some_and(|l| *l < 1298), "{limits:?}");
        // After 41 steps the three attempts with the full size, and two rounds of the search, have ended.
        assert!(limits[40].is_some_and(|l| l >= 1298), "{limits:?}");
    }

    /// Acknowledgements of sizes that were never probed are ignored, whether the size is below or above the limit.
    #[test]
    fn answers_to_sizes_that_were_not_asked_for_are_ignored() {
        let mut path = PathMtu::default();
        let (mut now, _) = walk(&mut path, Instant::now(), 1000, 1420, 0, 300);
        // The path's limit falls to 700 bytes, so the search runs below the known limit of about 1,000 bytes.
        for step in 0..300u16 {
            for size in [0, 701 + step, 1001, 1419, 1421, 9000, u16::MAX] {
                path.acknowledged(size);
            }
            (now, _) = walk(&mut path, now, 700, 1420, 0, 1);
        }
        assert!((699..=700).contains(&path.limit().unwrap()), "{path:?}");
    }

    proptest! {
        /// On any path, packets of the found limit pass, and the limit is at most [`PRECISION`] below the path's MTU.
        #[test]
        fn any_width_is_found(width in 600u16..1500, full in 1280u16..1500, lose in prop_oneof![Just(0), 4usize..9]) {
            let mut path = PathMtu::default();
            walk(&mut path, Instant::now(), width, full, lose, 190);
            let limit = path.limit().unwrap();
            prop_assert!(limit <= width.min(full), "{} over {}", limit, width);
            // If all probes of a size are lost by chance, the size counts as too long, and the found limit is lower
            // than necessary.
            let given_away = if lose == 0 { PRECISION } else { 60 };
            prop_assert!(limit + given_away >= width.min(full), "{} of {}", limit, width);
        }
    }
}
