//! Gateways, connections, local network gateways and circuits.

use super::Prefix;
use crate::manifest::named::Named;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use tombolo_proto::config::GatewayKind;
use tombolo_proto::id::PublicKey;

/// A VPN or ExpressRoute gateway. It has one instance for each of its `ipConfigurations`, or a single instance if
/// `ipConfigurations` is absent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VirtualNetworkGateway {
    /// Region of the resource; if absent, the region of the virtual network if this is in the same document and names
    /// one, or else the region of the document.
    #[serde(default)]
    pub location: Option<String>,
    /// Tags of the resource.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// Name or full id of the gateway's VNet. The gateway has its addresses in this VNet's `GatewaySubnet`.
    pub virtual_network: String,
    /// Type of the gateway; default `Vpn` (G2).
    #[serde(default)]
    pub gateway_type: GatewayKind,
    /// Name or full id of the only instance's public address.
    #[serde(default, rename = "publicIPAddress")]
    pub public_ip_address: Option<String>,
    /// Address, in `GatewaySubnet`, of the only instance. If it is absent, the controller allocates an address.
    #[serde(default, rename = "privateIPAddress")]
    pub private_ip_address: Option<IpAddr>,
    /// The instances of a gateway with several instances, by the name of the instance's `ipConfiguration`. If there are
    /// any, the gateway's own `publicIPAddress` and `privateIPAddress` must be absent.
    #[serde(default)]
    pub ip_configurations: Named<GatewayIpConfiguration>,
    /// ASN of the gateway; the controller's default is 65515 (G4).
    #[serde(default)]
    pub asn: Option<u32>,
    /// BGP address of a VPN gateway; the controller's default is the last free address of `GatewaySubnet` (G4).
    #[serde(default)]
    pub bgp_peering_address: Option<IpAddr>,
    /// Whether the gateway may exchange routes by BGP (G4).
    #[serde(default)]
    pub enable_bgp: bool,
    /// Whether all instances carry traffic. If not, one instance does, and the others are in standby (G6).
    #[serde(default)]
    pub active_active: bool,
    /// Azure's VPN type; default `RouteBased` (G3).
    #[serde(default)]
    pub vpn_type: Option<String>,
    /// Azure's name of the size. The default is `VpnGw1` for a VPN gateway and `Standard` for an ExpressRoute gateway.
    #[serde(default)]
    pub sku: Option<String>,
}

/// One instance of a gateway with several.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct GatewayIpConfiguration {
    /// Name or full id of the instance's public address.
    #[serde(rename = "publicIPAddress")]
    pub public_ip_address: Option<String>,
    /// Address of the instance in `GatewaySubnet`. If it is absent, the controller allocates an address.
    #[serde(rename = "privateIPAddress")]
    pub private_ip_address: Option<IpAddr>,
}

/// A connection (G9). Two gateways need two connections, one for each direction (G10).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Connection {
    /// Region of the resource; if absent, the region of `virtualNetworkGateway1` if this is in the same document, or else
    /// the region of the document.
    #[serde(default)]
    pub location: Option<String>,
    /// Tags of the resource.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// Type of the remote end; default `Vnet2Vnet`.
    #[serde(default)]
    pub connection_type: ConnectionType,
    /// Name or full id of this end's gateway.
    pub virtual_network_gateway1: String,
    /// Name or full id of the remote gateway, with `Vnet2Vnet`.
    #[serde(default)]
    pub virtual_network_gateway2: Option<String>,
    /// Name or full id of the local network gateway, with `IPsec`.
    #[serde(default)]
    pub local_network_gateway2: Option<String>,
    /// Name or full id of the circuit, with `ExpressRoute`. Azure's property is `peer`.
    #[serde(default, alias = "peer")]
    pub express_route_circuit: Option<String>,
    /// With `ExpressRoute`: two addresses of the gateway in `GatewaySubnet`, one for the tunnel to the primary edge and
    /// one for the tunnel to the secondary edge. If absent, the controller allocates them.
    #[serde(default)]
    pub tunnel_addresses: Vec<IpAddr>,
    /// Shared key (G11). The key is a secret, so the file must be kept secret too. If it is absent, the connection
    /// keeps its present key.
    #[serde(default)]
    pub shared_key: Option<String>,
    /// Preference among connections to the same prefixes: the connection with the largest weight is used.
    #[serde(default)]
    pub routing_weight: Option<u32>,
    /// Whether the connection exchanges routes by BGP (G4).
    #[serde(default)]
    pub enable_bgp: bool,
    /// With `IPsec`: time in seconds, 9 to 3600, after which a silent device of the site counts as down.
    #[serde(default)]
    pub dpd_timeout_seconds: Option<u32>,
}

/// The type of a connection (`connectionType`, G9): what is at its remote end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConnectionType {
    /// From a VPN gateway to another VPN gateway.
    #[default]
    Vnet2Vnet,
    /// From a VPN gateway to the device of a site.
    IPsec,
    /// From an ExpressRoute gateway to a circuit.
    ExpressRoute,
}

/// The description of a site and its WireGuard device (G7, D16).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LocalNetworkGateway {
    /// Region of the resource; if absent, the region of its document.
    pub location: Option<String>,
    /// Tags of the resource.
    pub tags: BTreeMap<String, String>,
    /// Underlay address of the device. If it is absent, the device has to initiate the handshake.
    pub gateway_ip_address: Option<IpAddr>,
    /// Prefixes of the site; may be empty if the connection uses BGP.
    pub local_network_address_space: Vec<Prefix>,
    /// ASN of the site; requires `bgpPeeringAddress` (G4).
    pub asn: Option<u32>,
    /// BGP address of the device inside the tunnel; requires `asn` (G4).
    pub bgp_peering_address: Option<IpAddr>,
    /// WireGuard public key of the device; if absent, the tunnel is down.
    pub wire_guard_public_key: Option<PublicKey>,
    /// UDP port of the device; default 51820.
    pub wire_guard_port: Option<u16>,
}

/// An ExpressRoute circuit, with its private peering (E1).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ExpressRouteCircuit {
    /// Region of the resource; if absent, the region of its document.
    pub location: Option<String>,
    /// Tags of the resource.
    pub tags: BTreeMap<String, String>,
    /// Peering location; the region if absent (X12).
    pub peering_location: Option<String>,
    /// Bandwidth in Mbit/s. It does not limit traffic. On a Premium circuit, the number of VNets that may be linked
    /// depends on it (X13).
    pub bandwidth_in_mbps: Option<u32>,
    /// Tier of the SKU; default `Standard` (X13).
    pub sku_tier: Option<SkuTier>,
    /// The private peering. If it is absent, the circuit keeps its present one.
    pub private_peering: Option<PrivatePeering>,
}

/// The tier of a circuit's SKU (X13).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SkuTier {
    /// At most ten linked VNets.
    Standard,
    /// More linked VNets; the limit depends on the bandwidth.
    Premium,
}

/// A circuit's private peering: the two lines to the customer edge (E1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PrivatePeering {
    /// ASN of the customer (G4).
    pub peer_asn: u32,
    /// Prefix of the primary line, a /30. Its first address belongs to the customer edge, its second one to the
    /// provider's edge.
    pub primary: Prefix,
    /// Prefix of the secondary line, a /30. Its first address belongs to the customer edge, its second one to the
    /// provider's edge.
    pub secondary: Prefix,
    /// VLAN of both lines, 0 to 4094; default 0.
    #[serde(default)]
    pub vlan_id: u16,
    /// Key with which the BGP sessions are authenticated. The key is a secret, so the file must be kept secret too. If
    /// it is absent, the peering keeps its present key.
    #[serde(default)]
    pub shared_key: Option<String>,
}
