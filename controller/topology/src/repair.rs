//! Finds the smallest set of changes that lets a packet arrive and its reply come back (D40).
//!
//! [`explain`](crate::explain::explain()) says where the packet or its reply stops. From this, `candidates` proposes changes; each is
//! applied to a copy of the topology, and the packet is explained again. Sets of changes are tried in the order of their
//! size, so the first ones that heal are the smallest. Of these, the ones that cut and connect the fewest other pairs come
//! first.
//!
//! Where no change helps, or none that the controller can know, the answer says what a person must do, and why.
//!
//! * `by_hand`: what a person must do.
//! * `candidates`: changes that could help a packet on.
//! * `stopped`: a packet that stops, and what is near its path.
//! * `change`: a change as a write of an ARM resource.
//! * `peerings`, `routes`, `security`, `balancing`, `gateways`: the changes of each kind of resource.

mod balancing;
mod by_hand;
mod candidates;
mod change;
mod gateways;
mod peerings;
mod routes;
mod security;
mod stopped;

use crate::explain::{Explanation, Stop, explain};
use crate::learned_routes::LearnedReports;
use crate::reach::{ChangedTraffic, Reach, Run, as_designed, difference};
use crate::topology::Topology;
pub use by_hand::ByHand;
use by_hand::Stuck;
pub use change::RepairChange;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use tombolo_proto::fabric::ExplainRequest;

/// Largest number of changes in a repair.
const MAX_CHANGES: usize = 5;

/// Up to this number of changes, every set is tried. Larger sets are tried only if each change lets the packet get further,
/// or stop for another reason.
const TRIED_WITHOUT_PROGRESS: usize = 2;

/// Largest number of sets of changes that are tried for one request. It bounds the time, as the caller does.
const MAX_TRIES: usize = 4_000;

/// Largest number of repairs of one size that are kept. Each has a topology.
const MAX_HEALED: usize = 64;

/// Largest number of repairs whose effects on other pairs are computed, and that are in an answer.
const MAX_REPAIRS: usize = 5;

/// The answer: what to change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RepairAnswer {
    /// Whether the packet arrives and its reply comes back already. Then there are no repairs.
    pub reachable: bool,
    /// The first repairs that were found with the smallest number of changes; of these, the one with the fewest side effects first.
    /// Empty: no set of at most five changes helps, or the search was cut off.
    pub repairs: Vec<Repair>,
    /// What a person must do, because no change of the configuration can do it, or because the controller cannot know the
    /// values. Present if there is no repair; and if the packet arrives by the design, but not in the network as the agents
    /// report it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub by_hand: Vec<ByHand>,
    /// Whether the search was cut off, so that smaller repairs may exist, or some if there are none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut_off: bool,
    /// One sentence: the first repair, or why there is none.
    pub summary: String,
}

/// A set of changes after which the packet arrives and its reply comes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Repair {
    /// The changes, in the order in which they must be made.
    pub changes: Vec<RepairChange>,
    /// All that the changes connect, the asked traffic included.
    pub connects: Vec<ChangedTraffic>,
    /// All that the changes cut.
    pub cuts: Vec<ChangedTraffic>,
}

/// A topology after some changes, and what then happens to the packet.
struct State {
    topology: Topology,
    changes: Vec<RepairChange>,
    explanation: Explanation,
}

/// Finds the smallest repairs for a packet that does not arrive, or whose reply does not come back. They are about the
/// design: all agents have joined, all links and back ends are up, and the TTL suffices. What stops the packet in the network as `reports`
/// describe it is in [`RepairAnswer::by_hand`]. `run` is as for [`Reach::of`]. The search is cut off when `is_late` says so.
///
/// # Errors
/// As for [`explain`](crate::explain::explain()).
pub fn repair(
    topology: &Topology,
    reports: &LearnedReports,
    question: &ExplainRequest,
    run: Run<'_>,
    is_late: &dyn Fn() -> bool,
) -> Result<RepairAnswer, String> {
    let present = topology;
    let live = reports;
    let reports = reports.of_routes_only();
    let topology = as_designed(topology);
    let asked = question;
    // A path that is short enough for the TTL would be another network, not a repair of this one.
    let question = &ExplainRequest {
        ttl: None,
        ..asked.clone()
    };
    if asked.ttl.is_some() {
        explain(&topology, &reports, asked)?;
    }
    let explanation = explain(&topology, &reports, question)?;
    if explanation.reachable {
        return Ok(RepairAnswer {
            reachable: true,
            repairs: Vec::new(),
            by_hand: by_hand::in_the_network(present, live, asked).into_iter().collect(),
            cut_off: false,
            summary: explanation.summary,
        });
    }
    let cause = explanation.summary.clone();
    let start = State {
        topology: topology.clone(),
        changes: Vec::new(),
        explanation,
    };
    let found = search(start, &reports, question, is_late);
    let mut repairs = with_effects(found.healed, &topology, &reports, run);
    for repair in &mut repairs {
        change::note_etags(&mut repair.changes, present);
    }
    let summary = match repairs.first() {
        Some(repair) => {
            let texts: Vec<&str> = repair.changes.iter().map(|change| change.text.as_str()).collect();
            let end = match found.tries_left_out {
                true => " (not all sets of changes were tried, because there are too many; a smaller one may exist)",
                false => "",
            };
            texts.join("; then ") + end
        }
        None if found.tries_left_out => {
            format!(
                "no set of changes was found that helps, and not all were tried, because there are too many: {cause}"
            )
        }
        None => format!("no set of at most {MAX_CHANGES} changes helps: {cause}"),
    };
    Ok(RepairAnswer {
        reachable: false,
        by_hand: match repairs.is_empty() {
            true => by_hand::in_the_design(&topology, found.stuck, found.tries_left_out),
            false => Vec::new(),
        },
        repairs,
        cut_off: found.tries_left_out,
        summary,
    })
}

/// What a search finds.
struct Found {
    /// The states with the smallest number of changes in which the packet arrives and its reply comes back.
    healed: Vec<State>,
    /// Whether not all sets were tried.
    tries_left_out: bool,
    /// If there is none: the state at the beginning, and then the states in which no change helps the packet on, those with few
    /// changes first.
    stuck: Vec<Stuck>,
}

/// Searches all smallest sets of changes after which the packet arrives and its reply comes back.
fn search(start: State, reports: &LearnedReports, question: &ExplainRequest, is_late: &dyn Fn() -> bool) -> Found {
    let mut tries = 0;
    let mut tries_left_out = false;
    let mut healed_by_size = [0; MAX_CHANGES + 1];
    let mut seen = BTreeSet::new();
    let mut stuck = vec![Stuck {
        after: Vec::new(),
        explanation: start.explanation.clone(),
    }];
    // The states by their number of changes.
    let mut waiting: Vec<Vec<State>> = (0..=MAX_CHANGES).map(|_| Vec::new()).collect();
    waiting[0].push(start);
    for size in 0..=MAX_CHANGES {
        let states = std::mem::take(&mut waiting[size]);
        let (healed, others): (Vec<_>, Vec<_>) = states.into_iter().partition(|state| state.explanation.reachable);
        if !healed.is_empty() {
            return Found {
                healed,
                tries_left_out,
                stuck: Vec::new(),
            };
        }
        for state in others {
            if tries >= MAX_TRIES || is_late() {
                tries_left_out = true;
                break;
            }
            let mut helps = false;
            for candidate in candidates::of(&state.topology, &state.explanation, question.destination_port) {
                for changes in std::iter::once(candidate.changes).chain(candidate.otherwise) {
                    let new_size = size + changes.len();
                    let is_cut_off = tries >= MAX_TRIES || is_late();
                    tries_left_out |= is_cut_off;
                    if new_size > MAX_CHANGES || is_cut_off || healed_by_size[new_size] >= MAX_HEALED {
                        helps = true;
                        continue;
                    }
                    tries += 1;
                    let Some(next) = state.after(changes, reports, question, &mut seen) else {
                        continue;
                    };
                    let heals = next.explanation.reachable;
                    let progress = heals || stop_of(&next.explanation) != stop_of(&state.explanation);
                    helps |= progress;
                    if progress || new_size < TRIED_WITHOUT_PROGRESS {
                        waiting[new_size].push(next);
                    }
                    if heals {
                        healed_by_size[new_size] += 1;
                        break;
                    }
                }
            }
            if !helps {
                stuck.push(Stuck {
                    after: state.changes.into_iter().map(|change| change.text).collect(),
                    explanation: state.explanation,
                });
            }
        }
    }
    Found {
        healed: Vec::new(),
        tries_left_out,
        stuck,
    }
}

impl State {
    /// The state after further changes. `None`: a change would be refused, or the same set has been tried before.
    fn after(
        &self,
        more: Vec<RepairChange>,
        reports: &LearnedReports,
        question: &ExplainRequest,
        seen: &mut BTreeSet<Vec<String>>,
    ) -> Option<Self> {
        let mut changes = self.changes.clone();
        changes.extend(more);
        // Resources of different groups may have the same name, so a text does not say everything.
        let whole = |change: &RepairChange| format!("{} {}", change.path, change.text);
        let mut texts: Vec<String> = changes.iter().map(whole).collect();
        texts.sort_unstable();
        let all = texts.len();
        texts.dedup();
        if texts.len() < all || !seen.insert(texts) {
            return None;
        }
        let mut topology = self.topology.clone();
        for change in &changes[self.changes.len()..] {
            topology = change.applied_to(&topology)?;
        }
        let explanation = explain(&topology, reports, question).ok()?;
        Some(Self {
            topology,
            changes,
            explanation,
        })
    }
}

/// Where and why a packet or its reply stops. A change has an effect on the packet if this changes.
fn stop_of(explanation: &Explanation) -> (bool, usize, Option<&Stop>) {
    let (walk, is_reply) = match &explanation.reply {
        Some(reply) => (reply, true),
        None => (&explanation.request, false),
    };
    (is_reply, walk.hops.len(), walk.stop.as_ref())
}

/// The repairs with what they connect and cut, the ones with the fewest side effects first.
fn with_effects(healed: Vec<State>, before: &Topology, reports: &LearnedReports, run: Run<'_>) -> Vec<Repair> {
    if healed.is_empty() {
        return Vec::new();
    }
    let old = Reach::of(before, reports, run);
    let mut repairs: Vec<Repair> = healed
        .into_iter()
        .take(MAX_REPAIRS)
        .map(|state| {
            let effect = difference(&old, &Reach::of(&state.topology, reports, run));
            Repair {
                changes: state.changes,
                connects: effect.connects,
                cuts: effect.cuts,
            }
        })
        .collect();
    let pairs = |all: &[ChangedTraffic]| all.iter().map(|entry| entry.from.len() * entry.to.len()).sum::<usize>();
    repairs.sort_by_key(|repair| (pairs(&repair.cuts), pairs(&repair.connects), repair.connects.clone()));
    repairs
}
