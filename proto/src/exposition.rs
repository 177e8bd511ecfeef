//! Writes metrics in the text format of Prometheus (version 0.0.4).

use std::fmt::{Display, Write as _};

/// The content type of [`Text`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The type of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A value that only grows while the process runs.
    Counter,
    /// A value that grows and shrinks.
    Gauge,
    /// Numbers of observations, by bucket.
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

/// Builds the text of a response with metrics.
#[derive(Debug, Default)]
pub struct Text(String);

impl Text {
    /// Starts a metric and writes its `HELP` and `TYPE` lines. `help` must be one line without backslashes.
    pub fn metric(&mut self, name: &'static str, kind: Kind, help: &str) -> Samples<'_> {
        // Writing to a string does not fail, here and below.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {}", kind.name());
        Samples {
            text: &mut self.0,
            name,
        }
    }

    /// The complete text.
    #[must_use]
    pub fn finish(self) -> String {
        self.0
    }
}

/// Adds samples to one metric.
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

    /// Adds a sample with a suffix after the metric's name, such as `_sum` of a histogram.
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

/// Escapes a label's value; names chosen by others may contain any character.
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
