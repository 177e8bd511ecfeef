//! Learned routes are untrusted input. The tests show which sources the packets from a link may have because of learned
//! routes (D10), and which routes are refused.
#![cfg(feature = "links")]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{agent, id, ip, link, net, nets, space, udp, vm};
use std::sync::Arc;
use tombolo_engine::decide::{Ingress, decide};
use tombolo_engine::packet::parse;
use tombolo_engine::routing::{
    MAX_ROUTES_FROM_GATEWAY, Refusal, RoutingState, accept_routes, decode, refused, route_advertisements,
};
use tombolo_engine::tables::Tables;
use tombolo_engine::verdict::Verdict;
use tombolo_proto::config::{
    AgentConfig, CircuitLink, CircuitNetwork, EDGE_ASN, GatewayConnection, GatewayKind, MAX_PREFIXES, Neighbour,
    Relation, Role, SiteTtl, SpaceKind, Speaker, TransitRoute, UsedGateway,
};
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::route::{GatewayHop, NextHop, Route, RouteOrigin};

fn route(prefix: &str, as_path: &[u32]) -> Route {
    Route {
        prefix: net(prefix),
        via: None,
        as_path: as_path.to_vec(),
        weight: 0,
        origin: RouteOrigin::Site,
    }
}

fn routes(prefixes: &[&str], as_path: &[u32]) -> Arc<Vec<Route>> {
    Arc::new(prefixes.iter().map(|p| route(p, as_path)).collect())
}

fn received(by: &[(&str, &[&str], &[u32])]) -> RoutingState {
    RoutingState {
        received: by.iter().map(|(a, p, path)| (agent(a), routes(p, path))).collect(),
        ..RoutingState::default()
    }
}

fn learned(by: &str, prefixes: &[&str], as_path: &[u32]) -> RoutingState {
    RoutingState {
        learned: [(id(by), routes(prefixes, as_path))].into(),
        ..RoutingState::default()
    }
}

/// Whether a packet from `from` passes the source check.
fn may(tables: &Tables, from: &AgentId, source: &str, destination: &str) -> bool {
    let packet = parse(&udp(source, destination, 64, 8)).unwrap();
    let ingress = Ingress::Link(tables.link_with(from).unwrap());
    match decide(tables, ingress, &packet, None) {
        Verdict::Drop(reason) => reason.name() != "spoofed_source",
        Verdict::Deliver(_) | Verdict::Translate(_) | Verdict::Forward { .. } | Verdict::TimeExceeded => true,
    }
}

/// The VM 10.1.0.4 in a spoke with 10.1.0.0/16 and fd01::/48. Its hub 10.2.0.0/16 has a VPN gateway with two instances
/// and an ExpressRoute gateway. By the configuration, packets from the instances of the VPN gateway may have sources in
/// 10.2.0.0/16, and in 10.9.0.0/16, which the gateway reaches over a connection. The spoke is also peered with
/// 10.3.0.0/16.
fn spoke_vm() -> AgentConfig {
    let relayed = ["10.2.0.0/16", "10.9.0.0/16"];
    let links = vec![
        link("er", Relation::Gateway {}, &["10.2.255.9/32"]),
        link(
            "gw1",
            Relation::Gateway {},
            &[&relayed[..], &["10.2.255.4/32"]].concat(),
        ),
        link(
            "gw2",
            Relation::Gateway {},
            &[&relayed[..], &["10.2.255.5/32"]].concat(),
        ),
        link(
            "three",
            Relation::Peering {
                peering: id("to-three"),
            },
            &["10.3.0.4/32"],
        ),
    ];
    let mut config = vm("vm", &["10.1.0.4/24", "fd01::4/64"], links, &[("10.1.0.4/32", "vm")]);
    config.address_space = nets(&["10.1.0.0/16", "fd01::/48"]);
    config.spaces[0].prefixes = config.address_space.clone();
    for (vnet, prefixes) in [
        ("hub", ["10.2.0.0/16", "fd02::/48"]),
        ("three", ["10.3.0.0/16", "fd03::/48"]),
    ] {
        let kind = SpaceKind::Peered {
            peering: id(&format!("to-{vnet}")),
            allow_access: true,
            allow_forwarded: false,
        };
        config.spaces.push(space(vnet, kind, &prefixes, &[]));
    }
    let hop = |name: &str, address: &str| GatewayHop {
        agent: agent(name),
        address: ip(address),
    };
    let Role::Vm { gateways, .. } = &mut config.role else {
        panic!()
    };
    *gateways = vec![
        UsedGateway {
            gateway: id("er"),
            kind: GatewayKind::ExpressRoute,
            spread: false,
            instances: vec![hop("er", "10.2.255.9")],
            edges: Vec::new(),
        },
        UsedGateway {
            gateway: id("vpn"),
            kind: GatewayKind::Vpn,
            spread: true,
            instances: vec![hop("gw1", "10.2.255.4"), hop("gw2", "10.2.255.5")],
            edges: Vec::new(),
        },
    ];
    config
}

/// Finding 1 of docs/security.md, at a VM that uses remote gateways: a gateway advertises a route for a prefix that the
/// configuration assigns to others, for a part of it, or for a larger one. In no case may packets from the gateway have
/// sources in the assigned prefix.
#[test]
fn no_learned_route_lets_a_gateway_speak_for_assigned_spaces() {
    let announcements: [&[&str]; 7] = [
        &["10.0.0.0/8", "fc00::/7"],
        &["0.0.0.0/0", "::/0"],
        &["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"],
        &[
            "10.1.0.0/16",
            "10.2.0.0/16",
            "10.3.0.0/16",
            "fd01::/48",
            "fd02::/48",
            "fd03::/48",
        ],
        &["10.1.0.0/24", "10.2.0.0/17", "10.3.0.0/24", "10.3.0.4/32", "fd03::/64"],
        &["10.0.0.0/14", "10.3.0.0/24", "10.3.0.0/16", "fd00::/8", "fd03::/64"],
        &["0.0.0.0/0", "10.0.0.0/8", "10.3.0.0/30", "::/0"],
    ];
    for prefixes in announcements {
        for sender in ["er", "gw1", "gw2"] {
            let tables = Tables::build(&spoke_vm(), &received(&[(sender, prefixes, &[65_021])])).unwrap();
            for gateway in ["er", "gw1", "gw2"] {
                let may = |source: &str, destination| may(&tables, &agent(gateway), source, destination);
                for own in ["10.1.0.4", "10.1.0.5", "10.1.255.255"] {
                    assert!(!may(own, "10.1.0.4"), "{prefixes:?} of {sender}: {own} by {gateway}");
                }
                for other in [
                    "10.3.0.4",
                    "10.3.0.1",
                    "10.3.255.1",
                    "224.0.0.1",
                    "127.0.0.1",
                    "169.254.1.1",
                ] {
                    assert!(
                        !may(other, "10.1.0.4"),
                        "{prefixes:?} of {sender}: {other} by {gateway}"
                    );
                }
                for other in [
                    "fd01::5",
                    "fd02::4",
                    "fd03::4",
                    "fd03:0:0:ffff::1",
                    "fe80::1",
                    "ff02::1",
                    "::ffff:10.3.0.4",
                ] {
                    assert!(!may(other, "fd01::4"), "{prefixes:?} of {sender}: {other} by {gateway}");
                }
                // Configured sources stay unchanged.
                for relayed in ["10.2.0.4", "10.9.0.1"] {
                    assert_eq!(
                        may(relayed, "10.1.0.4"),
                        gateway != "er",
                        "{prefixes:?} of {sender}: {relayed}"
                    );
                }
            }
        }
    }
}

/// Learned routes for addresses that the configuration gives to nobody do permit sources: the default route of a site,
/// an aggregate, and a route that moves from one gateway of a hub to another at a failover.
#[test]
fn what_is_nobody_elses_may_come_by_every_gateway_of_the_hub() {
    let by = |prefixes: &[&str], sender: &str, gateway: &str, source: &str| {
        let tables = Tables::build(&spoke_vm(), &received(&[(sender, prefixes, &[65_021])])).unwrap();
        may(&tables, &agent(gateway), source, "10.1.0.4")
    };
    for gateway in ["er", "gw1", "gw2"] {
        for source in ["8.8.8.8", "10.77.0.1", "192.168.1.1", "203.0.113.9", "100.64.0.1"] {
            assert!(by(&["0.0.0.0/0"], "gw1", gateway, source), "{source} by {gateway}");
        }
        assert!(by(&["10.0.0.0/8"], "er", gateway, "10.77.0.1") && !by(&["10.0.0.0/8"], "er", gateway, "11.0.0.1"));
        assert!(by(&["172.16.0.0/12"], "gw2", gateway, "172.16.9.9"));
        // E9, E11: a route that one gateway advertises permits sources in a prefix that the configuration gives to
        // another gateway of the hub.
        for prefix in ["10.9.0.0/16", "10.9.7.0/24"] {
            assert!(by(&[prefix], "er", gateway, "10.9.7.1"), "{prefix} by {gateway}");
        }
    }
}

/// P25: a VNet is peered with the agent's VNet, and a connection of the gateway leads to it too, so the configuration
/// permits its sources on the link with the gateway. Learned routes take nothing away from configured sources.
#[test]
fn configured_sources_stay_whole() {
    let mut config = spoke_vm();
    for link in &mut config.links {
        if link.peer == agent("gw1") {
            link.sources.extend(nets(&["10.3.0.0/16", "10.0.0.0/12"]));
        }
    }
    let state = received(&[("gw1", &["10.0.0.0/8", "10.3.0.0/24", "0.0.0.0/0"], &[65_021])]);
    let tables = Tables::build(&config, &state).unwrap();
    for source in ["10.3.0.4", "10.3.255.1", "10.1.0.9", "10.2.0.4", "10.9.0.1"] {
        assert!(may(&tables, &agent("gw1"), source, "10.1.0.4"), "{source}");
        let configured = source.starts_with("10.2.") || source.starts_with("10.9.");
        assert_eq!(may(&tables, &agent("gw2"), source, "10.1.0.4"), configured, "{source}");
    }
}

/// The VPN gateway of the hub 10.2.0.0/16. The spoke 10.1.0.0/16 uses the gateway. The gateway has a BGP session with a
/// site, and a connection to 10.9.0.0/16.
fn hub_gateway() -> AgentConfig {
    let site = AgentId::of_site(&id("c-site"));
    let mut links = vec![
        link(
            "branch",
            Relation::Connection {
                connection: id("c-branch"),
            },
            &["10.9.0.0/16"],
        ),
        link("vm", Relation::GatewayClient {}, &["10.2.0.4/32"]),
        link("spoke", Relation::GatewayClient {}, &["10.1.0.4/32"]),
        link("er", Relation::OtherGateway {}, &[]),
        link(
            site.as_str(),
            Relation::Site {
                connection: id("c-site"),
            },
            &["172.31.0.1/32"],
        ),
    ];
    links.sort_by(|a, b| a.peer.cmp(&b.peer));
    let mut config = vm("gw", &["10.2.255.4/24"], links, &[("10.2.0.4/32", "vm")]);
    config.address_space = nets(&["10.2.0.0/16"]);
    config.spaces[0].prefixes = config.address_space.clone();
    config.spaces.push(space(
        "spoke",
        SpaceKind::GatewayClient {},
        &["10.1.0.0/16"],
        &[("10.1.0.4/32", "spoke")],
    ));
    let peering = NextHop::VnetPeering {
        peering: id("to-spoke"),
    };
    config.subnets[0].routes = vec![
        common::route("10.2.0.0/16", NextHop::VnetLocal {}),
        common::route("10.1.0.0/16", peering),
    ];
    let connection = |name: &str, end: &AgentId, asn, site| GatewayConnection {
        connection: id(name),
        ends: vec![end.clone()],
        exchange: true,
        asn,
        site,
        weight: 0,
    };
    config.role = Role::VpnGateway {
        gateway: id("gw"),
        addresses: vec![ip("10.2.255.4"), ip("169.254.21.1")],
        local_prefixes: nets(&["10.1.0.0/16", "10.2.0.0/16"]),
        asn: 65_515,
        transit: vec![TransitRoute {
            prefix: net("10.9.0.0/16"),
            connection: id("c-branch"),
            via: vec![agent("branch")],
        }],
        connections: vec![
            connection("c-branch", &agent("branch"), 65_516, false),
            connection("c-site", &site, 65_021, true),
        ],
        bgp: None,
        site_ttl: SiteTtl::SilentHop,
    };
    config
}

/// A gateway drops packets from a site if their source lies within the gateway's local prefixes, within the prefixes of
/// another connection, or is an address of the gateway. It does so even if the site announces such a prefix.
#[test]
fn a_site_speaks_for_itself_alone() {
    let site = AgentId::of_site(&id("c-site"));
    for prefixes in [
        &["0.0.0.0/0"][..],
        &["10.0.0.0/8", "160.0.0.0/3"],
        &["0.0.0.0/1", "128.0.0.0/1"],
        &["10.9.0.0/16", "10.9.0.0/24", "10.77.0.0/16", "192.168.0.0/16"],
    ] {
        let tables = Tables::build(&hub_gateway(), &learned("c-site", prefixes, &[65_021])).unwrap();
        for source in [
            "10.2.0.4",
            "10.1.0.4",
            "10.9.0.4",
            "10.9.200.1",
            "169.254.21.1",
            "10.2.255.4",
        ] {
            assert!(!may(&tables, &site, source, "10.2.0.4"), "{prefixes:?}: {source}");
        }
        assert!(may(&tables, &site, "10.77.0.1", "10.2.0.4"), "{prefixes:?}");
        assert!(may(&tables, &site, "172.31.0.1", "10.2.0.4"), "its own address");
        // Packets from the other connection may still have its configured sources, and no source that the site
        // announced.
        assert!(may(&tables, &agent("branch"), "10.9.0.4", "10.2.0.4"));
        assert!(!may(&tables, &agent("branch"), "10.77.0.1", "10.2.0.4"));
    }
}

/// P21d: by a user-defined route, a spoke sends packets for the hub or for another spoke to the gateway. The gateway
/// does not forward these packets to a site that announces a larger prefix.
#[test]
fn a_learned_super_prefix_does_not_draw_the_own_sides_packets() {
    let next = |prefixes: &[&str], from: &str, source: &str, destination: &str| {
        let tables = Tables::build(&hub_gateway(), &learned("c-site", prefixes, &[65_021])).unwrap();
        let ingress = Ingress::Link(tables.link_with(&agent(from)).unwrap());
        match decide(
            &tables,
            ingress,
            &parse(&udp(source, destination, 64, 8)).unwrap(),
            None,
        ) {
            Verdict::Forward { link, .. } => tables.peer(link).to_string(),
            other => format!("{other:?}"),
        }
    };
    let site = AgentId::of_site(&id("c-site")).to_string();
    for prefixes in [&["10.0.0.0/8"][..], &["0.0.0.0/0"], &["0.0.0.0/1", "10.0.0.0/14"]] {
        assert_eq!(next(prefixes, "spoke", "10.1.0.4", "10.2.0.4"), "vm", "{prefixes:?}");
        assert_eq!(next(prefixes, "vm", "10.2.0.4", "10.1.0.4"), "spoke", "{prefixes:?}");
        assert_eq!(
            next(prefixes, "spoke", "10.1.0.4", "10.9.0.4"),
            "branch",
            "{prefixes:?}"
        );
        assert_eq!(next(prefixes, "spoke", "10.1.0.4", "10.77.0.4"), site, "{prefixes:?}");
    }
}

/// The reasons for which learned routes are refused, each with the number of routes.
fn reasons(config: &AgentConfig, state: &RoutingState) -> Vec<(Refusal, usize)> {
    refused(config, state)
        .into_iter()
        .map(|r| (r.reason, r.count))
        .collect()
}

/// Finding 7 of docs/security.md: a VPN gateway refuses routes of a BGP neighbour and of a remote gateway for the same
/// reasons. For each reason there is also a similar route that is accepted.
#[test]
fn routes_are_refused_by_reason() {
    let config = hub_gateway();
    let long = vec![65_021; 256];
    let cases: [(&str, &[u32], Option<Refusal>); 30] = [
        ("10.77.0.0/16", &[65_021], None),
        ("10.77.0.0/16", &[65_021, 64_999], None),
        ("10.77.0.0/16", &[], Some(Refusal::FirstAs)),
        ("10.77.0.0/16", &[64_999, 65_021], Some(Refusal::FirstAs)),
        ("10.77.0.0/16", &[65_516], Some(Refusal::FirstAs)),
        ("10.77.0.0/16", &[65_021, 65_515], Some(Refusal::Loop)),
        ("10.77.0.0/16", &long[1..], None),
        ("10.77.0.0/16", &long, Some(Refusal::PathLength)),
        ("10.2.0.0/16", &[65_021], Some(Refusal::OwnSpace)),
        ("10.1.7.0/24", &[65_021], Some(Refusal::OwnSpace)),
        ("10.0.0.0/8", &[65_021], None),
        ("0.0.0.0/0", &[65_021], None),
        ("0.0.0.0/1", &[65_021], None),
        ("0.0.0.0/8", &[65_021], Some(Refusal::Martian)),
        ("0.0.0.0/9", &[65_021], Some(Refusal::Martian)),
        ("127.0.0.1/32", &[65_021], Some(Refusal::Martian)),
        ("169.254.169.254/32", &[65_021], Some(Refusal::Martian)),
        ("192.0.0.0/24", &[65_021], Some(Refusal::Martian)),
        ("224.0.0.0/4", &[65_021], Some(Refusal::Martian)),
        ("255.255.255.255/32", &[65_021], Some(Refusal::Martian)),
        ("::/0", &[65_021], None),
        ("::1/128", &[65_021], Some(Refusal::Martian)),
        ("::/128", &[65_021], Some(Refusal::Martian)),
        ("::ffff:10.0.0.0/104", &[65_021], Some(Refusal::Martian)),
        ("fe80::/64", &[65_021], Some(Refusal::Martian)),
        ("ff02::/16", &[65_021], Some(Refusal::Martian)),
        // Sites and labs use these special-purpose prefixes, so routes for them are accepted.
        ("192.0.2.0/24", &[65_021], None),
        ("198.18.0.0/15", &[65_021], None),
        ("100.64.0.0/10", &[65_021], None),
        ("2001:db8::/32", &[65_021], None),
    ];
    for (prefix, path, expected) in cases {
        let state = learned("c-site", &[prefix], path);
        let expected: Vec<_> = expected.map(|reason| (reason, 1)).into_iter().collect();
        assert_eq!(reasons(&config, &state), expected, "{prefix} by {path:?}");
        assert_eq!(
            accept_routes(&config, &state).is_empty(),
            !expected.is_empty(),
            "{prefix} by {path:?}"
        );
    }
    let of_far_gateway = |path: &[u32]| reasons(&config, &received(&[("branch", &["10.77.0.0/16"], path)]));
    assert_eq!(of_far_gateway(&[65_516, 64_999]), []);
    assert_eq!(of_far_gateway(&[]), [(Refusal::FirstAs, 1)]);
    assert_eq!(of_far_gateway(&[65_021]), [(Refusal::FirstAs, 1)]);
}

/// Gateways add no ASN to the AS paths of routes that they advertise to VMs, so a VM does not check the first ASN. A VM
/// accepts only next hops that its configuration names.
#[test]
fn inside_a_vnet_paths_are_as_they_came() {
    let config = spoke_vm();
    let of = |path: &[u32]| reasons(&config, &received(&[("gw1", &["10.77.0.0/16"], path)]));
    assert_eq!((of(&[]), of(&[65_021])), (vec![], vec![]));
    let mut astray = route("10.77.0.0/16", &[EDGE_ASN]);
    astray.via = Some(agent("three"));
    let mut state = RoutingState::default();
    state.received.insert(agent("er"), Arc::new(vec![astray]));
    assert_eq!(reasons(&config, &state), [(Refusal::NextHop, 1)]);
}

fn many(count: u32, path: &[u32]) -> Arc<Vec<Route>> {
    let prefix = |n: u32| format!("172.{}.{}.{}/32", 16 + (n >> 16), n >> 8 & 255, n & 255);
    Arc::new((0..count).map(|n| route(&prefix(n), path)).collect())
}

/// G23: if a BGP neighbour or remote gateway exceeds its limit of routes, all of its routes of that address family are
/// refused, as if its session were closed. A gateway that the VNet uses passes on routes of several neighbours, so as
/// many of its routes are accepted as the limit allows.
#[test]
fn too_many_routes_are_refused() {
    let counts =
        |config: &AgentConfig, state: &RoutingState| (accept_routes(config, state).len(), reasons(config, state));
    for (count, accepted) in [(MAX_PREFIXES, true), (MAX_PREFIXES + 1, false)] {
        for of_site in [true, false] {
            let mut state = RoutingState::default();
            match of_site {
                true => drop(state.learned.insert(id("c-site"), many(count, &[65_021]))),
                false => drop(state.received.insert(agent("branch"), many(count, &[65_516]))),
            }
            let expected = match accepted {
                true => (count as usize, vec![]),
                false => (0, vec![(Refusal::Count, count as usize)]),
            };
            assert_eq!(counts(&hub_gateway(), &state), expected);
        }
    }
    let mut state = RoutingState::default();
    let most = u32::try_from(MAX_ROUTES_FROM_GATEWAY).unwrap();
    state.received.insert(agent("gw1"), many(most + 7, &[65_021]));
    assert_eq!(
        counts(&spoke_vm(), &state),
        (MAX_ROUTES_FROM_GATEWAY, vec![(Refusal::Count, 7)])
    );
    // The other address family is not affected.
    let mut both = many(MAX_PREFIXES + 1, &[65_021]).to_vec();
    both.push(route("2001:db8::/32", &[65_021]));
    let state = RoutingState {
        learned: [(id("c-site"), Arc::new(both))].into(),
        ..RoutingState::default()
    };
    assert_eq!(counts(&hub_gateway(), &state).0, 1);
}

/// E13: the limit of a circuit's customer is the one that the configuration states. A gateway that the edge tells of
/// all routes, and its VMs, read them; a peer of version 0.1 gets the first 4,000.
#[test]
fn a_premium_customer_may_announce_more() {
    let mut config = edge();
    let Role::CircuitEdge { bgp, .. } = &mut config.role else {
        unreachable!()
    };
    bgp.neighbours[0].max_prefixes = 10_000;
    let relation = Relation::CircuitGateway { connection: id("c") };
    config.links = ["gw", "old"].map(|peer| link(peer, relation.clone(), &[])).to_vec();
    (config.links[0].many_routes, config.links[0].always_on) = (true, true);
    config.links[1].always_on = true;
    let state = |count| RoutingState {
        learned: [(ResourceId::new("circuit"), many(count, &[65_021]))].into(),
        ..RoutingState::default()
    };
    assert_eq!(accept_routes(&config, &state(10_000)).len(), 10_000);
    assert_eq!(reasons(&config, &state(10_001)), [(Refusal::Count, 10_001)]);
    let tables = route_advertisements(&config, &state(10_000));
    let counts: Vec<_> = tables.iter().map(|(_, table)| decode(table).unwrap().len()).collect();
    assert_eq!(counts, [10_000, 4000]);
}

/// The edge of a circuit accepts a customer's routes only if their AS paths start with the customer's ASN.
#[test]
fn a_customer_announces_with_its_own_asn() {
    let config = edge();
    let of = |prefix: &str, path: &[u32]| reasons(&config, &learned("circuit", &[prefix], path));
    assert_eq!(of("10.77.0.0/16", &[65_021]), []);
    assert_eq!(of("10.77.0.0/16", &[65_020]), [(Refusal::FirstAs, 1)]);
    assert_eq!(of("10.2.3.0/24", &[65_021]), [(Refusal::OwnSpace, 1)]);
    assert_eq!(of("169.254.0.0/24", &[65_021]), [(Refusal::Martian, 1)]);
}

/// The edge of a circuit that one VNet is linked to.
fn edge() -> AgentConfig {
    let circuit = ResourceId::new("circuit");
    let mut config = vm("edge", &["10.2.0.9/24"], vec![], &[]);
    config.role = Role::CircuitEdge {
        circuit: circuit.clone(),
        link: CircuitLink::Primary,
        line: net("192.168.30.18/30"),
        networks: vec![CircuitNetwork {
            connection: id("c"),
            vnet: id("hub"),
            prefixes: nets(&["10.2.0.0/16"]),
            asn: 65_515,
            address: ip("10.2.255.1"),
            gateways: Vec::new(),
        }],
        vnet_to_vnet: true,
        bgp: Speaker {
            asn: EDGE_ASN,
            router_id: [192, 168, 30, 18].into(),
            neighbours: vec![Neighbour {
                id: circuit,
                address: ip("192.168.30.17"),
                local_address: ip("192.168.30.18"),
                asn: 65_021,
                multihop: false,
                bfd: true,
                password: None,
                max_prefixes: MAX_PREFIXES,
                hold_time: 180,
            }],
        },
    };
    config
}
