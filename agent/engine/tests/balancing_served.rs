//! Tests of front ends whose address is in a subnet that an agent serves (L1, L5, D8): no machine has this address. With one
//! lane and with four lanes, over IPv4 and IPv6.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "helpers of tests; the clock is the test's"
)]

mod common;

use common::groups::{Flags, group, rule, security, tcp};
use common::lanes::{Fate, Lanes};
use common::{id, ip, link, nets, vm};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tombolo_engine::verdict::DropReason;
use tombolo_proto::config::{
    Access, AgentConfig, BalancedProtocol, BalancingRule, Direction, Distribution, FrontEnd, Nic, Relation, Role,
    SecuredNic, Subnet,
};

/// Addresses of one family.
#[derive(Clone, Copy)]
struct Family {
    /// The front end, in the served subnet.
    front: &'static str,
    /// The NICs of the machine that serves the subnet.
    nics: [&'static str; 2],
    /// Machines in the served subnet.
    served: [&'static str; 2],
    /// A machine with an agent of its own.
    remote: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        front: "10.7.0.36",
        nics: ["10.0.0.5", "10.0.0.6"],
        served: ["10.7.0.5", "10.7.0.6"],
        remote: "10.0.0.9",
    },
    Family {
        front: "fd07::36",
        nics: ["fd00::5", "fd00::6"],
        served: ["fd07::5", "fd07::6"],
        remote: "fd00::9",
    },
];

/// A machine with two NICs that serves a subnet with a front end. The rule for TCP leads from port 80 to 8080, and the rule
/// with floating IP is for port 81.
fn machine(family: &Family, members: &[&str]) -> AgentConfig {
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
    let routes = config.subnets[0].routes.clone();
    config.subnets[0].prefixes = nets(&["10.0.0.0/24", "fd00::/64"]);
    config.subnets.push(Subnet {
        id: id("served"),
        prefixes: nets(&["10.7.0.0/24", "fd07::/64"]),
        routes,
        isolated: false,
    });
    let nic = |n: usize| Nic {
        id: id(&format!("nic{n}")),
        addresses: FAMILIES
            .iter()
            .map(|family| format!("{}/24", family.nics[n]).parse().unwrap())
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
    let rule = |port, back_end_port, floating_ip| BalancingRule {
        id: id(&format!("rule{port}")),
        protocol: BalancedProtocol::Tcp,
        port,
        back_end_port,
        distribution: Distribution::Default,
        floating_ip,
        tcp_reset: false,
        idle_timeout_minutes: 4,
        back_ends: members.iter().map(|address| ip(address)).collect(),
        probe: None,
        decided: BTreeMap::new(),
        ends_flows: false,
    };
    config.front_ends = vec![FrontEnd {
        id: id("front"),
        vnet: id("vnet"),
        address: ip(family.front),
        rules: vec![rule(80, 8080, false), rule(81, 81, true)],
    }];
    config
}

fn each(test: impl Fn(usize, &Family)) {
    for lanes in [1, 4] {
        for family in &FAMILIES {
            test(lanes, family);
        }
    }
}

/// L5: at the agent that serves the front end's subnet and owns a back end, the packets of a client behind another agent are
/// translated, and those with floating IP are delivered. The replies come from the front end.
#[test]
fn l5_d8_a_front_end_in_a_served_subnet_is_translated_at_its_owner() {
    each(|lanes, family| {
        let Family {
            front,
            nics,
            served,
            remote,
        } = *family;
        for (back, nic) in [(nics[0], 0), (nics[1], 1), (served[0], 0)] {
            let mut agent = Lanes::new(lanes, &machine(family, &[back]), Instant::now());
            for (n, port) in (0..8).zip(40_000..) {
                let request = tcp((remote, port), (front, 80), Flags::Syn);
                let got = agent.comes(n % lanes, "remote", &request);
                let expected = tcp((remote, port), (back, 8080), Flags::Syn);
                assert_eq!(got, Fate::Delivered(nic, expected), "{back}");
                let reply = tcp((back, 8080), (remote, port), Flags::SynAck);
                let expected = tcp((front, 80), (remote, port), Flags::SynAck);
                let answer = agent.leaves((n + 1) % lanes, nic, &reply);
                assert_eq!(answer, Fate::Sent("remote".into(), expected), "{back}");

                let request = tcp((remote, port), (front, 81), Flags::Syn);
                let got = agent.comes(n % lanes, "remote", &request);
                assert_eq!(got, Fate::Delivered(nic, request), "{back} with floating IP");
                let reply = tcp((front, 81), (remote, port), Flags::SynAck);
                let answer = agent.leaves((n + 1) % lanes, nic, &reply);
                assert_eq!(answer, Fate::Sent("remote".into(), reply), "{back} with floating IP");
            }
        }
    });
}

/// D35: clients behind the agent that serves the front end's subnet reach back ends behind the same agent and behind another
/// one.
#[test]
fn l5_d35_a_front_end_in_a_served_subnet_is_reached_from_its_owner() {
    each(|lanes, family| {
        let Family {
            front,
            nics,
            served,
            remote,
        } = *family;
        for (client, nic) in [(nics[0], 0), (served[1], 0)] {
            let mut agent = Lanes::new(lanes, &machine(family, &[served[0]]), Instant::now());
            let (at, got) = agent
                .leaves(0, nic, &tcp((client, 40_000), (front, 80), Flags::Syn))
                .delivered();
            assert_eq!(at, 0);
            assert_eq!(got, tcp((front, 40_000), (served[0], 8080), Flags::Syn));
            let reply = tcp((served[0], 8080), (front, 40_000), Flags::SynAck);
            let (_, answer) = agent.leaves(lanes - 1, 0, &reply).delivered();
            assert_eq!(answer, tcp((front, 80), (client, 40_000), Flags::SynAck));

            let mut agent = Lanes::new(lanes, &machine(family, &[remote]), Instant::now());
            let request = tcp((client, 40_000), (front, 80), Flags::Syn);
            assert_eq!(
                agent.leaves(lanes - 1, nic, &request),
                Fate::Sent("remote".into(), request)
            );
        }
    });
}

/// L1, D10: the agent that serves the front end's subnet delivers nothing to the front end's address, and accepts nothing
/// from it, if it owns no back end.
#[test]
fn l1_d10_nobody_has_the_address_of_a_front_end_in_a_served_subnet() {
    each(|lanes, family| {
        let Family {
            front, served, remote, ..
        } = *family;
        let mut agent = Lanes::new(lanes, &machine(family, &[remote]), Instant::now());
        for port in [80, 81, 22] {
            let request = tcp((remote, 40_000), (front, port), Flags::Syn);
            assert_eq!(agent.comes(lanes - 1, "remote", &request), Fate::Dropped, "{port}");
        }
        assert_eq!(agent.drops(DropReason::NotForwarding), 3);
        let forged = tcp((front, 80), (remote, 40_000), Flags::SynAck);
        assert_eq!(agent.leaves(0, 0, &forged), Fate::Dropped);
        assert_eq!(agent.drops(DropReason::SpoofedSource), 1);
        // The other addresses of the subnet are those of machines.
        let request = tcp((remote, 40_000), (served[0], 22), Flags::Syn);
        assert_eq!(agent.comes(0, "remote", &request), Fate::Delivered(0, request.clone()));
    });
}

/// D25, L3: with floating IP, the rules of the back end's NIC or subnet apply, and not those of the front end's subnet.
#[test]
fn d25_l3_rules_of_the_back_end_apply_with_floating_ip() {
    each(|lanes, family| {
        let Family {
            front,
            nics,
            served,
            remote,
        } = *family;
        for (back, secured, passes) in [
            (nics[1], "served", true),
            (nics[1], "nic1", false),
            (nics[1], "nic0", true),
            (served[0], "served", false),
            (served[0], "nic0", true),
        ] {
            let mut config = machine(family, &[back]);
            let denied = group("g", vec![rule("none", 200, Direction::Inbound, Access::Deny)]);
            let mut all = security(&[], None, Some(denied));
            let prefixes = |n: usize| FAMILIES.iter().map(|family| ip(family.nics[n]).into()).collect();
            let nic = |name: &str, prefixes| SecuredNic {
                id: id(name),
                prefixes,
                subnet: id(if name == "served" { "served" } else { "subnet" }),
                subnet_group: None,
                nic_group: (name == secured).then(|| id("g")),
            };
            all.nics = vec![
                nic("nic0", prefixes(0)),
                nic("nic1", prefixes(1)),
                nic("served", nets(&["10.7.0.0/24", "fd07::/64"])),
            ];
            config.security = Some(all);
            let mut agent = Lanes::new(lanes, &config, Instant::now());
            agent.now += Duration::from_secs(61);
            for port in [80, 81] {
                let request = tcp((remote, 40_000), (front, port), Flags::Syn);
                let fate = agent.comes(lanes - 1, "remote", &request);
                assert_eq!(fate != Fate::Dropped, passes, "{back}, group at {secured}, port {port}");
            }
        }
    });
}

/// L4: an agent that owns several back ends finds the flow of each, whichever the rule would choose now: flows that began
/// before the pool grew stay, and so do SYNs that are repeated soon after. New flows use the whole pool, also later, when
/// no SYN from before the change can be repeated.
#[test]
fn l4_flows_stay_at_an_owner_of_several_back_ends() {
    each(|lanes, family| {
        let Family {
            front,
            nics,
            served,
            remote,
        } = *family;
        let [small, large] = [vec![nics[0], nics[1]], vec![nics[0], nics[1], served[0], served[1]]];
        let mut agent = Lanes::new(lanes, &machine(family, &small), Instant::now());
        let send = |agent: &mut Lanes, port: u16, flags: Flags| {
            let packet = tcp((remote, port), (front, 80), flags);
            let (_, packet) = agent.comes(usize::from(port) % lanes, "remote", &packet).delivered();
            let back_end = large
                .iter()
                .find(|back| packet == tcp((remote, port), (back, 8080), flags));
            back_end.copied().unwrap_or_default().to_owned()
        };
        let answer = |agent: &mut Lanes, port: u16, back_end: &str| {
            let nic = u8::from(back_end == nics[1]);
            agent.leaves(0, nic, &tcp((back_end, 8080), (remote, port), Flags::SynAck));
        };
        agent.now += Duration::from_secs(100);
        let ports = 40_000..40_032;
        let chosen: Vec<String> = ports.clone().map(|port| send(&mut agent, port, Flags::Syn)).collect();
        assert!(small.iter().all(|back| chosen.iter().any(|c| c == back)), "{chosen:?}");
        let established = |port: &u16| port.is_multiple_of(2);
        for (port, back_end) in ports.clone().zip(&chosen).filter(|(port, _)| established(port)) {
            answer(&mut agent, port, back_end);
            assert_eq!(send(&mut agent, port, Flags::Ack), *back_end);
        }
        agent.install(&machine(family, &large));
        agent.now += Duration::from_secs(2);
        for (port, back_end) in ports.clone().zip(&chosen) {
            let flags = if established(&port) { Flags::Ack } else { Flags::Syn };
            assert_eq!(send(&mut agent, port, flags), *back_end, "port {port}");
        }
        // Established flows stay as long as they are used.
        agent.now += Duration::from_secs(100);
        let mut new = Vec::new();
        for (port, back_end) in ports.zip(&chosen) {
            match established(&port) {
                true => assert_eq!(send(&mut agent, port, Flags::Ack), *back_end, "port {port}"),
                false => new.push(send(&mut agent, port, Flags::Syn)),
            }
        }
        assert!(
            new.iter().any(|back_end| !small.contains(&back_end.as_str())),
            "{new:?}"
        );
    });
}
