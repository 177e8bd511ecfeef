//! Why there is no way, in words that say what to do: what the configuration of one agent does not show, the topology does.

use super::names::agent_of;
use crate::learned_routes::Reports;
use crate::lookup::gateways_of;
use crate::resource::{Binding, PeeringState, VirtualNetwork, VirtualNetworkGateway};
use crate::topology::Topology;
use std::net::IpAddr;
use tombolo_proto::id::ResourceId;

/// What an explanation is drawn from.
#[derive(Clone, Copy)]
pub(super) struct Facts<'t> {
    pub(super) topology: &'t Topology,
    /// What agents report of BGP neighbours and of links that do not answer.
    pub(super) reports: &'t Reports,
    /// The subnet whose routes were asked, if any were.
    pub(super) subnet: Option<&'t ResourceId>,
}

/// A finding: by which rule, what is wrong, what to do, and where to look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Why {
    pub(super) resource: Option<ResourceId>,
    pub(super) rule: &'static str,
    pub(super) cause: String,
    pub(super) remedy: String,
}

impl Why {
    pub(super) fn new(rule: &'static str, cause: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            resource: None,
            rule,
            cause: cause.into(),
            remedy: remedy.into(),
        }
    }

    pub(super) fn at(self, resource: &ResourceId) -> Self {
        Self {
            resource: Some(resource.clone()),
            ..self
        }
    }
}

/// The VNets that one has `Connected` peerings with.
pub(super) fn connected(vnet: &VirtualNetwork) -> Vec<ResourceId> {
    let halves = vnet.peerings.iter().filter(|p| p.state == PeeringState::Connected);
    halves.map(|p| p.remote_vnet.clone()).collect()
}

/// Why nobody owns an address of a VNet: no NIC, no agent, or one that was revoked.
pub(super) fn no_owner(topology: &Topology, vnet: &ResourceId, address: IpAddr) -> Why {
    let name = vnet.name();
    let Some(resource) = topology.vnets.get(vnet) else {
        return Why::new(
            "D8",
            format!("{vnet} does not exist"),
            "create it, or remove the route that leads there",
        );
    };
    let of_vnet = |subnet: &ResourceId| resource.subnets.iter().any(|s| s.id == *subnet);
    for nic in topology.nics.values() {
        let mut configurations = nic.ip_configurations.iter();
        if !configurations.any(|c| c.address == address && of_vnet(&c.subnet)) {
            continue;
        }
        let id = &nic.envelope.id;
        return match agent_of(topology, id) {
            None => Why::new(
                "D7",
                format!(
                    "the network interface {} has {address}, but no agent has joined for it",
                    id.name()
                ),
                "make a join token for its VM and run 'tombolo-agent join' there",
            ),
            Some(agent) if agent.revoked => Why::new(
                "D7",
                format!(
                    "the agent {} of the network interface {} is revoked",
                    agent.id,
                    id.name()
                ),
                "delete it and join again",
            ),
            Some(agent) => Why::new(
                "P27",
                format!(
                    "the agent {} has {address}, but this peering does not know that address yet",
                    agent.id
                ),
                "sync the peering (PUT with syncRemoteAddressSpace=true)",
            ),
        }
        .at(id);
    }
    let mut here = gateways_of(topology, vnet);
    if let Some(gateway) = here.find(|g| g.ip_configurations.iter().any(|c| c.address == address)) {
        return gateway_agents(topology, gateway).unwrap_or_else(|| {
            Why::new(
                "P21",
                format!(
                    "{address} is the gateway {} itself, which answers its own VNet only",
                    gateway.envelope.id.name()
                ),
                format!("ask it from a machine in {name}, or try a machine behind it"),
            )
            .at(&gateway.envelope.id)
        });
    }
    Why::new(
        "D8",
        format!(
            "nobody in {name} has {address}: there is no network interface with it, and no agent serves its subnet"
        ),
        "check the address, create a network interface with it, or let an agent serve the subnet",
    )
    .at(vnet)
}

/// Why no instance of a gateway can take a packet; none: one could.
pub(super) fn gateway_agents(topology: &Topology, gateway: &VirtualNetworkGateway) -> Option<Why> {
    let id = &gateway.envelope.id;
    let stands_for = |binding: &Binding| matches!(binding, Binding::Gateway { gateway, .. } if gateway == id);
    let agents: Vec<_> = topology.agents.values().filter(|a| stands_for(&a.binding)).collect();
    let why = match agents.first() {
        None => Why::new(
            "D7",
            format!("the gateway {} has no agent", id.name()),
            "make a join token for it and join one",
        ),
        Some(_) if agents.iter().any(|agent| !agent.revoked) => return None,
        Some(first) => Why::new(
            "D7",
            format!("the agent {} of the gateway {} is revoked", first.id, id.name()),
            "delete it and join again",
        ),
    };
    Some(why.at(id))
}
