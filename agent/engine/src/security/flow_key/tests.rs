use super::*;
use crate::packet::parse;
use proptest::prelude::*;

const A: [u8; 4] = [10, 0, 0, 1];
const B: [u8; 4] = [10, 1, 0, 2];

/// An IPv4 packet from [`A`] to [`B`]. `fragment` is the word of the header with the flags and the fragment offset.
fn v4(protocol: u8, fragment: u16, transport: &[u8]) -> Vec<u8> {
    let len = u16::try_from(20 + transport.len()).unwrap().to_be_bytes();
    let [flags, offset] = fragment.to_be_bytes();
    let mut packet = vec![0x45, 0, len[0], len[1], 0x12, 0x34, flags, offset, 64, protocol, 0, 0];
    packet.extend(A);
    packet.extend(B);
    packet.extend(transport);
    packet
}

/// An IPv6 packet from fd00::1 to fd00::2. `first` is the number of the header at the beginning of `rest`.
fn v6(first: u8, rest: &[u8]) -> Vec<u8> {
    let len = u16::try_from(rest.len()).unwrap().to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0, len[0], len[1], first, 64];
    for last in [1, 2] {
        packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    }
    packet.extend(rest);
    packet
}

fn tcp(from: u16, to: u16, flags: u8) -> Vec<u8> {
    let mut header = [from.to_be_bytes(), to.to_be_bytes()].concat();
    header.extend([0; 8]);
    header.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
    header
}

fn udp(from: u16, to: u16) -> Vec<u8> {
    [from.to_be_bytes(), to.to_be_bytes(), [0, 8], [0, 0]].concat()
}

fn of(packet: &[u8]) -> Belongs {
    belongs_to(packet, &parse(packet).unwrap(), 3, Direction::Inbound)
}

/// The packet with exchanged addresses.
fn turned(mut packet: Vec<u8>) -> Vec<u8> {
    let (at, len) = if packet[0] >> 4 == 4 { (12, 4) } else { (8, 16) };
    packet[at..at + 2 * len].rotate_left(len);
    packet
}

fn key(protocol: u8, ports: (u16, u16)) -> FlowKey {
    FlowKey {
        nic: 3,
        direction: Direction::Inbound,
        protocol,
        source: A.into(),
        destination: B.into(),
        ports,
    }
}

#[test]
fn tcp_segments_say_what_they_do_to_the_flow() {
    let segment_of = |flags| match of(&v4(TCP, 0, &tcp(40_000, 443, flags))) {
        Belongs::Flow { key: found, tcp } if found == key(TCP, (40_000, 443)) => tcp,
        other => panic!("{other:?}"),
    };
    let syn = TcpFlags {
        syn: true,
        ..TcpFlags::default()
    };
    let opens = Segment {
        opens: true,
        flags: syn,
        ..Segment::default()
    };
    assert_eq!(segment_of(0x02), opens);
    let answers = Segment {
        acknowledges: true,
        flags: syn,
        ..Segment::default()
    };
    assert_eq!(segment_of(0x12), answers);
    assert!(segment_of(0x10).acknowledges && !segment_of(0x10).flags.syn);
    assert!(segment_of(0x11).flags.fin && segment_of(0x04).flags.rst);
}

#[test]
fn echo_requests_and_replies_are_one_flow_by_their_identifier() {
    let request = v4(ICMP, 0, &[8, 0, 0, 0, 0xab, 0xcd, 0, 1]);
    let reply = v4(ICMP, 0, &[0, 0, 0, 0, 0xab, 0xcd, 0, 1]);
    for (packet, asks) in [(request, true), (reply, false)] {
        let expected = Belongs::Flow {
            key: key(ICMP, (0xabcd, 0xabcd)),
            tcp: Segment {
                asks,
                ..Segment::default()
            },
        };
        assert_eq!(of(&packet), expected);
    }
}

#[test]
fn d31_an_icmp_error_belongs_to_the_flow_that_it_quotes() {
    // The error goes to the sender of the packet that it quotes.
    let quoted = turned(v4(UDP, 0, &udp(5000, 53)));
    let mut unreachable = vec![3, 3, 0, 0, 0, 0, 0, 0];
    unreachable.extend(&quoted);
    assert_eq!(
        of(&v4(ICMP, 0, &unreachable)),
        Belongs::Error {
            quoted: FlowKey {
                direction: Direction::Outbound,
                source: B.into(),
                destination: A.into(),
                ..key(UDP, (5000, 53))
            }
        }
    );
    // Routers quote at least 8 bytes of the transport header (RFC 792). This quotation has 3 bytes, too few to contain
    // the ports.
    let short = &unreachable[..8 + 20 + 3];
    let expected = Belongs::Flow {
        key: key(ICMP, (0, 0)),
        tcp: Segment::default(),
    };
    assert_eq!(of(&v4(ICMP, 0, short)), expected);
}

#[test]
fn an_icmp_error_about_an_icmp_error_belongs_to_no_other_flow() {
    let mut inner = vec![3, 3, 0, 0, 0, 0, 0, 0];
    inner.extend(v4(UDP, 0, &udp(5000, 53)));
    let mut outer = vec![11, 0, 0, 0, 0, 0, 0, 0];
    outer.extend(v4(ICMP, 0, &inner));
    assert_eq!(
        of(&v4(ICMP, 0, &outer)),
        Belongs::Flow {
            key: key(ICMP, (0, 0)),
            tcp: Segment::default()
        }
    );
}

#[test]
fn icmpv6_errors_and_echoes_are_told_apart() {
    let mut too_big = vec![2, 0, 0, 0, 0, 0, 5, 0];
    too_big.extend(turned(v6(TCP, &tcp(40_000, 22, 0x10))));
    let Belongs::Error { quoted } = of(&v6(ICMPV6, &too_big)) else {
        panic!()
    };
    assert_eq!((quoted.protocol, quoted.ports), (TCP, (40_000, 22)));
    let Belongs::Flow { key, .. } = of(&v6(ICMPV6, &[128, 0, 0, 0, 0, 7, 0, 1])) else {
        panic!()
    };
    assert_eq!((key.protocol, key.ports), (ICMPV6, (7, 7)));
}

#[test]
fn truncated_transport_headers_are_malformed() {
    assert_eq!(of(&v4(TCP, 0, &tcp(1, 2, 0x10)[..13])), Belongs::Malformed);
    assert_eq!(of(&v4(UDP, 0, &udp(1, 2)[..7])), Belongs::Malformed);
    assert_eq!(of(&v4(ICMP, 0, &[8, 0, 0, 0, 1])), Belongs::Malformed);
    assert_eq!(of(&v4(TCP, 0, &[])), Belongs::Malformed);
}

#[test]
fn fragments_are_found_by_their_identification() {
    let first = v4(UDP, 0x2000, &udp(5000, 53));
    let Belongs::Flow { key: found, .. } = of(&first) else {
        panic!()
    };
    assert_eq!(found, key(UDP, (5000, 53)));
    let later = v4(UDP, 3, &[0; 8]);
    let Belongs::Fragment { of: fragment, data } = of(&later) else {
        panic!()
    };
    assert_eq!((fragment.identification, data), (0x1234, 24..32));
    assert_eq!(fragment_of(&first, &parse(&first).unwrap()), Some((fragment, 0..8)));
    let whole = v4(UDP, 0x4000, &udp(5000, 53));
    assert_eq!(fragment_of(&whole, &parse(&whole).unwrap()), None);
}

#[test]
fn ipv6_fragments_are_found_by_their_identification() {
    let header = |offset: u8| [UDP, 0, 0, offset, 1, 2, 3, 4];
    let first = v6(FRAGMENT_HEADER, &[&header(1)[..], &udp(5000, 53)].concat());
    let Belongs::Flow { key, .. } = of(&first) else {
        panic!()
    };
    assert_eq!((key.protocol, key.ports), (UDP, (5000, 53)));
    let later = v6(FRAGMENT_HEADER, &[&header(16)[..], &[0; 8]].concat());
    let Belongs::Fragment { of: fragment, data } = of(&later) else {
        panic!()
    };
    assert_eq!((fragment.identification, data), (0x0102_0304, 16..24));
    assert_eq!(fragment_of(&first, &parse(&first).unwrap()), Some((fragment, 0..8)));
}

/// Later fragments of such a datagram name the next extension header, and not the protocol (RFC 8200, section 4.5).
#[test]
fn ipv6_fragments_with_further_extension_headers_are_of_one_datagram() {
    let header = |offset: u8| [60, 0, 0, offset, 1, 2, 3, 4];
    let options = [TCP, 0, 1, 4, 0, 0, 0, 0];
    let first = v6(
        FRAGMENT_HEADER,
        &[&header(1)[..], &options, &tcp(40_000, 22, 0x02)].concat(),
    );
    let Belongs::Flow { key, tcp } = of(&first) else {
        panic!()
    };
    assert_eq!((key.protocol, key.ports, tcp.opens), (TCP, (40_000, 22), true));
    let later = v6(FRAGMENT_HEADER, &[&header(32)[..], &[0; 8]].concat());
    let Belongs::Fragment { of: fragment, data } = of(&later) else {
        panic!()
    };
    assert_eq!(fragment_of(&first, &parse(&first).unwrap()), Some((fragment, 0..28)));
    assert_eq!(data, 32..40);
    // The first fragment must contain the whole chain of headers (RFC 7112).
    let cut = v6(FRAGMENT_HEADER, &[&header(1)[..], &options].concat());
    assert_eq!(of(&cut), Belongs::Malformed);
}

/// Rules with the protocol `Ah` match packets of both versions of IP.
#[test]
fn n1_an_authentication_header_is_a_protocol_of_its_own() {
    const AH: u8 = 51;
    let header = [
        &[TCP, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1][..],
        &[0; 12],
        &tcp(40_000, 22, 0x02),
    ]
    .concat();
    for packet in [
        v4(AH, 0, &header),
        v6(AH, &header),
        v6(60, &[&[AH, 0, 1, 4, 0, 0, 0, 0][..], &header].concat()),
    ] {
        let Belongs::Flow { key, .. } = of(&packet) else {
            panic!()
        };
        assert_eq!((key.protocol, key.ports), (AH, (0, 0)));
    }
}

#[test]
fn a_fragment_that_overwrites_tcp_flags_is_malformed() {
    assert_eq!(of(&v4(TCP, 1, &[0; 8])), Belongs::Malformed);
    assert!(matches!(of(&v4(TCP, 2, &[0; 8])), Belongs::Fragment { .. }));
}

proptest! {
    #[test]
    fn any_bytes_belong_somewhere(packet in proptest::collection::vec(any::<u8>(), 0..200), version in 0u8..3) {
        let mut packet = packet;
        if let Some(first) = packet.first_mut() {
            *first = [0x45, 0x60, *first][usize::from(version)];
        }
        if let Some(info) = parse(&packet) {
            let found = belongs_to(&packet, &info, 0, Direction::Inbound);
            if let Belongs::Flow { key, .. } = found {
                prop_assert_eq!((key.source, key.destination), (info.source, info.destination));
            }
        }
    }
}

/// An IPv6 packet with this number of destination options headers before a TCP header.
fn v6_with_options(count: usize) -> Vec<u8> {
    let mut payload = Vec::new();
    for number in 0..count {
        let next = if number + 1 == count { TCP } else { 60 };
        payload.extend([next, 0, 1, 4, 0, 0, 0, 0]);
    }
    payload.extend(tcp(40_000, 22, 0x02));
    let len = u16::try_from(payload.len()).unwrap().to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0, len[0], len[1], if count == 0 { TCP } else { 60 }, 64];
    packet.extend([0xfd; 16]);
    packet.extend([0xfc; 16]);
    packet.extend(payload);
    packet
}

#[test]
fn a_packet_with_more_extension_headers_than_are_read_belongs_to_no_flow() {
    for count in 0..=8 {
        let packet = v6_with_options(count);
        let found = of(&packet);
        let is_tcp = matches!(&found, Belongs::Flow { key, .. } if key.protocol == TCP && key.ports == (40_000, 22));
        assert!(is_tcp || found == Belongs::Malformed, "{count} headers: {found:?}");
    }
    assert_eq!(of(&v6_with_options(9)), Belongs::Malformed);
    assert_eq!(of(&v6_with_options(30)), Belongs::Malformed);
}

#[test]
fn an_icmp_error_that_quotes_a_packet_of_another_machine_belongs_to_no_flow_of_it() {
    let quoted = |source: [u8; 4]| {
        let mut quoted = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, TCP, 0, 0];
        quoted.extend(source);
        quoted.extend(A);
        quoted.extend(tcp(443, 40_000, 0x10));
        quoted
    };
    let error = |source| [&[3, 1, 0, 0, 0, 0, 0, 0][..], &quoted(source)].concat();
    assert!(matches!(of(&v4(ICMP, 0, &error(B))), Belongs::Error { .. }));
    assert!(matches!(of(&v4(ICMP, 0, &error([10, 9, 9, 9]))), Belongs::Flow { .. }));
}
