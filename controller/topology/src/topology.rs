//! All resources of one revision, as data. `api.rs` has its methods.

use crate::resource::{Agent, Envelope, JoinToken, ResourceGroup, Settings, each_kind};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::status::AgentStatus;

/// All resources of a kind.
pub type Map<R> = BTreeMap<ResourceId, Arc<R>>;

/// Where the resources of a kind are kept, and the envelope of one. The registry implements it.
pub(crate) trait Stored: Clone + PartialEq + Serialize + DeserializeOwned + 'static {
    fn map(topology: &Topology) -> &Map<Self>;
    fn map_mut(topology: &mut Topology) -> &mut Map<Self>;
    fn envelope(&self) -> &Envelope;
    fn envelope_mut(&mut self) -> &mut Envelope;
}

/// Defines [`Topology`], with one map for each kind.
macro_rules! define_topology {
    ($($(#[$doc:meta])* $map:ident: $resource:ident,)*) => {
        /// The desired state, valid as a whole, immutable. Cheap to clone in proportion to the number of resources.
        #[derive(Debug, Clone, Default)]
        pub struct Topology {
            /// Resource groups.
            pub resource_groups: Map<ResourceGroup>,
            $($(#[$doc])* pub $map: Map<crate::resource::$resource>,)*
            /// Agents.
            pub agents: BTreeMap<AgentId, Arc<Agent>>,
            /// Join tokens, by their id.
            pub tokens: BTreeMap<String, Arc<JoinToken>>,
            /// The operator's switches.
            pub settings: Arc<Settings>,
        }

        $(impl Stored for crate::resource::$resource {
            fn map(topology: &Topology) -> &Map<Self> {
                &topology.$map
            }
            fn map_mut(topology: &mut Topology) -> &mut Map<Self> {
                &mut topology.$map
            }
            fn envelope(&self) -> &Envelope {
                &self.envelope
            }
            fn envelope_mut(&mut self) -> &mut Envelope {
                &mut self.envelope
            }
        })*
    };
}
each_kind!(define_topology);

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
