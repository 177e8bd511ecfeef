//! The check of established flows after a change of routes or rules (P13, D34). A lane checks a few entries of the flow
//! table at a time, so that packets do not wait for the check.

use super::flow_table::{FlowKey, FlowTable};
use super::flows::Flows;
use crate::decide::{Ingress, decide};
use crate::packet::{PacketInfo, TCP, UDP};
use crate::tables::{NicIndex, Tables};
use crate::verdict::Verdict;
use std::sync::Arc;
use tombolo_proto::config::Direction;

/// Largest number of earlier tables with which routes are compared. There are several if tables change again before a
/// check is complete.
const MAX_BEFORE: usize = 4;

/// Number of entries that one step checks. With 32 flows, a step takes less than 10 µs.
const STEP: usize = 32;

/// The check of one lane's part of the flow table. It marks each affected flow, so that the rules decide about the flow
/// again ([`FlowRef::judge_again`](super::FlowRef::judge_again)).
#[derive(Debug, Default)]
pub(super) struct Recheck {
    /// The number of entries that are to be checked. 0: no check is under way.
    left: usize,
    /// Whether another lane may still have older tables. A check begins when all lanes have the same ones. Otherwise a
    /// lane with older tables could apply its rules to a marked flow, and remove the mark.
    waits: bool,
    /// The entry at which the next step begins. If another change interrupts a check, the next check begins at this
    /// entry. So all entries are checked even if changes come faster than a check ends.
    at: usize,
    /// The tables before each change. Never more than [`MAX_BEFORE`].
    before: Vec<Arc<Tables>>,
    /// Whether there were more changes than [`MAX_BEFORE`]. Then every flow counts as one that had a route.
    had_more: bool,
    /// Whether the change affects all flows: the setting `reevaluate` is on, or the machine has other NICs.
    all: bool,
}

impl Recheck {
    /// Begins a check of the lane's `part` of the table, or begins it again. `before`: the tables that have been
    /// replaced. `None`: the agent has just started, and no flow can have lost its route. `all`: the rules must decide
    /// about all flows again.
    pub(super) fn begin(&mut self, part: usize, before: Option<&Arc<Tables>>, all: bool) {
        if before.is_none() && !all {
            return;
        }
        self.left = part;
        self.waits = true;
        self.all |= all;
        if let Some(before) = before {
            if self.before.len() < MAX_BEFORE {
                self.before.push(before.clone());
            } else {
                self.had_more = true;
            }
        }
    }

    /// Whether a check is under way after which the rules have decided about all flows again.
    pub(super) const fn concerns_all(&self) -> bool {
        self.left > 0 && self.all
    }

    /// Checks the next entries. `lane` is the number of the lane, and `after` are the present tables. Returns whether
    /// entries are left that can be checked now.
    #[inline]
    pub(super) fn step(&mut self, flows: &Flows, lane: usize, after: &Tables) -> bool {
        if self.left == 0 {
            return false;
        }
        let Some(table) = flows.table() else {
            *self = Self::default();
            return false;
        };
        if self.waits {
            if !flows.lanes_agree() {
                return false;
            }
            self.waits = false;
        }
        self.check(table, flows.part(lane), after);
        if self.left == 0 {
            self.before.clear();
            (self.all, self.had_more) = (false, false);
        }
        self.left > 0
    }

    fn check(&mut self, table: &FlowTable, part: std::ops::Range<usize>, after: &Tables) {
        let from = if part.contains(&self.at) { self.at } else { part.start };
        let to = (from + STEP).min(part.end);
        let before = (self.before.as_slice(), self.had_more);
        table.judge_again_where(from..to, |key| self.all || lost_route(before, after, key));
        self.at = to;
        // An empty part has nothing to check.
        self.left = self.left.saturating_sub((to - from).max(1));
    }
}

/// Whether the packets of a flow had a route from this host to the other end under one of the tables `before`, or may have had
/// one under others, and have none under the tables `after`. `key` is that of the packet that began the flow.
fn lost_route((before, had_more): (&[Arc<Tables>], bool), after: &Tables, key: &FlowKey) -> bool {
    let (source, destination, (from, to)) = match key.direction {
        Direction::Outbound => (key.source, key.destination, key.ports),
        Direction::Inbound => (key.destination, key.source, (key.ports.1, key.ports.0)),
    };
    let packet = PacketInfo {
        source,
        destination,
        ttl: u8::MAX,
        protocol: key.protocol,
        transport: None,
        ports: match key.protocol {
            TCP | UDP => u32::from(from) << 16 | u32::from(to),
            _ => 0,
        },
        len: 0,
    };
    let ingress = Ingress::Tun(NicIndex(key.nic));
    let leaves = |tables: &Tables| {
        let verdict = decide(tables, ingress, &packet, None);
        matches!(verdict, Verdict::Forward { .. } | Verdict::Translate(_))
    };
    !leaves(after) && (had_more || before.iter().any(|tables| leaves(tables)))
}
