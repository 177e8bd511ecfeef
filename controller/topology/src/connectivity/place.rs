//! The resources to which the hops of a path belong.

use crate::path::child_id;
use crate::resource::{Binding, NetworkInterface, NicIpConfiguration};
use crate::topology::Topology;
use std::net::IpAddr;
use tombolo_proto::config::CircuitLink;
use tombolo_proto::id::{AgentId, ResourceId};

/// The resource of a hop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// The agent that acts for the resource. `None`: no agent of this network has the hop's address.
    pub(super) agent: Option<AgentId>,
    /// The address. `None`: an edge, unless the address that is meant is one of its own.
    pub(super) address: Option<IpAddr>,
    /// The ip configuration of a network interface, the gateway, the circuit, or the preferred attachment of a site.
    pub(super) resource: Option<ResourceId>,
    pub(super) kind: PlaceKind,
}

/// What a hop belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PlaceKind {
    /// A network interface; `forwards`: with `enableIPForwarding`.
    Nic {
        forwards: bool,
    },
    Gateway,
    Edge,
    /// A probe in a site.
    Site,
    /// Nothing that is known.
    Outside,
}

/// The place of an agent. `address`: the address that is meant, if the agent has it; otherwise the agent's first one.
/// `None`: the agent does not exist.
pub(super) fn of_agent(topology: &Topology, agent: &AgentId, address: Option<IpAddr>) -> Option<Place> {
    let binding = &topology.agents.get(agent)?.binding;
    let place = |address, resource, kind| Place {
        agent: Some(agent.clone()),
        address,
        resource,
        kind,
    };
    Some(match binding {
        Binding::Vm { nics, served, .. } => {
            let own = nics.iter().filter_map(|id| topology.nics.get(id));
            let meant = |nic: &NetworkInterface| {
                let found = nic.ip_configurations.iter().find(|c| Some(c.address) == address);
                found.cloned()
            };
            let first = own
                .clone()
                .find_map(|nic| Some((nic, nic.ip_configurations.first()?.clone())));
            let exact = own.clone().find_map(|nic| Some((nic, meant(nic)?)));
            let behind = || {
                topology.nics.values().find_map(|nic| {
                    let configuration = meant(nic)?;
                    served.contains(&configuration.subnet).then_some((nic, configuration))
                })
            };
            match exact.or_else(behind).or(first) {
                Some((nic, configuration)) => place(
                    Some(configuration.address),
                    Some(configuration_id(nic, &configuration)),
                    PlaceKind::Nic {
                        forwards: nic.enable_ip_forwarding,
                    },
                ),
                None => place(address, None, PlaceKind::Nic { forwards: false }),
            }
        }
        Binding::Gateway {
            gateway,
            ip_configuration,
        } => {
            let found = topology.gateways.get(gateway);
            let mut all = found.iter().flat_map(|g| &g.ip_configurations);
            let own = all.find(|c| c.name.eq_ignore_ascii_case(ip_configuration));
            place(own.map(|c| c.address), Some(gateway.clone()), PlaceKind::Gateway)
        }
        Binding::Edge { circuit, link } => {
            let own = address.filter(|address| edge_has(topology, circuit, *link, *address));
            place(own, Some(circuit.clone()), PlaceKind::Edge)
        }
        Binding::Site {
            attachments,
            address: own,
        } => place(Some(*own), attachments.first().cloned(), PlaceKind::Site),
    })
}

/// The place of an address that has answered a probe. Several VNets can have the same address, so an agent of `expected`
/// that has the address comes first, and another one counts only if it is the only one that has the address.
pub(super) fn of_address<'a>(
    topology: &Topology,
    address: IpAddr,
    expected: impl IntoIterator<Item = &'a AgentId>,
) -> Place {
    let has = |agent: &AgentId| of_agent(topology, agent, Some(address)).filter(|place| place.address == Some(address));
    let mut known = expected.into_iter().filter_map(has);
    if let Some(place) = known.next() {
        return place;
    }
    let current = topology.agents.values().filter(|agent| !agent.revoked);
    let mut others = current.filter_map(|agent| has(&agent.id));
    match (others.next(), others.next()) {
        (Some(place), None) => place,
        _ => Place {
            agent: None,
            address: Some(address),
            resource: None,
            kind: PlaceKind::Outside,
        },
    }
}

/// Whether an edge answers from an address: its end of a tunnel to a gateway (T4), or its address on the line to the
/// customer, which is the second host address of the line (E1).
fn edge_has(topology: &Topology, circuit: &ResourceId, link: CircuitLink, address: IpAddr) -> bool {
    let mut links = topology.connections.values().filter(|c| c.gateway2 == *circuit);
    if links.any(|c| c.tunnel_addresses.get(link as usize) == Some(&address)) {
        return true;
    }
    let circuit = topology.circuits.get(circuit);
    let line = circuit
        .and_then(|c| c.private_peering.as_ref())
        .map(|peering| match link {
            CircuitLink::Primary => peering.primary,
            CircuitLink::Secondary => peering.secondary,
        });
    // As in the edge's configuration, the subnet-router anycast address of an IPv6 prefix is no host's.
    line.is_some_and(|line| line.hosts().nth(if line.addr().is_ipv6() { 2 } else { 1 }) == Some(address))
}

fn configuration_id(nic: &NetworkInterface, configuration: &NicIpConfiguration) -> ResourceId {
    child_id(&nic.envelope.id, "ipConfigurations", &configuration.name)
}
