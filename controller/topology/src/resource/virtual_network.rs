//! Virtual networks: their address space, their lists of subnets and peerings, and their deletion (P1 to P4, P26, P27).

mod peering;
mod subnet;

pub use peering::{Peering, PeeringState};
pub use subnet::Subnet;

use crate::arm::body::{MAX_ITEMS, Object, Shape, missing};
use crate::arm::view::{Views, address_space};
use crate::draft::{Draft, changed};
use crate::net::{listed, overlaps_within, same_set, special_use};
use crate::path::{Kind, is_child_of};
use crate::resource::frame::{Child, Echoed, Put, Resource};
use crate::resource::{AddressSpaceChange, Binding, Envelope};
use crate::rules::unsupported;
use crate::topology::Stored;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;
use subnet::{MAX_SUBNETS, find};
use tombolo_proto::config::DEFAULT_FLOW_TIMEOUT;
use tombolo_proto::id::ResourceId;
use uuid::Uuid;

/// A virtual network with its subnets and its halves of peerings (P1 to P4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VirtualNetwork {
    /// The id, region, tags and etag, which every resource has.
    #[serde(flatten)]
    pub envelope: Envelope,
    /// The address ranges, at least one. They are disjoint (P4) and have no host bits.
    pub address_space: Vec<IpNet>,
    /// In order of creation.
    pub subnets: Vec<Subnet>,
    /// In order of creation.
    pub peerings: Vec<Peering>,
}

/// The properties that are kept and shown, but have no effect, with Azure's defaults.
const ECHOED: Echoed = Echoed {
    top: &[("extendedLocation", Shape::Object)],
    properties: &[
        ("dhcpOptions", Shape::Object),
        ("enableDdosProtection", Shape::Bool),
        ("enableVmProtection", Shape::Bool),
        ("privateEndpointVNetPolicies", Shape::Text),
        ("flowTimeoutInMinutes", Shape::Integer(4, 30)),
        ("encryption", Shape::Object),
        ("bgpCommunities", Shape::Object),
        ("ddosProtectionPlan", Shape::Object),
    ],
    defaults: || {
        json!({
            "dhcpOptions": {"dnsServers": []},
            "enableDdosProtection": false,
            "privateEndpointVNetPolicies": "Disabled",
        })
    },
    ..Echoed::NOTHING
};

impl VirtualNetwork {
    /// `flowTimeoutInMinutes`, 4 to 30: after this time without packets a flow needs a security rule again (N6).
    #[must_use]
    pub fn flow_timeout_minutes(&self) -> u8 {
        let properties = self.envelope.echoed.get("properties");
        let minutes = properties
            .and_then(|p| p.get("flowTimeoutInMinutes"))
            .and_then(Value::as_u64);
        minutes
            .and_then(|m| u8::try_from(m).ok())
            .unwrap_or(DEFAULT_FLOW_TIMEOUT)
    }
}

impl Resource for VirtualNetwork {
    const KIND: Kind = Kind::VirtualNetwork;
    const ECHOED: Echoed = ECHOED;
    const CHILDREN: &'static [Child] = &[subnet::SUBNETS, peering::PEERINGS];

    fn read(draft: &mut Draft<'_>, put: &Put<'_, Self>) -> Option<Self> {
        let (id, properties) = (&put.id, &put.properties);
        draft.check_supported(properties, unsupported::VIRTUAL_NETWORK);
        let mut kept = put.echoed_with_defaults(&mut draft.problems);
        draft.read_vnet_dns_servers(properties, put.old().map(|v| &v.envelope), &mut kept);
        let envelope = put.envelope(draft, Self::ECHOED.without_defaults(kept));
        let location = envelope.location.clone();
        let space = draft.address_space(properties);
        let mut new = Self {
            envelope,
            address_space: space.clone().unwrap_or_default(),
            subnets: put.old().map_or_else(Vec::new, |v| v.subnets.clone()),
            peerings: put.old().map_or_else(Vec::new, |v| v.peerings.clone()),
        };
        if let Some(items) = properties.list("subnets", MAX_SUBNETS, &mut draft.problems) {
            let mut subnets = Vec::new();
            let mut all_named = true;
            for item in items {
                let object = item.object(&mut draft.problems);
                let named = object.and_then(|o| draft.child_name(&o).map(|name| (o, name)));
                let Some((object, name)) = named else {
                    all_named = false;
                    continue;
                };
                let properties = object.object_or_empty("properties", &mut draft.problems);
                let before = put.old().and_then(|v| find(&v.subnets, &name));
                // If the new form of an existing subnet cannot be read, the subnet stays in the draft. Otherwise the
                // answer would also report problems of a deletion that nobody requested.
                let read = draft.read_subnet((id, &location), &name, &properties, before);
                subnets.extend(read.or_else(|| before.cloned()));
            }
            draft.check_unique_names(id, "subnet", subnets.iter().map(|s| s.id.name()));
            if let Some(old) = put.old().filter(|_| !all_named) {
                let unlisted = old.subnets.iter().filter(|s| find(&subnets, s.id.name()).is_none());
                let unlisted: Vec<_> = unlisted.cloned().collect();
                subnets.extend(unlisted);
            }
            new.subnets = subnets;
        }
        draft.check_vnet(put.old(), &new, space.is_some());
        Some(new)
    }

    fn after_put(draft: &mut Draft<'_>, put: &Put<'_, Self>) {
        let now = draft.topology.vnets.get(&put.id).map(|v| &v.address_space);
        let moved = put
            .old()
            .zip(now)
            .is_some_and(|(old, now)| !same_set(&old.address_space, now));
        if moved {
            draft.check_attached_after_space_change(&put.id);
        }
        if let Some(items) = put
            .properties
            .list("virtualNetworkPeerings", MAX_ITEMS, &mut draft.problems)
        {
            draft.replace_peerings(&put.id, &items);
        }
    }

    fn after_change(draft: &mut Draft<'_>, id: &ResourceId) {
        let vnet = draft.topology.vnets.get(id);
        if vnet.is_some_and(|v| v.subnets.iter().any(|s| s.network_security_group.is_some())) {
            draft.check_secured_entries(|served| is_child_of(served, id));
        }
    }

    fn renew_children(&mut self, old: Option<&Self>, new_guid: &mut dyn FnMut() -> Uuid) {
        let (subnets, peerings) = old.map_or((&[][..], &[][..]), |v| (&v.subnets, &v.peerings));
        for (i, subnet) in self.subnets.iter_mut().enumerate() {
            let before = same_id(subnets, i, |s| s.id == subnet.id);
            subnet.etag = changed(before, subnet, new_guid).unwrap_or(subnet.etag);
        }
        for (i, peering) in self.peerings.iter_mut().enumerate() {
            let before = same_id(peerings, i, |p| p.id == peering.id);
            peering.etag = changed(before, peering, new_guid).unwrap_or(peering.etag);
        }
    }

    fn check_unused(draft: &mut Draft<'_>, id: &ResourceId, old: &Self) {
        let usage = draft.subnet_usage(id);
        for subnet in &old.subnets {
            draft.check_subnet_unused(&subnet.id, &usage);
        }
        draft.check_no_pool_in(id);
    }

    fn delete(draft: &mut Draft<'_>, id: &ResourceId, old: &Self) {
        let before = draft.problems.len();
        Self::check_unused(draft, id, old);
        if draft.problems.len() > before {
            return;
        }
        for peering in &old.peerings {
            draft.remove_half(id, peering.id.name());
        }
        // The `Connected` halves that point to the deleted VNet become `Disconnected`, and stay so even if a new VNet
        // gets the same name (P13). `Initiated` halves stay `Initiated`.
        for (owner, half) in draft.halves_towards(id) {
            if half.state == PeeringState::Connected {
                draft.edit_half(&owner, half.id.name(), |h| h.state = PeeringState::Disconnected);
            }
        }
        Self::map_mut(&mut draft.topology).remove(id);
    }

    fn properties(&self, views: &Views<'_>) -> Value {
        let subnets: Vec<Value> = self.subnets.iter().map(|s| s.view(views)).collect();
        let peerings: Vec<Value> = self.peerings.iter().map(|p| p.view(views, self)).collect();
        json!({
            "addressSpace": address_space(&self.address_space),
            "subnets": subnets,
            "virtualNetworkPeerings": peerings,
        })
    }
}

impl Draft<'_> {
    /// Reads `addressSpace.addressPrefixes`, and checks each prefix and that they are disjoint. `None`: the list is
    /// missing, empty or no list, and a problem says so. The caller then makes no checks against the address space,
    /// because they would only report consequences of this problem.
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
                    format!("{at}: {net} overlaps {block}, which no virtual network can have"),
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

    /// Checks a new or changed VNet as a whole: a changed address space must not overlap peered VNets and networks that
    /// VPN joins with the VNet, and the subnets must be valid. `old`: the VNet before the change. `space_is_known`:
    /// whether the body's address space could be read. If not, the checks that need it are left out.
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

    /// Checks a changed address space. The setting `strict` forbids the change while the VNet has peerings (P26).
    /// Otherwise the new space must overlap neither peers (P27) nor networks that VPN joins with the VNet (G16).
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

    /// The users of each subnet of a VNet. These are the ip configurations, gateways, front ends and connections that have
    /// an address in the subnet, each with this address, and the agents that serve the subnet, without an address. Subnets
    /// without users are left out.
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
        let balancers = self.topology.load_balancers.values();
        for front_end in balancers.flat_map(|b| &b.front_ends).filter(|f| inside(&f.subnet)) {
            let user = (front_end.id.to_string(), Some(front_end.address));
            usage.entry(front_end.subnet.clone()).or_default().push(user);
        }
        for agent in self.topology.agents.values().filter(|a| !a.revoked) {
            if let Binding::Vm { served, .. } = &agent.binding {
                for subnet in served.iter().filter(|s| inside(s)) {
                    let user = format!("agent {} (serves it)", agent.id);
                    usage.entry(subnet.clone()).or_default().push((user, None));
                }
            }
        }
        usage
    }
}

/// The first member for which `is` returns true; `None` if there is none. In two versions of a list a member usually
/// has the same index `near`, or the next one if a member before it was removed. So these two are tried before a search
/// of the whole list, which would make the comparison of a VNet's subnets take quadratic time.
fn same_id<T>(members: &[T], near: usize, is: impl Fn(&T) -> bool) -> Option<&T> {
    let close = members.get(near..).unwrap_or_default().iter().take(2).find(|m| is(m));
    close.or_else(|| members.iter().find(|m| is(m)))
}
