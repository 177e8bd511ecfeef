//! Computes which addresses reach which, by which protocols and ports, for a whole topology.
//!
//! The answer is exact: for every pair of addresses and every port it says what [`explain`](crate::explain) would say if
//! all agents had joined and all links and back ends were up. It is computed with the agents' own code. Addresses with
//! the same paths form a class, and one walk there and back stands for all pairs of two classes. The rules of the
//! security groups on the way are then evaluated for all ports at once.
//!
//! If a load balancer is on the way, the answer has the traffic that arrives whichever back end is chosen.
//!
//! * `design`: the topology with all agents.
//! * `ends`: the addresses, and their classes.
//! * `survey`: the walks between classes.
//! * `checks`: the security groups on a walk, and what they admit.
//! * `memo`: sets of traffic, each kept once.
//! * `answer`: the answer in its JSON form.
//! * `difference`: what two answers connect and cut.
//! * `select`: resolves names to addresses.
//! * `assertion`: what must and must not be reachable.

mod answer;
mod assertion;
mod checks;
mod design;
mod difference;
mod ends;
mod memo;
mod select;
mod survey;

use crate::explain::walk::Agents;
use crate::learned_routes::LearnedReports;
use crate::topology::Topology;
pub use answer::{EndGroup, EndView, ReachAnswer, ReachEntry, TrafficView};
pub use assertion::{Violation, check_assertions};
pub use design::with_all_agents as as_designed;
pub use difference::{ChangedTraffic, Difference, difference};
pub use ends::End;
use memo::{Memo, TrafficId};
use std::net::IpAddr;
use std::sync::Arc;
use survey::{Cell, Survey};
use tombolo_engine::security::Traffic;

/// Which addresses of a topology reach which.
#[derive(Debug)]
pub struct Reach {
    ends: Vec<End>,
    /// The traffic that occurs. Cells refer to it by position.
    traffic: Vec<Arc<Traffic>>,
    cells: Vec<Cell>,
}

/// Runs a number of independent tasks, numbered from 0, perhaps in parallel, and returns when all are done.
pub type Run<'r> = &'r (dyn Fn(usize, &(dyn Fn(usize) + Sync)) + Sync);

/// Runs tasks one after the other.
pub fn in_order(tasks: usize, run: &(dyn Fn(usize) + Sync)) {
    (0..tasks).for_each(run);
}

impl Reach {
    /// Computes the answer. `reports` are used for learned routes only: links that are down and back ends that do not
    /// answer do not count. `run` decides whether parts of the work are done in parallel.
    #[must_use]
    pub fn of(topology: &Topology, reports: &LearnedReports, run: Run<'_>) -> Self {
        let topology = design::with_all_agents(topology);
        let reports = LearnedReports {
            learned: reports.learned.clone(),
            ..LearnedReports::default()
        };
        let (ends, classes) = ends::of(&topology, &reports);
        let agents = Agents::new(&topology, &reports);
        let memo = Memo::default();
        let survey = Survey {
            agents: &agents,
            ends: &ends,
            classes: &classes,
            memo: &memo,
        };
        let rows: Vec<std::sync::OnceLock<Vec<Cell>>> = classes.iter().map(|_| std::sync::OnceLock::new()).collect();
        run(classes.len(), &|class| {
            rows[class].get_or_init(|| survey.row(class));
        });
        let cells = rows
            .into_iter()
            .filter_map(std::sync::OnceLock::into_inner)
            .flatten()
            .collect();
        Self {
            traffic: memo.into_all(),
            ends,
            cells,
        }
    }

    /// The addresses that the answer is about.
    #[must_use]
    pub fn ends(&self) -> &[End] {
        &self.ends
    }

    /// The traffic from one end to another, by their positions in [`ends`](Self::ends). `None`: nothing arrives.
    #[must_use]
    pub fn between(&self, from: usize, to: usize) -> Option<&Traffic> {
        let (from, to) = (u32::try_from(from).ok()?, u32::try_from(to).ok()?);
        let joins =
            |cell: &&Cell| from != to && cell.from.binary_search(&from).is_ok() && cell.to.binary_search(&to).is_ok();
        self.cells.iter().find(joins).map(|cell| self.traffic(cell.traffic))
    }

    /// Positions of the ends with an address.
    pub fn with_address(&self, address: IpAddr) -> impl Iterator<Item = usize> {
        self.ends
            .iter()
            .enumerate()
            .filter(move |(_, end)| end.address == address)
            .map(|(position, _)| position)
    }

    /// The number of pairs of classes between which something arrives.
    #[must_use]
    pub fn cell_count(&self) -> usize {
        self.cells.len()
    }

    fn traffic(&self, id: TrafficId) -> &Traffic {
        &self.traffic[id.0 as usize]
    }
}
