//! What joins VNets with what lies outside: gateways, connections, sites, circuits.

use super::super::status;
use super::{Views, child, method, reference, space, top};
use crate::path::Kind;
use crate::resource::{Connection, ConnectionType, GatewayIpConfiguration, LocalNetworkGateway, VirtualNetworkGateway};
use serde_json::{Value, json};
use tombolo_proto::config::GatewayKind;
use tombolo_proto::id::ResourceId;

impl Views<'_> {
    pub(crate) fn connection(&self, connection: &Connection) -> Value {
        let status = status::of(self.topology, self.live, connection);
        let mut properties = json!({
            "connectionType": connection.connection_type,
            "virtualNetworkGateway1": reference(&connection.gateway1),
            "routingWeight": connection.routing_weight,
            "enableBgp": connection.enable_bgp,
            "dpdTimeoutSeconds": connection.dpd_timeout.unwrap_or(0),
            "connectionStatus": status.status,
            "ingressBytesTransferred": status.ingress,
            "egressBytesTransferred": status.egress,
            "tunnelConnectionStatus": status.tunnels,
            "usePolicyBasedTrafficSelectors": false,
            "ipsecPolicies": [],
            "trafficSelectorPolicies": [],
        });
        let far = match connection.connection_type {
            ConnectionType::Vnet2Vnet => "virtualNetworkGateway2",
            ConnectionType::IPsec => "localNetworkGateway2",
            ConnectionType::ExpressRoute => {
                properties["tunnelAddresses"] = json!(connection.tunnel_addresses);
                "peer"
            }
        };
        properties[far] = reference(&connection.gateway2);
        top(&connection.envelope, Kind::Connection, properties)
    }
}

pub(crate) fn gateway_ip_configuration(gateway: &VirtualNetworkGateway, config: &GatewayIpConfiguration) -> Value {
    let mut properties = json!({
        "privateIPAddress": config.address,
        "privateIPAllocationMethod": method(config.is_static),
        "subnet": reference(&config.subnet),
    });
    if let Some(public) = &config.public_ip_address {
        properties["publicIPAddress"] = reference(public);
    }
    let id = ResourceId::new(format!("{}/ipConfigurations/{}", gateway.envelope.id, config.name));
    child(&id, Kind::GatewayIpConfiguration, gateway.envelope.etag, properties)
}

pub(crate) fn gateway(gateway: &VirtualNetworkGateway) -> Value {
    let configs: Vec<Value> = gateway
        .ip_configurations
        .iter()
        .map(|c| gateway_ip_configuration(gateway, c))
        .collect();
    let mut bgp = json!({"asn": gateway.asn, "peerWeight": 0});
    if gateway.gateway_type == GatewayKind::Vpn {
        bgp["bgpPeeringAddress"] = json!(gateway.bgp_peering_address);
    }
    let properties = json!({
        "gatewayType": gateway.gateway_type,
        "vpnType": gateway.vpn_type,
        "sku": {"name": gateway.sku, "tier": gateway.sku},
        "activeActive": gateway.active_active,
        "enableBgp": gateway.enable_bgp,
        "bgpSettings": bgp,
        "ipConfigurations": configs,
    });
    top(&gateway.envelope, Kind::Gateway, properties)
}

pub(crate) fn local_gateway(site: &LocalNetworkGateway) -> Value {
    let mut properties = json!({
        "localNetworkAddressSpace": space(&site.address_space),
        "wireGuardPort": site.port,
    });
    if let Some(address) = site.address {
        properties["gatewayIpAddress"] = json!(address);
    }
    if let Some(key) = site.public_key {
        properties["wireGuardPublicKey"] = json!(key);
    }
    if let Some(bgp) = site.bgp {
        properties["bgpSettings"] = json!({"asn": bgp.asn, "bgpPeeringAddress": bgp.address, "peerWeight": 0});
    }
    top(&site.envelope, Kind::LocalNetworkGateway, properties)
}
