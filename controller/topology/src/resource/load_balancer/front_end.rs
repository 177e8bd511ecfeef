//! The front ends of a load balancer: private addresses in subnets of one VNet (L1).

use super::part::{Described, by_id, find};
use crate::arm::body::{MAX_ITEMS, Object};
use crate::arm::view::{address_version, allocation_method, child, reference, references};
use crate::draft::Draft;
use crate::path::{Kind, parent_id};
use crate::resource::frame::Child;
use crate::resource::{Envelope, LoadBalancer};
use crate::rules::address::AddressRequest;
use crate::rules::place::Place;
use crate::rules::unsupported;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::net::IpAddr;
use tombolo_proto::id::ResourceId;
use uuid::Uuid;

/// A front end: an address at which a load balancer receives packets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontEnd {
    /// The full resource id.
    pub id: ResourceId,
    /// A GUID that is new after each change of the front end.
    pub etag: Uuid,
    /// The id of the subnet.
    pub subnet: ResourceId,
    /// The address. A `Dynamic` one is allocated at creation and then kept.
    pub address: IpAddr,
    /// Whether the allocation method is `Static`.
    pub is_static: bool,
    /// The availability zones, kept and shown only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub zones: Vec<String>,
}

/// The front ends of a load balancer as child items. They are written with their load balancer.
pub(super) const FRONT_ENDS: Child = Child {
    name: "frontendIPConfigurations",
    kind: Some(Kind::FrontEnd),
    writes: None,
    item: |views, path| {
        let balancer = views.topology.load_balancers.get(&path.parent()?.id())?;
        find(&balancer.front_ends, &path.id()).map(|f| f.view(balancer))
    },
    list: |views, parent| {
        let balancer = views.topology.load_balancers.get(parent)?;
        Some(balancer.front_ends.iter().map(|f| f.view(balancer)).collect())
    },
};

impl FrontEnd {
    /// The ARM body of the front end, which belongs to `balancer`.
    pub(super) fn view(&self, balancer: &LoadBalancer) -> Value {
        let nat_rules = balancer.nat_rules.iter().filter(|r| r.front_end == self.id);
        let properties = json!({
            "privateIPAddress": self.address,
            "privateIPAllocationMethod": allocation_method(self.is_static),
            "privateIPAddressVersion": address_version(self.address),
            "subnet": reference(&self.subnet),
            "loadBalancingRules": references(balancer.rules_with(|r| r.front_end == self.id)),
            "inboundNatRules": references(nat_rules.map(|r| &r.id)),
            "inboundNatPools": [],
            "outboundRules": [],
        });
        let mut body = child(&self.id, Kind::FrontEnd, self.etag, properties);
        if !self.zones.is_empty() {
            body["zones"] = json!(self.zones);
        }
        body
    }
}

impl Draft<'_> {
    /// Reads the front ends of the load balancer with this envelope, and chooses the addresses of dynamic ones. A front
    /// end that cannot be read, or gets no address, is left out, and a problem gives the reason.
    pub(super) fn read_front_ends(
        &mut self,
        envelope: &Envelope,
        described: &[Described<'_>],
        old: Option<&LoadBalancer>,
    ) -> Vec<FrontEnd> {
        let before = by_id(old.map_or(&[], |b| &b.front_ends));
        let place = Place::of(envelope, before.values().map(|f| f.subnet.clone()).collect());
        let (mut requested, mut zones) = (Vec::new(), Vec::new());
        for one in described {
            self.check_supported(&one.properties, unsupported::FRONT_END);
            let own_zones = self.zones(&one.item);
            if let Some(request) = self.read_address_request(&place, one.id.clone(), &one.properties) {
                requested.push(request);
                zones.push(own_zones);
            }
        }
        self.check_front_end_subnets(&envelope.id, &requested, old);
        let same_subnet = |w: &AddressRequest| before.get(&w.id).filter(|f| f.subnet == w.subnet.id);
        let current: Vec<Option<IpAddr>> = requested.iter().map(|w| same_subnet(w).map(|f| f.address)).collect();
        // An address of a pool can belong to a machine that has no network interface yet.
        let avoid = match requested.first() {
            Some(first) => self.pool_addresses_in(&parent_id(&first.subnet.id)),
            None => Vec::new(),
        };
        let addresses = self.allocate(&envelope.id, &requested, &current, avoid);
        let complete = requested.into_iter().zip(zones).zip(addresses);
        complete
            .filter_map(|((w, zones), address)| {
                Some(FrontEnd {
                    etag: before.get(&w.id).map_or(Uuid::nil(), |f| f.etag),
                    id: w.id,
                    subnet: w.subnet.id,
                    address: address?,
                    is_static: w.is_static,
                    zones,
                })
            })
            .collect()
    }

    /// The member `zones`, a list of texts.
    fn zones(&mut self, item: &Object<'_>) -> Vec<String> {
        let zones = item.list("zones", MAX_ITEMS, &mut self.problems);
        let texts = zones.into_iter().flatten();
        texts
            .filter_map(|zone| zone.text(&mut self.problems).map(ToOwned::to_owned))
            .collect()
    }

    /// Checks the subnets of all front ends: they are in one VNet, none is a `GatewaySubnet` or delegated.
    fn check_front_end_subnets(&mut self, id: &ResourceId, requested: &[AddressRequest], old: Option<&LoadBalancer>) {
        let stays = |w: &AddressRequest| old.is_some_and(|b| b.front_ends.iter().any(|f| f.subnet == w.subnet.id));
        self.check_subnets_free_for(&format!("A front end of load balancer {id}"), id, requested, stays);
        let Some(first) = requested.first() else { return };
        let vnet = parent_id(&first.subnet.id);
        if let Some(other) = requested.iter().find(|w| parent_id(&w.subnet.id) != vnet) {
            self.problems.add(
                "XFrontendsAcrossVnets",
                &other.id,
                format!(
                    "Front end {} is in subnet {}, and front end '{}' in subnet {}. All front ends of a load balancer must be in \
                     one virtual network (L1). Create a load balancer for each virtual network.",
                    other.id,
                    other.subnet.id,
                    first.id.name(),
                    first.subnet.id
                ),
            );
        }
    }
}
