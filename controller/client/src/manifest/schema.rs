//! What a document may say. Azure's property names, flat; unknown ones are refused (D3).

mod gateways;

pub use gateways::{
    Connection, ConnectionType, ExpressRouteCircuit, GatewayIpConfiguration, LocalNetworkGateway, PrivatePeering,
    SkuTier, VirtualNetworkGateway,
};

use crate::manifest::named::Named;
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, de};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use tombolo_proto::arm::Kind;
use tombolo_proto::config::Transport;

/// An address prefix without host bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Prefix(pub IpNet);

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        let net: IpNet = text
            .parse()
            .map_err(|_| de::Error::custom(format_args!("'{text}' is not an address prefix such as 10.1.0.0/16")))?;
        if net == net.trunc() {
            Ok(Self(net))
        } else {
            Err(de::Error::custom(format_args!(
                "'{text}' has host bits set: the prefix is {}",
                net.trunc()
            )))
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One document: resources of one resource group. A folder may hold several for the same group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Document {
    /// Created if it is missing. None: the one that the user works in.
    pub resource_group: Option<String>,
    /// The region of every resource that names none.
    pub location: Option<String>,
    /// By name.
    pub virtual_networks: Named<VirtualNetwork>,
    /// By name.
    pub route_tables: Named<RouteTable>,
    /// By name.
    pub network_interfaces: Named<NetworkInterface>,
    /// By name.
    #[serde(rename = "publicIPAddresses")]
    pub public_ip_addresses: Named<PublicIpAddress>,
    /// By name.
    pub virtual_network_gateways: Named<VirtualNetworkGateway>,
    /// By name.
    pub connections: Named<Connection>,
    /// By name.
    pub local_network_gateways: Named<LocalNetworkGateway>,
    /// By name.
    pub express_route_circuits: Named<ExpressRouteCircuit>,
    /// By name.
    pub application_security_groups: Named<PlainResource>,
}

impl Document {
    /// The resources of which nothing but region and tags can be said, by kind.
    pub(super) fn plain(&self) -> [(Kind, &Named<PlainResource>); 1] {
        [(Kind::ApplicationSecurityGroup, &self.application_security_groups)]
    }
}

/// A resource of which nothing but region and tags can be said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PlainResource {
    /// The region.
    pub location: Option<String>,
    /// Tags.
    pub tags: BTreeMap<String, String>,
}

/// A virtual network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VirtualNetwork {
    /// The region.
    #[serde(default)]
    pub location: Option<String>,
    /// Tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// At least one.
    pub address_space: Vec<Prefix>,
    /// By name.
    #[serde(default)]
    pub subnets: Named<Subnet>,
    /// The own halves of peerings, by name.
    #[serde(default)]
    pub peerings: Named<Peering>,
}

/// A subnet: `addressPrefix` or `addressPrefixes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Subnet {
    /// One prefix.
    #[serde(default)]
    pub address_prefix: Option<Prefix>,
    /// Several.
    #[serde(default)]
    pub address_prefixes: Vec<Prefix>,
    /// Name or full id.
    #[serde(default)]
    pub route_table: Option<String>,
}

/// The own half of a peering; the other VNet has its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Peering {
    /// Name or full id.
    pub remote_virtual_network: String,
    /// P17; on unless said.
    #[serde(default = "yes")]
    pub allow_virtual_network_access: bool,
    /// P18.
    #[serde(default)]
    pub allow_forwarded_traffic: bool,
    /// P19.
    #[serde(default)]
    pub allow_gateway_transit: bool,
    /// P20.
    #[serde(default)]
    pub use_remote_gateways: bool,
    /// P22.
    #[serde(default)]
    pub do_not_verify_remote_gateways: bool,
    /// What may carry the links between the two VNets: WireGuard first and QUIC where that does not work, unless said.
    #[serde(default)]
    pub transport: Transport,
}

fn yes() -> bool {
    true
}

/// A route table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouteTable {
    /// The region.
    #[serde(default)]
    pub location: Option<String>,
    /// Tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// R15.
    #[serde(default)]
    pub disable_bgp_route_propagation: bool,
    /// By name.
    #[serde(default)]
    pub routes: Named<Route>,
}

/// A user-defined route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Route {
    /// The destination.
    pub address_prefix: Prefix,
    /// R10.
    pub next_hop_type: NextHopType,
    /// With `VirtualAppliance`, and only there.
    #[serde(default)]
    pub next_hop_ip_address: Option<IpAddr>,
}

/// The next hop types that a user may configure (R10).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NextHopType {
    /// To `nextHopIpAddress`.
    VirtualAppliance,
    /// To the VPN gateway.
    VirtualNetworkGateway,
    /// Inside the VNet.
    VnetLocal,
    /// Not carried.
    Internet,
    /// Dropped.
    None,
}

/// A network interface: `subnet` and an address, or `ipConfigurations` for several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkInterface {
    /// The region.
    #[serde(default)]
    pub location: Option<String>,
    /// Tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// `virtual-network/subnet` or full id.
    #[serde(default)]
    pub subnet: Option<String>,
    /// Static; allocated by the controller if left out.
    #[serde(default, rename = "privateIPAddress")]
    pub private_ip_address: Option<IpAddr>,
    /// Name or full id.
    #[serde(default, rename = "publicIPAddress")]
    pub public_ip_address: Option<String>,
    /// By name, the primary one first.
    #[serde(default)]
    pub ip_configurations: Named<NicIpConfiguration>,
    /// R12.
    #[serde(default, rename = "enableIPForwarding")]
    pub enable_ip_forwarding: bool,
}

/// One address of a network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NicIpConfiguration {
    /// `virtual-network/subnet` or full id.
    pub subnet: String,
    /// Static; allocated by the controller if left out.
    #[serde(default, rename = "privateIPAddress")]
    pub private_ip_address: Option<IpAddr>,
    /// Name or full id.
    #[serde(default, rename = "publicIPAddress")]
    pub public_ip_address: Option<String>,
}

/// A public address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PublicIpAddress {
    /// The region.
    pub location: Option<String>,
    /// Tags.
    pub tags: BTreeMap<String, String>,
    /// Shown, not acted on.
    pub ip_address: Option<IpAddr>,
}
