//! Tests with two engines and a simulated network: handshakes, keys, endpoints, changes of the configuration, and
//! attacks by unknown senders.
#![cfg(feature = "links")]
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "helpers of tests; the clock is the test's"
)]

mod common;

use common::{Node, World, ip, psk, udp};
use std::net::SocketAddr;
use std::time::Duration;
use tombolo_engine::link::Event;
use tombolo_engine::verdict::DropReason;
use tombolo_proto::status::LinkState;

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn the_first_packet_brings_the_link_up_and_arrives() {
    let mut world = World::pair();
    assert_eq!(world.state(0, "b"), LinkState::Idle);
    let sent = udp("10.0.0.1", "10.0.0.2", 64, 100);
    world.send(0, sent.clone());
    assert_eq!(world.state(0, "b"), LinkState::Connecting);
    world.settle();
    assert_eq!(world.nodes[1].delivered, [sent]);
    assert_eq!(
        (world.state(0, "b"), world.state(1, "a")),
        (LinkState::Up, LinkState::Up)
    );
    let answer = udp("10.0.0.2", "10.0.0.1", 64, 1392);
    world.send(1, answer.clone());
    world.settle();
    assert_eq!(world.nodes[0].delivered, [answer]);
    assert_eq!(world.nodes[0].events, [Event::Up(common::agent("b"))]);
}

#[test]
fn ipv6_travels_alike_and_nobody_takes_a_ttl() {
    let mut world = World::pair();
    let sent = udp("fd00::1", "fd00::2", 1, 40);
    world.send(0, sent.clone());
    world.settle();
    assert_eq!(world.nodes[1].delivered, [sent], "T2: delivery inside a VNet is no hop");
}

#[test]
fn packets_wait_for_the_handshake_in_their_order_and_up_to_a_limit() {
    let mut world = World::pair();
    for i in 0..100 {
        world.send(0, udp("10.0.0.1", "10.0.0.2", 64, i));
    }
    assert_eq!(world.wire.len(), 1, "one handshake");
    assert_eq!(world.nodes[0].engine.stats().drops(DropReason::LinkDown), 36);
    world.settle();
    let lengths: Vec<usize> = world.nodes[1].delivered.iter().map(|p| p.len() - 28).collect();
    assert_eq!(lengths, (0..64).collect::<Vec<_>>());
    let sent = world.nodes[0].link("b", world.now).unwrap();
    assert_eq!(sent.tx_packets, 64);
    assert_eq!(world.nodes[1].link("a", world.now).unwrap().rx_packets, 64);
}

#[test]
fn both_ends_may_begin_at_once() {
    let mut world = World::pair();
    world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 1));
    world.send(1, udp("10.0.0.2", "10.0.0.1", 64, 2));
    world.settle();
    for round in 0..5 {
        world.send(0, udp("10.0.0.1", "10.0.0.2", 64, round));
        world.send(1, udp("10.0.0.2", "10.0.0.1", 64, round));
        world.settle();
    }
    assert_eq!((world.nodes[0].delivered.len(), world.nodes[1].delivered.len()), (6, 6));
}

#[test]
fn a_peer_that_learns_of_us_later_is_asked_again_soon() {
    let mut world = World::pair();
    let config = world.nodes[1].config.clone();
    let mut alone = config.clone();
    alone.links.clear();
    let now = world.now;
    world.nodes[1].install(alone, now);
    world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 1));
    world.settle();
    assert_eq!(world.nodes[1].engine.stats().drops(DropReason::BadDatagram), 1);
    world.pass(Duration::from_millis(200));
    let now = world.now;
    world.nodes[1].install(config, now);
    world.pass(Duration::from_millis(500));
    assert_eq!(world.nodes[1].delivered.len(), 1, "the packet that waited");
    assert_eq!(world.state(0, "b"), LinkState::Up);
}

#[test]
fn a_silent_peer_is_unreachable_and_what_waited_is_counted() {
    let mut world = World::pair();
    world.cut.push(world.nodes[1].at);
    world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 1));
    world.pass(Duration::from_secs(9));
    assert_eq!(world.state(0, "b"), LinkState::Connecting);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.state(0, "b"), LinkState::Unreachable);
    assert!(world.nodes[0].link("b", world.now).unwrap().reason.is_some());
    assert_eq!(world.nodes[0].events, [Event::Down(common::agent("b"))]);
    // When the network works again, a packet from either end brings the link up; the operator need not intervene.
    world.cut.clear();
    world.send(1, udp("10.0.0.2", "10.0.0.1", 64, 1));
    world.settle();
    assert_eq!(world.state(0, "b"), LinkState::Up);
    assert_eq!(world.nodes[0].events.last(), Some(&Event::Up(common::agent("b"))));
    // If a link is removed while packets wait for its handshake, these packets are counted as dropped.
    let mut world = World::pair();
    world.cut.push(world.nodes[1].at);
    world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 1));
    let (mut config, now) = (world.nodes[0].config.clone(), world.now);
    config.links.clear();
    world.nodes[0].install(config, now);
    assert_eq!(world.nodes[0].engine.stats().drops(DropReason::LinkDown), 1);
    world.check();
}

#[test]
fn different_shared_keys_are_an_authentication_failure_at_the_end_that_asks_until_mended() {
    // D14, G11, M8: if the two ends have different preshared keys, both report that authentication failed.
    let mut world = World::pair();
    world.join(0, 1, |l| {
        (l.always_on, l.initiator) = (true, l.peer.as_str() == "b");
        l.preshared_key = psk(if l.peer.as_str() == "b" { 1 } else { 2 });
    });
    world.pass(Duration::from_millis(200));
    assert_eq!(world.state(0, "b"), LinkState::AuthenticationFailed);
    assert_ne!(
        world.state(1, "a"),
        LinkState::Up,
        "a session that nobody has proven does not count"
    );
    world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 1));
    world.send(1, udp("10.0.0.2", "10.0.0.1", 64, 1));
    world.pass(Duration::from_secs(3));
    assert!(world.nodes[0].delivered.is_empty() && world.nodes[1].delivered.is_empty());
    assert_eq!(
        world.state(0, "b"),
        LinkState::AuthenticationFailed,
        "until a handshake succeeds"
    );
    assert_eq!(
        world.state(1, "a"),
        LinkState::AuthenticationFailed,
        "the other end initiated as well"
    );
    // When the preshared key is corrected at one end, this end initiates a handshake at once.
    let (mut config, now) = (world.nodes[1].config.clone(), world.now);
    config.links[0].preshared_key = psk(1);
    world.nodes[1].install(config, now);
    world.pass(Duration::from_millis(200));
    assert_eq!(
        (world.state(0, "b"), world.state(1, "a")),
        (LinkState::Up, LinkState::Up)
    );
    world.send(1, udp("10.0.0.2", "10.0.0.1", 64, 1));
    world.settle();
    assert!(!world.nodes[0].delivered.is_empty());
}

#[test]
fn a_key_changed_at_the_far_end_alone_is_noticed_at_both() {
    for changed in [0, 1] {
        let mut world = World::pair();
        world.join(0, 1, |l| {
            (l.always_on, l.initiator) = (true, l.peer.as_str() == "b");
            l.preshared_key = psk(1);
        });
        world.pass(Duration::from_millis(200));
        assert_eq!(
            (world.state(0, "b"), world.state(1, "a")),
            (LinkState::Up, LinkState::Up)
        );
        let (mut config, now) = (world.nodes[changed].config.clone(), world.now);
        config.links[0].preshared_key = psk(2);
        world.nodes[changed].install(config, now);
        world.pass(Duration::from_secs(4));
        let both = (world.state(0, "b"), world.state(1, "a"));
        assert_eq!(
            both,
            (LinkState::AuthenticationFailed, LinkState::AuthenticationFailed),
            "{changed}"
        );
    }
}

#[test]
fn links_that_are_always_on_need_no_packet_and_notice_silence() {
    let mut world = World::pair();
    world.join(0, 1, |l| (l.always_on, l.initiator) = (true, l.peer.as_str() == "b"));
    world.pass(Duration::from_millis(200));
    assert_eq!(
        (world.state(0, "b"), world.state(1, "a")),
        (LinkState::Up, LinkState::Up)
    );
    world.pass(Duration::from_secs(30));
    assert_eq!(
        (world.state(0, "b"), world.state(1, "a")),
        (LinkState::Up, LinkState::Up)
    );
    world.cut.push(world.nodes[1].at);
    world.pass(Duration::from_secs(30));
    assert_eq!(
        (world.state(0, "b"), world.state(1, "a")),
        (LinkState::Unreachable, LinkState::Unreachable)
    );
}

#[test]
fn a_place_is_learned_from_data_and_from_nothing_less() {
    // D18: when data comes from another address of the peer, this address becomes the peer's endpoint.
    let mut world = World::pair();
    world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 1));
    world.settle();
    world.nodes[0].at = at("198.51.100.9:4500");
    world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 1));
    world.settle();
    let moved = Event::EndpointChanged(common::agent("a"), at("198.51.100.9:4500"));
    assert!(world.nodes[1].events.contains(&moved), "{:?}", world.nodes[1].events);
    world.send(1, udp("10.0.0.2", "10.0.0.1", 64, 1));
    world.settle();
    assert_eq!(world.nodes[0].delivered.len(), 1);
    // After a restart an engine cannot detect that an old initiation is replayed to it. The replay from another address
    // does not change the peer's endpoint.
    let recorded = world.seen[0].2.clone();
    assert_eq!(recorded[0], 1);
    let now = world.now;
    world.nodes[1].restart(now);
    world.nodes[1].events.clear();
    world.receive(1, at("203.0.113.66:6666"), &recorded);
    assert!(
        world
            .wire
            .iter()
            .any(|(_, to, b)| *to == at("203.0.113.66:6666") && b[0] == 2),
        "answered"
    );
    assert_eq!(
        world.nodes[1].link("a", now).unwrap().endpoint,
        Some(at("192.0.2.1:1000")),
        "as configured"
    );
    assert_eq!(world.nodes[1].events, []);
    assert_eq!(world.state(1, "a"), LinkState::Connecting);
}

#[test]
fn a_link_without_a_place_waits_for_the_other_end() {
    let mut world = World::strangers();
    world.join(0, 1, |l| {
        if l.peer.as_str() == "b" {
            l.endpoint = None;
        }
    });
    world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 1));
    assert_eq!(world.nodes[0].engine.stats().drops(DropReason::LinkDown), 1);
    assert_eq!(world.state(0, "b"), LinkState::NoEndpoint);
    world.send(1, udp("10.0.0.2", "10.0.0.1", 64, 1));
    world.settle();
    world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 1));
    world.settle();
    assert_eq!((world.nodes[0].delivered.len(), world.nodes[1].delivered.len()), (1, 1));
    assert_eq!(world.state(0, "b"), LinkState::Up);
}

#[test]
fn a_configured_place_that_changes_is_used_unless_the_peer_was_just_heard() {
    let mut world = World::pair();
    world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 1));
    world.settle();
    world.send(1, udp("10.0.0.2", "10.0.0.1", 64, 1));
    world.settle();
    let mut config = world.nodes[0].config.clone();
    config.links[0].endpoint = Some(at("203.0.113.1:1"));
    let now = world.now;
    world.nodes[0].install(config.clone(), now);
    assert_eq!(
        world.nodes[0].link("b", now).unwrap().endpoint,
        Some(at("192.0.2.2:1000")),
        "just heard there"
    );
    config.links[0].endpoint = Some(at("203.0.113.2:2"));
    let later = now + Duration::from_secs(60);
    world.nodes[0].install(config, later);
    assert_eq!(
        world.nodes[0].link("b", later).unwrap().endpoint,
        Some(at("203.0.113.2:2"))
    );
}

#[test]
fn a_wrong_configured_place_gives_way_to_where_the_peer_was_heard() {
    let mut world = World::pair();
    world.join(0, 1, |l| {
        if l.peer.as_str() == "b" {
            l.endpoint = Some(at("203.0.113.1:1"));
        }
    });
    let known = [(common::agent("b"), at("192.0.2.2:1000"))].into();
    let (config, now) = (world.nodes[0].config.clone(), world.now);
    let mut fresh = Node::new("a", "192.0.2.1:1000", 1);
    fresh.engine.links_mut().remember_endpoints(&known);
    fresh.install(config, now);
    world.nodes[0] = fresh;
    world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 1));
    world.settle();
    assert_eq!(world.state(0, "b"), LinkState::Up);
    let kept = world.nodes[0].engine.links().endpoints();
    assert_eq!(kept, known);
}

#[test]
fn installing_spares_sessions_and_loses_nothing() {
    let mut world = World::pair();
    world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 1));
    world.settle();
    let handshakes = |w: &World| w.seen.iter().filter(|(_, _, b)| b[0] == 1).count();
    for round in 0u8..20 {
        // Links are added and removed whose peers come before or after `b` in the order of names, so that the index of
        // the link with `b` changes.
        let mut config = world.nodes[0].config.clone();
        config.links.retain(|l| l.peer.as_str() == "b");
        for name in ["aa", "c", "d"].into_iter().take(usize::from(round % 4)) {
            let mut other = Node::new("x", "192.0.2.3:1", 100 + round).as_link(&["10.0.9.0/24"]);
            other.peer = common::agent(name);
            config.links.push(other);
        }
        config.links.sort_by(|x, y| x.peer.cmp(&y.peer));
        let now = world.now;
        world.nodes[0].install(config, now);
        world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 1));
        world.send(1, udp("10.0.0.2", "10.0.0.1", 64, 1));
        world.settle();
    }
    assert_eq!(
        (world.nodes[0].delivered.len(), world.nodes[1].delivered.len()),
        (20, 21)
    );
    assert_eq!(handshakes(&world), 1);
}

#[test]
fn a_restarted_end_is_noticed_by_the_other() {
    let mut world = World::pair();
    world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 1));
    world.settle();
    let now = world.now;
    world.nodes[1].restart(now);
    world.nodes[1].delivered.clear();
    // The first datagram belongs to a session that the restarted end does not have any more. This makes the restarted
    // end initiate a handshake.
    world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 1));
    world.settle();
    world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 1));
    world.settle();
    assert_eq!(world.nodes[1].delivered.len(), 1);
    assert_eq!(world.state(1, "a"), LinkState::Up);
}

#[test]
fn what_was_taken_once_is_not_taken_again() {
    let mut world = World::pair();
    world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 1));
    world.settle();
    let all = world.seen.clone();
    let delivered = world.nodes[1].delivered.len();
    for (from, to, bytes) in &all {
        let node = world.nodes.iter().position(|n| n.at == *to).unwrap();
        world.receive(node, *from, bytes);
    }
    world.wire.clear();
    world.check();
    assert_eq!(world.nodes[1].delivered.len(), delivered);
    assert!(
        world.nodes[1].engine.stats().drops(DropReason::Replayed) >= 2,
        "handshake and data"
    );
    world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 1));
    world.settle();
    assert_eq!(
        world.nodes[1].delivered.len(),
        delivered + 1,
        "the session is not harmed"
    );
}

#[test]
fn strangers_and_damage_are_dropped_and_counted() {
    let mut world = World::pair();
    // D14: a sender whose key is not pinned gets no session.
    let mut stranger = Node::new("a", "192.0.2.66:1", 66);
    let mut config = world.nodes[0].config.clone();
    config.links[0].endpoint = Some(world.nodes[1].at);
    stranger.install(config, world.now);
    world.nodes.push(stranger);
    world.send(2, udp("10.0.0.1", "10.0.0.2", 64, 1));
    world.settle();
    assert_eq!(world.nodes[1].delivered.len(), 0);
    assert_eq!(world.nodes[1].engine.stats().drops(DropReason::BadDatagram), 1);
    // Damaged messages of each kind are dropped.
    world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 1));
    world.settle();
    let before = world.nodes[1].delivered.len();
    for (_, to, bytes) in world.seen.clone() {
        let Some(node) = world.nodes.iter().position(|n| n.at == to) else {
            continue;
        };
        for place in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[place] ^= 0x40;
            world.receive(node, at("192.0.2.1:1000"), &damaged);
            world.receive(node, at("192.0.2.1:1000"), &bytes[..place]);
        }
    }
    world.wire.clear();
    world.check();
    assert_eq!(world.nodes[1].delivered.len(), before);
    world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 1));
    world.settle();
    assert_eq!(world.nodes[1].delivered.len(), before + 1);
}

/// Anybody who knows the public keys of two agents can forge an initiation from one to the other. A forged initiation
/// leaves no session state behind.
#[test]
fn a_handshake_that_proves_nothing_leaves_nothing() {
    let mut world = World::pair();
    world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 1));
    let (from, _, genuine) = world.wire.pop_front().unwrap();
    let mut forged = genuine.clone();
    // A forger cannot encrypt the timestamp correctly, because that needs the initiator's private key. So the test
    // damages the encrypted timestamp of a genuine initiation.
    forged[90] ^= 1;
    let sum = mac1(&world.nodes[1].public().0, &forged[..116]);
    forged[116..132].copy_from_slice(&sum);
    world.receive(1, from, &forged);
    assert_eq!(world.nodes[1].engine.stats().drops(DropReason::BadDatagram), 1);
    assert_eq!(world.nodes[1].link("a", world.now), None);
    world.receive(1, from, &genuine);
    world.settle();
    assert_eq!(world.state(1, "a"), LinkState::Up);
    // The forged initiation does not harm an existing session.
    world.receive(1, from, &forged);
    assert_eq!(world.state(1, "a"), LinkState::Up);
}

/// A sender that starts many handshakes from one address cannot keep an agent busy: the agent still handles handshakes
/// from other addresses.
#[test]
fn an_address_begins_a_limited_number_of_handshakes() {
    let mut world = World::pair();
    world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 1));
    let (from, _, init) = world.wire.pop_front().unwrap();
    let mut counts = [0; 2];
    for i in 0..400u16 {
        world.receive(1, SocketAddr::new(ip("203.0.113.1"), 1000 + i), &init);
    }
    for (count, reason) in counts.iter_mut().zip([DropReason::Replayed, DropReason::BadDatagram]) {
        *count = world.nodes[1].engine.stats().drops(reason);
    }
    assert_eq!(
        counts,
        [199, 200],
        "the first is accepted, a burst is decrypted, the rest is not"
    );
    world.wire.clear();
    world.now += Duration::from_secs(1);
    world.receive(1, from, &init);
    assert_eq!(world.nodes[1].engine.stats().drops(DropReason::Replayed), 200);
    world.check();
}

#[test]
fn an_answer_from_elsewhere_does_not_count_as_an_authentication_failure() {
    let mut world = World::pair();
    world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 1));
    let (from, _, init) = world.wire.pop_front().unwrap();
    world.receive(1, from, &init);
    let (_, _, mut answer) = world.wire.pop_front().unwrap();
    // The encrypted part of the response is damaged. The MAC of the message (mac1) is right, because anybody who knows
    // the receiver's public key can compute it.
    answer[50] ^= 1;
    let sum = mac1(&world.nodes[0].public().0, &answer[..60]);
    answer[60..76].copy_from_slice(&sum);
    world.receive(0, at("203.0.113.66:6666"), &answer);
    assert_eq!(world.state(0, "b"), LinkState::Connecting);
    world.receive(0, at("192.0.2.2:1000"), &answer);
    assert_eq!(world.state(0, "b"), LinkState::AuthenticationFailed);
}

/// WireGuard's mac1 of a message, which anybody can compute who knows the receiver's public key.
fn mac1(public: &[u8; 32], message: &[u8]) -> [u8; 16] {
    use blake2::digest::{FixedOutput, KeyInit, Update};
    use blake2::{Blake2s256, Blake2sMac, Digest};
    let key = Blake2s256::new()
        .chain_update(b"mac1----")
        .chain_update(public)
        .finalize();
    let mut mac = Blake2sMac::<blake2::digest::consts::U16>::new_from_slice(&key).unwrap();
    Update::update(&mut mac, message);
    mac.finalize_fixed().into()
}

#[test]
fn under_a_flood_strangers_must_show_their_address_and_others_go_on() {
    let mut world = World::pair();
    world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 1));
    let (_, _, init) = world.wire.pop_front().unwrap();
    let mut cookies = 0;
    for i in 0..2500u16 {
        world.receive(1, SocketAddr::new(ip("203.0.113.1"), 1000 + i), &init);
        cookies += world.wire.drain(..).filter(|(_, _, b)| b[0] == 3).count();
    }
    assert!(cookies > 0);
    assert_eq!(
        world.nodes[1].link("a", world.now).unwrap().endpoint,
        Some(at("192.0.2.1:1000"))
    );
    world.check();
}
