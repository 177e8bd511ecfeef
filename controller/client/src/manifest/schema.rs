//! The schema of documents. It has Azure's property names, but not the nesting of ARM's bodies. Unknown properties are
//! refused (D3).

mod balancers;
mod flow_logs;
mod gateways;
mod security;

pub use balancers::{
    BackendPool, BalancedProtocol, BalancingRule, FrontEnd, InboundNatRule, LoadBalancer, LoadBalancerSku,
    NoHealthyBackends, Probe, ProbeProtocol,
};
pub use flow_logs::FlowLog;
pub use gateways::{
    Connection, ConnectionType, ExpressRouteCircuit, GatewayIpConfiguration, LocalNetworkGateway, PrivatePeering,
    SkuTier, VirtualNetworkGateway,
};
pub use security::{NetworkSecurityGroup, RuleAddress, RulePorts, SecurityRule};

use crate::manifest::named::Named;
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, de};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use tombolo_proto::arm::Kind;
use tombolo_proto::config::Transport;
use tombolo_proto::fabric::Assertion;

/// The region of resources that have none: neither the resource nor its document has a `location`.
pub const DEFAULT_LOCATION: &str = "region1";

/// An address prefix without host bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Prefix(pub IpNet);

impl Prefix {
    /// Parses a prefix. The error is a message for the user: `text` is no prefix, or has host bits.
    fn parse(text: &str) -> Result<Self, String> {
        let net: IpNet = text
            .parse()
            .map_err(|_| format!("'{text}' is not an address prefix such as 10.1.0.0/16"))?;
        if net == net.trunc() {
            Ok(Self(net))
        } else {
            Err(format!("'{text}' has host bits set: write {}", net.trunc()))
        }
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(d)?).map_err(de::Error::custom)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One document: resources of one resource group. Several documents may have the same group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Document {
    /// Name of the resource group, which is created if it is missing. `None`: the caller's default group.
    pub resource_group: Option<String>,
    /// Region of every resource in this document that does not name a region. If absent, it is [`DEFAULT_LOCATION`].
    pub location: Option<String>,
    /// Virtual networks, with their subnets and peerings.
    pub virtual_networks: Named<VirtualNetwork>,
    /// Route tables, with their routes.
    pub route_tables: Named<RouteTable>,
    /// Network interfaces of virtual machines.
    pub network_interfaces: Named<NetworkInterface>,
    /// Public addresses, which gateways and network interfaces may refer to.
    #[serde(rename = "publicIPAddresses")]
    pub public_ip_addresses: Named<PublicIpAddress>,
    /// VPN and ExpressRoute gateways.
    pub virtual_network_gateways: Named<VirtualNetworkGateway>,
    /// Connections of gateways to other gateways, to sites and to circuits.
    pub connections: Named<Connection>,
    /// Descriptions of sites.
    pub local_network_gateways: Named<LocalNetworkGateway>,
    /// ExpressRoute circuits, with their private peering.
    pub express_route_circuits: Named<ExpressRouteCircuit>,
    /// Application security groups, which have only a region and tags.
    pub application_security_groups: Named<PlainResource>,
    /// Network security groups, with their rules.
    pub network_security_groups: Named<NetworkSecurityGroup>,
    /// Internal load balancers, with their children.
    pub load_balancers: Named<LoadBalancer>,
    /// Flow logs, which lie below the network watchers of their regions.
    pub flow_logs: Named<FlowLog>,
    /// What must never, and what must always be reachable after the changes. Assertions are checked, and not stored.
    #[serde(rename = "assert", skip_serializing_if = "Vec::is_empty")]
    pub assertions: Vec<Assertion>,
}

impl Document {
    /// Returns the kinds whose resources have no properties except region and tags, with these resources.
    pub(super) fn plain(&self) -> [(Kind, &Named<PlainResource>); 1] {
        [(Kind::ApplicationSecurityGroup, &self.application_security_groups)]
    }
}

/// A resource that has no properties except region and tags.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PlainResource {
    /// Region of the resource; if absent, the region of its document.
    pub location: Option<String>,
    /// Tags of the resource.
    pub tags: BTreeMap<String, String>,
}

/// A virtual network, with its subnets and its halves of peerings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VirtualNetwork {
    /// Region of the resource; if absent, the region of its document.
    #[serde(default)]
    pub location: Option<String>,
    /// Tags of the resource.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// Address space; at least one prefix.
    pub address_space: Vec<Prefix>,
    /// The subnets; a subnet that the manifest omits is kept unless pruning deletes it.
    #[serde(default)]
    pub subnets: Named<Subnet>,
    /// This VNet's halves of its peerings.
    #[serde(default)]
    pub peerings: Named<Peering>,
}

/// A subnet. It has either `addressPrefix` or `addressPrefixes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Subnet {
    /// The prefix, if the subnet has only one.
    #[serde(default)]
    pub address_prefix: Option<Prefix>,
    /// The prefixes, if the subnet has several, such as an IPv4 prefix and an IPv6 prefix.
    #[serde(default)]
    pub address_prefixes: Vec<Prefix>,
    /// Name or full id of the route table.
    #[serde(default)]
    pub route_table: Option<String>,
    /// Name or full id of the network security group (N4).
    #[serde(default)]
    pub network_security_group: Option<String>,
}

/// One VNet's half of a peering. The remote VNet has the other half.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Peering {
    /// Name or full id of the remote VNet.
    pub remote_virtual_network: String,
    /// Whether packets may pass between the two VNets; default true (P17).
    #[serde(default = "yes")]
    pub allow_virtual_network_access: bool,
    /// Whether packets whose sources are outside of the remote VNet may enter from it (P18).
    #[serde(default)]
    pub allow_forwarded_traffic: bool,
    /// Whether the remote VNet may use this VNet's gateways (P19).
    #[serde(default)]
    pub allow_gateway_transit: bool,
    /// Whether this VNet uses the remote VNet's gateways (P20).
    #[serde(default)]
    pub use_remote_gateways: bool,
    /// The value is stored and shown, and has no effect, because gateways are always provisioned here (P22).
    #[serde(default)]
    pub do_not_verify_remote_gateways: bool,
    /// Protocol of the links between the two VNets. By default a link uses WireGuard, or QUIC if WireGuard fails.
    #[serde(default)]
    pub transport: Transport,
}

fn yes() -> bool {
    true
}

/// A route table with its user-defined routes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouteTable {
    /// Region of the resource; if absent, the region of its document.
    #[serde(default)]
    pub location: Option<String>,
    /// Tags of the resource.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// True if subnets with this table do not use the routes of gateways (R15).
    #[serde(default)]
    pub disable_bgp_route_propagation: bool,
    /// The user-defined routes of the table.
    #[serde(default)]
    pub routes: Named<Route>,
}

/// A user-defined route of a route table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Route {
    /// Destination prefix of the route.
    pub address_prefix: Prefix,
    /// Type of the next hop (R10).
    pub next_hop_type: NextHopType,
    /// Address of the appliance; set only with the type `VirtualAppliance`.
    #[serde(default)]
    pub next_hop_ip_address: Option<IpAddr>,
}

/// The next hop types that a user may configure (R10).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NextHopType {
    /// The appliance at `nextHopIpAddress`.
    VirtualAppliance,
    /// The VNet's VPN gateway.
    VirtualNetworkGateway,
    /// The owner of the destination inside the VNet.
    VnetLocal,
    /// The Internet: Tombolo does not carry these packets.
    Internet,
    /// No next hop: the packet is dropped.
    None,
}

/// A network interface. It has either `subnet` with at most one address, or several `ipConfigurations`. With
/// `ipConfigurations`, these have the public addresses, back-end pools and inbound NAT rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkInterface {
    /// Region of the resource; if absent, the region of the virtual network if this is in the same document and names
    /// one, or else the region of the document.
    #[serde(default)]
    pub location: Option<String>,
    /// Tags of the resource.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// The subnet, as `virtual-network/subnet` or full id.
    #[serde(default)]
    pub subnet: Option<String>,
    /// Static address; without it the controller allocates one.
    #[serde(default, rename = "privateIPAddress")]
    pub private_ip_address: Option<IpAddr>,
    /// Name or full id of the public address.
    #[serde(default, rename = "publicIPAddress")]
    pub public_ip_address: Option<String>,
    /// The configurations of a network interface with several addresses; the first one is primary.
    #[serde(default)]
    pub ip_configurations: Named<NicIpConfiguration>,
    /// Whether the machine may forward packets of other machines (R12).
    #[serde(default, rename = "enableIPForwarding")]
    pub enable_ip_forwarding: bool,
    /// Name or full id of the network security group of the interface itself (N4).
    #[serde(default)]
    pub network_security_group: Option<String>,
    /// Names or full ids of the application security groups to which all addresses of the interface belong (N9).
    #[serde(default)]
    pub application_security_groups: Vec<String>,
    /// Back-end pools, as `load-balancer/pool` or full id, of which the interface is a member, with `subnet` (L2).
    #[serde(default)]
    pub load_balancer_pools: Vec<String>,
    /// Inbound NAT rules, as `load-balancer/rule` or full id, whose target is the interface, with `subnet`.
    #[serde(default)]
    pub inbound_nat_rules: Vec<String>,
}

/// One address of a network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NicIpConfiguration {
    /// The subnet, as `virtual-network/subnet` or full id.
    pub subnet: String,
    /// Static address; without it the controller allocates one.
    #[serde(default, rename = "privateIPAddress")]
    pub private_ip_address: Option<IpAddr>,
    /// Name or full id of the public address.
    #[serde(default, rename = "publicIPAddress")]
    pub public_ip_address: Option<String>,
    /// Back-end pools, as `load-balancer/pool` or full id, of which the address is a member (L2).
    #[serde(default)]
    pub load_balancer_pools: Vec<String>,
    /// Inbound NAT rules, as `load-balancer/rule` or full id, whose target is the address.
    #[serde(default)]
    pub inbound_nat_rules: Vec<String>,
}

/// A public address, as a resource that others refer to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PublicIpAddress {
    /// Region of the resource; if absent, the region of the gateway or network interface of the same document that uses
    /// the address, or else the region of the document.
    pub location: Option<String>,
    /// Tags of the resource.
    pub tags: BTreeMap<String, String>,
    /// The address. It is shown, but does not change the address at which an agent is reached.
    pub ip_address: Option<IpAddr>,
}
