//! All resources of one revision, as data; the registry of [`crate::resource`] defines it, `api.rs` has its methods.

pub use crate::resource::Topology;

use std::collections::{BTreeMap, BTreeSet};
use tombolo_proto::id::AgentId;
use tombolo_proto::status::AgentStatus;

/// What the agents report now, for the parts of a view that are not desired state (`connectionStatus`, byte counters).
#[derive(Debug, Clone, Default)]
pub struct Live {
    /// The last status of each agent.
    pub agents: BTreeMap<AgentId, AgentStatus>,
    /// Agents whose control stream is up.
    pub connected: BTreeSet<AgentId>,
}

/// One document to write to the store, or to delete from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentChange {
    /// The key, e.g. `arm/…` or `fabric/agents/…`.
    pub key: String,
    /// JSON; none: delete.
    pub value: Option<Vec<u8>>,
}
