//! Why there is no way, in words that say what to do: what the configuration of one agent does not show, the topology does.

use super::names::agent_of;
use crate::resource::{Binding, Connection, Peering, PeeringState, VirtualNetwork, VirtualNetworkGateway};
use crate::topology::Topology;
use ipnet::IpNet;
use std::net::IpAddr;
use tombolo_proto::id::ResourceId;

/// A finding: where to look, by which rule, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Why {
    pub(super) resource: Option<ResourceId>,
    pub(super) rule: &'static str,
    pub(super) text: String,
}

impl Why {
    pub(super) fn new(rule: &'static str, text: impl Into<String>) -> Self {
        Self {
            resource: None,
            rule,
            text: text.into(),
        }
    }

    pub(super) fn at(self, resource: &ResourceId) -> Self {
        Self {
            resource: Some(resource.clone()),
            ..self
        }
    }
}

fn contains(prefixes: &[IpNet], address: IpAddr) -> bool {
    prefixes.iter().any(|p| p.contains(&address))
}

/// The half of `vnet` that points at `remote`.
pub(super) fn half<'t>(vnet: &'t VirtualNetwork, remote: &ResourceId) -> Option<&'t Peering> {
    vnet.peerings.iter().find(|p| p.remote_vnet == *remote)
}

/// Why packets from a VNet have no route to an address but the system's `Internet` or `None`.
pub(super) fn no_route(topology: &Topology, vnet: &ResourceId, to: IpAddr) -> Why {
    let Some(own) = topology.vnets.get(vnet) else {
        return Why::new("R1", format!("{vnet} does not exist"));
    };
    let mut targets = topology.vnets.values();
    let Some(target) = targets.find(|v| v.envelope.id != *vnet && contains(&v.address_space, to)) else {
        return Why::new(
            "R1",
            format!("no virtual network has {to} in its address space; Tombolo carries packets between its VNets only"),
        );
    };
    let (here, there) = (own.envelope.id.name(), target.envelope.id.name());
    let (half, other) = (half(own, &target.envelope.id), half(target, vnet));
    match (half.map(|half| (half, half.state)), other) {
        (Some((half, PeeringState::Initiated)), _) => Why::new(
            "P13",
            format!(
                "the peering {} of {here} is Initiated: create the other half in {there}",
                half.id.name()
            ),
        )
        .at(&half.id),
        (Some((half, PeeringState::Disconnected)), _) => Why::new(
            "P14",
            format!(
                "the peering {} of {here} is Disconnected, its other half was deleted: PUT it again (it becomes \
                 Initiated), then create the half in {there}; or delete it and create both",
                half.id.name()
            ),
        )
        .at(&half.id),
        (Some((half, PeeringState::Connected)), _) if !contains(&half.remote_address_space, to) => Why::new(
            "P27",
            format!(
                "{there} has {to} in a range that the peering {} of {here} has not synced: sync that peering (PUT with \
                 syncRemoteAddressSpace=true)",
                half.id.name()
            ),
        )
        .at(&half.id),
        (Some((half, PeeringState::Connected)), _) => Why::new(
            "R7",
            format!(
                "the peering {} of {here} leads to {to}, but another route comes first",
                half.id.name()
            ),
        )
        .at(&half.id),
        (None, Some(other)) => Why::new(
            "P13",
            format!(
                "{there} has a peering to {here} ({}, {:?}), {here} has none to {there}: create that half",
                other.id.name(),
                other.state
            ),
        )
        .at(&other.id),
        (None, None) => without_peering(topology, own, target),
    }
}

/// There is no peering between the two: perhaps a gateway could do it, or a common peer.
fn without_peering(topology: &Topology, own: &VirtualNetwork, target: &VirtualNetwork) -> Why {
    let (here, there) = (own.envelope.id.name(), target.envelope.id.name());
    let connected = |vnet: &VirtualNetwork| -> Vec<ResourceId> {
        let halves = vnet.peerings.iter().filter(|p| p.state == PeeringState::Connected);
        halves.map(|p| p.remote_vnet.clone()).collect()
    };
    if let Some(why) = by_gateway(topology, own, target, &connected(own)) {
        return why;
    }
    let theirs = connected(target);
    if let Some(hub) = connected(own).iter().find(|hub| theirs.contains(hub)) {
        let hub = hub.name();
        return Why::new(
            "P24",
            format!(
                "{here} and {there} are both peered with {hub}, but peering is not transitive: peer them with each \
                 other, or on both sides route the other's prefix to an appliance in {hub} (enableIPForwarding on its \
                 network interface) and set allowForwardedTraffic on their peerings to {hub}"
            ),
        );
    }
    Why::new(
        "P24",
        format!(
            "{here} has neither a peering with {there} nor a VPN gateway that leads there: create a peering, both halves"
        ),
    )
}

/// A VPN that would lead to the target if a flag or an object were there.
fn by_gateway(topology: &Topology, own: &VirtualNetwork, target: &VirtualNetwork, peers: &[ResourceId]) -> Option<Why> {
    let (here, there) = (own.envelope.id.name(), target.envelope.id.name());
    let serving = |vnet: &VirtualNetwork| -> Option<(ResourceId, &VirtualNetworkGateway)> {
        gateway_of(topology, &vnet.envelope.id)
            .map(|gateway| (vnet.envelope.id.clone(), gateway))
            .or_else(|| remote_gateway_of(topology, vnet))
    };
    // The target's side: its own gateway, or the one that it uses; else one that it could use.
    let Some((_, far)) = serving(target) else {
        let (_, near) = serving(own)?;
        let mut theirs = target.peerings.iter().filter(|p| p.state == PeeringState::Connected);
        let hub = theirs.find(|p| tunnel(topology, Some(near), gateway_of(topology, &p.remote_vnet)))?;
        return missing_flags(topology, target, &hub.remote_vnet, here);
    };
    if let Some((hub, near)) = serving(own) {
        let (out, back) = (connection(topology, near, far), connection(topology, far, near));
        return match (out, back) {
            (Some(one), None) => Some(
                Why::new(
                    "G10",
                    format!(
                        "the connection {} has no counterpart: create one from gateway {} to {}",
                        one.envelope.id.name(),
                        far.envelope.id.name(),
                        near.envelope.id.name()
                    ),
                )
                .at(&one.envelope.id),
            ),
            (None, Some(one)) => Some(
                Why::new(
                    "G10",
                    format!(
                        "the connection {} has no counterpart: create one from gateway {} to {}",
                        one.envelope.id.name(),
                        near.envelope.id.name(),
                        far.envelope.id.name()
                    ),
                )
                .at(&one.envelope.id),
            ),
            (Some(_), Some(_)) => Some(Why::new(
                "R15",
                format!(
                    "the VPN gateway of {} leads to {there}, but this subnet does not take its routes: see \
                     disableBgpRoutePropagation of its route table",
                    hub.name()
                ),
            )),
            (None, None) => None,
        };
    }
    // A peer has a gateway that leads there; the flags are missing.
    let hub = peers
        .iter()
        .find(|peer| tunnel(topology, gateway_of(topology, peer), Some(far)))?;
    missing_flags(topology, own, hub, there)
}

/// Whether both connection objects between two gateways exist (G10).
fn tunnel(topology: &Topology, a: Option<&VirtualNetworkGateway>, b: Option<&VirtualNetworkGateway>) -> bool {
    let (Some(a), Some(b)) = (a, b) else { return false };
    connection(topology, a, b).is_some() && connection(topology, b, a).is_some()
}

/// What a VNet lacks to use the gateway of a peer, which leads to `there` (P19, P20). None: nothing.
fn missing_flags(topology: &Topology, spoke: &VirtualNetwork, hub: &ResourceId, there: &str) -> Option<Why> {
    let resource = topology.vnets.get(hub)?;
    let (ours, theirs) = (half(spoke, hub)?, half(resource, &spoke.envelope.id)?);
    let (name, hub) = (spoke.envelope.id.name(), hub.name());
    let mut missing = Vec::new();
    if !theirs.allow_gateway_transit {
        missing.push(format!("allowGatewayTransit on {} of {hub}", theirs.id.name()));
    }
    if !ours.use_remote_gateways {
        missing.push(format!("useRemoteGateways on {} of {name}", ours.id.name()));
    }
    let at = if theirs.allow_gateway_transit { ours } else { theirs };
    (!missing.is_empty()).then(|| {
        Why::new(
            "P20",
            format!(
                "the VPN gateway of {hub} leads to {there}, but {name} may not use it: set {}",
                missing.join(", then ")
            ),
        )
        .at(&at.id)
    })
}

/// The VPN gateway that stands in a VNet.
pub(super) fn gateway_of<'t>(topology: &'t Topology, vnet: &ResourceId) -> Option<&'t VirtualNetworkGateway> {
    let subnets = &topology.vnets.get(vnet)?.subnets;
    let inside = |gateway: &&std::sync::Arc<VirtualNetworkGateway>| {
        let mut configurations = gateway.ip_configurations.iter();
        configurations.any(|c| subnets.iter().any(|s| s.id == c.subnet))
    };
    topology.gateways.values().find(inside).map(|gateway| &**gateway)
}

/// The VPN gateway that a VNet uses: its own, or a peer's.
pub(super) fn serving<'t>(topology: &'t Topology, vnet: &ResourceId) -> Option<&'t VirtualNetworkGateway> {
    let resource = topology.vnets.get(vnet)?;
    gateway_of(topology, vnet).or_else(|| remote_gateway_of(topology, resource).map(|(_, gateway)| gateway))
}

/// Why the far end of a connection cannot take a packet.
pub(super) fn far_gateway(topology: &Topology, id: &ResourceId) -> Why {
    let Some(connection) = topology.connections.get(id) else {
        return Why::new("G10", format!("the connection {id} does not exist"));
    };
    if connection.shared_key.is_none() {
        let text = format!(
            "the connection {} has no shared key: set it on both connection objects",
            id.name()
        );
        return Why::new("G11", text).at(id);
    }
    let far = topology.gateways.get(&connection.gateway2);
    far.and_then(|gateway| gateway_agents(topology, gateway))
        .unwrap_or_else(|| {
            Why::new(
                "G10",
                format!(
                    "no instance of the far gateway of the connection {} can be reached",
                    id.name()
                ),
            )
            .at(id)
        })
}

/// The hub and its gateway, if a VNet uses one (P19, P20).
fn remote_gateway_of<'t>(
    topology: &'t Topology,
    vnet: &VirtualNetwork,
) -> Option<(ResourceId, &'t VirtualNetworkGateway)> {
    let mut halves = vnet.peerings.iter();
    let half_in_use = halves.find(|p| p.use_remote_gateways && p.state == PeeringState::Connected)?;
    let hub = topology.vnets.get(&half_in_use.remote_vnet)?;
    half(hub, &vnet.envelope.id).filter(|p| p.allow_gateway_transit)?;
    Some((hub.envelope.id.clone(), gateway_of(topology, &hub.envelope.id)?))
}

fn connection<'t>(
    topology: &'t Topology,
    from: &VirtualNetworkGateway,
    to: &VirtualNetworkGateway,
) -> Option<&'t Connection> {
    let mut all = topology.connections.values();
    all.find(|c| c.gateway1 == from.envelope.id && c.gateway2 == to.envelope.id)
        .map(|c| &**c)
}

/// Why nobody owns an address of a VNet: no NIC, no agent, or one that was revoked.
pub(super) fn no_owner(topology: &Topology, vnet: &ResourceId, address: IpAddr) -> Why {
    let name = vnet.name();
    let Some(resource) = topology.vnets.get(vnet) else {
        return Why::new("D8", format!("{vnet} does not exist"));
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
                    "the network interface {} has {address}, but no agent has joined for it: make a join token for its \
                     VM and run 'tombolo-agent join' there",
                    id.name()
                ),
            ),
            Some(agent) if agent.revoked => Why::new(
                "D7",
                format!(
                    "the agent {} of the network interface {} is revoked: delete it and join again",
                    agent.id,
                    id.name()
                ),
            ),
            Some(agent) => Why::new(
                "P27",
                format!(
                    "the agent {} has {address}, but this peering does not know that address yet",
                    agent.id
                ),
            ),
        }
        .at(id);
    }
    let gateway = gateway_of(topology, vnet);
    if let Some(gateway) = gateway.filter(|g| g.ip_configurations.iter().any(|c| c.address == address)) {
        return gateway_agents(topology, gateway).unwrap_or_else(|| {
            Why::new(
                "P21",
                format!(
                    "{address} is the gateway {} itself: it answers its own VNet only",
                    gateway.envelope.id.name()
                ),
            )
            .at(&gateway.envelope.id)
        });
    }
    Why::new(
        "D8",
        format!(
            "nobody in {name} has {address}: there is no network interface with it, and no agent serves its subnet"
        ),
    )
    .at(vnet)
}

/// Why no instance of a gateway can take a packet; none: one could.
pub(super) fn gateway_agents(topology: &Topology, gateway: &VirtualNetworkGateway) -> Option<Why> {
    let id = &gateway.envelope.id;
    let stands_for = |binding: &Binding| matches!(binding, Binding::Gateway { gateway, .. } if gateway == id);
    let mut agents = topology.agents.values().filter(|a| stands_for(&a.binding)).peekable();
    let text = if agents.peek().is_none() {
        format!(
            "the gateway {} has no agent: make a join token for it and join one",
            id.name()
        )
    } else {
        let agents: Vec<_> = agents.collect();
        if agents.iter().any(|agent| !agent.revoked) {
            return None;
        }
        format!(
            "the agent {} of the gateway {} is revoked: delete it and join again",
            agents[0].id,
            id.name()
        )
    };
    Some(Why::new("D7", text).at(id))
}
