//! A checked view of an IP packet. [`parse`] checks the headers once; the other functions rely on its result and may
//! panic on bytes that were not parsed.

pub mod icmp;
pub mod quoted;
pub mod reset;
pub mod rewrite;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// TCP's number in the protocol field of IP.
pub const TCP: u8 = 6;
/// UDP's number in the protocol field of IP.
pub const UDP: u8 = 17;
/// ICMP's number in the protocol field of IPv4.
pub const ICMP: u8 = 1;
/// ICMPv6's number in the next-header field of IPv6.
pub const ICMPV6: u8 = 58;

/// The header fields that the engine uses. [`parse`] creates this value, and guarantees that all offsets lie within the
/// packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketInfo {
    /// Source address of the IP header.
    pub source: IpAddr,
    /// Destination address of the IP header.
    pub destination: IpAddr,
    /// TTL of IPv4, or hop limit of IPv6.
    pub ttl: u8,
    /// Protocol number of the transport header; in IPv6, this header comes after the extension headers. If there are
    /// more than eight extension headers, or one is cut off, this is the number of the first header that was not
    /// parsed. An authentication header (AH, 51) counts as a transport header in both versions of IP.
    pub protocol: u8,
    /// Offset of the transport header in bytes. `None`: the packet is a fragment other than the first, it has no bytes
    /// after the IP header, or its IPv6 extension headers were not parsed to their end.
    pub transport: Option<usize>,
    /// Source port (upper 16 bits) and destination port of TCP and UDP, to distinguish flows. 0 for other protocols,
    /// and for all fragments of a packet: only the first fragment has ports, and all must get the same value (D13).
    pub ports: u32,
    /// Length of the packet according to its IP header, in bytes. Any bytes of the buffer after that are padding and do
    /// not belong to the packet.
    pub len: usize,
}

/// Parses the headers of an IP packet that starts at the first byte of `packet`. Checksums are not checked. Returns
/// `None` if the IP version is neither 4 nor 6, if the buffer is shorter than the header or than the header's length
/// field says, or if the length fields of an IPv4 header contradict each other.
#[must_use]
pub fn parse(packet: &[u8]) -> Option<PacketInfo> {
    match packet.first()? >> 4 {
        4 => parse_v4(packet, false),
        6 => parse_v6(packet, false),
        _ => None,
    }
}

/// Parses the headers of a packet of which only the beginning may be there, as in the quotation of an ICMP error. The
/// length in the result is that of the bytes that are there and belong to the packet. `None`: as for [`parse`], but not
/// because bytes are missing after the IP header.
fn parse_start(packet: &[u8]) -> Option<PacketInfo> {
    match packet.first()? >> 4 {
        4 => parse_v4(packet, true),
        6 => parse_v6(packet, true),
        _ => None,
    }
}

fn parse_v4(p: &[u8], may_be_cut: bool) -> Option<PacketInfo> {
    let header = p.get(..20)?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header_len < 20 || len < header_len || len > p.len() && !may_be_cut {
        return None;
    }
    let len = len.min(p.len());
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
    let later_fragment = fragment & 0x1fff != 0;
    Some(PacketInfo {
        source: IpAddr::V4(Ipv4Addr::new(header[12], header[13], header[14], header[15])),
        destination: IpAddr::V4(Ipv4Addr::new(header[16], header[17], header[18], header[19])),
        ttl: header[8],
        protocol: header[9],
        transport: (!later_fragment && len > header_len).then_some(header_len),
        ports: if fragment == 0 {
            ports(&p[..len], header[9], header_len)
        } else {
            0
        },
        len,
    })
}

fn parse_v6(p: &[u8], may_be_cut: bool) -> Option<PacketInfo> {
    let header: &[u8; 40] = p.get(..40)?.try_into().ok()?;
    let len = usize::from(u16::from_be_bytes([header[4], header[5]])) + 40;
    if len > p.len() && !may_be_cut {
        return None;
    }
    let len = len.min(p.len());
    let address = |at: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&header[at..at + 16]);
        IpAddr::V6(Ipv6Addr::from(octets))
    };
    let (mut protocol, mut at, mut fragment, mut later_fragment) = (header[6], 40usize, false, false);
    // Extension headers: hop-by-hop (0), routing (43), fragment (44) and destination options (60). At most eight
    // extension headers are parsed, to bound the work per packet; real packets have fewer. What follows an
    // authentication header is not parsed, as in IPv4, so that security rules for the protocol AH match such packets.
    for _ in 0..8 {
        let Some(next) = p[..len].get(at..at + 8) else { break };
        let extension_len = match protocol {
            0 | 43 | 60 => (usize::from(next[1]) + 1) * 8,
            44 => {
                let offset_and_more = u16::from_be_bytes([next[2], next[3]]);
                later_fragment |= offset_and_more & 0xfff8 != 0;
                fragment |= offset_and_more & 0xfff9 != 0;
                8
            }
            _ => break,
        };
        protocol = next[0];
        at += extension_len;
        if later_fragment {
            break;
        }
    }
    let extension = matches!(protocol, 0 | 43 | 60 | 44);
    Some(PacketInfo {
        source: address(8),
        destination: address(24),
        ttl: header[7],
        protocol,
        transport: (!later_fragment && !extension && at < len).then_some(at),
        ports: if fragment { 0 } else { ports(&p[..len], protocol, at) },
        len,
    })
}

/// The source and destination port of a TCP or UDP header at offset `at`; 0 for other protocols and for a header that
/// is cut off.
fn ports(packet: &[u8], protocol: u8, at: usize) -> u32 {
    let ports = packet.get(at..).and_then(|transport| transport.first_chunk());
    match (protocol, ports) {
        (TCP | UDP, Some(ports)) => u32::from_be_bytes(*ports),
        _ => 0,
    }
}

/// Whether the packet is a TCP segment that asks for a new connection: it has SYN and not ACK. `info` must be the result
/// of parsing this packet.
#[must_use]
pub fn opens_connection(packet: &[u8], info: &PacketInfo) -> bool {
    const FLAGS: usize = 13;
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    let tcp = info.transport.filter(|_| info.protocol == TCP);
    let flags = tcp.and_then(|tcp| packet.get(tcp + FLAGS));
    flags.is_some_and(|flags| flags & (SYN | ACK) == SYN)
}

/// Whether routers may not fragment the packet: always for IPv6, and for IPv4 with the DF flag. The packet must have
/// been parsed.
///
/// # Panics
/// May panic if [`parse`] does not accept `packet`.
#[must_use]
pub fn may_not_fragment(packet: &[u8]) -> bool {
    packet[0] >> 4 == 6 || packet[6] & 0x40 != 0
}

/// Smallest MTU of an IPv6 link, in bytes (RFC 8200, section 5).
pub const IPV6_MIN_MTU: u16 = 1280;

/// The ECN field of a packet (RFC 3168).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ecn {
    /// Not-ECT: the sender does not support ECN.
    Not,
    /// ECT: the sender supports ECN.
    Capable,
    /// CE: congestion was experienced.
    Marked,
}

/// The two ECN bits of a packet, 0 to 3 (RFC 3168). The packet must have been parsed.
///
/// # Panics
/// May panic if [`parse`] does not accept `packet`.
#[must_use]
pub fn ecn_bits(packet: &[u8]) -> u8 {
    let class = if packet[0] >> 4 == 4 { packet[1] } else { packet[1] >> 4 };
    class & 3
}

/// The ECN field of a packet, which must have been parsed.
///
/// # Panics
/// May panic if [`parse`] does not accept `packet`.
#[must_use]
pub fn ecn(packet: &[u8]) -> Ecn {
    match ecn_bits(packet) {
        0 => Ecn::Not,
        CONGESTION => Ecn::Marked,
        _ => Ecn::Capable,
    }
}

/// The ECN bits for CE, congestion experienced.
pub const CONGESTION: u8 = 3;

/// Combines the ECN field of a tunnel's outer header with the ECN field of the inner packet (RFC 6040, section 4.2).
/// `outer`, 0 to 3, is the outer field. Sets CE in `packet` if `outer` is CE and the sender of `packet` supports ECN.
/// The packet must have been parsed.
///
/// Returns `false`, and changes nothing, if the packet must be dropped: the outer header has CE, and the inner sender
/// does not support ECN.
///
/// # Panics
/// May panic if [`parse`] does not accept `packet`.
#[must_use]
pub fn decapsulate_ecn(packet: &mut [u8], outer: u8) -> bool {
    match (outer, ecn(packet)) {
        (CONGESTION, Ecn::Not) => return false,
        (CONGESTION, Ecn::Capable) => mark(packet),
        _ => {}
    }
    true
}

/// Sets CE in a packet, whatever its ECN field was, and updates the IPv4 header checksum. The packet must have been
/// parsed.
///
/// # Panics
/// May panic if [`parse`] does not accept `packet`.
pub fn mark(packet: &mut [u8]) {
    if packet[0] >> 4 == 4 {
        let before = u32::from(u16::from_be_bytes([packet[0], packet[1]]));
        packet[1] |= 3;
        let after = u32::from(u16::from_be_bytes([packet[0], packet[1]]));
        // RFC 1624, equation 3: updates the checksum for one changed 16-bit word.
        let sum = u32::from(!u16::from_be_bytes([packet[10], packet[11]])) + (!before & 0xffff) + after;
        let folded = (sum & 0xffff) + (sum >> 16);
        let folded = !((folded & 0xffff) + (folded >> 16));
        packet[10..12].copy_from_slice(&folded.to_be_bytes()[2..]);
    } else {
        packet[1] |= 0x30;
    }
}

/// Decrements the TTL, or the hop limit for IPv6, and updates the IPv4 header checksum. A TTL of 0 stays as it is. The
/// packet must have been parsed.
///
/// # Panics
/// May panic if [`parse`] does not accept `packet`.
pub fn decrement_ttl(packet: &mut [u8]) {
    if packet[0] >> 4 == 4 {
        let Some(ttl) = packet[8].checked_sub(1) else { return };
        packet[8] = ttl;
        // RFC 1141: the checksum grows by the amount by which the header word shrinks.
        let sum = u32::from(u16::from_be_bytes([packet[10], packet[11]])) + 0x0100;
        // The carry is added back, as ones' complement addition demands. A result of 0xffff becomes 0, because a newly
        // computed checksum would be 0.
        let folded = (sum + u32::from(sum >= 0xffff)) & 0xffff;
        packet[10..12].copy_from_slice(&folded.to_be_bytes()[2..]);
    } else {
        packet[7] = packet[7].saturating_sub(1);
    }
}

/// Lowers the MSS option of a TCP SYN to the value with which segments fit into IP packets of `mtu` bytes, headers
/// included, and updates the TCP checksum. `info` must be the result of parsing this packet. Returns `true` if it
/// changed the packet, and `false` if the packet is no TCP SYN, or if its SYN has no MSS option, a value that is low
/// enough, or malformed options.
///
/// # Panics
/// May panic if `info` is the result of another packet.
pub fn clamp_mss(packet: &mut [u8], info: &PacketInfo, mtu: u16) -> bool {
    const SYN: u8 = 0x02;
    let Some(tcp) = info.transport.filter(|_| info.protocol == TCP) else {
        return false;
    };
    let Some(header) = packet[..info.len].get(tcp..tcp + 20) else {
        return false;
    };
    if header[13] & SYN == 0 {
        return false;
    }
    let end = tcp + usize::from(header[12] >> 4) * 4;
    if end > info.len {
        return false;
    }
    let ip_header = if info.source.is_ipv4() { 20 } else { 40 };
    let limit = mtu.saturating_sub(ip_header + 20);
    let mut at = tcp + 20;
    while at < end {
        match packet[at] {
            0 => return false,
            1 => at += 1,
            2 if at + 4 <= end && packet[at + 1] == 4 => {
                let mss = u16::from_be_bytes([packet[at + 2], packet[at + 3]]);
                if mss <= limit {
                    return false;
                }
                packet[at + 2..at + 4].copy_from_slice(&limit.to_be_bytes());
                let odd = (at + 2 - tcp) % 2 == 1;
                adjust_checksum(&mut packet[tcp + 16..tcp + 18], mss, limit, odd);
                return true;
            }
            _ => match packet.get(at + 1) {
                Some(&len) if len >= 2 => at += usize::from(len),
                _ => return false,
            },
        }
    }
    false
}

/// Updates a checksum after a 16-bit value changed (RFC 1624). `odd`: the value is not aligned to 16 bits.
fn adjust_checksum(field: &mut [u8], old: u16, new: u16, odd: bool) {
    let (old, new) = if odd {
        (old.swap_bytes(), new.swap_bytes())
    } else {
        (old, new)
    };
    let mut sum = u32::from(!u16::from_be_bytes([field[0], field[1]])) + u32::from(!old) + u32::from(new);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    #[expect(clippy::cast_possible_truncation, reason = "folded to 16 bits")]
    field.copy_from_slice(&(!(sum as u16)).to_be_bytes());
}
