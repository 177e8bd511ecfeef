//! The traffic between groups of ends, by their positions.

use std::collections::BTreeMap;
use std::sync::Arc;

/// The number of a set of traffic in a [`Memo`](super::memo::Memo).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct TrafficId(pub(super) u32);

/// The traffic between some ends of one class and some of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cell {
    /// Positions of the ends that send.
    pub(super) from: Arc<[u32]>,
    /// Positions of the ends that receive. An end that is in both lists does not send to itself.
    pub(super) to: Arc<[u32]>,
    /// What they may send. It is not empty.
    pub(super) traffic: TrafficId,
}

/// The cells with the same ends on both sides, joined.
pub(super) fn joined(parts: Vec<Vec<Cell>>, join: impl Fn(TrafficId, TrafficId) -> TrafficId) -> Vec<Cell> {
    let mut by_pair: BTreeMap<(u32, u32), TrafficId> = BTreeMap::new();
    for cell in parts.into_iter().flatten() {
        for from in cell.from.iter() {
            for to in cell.to.iter().filter(|to| *to != from) {
                let traffic = by_pair.entry((*from, *to)).or_insert(cell.traffic);
                *traffic = join(*traffic, cell.traffic);
            }
        }
    }
    let mut rows: BTreeMap<u32, BTreeMap<TrafficId, Vec<u32>>> = BTreeMap::new();
    for ((from, to), traffic) in by_pair {
        rows.entry(from).or_default().entry(traffic).or_default().push(to);
    }
    let mut by_row: BTreeMap<(Vec<u32>, TrafficId), Vec<u32>> = BTreeMap::new();
    for (from, row) in rows {
        for (traffic, to) in row {
            by_row.entry((to, traffic)).or_default().push(from);
        }
    }
    let cells = by_row.into_iter().map(|((to, traffic), from)| Cell {
        from: from.into(),
        to: to.into(),
        traffic,
    });
    cells.collect()
}
