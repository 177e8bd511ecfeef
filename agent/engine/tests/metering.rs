//! Tests of the counters of links, from which charges are computed (Meter-6).
#![cfg(feature = "links")]

mod common;

use common::{Node, World, agent, udp};
use std::time::Duration;
use tombolo_proto::config::Transport;
use tombolo_proto::status::{LinkStatus, Volume};

fn pair(transport: Transport) -> World {
    let a = Node::new("a", "192.0.2.1:1000", 1).with_quic();
    let b = Node::new("b", "192.0.2.2:1000", 2).with_quic();
    let mut world = World::new(vec![a, b]);
    world.join(0, 1, |link| link.transport = transport);
    world
}

fn shown(world: &World, node: usize) -> Volume {
    let peer = if node == 0 { "b" } else { "a" };
    let link = world.nodes[node].link(peer, world.now);
    link.map_or_else(Volume::default, |link: LinkStatus| Volume {
        rx_bytes: link.rx_bytes,
        tx_bytes: link.tx_bytes,
        rx_packets: link.rx_packets,
        tx_packets: link.tx_packets,
    })
}

/// What node `a` has to report about `b`.
fn take(world: &mut World) -> Volume {
    let all = world.nodes[0].engine.links_mut().take_traffic();
    all.get(&agent("b")).copied().unwrap_or_default()
}

const fn sent(packets: u64, bytes: u64) -> Volume {
    Volume {
        rx_bytes: 0,
        tx_bytes: bytes,
        rx_packets: 0,
        tx_packets: packets,
    }
}

/// Meter-6: the packets of the machines count, by their own length and once, over either transport. Messages between agents
/// do not count, and a packet that is sent in fragments counts as one.
#[test]
fn meter_6_both_transports_count_the_packets_of_the_machines_alone() {
    for transport in [Transport::WireGuard, Transport::Quic] {
        let mut world = pair(transport);
        world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 972));
        world.settle();
        // Meanwhile the ends exchange echoes, and over WireGuard probes of the path MTU.
        let before = world.seen.len();
        world.pass(Duration::from_secs(5));
        assert!(world.seen.len() > before + 2, "{transport:?}");
        // Too long for QUIC without fragments.
        world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 1472));
        world.settle();
        assert_eq!(world.nodes[1].delivered.len(), 2, "{transport:?}");
        let expected = sent(2, 1000 + 1500);
        assert_eq!(shown(&world, 0), expected, "{transport:?}");
        let arrived = shown(&world, 1);
        assert_eq!((arrived.rx_packets, arrived.rx_bytes), (2, 2500), "{transport:?}");
        assert_eq!((arrived.tx_packets, arrived.tx_bytes), (0, 0), "{transport:?}");
        assert_eq!(take(&mut world), expected, "{transport:?}");
        assert_eq!(take(&mut world), Volume::default(), "{transport:?}: once");
    }
}

/// Meter-6: a packet over a path that is narrower than the device counts once at both ends, also over WireGuard.
#[test]
fn meter_6_a_packet_in_fragments_counts_once() {
    let mut world = pair(Transport::WireGuard);
    world.longest = 1200;
    for _ in 0..100 {
        world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 172));
        world.pass(Duration::from_millis(100));
    }
    let (before, arrived) = (shown(&world, 0), shown(&world, 1));
    let delivered = world.nodes[1].delivered.len();
    // D20: IPv6 packets of this length are sent in fragments.
    world.send(0, udp("fd00::1", "fd00::2", 64, 1232));
    world.settle();
    assert_eq!(world.nodes[1].delivered.len(), delivered + 1, "in fragments");
    assert_eq!(shown(&world, 0).beyond(before), sent(1, 1280));
    let more = shown(&world, 1).beyond(arrived);
    assert_eq!((more.rx_packets, more.rx_bytes), (1, 1280));
}

/// Meter-6: the counters of a link go on if its transport or the peer's keys change, and nothing counts twice.
#[test]
fn meter_6_counters_go_on_after_another_transport_and_other_keys() {
    let mut world = pair(Transport::WireGuard);
    let datagram = udp("10.0.0.1", "10.0.0.2", 64, 972);
    world.send(0, datagram.clone());
    world.settle();
    assert_eq!(take(&mut world), sent(1, 1000));
    world.join(0, 1, |link| link.transport = Transport::Quic);
    assert_eq!(take(&mut world), Volume::default());
    world.send(0, datagram.clone());
    world.settle();
    assert_eq!((shown(&world, 0), take(&mut world)), (sent(2, 2000), sent(1, 1000)));
    world.nodes[1] = Node::new("b", "192.0.2.2:1000", 3).with_quic();
    world.join(0, 1, |link| link.transport = Transport::WireGuard);
    assert_eq!(take(&mut world), Volume::default());
    world.send(0, datagram);
    world.settle();
    assert_eq!((shown(&world, 0), take(&mut world)), (sent(3, 3000), sent(1, 1000)));
}

/// Meter-6: what has passed a link that is removed, or removed and made again, counts once.
#[test]
fn meter_6_what_has_passed_a_removed_link_is_not_lost() {
    let mut world = pair(Transport::WireGuard);
    let datagram = udp("10.0.0.1", "10.0.0.2", 64, 972);
    let joined = world.nodes[0].config.clone();
    for round in 0..3 {
        world.send(0, datagram.clone());
        world.settle();
        let alone = tombolo_proto::config::AgentConfig {
            links: Vec::new(),
            ..joined.clone()
        };
        let now = world.now;
        world.nodes[0].install(alone, now);
        if round == 1 {
            assert_eq!(take(&mut world), sent(2, 2000));
        }
        world.nodes[0].install(joined.clone(), now);
    }
    assert_eq!(take(&mut world), sent(1, 1000));
    assert_eq!(take(&mut world), Volume::default());
}
