//! Packets that no well-behaved back end sends.

use super::super::{PROBE_SOURCE_V4, ProbeProtocol, Prober};
use super::backend::Behaviour;
use super::world::World;
use super::{secs, target};
use proptest::prelude::*;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpProtocol, Ipv4Address, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};
use std::time::{Duration, Instant};

const A: Ipv4Address = Ipv4Address::new(10, 0, 0, 4);

/// The connection of a SYN.
#[derive(Clone, Copy)]
struct Syn {
    port: u16,
    sequence: TcpSeqNumber,
}

fn syn(packet: &[u8]) -> Syn {
    let packet = Ipv4Packet::new_checked(packet).unwrap();
    let segment = TcpPacket::new_checked(packet.payload()).unwrap();
    assert!(segment.syn());
    Syn {
        port: segment.src_port(),
        sequence: segment.seq_number(),
    }
}

fn segment<'a>(syn: Syn, control: TcpControl, sequence: i32, ack: i32, payload: &'a [u8]) -> TcpRepr<'a> {
    TcpRepr {
        src_port: 80,
        dst_port: syn.port,
        control,
        seq_number: TcpSeqNumber(sequence),
        ack_number: Some(TcpSeqNumber(syn.sequence.0.wrapping_add(ack))),
        window_len: 1000,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload,
    }
}

fn packet(source: Ipv4Address, destination: Ipv4Address, tcp: &TcpRepr<'_>) -> Vec<u8> {
    let ip = Ipv4Repr {
        src_addr: source,
        dst_addr: destination,
        next_header: IpProtocol::Tcp,
        payload_len: tcp.buffer_len(),
        hop_limit: 64,
    };
    let checksums = ChecksumCapabilities::default();
    let mut bytes = vec![0; ip.buffer_len() + tcp.buffer_len()];
    let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
    ip.emit(&mut packet, &checksums);
    let mut segment = TcpPacket::new_unchecked(packet.payload_mut());
    tcp.emit(&mut segment, &source.into(), &destination.into(), &checksums);
    bytes
}

/// A prober whose first SYN is on its way.
fn waiting(protocol: ProbeProtocol) -> (Prober, Instant, Syn) {
    let mut now = Instant::now();
    let mut prober = Prober::new(5);
    prober.set_targets(&[target("10.0.0.4", protocol, 80)], now);
    now = prober.next_due().unwrap();
    let mut sent = None;
    prober.poll(now, &mut |p| sent = Some(syn(p)));
    (prober, now, sent.unwrap())
}

#[test]
fn packets_of_other_connections_are_ignored() {
    let (mut prober, now, syn) = waiting(ProbeProtocol::Tcp);
    let due = prober.next_due();
    let good = segment(syn, TcpControl::Syn, 100, 1, b"");
    let other = Ipv4Address::new(10, 0, 0, 5);
    let other_port = TcpRepr { src_port: 81, ..good };
    let old_port = TcpRepr {
        dst_port: syn.port - 1,
        ..good
    };
    for bytes in [
        packet(other, PROBE_SOURCE_V4, &good),
        packet(A, other, &good),
        packet(A, PROBE_SOURCE_V4, &other_port),
        packet(A, PROBE_SOURCE_V4, &old_port),
    ] {
        prober.receive(&bytes, now);
        assert_eq!(prober.next_due(), due);
    }
    // Of this connection, but not an answer to its SYN, or damaged, or a fragment.
    let good = packet(A, PROBE_SOURCE_V4, &good);
    let mut damaged = good.clone();
    *damaged.last_mut().unwrap() ^= 1;
    let mut fragment = good.clone();
    Ipv4Packet::new_unchecked(&mut fragment[..]).set_more_frags(true);
    Ipv4Packet::new_unchecked(&mut fragment[..]).fill_checksum();
    for bytes in [
        packet(A, PROBE_SOURCE_V4, &segment(syn, TcpControl::Syn, 100, 7, b"")),
        packet(A, PROBE_SOURCE_V4, &segment(syn, TcpControl::Rst, 100, 0, b"")),
        packet(A, PROBE_SOURCE_V4, &segment(syn, TcpControl::None, 100, 1, b"")),
        damaged,
        fragment,
        good[..good.len() - 1].to_vec(),
    ] {
        prober.receive(&bytes, now);
        prober.poll(now, &mut |_| {});
        assert!(prober.health().all(|(_, up)| !up) && !prober.take_changed());
    }
    prober.receive(&good, now);
    assert_eq!(prober.next_due(), Some(now));
    prober.poll(now, &mut |_| {});
    assert!(prober.take_changed(), "the probe has not ended");
}

#[test]
fn a_handshake_with_a_reset_in_the_same_batch_is_a_success() {
    let (mut prober, now, syn) = waiting(ProbeProtocol::Tcp);
    prober.receive(
        &packet(A, PROBE_SOURCE_V4, &segment(syn, TcpControl::Syn, 100, 1, b"")),
        now,
    );
    prober.receive(
        &packet(A, PROBE_SOURCE_V4, &segment(syn, TcpControl::Rst, 101, 1, b"")),
        now,
    );
    prober.poll(now, &mut |_| {});
    assert!(prober.take_changed());
}

#[test]
fn repeated_and_late_packets_change_nothing() {
    let targets = [target("10.0.0.4", ProbeProtocol::Http, 80)];
    let mut world = World::new(&targets);
    let answer = b"HTTP/1.1 200 OK\r\n\r\nok".to_vec();
    world.serve("10.0.0.4", &[(80, Behaviour::Answer(answer, Duration::ZERO))]);
    world.run_until(&[true]);
    world.prober.take_changed();
    for _ in 0..20 {
        world.run(secs(1));
        for packet in world.received.clone() {
            world.prober.receive(&packet, world.now);
            world.prober.receive(&packet, world.now);
        }
    }
    assert!(world.is_up() && !world.prober.take_changed());
}

#[test]
fn a_tiny_segment_size_does_not_cause_a_storm() {
    let (mut prober, mut now, syn) = waiting(ProbeProtocol::Https);
    let small = TcpRepr {
        max_seg_size: Some(1),
        ..segment(syn, TcpControl::Syn, 100, 1, b"")
    };
    prober.receive(&packet(A, PROBE_SOURCE_V4, &small), now);
    for _ in 0..10 {
        let mut count = 0;
        prober.poll(now, &mut |_| count += 1);
        assert!(count <= 32, "{count} packets");
        now = prober.next_due().unwrap();
    }
}

/// rustls asserts that it sends one alert only. The prober sends its close_notify when the back end closes.
#[test]
fn a_tls_session_that_is_over_gets_no_more_data() {
    let (mut prober, now, syn) = waiting(ProbeProtocol::Https);
    for segment in [
        segment(syn, TcpControl::Syn, 100, 1, b""),
        segment(syn, TcpControl::Fin, 101, 1, b""),
        // The stack accepts data after a FIN if it acknowledges more than the segment before.
        segment(syn, TcpControl::None, 102, 2, &[0; 11]),
    ] {
        prober.receive(&packet(A, PROBE_SOURCE_V4, &segment), now);
        prober.poll(now, &mut |_| {});
    }
    assert!(prober.health().all(|(_, up)| !up));
}

#[test]
fn packets_without_a_poll_do_not_fill_the_memory() {
    let (mut prober, now, syn) = waiting(ProbeProtocol::Tcp);
    let payload = [0; 1000];
    let bytes = packet(A, PROBE_SOURCE_V4, &segment(syn, TcpControl::None, 100, 1, &payload));
    for _ in 0..10_000 {
        prober.receive(&bytes, now);
    }
    let probe = prober.entries[0].probe.as_mut().unwrap();
    assert!(!probe.receive(&bytes), "the queue is full");
}

fn control() -> impl Strategy<Value = TcpControl> {
    prop_oneof![
        4 => Just(TcpControl::None),
        2 => Just(TcpControl::Psh),
        1 => Just(TcpControl::Fin),
        1 => Just(TcpControl::Syn),
        1 => Just(TcpControl::Rst),
    ]
}

/// A number near one that matters: the start, a window, and the wrap.
fn near() -> impl Strategy<Value = i32> {
    prop_oneof![4 => -3..40i32, 2 => 0..9_000i32, 1 => any::<i32>()]
}

#[derive(Clone, Debug)]
struct Hostile {
    control: TcpControl,
    sequence: i32,
    ack: Option<i32>,
    window: u16,
    scale: Option<u8>,
    segment_size: Option<u16>,
    sack: Option<(u32, u32)>,
    payload: Vec<u8>,
    wait: u64,
}

fn hostile() -> impl Strategy<Value = Hostile> {
    let window = prop_oneof![Just(0), Just(1), 0..2_000u16, any::<u16>()];
    let size = prop_oneof![Just(0), Just(1), any::<u16>()];
    let payload = prop_oneof![
        Just(Vec::new()),
        proptest::collection::vec(any::<u8>(), 0..1_300),
        Just(b"HTTP/1.1 200 OK\r\n\r\n".to_vec()),
        Just(b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03".to_vec()),
    ];
    let wait = prop_oneof![3 => Just(0u64), 2 => 0..50u64, 1 => 0..3_000u64];
    (
        (control(), near(), proptest::option::weighted(0.9, near()), window),
        (proptest::option::of(0..30u8), proptest::option::of(size)),
        (proptest::option::of(any::<(u32, u32)>()), payload, wait),
    )
        .prop_map(
            |((control, sequence, ack, window), (scale, segment_size), (sack, payload, wait))| Hostile {
                control,
                sequence,
                ack,
                window,
                scale,
                segment_size,
                sack,
                payload,
                wait,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_bytes_cause_a_panic(
        packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..20),
        header in proptest::option::of(0..60usize),
    ) {
        let (mut prober, now, syn) = waiting(ProbeProtocol::Tcp);
        let good = packet(A, PROBE_SOURCE_V4, &segment(syn, TcpControl::Syn, 100, 1, b""));
        for bytes in packets {
            // Either all bytes are arbitrary, or those after the beginning of a good packet.
            let bytes = [&good[..header.unwrap_or(0).min(good.len())], &bytes[..]].concat();
            prober.receive(&bytes, now);
            prober.poll(now, &mut |_| {});
        }
    }

    #[test]
    fn no_segments_of_a_connection_cause_a_panic(
        protocol in prop_oneof![Just(ProbeProtocol::Tcp), Just(ProbeProtocol::Http), Just(ProbeProtocol::Https)],
        answers in any::<bool>(),
        batch in any::<bool>(),
        packets in proptest::collection::vec(hostile(), 1..40),
    ) {
        let (mut prober, mut now, mut last) = waiting(protocol);
        if answers {
            prober.receive(&packet(A, PROBE_SOURCE_V4, &segment(last, TcpControl::Syn, -1, 1, b"")), now);
        }
        for hostile in packets {
            let tcp = TcpRepr {
                window_len: hostile.window,
                window_scale: hostile.scale,
                max_seg_size: hostile.segment_size,
                ack_number: hostile.ack.map(|ack| TcpSeqNumber(last.sequence.0.wrapping_add(1).wrapping_add(ack))),
                sack_ranges: [hostile.sack, None, None],
                ..segment(last, hostile.control, hostile.sequence, 0, &hostile.payload)
            };
            prober.receive(&packet(A, PROBE_SOURCE_V4, &tcp), now);
            if batch && hostile.wait == 0 {
                continue;
            }
            let end = now + Duration::from_millis(hostile.wait);
            loop {
                let mut count = 0;
                prober.poll(now, &mut |bytes| {
                    count += 1;
                    assert!(bytes.len() <= 1280);
                    let segment = TcpPacket::new_checked(&bytes[20..]).unwrap();
                    if segment.syn() && !segment.ack() {
                        last = syn(bytes);
                    }
                });
                prop_assert!(count <= 100, "{count} packets");
                let due = prober.next_due().unwrap();
                prop_assert!(due > now);
                if due > end {
                    break;
                }
                now = due;
            }
            now = end;
        }
    }
}
