//! Which paths most batches take.

use tombolo_engine::buffer::Path;

/// Most paths that are counted at a time. One that more than a ninth of all batches take is never missed.
const COUNTED: usize = 8;

/// A path of which so many batches more were seen than of the others that shared its place is busy.
const ENOUGH: u32 = 16;

/// Counts frequent paths in bounded space, as Misra and Gries do ("Finding repeated elements", 1982).
#[derive(Debug, Default)]
pub(super) struct Busy {
    counts: Vec<(Path, u32)>,
}

impl Busy {
    /// A batch was sent this way.
    pub(super) fn sent(&mut self, path: Path) {
        if let Some((_, count)) = self.counts.iter_mut().find(|(p, _)| *p == path) {
            *count = count.saturating_add(1);
        } else if self.counts.len() < COUNTED {
            self.counts.push((path, 1));
        } else {
            self.counts.retain_mut(|(_, count)| {
                *count -= 1;
                *count > 0
            });
        }
    }

    /// A busy path, which is counted from the beginning then.
    pub(super) fn take(&mut self) -> Option<Path> {
        let at = self.counts.iter().position(|(_, count)| *count >= ENOUGH)?;
        Some(self.counts.swap_remove(at).0)
    }

    /// What was seldom used for long is not busy by being used long.
    pub(super) fn begin_again(&mut self) {
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
    fn a_path_that_is_much_used_is_busy_once() {
        let mut busy = Busy::default();
        for n in 1..ENOUGH {
            busy.sent(path(1));
            busy.sent(path(n as u16 + 1));
            assert_eq!(busy.take(), None);
        }
        for _ in 0..2 * COUNTED {
            busy.sent(path(1));
        }
        assert_eq!((busy.take(), busy.take()), (Some(path(1)), None));
        for _ in 1..ENOUGH {
            busy.sent(path(1));
        }
        busy.begin_again();
        busy.sent(path(1));
        assert_eq!(busy.take(), None);
    }

    proptest! {
        /// The promise of Misra and Gries: a count is too low by at most a ninth of all.
        #[test]
        fn no_frequent_path_is_missed(taken in prop::collection::vec(0u16..40, 0..2000)) {
            let (mut busy, mut all) = (Busy::default(), BTreeMap::<u16, usize>::new());
            for number in &taken {
                busy.sent(path(*number));
                *all.entry(*number).or_default() += 1;
            }
            prop_assert!(busy.counts.len() <= COUNTED);
            for (number, count) in all {
                let seen = busy.counts.iter().find(|(p, _)| *p == path(number)).map_or(0, |(_, n)| *n as usize);
                prop_assert!(seen <= count && count - seen <= taken.len() / (COUNTED + 1));
            }
        }
    }
}
