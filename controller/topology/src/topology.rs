//! All resources of one revision, as data. Their methods stand in `api.rs`.

use crate::resource::{
    Agent, Connection, ExpressRouteCircuit, JoinToken, LocalNetworkGateway, NetworkInterface, PublicIpAddress,
    ResourceGroup, RouteTable, Settings, VirtualNetwork, VirtualNetworkGateway,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::status::AgentStatus;

/// The desired state, valid as a whole, immutable. Cheap to clone in proportion to the number of resources.
#[derive(Debug, Clone, Default)]
pub struct Topology {
    /// Resource groups.
    pub resource_groups: BTreeMap<ResourceId, Arc<ResourceGroup>>,
    /// Virtual networks with their subnets and peerings.
    pub vnets: BTreeMap<ResourceId, Arc<VirtualNetwork>>,
    /// Network interfaces.
    pub nics: BTreeMap<ResourceId, Arc<NetworkInterface>>,
    /// Public addresses.
    pub public_ips: BTreeMap<ResourceId, Arc<PublicIpAddress>>,
    /// Route tables.
    pub route_tables: BTreeMap<ResourceId, Arc<RouteTable>>,
    /// Virtual network gateways.
    pub gateways: BTreeMap<ResourceId, Arc<VirtualNetworkGateway>>,
    /// Connections.
    pub connections: BTreeMap<ResourceId, Arc<Connection>>,
    /// Local network gateways.
    pub local_gateways: BTreeMap<ResourceId, Arc<LocalNetworkGateway>>,
    /// Circuits with their peerings.
    pub circuits: BTreeMap<ResourceId, Arc<ExpressRouteCircuit>>,
    /// Agents.
    pub agents: BTreeMap<AgentId, Arc<Agent>>,
    /// Join tokens, by their id.
    pub tokens: BTreeMap<String, Arc<JoinToken>>,
    /// The operator's switches.
    pub settings: Arc<Settings>,
}

/// What the agents report now, for the parts of a view that are not desired state (`connectionStatus`, byte counters).
#[derive(Debug, Clone, Default)]
pub struct Live {
    /// The last status of each agent.
    pub agents: BTreeMap<AgentId, AgentStatus>,
    /// Agents whose control stream is up.
    pub connected: BTreeSet<AgentId>,
}

/// One document to write to the store, or to delete from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentChange {
    /// The key, e.g. `arm/…` or `fabric/agents/…`.
    pub key: String,
    /// JSON; none: delete.
    pub value: Option<Vec<u8>>,
}
