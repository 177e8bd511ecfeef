//! Tests of ICMP errors about packets between a client and a front end (L5), with one lane and with four lanes, over IPv4
//! and IPv6. By them, hosts discover the path MTU, and `traceroute` shows the path.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "helpers of tests; the clock is the test's"
)]

mod common;

use common::errors::{assert_error, too_big};
use common::groups::{Flags, group, rule, security, tcp, to_port};
use common::lanes::{Fate, Lanes};
use common::{id, ip, link, vm};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;
use tombolo_engine::packet::parse;
use tombolo_engine::verdict::DropReason;
use tombolo_proto::config::{
    Access, AgentConfig, BalancedProtocol, BalancingRule, Direction, Distribution, FrontEnd, Relation,
};

/// Addresses of one family.
#[derive(Clone, Copy)]
struct Family {
    client: &'static str,
    front: &'static str,
    back: [&'static str; 2],
    /// A router that the client's agent may send from, and another address of the first back end's machine.
    routers: [&'static str; 2],
    len: u8,
}

const FAMILIES: [Family; 2] = [
    Family {
        client: "10.0.0.1",
        front: "10.0.255.36",
        back: ["10.0.0.6", "10.0.0.4"],
        routers: ["10.0.9.9", "10.0.0.66"],
        len: 32,
    },
    Family {
        client: "fd00::1",
        front: "fd00::ff:36",
        back: ["fd00::6", "fd00::4"],
        routers: ["fd00::99", "fd00::66"],
        len: 128,
    },
];

fn each(test: impl Fn(usize, &Family)) {
    for lanes in [1, 4] {
        for family in &FAMILIES {
            test(lanes, family);
        }
    }
}

fn front_end(family: &Family, members: &[&str]) -> FrontEnd {
    let mut back_ends: Vec<_> = members.iter().map(|address| ip(address)).collect();
    back_ends.sort();
    FrontEnd {
        id: id("front"),
        vnet: id("vnet"),
        address: ip(family.front),
        rules: vec![BalancingRule {
            id: id("rule"),
            protocol: BalancedProtocol::Tcp,
            port: 80,
            back_end_port: 8080,
            distribution: Distribution::Default,
            floating_ip: false,
            tcp_reset: false,
            idle_timeout_minutes: 4,
            back_ends,
            probe: None,
            decided: BTreeMap::new(),
            ends_flows: false,
        }],
    }
}

/// The agent `name`, which has these addresses, in a VNet with a client and two back ends.
fn machine(family: &Family, name: &str, own: &[&str], members: &[&str]) -> AgentConfig {
    let with_len = |address: &str| format!("{address}/{}", family.len);
    let names = [
        ("client", family.client),
        ("one", family.back[0]),
        ("two", family.back[1]),
    ];
    let owners: Vec<(String, &str)> = names.iter().map(|(name, address)| (with_len(address), *name)).collect();
    let owners: Vec<(&str, &str)> = owners.iter().map(|(prefix, name)| (prefix.as_str(), *name)).collect();
    let links = names.iter().filter(|(peer, _)| *peer != name).map(|(peer, address)| {
        let sources = [address, family.routers[0], family.front].map(with_len);
        let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
        link(peer, Relation::VnetLocal {}, &sources)
    });
    let own: Vec<String> = own.iter().map(|address| with_len(address)).collect();
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    AgentConfig {
        front_ends: vec![front_end(family, members)],
        ..vm(name, &own, links.collect(), &owners)
    }
}

/// Source and destination of a packet, as `ADDRESS PORT`.
fn ends(packet: &[u8]) -> [String; 2] {
    let info = parse(packet).unwrap();
    let (from, to) = (info.ports >> 16, info.ports & 0xffff);
    [format!("{} {from}", info.source), format!("{} {to}", info.destination)]
}

/// At the agent of a back end, errors about packets in both directions quote the packet as the end knows it that gets the
/// error. Security groups that allow no ICMP let errors about known flows pass.
#[test]
fn l5_errors_are_translated_at_the_back_end() {
    each(|lanes, family| {
        let Family {
            client,
            front,
            back: [back, _],
            routers: [far, near],
            ..
        } = *family;
        for secured in [false, true] {
            let mut config = machine(family, "one", &[back, near], &[back]);
            let own = format!("{back}/{}", family.len);
            let web = to_port(8080, rule("web", 100, Direction::Inbound, Access::Allow));
            let rules = vec![
                web,
                rule("nothing-in", 200, Direction::Inbound, Access::Deny),
                rule("nothing-out", 200, Direction::Outbound, Access::Deny),
            ];
            config.security = secured.then(|| security(&[&own], None, Some(group("web", rules))));
            let mut owner = Lanes::new(lanes, &config, Instant::now());
            let lane = |n: usize| n % lanes;
            for (n, port) in (0..).zip(40_000..40_008) {
                let request = tcp((client, port), (front, 80), Flags::Syn);
                let (_, delivered) = owner.comes(lane(n), "client", &request).delivered();
                assert_eq!(ends(&delivered), [format!("{client} {port}"), format!("{back} 8080")]);
                let reply = tcp((back, 8080), (client, port), Flags::SynAck);
                let (_, sent) = owner.leaves(lane(n + 1), 0, &reply).sent();
                assert_eq!(ends(&sent), [format!("{front} 80"), format!("{client} {port}")]);

                // IPv4 routers may quote as little as eight bytes of the transport header.
                let least = if front.contains(':') { 48 } else { 28 };
                for len in [least, least + 10, request.len()] {
                    for (from, seen) in [(back, front), (near, near)] {
                        let error = too_big(from, client, &delivered[..len]);
                        let (peer, got) = owner.leaves(lane(n + 2), 0, &error).sent();
                        assert_eq!(peer, "client");
                        assert_error(&got, (seen, client), &request[..len]);
                    }
                    for from in [client, far] {
                        let error = too_big(from, front, &sent[..len]);
                        let (_, got) = owner.comes(lane(n + 3), "client", &error).delivered();
                        assert_error(&got, (from, back), &reply[..len]);
                    }
                }
            }
            // Errors about flows that nobody has begun.
            let unknown = tcp((front, 80), (client, 50_000), Flags::SynAck);
            assert_eq!(
                owner.comes(0, "client", &too_big(client, front, &unknown)),
                Fate::Dropped
            );
            let other = tcp((back, 8080), (client, 40_000), Flags::SynAck);
            assert_eq!(owner.comes(0, "client", &too_big(client, front, &other)), Fate::Dropped);
            assert_eq!(
                owner.comes(0, "client", &too_big(client, front, &unknown[..4])),
                Fate::Dropped
            );
            assert_eq!(owner.drops(DropReason::BalancerProtocol), 3, "{lanes} lanes, {secured}");
            // An error about a flow without a load balancer is not translated.
            let direct = tcp((client, 50_001), (back, 8080), Flags::Syn);
            assert_eq!(owner.comes(0, "client", &direct).delivered().1, direct);
            let error = too_big(back, client, &direct);
            assert_error(&owner.leaves(0, 0, &error).sent().1, (back, client), &direct);
        }
    });
}

/// The client's agent sends an error to the agent of the back end that the flow has, also if the pool has changed.
#[test]
fn l5_errors_of_a_client_go_to_the_back_end_of_the_flow() {
    each(|lanes, family| {
        let Family {
            client, front, back, ..
        } = *family;
        let mut sender = Lanes::new(lanes, &machine(family, "client", &[client], &back[..1]), Instant::now());
        let mut used = BTreeSet::new();
        let ports = 40_000..40_020;
        for members in [&back[..1], &back] {
            sender.install(&machine(family, "client", &[client], members));
            for (n, port) in (0..).zip(ports.clone()) {
                let port = port + if members.len() == 2 { 100 } else { 0 };
                let syn = tcp((client, port), (front, 80), Flags::Syn);
                let (peer, _) = sender.leaves(n % lanes, 0, &syn).sent();
                let reply = tcp((front, 80), (client, port), Flags::SynAck);
                let error = too_big(client, front, &reply);
                let (to, got) = sender.leaves((n + 1) % lanes, 0, &error).sent();
                assert_eq!((&to, got), (&peer, error));
                used.insert(peer);
            }
        }
        assert_eq!(used.len(), 2);
        for (n, port) in (0..).zip(ports) {
            let error = too_big(client, front, &tcp((front, 80), (client, port), Flags::SynAck));
            assert_eq!(
                sender.leaves(n % lanes, 0, &error).sent().0,
                "one",
                "a flow of before the change"
            );
        }
        let unknown = too_big(client, front, &tcp((front, 80), (client, 50_000), Flags::SynAck));
        assert_eq!(sender.leaves(0, 0, &unknown), Fate::Dropped);
        assert_eq!(sender.drops(DropReason::BalancerProtocol), 1);
    });
}
