use super::*;
use crate::security::Attachment;
use crate::tables::{LinkIndex, NicIndex, RoutingState, Tables};
use crate::verdict::DropReason;
use serde_json::{Value, json};
use std::net::IpAddr;

/// An agent with the NICs `plain`, which has no group, and `router`, which has IP forwarding and a group; the served
/// subnet `served` with a group; and the NIC `printer` in this subnet, which has a group of its own.
fn config(changes: impl FnOnce(&mut Value)) -> AgentConfig {
    let mut config = json!({
        "agent": "vm", "vnet": "/vnet", "addressSpace": ["10.0.0.0/16"], "mtu": 1420,
        "role": {"type": "vm", "served": ["10.0.2.0/24"], "nics": [
            {"id": "/plain", "subnet": "/s", "addresses": ["10.0.0.4/24"], "ipForwarding": false},
            {"id": "/router", "subnet": "/s", "addresses": ["10.0.0.5/24"], "ipForwarding": true},
        ]},
        "subnets": [
            {"id": "/s", "prefixes": ["10.0.0.0/24"], "routes": [
                {"source": "Default", "state": "Active", "prefix": "10.0.0.0/16", "nextHop": {"type": "VnetLocal"}},
                {"source": "User", "state": "Active", "name": "out", "prefix": "172.16.0.0/12",
                 "nextHop": {"type": "None"}},
                {"source": "VirtualNetworkGateway", "state": "Active", "prefix": "192.168.0.0/16",
                 "nextHop": {"type": "VirtualNetworkGateway", "gateways": [], "spread": false}},
            ]},
            {"id": "/served", "prefixes": ["10.0.2.0/24"], "routes": []},
        ],
        "spaces": [
            {"vnet": "/vnet", "kind": {"type": "local"}, "prefixes": ["10.0.0.0/16"], "owners": []},
            {"vnet": "/open", "prefixes": ["10.1.0.0/16"], "owners": [],
             "kind": {"type": "peered", "peering": "/p1", "allowAccess": true, "allowForwarded": false}},
            {"vnet": "/shut", "prefixes": ["10.2.0.0/16"], "owners": [],
             "kind": {"type": "peered", "peering": "/p2", "allowAccess": false, "allowForwarded": false}},
        ],
        "links": [],
        "security": {
            "groups": [{"id": "/web", "rules": []}],
            "nics": [
                {"id": "/plain", "prefixes": ["10.0.0.4/32"], "subnet": "/s"},
                {"id": "/router", "prefixes": ["10.0.0.5/32"], "subnet": "/s", "nicGroup": "/web"},
                {"id": "/served", "prefixes": ["10.0.2.0/24"], "subnet": "/served", "subnetGroup": "/web"},
                {"id": "/printer", "prefixes": ["10.0.2.9/32"], "subnet": "/served", "subnetGroup": "/web",
                 "nicGroup": "/web"},
            ],
        },
    });
    changes(&mut config);
    serde_json::from_value(config).unwrap()
}

fn nics(config: &AgentConfig) -> SecuredNics {
    let tables = Tables::build(config, &RoutingState::default()).unwrap();
    tables.security().unwrap().clone()
}

fn passage(nics: &SecuredNics, ingress: Ingress, from: &str, to: &str, verdict: Verdict) -> Option<(u8, Direction)> {
    let packet = PacketInfo {
        source: from.parse().unwrap(),
        destination: to.parse().unwrap(),
        ttl: 64,
        protocol: 17,
        transport: Some(20),
        ports: 0,
        len: 28,
    };
    nics.passage(ingress, &packet, verdict).map(|p| (p.nic, p.direction))
}

const LINK: Ingress = Ingress::Link(LinkIndex(0));
const FORWARD: Verdict = Verdict::Forward {
    link: LinkIndex(0),
    decrement_ttl: false,
};

#[test]
fn d25_a_packet_passes_the_nic_that_has_its_address() {
    let nics = nics(&config(|_| ()));
    for (own, nic, expected) in [
        ("10.0.0.4", 0, 0),
        ("10.0.0.5", 1, 1),
        ("10.0.2.7", 0, 2),
        ("10.0.2.9", 0, 3),
        ("10.0.2.9", 1, 3),
    ] {
        let nic = NicIndex(nic);
        let sent = passage(&nics, Ingress::Tun(nic), own, "10.1.0.4", FORWARD);
        assert_eq!(sent, Some((expected, Direction::Outbound)), "{own}");
        let received = passage(&nics, LINK, "10.1.0.4", own, Verdict::Deliver(nic));
        assert_eq!(received, Some((expected, Direction::Inbound)), "{own}");
    }
}

#[test]
fn d37_packets_of_others_pass_the_nic_at_which_they_arrive_and_leave() {
    let nics = nics(&config(|_| ()));
    let (from, to) = ("10.1.0.4", "10.9.0.4");
    for number in [0, 1] {
        let nic = NicIndex(number);
        let inbound = passage(&nics, LINK, from, to, Verdict::Deliver(nic));
        assert_eq!(inbound, Some((number, Direction::Inbound)));
        let outbound = passage(&nics, Ingress::Tun(nic), from, to, FORWARD);
        assert_eq!(outbound, Some((number, Direction::Outbound)));
    }
}

#[test]
fn flows_tell_nics_of_the_machine_apart_but_not_numbers_of_served_ones() {
    let nics = nics(&config(|_| ()));
    let numbers: Vec<u8> = (0..4).map(|n| nics.flow_nic(n)).collect();
    assert_eq!(numbers, [0, 1, 0, 0]);
}

#[test]
fn packets_that_do_not_go_on_pass_no_nic() {
    let nics = nics(&config(|_| ()));
    let dropped = Verdict::Drop(DropReason::NoRoute);
    assert_eq!(
        passage(&nics, Ingress::Tun(NicIndex::FIRST), "10.0.0.5", "10.1.0.4", dropped),
        None
    );
    assert_eq!(
        passage(&nics, LINK, "10.1.0.4", "10.0.0.5", FORWARD),
        None,
        "not of this host"
    );
}

#[test]
fn n8_the_tag_virtual_network_depends_on_peers_and_on_the_routes_of_the_subnet() {
    let config = config(|_| ());
    let nics = nics(&config);
    let contains = |nic: u8, address: &str| {
        let sets = nics.rules(nic).unwrap().sets();
        let address: IpAddr = address.parse().unwrap();
        let tag = sets.contains(sets.id("VirtualNetwork").unwrap(), address);
        let internet = sets.contains(sets.id("Internet").unwrap(), address);
        assert_ne!(tag, internet, "N9: {address} is in one of the two");
        tag
    };
    for (address, expected, why) in [
        ("10.0.200.1", true, "own address space"),
        ("10.1.0.4", true, "a peer"),
        ("10.2.0.4", false, "a peer with access off"),
        ("172.16.0.1", true, "the prefix of a user-defined route"),
        ("192.168.3.4", true, "behind a gateway"),
        ("168.63.129.16", true, "the host"),
        ("8.8.8.8", false, "the Internet"),
    ] {
        assert_eq!(contains(1, address), expected, "{address}: {why}");
    }
    assert!(!contains(2, "192.168.3.4"), "the other subnet has no such route");
}

#[test]
fn d28_rules_decide_about_peers_without_access_only_where_a_group_applies_and_the_setting_says_so() {
    let tag_only = nics(&config(|c| c["security"]["accessOff"] = "tagOnly".into()));
    let block = nics(&config(|_| ()));
    for (address, nic, expected) in [("10.0.0.4", 0, false), ("10.0.0.5", 1, true), ("10.0.2.7", 0, true)] {
        let (address, nic): (IpAddr, _) = (address.parse().unwrap(), NicIndex(nic));
        assert_eq!(
            tag_only.rules_decide_without_access(address, nic),
            expected,
            "{address}"
        );
        assert!(!block.rules_decide_without_access(address, nic), "{address}");
    }
}

#[test]
fn rules_are_numbered_by_nic_in_the_order_of_their_names() {
    let rule = |name: &str, direction: &str| {
        json!({"name": name, "priority": 100, "direction": direction, "access": "Allow", "protocol": "*",
               "source": "any", "sourcePorts": [], "destination": "any", "destinationPorts": []})
    };
    let nics = nics(&config(|c| {
        c["security"]["groups"][0]["rules"] = json!([rule("in", "Inbound"), rule("out", "Outbound")]);
    }));
    let names: Vec<_> = nics.rule_names().collect();
    assert_eq!(names.len(), nics.rule_count());
    assert_eq!(nics.rule_count(), 2 + 2 + 4);
    for nic in 0..4 {
        for attachment in [Attachment::Subnet, Attachment::Nic] {
            for direction in [Direction::Inbound, Direction::Outbound] {
                let rule = RuleRef {
                    attachment,
                    direction,
                    position: 0,
                };
                let number = nics.rule_number(nic, rule);
                assert_eq!(number.map(|n| names[n].clone()), nics.rule_name(nic, rule));
            }
        }
    }
}

/// D29: a change of routes prepares no group again, and a change of a group's rules does.
#[test]
fn d29_prepared_rules_are_kept_while_they_are_the_same() {
    let config = config(|_| ());
    let mut routes = config.clone();
    routes.subnets[0].routes.clear();
    let mut rules = config.clone();
    let security = rules.security.as_mut().unwrap();
    security.groups[0].rules = serde_json::from_value(json!([{
        "name": "securityRules/all", "priority": 100, "direction": "Inbound", "access": "Allow", "protocol": "*",
        "source": "any", "sourcePorts": [{"first": 0, "last": 65535}], "destination": "any",
        "destinationPorts": [{"first": 0, "last": 65535}],
    }]))
    .unwrap();
    let mut names = config.clone();
    names.security.as_mut().unwrap().application_groups = serde_json::from_value(json!([
        {"name": "web", "addresses": ["10.0.0.4"]},
    ]))
    .unwrap();
    let first = Tables::build(&config, &RoutingState::default()).unwrap();
    for (changed, kept) in [(&routes, true), (&config, true), (&rules, false), (&names, false)] {
        let next = Tables::build_after(changed, &RoutingState::default(), Some(&first)).unwrap();
        let group = |tables: &Tables| tables.security().unwrap().groups.values().next().unwrap().clone();
        assert_eq!(Arc::ptr_eq(&group(&first), &group(&next)), kept);
        let anew = Tables::build(changed, &RoutingState::default()).unwrap();
        let names = |tables: &Tables| tables.security().unwrap().rule_names().collect::<Vec<_>>();
        assert_eq!(names(&next), names(&anew));
    }
}
