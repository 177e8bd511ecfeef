//! What joins VNets with what lies outside: gateways, connections, sites, circuits.

use super::Prefix;
use crate::manifest::named::Named;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use tombolo_proto::config::GatewayKind;
use tombolo_proto::id::PublicKey;

/// A gateway: one instance, or `ipConfigurations` for several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VirtualNetworkGateway {
    /// The region.
    #[serde(default)]
    pub location: Option<String>,
    /// Tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// The VNet, by name or full id; its `GatewaySubnet` is used.
    pub virtual_network: String,
    /// G2; `Vpn` unless said.
    #[serde(default)]
    pub gateway_type: GatewayKind,
    /// Name or full id.
    #[serde(default, rename = "publicIPAddress")]
    pub public_ip_address: Option<String>,
    /// In `GatewaySubnet`; allocated by the controller if left out.
    #[serde(default, rename = "privateIPAddress")]
    pub private_ip_address: Option<IpAddr>,
    /// By name.
    #[serde(default)]
    pub ip_configurations: Named<GatewayIpConfiguration>,
    /// G4; the controller's default is 65515.
    #[serde(default)]
    pub asn: Option<u32>,
    /// G4, of a VPN gateway; the controller's default is the last free address of `GatewaySubnet`.
    #[serde(default)]
    pub bgp_peering_address: Option<IpAddr>,
    /// G4.
    #[serde(default)]
    pub enable_bgp: bool,
    /// G6.
    #[serde(default)]
    pub active_active: bool,
    /// G3; `RouteBased` unless said.
    #[serde(default)]
    pub vpn_type: Option<String>,
    /// `VpnGw1`, and `Standard` of an ExpressRoute gateway, unless said.
    #[serde(default)]
    pub sku: Option<String>,
}

/// One instance of a gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct GatewayIpConfiguration {
    /// Name or full id.
    #[serde(rename = "publicIPAddress")]
    pub public_ip_address: Option<String>,
    /// In `GatewaySubnet`; allocated by the controller if left out.
    #[serde(rename = "privateIPAddress")]
    pub private_ip_address: Option<IpAddr>,
}

/// A connection (G9); between two gateways it is one side's (G10).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Connection {
    /// The region.
    #[serde(default)]
    pub location: Option<String>,
    /// Tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// `Vnet2Vnet` unless said.
    #[serde(default)]
    pub connection_type: ConnectionType,
    /// This side's gateway, by name or full id.
    pub virtual_network_gateway1: String,
    /// The other side's, with `Vnet2Vnet`.
    #[serde(default)]
    pub virtual_network_gateway2: Option<String>,
    /// The site, with `IPsec`.
    #[serde(default)]
    pub local_network_gateway2: Option<String>,
    /// The circuit, with `ExpressRoute`. Azure calls it `peer`.
    #[serde(default, alias = "peer")]
    pub express_route_circuit: Option<String>,
    /// With `ExpressRoute`: the ends of the tunnels to the primary and the secondary edge, addresses of `GatewaySubnet`;
    /// allocated by the controller if left out.
    #[serde(default)]
    pub tunnel_addresses: Vec<IpAddr>,
    /// G11. A secret: keep the file as such. Left out: whatever the controller has stays.
    #[serde(default)]
    pub shared_key: Option<String>,
    /// `routingWeight`.
    #[serde(default)]
    pub routing_weight: Option<u32>,
    /// G4.
    #[serde(default)]
    pub enable_bgp: bool,
    /// `dpdTimeoutSeconds`, with `IPsec`: silence after which the site's device is given up, 9 to 3600.
    #[serde(default)]
    pub dpd_timeout_seconds: Option<u32>,
}

/// `connectionType` (G9).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConnectionType {
    /// Gateway to gateway.
    #[default]
    Vnet2Vnet,
    /// Gateway to the device of a site.
    IPsec,
    /// ExpressRoute gateway to circuit.
    ExpressRoute,
}

/// A site (G7, D16).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LocalNetworkGateway {
    /// The region.
    pub location: Option<String>,
    /// Tags.
    pub tags: BTreeMap<String, String>,
    /// Where its device is reached; left out: the device calls.
    pub gateway_ip_address: Option<IpAddr>,
    /// Its prefixes; with BGP there need not be any.
    pub local_network_address_space: Vec<Prefix>,
    /// G4; goes with `bgpPeeringAddress`.
    pub asn: Option<u32>,
    /// The device's address inside the tunnel; goes with `asn`.
    pub bgp_peering_address: Option<IpAddr>,
    /// The device's key; without it the tunnel stays down.
    pub wire_guard_public_key: Option<PublicKey>,
    /// UDP; 51820 unless said.
    pub wire_guard_port: Option<u16>,
}

/// A circuit (E1).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ExpressRouteCircuit {
    /// The region.
    pub location: Option<String>,
    /// Tags.
    pub tags: BTreeMap<String, String>,
    /// Where it ends (X12); the region unless said.
    pub peering_location: Option<String>,
    /// X13.
    pub bandwidth_in_mbps: Option<u32>,
    /// X13; `Standard` unless said.
    pub sku_tier: Option<SkuTier>,
    /// Its lines to the customer. Left out: whatever the controller has stays.
    pub private_peering: Option<PrivatePeering>,
}

/// The tier of a circuit's SKU (X13).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SkuTier {
    /// Ten VNets.
    Standard,
    /// More, by bandwidth.
    Premium,
}

/// A circuit's private peering: its two lines to the customer (E1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PrivatePeering {
    /// The customer's ASN (G4).
    pub peer_asn: u32,
    /// The addresses of the first line, a /30: the first one is the customer's, the second the edge's.
    pub primary: Prefix,
    /// Those of the second line.
    pub secondary: Prefix,
    /// 0 to 4094; 0 unless said.
    #[serde(default)]
    pub vlan_id: u16,
    /// Signs the BGP sessions. A secret: keep the file as such. Left out: whatever the controller has stays.
    #[serde(default)]
    pub shared_key: Option<String>,
}
