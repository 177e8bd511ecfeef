use super::super::parse;
use super::*;
use etherparse::PacketBuilder;
use proptest::prelude::*;

const ROUTER: (&str, &str) = ("10.9.9.9", "fd99::9");

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A packet of a flow between two addresses of one family, with correct checksums.
fn packet(from: IpAddr, to: IpAddr, tcp: bool, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let start = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 7),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 7),
        _ => panic!("two families"),
    };
    let mut out = Vec::new();
    if tcp {
        start
            .tcp(ports.0, ports.1, 1, 1000)
            .syn()
            .write(&mut out, payload)
            .unwrap();
    } else {
        start.udp(ports.0, ports.1).write(&mut out, payload).unwrap();
    }
    out
}

/// An ICMP error of this type from `from` to `to`, which quotes these bytes. For the types "fragmentation needed" and
/// "packet too big", the MTU is 1400.
fn error(from: IpAddr, to: IpAddr, kind: u8, quote: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let rest = [0, 0, 5, 0x78];
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 64)
            .icmpv4_raw(kind, 4, rest)
            .write(&mut out, quote)
            .unwrap(),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 64)
            .icmpv6_raw(kind, 0, rest)
            .write(&mut out, quote)
            .unwrap(),
        _ => panic!("two families"),
    }
    out
}

/// Whether the checksums of the IPv4 header and of ICMP are right.
fn is_valid(packet: &[u8]) -> bool {
    let info = parse(packet).unwrap();
    let message = &packet[info.transport.unwrap()..info.len];
    match (info.source, info.destination) {
        (IpAddr::V4(_), _) => sum(&packet[..20]) == 0xffff && sum(message) == 0xffff,
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let len = u32::try_from(message.len()).unwrap().to_be_bytes();
            let pseudo_header = [&from.octets()[..], &to.octets(), &len, &[0, 0, 0, ICMPV6]].concat();
            sum(&[&pseudo_header, message].concat()) == 0xffff
        }
        _ => unreachable!(),
    }
}

/// The packet without the checksum of its ICMP message, which may have two forms.
fn without_checksum(packet: &[u8]) -> Vec<u8> {
    let at = parse(packet).unwrap().transport.unwrap();
    let mut packet = packet.to_vec();
    packet[at + 2..at + 4].fill(0);
    packet
}

proptest! {
    /// The translated error is the error that quotes the translated packet, however much it quotes.
    #[test]
    fn l5_an_error_quotes_what_the_other_end_knows(
        v6: bool, tcp: bool, payload in proptest::collection::vec(any::<u8>(), 0..60), cut in 0usize..140,
        new: [u8; 16], ports: (u16, u16), port: u16, source: bool, kind in 0usize..4, own: bool,
    ) {
        let pick = |(v4, v6_text): (&str, &str)| address(if v6 { v6_text } else { v4 });
        let (client, back) = (pick(("10.0.0.1", "fd00::1")), pick(("10.0.0.6", "fd00::6")));
        let new: IpAddr = if v6 { new.into() } else { [new[0], new[1], new[2], new[3]].into() };
        let kind = if v6 { [1, 2, 3, 4][kind] } else { [3, 11, 12, 4][kind] };
        let original = packet(client, back, tcp, ports, &payload);
        let (end, old) = if source { (End::Source, client) } else { (End::Destination, back) };
        let mut translated = original.clone();
        let mut info = parse(&translated).unwrap();
        prop_assert!(rewrite(&mut translated, &mut info, end, (new, port)));

        let header = if v6 { 40 } else { 20 };
        let cut = cut.min(original.len());
        // The error may come from the end itself, whose address is replaced too, or from a router.
        let (from, to) = match (source, own) {
            (true, true) => (pick(ROUTER), old),
            (true, false) => (pick(ROUTER), pick(ROUTER)),
            (false, true) => (old, client),
            (false, false) => (pick(ROUTER), client),
        };
        let mut got = error(from, to, kind, &original[..cut]);
        let before = got.clone();
        let mut info = parse(&got).unwrap();
        let expected_flow = (cut >= header + 4 && to == client && (ports != (0, 0))).then_some(
            (back, client, u32::from(ports.1) << 16 | u32::from(ports.0)));
        let flow = flow_of_error(&got, &info).map(|flow| (flow.source, flow.destination, flow.ports));
        prop_assert_eq!(flow, expected_flow);
        let opposite = if source { End::Destination } else { End::Source };
        let done = translate(&mut got, &mut info, opposite, old, (new, port));
        prop_assert_eq!(done, cut >= header);
        prop_assert!(is_valid(&got));
        if !done {
            prop_assert_eq!(got, before);
            return Ok(());
        }
        prop_assert_eq!(parse(&got), Some(info));
        // A field of which only a part is quoted is left as it was.
        let checksum_at = header + if tcp { 16 } else { 6 };
        if cut <= header || cut >= header + 4 && cut != checksum_at + 1 {
            let (from, to) = match end {
                End::Source => (from, if to == old { new } else { to }),
                End::Destination => (if from == old { new } else { from }, to),
            };
            let expected = error(from, to, kind, &translated[..cut]);
            prop_assert_eq!(without_checksum(&got), without_checksum(&expected));
        }
        // And back.
        let old_port = if source { ports.0 } else { ports.1 };
        if port != 0 && old_port != 0 {
            let mut info = parse(&got).unwrap();
            let back_from = if own { new } else { old };
            prop_assert!(translate(&mut got, &mut info, opposite, back_from, (old, old_port)));
            prop_assert!(is_valid(&got));
            prop_assert_eq!(without_checksum(&got), without_checksum(&before));
        }
    }

    #[test]
    fn l5_anything_that_is_quoted_is_read_without_harm(
        v6: bool, quote in proptest::collection::vec(any::<u8>(), 0..200), version in 0usize..3, kind: u8, source: bool,
    ) {
        let mut quote = quote;
        if let Some(first) = quote.first_mut() {
            *first = [*first, 0x45 | *first & 0x0f, 0x60][version];
        }
        let pick = |(v4, v6_text): (&str, &str)| address(if v6 { v6_text } else { v4 });
        let mut bytes = error(pick(ROUTER), pick(("10.0.0.1", "fd00::1")), kind, &quote);
        let mut info = parse(&bytes).unwrap();
        let flow = flow_of_error(&bytes, &info);
        prop_assert!(flow.is_none_or(|flow| flow.destination == info.destination));
        let end = if source { End::Source } else { End::Destination };
        let old = if source { info.source } else { info.destination };
        translate(&mut bytes, &mut info, end, old, (pick(("10.7.7.7", "fd77::7")), 77));
        prop_assert!(is_valid(&bytes));
        prop_assert_eq!(parse(&bytes), Some(info));
    }
}

/// A segment that is no error is translated itself.
#[test]
fn other_packets_are_translated_themselves() {
    let (client, back, front) = (address("10.0.0.1"), address("10.0.0.6"), address("10.0.255.36"));
    let mut got = packet(client, front, true, (40_000, 80), b"data");
    let mut info = parse(&got).unwrap();
    assert!(translate(&mut got, &mut info, End::Destination, front, (back, 8080)));
    assert_eq!(got, packet(client, back, true, (40_000, 8080), b"data"));
    assert_eq!(flow_of_error(&got, &info), None);
}
