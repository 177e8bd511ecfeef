//! The status of a connection, according to the agents of the gateway on the connection's own side, `gateway1` (G12,
//! M8).

use crate::lookup::{advertised_prefixes, exceeds_limit};
use crate::path::shown;
use crate::resource::{Binding, Connection, ConnectionType};
use crate::topology::{AgentStatuses, Topology};
use serde_json::{Value, json};
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::status::{LinkState, LinkStatus};

/// The properties of a connection's body that depend on the reports of agents.
pub(crate) struct Status {
    /// `Unknown`, `Connecting`, `Connected` or `NotConnected`.
    pub(crate) status: &'static str,
    /// The bytes that the gateway's agents have received through the tunnels, by the agents' last reports; only the
    /// packets inside the tunnels count.
    pub(crate) ingress: u64,
    /// The bytes that the gateway's agents have sent through the tunnels, by the agents' last reports; only the packets
    /// inside the tunnels count.
    pub(crate) egress: u64,
    /// `tunnelConnectionStatus`: one entry for each tunnel.
    pub(crate) tunnels: Vec<Value>,
    /// What keeps tunnels down, each with its reason in words; one entry at most for each tunnel.
    pub(crate) faults: Vec<(TunnelFault, String)>,
}

/// The cause for which a tunnel is not up (M8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TunnelFault {
    /// No agent has joined for the gateway.
    NoAgent,
    /// The gateway's agent is not connected to the controller, or has not reported the tunnel yet.
    AgentNotConnected,
    /// The desired state lacks what a tunnel needs: a counterpart, a key, or a peering.
    NotConfigured,
    /// The far end does not answer, or has no agent.
    PeerReachability,
    /// The shared keys differ.
    Authentication,
}

/// The tunnel between an instance of the gateway and an instance, edge or device at the far end.
struct Tunnel {
    name: String,
    status: &'static str,
    fault: Option<TunnelFault>,
    reason: Option<String>,
    ingress: u64,
    egress: u64,
}

/// The names of those agents of a gateway that are not revoked.
pub(crate) fn instances(topology: &Topology, gateway: &ResourceId) -> Vec<AgentId> {
    let serves = |binding: &Binding| matches!(binding, Binding::Gateway { gateway: g, .. } if g == gateway);
    let agents = topology.agents.values().filter(|a| !a.revoked && serves(&a.binding));
    agents.map(|a| a.id.clone()).collect()
}

/// The status of a connection by the last reports of the agents of the gateway on its own side (`gateway1`). The
/// reports of the far end's agents are not used.
pub(crate) fn of(topology: &Topology, statuses: &AgentStatuses, connection: &Connection) -> Status {
    let tunnels = tunnels(topology, statuses, connection);
    // The connection has the first of these states that one of its tunnels has (G12). If no tunnel has one of them, its
    // status is `Unknown`.
    let has = |status: &str| tunnels.iter().any(|t| t.status == status);
    let order = ["Connected", "Connecting", "NotConnected"];
    Status {
        status: order.into_iter().find(|s| has(s)).unwrap_or("Unknown"),
        ingress: tunnels.iter().map(|t| t.ingress).sum(),
        egress: tunnels.iter().map(|t| t.egress).sum(),
        tunnels: tunnels.iter().map(Tunnel::view).collect(),
        faults: tunnels
            .iter()
            .filter_map(|t| Some((t.fault?, t.reason.clone().unwrap_or_default())))
            .collect(),
    }
}

/// The tunnels of a connection, one for each pair of an instance and a far end. If no tunnel can exist, or none is
/// known, the list has a single entry, which gives the reason.
fn tunnels(topology: &Topology, statuses: &AgentStatuses, connection: &Connection) -> Vec<Tunnel> {
    let alone = |status, fault, reason: String| {
        vec![Tunnel {
            name: connection.envelope.id.name().to_owned(),
            status,
            fault: Some(fault),
            reason: Some(reason),
            ingress: 0,
            egress: 0,
        }]
    };
    let own = instances(topology, &connection.gateway1);
    if own.is_empty() {
        return alone(
            "Unknown",
            TunnelFault::NoAgent,
            format!("no agent serves gateway {}", connection.gateway1.name()),
        );
    }
    if !own.iter().any(|agent| statuses.agents.contains_key(agent)) {
        return alone(
            "Unknown",
            TunnelFault::AgentNotConnected,
            format!("no agent of gateway {} has reported yet", connection.gateway1.name()),
        );
    }
    if let Some(reason) = missing_requirement(topology, connection) {
        return alone("NotConnected", TunnelFault::NotConfigured, reason);
    }
    let (far, end) = match connection.connection_type {
        ConnectionType::Vnet2Vnet => (instances(topology, &connection.gateway2), "the other gateway"),
        ConnectionType::IPsec => (vec![AgentId::of_site(&connection.envelope.id)], "the site's device"),
        ConnectionType::ExpressRoute => (edges(topology, &connection.gateway2), "the circuit's edge"),
    };
    if far.is_empty() {
        let what = match connection.connection_type {
            ConnectionType::ExpressRoute => "circuit",
            ConnectionType::Vnet2Vnet | ConnectionType::IPsec => "gateway",
        };
        return alone(
            "NotConnected",
            TunnelFault::PeerReachability,
            format!("no agent serves {what} {}", connection.gateway2.name()),
        );
    }
    let equal = equal_asns(topology, connection);
    let site = topology.local_gateways.get(&connection.gateway2);
    let pairs = own.iter().flat_map(|here| far.iter().map(move |there| (here, there)));
    pairs
        .map(|(here, there)| {
            let shown = site.map_or(there.as_str(), |s| s.envelope.id.name());
            let mut tunnel = tunnel(statuses, here, there, shown, end);
            tunnel.reason = tunnel.reason.or_else(|| equal.clone());
            tunnel
        })
        .collect()
}

/// The reason why no BGP session comes up over a connection whose tunnels can be up: both ends have the same ASN.
/// `None`: the ASNs differ, or the connection does not use BGP. As in Azure, such a connection is accepted, and its
/// status is that of its tunnels (G4).
fn equal_asns(topology: &Topology, connection: &Connection) -> Option<String> {
    let own = topology.gateways.get(&connection.gateway1)?.asn;
    let far = match connection.connection_type {
        ConnectionType::Vnet2Vnet => topology.gateways.get(&connection.gateway2)?.asn,
        ConnectionType::IPsec => topology.local_gateways.get(&connection.gateway2)?.bgp?.asn,
        ConnectionType::ExpressRoute => return None,
    };
    (connection.enable_bgp && far == own)
        .then(|| format!("both ends have ASN {own}: no BGP session comes up between equal ASNs (G4)"))
}

/// What the desired state lacks so that no tunnel of the connection can come up: a counterpart, a key, or a peering.
/// `None`: nothing is missing.
fn missing_requirement(topology: &Topology, connection: &Connection) -> Option<String> {
    let far = connection.gateway2.name();
    let keyless = || {
        connection
            .shared_key
            .is_none()
            .then(|| "no shared key is set (G11)".to_owned())
    };
    match connection.connection_type {
        ConnectionType::Vnet2Vnet => {
            let mut all = topology.connections.values();
            if !all.any(|c| c.gateway1 == connection.gateway2 && c.gateway2 == connection.gateway1) {
                return Some(format!(
                    "no counterpart connection from gateway {far} to this one (G10)"
                ));
            }
            keyless()
        }
        ConnectionType::IPsec => {
            let site = topology.local_gateways.get(&connection.gateway2);
            let unknown = || {
                let no_key = site.is_none_or(|s| s.public_key.is_none());
                no_key.then(|| format!("local network gateway {far} has no wireGuardPublicKey (D16)"))
            };
            keyless().or_else(unknown)
        }
        ConnectionType::ExpressRoute => {
            let circuit = topology.circuits.get(&connection.gateway2);
            let lacks = circuit.is_none_or(|c| c.private_peering.is_none());
            let gateway = topology.gateways.get(&connection.gateway1);
            let advertised = gateway.map(|gateway| advertised_prefixes(topology, gateway));
            lacks
                .then(|| format!("circuit {far} has no AzurePrivatePeering (E1)"))
                .or_else(|| {
                    let too_many = advertised.filter(|prefixes| exceeds_limit(prefixes))?;
                    Some(format!(
                        "the gateway advertises {} prefixes, and a circuit accepts at most 1,000 of each address family \
                         from a gateway (E13): remove prefixes from its virtual network, or peerings that use it",
                        too_many.len()
                    ))
                })
        }
    }
}

/// The names of those agents of a circuit's edges that are not revoked, the primary edge's first.
fn edges(topology: &Topology, circuit: &ResourceId) -> Vec<AgentId> {
    let link = |binding: &Binding| match binding {
        Binding::Edge { circuit: c, link } if c == circuit => Some(*link),
        Binding::Edge { .. } | Binding::Vm { .. } | Binding::Gateway { .. } | Binding::Site { .. } => None,
    };
    let agents = topology.agents.values().filter(|a| !a.revoked);
    let mut found: Vec<_> = agents.filter_map(|a| Some((link(&a.binding)?, a.id.clone()))).collect();
    found.sort();
    found.into_iter().map(|(_, agent)| agent).collect()
}

/// The tunnel between the agents `here` and `there`, as `here` reports it. `shown` is the far end's name in the ARM
/// body, and `end` is its name in the text of the reason.
fn tunnel(statuses: &AgentStatuses, here: &AgentId, there: &AgentId, shown: &str, end: &str) -> Tunnel {
    let link = statuses
        .agents
        .get(here)
        .and_then(|status| status.links.iter().find(|l| l.peer == *there));
    let (status, fault, reason) = match link {
        _ if !statuses.connected.contains(here) => (
            "Unknown",
            Some(TunnelFault::AgentNotConnected),
            Some(format!("agent {here} is not connected to the controller")),
        ),
        None => (
            "Unknown",
            Some(TunnelFault::AgentNotConnected),
            Some(format!("agent {here} has not reported this tunnel yet")),
        ),
        Some(link) => tunnel_state(link, end),
    };
    Tunnel {
        name: format!("{here}-{shown}"),
        status,
        fault,
        reason,
        ingress: link.map_or(0, |l| l.rx_bytes),
        egress: link.map_or(0, |l| l.tx_bytes),
    }
}

/// The status, the fault and the reason that ARM shows for the state of a link. `end` names the far end in the reason.
fn tunnel_state(link: &LinkStatus, end: &str) -> (&'static str, Option<TunnelFault>, Option<String>) {
    let down = |fault, code: &str, otherwise: String| {
        let detail = link.reason.as_deref().map_or(otherwise, shown);
        ("NotConnected", Some(fault), Some(format!("{code}: {detail}")))
    };
    match link.state {
        LinkState::Up => ("Connected", None, None),
        LinkState::Idle | LinkState::Connecting => ("Connecting", None, link.reason.as_deref().map(shown)),
        LinkState::Unreachable => down(
            TunnelFault::PeerReachability,
            "PeerReachability",
            format!("{end} does not answer"),
        ),
        LinkState::AuthenticationFailed => down(
            TunnelFault::Authentication,
            "Authentication",
            "the shared keys differ".to_owned(),
        ),
        LinkState::NoEndpoint => down(
            TunnelFault::PeerReachability,
            "PeerReachability",
            format!("the endpoint of {end} is unknown"),
        ),
    }
}

impl Tunnel {
    /// The tunnel's entry in `tunnelConnectionStatus`. The entry has the member `reason` only if there is a reason.
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
