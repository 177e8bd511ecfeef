//! Finds the paths that carry the most batches.

use tombolo_engine::buffer::Path;

/// Number of paths that are counted at the same time. By the bound of Misra and Gries, any path that carries more than
/// one in nine batches has a counter.
const MAX_COUNTED: usize = 8;

/// Count at which a path is heavily used. A count is the number of the path's batches, minus one for each batch of a
/// path that got no counter meanwhile. A lower threshold would open sockets for short exchanges. With a higher
/// threshold the lane would notice a bulk flow later.
const THRESHOLD: u32 = 16;

/// Counts frequent paths in bounded space, by the algorithm of Misra and Gries ("Finding repeated elements", 1982).
#[derive(Debug, Default)]
pub(super) struct HeavyHitters {
    counts: Vec<(Path, u32)>,
}

impl HeavyHitters {
    /// Counts one batch that was sent on `path`.
    pub(super) fn record(&mut self, path: Path) {
        if let Some((_, count)) = self.counts.iter_mut().find(|(p, _)| *p == path) {
            *count = count.saturating_add(1);
        } else if self.counts.len() < MAX_COUNTED {
            self.counts.push((path, 1));
        } else {
            self.counts.retain_mut(|(_, count)| {
                *count -= 1;
                *count > 0
            });
        }
    }

    /// Removes and returns a path whose count has reached the threshold. Its count restarts at zero. None: no path has.
    pub(super) fn take_heavy(&mut self) -> Option<Path> {
        let at = self.counts.iter().position(|(_, count)| *count >= THRESHOLD)?;
        Some(self.counts.swap_remove(at).0)
    }

    /// Drops all counts. The caller does this at intervals, so that slow, long-lived paths never reach the threshold.
    pub(super) fn reset(&mut self) {
        self.counts.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::net::SocketAddr;

    fn path(number: u16) -> Path {
        Path::from(SocketAddr::from(([192, 0, 2, 1], number)))
    }

    #[test]
    fn a_heavy_path_is_reported_once() {
        let mut heavy = HeavyHitters::default();
        for n in 1..THRESHOLD {
            heavy.record(path(1));
            heavy.record(path(n as u16 + 1));
            assert_eq!(heavy.take_heavy(), None);
        }
        for _ in 0..2 * MAX_COUNTED {
            heavy.record(path(1));
        }
        assert_eq!((heavy.take_heavy(), heavy.take_heavy()), (Some(path(1)), None));
        for _ in 1..THRESHOLD {
            heavy.record(path(1));
        }
        heavy.reset();
        heavy.record(path(1));
        assert_eq!(heavy.take_heavy(), None);
    }

    proptest! {
        /// The algorithm guarantees that a count is too low by at most a ninth of all batches.
        #[test]
        fn no_frequent_path_is_missed(taken in prop::collection::vec(0u16..40, 0..2000)) {
            let (mut heavy, mut all) = (HeavyHitters::default(), BTreeMap::<u16, usize>::new());
            for number in &taken {
                heavy.record(path(*number));
                *all.entry(*number).or_default() += 1;
            }
            prop_assert!(heavy.counts.len() <= MAX_COUNTED);
            for (number, count) in all {
                let seen = heavy.counts.iter().find(|(p, _)| *p == path(number)).map_or(0, |(_, n)| *n as usize);
                prop_assert!(seen <= count && count - seen <= taken.len() / (MAX_COUNTED + 1));
            }
        }
    }
}
