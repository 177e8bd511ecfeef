//! The state that an agent has in force, read back from the structures that packets use. Comparing it with the agent's
//! configuration finds errors in between.

use crate::config::ForeignSources;
use crate::id::{AgentId, ResourceId, Revision};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The tables of an agent, as its admin socket returns them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Installed {
    /// The revision in force.
    pub revision: Revision,
    /// Digest of the configuration in force; empty before the first configuration.
    pub digest: String,
    /// The tables of the engine; `None` before the first configuration.
    pub tables: Option<InstalledTables>,
    /// The routes of the agent in its host's kernel.
    pub kernel: InstalledKernel,
}

/// The tables of an engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InstalledTables {
    /// The subnets whose routes apply to packets that leave at this agent.
    pub subnets: Vec<InstalledSubnet>,
    /// At a VPN gateway: the prefixes behind its connections.
    pub transit: Vec<InstalledTransit>,
    /// Prefixes of peerings without access: packets from and to them are dropped on every path (P17).
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
    /// The routes, IPv4 before IPv6, in the order of addresses.
    pub routes: Vec<InstalledRoute>,
}

/// One active route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InstalledRoute {
    /// The destination prefix.
    pub prefix: IpNet,
    /// Its next hop.
    pub hop: InstalledHop,
}

/// A next hop, resolved as far as possible without a packet.
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
    /// A gateway, or the edges of a circuit behind it.
    Gateway {
        /// The first instance or edge in use. `None`: there is no link to any.
        link: Option<AgentId>,
        /// Further instances or edges that share the flows with it (E4, G6).
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        also: Vec<AgentId>,
    },
    /// A virtual appliance.
    Appliance {
        /// Its address.
        address: IpAddr,
        /// The VNet that contains the address. `None`: neither the own VNet nor a directly peered one, so packets are
        /// dropped (R11).
        vnet: Option<ResourceId>,
    },
    /// The Internet: packets are dropped.
    Internet {},
    /// Packets are dropped silently (R13).
    None {},
}

/// One prefix behind a VPN connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InstalledTransit {
    /// The destination prefix.
    pub prefix: IpNet,
    /// The connection.
    pub connection: ResourceId,
    /// The remote instance or device in use. `None`: there is no link to any.
    pub link: Option<AgentId>,
}

/// One link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InstalledLink {
    /// The other end.
    pub peer: AgentId,
    /// Sources that the peer may use (D10), in the order of addresses.
    pub sources: Vec<IpNet>,
    /// Exceptions from `sources`: longer prefixes that belong to others. The longest prefix of both lists decides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<IpNet>,
    /// Further sources that the peer may use because it forwards packets of others.
    pub foreign: ForeignSources,
}

/// The agent's routes in its host's kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InstalledKernel {
    /// Name of the TUN device.
    pub device: String,
    /// Number of the agent's routing table.
    pub table: u32,
    /// Number of its second table, which holds only default routes.
    pub default_table: u32,
    /// The routes of both tables, by destination.
    pub routes: BTreeMap<IpNet, KernelRoute>,
}

/// The action of a kernel route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum KernelRoute {
    /// Send into the TUN device.
    Device,
    /// Continue with the host's own tables (`throw`).
    Throw,
    /// Send to the customer edge on the line.
    Line,
}
