//! The spaces and subnets of a configuration: the prefixes of each VNet, the agents that own its addresses, and the
//! routes of its subnets.

use super::index::{self, Index, Vnet};
use super::{prefix, routes};
use crate::resource;
use ipnet::IpNet;
use tombolo_proto::config::{Owner, Space, SpaceKind, Subnet};

/// The space of the agent's own VNet. The owners of the VNet's addresses are its machines and the instances of its
/// gateways.
pub(super) fn local_space(vnet: &Vnet<'_>) -> Space {
    let mut owners = vnet.owners.clone();
    let instances = vnet.instances.iter().chain(&vnet.er_instances);
    owners.extend(instances.map(|instance| Owner {
        prefix: IpNet::from(instance.address),
        agent: instance.agent.id.clone(),
        ip_forwarding: false,
    }));
    index::order_owners(&mut owners);
    Space {
        vnet: vnet.resource.envelope.id.clone(),
        kind: SpaceKind::Local {},
        prefixes: prefix::sorted(&vnet.resource.address_space),
        owners,
    }
}

/// The agents that own another VNet's addresses, limited to `prefixes`: the prefixes of that VNet that this VNet has
/// synced. An address that is not synced yet is left out (P27).
pub(super) fn owners_within(vnet: &Vnet<'_>, prefixes: &[IpNet]) -> Vec<Owner> {
    let known = |owner: &&Owner| prefix::covered(&owner.prefix, prefixes);
    vnet.owners.iter().filter(known).cloned().collect()
}

/// The spaces into which a gateway delivers packets: its own VNet first, then the VNets that use the gateway, ordered
/// by id; and the union of the prefixes of all these spaces, ordered.
pub(super) fn local_prefixes(index: &Index<'_>, vnet: &Vnet<'_>) -> (Vec<Space>, Vec<IpNet>) {
    let mut spaces = vec![local_space(vnet)];
    let mut local_prefixes = vnet.resource.address_space.clone();
    for client in &vnet.clients {
        let spoke = &index.vnets[client.vnet];
        local_prefixes.extend(&client.half.remote_address_space);
        spaces.push(Space {
            vnet: spoke.resource.envelope.id.clone(),
            kind: SpaceKind::GatewayClient {},
            prefixes: prefix::sorted(&client.half.remote_address_space),
            owners: owners_within(spoke, &client.half.remote_address_space),
        });
    }
    // The space of the gateway's own VNet stays first. The others are sorted, because their order must not depend on
    // the order in which VNets or peerings were created.
    spaces[1..].sort_by(|a, b| a.vnet.cmp(&b.vnet));
    (spaces, prefix::sorted(&local_prefixes))
}

/// The given subnets of `vnet` in the form of a configuration, with their effective routes, in the given order.
pub(super) fn subnets<'s>(
    index: &Index<'_>,
    vnet: &Vnet<'_>,
    subnets: impl Iterator<Item = &'s resource::Subnet>,
) -> Vec<Subnet> {
    subnets
        .map(|subnet| Subnet {
            id: subnet.id.clone(),
            prefixes: prefix::sorted(&subnet.prefixes),
            routes: routes::effective(index, vnet, subnet),
            isolated: routes::table_of(index, subnet).is_some_and(|t| t.disable_bgp_route_propagation),
        })
        .collect()
}
