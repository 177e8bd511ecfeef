//! The sessions of a gateway: BGP with sites, and the exchange inside links with other gateways and with edges.

use super::instances::{edge, exchanges, instances, moving};
use super::time::duration;
use crate::resource::{Connection, ConnectionType, VirtualNetworkGateway};
use crate::topology::{Live, Topology};
use serde_json::{Value, json};
use std::net::IpAddr;
use tombolo_engine::routing::Dynamic;
use tombolo_proto::config::{CircuitLink, EDGE_ASN};
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::status::{AgentStatus, BgpPeerState, LinkState};

/// A session that there should be.
struct Session {
    address: IpAddr,
    asn: u32,
    by: By,
}

/// How routes are exchanged.
enum By {
    /// BGP, which agents report under this id.
    Bgp(ResourceId),
    /// Inside the link with this agent; none: nobody has joined for it.
    Link(Option<AgentId>),
}

/// `getBgpPeerStatus`: one entry an instance and a session that there should be. None: no such gateway.
pub(crate) fn bgp_peers(topology: &Topology, live: &Live, gateway: &ResourceId) -> Option<Vec<Value>> {
    let gateway = topology.gateways.get(gateway)?;
    let connections = topology
        .connections
        .values()
        .filter(|c| c.gateway1 == gateway.envelope.id);
    let sessions: Vec<Session> = connections.flat_map(|c| sessions(topology, c)).collect();
    let agents = instances(topology, gateway);
    let moving = moving(topology, live);
    let mut all = Vec::new();
    for number in 0..gateway.ip_configurations.len() {
        let agent = agents.iter().find(|(n, _)| *n == number).map(|(_, agent)| agent);
        // Nobody else can say how a session is.
        let agent = agent.filter(|agent| live.connected.contains(*agent));
        let status = agent.and_then(|agent| live.agents.get(agent));
        let dynamic = agent
            .and_then(|agent| moving.config(agent))
            .map(|config| moving.dynamic(config));
        for session in &sessions {
            let seen = status.zip(dynamic.as_ref());
            let seen = seen.and_then(|(status, dynamic)| session.seen(status, dynamic));
            all.push(session.view(gateway, number, seen));
        }
    }
    Some(all)
}

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
                    by: By::Link(agent(number)),
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
                by: By::Bgp(connection.envelope.id.clone()),
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
                    by: By::Link(edge(topology, far, link)),
                })
                .collect()
        }
    }
}

/// State, seconds since it is so where an agent counts them, and routes received.
type Seen = (BgpPeerState, Option<f64>, u64);

impl Session {
    /// As one instance sees it; none: it has not said.
    fn seen(&self, status: &AgentStatus, dynamic: &Dynamic) -> Option<Seen> {
        match &self.by {
            By::Bgp(id) => {
                let peer = status.bgp.iter().find(|p| p.neighbour == *id)?;
                Some((peer.state, Some(peer.since), peer.received))
            }
            By::Link(end) => {
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
                let received = dynamic.told.get(end).map_or(0, |routes| routes.len());
                Some((state, None, u64::try_from(received).unwrap_or(u64::MAX)))
            }
        }
    }

    fn view(&self, gateway: &VirtualNetworkGateway, number: usize, seen: Option<Seen>) -> Value {
        let (state, since, received) = seen.unwrap_or_default();
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
