//! The operations of a topology: apply a change, read and write stored documents, show ARM bodies.

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
    /// Applies a change and returns the new state; `self` stays as it is. `new_guid` returns a new GUID at each call:
    /// the crate has no randomness of its own.
    ///
    /// # Errors
    /// Every broken rule, up to a limit, in a fixed order.
    pub fn apply(&self, change: &Change, new_guid: &mut dyn FnMut() -> Uuid) -> Result<Outcome, Rejection> {
        rules::apply(self, change, new_guid)
    }

    /// The documents in which `self` differs from `before`, ordered by key.
    #[must_use]
    pub fn documents_since(&self, before: &Self) -> Vec<DocumentChange> {
        documents::since(self, before)
    }

    /// Builds a topology from the documents of a store. Documents with unknown keys are ignored.
    ///
    /// # Errors
    /// The key of the first document that cannot be read, and the reason.
    pub fn from_documents<'a>(documents: impl Iterator<Item = (&'a str, &'a [u8])>) -> Result<Self, String> {
        documents::load(documents)
    }

    /// The ARM body of one item, top-level or child, with its `etag`. `None`: the item does not exist.
    #[must_use]
    pub fn view(&self, path: &ArmPath, statuses: &AgentStatuses) -> Option<Value> {
        let views = match path.kind()? {
            Kind::VirtualNetwork => Views::within(self, statuses, path.id()),
            Kind::Subnet | Kind::Peering => Views::within(self, statuses, parent_id(&path.id())),
            _ => Views::new(self, statuses),
        };
        list::item(&views, path)
    }

    /// `getLearnedRoutes` of a gateway: its own prefixes, and the routes that its agents have learned. `None`: the
    /// gateway does not exist.
    #[must_use]
    pub fn learned_routes(&self, gateway: &ResourceId, statuses: &AgentStatuses) -> Option<Vec<Value>> {
        bgp::learned(self, statuses, gateway)
    }

    /// `getAdvertisedRoutes` of a gateway: the routes that its agents advertise to the peer with the address `peer`.
    /// `None`: the gateway does not exist.
    #[must_use]
    pub fn advertised_routes(
        &self,
        gateway: &ResourceId,
        peer: IpAddr,
        statuses: &AgentStatuses,
    ) -> Option<Vec<Value>> {
        bgp::advertised(self, statuses, gateway, peer)
    }

    /// `getBgpPeerStatus` of a gateway: every configured session, with the state that the gateway's agents report.
    /// `None`: the gateway does not exist.
    #[must_use]
    pub fn bgp_peers(&self, gateway: &ResourceId, statuses: &AgentStatuses) -> Option<Vec<Value>> {
        bgp::bgp_peers(self, statuses, gateway)
    }

    /// The route table of a circuit's private peering at one of its links. `None`: the circuit or its peering does not
    /// exist.
    #[must_use]
    pub fn circuit_routes(
        &self,
        circuit: &ResourceId,
        link: CircuitLink,
        statuses: &AgentStatuses,
    ) -> Option<Vec<Value>> {
        bgp::circuit_routes(self, statuses, circuit, link)
    }

    /// The neighbours of a circuit's private peering at one of its links. `None`: the circuit or its peering does not
    /// exist.
    #[must_use]
    pub fn circuit_routes_summary(
        &self,
        circuit: &ResourceId,
        link: CircuitLink,
        statuses: &AgentStatuses,
    ) -> Option<Vec<Value>> {
        bgp::circuit_summary(self, statuses, circuit, link)
    }

    /// The ARM bodies of a collection, ordered by id. `collection` is the path of an item without its last name:
    /// `…/virtualNetworks`, `…/virtualNetworks/v/subnets`, or
    /// `/subscriptions/{s}/providers/Microsoft.Network/virtualNetworks` for all groups.
    ///
    /// # Errors
    /// Status 404: the resource type, the resource group or the parent does not exist.
    pub fn list(&self, collection: &str, statuses: &AgentStatuses) -> Result<Vec<Value>, Rejection> {
        list::list(&Views::new(self, statuses), collection)
    }
}
