//! The route tables and neighbours of circuits, from the desired state and the reports of the circuits' edges.

use super::instances::{edge, instances};
use super::time::duration;
use crate::lookup::advertised_prefixes;
use crate::resource::{Connection, ExpressRouteCircuit, PrivatePeering};
use crate::topology::{AgentStatuses, Topology};
use ipnet::IpNet;
use serde_json::{Value, json};
use std::net::IpAddr;
use tombolo_proto::config::CircuitLink;
use tombolo_proto::id::ResourceId;
use tombolo_proto::route::Route;
use tombolo_proto::status::{AgentStatus, BgpPeerState, LinkState};

/// `routeTables` of a circuit's peering on one of the circuit's two lines (E1). The table has two kinds of routes. The
/// routes to the linked VNets have the gateway's ASN as AS path; there is one for each prefix and each instance of the
/// VNet's ExpressRoute gateway. The other routes are those that the edge has learned from the customer. `None`: the
/// circuit or its peering does not exist.
pub(crate) fn circuit_routes(
    topology: &Topology,
    statuses: &AgentStatuses,
    circuit: &ResourceId,
    link: CircuitLink,
) -> Option<Vec<Value>> {
    let circuit = topology.circuits.get(circuit)?;
    let peering = circuit.private_peering.as_ref()?;
    let line = |network: IpNet, hop: IpAddr, path: &[u32]| {
        let path: Vec<String> = path.iter().map(ToString::to_string).collect();
        json!({"network": network, "nextHop": hop, "locPrf": "", "weight": 0, "path": path.join(" ")})
    };
    let mut all = Vec::new();
    for connection in links_of(topology, circuit) {
        let Some(gateway) = topology.gateways.get(&connection.gateway1) else {
            continue;
        };
        for instance in &gateway.ip_configurations {
            let prefixes = advertised_prefixes(topology, gateway).into_iter();
            all.extend(prefixes.map(|net| line(net, instance.address, &[gateway.asn])));
        }
    }
    for r in customer_routes(status(topology, statuses, circuit, link), circuit) {
        all.push(line(r.prefix, customer(peering, link), &r.as_path));
    }
    Some(all)
}

/// `routeTablesSummary` of a circuit's peering on one of the circuit's two lines: one entry for the customer, and one
/// for each instance of the connected gateways. Each entry has the state of the session with the edge, and the number
/// of routes that the edge gets from this neighbour (M7). `None`: the circuit or its peering does not exist.
pub(crate) fn circuit_summary(
    topology: &Topology,
    statuses: &AgentStatuses,
    circuit: &ResourceId,
    link: CircuitLink,
) -> Option<Vec<Value>> {
    let circuit = topology.circuits.get(circuit)?;
    let peering = circuit.private_peering.as_ref()?;
    let status = status(topology, statuses, circuit, link);
    let session = status.and_then(|s| s.bgp.iter().find(|p| p.neighbour == circuit.envelope.id));
    let down = || "down".to_owned();
    let line = |neighbour: IpAddr, asn: u32, up: Option<String>, received: usize| {
        json!({
            // `v` is the version of BGP, which is always 4.
            "neighbor": neighbour, "v": 4, "as": asn,
            "upDown": up.unwrap_or_else(down),
            "statePfxRcd": received.to_string(),
        })
    };
    let up = session
        .filter(|s| s.state == BgpPeerState::Connected)
        .map(|s| duration(s.since));
    let received = customer_routes(status, circuit).count();
    let mut all = vec![line(customer(peering, link), peering.peer_asn, up, received)];
    for connection in links_of(topology, circuit) {
        let Some(gateway) = topology.gateways.get(&connection.gateway1) else {
            continue;
        };
        let agents = instances(topology, gateway);
        for (number, instance) in gateway.ip_configurations.iter().enumerate() {
            let agent = agents.iter().find(|(n, _)| *n == number).map(|(_, agent)| agent);
            let link = status.and_then(|s| s.links.iter().find(|l| Some(&l.peer) == agent));
            let up = link.filter(|l| l.state == LinkState::Up).map(|_| "up".to_owned());
            all.push(line(
                instance.address,
                gateway.asn,
                up,
                advertised_prefixes(topology, gateway).len(),
            ));
        }
    }
    Some(all)
}

/// The connections to a circuit, ordered by id.
fn links_of<'t>(topology: &'t Topology, circuit: &'t ExpressRouteCircuit) -> impl Iterator<Item = &'t Connection> {
    let all = topology.connections.values().map(|c| &**c);
    all.filter(|c| c.gateway2 == circuit.envelope.id)
}

/// The last status that the edge of one of a circuit's lines has reported. `None`: the line has no edge, or the edge
/// has not reported yet.
fn status<'l>(
    topology: &Topology,
    statuses: &'l AgentStatuses,
    circuit: &ExpressRouteCircuit,
    link: CircuitLink,
) -> Option<&'l AgentStatus> {
    statuses.agents.get(&edge(topology, &circuit.envelope.id, link)?)
}

/// The routes that the edge with this status has learned from the customer.
fn customer_routes<'l>(
    status: Option<&'l AgentStatus>,
    circuit: &'l ExpressRouteCircuit,
) -> impl Iterator<Item = &'l Route> {
    let learned = status.into_iter().flat_map(|s| &s.learned);
    let own = learned.filter(|l| l.neighbour == circuit.envelope.id);
    own.flat_map(|l| &l.routes)
}

/// The customer's address on the primary or secondary line: the line's first host address (E1).
fn customer(peering: &PrivatePeering, link: CircuitLink) -> IpAddr {
    let line = match link {
        CircuitLink::Primary => peering.primary,
        CircuitLink::Secondary => peering.secondary,
    };
    // The first item of `hosts` for an IPv6 prefix is the subnet-router anycast address. No host has this address, so
    // it is skipped.
    let mut hosts = line.hosts().skip(usize::from(line.addr().is_ipv6()));
    hosts.next().unwrap_or_else(|| line.addr())
}
