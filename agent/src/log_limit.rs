//! Lines of the log that another agent or a neighbour can cause: a few of each kind, then a count of those that were left out.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tombolo_proto::id::AgentId;

/// Lines of one kind about one agent within [`SPAN`].
const MOST: u32 = 5;
const SPAN: Duration = Duration::from_secs(10);

/// Which lines were written lately.
#[derive(Debug, Default)]
pub struct LogLimiter {
    lines: BTreeMap<(AgentId, &'static str), Lines>,
}

#[derive(Debug)]
struct Lines {
    since: Instant,
    written: u32,
    left_out: u64,
}

/// A line may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permit {
    /// So many of its kind were not written since the last one; none: all were.
    pub left_out: Option<u64>,
}

impl LogLimiter {
    /// Whether a line of this kind may be written about an agent. If not, it is counted.
    pub fn permit(&mut self, about: &AgentId, kind: &'static str, now: Instant) -> Option<Permit> {
        let lines = self.lines.entry((about.clone(), kind)).or_insert(Lines {
            since: now,
            written: 0,
            left_out: 0,
        });
        if now.saturating_duration_since(lines.since) >= SPAN {
            (lines.since, lines.written) = (now, 0);
        }
        if lines.written >= MOST {
            lines.left_out += 1;
            return None;
        }
        lines.written += 1;
        let left_out = std::mem::take(&mut lines.left_out);
        Some(Permit {
            left_out: Some(left_out).filter(|n| *n > 0),
        })
    }

    /// Forgets agents that are not meant any more.
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
            permits.map(|p| p.left_out).collect::<Vec<_>>()
        };
        assert_eq!(written(&mut log, &a, "up", now), [None; 5]);
        assert_eq!(written(&mut log, &a, "down", now), [None; 5], "another kind");
        assert_eq!(written(&mut log, &b, "up", now), [None; 5], "another agent");
        let later = written(&mut log, &a, "up", now + SPAN);
        assert_eq!(later, [Some(95), None, None, None, None]);
        log.keep(|about| *about == b);
        assert_eq!(log.lines.len(), 1);
    }
}
