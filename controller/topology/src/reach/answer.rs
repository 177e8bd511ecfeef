//! The answer in its JSON form: groups of addresses that are treated alike, and what each group may send to each other.

use super::cell::Cell;
use super::ends::End;
use super::select::select;
use super::sets::Reach;
use crate::path::parent_id;
use crate::topology::Topology;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hasher as _};
use std::net::IpAddr;
use tombolo_engine::security::{Interval, Ports, Traffic};
use tombolo_proto::fabric::ReachRequest;
use tombolo_proto::id::ResourceId;

/// Which groups of addresses reach which.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReachAnswer {
    /// The groups, in the order of their first members' ids. Each address of the question is in one group.
    pub groups: Vec<EndGroup>,
    /// What groups may send to groups, in the order of positions. Two groups without an entry do not reach each other.
    pub entries: Vec<ReachEntry>,
}

/// Addresses that reach the same addresses, and are reached from the same, by the same protocols and ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndGroup {
    /// A name for people: `VNET/SUBNET`, with the members if there are others in the subnet; `LB/FRONT-END`, or the site. The
    /// name of addresses of IPv6 ends with ` (IPv6)`.
    pub name: String,
    /// The members.
    pub members: Vec<EndView>,
}

/// An address, with the resource that has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndView {
    /// The network interface, front end, or local network gateway; the subnet for machines without network interface.
    pub id: ResourceId,
    /// The address.
    pub address: IpAddr,
    /// The prefix for which the address stands. `None`: only for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<IpNet>,
}

/// What the members of one group may send to those of another. Replies come back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReachEntry {
    /// Position of the group that sends.
    pub from: usize,
    /// Position of the group that receives. If it is the same, members send to each other.
    pub to: usize,
    /// The traffic.
    #[serde(flatten)]
    pub traffic: TrafficView,
}

/// A set of traffic as text.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrafficView {
    /// Destination ports of TCP: `443`, `8000-8080`, or `*` for all. If they depend on the source port, each text ends
    /// with the source ports: `443 from 1024-65535`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tcp: Vec<String>,
    /// Destination ports of UDP, in the same form.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub udp: Vec<String>,
    /// Whether ICMP arrives.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub icmp: bool,
}

impl From<&Traffic> for TrafficView {
    fn from(traffic: &Traffic) -> Self {
        Self {
            tcp: texts(&traffic.tcp),
            udp: texts(&traffic.udp),
            icmp: traffic.icmp,
        }
    }
}

fn texts(ports: &Ports) -> Vec<String> {
    let text = |interval: &Interval| match *interval == Interval::ALL {
        true => "*".to_owned(),
        false => interval.to_string(),
    };
    let mut all = Vec::new();
    for entry in ports.entries() {
        for destination in &entry.destinations {
            all.push(match entry.sources == Interval::ALL {
                true => text(destination),
                false => format!("{} from {}", text(destination), entry.sources),
            });
        }
    }
    all
}

impl From<&End> for EndView {
    fn from(end: &End) -> Self {
        Self {
            id: end.id.clone(),
            address: end.address,
            prefix: end.prefix,
        }
    }
}

impl Reach {
    /// The answer to a question. `topology` is the one that the reachability was computed from; names are looked up in
    /// it.
    ///
    /// # Errors
    /// A name means nothing that sends or receives. The text begins with `from:` or `to:`.
    pub fn answer(&self, topology: &Topology, question: &ReachRequest) -> Result<ReachAnswer, String> {
        let chosen = |field: &str, names: &[String]| -> Result<BTreeSet<u32>, String> {
            if names.is_empty() {
                return Ok((0u32..).take(self.ends.len()).collect());
            }
            let mut all = BTreeSet::new();
            for name in names {
                all.extend(select(topology, &self.ends, field, name)?);
            }
            Ok(all)
        };
        let (from, to) = (chosen("from", &question.from)?, chosen("to", &question.to)?);
        Ok(self.grouped(&from, &to))
    }

    fn grouped(&self, from: &BTreeSet<u32>, to: &BTreeSet<u32>) -> ReachAnswer {
        let cells: Vec<Cell> = self.cells().filter_map(|cell| within(cell, from, to)).collect();
        // Ends are alike if they are in the same cells. The sums do not depend on the order of the cells.
        let mut sent: BTreeMap<u32, (u64, u64)> = from.union(to).map(|end| (*end, (0, 0))).collect();
        for cell in &cells {
            let (as_sender, as_receiver) = (hash(&(&cell.to, cell.traffic)), hash(&(&cell.from, cell.traffic)));
            for end in cell.from.iter() {
                let sums = sent.entry(*end).or_default();
                sums.0 = sums.0.wrapping_add(as_sender);
            }
            for end in cell.to.iter() {
                let sums = sent.entry(*end).or_default();
                sums.1 = sums.1.wrapping_add(as_receiver);
            }
        }
        let mut alike: BTreeMap<Likeness<'_>, Vec<u32>> = BTreeMap::new();
        for (end, sums) in sent {
            alike
                .entry((place(&self.ends[end as usize]), sums))
                .or_default()
                .push(end);
        }
        let mut groups: Vec<Vec<u32>> = alike.into_values().collect();
        groups.sort_unstable();
        let mut group_of: BTreeMap<u32, usize> = BTreeMap::new();
        for (number, group) in groups.iter().enumerate() {
            group_of.extend(group.iter().map(|end| (*end, number)));
        }
        let mut entries = BTreeMap::new();
        let of =
            |ends: &[u32]| -> BTreeSet<usize> { ends.iter().filter_map(|end| group_of.get(end).copied()).collect() };
        for cell in &cells {
            for from in of(&cell.from) {
                for to in of(&cell.to) {
                    if from != to || groups[from].len() > 1 {
                        entries.insert((from, to), self.traffic(cell.traffic));
                    }
                }
            }
        }
        let mut sizes: BTreeMap<Place<'_>, usize> = BTreeMap::new();
        for end in self.ends.iter() {
            *sizes.entry(place(end)).or_default() += 1;
        }
        let entries = entries.into_iter().map(|((from, to), traffic)| ReachEntry {
            from,
            to,
            traffic: TrafficView::from(traffic),
        });
        ReachAnswer {
            entries: entries.collect(),
            groups: groups
                .iter()
                .map(|members| {
                    let members: Vec<&End> = members.iter().map(|end| &self.ends[*end as usize]).collect();
                    let place = members.first().map(|end| place(end));
                    let size = place
                        .filter(|(subnet, _)| subnet.is_some())
                        .and_then(|place| sizes.get(&place));
                    let is_whole = size == Some(&members.len());
                    EndGroup {
                        name: name(&members, is_whole),
                        members: members.into_iter().map(EndView::from).collect(),
                    }
                })
                .collect(),
        }
    }
}

/// The subnet of an end, and whether its address is of IPv4.
type Place<'r> = (Option<&'r ResourceId>, bool);

fn place(end: &End) -> Place<'_> {
    (end.subnet.as_ref(), end.address.is_ipv4())
}

/// The place of an end, and hashes of the cells in which it sends and receives. Ends with equal values form a group.
type Likeness<'r> = (Place<'r>, (u64, u64));

/// The part of a cell that is between these ends. `None`: there is none.
fn within(cell: &Cell, from: &BTreeSet<u32>, to: &BTreeSet<u32>) -> Option<Cell> {
    let kept = |ends: &[u32], wanted: &BTreeSet<u32>| -> Vec<u32> {
        ends.iter().copied().filter(|end| wanted.contains(end)).collect()
    };
    let (from, to) = (kept(&cell.from, from), kept(&cell.to, to));
    let is_empty = from.is_empty() || to.is_empty() || from.len() == 1 && from == to;
    (!is_empty).then(|| Cell {
        from: from.into(),
        to: to.into(),
        traffic: cell.traffic,
    })
}

fn hash(value: &impl std::hash::Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// Number of members that a name lists.
const NAMED: usize = 3;

/// A name for a group of ends of one address family, in one subnet or of a site. `is_whole`: the subnet has no other ends of
/// this family.
pub(super) fn name(members: &[&End], is_whole: bool) -> String {
    let Some(first) = members.first() else {
        return String::new();
    };
    let family = if first.address.is_ipv4() { "" } else { " (IPv6)" };
    format!("{}{family}", name_without_family(first, members, is_whole))
}

fn name_without_family(first: &End, members: &[&End], is_whole: bool) -> String {
    let of_child = |id: &ResourceId| format!("{}/{}", parent_id(id).name(), id.name());
    let Some(subnet) = &first.subnet else {
        let mut names: BTreeSet<&str> = members.iter().map(|end| end.id.name()).collect();
        let named: Vec<&str> = std::iter::from_fn(|| names.pop_first()).take(NAMED).collect();
        return format!("site {}", named.join(", "));
    };
    let place = of_child(subnet);
    if is_whole {
        return place;
    }
    let text = |end: &&&End| {
        let is_front_end = end.start == super::ends::Start::Nowhere;
        match (is_front_end, end.prefix) {
            (true, _) => of_child(&end.id),
            (false, Some(_)) => "other machines".to_owned(),
            (false, None) => end.id.name().to_owned(),
        }
    };
    let mut named: Vec<String> = members.iter().take(NAMED).map(|end| text(&end)).collect();
    named.dedup();
    let more = match members.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{place}: {}{more}", named.join(", "))
}
