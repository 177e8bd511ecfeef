//! What may happen to a topology, as data: typed operations by name, and a generator that draws them from a small
//! universe of names, so that they meet often.

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
    /// Inside the VNet.
    Local,
    /// Not carried.
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
    /// Deletes it.
    DeleteGateway { vnet: String },
    /// Creates one side's connection object, or changes its key.
    PutConnection {
        from: String,
        to: String,
        key: Option<String>,
    },
    /// Deletes it.
    DeleteConnection { from: String, to: String },
    /// A VM's agent joins: with these NICs, and for the whole of these subnets (D7, D8).
    JoinVm {
        vm: String,
        nics: Vec<String>,
        vnet: String,
        served: Vec<String>,
    },
    /// A gateway's agent joins.
    JoinGateway { vnet: String },
    /// The site behind a VNet's gateway announces this by BGP, and nothing else any more.
    Announce {
        vnet: String,
        prefixes: Vec<IpNet>,
        /// Paths begin with an ASN that is not the site's.
        foreign_as: bool,
        /// With 4,001 IPv4 prefixes of no use besides.
        flood: bool,
    },
    /// An agent is cut off.
    Revoke { agent: String },
    /// An agent is forgotten.
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

/// A packet, and where it appears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Where.
    pub origin: Origin,
    /// The source address, genuine or not.
    pub source: IpAddr,
    /// The destination address, of the same family.
    pub destination: IpAddr,
}

/// Where a packet appears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// An agent's kernel sends it.
    Kernel {
        /// The agent.
        agent: String,
    },
    /// It arrives on a link, whatever its far end should have done: a stale or hostile peer.
    Link {
        /// The far end.
        from: String,
        /// Where it arrives.
        to: String,
    },
}
