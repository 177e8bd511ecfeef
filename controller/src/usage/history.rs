//! What resources have carried in each of the last minutes, and in what state they were. It is in memory, for the metrics of
//! Azure Monitor.

use std::collections::{BTreeMap, VecDeque};
use tombolo_proto::id::ResourceId;
use tombolo_topology::metering::Amounts;

pub(crate) const MINUTE: u64 = 60;
/// Number of minutes that are kept. With 2,000 peerings that always carry something the history needs 60 MB.
pub(crate) const MINUTES_KEPT: u64 = 6 * 60;

/// A figure that says in what state a resource is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Gauge {
    /// The share of a gateway's BGP sessions that are up, from 0 to 1.
    BgpSessionsUp,
    /// Number of routes that the neighbours of a gateway announce.
    BgpRoutesLearned,
    /// Number of routes that a gateway announces to its neighbours.
    BgpRoutesAdvertised,
    /// The share of a load balancer's back ends that are up, in percent. A back end counts once for each rule.
    BackEndsUp,
    /// The share of a load balancer's rules that have a back end that is up, in percent.
    RulesUp,
}

/// The last minutes of all resources. Times are seconds of Unix time.
#[derive(Debug)]
pub(crate) struct History {
    /// The time from which on everything is known.
    since: u64,
    volumes: BTreeMap<ResourceId, VecDeque<(u64, Amounts)>>,
    gauges: BTreeMap<(ResourceId, Gauge), VecDeque<(u64, f64)>>,
}

impl History {
    pub(crate) const fn new(now: u64) -> Self {
        Self {
            since: now,
            volumes: BTreeMap::new(),
            gauges: BTreeMap::new(),
        }
    }

    /// The time from which on everything is known. Minutes before it have no entries.
    pub(crate) fn since(&self, now: u64) -> u64 {
        self.since.max(oldest(now))
    }

    /// Adds what a resource has carried since the last call.
    pub(crate) fn add(&mut self, resource: &ResourceId, amounts: Amounts, now: u64) {
        let minute = now / MINUTE * MINUTE;
        let all = self.volumes.entry(resource.clone()).or_default();
        match all.back_mut() {
            Some((last, sum)) if *last == minute => *sum = sum.plus(amounts),
            _ => all.push_back((minute, amounts)),
        }
    }

    /// Sets a figure for this minute, unless it has one.
    pub(crate) fn set(&mut self, resource: ResourceId, gauge: Gauge, value: f64, now: u64) {
        let minute = now / MINUTE * MINUTE;
        let all = self.gauges.entry((resource, gauge)).or_default();
        if all.back().is_none_or(|(last, _)| *last != minute) {
            all.push_back((minute, value));
        }
    }

    /// Removes what is too old.
    pub(crate) fn trim(&mut self, now: u64) {
        let oldest = oldest(now);
        self.volumes.retain(|_, all| {
            trim(all, oldest);
            !all.is_empty()
        });
        self.gauges.retain(|_, all| {
            trim(all, oldest);
            !all.is_empty()
        });
    }

    /// What a resource has carried in each minute in which it carried anything.
    pub(crate) fn volumes(&self, resource: &ResourceId) -> impl Iterator<Item = (u64, Amounts)> {
        self.volumes.get(resource).into_iter().flatten().copied()
    }

    /// A figure of a resource in each minute in which it was known.
    pub(crate) fn gauge(&self, resource: &ResourceId, gauge: Gauge) -> impl Iterator<Item = (u64, f64)> {
        let key = (resource.clone(), gauge);
        self.gauges.get(&key).into_iter().flatten().copied()
    }
}

/// The oldest minute that is kept.
const fn oldest(now: u64) -> u64 {
    (now / MINUTE * MINUTE).saturating_sub(MINUTES_KEPT * MINUTE)
}

/// The clock of the machine may have gone back, so the order of the entries need not be that of their times.
fn trim<T>(all: &mut VecDeque<(u64, T)>, oldest: u64) {
    let most = usize::try_from(MINUTES_KEPT + 1).unwrap_or(usize::MAX);
    while all.front().is_some_and(|(minute, _)| *minute < oldest) || all.len() > most {
        all.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carried(bytes: u64) -> Amounts {
        Amounts {
            ingress_bytes: bytes,
            ..Amounts::default()
        }
    }

    #[test]
    fn minutes_add_up_and_end() {
        let (a, now) = (ResourceId::new("/a"), 1_000_000 * MINUTE);
        let mut history = History::new(now);
        history.add(&a, carried(1), now);
        history.add(&a, carried(2), now + 59);
        history.add(&a, carried(4), now + 60);
        let volumes: Vec<_> = history.volumes(&a).collect();
        assert_eq!(volumes, [(now, carried(3)), (now + 60, carried(4))]);
        assert_eq!(history.since(now + 60), now);

        let later = now + MINUTES_KEPT * MINUTE + 60;
        history.trim(later);
        let volumes: Vec<_> = history.volumes(&a).collect();
        assert_eq!(volumes, [(now + 60, carried(4))]);
        assert_eq!(history.since(later), now + 60);
        history.trim(later + 60);
        assert!(
            history.volumes.is_empty(),
            "nothing is left of a resource without traffic"
        );
    }

    #[test]
    fn a_clock_that_goes_back_does_not_fill_the_memory() {
        let (a, now) = (ResourceId::new("/a"), 1_000_000 * MINUTE);
        let mut history = History::new(now);
        for step in 0..2 * MINUTES_KEPT {
            history.add(&a, carried(1), now - step * MINUTE);
            history.set(a.clone(), Gauge::RulesUp, 1.0, now - step * MINUTE);
            history.trim(now - step * MINUTE);
        }
        assert!(history.volumes(&a).count() as u64 <= MINUTES_KEPT + 1);
        assert!(history.gauge(&a, Gauge::RulesUp).count() as u64 <= MINUTES_KEPT + 1);
    }
}
