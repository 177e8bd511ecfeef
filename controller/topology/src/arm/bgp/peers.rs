//! The BGP sessions of a gateway. Sessions with sites are real BGP sessions. Other gateways and edges exchange routes
//! with the gateway inside the encrypted link, without BGP; ARM shows this exchange as a session too.

use super::instances::{edge, exchanges, instances, learned_routes};
use super::time::duration;
use crate::resource::{Connection, ConnectionType, VirtualNetworkGateway};
use crate::topology::{AgentStatuses, Topology};
use serde_json::{Value, json};
use std::net::IpAddr;
use tombolo_engine::routing::RoutingState;
use tombolo_proto::config::{CircuitLink, EDGE_ASN};
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::status::{AgentStatus, BgpPeerState, LinkState};

/// A configured session of a gateway.
struct Session {
    /// The neighbour's address.
    address: IpAddr,
    /// The neighbour's ASN.
    asn: u32,
    kind: SessionKind,
}

/// The protocol of a session. It decides which part of an agent's report has the session's state.
enum SessionKind {
    /// A BGP session with a site. Agents report the state of the session under this id, which is the id of the
    /// connection.
    Bgp(ResourceId),
    /// Route exchange inside the link with this agent. `None`: the far end has no agent yet.
    Link(Option<AgentId>),
}

/// `getBgpPeerStatus`: one entry for each pair of an instance and a configured session, the first instance's entries
/// first. `None`: the gateway does not exist.
pub(crate) fn bgp_peers(topology: &Topology, statuses: &AgentStatuses, gateway: &ResourceId) -> Option<Vec<Value>> {
    let gateway = topology.gateways.get(gateway)?;
    let connections = topology
        .connections
        .values()
        .filter(|c| c.gateway1 == gateway.envelope.id);
    let sessions: Vec<Session> = connections.flat_map(|c| sessions(topology, c)).collect();
    let agents = instances(topology, gateway);
    let learned = learned_routes(topology, statuses);
    let mut all = Vec::new();
    for number in 0..gateway.ip_configurations.len() {
        let agent = agents.iter().find(|(n, _)| *n == number).map(|(_, agent)| agent);
        // The last status of an agent without a control stream can be old, so its sessions are shown as `Unknown`.
        let agent = agent.filter(|agent| statuses.connected.contains(*agent));
        let status = agent.and_then(|agent| statuses.agents.get(agent));
        let dynamic = agent
            .and_then(|agent| learned.config(agent))
            .map(|config| learned.routing_state(config));
        for session in &sessions {
            let observed = status.zip(dynamic.as_ref());
            let observed = observed.and_then(|(status, dynamic)| session.observed_by(status, dynamic));
            all.push(session.view(gateway, number, observed));
        }
    }
    Some(all)
}

/// The configured sessions of a connection. Empty if no routes are exchanged over it.
fn sessions(topology: &Topology, connection: &Connection) -> Vec<Session> {
    let far = &connection.gateway2;
    match connection.connection_type {
        ConnectionType::Vnet2Vnet => {
            let exchange = exchanges(topology, &connection.envelope.id);
            let Some(far) = topology.gateways.get(far).filter(|_| exchange) else {
                return Vec::new();
            };
            let agents = instances(topology, far);
            let agent = |number| agents.iter().find(|(n, _)| *n == number).map(|(_, a)| a.clone());
            let numbers = 0..far.ip_configurations.len();
            numbers
                .map(|number| Session {
                    address: far.peering_address(number),
                    asn: far.asn,
                    kind: SessionKind::Link(agent(number)),
                })
                .collect()
        }
        ConnectionType::IPsec => {
            let site = topology.local_gateways.get(far).and_then(|s| s.bgp);
            let own = topology.gateways.get(&connection.gateway1).map(|g| g.asn);
            let site = site.filter(|s| connection.enable_bgp && Some(s.asn) != own);
            let session = site.map(|bgp| Session {
                address: bgp.address,
                asn: bgp.asn,
                kind: SessionKind::Bgp(connection.envelope.id.clone()),
            });
            session.into_iter().collect()
        }
        ConnectionType::ExpressRoute => {
            let links = [CircuitLink::Primary, CircuitLink::Secondary];
            let tunnels = links.into_iter().zip(&connection.tunnel_addresses);
            tunnels
                .map(|(link, address)| Session {
                    address: *address,
                    asn: EDGE_ASN,
                    kind: SessionKind::Link(edge(topology, far, link)),
                })
                .collect()
        }
    }
}

/// The state of a session, the seconds since its last change (`None`: the agent does not report when the state
/// changed), and the number of received routes.
type Observed = (BgpPeerState, Option<f64>, u64);

impl Session {
    /// The state of the session as one instance reports it. `None`: the instance has not reported the session.
    fn observed_by(&self, status: &AgentStatus, dynamic: &RoutingState) -> Option<Observed> {
        match &self.kind {
            SessionKind::Bgp(id) => {
                let peer = status.bgp.iter().find(|p| p.neighbour == *id)?;
                Some((peer.state, Some(peer.since), peer.received))
            }
            SessionKind::Link(end) => {
                let end = end.as_ref()?;
                let link = status.links.iter().find(|l| l.peer == *end)?;
                let state = match link.state {
                    LinkState::Up => BgpPeerState::Connected,
                    LinkState::Connecting => BgpPeerState::Connecting,
                    LinkState::Idle
                    | LinkState::Unreachable
                    | LinkState::AuthenticationFailed
                    | LinkState::NoEndpoint => BgpPeerState::Idle,
                };
                let received = dynamic.received.get(end).map_or(0, |routes| routes.len());
                Some((state, None, u64::try_from(received).unwrap_or(u64::MAX)))
            }
        }
    }

    /// The ARM body of the session at instance `number`. `observed`: `None` shows the state `Unknown`.
    fn view(&self, gateway: &VirtualNetworkGateway, number: usize, observed: Option<Observed>) -> Value {
        let (state, since, received) = observed.unwrap_or_default();
        json!({
            "localAddress": gateway.peering_address(number),
            "neighbor": self.address,
            "asn": self.asn,
            "state": state,
            "connectedDuration": since.map(duration),
            "routesReceived": received,
        })
    }
}
