//! Network interfaces: addresses out of subnets (P2, G1).

use super::address::{WantedAddress, find_subnet};
use super::{Draft, changed, echoed, unsupported};
use crate::arm::body::{Object, Shape, missing};
use crate::path::{ArmPath, parent_id};
use crate::resource::is_gateway_subnet;
use crate::resource::{Binding, NetworkInterface, NicIpConfiguration, ResourceGroup};
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

impl Draft<'_> {
    pub(crate) fn put_nic(
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
        let addresses = self.allocate(&id, &wanted, &current, None);
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
    pub(crate) fn read_ip_configurations(
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
        self.check_supported(inner, unsupported::IP_CONFIGURATION);
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

    pub(crate) fn delete_nic(&mut self, id: &ResourceId, if_match: Option<&str>) -> bool {
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

    pub(crate) fn commit_nic(&mut self, mut new: NetworkInterface) {
        let old = self.topology.nics.get(&new.envelope.id).map(|a| &**a);
        if let Some(etag) = changed(old, &new, self.fresh) {
            new.envelope.etag = etag;
            self.topology.nics.insert(new.envelope.id.clone(), Arc::new(new));
        }
    }
}
