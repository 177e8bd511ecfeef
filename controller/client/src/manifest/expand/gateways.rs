//! Expands gateways, connections, local network gateways and circuits.

use super::{Expansion, GATEWAY_IP_CONFIGURATION, set_address};
use crate::manifest::named::Named;
use crate::manifest::schema::{
    Connection, ConnectionType, ExpressRouteCircuit, GatewayIpConfiguration, LocalNetworkGateway, SkuTier,
    VirtualNetworkGateway,
};
use serde_json::json;
use tombolo_proto::arm::Kind;
use tombolo_proto::config::GatewayKind;

/// The name of the only peering that a circuit may have.
const PRIVATE_PEERING: &str = "AzurePrivatePeering";
/// The UDP port that WireGuard commonly uses. It is also the controller's default.
const WIREGUARD_PORT: u16 = 51820;

impl Expansion<'_> {
    /// Adds the body of a gateway, and reports problems of its properties.
    pub(super) fn gateway(&mut self, name: &str, gateway: &VirtualNetworkGateway) {
        let place = format!("virtualNetworkGateways.{name}");
        let vnet = self.group.resolve("virtualNetworks", &gateway.virtual_network);
        let subnet = format!("{vnet}/subnets/GatewaySubnet");
        let short = GatewayIpConfiguration {
            public_ip_address: gateway.public_ip_address.clone(),
            private_ip_address: gateway.private_ip_address,
        };
        let given = short != GatewayIpConfiguration::default();
        let single = Named::from_iter([(GATEWAY_IP_CONFIGURATION.to_owned(), short)]);
        if given && !gateway.ip_configurations.is_empty() {
            self.problem(
                &place,
                "publicIPAddress and privateIPAddress must be set in ipConfigurations, if there are any",
            );
        }
        let all = if gateway.ip_configurations.is_empty() {
            &single
        } else {
            &gateway.ip_configurations
        };
        let configurations: Vec<_> = all
            .iter()
            .map(|(name, c)| {
                let mut properties = json!({
                    "subnet": {"id": &subnet},
                    "publicIPAddress": self.optional_reference(Kind::PublicIpAddress, c.public_ip_address.as_ref()),
                });
                set_address(&mut properties, c.private_ip_address);
                json!({"name": name, "properties": properties})
            })
            .collect();
        let vpn = gateway.gateway_type == GatewayKind::Vpn;
        if !vpn && gateway.bgp_peering_address.is_some() {
            self.problem(&place, "bgpPeeringAddress is allowed with gatewayType Vpn only (G4)");
        }
        let sku = gateway
            .sku
            .as_deref()
            .unwrap_or(if vpn { "VpnGw1" } else { "Standard" });
        let mut properties = json!({
            "gatewayType": gateway.gateway_type,
            "vpnType": gateway.vpn_type.as_deref().unwrap_or("RouteBased"),
            "sku": {"name": sku, "tier": sku},
            "activeActive": gateway.active_active,
            "enableBgp": gateway.enable_bgp,
            "ipConfigurations": configurations,
        });
        if let Some(asn) = gateway.asn {
            properties["bgpSettings"]["asn"] = json!(asn);
        }
        if let Some(address) = gateway.bgp_peering_address {
            properties["bgpSettings"]["bgpPeeringAddress"] = json!(address);
        }
        let body = json!({"properties": properties});
        let location = self.regions.gateway(gateway);
        self.push_resource(Kind::VirtualNetworkGateway, name, location, &gateway.tags, body);
    }

    /// Adds the body of a local network gateway, and reports problems of its properties.
    pub(super) fn site(&mut self, name: &str, site: &LocalNetworkGateway) {
        let place = format!("localNetworkGateways.{name}");
        if site.asn.is_some() != site.bgp_peering_address.is_some() {
            self.problem(&place, "asn and bgpPeeringAddress must be set together (G4)");
        }
        let prefixes: Vec<_> = site
            .local_network_address_space
            .iter()
            .map(ToString::to_string)
            .collect();
        let bgp = site.asn.zip(site.bgp_peering_address);
        let body = json!({"properties": {
            "gatewayIpAddress": site.gateway_ip_address,
            "localNetworkAddressSpace": {"addressPrefixes": prefixes},
            "bgpSettings": bgp.map(|(asn, address)| json!({"asn": asn, "bgpPeeringAddress": address})),
            "wireGuardPublicKey": site.wire_guard_public_key,
            "wireGuardPort": site.wire_guard_port.unwrap_or(WIREGUARD_PORT),
        }});
        self.push_resource(
            Kind::LocalNetworkGateway,
            name,
            site.location.as_ref(),
            &site.tags,
            body,
        );
    }

    /// Adds the body of a circuit with its private peering.
    pub(super) fn circuit(&mut self, name: &str, circuit: &ExpressRouteCircuit) {
        let mut body = json!({"properties": {}});
        let properties = &mut body["properties"];
        if let Some(location) = &circuit.peering_location {
            properties["serviceProviderProperties"]["peeringLocation"] = json!(location);
        }
        if let Some(bandwidth) = circuit.bandwidth_in_mbps {
            properties["serviceProviderProperties"]["bandwidthInMbps"] = json!(bandwidth);
        }
        if let Some(peering) = &circuit.private_peering {
            let mut inner = json!({
                "peeringType": PRIVATE_PEERING,
                "peerASN": peering.peer_asn,
                "primaryPeerAddressPrefix": peering.primary,
                "secondaryPeerAddressPrefix": peering.secondary,
                "vlanId": peering.vlan_id,
            });
            if let Some(key) = &peering.shared_key {
                inner["sharedKey"] = json!(key);
            }
            properties["peerings"] = json!([{"name": PRIVATE_PEERING, "properties": inner}]);
        }
        if let Some(tier) = circuit.sku_tier {
            let family = "MeteredData";
            let tier = match tier {
                SkuTier::Standard => "Standard",
                SkuTier::Premium => "Premium",
            };
            body["sku"] = json!({"name": format!("{tier}_{family}"), "tier": tier, "family": family});
        }
        self.push_resource(Kind::Circuit, name, circuit.location.as_ref(), &circuit.tags, body);
    }

    /// Adds the body of a connection, and reports problems of its properties. A property that belongs to another
    /// connection type is a problem.
    pub(super) fn connection(&mut self, name: &str, c: &Connection) {
        let place = format!("connections.{name}");
        // For each type of connection, the property that names the remote end: its name in manifests, its name in ARM,
        // the kind of the remote end, and its value.
        let ends = [
            (
                ConnectionType::Vnet2Vnet,
                "virtualNetworkGateway2",
                "virtualNetworkGateway2",
                Kind::VirtualNetworkGateway,
                &c.virtual_network_gateway2,
            ),
            (
                ConnectionType::IPsec,
                "localNetworkGateway2",
                "localNetworkGateway2",
                Kind::LocalNetworkGateway,
                &c.local_network_gateway2,
            ),
            (
                ConnectionType::ExpressRoute,
                "expressRouteCircuit",
                "peer",
                Kind::Circuit,
                &c.express_route_circuit,
            ),
        ];
        let mut properties = json!({
            "connectionType": c.connection_type,
            "virtualNetworkGateway1": self.reference(Kind::VirtualNetworkGateway, &c.virtual_network_gateway1),
            "enableBgp": c.enable_bgp,
        });
        for (of, property, arm, kind, end) in ends {
            let own = of == c.connection_type;
            match end {
                Some(end) if own => properties[arm] = self.reference(kind, end),
                None if own => self.problem(&place, &format!("{property} is needed with connectionType {of:?} (G9)")),
                Some(_) => {
                    let problem = format!("{property} is allowed with connectionType {of:?} only (G9)");
                    self.problem(&place, &problem);
                }
                None => {}
            }
        }
        let express = c.connection_type == ConnectionType::ExpressRoute;
        if !c.tunnel_addresses.is_empty() {
            if !express || c.tunnel_addresses.len() != 2 {
                self.problem(
                    &place,
                    "tunnelAddresses is allowed with connectionType ExpressRoute only, with one address for each of the two \
                     links (T4)",
                );
            }
            properties["tunnelAddresses"] = json!(c.tunnel_addresses);
        }
        if let Some(key) = &c.shared_key {
            if express {
                self.problem(&place, "sharedKey: a connection to a circuit has none; remove it (G11)");
            }
            properties["sharedKey"] = json!(key);
        }
        if let Some(weight) = c.routing_weight {
            properties["routingWeight"] = json!(weight);
        }
        if let Some(seconds) = c.dpd_timeout_seconds {
            properties["dpdTimeoutSeconds"] = json!(seconds);
        }
        let body = json!({"properties": properties});
        let location = self.regions.connection(c);
        self.push_resource(Kind::Connection, name, location, &c.tags, body);
    }
}
