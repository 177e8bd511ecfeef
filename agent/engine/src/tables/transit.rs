//! At a VPN gateway: which connection leads to a destination.

use super::lpm::Lpm;
use super::resolve::Resolver;
use super::{Transit, set};
use ipnet::IpNet;
use std::cmp::Reverse;
use std::iter;
use tombolo_proto::config::{GatewayConnection, GatewayKind, Role};
use tombolo_proto::id::ResourceId;
use tombolo_proto::route::RouteOrigin;

/// At a VPN gateway: what lies behind its connections, configured or learned; of one prefix what answers before what does
/// not, the higher weight, the shorter path. `exchanged`: only of connections that are known to others by exchange (G18, G19).
pub(super) fn transit_table(resolver: &Resolver<'_>, exchanged: bool) -> Lpm<Option<Transit>> {
    let Role::VpnGateway {
        transit,
        connections,
        own_side,
        ..
    } = &resolver.config.role
    else {
        return Lpm::default();
    };
    let of = |id: &ResourceId| connections.iter().find(|c| c.connection == *id);
    let mut offers = Vec::new();
    for route in transit {
        let connection = of(&route.connection);
        let entry = Transit {
            connection: route.connection.clone(),
            link: resolver.usable(route.via.iter()),
            exchange: connection.is_some_and(|c| c.exchange),
        };
        if exchanged && !connection.is_some_and(GatewayConnection::is_advertised) {
            continue;
        }
        let weight = connection.map_or(0, |c| c.weight);
        offers.push((route.prefix, false, Reverse(weight), 1, entry));
    }
    // G21: what was learned from a circuit is no way on from here.
    for t in resolver.taken.iter().filter(|t| t.kind == GatewayKind::Vpn) {
        let Some(connection) = t.connection else { continue };
        let entry = Transit {
            connection: connection.connection.clone(),
            link: resolver.usable(iter::once(&t.via)),
            exchange: connection.exchange,
        };
        let weight = Reverse(connection.weight);
        offers.push((t.route.prefix, t.down, weight, t.route.as_path.len(), entry));
    }
    // Stable: configured before learned, then in the order of names.
    offers.sort_by_key(|(prefix, down, weight, hops, _)| (*prefix, *down, *weight, *hops));
    let mut table = Lpm::default();
    for (prefix, .., entry) in offers {
        if table.exact(prefix).is_none() {
            table.insert(prefix, Some(entry));
        }
    }
    // The longest prefix decides: a site that announces everything around the own side does not get what is sent there.
    let configured = set(&transit.iter().map(|t| t.prefix).collect::<Vec<_>>());
    let learned = resolver
        .taken
        .iter()
        .filter(|t| t.connection.is_some())
        .map(|t| t.route.prefix);
    let learned = set(&learned.collect::<Vec<_>>());
    for own in own_side
        .iter()
        .filter(|p| learned.covers(**p) && !configured.covers(**p))
    {
        if table.exact(*own).is_none() {
            table.insert(*own, None);
        }
    }
    table
}

/// T6: the prefixes of sites, as far as a VPN gateway knows them.
pub(super) fn site_prefixes(resolver: &Resolver<'_>) -> Lpm<()> {
    let mut prefixes: Vec<IpNet> = resolver
        .taken
        .iter()
        .filter(|t| t.kind == GatewayKind::Vpn && t.route.origin == RouteOrigin::Site)
        .map(|t| t.route.prefix)
        .collect();
    if let Role::VpnGateway {
        transit, connections, ..
    } = &resolver.config.role
    {
        let of_site = |id: &ResourceId| connections.iter().any(|c| c.site && c.connection == *id);
        prefixes.extend(transit.iter().filter(|t| of_site(&t.connection)).map(|t| t.prefix));
    }
    set(&prefixes)
}
