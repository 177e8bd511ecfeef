//! Expands documents to ARM bodies.
//!
//! An optional property that a document omits is written as null, which ARM reads as absent. So a property that is
//! removed from the file is removed from the resource.

mod balancers;
mod flow_logs;
mod gateways;
mod regions;
mod security;

use crate::manifest::error::ManifestError;
use crate::manifest::named::Named;
use crate::manifest::order::creation_rank;
use crate::manifest::schema::{
    DEFAULT_LOCATION, Document, NetworkInterface, NextHopType, NicIpConfiguration, Peering, PublicIpAddress,
    RouteTable, Subnet, VirtualNetwork,
};
use crate::path::{Group, check_group_name};
use regions::Regions;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use tombolo_proto::arm::Kind;

/// The name of a gateway's `ipConfiguration` if the manifest does not name it.
pub const GATEWAY_IP_CONFIGURATION: &str = "default";
/// The name of a network interface's `ipConfiguration` if the manifest does not name it.
pub const NIC_IP_CONFIGURATION: &str = "ipconfig1";

/// One resource of a manifest, as the body of its PUT.
#[derive(Debug, Clone, PartialEq)]
pub struct DesiredResource {
    /// Kind of the resource.
    pub kind: Kind,
    /// The group of the resource, with its subscription.
    pub group: Group,
    /// Name of the resource; `vnet/peering` for a peering.
    pub name: String,
    /// ARM path of the resource.
    pub path: String,
    /// Body of the PUT that creates the resource.
    pub body: Value,
    /// Name of the file that contains the resource.
    pub origin: String,
}

/// Collects bodies and problems, document by document.
struct Expansion<'a> {
    default: &'a Group,
    out: Vec<DesiredResource>,
    problems: Vec<String>,
    origin: &'a str,
    group: Group,
    location: &'a str,
    regions: Regions<'a>,
}

/// As [`Manifest::expand`](super::Manifest::expand), for documents with their origins.
pub(super) fn expand(documents: &[(String, Document)], default: &Group) -> Result<Vec<DesiredResource>, ManifestError> {
    let mut to = Expansion {
        default,
        out: Vec::new(),
        problems: Vec::new(),
        origin: "",
        group: default.clone(),
        location: DEFAULT_LOCATION,
        regions: Regions::default(),
    };
    for (origin, document) in documents {
        to.document(origin, document);
    }
    to.refuse_duplicates();
    if to.problems.is_empty() {
        let mut out = to.out;
        out.sort_by_key(|e| creation_rank(e.kind, &e.body));
        Ok(out)
    } else {
        Err(ManifestError::Invalid(to.problems))
    }
}

impl<'a> Expansion<'a> {
    fn document(&mut self, origin: &'a str, document: &'a Document) {
        self.origin = origin;
        self.location = document.location.as_deref().unwrap_or(DEFAULT_LOCATION);
        self.regions = Regions::of(document);
        let name = document.resource_group.as_deref().unwrap_or(&self.default.name);
        self.group = Group::new(&self.default.subscription, name);
        if let Err(e) = check_group_name(name) {
            self.problems.push(format!("{origin}: resourceGroup: {e}"));
            return;
        }
        let known =
            |e: &DesiredResource| e.kind == Kind::ResourceGroup && e.path.eq_ignore_ascii_case(&self.group.path());
        if !self.out.iter().any(known) {
            let path = self.group.path();
            self.push(
                Kind::ResourceGroup,
                name.to_owned(),
                path,
                json!({"location": self.location}),
            );
        }
        for (kind, all) in document.plain() {
            for (name, plain) in all.iter() {
                let body = json!({"properties": {}});
                self.push_resource(kind, name, plain.location.as_ref(), &plain.tags, body);
            }
        }
        for (name, group) in document.network_security_groups.iter() {
            self.security_group(name, group);
        }
        for (name, table) in document.route_tables.iter() {
            self.route_table(name, table);
        }
        for (name, address) in document.public_ip_addresses.iter() {
            self.public_ip(name, address);
        }
        for (name, vnet) in document.virtual_networks.iter() {
            self.vnet(name, vnet);
        }
        for (name, gateway) in document.virtual_network_gateways.iter() {
            self.gateway(name, gateway);
        }
        for (name, balancer) in document.load_balancers.iter() {
            self.load_balancer(name, balancer);
        }
        for (name, nic) in document.network_interfaces.iter() {
            self.nic(name, nic);
        }
        for (name, site) in document.local_network_gateways.iter() {
            self.site(name, site);
        }
        for (name, circuit) in document.express_route_circuits.iter() {
            self.circuit(name, circuit);
        }
        for (name, connection) in document.connections.iter() {
            self.connection(name, connection);
        }
        for (name, log) in document.flow_logs.iter() {
            self.flow_log(document, name, log);
        }
    }

    fn push(&mut self, kind: Kind, name: String, path: String, body: Value) {
        let (group, origin) = (self.group.clone(), self.origin.to_owned());
        self.out.push(DesiredResource {
            kind,
            group,
            name,
            path,
            body,
            origin,
        });
    }

    fn problem(&mut self, place: &str, text: &str) {
        self.problems.push(format!("{}: {place}: {text}", self.origin));
    }

    /// Adds a resource that has no parent resource. Its body has `location`, `tags` and the members of `rest`.
    fn push_resource(
        &mut self,
        kind: Kind,
        name: &str,
        location: Option<&String>,
        tags: &BTreeMap<String, String>,
        rest: Value,
    ) {
        let mut body = rest;
        body["location"] = json!(location.map_or(self.location, String::as_str));
        if !tags.is_empty() {
            body["tags"] = json!(tags);
        }
        let path = self.group.item(kind.collection(), name);
        self.push(kind, name.to_owned(), path, body);
    }

    fn reference(&self, kind: Kind, name: &str) -> Value {
        json!({"id": self.group.resolve(kind.collection(), name)})
    }

    fn optional_reference(&self, kind: Kind, name: Option<&String>) -> Value {
        name.map_or(Value::Null, |name| self.reference(kind, name))
    }

    /// References to several resources of a kind; null if there are no names.
    fn references(&self, kind: Kind, names: &[String]) -> Value {
        match names {
            [] => Value::Null,
            names => names.iter().map(|name| self.reference(kind, name)).collect(),
        }
    }

    fn subnet_reference(&mut self, place: &str, name: &str) -> Value {
        match self.group.resolve_subnet(name) {
            Ok(id) => json!({"id": id}),
            Err(e) => {
                self.problem(place, &format!("subnet: {e}"));
                Value::Null
            }
        }
    }

    /// References to children of load balancers, which `names` gives as `load-balancer/child` or as full ids; null if
    /// there are no names. A wrong name is a problem of `property` at `place`.
    fn balanced(&mut self, place: &str, property: &str, kind: Kind, names: &[String]) -> Value {
        let mut ids = Vec::new();
        for name in names {
            match self
                .group
                .resolve_child(Kind::LoadBalancer.collection(), kind.collection(), name)
            {
                Ok(id) => ids.push(json!({"id": id})),
                Err(e) => self.problem(place, &format!("{property}: {e} (L2)")),
            }
        }
        if ids.is_empty() { Value::Null } else { Value::Array(ids) }
    }

    fn vnet(&mut self, name: &str, vnet: &VirtualNetwork) {
        let place = format!("virtualNetworks.{name}");
        if vnet.address_space.is_empty() {
            self.problem(
                &place,
                "addressSpace: at least one prefix is needed, such as [10.1.0.0/16]",
            );
        }
        let subnets: Vec<_> = vnet.subnets.iter().map(|(n, s)| self.subnet(&place, n, s)).collect();
        let prefixes: Vec<_> = vnet.address_space.iter().map(ToString::to_string).collect();
        let body = json!({"properties": {"addressSpace": {"addressPrefixes": prefixes}, "subnets": subnets}});
        self.push_resource(Kind::VirtualNetwork, name, vnet.location.as_ref(), &vnet.tags, body);
        for (peering, p) in vnet.peerings.iter() {
            let path = format!(
                "{}/virtualNetworkPeerings/{peering}",
                self.group.item("virtualNetworks", name)
            );
            let body = self.peering(p);
            self.push(Kind::Peering, format!("{name}/{peering}"), path, body);
        }
    }

    fn subnet(&mut self, vnet: &str, name: &str, subnet: &Subnet) -> Value {
        let prefixes: Vec<_> = subnet
            .address_prefix
            .iter()
            .chain(&subnet.address_prefixes)
            .map(ToString::to_string)
            .collect();
        if prefixes.is_empty() || (subnet.address_prefix.is_some() && prefixes.len() > 1) {
            let place = format!("{vnet}.subnets.{name}");
            self.problem(&place, "set either addressPrefix or addressPrefixes, not both");
        }
        let table = self.optional_reference(Kind::RouteTable, subnet.route_table.as_ref());
        let group = self.optional_reference(Kind::NetworkSecurityGroup, subnet.network_security_group.as_ref());
        json!({"name": name, "properties": {
            "addressPrefixes": prefixes,
            "routeTable": table,
            "networkSecurityGroup": group,
        }})
    }

    fn peering(&self, p: &Peering) -> Value {
        json!({"properties": {
            "remoteVirtualNetwork": self.reference(Kind::VirtualNetwork, &p.remote_virtual_network),
            "allowVirtualNetworkAccess": p.allow_virtual_network_access,
            "allowForwardedTraffic": p.allow_forwarded_traffic,
            "allowGatewayTransit": p.allow_gateway_transit,
            "useRemoteGateways": p.use_remote_gateways,
            "doNotVerifyRemoteGateways": p.do_not_verify_remote_gateways,
            "transport": p.transport,
        }})
    }

    fn route_table(&mut self, name: &str, table: &RouteTable) {
        let mut routes = Vec::new();
        for (route, r) in table.routes.iter() {
            if (r.next_hop_type == NextHopType::VirtualAppliance) != r.next_hop_ip_address.is_some() {
                let place = format!("routeTables.{name}.routes.{route}");
                self.problem(
                    &place,
                    "nextHopIpAddress must be set with nextHopType VirtualAppliance, and with no other type (R10)",
                );
            }
            routes.push(json!({"name": route, "properties": {
                "addressPrefix": r.address_prefix.to_string(),
                "nextHopType": r.next_hop_type,
                "nextHopIpAddress": r.next_hop_ip_address,
            }}));
        }
        let body = json!({"properties": {
            "disableBgpRoutePropagation": table.disable_bgp_route_propagation,
            "routes": routes,
        }});
        self.push_resource(Kind::RouteTable, name, table.location.as_ref(), &table.tags, body);
    }

    fn public_ip(&mut self, name: &str, address: &PublicIpAddress) {
        let mut properties = json!({"publicIPAllocationMethod": "Static"});
        if let Some(ip) = address.ip_address {
            properties["ipAddress"] = json!(ip);
        }
        let body = json!({"sku": {"name": "Standard"}, "properties": properties});
        let location = self.regions.public_address(name, address);
        self.push_resource(Kind::PublicIpAddress, name, location, &address.tags, body);
    }

    fn nic(&mut self, name: &str, nic: &NetworkInterface) {
        let place = format!("networkInterfaces.{name}");
        let short = nic.subnet.as_ref().map(|subnet| NicIpConfiguration {
            subnet: subnet.clone(),
            private_ip_address: nic.private_ip_address,
            public_ip_address: nic.public_ip_address.clone(),
            load_balancer_pools: nic.load_balancer_pools.clone(),
            inbound_nat_rules: nic.inbound_nat_rules.clone(),
        });
        let has_address = nic.private_ip_address.is_some() || nic.public_ip_address.is_some();
        let is_balanced = !nic.load_balancer_pools.is_empty() || !nic.inbound_nat_rules.is_empty();
        let without_subnet = nic.subnet.is_none() && (has_address || is_balanced);
        if without_subnet || short.is_some() != nic.ip_configurations.is_empty() {
            self.problem(
                &place,
                "set either subnet (with privateIPAddress, publicIPAddress, loadBalancerPools and inboundNatRules) or \
                 ipConfigurations, not both",
            );
        }
        let single: Named<_> = short
            .map(|c| (NIC_IP_CONFIGURATION.to_owned(), c))
            .into_iter()
            .collect();
        let all = if nic.ip_configurations.is_empty() {
            &single
        } else {
            &nic.ip_configurations
        };
        let groups = self.references(Kind::ApplicationSecurityGroup, &nic.application_security_groups);
        let mut configurations = Vec::new();
        for (position, (name, c)) in all.iter().enumerate() {
            let mut properties = json!({
                "subnet": self.subnet_reference(&place, &c.subnet),
                "publicIPAddress": self.optional_reference(Kind::PublicIpAddress, c.public_ip_address.as_ref()),
                "primary": position == 0,
                // Azure's clients too give all addresses of an interface the same groups.
                "applicationSecurityGroups": groups,
                "loadBalancerBackendAddressPools":
                    self.balanced(&place, "loadBalancerPools", Kind::BackendPool, &c.load_balancer_pools),
                "loadBalancerInboundNatRules":
                    self.balanced(&place, "inboundNatRules", Kind::InboundNatRule, &c.inbound_nat_rules),
            });
            set_address(&mut properties, c.private_ip_address);
            if let Some(ip) = c.private_ip_address {
                properties["privateIPAddressVersion"] = json!(if ip.is_ipv4() { "IPv4" } else { "IPv6" });
            }
            configurations.push(json!({"name": name, "properties": properties}));
        }
        let body = json!({"properties": {
            "enableIPForwarding": nic.enable_ip_forwarding,
            "networkSecurityGroup":
                self.optional_reference(Kind::NetworkSecurityGroup, nic.network_security_group.as_ref()),
            "ipConfigurations": configurations,
        }});
        let location = self.regions.network_interface(nic);
        self.push_resource(Kind::NetworkInterface, name, location, &nic.tags, body);
    }

    /// Adds one problem for each resource that the documents contain more than once.
    fn refuse_duplicates(&mut self) {
        let mut seen: BTreeMap<String, &DesiredResource> = BTreeMap::new();
        let mut reported = BTreeSet::new();
        for e in &self.out {
            let key = e.path.to_ascii_lowercase();
            if let Some(first) = seen.get(&key) {
                if reported.insert(key) {
                    let text = format!("{} {} is already defined in {}", e.kind.title(), e.name, first.origin);
                    self.problems.push(format!("{}: {text}", e.origin));
                }
            } else {
                seen.insert(key, e);
            }
        }
    }
}

/// Sets the address and its allocation method. If the manifest has an address, the method is static. Otherwise the
/// method is dynamic, so that the controller allocates an address.
fn set_address(properties: &mut Value, ip: Option<IpAddr>) {
    properties["privateIPAllocationMethod"] = json!(if ip.is_some() { "Static" } else { "Dynamic" });
    if let Some(ip) = ip {
        properties["privateIPAddress"] = json!(ip);
    }
}
