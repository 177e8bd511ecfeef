//! What joins VNets with what lies outside: gateways, connections, sites, circuits.

use super::super::status;
use super::{Views, child, method, reference, space, top};
use crate::path::Kind;
use crate::resource::{
    Connection, ConnectionType, ExpressRouteCircuit, GatewayIpConfiguration, LocalNetworkGateway, PrivatePeering,
    VirtualNetworkGateway,
};
use serde_json::{Value, json};
use tombolo_proto::config::{EDGE_ASN, GatewayKind};
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

/// What Azure shows where a circuit's body said nothing.
pub(crate) fn circuit_defaults() -> Value {
    json!({"allowClassicOperations": false, "globalReachEnabled": false})
}

/// Likewise, beside its properties.
pub(crate) fn circuit_sku() -> Value {
    json!({"name": "Standard_MeteredData", "tier": "Standard", "family": "MeteredData"})
}

pub(crate) fn circuit(circuit: &ExpressRouteCircuit) -> Value {
    let peerings: Vec<Value> = circuit.private_peering.iter().map(circuit_peering).collect();
    let mut properties = circuit_defaults();
    if let (Value::Object(slot), Some(Value::Object(kept))) =
        (&mut properties, circuit.envelope.echoed.get("properties"))
    {
        slot.extend(kept.clone());
    }
    // There is no provider to wait for.
    properties["circuitProvisioningState"] = "Enabled".into();
    properties["serviceProviderProvisioningState"] = "Provisioned".into();
    properties["serviceKey"] = circuit.envelope.resource_guid.to_string().into();
    properties["peerings"] = peerings.into();
    properties["authorizations"] = json!([]);
    let mut body = top(&circuit.envelope, Kind::Circuit, properties);
    if body.get("sku").is_none() {
        body["sku"] = circuit_sku();
    }
    body
}

pub(crate) fn circuit_peering(peering: &PrivatePeering) -> Value {
    let properties = json!({
        "peeringType": "AzurePrivatePeering",
        "state": "Enabled",
        "azureASN": EDGE_ASN,
        "peerASN": peering.peer_asn,
        "primaryPeerAddressPrefix": peering.primary,
        "secondaryPeerAddressPrefix": peering.secondary,
        "vlanId": peering.vlan_id,
        "connections": [],
        "peeredConnections": [],
    });
    child(&peering.id, Kind::CircuitPeering, peering.etag, properties)
}
