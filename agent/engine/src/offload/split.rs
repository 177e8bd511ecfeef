//! Splits one read from the device into its packets (GSO in software).

use super::{Layout, Protocol, VnetHeader, be16, be32, checksum, put16};

/// Length in bytes of the longest headers of a super-packet that can be split: the IPv6 header, and the TCP header with
/// all options.
const MAX_HEADERS: usize = 40 + 60;

/// TCP flags that only the first packet of a split super-packet keeps (CWR), and those that only the last one keeps
/// (FIN, PSH).
const FIRST_ONLY: u8 = 0x80;
const LAST_ONLY: u8 = 0x09;

/// The reason why a read from the device cannot be split into packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// The checksum that must be completed lies outside of the packet.
    #[error("the packet is shorter than its headers say")]
    Short,
    /// The virtio header names a kind of super-packet that the agent has not negotiated, or a kind that the packet's
    /// own headers do not match. Holds the kind.
    #[error("super-packet of unexpected kind {0}")]
    Kind(u8),
}

/// Calls `each` with every packet in one read from the device, in order and with complete checksums. `header` is the
/// decoded virtio header of the read, `packet` the bytes after it. Returns the number of packets, at least 1.
///
/// The function works in place: it writes the headers of a packet over the end of the previous packet, which `each` has
/// processed by then. So `each` may modify its packet, but the packet is valid only during the call. A read with a
/// single packet is not checked; only its checksum is completed. Afterwards the contents of `packet` do not matter.
///
/// # Errors
/// See [`SplitError`]; `each` is not called in case of an error. `packet` is unchanged then.
pub fn split(header: &VnetHeader, packet: &mut [u8], mut each: impl FnMut(&mut [u8])) -> Result<usize, SplitError> {
    match header.gso_type & !VnetHeader::GSO_ECN {
        VnetHeader::GSO_NONE => {
            if header.flags & VnetHeader::NEEDS_CSUM != 0 {
                finish_partial(header, packet)?;
            }
            each(packet);
            Ok(1)
        }
        VnetHeader::GSO_TCPV4 | VnetHeader::GSO_TCPV6 | VnetHeader::GSO_UDP_L4 => split_super(header, packet, each),
        other => Err(SplitError::Kind(other)),
    }
}

/// Completes a checksum that the kernel has left partial: its field holds only the sum of the pseudo header.
fn finish_partial(header: &VnetHeader, packet: &mut [u8]) -> Result<(), SplitError> {
    let (start, offset) = (usize::from(header.csum_start), usize::from(header.csum_offset));
    if start + offset + 2 > packet.len() {
        return Err(SplitError::Short);
    }
    let sum = checksum::finish(checksum::sum(&packet[start..]));
    // In UDP a checksum of 0 means that there is no checksum, so 0xffff is written instead of 0 (RFC 768). TCP accepts
    // both.
    put16(packet, start + offset, usize::from(if sum == 0 { 0xffff } else { sum }));
    Ok(())
}

fn split_super(header: &VnetHeader, packet: &mut [u8], mut each: impl FnMut(&mut [u8])) -> Result<usize, SplitError> {
    let kind = header.gso_type & !VnetHeader::GSO_ECN;
    let layout = Layout::of(packet).ok_or(SplitError::Kind(kind))?;
    let matches = match kind {
        VnetHeader::GSO_TCPV4 => layout.protocol == Protocol::Tcp && layout.ip == Layout::V4,
        VnetHeader::GSO_TCPV6 => layout.protocol == Protocol::Tcp && layout.ip == Layout::V6,
        _ => layout.protocol == Protocol::Udp,
    };
    let size = usize::from(header.gso_size);
    if !matches || size == 0 || layout.all > MAX_HEADERS {
        return Err(SplitError::Kind(kind));
    }
    let Layout { protocol, ip, all } = layout;
    let mut kept = [0u8; MAX_HEADERS];
    kept[..all].copy_from_slice(&packet[..all]);
    let identification = be16(&kept, 4);
    let sequence = be32(&kept, ip + 4);
    let flags = kept[ip + 13];
    let payload = packet.len() - all;

    let (mut at, mut count) = (0, 0);
    loop {
        let len = size.min(payload - at);
        let last = at + len == payload;
        let one = &mut packet[at..at + all + len];
        one[..all].copy_from_slice(&kept[..all]);
        if ip == Layout::V4 {
            // The IPv4 identification grows by one with each packet, as when the kernel splits a super-packet.
            put16(one, 4, (identification + count) & 0xffff);
        }
        layout.set_ip_length(one, all + len);
        match protocol {
            Protocol::Tcp => {
                #[expect(clippy::cast_possible_truncation, reason = "an offset inside one packet")]
                one[ip + 4..ip + 8].copy_from_slice(&sequence.wrapping_add(at as u32).to_be_bytes());
                let mut f = flags;
                if !last {
                    f &= !LAST_ONLY;
                }
                if count > 0 {
                    f &= !FIRST_ONLY;
                }
                one[ip + 13] = f;
            }
            Protocol::Udp => put16(one, ip + 4, 8 + len),
        }
        let sum_at = ip + protocol.checksum_offset();
        put16(one, sum_at, 0);
        let sum = checksum::finish(layout.pseudo(one, all - ip + len) + checksum::sum(&one[ip..]));
        put16(
            one,
            sum_at,
            usize::from(if sum == 0 && protocol == Protocol::Udp {
                0xffff
            } else {
                sum
            }),
        );
        each(one);
        count += 1;
        at += len;
        if last {
            return Ok(count);
        }
    }
}
