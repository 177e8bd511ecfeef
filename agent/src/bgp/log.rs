//! BIRD's log lines in the agent's log, not more of them than anybody reads: neighbours can cause them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tombolo_proto::id::ResourceId;

/// Most lines within `SPAN`.
const MOST: u32 = 20;
const SPAN: Duration = Duration::from_secs(1);

/// Writes lines, and counts those that it leaves out.
#[derive(Debug, Default)]
pub(super) struct Log {
    since: Option<Instant>,
    written: u32,
    left_out: u32,
}

impl Log {
    /// Writes a line, with the neighbour that it is about. Returns whether it says that a session changed.
    pub(super) fn write(&mut self, line: &str, names: &BTreeMap<String, ResourceId>) -> bool {
        let (level, text) = split(line);
        let (name, said) = text.split_once(": ").unwrap_or(("", text));
        let neighbour = names.get(name);
        let text = if neighbour.is_some() { said } else { text };
        let is_change = neighbour.is_some() && said.starts_with("State changed");
        if matches!(level, "TRACE" | "DBG" | "INFO" | "FATAL") {
            // FATAL is how BIRD says goodbye.
            tracing::debug!(neighbour = neighbour.map(tracing::field::display), "bird: {text}");
            return is_change;
        }
        if self.since.is_none_or(|s| s.elapsed() > SPAN) {
            if self.left_out > 0 {
                tracing::warn!(lines = self.left_out, "bird said more than was written here");
            }
            (self.since, self.written, self.left_out) = (Some(Instant::now()), 0, 0);
        }
        if self.written >= MOST {
            self.left_out += 1;
            return is_change;
        }
        self.written += 1;
        let neighbour = neighbour.map(tracing::field::display);
        match level {
            "RMT" => tracing::info!(neighbour, "bird: {text}"),
            _ => tracing::warn!(neighbour, "bird: {text}"),
        }
        is_change
    }
}

/// `2026-11-26 08:30:16.233 <TRACE> n_x: State changed to up`: the level, and what comes after it.
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
        assert_eq!((log.written, log.left_out), (MOST, 83));
        assert_eq!(split("a <WARN> b: <c> d"), ("WARN", "b: <c> d"));
    }
}
