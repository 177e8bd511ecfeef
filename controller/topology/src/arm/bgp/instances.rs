//! Finds the agents of gateways and circuits, the routes that these agents have learned, and whether two gateways
//! exchange routes.

use crate::compile::Compiler;
use crate::learned_routes::{LearnedReports, LearnedRoutes};
use crate::resource::{Binding, Connection, VirtualNetworkGateway};
use crate::topology::{AgentStatuses, Topology};
use std::sync::Arc;
use tombolo_proto::config::CircuitLink;
use tombolo_proto::id::{AgentId, ResourceId};

/// The routes that all gateways and edges have learned, computed from the agents' last statuses. Each call compiles the
/// configurations of all gateways and edges.
pub(super) fn learned_routes(topology: &Topology, statuses: &AgentStatuses) -> LearnedRoutes {
    LearnedRoutes::new(topology, &Compiler::new(topology), LearnedReports::of(statuses))
}

/// Whether the two gateways of a `Vnet2Vnet` connection exchange routes over it: both connection objects have BGP
/// enabled, and the ASNs differ (G4). False if the connection does not exist.
pub(super) fn exchanges(topology: &Topology, connection: &ResourceId) -> bool {
    let Some(own) = topology.connections.get(connection) else {
        return false;
    };
    let asn = |gateway: &ResourceId| topology.gateways.get(gateway).map(|g| g.asn);
    let back = |c: &&Arc<Connection>| c.gateway1 == own.gateway2 && c.gateway2 == own.gateway1;
    let back = topology.connections.values().find(back);
    own.enable_bgp && back.is_some_and(|b| b.enable_bgp) && asn(&own.gateway1) != asn(&own.gateway2)
}

/// The instances of a gateway that have an agent, each with its number, counted from 0 in order of `ipConfigurations`.
pub(super) fn instances(topology: &Topology, gateway: &VirtualNetworkGateway) -> Vec<(usize, AgentId)> {
    let configurations = gateway.ip_configurations.iter().enumerate();
    let agent = |name: &str| {
        let serves = |binding: &Binding| {
            matches!(binding, Binding::Gateway { gateway: g, ip_configuration }
                if *g == gateway.envelope.id && ip_configuration.eq_ignore_ascii_case(name))
        };
        let mut agents = topology.agents.values().filter(|a| !a.revoked);
        agents.find(|a| serves(&a.binding)).map(|a| a.id.clone())
    };
    configurations
        .filter_map(|(number, c)| Some((number, agent(&c.name)?)))
        .collect()
}

/// The agent of the edge on which one of a circuit's lines ends. `None`: the edge has no agent, or only a revoked one.
pub(super) fn edge(topology: &Topology, circuit: &ResourceId, link: CircuitLink) -> Option<AgentId> {
    let serves =
        |binding: &Binding| matches!(binding, Binding::Edge { circuit: c, link: l } if c == circuit && *l == link);
    let mut agents = topology.agents.values().filter(|a| !a.revoked);
    agents.find(|a| serves(&a.binding)).map(|a| a.id.clone())
}
