//! The network as it would be if all its agents had joined.

use crate::resource::{Agent, Binding, Reach};
use crate::topology::Topology;
use std::collections::BTreeSet;
use std::sync::Arc;
use tombolo_proto::config::CircuitLink;
use tombolo_proto::id::{AgentId, PublicKey, ResourceId};

/// A copy of the topology in which an agent has joined for each network interface, each instance of a gateway and each
/// line of a circuit that has none. A network interface in a subnet that an agent serves needs no agent of its own. The
/// added agents have no keys and no endpoints, so no agent may get a configuration of the copy.
#[must_use]
pub fn with_all_agents(topology: &Topology) -> Topology {
    let trusted: Vec<_> = topology.agents.values().filter(|agent| !agent.revoked).collect();
    let mut taken: BTreeSet<ResourceId> = BTreeSet::new();
    let mut served: BTreeSet<ResourceId> = BTreeSet::new();
    for agent in &trusted {
        match &agent.binding {
            Binding::Vm {
                nics, served: subnets, ..
            } => {
                taken.extend(nics.iter().cloned());
                served.extend(subnets.iter().cloned());
            }
            Binding::Gateway {
                gateway,
                ip_configuration,
            } => {
                taken.insert(place(gateway, ip_configuration));
            }
            Binding::Edge { circuit, link } => {
                taken.insert(place(circuit, line(*link)));
            }
            Binding::Site { .. } => {}
        }
    }
    let mut missing = Vec::new();
    for nic in topology.nics.values() {
        let id = &nic.envelope.id;
        let subnet = nic.ip_configurations.first().map(|c| &c.subnet);
        if !taken.contains(id) && !subnet.is_some_and(|subnet| served.contains(subnet)) {
            let binding = revoked_at(topology, id, &taken).unwrap_or_else(|| Binding::Vm {
                vm: id.clone(),
                nics: vec![id.clone()],
                served: Vec::new(),
            });
            if let Binding::Vm { nics, .. } = &binding {
                taken.extend(nics.iter().cloned());
            }
            missing.push((id.clone(), binding));
        }
    }
    for gateway in topology.gateways.values() {
        for configuration in &gateway.ip_configurations {
            let id = place(&gateway.envelope.id, &configuration.name);
            if !taken.contains(&id) {
                let binding = Binding::Gateway {
                    gateway: gateway.envelope.id.clone(),
                    ip_configuration: configuration.name.clone(),
                };
                missing.push((id, binding));
            }
        }
    }
    for circuit in topology.circuits.values() {
        for link in [CircuitLink::Primary, CircuitLink::Secondary] {
            let id = place(&circuit.envelope.id, line(link));
            if !taken.contains(&id) {
                let circuit = circuit.envelope.id.clone();
                missing.push((id, Binding::Edge { circuit, link }));
            }
        }
    }
    let mut complete = topology.clone();
    for (id, binding) in missing {
        // The names of sites' devices have a form of their own, so no agent has this name.
        let id = AgentId::of_site(&id);
        let agent = Agent {
            id: id.clone(),
            binding,
            public_key: PublicKey([0; 32]),
            certificate_key: String::new(),
            reach: Reach::at(Vec::new()),
            revoked: false,
        };
        complete.agents.insert(id, Arc::new(agent));
    }
    complete
}

/// The binding of a revoked agent of the machine with this network interface, so that the machine keeps its name. `None`: there
/// is no such agent, or another agent has one of its network interfaces.
fn revoked_at(topology: &Topology, nic: &ResourceId, taken: &BTreeSet<ResourceId>) -> Option<Binding> {
    let of_machine = |binding: &Binding| match binding {
        Binding::Vm { nics, .. } => nics.contains(nic) && !nics.iter().any(|nic| taken.contains(nic)),
        Binding::Gateway { .. } | Binding::Edge { .. } | Binding::Site { .. } => false,
    };
    let mut agents = topology.agents.values();
    let agent = agents.find(|agent| agent.revoked && of_machine(&agent.binding))?;
    Some(agent.binding.clone())
}

/// The id of a part of a resource. Ids compare without regard to case, as the names of parts do.
fn place(resource: &ResourceId, part: &str) -> ResourceId {
    ResourceId::new(format!("{resource}/{part}"))
}

const fn line(link: CircuitLink) -> &'static str {
    match link {
        CircuitLink::Primary => "primary",
        CircuitLink::Secondary => "secondary",
    }
}
