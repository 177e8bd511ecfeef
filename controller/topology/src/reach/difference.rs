//! What a change connects and cuts: the difference of two reachabilities.

use super::answer::{EndView, TrafficView, name};
use super::cell::Cell;
use super::ends::End;
use super::sets::Reach;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_engine::security::Traffic;
use tombolo_proto::id::ResourceId;

/// What is reachable after a change and was not before, and the reverse.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// What the change connects.
    pub connects: Vec<ChangedTraffic>,
    /// What the change cuts.
    pub cuts: Vec<ChangedTraffic>,
}

/// Traffic between some ends that a change adds or removes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChangedTraffic {
    /// A name for the sending ends, for people.
    pub from_name: String,
    /// A name for the receiving ends.
    pub to_name: String,
    /// The ends that send.
    pub from: Vec<EndView>,
    /// The ends that receive.
    pub to: Vec<EndView>,
    /// What is added or removed.
    #[serde(flatten)]
    pub traffic: TrafficView,
}

impl Difference {
    /// Whether nothing changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.connects.is_empty() && self.cuts.is_empty()
    }
}

/// An end in two topologies: the resource and its address.
type Key<'r> = (&'r ResourceId, IpAddr);

/// A pair of ends.
type Pair<'r> = (Key<'r>, Key<'r>);

/// What `after` has and `before` has not, and the reverse.
#[must_use]
pub fn difference(before: &Reach, after: &Reach) -> Difference {
    // Most cells are the same in both. Only the others are taken apart.
    let (old, new) = (before.cells_not_in(after), after.cells_not_in(before));
    let mut numbers: HashMap<Key<'_>, u32> = HashMap::new();
    let (old, new) = (before.numbered(old, &mut numbers), after.numbered(new, &mut numbers));
    let known: HashSet<&Content<'_>> = old.iter().map(|(_, content)| content).collect();
    let present: HashSet<&Content<'_>> = new.iter().map(|(_, content)| content).collect();
    let old = before.pairs(old.iter().filter(|(_, content)| !present.contains(content)));
    let now = after.pairs(new.iter().filter(|(_, content)| !known.contains(content)));
    let nothing = Traffic::default();
    let mut connects: BTreeMap<Pair<'_>, Traffic> = BTreeMap::new();
    let mut cuts: BTreeMap<Pair<'_>, Traffic> = BTreeMap::new();
    for pair in old.keys().chain(now.keys()).collect::<BTreeSet<_>>() {
        let was = old.get(pair).copied().unwrap_or(&nothing);
        let is = now.get(pair).copied().unwrap_or(&nothing);
        for (changed, all) in [(is.minus(was), &mut connects), (was.minus(is), &mut cuts)] {
            if !changed.is_empty() {
                all.insert(*pair, changed);
            }
        }
    }
    if connects.is_empty() && cuts.is_empty() {
        return Difference::default();
    }
    let mut ends: BTreeMap<Key<'_>, &End> = BTreeMap::new();
    ends.extend(before.ends.iter().chain(after.ends.iter()).map(|end| (end.key(), end)));
    Difference {
        connects: grouped(&connects, &ends),
        cuts: grouped(&cuts, &ends),
    }
}

/// A cell, with numbers of ends that are the same in both topologies.
#[derive(PartialEq, Eq, Hash)]
struct Content<'r> {
    from: Vec<u32>,
    to: Vec<u32>,
    traffic: &'r Traffic,
}

impl End {
    fn key(&self) -> Key<'_> {
        (&self.id, self.address)
    }
}

impl Reach {
    /// The cells of the paths that the other one does not share.
    fn cells_not_in(&self, other: &Self) -> Vec<&Cell> {
        let shares_ends = Arc::ptr_eq(&self.ends, &other.ends) && self.paths.len() == other.paths.len();
        let paths = self.paths.iter().enumerate();
        let own = paths.filter(|(number, path)| !shares_ends || !Arc::ptr_eq(path, &other.paths[*number]));
        own.flat_map(|(_, path)| path.cells()).collect()
    }

    /// Cells with common numbers of ends. An end that is not in `numbers` yet gets the next number.
    fn numbered<'r>(
        &'r self,
        cells: Vec<&'r Cell>,
        numbers: &mut HashMap<Key<'r>, u32>,
    ) -> Vec<(&'r Cell, Content<'r>)> {
        let mut number = |positions: &[u32]| -> Vec<u32> {
            let mut all = Vec::with_capacity(positions.len());
            for position in positions {
                let next = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
                all.push(*numbers.entry(self.ends[*position as usize].key()).or_insert(next));
            }
            all.sort_unstable();
            all
        };
        let mut all = Vec::with_capacity(cells.len());
        for cell in cells {
            let content = Content {
                from: number(&cell.from),
                to: number(&cell.to),
                traffic: self.traffic(cell.traffic),
            };
            all.push((cell, content));
        }
        all
    }

    /// The traffic of each pair in these cells.
    fn pairs<'r>(
        &'r self,
        cells: impl Iterator<Item = &'r (&'r Cell, Content<'r>)>,
    ) -> BTreeMap<Pair<'r>, &'r Traffic> {
        let mut pairs = BTreeMap::new();
        for (cell, _) in cells {
            for from in cell.from.iter().map(|end| self.ends[*end as usize].key()) {
                for to in cell.to.iter().map(|end| self.ends[*end as usize].key()) {
                    if from != to {
                        pairs.insert((from, to), self.traffic(cell.traffic));
                    }
                }
            }
        }
        pairs
    }
}

/// The subnet of a sender, the receivers, and what they get.
type Sent<'r> = (Option<&'r ResourceId>, Vec<Key<'r>>, &'r Traffic);

/// Pairs with the same traffic, joined: first the receivers of each sender, then the senders with the same receivers.
fn grouped(pairs: &BTreeMap<Pair<'_>, Traffic>, ends: &BTreeMap<Key<'_>, &End>) -> Vec<ChangedTraffic> {
    // Ends in different subnets are not joined, so that names stay short.
    let place = |key: &Key<'_>| ends.get(key).and_then(|end| end.subnet.as_ref());
    let mut rows: BTreeMap<(Key<'_>, Option<&ResourceId>, &Traffic), Vec<Key<'_>>> = BTreeMap::new();
    for ((from, to), traffic) in pairs {
        rows.entry((*from, place(to), traffic)).or_default().push(*to);
    }
    let mut all: BTreeMap<Sent<'_>, Vec<Key<'_>>> = BTreeMap::new();
    for ((from, _, traffic), to) in rows {
        all.entry((place(&from), to, traffic)).or_default().push(from);
    }
    let of = |keys: &[Key<'_>]| {
        keys.iter()
            .filter_map(|key| ends.get(key).copied())
            .collect::<Vec<&End>>()
    };
    let each = all.iter().map(|((_, to, traffic), from)| {
        let (from, to) = (of(from), of(to));
        ChangedTraffic {
            from_name: name(&from, false),
            to_name: name(&to, false),
            from: from.into_iter().map(EndView::from).collect(),
            to: to.into_iter().map(EndView::from).collect(),
            traffic: TrafficView::from(*traffic),
        }
    });
    each.collect()
}
