//! TCP segments with RST that the engine sends in place of a back end that does not answer any more (D35, D36).

use super::{PacketInfo, TCP};
use etherparse::PacketBuilder;
use std::net::IpAddr;

/// Length of the longest reset in bytes: the headers of IPv6 and TCP without options.
const MAX_LEN: usize = 40 + 20;

/// The TTL of a reset.
const TTL: u8 = 64;

/// The flags of a TCP segment, in byte 13 of its header.
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// An IP packet that contains a TCP segment with RST.
#[derive(Debug, Clone)]
pub struct Reset {
    bytes: [u8; MAX_LEN],
    len: usize,
}

impl Reset {
    /// The packet, from its IP header on.
    #[must_use]
    pub fn packet(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// The header of the TCP segment in a packet. `None`: the packet is no TCP segment, or its header is cut off or in another
/// fragment.
fn header<'p>(packet: &'p [u8], info: &PacketInfo) -> Option<&'p [u8; 20]> {
    let at = info.transport.filter(|_| info.protocol == TCP)?;
    packet.get(..info.len)?.get(at..)?.first_chunk()
}

/// Builds the reset that ends the connection of a TCP segment. The reset goes to the sender of the segment, and comes from
/// `from`, the address and port to which the sender sent it. Its numbers are those of RFC 9293, 3.5.2, with which the
/// sender accepts it: the number that the sender expects next, or if the segment has no ACK, an acknowledgment of the
/// segment. `info` must be the result of parsing `packet`.
///
/// `None`: the packet is no TCP segment or has RST itself, its TCP header is cut off or in another fragment, or `from` is
/// of another address family than the sender.
#[must_use]
pub fn reset(packet: &[u8], info: &PacketInfo, from: (IpAddr, u16)) -> Option<Reset> {
    let tcp = header(packet, info)?;
    let flags = tcp[13];
    if flags & RST != 0 {
        return None;
    }
    let number = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
    let (address, port) = from;
    let to = u16::from_be_bytes([tcp[0], tcp[1]]);
    let builder = match (address, info.source) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), TTL),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), TTL),
        _ => return None,
    };
    let segment = if flags & ACK != 0 {
        builder.tcp(port, to, number(8), 0).rst()
    } else {
        let header_len = usize::from(tcp[12] >> 4) * 4;
        let data = info.len.saturating_sub(info.transport? + header_len);
        // SYN and FIN take a sequence number each.
        let length = u32::try_from(data).ok()? + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        builder.tcp(port, to, 0, 0).rst().ack(number(4).wrapping_add(length))
    };
    let mut bytes = [0; MAX_LEN];
    let mut rest = &mut bytes[..];
    segment.write(&mut rest, &[]).ok()?;
    let len = MAX_LEN - rest.len();
    Some(Reset { bytes, len })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{opens_connection, parse};
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    const CLIENT: [u8; 4] = [10, 0, 0, 4];
    const FRONT: [u8; 4] = [10, 0, 0, 36];

    /// A TCP segment of the client to port 80 of the front end, with the sequence number 1000 and this payload.
    fn segment(v6: bool, flags: u8, acknowledged: u32, payload: &[u8]) -> Vec<u8> {
        let builder = if v6 {
            PacketBuilder::ipv6([0xfd; 16], [0xfc; 16], 64)
        } else {
            PacketBuilder::ipv4(CLIENT, FRONT, 64)
        };
        let mut tcp = builder.tcp(40_000, 80, 1000, 64_000);
        if flags & SYN != 0 {
            tcp = tcp.syn();
        }
        if flags & FIN != 0 {
            tcp = tcp.fin();
        }
        if flags & RST != 0 {
            tcp = tcp.rst();
        }
        if flags & ACK != 0 {
            tcp = tcp.ack(acknowledged);
        }
        let mut packet = Vec::new();
        tcp.write(&mut packet, payload).unwrap();
        packet
    }

    fn answer(packet: &[u8], from: (IpAddr, u16)) -> Option<Vec<u8>> {
        let answer = reset(packet, &parse(packet)?, from)?;
        Some(answer.packet().to_vec())
    }

    /// Sequence number, acknowledgment number, and whether ACK is set, of a reset with correct checksums.
    fn numbers(packet: &[u8]) -> (u32, u32, bool) {
        let sliced = SlicedPacket::from_ip(packet).unwrap();
        let Some(TransportSlice::Tcp(tcp)) = &sliced.transport else {
            panic!("no TCP segment")
        };
        let header = tcp.to_header();
        let checksum = match sliced.net.as_ref().unwrap() {
            NetSlice::Ipv4(ip) => {
                assert_eq!(
                    ip.header().header_checksum(),
                    ip.header().to_header().calc_header_checksum()
                );
                header.calc_checksum_ipv4_raw(ip.header().source(), ip.header().destination(), &[])
            }
            NetSlice::Ipv6(ip) => header.calc_checksum_ipv6_raw(ip.header().source(), ip.header().destination(), &[]),
            NetSlice::Arp(_) => panic!("no IP packet"),
        };
        assert_eq!(header.checksum, checksum.unwrap());
        assert!(header.rst && !header.syn && !header.fin);
        assert_eq!((header.source_port, header.destination_port), (80, 40_000));
        (header.sequence_number, header.acknowledgment_number, header.ack)
    }

    #[test]
    fn d36_a_reset_has_the_numbers_that_its_receiver_expects() {
        let from = (FRONT.into(), 80);
        let to_data = answer(&segment(false, ACK, 7, b"hello"), from).unwrap();
        assert_eq!(numbers(&to_data), (7, 0, false));
        let to_end = answer(&segment(false, ACK | FIN, 8, b""), from).unwrap();
        assert_eq!(numbers(&to_end), (8, 0, false));
        let to_syn = answer(&segment(false, SYN, 0, b""), from).unwrap();
        assert_eq!(numbers(&to_syn), (0, 1001, true));
        let without_ack = answer(&segment(false, FIN, 0, b"hello"), from).unwrap();
        assert_eq!(numbers(&without_ack), (0, 1006, true));
        let info = parse(&to_data).unwrap();
        assert_eq!((info.source, info.destination), (FRONT.into(), CLIENT.into()));
    }

    #[test]
    fn d36_a_reset_is_never_answered_and_addresses_are_of_one_family() {
        let v4 = (FRONT.into(), 80);
        let v6 = (IpAddr::from([0xfc; 16]), 80);
        assert!(answer(&segment(false, RST | ACK, 7, b""), v4).is_none());
        assert!(answer(&segment(false, ACK, 7, b""), v6).is_none());
        assert_eq!(
            numbers(&answer(&segment(true, ACK, 7, b"x"), v6).unwrap()),
            (7, 0, false)
        );
        let mut udp = Vec::new();
        let builder = PacketBuilder::ipv4(CLIENT, FRONT, 64).udp(40_000, 80);
        builder.write(&mut udp, &[ACK; 40]).unwrap();
        assert!(answer(&udp, v4).is_none());
    }

    #[test]
    fn only_a_syn_without_ack_opens_a_connection() {
        let opens = |flags| {
            let packet = segment(false, flags, 0, b"");
            opens_connection(&packet, &parse(&packet).unwrap())
        };
        assert!(opens(SYN) && !opens(SYN | ACK) && !opens(ACK));
    }

    proptest! {
        /// Any bytes that parse as an IP packet give a reset or none, without a panic.
        #[test]
        fn hostile_segments_do_no_harm(v6: bool, flags in 0u8..64, cut in 0usize..90, byte in 0usize..90, value: u8) {
            let mut packet = segment(v6, flags, 7, b"hello world");
            let len = packet.len();
            packet[byte % len] = value;
            packet.truncate(len - cut % len);
            if let Some(reset) = parse(&packet).and_then(|info| reset(&packet, &info, (FRONT.into(), 80))) {
                prop_assert!(parse(reset.packet()).is_some());
            }
        }
    }
}
