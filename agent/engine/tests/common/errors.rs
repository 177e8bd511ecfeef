//! ICMP errors for tests of load balancers.

use super::ip;
use etherparse::PacketBuilder;
use std::net::IpAddr;
use tombolo_engine::packet::parse;

/// The ICMP error that a packet is too big, with the MTU 1400, from `from` to `to`. It quotes these bytes.
pub fn too_big(from: &str, to: &str, quote: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mtu = [0, 0, 5, 0x78];
    match (ip(from), ip(to)) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 64)
            .icmpv4_raw(3, 4, mtu)
            .write(&mut out, quote)
            .unwrap(),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 64)
            .icmpv6_raw(2, 0, mtu)
            .write(&mut out, quote)
            .unwrap(),
        _ => panic!("two families"),
    }
    out
}

/// Asserts that a packet is this error, with a right checksum, of which there may be two forms.
#[track_caller]
pub fn assert_error(got: &[u8], (from, to): (&str, &str), quote: &[u8]) {
    let expected = too_big(from, to, quote);
    let at = parse(got).unwrap().transport.unwrap();
    let without = |packet: &[u8]| {
        let mut packet = packet.to_vec();
        packet[at + 2..at + 4].fill(0);
        packet
    };
    assert_eq!(without(got), without(&expected));
    let checksum = |packet: &[u8]| match u16::from_be_bytes([packet[at + 2], packet[at + 3]]) {
        0xffff => 0,
        other => other,
    };
    assert_eq!(checksum(got), checksum(&expected));
}
