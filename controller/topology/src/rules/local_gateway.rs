//! Local network gateways: sites as their operators describe them (G4, G7, G13, D16).

use super::{Draft, changed, echoed, unsupported};
use crate::arm::body::{Object, missing};
use crate::net::{overlaps_within, special_use};
use crate::path::{ArmPath, shown};
use crate::resource::{LocalNetworkGateway, ResourceGroup, SiteBgp};
use crate::resource::{is_apipa, is_reserved_for_customers};
use ipnet::IpNet;
use serde_json::Value;
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_proto::id::{PublicKey, ResourceId};

/// WireGuard's own.
const DEFAULT_PORT: u16 = 51820;

impl Draft<'_> {
    pub(crate) fn put_local_gateway(
        &mut self,
        group: &ResourceGroup,
        path: &ArmPath,
        body: &Value,
        if_match: Option<&str>,
    ) -> bool {
        let old = self.topology.local_gateways.get(&path.id()).cloned();
        let id = old
            .as_deref()
            .map_or_else(|| Self::new_id(group, path), |g| g.envelope.id.clone());
        self.check_if_match(if_match, old.as_deref().map(|g| g.envelope.etag), &id);
        let root = Object::root(body, &mut self.problems);
        let properties = root.object_or_empty("properties", &mut self.problems);
        let kept = echoed(&root, &[], &[], &mut self.problems);
        let envelope = self.envelope(&root, id.clone(), old.as_deref().map(|g| &g.envelope), kept);
        self.check_supported(&properties, unsupported::LOCAL_GATEWAY);
        let port = properties.integer("wireGuardPort", 1..=65535, &mut self.problems);
        let new = LocalNetworkGateway {
            envelope,
            address: self.site_address(&properties),
            port: port.and_then(|p| u16::try_from(p).ok()).unwrap_or(DEFAULT_PORT),
            public_key: self.site_key(&properties),
            address_space: self.site_space(&properties),
            bgp: self.site_bgp(&properties),
        };
        if self.problems.is_empty() {
            self.commit_local_gateway(new);
            self.check_site_in_use(&id);
        }
        old.is_none()
    }

    /// `gatewayIpAddress`; none or empty: the device calls.
    fn site_address(&mut self, properties: &Object<'_>) -> Option<IpAddr> {
        let fqdn = properties.text("fqdn", &mut self.problems);
        if fqdn.is_some_and(|f| !f.is_empty()) {
            let at = properties.at("fqdn");
            let message = format!("{at}: names are not supported: give gatewayIpAddress, or leave both out (G7)");
            self.problems.add("XNotSupported", at, message);
        }
        let address = properties.address("gatewayIpAddress", &mut self.problems)?;
        if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
            let at = properties.at("gatewayIpAddress");
            let message = format!("{at}: nobody can be reached at {address} (G7)");
            self.problems.add("XInvalidEndpoint", at, message);
        }
        Some(address)
    }

    /// `wireGuardPublicKey` (D16).
    fn site_key(&mut self, properties: &Object<'_>) -> Option<PublicKey> {
        let at = properties.at("wireGuardPublicKey");
        let text = properties
            .text("wireGuardPublicKey", &mut self.problems)
            .filter(|t| !t.is_empty())?;
        let key: Option<PublicKey> = text.parse().ok().filter(|k: &PublicKey| k.0 != [0; 32]);
        let Some(key) = key else {
            let message = format!(
                "{at}: '{}' is not a WireGuard public key: 32 bytes in base64 (D16)",
                shown(text)
            );
            self.problems.add("XInvalidPublicKey", at, message);
            return None;
        };
        if let Some(agent) = self.topology.agents.values().find(|a| a.public_key == key) {
            let message = format!(
                "{at}: agent '{}' has the same key; a device has its own (D16)",
                agent.id
            );
            self.problems.add("XKeyInUse", at, message);
        }
        Some(key)
    }

    /// `localNetworkAddressSpace.addressPrefixes`: may be empty, what BGP brings is enough (G7).
    fn site_space(&mut self, properties: &Object<'_>) -> Vec<IpNet> {
        let space = properties.object_or_empty("localNetworkAddressSpace", &mut self.problems);
        let prefixes = self.prefixes(&space, "addressPrefixes").unwrap_or_default();
        for (net, at) in &prefixes {
            if let Some(block) = special_use(net) {
                let message = format!("{at}: {net} touches {block}, which no site can have (G7)");
                self.problems.add("XAddressPrefixNotAllowed", at.clone(), message);
            }
        }
        let nets: Vec<IpNet> = prefixes.iter().map(|(net, _)| *net).collect();
        for (a, b) in overlaps_within(&nets) {
            let (net, at) = &prefixes[b];
            let message = format!(
                "{at}: {net} overlaps {} of the same local network gateway (G7)",
                nets[a]
            );
            self.problems.add("XAddressRangesOverlap", at.clone(), message);
        }
        nets
    }

    /// `bgpSettings` (G4); none, or one without ASN and address: no BGP.
    fn site_bgp(&mut self, properties: &Object<'_>) -> Option<SiteBgp> {
        let bgp = properties.object("bgpSettings", &mut self.problems)?;
        let before = self.problems.len();
        let asn = bgp.integer("asn", 1..=i64::from(u32::MAX), &mut self.problems);
        let address = bgp.address("bgpPeeringAddress", &mut self.problems);
        bgp.integer("peerWeight", 0..=100, &mut self.problems);
        if let Some(asn) = asn.filter(|a| is_reserved_for_customers(*a)) {
            let at = bgp.at("asn");
            let message = format!("{at}: {asn} is reserved, a site cannot have it (G4)");
            self.problems.add("XReservedAsn", at, message);
        }
        if let Some(address) = address
            && let Some(block) = special_use(&IpNet::from(address)).filter(|_| !is_apipa(address))
        {
            let at = bgp.at("bgpPeeringAddress");
            let message = format!("{at}: {address} is in {block}, where no BGP peer can be (G4)");
            self.problems.add("XAddressPrefixNotAllowed", at, message);
        }
        match (asn, address) {
            (Some(asn), Some(address)) => Some(SiteBgp {
                asn: u32::try_from(asn).unwrap_or_default(),
                address,
            }),
            (None, None) => None,
            (asn, _) => {
                if self.problems.len() == before {
                    let lacking = if asn.is_some() { "bgpPeeringAddress" } else { "asn" };
                    missing(&mut self.problems, &bgp.at(lacking));
                }
                None
            }
        }
    }

    /// What connections to a site ask of it: BGP settings (G4), to be told apart from the gateway's other sites (G13),
    /// and addresses that nobody else has (G7).
    fn check_site_in_use(&mut self, id: &ResourceId) {
        let Some(site) = self.topology.local_gateways.get(id).cloned() else {
            return;
        };
        let users: Vec<_> = self.links_of(id).cloned().collect();
        for user in users {
            if user.enable_bgp && site.bgp.is_none() {
                let message = format!(
                    "Local network gateway {id} must keep its bgpSettings while connection {} uses BGP (G4).",
                    user.envelope.id
                );
                self.problems
                    .add("XBgpSettingsRequired", "properties.bgpSettings", message);
            }
            self.check_sites_apart(id, &user.gateway1, None);
            if let Some(gateway) = self.topology.gateways.get(&user.gateway1).cloned() {
                self.check_attached_to(id, &format!("Local network gateway {id} cannot be changed."), &gateway);
            }
        }
    }

    pub(crate) fn delete_local_gateway(&mut self, id: &ResourceId, if_match: Option<&str>) -> bool {
        let Some(old) = self.topology.local_gateways.get(id).cloned() else {
            return false;
        };
        self.check_if_match(if_match, Some(old.envelope.etag), id);
        let users: Vec<String> = self.links_of(id).map(|c| c.envelope.id.to_string()).collect();
        if !users.is_empty() {
            let message = format!(
                "Local network gateway {id} cannot be deleted because it is still referenced by connections: {}.",
                users.join(", ")
            );
            self.problems.add("XLocalNetworkGatewayCannotBeDeleted", id, message);
        }
        self.topology.local_gateways.remove(id);
        true
    }

    pub(crate) fn commit_local_gateway(&mut self, mut new: LocalNetworkGateway) {
        let old = self.topology.local_gateways.get(&new.envelope.id).map(|a| &**a);
        if let Some(etag) = changed(old, &new, self.fresh) {
            new.envelope.etag = etag;
            self.topology
                .local_gateways
                .insert(new.envelope.id.clone(), Arc::new(new));
        }
    }
}
