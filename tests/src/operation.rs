//! Operations on a topology, and packets, as data. A generator draws both from a [`Universe`] that has only a few
//! names, so that operations often concern the same resources.

mod balancers;
mod universe;

pub use balancers::{Balancer, BalancerPlan, BalancingRule, Distribution, NAT_PORTS};
pub use universe::{Universe, VnetPlan};

use ipnet::IpNet;
use std::net::IpAddr;

/// The name of a subnet that holds a gateway (G1).
pub const GATEWAY_SUBNET: &str = "GatewaySubnet";

/// The flags of one half of a peering (P5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flags {
    /// `allowVirtualNetworkAccess` (P17).
    pub access: bool,
    /// `allowForwardedTraffic` (P18).
    pub forwarded: bool,
    /// `allowGatewayTransit` (P19).
    pub transit: bool,
    /// `useRemoteGateways` (P20).
    pub use_remote: bool,
}

/// The next hop of a user-defined route (R10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserHop {
    /// `VirtualAppliance`: the owner of this address.
    Appliance(IpAddr),
    /// `VirtualNetworkGateway`: the VPN gateway.
    Gateway,
    /// `VnetLocal`: the owner of the destination in the VNet.
    Local,
    /// The next-hop type `Internet`: agents drop the packet, because no overlay path leads to the Internet.
    Internet,
    /// `None`: agents drop the packet.
    None,
}

/// One change of a topology. Resources are referred to by name. Names are unique per kind, and a VNet's name also stands for its
/// gateway. An operation may refer to a resource that does not exist; the product then refuses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Creates a VNet, or changes the ranges and the idle timeout of flows of an existing one. Subnets and peerings
    /// stay as they are.
    PutVnet {
        vnet: String,
        region: &'static str,
        space: Vec<IpNet>,
        /// `flowTimeoutInMinutes`, 4 to 30 (N6). None: the default.
        flow_timeout: Option<u8>,
    },
    /// Deletes a VNet with its subnets and peering halves.
    DeleteVnet { vnet: String },
    /// Creates a subnet, or changes the prefixes, the route table and the security group of an existing one. Without
    /// `security` no group is attached to the subnet.
    PutSubnet {
        vnet: String,
        subnet: String,
        prefixes: Vec<IpNet>,
        table: Option<String>,
        security: Option<String>,
    },
    /// Creates or changes the half of a peering with `remote`. The half has the name of the VNet `remote`. `sync` is
    /// `syncRemoteAddressSpace` (P27).
    PutPeering {
        vnet: String,
        remote: String,
        flags: Flags,
        sync: bool,
    },
    /// Deletes the half of a peering with `remote`.
    DeletePeering { vnet: String, remote: String },
    /// Creates a NIC, or changes its forwarding, its security group, its application security groups, its tag
    /// and the load balancers that its addresses belong to.
    PutNic {
        nic: String,
        vnet: String,
        subnet: String,
        addresses: Vec<IpAddr>,
        forwarding: bool,
        security: Option<String>,
        application_groups: Vec<String>,
        /// The prefixes of the tag `tombolo-host-routes` (D37). If there are none, the NIC has no such tag.
        host_routes: Vec<IpNet>,
        /// The load balancer whose pool the NIC's addresses join (L2).
        pool: Option<String>,
        /// The load balancer of whose inbound NAT rule the NIC's first address is the target.
        nat_rule: Option<String>,
    },
    /// Creates or replaces a load balancer.
    PutBalancer { balancer: String, body: Balancer },
    /// Deletes a load balancer.
    DeleteBalancer { balancer: String },
    /// The agents report the results of a load balancer's probe: these back ends are down, and all others are up (L6).
    SetHealth { balancer: String, down: Vec<IpAddr> },
    /// Creates or replaces a network security group.
    PutSecurityGroup { group: String, rules: Vec<Rule> },
    /// Deletes a network security group.
    DeleteSecurityGroup { group: String },
    /// Creates an application security group.
    PutApplicationGroup { group: String },
    /// Changes the operator's setting `vnetAccessOff` (D28): `block`, or else `tagOnly`.
    SetAccessOff { block: bool },
    /// Changes the operator's setting `reevaluate` (D34).
    SetReevaluate { on: bool },
    /// Creates or replaces a route table.
    PutTable {
        table: String,
        no_gateway_routes: bool,
        routes: Vec<(IpNet, UserHop)>,
    },
    /// Creates a gateway in a VNet's `GatewaySubnet`.
    PutGateway { vnet: String, address: IpAddr },
    /// Deletes a VNet's gateway.
    DeleteGateway { vnet: String },
    /// Creates one side's connection object, or changes its key.
    PutConnection {
        from: String,
        to: String,
        key: Option<String>,
    },
    /// Deletes one side's connection object.
    DeleteConnection { from: String, to: String },
    /// A VM's agent joins. The VM has these NICs, and the agent serves all of these subnets (D7, D8).
    JoinVm {
        vm: String,
        nics: Vec<String>,
        vnet: String,
        served: Vec<String>,
    },
    /// The agent of a VNet's gateway joins (D7).
    JoinGateway { vnet: String },
    /// The site that is joined to a VNet's gateway announces these prefixes by BGP, and withdraws all others.
    Announce {
        vnet: String,
        prefixes: Vec<IpNet>,
        /// Whether the AS paths begin with an ASN that is not the site's.
        foreign_as: bool,
        /// Whether the site also announces 4,001 unused IPv4 prefixes, more than G23 permits.
        flood: bool,
    },
    /// Revokes an agent: its peers remove their links with it. The revoked agent still exists, so its name stays in
    /// use.
    Revoke { agent: String },
    /// Deletes an agent; its name and binding are free again.
    DeleteAgent { agent: String },
}

/// A security rule (N1). The rules of a group have the names `r0`, `r1` and so on, in the order of their list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// 100 to 4096. The rule with the lowest number decides (N3).
    pub priority: u16,
    /// The direction of the packets that the rule judges: to the NIC (`Inbound`), or from it (`Outbound`).
    pub inbound: bool,
    /// The access: `Allow` or `Deny`.
    pub allow: bool,
    /// The protocol that the rule matches. None: all protocols.
    pub protocol: Option<Protocol>,
    /// The sources that the rule matches.
    pub source: Addresses,
    /// The source ports that the rule matches, from the first to the last. None: all ports.
    pub source_ports: Option<(u16, u16)>,
    /// The destinations that the rule matches.
    pub destination: Addresses,
    /// The destination ports that the rule matches, each from the first to the last. An empty list: all ports.
    pub destination_ports: Vec<(u16, u16)>,
}

/// The addresses that one side of a security rule matches (N8, N9, N11).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addresses {
    /// `*`: all addresses.
    Any,
    /// The tag `VirtualNetwork`.
    VirtualNetwork,
    /// The tag `Internet`.
    Internet,
    /// The tag `AzureLoadBalancer`.
    LoadBalancer,
    /// The addresses in these prefixes.
    Prefixes(Vec<IpNet>),
    /// The addresses of the NICs in these application security groups.
    Groups(Vec<String>),
}

/// The name of the agent of a VNet's gateway.
#[must_use]
pub fn gateway_agent(vnet: &str) -> String {
    format!("{vnet}-gw")
}

/// The name of the device of the site that is joined to a VNet's gateway. No agent's name ends in `-site`.
#[must_use]
pub fn site_device(vnet: &str) -> String {
    format!("{vnet}-site")
}

/// A packet, and the place where it enters the fabric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// The place where the packet enters the fabric.
    pub origin: Origin,
    /// The source address, which may be spoofed.
    pub source: IpAddr,
    /// The destination address, of the same family.
    pub destination: IpAddr,
    /// The protocol; with IPv6 addresses, `Icmp` stands for ICMPv6.
    pub protocol: Protocol,
    /// The source port and the destination port. With ICMP, both are the identifier of an echo message.
    pub ports: (u16, u16),
    /// The part that the packet has in its flow.
    pub part: Part,
}

/// The protocol of a packet or of a security rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP, and ICMPv6 for IPv6.
    Icmp,
}

/// The part that a packet has in its flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The first packet: a TCP SYN, an echo request, or a UDP datagram.
    First,
    /// An answer to the first packet: a TCP SYN with ACK, an echo reply, or a UDP datagram.
    Reply,
    /// A later packet of the sender of the first one: a TCP ACK, an echo request, or a UDP datagram.
    Later,
    /// The last packet of one end of a TCP connection: a FIN with ACK.
    Close,
    /// A packet that ends a TCP connection: a RST.
    Reset,
}

impl Packet {
    /// The answer to this packet, which enters the fabric at `origin`.
    #[must_use]
    pub const fn reply(&self, origin: Origin) -> Self {
        Self {
            origin,
            source: self.destination,
            destination: self.source,
            protocol: self.protocol,
            ports: (self.ports.1, self.ports.0),
            part: Part::Reply,
        }
    }
}

/// The place where a packet enters the fabric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// An agent's kernel sends the packet into the TUN device.
    Kernel {
        /// The name of the agent.
        agent: String,
    },
    /// The packet arrives on a link without a check by the sender's agent, as from a hostile peer or one with an old
    /// configuration.
    Link {
        /// The name of the sending agent or site's device.
        from: String,
        /// The name of the receiving agent.
        to: String,
    },
}
