//! The reachability of the network that was computed last.

use std::sync::Arc;
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
