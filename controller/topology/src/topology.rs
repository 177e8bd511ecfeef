//! The state of one revision, as data. `api.rs` has its operations.

use crate::resource::{Agent, Envelope, JoinToken, ResourceGroup, Settings, each_kind};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::status::AgentStatus;

/// All resources of a kind, by id.
pub type Map<R> = BTreeMap<ResourceId, Arc<R>>;

/// Access to the map of a kind in [`Topology`], and to the envelope of a resource. [`define_topology`] implements it.
pub(crate) trait Stored: Clone + PartialEq + Serialize + DeserializeOwned + 'static {
    fn map(topology: &Topology) -> &Map<Self>;
    fn map_mut(topology: &mut Topology) -> &mut Map<Self>;
    fn envelope(&self) -> &Envelope;
    fn envelope_mut(&mut self) -> &mut Envelope;
}

/// Defines [`Topology`] with one map for each kind, and implements [`Stored`] for the kinds.
macro_rules! define_topology {
    ($($(#[$doc:meta])* $map:ident: $resource:ident,)*) => {
        /// The desired state. It is immutable and valid as a whole: only accepted changes create a new one. A clone
        /// copies the maps but shares the resources.
        #[derive(Debug, Clone, Default)]
        pub struct Topology {
            /// Resource groups, by id.
            pub resource_groups: Map<ResourceGroup>,
            $($(#[$doc])* pub $map: Map<crate::resource::$resource>,)*
            /// Agents by name, including revoked ones.
            pub agents: BTreeMap<AgentId, Arc<Agent>>,
            /// Join tokens, by their id.
            pub tokens: BTreeMap<String, Arc<JoinToken>>,
            /// The operator's settings, with the era's defaults filled in.
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

/// The state that agents report, for the properties of a view that are not desired state (`connectionStatus`, byte
/// counters).
#[derive(Debug, Clone, Default)]
pub struct AgentStatuses {
    /// The last status of each agent.
    pub agents: BTreeMap<AgentId, AgentStatus>,
    /// The agents with an open control stream.
    pub connected: BTreeSet<AgentId>,
}

/// One document to write to the store, or to delete from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentChange {
    /// The key, e.g. `arm/…` or `fabric/agents/…`.
    pub key: String,
    /// The new JSON text. `None`: delete the document.
    pub value: Option<Vec<u8>>,
}
