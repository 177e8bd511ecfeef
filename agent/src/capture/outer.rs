//! The headers of a datagram in the underlay. The kernel adds and removes them, so the agent does not see them; captures
//! have them as they follow from the path of the datagram.

use std::net::{IpAddr, SocketAddr};

/// Length of the longest headers: IPv6 and UDP.
pub const MAX_HEAD: usize = 48;

/// Length of the header of IPv4.
const IPV4_HEAD: usize = 20;
/// Length of the header of IPv6.
const IPV6_HEAD: usize = 40;
/// Length of the header of UDP.
const UDP_HEAD: usize = 8;
/// The number of UDP in the header of IP.
const UDP: u8 = 17;
/// The TTL of the headers. The real one is not known.
const TTL: u8 = 64;

/// Writes the headers of IP and UDP in front of `payload` bytes from `from` to `to`, which have one address family. Returns
/// their length. The checksum of UDP is 0, which means for IPv4 that there is none; the other fields that the agent does not
/// know have usual values.
pub fn write(head: &mut [u8; MAX_HEAD], from: SocketAddr, to: SocketAddr, payload: usize) -> usize {
    head.fill(0);
    // A UDP payload has at most 65,507 bytes.
    let udp_length = u16::try_from(UDP_HEAD + payload).unwrap_or(u16::MAX);
    let length = match (from.ip(), to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            head[0] = 0x45;
            let total = udp_length.saturating_add(20);
            head[2..4].copy_from_slice(&total.to_be_bytes());
            (head[8], head[9]) = (TTL, UDP);
            head[12..16].copy_from_slice(&source.octets());
            head[16..20].copy_from_slice(&destination.octets());
            let sum = checksum(&head[..IPV4_HEAD]);
            head[10..12].copy_from_slice(&sum.to_be_bytes());
            IPV4_HEAD
        }
        (source, destination) => {
            head[0] = 0x60;
            head[4..6].copy_from_slice(&udp_length.to_be_bytes());
            (head[6], head[7]) = (UDP, TTL);
            head[8..24].copy_from_slice(&octets(source));
            head[24..40].copy_from_slice(&octets(destination));
            IPV6_HEAD
        }
    };
    head[length..length + 2].copy_from_slice(&from.port().to_be_bytes());
    head[length + 2..length + 4].copy_from_slice(&to.port().to_be_bytes());
    head[length + 4..length + 6].copy_from_slice(&udp_length.to_be_bytes());
    length + UDP_HEAD
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// The checksum of an IPv4 header whose own field is 0 (RFC 1071).
fn checksum(header: &[u8]) -> u16 {
    let words = header
        .chunks_exact(2)
        .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    #[expect(clippy::cast_possible_truncation, reason = "the second folding leaves 16 bits")]
    let folded = ((folded & 0xffff) + (folded >> 16)) as u16;
    !folded
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    #[test]
    fn d42_the_headers_of_a_datagram_are_valid() {
        for (from, to) in [
            ("192.0.2.1:51820", "192.0.2.7:443"),
            ("[2001:db8::1]:51820", "[2001:db8::7]:443"),
        ] {
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            let mut head = [0xff; MAX_HEAD];
            let length = write(&mut head, from, to, 5);
            let packet = [&head[..length], b"hello"].concat();
            let sliced = SlicedPacket::from_ip(&packet).unwrap();
            match sliced.net.unwrap() {
                NetSlice::Ipv4(ip) => {
                    assert_eq!(
                        ip.header().header_checksum(),
                        ip.header().to_header().calc_header_checksum()
                    );
                    assert_eq!(IpAddr::from(ip.header().source_addr()), from.ip());
                    assert_eq!(IpAddr::from(ip.header().destination_addr()), to.ip());
                }
                NetSlice::Ipv6(ip) => {
                    assert_eq!(IpAddr::from(ip.header().source_addr()), from.ip());
                    assert_eq!(IpAddr::from(ip.header().destination_addr()), to.ip());
                }
                NetSlice::Arp(_) => panic!("no IP packet"),
            }
            let Some(TransportSlice::Udp(udp)) = sliced.transport else {
                panic!("no UDP datagram")
            };
            assert_eq!((udp.source_port(), udp.destination_port()), (from.port(), to.port()));
            assert_eq!(udp.payload(), b"hello");
        }
    }
}
