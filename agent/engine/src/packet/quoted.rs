//! The packet that an ICMP error quotes: which flow it belongs to, and its translation (L5).

use super::rewrite::{End, rewrite};
use super::{ICMP, ICMPV6, PacketInfo, TCP, UDP, adjust_checksum, parse_start};
use std::net::IpAddr;

/// Length of the header of an ICMP error. The quoted packet follows.
const HEADER: usize = 8;

/// Whether a message of this type is an error. Errors of ICMP are destination unreachable, source quench, redirect,
/// time exceeded and parameter problem (RFC 792); errors of ICMPv6 are the types below 128 (RFC 4443).
#[must_use]
pub const fn is_error(protocol: u8, kind: u8) -> bool {
    match protocol {
        ICMP => matches!(kind, 3 | 4 | 5 | 11 | 12),
        ICMPV6 => kind < 128,
        _ => false,
    }
}

/// The flow about which a packet, an ICMP error, reports: the fields that a packet of this flow has in the direction of
/// the error, opposite to the quoted packet. `None`: the packet is no ICMP error, or it does not quote a TCP segment or
/// UDP datagram with its ports, or it does not go to the sender of the quoted packet. `info` must be the result of
/// parsing `packet`.
#[must_use]
pub fn flow_of_error(packet: &[u8], info: &PacketInfo) -> Option<PacketInfo> {
    let message = error_in(packet, info)?;
    let quoted = parse_start(message.get(HEADER..)?)?;
    let is_known = matches!(quoted.protocol, TCP | UDP) && quoted.ports != 0;
    (is_known && quoted.source == info.destination).then_some(PacketInfo {
        source: quoted.destination,
        destination: quoted.source,
        ports: quoted.ports.rotate_left(16),
        ..quoted
    })
}

/// Replaces the address and the port of one end of the packet that an ICMP error quotes, and updates the checksums, also
/// that of the error. The quoted packet may be truncated: what is missing is left out. The port 0 leaves the port as it
/// is. `info` must be the result of parsing `packet`. It stays valid, because the addresses of the error itself are not
/// replaced.
///
/// Returns `false` and changes nothing if the packet is no ICMP error, or quotes no packet of the address's family.
pub fn rewrite_quoted(packet: &mut [u8], info: &PacketInfo, end: End, to: (IpAddr, u16)) -> bool {
    /// Number of bytes of a transport header that a translation can change: up to the end of the checksum of TCP.
    const CHANGED: usize = 18;
    if error_in(packet, info).is_none() {
        return false;
    }
    let message = info.transport.and_then(|at| packet.get_mut(at..info.len));
    let Some((header, quoted)) = message.and_then(|message| message.split_at_mut_checked(HEADER)) else {
        return false;
    };
    let Some(mut inner) = parse_start(quoted) else {
        return false;
    };
    // All headers before the transport header have an even length, so both sums are over the same 16-bit words.
    let changed = inner
        .transport
        .map_or(quoted.len(), |at| at + CHANGED)
        .min(quoted.len());
    let before = sum(&quoted[..changed]);
    let done = rewrite(quoted, &mut inner, end, to);
    if done {
        adjust_checksum(&mut header[2..4], before, sum(&quoted[..changed]), false);
    }
    done
}

/// Replaces the address `old` and the port of one end of a packet by others (L5). Of an ICMP error, replaces the other end
/// of the packet that it quotes, which is the same machine, and the error's own address if it is `old`: a router on the
/// path keeps its address. The rest is as for [`rewrite`] and [`rewrite_quoted`].
///
/// Returns `false` and changes nothing if the address is of another family, or the packet is an ICMP error that quotes no
/// packet.
pub fn translate(packet: &mut [u8], info: &mut PacketInfo, end: End, old: IpAddr, to: (IpAddr, u16)) -> bool {
    if error_in(packet, info).is_none() {
        return rewrite(packet, info, end, to);
    }
    let (own, opposite) = match end {
        End::Source => (info.source, End::Destination),
        End::Destination => (info.destination, End::Source),
    };
    rewrite_quoted(packet, info, opposite, to) && (own != old || rewrite(packet, info, end, (to.0, 0)))
}

/// The message of an ICMP error, from its header on. `None`: the packet is no ICMP error.
fn error_in<'p>(packet: &'p [u8], info: &PacketInfo) -> Option<&'p [u8]> {
    let message = packet.get(info.transport?..info.len)?;
    let fits = match info.source {
        IpAddr::V4(_) => info.protocol == ICMP,
        IpAddr::V6(_) => info.protocol == ICMPV6,
    };
    (fits && is_error(info.protocol, *message.first()?)).then_some(message)
}

/// The sum of 16-bit words with end-around carry, as checksums have it (RFC 1071).
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| match pair {
        [high, low] => u32::from(*high) << 8 | u32::from(*low),
        [high] => u32::from(*high) << 8,
        _ => 0,
    });
    // At most 65,536 bytes are summed, so the sum does not overflow.
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    #[expect(clippy::cast_possible_truncation, reason = "folded to 16 bits")]
    {
        sum as u16
    }
}

#[cfg(test)]
mod tests;
