//! Tests of load balancers with three engines and a simulated network: a client, and two back ends of one front end
//! (L3 to L5, L11, N12, D35).
#![cfg(feature = "links")]
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "helpers of tests; the clock is the test's"
)]

mod common;
#[path = "balancing/ends.rs"]
mod ends_of_flows;
#[path = "balancing/health.rs"]
mod health_over_links;

use common::groups::{Flags, group, rule, security, tcp, to_port};
use common::{Node, World, id, ip, nets, route, vm};
use ends_of_flows::probed;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tombolo_engine::buffer::Collected;
use tombolo_engine::packet::parse;
use tombolo_engine::routing::RoutingState;
use tombolo_engine::tables::Tables;
use tombolo_engine::verdict::DropReason;
use tombolo_proto::config::{
    Access, AgentConfig, BalancedProtocol, BalancingRule, Direction, Distribution, FrontEnd, Link, Role, SecurityGroup,
};
use tombolo_proto::route::NextHop;

const CLIENT: &str = "10.0.0.1";
const FRONT: &str = "10.0.255.36";
const BACK: [&str; 2] = ["10.0.0.6", "10.0.0.4"];

/// The nodes of the back ends. Node 0 is the client's.
const NODES: [usize; 2] = [1, 2];

fn balancing_rule(floating_ip: bool) -> BalancingRule {
    let mut back_ends: Vec<_> = BACK.map(ip).to_vec();
    back_ends.sort();
    BalancingRule {
        id: id("lb-rule"),
        protocol: BalancedProtocol::Tcp,
        port: 80,
        back_end_port: if floating_ip { 80 } else { 8080 },
        distribution: Distribution::Default,
        floating_ip,
        idle_timeout_minutes: 4,
        tcp_reset: false,
        back_ends,
        probe: None,
        decided: BTreeMap::new(),
        ends_flows: false,
    }
}

/// A client and two back ends in one VNet, with links between all of them.
fn world(rules: &[BalancingRule]) -> World {
    let addresses = [CLIENT, BACK[0], BACK[1]];
    let names = ["client", "six", "four"];
    let nodes = names.iter().zip(1u8..).map(|(name, n)| {
        let at = format!("192.0.2.{n}:1000");
        Node::new(name, &at, n)
    });
    let mut world = World::new(nodes.collect());
    let owners: Vec<(String, &str)> = addresses
        .iter()
        .zip(names)
        .map(|(a, n)| (format!("{a}/32"), n))
        .collect();
    let owners: Vec<(&str, &str)> = owners.iter().map(|(a, n)| (a.as_str(), *n)).collect();
    for here in 0..3 {
        let mut links: Vec<Link> = Vec::new();
        for there in (0..3).filter(|there| *there != here) {
            let own = format!("{}/32", addresses[there]);
            // The replies of a back end have the front end's address.
            let sources = if there == 0 {
                vec![own]
            } else {
                vec![own, format!("{FRONT}/32")]
            };
            let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
            links.push(world.nodes[there].as_link(&sources));
        }
        links.sort_by(|a, b| a.peer.cmp(&b.peer));
        let front_end = FrontEnd {
            id: id("lb-front"),
            vnet: id("vnet"),
            address: ip(FRONT),
            rules: rules.to_vec(),
        };
        let own = format!("{}/8", addresses[here]);
        let config = AgentConfig {
            front_ends: vec![front_end],
            ..vm(names[here], &[own.as_str()], links, &owners)
        };
        let now = world.now;
        world.nodes[here].install(config, now);
    }
    world
}

/// Gives all agents another load-balancing rule.
fn set_rule(world: &mut World, rule: &BalancingRule) {
    let now = world.now;
    for node in &mut world.nodes {
        let mut config = node.config.clone();
        config.front_ends[0].rules = vec![rule.clone()];
        node.install(config, now);
    }
}

/// Tells all agents that exactly these back ends do not answer the probe of [`probed`].
fn take_down(world: &mut World, back_ends: &[&str]) {
    let state = RoutingState {
        unhealthy: back_ends.iter().map(|address| (id("lb-probe"), ip(address))).collect(),
        ..RoutingState::default()
    };
    let now = world.now;
    for node in &mut world.nodes {
        let tables = Tables::build(&node.config, &state).unwrap();
        node.engine.refresh(Arc::new(tables), now);
    }
}

fn send(world: &mut World, from: usize, packet: Vec<u8>) {
    world.send(from, packet);
    world.settle();
}

/// The back end to which a packet of the client from `port` is delivered, with the packet; `None`: to none.
fn delivered(world: &mut World, port: u16, flags: Flags) -> Option<(usize, Vec<u8>)> {
    for node in NODES {
        world.nodes[node].delivered.clear();
    }
    send(world, 0, tcp((CLIENT, port), (FRONT, 80), flags));
    let mut all = NODES
        .iter()
        .flat_map(|node| world.nodes[*node].delivered.pop().map(|p| (*node, p)));
    let found = all.next();
    assert!(all.next().is_none(), "one back end gets the packet");
    found
}

/// Source and destination of a packet, as `ADDRESS:PORT`.
fn ends(packet: &[u8]) -> (String, String) {
    let info = parse(packet).unwrap();
    (
        format!("{}:{}", info.source, info.ports >> 16),
        format!("{}:{}", info.destination, info.ports & 0xffff),
    )
}

#[test]
fn l5_the_back_end_gets_its_own_address_and_the_client_hears_the_front_end() {
    let mut world = world(&[balancing_rule(false)]);
    let mut used = BTreeSet::new();
    for port in 40_000..40_020 {
        let (node, packet) = delivered(&mut world, port, Flags::Syn).unwrap();
        let back = BACK[node - 1];
        assert_eq!(ends(&packet), (format!("{CLIENT}:{port}"), format!("{back}:8080")));
        world.nodes[0].delivered.clear();
        send(&mut world, node, tcp((back, 8080), (CLIENT, port), Flags::SynAck));
        let reply = world.nodes[0].delivered.pop().expect("the reply arrives");
        assert_eq!(ends(&reply), (format!("{FRONT}:80"), format!("{CLIENT}:{port}")));
        used.insert(node);
    }
    assert_eq!(used.len(), 2, "both back ends are used");
    // Connections of a back end itself are not translated, and neither are packets that are sent to it directly.
    send(&mut world, 1, tcp((BACK[0], 8080), (CLIENT, 9), Flags::Syn));
    assert_eq!(
        ends(&world.nodes[0].delivered.pop().unwrap()).0,
        format!("{}:8080", BACK[0])
    );
    send(&mut world, 0, tcp((CLIENT, 50_000), (BACK[0], 8080), Flags::Syn));
    assert_eq!(
        ends(&world.nodes[1].delivered.pop().unwrap()).1,
        format!("{}:8080", BACK[0])
    );
    send(&mut world, 1, tcp((BACK[0], 8080), (CLIENT, 50_000), Flags::SynAck));
    assert_eq!(
        ends(&world.nodes[0].delivered.pop().unwrap()).0,
        format!("{}:8080", BACK[0])
    );
    for node in &world.nodes {
        assert!(node.engine.stats().conserved(), "{}", node.name);
    }
}

/// L5: a client may use the ports of a connection through the front end again, for a connection to the back end's own
/// address, and the other way round. The replies have the address to which the client has sent.
#[test]
fn l5_replies_to_a_direct_connection_with_the_same_ports_are_not_translated() {
    let mut world = world(&[balancing_rule(false)]);
    let (node, _) = delivered(&mut world, 40_000, Flags::Syn).unwrap();
    let back = BACK[node - 1];
    let reply = |world: &mut World, flags| {
        world.nodes[0].delivered.clear();
        send(world, node, tcp((back, 8080), (CLIENT, 40_000), flags));
        ends(&world.nodes[0].delivered.pop().expect("the reply arrives")).0
    };
    let (front_end, own) = (format!("{FRONT}:80"), format!("{back}:8080"));
    for _ in 0..2 {
        for flags in [Flags::SynAck, Flags::Ack, Flags::Fin] {
            assert_eq!(reply(&mut world, flags), front_end);
        }
        for (sent, answer) in [
            (Flags::Syn, Flags::SynAck),
            (Flags::Ack, Flags::Ack),
            (Flags::Fin, Flags::Fin),
        ] {
            send(&mut world, 0, tcp((CLIENT, 40_000), (back, 8080), sent));
            assert_eq!(reply(&mut world, answer), own);
        }
        assert_eq!(delivered(&mut world, 40_000, Flags::Syn).unwrap().0, node);
    }
    assert_eq!(reply(&mut world, Flags::SynAck), front_end);
}

/// L4: a flow stays with its back end while the pool changes; new flows use the new pool.
#[test]
fn l4_a_flow_stays_with_its_back_end_when_the_pool_grows() {
    let mut alone = balancing_rule(false);
    alone.back_ends = vec![ip(BACK[0])];
    let mut world = world(&[alone]);
    for port in 40_000..40_020 {
        let (node, _) = delivered(&mut world, port, Flags::Syn).unwrap();
        assert_eq!(node, 1);
        send(&mut world, node, tcp((BACK[0], 8080), (CLIENT, port), Flags::SynAck));
    }
    set_rule(&mut world, &balancing_rule(false));
    for port in 40_000..40_020 {
        let (node, packet) = delivered(&mut world, port, Flags::Ack).unwrap();
        assert_eq!((node, ends(&packet).1), (1, format!("{}:8080", BACK[0])), "port {port}");
    }
    // L7: a new connection with the same ports is a new flow.
    let again = (40_000..40_020).map(|port| delivered(&mut world, port, Flags::Syn).unwrap().0);
    assert_eq!(again.collect::<BTreeSet<_>>().len(), 2, "new connections use both");
    let new: BTreeMap<usize, usize> = (41_000..41_020).fold(BTreeMap::new(), |mut all, port| {
        *all.entry(delivered(&mut world, port, Flags::Syn).unwrap().0)
            .or_default() += 1;
        all
    });
    assert_eq!(new.len(), 2, "new flows use both: {new:?}");
    // A back end that leaves loses its flows: the next packet goes to another one.
    let mut other = balancing_rule(false);
    other.back_ends = vec![ip(BACK[1])];
    set_rule(&mut world, &other);
    assert_eq!(delivered(&mut world, 40_000, Flags::Ack).unwrap().0, 2);
}

/// L4: a flow that is established stays with its back end also if it sends nothing for longer than a handshake takes.
#[test]
fn l4_an_idle_flow_stays_with_its_back_end() {
    let mut alone = balancing_rule(false);
    alone.back_ends = vec![ip(BACK[0])];
    let mut world = world(&[alone]);
    for port in 40_000..40_020 {
        let (node, _) = delivered(&mut world, port, Flags::Syn).unwrap();
        send(&mut world, node, tcp((BACK[0], 8080), (CLIENT, port), Flags::SynAck));
        assert_eq!(delivered(&mut world, port, Flags::Ack).unwrap().0, node);
    }
    world.now += Duration::from_secs(200);
    set_rule(&mut world, &balancing_rule(false));
    for port in 40_000..40_020 {
        assert_eq!(delivered(&mut world, port, Flags::Ack).unwrap().0, 1, "port {port}");
    }
}

/// L3: other ports and protocols have no rule. L11: a back end does not reach itself.
#[test]
fn l3_l11_packets_without_a_back_end_are_counted() {
    let mut world = world(&[balancing_rule(false)]);
    let drops = |world: &World, node: usize, reason| world.nodes[node].engine.stats().drops(reason);
    send(&mut world, 0, tcp((CLIENT, 40_000), (FRONT, 81), Flags::Syn));
    assert_eq!(drops(&world, 0, DropReason::NoBalancingRule), 1);
    send(&mut world, 0, common::echo(CLIENT, FRONT));
    assert_eq!(drops(&world, 0, DropReason::BalancerProtocol), 1);
    let (mut itself, mut other) = (0, 0);
    for port in 40_000..40_040 {
        world.nodes[2].delivered.clear();
        send(&mut world, 1, tcp((BACK[0], port), (FRONT, 80), Flags::Syn));
        other += usize::from(!world.nodes[2].delivered.is_empty());
        itself = drops(&world, 1, DropReason::BackEndItself);
    }
    assert!(itself > 0 && other > 0, "{itself} to itself, {other} to the other");
    assert_eq!(itself as usize + other, 40);
}

fn attach(world: &mut World, node: usize, own: &str, nic: SecurityGroup) {
    let config = AgentConfig {
        security: Some(security(&[&format!("{own}/32")], None, Some(nic))),
        ..world.nodes[node].config.clone()
    };
    let now = world.now;
    world.nodes[node].install(config, now);
}

/// N12: rules at the back end see its own address and port, and those at the client the front end's.
#[test]
fn n12_rules_see_the_back_end_at_the_back_end_and_the_front_end_at_the_client() {
    let mut world = world(&[balancing_rule(false)]);
    let web = |port| {
        let allow = to_port(port, rule("web", 100, Direction::Inbound, Access::Allow));
        group("web", vec![allow, rule("none", 200, Direction::Inbound, Access::Deny)])
    };
    for (node, own) in NODES.iter().zip(BACK) {
        attach(&mut world, *node, own, web(80));
    }
    assert!(
        delivered(&mut world, 40_000, Flags::Syn).is_none(),
        "the front end's port is not the back end's"
    );
    for (node, own) in NODES.iter().zip(BACK) {
        attach(&mut world, *node, own, web(8080));
    }
    let (node, _) = delivered(&mut world, 40_001, Flags::Syn).unwrap();
    let back = BACK[node - 1];
    // The reply needs no rule, and is translated.
    send(&mut world, node, tcp((back, 8080), (CLIENT, 40_001), Flags::SynAck));
    assert_eq!(ends(&world.nodes[0].delivered.pop().unwrap()).0, format!("{FRONT}:80"));

    let allow = to_port(80, rule("front", 100, Direction::Outbound, Access::Allow));
    let out = group("out", vec![allow, rule("none", 200, Direction::Outbound, Access::Deny)]);
    attach(&mut world, 0, CLIENT, out);
    assert!(delivered(&mut world, 40_002, Flags::Syn).is_some());
}

/// With floating IP, the packet keeps the front end's address, and so does the reply.
#[test]
fn l3_floating_ip_translates_nothing() {
    let mut world = world(&[balancing_rule(true)]);
    let (node, packet) = delivered(&mut world, 40_000, Flags::Syn).unwrap();
    assert_eq!(ends(&packet).1, format!("{FRONT}:80"));
    send(&mut world, node, tcp((FRONT, 80), (CLIENT, 40_000), Flags::SynAck));
    assert_eq!(ends(&world.nodes[0].delivered.pop().unwrap()).0, format!("{FRONT}:80"));
    // The client may not use that address.
    send(&mut world, 0, tcp((FRONT, 80), (BACK[0], 9), Flags::SynAck));
    assert_eq!(world.nodes[0].engine.stats().drops(DropReason::SpoofedSource), 1);
}

/// L6: a probe comes from 168.63.129.16 and passes the rules of the back end's NIC, as the tag `AzureLoadBalancer`. Its
/// reply goes to the owner of the engine, and not to the network.
#[test]
fn l6_probes_pass_the_rules_of_the_back_end() {
    const HOST: &str = "168.63.129.16";
    let mut world = world(&[balancing_rule(false)]);
    world.nodes[1].engine.keep_probe_replies();
    let probe = |world: &mut World, port| {
        let mut rx = Collected::default();
        let mut packet = tcp((HOST, port), (BACK[0], 8080), Flags::Syn);
        let now = world.now;
        let done = world.nodes[1].engine.deliver_probe(&mut packet, now, &mut rx);
        assert_eq!(done, !rx.packets.is_empty());
        done
    };
    assert!(probe(&mut world, 50_000));
    send(&mut world, 1, tcp((BACK[0], 8080), (HOST, 50_000), Flags::SynAck));
    assert_eq!(world.nodes[1].engine.take_probe_replies().len(), 1);
    assert!(world.nodes[1].engine.take_probe_replies().is_empty());
    assert!(world.nodes[1].engine.stats().conserved());

    // The default rules admit probes, and a rule that denies all sources denies them too.
    let no_vnet = rule("no-vnet", 100, Direction::Inbound, Access::Deny);
    let closed = |rules| group("web", rules);
    attach(&mut world, 1, BACK[0], closed(vec![]));
    assert!(probe(&mut world, 50_001));
    attach(&mut world, 1, BACK[0], closed(vec![no_vnet]));
    assert!(!probe(&mut world, 50_002), "the rule denies all sources");
    // A client cannot send from that address.
    attach(&mut world, 1, BACK[0], closed(vec![]));
    let before = world.nodes[1].delivered.len();
    send(&mut world, 0, tcp((HOST, 50_003), (BACK[0], 8080), Flags::Syn));
    assert_eq!(world.nodes[1].delivered.len(), before);
    assert_eq!(world.nodes[0].engine.stats().drops(DropReason::SpoofedSource), 1);
}

/// L6: only the packets of a back end to 168.63.129.16 are replies to probes. Those of another machine follow its routes.
#[test]
fn l6_packets_of_other_machines_to_the_source_of_probes_are_no_replies() {
    let mut world = world(&[balancing_rule(false)]);
    world.nodes[0].engine.keep_probe_replies();
    send(&mut world, 0, tcp((CLIENT, 40_000), ("168.63.129.16", 80), Flags::Syn));
    assert!(world.nodes[0].engine.take_probe_replies().is_empty());
    assert_eq!(world.nodes[0].engine.stats().drops(DropReason::QueueFull), 0);
    assert_eq!(world.nodes[0].engine.stats().drops(DropReason::NoRoute), 1);
}

/// R11: a machine behind a security group gets its flows through an appliance, and its route for the replies names the
/// front end of the appliances. All replies go back through the appliance, with the machine's own address.
#[test]
fn r11_replies_through_an_appliance_keep_their_source() {
    const FAR: &str = "10.0.9.9";
    let all_ports = BalancingRule {
        protocol: BalancedProtocol::All,
        port: 0,
        back_end_port: 0,
        back_ends: vec![ip(BACK[0])],
        ..balancing_rule(false)
    };
    let mut world = world(&[all_ports]);
    let now = world.now;
    let mut appliance = world.nodes[1].config.clone();
    if let Role::Vm { nics, .. } = &mut appliance.role {
        nics[0].ip_forwarding = true;
    }
    world.nodes[1].install(appliance, now);
    let mut machine = world.nodes[0].config.clone();
    let front = NextHop::VirtualAppliance { address: ip(FRONT) };
    machine.subnets[0].routes.push(route("10.0.9.0/24", front));
    for link in &mut machine.links {
        link.sources.extend(nets(&["10.0.9.9/32"]));
    }
    world.nodes[0].install(machine, now);
    attach(&mut world, 0, CLIENT, group("web", vec![]));

    for (request, reply) in [
        (Flags::Syn, Flags::SynAck),
        (Flags::Ack, Flags::Ack),
        (Flags::Ack, Flags::Ack),
    ] {
        send(&mut world, 1, tcp((FAR, 40_000), (CLIENT, 5432), request));
        assert!(world.nodes[0].delivered.pop().is_some(), "{request:?}");
        send(&mut world, 0, tcp((CLIENT, 5432), (FAR, 40_000), reply));
        let passed = world.nodes[1].delivered.pop().expect("the appliance gets the reply");
        assert_eq!(ends(&passed), (format!("{CLIENT}:5432"), format!("{FAR}:40000")));
    }
    assert_eq!(world.nodes[0].engine.stats().drops(DropReason::NoBalancingRule), 0);
}

/// R11, L4: replies that pass an appliance stay with it when the pool gets another one, as the packets of the other
/// direction do. When the route is gone, they go their own way.
#[test]
fn r11_l4_replies_stay_with_their_appliance_when_the_pool_grows() {
    let all_ports = |back_ends: &[&str]| BalancingRule {
        protocol: BalancedProtocol::All,
        port: 0,
        back_end_port: 0,
        back_ends: back_ends.iter().map(|a| ip(a)).collect(),
        ..balancing_rule(false)
    };
    let mut world = world(&[all_ports(&BACK[..1])]);
    attach(&mut world, 0, CLIENT, group("web", vec![]));
    let far = |n: u16| format!("10.0.9.{n}");
    let own_route = world.nodes[0].config.subnets[0].routes.clone();
    let configure = |world: &mut World, back_ends: &[&str], is_routed: bool| {
        let now = world.now;
        let mut machine = world.nodes[0].config.clone();
        machine.front_ends[0].rules = vec![all_ports(back_ends)];
        machine.subnets[0].routes.clone_from(&own_route);
        if is_routed {
            let front = NextHop::VirtualAppliance { address: ip(FRONT) };
            machine.subnets[0].routes.push(route("10.0.9.0/24", front));
        }
        for link in &mut machine.links {
            link.sources.extend(nets(&["10.0.9.0/24"]));
            link.sources.sort();
            link.sources.dedup();
        }
        world.nodes[0].install(machine, now);
    };
    configure(&mut world, &BACK[..1], true);
    let mut appliance = world.nodes[1].config.clone();
    if let Role::Vm { nics, .. } = &mut appliance.role {
        nics[0].ip_forwarding = true;
    }
    let now = world.now;
    world.nodes[1].install(appliance, now);
    for n in 1..=20 {
        send(&mut world, 1, tcp((&far(n), 40_000), (CLIENT, 5432), Flags::Syn));
        send(&mut world, 0, tcp((CLIENT, 5432), (&far(n), 40_000), Flags::SynAck));
    }
    let arrived = |world: &mut World, n: u16| {
        NODES.iter().for_each(|node| world.nodes[*node].delivered.clear());
        send(world, 0, tcp((CLIENT, 5432), (&far(n), 40_000), Flags::Ack));
        !world.nodes[1].delivered.is_empty()
    };
    let mut sorted = BACK;
    sorted.sort_unstable();
    configure(&mut world, &sorted, true);
    assert!(
        (1..=20).all(|n| arrived(&mut world, n)),
        "every reply passes the first appliance"
    );
    configure(&mut world, &sorted, false);
    let before = world.nodes[0].engine.stats().drops(DropReason::NoBalancingRule);
    arrived(&mut world, 1);
    let after = world.nodes[0].engine.stats().drops(DropReason::NoBalancingRule);
    assert_eq!(
        after, before,
        "without the route, a reply is no packet for a load balancer"
    );
}

/// L7, L8: established TCP flows go on while their back end is down, and also while all are down. New flows do not.
#[test]
fn l7_l8_established_flows_go_on_while_their_back_end_is_down() {
    let mut world = world(&[probed(5, 1)]);
    let mut back_end_of = BTreeMap::new();
    for port in 40_000..40_020 {
        let (node, _) = delivered(&mut world, port, Flags::Syn).unwrap();
        send(
            &mut world,
            node,
            tcp((BACK[node - 1], 8080), (CLIENT, port), Flags::SynAck),
        );
        assert!(delivered(&mut world, port, Flags::Ack).is_some());
        back_end_of.insert(port, node);
    }
    for (down, new_ports) in [(&BACK[..1], 41_000..41_020), (&BACK[..], 42_000..42_020)] {
        take_down(&mut world, down);
        for (port, node) in &back_end_of {
            let (reached, _) = delivered(&mut world, *port, Flags::Ack).expect("the flow goes on");
            assert_eq!(reached, *node, "port {port}, {down:?} are down");
        }
        for port in new_ports {
            let reached = delivered(&mut world, port, Flags::Syn).map(|(node, _)| node);
            assert_eq!(reached, (down.len() == 1).then_some(2), "{down:?} are down");
        }
    }
}

/// L4, D31: a connection stays with its back end after a minute without packets too, although no group applies to the
/// client's NIC. A connection that was never answered does not.
#[test]
fn l4_an_established_connection_keeps_its_back_end_while_it_is_idle() {
    let mut alone = balancing_rule(false);
    alone.back_ends = vec![ip(BACK[0])];
    let mut world = world(&[alone]);
    for port in 40_000..40_020 {
        let (node, _) = delivered(&mut world, port, Flags::Syn).unwrap();
        send(&mut world, node, tcp((BACK[0], 8080), (CLIENT, port), Flags::SynAck));
        delivered(&mut world, port, Flags::Ack).unwrap();
        delivered(&mut world, port + 1000, Flags::Syn).unwrap();
    }
    world.pass(Duration::from_secs(61));
    set_rule(&mut world, &balancing_rule(false));
    let moved = |world: &mut World, first: u16| {
        let mut ports = first..first + 20;
        ports.any(|port| delivered(world, port, Flags::Ack).unwrap().0 != 1)
    };
    assert!(!moved(&mut world, 40_000), "an established connection has moved");
    assert!(
        moved(&mut world, 41_000),
        "a connection without an answer is remembered"
    );
}

/// L8: with all back ends down, new flows get no back end. Established connections go on with the SKU Standard, and end
/// with Basic.
#[test]
fn l8_established_connections_go_on_with_standard_only() {
    for ends_flows in [false, true] {
        let mut world = world(&[BalancingRule {
            ends_flows,
            ..probed(5, 1)
        }]);
        let mut chosen = Vec::new();
        for port in 40_000..40_010 {
            let (node, _) = delivered(&mut world, port, Flags::Syn).unwrap();
            send(
                &mut world,
                node,
                tcp((BACK[node - 1], 8080), (CLIENT, port), Flags::SynAck),
            );
            chosen.push((port, node));
        }
        take_down(&mut world, &BACK);
        for (port, node) in chosen {
            let got = delivered(&mut world, port, Flags::Ack).map(|(node, _)| node);
            assert_eq!(got, (!ends_flows).then_some(node), "port {port}");
        }
        assert_eq!(delivered(&mut world, 41_000, Flags::Syn), None);
    }
}

/// R11, L9: the replies of a host with a security group go to an appliance that a load balancer has chosen for them.
/// They are no replies of a back end.
#[test]
fn r11_replies_pass_an_appliance_behind_ha_ports() {
    let mut all = balancing_rule(false);
    all.protocol = BalancedProtocol::All;
    (all.port, all.back_end_port, all.back_ends) = (0, 0, vec![ip(BACK[1])]);
    let mut world = world(&[all]);
    attach(&mut world, 0, CLIENT, group("empty", vec![]));
    let mut config = world.nodes[0].config.clone();
    let mut route = config.subnets[0].routes[0].clone();
    route.prefix = format!("{}/32", BACK[0]).parse().unwrap();
    route.next_hop = NextHop::VirtualAppliance { address: ip(FRONT) };
    config.subnets[0].routes.push(route);
    let now = world.now;
    world.nodes[0].install(config, now);
    send(&mut world, 1, tcp((BACK[0], 40_000), (CLIENT, 22), Flags::Syn));
    assert!(world.nodes[0].delivered.pop().is_some());
    for (number, flags) in [Flags::SynAck, Flags::SynAck, Flags::Ack].into_iter().enumerate() {
        send(&mut world, 0, tcp((CLIENT, 22), (BACK[0], 40_000), flags));
        // The appliance is no appliance here, and so drops them.
        let arrived = world.nodes[2].engine.stats().drops(DropReason::NotForwarding);
        assert_eq!(arrived, number as u64 + 1);
    }
}
