//! Offloads at the TUN device (GSO and GRO): splits super-packets that the kernel passes to the agent, and joins
//! packets that the agent passes to the kernel. A super-packet is one long TCP or UDP packet that stands for several
//! packets of a flow.
//!
//! The functions here work on bytes in memory; the agent reads and writes the device.
//!
//! * [`VnetHeader`]: the ten bytes before each packet of a device with `IFF_VNET_HDR`.
//! * [`mod@split`]: turns one read of the device into the packets in it, with complete checksums.
//! * [`Coalescer`]: turns packets into as few writes to the device as their order allows.

mod checksum;
mod coalesce;
mod header;
mod split;

pub use coalesce::Coalescer;
pub use header::VnetHeader;
pub use split::{SplitError, split};

/// Length of the longest IP packet in bytes, and therefore also of the longest super-packet.
pub const MAX_PACKET: usize = 65_535;

/// The header offsets of a TCP or UDP packet that may be split or joined: without IPv4 options, IPv6 extension headers
/// and fragmentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    protocol: Protocol,
    /// Length of the IP header: 20 for IPv4, 40 for IPv6.
    ip: usize,
    /// Length of IP and transport header together.
    all: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// Offset of the checksum field from the start of the transport header, in bytes.
    const fn checksum_offset(self) -> usize {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }
}

impl Layout {
    const V4: usize = 20;
    const V6: usize = 40;

    fn of(packet: &[u8]) -> Option<Self> {
        // 0x45 is the first byte of an IPv4 header without options. 0x3fff masks the flag "more fragments" and the
        // fragment's offset.
        let (ip, number) = match packet.first()? >> 4 {
            4 if packet.len() >= Self::V4 && packet[0] == 0x45 && be16(packet, 6) & 0x3fff == 0 => {
                (Self::V4, packet[9])
            }
            6 if packet.len() >= Self::V6 => (Self::V6, packet[6]),
            _ => return None,
        };
        let (protocol, all) = match number {
            6 if packet.len() >= ip + 20 => (Protocol::Tcp, ip + usize::from(packet[ip + 12] >> 4) * 4),
            17 if packet.len() >= ip + 8 => (Protocol::Udp, ip + 8),
            _ => return None,
        };
        (all <= packet.len() && all >= ip + 8 && (protocol == Protocol::Udp || all >= ip + 20)).then_some(Self {
            protocol,
            ip,
            all,
        })
    }

    /// The sum of the pseudo header, which is a part of the transport checksum. `len` is the length of transport header
    /// and payload together, in bytes.
    fn pseudo(self, packet: &[u8], len: usize) -> u64 {
        let addresses = if self.ip == Self::V4 {
            &packet[12..20]
        } else {
            &packet[8..40]
        };
        checksum::sum(addresses) + u64::from(self.protocol.number()) + len as u64
    }

    /// Sets the length in the IP header and, for IPv4, its checksum.
    fn set_ip_length(self, packet: &mut [u8], len: usize) {
        if self.ip == Self::V4 {
            put16(packet, 2, len);
            put16(packet, 10, 0);
            let sum = checksum::finish(checksum::sum(&packet[..Self::V4]));
            put16(packet, 10, usize::from(sum));
        } else {
            put16(packet, 4, len - Self::V6);
        }
    }

    /// The packet's length according to its IP header.
    fn ip_length(self, packet: &[u8]) -> usize {
        if self.ip == Self::V4 {
            be16(packet, 2)
        } else {
            be16(packet, 4) + Self::V6
        }
    }
}

fn be16(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]))
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "callers keep lengths within a packet's 16 bits"
)]
fn put16(bytes: &mut [u8], at: usize, value: usize) {
    bytes[at..at + 2].copy_from_slice(&(value as u16).to_be_bytes());
}

#[cfg(test)]
mod tests;
