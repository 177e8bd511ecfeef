//! The published interoperability lab: a hub VNet with a VPN gateway and an ExpressRoute gateway, a spoke, a branch
//! that is joined by VPN, a remote VNet, two circuits and a site. The tests compile its configurations and run the
//! agents' route exchange and packet decisions. They cover the path of a packet between a VNet and the border of a site
//! (E1 to E9, E11, E12, E15, E16, G18 to G22, R5, R7, T2 to T6). The tests of `deploy/lab` cover routers inside sites,
//! and real packets.

use crate::world::{World, agent, id, ip, nets, subnet_id};
use std::collections::BTreeMap;
use std::sync::Arc;
use tombolo_engine::decide::{Ingress, decide};
use tombolo_engine::packet::PacketInfo;
use tombolo_engine::routing::{self, routes_for_neighbour};
use tombolo_engine::tables::{NicIndex, Tables};
use tombolo_engine::verdict::Verdict;
use tombolo_proto::config::{CircuitLink, GatewayKind, Relation, Role, SiteTtl, Transport};
use tombolo_proto::fabric::ExplainRequest;
use tombolo_proto::id::{AgentId, PublicKey, ResourceId};
use tombolo_proto::route::{Route, RouteOrigin, RouteState};
use tombolo_topology::compile::Compiler;
use tombolo_topology::explain::explain;
use tombolo_topology::learned_routes::{self, LearnedReports, LearnedRoutes};
use tombolo_topology::resource::{
    Binding, Connection, ConnectionType, ExpressRouteCircuit, GatewayIpConfiguration, LocalNetworkGateway,
    PrivatePeering, Settings, SiteBgp, VirtualNetworkGateway,
};
use uuid::Uuid;

/// Adds a gateway with one instance at `address`, and an agent for this instance. Both the gateway and the agent are
/// named `name`. `bgp`: the gateway's BGP address.
pub(crate) fn gateway(w: &mut World, name: &str, vnet: &str, kind: GatewayKind, asn: u32, address: &str, bgp: &str) {
    let gateway = id("virtualNetworkGateways", name);
    let resource = VirtualNetworkGateway {
        envelope: World::envelope(gateway.clone(), "region1"),
        ip_configurations: vec![GatewayIpConfiguration {
            name: "instance0".into(),
            subnet: subnet_id(&format!("{vnet}/GatewaySubnet")),
            address: ip(address),
            is_static: true,
            public_ip_address: None,
        }],
        gateway_type: kind,
        vpn_type: "RouteBased".into(),
        active_active: false,
        enable_bgp: true,
        asn,
        bgp_peering_address: ip(bgp),
        sku: "VpnGw1".into(),
    };
    w.topology.gateways.insert(gateway.clone(), Arc::new(resource));
    let binding = Binding::Gateway {
        gateway,
        ip_configuration: "instance0".into(),
    };
    w.bind(name, binding);
}

/// Adds a connection object with a shared key and BGP. `tunnels`: the tunnel addresses of a connection to a circuit,
/// separated by spaces.
pub(crate) fn connection(w: &mut World, name: &str, kind: ConnectionType, from: &str, to: ResourceId, tunnels: &str) {
    let resource = Connection {
        envelope: World::envelope(id("connections", name), "region1"),
        connection_type: kind,
        gateway1: id("virtualNetworkGateways", from),
        gateway2: to,
        tunnel_addresses: tunnels.split_whitespace().map(ip).collect(),
        shared_key: Some("abc".into()),
        routing_weight: 0,
        enable_bgp: true,
        dpd_timeout: None,
        authorization: None,
    };
    w.topology
        .connections
        .insert(resource.envelope.id.clone(), Arc::new(resource));
}

/// The connection object `name`, to change it.
pub(crate) fn connection_mut<'w>(w: &'w mut World, name: &str) -> &'w mut Connection {
    Arc::make_mut(w.topology.connections.get_mut(&id("connections", name)).unwrap())
}

/// Adds a circuit with a private peering, and an agent for each edge: `{name}-1` and `{name}-2`. `asn`: the customer's
/// ASN; the other arguments are the prefixes of the lines.
fn circuit(w: &mut World, name: &str, asn: u32, primary: &str, secondary: &str) {
    let circuit = id("expressRouteCircuits", name);
    let resource = ExpressRouteCircuit {
        envelope: World::envelope(circuit.clone(), "region1"),
        private_peering: Some(PrivatePeering {
            id: ResourceId::new(format!("{circuit}/peerings/AzurePrivatePeering")),
            etag: Uuid::nil(),
            peer_asn: asn,
            primary: primary.parse().unwrap(),
            secondary: secondary.parse().unwrap(),
            vlan_id: 300,
            shared_key: None,
        }),
        authorizations: Vec::new(),
    };
    w.topology.circuits.insert(circuit.clone(), Arc::new(resource));
    for (suffix, link) in [("1", CircuitLink::Primary), ("2", CircuitLink::Secondary)] {
        let circuit = circuit.clone();
        w.bind(&format!("{name}-{suffix}"), Binding::Edge { circuit, link });
    }
}

/// The topology of the published lab. Circuit er1 leads to location 1 (10.2.30.0/25), which also has the VPN device
/// loc1; circuit er2 leads to location 2 (10.1.31.0/25).
pub(crate) fn lab() -> World {
    let mut w = World::default();
    w.vnet(
        "hub",
        "10.10.30.0/24",
        "workload=10.10.30.0/25 GatewaySubnet=10.10.30.128/25",
    )
    .vnet("spoke", "10.11.30.0/26", "workload=10.11.30.0/26")
    .vnet(
        "branch",
        "10.11.30.64/26",
        "workload=10.11.30.64/27 GatewaySubnet=10.11.30.96/27",
    )
    .vnet(
        "remote",
        "10.17.30.0/26",
        "workload=10.17.30.0/27 GatewaySubnet=10.17.30.32/27",
    )
    .vm("hub-vm", "hub/workload=10.10.30.4")
    .vm("spoke-vm", "spoke/workload=10.11.30.4")
    .vm("branch-vm", "branch/workload=10.11.30.68")
    .vm("remote-vm", "remote/workload=10.17.30.4")
    .peer("hub", "at", "spoke", "ar");
    use GatewayKind::{ExpressRoute, Vpn};
    gateway(&mut w, "hub-vpn", "hub", Vpn, 65_515, "10.10.30.142", "10.10.30.254");
    gateway(
        &mut w,
        "hub-er",
        "hub",
        ExpressRoute,
        65_515,
        "10.10.30.140",
        "10.10.30.253",
    );
    gateway(
        &mut w,
        "branch-vpn",
        "branch",
        Vpn,
        65_516,
        "10.11.30.100",
        "10.11.30.126",
    );
    gateway(
        &mut w,
        "remote-er",
        "remote",
        ExpressRoute,
        65_515,
        "10.17.30.40",
        "10.17.30.61",
    );
    circuit(&mut w, "er1", 65_021, "192.168.30.16/30", "192.168.30.20/30");
    circuit(&mut w, "er2", 65_020, "192.168.31.16/30", "192.168.31.20/30");
    use ConnectionType as T;
    let er = |n: &str| id("expressRouteCircuits", n);
    connection(
        &mut w,
        "hub-er1",
        T::ExpressRoute,
        "hub-er",
        er("er1"),
        "10.10.30.132 10.10.30.133",
    );
    connection(
        &mut w,
        "hub-er2",
        T::ExpressRoute,
        "hub-er",
        er("er2"),
        "10.10.30.134 10.10.30.135",
    );
    connection(
        &mut w,
        "remote-er1",
        T::ExpressRoute,
        "remote-er",
        er("er1"),
        "10.17.30.36 10.17.30.37",
    );
    let gw = |n: &str| id("virtualNetworkGateways", n);
    connection(&mut w, "hub-branch", T::Vnet2Vnet, "hub-vpn", gw("branch-vpn"), "");
    connection(&mut w, "branch-hub", T::Vnet2Vnet, "branch-vpn", gw("hub-vpn"), "");
    let local = id("localNetworkGateways", "loc1");
    let site = LocalNetworkGateway {
        envelope: World::envelope(local.clone(), "region1"),
        address: Some(ip("192.0.2.77")),
        port: 51_820,
        public_key: Some(PublicKey([9; 32])),
        address_space: Vec::new(),
        bgp: Some(SiteBgp {
            asn: 65_021,
            address: ip("10.2.30.125"),
        }),
    };
    w.topology.local_gateways.insert(local.clone(), Arc::new(site));
    connection(&mut w, "hub-loc1", T::IPsec, "hub-vpn", local, "");
    w.topology.settings = Arc::new(Settings {
        circuit_vnet_to_vnet: true,
        vpn_ttl_for_site_traffic: SiteTtl::Transparent,
        ..Settings::default()
    });
    w
}

/// The agents' reports of the routes that the customers of both circuits and the VPN device of location 1 announce.
/// `cut`: whether location 1 has lost its circuit, so that only its VPN device announces location 1.
pub(crate) fn reports(cut: bool) -> LearnedReports {
    let route = |prefix: &str, asn| Route {
        prefix: prefix.parse().unwrap(),
        via: None,
        as_path: vec![asn],
        weight: 0,
        origin: RouteOrigin::Site,
    };
    let mut reports = LearnedReports::default();
    let mut learned = |at: &str, from: ResourceId, routes: Vec<Route>| {
        reports
            .learned
            .entry(agent(at))
            .or_default()
            .insert(from, Arc::new(routes));
    };
    let er = |n: &str| id("expressRouteCircuits", n);
    let loc1 = || vec![route("10.2.30.0/25", 65_021)];
    let loc2 = || vec![route("10.1.31.0/25", 65_020)];
    // In the published lab, the customer's end of the secondary line of circuit 1 is shut down, so the edge er1-2
    // learns no routes.
    learned("er1-1", er("er1"), if cut { Vec::new() } else { loc1() });
    learned("er2-1", er("er2"), loc2());
    learned("er2-2", er("er2"), loc2());
    learned("hub-vpn", id("connections", "hub-loc1"), loc1());
    reports
}

/// The gateway routes of a VM's subnet as lines `prefix nexthop…`. `!` in front marks standby routes, which are used
/// when the active route fails.
fn gateway_routes(w: &World, reports: &LearnedReports, vm: &str) -> Vec<String> {
    let compiler = Compiler::new(&w.topology);
    let learned = LearnedRoutes::new(&w.topology, &compiler, reports.clone());
    let config = w.config(vm);
    let dynamic = learned.routing_state(&config);
    let routes = routing::effective(&config, &config.subnets[0], &dynamic);
    let routes = routes
        .iter()
        .filter(|r| r.next_hop.type_name() == "VirtualNetworkGateway");
    let shown = routes.map(|r| {
        let invalid = if r.state == RouteState::Invalid { "!" } else { "" };
        let hops: Vec<String> = r.next_hop.addresses().iter().map(ToString::to_string).collect();
        format!("{invalid}{} {}", r.prefix, hops.join(" "))
    });
    shown.collect()
}

/// Section 5 of the published lab lists the learned routes of each VNet. The VMs have exactly these routes, active and
/// standby ones (E16).
#[test]
fn every_vnet_knows_exactly_what_the_published_lab_says() {
    let w = lab();
    let hub = [
        "10.1.31.0/25 10.10.30.134 10.10.30.135",
        "10.2.30.0/25 10.10.30.132",
        "!10.2.30.0/25 10.10.30.142",
        "10.11.30.64/26 10.10.30.142",
        "10.17.30.0/26 10.10.30.132 10.10.30.133",
    ];
    let reports = reports(false);
    assert_eq!(gateway_routes(&w, &reports, "hub-vm"), hub);
    // R5, P21: the spoke has the same routes as the hub, with the same next hops.
    assert_eq!(gateway_routes(&w, &reports, "spoke-vm"), hub);
    // G19: the branch learns location 1 (10.2.30.0/25) by VPN, although the hub itself reaches it by circuit. G20, E8:
    // the branch learns no route that the hub has learned by a circuit only.
    assert_eq!(
        gateway_routes(&w, &reports, "branch-vm"),
        [
            "10.2.30.0/25 10.11.30.100",
            "10.10.30.0/24 10.11.30.100",
            "10.11.30.0/26 10.11.30.100"
        ]
    );
    // E6, E7: by circuit 1, the remote VNet learns location 1. It also learns the hub and the spoke, because the hub is
    // linked to circuit 1 too. It does not learn the branch or location 2.
    assert_eq!(
        gateway_routes(&w, &reports, "remote-vm"),
        [
            "10.2.30.0/25 10.17.30.36",
            "10.10.30.0/24 10.17.30.36 10.17.30.37",
            "10.11.30.0/26 10.17.30.36 10.17.30.37"
        ]
    );
}

/// E11: location 1 loses its circuit. In the hub, the standby route by VPN becomes active. The remote VNet had a route
/// to location 1 only by the circuit, so it has no route to location 1 any more.
#[test]
fn e11_the_vpn_takes_over_what_it_knows() {
    let (w, reports) = (lab(), reports(true));
    let hub = gateway_routes(&w, &reports, "hub-vm");
    assert_eq!(
        hub,
        [
            "10.1.31.0/25 10.10.30.134 10.10.30.135",
            "10.2.30.0/25 10.10.30.142",
            "10.11.30.64/26 10.10.30.142",
            "10.17.30.0/26 10.10.30.132 10.10.30.133",
        ]
    );
    assert_eq!(
        gateway_routes(&w, &reports, "remote-vm"),
        [
            "10.10.30.0/24 10.17.30.36 10.17.30.37",
            "10.11.30.0/26 10.17.30.36 10.17.30.37"
        ]
    );
}

/// D10: location 1 has lost its circuit, so only the VPN gateway advertises it. VMs still accept packets from location
/// 1 through the ExpressRoute gateway too: when the circuit is back, packets of the site can arrive there before its
/// routes do. From neither gateway do VMs accept sources in their own VNet or in unknown networks.
#[test]
fn d10_each_gateway_of_a_vnet_may_bring_what_another_tells_of() {
    let (w, reports) = (lab(), reports(true));
    let tables = |vm: &str| {
        learned_routes::tables(&w.topology, &reports, &agent(vm))
            .unwrap()
            .unwrap()
    };
    let may = |vm: &str, gateway: &str, from: &str| {
        let links = tables(vm).links;
        let link = links.iter().find(|l| l.peer == agent(gateway)).unwrap();
        link.sources.iter().any(|s| s.contains(&ip(from)))
    };
    for (vm, own) in [("hub-vm", "10.10.30.4"), ("spoke-vm", "10.11.30.4")] {
        for gateway in ["hub-vpn", "hub-er"] {
            assert!(may(vm, gateway, "10.2.30.10"), "{vm} {gateway}");
            assert!(
                !may(vm, gateway, "10.99.0.1") && !may(vm, gateway, own),
                "{vm} {gateway}"
            );
        }
    }
    // The gateway of the remote VNet does not advertise location 1 now, and the VNet has no other gateway. So its VM
    // accepts no packet from location 1.
    assert!(!may("remote-vm", "remote-er", "10.2.30.10"));
}

/// E5, E6, E7, G18, G20: each circuit's customer and each site's device gets exactly the routes that these rules
/// permit.
#[test]
fn sites_hear_exactly_what_they_may() {
    let (w, reports) = (lab(), reports(false));
    let compiler = Compiler::new(&w.topology);
    let learned = LearnedRoutes::new(&w.topology, &compiler, reports);
    let told = |at: &str, neighbour: ResourceId| -> BTreeMap<String, Vec<u32>> {
        let config = w.config(at);
        let routes = routes_for_neighbour(&config, &learned.routing_state(&config), &neighbour);
        routes.into_iter().map(|r| (r.prefix.to_string(), r.as_path)).collect()
    };
    let of = |routes: &[(&str, &[u32])]| -> BTreeMap<String, Vec<u32>> {
        routes
            .iter()
            .map(|(p, path)| ((*p).to_owned(), path.to_vec()))
            .collect()
    };
    let er = |n: &str| id("expressRouteCircuits", n);
    let circuit1 = of(&[("10.10.30.0/24", &[]), ("10.11.30.0/26", &[]), ("10.17.30.0/26", &[])]);
    assert_eq!(told("er1-1", er("er1")), circuit1);
    assert_eq!(told("er1-2", er("er1")), circuit1);
    assert_eq!(
        told("er2-1", er("er2")),
        of(&[("10.10.30.0/24", &[]), ("10.11.30.0/26", &[])])
    );
    assert_eq!(
        told("hub-vpn", id("connections", "hub-loc1")),
        of(&[
            ("10.10.30.0/24", &[]),
            ("10.11.30.0/26", &[]),
            ("10.11.30.64/26", &[65_516])
        ])
    );
}

/// T2, T4, T5: traceroutes from VMs show the hops that the lab's tables publish, up to the border of a site.
#[test]
fn traces_from_vnets_are_the_published_ones() {
    let (w, up, cut) = (lab(), reports(false), reports(true));
    let trace = |reports: &LearnedReports, from: &str, to: &str| -> (bool, Vec<String>) {
        let question: ExplainRequest = serde_json::from_value(serde_json::json!({"from": from, "to": to})).unwrap();
        let answer = explain(&w.topology, reports, &question).unwrap();
        let line = |hop: &tombolo_topology::explain::TraceHop| hop.address.map_or("*".into(), |a| a.to_string());
        (answer.reachable, answer.trace.iter().map(line).collect())
    };
    let one_of = |(reachable, hops): (bool, Vec<String>), expected: &[&[&str]]| {
        assert!(reachable, "{hops:?}");
        assert!(expected.iter().any(|e| *e == hops), "{hops:?}, expected {expected:?}");
    };
    for from in ["hub-vm", "spoke-vm"] {
        one_of(trace(&up, from, "branch-vm"), &[&["10.10.30.142", "*", "10.11.30.68"]]);
        one_of(trace(&up, from, "10.2.30.10"), &[&["10.10.30.132"]]);
        one_of(trace(&up, from, "10.1.31.10"), &[&["10.10.30.134"], &["10.10.30.135"]]);
        let remote: [&[&str]; 2] = [
            &["10.10.30.132", "*", "10.17.30.4"],
            &["10.10.30.133", "*", "10.17.30.4"],
        ];
        one_of(trace(&up, from, "remote-vm"), &remote);
        one_of(trace(&cut, from, "10.2.30.10"), &[&["10.10.30.142"]]);
    }
    one_of(trace(&up, "hub-vm", "spoke-vm"), &[&["10.11.30.4"]]);
    one_of(trace(&up, "spoke-vm", "hub-vm"), &[&["10.10.30.4"]]);
    one_of(
        trace(&up, "branch-vm", "hub-vm"),
        &[&["10.11.30.100", "*", "10.10.30.4"]],
    );
    one_of(
        trace(&up, "branch-vm", "spoke-vm"),
        &[&["10.11.30.100", "*", "10.11.30.4"]],
    );
    one_of(trace(&up, "branch-vm", "10.2.30.10"), &[&["10.11.30.100", "*"]]);
    for to in ["hub-vm", "spoke-vm"] {
        let last = if to == "hub-vm" { "10.10.30.4" } else { "10.11.30.4" };
        let hops: [&[&str]; 2] = [&["10.17.30.36", "*", last], &["10.17.30.37", "*", last]];
        one_of(trace(&up, "remote-vm", to), &hops);
    }
    one_of(trace(&up, "remote-vm", "10.2.30.10"), &[&["10.17.30.36"]]);
    for (from, to) in [
        ("branch-vm", "10.1.31.10"),
        ("branch-vm", "remote-vm"),
        ("remote-vm", "branch-vm"),
        ("remote-vm", "10.1.31.10"),
    ] {
        assert!(!trace(&up, from, to).0, "{from} → {to}");
    }
    assert!(!trace(&cut, "remote-vm", "10.2.30.10").0);
}

/// The decision of the agent `at` on a packet that it gets over the link with `from` (`None`: from its host), as text.
/// `deliver`: the packet goes to the agent's host. The name of an agent: the packet goes to that agent, followed by `
/// -1` if the TTL is decremented. `answers`: the agent sends an ICMP error. Otherwise the text is the name of the drop
/// reason.
pub(super) fn fate(
    w: &World,
    reports: &LearnedReports,
    at: &str,
    from: Option<&AgentId>,
    source: &str,
    to: &str,
    ttl: u8,
) -> String {
    let compiler = Compiler::new(&w.topology);
    let config = w.config(at);
    let dynamic = LearnedRoutes::new(&w.topology, &compiler, reports.clone()).routing_state(&config);
    let tables = Tables::build(&config, &dynamic).unwrap();
    let ingress = from.map_or(Ingress::Tun(NicIndex::FIRST), |peer| {
        Ingress::Link(tables.link_with(peer).unwrap())
    });
    let packet = PacketInfo {
        source: ip(source),
        destination: ip(to),
        ttl,
        protocol: 1,
        transport: Some(20),
        ports: 0,
        len: 64,
    };
    match decide(&tables, ingress, &packet, None) {
        Verdict::Deliver(_) | Verdict::Translate(_) => "deliver".into(),
        Verdict::Forward { link, decrement_ttl } => {
            format!("{}{}", tables.peer(link), if decrement_ttl { " -1" } else { "" })
        }
        Verdict::TimeExceeded => "answers".into(),
        Verdict::Drop(reason) => reason.name().into(),
    }
}

/// T6: with `vpnTtlForSiteTraffic` = `transparent`, VPN gateways do not decrement the TTL of packets from a site,
/// whether these come from the site's device or through another gateway. They decrement the TTL of packets from a VNet.
/// With `silentHop` they decrement the TTL of packets from a site too.
#[test]
fn t6_packets_of_a_site_keep_their_ttl_in_vpn_gateways() {
    let (mut w, reports) = (lab(), reports(false));
    let site = AgentId::of_site(&id("connections", "hub-loc1"));
    let (hub, branch) = (agent("hub-vpn"), agent("branch-vpn"));
    let ask = |w: &World, at: &str, from: &AgentId, source, to, ttl| fate(w, &reports, at, Some(from), source, to, ttl);
    for ttl in [1, 9] {
        assert_eq!(
            ask(&w, "hub-vpn", &site, "10.2.30.10", "10.11.30.68", ttl),
            "branch-vpn"
        );
        assert_eq!(
            ask(&w, "branch-vpn", &hub, "10.2.30.10", "10.11.30.68", ttl),
            "branch-vm"
        );
        assert_eq!(ask(&w, "hub-vpn", &site, "10.2.30.10", "10.10.30.4", ttl), "hub-vm");
    }
    // T5: a gateway decrements the TTL of a packet that comes over a tunnel. If the TTL expires, the gateway sends no
    // ICMP error.
    assert_eq!(
        ask(&w, "hub-vpn", &branch, "10.11.30.68", "10.2.30.10", 1),
        "ttl_exceeded_silent"
    );
    assert_eq!(
        ask(&w, "hub-vpn", &branch, "10.11.30.68", "10.2.30.10", 2),
        format!("{site} -1")
    );
    assert_eq!(
        ask(&w, "hub-vpn", &agent("hub-vm"), "10.10.30.4", "10.11.30.68", 1),
        "answers"
    );
    Arc::make_mut(&mut w.topology.settings).vpn_ttl_for_site_traffic = SiteTtl::SilentHop;
    assert_eq!(
        ask(&w, "hub-vpn", &site, "10.2.30.10", "10.11.30.68", 1),
        "ttl_exceeded_silent"
    );
    assert_eq!(
        ask(&w, "hub-vpn", &site, "10.2.30.10", "10.11.30.68", 2),
        "branch-vpn -1"
    );
}

/// G21: a gateway forwards a packet from a tunnel only by routes that were learned by VPN, even if the gateway's VNet
/// prefers a circuit for the same prefix. G19: a gateway forwards a packet only between connections that exchange
/// routes. D10: a site may send only from the prefixes that it has announced.
#[test]
fn g21_tunnels_go_on_by_vpn_routes_alone() {
    let (mut w, reports) = (lab(), reports(false));
    let site = AgentId::of_site(&id("connections", "hub-loc1"));
    let branch = agent("branch-vpn");
    let ask = |w: &World, from: &AgentId, source, to| fate(w, &reports, "hub-vpn", Some(from), source, to, 64);
    assert_eq!(ask(&w, &branch, "10.11.30.68", "10.2.30.10"), format!("{site} -1"));
    // E8: over a tunnel, a prefix that only a circuit announces cannot be reached.
    assert_eq!(ask(&w, &branch, "10.11.30.68", "10.1.31.10"), "route_none");
    assert_eq!(ask(&w, &branch, "10.11.30.68", "10.17.30.4"), "route_none");
    assert_eq!(ask(&w, &site, "10.2.30.10", "10.17.30.4"), "route_none");
    // T7: the site does not announce the networks between its routers, so the gateway drops packets with a source in
    // them. Packets from the BGP address of the site's device are accepted.
    assert_eq!(ask(&w, &site, "192.168.30.1", "10.11.30.68"), "spoofed_source");
    assert_eq!(ask(&w, &site, "10.2.30.125", "10.11.30.68"), "branch-vpn");
    // The gateway's own host and the site's device reach each other, as BGP between the two needs (D16).
    let own = fate(&w, &reports, "hub-vpn", None, "10.10.30.254", "10.2.30.125", 64);
    assert_eq!(own, site.to_string());
    assert_eq!(ask(&w, &site, "10.2.30.125", "10.10.30.254"), "deliver");
    for c in ["hub-branch", "branch-hub"] {
        Arc::make_mut(w.topology.connections.get_mut(&id("connections", c)).unwrap()).enable_bgp = false;
    }
    assert_eq!(ask(&w, &branch, "10.11.30.68", "10.2.30.10"), "transit_not_allowed");
}

/// T3, T4, E6, E7: an edge sends packets of the customer to the gateways, and VMs send packets for the customer to the
/// edge directly.
#[test]
fn t4_circuits_bring_packets_in_through_the_gateway() {
    let (mut w, reports) = (lab(), reports(false));
    let edge = |w: &World, source, to| fate(w, &reports, "er1-1", None, source, to, 64);
    // D23: the edge's kernel decrements the TTL of packets from and to the customer. So the edge's agent does not
    // decrement it again.
    assert_eq!(edge(&w, "10.2.30.10", "10.10.30.4"), "hub-er");
    assert_eq!(edge(&w, "10.2.30.10", "10.11.30.4"), "hub-er");
    assert_eq!(edge(&w, "10.2.30.10", "10.17.30.4"), "remote-er");
    // The edge's agent itself forwards packets between VNets, and decrements their TTL. Packets that the agent gets
    // from its host's kernel come from the customer or from the edge itself. So they are dropped if their source is in
    // a VNet.
    let between = |to, ttl| fate(&w, &reports, "er1-1", Some(&agent("hub-vm")), "10.10.30.4", to, ttl);
    assert_eq!(
        (between("10.17.30.4", 64), between("10.17.30.4", 2)),
        ("remote-er -1".into(), "remote-er -1".into())
    );
    assert_eq!(
        (between("10.17.30.4", 1), between("10.10.30.132", 64)),
        ("deliver".into(), "deliver".into())
    );
    for linked in ["10.10.30.4", "10.11.30.4", "10.17.30.4"] {
        assert_eq!(edge(&w, linked, "10.17.30.4"), "spoofed_source");
        assert_eq!(edge(&w, linked, "10.10.30.4"), "spoofed_source");
    }
    assert_eq!(edge(&w, "10.10.30.132", "10.10.30.4"), "hub-er", "its own answers");
    // T3: the customer does not announce the networks between its routers, so packets from them are dropped.
    assert_eq!(edge(&w, "192.168.30.17", "10.10.30.4"), "spoofed_source");
    // E7, E8: an edge has no route to another circuit's customer (E7), and none to a VNet that is joined by VPN (E8).
    assert_eq!(edge(&w, "10.2.30.10", "10.1.31.10"), "no_route");
    assert_eq!(edge(&w, "10.2.30.10", "10.11.30.68"), "no_route");
    let vm = agent("hub-vm");
    assert_eq!(
        fate(&w, &reports, "er1-1", Some(&vm), "10.10.30.4", "10.2.30.10", 1),
        "deliver"
    );
    assert_eq!(
        fate(&w, &reports, "er1-1", Some(&vm), "10.9.9.9", "10.2.30.10", 64),
        "spoofed_source"
    );

    // T4: the ExpressRoute gateway decrements the TTL of packets from a circuit. If the TTL expires, it sends no ICMP
    // error.
    let er1 = agent("er1-1");
    let er = |source, to, ttl| fate(&w, &reports, "hub-er", Some(&er1), source, to, ttl);
    assert_eq!(er("10.2.30.10", "10.10.30.4", 2), "hub-vm -1");
    assert_eq!(er("10.2.30.10", "10.10.30.4", 1), "ttl_exceeded_silent");
    assert_eq!(er("10.10.30.132", "10.11.30.4", 60), "spoke-vm -1");
    assert_eq!(
        er("10.1.31.10", "10.10.30.4", 64),
        "spoofed_source",
        "of another circuit"
    );
    assert_eq!(
        er("10.2.30.10", "10.11.30.68", 64),
        "transit_not_allowed",
        "E8: not on to the VPN"
    );
    let out = fate(&w, &reports, "hub-er", Some(&vm), "10.10.30.4", "10.2.30.10", 64);
    assert_eq!(out, "transit_not_allowed");

    // N8: a VM accepts packets that come through the ExpressRoute gateway if their source is in a learned prefix or is
    // the tunnel address of an edge.
    let gateway = agent("hub-er");
    let at_vm = |source| fate(&w, &reports, "hub-vm", Some(&gateway), source, "10.10.30.4", 60);
    assert_eq!(
        (at_vm("10.2.30.10"), at_vm("10.10.30.133")),
        ("deliver".into(), "deliver".into())
    );
    assert_eq!(at_vm("192.168.30.17"), "spoofed_source");
    assert_eq!(
        fate(&w, &reports, "hub-vm", None, "10.10.30.4", "10.2.30.10", 64),
        "er1-1"
    );

    Arc::make_mut(&mut w.topology.settings).circuit_vnet_to_vnet = false;
    assert_eq!(edge(&w, "10.10.30.4", "10.17.30.4"), "transit_not_allowed");
}

/// E6: with `circuitVnetToVnet` off, VNets that are linked to the same circuit do not reach each other through it.
#[test]
fn e6_vnet_to_vnet_is_a_switch() {
    let mut w = lab();
    Arc::make_mut(&mut w.topology.settings).circuit_vnet_to_vnet = false;
    assert_eq!(
        gateway_routes(&w, &reports(false), "remote-vm"),
        ["10.2.30.0/25 10.17.30.36"]
    );
}

/// E4: flows between the same two addresses are spread over both edges. All packets and fragments of a flow use the
/// same edge (D13).
#[test]
fn e4_flows_share_both_edges() {
    let (w, reports) = (lab(), reports(false));
    let config = w.config("hub-vm");
    let compiler = Compiler::new(&w.topology);
    let dynamic = LearnedRoutes::new(&w.topology, &compiler, reports).routing_state(&config);
    let tables = Tables::build(&config, &dynamic).unwrap();
    let edge = |ports: u32| {
        let packet = PacketInfo {
            source: ip("10.10.30.4"),
            destination: ip("10.1.31.10"),
            ttl: 64,
            protocol: 6,
            transport: Some(20),
            ports,
            len: 64,
        };
        match decide(&tables, Ingress::Tun(NicIndex::FIRST), &packet, None) {
            Verdict::Forward { link, .. } => tables.peer(link).clone(),
            other => panic!("{other:?}"),
        }
    };
    let first = (40_000..40_400).filter(|port| edge(port << 16 | 443) == agent("er2-1"));
    assert!((120..280).contains(&first.count()));
    assert!((0..9).all(|_| edge(0) == edge(0) && edge(7 << 16 | 80) == edge(7 << 16 | 80)));
}

/// E4: if an edge does not answer, packets use only the other edge. D19: the VM and the VNet's gateway each detect that
/// the edge does not answer, and report it.
#[test]
fn e4_one_edge_down_leaves_the_other() {
    let (w, mut reports) = (lab(), reports(false));
    for vm in ["hub-vm", "hub-er"] {
        reports.down.entry(agent(vm)).or_default().insert(agent("er2-1"));
    }
    let routes = gateway_routes(&w, &reports, "hub-vm");
    assert!(routes.contains(&"10.1.31.0/25 10.10.30.135".to_owned()), "{routes:?}");
}

/// E12, R7 step 4: of two circuits' routes for one prefix, the route with the higher weight wins; if the weights are
/// equal, the route with the shorter AS path wins. If weight and AS path are equal, the two circuits share the flows.
#[test]
fn e12_the_weight_decides_then_the_path_then_flows_are_shared() {
    let mut w = lab();
    let prefix = "10.99.0.0/24";
    let announced = |er1: &[u32], er2: &[u32]| {
        let mut reports = reports(false);
        for (at, circuit, path) in [("er1-1", "er1", er1), ("er2-1", "er2", er2)] {
            let neighbour = id("expressRouteCircuits", circuit);
            let routes = reports
                .learned
                .entry(agent(at))
                .or_default()
                .entry(neighbour)
                .or_default();
            Arc::make_mut(routes).push(Route {
                prefix: nets(prefix)[0],
                via: None,
                as_path: path.to_vec(),
                weight: 0,
                origin: RouteOrigin::Site,
            });
        }
        reports
    };
    let known = |w: &World, reports: &LearnedReports| -> Vec<String> {
        let routes = gateway_routes(w, reports, "hub-vm");
        routes.into_iter().filter(|r| r.contains(prefix)).collect()
    };
    let equal = announced(&[65_021], &[65_020]);
    assert_eq!(known(&w, &equal), ["10.99.0.0/24 10.10.30.132 10.10.30.134"]);
    let longer = announced(&[65_021, 64_999], &[65_020]);
    let [er1, er2] = ["10.99.0.0/24 10.10.30.132", "10.99.0.0/24 10.10.30.134"];
    assert_eq!(known(&w, &longer), [er2.to_owned(), format!("!{er1}")]);
    connection_mut(&mut w, "hub-er1").routing_weight = 5;
    for reports in [equal, longer] {
        assert_eq!(known(&w, &reports), [er1.to_owned(), format!("!{er2}")]);
    }
}

/// G17: the links between two gateways, and between a gateway and a site's device, are WireGuard's, with a key that is
/// derived from the connection's shared key. All other links have a pinned key too.
#[test]
fn g17_links_of_connections_are_encrypted_with_their_own_key() {
    let w = lab();
    let of_connections = |from: &str| {
        let links = w.config(from).links.into_iter();
        let links = links.filter(|l| matches!(l.relation, Relation::Connection { .. } | Relation::Site { .. }));
        links.collect::<Vec<_>>()
    };
    let (hub, branch) = (of_connections("hub-vpn"), of_connections("branch-vpn"));
    assert_eq!((hub.len(), branch.len()), (2, 1));
    for link in hub.iter().chain(&branch) {
        assert_eq!(
            (link.transport, link.quic),
            (Transport::WireGuard, None),
            "{}",
            link.peer
        );
        assert!(link.preshared_key.is_some(), "{}", link.peer);
    }
    let to_branch = hub.iter().find(|l| l.peer == agent("branch-vpn")).unwrap();
    assert_eq!(to_branch.preshared_key, branch[0].preshared_key);
}

/// Gives a circuit a SKU of the premium tier.
fn make_premium(w: &mut World, name: &str) {
    let circuit = w.topology.circuits.get_mut(&id("expressRouteCircuits", name)).unwrap();
    let echoed = &mut Arc::make_mut(circuit).envelope.echoed;
    echoed.insert("sku".to_owned(), serde_json::json!({"tier": "Premium"}));
}

/// E13, X11: the customer of a circuit announces at most 4,000 prefixes, and of a Premium circuit 10,000. Agents that
/// say that they read longer tables get all of them.
#[test]
fn x11_a_premium_circuit_takes_more_prefixes() {
    let mut w = lab();
    for name in ["hub-er", "hub-vm", "er1-1"] {
        w.agent_mut(name).reach.many_routes = true;
    }
    let limit = |w: &World, edge: &str| match w.config(edge).role {
        Role::CircuitEdge { bgp, .. } => bgp.neighbours[0].max_prefixes,
        other => panic!("{other:?}"),
    };
    let many = |w: &World, from: &str| {
        let links = w.config(from).links.into_iter().filter(|link| link.many_routes);
        links.map(|link| link.peer.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(limit(&w, "er1-1"), 4000);
    assert!(many(&w, "er1-1").is_empty() && many(&w, "hub-er").is_empty());
    make_premium(&mut w, "er1");
    assert_eq!((limit(&w, "er1-1"), limit(&w, "er2-1")), (10_000, 4000));
    assert_eq!(
        many(&w, "er1-1"),
        ["hub-er"],
        "remote-er has not said that it reads long tables"
    );
    assert_eq!(many(&w, "hub-er"), ["hub-vm"]);
    assert!(many(&w, "er2-1").is_empty() && many(&w, "remote-er").is_empty());
}

/// E13, X11: a connection is down while its gateway advertises more than 1,000 prefixes of one address family to the
/// circuit. The circuit's other connections work.
#[test]
fn e13_a_connection_with_too_many_prefixes_is_down() {
    let mut w = lab();
    let networks = |w: &World| match w.config("er1-1").role {
        Role::CircuitEdge { networks, .. } => networks.into_iter().map(|n| n.vnet).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    // The spoke's prefix is the 1,000th one.
    let space = |count: u32| -> Vec<_> {
        let more = (0..count).map(|n| format!("10.{}.{}.0/24", 100 + (n >> 8), n & 255));
        let all = std::iter::once("10.10.30.0/24".to_owned()).chain(more);
        all.map(|prefix| prefix.parse().unwrap()).collect()
    };
    w.vnet_mut("hub").address_space = space(998);
    assert_eq!(
        networks(&w),
        [id("virtualNetworks", "hub"), id("virtualNetworks", "remote")]
    );
    assert!(w.link("hub-er", "er1-1").is_some());
    w.vnet_mut("hub").address_space = space(999);
    assert_eq!(networks(&w), [id("virtualNetworks", "remote")]);
    assert!(w.link("hub-er", "er1-1").is_none() && w.link("hub-er", "er2-1").is_none());
    assert!(w.link("remote-er", "er1-1").is_some());
    // The limit is one of each address family.
    w.vnet_mut("hub").address_space = space(998);
    w.vnet_mut("hub").address_space.push("fd00:10::/48".parse().unwrap());
    assert!(w.link("hub-er", "er1-1").is_some());
}

/// G4: if both ends of a connection have the same ASN, no BGP session comes up, and the branch learns no route.
#[test]
fn g4_equal_asns_exchange_nothing() {
    let mut w = lab();
    let branch = w
        .topology
        .gateways
        .get_mut(&id("virtualNetworkGateways", "branch-vpn"))
        .unwrap();
    Arc::make_mut(branch).asn = 65_515;
    assert!(gateway_routes(&w, &reports(false), "branch-vm").is_empty());
}

/// G22: a gateway rejects a site's route if its AS path has the gateway's ASN, or if its prefix equals or is inside an
/// address range of a joined VNet. The gateway accepts a route for a larger prefix that contains such a range.
#[test]
fn g22_what_a_site_may_not_announce_is_not_taken() {
    let (w, mut reports) = (lab(), reports(false));
    let learned = reports.learned.get_mut(&agent("hub-vpn")).unwrap();
    let base = learned[&id("connections", "hub-loc1")][0].clone();
    let route = |prefix: &str, as_path: &[u32]| Route {
        prefix: nets(prefix)[0],
        as_path: as_path.to_vec(),
        ..base.clone()
    };
    let announced = vec![
        route("10.10.30.0/24", &[65_021]),
        route("10.11.30.0/27", &[65_021]),
        route("10.5.0.0/16", &[65_021, 65_515]),
        route("10.0.0.0/9", &[65_021]),
        route("0.0.0.0/0", &[65_021]),
    ];
    learned.insert(id("connections", "hub-loc1"), Arc::new(announced));
    let hub = gateway_routes(&w, &reports, "hub-vm");
    // G24: the hub accepts a default route.
    assert!(hub.contains(&"0.0.0.0/0 10.10.30.142".to_owned()) && hub.contains(&"10.0.0.0/9 10.10.30.142".to_owned()));
    assert!(
        !hub.iter()
            .any(|r| r.starts_with("10.5.") || r.starts_with("10.10.") || r.starts_with("10.11.30.0/27"))
    );
    // G24, G20: the hub advertises to the branch neither the default route nor a route that overlaps the hub's own
    // networks.
    let branch = gateway_routes(&w, &reports, "branch-vm");
    assert!(
        !branch.iter().any(|r| r.starts_with("0.") || r.starts_with("10.0.")),
        "{branch:?}"
    );
}

/// D16: in the gateway's configuration, the link with a site's device is marked as third-party and has a preshared key.
/// If the connection has no shared key, the configuration has no link, but still the BGP neighbour.
#[test]
fn d16_a_site_without_keys_has_no_link() {
    let mut w = lab();
    let site = AgentId::of_site(&id("connections", "hub-loc1"));
    let link = w.config("hub-vpn").links.into_iter().find(|l| l.peer == site).unwrap();
    assert!(link.third_party && link.always_on && link.preshared_key.is_some());
    assert_eq!(link.sources, nets("10.2.30.125/32"));
    let connection = w.topology.connections.get_mut(&id("connections", "hub-loc1")).unwrap();
    Arc::make_mut(connection).shared_key = None;
    assert!(!w.config("hub-vpn").links.iter().any(|l| l.peer == site));
    let Role::VpnGateway { bgp, .. } = w.config("hub-vpn").role else {
        panic!()
    };
    assert_eq!(bgp.unwrap().neighbours[0].address, ip("10.2.30.125"));
}

/// Checks a mesh of `count` VNets, each with a VPN gateway and a site. Two networks reach each other, in both
/// directions, if and only if a chain of connections that exchange routes joins them (G18, G19, G22). No packet loops.
/// `joined`: the connections, each as the numbers of its two gateways and whether it uses BGP. `plain`: for each site,
/// whether it is without BGP, so that its prefix is configured (G18).
fn mesh(joined: &[(usize, usize, bool)], count: usize, plain: &[bool]) {
    let mut w = World::default();
    let mut reports = LearnedReports::default();
    for n in 0..count {
        let (vnet, vm, gw) = (format!("v{n}"), format!("vm{n}"), format!("gw{n}"));
        let subnets = format!("workload=10.{n}.0.0/24 GatewaySubnet=10.{n}.255.0/27");
        w.vnet(&vnet, &format!("10.{n}.0.0/16"), &subnets);
        w.vm(&vm, &format!("{vnet}/workload=10.{n}.0.4"));
        let (at, bgp) = (format!("10.{n}.255.4"), format!("10.{n}.255.30"));
        let asn = 65_100 + u32::try_from(n).unwrap();
        gateway(&mut w, &gw, &vnet, GatewayKind::Vpn, asn, &at, &bgp);
        let local = id("localNetworkGateways", &format!("site{n}"));
        let is_plain = plain.get(n).copied().unwrap_or_default();
        let prefix = format!("172.16.{n}.0/24");
        let site = LocalNetworkGateway {
            envelope: World::envelope(local.clone(), "region1"),
            address: None,
            port: 51_820,
            public_key: Some(PublicKey([u8::try_from(n).unwrap() + 1; 32])),
            address_space: if is_plain { nets(&prefix) } else { Vec::new() },
            bgp: (!is_plain).then(|| SiteBgp {
                asn: asn + 100,
                address: ip(&format!("172.16.{n}.1")),
            }),
        };
        w.topology.local_gateways.insert(local.clone(), Arc::new(site));
        let name = format!("c{n}");
        connection(&mut w, &name, ConnectionType::IPsec, &gw, local, "");
        if is_plain {
            connection_mut(&mut w, &name).enable_bgp = false;
            continue;
        }
        let announced = Route {
            prefix: prefix.parse().unwrap(),
            via: None,
            as_path: vec![asn + 100],
            weight: 0,
            origin: RouteOrigin::Site,
        };
        let learned = [(id("connections", &format!("c{n}")), Arc::new(vec![announced]))];
        reports.learned.insert(agent(&gw), learned.into());
    }
    let mut near = vec![vec![false; count]; count];
    for (n, row) in near.iter_mut().enumerate() {
        row[n] = true;
    }
    let mut reach = near.clone();
    for &(a, b, bgp) in joined.iter().filter(|(a, b, _)| a != b && *a < count && *b < count) {
        for (x, y) in [(a, b), (b, a)] {
            let name = format!("j{x}-{y}");
            if near[x][y] {
                continue;
            }
            let to = id("virtualNetworkGateways", &format!("gw{y}"));
            connection(&mut w, &name, ConnectionType::Vnet2Vnet, &format!("gw{x}"), to, "");
            connection_mut(&mut w, &name).enable_bgp = bgp;
        }
        if !near[a][b] {
            (near[a][b], near[b][a]) = (true, true);
            (reach[a][b], reach[b][a]) = (bgp, bgp);
        }
    }
    for k in 0..count {
        for a in 0..count {
            for b in 0..count {
                reach[a][b] |= reach[a][k] && reach[k][b];
            }
        }
    }
    for a in 0..count {
        for b in 0..count {
            let ask = |to: String| {
                let question = serde_json::json!({"from": format!("vm{a}"), "to": to});
                let question: ExplainRequest = serde_json::from_value(question).unwrap();
                explain(&w.topology, &reports, &question).unwrap()
            };
            let site = ask(format!("172.16.{b}.10"));
            assert_eq!(
                site.reachable, reach[a][b],
                "vm{a} to site {b} of {joined:?}: {}",
                site.summary
            );
            if a == b {
                continue;
            }
            let vm = ask(format!("10.{b}.0.4"));
            // A connection without BGP joins the VNets at its two ends, too (G9).
            assert_eq!(
                vm.reachable,
                reach[a][b] || near[a][b],
                "vm{a} to vm{b} of {joined:?}: {}",
                vm.summary
            );
        }
    }
}

/// G19: gateways that are connected in a chain or a ring pass on routes and packets, except over a connection without
/// BGP.
#[test]
fn g19_chains_and_rings_of_gateways_reach_all_they_join() {
    mesh(&[(0, 1, true), (1, 2, true), (2, 3, true)], 4, &[]);
    mesh(&[(0, 1, true), (1, 2, true), (2, 0, true), (3, 4, true)], 5, &[]);
    mesh(&[(0, 1, true), (1, 2, false)], 3, &[]);
}

/// G18: the prefix of a site without BGP is advertised over all connections that exchange routes, and over no others.
#[test]
fn g18_sites_without_bgp_are_reached_from_further_gateways() {
    mesh(&[(0, 1, true), (1, 2, true), (2, 3, true)], 4, &[true]);
    mesh(&[(0, 1, true), (1, 2, true), (2, 0, true)], 3, &[false, true, true]);
    mesh(&[(0, 1, true), (1, 2, false)], 3, &[false, true, false]);
}

/// G18, G19: the hub has a site with BGP (loc1), a site without BGP (loc3, 10.3.30.0/24), and a branch. Networks that
/// exchange routes with the hub learn the prefix of loc3 and reach it. Without BGP on the branch's connection, the
/// branch and loc3 do not reach each other.
#[test]
fn g18_a_site_without_bgp_is_advertised_to_ends_with_bgp() {
    let (mut w, reports) = (lab(), reports(false));
    let plain = id("localNetworkGateways", "loc3");
    let site = LocalNetworkGateway {
        envelope: World::envelope(plain.clone(), "region1"),
        address: Some(ip("192.0.2.78")),
        port: 51_820,
        public_key: Some(PublicKey([8; 32])),
        address_space: nets("10.3.30.0/24"),
        bgp: None,
    };
    w.topology.local_gateways.insert(plain.clone(), Arc::new(site));
    connection(&mut w, "hub-loc3", ConnectionType::IPsec, "hub-vpn", plain, "");
    connection_mut(&mut w, "hub-loc3").enable_bgp = false;
    let told = |w: &World, reports: &LearnedReports, to: &str| -> BTreeMap<String, Vec<u32>> {
        let compiler = Compiler::new(&w.topology);
        let learned = LearnedRoutes::new(&w.topology, &compiler, reports.clone());
        let config = w.config("hub-vpn");
        let routes = routes_for_neighbour(&config, &learned.routing_state(&config), &id("connections", to));
        routes.into_iter().map(|r| (r.prefix.to_string(), r.as_path)).collect()
    };
    // The gateway originates the route to a site without BGP, like the routes to its own VNet. So the AS path is empty.
    let to_loc1 = told(&w, &reports, "hub-loc1");
    assert_eq!(to_loc1.get("10.3.30.0/24"), Some(&Vec::new()), "{to_loc1:?}");
    let branch = gateway_routes(&w, &reports, "branch-vm");
    assert!(branch.contains(&"10.3.30.0/24 10.11.30.100".to_owned()), "{branch:?}");

    let (loc1, loc3) = (
        AgentId::of_site(&id("connections", "hub-loc1")),
        AgentId::of_site(&id("connections", "hub-loc3")),
    );
    let at_hub = |w: &World, from: &AgentId, source, to| fate(w, &reports, "hub-vpn", Some(from), source, to, 64);
    assert_eq!(at_hub(&w, &loc1, "10.2.30.10", "10.3.30.10"), loc3.to_string());
    assert_eq!(at_hub(&w, &loc3, "10.3.30.10", "10.2.30.10"), loc1.to_string());
    let branch = agent("branch-vpn");
    assert_eq!(at_hub(&w, &branch, "10.11.30.68", "10.3.30.10"), format!("{loc3} -1"));
    assert_eq!(at_hub(&w, &loc3, "10.3.30.10", "10.11.30.68"), "branch-vpn");
    let at_branch = fate(
        &w,
        &reports,
        "branch-vpn",
        Some(&agent("hub-vpn")),
        "10.3.30.10",
        "10.11.30.68",
        64,
    );
    assert_eq!(at_branch, "branch-vm");
    // E8: loc3 does not reach the customers of circuits.
    assert_eq!(at_hub(&w, &loc3, "10.3.30.10", "10.1.31.10"), "route_none");

    // While the site's device does not answer, the site's prefixes are not advertised.
    let mut silent = reports.clone();
    silent.down.entry(agent("hub-vpn")).or_default().insert(loc3.clone());
    assert!(!told(&w, &silent, "hub-loc1").contains_key("10.3.30.0/24"));

    // G19: with BGP off on the connection to the branch, neither the branch nor loc3 exchanges routes with the hub. So
    // the hub forwards nothing between the two.
    for c in ["hub-branch", "branch-hub"] {
        connection_mut(&mut w, c).enable_bgp = false;
    }
    assert_eq!(at_hub(&w, &branch, "10.11.30.68", "10.3.30.10"), "transit_not_allowed");
    assert_eq!(at_hub(&w, &loc3, "10.3.30.10", "10.11.30.68"), "transit_not_allowed");
    assert_eq!(at_hub(&w, &loc1, "10.2.30.10", "10.3.30.10"), loc3.to_string());
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(48))]
    #[test]
    fn g19_any_mesh_of_gateways(
        joined in proptest::collection::vec((0usize..6, 0usize..6, proptest::bool::weighted(0.8)), 0..9),
        count in 2usize..6,
        plain in proptest::collection::vec(proptest::bool::ANY, 6),
    ) {
        mesh(&joined, count, &plain);
    }
}
