//! The load that `tests/bench/instructions.py` measures: two engines in one process with a WireGuard link between them.
//!
//! `packets bulk N` sends N TCP segments from one TUN device through the link to the other TUN device, 45 segments in
//! each read. `packets lone N` sends N UDP packets of 128 bytes, each with a read, a datagram and a write of its own.
//! `bulk-groups` and `lone-groups` do the same with two security groups of 1,000 rules at each end.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a program for measurements: it may stop at anything unexpected, and brings the clock along"
)]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "common/large_groups.rs"]
mod large_groups;

use common::{World, udp};
use etherparse::PacketBuilder;
use std::process::ExitCode;
use tombolo_engine::buffer::{DeliverSink, Transmit, TransmitSink};
use tombolo_engine::offload::{Coalescer, VnetHeader, split};
use tombolo_engine::tables::NicIndex;

/// Number of TCP segments in one read of the TUN device: the largest number that fits into a super-packet. Each has
/// `SEGMENT` bytes.
const SEGMENTS: usize = 45;
const SEGMENT: usize = 1380;

/// A transmit sink that writes datagrams one after the other into a buffer, and reuses the buffer.
struct Datagrams {
    bytes: Vec<u8>,
    len: usize,
    ends: Vec<usize>,
}

impl Datagrams {
    fn new() -> Self {
        let bytes = vec![0; 1 << 20];
        Self {
            bytes,
            len: 0,
            ends: Vec::new(),
        }
    }

    fn clear(&mut self) {
        self.len = 0;
        self.ends.clear();
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let begins = std::iter::once(0).chain(self.ends.iter().copied());
        begins.zip(&self.ends).map(|(a, b)| &self.bytes[a..*b])
    }
}

impl TransmitSink for Datagrams {
    fn reserve(&mut self, _transmit: &Transmit, len: usize) -> &mut [u8] {
        if self.bytes.len() - self.len < len {
            self.clear();
        }
        &mut self.bytes[self.len..]
    }

    fn commit(&mut self, len: usize) {
        self.len += len;
        self.ends.push(self.len);
    }
}

/// The TUN device of the receiving agent. It joins segments as an agent does, and counts packets.
struct Device {
    coalescer: Coalescer,
    packets: usize,
}

impl DeliverSink for Device {
    fn deliver(&mut self, _: NicIndex, packet: &[u8]) {
        let packets = &mut self.packets;
        self.coalescer.push(packet, &mut |_, count| *packets += count);
    }
}

impl Device {
    fn flush(&mut self) {
        let packets = &mut self.packets;
        self.coalescer.flush(&mut |_, count| *packets += count);
    }
}

/// Builds one read of the device with `SEGMENTS` segments.
fn super_packet() -> (VnetHeader, Vec<u8>) {
    let mut packet = Vec::new();
    PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp(1000, 2000, 1, 65_000)
        .ack(1)
        .write(&mut packet, &vec![7; SEGMENT * SEGMENTS])
        .unwrap();
    let header = VnetHeader {
        flags: VnetHeader::NEEDS_CSUM,
        gso_type: VnetHeader::GSO_TCPV4,
        hdr_len: 40,
        gso_size: SEGMENT as u16,
        csum_start: 20,
        csum_offset: 16,
    };
    (header, packet)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let total: Option<usize> = arguments.get(2).and_then(|n| n.parse().ok());
    let (Some(kind), Some(total)) = (arguments.get(1), total) else {
        eprintln!("packets bulk|lone|bulk-groups|lone-groups COUNT");
        return ExitCode::from(2);
    };
    let mut world = World::pair();
    let (kind, groups) = match kind.strip_suffix("-groups") {
        Some(kind) => (kind, true),
        None => (kind.as_str(), false),
    };
    if groups {
        let now = world.now;
        for (node, address) in world.nodes.iter_mut().zip(["10.0.0.1", "10.0.0.2"]) {
            let mut config = node.config.clone();
            config.security = Some(large_groups::security("nic", "subnet", address.parse().unwrap()));
            node.install(config, now);
        }
    }
    for (from, to) in [("10.0.0.1", "10.0.0.2"), ("10.0.0.2", "10.0.0.1")] {
        world.send(usize::from(from == "10.0.0.2"), udp(from, to, 64, 100));
        world.settle();
    }
    let (header, bulk) = super_packet();
    let lone = udp("10.0.0.1", "10.0.0.2", 64, 100);
    let mut packet = bulk.clone();
    let (mut out, mut back) = (Datagrams::new(), Datagrams::new());
    let mut device = Device {
        coalescer: Coalescer::new(true),
        packets: 0,
    };
    let now = world.now;
    let [a, b] = &mut world.nodes[..] else {
        return ExitCode::FAILURE;
    };
    while device.packets < total {
        out.clear();
        if kind == "bulk" {
            packet.copy_from_slice(&bulk);
            split(&header, &mut packet, |one| {
                a.engine.handle_tun(NicIndex::FIRST, one, now, &mut out, &mut device);
            })
            .unwrap();
        } else {
            packet[..lone.len()].copy_from_slice(&lone);
            a.engine
                .handle_tun(NicIndex::FIRST, &mut packet[..lone.len()], now, &mut out, &mut device);
        }
        for datagram in out.iter() {
            b.engine.handle_udp(datagram, a.at, now, &mut back, &mut device);
        }
        b.engine.drained(now);
        back.clear();
        device.flush();
    }
    println!("{}", device.packets);
    ExitCode::SUCCESS
}
