//! The effective routes of a subnet: the candidates of all sources, then Azure's precedence (R7 to R9).

use super::index::{Index, Vnet};
use super::prefix;
use crate::resource::{RouteTable, Subnet, UserNextHop};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{Ipv4Addr, Ipv6Addr};
use tombolo_engine::routing::{Offer, settle};
use tombolo_proto::route::{EffectiveRoute, GatewayHop, NextHop, RouteSource, RouteState};

/// The private blocks that Azure drops by default: 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 and 100.64.0.0/10 (R1).
const RESERVED: [Ipv4Net; 4] = [
    Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 12),
    Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10),
];
const ALL_V4: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0));
const ALL_V6: IpNet = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0));

/// All effective routes of a subnet in the order of the API: system, gateway and user routes, each ordered by kind and
/// prefix.
pub(super) fn effective(index: &Index<'_>, vnet: &Vnet<'_>, subnet: &Subnet) -> Vec<EffectiveRoute> {
    let table = table_of(index, subnet);
    let mut routes = system(vnet, table);
    routes.extend(gateway(index, vnet, table));
    routes.extend(user(index, vnet, table));
    settle(routes.into_iter().map(|route| Offer::configured(route, true)).collect())
}

/// The route table of a subnet, if it has one (R17).
pub(super) fn table_of<'t>(index: &Index<'t>, subnet: &Subnet) -> Option<&'t RouteTable> {
    let id = subnet.route_table.as_ref()?;
    index.topology.route_tables.get(id).map(|table| &**table)
}

fn route(source: RouteSource, prefix: IpNet, next_hop: NextHop) -> EffectiveRoute {
    EffectiveRoute {
        name: None,
        source,
        state: RouteState::Active,
        prefix,
        next_hop,
    }
}

/// The system routes of a subnet: its VNet, its peers, the Internet and the private blocks (R1 to R4, R9).
fn system(vnet: &Vnet<'_>, table: Option<&RouteTable>) -> Vec<EffectiveRoute> {
    let default = |prefix: IpNet, next_hop| route(RouteSource::Default, prefix, next_hop);
    let ranges = prefix::sorted(&vnet.resource.address_space);
    let mut routes: Vec<EffectiveRoute> = ranges.iter().map(|p| default(*p, NextHop::VnetLocal {})).collect();
    for peer in &vnet.peers {
        let peering = &peer.half.id;
        let hop = if peer.global {
            NextHop::VnetGlobalPeering {
                peering: peering.clone(),
            }
        } else {
            NextHop::VnetPeering {
                peering: peering.clone(),
            }
        };
        let prefixes = &peer.half.remote_address_space;
        routes.extend(prefixes.iter().map(|p| default(*p, hop.clone())));
    }
    let taken: Vec<IpNet> = routes.iter().map(|r| r.prefix).collect();
    if ranges.iter().any(|p| matches!(p, IpNet::V4(_))) {
        routes.push(default(ALL_V4, NextHop::Internet {}));
        // If the user has a 0.0.0.0/0 route, private destinations follow it too, so the private blocks are not dropped
        // (R9).
        let user_default = table.is_some_and(|t| t.routes.iter().any(|r| r.prefix == ALL_V4));
        if !user_default {
            // A private block that an address range of this VNet or of a peer covers completely is not dropped. Inside
            // a block the longer range wins by prefix length (R2).
            let free = RESERVED
                .map(IpNet::V4)
                .into_iter()
                .filter(|b| !prefix::covered(b, &taken));
            routes.extend(free.map(|block| default(block, NextHop::None {})));
        }
    }
    if ranges.iter().any(|p| matches!(p, IpNet::V6(_))) {
        routes.push(default(ALL_V6, NextHop::Internet {}));
    }
    routes
}

/// The gateway routes of a subnet, unless its route table disables their propagation (R5, R15).
fn gateway(index: &Index<'_>, vnet: &Vnet<'_>, table: Option<&RouteTable>) -> Vec<EffectiveRoute> {
    let Some(hub) = vnet.hub.map(|hub| &index.vnets[hub]) else {
        return Vec::new();
    };
    if table.is_some_and(|t| t.disable_bgp_route_propagation) {
        return Vec::new();
    }
    let hops = gateway_hops(hub);
    let prefixes = hub.connection_prefixes().into_iter();
    prefixes
        .map(|p| route(RouteSource::VirtualNetworkGateway, p, hops.clone()))
        .collect()
}

/// The user-defined routes of a subnet (R10, R14).
fn user(index: &Index<'_>, vnet: &Vnet<'_>, table: Option<&RouteTable>) -> Vec<EffectiveRoute> {
    let routes = table.map(|t| t.routes.as_slice()).unwrap_or_default();
    let to_route = |user: &crate::resource::Route| EffectiveRoute {
        name: Some(user.id.name().to_owned()),
        ..route(
            RouteSource::User,
            user.prefix,
            match &user.next_hop {
                UserNextHop::VirtualAppliance { address } => NextHop::VirtualAppliance { address: *address },
                UserNextHop::VirtualNetworkGateway => match vnet.hub {
                    Some(hub) => gateway_hops(&index.vnets[hub]),
                    None => NextHop::VirtualNetworkGateway {
                        gateways: Vec::new(),
                        spread: false,
                    },
                },
                UserNextHop::VnetLocal => NextHop::VnetLocal {},
                UserNextHop::Internet => NextHop::Internet {},
                UserNextHop::None => NextHop::None {},
            },
        )
    };
    routes.iter().map(to_route).collect()
}

/// The VPN gateway of `hub` as a next hop, the preferred instance first.
fn gateway_hops(hub: &Vnet<'_>) -> NextHop {
    let hop = |instance: &super::index::Instance<'_>| GatewayHop {
        agent: instance.agent.id.clone(),
        address: instance.address,
    };
    NextHop::VirtualNetworkGateway {
        gateways: hub.instances.iter().map(hop).collect(),
        spread: hub.gateway.is_some_and(|g| g.active_active),
    }
}
