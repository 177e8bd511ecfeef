//! Queries across resources, shared by rules, views and explanations.

use crate::net::same_set;
use crate::path::{is_child_of, parent_id};
use crate::resource::{Peering, PeeringState, VirtualNetwork, VirtualNetworkGateway};
use crate::topology::Topology;
use ipnet::IpNet;
use std::sync::Arc;
use tombolo_proto::id::ResourceId;

/// The VNet of a gateway. `None`: the gateway has no ip configuration.
pub(crate) fn vnet_of(gateway: &VirtualNetworkGateway) -> Option<ResourceId> {
    gateway.ip_configurations.first().map(|c| parent_id(&c.subnet))
}

/// The prefixes that a gateway advertises as local: its VNet, and the VNets that use its gateways (P21b, E5). Sorted,
/// without duplicates.
pub(crate) fn advertised_prefixes(topology: &Topology, gateway: &VirtualNetworkGateway) -> Vec<IpNet> {
    let vnet = vnet_of(gateway).and_then(|id| topology.vnets.get(&id));
    let Some(vnet) = vnet else { return Vec::new() };
    let mut prefixes = vnet.address_space.clone();
    for half in &vnet.peerings {
        let remote = topology.vnets.get(&half.remote_vnet);
        let mut halves = remote.into_iter().flat_map(|r| &r.peerings);
        let uses = halves.any(|p| p.remote_vnet == vnet.envelope.id && p.use_remote_gateways);
        if uses && half.allow_gateway_transit && half.state == PeeringState::Connected {
            prefixes.extend(&half.remote_address_space);
        }
    }
    prefixes.sort();
    prefixes.dedup();
    prefixes
}

/// The peering half of `vnet` whose remote VNet is `remote`.
pub(crate) fn half_towards<'v>(vnet: &'v VirtualNetwork, remote: &ResourceId) -> Option<&'v Peering> {
    vnet.peerings.iter().find(|p| p.remote_vnet == *remote)
}

/// The gateways of a VNet: at most one of each type (G2).
pub(crate) fn gateways_of<'t>(
    topology: &'t Topology,
    vnet: &'t ResourceId,
) -> impl Iterator<Item = &'t Arc<VirtualNetworkGateway>> + 't {
    let inside = move |subnet: &ResourceId| is_child_of(subnet, vnet);
    let all = topology.gateways.values();
    all.filter(move |g| g.ip_configurations.first().is_some_and(|c| inside(&c.subnet)))
}

/// `peeringSyncLevel` of a half: whether each half has the present address space of the other VNet (P27).
pub(crate) fn sync_level(topology: &Topology, vnet: &VirtualNetwork, half: &Peering) -> &'static str {
    let remote = topology.vnets.get(&half.remote_vnet);
    let local_stale = remote.is_some_and(|r| !same_set(&r.address_space, &half.remote_address_space));
    let other = remote.and_then(|r| half_towards(r, &vnet.envelope.id));
    let remote_stale = other.is_none_or(|o| !same_set(&o.remote_address_space, &vnet.address_space));
    match (local_stale, remote_stale) {
        (false, false) => "FullyInSync",
        (false, true) => "RemoteNotInSync",
        (true, false) => "LocalNotInSync",
        (true, true) => "LocalAndRemoteNotInSync",
    }
}

/// The prefixes that a half occupies in overlap checks: those that it has synced, and the remote VNet's present ones. A
/// `Disconnected` half still occupies the synced ones, as in Azure (P11).
pub(crate) fn counted_space(topology: &Topology, half: &Peering) -> Vec<IpNet> {
    let mut space = half.remote_address_space.clone();
    if half.state != PeeringState::Disconnected
        && let Some(remote) = topology.vnets.get(&half.remote_vnet)
    {
        space.extend(
            remote
                .address_space
                .iter()
                .filter(|net| !half.remote_address_space.contains(net)),
        );
    }
    space
}

/// Whether a subnet is named `GatewaySubnet`, which is reserved for gateways (G1).
pub(crate) fn is_gateway_subnet(id: &ResourceId) -> bool {
    id.name().eq_ignore_ascii_case("GatewaySubnet")
}
