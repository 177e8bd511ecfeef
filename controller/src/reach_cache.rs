//! The reachability of the network that was computed last.

use crate::writer::Published;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Mutex;
use tombolo_proto::id::Revision;
use tombolo_topology::learned_routes::LearnedReports;
use tombolo_topology::reach::Reach;
use tombolo_topology::topology::Topology;

/// The reachability of the last revision that was asked for. Only one request computes at a time, because it uses all
/// processors.
#[derive(Debug, Clone, Default)]
pub(crate) struct ReachCache(pub(crate) Arc<Mutex<Option<Known>>>);

/// A computed reachability, with what it was computed from.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) revision: Revision,
    pub(crate) reports: LearnedReports,
    pub(crate) topology: Arc<Topology>,
    pub(crate) reach: Reach,
}

impl Known {
    /// The reachability of a revision. `before`: the one that was computed last. Blocks while it computes. `reports` must
    /// be [`of_routes_only`](LearnedReports::of_routes_only).
    pub(crate) fn of(published: Published, reports: LearnedReports, before: Option<Self>) -> Self {
        match before {
            Some(known)
                if known.revision == published.revision && known.reports == reports && !known.reach.is_worn() =>
            {
                known
            }
            before => Self {
                revision: published.revision,
                reach: match before.filter(|before| before.reports == reports) {
                    Some(before) => before
                        .reach
                        .after(&before.topology, &published.topology, &reports, &in_parallel),
                    None => Reach::of(&published.topology, &reports, &in_parallel),
                },
                topology: published.topology,
                reports,
            },
        }
    }

    /// The reachability after a change that is only proposed. Blocks while it computes.
    pub(crate) fn after(&self, topology: &Topology) -> Reach {
        self.reach.after(&self.topology, topology, &self.reports, &in_parallel)
    }
}

/// Runs tasks on as many threads as the machine has processors.
pub(crate) fn in_parallel(tasks: usize, run: &(dyn Fn(usize) + Sync)) {
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(tasks);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let task = next.fetch_add(1, Ordering::Relaxed);
                    if task >= tasks {
                        break;
                    }
                    run(task);
                }
            });
        }
    });
}
