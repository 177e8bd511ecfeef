//! Computes the effective routes of a subnet: collects the routes of all sources, then applies Azure's precedence (R7
//! to R9).

use super::index::{Index, Vnet};
use super::prefix;
use crate::resource::{RouteTable, Subnet, UserNextHop};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{Ipv4Addr, Ipv6Addr};
use tombolo_engine::routing::{Candidate, select_best};
use tombolo_proto::route::{EffectiveRoute, GatewayHop, NextHop, RouteSource, RouteState};

/// The private blocks that Azure drops by default: 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 and 100.64.0.0/10 (R1).
const RESERVED: [Ipv4Net; 4] = [
    Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 12),
    Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10),
];
/// The default route of IPv4.
const ALL_V4: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0));
/// The default route of IPv6.
const ALL_V6: IpNet = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0));

/// All effective routes of a subnet, active and inactive, in the order of the API: system, gateway and user routes,
/// each ordered by kind and prefix. Learned routes are not among them.
pub(super) fn effective(index: &Index<'_>, vnet: &Vnet<'_>, subnet: &Subnet) -> Vec<EffectiveRoute> {
    let table = table_of(index, subnet);
    let mut routes = system(vnet, table);
    routes.extend(gateway(index, vnet, table));
    routes.extend(user(index, vnet, table));
    select_best(
        routes
            .into_iter()
            .map(|route| Candidate::configured(route, true))
            .collect(),
    )
}

/// The route table of a subnet (R17). `None`: the subnet has none.
pub(super) fn table_of<'t>(index: &Index<'t>, subnet: &Subnet) -> Option<&'t RouteTable> {
    let id = subnet.route_table.as_ref()?;
    index.topology.route_tables.get(id).map(|table| &**table)
}

/// An active route without a name. `select_best` compares all routes later, and may make this one inactive.
fn route(source: RouteSource, prefix: IpNet, next_hop: NextHop) -> EffectiveRoute {
    EffectiveRoute {
        name: None,
        source,
        state: RouteState::Active,
        prefix,
        next_hop,
    }
}

/// The system routes of a subnet: to its VNet, to the peered VNets and to the Internet, and those that drop the private
/// blocks (R1 to R4, R9).
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
        // A user-defined 0.0.0.0/0 route also applies to private destinations. So a subnet with such a route has no
        // routes that drop the private blocks (R9).
        let user_default = table.is_some_and(|t| t.routes.iter().any(|r| r.prefix == ALL_V4));
        if !user_default {
            // If one address range of this VNet or of a peered VNet contains a whole private block, the subnet has no
            // route that drops the block. If a range is only a part of the block, that route stays: the range's own
            // route has the longer prefix and wins (R2).
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

/// The configured gateway routes of a subnet. Empty if the subnet's VNet uses no gateway, or if the subnet's route
/// table disables the propagation of gateway routes (R5, R15).
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

/// The VPN gateway of `hub` as a next hop, the preferred instance first. If the list of instances is empty, agents drop
/// the packets that match the route.
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
