//! The faults of a VPN gateway or of a connection (M8), from the desired state and the last reports of agents.

use crate::arm::status::{self, TunnelFault};
use crate::resource::{Connection, VirtualNetworkGateway};
use crate::topology::{AgentStatuses, Topology};
use tombolo_proto::id::ResourceId;

/// The kind of a fault, in Azure's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// There is no fault.
    NoFault,
    /// No agent has joined for an instance of the gateway.
    ServiceNotRunning,
    /// The agent of an instance is not connected to the controller.
    VipUnResponsive,
    /// The gateway has no connection.
    NoConnectionsFoundForGateway,
    /// A connection of the gateway is not connected.
    ConnectionsNotConnected,
    /// The desired state lacks what the connection needs.
    ConnectionNotConfiguredOnGateway,
    /// The shared keys of the two ends differ.
    Authentication,
    /// The far end does not answer.
    PeerReachability,
    /// The connection is not connected, and no agent reports why.
    ConnectionIsMarkedDisconnected,
}

/// A fault, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The kind.
    pub kind: FaultKind,
    /// What is wrong, in one sentence.
    pub summary: String,
    /// The state from which this is known.
    pub detail: String,
    /// What to do. Empty if there is no fault.
    pub action: String,
}

impl FaultKind {
    /// The name in Azure's answers.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoFault => "NoFault",
            Self::ServiceNotRunning => "ServiceNotRunning",
            Self::VipUnResponsive => "VipUnResponsive",
            Self::NoConnectionsFoundForGateway => "NoConnectionsFoundForGateway",
            Self::ConnectionsNotConnected => "ConnectionsNotConnected",
            Self::ConnectionNotConfiguredOnGateway => "ConnectionNotConfiguredOnGateway",
            Self::Authentication => "Authentication",
            Self::PeerReachability => "PeerReachability",
            Self::ConnectionIsMarkedDisconnected => "ConnectionIsMarkedDisconnected",
        }
    }
}

/// The faults of a gateway or a connection; one entry of the kind [`FaultKind::NoFault`] if there is none. Two faults of
/// the same kind are one. `None`: `target` is neither a gateway nor a connection that exists.
#[must_use]
pub fn diagnose(topology: &Topology, statuses: &AgentStatuses, target: &ResourceId) -> Option<Vec<Fault>> {
    let mut faults = match (topology.gateways.get(target), topology.connections.get(target)) {
        (Some(gateway), _) => of_gateway(topology, statuses, gateway),
        (None, Some(connection)) => of_connection(topology, statuses, connection),
        (None, None) => return None,
    };
    if faults.is_empty() {
        faults.push(Fault {
            kind: FaultKind::NoFault,
            summary: format!("{} has no fault.", target.name()),
            detail: "Its agents are connected to the controller and report that its tunnels are up.".to_owned(),
            action: String::new(),
        });
    }
    Some(faults)
}

fn of_gateway(topology: &Topology, statuses: &AgentStatuses, gateway: &VirtualNetworkGateway) -> Vec<Fault> {
    let id = &gateway.envelope.id;
    let mut faults = Vec::new();
    let agents = status::instances(topology, id);
    let away: Vec<_> = agents
        .iter()
        .filter(|agent| !statuses.connected.contains(*agent))
        .collect();
    if agents.is_empty() {
        faults.push(Fault {
            kind: FaultKind::ServiceNotRunning,
            summary: format!("The gateway {} is not running.", id.name()),
            detail: "No agent has joined for an instance of the gateway.".to_owned(),
            action: "Create a join token for the gateway, and join an agent (D7).".to_owned(),
        });
    } else if !away.is_empty() {
        let names: Vec<&str> = away.iter().map(|agent| agent.as_str()).collect();
        faults.push(Fault {
            kind: FaultKind::VipUnResponsive,
            summary: format!("An instance of the gateway {} does not answer.", id.name()),
            detail: format!("Not connected to the controller: {}.", names.join(", ")),
            action: "Start the agent on its host, and let it reach the controller.".to_owned(),
        });
    }
    let own: Vec<_> = topology.connections.values().filter(|c| c.gateway1 == *id).collect();
    if own.is_empty() {
        faults.push(Fault {
            kind: FaultKind::NoConnectionsFoundForGateway,
            summary: format!("The gateway {} has no connection.", id.name()),
            detail: "No connection names the gateway as its own side.".to_owned(),
            action: "Create a connection from the gateway.".to_owned(),
        });
    }
    let down = own.iter().filter_map(|connection| {
        let status = status::of(topology, statuses, connection).status;
        (status != "Connected").then(|| format!("{} is {status}", connection.envelope.id.name()))
    });
    let down: Vec<String> = down.collect();
    if !down.is_empty() {
        faults.push(Fault {
            kind: FaultKind::ConnectionsNotConnected,
            summary: format!("Connections of the gateway {} are not connected.", id.name()),
            detail: format!("{}.", down.join("; ")),
            action: "Troubleshoot these connections.".to_owned(),
        });
    }
    faults
}

fn of_connection(topology: &Topology, statuses: &AgentStatuses, connection: &Connection) -> Vec<Fault> {
    let status = status::of(topology, statuses, connection);
    if status.status == "Connected" {
        // Another tunnel of the connection may be down, which the connection survives (G12).
        return Vec::new();
    }
    let name = connection.envelope.id.name();
    let mut faults: Vec<Fault> = Vec::new();
    for (fault, reason) in &status.faults {
        let (kind, summary, action) = of_tunnel(*fault, name);
        match faults.iter_mut().find(|known| known.kind == kind) {
            Some(known) if !known.detail.contains(reason.as_str()) => {
                known.detail = format!("{}; {reason}", known.detail);
            }
            Some(_) => {}
            None => faults.push(Fault {
                kind,
                summary,
                detail: reason.clone(),
                action,
            }),
        }
    }
    if faults.is_empty() {
        faults.push(Fault {
            kind: FaultKind::ConnectionIsMarkedDisconnected,
            summary: format!("The connection {name} is {}.", status.status),
            detail: "A handshake with the far end has not been completed yet, and has not failed either.".to_owned(),
            action: "Ask again in some seconds.".to_owned(),
        });
    }
    faults
}

/// The kind, the summary and the action for a tunnel of the connection `name`.
fn of_tunnel(fault: TunnelFault, name: &str) -> (FaultKind, String, String) {
    let (kind, summary, action) = match fault {
        TunnelFault::NoAgent => (
            FaultKind::ServiceNotRunning,
            format!("The gateway of the connection {name} is not running."),
            "Create a join token for the gateway, and join an agent (D7).",
        ),
        TunnelFault::AgentNotConnected => (
            FaultKind::VipUnResponsive,
            format!("The gateway of the connection {name} does not answer."),
            "Start the gateway's agent on its host, and let it reach the controller.",
        ),
        TunnelFault::NotConfigured => (
            FaultKind::ConnectionNotConfiguredOnGateway,
            format!("The connection {name} lacks a part of its configuration."),
            "Add what is missing.",
        ),
        TunnelFault::PeerReachability => (
            FaultKind::PeerReachability,
            format!("The far end of the connection {name} does not answer."),
            "Check that the far end runs, that its address is right, and that UDP passes between the two.",
        ),
        TunnelFault::Authentication => (
            FaultKind::Authentication,
            format!("The two ends of the connection {name} have different shared keys."),
            "Set the same shared key at both ends (G11).",
        ),
    };
    (kind, summary, action.to_owned())
}
