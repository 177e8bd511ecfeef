//! Histograms of durations as Prometheus defines them: cumulative buckets, a sum and a count.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tombolo_proto::exposition::{Kind, Text};

/// Upper bounds of the buckets, in microseconds. One of them is 100 ms, the target for convergence; the others are
/// smaller and larger times.
const BOUNDS: [u64; 12] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 5_000_000, 30_000_000,
];

/// A histogram of durations with the buckets [`BOUNDS`]. Its text format is in seconds.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS.len()],
    count: AtomicU64,
    micros: AtomicU64,
}

impl Histogram {
    /// Counts a duration, in whole microseconds, in every bucket whose bound it does not exceed, and adds it to the
    /// sum.
    pub fn observe(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        for (bucket, bound) in self.buckets.iter().zip(BOUNDS) {
            if micros <= bound {
                bucket.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.micros.fetch_add(micros, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Appends the histogram to `out` as the metric `name`, with bounds and sum in seconds.
    pub(super) fn write(&self, out: &mut Text, name: &'static str, help: &str) {
        let seconds = |micros: u64| Duration::from_micros(micros).as_secs_f64();
        let read = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let mut samples = out.metric(name, Kind::Histogram, help);
        for (bucket, bound) in self.buckets.iter().zip(BOUNDS) {
            samples.add_part("_bucket", &[("le", &seconds(bound).to_string())], read(bucket));
        }
        samples
            .add_part("_bucket", &[("le", "+Inf")], read(&self.count))
            .add_part("_sum", &[], seconds(read(&self.micros)))
            .add_part("_count", &[], read(&self.count));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative() {
        let histogram = Histogram::default();
        histogram.observe(Duration::from_millis(3));
        histogram.observe(Duration::from_millis(90));
        histogram.observe(Duration::from_secs(100));
        let mut out = Text::default();
        histogram.write(&mut out, "x", "y");
        let out = out.finish();
        for line in [
            "x_bucket{le=\"0.0025\"} 0",
            "x_bucket{le=\"0.005\"} 1",
            "x_bucket{le=\"0.1\"} 2",
            "x_bucket{le=\"+Inf\"} 3",
            "x_count 3",
        ] {
            assert!(out.lines().any(|l| l == line), "{line}\n{out}");
        }
    }
}
