//! Explains why no route of a VNet leads to an address. If a VNet has the address and a half of a peering joins the two
//! VNets, the peering is the cause: its state, a missing half, a range that is not synced, or another route with
//! precedence. If a VNet has the address and there is no peering, gateways and common peered VNets are examined. If no
//! VNet has the address, the sites and circuits are examined.

use super::finding::{Facts, Finding, connected};
use super::{gateways, sites};
use crate::lookup::half_towards;
use crate::resource::{PeeringState, VirtualNetwork};
use ipnet::IpNet;
use std::net::IpAddr;
use tombolo_proto::id::ResourceId;

/// Explains why a packet from the VNet `vnet` to the address `to` has no usable route: no route matches, or the
/// matching route is a system route with the next hop type `Internet` or `None`. The first cause that applies is
/// returned.
pub(super) fn no_route(facts: Facts<'_>, vnet: &ResourceId, to: IpAddr) -> Finding {
    let topology = facts.topology;
    let Some(own) = topology.vnets.get(vnet) else {
        return Finding::new(
            "R1",
            format!("{vnet} does not exist"),
            "delete the agents that are bound to it and join them to another VNet",
        );
    };
    let mut targets = topology.vnets.values();
    let Some(target) = targets.find(|v| v.envelope.id != *vnet && contains(&v.address_space, to)) else {
        return sites::no_route(facts, own, to);
    };
    let (here, there) = (own.envelope.id.name(), target.envelope.id.name());
    let (half, other) = (half_towards(own, &target.envelope.id), half_towards(target, vnet));
    match (half.map(|half| (half, half.state)), other) {
        (Some((half, PeeringState::Initiated)), _) => Finding::new(
            "P13",
            format!("the peering {} of {here} is Initiated", half.id.name()),
            format!("create the other half in {there}"),
        )
        .at(&half.id),
        (Some((half, PeeringState::Disconnected)), _) => Finding::new(
            "P14",
            format!(
                "the peering {} of {here} is Disconnected, its other half was deleted",
                half.id.name()
            ),
            format!(
                "PUT it again (it becomes Initiated), then create the half in {there}; or delete it and create both"
            ),
        )
        .at(&half.id),
        (Some((half, PeeringState::Connected)), _) if !contains(&half.remote_address_space, to) => Finding::new(
            "P27",
            format!(
                "{there} has {to} in a range that the peering {} of {here} has not synced",
                half.id.name()
            ),
            "sync that peering (PUT with syncRemoteAddressSpace=true)",
        )
        .at(&half.id),
        (Some((half, PeeringState::Connected)), _) => Finding::new(
            "R7",
            format!(
                "the peering {} of {here} leads to {to}, but another route takes precedence",
                half.id.name()
            ),
            format!("find a longer or a user-defined route to {to} in the effective routes, and remove it"),
        )
        .at(&half.id),
        (None, Some(other)) => Finding::new(
            "P13",
            format!(
                "{there} has a peering to {here} ({}, {:?}), {here} has none to {there}",
                other.id.name(),
                other.state
            ),
            format!("create that half in {here}"),
        )
        .at(&other.id),
        (None, None) => without_peering(facts, own, target),
    }
}

/// Explains why there is no route between two VNets that have no peering. If a change of gateways or connections would
/// connect the two VNets, it is the remedy. Otherwise the remedy is an appliance in a VNet that is peered with both, or
/// a new peering.
fn without_peering(facts: Facts<'_>, own: &VirtualNetwork, target: &VirtualNetwork) -> Finding {
    let (here, there) = (own.envelope.id.name(), target.envelope.id.name());
    if let Some(finding) = gateways::between(facts, own, target) {
        return finding;
    }
    let theirs = connected(target);
    if let Some(hub) = connected(own).iter().find(|hub| theirs.contains(hub)) {
        let hub = hub.name();
        return Finding::new(
            "P24",
            format!("{here} and {there} are both peered with {hub}, but peering is not transitive"),
            format!(
                "peer them with each other, or on both sides route the other's prefix to an appliance in {hub} \
                 (enableIPForwarding on its network interface) and set allowForwardedTraffic on their peerings to {hub}"
            ),
        );
    }
    Finding::new(
        "P24",
        format!("{here} has neither a peering with {there} nor a gateway that leads there"),
        "create a peering, both halves",
    )
}

/// Whether one of the prefixes contains an address.
fn contains(prefixes: &[IpNet], address: IpAddr) -> bool {
    prefixes.iter().any(|p| p.contains(&address))
}
