//! Findings. A finding says why a packet stops at an agent and what would change that. If the agent's configuration
//! does not show the cause, the cause is looked for in the topology.

use super::names::agent_of;
use crate::learned_routes::LearnedReports;
use crate::lookup::gateways_of;
use crate::path::parent_id;
use crate::resource::{Binding, LoadBalancerSku, PeeringState, VirtualNetwork, VirtualNetworkGateway};
use crate::topology::Topology;
use std::net::IpAddr;
use tombolo_proto::id::ResourceId;

/// The facts from which a stop is explained.
#[derive(Clone, Copy)]
pub(super) struct Facts<'t> {
    pub(super) topology: &'t Topology,
    /// The agents' reports of BGP routes and of peers that do not answer.
    pub(super) reports: &'t LearnedReports,
    /// The subnet whose routes decided. `None`: the agent used no subnet's routes.
    pub(super) subnet: Option<&'t ResourceId>,
}

/// A finding: the rule, the cause, the remedy, and the resource to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    /// The resource to change. `None`: no change of a single resource lets the packet pass.
    pub(super) resource: Option<ResourceId>,
    /// The tag of the rule or decision in docs/rules.
    pub(super) rule: &'static str,
    /// The state that stops the packet.
    pub(super) cause: String,
    /// The change that would let the packet pass.
    pub(super) remedy: String,
}

impl Finding {
    /// A finding without a resource to change. `rule`: the tag of the rule or decision. `cause` and `remedy` are parts
    /// of a sentence: they begin in lower case and have no full stop.
    pub(super) fn new(rule: &'static str, cause: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            resource: None,
            rule,
            cause: cause.into(),
            remedy: remedy.into(),
        }
    }

    /// The same finding with `resource` as the resource that needs a change.
    pub(super) fn at(self, resource: &ResourceId) -> Self {
        Self {
            resource: Some(resource.clone()),
            ..self
        }
    }
}

/// The VNets with which a VNet has a `Connected` peering, in order of creation.
pub(super) fn connected(vnet: &VirtualNetwork) -> Vec<ResourceId> {
    let halves = vnet.peerings.iter().filter(|p| p.state == PeeringState::Connected);
    halves.map(|p| p.remote_vnet.clone()).collect()
}

/// Explains why no agent owns an address of a VNet. Either the VNet does not exist, no NIC has the address, the NIC has
/// no agent or a revoked one, the peering has not synced the address yet, or the address is that of a gateway.
pub(super) fn no_owner(topology: &Topology, vnet: &ResourceId, address: IpAddr) -> Finding {
    let name = vnet.name();
    let Some(resource) = topology.vnets.get(vnet) else {
        return Finding::new(
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
            None => Finding::new(
                "D7",
                format!(
                    "the network interface {} has {address}, but no agent has joined for it",
                    id.name()
                ),
                "create a join token for its VM and run 'tombolo-agent join' there",
            ),
            Some(agent) if agent.revoked => Finding::new(
                "D7",
                format!(
                    "the agent {} of the network interface {} is revoked",
                    agent.id,
                    id.name()
                ),
                "delete it and join again",
            ),
            Some(agent) => Finding::new(
                "P27",
                format!(
                    "the agent {} has {address}, but this peering has not synced that address yet",
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
            Finding::new(
                "P21",
                format!(
                    "{address} is the gateway {} itself, which answers its own VNet only",
                    gateway.envelope.id.name()
                ),
                format!("test it from a machine in {name}, or test a machine behind it"),
            )
            .at(&gateway.envelope.id)
        });
    }
    Finding::new(
        "D8",
        format!("no agent in {name} has {address}: no network interface has it, and no agent serves its subnet"),
        "check the address, create a network interface with it, or let an agent serve the subnet",
    )
    .at(vnet)
}

/// Explains why an agent of the VNet `from` does not know a front end of a load balancer in the VNet `vnet` (L10). `None`: no
/// front end in `vnet` has the address.
pub(super) fn unknown_front_end(
    topology: &Topology,
    from: &ResourceId,
    vnet: &ResourceId,
    address: IpAddr,
) -> Option<Finding> {
    let mut front_ends = topology
        .load_balancers
        .values()
        .flat_map(|b| b.front_ends.iter().map(move |f| (b, f)));
    let (balancer, front_end) = front_ends.find(|(_, f)| f.address == address && parent_id(&f.subnet) == *vnet)?;
    let (own, name) = (&balancer.envelope.id, balancer.envelope.id.name());
    let region = |id: &ResourceId| topology.vnets.get(id).map(|vnet| &vnet.envelope.location);
    let is_global = region(from) != region(vnet);
    let finding = if is_global && balancer.sku == LoadBalancerSku::Basic {
        Finding::new(
            "P30",
            format!(
                "{address} is a front end of {name}, whose SKU is Basic, and {} is in another region",
                from.name()
            ),
            "create the load balancer again with the SKU Standard",
        )
    } else if is_global && !topology.settings.global_load_balancing {
        Finding::new(
            "P30",
            format!(
                "{address} is a front end of {name}, {} is in another region, and the setting globalLoadBalancing is off",
                from.name()
            ),
            "set it to true: tombolo settings set globalLoadBalancing=true",
        )
    } else {
        Finding::new(
            "P27",
            format!(
                "{address} is the front end {} of {name}, but the peering has not synced that address yet",
                front_end.id.name()
            ),
            "sync the peering (PUT with syncRemoteAddressSpace=true)",
        )
    };
    Some(finding.at(own))
}

/// Explains why no instance of a gateway can forward a packet. `None`: at least one instance has an agent that is not
/// revoked. Whether that agent runs is not checked.
pub(super) fn gateway_agents(topology: &Topology, gateway: &VirtualNetworkGateway) -> Option<Finding> {
    let id = &gateway.envelope.id;
    let stands_for = |binding: &Binding| matches!(binding, Binding::Gateway { gateway, .. } if gateway == id);
    let agents: Vec<_> = topology.agents.values().filter(|a| stands_for(&a.binding)).collect();
    let finding = match agents.first() {
        None => Finding::new(
            "D7",
            format!("the gateway {} has no agent", id.name()),
            "create a join token for it and join one",
        ),
        Some(_) if agents.iter().any(|agent| !agent.revoked) => return None,
        Some(first) => Finding::new(
            "D7",
            format!("the agent {} of the gateway {} is revoked", first.id, id.name()),
            "delete it and join again",
        ),
    };
    Some(finding.at(id))
}
