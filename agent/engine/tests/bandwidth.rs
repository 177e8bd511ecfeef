//! Tests of the limits of bandwidth and flows at an agent with one lane and with several: the bandwidth of NICs (P32), that
//! of all tunnels of a gateway (G5), and the flows of a NIC (X16).
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "helpers of tests; the clock is the test's"
)]

mod common;

use common::groups::{Flags, group, security, tcp};
use common::lanes::{Fate, Lanes};
use common::{agent, id, ip, link, nets, route, space, udp, vm};
use std::time::{Duration, Instant};
use tombolo_engine::bandwidth::Bucket;
use tombolo_engine::tables::LinkIndex;
use tombolo_engine::verdict::DropReason;
use tombolo_proto::config::{
    AgentConfig, Limits, NicBandwidth, Relation, Role, SiteTtl, SpaceKind, Subnet, TransitRoute,
};
use tombolo_proto::route::NextHop;

/// In Mbit/s. A byte takes a microsecond.
const RATE: u32 = 8;

/// The length of a packet of [`udp`] with [`PAYLOAD`] bytes.
const LEN: u64 = 1000;
const PAYLOAD: usize = 972;

/// A packet of [`LEN`] bytes.
fn packet(from: &str, to: &str) -> Vec<u8> {
    udp(from, to, 64, PAYLOAD)
}

fn limits(nics: &[(&str, u32)], tunnels: Option<u32>) -> Option<Limits> {
    let nics = nics.iter().map(|(nic, outbound)| NicBandwidth {
        nic: id(nic),
        outbound: *outbound,
    });
    Some(Limits {
        nics: nics.collect(),
        tunnels,
        flows_of_nic: None,
    })
}

/// A machine 10.0.0.1 with a neighbour 10.0.0.2 in its VNet and a machine 172.16.0.1 in a peered one.
fn machine() -> AgentConfig {
    let peering = Relation::Peering { peering: id("to-peer") };
    let links = vec![
        link("neighbour", Relation::VnetLocal {}, &["10.0.0.2/32"]),
        link("peer", peering, &["172.16.0.1/32"]),
    ];
    let owners = [("10.0.0.1/32", "vm"), ("10.0.0.2/32", "neighbour")];
    let mut config = vm("vm", &["10.0.0.1/24"], links, &owners);
    let to_peer = NextHop::VnetPeering { peering: id("to-peer") };
    config.subnets[0].routes.push(route("172.16.0.0/16", to_peer));
    let kind = SpaceKind::Peered {
        peering: id("to-peer"),
        allow_access: true,
        allow_forwarded: false,
    };
    let owners = [("172.16.0.1/32", "peer")];
    config.spaces.push(space("peer", kind, &["172.16.0.0/16"], &owners));
    config
}

/// The VPN gateway of a VNet 10.0.0.0/16, with tunnels to 10.8.0.0/16 and 10.9.0.0/16, between which it forwards.
fn gateway() -> AgentConfig {
    let connection = |name: &str| Relation::Connection { connection: id(name) };
    let transit = |prefix: &str, name: &str| TransitRoute {
        prefix: common::net(prefix),
        connection: id(&format!("to-{name}")),
        via: vec![agent(name)],
    };
    let exchanged = |name: &str| tombolo_proto::config::GatewayConnection {
        connection: id(&format!("to-{name}")),
        ends: vec![agent(name)],
        exchange: true,
        asn: 65_516,
        site: false,
        weight: 0,
    };
    let links = vec![
        link("eight", connection("to-eight"), &["10.8.0.0/16"]),
        link("nine", connection("to-nine"), &["10.9.0.0/16"]),
        link("vm", Relation::GatewayClient {}, &["10.0.0.4/32"]),
    ];
    AgentConfig {
        address_space: nets(&["10.0.0.0/16"]),
        role: Role::VpnGateway {
            gateway: id("gw"),
            addresses: vec![ip("10.0.255.4")],
            local_prefixes: nets(&["10.0.0.0/16"]),
            transit: vec![transit("10.8.0.0/16", "eight"), transit("10.9.0.0/16", "nine")],
            asn: 65_515,
            connections: vec![exchanged("eight"), exchanged("nine")],
            bgp: None,
            site_ttl: SiteTtl::SilentHop,
        },
        subnets: vec![Subnet {
            id: id("GatewaySubnet"),
            prefixes: nets(&["10.0.255.0/27"]),
            routes: vec![route("10.0.0.0/16", NextHop::VnetLocal {})],
            isolated: false,
        }],
        spaces: vec![space(
            "vnet",
            SpaceKind::Local {},
            &["10.0.0.0/16"],
            &[("10.0.0.4/32", "vm"), ("10.0.255.4/32", "gw")],
        )],
        ..vm("gw", &["10.0.255.4/27"], links, &[])
    }
}

/// Sends packets until one is dropped, each to the next lane. Returns the bytes that passed.
fn until_dropped(lanes: &mut Lanes, mut send: impl FnMut(&mut Lanes, usize, u64) -> Fate) -> u64 {
    for number in 0.. {
        let lane = usize::try_from(number).unwrap() % lanes.engines.len();
        if send(lanes, lane, number) == Fate::Dropped {
            return number * LEN;
        }
    }
    unreachable!()
}

/// Whether `bytes` are one burst, of which each lane may have kept a part that it has not used.
fn is_burst(bytes: u64, lanes: usize) -> bool {
    let burst = Bucket::new(RATE).burst();
    let kept = burst / 4 + LEN * lanes as u64;
    bytes <= burst && bytes + kept >= burst
}

/// P32: a NIC's bandwidth holds for all that it sends, whatever the destination and the lane, and not for what it gets.
#[test]
fn p32_a_nic_has_one_bandwidth_for_all_destinations() {
    for lanes in [1, 4] {
        let config = AgentConfig {
            limits: limits(&[("nic", RATE)], None),
            ..machine()
        };
        let mut vm = Lanes::new(lanes, &config, Instant::now());
        let send = |vm: &mut Lanes, lane, number| {
            let to = ["10.0.0.2", "172.16.0.1"][usize::from(number % 2 == 1)];
            vm.leaves(lane, 0, &packet("10.0.0.1", to))
        };
        let passed = until_dropped(&mut vm, send);
        assert!(is_burst(passed, lanes), "{lanes} lanes: {passed}");
        assert_eq!(vm.drops(DropReason::BandwidthExceeded), 1);
        for (peer, from) in [("neighbour", "10.0.0.2"), ("peer", "172.16.0.1")] {
            let got = vm.comes(0, peer, &packet(from, "10.0.0.1"));
            assert!(matches!(got, Fate::Delivered(..)), "{got:?}");
        }
        // From now on the rate passes, and a packet that no rule allows uses none of it.
        let mut passed = 0;
        for number in 0..10_000u32 {
            vm.now += Duration::from_micros(500);
            let lane = number as usize % lanes;
            assert_eq!(vm.leaves(lane, 0, &packet("10.0.0.1", "192.168.0.1")), Fate::Dropped);
            let to = ["10.0.0.2", "172.16.0.1"][usize::from(number % 2 == 1)];
            passed += u64::from(vm.leaves(lane, 0, &packet("10.0.0.1", to)) != Fate::Dropped) * LEN;
        }
        let expected = 5_000_000;
        assert!(passed.abs_diff(expected) * 50 <= expected, "{lanes} lanes: {passed}");
        let dropped = vm.drops(DropReason::BandwidthExceeded) - 1;
        assert_eq!(dropped * LEN + passed, 10_000 * LEN);
    }
}

/// P32: each NIC of a machine has its own bandwidth, and a NIC without one has none.
#[test]
fn p32_each_nic_has_its_own_bandwidth() {
    let mut config = machine();
    let Role::Vm { nics, .. } = &mut config.role else {
        unreachable!()
    };
    let mut second = nics[0].clone();
    (second.id, second.addresses) = (id("nic2"), nets(&["10.0.0.5/24"]));
    let mut third = nics[0].clone();
    (third.id, third.addresses) = (id("nic3"), nets(&["10.0.0.6/24"]));
    nics.extend([second, third]);
    config.limits = limits(&[("nic", RATE), ("nic3", RATE)], None);
    let mut vm = Lanes::new(1, &config, Instant::now());
    for (nic, address) in [(0, "10.0.0.1"), (2, "10.0.0.6")] {
        let passed = until_dropped(&mut vm, |vm, lane, _| {
            vm.leaves(lane, nic, &packet(address, "10.0.0.2"))
        });
        assert!(is_burst(passed, 1), "NIC {nic}: {passed}");
    }
    for _ in 0..1000 {
        assert_ne!(vm.leaves(0, 1, &packet("10.0.0.5", "10.0.0.2")), Fate::Dropped);
    }
}

/// P32: a packet that a lane redirects counts once, in the lane that has redirected it.
#[test]
fn p32_a_redirected_packet_counts_once() {
    let config = AgentConfig {
        limits: limits(&[("nic", RATE)], None),
        ..machine()
    };
    let mut vm = Lanes::new(2, &config, Instant::now());
    vm.engines[1].links_mut().without_session = vec![LinkIndex(0), LinkIndex(1)];
    let passed = until_dropped(&mut vm, |vm, _, _| vm.leaves(1, 0, &packet("10.0.0.1", "10.0.0.2")));
    assert!(is_burst(passed, 1), "{passed}");
}

/// A new configuration, or new routes, give no second burst, and the new rate applies.
#[test]
fn p32_new_tables_give_no_second_burst() {
    let config = AgentConfig {
        limits: limits(&[("nic", RATE)], None),
        ..machine()
    };
    let mut vm = Lanes::new(1, &config, Instant::now());
    let send = |vm: &mut Lanes, lane, _| vm.leaves(lane, 0, &packet("10.0.0.1", "10.0.0.2"));
    assert!(until_dropped(&mut vm, send) > 0);
    vm.install(&config);
    assert_eq!(until_dropped(&mut vm, send), 0);
    let faster = AgentConfig {
        limits: limits(&[("nic", 100 * RATE)], None),
        ..config.clone()
    };
    vm.install(&faster);
    assert_eq!(until_dropped(&mut vm, send), 0);
    // The bucket would be full 98 ms after its use. With the new rate, it holds the bytes of 37.5 ms.
    vm.now += Duration::from_micros(61_475);
    let passed = until_dropped(&mut vm, send);
    assert!((95_000..=100_000).contains(&passed), "{passed}");
    vm.install(&AgentConfig { limits: None, ..config });
    for _ in 0..1000 {
        assert_ne!(send(&mut vm, 0, 0), Fate::Dropped);
    }
}

/// G5: all tunnels of a gateway share one bandwidth, in both directions. A packet between two tunnels counts twice.
/// Packets to the gateway itself, and from it, do not count: its BGP sessions must not end because it is full.
#[test]
fn g5_all_tunnels_of_a_gateway_share_one_bandwidth() {
    let config = AgentConfig {
        limits: limits(&[], Some(RATE)),
        ..gateway()
    };
    let (eight, nine, inside, own) = ("10.8.0.1", "10.9.0.1", "10.0.0.4", "10.0.255.4");
    for lanes in [1, 4] {
        let mut gw = Lanes::new(lanes, &config, Instant::now());
        let passed = until_dropped(&mut gw, |gw, lane, number| match number % 4 {
            0 => gw.comes(lane, "eight", &packet(eight, inside)),
            1 => gw.comes(lane, "nine", &packet(nine, inside)),
            2 => gw.comes(lane, "vm", &packet(inside, eight)),
            _ => gw.comes(lane, "vm", &packet(inside, nine)),
        });
        assert!(is_burst(passed, lanes), "{lanes} lanes: {passed}");
        assert_eq!(gw.drops(DropReason::BandwidthExceeded), 1);
        for _ in 0..100 {
            let got = gw.comes(0, "eight", &packet(eight, own));
            assert!(matches!(got, Fate::Delivered(..)), "{got:?}");
        }
    }
    let mut gw = Lanes::new(1, &config, Instant::now());
    let passed = until_dropped(&mut gw, |gw, lane, _| gw.comes(lane, "eight", &packet(eight, nine)));
    assert!(is_burst(2 * passed, 2), "{passed}");
}

/// Without a limit the same gateway drops nothing.
#[test]
fn g5_a_gateway_without_a_limit_drops_nothing() {
    let mut gw = Lanes::new(1, &gateway(), Instant::now());
    for _ in 0..2000 {
        let sent = gw.comes(0, "eight", &packet("10.8.0.1", "10.9.0.1"));
        assert!(matches!(sent, Fate::Sent(..)), "{sent:?}");
    }
}

/// X16: a NIC has so many flows and no more. Packets of its flows pass, new flows are dropped under their own reason, and
/// after the end of a flow there is room for another one.
#[test]
fn x16_a_nic_has_a_largest_number_of_flows() {
    for lanes in [1, 4] {
        let config = AgentConfig {
            limits: Some(Limits {
                flows_of_nic: Some(100),
                ..Limits::default()
            }),
            security: Some(security(&["10.0.0.1/32"], None, Some(group("web", Vec::new())))),
            ..machine()
        };
        let mut vm = Lanes::new(lanes, &config, Instant::now());
        let syn = |port: u16| tcp(("10.0.0.1", port), ("172.16.0.1", 443), Flags::Syn);
        let answer = |port: u16| tcp(("172.16.0.1", 443), ("10.0.0.1", port), Flags::SynAck);
        let ack = |port: u16| tcp(("10.0.0.1", port), ("172.16.0.1", 443), Flags::Ack);
        for port in 1..=100 {
            let lane = usize::from(port) % lanes;
            assert_ne!(vm.leaves(lane, 0, &syn(port)), Fate::Dropped, "{port}");
            assert_ne!(vm.comes(0, "peer", &answer(port)), Fate::Dropped);
            assert_ne!(vm.leaves(lane, 0, &ack(port)), Fate::Dropped);
        }
        assert_eq!(vm.flows.table().unwrap().flows_of_nic(0), 100);
        for lane in vm.lanes() {
            assert_eq!(vm.leaves(lane, 0, &syn(1000)), Fate::Dropped);
            // Inbound flows count too.
            let inbound = tcp(("10.0.0.2", 1), ("10.0.0.1", 22), Flags::Syn);
            assert_eq!(vm.comes(lane, "neighbour", &inbound), Fate::Dropped);
            for port in 1..=100 {
                assert_ne!(vm.leaves(lane, 0, &ack(port)), Fate::Dropped, "established");
            }
        }
        assert_eq!(vm.drops(DropReason::NicFlowLimit), 2 * lanes as u64);
        assert_eq!(vm.drops(DropReason::FlowTableFull), 0);

        // All flows end: the idle timeout is four minutes, and the table is swept within a minute.
        vm.now += Duration::from_secs(241);
        for _ in 0..601 {
            vm.now += Duration::from_millis(101);
            let now = vm.now;
            for engine in &mut vm.engines {
                engine.handle_timeout(now, &mut tombolo_engine::buffer::Collected::default());
            }
        }
        assert_eq!(vm.flows.table().unwrap().flows_of_nic(0), 0);
        assert_ne!(vm.leaves(0, 0, &syn(1000)), Fate::Dropped);

        // A higher limit applies at once.
        let mut higher = config.clone();
        higher.limits = None;
        vm.install(&higher);
        for port in 2000..2200 {
            assert_ne!(vm.leaves(0, 0, &syn(port)), Fate::Dropped, "{port}");
        }
    }
}
