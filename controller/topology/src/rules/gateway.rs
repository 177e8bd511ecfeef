//! Virtual network gateways (G1 to G4, G6, P20, R16, X7).

use super::nic::WantedAddress;
use super::peering::gateway_of;
use super::subnet::is_gateway_subnet;
use super::{Draft, changed, echoed};
use crate::arm::body::{Object, Shape};
use crate::net::last_usable;
use crate::path::{ArmPath, parent_id, shown};
use crate::resource::{Binding, GatewayIpConfiguration, ResourceGroup, Subnet, VirtualNetworkGateway};
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use tombolo_proto::config::GatewayKind;
use tombolo_proto::id::ResourceId;

const PROPERTIES: [(&str, Shape); 6] = [
    ("vpnGatewayGeneration", Shape::Text),
    ("enablePrivateIpAddress", Shape::Bool),
    ("enableDnsForwarding", Shape::Bool),
    ("disableIPSecReplayProtection", Shape::Bool),
    ("adminState", Shape::Text),
    ("enableBgpRouteTranslationForNat", Shape::Bool),
];
/// G4.
const DEFAULT_ASN: i64 = 65_515;

impl Draft<'_> {
    pub(super) fn put_gateway(
        &mut self,
        group: &ResourceGroup,
        path: &ArmPath,
        body: &Value,
        if_match: Option<&str>,
    ) -> bool {
        let old = self.topology.gateways.get(&path.id()).cloned();
        let id = old
            .as_deref()
            .map_or_else(|| Self::new_id(group, path), |g| g.envelope.id.clone());
        self.check_if_match(if_match, old.as_deref().map(|g| g.envelope.etag), &id);
        let root = Object::root(body, &mut self.problems);
        let properties = root.object_or_empty("properties", &mut self.problems);
        let kept = echoed(&root, &[], &PROPERTIES, &mut self.problems);
        let envelope = self.envelope(&root, id.clone(), old.as_deref().map(|g| &g.envelope), kept);
        let vpn_type = self.gateway_types(&properties, old.as_deref());
        let active_active = properties.boolean("activeActive", &mut self.problems).unwrap_or(false);
        let enable_bgp = properties.boolean("enableBgp", &mut self.problems).unwrap_or(false);
        let sku = self.gateway_sku(&properties, old.as_deref());
        let wanted = self.read_ip_configurations(&id, &properties, 2);
        if active_active && wanted.len() == 1 {
            let at = properties.at("activeActive");
            let message = format!("{at}: an active-active gateway needs two ip configurations, found 1 (G6)");
            self.problems.add("XActiveActiveNeedsTwoIpConfigurations", at, message);
        }
        self.check_gateway_place(&id, &wanted, old.as_deref());
        let (asn, bgp) = self.bgp_settings(&properties, wanted.first().map(|w| &w.subnet), old.as_deref());
        let ip_configurations = self.gateway_addresses(&id, wanted, old.as_deref());
        if let Some(old) = old.as_deref() {
            self.check_instances_unused(old, &ip_configurations);
        }
        if self.problems.is_empty() {
            // Both are there when nothing is wrong; the fallback is never stored.
            self.commit_gateway(VirtualNetworkGateway {
                envelope,
                ip_configurations,
                gateway_type: GatewayKind::Vpn,
                vpn_type: vpn_type.to_owned(),
                active_active,
                enable_bgp,
                asn,
                bgp_peering_address: bgp.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
                sku,
            });
        }
        old.is_none()
    }

    /// `gatewayType` and `vpnType` (G3).
    fn gateway_types(&mut self, properties: &Object<'_>, old: Option<&VirtualNetworkGateway>) -> &'static str {
        let kinds = ["Vpn", "ExpressRoute", "LocalGateway"];
        let kind = properties.choice("gatewayType", &kinds, &mut self.problems);
        if let Some(kind) = kind.filter(|k| *k != "Vpn") {
            let at = properties.at("gatewayType");
            let message = format!("{at}: {kind} gateways are not supported, only Vpn");
            self.problems.add("XGatewayTypeNotSupported", at, message);
        }
        let types = ["RouteBased", "PolicyBased"];
        let vpn_type = properties
            .choice("vpnType", &types, &mut self.problems)
            .unwrap_or("RouteBased");
        if let Some(old) = old.filter(|o| o.vpn_type != vpn_type) {
            let at = properties.at("vpnType");
            let message = format!("{at}: cannot change from {} to {vpn_type} (G3)", old.vpn_type);
            self.problems.add("XVpnTypeImmutable", at, message);
        }
        vpn_type
    }

    fn gateway_sku(&mut self, properties: &Object<'_>, old: Option<&VirtualNetworkGateway>) -> String {
        let sku = properties.object_or_empty("sku", &mut self.problems);
        let name = sku.text("name", &mut self.problems);
        let word = |n: &str| !n.is_empty() && n.len() <= 40 && n.chars().all(|c| c.is_ascii_alphanumeric());
        if let Some(name) = name.filter(|n| !word(n)) {
            let at = sku.at("name");
            let message = format!("{at}: '{}' is not the name of a gateway SKU", shown(name));
            self.problems.add("InvalidRequestFormat", at, message);
        }
        let before = || old.map_or_else(|| "VpnGw1".to_owned(), |o| o.sku.clone());
        name.map_or_else(before, str::to_owned)
    }

    /// Where a gateway may be: G1, G2, P20's converse, R16.
    fn check_gateway_place(&mut self, id: &ResourceId, wanted: &[WantedAddress], old: Option<&VirtualNetworkGateway>) {
        for w in wanted.iter().filter(|w| !is_gateway_subnet(&w.subnet.id)) {
            self.problems.add(
                "XGatewaySubnetRequired",
                id,
                format!(
                    "Gateway {id} must be in a subnet named GatewaySubnet, not in {} (G1).",
                    w.subnet.id
                ),
            );
        }
        let Some(first) = wanted.first() else { return };
        if let Some(other) = wanted.iter().find(|w| w.subnet.id != first.subnet.id) {
            self.problems.add(
                "XGatewaySubnetRequired",
                id,
                format!(
                    "All ip configurations of gateway {id} must be in one GatewaySubnet, found {} and {} (G1).",
                    first.subnet.id, other.subnet.id
                ),
            );
        }
        let was = old.and_then(|g| g.ip_configurations.first()).map(|c| &c.subnet);
        if let Some(was) = was.filter(|w| **w != first.subnet.id) {
            self.problems.add(
                "XGatewaySubnetImmutable",
                id,
                format!("Gateway {id} is in {was} and cannot move to {}.", first.subnet.id),
            );
        }
        let vnet = parent_id(&first.subnet.id);
        if let Some(twin) = gateway_of(&self.topology, &vnet).filter(|g| g != id) {
            self.problems.add(
                "XGatewayLimitReached",
                id,
                format!("Virtual network {vnet} already has VPN gateway {twin}; it can have one (G2, X7)."),
            );
        }
        let using = self
            .topology
            .vnets
            .get(&vnet)
            .and_then(|v| v.peerings.iter().find(|p| p.use_remote_gateways));
        if let Some(using) = using.map(|p| p.id.clone()).filter(|_| old.is_none()) {
            self.problems.add(
                "XVnetUsesRemoteGateways",
                id,
                format!(
                    "Virtual network {vnet} cannot have a gateway of its own while peering {using} has \
                     useRemoteGateways set to true (P20, P23)."
                ),
            );
        }
        let table = first
            .subnet
            .route_table
            .as_ref()
            .and_then(|t| self.topology.route_tables.get(t))
            .cloned();
        if let Some(table) = table.filter(|_| old.is_none()) {
            self.check_table_for_gateway(&table, &first.subnet.id);
        }
    }

    /// `bgpSettings` (G4).
    fn bgp_settings(
        &mut self,
        properties: &Object<'_>,
        subnet: Option<&Subnet>,
        old: Option<&VirtualNetworkGateway>,
    ) -> (u32, Option<IpAddr>) {
        let bgp = properties.object_or_empty("bgpSettings", &mut self.problems);
        let default = old.map_or(DEFAULT_ASN, |o| i64::from(o.asn));
        let asn = bgp
            .integer("asn", 1..=i64::from(u32::MAX), &mut self.problems)
            .unwrap_or(default);
        let reserved = matches!(asn, 8074 | 8075 | 12076 | 23456 | 64496..=64511 | 65517..=65520 | 65535..=65551);
        if reserved {
            let at = bgp.at("asn");
            let message = format!("{at}: {asn} is reserved (G4)");
            self.problems.add("XReservedAsn", at, message);
        }
        bgp.integer("peerWeight", 0..=100, &mut self.problems);
        let asn = u32::try_from(asn).unwrap_or_default();
        let Some(subnet) = subnet else { return (asn, None) };
        let inside = |a: IpAddr| subnet.prefixes.iter().any(|p| p.contains(&a));
        let given = bgp.address("bgpPeeringAddress", &mut self.problems);
        if let Some(address) = given {
            let apipa = matches!(address, IpAddr::V4(v4) if matches!(v4.octets(), [169, 254, 21 | 22, _]));
            if !inside(address) && !apipa {
                let at = bgp.at("bgpPeeringAddress");
                let message = format!(
                    "{at}: {address} is neither in {} nor in 169.254.21.0 to 169.254.22.255 (G4)",
                    subnet.id
                );
                self.problems.add("PrivateIPAddressNotInSubnet", at, message);
            }
            return (asn, Some(address));
        }
        let kept = old.map(|o| o.bgp_peering_address).filter(|a| inside(*a));
        let v4_first = subnet
            .prefixes
            .iter()
            .find(|p| p.addr().is_ipv4())
            .or(subnet.prefixes.first());
        (asn, kept.or(v4_first.map(last_usable)))
    }

    fn gateway_addresses(
        &mut self,
        id: &ResourceId,
        mut wanted: Vec<WantedAddress>,
        old: Option<&VirtualNetworkGateway>,
    ) -> Vec<GatewayIpConfiguration> {
        // Stock clients say Dynamic always; an address that is given is meant.
        let dynamic: Vec<bool> = wanted.iter().map(|w| !w.is_static).collect();
        for w in wanted.iter_mut().filter(|w| w.address.is_some()) {
            w.is_static = true;
        }
        let before = old.map_or(&[][..], |g| &g.ip_configurations);
        let current: Vec<Option<IpAddr>> = wanted
            .iter()
            .map(|w| {
                before
                    .iter()
                    .find(|c| c.name.eq_ignore_ascii_case(&w.name))
                    .map(|c| c.address)
            })
            .collect();
        let addresses = self.allocate(id, &wanted, &current);
        wanted
            .into_iter()
            .zip(addresses)
            .zip(dynamic)
            .filter_map(|((w, address), dynamic)| {
                Some(GatewayIpConfiguration {
                    name: w.name,
                    subnet: w.subnet.id,
                    address: address?,
                    is_static: !dynamic,
                    public_ip_address: w.public_ip_address,
                })
            })
            .collect()
    }

    /// An instance that an agent stands for stays.
    fn check_instances_unused(&mut self, old: &VirtualNetworkGateway, new: &[GatewayIpConfiguration]) {
        for gone in &old.ip_configurations {
            if new.iter().any(|c| c.name.eq_ignore_ascii_case(&gone.name)) {
                continue;
            }
            if let Some(agent) = self.gateway_agent(&old.envelope.id, Some(&gone.name)) {
                self.problems.add(
                    "XGatewayInUseByAgent",
                    &old.envelope.id,
                    format!(
                        "Ip configuration '{}' of {} is served by agent '{agent}'. Delete the agent first.",
                        gone.name, old.envelope.id
                    ),
                );
            }
        }
    }

    fn gateway_agent(&self, id: &ResourceId, config: Option<&str>) -> Option<String> {
        let serves = |binding: &Binding| match binding {
            Binding::Gateway {
                gateway,
                ip_configuration,
            } => gateway == id && config.is_none_or(|c| c.eq_ignore_ascii_case(ip_configuration)),
            Binding::Vm { .. } | Binding::Edge { .. } => false,
        };
        let mut agents = self.topology.agents.values().filter(|a| !a.revoked);
        agents.find(|a| serves(&a.binding)).map(|a| a.id.to_string())
    }

    pub(super) fn delete_gateway(&mut self, id: &ResourceId, if_match: Option<&str>) -> bool {
        let Some(old) = self.topology.gateways.get(id).cloned() else {
            return false;
        };
        self.check_if_match(if_match, Some(old.envelope.etag), id);
        let users: Vec<String> = self
            .topology
            .connections
            .values()
            .filter(|c| c.gateway1 == *id || c.gateway2 == *id)
            .map(|c| c.envelope.id.to_string())
            .collect();
        if !users.is_empty() {
            self.problems.add(
                "VirtualNetworkGatewayCannotBeDeleted",
                id,
                format!(
                    "Virtual network gateway {id} cannot be deleted because it is still referenced by connections: {}.",
                    users.join(", ")
                ),
            );
        }
        if let Some(agent) = self.gateway_agent(id, None) {
            self.problems.add(
                "XGatewayInUseByAgent",
                id,
                format!("Virtual network gateway {id} is served by agent '{agent}'. Delete the agent first."),
            );
        }
        self.topology.gateways.remove(id);
        true
    }

    pub(super) fn commit_gateway(&mut self, mut new: VirtualNetworkGateway) {
        let old = self.topology.gateways.get(&new.envelope.id).map(|a| &**a);
        if let Some(etag) = changed(old, &new, self.fresh) {
            new.envelope.etag = etag;
            self.topology.gateways.insert(new.envelope.id.clone(), Arc::new(new));
        }
    }
}
