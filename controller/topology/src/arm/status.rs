//! The status of a connection, from what the gateway agents of its own side report (G12, M8).

use crate::path::shown;
use crate::resource::{Binding, Connection};
use crate::topology::{Live, Topology};
use serde_json::{Value, json};
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::status::{LinkState, LinkStatus};

/// What a connection's body says of its state.
pub(crate) struct Status {
    /// `Unknown`, `Connecting`, `Connected` or `NotConnected`.
    pub(crate) status: &'static str,
    /// Inner bytes received.
    pub(crate) ingress: u64,
    /// Inner bytes sent.
    pub(crate) egress: u64,
    /// `tunnelConnectionStatus`.
    pub(crate) tunnels: Vec<Value>,
}

/// One pair of gateway instances.
struct Tunnel {
    name: String,
    status: &'static str,
    reason: Option<String>,
    ingress: u64,
    egress: u64,
}

/// The agents that serve a gateway.
fn instances(topology: &Topology, gateway: &ResourceId) -> Vec<AgentId> {
    let serves = |binding: &Binding| matches!(binding, Binding::Gateway { gateway: g, .. } if g == gateway);
    let agents = topology.agents.values().filter(|a| !a.revoked && serves(&a.binding));
    agents.map(|a| a.id.clone()).collect()
}

/// The status of `connection` now.
pub(crate) fn of(topology: &Topology, live: &Live, connection: &Connection) -> Status {
    let tunnels = tunnels(topology, live, connection);
    // G12: connected when one tunnel is; not connected when all are down.
    let has = |status: &str| tunnels.iter().any(|t| t.status == status);
    let order = ["Connected", "Connecting", "NotConnected"];
    Status {
        status: order.into_iter().find(|s| has(s)).unwrap_or("Unknown"),
        ingress: tunnels.iter().map(|t| t.ingress).sum(),
        egress: tunnels.iter().map(|t| t.egress).sum(),
        tunnels: tunnels.iter().map(Tunnel::view).collect(),
    }
}

fn tunnels(topology: &Topology, live: &Live, connection: &Connection) -> Vec<Tunnel> {
    let alone = |status, reason: String| {
        vec![Tunnel {
            name: connection.envelope.id.name().to_owned(),
            status,
            reason: Some(reason),
            ingress: 0,
            egress: 0,
        }]
    };
    let own = instances(topology, &connection.gateway1);
    if own.is_empty() {
        return alone(
            "Unknown",
            format!("no agent serves gateway {}", connection.gateway1.name()),
        );
    }
    if !own.iter().any(|agent| live.agents.contains_key(agent)) {
        return alone(
            "Unknown",
            format!("no agent of gateway {} has reported yet", connection.gateway1.name()),
        );
    }
    let counterpart = topology
        .connections
        .values()
        .any(|c| c.gateway1 == connection.gateway2 && c.gateway2 == connection.gateway1);
    if !counterpart {
        let far = connection.gateway2.name();
        return alone(
            "NotConnected",
            format!("no counterpart connection from gateway {far} to this one (G10)"),
        );
    }
    if connection.shared_key.is_none() {
        return alone("NotConnected", "no shared key is set (G11)".to_owned());
    }
    let far = instances(topology, &connection.gateway2);
    if far.is_empty() {
        return alone(
            "NotConnected",
            format!("no agent serves gateway {}", connection.gateway2.name()),
        );
    }
    let pairs = own.iter().flat_map(|here| far.iter().map(move |there| (here, there)));
    pairs.map(|(here, there)| tunnel(live, here, there)).collect()
}

fn tunnel(live: &Live, here: &AgentId, there: &AgentId) -> Tunnel {
    let link = live
        .agents
        .get(here)
        .and_then(|status| status.links.iter().find(|l| l.peer == *there));
    let (status, reason) = match link {
        _ if !live.connected.contains(here) => (
            "Unknown",
            Some(format!("agent {here} is not connected to the controller")),
        ),
        None => (
            "Unknown",
            Some(format!("agent {here} has not reported this tunnel yet")),
        ),
        Some(link) => judge(link),
    };
    Tunnel {
        name: format!("{here}-{there}"),
        status,
        reason,
        ingress: link.map_or(0, |l| l.rx_bytes),
        egress: link.map_or(0, |l| l.tx_bytes),
    }
}

fn judge(link: &LinkStatus) -> (&'static str, Option<String>) {
    let words = |code: &str, otherwise: &str| {
        let detail = link.reason.as_deref().map_or(otherwise.to_owned(), shown);
        Some(format!("{code}: {detail}"))
    };
    match link.state {
        LinkState::Up => ("Connected", None),
        LinkState::Idle | LinkState::Connecting => ("Connecting", link.reason.as_deref().map(shown)),
        LinkState::Unreachable => (
            "NotConnected",
            words("PeerReachability", "the other gateway does not answer"),
        ),
        LinkState::AuthenticationFailed => ("NotConnected", words("Authentication", "the shared keys differ")),
        LinkState::NoEndpoint => (
            "NotConnected",
            words("PeerReachability", "neither gateway knows where to reach the other"),
        ),
    }
}

impl Tunnel {
    fn view(&self) -> Value {
        let mut view = json!({
            "tunnel": self.name,
            "connectionStatus": self.status,
            "ingressBytesTransferred": self.ingress,
            "egressBytesTransferred": self.egress,
        });
        if let Some(reason) = &self.reason {
            view["reason"] = reason.as_str().into();
        }
        view
    }
}
