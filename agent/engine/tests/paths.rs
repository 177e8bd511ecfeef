//! Tests of the path of datagrams: the address and port from which an agent sends (D6), and the lane that sends (D15).
#![cfg(feature = "links")]
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod common;

use common::{Node, World, udp};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tombolo_engine::buffer::{Collected, Port, RedirectSink};
use tombolo_engine::decide::Ingress;
use tombolo_engine::engine::Engine;
use tombolo_engine::link::Event;
use tombolo_engine::link::secure::SecureLinks;
use tombolo_engine::tables::{NicIndex, RoutingState, Tables};
use tombolo_engine::verdict::DropReason;
use tombolo_proto::config::Transport;
use tombolo_proto::status::Carrier;

const TIME_STEP: Duration = Duration::from_millis(100);

fn pair(transport: Transport, second_ports: [bool; 2]) -> World {
    let mut nodes = vec![
        Node::new("a", "192.0.2.1:1000", 1).with_quic(),
        Node::new("b", "192.0.2.2:1000", 2).with_quic(),
    ];
    for (n, has) in second_ports.into_iter().enumerate() {
        if has {
            let node = nodes.remove(n);
            nodes.insert(n, node.with_second_port(&format!("192.0.2.{}:443", n + 1)));
        }
    }
    let mut world = World::new(nodes);
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

/// The source addresses from which a node has sent since the last call, in order; an address that is used several times
/// in a row is listed once. `None`: the kernel chose the address.
fn sent_from(node: &mut Node) -> Vec<Option<IpAddr>> {
    let mut all: Vec<_> = node.paths.drain(..).map(|path| path.local).collect();
    all.dedup();
    all
}

fn ip(text: &str) -> Option<IpAddr> {
    Some(text.parse().unwrap())
}

#[test]
fn replies_leave_from_where_they_were_asked() {
    for transport in [Transport::WireGuard, Transport::Quic] {
        let mut world = pair(transport, [false; 2]);
        let (one, two) = (ip("192.0.2.2"), ip("198.51.100.2"));
        world.nodes[1].local = two;
        for _ in 0..3 {
            assert_eq!(both_ways(&mut world), 2);
            world.pass(TIME_STEP);
        }
        assert_eq!(
            sent_from(&mut world.nodes[1]),
            [two],
            "{transport:?}: from the first on"
        );
        assert_eq!(
            sent_from(&mut world.nodes[0]),
            [None],
            "{transport:?}: the kernel chooses"
        );

        // From now on datagrams arrive at another address of `b`, and `b` replies from this address.
        world.nodes[1].local = one;
        both_ways(&mut world);
        sent_from(&mut world.nodes[1]);
        assert_eq!(both_ways(&mut world), 2);
        assert_eq!(sent_from(&mut world.nodes[1]), [one], "{transport:?}");

        // Damaged and replayed datagrams of the session arrive at the first address. They are not authentic, so `b`
        // does not change its source address.
        world.nodes[1].local = two;
        let to = world.nodes[1].at;
        let old: Vec<_> = world.seen.iter().filter(|(_, at, _)| *at == to).cloned().collect();
        for (from, _, bytes) in old.iter().rev().take(20) {
            let mut bad = bytes.clone();
            *bad.last_mut().unwrap() ^= 1;
            world.receive(1, *from, &bad);
            world.receive(1, *from, bytes);
        }
        world.settle();
        sent_from(&mut world.nodes[1]);
        world.send(1, udp("10.0.0.2", "10.0.0.1", 64, 1000));
        assert_eq!(sent_from(&mut world.nodes[1]), [one], "{transport:?}: nothing learned");
        world.settle();

        // A source address that the kernel refuses is not used until a datagram arrives at this address again.
        world.nodes[1].local = None;
        world.nodes[1].engine.local_refused(one.unwrap());
        world.nodes[1].engine.local_refused(two.unwrap());
        sent_from(&mut world.nodes[1]);
        world.send(1, udp("10.0.0.2", "10.0.0.1", 64, 1000));
        assert_eq!(sent_from(&mut world.nodes[1]), [None], "{transport:?}");
        world.settle();
        world.nodes[1].local = two;
        both_ways(&mut world);
        both_ways(&mut world);
        assert_eq!(sent_from(&mut world.nodes[1]).last(), Some(&two), "{transport:?}");
        world.check();
    }
}

/// A firewall at one end or at both ends blocks all UDP ports except 443.
#[test]
fn quic_is_found_at_the_second_port() {
    for (second_ports, transport) in [
        ([false, true], Transport::Automatic),
        ([true, true], Transport::Automatic),
        ([false, true], Transport::Quic),
        ([true, true], Transport::Quic),
    ] {
        let what = format!("{second_ports:?} {transport:?}");
        let mut world = pair(transport, second_ports);
        if transport == Transport::Automatic {
            for _ in 0..20 {
                assert_eq!(both_ways(&mut world), 2, "{what}");
                world.pass(TIME_STEP);
            }
        }
        // Datagrams between two lane ports are dropped. Other datagrams pass, because at least one of their two ports
        // is a second port.
        world.lanes_cut = true;
        let mut steps = 0;
        while both_ways(&mut world) < 2 {
            world.pass(TIME_STEP);
            steps += 1;
            assert!(steps < 20, "{what}: within two seconds");
        }
        for _ in 0..50 {
            assert_eq!(both_ways(&mut world), 2, "{what}");
            world.pass(TIME_STEP);
        }
        let link = world.nodes[0].link("b", world.now).unwrap();
        assert_eq!(
            (link.transport, link.endpoint),
            (Carrier::Quic, world.nodes[1].second),
            "{what}"
        );
        assert!(
            !world.nodes[1]
                .events
                .iter()
                .any(|e| matches!(e, Event::EndpointChanged(..))),
            "a second port is not the peer's endpoint"
        );
        if transport == Transport::Automatic {
            world.lanes_cut = false;
            for _ in 0..60 {
                assert_eq!(both_ways(&mut world), 2, "{what}: the way back loses nothing");
                world.pass(TIME_STEP);
            }
            let link = world.nodes[0].link("b", world.now).unwrap();
            assert_eq!(link.transport, Carrier::WireGuard, "{what}");
        }
        world.check();
    }
}

/// If the peer answers at the port of its lane, no datagrams are sent to or from second ports.
#[test]
fn the_second_port_is_tried_second() {
    let mut world = pair(Transport::Quic, [true, true]);
    for _ in 0..20 {
        assert_eq!(both_ways(&mut world), 2);
        world.pass(TIME_STEP);
    }
    let second = |at: &SocketAddr| at.port() == 443;
    assert!(!world.seen.iter().any(|(from, to, _)| second(from) || second(to)));
}

/// A peer whose endpoint is not known can be reached at its second port.
#[test]
fn a_second_port_is_enough() {
    let mut world = pair(Transport::Quic, [false, true]);
    world.join(0, 1, |link| {
        link.transport = Transport::Quic;
        link.endpoint = None;
    });
    assert_eq!(both_ways(&mut world), 2);
}

#[test]
fn the_second_port_takes_quic_alone() {
    let mut world = pair(Transport::Automatic, [true, true]);
    assert_eq!(both_ways(&mut world), 2);
    let before = world.nodes[1].engine.stats().drops(DropReason::BadDatagram);
    let wireguard: Vec<_> = world.seen.iter().filter(|(_, _, b)| b[0] < 0x40).cloned().collect();
    let sent = world.seen.len();
    for (from, _, bytes) in &wireguard {
        world.receive_at(1, *from, Port::Quic, bytes);
    }
    world.receive_at(1, world.nodes[0].at, Port::Quic, &[0; 40]);
    let stats = world.nodes[1].engine.stats();
    assert_eq!(
        stats.drops(DropReason::BadDatagram) - before,
        wireguard.len() as u64 + 1,
        "counted"
    );
    assert_eq!(world.seen.len(), sent, "and not answered");
    world.check();
}

/// A redirect sink that only counts the packets.
#[derive(Default)]
struct Redirected(usize);

impl RedirectSink for Redirected {
    fn redirect_to_lane0(&mut self, _ingress: Ingress, _packet: &[u8]) -> bool {
        self.0 += 1;
        true
    }
}

/// D15: if the peer has fewer lanes, a lane whose number the peer lacks sends no handshakes, and redirects its packets
/// to lane 0 at once.
#[test]
fn a_lane_beyond_the_other_ends_asks_for_nothing() {
    for (lanes, transport, always_on) in [
        (1, Transport::WireGuard, false),
        (1, Transport::WireGuard, true),
        (2, Transport::Automatic, false),
        (2, Transport::Quic, false),
        (3, Transport::WireGuard, false),
        (3, Transport::WireGuard, true),
        (3, Transport::Quic, false),
    ] {
        let what = format!("{lanes} lanes, {transport:?}, {always_on}");
        let mut world = pair(transport, [false, true]);
        world.join(0, 1, |link| {
            (link.transport, link.peer_lanes) = (transport, lanes);
            (link.always_on, link.initiator) = (always_on, true);
        });
        // An engine for lane 2 of the first node.
        let node = &world.nodes[0];
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(node.key.clone().unwrap());
        let links = SecureLinks::new(node.secret);
        let links = links.with_quic(key.into(), node.secret).unwrap().of_lane(2);
        let mut engine = Engine::with_redirect(links, 1, Redirected::default());
        let tables = Tables::build(&node.config, &RoutingState::default()).unwrap();
        let mut now = world.now;
        engine.install(Arc::new(tables), &node.config.links, now);
        let (mut tx, mut rx) = (Collected::default(), Collected::default());
        for _ in 0..100 {
            let mut packet = udp("10.0.0.1", "10.0.0.2", 64, 100);
            engine.handle_tun(NicIndex::FIRST, &mut packet, now, &mut tx, &mut rx);
            engine.flush(now, &mut tx);
            now += TIME_STEP;
            engine.handle_timeout(now, &mut tx);
        }
        assert_eq!(engine.redirect_mut().0, 100, "{what}");
        let to: Vec<_> = tx.datagrams.iter().map(|(to, _)| to.port()).collect();
        if lanes > 2 {
            assert!(!to.is_empty() && to.iter().all(|port| *port == 1002), "{what}: {to:?}");
        } else {
            assert!(to.is_empty(), "{what}: {to:?}");
        }
    }
}
