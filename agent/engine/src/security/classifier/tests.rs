use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use tombolo_proto::config::{Access, Direction};

fn rule(priority: u16) -> SecurityRule {
    SecurityRule {
        name: format!("securityRules/r{priority}"),
        priority,
        direction: Direction::Inbound,
        access: Access::Deny,
        protocol: RuleProtocol::Any,
        source: AddressMatch::Any,
        source_ports: vec![ALL_PORTS],
        destination: AddressMatch::Any,
        destination_ports: vec![ALL_PORTS],
    }
}

fn ports(first: u16, last: u16) -> Vec<PortRange> {
    vec![PortRange { first, last }]
}

fn key(source: &str, destination: &str, protocol: u8, ports: Option<(u16, u16)>) -> RuleKey {
    RuleKey {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        protocol,
        ports,
    }
}

/// The position of the rule that decides, found by a comparison of one rule after the other.
fn naive(rules: &[SecurityRule], key: &RuleKey, sets: &AddressSets) -> Option<usize> {
    rules.iter().position(|rule| {
        let address = |side: &AddressMatch, address: IpAddr| match side {
            AddressMatch::Any => true,
            AddressMatch::Prefixes(prefixes) => prefixes.iter().any(|p| p.contains(&address)),
            AddressMatch::Sets(names) => names
                .iter()
                .any(|name| sets.id(name).is_some_and(|id| sets.contains(id, address))),
        };
        let portless = !matches!(rule.protocol, RuleProtocol::Any | RuleProtocol::Tcp | RuleProtocol::Udp);
        let port = |ranges: &[PortRange], port: Option<u16>| match port {
            _ if portless => true,
            Some(port) => ranges.iter().any(|r| r.first <= port && port <= r.last),
            None => ranges.contains(&ALL_PORTS),
        };
        let protocol = match rule.protocol {
            RuleProtocol::Any => true,
            RuleProtocol::Tcp => key.protocol == 6,
            RuleProtocol::Udp => key.protocol == 17,
            RuleProtocol::Icmp => key.protocol == 1 || key.protocol == 58,
            RuleProtocol::Esp => key.protocol == 50,
            RuleProtocol::Ah => key.protocol == 51,
        };
        protocol
            && address(&rule.source, key.source)
            && address(&rule.destination, key.destination)
            && port(&rule.source_ports, key.ports.map(|p| p.0))
            && port(&rule.destination_ports, key.ports.map(|p| p.1))
    })
}

#[test]
fn n3_the_first_rule_that_matches_decides() {
    let mut deny_one = rule(100);
    deny_one.source = AddressMatch::Prefixes(vec!["10.1.0.4/32".parse().unwrap()]);
    let mut allow_all = rule(200);
    allow_all.protocol = RuleProtocol::Tcp;
    allow_all.destination_ports = ports(443, 443);
    let rules = [deny_one, allow_all, rule(65500)];
    let sets = AddressSets::default();
    let classifier = Classifier::new(rules.iter(), &sets);
    let decide = |source, protocol, ports| classifier.decide(&key(source, "10.0.0.4", protocol, ports), &sets);
    assert_eq!(decide("10.1.0.4", 6, Some((9, 443))), Some(0));
    assert_eq!(decide("10.1.0.5", 6, Some((9, 443))), Some(1));
    assert_eq!(decide("10.1.0.5", 6, Some((9, 80))), Some(2));
    assert_eq!(decide("10.1.0.5", 17, Some((9, 443))), Some(2));
}

#[test]
fn a_group_without_a_rule_that_matches_decides_nothing() {
    let sets = AddressSets::default();
    let none = Classifier::new([].iter(), &sets);
    assert_eq!(none.decide(&key("10.0.0.1", "10.0.0.2", 6, Some((1, 2))), &sets), None);
    let mut rule = rule(100);
    rule.source = AddressMatch::Sets(vec!["unknown".into()]);
    let rules = [rule];
    let classifier = Classifier::new(rules.iter(), &sets);
    assert_eq!(
        classifier.decide(&key("10.0.0.1", "10.0.0.2", 6, Some((1, 2))), &sets),
        None
    );
}

#[test]
fn n1_a_packet_without_ports_matches_rules_for_all_ports_alone() {
    let mut web = rule(100);
    web.destination_ports = ports(443, 443);
    let mut echo = rule(200);
    echo.protocol = RuleProtocol::Icmp;
    echo.destination_ports = ports(80, 80);
    let rules = [web, echo, rule(300)];
    let sets = AddressSets::default();
    let classifier = Classifier::new(rules.iter(), &sets);
    assert_eq!(classifier.decide(&key("10.0.0.1", "10.0.0.2", 1, None), &sets), Some(1));
    assert_eq!(classifier.decide(&key("fd00::1", "fd00::2", 58, None), &sets), Some(1));
    assert_eq!(
        classifier.decide(&key("10.0.0.1", "10.0.0.2", 47, None), &sets),
        Some(2)
    );
}

#[test]
fn the_thousandth_rule_and_the_last_port_are_found() {
    let mut rules: Vec<SecurityRule> = (0..1000)
        .map(|n| {
            let mut rule = rule(100 + n);
            rule.destination_ports = ports(65535 - n, 65535 - n);
            rule
        })
        .collect();
    rules.push(rule(65500));
    let sets = AddressSets::default();
    let classifier = Classifier::new(rules.iter(), &sets);
    for n in 0..1000 {
        let key = key("10.0.0.1", "10.0.0.2", 6, Some((1, 65535 - n)));
        assert_eq!(classifier.decide(&key, &sets), Some(usize::from(n)));
    }
    assert_eq!(
        classifier.decide(&key("10.0.0.1", "10.0.0.2", 6, Some((1, 1))), &sets),
        Some(1000)
    );
}

fn addresses() -> impl Strategy<Value = IpAddr> {
    // There are few distinct addresses, so that many packets match a rule.
    let v4 = (0u8..4, 0u8..4).prop_map(|(a, b)| IpAddr::from([10, a, 0, b]));
    let v6 = (0u16..4).prop_map(|a| IpAddr::from([0xfd00, a, 0, 0, 0, 0, 0, 1]));
    prop_oneof![4 => v4, 1 => v6]
}

fn prefixes() -> impl Strategy<Value = IpNet> {
    (addresses(), 0u8..=32).prop_map(|(address, len)| {
        let len = if address.is_ipv4() { len } else { len * 4 };
        IpNet::new(address, len).unwrap().trunc()
    })
}

fn sides() -> impl Strategy<Value = AddressMatch> {
    let set = prop_oneof![
        Just("VirtualNetwork"),
        Just("Internet"),
        Just("web"),
        Just("db"),
        Just("unknown")
    ];
    prop_oneof![
        Just(AddressMatch::Any),
        vec(prefixes(), 1..4).prop_map(AddressMatch::Prefixes),
        vec(set.prop_map(str::to_owned), 1..3).prop_map(AddressMatch::Sets),
    ]
}

fn port_ranges() -> impl Strategy<Value = Vec<PortRange>> {
    let port = prop_oneof![0u16..4, 65532u16..=65535];
    let range = (port.clone(), port).prop_map(|(a, b)| PortRange {
        first: a.min(b),
        last: a.max(b),
    });
    prop_oneof![Just(vec![ALL_PORTS]), vec(range, 1..4)]
}

fn rules() -> impl Strategy<Value = Vec<SecurityRule>> {
    let protocol = proptest::sample::select(ProtocolField::CLASSES.to_vec());
    let one = (protocol, sides(), port_ranges(), sides(), port_ranges());
    vec(one, 0..200).prop_map(|all| {
        let rules = all.into_iter().enumerate();
        rules
            .map(
                |(n, (protocol, source, source_ports, destination, destination_ports))| SecurityRule {
                    protocol,
                    source,
                    source_ports,
                    destination,
                    destination_ports,
                    ..rule(u16::try_from(n).unwrap())
                },
            )
            .collect()
    })
}

fn keys() -> impl Strategy<Value = RuleKey> {
    let protocol = prop_oneof![Just(6u8), Just(17), Just(1), Just(58), Just(50), Just(51), Just(47)];
    let port = prop_oneof![0u16..5, 65531u16..=65535];
    (addresses(), addresses(), protocol, port.clone(), port).prop_map(|(source, destination, protocol, from, to)| {
        RuleKey {
            source,
            destination,
            protocol,
            ports: matches!(protocol, 6 | 17).then_some((from, to)),
        }
    })
}

proptest! {
    #[test]
    fn n3_the_vectors_find_the_rule_that_reading_in_order_finds(rules in rules(), keys in vec(keys(), 1..40)) {
        let mut sets = AddressSets::default();
        let vnet: Vec<IpNet> = vec!["10.0.0.0/15".parse().unwrap(), "fd00::/32".parse().unwrap()];
        sets.set_tag("VirtualNetwork", vnet.clone(), false);
        sets.set_tag("Internet", vnet, true);
        sets.add_group("web", [IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 1, 0, 1])]);
        sets.add_group("db", [IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 3, 0, 3])]);
        let classifier = Classifier::new(rules.iter(), &sets);
        for key in keys {
            let expected = naive(&rules, &key, &sets);
            prop_assert_eq!(classifier.decide(&key, &sets), expected);
            let explained = classifier.explain(&key, &sets);
            prop_assert_eq!(explained.len(), rules.len());
            prop_assert_eq!(explained.iter().position(|m| m.all()), expected);
        }
    }

    /// N3: the set of all packets that are allowed has exactly those about which the search for each packet says so.
    #[test]
    fn n3_the_allowed_traffic_is_that_of_the_first_rules_that_match(
        mut rules in rules(),
        (source, destination) in (addresses(), addresses()),
    ) {
        for rule in rules.iter_mut().filter(|rule| rule.priority % 3 != 0) {
            rule.access = Access::Allow;
        }
        let mut sets = AddressSets::default();
        sets.set_tag("VirtualNetwork", ["10.0.0.0/15".parse().unwrap()], false);
        sets.add_group("web", [IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 1, 0, 1])]);
        let classifier = Classifier::new(rules.iter(), &sets);
        let matching = classifier.matching(true, source, &sets).and_set(&classifier.matching(false, destination, &sets));
        let traffic = classifier.traffic(&rules, &matching);
        let allowed = |protocol, ports| {
            let key = RuleKey { source, destination, protocol, ports };
            let first = classifier.decide(&key, &sets);
            first.is_some_and(|rule| rules[rule].access == Access::Allow)
        };
        for from in [0, 1, 2, 3, 4, 300, 65_531, 65_532, 65_533, 65_534, 65_535] {
            for to in [0, 1, 2, 3, 4, 300, 65_531, 65_532, 65_533, 65_534, 65_535] {
                prop_assert_eq!(traffic.tcp.contains(from, to), allowed(6, Some((from, to))), "tcp {} {}", from, to);
                prop_assert_eq!(traffic.udp.contains(from, to), allowed(17, Some((from, to))), "udp {} {}", from, to);
            }
        }
        prop_assert_eq!(traffic.icmp, allowed(1, None));
    }
}
