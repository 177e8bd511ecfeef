//! Tests which learned routes a host installs, without a kernel.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

use super::super::plan::{Ingress, Lookup, Route as KernelRoute};
use super::*;
use tombolo_engine::tables::NicIndex;
use tombolo_proto::config::{
    CircuitLink, EDGE_ASN, ForeignSources, GatewayKind, Link, Nic, Probes, Relation, Space, SpaceKind, Speaker, Subnet,
    Transport, UsedGateway,
};
use tombolo_proto::id::{AgentId, PublicKey, ResourceId};
use tombolo_proto::route::{EffectiveRoute, GatewayHop, NextHop, RouteOrigin, RouteSource, RouteState};

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn nets(text: &str) -> Vec<IpNet> {
    text.split_whitespace().map(net).collect()
}

fn ids() -> KernelIds {
    KernelIds::of("tl-a", None, 1)
}

fn effective(source: RouteSource, prefix: &str, next_hop: NextHop) -> EffectiveRoute {
    EffectiveRoute {
        name: None,
        source,
        state: RouteState::Active,
        prefix: net(prefix),
        next_hop,
    }
}

fn hop() -> GatewayHop {
    GatewayHop {
        agent: AgentId::new("gw").unwrap(),
        address: "10.1.255.4".parse().unwrap(),
    }
}

/// A VM of 10.1.0.0/16 that uses a gateway with BGP, and has a configured route to 10.9.0.0/16 by that gateway.
fn vm() -> AgentConfig {
    let (vnet, subnet) = (ResourceId::new("/vnet"), ResourceId::new("/vnet/subnets/a"));
    AgentConfig {
        agent: AgentId::new("vm").unwrap(),
        vnet: vnet.clone(),
        address_space: nets("10.1.0.0/16"),
        mtu: 1420,
        probes: Probes::default(),
        role: Role::Vm {
            nics: vec![Nic {
                id: ResourceId::new("/nic"),
                addresses: nets("10.1.0.4/24"),
                subnet: subnet.clone(),
                ip_forwarding: false,
                host_routes: Vec::new(),
            }],
            served: vec![],
            gateways: vec![UsedGateway {
                gateway: ResourceId::new("/gw"),
                kind: GatewayKind::Vpn,
                spread: false,
                instances: vec![hop()],
                edges: vec![],
            }],
        },
        subnets: vec![Subnet {
            id: subnet,
            prefixes: nets("10.1.0.0/24"),
            routes: vec![
                effective(RouteSource::Default, "10.1.0.0/16", NextHop::VnetLocal {}),
                effective(RouteSource::Default, "0.0.0.0/0", NextHop::Internet {}),
                effective(
                    RouteSource::VirtualNetworkGateway,
                    "10.9.0.0/16",
                    NextHop::VirtualNetworkGateway {
                        gateways: vec![hop()],
                        spread: false,
                    },
                ),
            ],
            isolated: false,
        }],
        spaces: vec![Space {
            vnet,
            kind: SpaceKind::Local {},
            prefixes: nets("10.1.0.0/16"),
            owners: vec![],
        }],
        links: vec![Link {
            peer: AgentId::new("gw").unwrap(),
            public_key: PublicKey([7; 32]),
            preshared_key: None,
            quic: None,
            transport: Transport::Automatic,
            endpoint: None,
            quic_endpoint: None,
            peer_lanes: 1,
            many_routes: false,
            always_on: true,
            initiator: true,
            relation: Relation::Gateway {},
            sources: nets("10.1.255.4/32 10.9.0.0/16"),
            foreign: ForeignSources::None,
            arrivals: Vec::new(),
            monitored: false,
            third_party: false,
            dpd_timeout: None,
        }],
        security: None,
        front_ends: Vec::new(),
        limits: None,
    }
}

fn routes(prefixes: &str) -> Arc<Vec<Route>> {
    let route = |prefix| Route {
        prefix,
        via: None,
        as_path: vec![65_021],
        weight: 0,
        origin: RouteOrigin::Site,
    };
    Arc::new(nets(prefixes).into_iter().map(route).collect())
}

fn told(prefixes: &str) -> RoutingState {
    RoutingState {
        received: [(AgentId::new("gw").unwrap(), routes(prefixes))].into(),
        ..RoutingState::default()
    }
}

/// A host in 192.168.7.0/24 and 172.20.0.0/30, which must reach the controller at 203.0.113.5, and other destinations,
/// by its own routes.
fn host() -> Host {
    let connected = |interface: &str, network: &str| Connected {
        interface: interface.into(),
        network: net(network),
    };
    Host {
        connected: vec![connected("eth0", "192.168.7.0/24"), connected("eth1", "172.20.0.0/30")],
        needed: vec![
            (net("203.0.113.5/32"), Need::Controller),
            (net("198.51.100.53/32"), Need::NameServer),
            (net("10.66.0.7/32"), Need::Endpoint),
            (net("10.200.0.0/16"), Need::Protected),
        ],
    }
}

fn filtered(config: &AgentConfig, prefixes: &str, allow_default: bool) -> Filtered {
    filter(config, &told(prefixes), &host(), ids(), allow_default)
}

/// Finding 2 of docs/security.md: a learned prefix that clashes is left out, whether it is inside, around or equal to
/// the network that the host needs. All other learned prefixes are installed, and there is no error.
#[test]
fn what_the_host_needs_is_not_taken_from_it() {
    for (prefix, reason) in [
        ("192.168.7.0/24", "host_connected"),
        ("192.168.0.0/16", "host_connected"),
        ("192.168.7.9/32", "host_connected"),
        ("172.16.0.0/12", "host_connected"),
        ("203.0.113.0/24", "host_controller"),
        ("198.51.100.53/32", "host_name_server"),
        ("10.66.0.0/16", "host_endpoint"),
        ("10.200.3.0/24", "host_protected"),
        ("8.0.0.0/5", "host_endpoint"),
    ] {
        let all = filtered(&vm(), &format!("{prefix} 10.50.0.0/16 192.168.8.0/24"), false);
        let left_out: Vec<_> = all.left_out.iter().map(|(p, c)| (*p, c.name())).collect();
        assert_eq!(left_out, [(net(prefix), reason)]);
        let set: Vec<IpNet> = all.plan.routes.keys().copied().collect();
        assert_eq!(
            set,
            nets("10.1.0.0/16 10.9.0.0/16 10.50.0.0/16 192.168.8.0/24"),
            "{prefix}"
        );
        all.configured.check_overlap(&host().connected).unwrap();
        all.plan.check_overlap(&host().connected).unwrap();
    }
    assert_eq!(
        filtered(&vm(), "192.168.0.0/16", false).left_out[&net("192.168.0.0/16")].to_string(),
        "it overlaps 192.168.7.0/24, to which this host is connected on eth0 (D22)"
    );
}

/// D22: a configured prefix that overlaps the host's network is an error, whether learned routes overlap it too or not.
#[test]
fn a_configured_overlap_is_an_error_as_before() {
    let mut config = vm();
    let behind = config.subnets[0].routes[2].next_hop.clone();
    config.subnets[0]
        .routes
        .push(effective(RouteSource::VirtualNetworkGateway, "192.168.0.0/16", behind));
    for learned in ["", "192.168.0.0/16", "192.168.7.0/24"] {
        let all = filtered(&config, learned, false);
        assert!(all.configured.check_overlap(&host().connected).is_err(), "{learned}");
    }
}

#[test]
fn a_default_route_in_pieces_is_a_default_route() {
    let pieces = |text: &str| pieces_of_default(nets(text)).into_iter().collect::<Vec<_>>();
    for together in [
        "0.0.0.0/1 128.0.0.0/1",
        "0.0.0.0/2 64.0.0.0/2 128.0.0.0/2 192.0.0.0/2",
        "0.0.0.0/1 128.0.0.0/2 192.0.0.0/3",
        "::/1 8000::/1",
        "2000::/3",
    ] {
        let mut expected = nets(together);
        expected.sort_unstable();
        assert_eq!(pieces(together), expected);
        // Further prefixes, without which the others also act as a default route, are not returned.
        assert_eq!(pieces(&format!("{together} 10.0.0.0/8 fd00::/8")), expected);
    }
    // Prefixes that together contain all addresses except one /24 also act as a default route.
    let mut all_but_one: Vec<IpNet> = Vec::new();
    let mut rest = net("0.0.0.0/0");
    while rest.prefix_len() < 24 {
        let halves: Vec<IpNet> = rest.subnets(rest.prefix_len() + 1).unwrap().collect();
        let inside = usize::from(halves[1].contains(&net("203.0.113.0/24")));
        all_but_one.push(halves[1 - inside]);
        rest = halves[inside];
    }
    let found = pieces_of_default(all_but_one.iter().copied());
    assert!(
        all_but_one.iter().all(|p| p.prefix_len() > 3 || found.contains(p)),
        "{found:?}"
    );
    for apart in [
        "0.0.0.0/1",
        "128.0.0.0/1",
        "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16",
        "fc00::/7",
        "0.0.0.0/0 ::/0",
        "",
    ] {
        assert_eq!(pieces(apart), nets(""), "{apart}");
    }
}

#[test]
fn learned_defaults_need_the_hosts_consent() {
    for together in ["0.0.0.0/0", "0.0.0.0/2 64.0.0.0/2 128.0.0.0/2 192.0.0.0/2"] {
        let refused = filtered(&vm(), together, false);
        assert_eq!(refused.left_out.keys().copied().collect::<Vec<_>>(), nets(together));
        assert!(refused.left_out.values().all(|c| *c == Clash::Default));
        assert_eq!(refused.plan.routes.len(), 2);
        assert!(refused.configured.refused_defaults.is_empty());
    }
    let allowed = filtered(&vm(), "0.0.0.0/0", true);
    assert!(allowed.left_out.is_empty() && allowed.plan.routes.contains_key(&net("0.0.0.0/0")));
}

/// A user-defined route and a learned route each cover half of the addresses. The learned one is left out, and the
/// user-defined one stays.
#[test]
fn a_learned_half_does_not_turn_a_users_half_into_a_default() {
    let mut config = vm();
    let user = |prefix| {
        let address = "10.1.0.9".parse().unwrap();
        effective(RouteSource::User, prefix, NextHop::VirtualAppliance { address })
    };
    config.subnets[0].routes.push(user("0.0.0.0/1"));
    let all = filter(&config, &told("128.0.0.0/1"), &Host::default(), ids(), false);
    assert_eq!(all.left_out, [(net("128.0.0.0/1"), Clash::Default)].into());
    assert!(all.plan.routes.contains_key(&net("0.0.0.0/1")));
    // Two user-defined routes that each cover half of the addresses together count as a default route.
    config.subnets[0].routes.push(user("128.0.0.0/1"));
    let all = filter(&config, &told(""), &host(), ids(), false);
    assert_eq!(all.configured.refused_defaults, nets("0.0.0.0/1 128.0.0.0/1"));
    all.configured.check_overlap(&host().connected).unwrap();
    let allowed = filter(&config, &told(""), &Host::default(), ids(), true);
    assert!(allowed.plan.routes.contains_key(&net("128.0.0.0/1")) && allowed.left_out.is_empty());
}

/// The customer of a circuit may announce the network of the line, and a default route. Without `allow_default_route`
/// the edge's own packets do not use that default route.
#[test]
fn a_customers_routes_are_not_the_edges_own() {
    let circuit = ResourceId::new("/er");
    let mut config = vm();
    config.links.clear();
    (config.subnets, config.address_space) = (vec![], vec![]);
    config.role = Role::CircuitEdge {
        circuit: circuit.clone(),
        link: CircuitLink::Primary,
        line: net("172.20.0.2/30"),
        networks: vec![],
        vnet_to_vnet: false,
        bgp: Speaker {
            asn: EDGE_ASN,
            router_id: [1, 1, 1, 1].into(),
            neighbours: vec![tombolo_proto::config::Neighbour {
                id: circuit.clone(),
                address: "172.20.0.1".parse().unwrap(),
                local_address: "172.20.0.2".parse().unwrap(),
                asn: 65_021,
                multihop: false,
                bfd: true,
                password: None,
                max_prefixes: 4000,
                hold_time: 180,
            }],
        },
    };
    let dynamic = RoutingState {
        learned: [(
            circuit,
            routes("172.20.0.0/30 10.50.0.0/16 192.168.7.0/24 203.0.113.5/32 0.0.0.0/0"),
        )]
        .into(),
        ..RoutingState::default()
    };
    let next = KernelRoute::Line("172.20.0.1".parse().unwrap());
    let all = filter(&config, &dynamic, &host(), ids(), false);
    let set: Vec<_> = nets("0.0.0.0/0 10.50.0.0/16 172.20.0.0/30")
        .into_iter()
        .map(|p| (p, next))
        .collect();
    assert_eq!(all.plan.routes.clone().into_iter().collect::<Vec<_>>(), set);
    let names: Vec<_> = all.left_out.values().map(Clash::name).collect();
    assert_eq!(names, ["host_connected", "host_controller"]);
    let default: Vec<_> = all.plan.rules.iter().filter(|r| r.lookup == Lookup::Default).collect();
    assert!(
        matches!(default[..], [rule] if rule.ingress == Some(Ingress::Tun(NicIndex::FIRST)) && !rule.v6),
        "{default:?}"
    );
    assert!(all.plan.rules.iter().all(|r| r.lookup != Lookup::MainButDefault));
    // With `allow_default_route` the edge's own packets use the customer's default route.
    let all = filter(&config, &dynamic, &host(), ids(), true);
    assert!(
        all.plan
            .rules
            .iter()
            .any(|r| r.lookup == Lookup::Default && r.ingress.is_none())
    );
}

#[test]
fn name_servers_are_read_and_local_ones_are_not_needed() {
    let text = "# nameserver 1.1.1.1\nsearch example\nnameserver 198.51.100.53\nnameserver 127.0.0.53\nnameserver fd00::53\nnameserver x\n";
    let expected: Vec<IpAddr> = vec!["198.51.100.53".parse().unwrap(), "fd00::53".parse().unwrap()];
    assert_eq!(name_servers(text), expected);
}
