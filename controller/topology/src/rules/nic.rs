//! Network interfaces: addresses out of subnets (P2, G1).

use super::subnet::is_gateway_subnet;
use super::{Draft, changed, echoed};
use crate::arm::body::{Object, Shape, missing};
use crate::net::{first_free, is_reserved, listed};
use crate::path::{ArmPath, is_child_of, parent_id};
use crate::resource::{Binding, NetworkInterface, NicIpConfiguration, ResourceGroup, Subnet};
use crate::topology::Topology;
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_proto::id::ResourceId;

const PROPERTIES: [(&str, Shape); 5] = [
    ("enableAcceleratedNetworking", Shape::Bool),
    ("disableTcpStateTracking", Shape::Bool),
    ("dnsSettings", Shape::Object),
    ("auxiliaryMode", Shape::Text),
    ("auxiliarySku", Shape::Text),
];
const MAX_IP_CONFIGURATIONS: usize = 256;

/// What a body asks of one address.
pub(super) struct WantedAddress {
    pub(super) name: String,
    pub(super) subnet: Subnet,
    pub(super) address: Option<IpAddr>,
    pub(super) is_static: bool,
    /// IPv6, if it was said.
    pub(super) ipv6: Option<bool>,
    pub(super) at: String,
    pub(super) primary: bool,
    pub(super) public_ip_address: Option<ResourceId>,
}

impl Draft<'_> {
    pub(super) fn put_nic(
        &mut self,
        group: &ResourceGroup,
        path: &ArmPath,
        body: &Value,
        if_match: Option<&str>,
    ) -> bool {
        let old = self.topology.nics.get(&path.id()).cloned();
        let id = old
            .as_deref()
            .map_or_else(|| Self::new_id(group, path), |n| n.envelope.id.clone());
        self.check_if_match(if_match, old.as_deref().map(|n| n.envelope.etag), &id);
        let root = Object::root(body, &mut self.problems);
        let properties = root.object_or_empty("properties", &mut self.problems);
        let kept = echoed(&root, &[], &PROPERTIES, &mut self.problems);
        let envelope = self.envelope(&root, id.clone(), old.as_deref().map(|n| &n.envelope), kept);
        let enable_ip_forwarding = properties
            .boolean("enableIPForwarding", &mut self.problems)
            .unwrap_or(false);
        if properties.get("networkSecurityGroup").is_some() {
            self.unsupported_reference(&properties, "networkSecurityGroup", &id);
        }
        let mut wanted = self.read_ip_configurations(&id, &properties, MAX_IP_CONFIGURATIONS);
        if wanted.iter().filter(|w| w.primary).count() > 1 {
            let at = properties.at("ipConfigurations");
            let message = format!("{at}: more than one ip configuration is primary");
            self.problems.add("InvalidRequestFormat", at, message);
        }
        wanted.sort_by_key(|w| !w.primary);
        self.check_nic_subnets(&id, &wanted, old.as_deref());
        let before = old.as_deref().map_or(&[][..], |n| &n.ip_configurations);
        let kept_address = |w: &WantedAddress| {
            let same = before
                .iter()
                .find(|c| c.name.eq_ignore_ascii_case(&w.name) && c.subnet == w.subnet.id);
            same.map(|c| c.address)
        };
        let current: Vec<Option<IpAddr>> = wanted.iter().map(kept_address).collect();
        let addresses = self.allocate(&id, &wanted, &current);
        let ip_configurations: Vec<NicIpConfiguration> = wanted
            .into_iter()
            .zip(addresses)
            .filter_map(|(w, address)| {
                Some(NicIpConfiguration {
                    name: w.name,
                    subnet: w.subnet.id,
                    address: address?,
                    is_static: w.is_static,
                    public_ip_address: w.public_ip_address,
                })
            })
            .collect();
        if self.problems.is_empty() {
            self.commit_nic(NetworkInterface {
                envelope,
                ip_configurations,
                enable_ip_forwarding,
            });
        }
        old.is_none()
    }

    /// `ipConfigurations` of a NIC or a gateway.
    pub(super) fn read_ip_configurations(
        &mut self,
        owner: &ResourceId,
        properties: &Object<'_>,
        max: usize,
    ) -> Vec<WantedAddress> {
        let before = self.problems.len();
        let items = properties
            .list("ipConfigurations", max, &mut self.problems)
            .unwrap_or_default();
        if items.is_empty() && self.problems.len() == before {
            missing(&mut self.problems, &properties.at("ipConfigurations"));
        }
        let mut wanted = Vec::new();
        let mut names = Vec::new();
        let mut publics: BTreeSet<ResourceId> = BTreeSet::new();
        for item in items {
            let Some(object) = item.object(&mut self.problems) else {
                continue;
            };
            let name = self.child_name(&object);
            let inner = object.object_or_empty("properties", &mut self.problems);
            names.extend(name.clone());
            let Some(one) = self.read_ip_configuration(owner, name.unwrap_or_default(), &inner) else {
                continue;
            };
            if let Some(public) = one.public_ip_address.clone()
                && !publics.insert(public.clone())
            {
                let at = inner.at("publicIPAddress.id");
                let message = format!("{at}: {public} is used by another ip configuration of the same resource");
                self.problems.add("PublicIPAddressInUse", at, message);
            }
            wanted.push(one);
        }
        self.check_unique_names(owner, "ip configuration", names.iter().map(String::as_str));
        wanted
    }

    fn read_ip_configuration(&mut self, owner: &ResourceId, name: String, inner: &Object<'_>) -> Option<WantedAddress> {
        let method = inner.choice("privateIPAllocationMethod", &["Dynamic", "Static"], &mut self.problems);
        let version = inner.choice("privateIPAddressVersion", &["IPv4", "IPv6"], &mut self.problems);
        let address = inner.address("privateIPAddress", &mut self.problems);
        let at = inner.at("privateIPAddress");
        let primary = inner.boolean("primary", &mut self.problems).unwrap_or(false);
        for list in [
            "applicationSecurityGroups",
            "loadBalancerBackendAddressPools",
            "loadBalancerInboundNatRules",
        ] {
            if inner.get(list).and_then(Value::as_array).is_some_and(|a| !a.is_empty()) {
                self.unsupported_reference(inner, list, owner);
            }
        }
        let is_static = match method {
            Some(method) => method == "Static",
            None => address.is_some(),
        };
        if is_static && inner.get("privateIPAddress").is_none_or(|v| v.as_str() == Some("")) {
            missing(&mut self.problems, &at);
        }
        if let (Some(version), Some(address)) = (version, address.filter(|_| is_static))
            && address.is_ipv6() != (version == "IPv6")
        {
            self.problems.add(
                "InvalidRequestFormat",
                at.clone(),
                format!("{at}: {address} is not an {version} address, as privateIPAddressVersion says"),
            );
        }
        let public_ip_address = self.resolve_public_ip(inner, owner, &name);
        if inner.get("subnet").is_none() {
            missing(&mut self.problems, &inner.at("subnet"));
        }
        let subnet = self.resolve(inner, "subnet", owner, find_subnet)?;
        Some(WantedAddress {
            name,
            subnet,
            address,
            is_static,
            ipv6: version.map(|v| v == "IPv6"),
            at,
            primary,
            public_ip_address,
        })
    }

    fn check_nic_subnets(&mut self, id: &ResourceId, wanted: &[WantedAddress], old: Option<&NetworkInterface>) {
        let Some(first) = wanted.first() else { return };
        if let Some(gateway) = wanted.iter().find(|w| is_gateway_subnet(&w.subnet.id)) {
            self.problems.add(
                "GatewaySubnet",
                id,
                format!(
                    "Network interface {id} cannot be in subnet {}: it is for virtual network gateways alone (G1).",
                    gateway.subnet.id
                ),
            );
        }
        if let Some(other) = wanted.iter().find(|w| w.subnet.id != first.subnet.id) {
            self.problems.add(
                "IpConfigurationsOnSameNicCannotUseDifferentSubnets",
                id,
                format!(
                    "IpConfigurations on the same network interface {id} cannot use different subnets: {} and {}.",
                    first.subnet.id, other.subnet.id
                ),
            );
        }
        let was = old
            .and_then(|n| n.ip_configurations.first())
            .map(|c| parent_id(&c.subnet));
        let vnet = parent_id(&first.subnet.id);
        if let Some(was) = was.filter(|w| *w != vnet) {
            self.problems.add(
                "XNicVirtualNetworkImmutable",
                id,
                format!("Network interface {id} is in {was} and cannot move to {vnet}: delete it and create it anew."),
            );
        }
    }

    /// The address of each wanted ip configuration: static ones first, so that a dynamic one never takes theirs.
    /// `current` has the addresses that dynamic ones keep.
    pub(super) fn allocate(
        &mut self,
        owner: &ResourceId,
        wanted: &[WantedAddress],
        current: &[Option<IpAddr>],
    ) -> Vec<Option<IpAddr>> {
        let mut used = BTreeSet::new();
        let vnets: BTreeSet<ResourceId> = wanted.iter().map(|w| parent_id(&w.subnet.id)).collect();
        for vnet in &vnets {
            used.extend(used_addresses(&self.topology, vnet, owner));
        }
        let mut result: Vec<Option<IpAddr>> = vec![None; wanted.len()];
        for (slot, w) in result.iter_mut().zip(wanted).filter(|(_, w)| w.is_static) {
            let Some(address) = w.address else { continue };
            if self.check_static(owner, w, address, &used) {
                used.insert(address);
                *slot = Some(address);
            }
        }
        // What is kept comes before what is new.
        let fits = |w: &WantedAddress, address: IpAddr| {
            let family = w.ipv6.is_none_or(|v6| v6 == address.is_ipv6());
            family && w.subnet.prefixes.iter().any(|p| p.contains(&address))
        };
        for ((slot, w), kept) in result
            .iter_mut()
            .zip(wanted)
            .zip(current)
            .filter(|((_, w), _)| !w.is_static)
        {
            if let Some(kept) = kept.filter(|k| fits(w, *k) && !used.contains(k)) {
                used.insert(kept);
                *slot = Some(kept);
            }
        }
        for (slot, w) in result.iter_mut().zip(wanted) {
            if w.is_static || slot.is_some() {
                continue;
            }
            let v4_first = w
                .ipv6
                .unwrap_or_else(|| !w.subnet.prefixes.iter().any(|p| p.addr().is_ipv4()));
            let family = w.subnet.prefixes.iter().filter(|p| p.addr().is_ipv6() == v4_first);
            *slot = family.filter_map(|p| first_free(p, &used)).next();
            match *slot {
                Some(address) => {
                    used.insert(address);
                }
                None => self.problems.add(
                    "SubnetIsFull",
                    owner,
                    format!(
                        "Subnet {} with address prefix {} does not have enough capacity for 1 {} address (P2).",
                        w.subnet.id,
                        listed(&w.subnet.prefixes),
                        if v4_first { "IPv6" } else { "IPv4" }
                    ),
                ),
            }
        }
        result
    }

    fn check_static(
        &mut self,
        owner: &ResourceId,
        w: &WantedAddress,
        address: IpAddr,
        used: &BTreeSet<IpAddr>,
    ) -> bool {
        let at = w.at.clone();
        let (code, message) = match w.subnet.prefixes.iter().find(|p| p.contains(&address)) {
            None => (
                "PrivateIPAddressNotInSubnet",
                format!(
                    "Private static IP address {address} does not belong to the range of subnet prefix {} ({}).",
                    listed(&w.subnet.prefixes),
                    w.subnet.id
                ),
            ),
            Some(prefix) if is_reserved(prefix, address) => (
                "PrivateIPAddressInReservedRange",
                format!(
                    "Private static IP address {address} falls within reserved IP range of subnet prefix {prefix}: the \
                     first four addresses and the last (P2)."
                ),
            ),
            Some(_) if used.contains(&address) => {
                let user = address_user(&self.topology, &parent_id(&w.subnet.id), address, owner);
                (
                    "PrivateIPAddressInUse",
                    format!(
                        "IP configuration {owner}/ipConfigurations/{} is using the private IP address {address} which \
                         is already allocated to resource {}.",
                        w.name,
                        user.unwrap_or_else(|| owner.to_string())
                    ),
                )
            }
            Some(_) => return true,
        };
        self.problems.add(code, at, message);
        false
    }

    pub(super) fn delete_nic(&mut self, id: &ResourceId, if_match: Option<&str>) -> bool {
        let Some(old) = self.topology.nics.get(id).cloned() else {
            return false;
        };
        self.check_if_match(if_match, Some(old.envelope.etag), id);
        let bound = self
            .topology
            .agents
            .values()
            .filter(|a| !a.revoked)
            .find_map(|a| match &a.binding {
                Binding::Vm { vm, nics, .. } if nics.contains(id) => Some((a.id.clone(), vm.clone())),
                _ => None,
            });
        if let Some((agent, vm)) = bound {
            self.problems.add(
                "NicInUse",
                id,
                format!(
                    "Network Interface {id} is used by existing resource {vm} and cannot be deleted. Delete agent \
                     '{agent}' first."
                ),
            );
        }
        self.topology.nics.remove(id);
        true
    }

    pub(super) fn commit_nic(&mut self, mut new: NetworkInterface) {
        let old = self.topology.nics.get(&new.envelope.id).map(|a| &**a);
        if let Some(etag) = changed(old, &new, self.fresh) {
            new.envelope.etag = etag;
            self.topology.nics.insert(new.envelope.id.clone(), Arc::new(new));
        }
    }
}

/// A subnet by its id.
pub(super) fn find_subnet(topology: &Topology, id: &ResourceId) -> Option<Subnet> {
    let vnet = topology.vnets.get(&parent_id(id))?;
    vnet.subnets.iter().find(|s| s.id == *id).cloned()
}

/// The addresses that others than `owner` have in a VNet, with their ip configurations' ids.
fn taken<'t>(
    topology: &'t Topology,
    vnet: &'t ResourceId,
    owner: &'t ResourceId,
) -> impl Iterator<Item = (IpAddr, &'t ResourceId)> + 't {
    let inside = move |subnet: &ResourceId| is_child_of(subnet, vnet);
    let nics = topology.nics.values().filter(move |n| n.envelope.id != *owner);
    let nics = nics.flat_map(move |n| {
        let configs = n.ip_configurations.iter().filter(move |c| inside(&c.subnet));
        configs.map(move |c| (c.address, &n.envelope.id))
    });
    let gateways = topology.gateways.values().filter(move |g| g.envelope.id != *owner);
    let gateways = gateways.flat_map(move |g| {
        let configs = g.ip_configurations.iter().filter(move |c| inside(&c.subnet));
        let peer = g
            .ip_configurations
            .first()
            .filter(move |c| inside(&c.subnet))
            .map(|_| g.bgp_peering_address);
        configs.map(|c| c.address).chain(peer).map(move |a| (a, &g.envelope.id))
    });
    nics.chain(gateways)
}

fn used_addresses(topology: &Topology, vnet: &ResourceId, owner: &ResourceId) -> Vec<IpAddr> {
    taken(topology, vnet, owner).map(|(address, _)| address).collect()
}

fn address_user(topology: &Topology, vnet: &ResourceId, address: IpAddr, owner: &ResourceId) -> Option<String> {
    let mut all = taken(topology, vnet, owner);
    all.find(|(a, _)| *a == address).map(|(_, id)| id.to_string())
}
