//! The spaces and subnets of a configuration: the prefixes of each VNet, the owners of its addresses, the routes of its
//! subnets.

use super::index::{self, Index, Vnet};
use super::{prefix, routes};
use crate::resource;
use ipnet::IpNet;
use tombolo_proto::config::{Owner, Space, SpaceKind, Subnet};

/// The space of the agent's own VNet, owned by its machines and the instances of its gateways.
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

/// The owners of another VNet's addresses within `prefixes`, the synced address space. An address that is not synced
/// yet has no owner here (P27).
pub(super) fn owners_within(vnet: &Vnet<'_>, prefixes: &[IpNet]) -> Vec<Owner> {
    let known = |owner: &&Owner| prefix::covered(&owner.prefix, prefixes);
    vnet.owners.iter().filter(known).cloned().collect()
}

/// The spaces that a gateway delivers into, its own first and the others ordered by VNet; and the union of their
/// prefixes.
pub(super) fn own_side(index: &Index<'_>, vnet: &Vnet<'_>) -> (Vec<Space>, Vec<IpNet>) {
    let mut spaces = vec![local_space(vnet)];
    let mut own_side = vnet.resource.address_space.clone();
    for client in &vnet.clients {
        let spoke = &index.vnets[client.vnet];
        own_side.extend(&client.half.remote_address_space);
        spaces.push(Space {
            vnet: spoke.resource.envelope.id.clone(),
            kind: SpaceKind::GatewayClient {},
            prefixes: prefix::sorted(&client.half.remote_address_space),
            owners: owners_within(spoke, &client.half.remote_address_space),
        });
    }
    spaces[1..].sort_by(|a, b| a.vnet.cmp(&b.vnet));
    (spaces, prefix::sorted(&own_side))
}

/// Subnets as a configuration holds them, with their effective routes.
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
