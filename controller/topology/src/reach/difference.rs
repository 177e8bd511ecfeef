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
    /// The ends that receive. An end that is in both lists does not send to itself.
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

/// What `after` has and `before` has not, and the reverse.
#[must_use]
pub fn difference(before: &Reach, after: &Reach) -> Difference {
    // Most cells are the same in both. Only the others are taken apart.
    let (old, new) = (before.cells_not_in(after), after.cells_not_in(before));
    let mut numbers: HashMap<Key<'_>, u32> = HashMap::new();
    let (old, new) = (before.numbered(old, &mut numbers), after.numbered(new, &mut numbers));
    let known: HashSet<&Content<'_>> = old.iter().collect();
    let present: HashSet<&Content<'_>> = new.iter().collect();
    let old: Vec<&Content<'_>> = old.iter().filter(|content| !present.contains(content)).collect();
    let new: Vec<&Content<'_>> = new.iter().filter(|content| !known.contains(content)).collect();
    let ends: BTreeMap<u32, &End> = [&before.ends, &after.ends]
        .into_iter()
        .flat_map(|all| all.iter())
        .filter_map(|end| Some((*numbers.get(&end.key())?, end)))
        .collect();
    let groups = Groups::of(&old, &new, &ends);
    let (old, now) = (groups.traffic(&old), groups.traffic(&new));
    let nothing = Traffic::default();
    let (mut connects, mut cuts) = (BTreeMap::new(), BTreeMap::new());
    for pair in old.keys().chain(now.keys()).collect::<BTreeSet<_>>() {
        let was = old.get(pair).copied().unwrap_or(&nothing);
        let is = now.get(pair).copied().unwrap_or(&nothing);
        for (changed, all) in [(is.minus(was), &mut connects), (was.minus(is), &mut cuts)] {
            if !changed.is_empty() {
                all.insert(*pair, changed);
            }
        }
    }
    Difference {
        connects: groups.joined(&connects),
        cuts: groups.joined(&cuts),
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
    fn numbered<'r>(&'r self, cells: Vec<&'r Cell>, numbers: &mut HashMap<Key<'r>, u32>) -> Vec<Content<'r>> {
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
            all.push(Content {
                from: number(&cell.from),
                to: number(&cell.to),
                traffic: self.traffic(cell.traffic),
            });
        }
        all
    }
}

/// Ends that no cell tells apart, and that are in one subnet or in none. Two networks of thousands of machines have
/// millions of pairs of ends, and only some pairs of groups.
struct Groups<'r> {
    /// The members of each group, ordered by their keys. The groups are ordered by their first members.
    members: Vec<Vec<&'r End>>,
    /// The group of each end, by the end's number.
    of_end: HashMap<u32, u32>,
}

/// The cells of an end, by their numbers. True: the end sends there.
type Cells = Vec<(usize, bool)>;

/// The numbers of two groups, of which the first sends to the second.
type Pair = (u32, u32);

/// The subnet of the senders, the groups that receive, and what they get.
type Sent<'r> = (Option<&'r ResourceId>, Vec<u32>, &'r Traffic);

impl<'r> Groups<'r> {
    fn of(old: &[&Content<'_>], new: &[&Content<'_>], ends: &BTreeMap<u32, &'r End>) -> Self {
        let mut cells_of_end: BTreeMap<u32, Cells> = BTreeMap::new();
        for (cell, content) in old.iter().chain(new).enumerate() {
            for (members, sends) in [(&content.from, true), (&content.to, false)] {
                for end in members {
                    cells_of_end.entry(*end).or_default().push((cell, sends));
                }
            }
        }
        let mut alike: HashMap<(Option<&ResourceId>, Cells), Vec<u32>> = HashMap::new();
        for (end, cells) in cells_of_end {
            let subnet = ends.get(&end).and_then(|end| end.subnet.as_ref());
            alike.entry((subnet, cells)).or_default().push(end);
        }
        let mut groups: Vec<Vec<(u32, &'r End)>> = Vec::with_capacity(alike.len());
        for numbers in alike.into_values() {
            let known = numbers.iter().filter_map(|number| Some((*number, *ends.get(number)?)));
            let mut group: Vec<(u32, &End)> = known.collect();
            group.sort_by_key(|(_, end)| end.key());
            groups.push(group);
        }
        groups.sort_by(|a, b| {
            a.first()
                .map(|(_, end)| end.key())
                .cmp(&b.first().map(|(_, end)| end.key()))
        });
        let mut of_end = HashMap::new();
        for (group, members) in (0..).zip(&groups) {
            of_end.extend(members.iter().map(|(number, _)| (*number, group)));
        }
        let ends_only = |group: Vec<(u32, &'r End)>| group.into_iter().map(|(_, end)| end).collect();
        Self {
            members: groups.into_iter().map(ends_only).collect(),
            of_end,
        }
    }

    /// What the groups send to each other in these cells. A pair of a group with itself is about its members' traffic to
    /// one another, and without a meaning if it has one member.
    fn traffic<'t>(&self, cells: &[&Content<'t>]) -> BTreeMap<Pair, &'t Traffic> {
        let of =
            |ends: &[u32]| -> BTreeSet<u32> { ends.iter().filter_map(|end| self.of_end.get(end).copied()).collect() };
        let mut pairs = BTreeMap::new();
        for cell in cells {
            let receivers = of(&cell.to);
            for from in of(&cell.from) {
                pairs.extend(receivers.iter().map(|to| ((from, *to), cell.traffic)));
            }
        }
        pairs
    }

    /// Pairs with the same traffic, joined: first the receivers of each sender, then the senders with the same receivers.
    fn joined(&self, pairs: &BTreeMap<Pair, Traffic>) -> Vec<ChangedTraffic> {
        // Ends in different subnets are not joined, so that names stay short.
        let place = |group: u32| self.members[group as usize].first().and_then(|end| end.subnet.as_ref());
        let mut rows: BTreeMap<(u32, Option<&ResourceId>, &Traffic), Vec<u32>> = BTreeMap::new();
        for ((from, to), traffic) in pairs {
            rows.entry((*from, place(*to), traffic)).or_default().push(*to);
        }
        let mut all: BTreeMap<Sent<'_>, Vec<u32>> = BTreeMap::new();
        for ((from, _, traffic), to) in rows {
            all.entry((place(from), to, traffic)).or_default().push(from);
        }
        let mut changed = Vec::with_capacity(all.len());
        for ((subnet, to, traffic), from) in all {
            let (mut from, mut to) = (self.ends(&from), self.ends(&to));
            // A single end does not send to itself.
            if let [one] = from[..] {
                to.retain(|end| end.key() != one.key());
            }
            if let [one] = to[..] {
                from.retain(|end| end.key() != one.key());
            }
            if !from.is_empty() && !to.is_empty() {
                changed.push((subnet, to, traffic, from));
            }
        }
        let keys = |ends: &[&'r End]| ends.iter().map(|end| end.key()).collect::<Vec<_>>();
        changed.sort_by_cached_key(|(subnet, to, traffic, _)| (*subnet, keys(to), *traffic));
        let view = |(_, to, traffic, from): (_, Vec<&End>, &Traffic, Vec<&End>)| ChangedTraffic {
            from_name: name(&from, false),
            to_name: name(&to, false),
            from: from.into_iter().map(EndView::from).collect(),
            to: to.into_iter().map(EndView::from).collect(),
            traffic: TrafficView::from(traffic),
        };
        changed.into_iter().map(view).collect()
    }

    /// The members of some groups, ordered by their keys.
    fn ends(&self, groups: &[u32]) -> Vec<&'r End> {
        let mut all: Vec<&End> = groups
            .iter()
            .flat_map(|group| self.members[*group as usize].iter().copied())
            .collect();
        all.sort_by_key(|end| end.key());
        all
    }
}
