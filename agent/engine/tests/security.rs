//! Tests of security groups with two engines and a simulated network. They check which packets pass, which rules are
//! counted, and which flows need no rule (N2 to N8, D25 to D34).
#![cfg(feature = "links")]
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "helpers of tests; the clock is the test's"
)]

mod common;

use common::groups::{Flags, group, rule, security, tcp, to_port};
use common::{World, net};
use std::time::Duration;
use tombolo_engine::verdict::DropReason;
use tombolo_proto::config::{Access, AgentConfig, Direction, SecurityGroup};

const A: &str = "10.0.0.1";
const B: &str = "10.0.0.2";

/// Attaches groups to the only NIC of a node: `subnet` to the NIC's subnet, `nic` to the NIC itself.
fn attach(world: &mut World, node: usize, subnet: Option<SecurityGroup>, nic: Option<SecurityGroup>) {
    let own = if node == 0 {
        ["10.0.0.1/32", "fd00::1/128"]
    } else {
        ["10.0.0.2/32", "fd00::2/128"]
    };
    let security = security(&own, subnet, nic);
    let config = AgentConfig {
        security: Some(security),
        front_ends: Vec::new(),
        ..world.nodes[node].config.clone()
    };
    let now = world.now;
    world.nodes[node].install(config, now);
}

/// Sends a packet from a node. Returns whether the packet arrives at the other node.
fn arrives(world: &mut World, from: usize, packet: Vec<u8>) -> bool {
    let before = world.nodes[1 - from].delivered.len();
    world.send(from, packet);
    world.settle();
    world.nodes[1 - from].delivered.len() > before
}

fn denied(world: &World, node: usize) -> u64 {
    world.nodes[node].engine.stats().drops(DropReason::SecurityRule)
}

/// The counters of the rules of a node: the name of each rule without `securityRules/` or `defaultSecurityRules/`, and
/// the number of packets about which the rule decided.
fn hits(world: &World, node: usize) -> Vec<(String, u64)> {
    let all = world.nodes[node].engine.rule_hits();
    all.map(|(name, n)| (name.rule.rsplit_once('/').unwrap().1.to_owned(), n))
        .collect()
}

#[test]
fn n3_a_denied_packet_is_dropped_at_the_receiver_and_counted_under_its_rule() {
    let mut world = World::pair();
    let rules = vec![
        to_port(443, rule("https", 100, Direction::Inbound, Access::Allow)),
        rule("nothing-else", 200, Direction::Inbound, Access::Deny),
    ];
    attach(&mut world, 1, None, Some(group("web", rules)));
    assert!(arrives(&mut world, 0, tcp((A, 40_000), (B, 443), Flags::Syn)));
    assert!(!arrives(&mut world, 0, tcp((A, 40_001), (B, 22), Flags::Syn)));
    assert!(!arrives(&mut world, 0, tcp((A, 40_002), (B, 22), Flags::Syn)));
    assert_eq!(
        hits(&world, 1),
        [("https".to_owned(), 1), ("nothing-else".to_owned(), 2)]
    );
    assert_eq!(denied(&world, 1), 2);
    assert!(world.nodes[1].engine.stats().conserved());
    assert!(world.nodes[0].delivered.is_empty(), "N7: a denied packet has no answer");
}

#[test]
fn n4_the_group_of_the_subnet_and_that_of_the_nic_must_both_allow() {
    let open = || group("open", vec![rule("all", 100, Direction::Inbound, Access::Allow)]);
    let closed = || group("closed", vec![rule("none", 100, Direction::Inbound, Access::Deny)]);
    for (subnet, nic, expected) in [
        (None, None, true),
        (Some(open()), None, true),
        (Some(open()), Some(closed()), false),
        (Some(closed()), Some(open()), false),
        (None, Some(closed()), false),
    ] {
        let mut world = World::pair();
        let names = format!("{:?} {:?}", subnet.as_ref().map(|g| &g.id), nic.as_ref().map(|g| &g.id));
        attach(&mut world, 1, subnet, nic);
        let arrived = arrives(&mut world, 0, tcp((A, 40_000), (B, 80), Flags::Syn));
        assert_eq!(arrived, expected, "{names}");
    }
}

#[test]
fn n4_the_first_group_that_denies_ends_it() {
    let mut world = World::pair();
    let closed = |name: &str| group(name, vec![rule(name, 100, Direction::Inbound, Access::Deny)]);
    attach(&mut world, 1, Some(closed("subnet-group")), Some(closed("nic-group")));
    assert!(!arrives(&mut world, 0, tcp((A, 40_000), (B, 80), Flags::Syn)));
    assert_eq!(
        hits(&world, 1),
        [("subnet-group".to_owned(), 1)],
        "inbound: the subnet's first"
    );

    let mut world = World::pair();
    let closed = |name: &str| group(name, vec![rule(name, 100, Direction::Outbound, Access::Deny)]);
    attach(&mut world, 0, Some(closed("subnet-group")), Some(closed("nic-group")));
    assert!(!arrives(&mut world, 0, tcp((A, 40_000), (B, 80), Flags::Syn)));
    assert_eq!(
        hits(&world, 0),
        [("nic-group".to_owned(), 1)],
        "outbound: the NIC's first"
    );
}

#[test]
fn n6_a_reply_needs_no_rule_and_a_packet_of_no_flow_does() {
    let mut world = World::pair();
    let no_way_out = vec![rule("none", 100, Direction::Outbound, Access::Deny)];
    attach(&mut world, 1, None, Some(group("quiet", no_way_out)));
    // For 60 s after the first group was attached, the agent adopts older connections (D34).
    world.now += Duration::from_secs(61);
    assert!(
        !arrives(&mut world, 1, tcp((B, 443), (A, 40_000), Flags::SynAck)),
        "nobody asked"
    );
    assert!(arrives(&mut world, 0, tcp((A, 40_000), (B, 443), Flags::Syn)));
    assert!(arrives(&mut world, 1, tcp((B, 443), (A, 40_000), Flags::SynAck)));
    assert!(arrives(&mut world, 0, tcp((A, 40_000), (B, 443), Flags::Ack)));
    assert!(arrives(&mut world, 1, tcp((B, 443), (A, 40_000), Flags::Ack)));
    assert!(
        !arrives(&mut world, 1, tcp((B, 443), (A, 40_001), Flags::Ack)),
        "another flow"
    );
}

#[test]
fn n6_a_change_of_rules_applies_to_new_flows_only() {
    let mut world = World::pair();
    attach(&mut world, 1, None, Some(group("web", vec![])));
    assert!(arrives(&mut world, 0, tcp((A, 40_000), (B, 443), Flags::Syn)));
    assert!(arrives(&mut world, 1, tcp((B, 443), (A, 40_000), Flags::SynAck)));
    let closed = vec![rule("closed", 100, Direction::Inbound, Access::Deny)];
    attach(&mut world, 1, None, Some(group("web", closed)));
    assert!(
        arrives(&mut world, 0, tcp((A, 40_000), (B, 443), Flags::Ack)),
        "established"
    );
    assert!(!arrives(&mut world, 0, tcp((A, 40_001), (B, 443), Flags::Syn)), "new");
    assert!(
        !arrives(&mut world, 0, tcp((A, 40_000), (B, 443), Flags::Syn)),
        "a new connection from the same port"
    );
}

#[test]
fn n6_a_flow_that_is_idle_for_four_minutes_needs_a_rule_again() {
    let mut world = World::pair();
    let no_way_out = vec![rule("none", 100, Direction::Outbound, Access::Deny)];
    attach(&mut world, 1, None, Some(group("quiet", no_way_out)));
    assert!(arrives(&mut world, 0, tcp((A, 40_000), (B, 443), Flags::Syn)));
    assert!(arrives(&mut world, 1, tcp((B, 443), (A, 40_000), Flags::SynAck)));
    assert!(arrives(&mut world, 0, tcp((A, 40_000), (B, 443), Flags::Ack)));
    for _ in 0..4 {
        world.now += Duration::from_secs(200);
        assert!(
            arrives(&mut world, 1, tcp((B, 443), (A, 40_000), Flags::Ack)),
            "each packet renews the time"
        );
    }
    world.now += Duration::from_secs(241);
    assert!(!arrives(&mut world, 1, tcp((B, 443), (A, 40_000), Flags::Ack)));
}

#[test]
fn n8_the_tag_virtual_network_has_the_own_space_and_not_a_peer_without_access() {
    let mut world = World::pair();
    attach(&mut world, 1, None, Some(group("defaults", vec![])));
    assert!(arrives(&mut world, 0, tcp((A, 40_000), (B, 443), Flags::Syn)));
    assert_eq!(hits(&world, 1), [("AllowVnetInBound".to_owned(), 1)]);

    // Now the address space of the VNet does not contain the sender.
    let mut config = world.nodes[1].config.clone();
    config.address_space = vec![net("10.0.0.2/32")];
    config.spaces[0].prefixes = vec![net("10.0.0.2/32")];
    let now = world.now;
    world.nodes[1].install(config, now);
    assert!(!arrives(&mut world, 0, tcp((A, 40_001), (B, 443), Flags::Syn)));
    let counted = hits(&world, 1);
    assert_eq!(
        counted,
        [("AllowVnetInBound".to_owned(), 1), ("DenyAllInBound".to_owned(), 1)]
    );
}

#[test]
fn n5_counters_go_on_over_changes_and_end_with_their_rule() {
    let mut world = World::pair();
    let closed = |name: &str| group("web", vec![rule(name, 100, Direction::Inbound, Access::Deny)]);
    attach(&mut world, 1, None, Some(closed("one")));
    assert!(!arrives(&mut world, 0, tcp((A, 40_000), (B, 80), Flags::Syn)));
    attach(&mut world, 1, Some(group("subnet", vec![])), Some(closed("one")));
    assert!(!arrives(&mut world, 0, tcp((A, 40_000), (B, 80), Flags::Syn)));
    assert_eq!(
        hits(&world, 1),
        [("AllowVnetInBound".to_owned(), 1), ("one".to_owned(), 2)]
    );
    attach(&mut world, 1, None, Some(closed("two")));
    assert!(hits(&world, 1).is_empty());
    let config = AgentConfig {
        security: None,
        front_ends: Vec::new(),
        ..world.nodes[1].config.clone()
    };
    let now = world.now;
    world.nodes[1].install(config, now);
    assert!(
        arrives(&mut world, 0, tcp((A, 40_000), (B, 80), Flags::Syn)),
        "without a group all pass"
    );
}

#[test]
fn a_group_that_applies_twice_counts_the_packets_of_both_places() {
    let mut world = World::pair();
    let rules = || vec![rule("all", 100, Direction::Inbound, Access::Allow)];
    attach(&mut world, 1, Some(group("web", rules())), Some(group("web", rules())));
    assert!(arrives(&mut world, 0, tcp((A, 40_000), (B, 443), Flags::Syn)));
    let counted: u64 = hits(&world, 1).iter().map(|(_, n)| n).sum();
    assert_eq!(counted, 2, "once for the subnet and once for the NIC");
}

#[test]
fn d34_connections_from_before_the_first_group_are_adopted_for_a_minute() {
    let mut world = World::pair();
    assert!(arrives(&mut world, 0, tcp((A, 40_000), (B, 443), Flags::Syn)));
    assert!(arrives(&mut world, 1, tcp((B, 443), (A, 40_000), Flags::SynAck)));
    let no_way_out = vec![rule("none", 100, Direction::Outbound, Access::Deny)];
    attach(&mut world, 1, None, Some(group("quiet", no_way_out)));
    assert!(
        arrives(&mut world, 1, tcp((B, 443), (A, 40_000), Flags::Ack)),
        "its first packet was inbound"
    );
    assert_eq!(world.nodes[1].engine.adopted_connections(), 1);
    // Within a second a lane does not ask the table again.
    world.now += Duration::from_secs(2);
    assert!(
        arrives(&mut world, 1, tcp((B, 443), (A, 40_000), Flags::Ack)),
        "a second segment establishes it"
    );
    assert!(
        !arrives(&mut world, 1, tcp((B, 50_000), (A, 443), Flags::Syn)),
        "a new connection is not"
    );
    world.now += Duration::from_secs(61);
    assert!(
        arrives(&mut world, 1, tcp((B, 443), (A, 40_000), Flags::Ack)),
        "it is known now"
    );
    assert!(
        !arrives(&mut world, 1, tcp((B, 444), (A, 40_000), Flags::Ack)),
        "too late"
    );
}
