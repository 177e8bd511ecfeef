//! Finds the flow to which a packet belongs (D30, D31).

use super::flow_table::{FlowKey, TcpFlags};
use crate::packet::quoted::is_error;
use crate::packet::{ICMP, ICMPV6, PacketInfo, TCP, UDP};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use tombolo_proto::config::Direction;

/// Number of IPv6's fragment header (RFC 8200).
const FRAGMENT_HEADER: u8 = 44;

/// The relation of a packet to the flows of a NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Belongs {
    /// The packet belongs to this flow.
    Flow {
        /// The key of the flow. Addresses, ports and direction are those of the packet.
        key: FlowKey,
        /// The TCP flags; all false for other protocols.
        tcp: Segment,
    },
    /// The packet is an ICMP error that quotes a packet of this flow.
    Error {
        /// The key of the flow. Addresses, ports and direction are those of the quoted packet, so the direction is
        /// opposite to that of the error.
        quoted: FlowKey,
    },
    /// The packet is a later fragment. A later fragment has no ports, so the decision about the first fragment of the
    /// same datagram applies to it.
    Fragment {
        /// The datagram.
        of: Fragment,
        /// The place of the fragment's data in the datagram, in bytes.
        data: Range<usize>,
    },
    /// No rule can be applied to the packet: its transport header is truncated, or the packet is a later fragment that
    /// would overwrite a part of the TCP header (RFC 1858).
    Malformed,
}

/// The flags of a TCP segment that begin or end a connection; all false for other protocols.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Segment {
    /// SYN without ACK: the segment asks for a new connection.
    pub opens: bool,
    /// TCP with ACK: every segment of a connection but the first has it.
    pub acknowledges: bool,
    /// An ICMP request, such as an echo request. The other end of a flow may answer requests, but a request of its own is
    /// another flow.
    pub asks: bool,
    /// FIN and RST.
    pub flags: TcpFlags,
}

/// The header fields that all fragments of one datagram have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fragment {
    /// The source address.
    pub source: IpAddr,
    /// The destination address.
    pub destination: IpAddr,
    /// The IP protocol's number in IPv4. 0 in IPv6, where addresses and identification alone identify a datagram, and
    /// later fragments may name another header than the first one (RFC 8200, section 4.5).
    pub protocol: u8,
    /// The identification field of the IPv4 header or of IPv6's fragment header.
    pub identification: u32,
}

/// The datagram of which a packet is a fragment, and the place of the fragment's data in the datagram, in bytes.
/// `None`: the packet is no fragment, or its headers are truncated.
#[must_use]
pub fn fragment_of(packet: &[u8], info: &PacketInfo) -> Option<(Fragment, Range<usize>)> {
    let (protocol, identification, offset, data_at) = match info.source {
        IpAddr::V4(_) => {
            let word = u16::from_be_bytes(*packet.get(6..)?.first_chunk()?);
            if word & 0x3fff == 0 {
                return None;
            }
            let identification = u16::from_be_bytes(*packet.get(4..)?.first_chunk()?);
            let header_len = usize::from(packet.first()? & 0x0f) * 4;
            let offset = usize::from(word & 0x1fff) * 8;
            (info.protocol, u32::from(identification), offset, header_len)
        }
        IpAddr::V6(_) => {
            let (at, _) = ipv6_headers(packet, info.len, |header| header == FRAGMENT_HEADER)?;
            let header: [u8; 8] = *packet.get(at..)?.first_chunk()?;
            let offset = usize::from(u16::from_be_bytes([header[2], header[3]]) & 0xfff8);
            let identification = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
            (0, identification, offset, at + 8)
        }
    };
    let fragment = Fragment {
        source: info.source,
        destination: info.destination,
        protocol,
        identification,
    };
    Some((fragment, offset..offset + info.len.saturating_sub(data_at)))
}

/// Finds the flow to which a packet belongs at the NIC with the number `nic`. `direction` is the direction of the
/// packet, and `info` has the fields that `packet::parse` has read from the packet.
#[must_use]
pub fn belongs_to(packet: &[u8], info: &PacketInfo, nic: u8, direction: Direction) -> Belongs {
    let packet = packet.get(..info.len).unwrap_or_default();
    if let Some((fragment, data)) = fragment_of(packet, info)
        && data.start > 0
    {
        // RFC 1858, section 3: such a fragment would overwrite TCP flags of the first fragment, after the rules have
        // decided about them.
        let hides_flags = info.protocol == TCP && data.start < 16;
        return if hides_flags {
            Belongs::Malformed
        } else {
            Belongs::Fragment { of: fragment, data }
        };
    }
    // The parser reads a limited number of extension headers. What comes after them is unknown, and so is whether a rule
    // denies it.
    let is_unread = matches!(info.protocol, 0 | 43 | 44 | 60);
    if info.source.is_ipv6() && is_unread {
        return Belongs::Malformed;
    }
    let key = |ports| FlowKey {
        nic,
        direction,
        protocol: info.protocol,
        source: info.source,
        destination: info.destination,
        ports,
    };
    let header = info.transport.and_then(|at| packet.get(at..)).unwrap_or_default();
    let flow = |ports, tcp| Belongs::Flow { key: key(ports), tcp };
    match info.protocol {
        TCP => match (ports(header), header.get(13)) {
            (Some(ports), Some(flags)) => flow(ports, segment(*flags)),
            _ => Belongs::Malformed,
        },
        UDP => match ports(header).filter(|_| header.len() >= 8) {
            Some(ports) => flow(ports, Segment::default()),
            None => Belongs::Malformed,
        },
        ICMP | ICMPV6 => match header {
            [kind, _, _, _, a, b, _, _, quoted @ ..] => {
                if is_error(info.protocol, *kind) {
                    // An error goes to the sender of the packet that it quotes. Otherwise somebody who has a flow with
                    // one machine could send errors to all machines behind the same agent.
                    match quoted_key(quoted, nic, direction.opposite()) {
                        Some(quoted) if quoted.source == info.destination => Belongs::Error { quoted },
                        Some(_) | None => flow((0, 0), Segment::default()),
                    }
                } else if is_icmp_query(info.protocol, *kind) {
                    let identifier = u16::from_be_bytes([*a, *b]);
                    let asks = is_icmp_request(info.protocol, *kind);
                    flow(
                        (identifier, identifier),
                        Segment {
                            asks,
                            ..Segment::default()
                        },
                    )
                } else {
                    flow((0, 0), Segment::default())
                }
            }
            _ => Belongs::Malformed,
        },
        _ => flow((0, 0), Segment::default()),
    }
}

fn ports(header: &[u8]) -> Option<(u16, u16)> {
    let [a, b, c, d] = *header.first_chunk()?;
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

const fn segment(flags: u8) -> Segment {
    const FIN: u8 = 0x01;
    const SYN: u8 = 0x02;
    const RST: u8 = 0x04;
    const ACK: u8 = 0x10;
    Segment {
        opens: flags & (SYN | ACK) == SYN,
        acknowledges: flags & ACK != 0,
        asks: false,
        flags: TcpFlags {
            syn: flags & SYN != 0,
            fin: flags & FIN != 0,
            rst: flags & RST != 0,
        },
    }
}

/// Whether a message of this type has an identifier. In ICMP, requests and replies of echo, timestamp and address mask
/// have one (RFC 792, RFC 950); in ICMPv6, those of echo (RFC 4443).
const fn is_icmp_query(protocol: u8, kind: u8) -> bool {
    match protocol {
        ICMP => matches!(kind, 0 | 8 | 13 | 14 | 17 | 18),
        _ => matches!(kind, 128 | 129),
    }
}

/// Echo, timestamp and address mask request (RFC 792, RFC 950); echo request (RFC 4443).
const fn is_icmp_request(protocol: u8, kind: u8) -> bool {
    match protocol {
        ICMP => matches!(kind, 8 | 13 | 17),
        _ => kind == 128,
    }
}

/// The key of a packet of which an ICMP error quotes the beginning. `None`: the quotation does not say, such as a later
/// fragment, or another ICMP error.
fn quoted_key(quoted: &[u8], nic: u8, direction: Direction) -> Option<FlowKey> {
    let (source, destination, protocol, header) = match quoted.first()? >> 4 {
        4 => {
            let fixed: &[u8; 20] = quoted.first_chunk()?;
            let later_fragment = u16::from_be_bytes([fixed[6], fixed[7]]) & 0x1fff != 0;
            if later_fragment {
                return None;
            }
            let header = quoted.get(usize::from(fixed[0] & 0x0f) * 4..)?;
            let address = |at: usize| Ipv4Addr::new(fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]);
            (address(12).into(), address(16).into(), fixed[9], header)
        }
        6 => {
            let fixed: &[u8; 40] = quoted.first_chunk()?;
            let known = |header: u8| !matches!(header, 0 | 43 | 60);
            let (at, protocol) = ipv6_headers(quoted, quoted.len(), known)?;
            // The ports of a quoted IPv6 fragment are not read.
            if protocol == FRAGMENT_HEADER {
                return None;
            }
            let address = |at: usize| {
                let octets: Option<&[u8; 16]> = fixed.get(at..).and_then(<[u8]>::first_chunk);
                octets.map(|o| IpAddr::from(Ipv6Addr::from(*o)))
            };
            (address(8)?, address(24)?, protocol, quoted.get(at..)?)
        }
        _ => return None,
    };
    let ports = match protocol {
        TCP | UDP => ports(header)?,
        ICMP | ICMPV6 => {
            let message: &[u8; 8] = header.first_chunk()?;
            if !is_icmp_query(protocol, message[0]) {
                return None;
            }
            let identifier = u16::from_be_bytes([message[4], message[5]]);
            (identifier, identifier)
        }
        _ => (0, 0),
    };
    Some(FlowKey {
        nic,
        direction,
        protocol,
        source,
        destination,
        ports,
    })
}

/// Follows the chain of IPv6's headers to the first header whose number `is_wanted` accepts. Returns the offset of this
/// header, in bytes, and its number. `None`: no such header is among the first eight and within the first `len` bytes.
fn ipv6_headers(packet: &[u8], len: usize, is_wanted: impl Fn(u8) -> bool) -> Option<(usize, u8)> {
    let (mut header, mut at) = (*packet.get(6)?, 40);
    // The limit bounds the work for each packet. The engine's parser has the same limit.
    for _ in 0..8 {
        if is_wanted(header) {
            return (at < len).then_some((at, header));
        }
        let next: &[u8; 2] = packet.get(at..len)?.first_chunk()?;
        let extension_len = match header {
            0 | 43 | 60 => (usize::from(next[1]) + 1) * 8,
            FRAGMENT_HEADER => 8,
            _ => return None,
        };
        header = next[0];
        at += extension_len;
    }
    None
}

#[cfg(test)]
mod tests;
