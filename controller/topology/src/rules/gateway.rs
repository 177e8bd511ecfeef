//! Virtual network gateways: reading, addresses, deletion (G1, G4, G6).

mod check;

pub(crate) use check::{is_apipa, is_reserved_for_customers};

use super::address::WantedAddress;
use super::{Draft, changed, echoed, unsupported};
use crate::arm::body::{Object, Shape};
use crate::path::ArmPath;
use crate::problems::Problems;
use crate::resource::{Binding, GatewayIpConfiguration, ResourceGroup, VirtualNetworkGateway};
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use tombolo_proto::id::ResourceId;

const PROPERTIES: [(&str, Shape); 6] = [
    ("vpnGatewayGeneration", Shape::Text),
    ("enablePrivateIpAddress", Shape::Bool),
    ("enableDnsForwarding", Shape::Bool),
    ("disableIPSecReplayProtection", Shape::Bool),
    ("adminState", Shape::Text),
    ("enableBgpRouteTranslationForNat", Shape::Bool),
];

impl Draft<'_> {
    pub(crate) fn put_gateway(
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
        self.check_supported(&properties, unsupported::GATEWAY);
        let kind = self.gateway_kind(&properties, old.as_deref());
        let vpn_type = self.vpn_type(&properties, kind, old.as_deref());
        let active_active = properties.boolean("activeActive", &mut self.problems).unwrap_or(false);
        let enable_bgp = properties.boolean("enableBgp", &mut self.problems).unwrap_or(false);
        let sku = self.gateway_sku(&properties, kind, old.as_deref());
        let wanted = self.read_ip_configurations(&id, &properties, 2);
        if active_active && wanted.len() == 1 {
            let at = properties.at("activeActive");
            let message = format!("{at}: an active-active gateway needs two ip configurations, found 1 (G6)");
            self.problems.add("XActiveActiveNeedsTwoIpConfigurations", at, message);
        }
        self.check_gateway_place(&id, kind, vpn_type, &wanted, old.as_deref());
        let subnet = wanted.first().map(|w| w.subnet.clone());
        // No instance may get the address that the gateway speaks BGP from, be it given or kept (G4).
        let given = properties.object("bgpSettings", &mut Problems::default());
        let given = given.and_then(|bgp| bgp.address("bgpPeeringAddress", &mut Problems::default()));
        let bgp_address = given.or_else(|| old.as_deref().map(|o| o.bgp_peering_address));
        let ip_configurations = self.gateway_addresses(&id, wanted, old.as_deref(), bgp_address);
        let own: Vec<IpAddr> = ip_configurations.iter().map(|c| c.address).collect();
        let (asn, bgp) = self.bgp_settings(&id, &properties, kind, subnet.as_ref(), &own, old.as_deref());
        if let Some(old) = old.as_deref() {
            self.check_instances_unused(old, &ip_configurations);
        }
        if self.problems.is_empty() {
            // Both are there when nothing is wrong; the fallback is never stored.
            self.commit_gateway(VirtualNetworkGateway {
                envelope,
                ip_configurations,
                gateway_type: kind,
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

    fn gateway_addresses(
        &mut self,
        id: &ResourceId,
        mut wanted: Vec<WantedAddress>,
        old: Option<&VirtualNetworkGateway>,
        bgp_address: Option<IpAddr>,
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
        let addresses = self.allocate(id, &wanted, &current, bgp_address.filter(|a| !is_apipa(*a)));
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

    pub(crate) fn delete_gateway(&mut self, id: &ResourceId, if_match: Option<&str>) -> bool {
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

    pub(crate) fn commit_gateway(&mut self, mut new: VirtualNetworkGateway) {
        let old = self.topology.gateways.get(&new.envelope.id).map(|a| &**a);
        if let Some(etag) = changed(old, &new, self.fresh) {
            new.envelope.etag = etag;
            self.topology.gateways.insert(new.envelope.id.clone(), Arc::new(new));
        }
    }
}
