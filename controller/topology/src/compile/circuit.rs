//! The configurations of ExpressRoute gateways and of the edges of circuits.

use super::index::{Circuit, Index, Instance, Vnet};
use super::speaker::router_id;
use super::{balancing, links, prefix, spaces};
use crate::resource::max_prefixes;
use ipnet::IpNet;
use std::net::IpAddr;
use tombolo_proto::config::{
    AgentConfig, CircuitLink, CircuitNetwork, EDGE_ASN, LinkedCircuit, Neighbour, Role, Space, SpaceKind, Speaker,
};
use tombolo_proto::id::Secret;

/// The configuration of one instance of an ExpressRoute gateway, which is in `vnet`. `None`: the gateway or its subnet
/// does not exist.
pub(super) fn gateway(index: &Index<'_>, vnet: &Vnet<'_>, instance: &Instance<'_>) -> Option<AgentConfig> {
    let (_, subnet) = index.subnet(instance.subnet)?;
    let (delivered, local_prefixes) = spaces::local_prefixes(index, vnet);
    let circuits = index.circuits_of(vnet).map(|(circuit, connection)| LinkedCircuit {
        connection: connection.envelope.id.clone(),
        circuit: circuit.resource.envelope.id.clone(),
        weight: connection.routing_weight,
        edges: circuit.ends(connection).map(|(_, hop)| hop).collect(),
    });
    Some(AgentConfig {
        agent: instance.agent.id.clone(),
        vnet: vnet.resource.envelope.id.clone(),
        address_space: prefix::sorted(&vnet.resource.address_space),
        mtu: index.topology.settings.mtu,
        probes: index.topology.settings.probes(),
        role: Role::ExpressRouteGateway {
            gateway: vnet.er_gateway?.envelope.id.clone(),
            addresses: vec![instance.address],
            local_prefixes,
            circuits: circuits.collect(),
        },
        subnets: spaces::subnets(index, vnet, std::iter::once(subnet)),
        spaces: delivered,
        links: links::of_circuit_gateway(index, vnet, instance),
        security: None,
        front_ends: balancing::of_gateway(index, vnet),
        limits: None,
    })
}

/// The configuration of the edge on which one of a circuit's lines ends. An edge is in no VNet, so the field `vnet` has
/// the circuit's id. `None`: no agent is bound to that line.
pub(super) fn edge(index: &Index<'_>, circuit: &Circuit<'_>, link: CircuitLink) -> Option<AgentConfig> {
    let agent = circuit.edges[link as usize]?;
    let peering = circuit.peering;
    let prefix = match link {
        CircuitLink::Primary => peering.primary,
        CircuitLink::Secondary => peering.secondary,
    };
    // The first host address of the line is the customer's, the second one is the edge's (E1). The first item of
    // `hosts` for an IPv6 prefix is the subnet-router anycast address. No host has this address, so it is skipped.
    let mut hosts = prefix.hosts().skip(usize::from(prefix.addr().is_ipv6()));
    let (customer, own) = (hosts.next()?, hosts.next()?);
    let mut networks = Vec::new();
    for linked in &circuit.links {
        let vnet = &index.vnets[linked.vnet];
        let Some(address) = linked.connection.tunnel_addresses.get(link as usize) else {
            continue;
        };
        networks.push(CircuitNetwork {
            connection: linked.connection.envelope.id.clone(),
            vnet: vnet.resource.envelope.id.clone(),
            prefixes: vnet.advertised(),
            asn: vnet.er_gateway?.asn,
            address: *address,
            gateways: vnet.er_instances.iter().map(|i| i.agent.id.clone()).collect(),
        });
    }
    let settings = &index.topology.settings;
    Some(AgentConfig {
        agent: agent.id.clone(),
        vnet: circuit.resource.envelope.id.clone(),
        address_space: Vec::new(),
        mtu: settings.mtu,
        probes: settings.probes(),
        role: Role::CircuitEdge {
            circuit: circuit.resource.envelope.id.clone(),
            link,
            line: IpNet::new(own, prefix.prefix_len()).ok()?,
            networks,
            vnet_to_vnet: settings.circuit_vnet_to_vnet,
            bgp: Speaker {
                asn: EDGE_ASN,
                router_id: router_id(own, EDGE_ASN),
                neighbours: vec![neighbour(circuit, customer, own, settings.bgp_hold_time)],
            },
        },
        subnets: Vec::new(),
        spaces: vec![Space {
            vnet: circuit.resource.envelope.id.clone(),
            kind: SpaceKind::Local {},
            prefixes: Vec::new(),
            owners: Vec::new(),
        }],
        links: links::of_edge(index, circuit, link),
        security: None,
        front_ends: Vec::new(),
        limits: None,
    })
}

/// The customer edge as a BGP neighbour of the edge. The line connects the two edges directly, so the session is not
/// multihop. It uses BFD, which detects a failure of the line sooner than BGP's hold time does.
fn neighbour(circuit: &Circuit<'_>, customer: IpAddr, own: IpAddr, hold_time: u16) -> Neighbour {
    Neighbour {
        id: circuit.resource.envelope.id.clone(),
        address: customer,
        local_address: own,
        asn: circuit.peering.peer_asn,
        multihop: false,
        bfd: true,
        password: circuit.peering.shared_key.clone().map(Secret),
        max_prefixes: max_prefixes(circuit.resource),
        hold_time,
    }
}
