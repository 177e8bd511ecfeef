//! What an agent has in force, read back from where packets are looked up. Not what it was told: comparing the two finds
//! what went wrong in between.

use crate::config::ForeignSources;
use crate::id::{AgentId, ResourceId, Revision};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What an agent's admin socket shows as its tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Installed {
    /// The revision in force.
    pub revision: Revision,
    /// Digest of the configuration in force; empty: none yet.
    pub digest: String,
    /// The engine's tables; none before the first configuration.
    pub tables: Option<InstalledTables>,
    /// What the agent has set in its host's kernel.
    pub kernel: InstalledKernel,
}

/// The tables of an engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InstalledTables {
    /// The subnets that packets leave through.
    pub subnets: Vec<InstalledSubnet>,
    /// At a gateway: what lies behind its connections.
    pub transit: Vec<InstalledTransit>,
    /// Prefixes that nothing is exchanged with on any path (P17).
    pub denied: Vec<IpNet>,
    /// The links, ordered by peer.
    pub links: Vec<InstalledLink>,
}

/// The routes of one subnet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InstalledSubnet {
    /// The subnet.
    pub id: ResourceId,
    /// Its routes.
    pub routes: Vec<InstalledRoute>,
}

/// One route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InstalledRoute {
    /// The destination.
    pub prefix: IpNet,
    /// Where it leads.
    pub hop: InstalledHop,
}

/// Where a route leads, looked up as far as it can be without a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "type",
    rename_all = "camelCase",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum InstalledHop {
    /// To the owner of the address in the own VNet.
    Local {},
    /// To the owner of the address in a peered VNet.
    Peering {
        /// The VNet; none: packets are not delivered into it from here.
        vnet: Option<ResourceId>,
    },
    /// To a gateway.
    Gateway {
        /// The instance or edge in use; none: there is none.
        link: Option<AgentId>,
        /// Others that share the flows with it (E4, G6).
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        also: Vec<AgentId>,
    },
    /// To an appliance.
    Appliance {
        /// Its address.
        address: IpAddr,
        /// The VNet that has the address; none: out of reach (R11).
        vnet: Option<ResourceId>,
    },
    /// Not carried.
    Internet {},
    /// Dropped.
    None {},
}

/// A prefix behind a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InstalledTransit {
    /// The destination.
    pub prefix: IpNet,
    /// The connection.
    pub connection: ResourceId,
    /// The far instance in use; none: there is none.
    pub link: Option<AgentId>,
}

/// A link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InstalledLink {
    /// The other end.
    pub peer: AgentId,
    /// What it may speak for (D10), in the order of addresses.
    pub sources: Vec<IpNet>,
    /// What it may not, though a shorter prefix of `sources` contains it: others have it. The longest prefix decides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<IpNet>,
    /// What it may carry beyond that.
    pub foreign: ForeignSources,
}

/// What an agent has set in its host's kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InstalledKernel {
    /// The TUN device.
    pub device: String,
    /// The agent's routing table.
    pub table: u32,
    /// Its second table, which has routes of prefix length 0 and no others.
    pub default_table: u32,
    /// The routes of both.
    pub routes: BTreeMap<IpNet, KernelRoute>,
}

/// What a kernel route does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum KernelRoute {
    /// Into the TUN device.
    Device,
    /// Back to the host's own tables.
    Throw,
    /// Down the line to the customer edge.
    Line,
}
