//! Operations on a topology, and packets, as data. A generator draws both from a [`Universe`] that has only a few
//! names, so that operations often concern the same resources.

mod universe;

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
    /// Creates a VNet, or changes the ranges of an existing one. Subnets and peerings stay as they are.
    PutVnet {
        vnet: String,
        region: &'static str,
        space: Vec<IpNet>,
    },
    /// Deletes a VNet with its subnets and peering halves.
    DeleteVnet { vnet: String },
    /// Creates a subnet, or changes the prefixes and the route table of an existing one.
    PutSubnet {
        vnet: String,
        subnet: String,
        prefixes: Vec<IpNet>,
        table: Option<String>,
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
    /// Creates a NIC, or changes its forwarding.
    PutNic {
        nic: String,
        vnet: String,
        subnet: String,
        addresses: Vec<IpAddr>,
        forwarding: bool,
    },
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

/// The name of the agent of a VNet's gateway. Whether the VNet has a gateway is not checked.
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
