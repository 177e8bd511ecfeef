//! What a shell asks of a topology: apply a change, stored documents, ARM bodies.

use crate::arm::view::Views;
use crate::arm::{bgp, list};
use crate::change::{Change, Outcome};
use crate::path::{ArmPath, Kind, parent_id};
use crate::problems::Rejection;
use crate::topology::{DocumentChange, Live, Topology};
use crate::{documents, rules};
use serde_json::Value;
use std::net::IpAddr;
use tombolo_proto::config::CircuitLink;
use tombolo_proto::id::ResourceId;
use uuid::Uuid;

impl Topology {
    /// Applies a change, or says everything that is wrong with it. `fresh` gives new GUIDs (the caller's randomness).
    ///
    /// # Errors
    /// All broken rules at once; nothing has changed.
    pub fn apply(&self, change: &Change, fresh: &mut dyn FnMut() -> Uuid) -> Result<Outcome, Rejection> {
        rules::apply(self, change, fresh)
    }

    /// The documents in which `self` differs from `before`, ordered by key.
    #[must_use]
    pub fn documents_since(&self, before: &Self) -> Vec<DocumentChange> {
        documents::since(self, before)
    }

    /// Reads all documents of a store.
    ///
    /// # Errors
    /// Which document cannot be read, and why.
    pub fn from_documents<'a>(documents: impl Iterator<Item = (&'a str, &'a [u8])>) -> Result<Self, String> {
        documents::load(documents)
    }

    /// The ARM body of one item (top-level or child), with `etag`; none if it does not exist.
    #[must_use]
    pub fn view(&self, path: &ArmPath, live: &Live) -> Option<Value> {
        let views = match path.kind()? {
            Kind::VirtualNetwork => Views::within(self, live, path.id()),
            Kind::Subnet | Kind::Peering => Views::within(self, live, parent_id(&path.id())),
            _ => Views::new(self, live),
        };
        list::item(&views, path)
    }

    /// `getLearnedRoutes` of a gateway: its own prefixes, and what its agents were told. None: no such gateway.
    #[must_use]
    pub fn learned_routes(&self, gateway: &ResourceId, live: &Live) -> Option<Vec<Value>> {
        bgp::learned(self, live, gateway)
    }

    /// `getAdvertisedRoutes` of a gateway: what its agents told a peer, named by its address. None: no such gateway.
    #[must_use]
    pub fn advertised_routes(&self, gateway: &ResourceId, peer: IpAddr, live: &Live) -> Option<Vec<Value>> {
        bgp::advertised(self, live, gateway, peer)
    }

    /// `getBgpPeerStatus` of a gateway: the sessions that there should be, as its agents see them. None: no such gateway.
    #[must_use]
    pub fn bgp_peers(&self, gateway: &ResourceId, live: &Live) -> Option<Vec<Value>> {
        bgp::bgp_peers(self, live, gateway)
    }

    /// The route table of a circuit's private peering at one of its links. None: no such circuit, or no peering.
    #[must_use]
    pub fn circuit_routes(&self, circuit: &ResourceId, link: CircuitLink, live: &Live) -> Option<Vec<Value>> {
        bgp::circuit_routes(self, live, circuit, link)
    }

    /// The neighbours of a circuit's private peering at one of its links. None: no such circuit, or no peering.
    #[must_use]
    pub fn circuit_routes_summary(&self, circuit: &ResourceId, link: CircuitLink, live: &Live) -> Option<Vec<Value>> {
        bgp::circuit_summary(self, live, circuit, link)
    }

    /// The ARM bodies of a collection, in order of id. `collection` is an item path without its last name:
    /// `…/virtualNetworks`, `…/virtualNetworks/v/subnets`, or `/subscriptions/{s}/providers/Microsoft.Network/virtualNetworks`
    /// for all groups.
    ///
    /// # Errors
    /// 404s: unknown type, group or parent.
    pub fn list(&self, collection: &str, live: &Live) -> Result<Vec<Value>, Rejection> {
        list::list(&Views::new(self, live), collection)
    }
}
