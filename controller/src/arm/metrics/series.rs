//! Figures over time, joined to the intervals that a request asks for.

/// Figures with their times, in seconds of Unix time.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Samples {
    /// Times and figures, ordered by time.
    pub(super) all: Vec<(u64, f64)>,
    /// Where no figure means 0. `None`: it means that nothing is known.
    pub(super) zeros: Option<Zeros>,
}

/// Where a time without a figure has the figure 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Zeros {
    /// From this time on.
    pub(super) from: u64,
    /// Before this time.
    pub(super) to: u64,
    /// Time between two figures, in seconds.
    pub(super) step: u64,
}

/// The figures of one interval together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Joined {
    pub(super) total: f64,
    pub(super) minimum: f64,
    pub(super) maximum: f64,
    pub(super) count: u32,
}

impl Joined {
    pub(super) fn average(&self) -> f64 {
        self.total / f64::from(self.count.max(1))
    }

    const fn of(figure: f64) -> Self {
        Self {
            total: figure,
            minimum: figure,
            maximum: figure,
            count: 1,
        }
    }

    fn plus(self, figure: f64) -> Self {
        Self {
            total: self.total + figure,
            minimum: self.minimum.min(figure),
            maximum: self.maximum.max(figure),
            count: self.count.saturating_add(1),
        }
    }
}

impl Samples {
    /// The intervals of `step` seconds from `from` until before `to`, each with its beginning. `None`: nothing is known.
    /// The caller limits their number.
    pub(super) fn by_interval(&self, from: u64, to: u64, step: u64) -> Vec<(u64, Option<Joined>)> {
        let mut intervals: Vec<(u64, Option<Joined>)> = (from..to)
            .step_by(usize::try_from(step).unwrap_or(usize::MAX))
            .map(|start| (start, None))
            .collect();
        let index = |time: u64| usize::try_from(time.checked_sub(from)? / step).ok();
        let mut add = |time: u64, figure: f64| {
            if let Some((_, joined)) = index(time).and_then(|at| intervals.get_mut(at)) {
                *joined = Some(joined.map_or(Joined::of(figure), |joined| joined.plus(figure)));
            }
        };
        let mut given = self.all.iter().peekable();
        let zeros = self.zeros.iter().flat_map(|zeros| {
            let first = zeros.from.max(from) / zeros.step * zeros.step;
            let times = first.max(from.next_multiple_of(zeros.step))..zeros.to.min(to);
            times.step_by(usize::try_from(zeros.step).unwrap_or(usize::MAX))
        });
        for zero in zeros {
            while let Some((time, figure)) = given.next_if(|(time, _)| *time < zero) {
                add(*time, *figure);
            }
            if given.peek().is_none_or(|(time, _)| *time != zero) {
                add(zero, 0.0);
            }
        }
        for (time, figure) in given {
            add(*time, *figure);
        }
        intervals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(samples: &Samples, from: u64, to: u64, step: u64) -> Vec<Option<(f64, u32)>> {
        let joined = samples.by_interval(from, to, step).into_iter();
        joined.map(|(_, j)| j.map(|j| (j.total, j.count))).collect()
    }

    #[test]
    fn figures_are_joined_by_interval() {
        let samples = Samples {
            all: vec![(50, 9.0), (60, 1.0), (120, 3.0), (180, 5.0), (600, 7.0)],
            zeros: None,
        };
        let expected = [Some((4.0, 2)), Some((5.0, 1)), None];
        assert_eq!(totals(&samples, 60, 420, 120), expected);
        let (_, first) = samples.by_interval(60, 420, 120)[0];
        let first = first.unwrap();
        assert_eq!((first.average(), first.minimum, first.maximum), (2.0, 1.0, 3.0));
    }

    #[test]
    fn times_without_a_figure_are_zero_where_all_is_known() {
        let samples = Samples {
            all: vec![(120, 3.0)],
            zeros: Some(Zeros {
                from: 70,
                to: 250,
                step: 60,
            }),
        };
        let expected = [Some((3.0, 2)), Some((0.0, 2)), None];
        assert_eq!(totals(&samples, 60, 420, 120), expected);
        let late = Samples {
            zeros: Some(Zeros {
                from: 0,
                to: 1000,
                step: 60,
            }),
            ..samples
        };
        assert_eq!(
            totals(&late, 90, 150, 60),
            [Some((3.0, 1))],
            "the figure of the minute that begins within it"
        );
    }
}
