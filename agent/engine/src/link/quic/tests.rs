#![allow(clippy::disallowed_methods, reason = "the clock is the test's")]

use super::*;
use crate::buffer::Collected;
use rustls::pki_types::PrivatePkcs8KeyDer;
use std::net::SocketAddr;
use std::time::Duration;
use tombolo_proto::config::{ForeignSources, Link, Relation, Transport};
use tombolo_proto::id::{AgentId, PublicKey};

const LINK: LinkIndex = LinkIndex(0);

/// Creates an end with an Ed25519 key (RFC 8410).
fn end(seed: u8) -> Quic {
    let mut key = vec![
        0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
    ];
    key.extend_from_slice(&[seed; 32]);
    Quic::new(PrivatePkcs8KeyDer::from(key).into(), [seed; 32]).unwrap()
}

fn address(seed: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, seed], 1000))
}

fn link_to(name: &str, pin: KeyPin) -> Link {
    Link {
        peer: AgentId::new(name).unwrap(),
        public_key: PublicKey([7; 32]),
        preshared_key: None,
        endpoint: None,
        quic_endpoint: None,
        peer_lanes: 1,
        many_routes: false,
        quic: Some(pin),
        transport: Transport::Quic,
        always_on: false,
        initiator: false,
        relation: Relation::VnetLocal {},
        sources: Vec::new(),
        foreign: ForeignSources::None,
        arrivals: Vec::new(),
        monitored: false,
        third_party: false,
        dpd_timeout: None,
    }
}

fn is_up(end: &Quic) -> bool {
    end.session(LINK) == SessionState::Up
}

/// The path to the end with this number.
fn to(seed: u8) -> PathHint {
    PathHint {
        endpoint: Some(address(seed).into()),
        max_packet: None,
    }
}

/// Passes datagrams between both ends until none is left.
fn carry(ends: &mut [(u8, Quic); 2], now: Instant) {
    let mut flying = Vec::new();
    loop {
        for (seed, end) in ends.iter_mut() {
            let mut out = Collected::default();
            end.handle_timeout(now, &mut out);
            flying.extend(out.datagrams.into_iter().map(|(to, bytes)| (*seed, to, bytes)));
        }
        if flying.is_empty() {
            return;
        }
        for (from, to, bytes) in std::mem::take(&mut flying) {
            let (seed, end) = ends.iter_mut().find(|(seed, _)| address(*seed) == to).unwrap();
            let mut out = Collected::default();
            end.open(&bytes, address(from).into(), now, &mut [], &mut out);
            flying.extend(out.datagrams.into_iter().map(|(to, bytes)| (*seed, to, bytes)));
        }
    }
}

/// A hostile peer that opens connections and closes none keeps at most four open, even if closing the older ones is its
/// task because it has the smaller key.
#[test]
fn a_peer_has_few_connections() {
    for seeds in [[1, 2], [2, 1]] {
        let now = Instant::now();
        let mut ends = seeds.map(|seed| (seed, end(seed)));
        let pins = [ends[0].1.pin(), ends[1].1.pin()];
        ends[0].1.update(&[link_to("b", pins[1])], now);
        ends[1].1.update(&[link_to("a", pins[0])], now);
        for _ in 0..20 {
            ends[0].1.connect(LINK, to(seeds[1]), now);
            carry(&mut ends, now);
            // The hostile end forgets its connections, so that it closes none.
            ends[0].1.peers[0].connections.clear();
            assert!(is_up(&ends[1].1));
            let open = ends[1].1.connections.iter().flatten().filter(|c| !c.over).count();
            assert!(open <= 4, "{open} connections");
        }
    }
}

/// A peer that keeps opening and closing connections is limited to [`CONNECTION_RATE`]. Datagrams with a forged source
/// address do not use up the budget of the address's owner.
#[test]
fn a_peer_opens_connections_at_a_limited_rate() {
    let (mut ends, begin) = ([1, 2].map(|seed| (seed, end(seed))), Instant::now());
    let pins = [ends[0].1.pin(), ends[1].1.pin()];
    ends[0].1.update(&[link_to("b", pins[1])], begin);
    ends[1].1.update(&[link_to("a", pins[0])], begin);
    // Other senders forge the peer's source address in the first datagrams of connections.
    let mut forged = Vec::new();
    for n in 0..40 {
        let mut anybody = end(100 + n);
        anybody.update(&[link_to("b", pins[1])], begin);
        anybody.connect(LINK, to(2), begin);
        let mut out = Collected::default();
        anybody.handle_timeout(begin, &mut out);
        forged.push(out.datagrams.remove(0).1);
    }
    for datagram in forged {
        ends[1]
            .1
            .open(&datagram, address(1).into(), begin, &mut [], &mut Collected::default());
    }
    let answered = |ends: &mut [(u8, Quic); 2], times: u32, now| {
        let mut up = 0;
        for _ in 0..times {
            ends[1].1.events.clear();
            ends[0].1.connect(LINK, to(2), now);
            carry(ends, now);
            up += u32::from(is_up(&ends[0].1));
            ends[0].1.update(&[], now);
            carry(ends, now);
            ends[0].1.update(&[link_to("b", pins[1])], now);
        }
        up
    };
    assert_eq!(answered(&mut ends, 100, begin), CONNECTION_RATE.burst);
    // Another address has its own rate.
    let mut other = [(3, end(3)), ends.into_iter().next_back().unwrap()];
    let third = other[0].1.pin();
    other[1].1.update(&[link_to("a", pins[0]), link_to("c", third)], begin);
    other[0].1.update(&[link_to("b", pins[1])], begin);
    assert_eq!(answered(&mut other, 1, begin), 1);
}

/// If nobody answers, an attempt to connect ends after five seconds. (An established connection ends only after 30 s of
/// silence.)
#[test]
fn a_handshake_that_is_not_answered_is_given_up() {
    let (mut end, begin) = (end(1), Instant::now());
    end.update(&[link_to("b", KeyPin([9; 32]))], begin);
    end.connect(LINK, to(2), begin);
    let mut now = begin;
    while end.session(LINK) != SessionState::Down {
        now += Duration::from_millis(100);
        end.handle_timeout(now, &mut Collected::default());
        assert!(now < begin + Duration::from_secs(6), "still under way");
    }
    assert!(now >= begin + Duration::from_secs(5));
    assert_eq!(end.handshaking, 0);
    assert!(matches!(end.poll_event(), Some(TransportEvent::Down(..))));
}
