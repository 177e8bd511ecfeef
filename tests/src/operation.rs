//! Operations on a topology as data, and packets. A generator draws them from a small [`Universe`] of names, so that
//! operations often concern the same resources.

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
    /// To this address.
    Appliance(IpAddr),
    /// To the VPN gateway.
    Gateway,
    /// `VnetLocal`: inside the VNet.
    Local,
    /// `Internet`: not carried by the fabric.
    Internet,
    /// Dropped.
    None,
}

/// One change. Names are unique per kind; a VNet's name also names its gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Creates or changes a VNet: its ranges. Subnets and peerings stay as they are.
    PutVnet {
        vnet: String,
        region: &'static str,
        space: Vec<IpNet>,
    },
    /// Deletes a VNet.
    DeleteVnet { vnet: String },
    /// Creates or changes a subnet.
    PutSubnet {
        vnet: String,
        subnet: String,
        prefixes: Vec<IpNet>,
        table: Option<String>,
    },
    /// Creates or changes a half of a peering; the name of the half is the remote's name.
    PutPeering {
        vnet: String,
        remote: String,
        flags: Flags,
        sync: bool,
    },
    /// Deletes a half.
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
    /// A VM's agent joins: it has these NICs, and serves all of these subnets (D7, D8).
    JoinVm {
        vm: String,
        nics: Vec<String>,
        vnet: String,
        served: Vec<String>,
    },
    /// A gateway's agent joins.
    JoinGateway { vnet: String },
    /// The site behind a VNet's gateway announces these prefixes by BGP, and withdraws all others.
    Announce {
        vnet: String,
        prefixes: Vec<IpNet>,
        /// Paths begin with an ASN that is not the site's.
        foreign_as: bool,
        /// The site also announces 4,001 unused IPv4 prefixes: more than G23 permits.
        flood: bool,
    },
    /// Revokes an agent.
    Revoke { agent: String },
    /// Deletes an agent; its name and binding are free again.
    DeleteAgent { agent: String },
}

/// The agent of a VNet's gateway.
#[must_use]
pub fn gateway_agent(vnet: &str) -> String {
    format!("{vnet}-gw")
}

/// The device of the site behind a VNet's gateway.
#[must_use]
pub fn site_device(vnet: &str) -> String {
    format!("{vnet}-site")
}

/// A packet, and the place where it enters the fabric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// The place where the packet enters.
    pub origin: Origin,
    /// The source address, genuine or not.
    pub source: IpAddr,
    /// The destination address, of the same family.
    pub destination: IpAddr,
}

/// The place where a packet enters the fabric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// An agent's kernel sends it.
    Kernel {
        /// The agent.
        agent: String,
    },
    /// It arrives on a link, although the sender may have no right to send it: a stale or hostile peer.
    Link {
        /// The far end.
        from: String,
        /// The receiving agent.
        to: String,
    },
}
