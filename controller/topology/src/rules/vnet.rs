//! Virtual networks: address space, the set of subnets, inline peerings, deletion (P1 to P4, P26, P27).

use super::subnet::MAX_SUBNETS;
use super::{Draft, changed, echoed, pairs, unsupported, without_default_properties};
use crate::arm::body::{MAX_ITEMS, Object, Shape, missing};
use crate::arm::view::vnet_defaults;
use crate::net::{listed, overlaps_within, same_set, special_use};
use crate::path::{ArmPath, is_child_of};
use crate::resource::{AddressSpaceChange, PeeringState, ResourceGroup, Subnet, VirtualNetwork};
use ipnet::IpNet;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_proto::id::ResourceId;

const TOP: [(&str, Shape); 1] = [("extendedLocation", Shape::Object)];
const PROPERTIES: [(&str, Shape); 8] = [
    ("dhcpOptions", Shape::Object),
    ("enableDdosProtection", Shape::Bool),
    ("enableVmProtection", Shape::Bool),
    ("privateEndpointVNetPolicies", Shape::Text),
    ("flowTimeoutInMinutes", Shape::Integer(4, 30)),
    ("encryption", Shape::Object),
    ("bgpCommunities", Shape::Object),
    ("ddosProtectionPlan", Shape::Object),
];

impl Draft<'_> {
    pub(crate) fn put_vnet(
        &mut self,
        group: &ResourceGroup,
        path: &ArmPath,
        body: &Value,
        if_match: Option<&str>,
    ) -> bool {
        let old = self.topology.vnets.get(&path.id()).cloned();
        let id = old
            .as_deref()
            .map_or_else(|| Self::new_id(group, path), |v| v.envelope.id.clone());
        self.check_if_match(if_match, old.as_deref().map(|v| v.envelope.etag), &id);
        let root = Object::root(body, &mut self.problems);
        let properties = root.object_or_empty("properties", &mut self.problems);
        self.check_supported(&properties, unsupported::VIRTUAL_NETWORK);
        let mut kept = echoed(&root, &TOP, &PROPERTIES, &mut self.problems);
        without_default_properties(&mut kept, &vnet_defaults());
        let envelope = self.envelope(&root, id.clone(), old.as_deref().map(|v| &v.envelope), kept);
        let space = self.address_space(&properties);
        let mut new = VirtualNetwork {
            envelope,
            address_space: space.clone().unwrap_or_default(),
            subnets: old.as_deref().map_or_else(Vec::new, |v| v.subnets.clone()),
            peerings: old.as_deref().map_or_else(Vec::new, |v| v.peerings.clone()),
        };
        if let Some(items) = properties.list("subnets", MAX_SUBNETS, &mut self.problems) {
            let mut subnets = Vec::new();
            let mut all_named = true;
            for item in items {
                let object = item.object(&mut self.problems);
                let named = object.and_then(|o| self.child_name(&o).map(|name| (o, name)));
                let Some((object, name)) = named else {
                    all_named = false;
                    continue;
                };
                let properties = object.object_or_empty("properties", &mut self.problems);
                let before = old.as_deref().and_then(|v| find(&v.subnets, &name));
                // One that is there and cannot be read is not one that goes away.
                let read = self.read_subnet(&id, &name, &properties, before);
                subnets.extend(read.or_else(|| before.cloned()));
            }
            self.check_unique_names(&id, "subnet", subnets.iter().map(|s| s.id.name()));
            if let Some(old) = old.as_deref().filter(|_| !all_named) {
                let unlisted = old.subnets.iter().filter(|s| find(&subnets, s.id.name()).is_none());
                let unlisted: Vec<_> = unlisted.cloned().collect();
                subnets.extend(unlisted);
            }
            new.subnets = subnets;
        }
        self.check_vnet(old.as_deref(), &new, space.is_some());
        let moved = old
            .as_deref()
            .is_some_and(|o| !same_set(&o.address_space, &new.address_space));
        self.commit_vnet(new);
        if moved {
            self.check_attached_after_space_change(&id);
        }
        if let Some(items) = properties.list("virtualNetworkPeerings", MAX_ITEMS, &mut self.problems) {
            self.replace_peerings(&id, &items);
        }
        old.is_none()
    }

    /// `addressSpace.addressPrefixes`; none if something is wrong with it that hides what was meant.
    fn address_space(&mut self, properties: &Object<'_>) -> Option<Vec<IpNet>> {
        let before = self.problems.len();
        let space = properties.object_or_empty("addressSpace", &mut self.problems);
        let prefixes = self.prefixes(&space, "addressPrefixes");
        let complete = self.problems.len() == before;
        let Some(prefixes) = prefixes.filter(|p| !p.is_empty() || !complete) else {
            if complete {
                missing(&mut self.problems, &space.at("addressPrefixes"));
            }
            return None;
        };
        for (net, at) in &prefixes {
            let block = special_use(net);
            let long = net.max_prefix_len() - net.prefix_len() < 3;
            if let Some(block) = block {
                self.problems.add(
                    "XAddressPrefixNotAllowed",
                    at.clone(),
                    format!("{at}: {net} touches {block}, which no virtual network can have"),
                );
            } else if long {
                self.problems.add(
                    "XAddressPrefixNotAllowed",
                    at.clone(),
                    format!("{at}: {net} has fewer than 8 addresses and cannot hold a subnet (P2)"),
                );
            }
        }
        let nets: Vec<IpNet> = prefixes.iter().map(|(net, _)| *net).collect();
        for (a, b) in overlaps_within(&nets) {
            let (net, at) = &prefixes[b];
            self.problems.add(
                "XAddressRangesOverlap",
                at.clone(),
                format!("{at}: {net} overlaps {} of the same virtual network (P4)", nets[a]),
            );
        }
        Some(nets)
    }

    /// The rules of a VNet as a whole, against what it was.
    pub(crate) fn check_vnet(&mut self, old: Option<&VirtualNetwork>, new: &VirtualNetwork, space_is_known: bool) {
        if let Some(old) = old
            && space_is_known
            && !same_set(&old.address_space, &new.address_space)
        {
            self.check_space_change(old, new);
        }
        let usage = if old.is_some() {
            self.subnet_usage(&new.envelope.id)
        } else {
            BTreeMap::new()
        };
        self.check_subnets(old, new, space_is_known, &usage);
    }

    /// P26, P27, and the VPN's rule G16.
    fn check_space_change(&mut self, old: &VirtualNetwork, new: &VirtualNetwork) {
        let id = &new.envelope.id;
        if self.topology.settings.address_space_change == AddressSpaceChange::Strict && !old.peerings.is_empty() {
            let names: Vec<&str> = old.peerings.iter().map(|p| p.id.name()).collect();
            self.problems.add(
                "VnetAddressSpaceCannotChangeDueToPeerings",
                "properties.addressSpace",
                format!(
                    "Address space of the virtual network {id} cannot change ({} to {}) when the virtual network has \
                     peerings ({}).",
                    listed(&old.address_space),
                    listed(&new.address_space),
                    names.join(", ")
                ),
            );
            return;
        }
        self.check_peers_after_space_change(new);
        self.check_vpn_after_space_change(new);
    }

    pub(crate) fn delete_vnet(&mut self, id: &ResourceId, if_match: Option<&str>) -> bool {
        let Some(old) = self.topology.vnets.get(id).cloned() else {
            return false;
        };
        self.check_if_match(if_match, Some(old.envelope.etag), id);
        let before = self.problems.len();
        let usage = self.subnet_usage(id);
        for subnet in &old.subnets {
            self.check_subnet_unused(&subnet.id, &usage);
        }
        if self.problems.len() > before {
            return false;
        }
        for peering in &old.peerings {
            self.remove_half(id, peering.id.name());
        }
        // P13: halves that point here lose their other side, which does not come back with a new VNet of the same name.
        for (owner, half) in self.halves_towards(id) {
            if half.state == PeeringState::Connected {
                self.edit_half(&owner, half.id.name(), |h| h.state = PeeringState::Disconnected);
            }
        }
        self.topology.vnets.remove(id);
        true
    }

    /// Puts a VNet into the draft, with new etags for what differs.
    pub(crate) fn commit_vnet(&mut self, mut new: VirtualNetwork) {
        let old = self.topology.vnets.get(&new.envelope.id).cloned();
        let (subnets, peerings) = old.as_deref().map_or((&[][..], &[][..]), |v| (&v.subnets, &v.peerings));
        for (i, subnet) in new.subnets.iter_mut().enumerate() {
            let before = same_id(subnets, i, |s| s.id == subnet.id);
            subnet.etag = changed(before, subnet, self.fresh).unwrap_or(subnet.etag);
        }
        for (i, peering) in new.peerings.iter_mut().enumerate() {
            let before = same_id(peerings, i, |p| p.id == peering.id);
            peering.etag = changed(before, peering, self.fresh).unwrap_or(peering.etag);
        }
        if let Some(etag) = changed(old.as_deref(), &new, self.fresh) {
            new.envelope.etag = etag;
            self.topology.vnets.insert(new.envelope.id.clone(), Arc::new(new));
        }
    }

    /// What has an address in each subnet of a VNet: the ids of ip configurations, or of agents that serve the subnet.
    pub(crate) fn subnet_usage(&self, vnet: &ResourceId) -> BTreeMap<ResourceId, Vec<(String, Option<IpAddr>)>> {
        let mut usage: BTreeMap<ResourceId, Vec<(String, Option<IpAddr>)>> = BTreeMap::new();
        let inside = |subnet: &ResourceId| is_child_of(subnet, vnet);
        for nic in self.topology.nics.values() {
            for config in nic.ip_configurations.iter().filter(|c| inside(&c.subnet)) {
                let id = format!("{}/ipConfigurations/{}", nic.envelope.id, config.name);
                usage
                    .entry(config.subnet.clone())
                    .or_default()
                    .push((id, Some(config.address)));
            }
        }
        for gateway in self.topology.gateways.values() {
            let Some(subnet) = gateway.ip_configurations.first().map(|c| &c.subnet) else {
                continue;
            };
            if !inside(subnet) {
                continue;
            }
            let here = usage.entry(subnet.clone()).or_default();
            let owner = &gateway.envelope.id;
            for config in &gateway.ip_configurations {
                here.push((
                    format!("{owner}/ipConfigurations/{}", config.name),
                    Some(config.address),
                ));
            }
            here.push((owner.to_string(), Some(gateway.bgp_peering_address)));
            let connections = self.topology.connections.values();
            for connection in connections.filter(|c| c.gateway1 == *owner) {
                let id = connection.envelope.id.to_string();
                here.extend(connection.tunnel_addresses.iter().map(|a| (id.clone(), Some(*a))));
            }
        }
        for agent in self.topology.agents.values().filter(|a| !a.revoked) {
            if let crate::resource::Binding::Vm { served, .. } = &agent.binding {
                for subnet in served.iter().filter(|s| inside(s)) {
                    let user = format!("agent {} (serves it)", agent.id);
                    usage.entry(subnet.clone()).or_default().push((user, None));
                }
            }
        }
        usage
    }
}

/// The member that `is` it: mostly at the same place, or one on after a removal; searched otherwise.
fn same_id<T>(members: &[T], near: usize, is: impl Fn(&T) -> bool) -> Option<&T> {
    let close = members.get(near..).unwrap_or_default().iter().take(2).find(|m| is(m));
    close.or_else(|| members.iter().find(|m| is(m)))
}

/// A subnet by name.
pub(crate) fn find<'s>(subnets: &'s [Subnet], name: &str) -> Option<&'s Subnet> {
    subnets.iter().find(|s| s.id.name().eq_ignore_ascii_case(name))
}

/// The message of P10.
pub(crate) fn overlap_message(subject: &str, a: &ResourceId, b: &ResourceId, overlaps: &[(IpNet, IpNet)]) -> String {
    format!(
        "{subject} Virtual networks {a} and {b} cannot be peered because their address spaces overlap. Overlapping \
         address prefixes: {}",
        pairs(overlaps)
    )
}
