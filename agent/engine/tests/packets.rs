//! Tests of packets as bytes: lengths, TTL, MSS, ICMP errors, and invalid input.
#![cfg(feature = "links")]
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "helpers of tests; the clock is the test's"
)]

mod common;

use common::{World, ip, udp};
use etherparse::{IpNumber, NetSlice, PacketBuilder, SlicedPacket, TcpOptionElement, TransportSlice};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};
use tombolo_engine::buffer::Collected;
use tombolo_engine::packet::icmp::{IcmpError, Limiter, error, may_answer};
use tombolo_engine::packet::{Ecn, ICMP, ICMPV6, TCP, UDP, clamp_mss, decrement_ttl, ecn, mark, parse};
use tombolo_engine::tables::NicIndex;
use tombolo_engine::tables::lpm::Lpm;
use tombolo_engine::verdict::DropReason;

/// Builds a TCP packet with these options.
fn tcp(v6: bool, syn: bool, options: &[TcpOptionElement], payload: &[u8]) -> Vec<u8> {
    let ip = if v6 {
        PacketBuilder::ipv6([1; 16], [2; 16], 9)
    } else {
        PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9)
    };
    let builder = ip.tcp(5, 6, 77, 1000).options(options).unwrap();
    let mut out = Vec::new();
    if syn { builder.syn() } else { builder.ack(5) }
        .write(&mut out, payload)
        .unwrap();
    out
}

/// Whether the checksums of the IP header and of the transport header are right according to another library.
fn sound(packet: &[u8]) -> bool {
    let sliced = SlicedPacket::from_ip(packet).unwrap();
    let (source, destination) = match sliced.net.as_ref().unwrap() {
        NetSlice::Ipv4(v4) => {
            let header = v4.header().to_header();
            if header.calc_header_checksum() != header.header_checksum {
                return false;
            }
            (IpAddr::from(header.source), IpAddr::from(header.destination))
        }
        NetSlice::Ipv6(v6) => (v6.header().source_addr().into(), v6.header().destination_addr().into()),
        NetSlice::Arp(_) => return false,
    };
    match sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => match (source, destination) {
            (IpAddr::V4(s), IpAddr::V4(d)) => {
                tcp.calc_checksum_ipv4(s.octets(), d.octets()).ok() == Some(tcp.checksum())
            }
            (IpAddr::V6(s), IpAddr::V6(d)) => {
                tcp.calc_checksum_ipv6(s.octets(), d.octets()).ok() == Some(tcp.checksum())
            }
            _ => false,
        },
        Some(TransportSlice::Icmpv4(icmp)) => {
            let checksum = icmp.icmp_type().calc_checksum(icmp.payload());
            checksum == icmp.checksum()
        }
        Some(TransportSlice::Icmpv6(icmp)) => match (source, destination) {
            (IpAddr::V6(s), IpAddr::V6(d)) => {
                icmp.icmp_type()
                    .calc_checksum(s.octets(), d.octets(), icmp.payload())
                    .ok()
                    == Some(icmp.checksum())
            }
            _ => false,
        },
        _ => true,
    }
}

#[test]
fn headers_are_read_and_lengths_are_checked() {
    let packet = udp("10.0.0.1", "10.0.0.2", 7, 3);
    let info = parse(&packet).unwrap();
    assert_eq!((info.source, info.destination), (ip("10.0.0.1"), ip("10.0.0.2")));
    assert_eq!(
        (info.ttl, info.protocol, info.transport, info.len),
        (7, UDP, Some(20), 31)
    );
    assert_eq!(info.ports, 1000 << 16 | 2000);
    let mut padded = packet.clone();
    padded.extend([0; 15]);
    assert_eq!(parse(&padded).unwrap().len, 31, "padding is not the packet");
    for len in 0..packet.len() {
        assert_eq!(parse(&packet[..len]), None, "{len} bytes of {}", packet.len());
    }
    let six = udp("fd00::1", "fd00::2", 7, 3);
    assert_eq!(parse(&six).unwrap().transport, Some(40));
    assert_eq!(parse(&six).unwrap().ports, 1000 << 16 | 2000);
    for len in 0..six.len() {
        assert_eq!(parse(&six[..len]), None);
    }
    let mut short_header = packet;
    short_header[0] = 0x44;
    assert_eq!(parse(&short_header), None);
    short_header[0] = 0x55;
    assert_eq!(parse(&short_header), None);
}

#[test]
fn fragments_and_extension_headers_hide_nothing_and_invent_nothing() {
    let mut later = udp("10.0.0.1", "10.0.0.2", 7, 30);
    later[7] = 1;
    assert_eq!(parse(&later).unwrap().transport, None, "a later fragment has no ports");
    let mut first = udp("10.0.0.1", "10.0.0.2", 7, 30);
    first[6] = 0x20;
    assert_eq!(parse(&first).unwrap().transport, Some(20));
    // D13: all fragments of a packet must use the same link, and only the first one contains ports. So the ports of
    // every fragment count as 0.
    assert_eq!((parse(&first).unwrap().ports, parse(&later).unwrap().ports), (0, 0));
    // An IPv6 packet with a hop-by-hop header, a fragment header and UDP.
    let fragment = |offset: u8| {
        let mut p = vec![0x60, 0, 0, 0, 0, 24, 0, 9];
        p.extend([0xfd; 32]);
        p.extend([44, 0, 1, 4, 0, 0, 0, 0]);
        p.extend([17, 0, offset, 1, 0, 0, 0, 9]);
        p.extend([0, 1, 0, 2, 0, 8, 0, 0]);
        p
    };
    assert_eq!(
        (
            parse(&fragment(0)).unwrap().protocol,
            parse(&fragment(0)).unwrap().transport
        ),
        (UDP, Some(56))
    );
    assert_eq!(parse(&fragment(1)).unwrap().transport, None);
    assert_eq!(
        (parse(&fragment(0)).unwrap().ports, parse(&fragment(1)).unwrap().ports),
        (0, 0)
    );
    // If an extension header claims to be longer than the packet, no transport header is found.
    let mut long = fragment(0);
    long[41] = 200;
    assert_eq!(parse(&long).unwrap().transport, None);
}

#[test]
fn a_syn_is_clamped_and_others_are_not() {
    let mss = |v| [TcpOptionElement::Noop, TcpOptionElement::MaximumSegmentSize(v)];
    for (v6, mtu, offered, expected) in [
        (false, 1420, 1460, 1380),
        (false, 1420, 1380, 1380),
        (false, 1420, 500, 500),
        (true, 1420, 1440, 1360),
        (true, 1280, 65535, 1220),
    ] {
        let mut packet = tcp(v6, true, &mss(offered), &[]);
        let info = parse(&packet).unwrap();
        assert_eq!(clamp_mss(&mut packet, &info, mtu), offered != expected);
        assert!(sound(&packet));
        let sliced = SlicedPacket::from_ip(&packet).unwrap();
        let Some(TransportSlice::Tcp(header)) = sliced.transport else {
            panic!()
        };
        let found = header.options_iterator().find_map(|o| match o {
            Ok(TcpOptionElement::MaximumSegmentSize(v)) => Some(v),
            _ => None,
        });
        assert_eq!(found, Some(expected));
    }
    let mut plain = tcp(false, false, &mss(9000), b"data");
    let (before, info) = (plain.clone(), parse(&plain).unwrap());
    assert!(!clamp_mss(&mut plain, &info, 1420) && plain == before);
    let mut none = tcp(false, true, &[], &[]);
    let info = parse(&none).unwrap();
    assert!(!clamp_mss(&mut none, &info, 1420));
}

#[test]
fn errors_quote_what_a_traceroute_needs() {
    for (from, source, destination, size, longest) in [
        ("10.1.255.4", "10.2.0.4", "10.9.0.1", 12, 576),
        ("10.1.255.4", "10.2.0.4", "10.9.0.1", 1392, 576),
        ("fd01::4", "fd02::4", "fd09::1", 12, 1280),
        ("fd01::4", "fd02::4", "fd09::1", 1372, 1280),
    ] {
        let packet = udp(source, destination, 1, size);
        let info = parse(&packet).unwrap();
        assert!(may_answer(&packet, &info));
        for what in [IcmpError::TimeExceeded, IcmpError::TooBig(1400)] {
            let answer = error(ip(from), &packet, &info, what).unwrap();
            let read = parse(&answer).unwrap();
            assert_eq!((read.source, read.destination), (ip(from), ip(source)));
            assert!(answer.len() <= longest && sound(&answer));
            let (header, kind) = match (read.protocol, what) {
                (ICMP, IcmpError::TimeExceeded) => (20, 11),
                (ICMP, IcmpError::TooBig(_)) => (20, 3),
                (ICMPV6, IcmpError::TimeExceeded) => (40, 3),
                (ICMPV6, IcmpError::TooBig(_)) => (40, 2),
                other => panic!("{other:?}"),
            };
            assert_eq!(answer[header], kind);
            if what == IcmpError::TooBig(1400) {
                assert_eq!(answer[header + 6..header + 8], 1400u16.to_be_bytes());
            }
            let quote = &answer[header + 8..];
            assert_eq!(quote, &packet[..quote.len()]);
            assert!(quote.len() >= packet.len().min(longest - header - 8));
            // RFC 4443, 2.4: an ICMP error must not be answered by another ICMP error.
            assert!(!may_answer(&answer, &read));
        }
    }
    let mut later = udp("10.2.0.4", "10.9.0.1", 1, 30);
    later[7] = 9;
    assert!(!may_answer(&later, &parse(&later).unwrap()), "a later fragment");
    for (source, destination) in [
        ("10.2.0.4", "224.0.0.5"),
        ("0.0.0.0", "10.9.0.1"),
        ("10.2.0.4", "255.255.255.255"),
    ] {
        let packet = udp(source, destination, 1, 30);
        assert!(
            !may_answer(&packet, &parse(&packet).unwrap()),
            "{source} → {destination}"
        );
    }
}

#[test]
fn thirty_traceroutes_at_once_get_all_their_answers_and_a_flood_does_not() {
    // D23: if 30 traceroutes send three probes each with the same TTL at the same time, all probes are answered.
    let (mut limiter, now) = (Limiter::new(), Instant::now());
    assert!((0..30 * 3).all(|_| limiter.allow(now)));
    let flood = (0..100_000).filter(|_| limiter.allow(now)).count();
    assert!(flood < 5_000);
    assert!(!limiter.allow(now));
    assert!(limiter.allow(now + Duration::from_secs(1)));
}

fn lpm_model(entries: &BTreeMap<ipnet::IpNet, usize>, address: IpAddr) -> Option<usize> {
    let covering = entries.iter().filter(|(p, _)| p.contains(&address));
    covering.max_by_key(|(p, _)| p.prefix_len()).map(|(_, v)| *v)
}

/// Addresses that are close together, so that random prefixes overlap.
fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0u32..64).prop_map(|a| IpAddr::V4(Ipv4Addr::from(0x0a00_0000 | a << 20 | a))),
        any::<u32>().prop_map(|a| IpAddr::V4(Ipv4Addr::from(a))),
        (0u128..64).prop_map(|a| IpAddr::V6(Ipv6Addr::from(0xfd << 120 | a << 60 | a))),
    ]
}

proptest! {
    #[test]
    fn longest_prefix_match_is_what_it_says(
        entries in proptest::collection::vec((address(), 0u8..=128), 0..40),
        asked in proptest::collection::vec(address(), 1..20),
    ) {
        let (mut lpm, mut model) = (Lpm::default(), BTreeMap::new());
        for (value, (address, len)) in entries.into_iter().enumerate() {
            let most = if address.is_ipv4() { 32 } else { 128 };
            let prefix = ipnet::IpNet::new(address, len.min(most)).unwrap();
            prop_assert_eq!(lpm.insert(prefix, value), model.insert(prefix.trunc(), value));
        }
        for address in asked {
            prop_assert_eq!(lpm.get(address).copied(), lpm_model(&model, address));
        }
    }

    #[test]
    fn taking_a_ttl_keeps_the_checksum_right(ttl in 1u8.., id in any::<[u8; 8]>(), v6 in any::<bool>()) {
        let mut packet = if v6 { tcp(true, true, &[], &id) } else { tcp(false, true, &[], &id) };
        packet[if v6 { 7 } else { 8 }] = ttl;
        if !v6 {
            packet[4..6].copy_from_slice(&id[..2]);
            packet[10..12].fill(0);
            let header = etherparse::Ipv4Header::from_slice(&packet).unwrap().0;
            packet[10..12].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
        }
        for left in (0..ttl).rev() {
            decrement_ttl(&mut packet);
            prop_assert_eq!(parse(&packet).unwrap().ttl, left);
            prop_assert!(sound(&packet));
        }
        let spent = packet.clone();
        decrement_ttl(&mut packet);
        prop_assert_eq!(packet, spent, "a TTL of 0 stays, and so does its checksum");
    }

    #[test]
    fn clamping_keeps_the_checksum_right(
        v6 in any::<bool>(), mss in any::<u16>(), mtu in 1280u16..9000, lead in 0usize..4,
        payload in proptest::collection::vec(any::<u8>(), 0..50),
    ) {
        let mut options = vec![TcpOptionElement::Noop; lead];
        options.push(TcpOptionElement::MaximumSegmentSize(mss));
        options.push(TcpOptionElement::WindowScale(7));
        let mut packet = tcp(v6, true, &options, &payload);
        let info = parse(&packet).unwrap();
        clamp_mss(&mut packet, &info, mtu);
        prop_assert!(sound(&packet));
    }

    #[test]
    fn any_bytes_are_parsed_or_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), first in prop_oneof![Just(0x45u8), Just(0x60), any::<u8>()], protocol in prop_oneof![Just(TCP), Just(0), Just(44), Just(51), any::<u8>()]) {
        if let Some(b) = bytes.first_mut() { *b = first; }
        if let Some(b) = bytes.get_mut(if first == 0x60 { 6 } else { 9 }) { *b = protocol; }
        if first == 0x45 && bytes.len() > 20 { bytes[2] = 0; bytes[3] = bytes.len() as u8; }
        if first == 0x60 && bytes.len() > 40 { bytes[4] = 0; bytes[5] = (bytes.len() - 40) as u8; }
        if let Some(info) = parse(&bytes) {
            prop_assert!(info.len <= bytes.len());
            prop_assert!(info.transport.is_none_or(|t| t < info.len));
            let _ = may_answer(&bytes, &info);
            let _ = error(ip("10.0.0.1"), &bytes, &info, IcmpError::TimeExceeded);
            clamp_mss(&mut bytes, &info, 1420);
            if info.ttl > 0 { decrement_ttl(&mut bytes); }
        }
    }

    #[test]
    fn an_engine_survives_any_datagram_and_any_packet(
        inputs in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..300), 0u8..6), 1..40),
    ) {
        let mut world = World::pair();
        world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 1));
        world.settle();
        for (mut bytes, kind) in inputs {
            // The kinds 1 to 4 are WireGuard's message types. Each message of these types has the right length, and the
            // index of an existing session.
            let len = [0, 148, 92, 64, bytes.len().max(32), bytes.len()][usize::from(kind)];
            if (1..=4).contains(&kind) {
                bytes.resize(len, 7);
                bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
                let at = if kind == 2 { 8 } else { 4 };
                let index = world.seen.iter().find(|(_, _, b)| b[0] == 1).map(|(_, _, b)| [b[4], b[5], b[6], b[7]]).unwrap();
                bytes[at..at + 4].copy_from_slice(&index);
            }
            world.receive(0, "192.0.2.2:1000".parse().unwrap(), &bytes);
            world.send(0, bytes);
        }
        world.wire.clear();
        world.check();
        world.send(1, udp("10.0.0.2", "10.0.0.1", 64, 1));
        world.settle();
        prop_assert_eq!(world.nodes[0].delivered.len(), 1);
    }
}

#[test]
fn unused_numbers_are_numbers() {
    assert_eq!((IpNumber::TCP.0, IpNumber::UDP.0), (TCP, UDP));
    assert_eq!((IpNumber::ICMP.0, IpNumber::IPV6_ICMP.0), (ICMP, ICMPV6));
}

/// When CE is set in a packet, only its ECN bits change: the DSCP stays, and the header checksum is updated.
#[test]
fn marking_keeps_the_packet_sound() {
    for v6 in [false, true] {
        for (class, before) in [
            (0xb8, Ecn::Not),
            (0xb9, Ecn::Capable),
            (0xba, Ecn::Capable),
            (0xbb, Ecn::Marked),
        ] {
            let mut packet = tcp(v6, false, &[], &[7; 600]);
            if v6 {
                (packet[0], packet[1]) = (0x60 | class >> 4, class << 4);
            } else {
                packet[1] = class;
                packet[10..12].fill(0);
                let sum: u32 = packet[..20]
                    .chunks(2)
                    .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])))
                    .sum();
                let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
                packet[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            assert!(sound(&packet));
            assert_eq!(ecn(&packet), before);
            mark(&mut packet);
            assert_eq!(ecn(&packet), Ecn::Marked);
            assert!(sound(&packet), "class {class:#x}");
            let dscp = if v6 { packet[0] << 4 | packet[1] >> 4 } else { packet[1] } >> 2;
            assert_eq!(dscp, 0xb8 >> 2);
        }
    }
}

/// RFC 8289: in a standing queue some long packets are dropped, and counted under `congestion`. Short packets are never
/// dropped.
#[test]
fn a_standing_queue_is_kept_short() {
    let mut world = World::pair();
    world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 10));
    world.settle();
    let before = world.nodes[1].delivered.len();
    for n in 0..2000 {
        world.send(0, udp("10.0.0.1", "10.0.0.2", 64, if n % 2 == 0 { 1200 } else { 40 }));
    }
    world.busy = true;
    while let Some((from, _, bytes)) = world.wire.pop_front() {
        world.now += Duration::from_micros(400);
        world.receive(1, from, &bytes);
    }
    let stats = world.nodes[1].engine.stats();
    let dropped = stats.drops(DropReason::Congestion);
    assert!((5..100).contains(&dropped), "{dropped}");
    assert!(stats.conserved());
    let arrived = &world.nodes[1].delivered[before..];
    assert_eq!(arrived.len() as u64 + dropped, 2000);
    assert_eq!(arrived.iter().filter(|p| p.len() < 100).count(), 1000, "short ones");
}

/// RFC 6040: the outer header gets the ECN field of the inner one. At the receiver, CE in the outer header is copied to
/// the inner header.
#[test]
fn congestion_marks_travel_with_the_datagram() {
    for (inner, outer, arrives) in [
        (0, 0, Some(0)),
        (2, 2, Some(2)),
        (1, 1, Some(1)),
        (3, 3, Some(3)),
        (2, 3, Some(3)),
        (1, 3, Some(3)),
        (2, 0, Some(2)),
        // The sender of the inner packet does not support ECN, so the packet is dropped.
        (0, 3, None),
    ] {
        let mut world = World::pair();
        world.send(0, udp("10.0.0.1", "10.0.0.2", 64, 10));
        world.settle();
        let now = world.now;
        let mut packet = udp("10.0.0.1", "10.0.0.2", 64, 100);
        packet[1] |= inner;
        packet[10..12].fill(0);
        let sum = packet[..20]
            .chunks(2)
            .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
        let sum: u32 = sum.sum();
        packet[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
        let (mut tx, mut rx) = (Collected::default(), Collected::default());
        world.nodes[0]
            .engine
            .handle_tun(NicIndex::FIRST, &mut packet, now, &mut tx, &mut rx);
        assert_eq!(tx.ecn, [inner], "the outer header");
        let from = world.nodes[0].at;
        let receiver = &mut world.nodes[1].engine;
        receiver.handle_datagram(
            &tx.datagrams[0].1,
            from.into(),
            outer,
            now,
            &mut Collected::default(),
            &mut rx,
        );
        let seen = rx.packets.first().map(|p| {
            assert!(sound(p));
            p[1] & 3
        });
        assert_eq!(seen, arrives, "inner {inner}, outer {outer}");
        assert_eq!(
            receiver.stats().drops(DropReason::Congestion),
            u64::from(arrives.is_none())
        );
        assert!(receiver.stats().conserved());
    }
}
