//! The membership that a rule had before its last change: by it, a gateway finds the back ends of established flows of
//! which it remembers no choice (L4, L7, D35).

use super::{Among, Choice, Rule};
use crate::packet::PacketInfo;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// A rule as it was before its last change. Later tables with the same membership share one value.
#[derive(Debug)]
pub(crate) struct Previous {
    rule: Rule,
    change: OnceLock<MembershipChange>,
}

/// A change of a rule's membership, as the first lane that installed it has noted it.
#[derive(Debug, Clone, Copy)]
struct MembershipChange {
    at: Instant,
    /// Whether flows can have begun before the change.
    counts: bool,
}

impl Previous {
    /// What `rule` has to remember if the tables before have the rule `before`. `None`: the rule never changed.
    pub(super) fn of(before: &Rule, rule: &Rule) -> Option<Arc<Self>> {
        if before.has_membership_of(rule) {
            return before.previous.clone();
        }
        let before = Rule {
            previous: None,
            ..before.clone()
        };
        Some(Arc::new(Self {
            rule: before,
            change: OnceLock::new(),
        }))
    }

    /// Notes that a lane has installed the change at `now`. Only the first call for a change has an effect. `counts`:
    /// whether flows can have begun before the change.
    pub(super) fn begin(&self, now: Instant, counts: bool) {
        self.change.get_or_init(|| MembershipChange { at: now, counts });
    }

    /// The back end that the rule would have chosen before the change. `None`: it had none, or the change does not count,
    /// or it was longer than `timeout` seconds ago, so that flows from before it have ended or are known.
    pub(super) fn choose(&self, packet: &PacketInfo, timeout: u32, now: Instant) -> Option<Choice> {
        let change = self.change.get().filter(|change| change.counts)?;
        let is_over = now.saturating_duration_since(change.at) > Duration::from_secs(timeout.into());
        let chosen = self.rule.choose(packet, Among::All).filter(|_| !is_over)?;
        Some(chosen.choice)
    }

    /// Whether the change was at most `time` ago, or no lane has installed it yet.
    pub(super) fn is_within(&self, time: Duration, now: Instant) -> bool {
        let change = self.change.get();
        change.is_none_or(|change| now.saturating_duration_since(change.at) <= time)
    }
}
