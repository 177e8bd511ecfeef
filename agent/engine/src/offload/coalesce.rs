//! Packets → as few writes to the device as their order allows.

use super::{Layout, MAX_PACKET, Protocol, VnetHeader, be32, checksum, put16};

/// TCP flags with which a packet may join: ACK, with or without PSH.
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;

/// Flows that are put together side by side: enough for the streams of one batch, few enough for a linear search.
const SLOTS: usize = 8;

/// Most datagrams of one super-packet: the kernel refuses more (`UDP_MAX_SEGMENTS`; since 6.9 it would take 128).
const MOST_DATAGRAMS: usize = 64;

/// One super-packet that is being put together.
#[derive(Debug)]
struct Slot {
    /// [`VnetHeader::LEN`] bytes of room, then the packet.
    buffer: Vec<u8>,
    layout: Option<Layout>,
    /// Payload of each packet but the last.
    size: usize,
    count: usize,
    /// Sequence number that a TCP packet must have to join.
    next: u32,
    /// Nothing may join any more.
    closed: bool,
}

impl Slot {
    fn packet(&self) -> &[u8] {
        &self.buffer[VnetHeader::LEN..]
    }
}

/// Joins consecutive packets of a flow into super-packets. Order within a flow is kept; packets of different flows may
/// change places within one batch, as they may on any network.
///
/// The owner pushes the packets of a batch and then calls [`flush`](Self::flush). `out` gets virtio header and packet,
/// ready to be written to the device, and how many packets it stands for.
#[derive(Debug)]
pub struct Coalescer {
    slots: Vec<Slot>,
    used: usize,
    /// The kernel takes joined UDP datagrams (USO, 6.2 and later).
    udp: bool,
}

impl Coalescer {
    /// Makes one; `udp`: whether the device takes joined UDP datagrams.
    #[must_use]
    pub fn new(udp: bool) -> Self {
        Self {
            slots: Vec::new(),
            used: 0,
            udp,
        }
    }

    /// Takes one packet.
    pub fn push(&mut self, packet: &[u8], out: &mut impl FnMut(&[u8], usize)) {
        let layout = Layout::of(packet).filter(|l| self.udp || l.protocol == Protocol::Tcp);
        let Some(layout) = layout else {
            return self.push_alone(packet, out);
        };
        let joinable = joinable(layout, packet);
        if let Some(i) = self.slots[..self.used]
            .iter()
            .position(|s| same_flow(s, layout, packet))
        {
            if joinable && join(&mut self.slots[i], layout, packet) {
                return;
            }
            // A packet of this flow that cannot join must not overtake what waits: that goes first.
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

    /// Writes out everything that waits.
    pub fn flush(&mut self, out: &mut impl FnMut(&[u8], usize)) {
        for slot in &mut self.slots[..self.used] {
            write_slot(slot, out);
        }
        self.used = 0;
    }

    /// A packet whose flow cannot be told (fragment, other protocol): everything before it goes first.
    fn push_alone(&mut self, packet: &[u8], out: &mut impl FnMut(&[u8], usize)) {
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
        // A slot beyond those in use is only borrowed for its buffer.
        let buffer = &mut self.slots[self.used].buffer;
        buffer.clear();
        buffer.extend_from_slice(&[0; VnetHeader::LEN]);
        buffer.extend_from_slice(packet);
        out(buffer, 1);
    }
}

/// Whether a packet may be part of a super-packet at all: its lengths agree, and its checksum holds (the super-packet's
/// would hide damage).
fn joinable(layout: Layout, packet: &[u8]) -> bool {
    let Layout { protocol, ip, all } = layout;
    let payload = packet.len() - all;
    let flags_fit = match protocol {
        Protocol::Tcp => packet[ip + 13] & !PSH == ACK,
        // A datagram without a checksum would get one.
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

/// Begins a super-packet with its first packet.
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

/// Adds a packet of the same flow, if its headers allow it.
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
    // TOS (with ECN), TTL, DF; for IPv6 traffic class, flow label and hop limit.
    let ip_same = if ip == Layout::V4 {
        a[1] == b[1] && a[6..9] == b[6..9]
    } else {
        a[0..4] == b[0..4] && a[7] == b[7]
    };
    let transport_same = match protocol {
        // Acknowledgement, data offset, window, urgent pointer and options alike; sequence follows on.
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
    slot.closed |= payload < slot.size || protocol == Protocol::Udp && slot.count == MOST_DATAGRAMS;
    true
}

/// Finishes the headers and hands the super-packet out.
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
