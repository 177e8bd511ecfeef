//! Tests of flows whose client and back end are behind the same agent (L5, L11, D35): at two NICs of a machine, and in a
//! subnet that the machine serves; with one lane and with four lanes, over IPv4 and IPv6.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "helpers of tests; the clock is the test's"
)]

mod common;

use common::errors::{assert_error, too_big};
use common::groups::{Flags, group, rule, security, tcp, to_port};
use common::lanes::{Fate, Lanes};
use common::{id, ip, link, nets, udp, vm};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tombolo_engine::packet::parse;
use tombolo_engine::verdict::DropReason;
use tombolo_proto::config::{
    Access, AgentConfig, BalancedProtocol, BalancingRule, Direction, Distribution, FrontEnd, Nic, Relation, Role,
    SecuredNic, SecurityRule,
};

/// Addresses of one family.
#[derive(Clone, Copy)]
struct Family {
    front: &'static str,
    /// The addresses of the machine's NICs.
    nics: [&'static str; 2],
    /// Machines in the served subnet.
    served: [&'static str; 3],
    /// A back end behind another agent.
    remote: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        front: "10.0.255.36",
        nics: ["10.0.0.5", "10.0.0.6"],
        served: ["10.7.0.5", "10.7.0.6", "10.7.0.7"],
        remote: "10.0.0.9",
    },
    Family {
        front: "fd00::ff:36",
        nics: ["fd00::5", "fd00::6"],
        served: ["fd07::5", "fd07::6", "fd07::7"],
        remote: "fd00::9",
    },
];

/// A machine with two NICs that serves a subnet.
fn machine(family: &Family, members: &[&str]) -> AgentConfig {
    let mut back_ends: Vec<_> = members.iter().map(|address| ip(address)).collect();
    back_ends.sort();
    let rule = |protocol, port, back_end_port| BalancingRule {
        id: id(&format!("{protocol:?}")),
        protocol,
        port,
        back_end_port,
        distribution: Distribution::Default,
        floating_ip: false,
        tcp_reset: false,
        idle_timeout_minutes: 4,
        back_ends: back_ends.clone(),
        probe: None,
        decided: BTreeMap::new(),
        ends_flows: false,
    };
    let owners = [
        ("10.0.0.5/32", "vm"),
        ("10.0.0.6/32", "vm"),
        ("10.7.0.0/24", "vm"),
        ("10.0.0.9/32", "remote"),
        ("fd00::5/128", "vm"),
        ("fd00::6/128", "vm"),
        ("fd07::/64", "vm"),
        ("fd00::9/128", "remote"),
    ];
    let remote = link("remote", Relation::VnetLocal {}, &["10.0.0.9/32", "fd00::9/128"]);
    let mut config = vm("vm", &[], vec![remote], &owners);
    for subnet in &mut config.subnets {
        subnet.prefixes.extend(nets(&["fd07::/64"]));
    }
    let nic = |n: usize| Nic {
        id: id(&format!("nic{n}")),
        addresses: FAMILIES
            .iter()
            .map(|family| {
                format!("{}/{}", family.nics[n], if n > 1 { 0 } else { 24 })
                    .parse()
                    .unwrap()
            })
            .collect(),
        subnet: id("subnet"),
        ip_forwarding: false,
        host_routes: Vec::new(),
    };
    config.role = Role::Vm {
        nics: vec![nic(0), nic(1)],
        served: nets(&["10.7.0.0/24", "fd07::/64"]),
        gateways: Vec::new(),
    };
    config.front_ends = vec![FrontEnd {
        id: id("front"),
        vnet: id("vnet"),
        address: ip(family.front),
        rules: vec![
            rule(BalancedProtocol::Tcp, 80, 8080),
            rule(BalancedProtocol::Udp, 2000, 3000),
        ],
    }];
    config
}

/// Source and destination of a packet, as `ADDRESS PORT`.
fn ends(packet: &[u8]) -> [String; 2] {
    let info = parse(packet).unwrap();
    let (from, to) = (info.ports >> 16, info.ports & 0xffff);
    [format!("{} {from}", info.source), format!("{} {to}", info.destination)]
}

/// An address, and the NIC by which its packets come to the agent.
type End = (&'static str, u8);

/// Clients and back ends, each with the NIC by which its packets come to the agent: at two NICs, in the served subnet, and
/// one of each.
fn pairs(family: &Family) -> [(End, End); 4] {
    let Family { nics, served, .. } = *family;
    [
        ((nics[0], 0), (nics[1], 1)),
        ((served[0], 0), (served[1], 0)),
        ((nics[1], 1), (served[1], 0)),
        ((served[0], 0), (nics[1], 1)),
    ]
}

fn each(test: impl Fn(usize, &Family)) {
    for lanes in [1, 4] {
        for family in &FAMILIES {
            test(lanes, family);
        }
    }
}

#[test]
fn l5_a_client_reaches_a_back_end_behind_the_same_agent() {
    each(|lanes, family| {
        let front = family.front;
        for ((client, client_nic), (back, back_nic)) in pairs(family) {
            let mut agent = Lanes::new(lanes, &machine(family, &[back]), Instant::now());
            for (n, port) in (0..).zip(40_000..40_016) {
                let (first, second) = (n % lanes, n / lanes % lanes);
                let request = tcp((client, port), (front, 80), Flags::Syn);
                let (nic, got) = agent.leaves(first, client_nic, &request).delivered();
                assert_eq!(nic, back_nic);
                assert_eq!(ends(&got), [format!("{front} {port}"), format!("{back} 8080")]);
                let reply = tcp((back, 8080), (front, port), Flags::SynAck);
                let (nic, answer) = agent.leaves(second, back_nic, &reply).delivered();
                assert_eq!(nic, client_nic);
                assert_eq!(
                    answer,
                    tcp((front, 80), (client, port), Flags::SynAck),
                    "valid checksums"
                );

                // Errors of both ends and of routers between them.
                let error = too_big(back, front, &got);
                let (nic, error) = agent.leaves(first, back_nic, &error).delivered();
                assert_eq!(nic, client_nic);
                assert_error(&error, (front, client), &request);
                let error = too_big(client, front, &answer);
                let (nic, error) = agent.leaves(second, client_nic, &error).delivered();
                assert_eq!(nic, back_nic);
                assert_error(&error, (front, back), &reply);
            }
            let request = udp(client, front, 64, 20);
            let (_, got) = agent.leaves(0, client_nic, &request).delivered();
            assert_eq!(ends(&got), [format!("{front} 1000"), format!("{back} 3000")]);
            // Nobody else gets in: an unknown error, a reply of no flow, and a packet from another machine's address.
            let unknown = too_big(client, front, &tcp((front, 80), (client, 50_000), Flags::Ack));
            assert_eq!(agent.leaves(0, client_nic, &unknown), Fate::Dropped);
            assert_eq!(agent.drops(DropReason::BalancerProtocol), 1);
            let stray = tcp((back, 8080), (front, 39_999), Flags::SynAck);
            assert_eq!(agent.leaves(0, back_nic, &stray), Fate::Dropped);
            assert_eq!(agent.drops(DropReason::NoBalancingRule), 1);
        }
    });
}

/// L5: clients that use the same port for one back end are told apart, and each gets its own replies.
#[test]
fn l5_local_clients_with_the_same_port_are_told_apart() {
    each(|lanes, family| {
        let Family {
            front, nics, served, ..
        } = *family;
        let mut agent = Lanes::new(lanes, &machine(family, &nics[1..]), Instant::now());
        let clients = [nics[0], served[0], served[1], served[2]];
        let mut before = Vec::new();
        for round in 0..3 {
            let mut used = Vec::new();
            for (n, client) in clients.iter().enumerate() {
                let flags = if round == 0 { Flags::Syn } else { Flags::Ack };
                let lane = (n + round) % lanes;
                let (_, got) = agent
                    .leaves(lane, 0, &tcp((client, 40_000), (front, 80), flags))
                    .delivered();
                let port = (parse(&got).unwrap().ports >> 16) as u16;
                used.push(port);
                let reply = tcp((nics[1], 8080), (front, port), Flags::Ack);
                let (_, answer) = agent.leaves(lane, 1, &reply).delivered();
                assert_eq!(answer, tcp((front, 80), (client, 40_000), Flags::Ack));
            }
            let different: BTreeSet<_> = used.iter().collect();
            assert_eq!(different.len(), clients.len(), "{lanes} lanes");
            assert!(round == 0 || used == before, "the ports stay");
            before = used;
            agent.now += Duration::from_secs(100);
        }
        // After the idle timeout, the agent knows the flows no more.
        agent.now += Duration::from_secs(200);
        let reply = tcp((nics[1], 8080), (front, 40_000), Flags::Ack);
        assert_eq!(agent.leaves(0, 1, &reply), Fate::Dropped);
    });
}

/// L11: a back end does not reach itself, and reaches another one behind the same agent. A flow keeps its back end.
#[test]
fn l4_l11_a_local_back_end_does_not_reach_itself() {
    each(|lanes, family| {
        let Family {
            front, nics, remote, ..
        } = *family;
        let mut agent = Lanes::new(lanes, &machine(family, &[nics[0], nics[1]]), Instant::now());
        let mut delivered = Vec::new();
        for (n, port) in (0..).zip(40_000..40_040) {
            match agent.leaves(n % lanes, 1, &tcp((nics[1], port), (front, 80), Flags::Syn)) {
                Fate::Delivered(0, _) => delivered.push(port),
                Fate::Dropped => {}
                other => panic!("{other:?}"),
            }
        }
        let itself = agent.drops(DropReason::BackEndItself) as usize;
        assert!(itself > 0 && !delivered.is_empty());
        assert_eq!(itself + delivered.len(), 40);
        agent.install(&machine(family, &[nics[0], nics[1], remote]));
        for (n, port) in (1..).zip(&delivered) {
            let fate = agent.leaves(n % lanes, 1, &tcp((nics[1], *port), (front, 80), Flags::Ack));
            assert_eq!(fate.delivered().0, 0, "port {port}");
        }
        let sent = (50_000..50_040).filter(|port| {
            let fate = agent.leaves(0, 0, &tcp((nics[0], *port), (front, 80), Flags::Syn));
            matches!(fate, Fate::Sent(..))
        });
        assert!(sent.count() > 5, "new flows go to the other agent too");
    });
}

/// D25, N12: the rules of the client's NIC see the front end, and those of the back end's NIC see the client and the back
/// end's own port. Replies need no rule.
#[test]
fn d25_n12_rules_of_both_nics_apply_to_local_flows() {
    let inbound = |port| {
        let from_client = SecurityRule {
            source: tombolo_proto::config::AddressMatch::Prefixes(nets(&["10.0.0.5/32", "fd00::5/128"])),
            ..rule("in", 100, Direction::Inbound, Access::Allow)
        };
        vec![
            to_port(port, from_client),
            rule("no-in", 200, Direction::Inbound, Access::Deny),
            rule("no-out", 200, Direction::Outbound, Access::Deny),
        ]
    };
    let outbound = |port| {
        vec![
            to_port(port, rule("out", 100, Direction::Outbound, Access::Allow)),
            rule("no-in", 200, Direction::Inbound, Access::Deny),
            rule("no-out", 200, Direction::Outbound, Access::Deny),
        ]
    };
    each(|lanes, family| {
        let Family { front, nics, .. } = *family;
        for (to, out, passes) in [(8080, 80, true), (80, 80, false), (8080, 8080, false)] {
            let mut config = machine(family, &nics[1..]);
            let group_of = |n: usize| ["client", "back"][n];
            let mut all = security(&[], None, Some(group(group_of(0), outbound(out))));
            all.groups.push(group(group_of(1), inbound(to)));
            all.groups.sort_by(|a, b| a.id.cmp(&b.id));
            all.nics = (0..2)
                .map(|n| SecuredNic {
                    id: id(&format!("nic{n}")),
                    prefixes: FAMILIES.iter().map(|family| ip(family.nics[n]).into()).collect(),
                    subnet: id("subnet"),
                    subnet_group: None,
                    nic_group: Some(id(group_of(n))),
                })
                .collect();
            config.security = Some(all);
            let mut agent = Lanes::new(lanes, &config, Instant::now());
            agent.now += Duration::from_secs(61);
            let fate = agent.leaves(0, 0, &tcp((nics[0], 40_000), (front, 80), Flags::Syn));
            assert_eq!(fate != Fate::Dropped, passes, "{lanes} lanes: {to}, {out}");
            assert_eq!(agent.drops(DropReason::SecurityRule), u64::from(!passes));
            if passes {
                let reply = tcp((nics[1], 8080), (front, 40_000), Flags::SynAck);
                assert_eq!(agent.leaves(lanes - 1, 1, &reply).delivered().0, 0);
            }
        }
    });
}
