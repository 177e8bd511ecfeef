//! Network interfaces and their addresses in subnets (P2, G1).

use crate::arm::body::Shape;
use crate::arm::view::{Views, address_version, allocation_method, child, reference, references};
use crate::back_ends::load_balancers_of;
use crate::draft::Draft;
use crate::path::{Kind, parent_id, shown};
use crate::resource::frame::{Child, Echoed, Put, Resource, view};
use crate::resource::{Binding, Envelope};
use crate::rules::address::AddressRequest;
use crate::rules::place::Place;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use tombolo_proto::config::{BANDWIDTH, BANDWIDTH_TAG, HOST_ROUTES_TAG};
use tombolo_proto::id::ResourceId;
use uuid::Uuid;

/// A network interface (NIC).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkInterface {
    /// The id, region, tags and etag, which every resource has.
    #[serde(flatten)]
    pub envelope: Envelope,
    /// The ip configurations, at least one, the primary one first. All are in one subnet, as in Azure.
    pub ip_configurations: Vec<NicIpConfiguration>,
    /// `enableIPForwarding`: whether the machine is an appliance, which may forward packets that other machines sent
    /// (R12).
    pub enable_ip_forwarding: bool,
    /// The network security group of the NIC itself (N4).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_security_group: Option<ResourceId>,
}

/// An ip configuration: one address of a network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NicIpConfiguration {
    /// The name of the ip configuration.
    pub name: String,
    /// The id of the subnet.
    pub subnet: ResourceId,
    /// The address. A `Dynamic` one is allocated at creation and then kept.
    pub address: IpAddr,
    /// Whether the allocation method is `Static`.
    pub is_static: bool,
    /// The public IP address resource, kept and shown only.
    #[serde(default)]
    pub public_ip_address: Option<ResourceId>,
    /// The application security groups that the address belongs to (N9).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub application_security_groups: Vec<ResourceId>,
    /// The back-end pools of load balancers that the address belongs to (L2).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub load_balancer_pools: Vec<ResourceId>,
    /// The inbound NAT rules of load balancers whose target is the address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inbound_nat_rules: Vec<ResourceId>,
}

/// Azure's maximum number of private IP addresses of a network interface.
const MAX_IP_CONFIGURATIONS: usize = 256;

/// The properties that are kept and shown, but have no effect.
const ECHOED: Echoed = Echoed {
    properties: &[
        ("enableAcceleratedNetworking", Shape::Bool),
        ("disableTcpStateTracking", Shape::Bool),
        ("dnsSettings", Shape::Object),
        ("auxiliaryMode", Shape::Text),
        ("auxiliarySku", Shape::Text),
    ],
    // Stock clients read members of `dnsSettings` without checking that the object exists.
    defaults: || {
        json!({
            "enableAcceleratedNetworking": false,
            "disableTcpStateTracking": false,
            "dnsSettings": {"dnsServers": [], "appliedDnsServers": []},
            "auxiliaryMode": "None",
            "auxiliarySku": "None",
        })
    },
    ..Echoed::NOTHING
};

impl NetworkInterface {
    /// The ids of the subnets, groups, pools and inbound NAT rules to which the NIC refers.
    fn references(&self) -> Vec<ResourceId> {
        let of = |c: &NicIpConfiguration| {
            [
                std::slice::from_ref(&c.subnet),
                c.application_security_groups.as_slice(),
                c.load_balancer_pools.as_slice(),
                c.inbound_nat_rules.as_slice(),
                c.public_ip_address.as_slice(),
            ]
            .concat()
        };
        let configurations = self.ip_configurations.iter().flat_map(of);
        configurations.chain(self.network_security_group.clone()).collect()
    }

    /// The application security groups of all addresses.
    fn application_groups(&self) -> BTreeSet<&ResourceId> {
        let configurations = self.ip_configurations.iter();
        configurations.flat_map(|c| &c.application_security_groups).collect()
    }

    /// The prefixes in the tag [`HOST_ROUTES_TAG`], ordered: those that the machine's kernel sends by this NIC. Empty if
    /// the tag is missing or malformed; a malformed tag is refused when it is written.
    pub(crate) fn host_routes(&self) -> Vec<IpNet> {
        read_host_routes(&self.envelope.tags).unwrap_or_default()
    }

    /// The bandwidth of the NIC's outbound traffic in the tag [`BANDWIDTH_TAG`], in Mbit/s (P32). `None`: the tag is
    /// missing or malformed; a malformed tag is refused when it is written.
    #[must_use]
    pub fn bandwidth(&self) -> Option<u32> {
        read_bandwidth(&self.envelope.tags).unwrap_or_default()
    }
}

/// Reads the tag [`BANDWIDTH_TAG`].
///
/// # Errors
/// The value is no number in the range.
fn read_bandwidth(tags: &BTreeMap<String, String>) -> Result<Option<u32>, String> {
    let Some(text) = tags.get(BANDWIDTH_TAG) else {
        return Ok(None);
    };
    let number = text.trim().parse().ok().filter(|rate| BANDWIDTH.contains(rate));
    let (least, most) = (BANDWIDTH.start(), BANDWIDTH.end());
    let refused = || {
        format!(
            "'{}' is not a number of Mbit/s from {least} to {most} (P32): write a number such as 50, or remove the tag for \
             no limit",
            shown(text)
        )
    };
    number.map(Some).ok_or_else(refused)
}

/// The MAC address that stands for a NIC with this GUID in flow logs, as 12 digits (N14). A NIC of an agent has no link
/// layer, but Azure's flow logs name NICs by their MAC addresses. It is one of those that anybody may assign.
pub(crate) fn mac_of(guid: Uuid) -> String {
    let [a, b, c, d, e, ..] = guid.into_bytes();
    format!("02{a:02X}{b:02X}{c:02X}{d:02X}{e:02X}")
}

/// The address of [`mac_of`] as Azure shows it: `02-0D-3A-D4-88-D1`.
fn shown_mac(guid: Uuid) -> String {
    let [a, b, c, d, e, ..] = guid.into_bytes();
    format!("02-{a:02X}-{b:02X}-{c:02X}-{d:02X}-{e:02X}")
}

/// Reads the tag [`HOST_ROUTES_TAG`].
///
/// # Errors
/// An entry of the list is no prefix, has host bits, or contains all addresses. The error says which one.
fn read_host_routes(tags: &BTreeMap<String, String>) -> Result<Vec<IpNet>, String> {
    let text = tags.get(HOST_ROUTES_TAG).map_or("", String::as_str);
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    let mut prefixes = BTreeSet::new();
    for entry in entries {
        let prefix: IpNet = entry
            .parse()
            .map_err(|_| format!("'{entry}' is not a prefix such as 10.2.0.0/16"))?;
        if prefix != prefix.trunc() {
            return Err(format!("'{entry}' has host bits: write {}", prefix.trunc()));
        }
        if prefix.prefix_len() == 0 {
            return Err(format!(
                "'{entry}' contains all addresses: the first NIC is the default"
            ));
        }
        prefixes.insert(prefix);
    }
    Ok(prefixes.into_iter().collect())
}

impl Resource for NetworkInterface {
    const KIND: Kind = Kind::NetworkInterface;
    const ECHOED: Echoed = ECHOED;
    const CHILDREN: &'static [Child] = &[IP_CONFIGURATIONS, LOAD_BALANCERS];

    fn read(draft: &mut Draft<'_>, put: &Put<'_, Self>) -> Option<Self> {
        let (id, properties) = (&put.id, &put.properties);
        let mut kept = put.echoed_with_defaults(&mut draft.problems);
        draft.read_nic_dns_servers(properties, put.old().map(|n| &n.envelope), &mut kept);
        let envelope = put.envelope(draft, Self::ECHOED.without_defaults(kept));
        let place = Place::of(&envelope, put.old().map_or_else(Vec::new, Self::references));
        let enable_ip_forwarding = properties
            .boolean("enableIPForwarding", &mut draft.problems)
            .unwrap_or(false);
        let network_security_group = draft.resolve_security_group(properties, &place);
        let mut requested = draft.read_ip_configurations(&place, properties, MAX_IP_CONFIGURATIONS);
        if requested.iter().filter(|w| w.primary).count() > 1 {
            let at = properties.at("ipConfigurations");
            let message = format!("{at}: more than one ip configuration is primary");
            draft.problems.add("InvalidRequestFormat", at, message);
        }
        requested.sort_by_key(|w| !w.primary);
        draft.check_nic_subnets(id, &requested, put.old());
        let before = put.old().map_or(&[][..], |n| &n.ip_configurations);
        let kept_address = |w: &AddressRequest| {
            let same = before
                .iter()
                .find(|c| c.name.eq_ignore_ascii_case(w.id.name()) && c.subnet == w.subnet.id);
            same.map(|c| c.address)
        };
        let current: Vec<Option<IpAddr>> = requested.iter().map(kept_address).collect();
        let addresses = draft.allocate(id, &requested, &current, None);
        let ip_configurations: Vec<NicIpConfiguration> = requested
            .into_iter()
            .zip(addresses)
            .filter_map(|(w, address)| {
                Some(NicIpConfiguration {
                    name: w.id.name().to_owned(),
                    subnet: w.subnet.id,
                    address: address?,
                    is_static: w.is_static,
                    public_ip_address: w.public_ip_address,
                    application_security_groups: w.application_security_groups,
                    load_balancer_pools: w.load_balancer_pools,
                    inbound_nat_rules: w.inbound_nat_rules,
                })
            })
            .collect();
        draft.problems.is_empty().then_some(Self {
            envelope,
            ip_configurations,
            enable_ip_forwarding,
            network_security_group,
        })
    }

    fn after_put(draft: &mut Draft<'_>, put: &Put<'_, Self>) {
        let Some(nic) = draft.topology.nics.get(&put.id).cloned() else {
            return;
        };
        // A NIC stays in its VNet, so only new groups can join members of two VNets.
        let mut new = nic.application_groups();
        for held in put.old().into_iter().flat_map(Self::application_groups) {
            new.remove(held);
        }
        if !new.is_empty() {
            draft.check_members_in_one_vnet(|rule| rule.application_groups().any(|g| new.contains(g)));
        }
        draft.check_load_balancing_of(&nic);
    }

    fn after_change(draft: &mut Draft<'_>, id: &ResourceId) {
        let Some(nic) = draft.topology.nics.get(id).cloned() else {
            return;
        };
        if let Err(why) = read_host_routes(&nic.envelope.tags) {
            let at = format!("tags.{HOST_ROUTES_TAG}");
            let message = format!("{at}: {why}. The tag is a list of prefixes, separated by commas");
            draft.problems.add("InvalidRequestFormat", at, message);
        }
        if let Err(why) = read_bandwidth(&nic.envelope.tags) {
            let at = format!("tags.{BANDWIDTH_TAG}");
            let message = format!("{at}: {why}");
            draft.problems.add("InvalidRequestFormat", at, message);
        }
        if nic.network_security_group.is_some()
            && let Some(subnet) = nic.ip_configurations.first().map(|c| c.subnet.clone())
        {
            draft.check_secured_entries(|served| *served == subnet);
        }
    }

    fn check_unused(draft: &mut Draft<'_>, id: &ResourceId, _old: &Self) {
        let bound = draft
            .topology
            .agents
            .values()
            .filter(|a| !a.revoked)
            .find_map(|a| match &a.binding {
                Binding::Vm { vm, nics, .. } if nics.contains(id) => Some((a.id.clone(), vm.clone())),
                _ => None,
            });
        if let Some((agent, vm)) = bound {
            draft.problems.add(
                "NicInUse",
                id,
                format!(
                    "Network Interface {id} is used by existing resource {vm} and cannot be deleted. Delete this virtual \
                     machine or agent '{agent}' first."
                ),
            );
        }
    }

    fn properties(&self, views: &Views<'_>) -> Value {
        let mut properties = json!({
            "ipConfigurations": self.ip_configuration_views(),
            "enableIPForwarding": self.enable_ip_forwarding,
            "macAddress": shown_mac(self.envelope.resource_guid),
            "nicType": "Standard",
            "hostedWorkloads": [],
            "tapConfigurations": [],
            "vnetEncryptionSupported": false,
        });
        if let Some(group) = &self.network_security_group {
            properties["networkSecurityGroup"] = reference(group);
        }
        for (vm, agent) in views.vms() {
            let Binding::Vm { nics, .. } = &agent.binding else {
                continue;
            };
            if let Some(position) = nics.iter().position(|n| *n == self.envelope.id) {
                properties["virtualMachine"] = reference(vm);
                properties["primary"] = (position == 0).into();
            }
        }
        properties
    }
}

/// The ip configurations of a NIC as read-only child items.
const IP_CONFIGURATIONS: Child = Child {
    name: "ipConfigurations",
    kind: Some(Kind::NicIpConfiguration),
    writes: None,
    item: |views, path| {
        let nic = views.topology.nics.get(&path.parent()?.id())?;
        let mut configs = nic.ip_configurations.iter().enumerate();
        let (i, found) = configs.find(|(_, c)| c.name.eq_ignore_ascii_case(path.name()))?;
        Some(found.view(nic, i == 0))
    },
    list: |views, parent| Some(views.topology.nics.get(parent)?.ip_configuration_views()),
};

/// The load balancers to whose pools and inbound NAT rules the NIC refers, as bodies of top-level items.
const LOAD_BALANCERS: Child = Child {
    name: "loadBalancers",
    kind: None,
    writes: None,
    item: |_, _| None,
    list: |views, parent| {
        let nic = views.topology.nics.get(parent)?;
        let balancers = load_balancers_of(views.topology, nic);
        Some(balancers.into_iter().map(|b| view(&**b, views)).collect())
    },
};

impl NetworkInterface {
    /// The ARM bodies of the NIC's ip configurations, the primary one first.
    fn ip_configuration_views(&self) -> Vec<Value> {
        let configs = self.ip_configurations.iter().enumerate();
        configs.map(|(i, c)| c.view(self, i == 0)).collect()
    }
}

impl NicIpConfiguration {
    /// The ARM body of the ip configuration, which belongs to `nic`.
    fn view(&self, nic: &NetworkInterface, primary: bool) -> Value {
        let mut properties = json!({
            "privateIPAddress": self.address,
            "privateIPAllocationMethod": allocation_method(self.is_static),
            "privateIPAddressVersion": address_version(self.address),
            "subnet": reference(&self.subnet),
            "primary": primary,
            "applicationSecurityGroups": references(&self.application_security_groups),
            "loadBalancerBackendAddressPools": references(&self.load_balancer_pools),
            "loadBalancerInboundNatRules": references(&self.inbound_nat_rules),
        });
        if let Some(public) = &self.public_ip_address {
            properties["publicIPAddress"] = reference(public);
        }
        let id = ResourceId::new(format!("{}/ipConfigurations/{}", nic.envelope.id, self.name));
        child(&id, Kind::NicIpConfiguration, nic.envelope.etag, properties)
    }
}

impl Draft<'_> {
    /// Checks the subnets of a NIC: all addresses are in one subnet, this subnet is no `GatewaySubnet` (G1), and the
    /// NIC stays in its VNet.
    fn check_nic_subnets(&mut self, id: &ResourceId, requested: &[AddressRequest], old: Option<&NetworkInterface>) {
        let Some(first) = requested.first() else { return };
        // A NIC that is in the subnet already stays writable: version 0.1 accepted it.
        let stays =
            |w: &AddressRequest| old.is_some_and(|n| n.ip_configurations.iter().any(|c| c.subnet == w.subnet.id));
        self.check_subnets_free_for(&format!("Network interface {id}"), id, requested, stays);
        if let Some(other) = requested.iter().find(|w| w.subnet.id != first.subnet.id) {
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
                format!("Network interface {id} is in {was} and cannot move to {vnet}: delete it and create it again."),
            );
        }
    }
}
