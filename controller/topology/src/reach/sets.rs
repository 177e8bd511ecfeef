//! The reachability of a whole topology, as sets of traffic between groups of addresses.

use super::cell::{Cell, TrafficId};
use super::design::with_all_agents;
use super::ends::{Class, End, Ends, of as all_ends};
use super::memo::Memo;
use super::path::Path;
use super::rule_paths::RulePaths;
use super::survey::Survey;
use crate::explain::walk::Agents;
use crate::learned_routes::LearnedReports;
use crate::topology::Topology;
use std::sync::{Arc, OnceLock};
use tombolo_engine::security::{PreparedGroups, Traffic};

/// Which addresses of a topology reach which.
#[derive(Debug)]
pub struct Reach {
    pub(super) ends: Arc<Vec<End>>,
    pub(super) classes: Arc<Vec<Class>>,
    pub(super) paths: Vec<Arc<Path>>,
    /// The traffic that occurs. Cells refer to it by position.
    traffic: Vec<Arc<Traffic>>,
    pub(super) memo: Arc<Memo>,
    /// The prepared security groups. `None`: no rule can be changed without a new computation.
    pub(super) groups: Option<Arc<PreparedGroups>>,
    pub(super) rule_paths: RulePaths,
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
        let topology = with_all_agents(topology);
        let reports = reports.of_routes_only();
        let Ends { ends, classes, blocks } = all_ends(&topology, &reports);
        let agents = Agents::sharing_groups(&topology, &reports);
        let memo = Memo::default();
        let survey = Survey {
            agents: &agents,
            ends: &ends,
            classes: &classes,
            blocks: &blocks,
            memo: &memo,
        };
        let rows: Vec<OnceLock<Vec<Arc<Path>>>> = blocks.iter().map(|_| OnceLock::new()).collect();
        run(blocks.len(), &|block| {
            rows[block].get_or_init(|| survey.rows(block).into_iter().map(Arc::new).collect());
        });
        let paths: Vec<Arc<Path>> = rows.into_iter().filter_map(OnceLock::into_inner).flatten().collect();
        Self {
            rule_paths: RulePaths::of(&paths),
            traffic: memo.all(),
            paths,
            groups: agents.into_groups().map(Arc::new),
            ends: Arc::new(ends),
            classes: Arc::new(classes),
            memo: Arc::new(memo),
        }
    }

    /// The same ends with other paths between them.
    pub(super) fn with_paths(&self, paths: Vec<Arc<Path>>, rule_paths: RulePaths) -> Self {
        Self {
            rule_paths,
            ends: self.ends.clone(),
            classes: self.classes.clone(),
            paths,
            traffic: self.memo.all(),
            memo: self.memo.clone(),
            groups: self.groups.clone(),
        }
    }

    /// What arrives from which ends at which.
    pub(super) fn cells(&self) -> impl Iterator<Item = &Cell> {
        self.paths.iter().flat_map(|path| path.cells())
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
        self.cells().find(joins).map(|cell| self.traffic(cell.traffic))
    }

    /// The number of pairs of classes between which something arrives.
    #[must_use]
    pub fn cell_count(&self) -> usize {
        self.cells().count()
    }

    pub(super) fn traffic(&self, id: TrafficId) -> &Traffic {
        &self.traffic[id.0 as usize]
    }
}
