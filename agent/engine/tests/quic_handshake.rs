//! Tests of the handshake of a QUIC link. The client's first flight consists of two datagrams, because the post-quantum
//! key exchange makes it long. The handshake must succeed if either datagram is lost or late, and unknown senders must
//! not cause more traffic than RFC 9000 allows.

mod common;

use common::{Node, World, udp};
use std::net::SocketAddr;
use std::time::Duration;
use tombolo_proto::config::Transport;
use tombolo_proto::status::LinkState;

/// Number of bytes that a server may send to an address that is not validated, per byte received from it (RFC 9000,
/// section 8.1).
const AMPLIFICATION: usize = 3;

/// If this number of handshakes is in progress, the senders of new handshakes must validate their address. The value is
/// the engine's `RETRY_THRESHOLD`.
const RETRY_THRESHOLD: u16 = 64;

type Datagram = (SocketAddr, SocketAddr, Vec<u8>);

fn pair() -> World {
    let a = Node::new("a", "192.0.2.1:1000", 1).with_quic();
    let b = Node::new("b", "192.0.2.2:1000", 2).with_quic();
    let mut world = World::new(vec![a, b]);
    world.join(0, 1, |link| link.transport = Transport::Quic);
    world
}

/// Creates two nodes, and removes the datagrams of the first flight from the simulated network. Returns both.
fn first_flight() -> (World, Vec<Datagram>) {
    let mut world = pair();
    world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 1000));
    let flight: Vec<_> = world.wire.drain(..).collect();
    assert_eq!(flight.len(), 2, "the ClientHello takes two datagrams");
    assert!(flight.iter().all(|(_, _, bytes)| (1200..=1472).contains(&bytes.len())));
    (world, flight)
}

/// Passes time until the connection is established, and checks that the waiting packet arrives.
fn comes_up(world: &mut World) {
    for _ in 0..50 {
        if world.state(0, "b") == LinkState::Up && world.state(1, "a") == LinkState::Up {
            break;
        }
        world.pass(Duration::from_millis(100));
    }
    assert_eq!(world.state(0, "b"), LinkState::Up);
    assert_eq!(world.nodes[1].delivered.len(), 1);
}

fn sent_by(world: &World, node: usize) -> usize {
    let at = world.nodes[node].at;
    let sent = world.seen.iter().filter(|(from, _, _)| *from == at);
    sent.map(|(_, _, bytes)| bytes.len()).sum()
}

#[test]
fn a_lost_datagram_of_the_first_flight_is_sent_again() {
    for lost in [0, 1] {
        let (mut world, mut flight) = first_flight();
        flight.remove(lost);
        world.wire.extend(flight);
        world.settle();
        comes_up(&mut world);
    }
}

#[test]
fn the_first_flight_may_arrive_in_any_order() {
    let (mut world, mut flight) = first_flight();
    flight.reverse();
    world.wire.extend(flight);
    world.settle();
    // No time has passed, so there was no retransmission.
    assert_eq!(world.state(0, "b"), LinkState::Up);
    assert_eq!(world.nodes[1].delivered.len(), 1);
}

/// If datagrams with a forged source address start a handshake, the owner of this address receives at most three times
/// as many bytes as these datagrams had. This holds whether one datagram of the flight arrives or both, and however
/// long the server repeats its answer.
#[test]
fn nobody_is_flooded_through_an_answering_end() {
    for which in [&[0][..], &[1], &[0, 1]] {
        let (mut world, flight) = first_flight();
        // The victim sends nothing itself.
        let victim: SocketAddr = "198.51.100.9:1000".parse().unwrap();
        let mut received = 0;
        for at in which {
            received += flight[*at].2.len();
            world.receive(1, victim, &flight[*at].2);
        }
        // Retransmissions count too, so time passes. The node that started the handshake is cut off.
        world.cut = vec![world.nodes[0].at];
        world.pass(Duration::from_secs(20));
        let sent = sent_by(&world, 1);
        assert!(sent <= AMPLIFICATION * received, "{which:?}: {sent} for {received}");
        let to_victim = world.seen.iter().filter(|(_, to, _)| *to == victim).count();
        assert!(to_victim > 0, "{which:?}: it does answer");
    }
}

/// When unknown senders have started as many handshakes as [`RETRY_THRESHOLD`], an agent answers further ones by a
/// Retry. A peer that gets a Retry connects by a second flight, again of two datagrams.
#[test]
fn a_retry_takes_two_datagrams_again() {
    let mut world = pair();
    for n in 0..RETRY_THRESHOLD + 10 {
        let (_, flight) = first_flight();
        // Each handshake comes from another address: the rate limit of a single address would demand validation
        // earlier.
        let from = SocketAddr::from(([198, 51, 100, n as u8], 2000));
        world.receive(1, from, &flight[0].2);
    }
    world.wire.clear();
    let before = world.seen.len();
    world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 1000));
    world.settle();
    let (here, there) = (world.nodes[0].at, world.nodes[1].at);
    let shapes: Vec<_> = world.seen[before..]
        .iter()
        .map(|(from, _, bytes)| (*from, bytes[0] & 0xf0, bytes.len() >= 1200))
        .collect();
    // Packet types (RFC 9000, section 17.2): 0xc_ is Initial, 0xf_ is Retry. Each datagram of the flight gets a Retry;
    // the client uses the first one.
    let initial = (here, 0xc0, true);
    let retry = (there, 0xf0, false);
    assert_eq!(
        shapes[..6],
        [initial, initial, retry, retry, initial, initial],
        "{shapes:?}"
    );
    assert_eq!(world.state(0, "b"), LinkState::Up);
    assert_eq!(world.nodes[1].delivered.len(), 1);
}

/// Handshakes of which only the second datagram arrives do not keep a peer from connecting: they count as handshakes in
/// progress, are limited like others, and time out.
#[test]
fn second_halves_alone_pass() {
    let mut world = pair();
    for n in 0..RETRY_THRESHOLD * 20 {
        let (_, flight) = first_flight();
        world.receive(1, SocketAddr::from(([198, 51, 100, 1], 2000 + n)), &flight[1].2);
    }
    world.wire.clear();
    world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 1000));
    world.settle();
    comes_up(&mut world);
}

/// The first datagram of a flight has full size, so a path with a low MTU drops it silently. Retransmissions are
/// shorter, so the connection is established nevertheless.
#[test]
fn a_narrow_path_gets_a_shorter_handshake() {
    for longest in [1200, 1300, 1471] {
        let mut world = pair();
        world.longest = longest;
        world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 100));
        world.settle();
        assert_ne!(
            world.state(0, "b"),
            LinkState::Up,
            "{longest}: full datagrams do not arrive"
        );
        comes_up(&mut world);
        world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 1000));
        world.settle();
        assert_eq!(world.nodes[1].delivered.len(), 2, "{longest}");
    }
}
