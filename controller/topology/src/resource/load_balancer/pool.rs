//! The back-end pools of a load balancer. A pool has either addresses of its own, or the network interfaces that refer to
//! it (L2).

use super::part::{Described, find};
use super::sku::STANDARD;
use crate::arm::body::{Object, Shape, missing};
use crate::arm::view::{Views, child, reference, references};
use crate::draft::Draft;
use crate::net::listed;
use crate::path::{Kind, child_id, parent_id};
use crate::resource::frame::{Child, ChildWrites, Request};
use crate::resource::{Envelope, LoadBalancer, LoadBalancerSku};
use crate::rules::address::find_subnet;
use crate::rules::place::Place;
use crate::rules::unsupported;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;
use tombolo_proto::id::ResourceId;
use uuid::Uuid;

/// A back-end pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendPool {
    /// The full resource id.
    pub id: ResourceId,
    /// A GUID that is new after each change of the pool. A network interface that joins or leaves the pool does not
    /// change it.
    pub etag: Uuid,
    /// The addresses of a pool of addresses. Empty: the members are network interfaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<PoolAddress>,
    /// The VNet of the addresses (L2). A pool with addresses has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_network: Option<ResourceId>,
    /// Whether the pool's body names the VNet in `virtualNetwork` of the pool. If not, each address names it.
    #[serde(default)]
    pub names_virtual_network: bool,
    /// `drainPeriodInSeconds`: how long flows of a removed member continue before they are reset. 0 or `None`: no longer
    /// than the member is in the pool. Other values are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_period_seconds: Option<u32>,
    /// Properties that are kept and shown, but have no effect.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub echoed: Map<String, Value>,
}

/// An address of a back-end pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolAddress {
    /// The name, unique in the pool.
    pub name: String,
    /// The address, which is in the pool's VNet.
    pub address: IpAddr,
    /// `adminState`.
    #[serde(default)]
    pub admin_state: AdminState,
}

/// Whether the operator overrides the health of a back end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdminState {
    /// The probe decides.
    #[default]
    None,
    /// The back end gets new flows whatever the probe says.
    Up,
    /// The back end gets no new flows, as if its probe had failed.
    Down,
}

impl AdminState {
    const NAMES: [(&'static str, Self); 3] = [("None", Self::None), ("Up", Self::Up), ("Down", Self::Down)];

    /// What the operator has said about the back end: whether it is up. `None`: the probe decides.
    #[must_use]
    pub const fn decided(self) -> Option<bool> {
        match self {
            Self::None => None,
            Self::Up => Some(true),
            Self::Down => Some(false),
        }
    }
}

/// The largest `drainPeriodInSeconds`: a day.
const MAX_DRAIN_PERIOD: i64 = 86_400;

/// The largest number of addresses in the body of a pool: that of the SKU Standard.
const MAX_ADDRESSES: usize = STANDARD.members;

/// The properties that are only kept and shown. A client of an older API version does not know them, so a body without
/// them keeps them.
const ECHOED: [(&str, Shape); 1] = [("syncMode", Shape::Text)];

/// The back-end pools of a load balancer as child items.
pub(super) const POOLS: Child = Child {
    name: "backendAddressPools",
    kind: Some(Kind::BackendPool),
    writes: Some(ChildWrites {
        put: |draft, request| draft.put_pool(request),
        delete: |draft, id, if_match| draft.delete_pool(id, if_match),
    }),
    item: |views, path| {
        let balancer = views.topology.load_balancers.get(&path.parent()?.id())?;
        find(&balancer.pools, &path.id()).map(|p| p.view(balancer, views))
    },
    list: |views, parent| {
        let balancer = views.topology.load_balancers.get(parent)?;
        Some(balancer.pools.iter().map(|p| p.view(balancer, views)).collect())
    },
};

impl BackendPool {
    /// The ARM body of the pool, which belongs to `balancer`, with its members.
    pub(super) fn view(&self, balancer: &LoadBalancer, views: &Views<'_>) -> Value {
        let back_ends = views.back_ends();
        let members = || back_ends.of_pool(&self.id);
        let mut properties = json!({
            "backendIPConfigurations": references(members()),
            "loadBalancingRules": references(balancer.rules_with(|r| r.pools.contains(&self.id))),
            "inboundNatRules": [],
            "outboundRules": [],
        });
        let addresses: Vec<Value> = match (balancer.sku, self.addresses.is_empty()) {
            (LoadBalancerSku::Basic, _) => Vec::new(),
            (LoadBalancerSku::Standard, true) => members().map(of_interface).collect(),
            (LoadBalancerSku::Standard, false) => {
                let own = self.addresses.iter();
                own.map(|address| self.address_view(address, views)).collect()
            }
        };
        properties["loadBalancerBackendAddresses"] = addresses.into();
        if let Some(vnet) = self.virtual_network.as_ref().filter(|_| self.names_virtual_network) {
            properties["virtualNetwork"] = reference(vnet);
        }
        if let Some(seconds) = self.drain_period_seconds {
            properties["drainPeriodInSeconds"] = seconds.into();
        }
        for (name, value) in &self.echoed {
            properties[name] = value.clone();
        }
        child(&self.id, Kind::BackendPool, self.etag, properties)
    }

    /// The ARM body of one of the pool's addresses.
    fn address_view(&self, address: &PoolAddress, views: &Views<'_>) -> Value {
        let mut properties = json!({"ipAddress": address.address, "adminState": address.admin_state});
        let Some(vnet) = &self.virtual_network else {
            return json!({"name": address.name, "properties": properties});
        };
        if !self.names_virtual_network {
            properties["virtualNetwork"] = reference(vnet);
        }
        if let Some(configuration) = views.back_ends().at(vnet, address.address) {
            properties["networkInterfaceIPConfiguration"] = reference(configuration);
        }
        json!({"name": address.name, "properties": properties})
    }
}

/// A network interface of a pool in the form of an address. It has no `ipAddress`: clients write back what they have
/// read, and an address with `ipAddress` would become a member of its own.
fn of_interface(ip_configuration: &ResourceId) -> Value {
    let nic = parent_id(ip_configuration);
    json!({
        "name": format!("{}_{}", nic.name(), ip_configuration.name()),
        "properties": {"adminState": "None", "networkInterfaceIPConfiguration": reference(ip_configuration)},
    })
}

/// An address of a pool as the body describes it, with its VNet.
struct DescribedAddress {
    address: PoolAddress,
    vnet: Option<ResourceId>,
}

impl Draft<'_> {
    /// Reads a pool of the load balancer with this envelope. `old`: the pool before the change. `None`: it cannot be read,
    /// and a problem gives the reason.
    pub(super) fn read_pool(
        &mut self,
        described: &Described<'_>,
        envelope: &Envelope,
        old: Option<&BackendPool>,
    ) -> Option<BackendPool> {
        let properties = &described.properties;
        let before = self.problems.len();
        self.check_supported(properties, unsupported::BACKEND_POOL);
        let place = Place {
            id: &described.id,
            location: &envelope.location,
            held: old.into_iter().filter_map(|p| p.virtual_network.clone()).collect(),
        };
        let own_vnet = self.resolve_beside(properties, "virtualNetwork", &place, |t, vnet| {
            Some(&t.vnets.get(vnet)?.envelope)
        });
        let known: BTreeMap<&str, AdminState> = old
            .into_iter()
            .flat_map(|p| &p.addresses)
            .map(|a| (a.name.as_str(), a.admin_state))
            .collect();
        let items = properties.list("loadBalancerBackendAddresses", MAX_ADDRESSES, &mut self.problems);
        let (mut addresses, mut vnet) = (Vec::new(), own_vnet.clone());
        for item in items.into_iter().flatten() {
            let Some(item) = item.object(&mut self.problems) else {
                continue;
            };
            let inner = item.object_or_empty("properties", &mut self.problems);
            let Some(found) = self.read_pool_address(&item, &inner, &place, &known) else {
                continue;
            };
            self.check_vnet_of_address(&inner, &found, own_vnet.as_ref(), &mut vnet);
            addresses.push(found.address);
        }
        self.check_unique_names(&described.id, "address", addresses.iter().map(|a| a.name.as_str()));
        self.check_unique_addresses(&described.id, &addresses);
        // An address of another VNet has a problem already.
        if self.problems.len() == before {
            self.check_inside(properties, vnet.as_ref(), &addresses);
        }
        let drain_period = properties.integer("drainPeriodInSeconds", 0..=MAX_DRAIN_PERIOD, &mut self.problems);
        if drain_period.is_some() {
            self.check_supported(properties, unsupported::DRAIN_PERIOD);
        }
        let echoed = self.pool_echoed(properties, old);
        (self.problems.len() == before).then(|| BackendPool {
            id: described.id.clone(),
            etag: old.map_or(Uuid::nil(), |p| p.etag),
            addresses,
            virtual_network: vnet,
            names_virtual_network: own_vnet.is_some(),
            drain_period_seconds: drain_period.and_then(|s| u32::try_from(s).ok()),
            echoed,
        })
    }

    /// The echoed properties of the body, and those of the old pool that the body lacks.
    fn pool_echoed(&mut self, properties: &Object<'_>, old: Option<&BackendPool>) -> Map<String, Value> {
        let mode = properties.choice("syncMode", &["Automatic", "Manual"], &mut self.problems);
        let mut echoed = old.map_or_else(Map::new, |p| p.echoed.clone());
        echoed.extend(mode.map(|mode| (ECHOED[0].0.to_owned(), mode.into())));
        echoed
    }

    /// Reads one address of a pool. `known`: the states of the present addresses by name; a client of an older API version
    /// does not know the state, so a body without it keeps it. `None`: the address describes a network interface of the
    /// pool, or it cannot be read, and a problem gives the reason.
    fn read_pool_address(
        &mut self,
        item: &Object<'_>,
        inner: &Object<'_>,
        place: &Place<'_>,
        known: &BTreeMap<&str, AdminState>,
    ) -> Option<DescribedAddress> {
        self.check_supported(inner, unsupported::POOL_ADDRESS);
        let state = self.optional_choice(inner, "adminState", &AdminState::NAMES);
        let given = |name: &str| inner.get(name).is_some_and(|v| v.as_str() != Some(""));
        if !["ipAddress", "virtualNetwork", "subnet"].into_iter().any(given) {
            // Clients write back the addresses that the pool shows for its network interfaces. Some leave out the member
            // that names the interface, because it is read-only.
            if state.is_some_and(|s| s != AdminState::None) {
                self.check_supported(inner, unsupported::INTERFACE_OF_POOL);
            }
            return None;
        }
        let name = self.child_name(item);
        if !given("ipAddress") {
            missing(&mut self.problems, &inner.at("ipAddress"));
        }
        let address = inner.address("ipAddress", &mut self.problems);
        let vnet = self.resolve_beside(inner, "virtualNetwork", place, |t, vnet| {
            Some(&t.vnets.get(vnet)?.envelope)
        });
        let subnet = self.resolve(inner, "subnet", place.id, find_subnet);
        if let Some(subnet) = &subnet {
            self.check_beside_vnet(subnet, place, &inner.at("subnet.id"));
        }
        if let (Some(subnet), Some(address)) = (&subnet, address)
            && !subnet.prefixes.iter().any(|p| p.contains(&address))
        {
            let at = inner.at("ipAddress");
            let message = format!(
                "{at}: {address} is not in subnet {} ({}), which {} names (L2)",
                subnet.id,
                listed(&subnet.prefixes),
                inner.at("subnet")
            );
            self.problems.add("XPoolAddressOutsideVnet", at, message);
        }
        let (name, address) = (name?, address?);
        Some(DescribedAddress {
            vnet: vnet.or_else(|| subnet.map(|s| parent_id(&s.id))),
            address: PoolAddress {
                admin_state: state.or_else(|| known.get(&*name).copied()).unwrap_or_default(),
                name,
                address,
            },
        })
    }

    /// Checks that an address has a VNet, and the same one as the pool and its other addresses (L2). `own`: the VNet that
    /// the pool names. `vnet`: the VNet of the pool and of the addresses before this one.
    fn check_vnet_of_address(
        &mut self,
        inner: &Object<'_>,
        found: &DescribedAddress,
        own: Option<&ResourceId>,
        vnet: &mut Option<ResourceId>,
    ) {
        let at = inner.at("virtualNetwork");
        match (&found.vnet, own) {
            (None, Some(_)) => {}
            // A reference without a target is a problem already.
            (None, None) if inner.get("virtualNetwork").is_some() || inner.get("subnet").is_some() => {}
            (None, None) => {
                let message = format!(
                    "{at}: required property is missing. Name the virtual network of address {} here, or in virtualNetwork of \
                     the pool.",
                    found.address.address
                );
                self.problems.add("InvalidRequestFormat", at, message);
            }
            (Some(this), _) => {
                let first = vnet.get_or_insert_with(|| this.clone());
                if first != this {
                    let message = format!(
                        "{at}: address {} is in virtual network {this}, and the pool in {first}. All addresses of a back-end \
                         pool must be in one virtual network (L2). Use a pool of another load balancer for them.",
                        found.address.address
                    );
                    self.problems.add("XPoolAcrossVnets", at, message);
                }
            }
        }
    }

    /// Adds a problem for each address that occurs twice in a pool.
    fn check_unique_addresses(&mut self, pool: &ResourceId, addresses: &[PoolAddress]) {
        let mut seen = BTreeMap::new();
        for one in addresses {
            if let Some(first) = seen.insert(one.address, &one.name) {
                let message = format!(
                    "Back-end pool {pool} has the address {} twice: '{first}' and '{}'. Remove one of them.",
                    one.address, one.name
                );
                self.problems.add("XDuplicatePoolAddress", pool, message);
            }
        }
    }

    /// Checks that all addresses are in the address space of the pool's VNet (L2).
    fn check_inside(&mut self, properties: &Object<'_>, vnet: Option<&ResourceId>, addresses: &[PoolAddress]) {
        let Some(vnet) = vnet.and_then(|id| self.topology.vnets.get(id).cloned()) else {
            return;
        };
        for one in addresses {
            if !vnet.address_space.iter().any(|p| p.contains(&one.address)) {
                let at = properties.at("loadBalancerBackendAddresses");
                let message = format!(
                    "{at}: address {} of '{}' is not in virtual network {} ({}). A back-end pool has addresses of its virtual \
                     network only (L2).",
                    one.address,
                    one.name,
                    vnet.envelope.id,
                    listed(&vnet.address_space)
                );
                self.problems.add("XPoolAddressOutsideVnet", at, message);
            }
        }
    }

    /// PUT of a pool. True: it is new.
    fn put_pool(&mut self, request: &Request<'_>) -> bool {
        let path = request.path;
        let parent = path.parent().map(|p| p.id());
        let Some(balancer) = parent.and_then(|id| self.topology.load_balancers.get(&id).cloned()) else {
            self.parent_not_found(path);
            return false;
        };
        let old = find(&balancer.pools, &path.id());
        self.check_if_match(request.if_match, old.map(|p| p.etag), &path.id());
        if old.is_none() {
            self.check_name(path.name(), &path.id());
        }
        let own = || child_id(&balancer.envelope.id, POOLS.name, path.name());
        let id = old.map_or_else(own, |p| p.id.clone());
        let described = Described::of_body(id, request.body, &mut self.problems);
        let Some(pool) = self.read_pool(&described, &balancer.envelope, old) else {
            return false;
        };
        let mut new = (*balancer).clone();
        match new.pools.iter_mut().find(|p| p.id == pool.id) {
            Some(slot) => *slot = pool,
            None => new.pools.push(pool),
        }
        self.check_load_balancer(Some(&balancer), &new);
        self.commit(new);
        old.is_none()
    }

    /// DELETE of a pool. True: it existed.
    fn delete_pool(&mut self, id: &ResourceId, if_match: Option<&str>) -> bool {
        let Some(balancer) = self.topology.load_balancers.get(&parent_id(id)).cloned() else {
            return false;
        };
        let Some(old) = find(&balancer.pools, id) else {
            return false;
        };
        self.check_if_match(if_match, Some(old.etag), id);
        if let Some(rule) = balancer.rules_with(|r| r.pools.contains(id)).next() {
            let message = format!(
                "Back-end pool {id} cannot be deleted while load-balancing rule {rule} refers to it. Remove the rule, or its \
                 reference, first."
            );
            self.problems.add("XLoadBalancerPoolInUse", id, message);
        }
        let mut new = (*balancer).clone();
        new.pools.retain(|p| p.id != *id);
        self.check_load_balancer(Some(&balancer), &new);
        self.commit(new);
        true
    }
}
