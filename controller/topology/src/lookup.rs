//! Queries across several resources, which rules, views and explanations share.

use crate::net::same_set;
use crate::path::{is_child_of, parent_id};
use crate::resource::{Connection, ConnectionType, Peering, PeeringState, VirtualNetwork, VirtualNetworkGateway};
use crate::topology::Topology;
use ipnet::IpNet;
use std::sync::Arc;
use tombolo_proto::id::ResourceId;

/// The VNet of a gateway. `None`: the gateway has no ip configuration.
pub(crate) fn vnet_of(gateway: &VirtualNetworkGateway) -> Option<ResourceId> {
    gateway.ip_configurations.first().map(|c| parent_id(&c.subnet))
}

/// The `Vnet2Vnet` connection object from one gateway to another. `None`: there is none in this direction.
pub(crate) fn connection<'t>(topology: &'t Topology, from: &ResourceId, to: &ResourceId) -> Option<&'t Connection> {
    let mut all = topology.connections.values();
    all.find(|c| c.connection_type == ConnectionType::Vnet2Vnet && c.gateway1 == *from && c.gateway2 == *to)
        .map(|c| &**c)
}

/// The prefixes that a gateway advertises as its own: those of its VNet, and the synced ones of the VNets that use the
/// gateway (P21b, E5). Sorted, without duplicates. Empty if the gateway's VNet does not exist.
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

/// Largest number of prefixes of one address family that a gateway may advertise to a circuit (E13, X11).
const MAX_PREFIXES_OF_VNETS: usize = 1000;

/// Whether these are too many prefixes for a connection between a gateway and a circuit. The connection is down while
/// the gateway advertises so many (E13).
pub(crate) fn exceeds_limit(advertised: &[IpNet]) -> bool {
    let ipv6 = advertised.iter().filter(|prefix| prefix.addr().is_ipv6()).count();
    ipv6.max(advertised.len() - ipv6) > MAX_PREFIXES_OF_VNETS
}

/// The peering half of `vnet` whose remote VNet is `remote`, in any state. There is at most one (P7).
pub(crate) fn half_towards<'v>(vnet: &'v VirtualNetwork, remote: &ResourceId) -> Option<&'v Peering> {
    vnet.peerings.iter().find(|p| p.remote_vnet == *remote)
}

/// The gateways of a VNet, ordered by id: at most one of each type (G2).
pub(crate) fn gateways_of<'t>(
    topology: &'t Topology,
    vnet: &'t ResourceId,
) -> impl Iterator<Item = &'t Arc<VirtualNetworkGateway>> + 't {
    let inside = move |subnet: &ResourceId| is_child_of(subnet, vnet);
    let all = topology.gateways.values();
    all.filter(move |g| g.ip_configurations.first().is_some_and(|c| inside(&c.subnet)))
}

/// `peeringSyncLevel` of `half`, which belongs to `vnet`: whether each of the two halves has synced the present address
/// space of the other VNet (P27). If the remote VNet does not exist, `half` counts as in sync. If the other half does
/// not exist, it counts as not in sync.
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

/// The prefixes that other VNets must not overlap because of a half: the prefixes that the half has synced, and the
/// present ones of the remote VNet; without duplicates. For a `Disconnected` half only the synced ones count, as in
/// Azure (P11).
pub(crate) fn occupied_prefixes(topology: &Topology, half: &Peering) -> Vec<IpNet> {
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
