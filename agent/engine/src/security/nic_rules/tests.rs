use super::*;
use tombolo_proto::config::{ALL_PORTS, AddressMatch, PortRange, RuleProtocol};

fn rule(name: &str, priority: u16, direction: Direction, access: Access, port: Option<u16>) -> SecurityRule {
    SecurityRule {
        name: format!("securityRules/{name}"),
        priority,
        direction,
        access,
        protocol: RuleProtocol::Any,
        source: AddressMatch::Any,
        source_ports: vec![ALL_PORTS],
        destination: AddressMatch::Any,
        destination_ports: port.map_or_else(|| vec![ALL_PORTS], |p| vec![PortRange { first: p, last: p }]),
    }
}

fn group(name: &str, rules: Vec<SecurityRule>) -> Arc<GroupRules> {
    let deny = [Direction::Inbound, Direction::Outbound].map(|d| rule("deny", 65_500, d, Access::Deny, None));
    let all = rules.into_iter().chain(deny).collect();
    Arc::new(GroupRules::new(ResourceId::new(name), all, &AddressSets::default()))
}

fn to_port(port: u16) -> RuleKey {
    RuleKey {
        source: "10.0.0.4".parse().unwrap(),
        destination: "10.1.0.4".parse().unwrap(),
        protocol: 6,
        ports: Some((40_000, port)),
    }
}

fn both(name: &str, ports: &[u16]) -> Arc<GroupRules> {
    let directions = [Direction::Inbound, Direction::Outbound];
    let rules = directions.into_iter().flat_map(|d| {
        let allow = ports.iter().zip(100..);
        allow.map(move |(port, priority)| rule(&format!("p{port}"), priority, d, Access::Allow, Some(*port)))
    });
    group(name, rules.collect())
}

#[test]
fn n5_without_a_group_everything_is_allowed() {
    let none = NicRules::default();
    assert!(none.is_empty());
    for direction in [Direction::Inbound, Direction::Outbound] {
        assert_eq!(none.judge(direction, &to_port(443)), Judgement::NoGroup);
    }
}

#[test]
fn n4_both_groups_must_allow_and_the_first_that_denies_ends_it() {
    let rules = NicRules::new(
        AddressSets::default(),
        Some(both("subnet", &[443, 80])),
        Some(both("nic", &[443, 22])),
    );
    let decided = |direction, port| match rules.judge(direction, &to_port(port)) {
        Judgement::Allowed(by) => (true, by.attachment),
        Judgement::Denied(by) => (false, by.attachment),
        Judgement::NoGroup => panic!("groups apply"),
    };
    // An allowed packet has a rule of the last group. A denied packet has a rule of the first group that denies it.
    assert_eq!(decided(Direction::Inbound, 443), (true, Attachment::Nic));
    assert_eq!(decided(Direction::Outbound, 443), (true, Attachment::Subnet));
    assert_eq!(decided(Direction::Inbound, 80), (false, Attachment::Nic));
    assert_eq!(decided(Direction::Outbound, 80), (false, Attachment::Nic));
    assert_eq!(decided(Direction::Inbound, 22), (false, Attachment::Subnet));
    assert_eq!(decided(Direction::Outbound, 22), (false, Attachment::Subnet));
    assert_eq!(decided(Direction::Inbound, 25), (false, Attachment::Subnet));
    assert_eq!(decided(Direction::Outbound, 25), (false, Attachment::Nic));
}

#[test]
fn n3_a_lower_number_decides_whatever_the_order_of_the_list() {
    let direction = Direction::Inbound;
    let rules = NicRules::new(
        AddressSets::default(),
        None,
        Some(group(
            "nic",
            vec![
                rule("allow", 300, direction, Access::Allow, Some(443)),
                rule("deny", 200, direction, Access::Deny, Some(443)),
            ],
        )),
    );
    let Judgement::Denied(by) = rules.judge(direction, &to_port(443)) else {
        panic!("priority 200 comes first");
    };
    let (id, found) = rules.rule(by).unwrap();
    assert_eq!((id.as_str(), found.name.as_str()), ("nic", "securityRules/deny"));
}

#[test]
fn the_explanation_names_the_rules_up_to_the_one_that_decided() {
    let rules = NicRules::new(
        AddressSets::default(),
        Some(both("subnet", &[443, 80])),
        Some(both("nic", &[443, 22])),
    );
    let explained = rules.explain(Direction::Inbound, &to_port(80));
    let names: Vec<(&str, Vec<&str>, Access)> = explained
        .iter()
        .map(|g| {
            let names = g.evaluated.iter().map(|(rule, _)| rule.name.as_str());
            (g.group.as_str(), names.collect(), g.access)
        })
        .collect();
    assert_eq!(
        names,
        [
            ("subnet", vec!["securityRules/p443", "securityRules/p80"], Access::Allow),
            (
                "nic",
                vec!["securityRules/p443", "securityRules/p22", "securityRules/deny"],
                Access::Deny
            ),
        ]
    );
    let (_, first) = explained[0].evaluated[0];
    assert!(first.source && first.protocol && !first.destination_port);
}
