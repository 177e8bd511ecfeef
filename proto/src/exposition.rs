//! Prometheus' text format (version 0.0.4), in which controller and agents show their metrics.

use std::fmt::{Display, Write as _};

/// The content type of [`Text`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, from the start of the process.
    Counter,
    /// Grows and shrinks.
    Gauge,
    /// Counts by buckets.
    Histogram,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Metrics as text.
#[derive(Debug, Default)]
pub struct Text(String);

impl Text {
    /// Begins a metric. `help` is one line.
    pub fn metric(&mut self, name: &'static str, kind: Kind, help: &str) -> Samples<'_> {
        // Writing to a string does not fail, here and below.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {}", kind.name());
        Samples {
            text: &mut self.0,
            name,
        }
    }

    /// All of it.
    #[must_use]
    pub fn finish(self) -> String {
        self.0
    }
}

/// The samples of one metric.
#[derive(Debug)]
pub struct Samples<'a> {
    text: &'a mut String,
    name: &'static str,
}

impl Samples<'_> {
    /// Adds a sample.
    pub fn add(&mut self, labels: &[(&str, &str)], value: impl Display) -> &mut Self {
        self.add_part("", labels, value)
    }

    /// Adds a sample of a part of a histogram, such as `_sum`.
    pub fn add_part(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) -> &mut Self {
        let (text, name) = (&mut *self.text, self.name);
        let _ = write!(text, "{name}{suffix}");
        for (n, (label, value)) in labels.iter().enumerate() {
            let before = if n == 0 { '{' } else { ',' };
            let _ = write!(text, "{before}{label}=\"{}\"", escaped(value));
        }
        let _ = writeln!(text, "{} {value}", if labels.is_empty() { "" } else { "}" });
        self
    }
}

/// Names that others chose may have any character.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_written_as_prometheus_reads_them() {
        let mut text = Text::default();
        text.metric("a_total", Kind::Counter, "Some.").add(&[], 3);
        text.metric("b", Kind::Gauge, "Others.")
            .add(&[("x", "1"), ("y", "say \"no\\yes\"\nagain")], 0.5)
            .add_part("_sum", &[("x", "2")], 7);
        assert_eq!(
            text.finish(),
            "# HELP a_total Some.\n# TYPE a_total counter\na_total 3\n# HELP b Others.\n# TYPE b gauge\n\
             b{x=\"1\",y=\"say \\\"no\\\\yes\\\"\\nagain\"} 0.5\nb_sum{x=\"2\"} 7\n"
        );
    }
}
