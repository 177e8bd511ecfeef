//! Local network gateways, which describe sites (G4, G7, G13, D16).

use crate::arm::body::{Object, missing};
use crate::arm::view::{Views, address_space};
use crate::draft::Draft;
use crate::net::is_apipa;
use crate::net::is_reserved_for_customers;
use crate::net::{overlaps_within, special_use};
use crate::path::{Kind, shown};
use crate::resource::frame::{Put, Resource};
use crate::resource::{Agent, Binding, Envelope};
use crate::rules::unsupported;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_proto::id::{PublicKey, ResourceId};

/// A local network gateway: the operator's description of a site (G7, D16).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalNetworkGateway {
    /// The id, region, tags and etag, which every resource has.
    #[serde(flatten)]
    pub envelope: Envelope,
    /// `gatewayIpAddress`: the underlay address of the site's device. `None`: the address is unknown, so only the
    /// device can start the handshake.
    #[serde(default)]
    pub address: Option<IpAddr>,
    /// `wireGuardPort`: the UDP port of the device's WireGuard interface.
    pub port: u16,
    /// `wireGuardPublicKey`: the device's public key. `None`: not set, so the tunnel cannot come up.
    #[serde(default)]
    pub public_key: Option<PublicKey>,
    /// `localNetworkAddressSpace`: the site's prefixes. For each gateway that is connected to the site, these prefixes
    /// are disjoint from the gateway's VNet, from the VNets that VPN joins with it or that are peered with it, and from
    /// the other sites that VPN joins with it. Can be empty.
    pub address_space: Vec<IpNet>,
    /// `bgpSettings`. `None`: the site does not use BGP.
    #[serde(default)]
    pub bgp: Option<SiteBgp>,
}

/// `bgpSettings` of a local network gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SiteBgp {
    /// The ASN of the site, which must not be reserved (G4).
    pub asn: u32,
    /// `bgpPeeringAddress`: the device's address inside the tunnel.
    pub address: IpAddr,
}

/// The UDP port of a site's device if the body has none. WireGuard itself has no default port; this one is used by the
/// examples in WireGuard's documentation.
const DEFAULT_PORT: u16 = 51820;

impl Resource for LocalNetworkGateway {
    const KIND: Kind = Kind::LocalNetworkGateway;

    fn read(draft: &mut Draft<'_>, put: &Put<'_, Self>) -> Option<Self> {
        let properties = &put.properties;
        let kept = put.echoed(&mut draft.problems);
        let envelope = put.envelope(draft, kept);
        draft.check_supported(properties, unsupported::LOCAL_GATEWAY);
        let port = properties.integer("wireGuardPort", 1..=65535, &mut draft.problems);
        let new = Self {
            envelope,
            address: draft.site_address(properties),
            port: port.and_then(|p| u16::try_from(p).ok()).unwrap_or(DEFAULT_PORT),
            public_key: draft.site_key(properties),
            address_space: draft.site_space(properties),
            bgp: draft.site_bgp(properties),
        };
        draft.problems.is_empty().then_some(new)
    }

    fn after_put(draft: &mut Draft<'_>, put: &Put<'_, Self>) {
        draft.check_site_in_use(&put.id);
    }

    fn check_unused(draft: &mut Draft<'_>, id: &ResourceId, _old: &Self) {
        let users: Vec<String> = draft.links_of(id).map(|c| c.envelope.id.to_string()).collect();
        if !users.is_empty() {
            let message = format!(
                "Local network gateway {id} cannot be deleted because it is still referenced by connections: {}.",
                users.join(", ")
            );
            draft.problems.add("XLocalNetworkGatewayCannotBeDeleted", id, message);
        }
        let is_probe = |agent: &&Arc<Agent>| {
            !agent.revoked && matches!(&agent.binding, Binding::Site { attachments, .. } if attachments.contains(id))
        };
        if let Some(agent) = draft.topology.agents.values().find(is_probe).map(|a| a.id.clone()) {
            let message =
                format!("Local network gateway {id} is used by the site probe '{agent}'. Delete the agent first.");
            draft.problems.add("XLocalNetworkGatewayInUseByAgent", id, message);
        }
    }

    fn properties(&self, _views: &Views<'_>) -> Value {
        let mut properties = json!({
            "localNetworkAddressSpace": address_space(&self.address_space),
            "wireGuardPort": self.port,
        });
        if let Some(address) = self.address {
            properties["gatewayIpAddress"] = json!(address);
        }
        if let Some(key) = self.public_key {
            properties["wireGuardPublicKey"] = json!(key);
        }
        if let Some(bgp) = self.bgp {
            properties["bgpSettings"] = json!({"asn": bgp.asn, "bgpPeeringAddress": bgp.address, "peerWeight": 0});
        }
        properties
    }
}

impl Draft<'_> {
    /// Reads `gatewayIpAddress`. `None`: the member is missing, empty, or not an address. Without an address, only the
    /// device can start the handshake. A text that is not an address also adds a problem.
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
            let message = format!("{at}: {address} is not a unicast address of a device (G7)");
            self.problems.add("XInvalidEndpoint", at, message);
        }
        Some(address)
    }

    /// Reads `wireGuardPublicKey`, which must not be the key of an agent (D16). `None`: the member is missing, empty,
    /// or not a key. A text that is not a key also adds a problem.
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

    /// Reads `localNetworkAddressSpace.addressPrefixes`. It can be empty: the site can announce its prefixes by BGP
    /// (G7).
    fn site_space(&mut self, properties: &Object<'_>) -> Vec<IpNet> {
        let space = properties.object_or_empty("localNetworkAddressSpace", &mut self.problems);
        let prefixes = self.prefixes(&space, "addressPrefixes").unwrap_or_default();
        for (net, at) in &prefixes {
            if let Some(block) = special_use(net) {
                let message = format!("{at}: {net} overlaps {block}, which no site can have (G7)");
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

    /// Reads `bgpSettings` (G4). `None`: `bgpSettings` is missing or has no ASN and no address, so the site does not
    /// use BGP. If only one of the two is missing, or one is wrong, the result is `None` too, and a problem says so.
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

    /// Checks that a site that has connections can be changed. It keeps `bgpSettings` if a connection uses BGP (G4),
    /// its device still differs from those of the gateway's other sites (G13), and its prefixes overlap no joined
    /// network (G7).
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
            self.check_sites_distinct(id, &user.gateway1, None);
            if let Some(gateway) = self.topology.gateways.get(&user.gateway1).cloned() {
                self.check_attached_to(id, &format!("Local network gateway {id} cannot be changed."), &gateway);
            }
        }
    }
}
