//! The state of one revision, as data. The operations on [`Topology`] are in `api.rs`.

use crate::resource::{Agent, Envelope, JoinToken, ResourceGroup, Settings, each_kind};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::status::AgentStatus;

/// All resources of a kind, by id. Ids compare without regard to case, so the map is ordered by lower-case id.
pub type Map<R> = BTreeMap<ResourceId, Arc<R>>;

/// Access to the map of a kind in [`Topology`], and to the envelope of a resource. `define_topology` implements the
/// trait for each kind.
pub(crate) trait Stored: Clone + PartialEq + Serialize + DeserializeOwned + 'static {
    /// All resources of this kind in a topology.
    fn map(topology: &Topology) -> &Map<Self>;
    /// All resources of this kind, as a mutable reference, to change a draft's topology.
    fn map_mut(topology: &mut Topology) -> &mut Map<Self>;
    /// The properties that every kind has.
    fn envelope(&self) -> &Envelope;
    /// The properties that every kind has, to change them.
    fn envelope_mut(&mut self) -> &mut Envelope;
}

/// Defines [`Topology`] with one map for each kind, and implements [`Stored`] for the kinds.
macro_rules! define_topology {
    ($($(#[$doc:meta])* $map:ident: $resource:ident,)*) => {
        /// The desired state: resources, agents, join tokens and settings. What agents report (links, routes, counters)
        /// is not in it but in [`AgentStatuses`]. A `Topology` is not changed after its creation: [`Topology::apply`]
        /// returns a new one for each accepted change. A clone copies the maps but shares the resources.
        #[derive(Debug, Clone, Default)]
        pub struct Topology {
            /// Resource groups, by id.
            pub resource_groups: Map<ResourceGroup>,
            $($(#[$doc])* pub $map: Map<crate::resource::$resource>,)*
            /// Agents by name, including revoked ones.
            pub agents: BTreeMap<AgentId, Arc<Agent>>,
            /// Join tokens that no agent has used yet, by their id. Expired ones stay until somebody deletes them.
            pub tokens: BTreeMap<String, Arc<JoinToken>>,
            /// The operator's settings. A setting that the operator left out has the default of the era.
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

/// The state that agents report. ARM bodies show it in properties that are not part of the desired state, such as
/// `connectionStatus` and byte counters.
#[derive(Debug, Clone, Default)]
pub struct AgentStatuses {
    /// The last status that each agent has reported. It is kept after the agent's control stream has ended.
    pub agents: BTreeMap<AgentId, AgentStatus>,
    /// The agents with an open control stream.
    pub connected: BTreeSet<AgentId>,
}

/// One document that the store has to write or delete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentChange {
    /// The key, e.g. `arm/…` or `fabric/agents/…`.
    pub key: String,
    /// The document's new JSON text. `None`: delete the document.
    pub value: Option<Vec<u8>>,
}
