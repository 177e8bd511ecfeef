//! Builds the transit tables of a VPN gateway, which map destinations to connections.

use super::lpm::Lpm;
use super::resolve::Resolver;
use super::{Transit, set};
use ipnet::IpNet;
use std::cmp::Reverse;
use std::iter;
use tombolo_proto::config::{GatewayConnection, GatewayKind, Role};
use tombolo_proto::id::ResourceId;
use tombolo_proto::route::RouteOrigin;

/// The best connection for each configured or learned prefix. Connections with a link that is up are preferred, then
/// those with the higher weight, then those with the shorter AS path. With `advertised`, the table has only connections
/// whose prefixes the gateway advertises to its other connections (G18, G19). The table is empty if the agent is no VPN
/// gateway.
pub(super) fn transit_table(resolver: &Resolver<'_>, advertised: bool) -> Lpm<Option<Transit>> {
    let Role::VpnGateway {
        transit,
        connections,
        local_prefixes,
        ..
    } = &resolver.config.role
    else {
        return Lpm::default();
    };
    let of = |id: &ResourceId| connections.iter().find(|c| c.connection == *id);
    let mut candidates = Vec::new();
    for route in transit {
        let connection = of(&route.connection);
        let entry = Transit {
            connection: route.connection.clone(),
            link: resolver.usable(route.via.iter()),
            exchange: connection.is_some_and(|c| c.exchange),
        };
        if advertised && !connection.is_some_and(GatewayConnection::is_advertised) {
            continue;
        }
        let weight = connection.map_or(0, |c| c.weight);
        candidates.push((route.prefix, false, Reverse(weight), 1, entry));
    }
    // Routes learned from a circuit are excluded: this gateway does not forward to circuits (G21).
    for t in resolver.accepted.iter().filter(|t| t.kind == GatewayKind::Vpn) {
        let Some(connection) = t.connection else { continue };
        let entry = Transit {
            connection: connection.connection.clone(),
            link: resolver.usable(iter::once(&t.via)),
            exchange: connection.exchange,
        };
        let weight = Reverse(connection.weight);
        candidates.push((t.route.prefix, t.down, weight, t.route.as_path.len(), entry));
    }
    // The sort is stable. So among equal candidates a configured one is preferred to a learned one, and among learned
    // ones the order of their senders' names decides.
    candidates.sort_by_key(|(prefix, down, weight, hops, _)| (*prefix, *down, *weight, *hops));
    let mut table = Lpm::default();
    for (prefix, .., entry) in candidates {
        if table.exact(prefix).is_none() {
            table.insert(prefix, Some(entry));
        }
    }
    // Lookups use the longest prefix. A local prefix gets an entry without a connection, so that the packets to it do
    // not go to a site that announces a larger prefix.
    let configured = set(&transit.iter().map(|t| t.prefix).collect::<Vec<_>>());
    let learned = resolver
        .accepted
        .iter()
        .filter(|t| t.connection.is_some())
        .map(|t| t.route.prefix);
    let learned = set(&learned.collect::<Vec<_>>());
    for own in local_prefixes
        .iter()
        .filter(|p| learned.covers(**p) && !configured.covers(**p))
    {
        if table.exact(*own).is_none() {
            table.insert(*own, None);
        }
    }
    table
}

/// The configured and learned prefixes of all sites of this VPN gateway (T6).
pub(super) fn site_prefixes(resolver: &Resolver<'_>) -> Lpm<()> {
    let mut prefixes: Vec<IpNet> = resolver
        .accepted
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
