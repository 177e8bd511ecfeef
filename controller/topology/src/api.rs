//! The operations on a [`Topology`]: to apply a change, to build a topology from stored documents, to compute the
//! documents that a change alters, and to show ARM bodies.

use crate::arm::view::Views;
use crate::arm::{bgp, list};
use crate::change::{Change, Outcome};
use crate::path::{ArmPath, Kind, parent_id};
use crate::problems::Rejection;
use crate::topology::{AgentStatuses, DocumentChange, Topology};
use crate::{documents, rules};
use serde_json::Value;
use std::net::IpAddr;
use tombolo_proto::config::CircuitLink;
use tombolo_proto::id::ResourceId;
use uuid::Uuid;

impl Topology {
    /// Applies a change and returns the new state; `self` stays as it is. This crate has no randomness of its own, so
    /// the caller supplies GUIDs: `new_guid` must return a different one at each call. `apply` may call `new_guid` even
    /// if it refuses the change.
    ///
    /// # Errors
    /// The change breaks a rule. The rejection lists the first 100 problems, and one more entry that counts the others.
    /// The order of the problems is fixed, so equal requests get equal answers.
    pub fn apply(&self, change: &Change, new_guid: &mut dyn FnMut() -> Uuid) -> Result<Outcome, Rejection> {
        rules::apply(self, change, new_guid)
    }

    /// The documents to write or delete so that a store with the documents of `before` has those of `self`; ordered by
    /// key. Empty if the two states are equal.
    #[must_use]
    pub fn documents_since(&self, before: &Self) -> Vec<DocumentChange> {
        documents::since(self, before)
    }

    /// Builds a topology from the documents of a store, in any order. Keys outside of `arm/`, `fabric/agents/`,
    /// `fabric/tokens/` and `fabric/settings` are ignored. Each document is parsed, but the rules between resources are
    /// not checked again: `apply` checked them before the documents were written. If two documents describe the same
    /// item, the later one is used.
    ///
    /// # Errors
    /// The text names the first document that cannot be read and the reason: its JSON does not have the expected form,
    /// or its key below `arm/` names no kind of stored top-level resource.
    pub fn from_documents<'a>(documents: impl Iterator<Item = (&'a str, &'a [u8])>) -> Result<Self, String> {
        documents::load(documents)
    }

    /// The ARM body of one item, top-level or child, with its `etag` (a virtual machine and a resource group have
    /// none). `None`: the item does not exist, or `path` is of a type that this product does not have.
    #[must_use]
    pub fn view(&self, path: &ArmPath, statuses: &AgentStatuses) -> Option<Value> {
        let views = match path.kind()? {
            Kind::VirtualNetwork => Views::within(self, statuses, path.id()),
            Kind::Subnet | Kind::Peering => Views::within(self, statuses, parent_id(&path.id())),
            _ => Views::new(self, statuses),
        };
        list::item(&views, path)
    }

    /// `getLearnedRoutes` of a gateway in ARM's form: the prefixes of the gateway's VNet and of the VNets that use the
    /// gateway, then for each instance with an agent the learned routes that the instance uses. The learned routes are
    /// computed from the last reports of all agents. `None`: the gateway does not exist. Each call computes the learned
    /// routes of all gateways and edges, which takes long in a large topology.
    #[must_use]
    pub fn learned_routes(&self, gateway: &ResourceId, statuses: &AgentStatuses) -> Option<Vec<Value>> {
        bgp::learned(self, statuses, gateway)
    }

    /// `getAdvertisedRoutes` of a gateway in ARM's form: for each instance with an agent, the routes that the instance
    /// advertises to the peer with the address `peer`. Empty if no peer has this address. `None`: the gateway does not
    /// exist. The time is as for [`Self::learned_routes`].
    #[must_use]
    pub fn advertised_routes(
        &self,
        gateway: &ResourceId,
        peer: IpAddr,
        statuses: &AgentStatuses,
    ) -> Option<Vec<Value>> {
        bgp::advertised(self, statuses, gateway, peer)
    }

    /// `getBgpPeerStatus` of a gateway in ARM's form: for each instance, every configured session with the state that
    /// the instance's agent reports. The state is `Unknown` while the instance has no agent, or its agent is not
    /// connected to the controller or has not reported the session. `None`: the gateway does not exist. The time is as
    /// for [`Self::learned_routes`].
    #[must_use]
    pub fn bgp_peers(&self, gateway: &ResourceId, statuses: &AgentStatuses) -> Option<Vec<Value>> {
        bgp::bgp_peers(self, statuses, gateway)
    }

    /// The route table of a circuit's private peering on one of the circuit's two lines, in ARM's form: the prefixes of
    /// the linked VNets, then the routes that the line's edge has learned from the customer, by its last report.
    /// Without a report there are no routes of the customer. `None`: the circuit or its peering does not exist.
    #[must_use]
    pub fn circuit_routes(
        &self,
        circuit: &ResourceId,
        link: CircuitLink,
        statuses: &AgentStatuses,
    ) -> Option<Vec<Value>> {
        bgp::circuit_routes(self, statuses, circuit, link)
    }

    /// The neighbours of a circuit's private peering on one of the circuit's two lines, in ARM's form: the customer
    /// first, then the instances of the connected gateways. A session is shown as `down` unless the line's edge reports
    /// it as up. `None`: the circuit or its peering does not exist.
    #[must_use]
    pub fn circuit_routes_summary(
        &self,
        circuit: &ResourceId,
        link: CircuitLink,
        statuses: &AgentStatuses,
    ) -> Option<Vec<Value>> {
        bgp::circuit_summary(self, statuses, circuit, link)
    }

    /// The ARM bodies of all items of a collection. `collection` is the path of an item without the item's own name at
    /// the end: `…/virtualNetworks`, `…/virtualNetworks/v/subnets`, or
    /// `/subscriptions/{s}/providers/Microsoft.Network/virtualNetworks` for all groups of a subscription.
    /// `…/resources`, below a group or a subscription, lists all kinds in short form.
    ///
    /// Top-level items are ordered by id, and `…/resources` by type and then by id. Children are in the order in which
    /// their parent's body lists them. Collections of a subscription exist even if the subscription has no resources;
    /// they are then empty. A trailing `/` is accepted, and case is ignored.
    ///
    /// # Errors
    /// Status 404: `collection` is not the path of a collection, or the resource type, the resource group or the parent
    /// does not exist.
    pub fn list(&self, collection: &str, statuses: &AgentStatuses) -> Result<Vec<Value>, Rejection> {
        list::list(&Views::new(self, statuses), collection)
    }
}
