//! Resolves the names that an operator types to agents and addresses.

use crate::resource::{Agent, Binding, NetworkInterface};
use crate::topology::Topology;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_proto::id::{AgentId, ResourceId};

/// One end of a walk: the agent at which it starts, or the address at which it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// The agent, which may be revoked. `None`: no agent has joined for the NIC, or this end of the walk is only an
    /// address.
    pub(super) agent: Option<AgentId>,
    /// The addresses, the primary one first.
    pub(super) addresses: Vec<IpAddr>,
    /// The description for messages: `VM a-vm (agent a-vm)`.
    pub(super) label: String,
}

/// The source of a walk: an address of a NIC or of a site probe, or a name.
///
/// # Errors
/// The name or address is unknown or ambiguous, or no agent has joined for the VM or NIC that it names. The text begins
/// with `from:`.
pub(super) fn source(topology: &Topology, name: &str) -> Result<Endpoint, String> {
    let end = match name.parse::<IpAddr>() {
        Ok(address) => one_of("from", name, with_address(topology, address))?,
        Err(_) => one_of("from", name, named(topology, name))?,
    };
    match &end.agent {
        Some(_) => Ok(end),
        None => Err(format!(
            "from: {} has no agent yet, so nothing can send from it; create a join token for its VM and join an agent",
            end.label
        )),
    }
}

/// The destination of a walk: a name, or any IP address, even one that no host has.
///
/// # Errors
/// The name is unknown or ambiguous. The text begins with `to:`.
pub(super) fn destination(topology: &Topology, name: &str) -> Result<Endpoint, String> {
    match name.parse::<IpAddr>() {
        Ok(address) => Ok(Endpoint {
            agent: None,
            addresses: vec![address],
            label: name.to_owned(),
        }),
        Err(_) => one_of("to", name, named(topology, name)),
    }
}

/// The source and destination addresses of the packet: the first address of `from` whose address family `to` has too,
/// and the first address of `to` in this family.
///
/// # Errors
/// The two ends have no address family in common.
pub(super) fn pair(from: &Endpoint, to: &Endpoint) -> Result<(IpAddr, IpAddr), String> {
    let fits = |source: &IpAddr| to.addresses.iter().find(|a| a.is_ipv4() == source.is_ipv4());
    from.addresses
        .iter()
        .find_map(|source| Some((*source, *fits(source)?)))
        .ok_or_else(|| format!("{} and {} have no address family in common", from.label, to.label))
}

/// The agents and NICs that match a name. They are keyed by agent, so an agent that matches in several ways (as agent,
/// VM and NIC) counts once.
type Found = BTreeMap<String, Endpoint>;

/// Returns the candidate if there is exactly one. Otherwise the error names `field`, and lists the candidates if there
/// are several.
fn one_of(field: &str, name: &str, found: Found) -> Result<Endpoint, String> {
    let mut ends = found.into_values();
    match (ends.next(), ends.next()) {
        (Some(end), None) => Ok(end),
        (None, _) => Err(format!(
            "{field}: '{name}' is not the name or id of a VM, a network interface, an agent or a site with a probe, nor an \
             address in use"
        )),
        (Some(first), Some(second)) => {
            let all: Vec<String> = [first, second].into_iter().chain(ends).map(|end| end.label).collect();
            Err(format!(
                "{field}: '{name}' is ambiguous; give the full id of one of: {}",
                all.join("; ")
            ))
        }
    }
}

/// The agents and NICs that match `name`: agents by their name, VMs and network interfaces by name or id, site probes also
/// by the name or id of a local network gateway or circuit that attaches their site. A revoked
/// agent is left out if another agent has its binding now, unless all found agents are of this kind.
fn named(topology: &Topology, name: &str) -> Found {
    let is = |id: &ResourceId| id.name().eq_ignore_ascii_case(name) || id.as_str().eq_ignore_ascii_case(name);
    let hit = |agent: &&Arc<Agent>| {
        agent.id.as_str() == name
            || match &agent.binding {
                Binding::Vm { vm, .. } => is(vm),
                // The names of a site's attachments stand for the probe in the site.
                Binding::Site { attachments, .. } => attachments.iter().any(is),
                Binding::Gateway { .. } | Binding::Edge { .. } => false,
            }
    };
    let hits: Vec<&Arc<Agent>> = topology.agents.values().filter(hit).collect();
    let current = hits.iter().any(|a| !is_replaced(topology, a));
    let mut found = Found::new();
    for agent in hits.into_iter().filter(|a| !current || !is_replaced(topology, a)) {
        found.insert(agent.id.to_string(), of_agent(topology, agent));
    }
    for nic in topology.nics.values().filter(|nic| is(&nic.envelope.id)) {
        let agent = agent_of(topology, &nic.envelope.id);
        let key = agent.map_or_else(|| nic.envelope.id.key(), |agent| agent.id.to_string());
        found.entry(key).or_insert_with(|| of_nic(nic, agent));
    }
    found
}

/// The network interfaces and site probes with an address. Several VNets and sites can have the same address.
fn with_address(topology: &Topology, address: IpAddr) -> Found {
    let mut found = Found::new();
    for nic in topology.nics.values() {
        if nic.ip_configurations.iter().any(|c| c.address == address) {
            let agent = agent_of(topology, &nic.envelope.id);
            let end = Endpoint {
                addresses: vec![address],
                ..of_nic(nic, agent)
            };
            found.insert(nic.envelope.id.key(), end);
        }
    }
    let is_there = |binding: &Binding| matches!(binding, Binding::Site { address: a, .. } if *a == address);
    let probes = topology.agents.values().filter(|a| !a.revoked && is_there(&a.binding));
    found.extend(probes.map(|agent| (agent.id.to_string(), of_agent(topology, agent))));
    found
}

/// A network interface as an end of a walk.
fn of_nic(nic: &NetworkInterface, agent: Option<&Agent>) -> Endpoint {
    let id = &nic.envelope.id;
    Endpoint {
        agent: agent.map(|agent| agent.id.clone()),
        addresses: nic.ip_configurations.iter().map(|c| c.address).collect(),
        label: match agent {
            Some(agent) => format!("network interface {id} (agent {})", agent.id),
            None => format!("network interface {id}"),
        },
    }
}

/// An agent as an end of a walk. An edge has no addresses of its own.
fn of_agent(topology: &Topology, agent: &Agent) -> Endpoint {
    let (addresses, what) = match &agent.binding {
        Binding::Vm { vm, nics, .. } => {
            let nics = nics.iter().filter_map(|id| topology.nics.get(id));
            let addresses = nics.flat_map(|nic| nic.ip_configurations.iter().map(|c| c.address));
            (addresses.collect(), format!("VM {vm}"))
        }
        Binding::Gateway {
            gateway,
            ip_configuration,
        } => {
            let configurations = topology.gateways.get(gateway).map(|g| g.ip_configurations.as_slice());
            let own = configurations.unwrap_or_default().iter();
            let own = own.filter(|c| c.name.eq_ignore_ascii_case(ip_configuration));
            (own.map(|c| c.address).collect(), format!("gateway {gateway}"))
        }
        Binding::Edge { circuit, link } => (Vec::new(), format!("{link:?} edge of circuit {circuit}")),
        Binding::Site { attachments, address } => {
            let names: Vec<&str> = attachments.iter().map(ResourceId::name).collect();
            (vec![*address], format!("{address} in the site {}", names.join(", ")))
        }
    };
    Endpoint {
        agent: Some(agent.id.clone()),
        addresses,
        label: format!("{what} (agent {})", agent.id),
    }
}

/// Whether `agent` is revoked and another agent has its binding now. Then the names of the VM and of its NICs refer to
/// the new agent only.
fn is_replaced(topology: &Topology, agent: &Agent) -> bool {
    let place = |a: &Agent| match &a.binding {
        Binding::Vm { vm, .. } => vm.key(),
        Binding::Gateway {
            gateway,
            ip_configuration,
        } => format!("{}/{}", gateway.key(), ip_configuration.to_ascii_lowercase()),
        Binding::Edge { circuit, link } => format!("{}/{link:?}", circuit.key()),
        Binding::Site { attachments, address } => {
            let first = attachments.first().map(ResourceId::key).unwrap_or_default();
            format!("{first}/{address}")
        }
    };
    let mut trusted = topology.agents.values().filter(|a| !a.revoked);
    agent.revoked && trusted.any(|a| place(a) == place(agent))
}

/// The agent of the VM that has a NIC. A revoked agent is returned only if no other agent has the NIC.
pub(super) fn agent_of<'t>(topology: &'t Topology, nic: &ResourceId) -> Option<&'t Agent> {
    let has = |agent: &&Arc<Agent>| matches!(&agent.binding, Binding::Vm { nics, .. } if nics.contains(nic));
    let agents = topology.agents.values().filter(has);
    agents.min_by_key(|agent| agent.revoked).map(|agent| &**agent)
}
