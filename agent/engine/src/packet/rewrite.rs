//! Replaces an address and port of a packet, and updates the checksums that cover them (L5).

use super::{ICMPV6, PacketInfo, TCP, UDP, adjust_checksum};
use std::net::IpAddr;

/// The end of a flow whose address and port are replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Source address and source port.
    Source,
    /// Destination address and destination port.
    Destination,
}

/// Replaces the address and the port of one end of a packet. The port 0 leaves the packet's port as it is; so does a
/// packet that is neither TCP nor UDP, or whose ports are cut off or in another fragment. `info` must be the result of
/// parsing this packet, and is updated.
///
/// Returns `false` and changes nothing if the address is of another family than the packet.
///
/// # Panics
/// May panic if `info` is the result of another packet.
pub fn rewrite(packet: &mut [u8], info: &mut PacketInfo, end: End, (address, port): (IpAddr, u16)) -> bool {
    let before = match end {
        End::Source => info.source,
        End::Destination => info.destination,
    };
    let (at, old, new) = match (before, address) {
        (IpAddr::V4(old), IpAddr::V4(new)) => {
            let at = if end == End::Source { 12 } else { 16 };
            (at, octets(&old.octets()), octets(&new.octets()))
        }
        (IpAddr::V6(old), IpAddr::V6(new)) => {
            let at = if end == End::Source { 8 } else { 24 };
            (at, octets(&old.octets()), octets(&new.octets()))
        }
        _ => return false,
    };
    let len = if address.is_ipv4() { 4 } else { 16 };
    packet[at..at + len].copy_from_slice(&new[..len]);
    let changed = || old[..len].chunks_exact(2).zip(new[..len].chunks_exact(2));
    if address.is_ipv4() {
        for (old, new) in changed() {
            adjust_checksum(&mut packet[10..12], word(old), word(new), false);
        }
    }
    match end {
        End::Source => info.source = address,
        End::Destination => info.destination = address,
    }
    let Some(transport) = info.transport else {
        return true;
    };
    // Addresses are part of the pseudo-header that the checksums of TCP, UDP and ICMPv6 cover, also in the first one of
    // several fragments.
    let header = packet.get_mut(transport..info.len).unwrap_or_default();
    let (checksum, has_ports) = match info.protocol {
        TCP => (16, true),
        UDP => (6, true),
        ICMPV6 if address.is_ipv6() => (2, false),
        _ => return true,
    };
    // A UDP checksum of 0 means that the sender computed none (RFC 768).
    let is_used = header.len() >= checksum + 2 && (info.protocol != UDP || header[checksum..checksum + 2] != [0, 0]);
    let adjust = |header: &mut [u8], old: u16, new: u16| {
        if is_used {
            adjust_checksum(&mut header[checksum..checksum + 2], old, new, false);
        }
    };
    for (old, new) in changed() {
        adjust(header, word(old), word(new));
    }
    if port != 0 && has_ports && header.len() >= 4 {
        let at = if end == End::Source { 0 } else { 2 };
        let old = word(&header[at..at + 2]);
        header[at..at + 2].copy_from_slice(&port.to_be_bytes());
        adjust(header, old, port);
        if info.ports != 0 {
            let shift = if end == End::Source { 16 } else { 0 };
            info.ports = info.ports & !(0xffff << shift) | u32::from(port) << shift;
        }
    }
    // A computed checksum of 0 is sent as 0xffff, because 0 means that there is none.
    if info.protocol == UDP && is_used && header[checksum..checksum + 2] == [0, 0] {
        header[checksum..checksum + 2].copy_from_slice(&[0xff, 0xff]);
    }
    true
}

fn octets(octets: &[u8]) -> [u8; 16] {
    let mut all = [0; 16];
    all[..octets.len()].copy_from_slice(octets);
    all
}

fn word(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::parse;
    use proptest::prelude::*;

    /// The checksum of RFC 1071 over some bytes: 0 if they include a valid checksum.
    fn sum(parts: &[&[u8]]) -> u16 {
        let mut sum = 0u32;
        for part in parts {
            for pair in part.chunks(2) {
                sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            }
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).unwrap()
    }

    fn pseudo_header(info: &PacketInfo, len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for address in [info.source, info.destination] {
            match address {
                IpAddr::V4(a) => bytes.extend(a.octets()),
                IpAddr::V6(a) => bytes.extend(a.octets()),
            }
        }
        bytes.extend([0, info.protocol]);
        bytes.extend(u16::try_from(len).unwrap().to_be_bytes());
        bytes
    }

    /// A packet of TCP or UDP with correct checksums.
    fn packet(v6: bool, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let header_len = if protocol == TCP { 20 } else { 8 };
        let len = header_len + payload.len();
        let mut packet = if v6 {
            let mut p = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
            p[4..6].copy_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
            p.extend([0xfd; 16]);
            p.extend([0xfc; 16]);
            p
        } else {
            let mut p = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 4, 10, 0, 0, 9];
            p[2..4].copy_from_slice(&u16::try_from(20 + len).unwrap().to_be_bytes());
            let checksum = sum(&[&p]);
            p[10..12].copy_from_slice(&checksum.to_be_bytes());
            p
        };
        let at = packet.len();
        let mut transport = vec![0; header_len];
        transport[..4].copy_from_slice(&[0x9c, 0x40, 0, 80]);
        if protocol == TCP {
            transport[12] = 0x50;
        } else {
            transport[4..6].copy_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
        }
        transport.extend(payload);
        packet.extend(&transport);
        let info = parse(&packet).unwrap();
        let checksum = sum(&[&pseudo_header(&info, len), &transport]);
        let place = if protocol == TCP { 16 } else { 6 };
        packet[at + place..at + place + 2].copy_from_slice(&checksum.to_be_bytes());
        packet
    }

    fn is_valid(packet: &[u8]) -> bool {
        let info = parse(packet).unwrap();
        let at = info.transport.unwrap();
        let header_is_valid = info.source.is_ipv6() || sum(&[&packet[..20]]) == 0;
        header_is_valid && sum(&[&pseudo_header(&info, packet.len() - at), &packet[at..]]) == 0
    }

    proptest! {
        #[test]
        fn checksums_stay_valid(
            v6: bool, tcp: bool, payload in proptest::collection::vec(any::<u8>(), 0..40), address: [u8; 16],
            port in 1u16.., source: bool,
        ) {
            let mut packet = packet(v6, if tcp { TCP } else { UDP }, &payload);
            prop_assert!(is_valid(&packet));
            let before = packet.clone();
            let mut info = parse(&packet).unwrap();
            let new: IpAddr = if v6 {
                address.into()
            } else {
                [address[0], address[1], address[2], address[3]].into()
            };
            let end = if source { End::Source } else { End::Destination };
            let old = if source { info.source } else { info.destination };
            let old_port = (info.ports >> if source { 16 } else { 0 }) as u16;
            prop_assert!(rewrite(&mut packet, &mut info, end, (new, port)));
            prop_assert!(is_valid(&packet));
            prop_assert_eq!(parse(&packet), Some(info));
            let changed = if source { info.source } else { info.destination };
            prop_assert_eq!(changed, new);
            // Back again.
            prop_assert!(rewrite(&mut packet, &mut info, end, (old, old_port)));
            prop_assert_eq!(&packet, &before);
        }
    }

    #[test]
    fn an_address_of_another_family_changes_nothing() {
        let mut packet = packet(false, TCP, &[1, 2, 3]);
        let before = packet.clone();
        let mut info = parse(&packet).unwrap();
        let v6 = (IpAddr::from([0xfd; 16]), 1);
        assert!(!rewrite(&mut packet, &mut info, End::Destination, v6));
        assert_eq!(packet, before);
    }

    #[test]
    fn port_0_keeps_the_port_and_a_datagram_without_checksum_stays_without() {
        let mut packet = packet(false, UDP, &[1, 2, 3]);
        packet[26..28].copy_from_slice(&[0, 0]);
        let mut info = parse(&packet).unwrap();
        assert!(rewrite(
            &mut packet,
            &mut info,
            End::Destination,
            ([10, 0, 0, 5].into(), 0)
        ));
        assert_eq!((info.ports, &packet[26..28]), (0x9c40_0050, &[0, 0][..]));
        assert_eq!(sum(&[&packet[..20]]), 0);
    }
}
