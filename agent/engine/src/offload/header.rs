//! `struct virtio_net_hdr` of a TUN device with `IFF_VNET_HDR`: ten bytes in native byte order.

/// The header before each packet that is read from or written to the device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// Bit 0, [`Self::NEEDS_CSUM`]: the checksum at `csum_start + csum_offset` is a partial sum.
    pub flags: u8,
    /// The kind of super-packet: one of the `GSO_` constants, to which the flag [`Self::GSO_ECN`] may be added.
    pub gso_type: u8,
    /// Length of all headers of the packet, in bytes. The kernel takes it as a hint.
    pub hdr_len: u16,
    /// Payload length in bytes of each packet of a super-packet; the last packet may be shorter.
    pub gso_size: u16,
    /// Offset in the packet of the first byte that the checksum covers.
    pub csum_start: u16,
    /// Offset of the checksum field, relative to `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// Length of the encoded header, in bytes.
    pub const LEN: usize = 10;
    /// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum is a partial sum that the receiver completes.
    pub const NEEDS_CSUM: u8 = 1;
    /// `VIRTIO_NET_HDR_GSO_NONE`: a single packet.
    pub const GSO_NONE: u8 = 0;
    /// `VIRTIO_NET_HDR_GSO_TCPV4`: TCP over IPv4.
    pub const GSO_TCPV4: u8 = 1;
    /// `VIRTIO_NET_HDR_GSO_TCPV6`: TCP over IPv6.
    pub const GSO_TCPV6: u8 = 4;
    /// `VIRTIO_NET_HDR_GSO_UDP_L4`: UDP datagrams (USO) of either family.
    pub const GSO_UDP_L4: u8 = 5;
    /// `VIRTIO_NET_HDR_GSO_ECN`, a flag in `gso_type`: the first packet has the TCP flag CWR.
    pub const GSO_ECN: u8 = 0x80;

    /// Decodes the bytes of a header. No value is checked.
    #[must_use]
    pub fn decode(b: &[u8; Self::LEN]) -> Self {
        let word = |i: usize| u16::from_ne_bytes([b[i], b[i + 1]]);
        Self {
            flags: b[0],
            gso_type: b[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        }
    }

    /// Encodes the header to the bytes that the device expects.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut b = [0; Self::LEN];
        b[0] = self.flags;
        b[1] = self.gso_type;
        b[2..4].copy_from_slice(&self.hdr_len.to_ne_bytes());
        b[4..6].copy_from_slice(&self.gso_size.to_ne_bytes());
        b[6..8].copy_from_slice(&self.csum_start.to_ne_bytes());
        b[8..10].copy_from_slice(&self.csum_offset.to_ne_bytes());
        b
    }
}
