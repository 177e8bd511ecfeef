//! Tests plans, and the steps from one plan to another, without a kernel.

use super::confine::Surroundings;
use super::*;
use tombolo_proto::config::{FrontEnd, Nic, Probes, Space, SpaceKind, Subnet};
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::route::EffectiveRoute;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn route(source: RouteSource, prefix: &str, next_hop: NextHop) -> EffectiveRoute {
    EffectiveRoute {
        name: None,
        source,
        state: RouteState::Active,
        prefix: net(prefix),
        next_hop,
    }
}

fn config(routes: Vec<EffectiveRoute>) -> AgentConfig {
    let (vnet, subnet) = (ResourceId::new("/vnet"), ResourceId::new("/vnet/subnets/a"));
    AgentConfig {
        agent: AgentId::new("a").unwrap(),
        vnet: vnet.clone(),
        address_space: vec![net("10.1.0.0/16")],
        mtu: 1420,
        probes: Probes::default(),
        role: Role::Vm {
            nics: vec![Nic {
                id: ResourceId::new("/nic"),
                addresses: vec![net("10.1.0.4/24"), net("fd00:1::4/64")],
                subnet: subnet.clone(),
                ip_forwarding: false,
                host_routes: Vec::new(),
            }],
            served: vec![],
            gateways: Vec::new(),
        },
        subnets: vec![Subnet {
            id: subnet,
            prefixes: vec![net("10.1.0.0/24")],
            routes,
            isolated: false,
        }],
        spaces: vec![Space {
            vnet,
            kind: SpaceKind::Local {},
            prefixes: vec![net("10.1.0.0/16")],
            owners: vec![],
        }],
        links: vec![],
        security: None,
        front_ends: Vec::new(),
        limits: None,
    }
}

fn ids() -> KernelIds {
    KernelIds::of("tl-a", None, 1)
}

fn system_routes() -> Vec<EffectiveRoute> {
    use RouteSource::{Default, User, VirtualNetworkGateway};
    let appliance = |a: &str| NextHop::VirtualAppliance {
        address: a.parse().unwrap(),
    };
    vec![
        route(Default, "10.1.0.0/16", NextHop::VnetLocal {}),
        route(
            Default,
            "10.2.0.0/16",
            NextHop::VnetPeering {
                peering: ResourceId::new("/p"),
            },
        ),
        route(
            VirtualNetworkGateway,
            "10.4.0.0/16",
            NextHop::VirtualNetworkGateway {
                gateways: vec![],
                spread: false,
            },
        ),
        route(User, "10.3.0.0/16", appliance("10.1.0.5")),
        route(User, "10.9.0.0/16", NextHop::None {}),
        route(User, "10.8.0.0/16", NextHop::Internet {}),
        route(Default, "0.0.0.0/0", NextHop::Internet {}),
        route(Default, "10.0.0.0/8", NextHop::None {}),
        route(Default, "192.168.0.0/16", NextHop::None {}),
    ]
}

/// D22: system routes with next hop Internet or None are not installed in the kernel. User-defined routes with these
/// next hops are installed.
#[test]
fn system_none_and_internet_never_reach_the_kernel() {
    let plan = KernelPlan::of(&config(system_routes()), &RoutingState::default(), ids(), true);
    let source = Some("10.1.0.4".parse().unwrap());
    let expected = BTreeMap::from([
        (net("10.1.0.0/16"), Route::Device(NicIndex::FIRST, source)),
        (net("10.2.0.0/16"), Route::Device(NicIndex::FIRST, source)),
        (net("10.3.0.0/16"), Route::Device(NicIndex::FIRST, source)),
        (net("10.4.0.0/16"), Route::Device(NicIndex::FIRST, source)),
        (net("10.8.0.0/16"), Route::Throw),
        (net("10.9.0.0/16"), Route::Device(NicIndex::FIRST, source)),
    ]);
    assert_eq!(plan.routes, expected);
}

#[test]
fn overridden_routes_are_not_installed() {
    let mut routes = system_routes();
    routes[1].state = RouteState::Invalid;
    assert!(
        !KernelPlan::of(&config(routes), &RoutingState::default(), ids(), false)
            .routes
            .contains_key(&net("10.2.0.0/16"))
    );
}

#[test]
fn a_user_default_route_needs_the_hosts_consent() {
    let mut routes = system_routes();
    let appliance = NextHop::VirtualAppliance {
        address: "10.1.0.5".parse().unwrap(),
    };
    routes[6] = route(RouteSource::User, "0.0.0.0/0", appliance);
    let config = config(routes);

    let refused = KernelPlan::of(&config, &RoutingState::default(), ids(), false);
    assert_eq!(refused.refused_defaults, [net("0.0.0.0/0")]);
    assert!(!refused.routes.contains_key(&net("0.0.0.0/0")));
    assert!(
        refused
            .rules
            .iter()
            .all(|r| matches!(r.lookup, Lookup::Own | Lookup::Source))
    );

    let allowed = KernelPlan::of(&config, &RoutingState::default(), ids(), true);
    assert!(allowed.routes.contains_key(&net("0.0.0.0/0")));
    let order: Vec<_> = allowed.rules.iter().filter(|r| !r.v6).map(|r| r.lookup).collect();
    assert_eq!(
        order,
        [
            Lookup::Own,
            Lookup::Own,
            Lookup::Source,
            Lookup::MainButDefault,
            Lookup::Default
        ]
    );
}

/// A VM and a gateway run on one host. Packets with the overlay address of one of the two agents as source use this
/// agent's table. For other packets the VM's table is looked up before the gateway's.
#[test]
fn a_vm_and_a_gateway_coexist() {
    let vm = config(system_routes());
    let mut gateway = config(system_routes());
    gateway.role = Role::VpnGateway {
        gateway: ResourceId::new("/gw"),
        addresses: vec!["10.1.255.4".parse().unwrap()],
        local_prefixes: vec![],
        asn: 65_515,
        transit: vec![],
        connections: vec![],
        bgp: None,
        site_ttl: tombolo_proto::config::SiteTtl::SilentHop,
    };
    let (a, b) = (KernelIds::of("tl-a", None, 1), KernelIds::of("tl-b", None, 1));
    assert!(a.table != b.table && a.default_table != b.table);
    let (vm, gateway) = (
        KernelPlan::of(&vm, &RoutingState::default(), a, false),
        KernelPlan::of(&gateway, &RoutingState::default(), b, false),
    );
    let of = |p: &KernelPlan, sourced: bool| p.rules.iter().find(|r| r.source.is_some() == sourced).unwrap().priority;
    // Rules for the source table come after the rules for the own tables of all agents of the host, because another
    // agent may have the route.
    let confined = |p: &KernelPlan| p.rules.iter().find(|r| r.lookup == Lookup::Source).unwrap().priority;
    assert!(of(&gateway, false) < confined(&vm) && of(&vm, false) < confined(&gateway));
    assert!(of(&vm, true) < of(&vm, false) && of(&gateway, true) < of(&vm, false));
    assert!(of(&vm, false) < of(&gateway, false));
    assert!(vm.rules.iter().chain(&gateway.rules).all(|r| r.priority < 32_766));
}

#[test]
fn an_overlap_with_the_hosts_network_is_named() {
    let plan = KernelPlan::of(&config(system_routes()), &RoutingState::default(), ids(), false);
    let host = |n: &str| {
        vec![Connected {
            interface: "eth0".into(),
            network: net(n),
        }]
    };
    plan.check_overlap(&host("172.16.0.0/24")).unwrap();
    for inside_or_around in ["10.2.7.0/24", "10.0.0.0/8"] {
        let e = plan.check_overlap(&host(inside_or_around)).unwrap_err().to_string();
        assert!(e.contains(inside_or_around) && e.contains("eth0"), "{e}");
    }
    // The host's own tables route this prefix (`throw`), so an overlap does no harm.
    plan.check_overlap(&host("10.8.1.0/24")).unwrap();
}

/// D8: the host itself is connected to a served subnet, and continues to route packets for it by the host's own tables.
#[test]
fn served_prefixes_stay_the_hosts() {
    let mut config = config(system_routes());
    let Role::Vm { served, .. } = &mut config.role else {
        unreachable!()
    };
    served.push(net("10.1.5.0/24"));
    let plan = KernelPlan::of(&config, &RoutingState::default(), ids(), false);
    assert_eq!(plan.routes[&net("10.1.5.0/24")], Route::Throw);
    assert!(plan.forwarding);
    let host = [Connected {
        interface: "br0".into(),
        network: net("10.1.5.0/24"),
    }];
    plan.check_overlap(&host).unwrap();
}

/// L1, D8: packets to a front end in a served subnet go into the device, from each table that leads to the subnet itself.
#[test]
fn l1_d8_front_ends_in_served_subnets_lead_into_the_device() {
    let mut config = config(system_routes());
    let Role::Vm { nics, served, .. } = &mut config.role else {
        unreachable!()
    };
    served.extend([net("10.1.5.0/24"), net("fd00:5::/64")]);
    let mut second = nics[0].clone();
    second.addresses = vec![net("10.1.0.5/24"), net("fd00:1::5/64")];
    nics.push(second);
    let front_end = |address: &str| FrontEnd {
        id: ResourceId::new(address),
        vnet: config.vnet.clone(),
        address: address.parse().unwrap(),
        rules: Vec::new(),
    };
    config.front_ends = ["10.1.0.36", "10.1.5.36", "fd00:5::36"].map(front_end).into();
    let host = Surroundings {
        connected: vec![Connected {
            interface: "br0".into(),
            network: net("10.1.5.0/24"),
        }],
        ..Surroundings::default()
    };
    let plan = KernelPlan::of(&config, &RoutingState::default(), ids(), false).confine(&host, ids(), true);
    plan.check_overlap(&host.connected).unwrap();
    for front_end in ["10.1.5.36/32", "fd00:5::36/128"].map(net) {
        assert!(matches!(
            plan.routes[&front_end],
            Route::Device(NicIndex::FIRST, Some(_))
        ));
        let nics = [0, 1].map(|nic| (Table::Nic(NicIndex(nic)), NicIndex(nic)));
        let tables = [Table::Source, Table::Exit].map(|table| (table, NicIndex::FIRST));
        for (table, nic) in tables.into_iter().chain(nics) {
            let route = |fallback| {
                let key = RouteKey {
                    table,
                    prefix: front_end,
                    fallback,
                };
                plan.table_routes.get(&key).copied()
            };
            assert_eq!(route(false), Some(Route::Device(nic, None)), "{table:?}");
            assert_eq!(route(true), Some(Route::Unreachable), "{table:?}");
        }
    }
    assert!(
        !plan.routes.contains_key(&net("10.1.0.36/32")),
        "its subnet is not served"
    );
    assert_eq!(plan.routes[&net("10.1.5.0/24")], Route::Throw);
}

#[test]
fn steps_lead_from_any_plan_to_any_other() {
    let full = KernelPlan::of(&config(system_routes()), &RoutingState::default(), ids(), false);
    let mut routes = system_routes();
    routes.remove(1);
    routes[4] = route(RouteSource::User, "10.8.0.0/16", NextHop::None {});
    let other = KernelPlan::of(&config(routes), &RoutingState::default(), ids(), false);
    let empty = KernelPlan::default();
    for (from, to) in [
        (&empty, &full),
        (&full, &other),
        (&other, &full),
        (&full, &empty),
        (&full, &full),
    ] {
        let mut state = from.clone();
        let (first, then) = from.steps(to);
        if from == to {
            assert!(first.is_empty() && then.is_empty());
        }
        first.iter().chain(&then).for_each(|s| state.record(s));
        assert_eq!(
            (&state.routes, &state.rules, &state.addresses),
            (&to.routes, &to.rules, &to.addresses)
        );
    }
}

/// The rollback of a failed first plan does not set the MTU, because a device cannot have MTU 0.
#[test]
fn going_back_to_no_plan_leaves_the_mtu() {
    let full = KernelPlan::of(&config(system_routes()), &RoutingState::default(), ids(), false);
    let (first, then) = full.steps(&KernelPlan::default());
    assert!(
        !first.iter().chain(&then).any(|s| matches!(s, Step::Mtu(..))),
        "{first:?}"
    );
}

/// D23, E1: the kernel of a circuit edge routes packets to VNets through the device, with the edge's address for the
/// VNet as source. The kernel routes packets to the customer's prefixes over the line to the customer edge, and drops
/// all other packets (T8).
#[test]
fn an_edge_routes_between_its_line_and_its_vnets() {
    let line: IpNet = "192.168.30.18/30".parse().unwrap();
    let mut edge = config(Vec::new());
    edge.subnets.clear();
    let circuit = ResourceId::new("/er1");
    edge.role = Role::CircuitEdge {
        circuit: circuit.clone(),
        link: tombolo_proto::config::CircuitLink::Primary,
        line,
        networks: vec![CircuitNetwork {
            connection: ResourceId::new("/c"),
            vnet: ResourceId::new("/hub"),
            prefixes: vec!["10.10.30.0/24".parse().unwrap()],
            asn: 65_515,
            address: "10.10.30.132".parse().unwrap(),
            gateways: vec![],
        }],
        vnet_to_vnet: true,
        bgp: Speaker {
            asn: 12_076,
            router_id: [192, 168, 30, 18].into(),
            neighbours: vec![tombolo_proto::config::Neighbour {
                id: circuit.clone(),
                address: "192.168.30.17".parse().unwrap(),
                local_address: line.addr(),
                asn: 65_021,
                multihop: false,
                bfd: true,
                password: None,
                max_prefixes: 4000,
                hold_time: 180,
            }],
        },
    };
    let before = KernelPlan::of(&edge, &RoutingState::default(), ids(), false);
    let device = Route::Device(NicIndex::FIRST, Some("10.10.30.132".parse().unwrap()));
    assert_eq!(before.routes, [("10.10.30.0/24".parse().unwrap(), device)].into());
    assert_eq!((before.line, before.forwarding), (Some(line), true));
    let nowhere = before.rules.iter().filter(|r| r.lookup == Lookup::Blackhole);
    assert_eq!(
        nowhere.map(|r| r.ingress).collect::<Vec<_>>(),
        [Some(Ingress::Tun(NicIndex::FIRST)), Some(Ingress::Line)]
    );

    let route = tombolo_proto::route::Route {
        prefix: "10.2.30.0/25".parse().unwrap(),
        via: None,
        as_path: vec![65_021],
        weight: 0,
        origin: tombolo_proto::route::RouteOrigin::Site,
    };
    let learned = RoutingState {
        learned: [(circuit, std::sync::Arc::new(vec![route]))].into(),
        ..RoutingState::default()
    };
    let after = KernelPlan::of(&edge, &learned, ids(), false);
    let down = (
        "10.2.30.0/25".parse().unwrap(),
        Route::Line("192.168.30.17".parse().unwrap()),
    );
    let (first, then) = before.steps(&after);
    assert_eq!((first, then), (vec![Step::SetRoute(down.0, down.1)], vec![]));
    let (first, then) = after.steps(&before);
    assert_eq!((first, then), (vec![], vec![Step::DeleteRoute(down.0, down.1)]));
}

/// The configuration of [`system_routes`] with a second NIC, 10.1.1.4, in a subnet of its own with one route more, and
/// with the host route 10.2.7.0/24.
fn two_nics() -> AgentConfig {
    let mut config = config(system_routes());
    let mut subnet = config.subnets[0].clone();
    (subnet.id, subnet.prefixes) = (ResourceId::new("/vnet/subnets/b"), vec![net("10.1.1.0/24")]);
    subnet
        .routes
        .push(route(RouteSource::User, "10.2.8.0/24", NextHop::None {}));
    let Role::Vm { nics, .. } = &mut config.role else {
        unreachable!()
    };
    nics.push(Nic {
        id: ResourceId::new("/nic-b"),
        addresses: vec![net("10.1.1.4/24")],
        subnet: subnet.id.clone(),
        ip_forwarding: true,
        host_routes: vec![net("10.2.7.0/24")],
    });
    config.subnets.push(subnet);
    config
}

#[test]
fn d37_each_nic_has_a_device_and_a_table_of_its_subnets_routes() {
    let plan = KernelPlan::of(&two_nics(), &RoutingState::default(), ids(), false);
    let plan = plan.confine(&Surroundings::default(), ids(), false);
    let second = NicIndex(1);
    let (first_address, second_address) = ("10.1.0.4".parse().unwrap(), "10.1.1.4".parse().unwrap());
    assert_eq!(plan.devices, 2);
    assert_eq!(
        (plan.addresses[&first_address], plan.addresses[&second_address]),
        (NicIndex::FIRST, second)
    );
    // Without an own source, the kernel sends by the first NIC, except to the second NIC's subnet and host routes.
    for (prefix, nic, source) in [
        ("10.2.0.0/16", NicIndex::FIRST, first_address),
        ("10.1.1.0/24", second, second_address),
        ("10.2.7.0/24", second, second_address),
    ] {
        assert_eq!(plan.routes[&net(prefix)], Route::Device(nic, Some(source)), "{prefix}");
    }
    assert!(
        !plan.routes.contains_key(&net("10.2.8.0/24")),
        "a route of the second NIC's subnet only"
    );
    // Packets with the second NIC's address have the routes of its subnet, and no other way out.
    let key = |prefix, fallback| RouteKey {
        table: Table::Nic(second),
        prefix: net(prefix),
        fallback,
    };
    for prefix in ["10.2.0.0/16", "10.2.8.0/24", "10.1.0.0/16"] {
        let expected = Route::Device(second, None);
        assert_eq!(plan.table_routes[&key(prefix, false)], expected, "{prefix}");
        assert_eq!(plan.table_routes[&key(prefix, true)], Route::Unreachable, "{prefix}");
    }
    assert_eq!(plan.table_routes[&key("0.0.0.0/0", false)], Route::Device(second, None));
    assert_eq!(plan.table_routes[&key("0.0.0.0/0", true)], Route::Unreachable);
    let lookup = |address| {
        let of_address = |r: &&Rule| r.source == Some(IpNet::from(address)) && r.priority < Band::Vm as u32;
        plan.rules.iter().find(of_address).map(|r| r.lookup)
    };
    // The own table also has routes by the second NIC, which packets of the first one must not take.
    assert_eq!(lookup(first_address), Some(Lookup::Nic(NicIndex::FIRST)));
    let first_key = RouteKey {
        table: Table::Nic(NicIndex::FIRST),
        prefix: net("10.1.0.0/16"),
        fallback: false,
    };
    assert_eq!(plan.table_routes[&first_key], Route::Device(NicIndex::FIRST, None));
    let steered = |k: &&RouteKey| k.table == first_key.table && k.prefix == net("10.1.1.0/24");
    assert_eq!(plan.table_routes.keys().find(steered), None);
    assert_eq!(lookup(second_address), Some(Lookup::Nic(second)));
    // Packets that the host forwards are confined, whichever device they come from.
    for nic in [NicIndex::FIRST, second] {
        let from_device = |r: &&Rule| r.ingress == Some(Ingress::Tun(nic)) && !r.v6;
        assert_eq!(plan.rules.iter().filter(from_device).count(), 1);
    }
    let numbers = ids().tables();
    assert_eq!(numbers.iter().collect::<BTreeSet<_>>().len(), TABLES, "{numbers:?}");
    assert!(numbers.contains(&ids().nic_table(second)));
}

#[test]
fn d37_steps_set_up_a_device_that_is_added_and_move_addresses() {
    let plan = |config: &AgentConfig| KernelPlan::of(config, &RoutingState::default(), ids(), false);
    let (one, two) = (plan(&config(system_routes())), plan(&two_nics()));
    let (first, then) = one.steps(&two);
    assert!(first.contains(&Step::Mtu(NicIndex(1), 1420)));
    assert!(first.contains(&Step::Forwarding(NicIndex(1), Forwarding::On { v6: true })));
    assert!(
        !first.contains(&Step::Mtu(NicIndex::FIRST, 1420)),
        "it has this MTU already"
    );
    // Packets of the first NIC get a table of their own, so the rule for its addresses changes.
    let is_rule = |step: &Step| matches!(step, Step::DeleteRule(rule) if rule.lookup == Lookup::Own);
    assert!(then.iter().all(is_rule), "{then:?}");
    // If the first NIC goes, the second one takes its place, and its address moves to the first device.
    let mut swapped = two_nics();
    let Role::Vm { nics, .. } = &mut swapped.role else {
        unreachable!()
    };
    nics.remove(0);
    let mut state = two;
    let after = plan(&swapped);
    let (first, then) = state.steps(&after);
    for step in first.iter().chain(&then) {
        state.record(step);
    }
    assert_eq!(state.addresses, after.addresses);
    assert_eq!((&state.routes, &state.rules), (&after.routes, &after.rules));
    assert_eq!(state.table_routes, after.table_routes);
}
