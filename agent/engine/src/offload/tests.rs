//! Tests that split super-packets and join packets. Packets that are joined and then split again must be the packets that
//! were pushed, in the same order within each flow. The library etherparse builds the packets.

use super::*;
use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use proptest::prelude::*;

fn tcp(v6: bool, port: u16, seq: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let builder = if v6 {
        PacketBuilder::ipv6([1; 16], [2; 16], 64)
    } else {
        PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
    };
    let mut b = builder.tcp(port, 80, seq, 1000).ack(7);
    if flags & PSH != 0 {
        b = b.psh();
    }
    if flags & 1 != 0 {
        b = b.fin();
    }
    let mut out = Vec::new();
    b.write(&mut out, payload).unwrap();
    out
}

fn udp(v6: bool, port: u16, payload: &[u8]) -> Vec<u8> {
    let builder = if v6 {
        PacketBuilder::ipv6([1; 16], [2; 16], 64)
    } else {
        PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
    };
    let mut out = Vec::new();
    builder.udp(port, 53).write(&mut out, payload).unwrap();
    out
}

const PSH: u8 = 8;

/// Whether all checksums of a packet are right.
fn sound(packet: &[u8]) -> bool {
    let layout = Layout::of(packet).unwrap();
    layout.ip_length(packet) == packet.len()
        && (layout.ip == Layout::V6 || checksum::fold(checksum::sum(&packet[..20])) == 0xffff)
        && checksum::fold(layout.pseudo(packet, packet.len() - layout.ip) + checksum::sum(&packet[layout.ip..]))
            == 0xffff
}

fn payload_of(packet: &[u8]) -> Vec<u8> {
    match SlicedPacket::from_ip(packet).unwrap().transport.unwrap() {
        TransportSlice::Tcp(t) => t.payload().to_vec(),
        TransportSlice::Udp(u) => u.payload().to_vec(),
        other => panic!("{other:?}"),
    }
}

fn header_of(written: &[u8]) -> (VnetHeader, Vec<u8>) {
    (
        VnetHeader::decode(written[..VnetHeader::LEN].try_into().unwrap()),
        written[VnetHeader::LEN..].to_vec(),
    )
}

fn split_all(written: &[u8]) -> Vec<Vec<u8>> {
    let (header, mut packet) = header_of(written);
    let mut out = Vec::new();
    split(&header, &mut packet, |p| out.push(p.to_vec())).unwrap();
    out
}

fn coalesce(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut c = Coalescer::new(true);
    let mut out = Vec::new();
    let mut sink = |b: &[u8], _: usize| out.push(b.to_vec());
    for p in packets {
        c.push(p, &mut sink);
    }
    c.flush(&mut sink);
    out
}

#[test]
fn a_stream_becomes_one_write() {
    let mut seq = 5u32;
    let packets: Vec<_> = (0..20u8)
        .map(|i| {
            let p = tcp(false, 1, seq, 0, &[i; 1000]);
            seq += 1000;
            p
        })
        .collect();
    let writes = coalesce(&packets);
    assert_eq!(writes.len(), 1);
    let (header, _) = header_of(&writes[0]);
    assert_eq!((header.gso_type, header.gso_size), (VnetHeader::GSO_TCPV4, 1000));
}

/// A write to the device has at most 64 UDP datagrams. The kernel would refuse a larger write as a whole, and all
/// packets in it would be lost.
#[test]
fn no_write_is_more_datagrams_than_the_kernel_takes() {
    let packets: Vec<_> = (0..200u8).map(|i| udp(i % 2 == 0, 1, &[i; 64])).collect();
    let writes = coalesce(&packets);
    let counts: Vec<usize> = writes.iter().map(|w| split_all(w).len()).collect();
    assert_eq!((counts.iter().sum::<usize>(), counts.iter().max()), (200, Some(&64)));
}

#[test]
fn two_streams_interleaved_become_two_writes() {
    let packets: Vec<_> = (0..20u32)
        .map(|i| tcp(true, (i % 2) as u16 + 1, i / 2 * 500, 0, &[i as u8; 500]))
        .collect();
    assert_eq!(coalesce(&packets).len(), 2);
}

#[test]
fn damage_is_never_joined() {
    let (a, mut b) = (tcp(false, 1, 0, 0, &[1; 100]), tcp(false, 1, 100, 0, &[2; 100]));
    let last = b.len() - 1;
    b[last] ^= 1;
    let writes = coalesce(&[a, b.clone()]);
    assert_eq!(writes.len(), 2);
    assert_eq!(&writes[1][VnetHeader::LEN..], &b[..]);
    assert_eq!(header_of(&writes[1]).0, VnetHeader::default());
}

#[test]
fn a_datagram_without_checksum_stays_alone() {
    let mut d = udp(false, 1, &[0; 50]);
    d[26..28].fill(0);
    let writes = coalesce(&[d.clone(), d]);
    assert_eq!(writes.len(), 2);
    assert_eq!(header_of(&writes[0]).0, VnetHeader::default());
}

#[test]
fn ecn_marks_are_not_lost_by_joining() {
    let (a, mut b) = (tcp(false, 1, 0, 0, &[1; 100]), tcp(false, 1, 100, 0, &[2; 100]));
    b[1] |= 3;
    let layout = Layout::of(&b).unwrap();
    let len = b.len();
    layout.set_ip_length(&mut b, len);
    let writes = coalesce(&[a, b.clone()]);
    assert_eq!(writes.len(), 2);
    assert_eq!(&writes[1][VnetHeader::LEN..], &b[..]);
}

#[test]
fn fin_and_psh_end_up_on_the_last_packet_only() {
    let mut super_packet = tcp(false, 1, 100, PSH | 1, &[9; 2500]);
    let header = VnetHeader {
        flags: VnetHeader::NEEDS_CSUM,
        gso_type: VnetHeader::GSO_TCPV4,
        gso_size: 1000,
        ..VnetHeader::default()
    };
    let mut flags = Vec::new();
    split(&header, &mut super_packet, |p| flags.push(p[33] & 0x9)).unwrap();
    assert_eq!(flags, [0, 0, 9]);
}

#[test]
fn partial_checksums_are_finished() {
    let whole = udp(false, 1, b"hello");
    let mut partial = whole.clone();
    let layout = Layout::of(&partial).unwrap();
    let sum = checksum::fold(layout.pseudo(&partial, 13));
    put16(&mut partial, 26, usize::from(sum));
    let header = VnetHeader {
        flags: VnetHeader::NEEDS_CSUM,
        csum_start: 20,
        csum_offset: 6,
        ..VnetHeader::default()
    };
    split(&header, &mut partial, |p| assert_eq!(p, &whole[..])).unwrap();
    let outside = VnetHeader {
        csum_start: 30,
        csum_offset: 6,
        ..header
    };
    assert_eq!(split(&outside, &mut partial, |_| panic!()), Err(SplitError::Short));
}

#[derive(Debug, Clone)]
struct Piece {
    v6: bool,
    udp: bool,
    port: u16,
    gap: bool,
    psh: bool,
    len: usize,
}

fn piece() -> impl Strategy<Value = Piece> {
    (
        any::<bool>(),
        any::<bool>(),
        1..4u16,
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.1),
        1..1400usize,
    )
        .prop_map(|(v6, udp, port, gap, psh, len)| {
            // Most packets of a bulk flow have the same size.
            let len = if len % 3 == 0 { len } else { 600 };
            Piece {
                v6,
                udp,
                port,
                gap,
                psh,
                len,
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// If the writes are split, as the kernel does, the result is the pushed packets, in the same order within each
    /// flow.
    #[test]
    fn joined_then_split_is_the_same(pieces in proptest::collection::vec(piece(), 1..120)) {
        let mut seqs = std::collections::BTreeMap::<(bool, u16), u32>::new();
        let packets: Vec<_> = pieces.iter().enumerate().map(|(i, p)| {
            let payload = vec![i as u8; p.len];
            if p.udp { return udp(p.v6, p.port, &payload); }
            let seq = seqs.entry((p.v6, p.port)).or_default();
            if p.gap { *seq = seq.wrapping_add(77); }
            let one = tcp(p.v6, p.port, *seq, if p.psh { PSH } else { 0 }, &payload);
            *seq = seq.wrapping_add(p.len as u32);
            one
        }).collect();
        let writes = coalesce(&packets);
        let mut seen = Vec::new();
        for w in &writes {
            prop_assert!(w.len() <= VnetHeader::LEN + MAX_PACKET);
            for one in split_all(w) {
                prop_assert!(sound(&one));
                seen.push(one);
            }
        }
        prop_assert_eq!(seen.len(), packets.len());
        let flow = |p: &Vec<u8>| { let l = Layout::of(p).unwrap(); (l.protocol.number(), l.ip, p[l.ip..l.ip + 4].to_vec()) };
        let mut flows: Vec<_> = packets.iter().map(flow).collect();
        flows.sort();
        flows.dedup();
        for f in flows {
            let strip = |p: &Vec<u8>| { let l = Layout::of(p).unwrap();
                (payload_of(p), if l.protocol == Protocol::Tcp { be32(p, l.ip + 4) } else { 0 }) };
            let expected: Vec<_> = packets.iter().filter(|p| flow(p) == f).map(strip).collect();
            let got: Vec<_> = seen.iter().filter(|p| flow(p) == f).map(strip).collect();
            prop_assert_eq!(expected, got);
        }
    }

    /// Random bytes with a random header cause no panic.
    #[test]
    fn garbage_is_refused_or_split(header in any::<[u8; 10]>(), kind in 0..7u8, mut packet in proptest::collection::vec(any::<u8>(), 0..400), start in prop::sample::select(vec![0x45u8, 0x60, 0x46, 0])) {
        let mut h = VnetHeader::decode(&header);
        h.gso_type = kind;
        if let Some(b) = packet.first_mut() { *b = start; }
        let _ = split(&h, &mut packet, |p| { let mut c = Coalescer::new(true); c.push(p, &mut |_, _| {}); c.flush(&mut |_, _| {}); });
    }
}
