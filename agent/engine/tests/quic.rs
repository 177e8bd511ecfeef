//! Tests of links over QUIC, and of the choice between QUIC and WireGuard.

mod common;

use common::{Node, World, udp};
use std::time::Duration;
use tombolo_engine::link::Event;
use tombolo_engine::verdict::DropReason;
use tombolo_proto::config::Transport;
use tombolo_proto::id::KeyPin;
use tombolo_proto::status::{Carrier, LinkState};

const TIME_STEP: Duration = Duration::from_millis(100);

fn pair(transport: Transport) -> World {
    let a = Node::new("a", "192.0.2.1:1000", 1).with_quic();
    let b = Node::new("b", "192.0.2.2:1000", 2).with_quic();
    let mut world = World::new(vec![a, b]);
    world.join(0, 1, |link| link.transport = transport);
    world
}

/// Sends a packet in each direction, one after the other. Returns how many of the two arrive.
fn both_ways(world: &mut World) -> usize {
    let before: usize = world.nodes.iter().map(|n| n.delivered.len()).sum();
    world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 1000));
    world.settle();
    world.send(1, udp("10.0.0.2", "10.0.0.1", 64, 1000));
    world.settle();
    world.nodes.iter().map(|n| n.delivered.len()).sum::<usize>() - before
}

fn carrier(world: &World, node: usize) -> Carrier {
    let peer = if node == 0 { "b" } else { "a" };
    world.nodes[node]
        .link(peer, world.now)
        .map_or(Carrier::WireGuard, |l| l.transport)
}

fn switches(world: &World, node: usize) -> Vec<Carrier> {
    let to = |e: &Event| match e {
        Event::Switched(_, to, _) => Some(*to),
        Event::Up(_)
        | Event::Down(_)
        | Event::EndpointChanged(..)
        | Event::RoutesReceived(..)
        | Event::HealthReceived(..) => None,
    };
    world.nodes[node].events.iter().filter_map(to).collect()
}

#[test]
fn the_first_packet_brings_a_connection_up_and_arrives() {
    let mut world = pair(Transport::Quic);
    assert_eq!(both_ways(&mut world), 2);
    for (node, peer) in [(0, "b"), (1, "a")] {
        let link = world.nodes[node].link(peer, world.now).unwrap();
        assert_eq!((link.state, link.transport), (LinkState::Up, Carrier::Quic));
        assert_eq!((link.rx_packets, link.tx_packets), (1, 1));
        assert!(world.nodes[node].events.iter().any(|e| matches!(e, Event::Up(_))));
    }
    assert!(
        world.seen.iter().all(|(_, _, bytes)| bytes[0] >= 0x40),
        "no datagram is WireGuard's"
    );
    // Packets of any length up to the device's MTU arrive.
    for len in [0, 1, 700, 1391, 1392] {
        world.send(0, udp("10.0.0.1", "10.0.0.2", 64, len));
    }
    world.settle();
    assert_eq!(world.nodes[1].delivered.len(), 6);
    // If a packet is too long for the path and has no don't-fragment flag, it is sent in fragments.
    world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 1500));
    world.settle();
    assert_eq!(world.nodes[1].delivered.len(), 7);
    assert_eq!(world.nodes[1].delivered[6].len(), 1528);
}

#[test]
fn another_key_does_not_get_in() {
    let mut world = pair(Transport::Quic);
    world.join(0, 1, |link| {
        link.transport = Transport::Quic;
        link.quic = Some(KeyPin([9; 32]));
    });
    assert_eq!(both_ways(&mut world), 0);
    world.pass(Duration::from_secs(5));
    assert_eq!(world.state(0, "b"), LinkState::Idle);
    assert!(
        world
            .nodes
            .iter()
            .all(|n| n.engine.stats().drops(DropReason::LinkDown) > 0)
    );
    world.check();
}

#[test]
fn both_ends_may_begin_at_once() {
    let mut world = pair(Transport::Quic);
    world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 100));
    world.send(1, udp("10.0.0.2", "10.0.0.1", 64, 100));
    world.settle();
    assert_eq!([world.nodes[0].delivered.len(), world.nodes[1].delivered.len()], [1, 1]);
    for _ in 0..30 {
        world.pass(TIME_STEP);
        assert_eq!(both_ways(&mut world), 2);
    }
}

#[test]
fn an_end_that_restarts_is_taken_up_again() {
    let mut world = pair(Transport::Quic);
    assert_eq!(both_ways(&mut world), 2);
    world.pass(Duration::from_secs(1));
    let now = world.now;
    world.nodes[1].restart(now);
    // The restarted end answers the first packet by a stateless reset, because it does not know the connection. The
    // next packet opens another connection.
    world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 100));
    world.settle();
    world.pass(TIME_STEP);
    assert_eq!(both_ways(&mut world), 2);
}

#[test]
fn an_address_may_change() {
    let mut world = pair(Transport::Quic);
    assert_eq!(both_ways(&mut world), 2);
    world.nodes[0].at = "198.51.100.7:4000".parse().unwrap();
    let arrived: usize = (0..20)
        .map(|_| {
            world.pass(TIME_STEP);
            both_ways(&mut world)
        })
        .sum();
    assert!(arrived >= 36, "{arrived}");
    assert!(
        world.nodes[1]
            .events
            .iter()
            .any(|e| matches!(e, Event::EndpointChanged(_, to) if to.port() == 4000))
    );
}

#[test]
fn links_that_leave_the_configuration_are_closed() {
    let mut world = pair(Transport::Quic);
    assert_eq!(both_ways(&mut world), 2);
    let now = world.now;
    let mut config = world.nodes[1].config.clone();
    config.links.clear();
    world.nodes[1].install(config, now);
    world.pass(TIME_STEP);
    assert_eq!(both_ways(&mut world), 0);
}

/// If the configuration changes before the owner has read the events of a connection, these events are dropped. They
/// are not attributed to the link that now has the same index, and do no harm if no link has it.
#[test]
fn pending_news_of_a_link_that_leaves_the_configuration_is_dropped() {
    for (was_up, goes_down) in [(false, false), (true, true)] {
        for replaced in [false, true] {
            let mut world = pair(Transport::Quic);
            if was_up {
                assert_eq!(both_ways(&mut world), 2);
                world.nodes[1].events.clear();
            }
            world.unasked = true;
            if goes_down {
                // The peer closes its connection.
                let (now, mut config) = (world.now, world.nodes[0].config.clone());
                config.links.clear();
                world.nodes[0].install(config, now);
                world.pass(TIME_STEP);
            } else {
                assert_eq!(both_ways(&mut world), 2);
            }
            let (now, mut config) = (world.now, world.nodes[1].config.clone());
            let mut other = Node::new("c", "192.0.2.3:1000", 3).with_quic().as_link(&[]);
            other.transport = Transport::Quic;
            config.links = if replaced { vec![other] } else { Vec::new() };
            world.nodes[1].install(config, now);
            world.unasked = false;
            world.pass(TIME_STEP);
            assert_eq!(world.nodes[1].events, [], "replaced: {replaced}, down: {goes_down}");
        }
    }
}

/// A peer with the same name and other keys is another peer, so the unread events of the earlier peer are dropped.
#[test]
fn pending_news_of_a_peer_that_has_another_key_now_is_dropped() {
    let mut world = pair(Transport::Quic);
    world.unasked = true;
    assert_eq!(both_ways(&mut world), 2);
    let (now, mut config) = (world.now, world.nodes[1].config.clone());
    let other = Node::new("a", "192.0.2.1:1000", 7).with_quic().as_link(&[]);
    (config.links[0].public_key, config.links[0].quic) = (other.public_key, other.quic);
    world.nodes[1].install(config, now);
    world.unasked = false;
    world.pass(TIME_STEP);
    assert_eq!(world.nodes[1].events, []);
}

#[test]
fn blocked_wireguard_gives_way_to_quic_and_comes_back() {
    let mut world = pair(Transport::Automatic);
    for _ in 0..20 {
        assert_eq!(both_ways(&mut world), 2);
        world.pass(TIME_STEP);
    }
    assert_eq!(carrier(&world, 0), Carrier::WireGuard);
    let link = world.nodes[0].link("b", world.now).unwrap();
    assert!(link.rtt_ms.is_some() && link.loss == Some(0.0), "{link:?}");

    world.no_wireguard = true;
    let mut away = 0;
    while both_ways(&mut world) < 2 {
        world.pass(TIME_STEP);
        away += 1;
        assert!(away < 15, "back within a second and a half");
    }
    for _ in 0..50 {
        world.pass(TIME_STEP);
        assert_eq!(both_ways(&mut world), 2);
    }
    assert_eq!([carrier(&world, 0), carrier(&world, 1)], [Carrier::Quic; 2]);
    assert_eq!(
        [switches(&world, 0), switches(&world, 1)],
        [[Carrier::Quic], [Carrier::Quic]]
    );

    world.no_wireguard = false;
    for _ in 0..60 {
        world.pass(TIME_STEP);
        assert_eq!(both_ways(&mut world), 2, "the return loses nothing");
    }
    assert_eq!([carrier(&world, 0), carrier(&world, 1)], [Carrier::WireGuard; 2]);
    assert_eq!(switches(&world, 0), [Carrier::Quic, Carrier::WireGuard]);
}

/// A QUIC connection that is not needed any more is closed, and another one is opened when it is needed again.
#[test]
fn a_spare_connection_is_closed_and_the_next_trouble_finds_another() {
    let mut world = pair(Transport::Automatic);
    for _ in 0..20 {
        both_ways(&mut world);
        world.pass(TIME_STEP);
    }
    for round in 0..3 {
        world.no_wireguard = true;
        let mut away = 0;
        while both_ways(&mut world) < 2 {
            world.pass(TIME_STEP);
            away += 1;
            assert!(away < 15, "round {round}");
        }
        // Each round blocks WireGuard for a different time.
        for _ in 0..round * 200 {
            world.pass(TIME_STEP);
            both_ways(&mut world);
        }
        world.no_wireguard = false;
        // The link returns to WireGuard after three seconds, and closes the QUIC connection 20 s later.
        for _ in 0..260 {
            world.pass(TIME_STEP);
            assert_eq!(both_ways(&mut world), 2, "round {round}");
        }
        assert_eq!([carrier(&world, 0), carrier(&world, 1)], [Carrier::WireGuard; 2]);
    }
}

/// D19: if the whole path is cut, the report that the link is down comes as early with a standby QUIC connection as
/// without one.
#[test]
fn a_spare_connection_does_not_delay_the_news_of_a_cut_path() {
    let mut world = pair(Transport::Automatic);
    world.join(0, 1, |link| {
        link.transport = Transport::Automatic;
        link.monitored = true;
    });
    let busy = |world: &mut World, steps| {
        for _ in 0..steps {
            world.pass(TIME_STEP / 2);
            both_ways(world);
        }
    };
    let downs = |world: &World| {
        let events = world.nodes[0].events.iter();
        events.filter(|e| matches!(e, Event::Down(_))).count()
    };
    busy(&mut world, 40);
    // A short outage of WireGuard makes the link open a QUIC connection, which stays up for a while.
    world.no_wireguard = true;
    busy(&mut world, 60);
    world.no_wireguard = false;
    for phase in 0..6u64 {
        busy(&mut world, 100);
        world.pass(Duration::from_millis(7 * phase));
        assert_eq!(carrier(&world, 0), Carrier::WireGuard);
        let before = downs(&world);
        let b = world.nodes[1].at;
        world.cut.push(b);
        busy(&mut world, 11);
        assert_eq!(downs(&world), before + 1, "phase {phase}: not within 550 ms");
        assert_eq!(carrier(&world, 0), Carrier::WireGuard, "phase {phase}");
        busy(&mut world, 20);
        world.cut.clear();
    }
}

#[test]
fn quic_is_found_where_wireguard_never_worked() {
    let mut world = pair(Transport::Automatic);
    world.no_wireguard = true;
    let mut tries = 0;
    while both_ways(&mut world) < 2 {
        world.pass(TIME_STEP);
        tries += 1;
        assert!(tries < 30, "within three seconds");
    }
    assert!(world.nodes[0].events.iter().any(|e| matches!(e, Event::Up(_))));
}

#[test]
fn shaped_wireguard_gives_way_to_quic() {
    let mut world = pair(Transport::Automatic);
    world.shaped = Some(0.3);
    let mut steps = 0;
    while [carrier(&world, 0), carrier(&world, 1)] != [Carrier::Quic; 2] {
        both_ways(&mut world);
        world.pass(TIME_STEP);
        steps += 1;
        assert!(steps < 100, "both ends notice within ten seconds");
    }
    for _ in 0..40 {
        assert_eq!(both_ways(&mut world), 2);
        world.pass(TIME_STEP);
    }
}

#[test]
fn a_link_out_of_use_is_quiet() {
    let mut world = pair(Transport::Automatic);
    assert_eq!(both_ways(&mut world), 2);
    world.pass(Duration::from_secs(8));
    let sent = world.seen.len();
    world.pass(Duration::from_secs(5));
    assert!(world.seen.len() <= sent + 2, "no echoes without traffic");
}

#[test]
fn noise_of_quics_shape_is_counted() {
    let mut world = pair(Transport::Automatic);
    for (number, len) in [(0x40, 20), (0xc0, 1200), (0xff, 40), (0x7f, 1)] {
        let from = "203.0.113.9:9".parse().unwrap();
        let mut noise = vec![number as u8; len];
        noise[0] = number as u8;
        world.receive(0, from, &noise);
        world.settle();
    }
    let stats = world.nodes[0].engine.stats();
    assert!(stats.datagrams == 4 && stats.conserved());
}
