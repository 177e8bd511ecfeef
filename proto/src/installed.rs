//! The tables and kernel routes that an agent uses now, read back from the data structures by which packets are
//! forwarded. A comparison with the agent's configuration shows whether the agent has translated the configuration into
//! these structures without an error.

use crate::config::ForeignSources;
use crate::id::{AgentId, ResourceId, Revision};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The tables and kernel routes of an agent, as its admin socket returns them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Installed {
    /// The revision whose tables and kernel routes are in force; 0 before the agent has applied its first
    /// configuration.
    pub revision: Revision,
    /// Digest of the configuration in force; empty before the agent has applied its first configuration.
    pub digest: String,
    /// The tables of the engine; `None` before the first configuration.
    pub tables: Option<InstalledTables>,
    /// The agent's routes in the kernel of its host.
    pub kernel: InstalledKernel,
}

/// The tables of an engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InstalledTables {
    /// The subnets whose routes this agent uses to send packets.
    pub subnets: Vec<InstalledSubnet>,
    /// At a VPN gateway: the prefixes that are reached over the gateway's connections. Empty for other roles.
    pub transit: Vec<InstalledTransit>,
    /// Prefixes of peered VNets for which `allowVirtualNetworkAccess` is false: packets from and to these prefixes are
    /// dropped on every path (P17).
    pub denied: Vec<IpNet>,
    /// The links, ordered by peer.
    pub links: Vec<InstalledLink>,
}

/// The active routes of one subnet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InstalledSubnet {
    /// The subnet's resource id.
    pub id: ResourceId,
    /// The routes in the order of addresses, IPv4 before IPv6.
    pub routes: Vec<InstalledRoute>,
}

/// One active route of a subnet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InstalledRoute {
    /// The destination prefix.
    pub prefix: IpNet,
    /// The next hop of the route.
    pub hop: InstalledHop,
}

/// A next hop, resolved as far as this is possible without a packet's addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "type",
    rename_all = "camelCase",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum InstalledHop {
    /// The owner of the destination in the own VNet.
    Local {},
    /// The owner of the destination in a peered VNet.
    Peering {
        /// The peered VNet. `None`: this agent does not deliver into it.
        vnet: Option<ResourceId>,
    },
    /// A gateway, or the edges of a circuit that the gateway is connected to.
    Gateway {
        /// The instance or edge that packets are sent to; if several share the flows, the first of them. `None`: the
        /// agent has no link to any of them.
        link: Option<AgentId>,
        /// Further instances or edges, which share the flows with `link` (E4, G6).
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        also: Vec<AgentId>,
    },
    /// The owner of a virtual appliance's address.
    Appliance {
        /// The appliance's address.
        address: IpAddr,
        /// The VNet that contains the address. `None`: neither the own VNet nor a directly peered VNet contains the
        /// address, so packets are dropped (R11).
        vnet: Option<ResourceId>,
    },
    /// The Internet: packets are dropped.
    Internet {},
    /// Packets are dropped silently (R13).
    None {},
}

/// One prefix that is reached over a VPN connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InstalledTransit {
    /// The destination prefix.
    pub prefix: IpNet,
    /// The connection that leads to the prefix.
    pub connection: ResourceId,
    /// The instance of the remote gateway, or the device of the site, to which packets are sent. `None`: the agent has
    /// no link to any of them.
    pub link: Option<AgentId>,
}

/// One link, with the sources that its peer may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InstalledLink {
    /// The peer of the link.
    pub peer: AgentId,
    /// Sources that the peer may use (D10), in the order of addresses.
    pub sources: Vec<IpNet>,
    /// Exceptions from `sources`: longer prefixes that belong to other links or VNets. The longest prefix of both lists
    /// decides about a source.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<IpNet>,
    /// Further sources that the peer may use, because it forwards packets of other hosts.
    pub foreign: ForeignSources,
}

/// The agent's routes in its host's kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InstalledKernel {
    /// Name of the first TUN device.
    pub device: String,
    /// Number of the agent's routing table.
    pub table: u32,
    /// Number of the agent's second routing table, which contains only default routes.
    pub default_table: u32,
    /// The routes of both tables, by destination.
    pub routes: BTreeMap<IpNet, KernelRoute>,
    /// The names of the devices of those routes that lead into the device of another NIC than the first (D37).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub further_devices: BTreeMap<IpNet, String>,
}

/// The action of a kernel route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum KernelRoute {
    /// The kernel sends packets into a TUN device.
    Device,
    /// The lookup continues with the host's own tables (`throw`).
    Throw,
    /// The kernel sends packets to the customer edge on the line.
    Line,
}
