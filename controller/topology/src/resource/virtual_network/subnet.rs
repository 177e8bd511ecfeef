//! Subnets: how they are read and shown, and their rules (P2, P3, G1, R16, R17).

use crate::arm::body::{MAX_ITEMS, Object, Shape, missing, prefix};
use crate::arm::view::{Views, child, reference};
use crate::draft::Draft;
use crate::lookup::{gateways_of, is_gateway_subnet};
use crate::net::{DisjointSet, listed, overlaps_within, same_set};
use crate::path::{ArmPath, Kind, child_id, parent_id};
use crate::problems::Problems;
use crate::resource::frame::{Child, ChildWrites, Request};
use crate::resource::{RouteTable, VirtualNetwork};
use crate::rules::place::Place;
use crate::rules::request::without_defaults;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use tombolo_proto::id::ResourceId;
use uuid::Uuid;

/// A subnet of a virtual network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Subnet {
    /// The full resource id.
    pub id: ResourceId,
    /// A GUID that is new after each change of the subnet.
    pub etag: Uuid,
    /// The prefixes, at least one. Each prefix is inside one address range of the VNet, and disjoint from the prefixes
    /// of other subnets (P2).
    pub prefixes: Vec<IpNet>,
    /// Whether the subnet shows a single prefix as `addressPrefixes`, because the request did. Clients compare the answer
    /// with their request.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lists_prefixes: bool,
    /// The route table of the subnet (R17). `None`: the subnet has system and gateway routes only.
    #[serde(default)]
    pub route_table: Option<ResourceId>,
    /// The network security group of the subnet (N4). `None`: the subnet's rules allow everything (N5).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_security_group: Option<ResourceId>,
    /// Properties that are kept and shown, but have no effect.
    #[serde(default)]
    pub echoed: Map<String, Value>,
}

/// The properties that are only kept and shown, with their JSON types.
const PROPERTIES: [(&str, Shape); 6] = [
    ("delegations", Shape::Objects),
    ("serviceEndpoints", Shape::Objects),
    ("privateEndpointNetworkPolicies", Shape::Text),
    ("privateLinkServiceNetworkPolicies", Shape::Text),
    ("defaultOutboundAccess", Shape::Bool),
    ("sharingScope", Shape::Text),
];

/// Azure's maximum number of subnets in a VNet (X3).
pub(crate) const MAX_SUBNETS: usize = 3_000;

/// The users of each subnet with their addresses; see [`Draft::subnet_usage`].
pub(crate) type Usage = BTreeMap<ResourceId, Vec<(String, Option<IpAddr>)>>;

/// The values that Azure shows for properties that the body of a subnet's PUT leaves out.
fn defaults() -> Value {
    json!({
        "delegations": [],
        "serviceEndpoints": [],
        "privateEndpointNetworkPolicies": "Disabled",
        "privateLinkServiceNetworkPolicies": "Enabled",
    })
}

/// The subnets of a VNet as child items.
pub(super) const SUBNETS: Child = Child {
    name: "subnets",
    kind: Some(Kind::Subnet),
    writes: Some(ChildWrites {
        put: |draft, request| draft.put_subnet(request),
        delete: |draft, id, if_match| draft.delete_subnet(id, if_match),
    }),
    item: |views, path| {
        let id = path.id();
        let vnet = views.topology.vnets.get(&parent_id(&id))?;
        vnet.subnets.iter().find(|s| s.id == id).map(|s| s.view(views))
    },
    list: |views, parent| {
        let vnet = views.topology.vnets.get(parent)?;
        Some(vnet.subnets.iter().map(|s| s.view(views)).collect())
    },
};

impl Subnet {
    /// The names of the services that the subnet is delegated to, in lower case. A delegation without a service has an
    /// empty name.
    pub(crate) fn delegated_to(&self) -> BTreeSet<String> {
        let delegations = self.echoed.get("delegations").and_then(Value::as_array);
        delegations
            .into_iter()
            .flatten()
            .map(|d| {
                d.pointer("/properties/serviceName")
                    .and_then(Value::as_str)
                    .unwrap_or_default()
                    .to_ascii_lowercase()
            })
            .collect()
    }

    /// The ARM body of the subnet, with the ip configurations that are in it.
    pub(super) fn view(&self, views: &Views<'_>) -> Value {
        let mut properties = defaults();
        if let Value::Object(slot) = &mut properties {
            slot.extend(self.echoed.clone());
        }
        for endpoint in properties["serviceEndpoints"].as_array_mut().into_iter().flatten() {
            endpoint["provisioningState"] = "Succeeded".into();
        }
        match self.prefixes.as_slice() {
            [one] if !self.lists_prefixes => properties["addressPrefix"] = one.to_string().into(),
            many => properties["addressPrefixes"] = json!(many),
        }
        if let Some(table) = &self.route_table {
            properties["routeTable"] = reference(table);
        }
        if let Some(group) = &self.network_security_group {
            properties["networkSecurityGroup"] = reference(group);
        }
        let users = views.subnet_users(&self.id).unwrap_or_default();
        properties["ipConfigurations"] = users.iter().map(reference).collect::<Vec<_>>().into();
        child(&self.id, Kind::Subnet, self.etag, properties)
    }
}

impl Draft<'_> {
    /// PUT of a subnet. True: the subnet is new.
    fn put_subnet(&mut self, request: &Request<'_>) -> bool {
        let (path, body) = (request.path, request.body);
        let Some(vnet) = path.parent().and_then(|p| self.topology.vnets.get(&p.id()).cloned()) else {
            self.parent_not_found(path);
            return false;
        };
        let name = path.name();
        let old = find(&vnet.subnets, name);
        self.check_if_match(request.if_match, old.map(|s| s.etag), &path.id());
        if old.is_none() {
            self.check_name(name, &path.id());
        }
        let root = Object::root(body, &mut self.problems);
        let properties = root.object_or_empty("properties", &mut self.problems);
        let Some(subnet) = self.read_subnet((&vnet.envelope.id, &vnet.envelope.location), name, &properties, old)
        else {
            return false;
        };
        let mut new = (*vnet).clone();
        match new.subnets.iter_mut().find(|s| s.id == subnet.id) {
            Some(slot) => *slot = subnet,
            None => new.subnets.push(subnet),
        }
        self.check_vnet(Some(&vnet), &new, true);
        self.commit(new);
        old.is_none()
    }

    /// DELETE of a subnet. True: the subnet existed. If the subnet is in use, this adds a problem.
    fn delete_subnet(&mut self, id: &ResourceId, if_match: Option<&str>) -> bool {
        let vnet_id = parent_id(id);
        let Some(vnet) = self.topology.vnets.get(&vnet_id).cloned() else {
            return false;
        };
        let Some(old) = vnet.subnets.iter().find(|s| s.id == *id) else {
            return false;
        };
        self.check_if_match(if_match, Some(old.etag), id);
        let usage = self.subnet_usage(&vnet_id);
        self.check_subnet_unused(id, &usage);
        let mut new = (*vnet).clone();
        new.subnets.retain(|s| s.id != *id);
        self.commit(new);
        true
    }

    /// Reads the properties of the subnet `name` of `vnet`. If the body has both `addressPrefixes` and `addressPrefix`,
    /// the first one counts. `None`: no prefix can be read, and a problem says so. `vnet` also has the region of the
    /// virtual network. `old`: the subnet before the change.
    pub(crate) fn read_subnet(
        &mut self,
        (vnet, location): (&ResourceId, &str),
        name: &str,
        properties: &Object<'_>,
        old: Option<&Subnet>,
    ) -> Option<Subnet> {
        let id = old.map_or_else(|| child_id(vnet, "subnets", name), |s| s.id.clone());
        let before = self.problems.len();
        let listed_prefixes: Option<Vec<IpNet>> = self
            .prefixes(properties, "addressPrefixes")
            .map(|list| list.into_iter().map(|(net, _)| net).collect());
        let at = properties.at("addressPrefix");
        let single = properties.text("addressPrefix", &mut self.problems);
        let listed_prefixes = listed_prefixes.filter(|l| !l.is_empty());
        let lists_prefixes = listed_prefixes.is_some();
        let prefixes = match (listed_prefixes, single) {
            (Some(list), _) => list,
            (None, Some(text)) => prefix(text, &at, &mut self.problems).into_iter().collect(),
            (None, None) => Vec::new(),
        };
        if prefixes.is_empty() && self.problems.len() == before {
            missing(&mut self.problems, &at);
        }
        let held = |s: &Subnet| s.route_table.iter().chain(&s.network_security_group).cloned().collect();
        let place = Place {
            id: &id,
            location,
            held: old.map_or_else(Vec::new, held),
        };
        let route_table = self.resolve_beside(properties, "routeTable", &place, |t, table| {
            t.route_tables.get(table).map(|t| &t.envelope)
        });
        let network_security_group = self.resolve_security_group(properties, &place);
        if let Some(group) = network_security_group.as_ref().filter(|_| is_gateway_subnet(&id)) {
            self.problems.add(
                "XGatewaySubnetCannotHaveSecurityGroup",
                &id,
                format!("Subnet {id} is for gateways alone and cannot have a network security group ({group}) (N13)."),
            );
        }
        // These policies are not implemented. To accept one of them would suggest that it is enforced.
        for name in ["natGateway", "serviceEndpointPolicies"] {
            if properties
                .get(name)
                .is_some_and(|v| v.as_array().is_none_or(|a| !a.is_empty()))
            {
                self.unsupported_reference(properties, name, &id);
            }
        }
        let mut echoed = properties.echo(&PROPERTIES, &mut self.problems);
        self.read_service_endpoints(properties, &mut echoed);
        without_defaults(&mut echoed, &defaults());
        (!prefixes.is_empty()).then(|| Subnet {
            etag: old.map_or(Uuid::nil(), |s| s.etag),
            id,
            prefixes,
            lists_prefixes,
            route_table,
            network_security_group,
            echoed,
        })
    }

    /// Checks that each service endpoint names its service. Removes its state from `echoed`, because it is read-only.
    fn read_service_endpoints(&mut self, properties: &Object<'_>, echoed: &mut Map<String, Value>) {
        // Items of another type are problems already, because the echoed properties have been read.
        let items = properties.list("serviceEndpoints", MAX_ITEMS, &mut Problems::default());
        for item in items.into_iter().flatten() {
            let Some(object) = item.object(&mut Problems::default()) else {
                continue;
            };
            if object.text("service", &mut self.problems).is_none() && object.get("service").is_none() {
                missing(&mut self.problems, &object.at("service"));
            }
        }
        let kept = echoed.get_mut("serviceEndpoints").and_then(Value::as_array_mut);
        for endpoint in kept.into_iter().flatten().filter_map(Value::as_object_mut) {
            endpoint.remove("provisioningState");
        }
    }

    /// Adds the problem that the property `name` refers to a type of resource that this product does not have. `from`:
    /// the resource that has the property.
    pub(crate) fn unsupported_reference(&mut self, properties: &Object<'_>, name: &str, from: &ResourceId) {
        let at = properties.at(name);
        match properties.get(name) {
            Some(Value::Object(_)) => {
                // No resource of the target's type can exist here. So this call never finds the target, and adds the
                // problem of a malformed reference or of a missing target.
                let _: Option<()> = self.resolve(properties, name, from, |_, _| None);
            }
            _ => self
                .problems
                .add("XNotSupported", at.clone(), format!("{at}: {name} is not supported")),
        }
    }

    /// Checks the subnets of a VNet, compared with its old state: their number (X3), prefixes (P2, P3) and route tables
    /// (R15, R16), and that no removed subnet or prefix is in use. `space_is_known`: whether the VNet's address space
    /// could be read. If not, the checks that compare subnets with it are left out. `usage`: the users of the old
    /// subnets.
    pub(crate) fn check_subnets(
        &mut self,
        old: Option<&VirtualNetwork>,
        new: &VirtualNetwork,
        space_is_known: bool,
        usage: &Usage,
    ) {
        if new.subnets.len() > MAX_SUBNETS {
            self.problems.add(
                "XTooManyItems",
                &new.envelope.id,
                format!(
                    "Virtual network {} has {} subnets, at most {MAX_SUBNETS} are allowed (X3).",
                    new.envelope.id,
                    new.subnets.len()
                ),
            );
        }
        let ranges = DisjointSet::new(&new.address_space);
        let mut all = Vec::new();
        for subnet in &new.subnets {
            let before = old.and_then(|v| find(&v.subnets, subnet.id.name()));
            for net in &subnet.prefixes {
                all.push((*net, &subnet.id));
                let is_new = before.is_none_or(|b| !b.prefixes.contains(net));
                if is_new && net.addr().is_ipv6() && net.prefix_len() != 64 {
                    self.problems.add(
                        "NetcfgInvalidSubnet",
                        &subnet.id,
                        format!(
                            "Subnet '{}' is not valid in virtual network '{}': {net} is an IPv6 prefix of another length than \
                             /64 (P2).",
                            subnet.id.name(),
                            new.envelope.id.name()
                        ),
                    );
                } else if net.max_prefix_len() - net.prefix_len() < 3 {
                    self.problems.add(
                        "NetcfgInvalidSubnet",
                        &subnet.id,
                        format!(
                            "Subnet '{}' is not valid in virtual network '{}': {net} has fewer than 8 addresses, the \
                             first four and the last are reserved (P2).",
                            subnet.id.name(),
                            new.envelope.id.name()
                        ),
                    );
                } else if space_is_known && ranges.containing(net).is_none() {
                    self.subnet_outside(subnet, before, net, new);
                }
            }
            self.check_gateway_subnet_table(subnet, before);
            let kinds = || gateways_of(&self.topology, &new.envelope.id).count();
            let resized = before.is_some_and(|b| !same_set(&b.prefixes, &subnet.prefixes));
            if resized && is_gateway_subnet(&subnet.id) && kinds() > 1 {
                self.check_room_for_two_kinds(&subnet.id, subnet);
            }
        }
        self.check_subnets_disjoint(&all);
        let Some(old) = old else { return };
        for before in &old.subnets {
            match find(&new.subnets, before.id.name()) {
                None => self.check_subnet_unused(&before.id, usage),
                Some(after) => {
                    if !same_set(&before.prefixes, &after.prefixes) {
                        self.check_prefixes_unused(before, after, usage);
                    }
                    self.check_delegations_unchanged(before, after, usage);
                }
            }
        }
    }

    /// Checks that the prefixes of all subnets are disjoint (P2). `all`: each prefix with its subnet.
    fn check_subnets_disjoint(&mut self, all: &[(IpNet, &ResourceId)]) {
        let nets: Vec<IpNet> = all.iter().map(|(net, _)| *net).collect();
        for (a, b) in overlaps_within(&nets) {
            self.problems.add(
                "NetcfgSubnetRangesOverlap",
                all[b].1,
                format!(
                    "Subnet '{}' is not valid because its IP address range {} overlaps with that of subnet '{}' ({}).",
                    all[b].1.name(),
                    nets[b],
                    all[a].1.name(),
                    nets[a]
                ),
            );
        }
    }

    /// Adds the problem that `net`, a prefix of the subnet, is outside of the VNet's address space. If the subnet had
    /// this prefix before, the VNet gives up the range, so the problem cites P3. If the prefix is new, it cites P2.
    fn subnet_outside(&mut self, subnet: &Subnet, before: Option<&Subnet>, net: &IpNet, vnet: &VirtualNetwork) {
        if before.is_some_and(|b| b.prefixes.contains(net)) {
            self.problems.add(
                "InUsePrefixCannotBeDeleted",
                "properties.addressSpace.addressPrefixes",
                format!(
                    "The address range of subnet {} ({net}) cannot be removed from virtual network {} while the subnet \
                     exists; address space: {} (P3).",
                    subnet.id,
                    vnet.envelope.id,
                    listed(&vnet.address_space)
                ),
            );
        } else {
            self.problems.add(
                "NetcfgInvalidSubnet",
                &subnet.id,
                format!(
                    "Subnet '{}' is not valid in virtual network '{}': {net} is not inside one range of its address \
                     space {} (P2).",
                    subnet.id.name(),
                    vnet.envelope.id.name(),
                    listed(&vnet.address_space)
                ),
            );
        }
    }

    /// Adds a problem for each removed prefix of a subnet from which an address is in use (P3).
    fn check_prefixes_unused(&mut self, before: &Subnet, after: &Subnet, usage: &Usage) {
        let users = usage.get(&before.id).map_or(&[][..], Vec::as_slice);
        for gone in before.prefixes.iter().filter(|p| !after.prefixes.contains(p)) {
            let user = users
                .iter()
                .find(|(_, address)| address.is_some_and(|a| gone.contains(&a)));
            if let Some((user, _)) = user {
                self.problems.add(
                    "InUsePrefixCannotBeDeleted",
                    &before.id,
                    format!(
                        "IpPrefix {gone} on Subnet {} has active allocations and cannot be deleted: {user}.",
                        before.id.name()
                    ),
                );
            }
        }
    }

    /// Adds a problem if the delegations of a subnet with users change: only resources of the service that a subnet is
    /// delegated to can be in it. A delegation may be removed while only NICs are in the subnet, which are in it against
    /// this rule.
    fn check_delegations_unchanged(&mut self, before: &Subnet, after: &Subnet, usage: &Usage) {
        let (was, is) = (before.delegated_to(), after.delegated_to());
        if was == is {
            return;
        }
        let only_removed = is.is_subset(&was);
        let is_nic = |user: &str| ArmPath::parse(user).is_ok_and(|p| p.kind() == Some(Kind::NicIpConfiguration));
        let mut users = usage.get(&before.id).into_iter().flatten();
        if let Some((user, _)) = users.find(|(user, _)| !(only_removed && is_nic(user))) {
            let joined = |names: BTreeSet<String>| names.into_iter().collect::<Vec<_>>().join(", ");
            self.problems.add(
                "SubnetDelegationsCannotChangeWhenSubnetUsedByResource",
                &before.id,
                format!(
                    "Delegations of subnet {} cannot be changed from [{}] to [{}] because it is being used by the resource \
                     {user}. Delete the resources in the subnet first, or leave the delegations as they are.",
                    before.id,
                    joined(was),
                    joined(is)
                ),
            );
        }
    }

    /// Adds a problem if the subnet has users. The message names the first ten.
    pub(crate) fn check_subnet_unused(&mut self, id: &ResourceId, usage: &Usage) {
        let Some(users) = usage.get(id).filter(|u| !u.is_empty()) else {
            return;
        };
        // A subnet can have thousands of users. The message names ten of them, which is enough to see what has to be
        // deleted.
        let names: Vec<&str> = users.iter().take(10).map(|(user, _)| user.as_str()).collect();
        self.problems.add(
            "InUseSubnetCannotBeDeleted",
            id,
            format!(
                "Subnet {} is in use by {} and cannot be deleted. In order to delete the subnet, delete all the \
                 resources within the subnet.",
                id.name(),
                names.join(", ")
            ),
        );
    }

    /// Checks a new route table of a `GatewaySubnet` (R15, R16).
    fn check_gateway_subnet_table(&mut self, subnet: &Subnet, before: Option<&Subnet>) {
        if !is_gateway_subnet(&subnet.id) || before.is_some_and(|b| b.route_table == subnet.route_table) {
            return;
        }
        let table = subnet
            .route_table
            .as_ref()
            .and_then(|t| self.topology.route_tables.get(t))
            .cloned();
        if let Some(table) = table {
            self.check_table_for_gateway(&table, &subnet.id);
        }
    }

    /// Adds a problem if a route table of the `GatewaySubnet` `subnet` disables BGP propagation (R15) or has a default
    /// route (R16).
    pub(crate) fn check_table_for_gateway(&mut self, table: &RouteTable, subnet: &ResourceId) {
        if table.disable_bgp_route_propagation {
            self.problems.add(
                "XGatewaySubnetRestriction",
                &table.envelope.id,
                format!(
                    "Route table {} serves {subnet}: disableBgpRoutePropagation must stay false there, the gateway \
                     would stop (R15).",
                    table.envelope.id
                ),
            );
        }
        for route in table.routes.iter().filter(|r| r.prefix.prefix_len() == 0) {
            self.problems.add(
                "XGatewaySubnetRestriction",
                &route.id,
                format!(
                    "Route {} of route table {} is a default route ({}), which {subnet} cannot have (R16).",
                    route.id.name(),
                    table.envelope.id,
                    route.prefix
                ),
            );
        }
    }
}

/// The subnet with a name, ignoring case. `None`: no subnet in the list has it.
pub(super) fn find<'s>(subnets: &'s [Subnet], name: &str) -> Option<&'s Subnet> {
    subnets.iter().find(|s| s.id.name().eq_ignore_ascii_case(name))
}
