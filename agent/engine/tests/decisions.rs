//! Packet decisions, rule by rule. Each row of a table has a source, a destination and the expected verdict.
#![cfg(feature = "links")]
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "helpers of tests; the clock is the test's"
)]

mod common;

use common::{agent, id, ip, link, nets, owner, route, space, udp, vm};
use tombolo_engine::decide::{Ingress, Trace, decide};
use tombolo_engine::host_routes::sending_nic;
use tombolo_engine::packet::{PacketInfo, parse};
use tombolo_engine::tables::{NicIndex, RoutingState, Tables};
use tombolo_engine::verdict::{DropReason, Verdict};
use tombolo_proto::config::{
    AgentConfig, Arrival, ForeignSources, Probes, Relation, Role, Space, SpaceKind, Subnet, TransitRoute,
};
use tombolo_proto::route::{GatewayHop, NextHop, RouteState};

fn info(from: &str, to: &str, ttl: u8) -> PacketInfo {
    parse(&udp(from, to, ttl, 8)).unwrap()
}

/// The verdict as text: `deliver` (with the number of the NIC unless it is the first), `answer` (an ICMP error), the
/// name of the next agent (`gw1`), this name with `-1` if the TTL is decremented (`gw1 -1`), or the drop reason. `from`
/// is the peer from whose link the packet came; `None`: it came from the host, by the device of the NIC with its source
/// address, or else of the first NIC.
fn fate(config: &AgentConfig, state: &RoutingState, from: Option<&str>, packet: &PacketInfo) -> String {
    let tables = Tables::build(config, state).unwrap();
    let nic = sending_nic(config, packet.source, packet.destination);
    let ingress = from.map_or(Ingress::Tun(nic), |a| {
        Ingress::Link(tables.link_with(&agent(a)).unwrap())
    });
    outcome(&tables, ingress, packet)
}

fn outcome(tables: &Tables, ingress: Ingress, packet: &PacketInfo) -> String {
    match decide(tables, ingress, packet, None) {
        Verdict::Deliver(NicIndex::FIRST) => "deliver".into(),
        Verdict::Deliver(NicIndex(nic)) => format!("deliver {nic}"),
        Verdict::Translate(_) => "translate".into(),
        Verdict::TimeExceeded => "answer".into(),
        Verdict::Forward { link, decrement_ttl } => {
            format!("{}{}", tables.peer(link), if decrement_ttl { " -1" } else { "" })
        }
        Verdict::Drop(reason) => reason.name().into(),
    }
}

fn expect(config: &AgentConfig, from: Option<&str>, rows: &[(&str, &str, &str)]) {
    for (source, destination, expected) in rows {
        let got = fate(config, &RoutingState::default(), from, &info(source, destination, 64));
        assert_eq!(got, *expected, "{source} → {destination} from {from:?}");
    }
}

fn peered(vnet: &str, access: bool, prefixes: &[&str], owners: &[(&str, &str)]) -> Space {
    let kind = SpaceKind::Peered {
        peering: id(&format!("to-{vnet}")),
        allow_access: access,
        allow_forwarded: false,
    };
    space(vnet, kind, prefixes, owners)
}

fn peering(vnet: &str) -> NextHop {
    NextHop::VnetPeering {
        peering: id(&format!("to-{vnet}")),
    }
}

fn appliance(address: &str) -> NextHop {
    NextHop::VirtualAppliance { address: ip(address) }
}

fn gateway(agents: &[&str]) -> NextHop {
    let hop = |a: &&str| GatewayHop {
        agent: agent(a),
        address: ip("10.1.255.4"),
    };
    NextHop::VirtualNetworkGateway {
        gateways: agents.iter().map(hop).collect(),
        spread: false,
    }
}

fn of_peering(vnet: &str) -> Relation {
    Relation::Peering {
        peering: id(&format!("to-{vnet}")),
    }
}

/// The VM 10.1.0.4 in a hub with 10.1.0.0/16 and fd01::/48. `two` is a VM in a peered VNet, and `three` is a VM in a
/// VNet whose peering has `allowVirtualNetworkAccess` off.
fn hub_vm() -> AgentConfig {
    let owners = [
        ("10.1.0.4/32", "vm"),
        ("fd01::4/128", "vm"),
        ("10.1.0.5/32", "nva"),
        ("fd01::5/128", "nva"),
        ("10.1.9.0/24", "server"),
        ("10.1.9.7/32", "nva"),
        ("10.1.8.8/32", "unlinked"),
    ];
    let links = vec![
        link("gw1", Relation::Gateway {}, &["10.1.255.4/32", "10.9.0.0/16"]),
        link("gw2", Relation::Gateway {}, &["10.1.255.5/32", "10.9.0.0/16"]),
        link("nva", Relation::VnetLocal {}, &["10.1.0.5/32", "fd01::5/128"]),
        link("server", Relation::VnetLocal {}, &["10.1.9.0/24"]),
        link("three", of_peering("three"), &["10.3.0.4/32"]),
        link("two", of_peering("two"), &["10.2.0.4/32", "fd02::4/128"]),
    ];
    let mut config = vm("vm", &["10.1.0.4/24", "fd01::4/64"], links, &owners);
    config.address_space = nets(&["10.1.0.0/16", "fd01::/48"]);
    config.spaces[0].prefixes = config.address_space.clone();
    config.spaces.push(peered(
        "two",
        true,
        &["10.2.0.0/16", "fd02::/48"],
        &[("10.2.0.4/32", "two"), ("fd02::4/128", "two")],
    ));
    config
        .spaces
        .push(peered("three", false, &["10.3.0.0/16"], &[("10.3.0.4/32", "three")]));
    config.subnets = vec![Subnet {
        id: id("workload"),
        prefixes: nets(&["10.1.0.0/24", "fd01::/64"]),
        routes: vec![
            route("10.1.0.0/16", NextHop::VnetLocal {}),
            route("fd01::/48", NextHop::VnetLocal {}),
            route("10.2.0.0/16", peering("two")),
            route("fd02::/48", peering("two")),
            route("10.3.0.0/16", peering("three")),
            route("10.9.0.0/16", gateway(&["gw1", "gw2"])),
            route("10.10.0.0/16", gateway(&[])),
            route("0.0.0.0/0", NextHop::Internet {}),
            route("192.168.0.0/16", NextHop::None {}),
            route("10.2.4.0/24", appliance("10.1.0.5")),
            route("10.20.0.0/16", appliance("10.2.0.4")),
            route("10.30.0.0/16", appliance("10.3.0.4")),
            route("10.40.0.0/16", appliance("10.77.0.1")),
            route("10.50.0.0/16", appliance("10.1.0.99")),
            route("10.60.0.0/16", appliance("10.1.0.4")),
        ],
        isolated: false,
    }];
    let Role::Vm { nics, .. } = &mut config.role else {
        unreachable!()
    };
    nics[0].subnet = id("workload");
    config
}

fn forwarding(mut config: AgentConfig) -> AgentConfig {
    let Role::Vm { nics, .. } = &mut config.role else {
        unreachable!()
    };
    nics[0].ip_forwarding = true;
    config
}

#[test]
fn a_vm_sends_by_the_longest_active_route() {
    expect(
        &hub_vm(),
        None,
        &[
            ("10.1.0.4", "10.1.0.5", "nva"),
            ("fd01::4", "fd01::5", "nva"),
            // D8: the address of a NIC has precedence over the served subnet that contains it.
            ("10.1.0.4", "10.1.9.6", "server"),
            ("10.1.0.4", "10.1.9.7", "nva"),
            ("10.1.0.4", "10.1.0.200", "no_owner"),
            ("10.1.0.4", "10.1.8.8", "no_link"),
            ("10.1.0.4", "10.2.0.4", "two"),
            ("fd01::4", "fd02::4", "two"),
            ("10.1.0.4", "10.2.0.5", "no_owner"),
            // P17 at the sender.
            ("10.1.0.4", "10.3.0.4", "access_denied"),
            ("10.1.0.4", "10.9.1.1", "gw1"),
            ("10.1.0.4", "10.10.1.1", "no_gateway"),
            // R13: a route with next hop `None` drops the packet. R1: the system route for other destinations leads to
            // the Internet, which the overlay does not carry.
            ("10.1.0.4", "192.168.1.1", "route_none"),
            ("10.1.0.4", "8.8.8.8", "route_internet"),
            // T8: this subnet has no default route for IPv6.
            ("fd01::4", "2001:db8::1", "no_route"),
            // R7: the user route 10.2.4.0/24 is used, because its prefix is longer than that of the peering's route.
            ("10.1.0.4", "10.2.4.1", "nva"),
            // R11: the appliances of the next five routes are, in this order: in a peered VNet; in a VNet whose peering
            // has `allowVirtualNetworkAccess` off; in no known VNet; at an address without an owner; the VM itself.
            ("10.1.0.4", "10.20.0.1", "two"),
            ("10.1.0.4", "10.30.0.1", "access_denied"),
            ("10.1.0.4", "10.40.0.1", "appliance_unreachable"),
            ("10.1.0.4", "10.50.0.1", "no_owner"),
            ("10.1.0.4", "10.60.0.1", "hairpin"),
            ("10.1.0.4", "10.1.0.4", "hairpin"),
        ],
    );
}

#[test]
fn routes_that_lost_are_never_used() {
    // R8: lookups ignore `Invalid` routes.
    let mut config = hub_vm();
    let mut invalid = route("10.2.0.0/24", NextHop::None {});
    invalid.state = RouteState::Invalid;
    config.subnets[0].routes.insert(0, invalid);
    expect(&config, None, &[("10.1.0.4", "10.2.0.4", "two")]);
    config.subnets[0].routes[0].state = RouteState::Active;
    expect(&config, None, &[("10.1.0.4", "10.2.0.4", "route_none")]);
}

#[test]
fn a_host_speaks_for_itself_unless_it_forwards() {
    // R12, D10: a packet whose source is not the VM's own address may leave only if a NIC of the VM has IP forwarding.
    // Each row is tested without and with IP forwarding.
    let rows = |foreign| {
        [
            ("10.1.0.4", "10.2.0.4", "two"),
            ("10.9.9.9", "10.2.0.4", foreign),
            ("10.1.0.5", "10.2.0.4", foreign),
        ]
    };
    expect(&hub_vm(), None, &rows("spoofed_source"));
    expect(&forwarding(hub_vm()), None, &rows("two"));
    // D8: machines without agents send and receive packets through this host if their addresses are in a prefix that it
    // serves.
    let mut config = hub_vm();
    let Role::Vm { served, .. } = &mut config.role else {
        unreachable!()
    };
    *served = nets(&["10.1.0.128/25"]);
    expect(
        &config,
        None,
        &[
            ("10.1.0.200", "10.2.0.4", "two"),
            ("10.1.0.100", "10.2.0.4", "spoofed_source"),
        ],
    );
    expect(
        &config,
        Some("two"),
        &[
            ("10.2.0.4", "10.1.0.200", "deliver"),
            ("10.2.0.4", "10.1.0.100", "not_forwarding"),
        ],
    );
}

#[test]
fn each_nic_has_its_own_subnets_routes() {
    // R20: the subnet of the NIC by which a packet leaves selects the routes.
    let config = two_armed(false, true);
    expect(
        &config,
        None,
        &[
            ("10.1.0.4", "10.2.0.4", "two"),
            ("10.1.1.4", "10.2.0.4", "route_internet"),
        ],
    );
}

/// `hub_vm` with a second NIC, 10.1.1.4, in the subnet `other`, which has no route to the peered VNet `two`; with IP
/// forwarding of the first and of the second NIC.
fn two_armed(first: bool, second: bool) -> AgentConfig {
    let mut config = hub_vm();
    let mut other = config.subnets[0].clone();
    (other.id, other.prefixes) = (id("other"), nets(&["10.1.1.0/24"]));
    other.routes.retain(|r| r.prefix != common::net("10.2.0.0/16"));
    config.subnets.push(other);
    let Role::Vm { nics, .. } = &mut config.role else {
        unreachable!()
    };
    let mut nic = nics[0].clone();
    (nic.subnet, nic.addresses, nic.ip_forwarding) = (id("other"), nets(&["10.1.1.4/24"]), second);
    nics[0].ip_forwarding = first;
    nics.push(nic);
    config
}

#[test]
fn r12_r20_an_appliance_forwards_by_the_nic_that_a_packet_leaves() {
    // D37: each row has the NIC, the fate with IP forwarding of the first NIC only, and with that of the second one
    // only.
    let packet = info("172.16.0.1", "10.2.0.4", 64);
    for (nic, with_first, with_second) in [(0, "two", "spoofed_source"), (1, "spoofed_source", "route_internet")] {
        for (first, expected) in [(true, with_first), (false, with_second)] {
            let tables = Tables::build(&two_armed(first, !first), &RoutingState::default()).unwrap();
            let got = outcome(&tables, Ingress::Tun(NicIndex(nic)), &packet);
            assert_eq!(got, expected, "NIC {nic}, first forwards: {first}");
        }
    }
    // The address of another NIC is foreign too.
    let tables = Tables::build(&two_armed(false, true), &RoutingState::default()).unwrap();
    let other = info("10.1.1.4", "10.2.0.4", 64);
    assert_eq!(outcome(&tables, Ingress::Tun(NicIndex(0)), &other), "spoofed_source");
}

#[test]
fn r12_a_packet_arrives_at_the_nic_that_the_peers_route_names() {
    let arrival = |source: &str, destination: &str, nic| Arrival {
        source: common::net(source),
        destination: common::net(destination),
        nic,
    };
    let with = |first, second| {
        let mut config = two_armed(first, second);
        let link = config.links.iter_mut().find(|l| l.peer == agent("nva")).unwrap();
        link.foreign = ForeignSources::Any;
        link.arrivals = vec![
            arrival("0.0.0.0/0", "172.16.0.0/12", 1),
            arrival("10.1.0.5/32", "10.1.0.4/32", 0),
            arrival("10.1.0.5/32", "10.1.0.0/16", 1),
            arrival("10.1.0.5/32", "172.16.0.0/16", 0),
        ];
        config
    };
    let rows = |own: &'static str, to_0: &'static str, to_1: &'static str| {
        [
            // Sent directly, although a route to the second NIC contains the address.
            ("10.1.0.5", "10.1.0.4", "deliver"),
            ("10.1.0.5", "10.1.1.4", "deliver 1"),
            // By way of the second NIC to the address of a served machine, which is no address of a NIC.
            ("10.1.0.5", "172.16.1.1", to_0),
            // The longest source has no entry for this destination, so the first NIC with IP forwarding counts.
            ("10.1.0.5", "172.17.1.1", own),
            // The peer forwards packets of others.
            ("172.31.0.1", "172.17.1.1", to_1),
        ]
    };
    expect(
        &with(true, false),
        Some("nva"),
        &rows("deliver", "deliver", "not_forwarding"),
    );
    expect(
        &with(false, true),
        Some("nva"),
        &rows("deliver 1", "not_forwarding", "deliver 1"),
    );
    expect(&with(true, true), Some("nva"), &rows("deliver", "deliver", "deliver 1"));
    expect(
        &with(false, false),
        Some("nva"),
        &rows("not_forwarding", "not_forwarding", "not_forwarding"),
    );
}

#[test]
fn a_gateway_that_is_down_gives_way_to_the_next() {
    // D11: gateways that are down are skipped; if all are down, the first one is used.
    let packet = info("10.1.0.4", "10.9.0.1", 64);
    for (down, expected) in [
        (vec![], "gw1"),
        (vec!["gw1"], "gw2"),
        (vec!["gw2"], "gw1"),
        (vec!["gw1", "gw2"], "gw1"),
    ] {
        let state = RoutingState {
            down: down.iter().map(|a| agent(a)).collect(),
            ..RoutingState::default()
        };
        assert_eq!(fate(&hub_vm(), &state, None, &packet), expected, "{down:?}");
    }
}

#[test]
fn a_link_carries_what_its_other_end_may_speak_for() {
    // D10: a packet that comes from `two` is delivered only if its source is an address of `two`.
    let config = hub_vm();
    expect(
        &config,
        Some("two"),
        &[
            ("10.2.0.4", "10.1.0.4", "deliver"),
            ("fd02::4", "fd01::4", "deliver"),
            ("10.2.0.5", "10.1.0.4", "spoofed_source"),
            ("10.5.0.1", "10.1.0.4", "spoofed_source"),
            ("10.1.0.5", "10.1.0.4", "spoofed_source"),
            // R12: the destination is not this host, and this host does not forward packets.
            ("10.2.0.4", "10.1.0.5", "not_forwarding"),
        ],
    );
    // P17 at the receiver.
    expect(
        &config,
        Some("three"),
        &[
            ("10.3.0.4", "10.1.0.4", "access_denied"),
            ("10.3.0.5", "10.1.0.4", "spoofed_source"),
        ],
    );
    expect(
        &forwarding(config),
        Some("two"),
        &[
            ("10.2.0.4", "10.1.0.5", "deliver"),
            ("10.2.0.4", "172.16.0.1", "deliver"),
        ],
    );
}

/// P17: packets from and to a VNet whose peering has `allowVirtualNetworkAccess` off are dropped on every path, also
/// through a gateway that both VNets use (P21d) and through an appliance.
#[test]
fn access_that_is_off_is_off_on_every_path() {
    let mut config = forwarding(hub_vm());
    for link in &mut config.links {
        match link.peer.as_str() {
            "gw1" => link.sources.extend(nets(&["10.2.0.0/16", "10.3.0.0/16"])),
            "nva" => link.foreign = ForeignSources::Any,
            _ => {}
        }
    }
    let routes = &mut config.subnets[0].routes;
    routes.push(route("10.3.0.0/24", gateway(&["gw1"])));
    routes.push(route("10.3.1.0/24", appliance("10.1.0.5")));
    routes.push(route("10.3.2.0/24", gateway(&[])));
    let denied = [
        ("10.1.0.4", "10.3.0.4", "access_denied"),
        ("10.1.0.4", "10.3.1.4", "access_denied"),
        ("10.1.0.4", "10.3.2.4", "access_denied"),
        // Forwarded packets, in either direction.
        ("10.3.0.4", "10.1.0.5", "access_denied"),
        ("10.9.0.1", "10.3.0.4", "access_denied"),
        // Packets of other VNets are not affected.
        ("10.1.0.4", "10.9.1.1", "gw1"),
        ("10.1.0.4", "10.2.4.1", "nva"),
    ];
    expect(&config, None, &denied);
    let from_gateway = [
        ("10.3.0.4", "10.1.0.4", "access_denied"),
        ("10.2.0.4", "10.1.0.4", "deliver"),
        ("10.9.0.1", "10.1.0.4", "deliver"),
        // The check of the source (D10) comes before the check of P17.
        ("10.4.0.1", "10.1.0.4", "spoofed_source"),
    ];
    expect(&config, Some("gw1"), &from_gateway);
    let from_appliance = [
        ("10.3.0.4", "10.1.0.4", "access_denied"),
        ("10.5.0.4", "10.1.0.4", "deliver"),
    ];
    expect(&config, Some("nva"), &from_appliance);
}

#[test]
fn appliances_bring_foreign_sources_where_that_is_allowed() {
    // P18: an appliance in a peered VNet may not send from the receiver's own address space. R12: an appliance in the
    // own VNet may send from any address but the receiver's own.
    let mut config = hub_vm();
    for link in &mut config.links {
        link.foreign = match link.peer.as_str() {
            "two" => ForeignSources::OutsideOwnSpace,
            "nva" => ForeignSources::Any,
            _ => ForeignSources::None,
        };
    }
    expect(
        &config,
        Some("two"),
        &[
            ("10.5.0.1", "10.1.0.4", "deliver"),
            ("2001:db8::1", "fd01::4", "deliver"),
            ("10.1.0.5", "10.1.0.4", "spoofed_source"),
            ("fd01::5", "fd01::4", "spoofed_source"),
        ],
    );
    expect(
        &config,
        Some("nva"),
        &[
            ("10.5.0.1", "10.1.0.4", "deliver"),
            ("10.1.0.6", "10.1.0.4", "deliver"),
            ("10.1.0.4", "10.1.0.4", "spoofed_source"),
            ("fd01::4", "fd01::4", "spoofed_source"),
        ],
    );
    expect(&config, Some("server"), &[("10.5.0.1", "10.1.0.4", "spoofed_source")]);
}

/// The VPN gateway of the hub 10.1.0.0/16, with the address 10.1.255.4. The spoke 10.2.0.0/16 uses the gateway, and the
/// peered VNet 10.3.0.0/16 does not. The gateway has connections to 10.8.0.0/16, which is also peered with the hub, and
/// to 10.9.0.0/16.
fn hub_gateway() -> AgentConfig {
    let connection = |name: &str| Relation::Connection { connection: id(name) };
    let transit = |prefix: &str, name: &str, via: &[&str]| TransitRoute {
        prefix: common::net(prefix),
        connection: id(name),
        via: via.iter().map(|a| agent(a)).collect(),
    };
    AgentConfig {
        agent: agent("gw"),
        vnet: id("hub"),
        address_space: nets(&["10.1.0.0/16"]),
        mtu: 1420,
        probes: Probes::default(),
        role: Role::VpnGateway {
            gateway: id("gw"),
            addresses: vec![ip("10.1.255.4")],
            local_prefixes: nets(&["10.1.0.0/16", "10.2.0.0/16"]),
            transit: vec![
                transit("10.8.0.0/16", "to-eight", &["eight"]),
                transit("10.9.0.0/16", "to-nine", &["nine1", "nine2"]),
            ],
            asn: 65_515,
            connections: Vec::new(),
            bgp: None,
            site_ttl: tombolo_proto::config::SiteTtl::SilentHop,
        },
        subnets: vec![Subnet {
            id: id("GatewaySubnet"),
            prefixes: nets(&["10.1.255.0/27"]),
            routes: vec![
                route("10.1.0.0/16", NextHop::VnetLocal {}),
                route("10.2.0.0/16", peering("spoke")),
                route("10.3.0.0/16", peering("other")),
                route("10.8.0.0/16", peering("eight")),
                route("10.9.0.0/16", gateway(&["gw"])),
                route("10.2.7.0/24", appliance("10.1.0.5")),
                route("0.0.0.0/0", NextHop::Internet {}),
            ],
            isolated: false,
        }],
        spaces: vec![
            space(
                "hub",
                SpaceKind::Local {},
                &["10.1.0.0/16"],
                &[("10.1.0.4/32", "vm"), ("10.1.0.5/32", "nva"), ("10.1.255.4/32", "gw")],
            ),
            space(
                "spoke",
                SpaceKind::GatewayClient {},
                &["10.2.0.0/16"],
                &[("10.2.0.4/32", "spoke-vm")],
            ),
        ],
        links: vec![
            link("eight", connection("to-eight"), &["10.8.0.0/16"]),
            link("nine1", connection("to-nine"), &["10.9.0.0/16"]),
            link("nine2", connection("to-nine"), &["10.9.0.0/16"]),
            link("nva", Relation::GatewayClient {}, &["10.1.0.5/32"]),
            link("spoke-vm", Relation::GatewayClient {}, &["10.2.0.4/32"]),
            link("vm", Relation::GatewayClient {}, &["10.1.0.4/32"]),
        ],
        security: None,
        front_ends: Vec::new(),
        limits: None,
    }
}

#[test]
fn a_gateway_relays_between_its_own_side_and_its_connections() {
    let config = hub_gateway();
    expect(
        &config,
        Some("spoke-vm"),
        &[
            ("10.2.0.4", "10.9.0.1", "nine1 -1"),
            // D9: the gateway forwards through the connection, although the hub itself is peered with the destination's
            // VNet.
            ("10.2.0.4", "10.8.0.1", "eight -1"),
            // P21d: a user-defined route of a spoke leads its packets through the gateway to another spoke or to the
            // hub.
            ("10.2.0.4", "10.1.0.4", "vm -1"),
            // A packet to the gateway's own address goes to the kernel, and its TTL is not decremented.
            ("10.2.0.4", "10.1.255.4", "deliver"),
            ("10.2.0.4", "10.3.0.4", "transit_not_allowed"),
            ("10.2.0.4", "10.1.0.9", "no_owner"),
            ("10.2.0.4", "9.9.9.9", "route_internet"),
            ("10.2.0.4", "10.2.0.4", "hairpin"),
            ("10.2.0.5", "10.9.0.1", "spoofed_source"),
        ],
    );
    expect(
        &config,
        Some("nine1"),
        &[
            ("10.9.0.1", "10.1.0.4", "vm -1"),
            ("10.9.0.1", "10.2.0.4", "spoke-vm -1"),
            ("10.9.0.1", "10.1.255.4", "deliver"),
            // R16: the route table of `GatewaySubnet` may lead packets through an appliance.
            ("10.9.0.1", "10.2.7.4", "nva -1"),
            // D9: packets from a connection are forwarded neither into a peered VNet that does not use the gateway
            // (10.3.0.0/16) nor to another connection: no connection here exchanges routes.
            ("10.9.0.1", "10.3.0.4", "transit_not_allowed"),
            ("10.9.0.1", "10.8.0.1", "transit_not_allowed"),
            ("10.9.0.1", "10.9.0.2", "transit_not_allowed"),
            ("10.9.0.1", "1.1.1.1", "route_internet"),
            ("10.8.0.1", "10.1.0.4", "spoofed_source"),
            ("10.1.0.4", "10.1.0.4", "spoofed_source"),
        ],
    );
    let packet = info("10.2.0.4", "10.9.0.1", 64);
    let down = RoutingState {
        down: [agent("nine1")].into(),
        ..RoutingState::default()
    };
    assert_eq!(fate(&config, &down, Some("spoke-vm"), &packet), "nine2 -1", "D11");
    // The gateway's host itself may send packets only from the gateway's address.
    expect(
        &config,
        None,
        &[
            ("10.1.255.4", "10.2.0.4", "spoke-vm"),
            ("10.1.255.4", "10.9.0.1", "nine1"),
            ("10.2.0.4", "10.9.0.1", "spoofed_source"),
        ],
    );
}

#[test]
fn a_gateway_takes_one_ttl_and_answers_its_own_side_alone() {
    // T5, D23: the gateway decrements the TTL. It answers a packet whose TTL expires only if the packet comes from its
    // local prefixes.
    let config = hub_gateway();
    for (from, source, destination, ttl, expected) in [
        ("spoke-vm", "10.2.0.4", "10.9.0.1", 2, "nine1 -1"),
        ("spoke-vm", "10.2.0.4", "10.9.0.1", 1, "answer"),
        ("spoke-vm", "10.2.0.4", "10.9.0.1", 0, "answer"),
        ("nine1", "10.9.0.1", "10.2.0.4", 2, "spoke-vm -1"),
        ("nine1", "10.9.0.1", "10.2.0.4", 1, "ttl_exceeded_silent"),
        // A packet for the gateway itself is delivered with any TTL. A missing route is reported before an expired TTL.
        ("spoke-vm", "10.2.0.4", "10.1.255.4", 1, "deliver"),
        ("spoke-vm", "10.2.0.4", "10.3.0.4", 1, "transit_not_allowed"),
    ] {
        let packet = info(source, destination, ttl);
        let got = fate(&config, &RoutingState::default(), Some(from), &packet);
        assert_eq!(got, expected, "{source} → {destination} with TTL {ttl}");
    }
}

#[test]
fn the_trace_says_what_was_decided_from() {
    let tables = Tables::build(&hub_vm(), &RoutingState::default()).unwrap();
    let mut trace = Trace::default();
    let verdict = decide(
        &tables,
        Ingress::Tun(NicIndex::FIRST),
        &info("10.1.0.4", "10.2.4.9", 64),
        Some(&mut trace),
    );
    assert!(matches!(
        verdict,
        Verdict::Forward {
            decrement_ttl: false,
            ..
        }
    ));
    assert_eq!(trace.subnet, Some(id("workload")));
    assert_eq!(trace.route.unwrap().prefix, common::net("10.2.4.0/24"));
    assert_eq!((trace.vnet, trace.next), (Some(id("vnet")), Some(agent("nva"))));
    let tables = Tables::build(&hub_gateway(), &RoutingState::default()).unwrap();
    let mut trace = Trace::default();
    let spoke = Ingress::Link(tables.link_with(&agent("spoke-vm")).unwrap());
    let _ = decide(&tables, spoke, &info("10.2.0.4", "10.9.0.1", 64), Some(&mut trace));
    assert_eq!(
        (trace.connection, trace.next),
        (Some(id("to-nine")), Some(agent("nine1")))
    );
}

#[test]
fn a_broken_configuration_is_refused_with_its_place() {
    let mut config = hub_vm();
    config.subnets[0].routes.push(route("10.2.0.0/16", NextHop::None {}));
    let build = |config: &AgentConfig| Tables::build(config, &RoutingState::default()).map_err(|e| e.to_string());
    let error = build(&config).unwrap_err();
    assert!(error.contains("subnets") && error.contains("10.2.0.0/16"), "{error}");
    let mut config = hub_vm();
    config.mtu = 100;
    assert!(build(&config).unwrap_err().contains("mtu"));
    let mut config = hub_vm();
    let Role::Vm { served, .. } = &mut config.role else {
        unreachable!()
    };
    *served = nets(&["172.16.0.0/24"]);
    assert!(build(&config).is_err());
    let mut config = hub_vm();
    config.spaces[0].owners.push(owner("10.1.0.4/32", "vm"));
    assert!(build(&config).is_ok());
}

#[test]
fn names_of_reasons_are_stable_and_distinct() {
    let names: std::collections::BTreeSet<_> = DropReason::ALL.iter().map(|r| r.name()).collect();
    assert_eq!(names.len(), DropReason::ALL.len());
    for (position, reason) in DropReason::ALL.iter().enumerate() {
        assert_eq!(*reason as usize, position);
        assert_eq!(serde_json::to_value(reason).unwrap(), reason.name());
    }
}
