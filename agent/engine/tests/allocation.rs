//! Tests of the engine's memory: the engine allocates nothing for a packet, and a bounded amount for each link.
#![cfg(feature = "links")]
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "helpers of tests; the clock is the test's"
)]

mod common;

use boringtun::x25519::{PublicKey as DhPublic, StaticSecret};
use common::{Node, World, link, udp, vm};
use etherparse::PacketBuilder;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::time::Duration;
use tombolo_engine::buffer::{DeliverSink, Transmit, TransmitSink};
use tombolo_engine::offload::{Coalescer, VnetHeader, split};
use tombolo_engine::tables::NicIndex;
use tombolo_proto::config::{FlowLogs, Limits, LoggedNic, NicBandwidth, Relation};
use tombolo_proto::id::{AgentId, PublicKey};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// A transmit sink that writes datagrams one after the other into a buffer, and reuses the buffer.
struct Buffer {
    bytes: Vec<u8>,
    len: usize,
    ends: Vec<usize>,
}

impl Buffer {
    fn new() -> Self {
        Self {
            bytes: vec![0; 1 << 20],
            len: 0,
            ends: Vec::with_capacity(1024),
        }
    }

    fn clear(&mut self) {
        self.len = 0;
        self.ends.clear();
    }

    fn datagrams(&self) -> impl Iterator<Item = &[u8]> {
        let begins = std::iter::once(0).chain(self.ends.iter().copied());
        begins.zip(&self.ends).map(|(a, b)| &self.bytes[a..*b])
    }
}

impl TransmitSink for Buffer {
    fn reserve(&mut self, _transmit: &Transmit, len: usize) -> &mut [u8] {
        // If the buffer is full, earlier datagrams are overwritten. The test does not need them, because it only
        // measures memory.
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

/// The TUN device of the receiving agent. The device joins packets as an agent does, and counts writes and packets.
struct Device {
    coalescer: Coalescer,
    writes: usize,
    packets: usize,
}

impl DeliverSink for Device {
    fn deliver(&mut self, _: NicIndex, packet: &[u8]) {
        let (writes, packets) = (&mut self.writes, &mut self.packets);
        self.coalescer.push(packet, &mut |_, count| {
            *writes += 1;
            *packets += count;
        });
    }
}

/// One read from the device with 45 TCP segments.
fn super_packet() -> (VnetHeader, Vec<u8>) {
    let (segment, count) = (1380, 45);
    let mut packet = Vec::new();
    PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp(1000, 2000, 1, 65_000)
        .ack(1)
        .write(&mut packet, &vec![7; segment * count])
        .unwrap();
    let header = VnetHeader {
        flags: VnetHeader::NEEDS_CSUM,
        gso_type: VnetHeader::GSO_TCPV4,
        hdr_len: 40,
        gso_size: segment as u16,
        csum_start: 20,
        csum_offset: 16,
    };
    (header, packet)
}

/// All cases are in one test: the allocator counts the allocations of the whole process, so tests that run at the same
/// time would count each other's allocations.
#[test]
fn packets_allocate_nothing_and_links_are_bounded() {
    packets_allocate_nothing(World::pair(), false);
    packets_allocate_nothing(logged(), true);
    packets_allocate_nothing(limited(), false);
    ten_thousand_links_are_bounded();
}

/// A pair of machines with a flow log each (D38).
fn logged() -> World {
    let mut world = World::pair();
    for (node, own) in [(0, "10.0.0.1/32"), (1, "10.0.0.2/32")] {
        let mut config = world.nodes[node].config.clone();
        let mut security = common::groups::security(&[own], None, None);
        security.flow_logs = Some(FlowLogs {
            logs: Vec::new(),
            nics: vec![LoggedNic {
                id: common::id("nic"),
                mac: "020000000001".to_owned(),
            }],
            groups: Vec::new(),
        });
        config.security = Some(security);
        let now = world.now;
        world.nodes[node].install(config, now);
    }
    world
}

/// A pair of machines whose NICs have a bandwidth (P32).
fn limited() -> World {
    let mut world = World::pair();
    for node in [0, 1] {
        let mut config = world.nodes[node].config.clone();
        config.limits = Some(Limits {
            nics: vec![NicBandwidth {
                nic: common::id("nic"),
                outbound: 100_000,
            }],
            ..Limits::default()
        });
        let now = world.now;
        world.nodes[node].install(config, now);
    }
    world
}

/// `new_flows`: each read of the device begins a new flow.
fn packets_allocate_nothing(mut world: World, new_flows: bool) {
    for (from, to) in [(0, 1), (1, 0)] {
        let a = |n: usize| format!("10.0.0.{}", n + 1);
        world.send(from, udp(&a(from), &a(to), 64, 100));
        world.settle();
    }
    let (header, original) = super_packet();
    let mut packet = original.clone();
    let mut device = Device {
        coalescer: Coalescer::new(true),
        writes: 0,
        packets: 0,
    };
    let (mut out, mut back) = (Buffer::new(), Buffer::new());
    let mut port = 1000u16;
    let mut bulk = |world: &mut World, rounds: usize| {
        for _ in 0..rounds {
            packet.copy_from_slice(&original);
            if new_flows {
                port += 1;
                packet[20..22].copy_from_slice(&port.to_be_bytes());
            }
            let now = world.now;
            let [a, b] = &mut world.nodes[..] else {
                panic!("two nodes")
            };
            out.clear();
            split(&header, &mut packet, |one| {
                a.engine.handle_tun(NicIndex::FIRST, one, now, &mut out, &mut device);
            })
            .unwrap();
            for datagram in out.datagrams() {
                b.engine.handle_udp(datagram, a.at, now, &mut back, &mut device);
            }
            b.engine.drained(now);
            back.clear();
            let (writes, packets) = (&mut device.writes, &mut device.packets);
            device.coalescer.flush(&mut |_, count| {
                *writes += 1;
                *packets += count;
            });
        }
        (std::mem::take(&mut device.writes), std::mem::take(&mut device.packets))
    };
    bulk(&mut world, 3);
    // The test harness's own thread allocates now and then. If packets allocated memory, every round would show it. So
    // the test uses the smallest number of the rounds.
    let mut least = None;
    for _ in 0..3 {
        let region = Region::new(ALLOCATOR);
        let (writes, packets) = bulk(&mut world, 200);
        let change = region.change();
        assert_eq!(
            (writes, packets),
            (200, 200 * 45),
            "super-packets came out as they went in"
        );
        let count = change.allocations + change.reallocations;
        if least.as_ref().is_none_or(|(n, _)| count < *n) {
            least = Some((count, change));
        }
    }
    let (count, change) = least.unwrap();
    assert_eq!(count, 0, "for 9000 packets: {change:?}");
}

fn ten_thousand_links_are_bounded() {
    const LINKS: usize = 10_000;
    let mut node = Node::new("a", "192.0.2.1:1000", 1);
    let now = std::time::Instant::now();
    let links: Vec<_> = (0..LINKS)
        .map(|n| {
            let mut link = link("p", Relation::VnetLocal {}, &[]);
            link.peer = AgentId::new(format!("p{n:05}")).unwrap();
            link.public_key = key(n);
            link.endpoint = Some(format!("198.51.100.{}:{}", n % 250 + 1, 1000 + n).parse().unwrap());
            link.sources = vec![format!("10.1.{}.{}/32", n / 256, n % 256).parse().unwrap()];
            link
        })
        .collect();
    let owners: Vec<(String, String)> = links
        .iter()
        .map(|l| (l.sources[0].to_string(), l.peer.to_string()))
        .collect();
    let owners: Vec<(&str, &str)> = owners.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let mut config = vm("a", &["10.1.255.250/16"], links, &owners);
    config.address_space = common::nets(&["10.1.0.0/16"]);
    config.spaces[0].prefixes = common::nets(&["10.1.0.0/16"]);
    config.subnets[0].prefixes = common::nets(&["10.1.0.0/16"]);
    config.subnets[0].routes = vec![common::route(
        "10.1.0.0/16",
        tombolo_proto::route::NextHop::VnetLocal {},
    )];
    let region = Region::new(ALLOCATOR);
    node.install(config, now);
    let idle = live(&region);
    println!(
        "{} bytes a link that is not in use, with the configuration and its tables",
        idle / LINKS
    );
    assert!(idle / LINKS < 8_000, "{idle}");

    // One packet is sent to each peer. Each starts a handshake, and waits for it.
    let mut out = Buffer::new();
    let mut device = Device {
        coalescer: Coalescer::new(true),
        writes: 0,
        packets: 0,
    };
    for n in 0..LINKS {
        out.clear();
        let mut packet = udp("10.1.255.250", &format!("10.1.{}.{}", n / 256, n % 256), 64, 100);
        node.engine
            .handle_tun(NicIndex::FIRST, &mut packet, now, &mut out, &mut device);
    }
    assert_eq!(node.engine.stats().totals.dropped, 0, "{:?}", node.engine.stats());
    let asked = live(&region);
    println!("{} bytes a link that asks for a session", asked / LINKS);
    assert!(asked / LINKS < 64_000, "{asked}");

    // No peer responds. So the waiting packets are dropped and counted, and memory does not grow.
    let mut then = now;
    for _ in 0..30 {
        then += Duration::from_secs(5);
        out.clear();
        node.engine.handle_timeout(then, &mut out);
    }
    let later = live(&region);
    println!("{} bytes a link that nobody answers", later / LINKS);
    assert!(later <= asked + LINKS * 1000, "{later} after {asked}");
}

/// The number of bytes that were allocated since the creation of `region` and are not freed yet.
fn live(region: &Region<'_, System>) -> usize {
    let change = region.change();
    change.bytes_allocated.saturating_sub(change.bytes_deallocated)
}

/// A public key that no node of the test has.
fn key(n: usize) -> PublicKey {
    let mut secret = [7; 32];
    secret[..8].copy_from_slice(&n.to_le_bytes());
    PublicKey(DhPublic::from(&StaticSecret::from(secret)).to_bytes())
}
