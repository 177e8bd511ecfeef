//! Writes metrics in the text format of Prometheus (version 0.0.4).

use std::fmt::{Display, Write as _};

/// The content type of an HTTP response with a [`Text`].
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

/// Builds the text of a response with metrics, in the order of the calls.
#[derive(Debug, Default)]
pub struct Text(String);

impl Text {
    /// Starts a metric: writes its `HELP` and `TYPE` lines, and returns the value that adds its samples. `help` must be
    /// one line without backslashes, and `name` a valid metric name that was not used before; neither is checked.
    pub fn metric(&mut self, name: &'static str, kind: Kind, help: &str) -> Samples<'_> {
        // Writing to a string does not fail, here and below.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {}", kind.name());
        Samples {
            text: &mut self.0,
            name,
        }
    }

    /// Returns the text with all metrics, ready to be the body of a response.
    #[must_use]
    pub fn finish(self) -> String {
        self.0
    }
}

/// Adds samples to one metric, until the next metric is started.
#[derive(Debug)]
pub struct Samples<'a> {
    text: &'a mut String,
    name: &'static str,
}

impl Samples<'_> {
    /// Adds a sample with these labels, given as name and value, and with `value` as `Display` formats it. Values of
    /// labels are escaped. Names of labels must be valid and two samples of a metric must differ in their labels; this
    /// is not checked.
    pub fn add(&mut self, labels: &[(&str, &str)], value: impl Display) -> &mut Self {
        self.add_part("", labels, value)
    }

    /// Adds a sample with a suffix after the metric's name, such as `_sum` of a histogram. The rest is as for
    /// [`add`](Self::add).
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

/// Escapes a label's value. The value may be a name that a user has chosen, with any characters.
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
