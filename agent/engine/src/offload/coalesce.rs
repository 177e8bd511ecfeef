//! Joins packets into super-packets, so that a batch needs few writes to the device (GRO).

use super::{Layout, MAX_PACKET, Protocol, VnetHeader, be32, checksum, put16};

/// TCP flags of a packet that may be joined: ACK, with or without PSH. A packet with any other flag is written alone.
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;

/// Number of flows whose packets are joined at the same time. Eight are enough for the flows of one batch, and few
/// enough to find a flow by a linear search.
const SLOTS: usize = 8;

/// Largest number of datagrams in a super-packet: `UDP_MAX_SEGMENTS` of the kernel, 64 before Linux 6.9 and 128 since.
/// The kernel refuses a write with more.
const MAX_DATAGRAMS: usize = 64;

/// A super-packet to which packets of its flow are being added.
#[derive(Debug)]
struct Slot {
    /// [`VnetHeader::LEN`] bytes for the virtio header, then the super-packet.
    buffer: Vec<u8>,
    layout: Option<Layout>,
    /// Payload length of each packet but the last, in bytes.
    size: usize,
    count: usize,
    /// TCP sequence number that the next packet must have.
    next: u32,
    /// Whether no further packet may be joined.
    closed: bool,
}

impl Slot {
    fn packet(&self) -> &[u8] {
        &self.buffer[VnetHeader::LEN..]
    }
}

/// Joins consecutive packets of a flow into super-packets. Packets of one flow keep their order. Packets of different
/// flows may change their order within a batch, which any network may cause too.
///
/// The owner pushes the packets of a batch and then calls [`flush`](Self::flush). Both methods pass complete writes for
/// the device to `out`: the bytes of one write, i.e. virtio header and packet, and the number of joined packets in it.
/// Every packet that is pushed is part of exactly one write. The bytes are valid only during the call.
#[derive(Debug)]
pub struct Coalescer {
    slots: Vec<Slot>,
    used: usize,
    /// Whether the kernel accepts joined UDP datagrams (USO, since Linux 6.2).
    udp: bool,
}

impl Coalescer {
    /// Creates a coalescer without packets. `udp` says whether the device accepts joined UDP datagrams; if not, only
    /// TCP is joined. Up to nine buffers of 64 KiB are allocated when they are first needed, and are kept.
    #[must_use]
    pub fn new(udp: bool) -> Self {
        Self {
            slots: Vec::new(),
            used: 0,
            udp,
        }
    }

    /// Adds `packet`, which is one complete IP packet without virtio header and without padding; its bytes are copied. If
    /// `packet` is anything else, its bytes are passed to `out` unchanged, alone in one write. First passes those waiting packets to `out` that must be written
    /// before the new one. If the new packet cannot be joined to the packets of its flow, these are passed. If it has
    /// no known flow, or needs a slot while all slots are in use, all waiting packets are passed.
    pub fn push(&mut self, packet: &[u8], out: &mut impl FnMut(&[u8], usize)) {
        let layout = Layout::of(packet).filter(|l| self.udp || l.protocol == Protocol::Tcp);
        let Some(layout) = layout else {
            return self.write_alone(packet, out);
        };
        let joinable = joinable(layout, packet);
        if let Some(i) = self.slots[..self.used]
            .iter()
            .position(|s| same_flow(s, layout, packet))
        {
            if joinable && join(&mut self.slots[i], layout, packet) {
                return;
            }
            // A packet that cannot be joined must not overtake earlier packets of its flow, so the earlier ones are
            // written first.
            write_slot(&mut self.slots[i], out);
            if joinable {
                start(&mut self.slots[i], layout, packet);
            } else {
                self.used -= 1;
                self.slots.swap(i, self.used);
                self.write_single(packet, out);
            }
            return;
        }
        if !joinable {
            return self.write_single(packet, out);
        }
        if self.used == SLOTS {
            self.flush(out);
        }
        if self.used == self.slots.len() {
            self.slots.push(Slot {
                buffer: Vec::with_capacity(VnetHeader::LEN + MAX_PACKET),
                layout: None,
                size: 0,
                count: 0,
                next: 0,
                closed: false,
            });
        }
        start(&mut self.slots[self.used], layout, packet);
        self.used += 1;
    }

    /// Passes all waiting packets to `out`. No packet waits afterwards. Does not call `out` if none waited.
    pub fn flush(&mut self, out: &mut impl FnMut(&[u8], usize)) {
        for slot in &mut self.slots[..self.used] {
            write_slot(slot, out);
        }
        self.used = 0;
    }

    /// Writes a packet without a known flow, i.e. a fragment or a packet of another protocol. All waiting packets are
    /// written before it, because the packet may belong to the flow of any of them.
    fn write_alone(&mut self, packet: &[u8], out: &mut impl FnMut(&[u8], usize)) {
        self.flush(out);
        self.write_single(packet, out);
    }

    fn write_single(&mut self, packet: &[u8], out: &mut impl FnMut(&[u8], usize)) {
        if self.used == self.slots.len() {
            self.slots.push(Slot {
                buffer: Vec::with_capacity(VnetHeader::LEN + MAX_PACKET),
                layout: None,
                size: 0,
                count: 0,
                next: 0,
                closed: false,
            });
        }
        // This slot holds no packet; only its buffer is used.
        let buffer = &mut self.slots[self.used].buffer;
        buffer.clear();
        buffer.extend_from_slice(&[0; VnetHeader::LEN]);
        buffer.extend_from_slice(packet);
        out(buffer, 1);
    }
}

/// Whether a packet may be part of a super-packet: its length fields agree, and its checksums are right. Packets with a
/// wrong checksum are not joined, because the new checksums of the super-packet would hide the damage.
fn joinable(layout: Layout, packet: &[u8]) -> bool {
    let Layout { protocol, ip, all } = layout;
    let payload = packet.len() - all;
    let flags_fit = match protocol {
        Protocol::Tcp => packet[ip + 13] & !PSH == ACK,
        // A UDP datagram without a checksum is not joined, because the super-packet would give it a checksum.
        Protocol::Udp => super::be16(packet, ip + 4) == packet.len() - ip && super::be16(packet, ip + 6) != 0,
    };
    payload > 0
        && flags_fit
        && layout.ip_length(packet) == packet.len()
        && (ip == Layout::V6 || checksum::fold(checksum::sum(&packet[..Layout::V4])) == 0xffff)
        && checksum::fold(layout.pseudo(packet, packet.len() - ip) + checksum::sum(&packet[ip..])) == 0xffff
}

fn same_flow(slot: &Slot, layout: Layout, packet: &[u8]) -> bool {
    let Some(own) = slot.layout else { return false };
    let (a, b) = (slot.packet(), packet);
    let ip = layout.ip;
    own.protocol == layout.protocol
        && own.ip == ip
        && a[ip..ip + 4] == b[ip..ip + 4]
        && if ip == Layout::V4 {
            a[12..20] == b[12..20]
        } else {
            a[8..40] == b[8..40]
        }
}

/// Starts a super-packet with its first packet.
fn start(slot: &mut Slot, layout: Layout, packet: &[u8]) {
    slot.buffer.clear();
    slot.buffer.extend_from_slice(&[0; VnetHeader::LEN]);
    slot.buffer.extend_from_slice(packet);
    slot.layout = Some(layout);
    slot.size = packet.len() - layout.all;
    slot.count = 1;
    if layout.protocol == Protocol::Tcp {
        #[expect(clippy::cast_possible_truncation, reason = "a packet's length")]
        let advance = slot.size as u32;
        slot.next = be32(packet, layout.ip + 4).wrapping_add(advance);
        slot.closed = packet[layout.ip + 13] & PSH != 0;
    } else {
        slot.closed = false;
    }
}

/// Appends a packet of the same flow to the super-packet if its headers allow that. Returns whether they did.
fn join(slot: &mut Slot, layout: Layout, packet: &[u8]) -> bool {
    let Layout { protocol, ip, all } = layout;
    let payload = packet.len() - all;
    if slot.closed
        || slot.layout != Some(layout)
        || payload > slot.size
        || slot.buffer.len() - VnetHeader::LEN + payload > MAX_PACKET
    {
        return false;
    }
    let (a, b) = (slot.packet(), packet);
    // These fields of the IP header must be equal: for IPv4 TOS (with ECN), TTL and DF; for IPv6 traffic class, flow
    // label and hop limit.
    let ip_same = if ip == Layout::V4 {
        a[1] == b[1] && a[6..9] == b[6..9]
    } else {
        a[0..4] == b[0..4] && a[7] == b[7]
    };
    let transport_same = match protocol {
        // These fields of the TCP header must be equal: acknowledgement, data offset, window, urgent pointer and
        // options. The sequence must continue.
        Protocol::Tcp => {
            be32(b, ip + 4) == slot.next
                && a[ip + 8..ip + 13] == b[ip + 8..ip + 13]
                && a[ip + 14..ip + 16] == b[ip + 14..ip + 16]
                && a[ip + 18..all] == b[ip + 18..all]
        }
        Protocol::Udp => true,
    };
    if !ip_same || !transport_same {
        return false;
    }
    slot.buffer.extend_from_slice(&packet[all..]);
    slot.count += 1;
    if protocol == Protocol::Tcp {
        #[expect(clippy::cast_possible_truncation, reason = "a packet's length")]
        let advance = payload as u32;
        slot.next = slot.next.wrapping_add(advance);
        let push = packet[ip + 13] & PSH;
        slot.buffer[VnetHeader::LEN + ip + 13] |= push;
        slot.closed = push != 0;
    }
    slot.closed |= payload < slot.size || protocol == Protocol::Udp && slot.count == MAX_DATAGRAMS;
    true
}

/// Completes the headers and passes the super-packet to `out`.
fn write_slot(slot: &mut Slot, out: &mut impl FnMut(&[u8], usize)) {
    let Some(layout) = slot.layout.take() else { return };
    if slot.count > 1 {
        let Layout { protocol, ip, all } = layout;
        let (head, packet) = slot.buffer.split_at_mut(VnetHeader::LEN);
        let len = packet.len();
        layout.set_ip_length(packet, len);
        if protocol == Protocol::Udp {
            put16(packet, ip + 4, len - ip);
        }
        let partial = checksum::fold(layout.pseudo(packet, len - ip));
        put16(packet, ip + protocol.checksum_offset(), usize::from(partial));
        let gso_type = match (protocol, ip) {
            (Protocol::Udp, _) => VnetHeader::GSO_UDP_L4,
            (Protocol::Tcp, Layout::V4) => VnetHeader::GSO_TCPV4,
            (Protocol::Tcp, _) => VnetHeader::GSO_TCPV6,
        };
        #[expect(clippy::cast_possible_truncation, reason = "all are lengths inside one packet")]
        let header = VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            gso_type,
            hdr_len: all as u16,
            gso_size: slot.size as u16,
            csum_start: ip as u16,
            csum_offset: protocol.checksum_offset() as u16,
        };
        head.copy_from_slice(&header.encode());
    }
    out(&slot.buffer, slot.count);
}
