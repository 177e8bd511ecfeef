//! Keeps each set of traffic once, and the results of computations with sets that come again.

use super::cell::{Cell, TrafficId, joined};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tombolo_engine::security::{GroupRules, RuleSet, Traffic};
use tombolo_proto::config::Direction;

/// All sets of traffic that have occurred, and what was computed with them. Threads share it.
#[derive(Debug, Default)]
pub(super) struct Memo {
    known: Mutex<Known>,
    /// How often rules have been changed since everything was computed anew, also by changes that were only proposed.
    changes: AtomicU32,
}

#[derive(Debug, Default)]
struct Known {
    ids: HashMap<Arc<Traffic>, TrafficId>,
    all: Vec<Arc<Traffic>>,
    /// What a group allows if exactly these rules match the addresses. A group is known by its place in memory.
    allowed: HashMap<(usize, bool, bool, RuleSet), TrafficId>,
    /// The groups of `allowed`, which keep their places while they are here.
    groups: HashMap<usize, Arc<GroupRules>>,
    both: HashMap<(TrafficId, TrafficId), TrafficId>,
    either: HashMap<(TrafficId, TrafficId), TrafficId>,
}

impl Known {
    fn id(&mut self, traffic: Traffic) -> TrafficId {
        if let Some(id) = self.ids.get(&traffic) {
            return *id;
        }
        let id = TrafficId(u32::try_from(self.all.len()).unwrap_or(u32::MAX));
        let traffic = Arc::new(traffic);
        self.ids.insert(traffic.clone(), id);
        self.all.push(traffic);
        id
    }
}

impl Memo {
    fn known(&self) -> MutexGuard<'_, Known> {
        // No step below can panic between two changes that belong together.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often rules have been changed since everything was computed anew.
    pub(super) fn changes(&self) -> u32 {
        self.changes.load(Ordering::Relaxed)
    }

    /// Counts a change of rules.
    pub(super) fn count_change(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
    }

    /// All sets, by number.
    pub(super) fn all(&self) -> Vec<Arc<Traffic>> {
        self.known().all.clone()
    }

    /// The number of a set.
    pub(super) fn id(&self, traffic: Traffic) -> TrafficId {
        self.known().id(traffic)
    }

    /// The set with this number.
    pub(super) fn get(&self, id: TrafficId) -> Arc<Traffic> {
        self.known().all[id.0 as usize].clone()
    }

    /// What a group allows in a direction if exactly these rules match the addresses. `reversed`: with source and
    /// destination port in each other's place.
    pub(super) fn allowed(
        &self,
        group: &Arc<GroupRules>,
        direction: Direction,
        reversed: bool,
        rules: RuleSet,
    ) -> TrafficId {
        let key = (
            Arc::as_ptr(group) as usize,
            direction == Direction::Inbound,
            reversed,
            rules,
        );
        if let Some(id) = self.known().allowed.get(&key) {
            return *id;
        }
        let mut traffic = group.traffic(direction, &key.3);
        if reversed {
            traffic = traffic.reversed();
        }
        let mut known = self.known();
        let id = known.id(traffic);
        known.groups.entry(key.0).or_insert_with(|| group.clone());
        known.allowed.insert(key, id);
        id
    }

    /// The packets of both sets.
    pub(super) fn both(&self, a: TrafficId, b: TrafficId) -> TrafficId {
        self.combine(a, b, |known| &mut known.both, Traffic::and)
    }

    /// The packets of at least one of the sets.
    pub(super) fn either(&self, a: TrafficId, b: TrafficId) -> TrafficId {
        self.combine(a, b, |known| &mut known.either, Traffic::or)
    }

    fn combine(
        &self,
        a: TrafficId,
        b: TrafficId,
        table: impl Fn(&mut Known) -> &mut HashMap<(TrafficId, TrafficId), TrafficId>,
        how: impl Fn(&Traffic, &Traffic) -> Traffic,
    ) -> TrafficId {
        if a == b {
            return a;
        }
        let key = (a.min(b), a.max(b));
        let mut known = self.known();
        if let Some(id) = table(&mut known).get(&key) {
            return *id;
        }
        let traffic = how(&known.all[a.0 as usize], &known.all[b.0 as usize]);
        let id = known.id(traffic);
        table(&mut known).insert(key, id);
        id
    }

    /// The cells of several kinds of packets, with one cell for the traffic of all kinds.
    pub(super) fn merged(&self, parts: Vec<Vec<Cell>>) -> Vec<Cell> {
        joined(parts, |a, b| self.either(a, b))
    }
}
