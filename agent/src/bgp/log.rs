//! Copies BIRD's log lines into the agent's log. The rate is limited, because a hostile neighbour can cause any number
//! of lines.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tombolo_proto::id::ResourceId;

/// Largest number of lines that are copied within [`RATE_INTERVAL`], apart from lines at the level "debug"; further
/// lines are only counted. Twenty lines a second are enough to diagnose a session, and too few to fill a disk soon.
const MAX_LINES: u32 = 20;
const RATE_INTERVAL: Duration = Duration::from_secs(1);

/// The rate limit, and the count of lines that it suppressed.
#[derive(Debug, Default)]
pub(super) struct Log {
    interval_start: Option<Instant>,
    written: u32,
    suppressed: u32,
}

impl Log {
    /// Copies a line into the agent's log. If the line names a neighbour's protocol, the entry has the neighbour too
    /// (`names`: neighbours by the name of their protocol). Lines of BIRD's levels TRACE, DBG, INFO and FATAL are
    /// copied at the level "debug", and do not count for the limit. Returns whether the line reports a state change of
    /// a neighbour's session, also if it was suppressed.
    pub(super) fn write(&mut self, line: &str, names: &BTreeMap<String, ResourceId>) -> bool {
        let (level, text) = split(line);
        let (name, message) = text.split_once(": ").unwrap_or(("", text));
        let neighbour = names.get(name);
        let text = if neighbour.is_some() { message } else { text };
        let is_change = neighbour.is_some() && message.starts_with("State changed");
        if matches!(level, "TRACE" | "DBG" | "INFO" | "FATAL") {
            // BIRD logs each orderly shutdown as FATAL, so this level is no reason for a warning.
            tracing::debug!(neighbour = neighbour.map(tracing::field::display), "bird: {text}");
            return is_change;
        }
        if self.interval_start.is_none_or(|s| s.elapsed() > RATE_INTERVAL) {
            if self.suppressed > 0 {
                tracing::warn!(lines = self.suppressed, "log lines of bird were suppressed");
            }
            (self.interval_start, self.written, self.suppressed) = (Some(Instant::now()), 0, 0);
        }
        if self.written >= MAX_LINES {
            self.suppressed += 1;
            return is_change;
        }
        self.written += 1;
        let neighbour = neighbour.map(tracing::field::display);
        match level {
            // In lines of this level BIRD quotes what the neighbour has sent, such as the reason in a NOTIFICATION. So
            // the line is no sign of a fault on this host.
            "RMT" => tracing::info!(neighbour, "bird: {text}"),
            _ => tracing::warn!(neighbour, "bird: {text}"),
        }
        is_change
    }
}

/// Splits `2026-11-26 08:30:16.233 <TRACE> n_x: State changed to up` into the level and the text after it. If a line
/// has no level, the level is empty and the text is the whole line.
fn split(line: &str) -> (&str, &str) {
    let level = line.split_once('<').and_then(|(_, rest)| rest.split_once("> "));
    level.unwrap_or(("", line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_noticed_and_floods_are_not_written() {
        let names = BTreeMap::from([("n_a".to_owned(), ResourceId::new("/c/1"))]);
        let mut log = Log::default();
        for (line, change) in [
            ("2026-11-26 08:30:16.233 <TRACE> n_a: State changed to up", true),
            ("2026-11-26 08:30:16.233 <TRACE> n_b: State changed to up", false),
            (
                "2026-11-26 08:30:16.233 <RMT> n_a: Received: Administrative shutdown",
                false,
            ),
            ("setpriv: failed to execute", false),
            ("", false),
        ] {
            assert_eq!(log.write(line, &names), change, "{line}");
        }
        for _ in 0..100 {
            log.write("x <RMT> n_a: Invalid route", &names);
        }
        assert_eq!((log.written, log.suppressed), (MAX_LINES, 83));
        assert_eq!(split("a <WARN> b: <c> d"), ("WARN", "b: <c> d"));
    }
}
