//! Limits log lines that another agent can cause. A few lines of each kind are written in each interval. The first line
//! of the next interval says how many lines were suppressed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tombolo_proto::id::AgentId;

/// Largest number of lines of one kind about one agent in each [`WINDOW`]. A normal failover stays below the limit, so
/// all of its lines are written. A peer whose link goes up and down all the time causes at most one line of each kind
/// every two seconds on average.
const MAX_LINES: u32 = 5;
const WINDOW: Duration = Duration::from_secs(10);

/// Counts recent log lines by agent and kind. An entry stays until [`keep`](Self::keep) removes it.
#[derive(Debug, Default)]
pub struct LogLimiter {
    lines: BTreeMap<(AgentId, &'static str), Lines>,
}

#[derive(Debug)]
struct Lines {
    since: Instant,
    written: u32,
    suppressed: u64,
}

/// Permission to write one log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permit {
    /// How many lines of this kind about this agent were suppressed since the last such line that was written. None: no
    /// line was suppressed.
    pub suppressed: Option<u64>,
}

impl LogLimiter {
    /// Returns a permit if a line of `kind` about the agent `about` may be written at `now`: at most five in an
    /// interval of ten seconds, which begins with the first line after the previous interval. `kind` is any label, and
    /// is case-sensitive. Times must not go back. The permit counts as used, so the caller writes the line. Otherwise
    /// counts the line as suppressed, and returns none.
    pub fn permit(&mut self, about: &AgentId, kind: &'static str, now: Instant) -> Option<Permit> {
        let lines = self.lines.entry((about.clone(), kind)).or_insert(Lines {
            since: now,
            written: 0,
            suppressed: 0,
        });
        if now.saturating_duration_since(lines.since) >= WINDOW {
            (lines.since, lines.written) = (now, 0);
        }
        if lines.written >= MAX_LINES {
            lines.suppressed += 1;
            return None;
        }
        lines.written += 1;
        let suppressed = std::mem::take(&mut lines.suppressed);
        Some(Permit {
            suppressed: Some(suppressed).filter(|n| *n > 0),
        })
    }

    /// Drops the counts of agents for which `is_known` is false. Their suppressed lines are never reported.
    pub fn keep(&mut self, is_known: impl Fn(&AgentId) -> bool) {
        self.lines.retain(|(about, _), _| is_known(about));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_few_lines_and_a_number() {
        let (mut log, now) = (LogLimiter::default(), Instant::now());
        let [a, b] = ["a", "b"].map(|name| AgentId::new(name).unwrap());
        let written = |log: &mut LogLimiter, about, kind, now| {
            let permits = (0..100).filter_map(|_| log.permit(about, kind, now));
            permits.map(|p| p.suppressed).collect::<Vec<_>>()
        };
        assert_eq!(written(&mut log, &a, "up", now), [None; 5]);
        assert_eq!(written(&mut log, &a, "down", now), [None; 5], "another kind");
        assert_eq!(written(&mut log, &b, "up", now), [None; 5], "another agent");
        let later = written(&mut log, &a, "up", now + WINDOW);
        assert_eq!(later, [Some(95), None, None, None, None]);
        log.keep(|about| *about == b);
        assert_eq!(log.lines.len(), 1);
    }
}
