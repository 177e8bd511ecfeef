//! Bad input to an agent, as packets from the TUN device and datagrams from the network, leads to counted drops and never to a
//! panic. Inputs are random bytes, and valid packets and datagrams with some bytes changed or cut off.

use etherparse::PacketBuilder;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tombolo_engine::buffer::Collected;
use tombolo_engine::engine::Engine;
use tombolo_engine::link::secure::SecureLinks;
use tombolo_engine::packet;
use tombolo_engine::tables::{NicIndex, RoutingState, Tables};
use tombolo_proto::config::AgentConfig;
use tombolo_proto::id::PublicKey;
use tombolo_tests::corpus::edit;
use tombolo_tests::fuzz;
use tombolo_tests::operation::{Flags, Operation};
use tombolo_tests::product::{Product, agent_id};

/// Valid packets, which the tests edit.
fn packets() -> Vec<Vec<u8>> {
    let v4 = || PacketBuilder::ipv4([10, 1, 0, 10], [10, 2, 0, 10], 64);
    let v6 = || PacketBuilder::ipv6([0xfd; 16], [0xfe; 16], 64);
    let mut out = vec![vec![]; 5];
    v4().udp(1, 2).write(&mut out[0], &[7; 40]).expect("packet");
    v4().tcp(1, 2, 3, 4).syn().write(&mut out[1], &[]).expect("packet");
    v4().icmpv4_echo_request(1, 2)
        .write(&mut out[2], &[7; 8])
        .expect("packet");
    v6().tcp(1, 2, 3, 4).syn().write(&mut out[3], &[]).expect("packet");
    v6().icmpv6_echo_request(1, 2)
        .write(&mut out[4], &[7; 8])
        .expect("packet");
    // A SYN with a maximum segment size, which the clamp rewrites.
    let options = [etherparse::TcpOptionElement::MaximumSegmentSize(9000)];
    let mut mss = Vec::new();
    let builder = v4().tcp(1, 2, 3, 4).syn().options(&options).expect("options");
    builder.write(&mut mss, &[]).expect("packet");
    out.push(mss);
    out
}

/// The tables of agent `v1-vm`, a VM in a VNet that is peered with the VNet of `v2-vm`.
fn configs() -> Vec<AgentConfig> {
    let mut product = Product::new();
    let flags = Flags {
        access: true,
        forwarded: true,
        transit: false,
        use_remote: false,
    };
    let net = |s: String| vec![s.parse().expect("prefix")];
    let mut operations = Vec::new();
    for (vnet, octet) in [("v1", 1), ("v2", 2)] {
        operations.push(Operation::PutVnet {
            vnet: vnet.into(),
            region: "region1",
            space: net(format!("10.{octet}.0.0/16")),
            flow_timeout: None,
        });
        operations.push(Operation::PutSubnet {
            vnet: vnet.into(),
            subnet: "a".into(),
            prefixes: net(format!("10.{octet}.0.0/24")),
            table: None,
            security: None,
        });
        operations.push(Operation::PutNic {
            nic: format!("{vnet}-nic"),
            vnet: vnet.into(),
            subnet: "a".into(),
            addresses: vec![[10, octet, 0, 10].into()],
            forwarding: true,
            security: None,
            application_groups: vec![],
            host_routes: vec![],
            pool: None,
            nat_rule: None,
        });
        operations.push(Operation::JoinVm {
            vm: format!("{vnet}-vm"),
            nics: vec![format!("{vnet}-nic")],
            vnet: vnet.into(),
            served: vec![],
        });
    }
    for (vnet, remote) in [("v1", "v2"), ("v2", "v1")] {
        operations.push(Operation::PutPeering {
            vnet: vnet.into(),
            remote: remote.into(),
            flags,
            sync: false,
        });
    }
    for operation in operations {
        product
            .perform(&operation)
            .unwrap_or_else(|e| panic!("{operation:?}: {e:?}"));
    }
    let compiled =
        |agent| tombolo_topology::compile::compile(&product.topology, &agent_id(agent)).expect("configuration");
    vec![compiled("v1-vm"), compiled("v2-vm")]
}

const SECRETS: [[u8; 32]; 2] = [[0x11; 32], [0x22; 32]];

/// Two agents with real WireGuard links to each other, and all datagrams of their first exchange.
struct Pair {
    engines: Vec<Engine<SecureLinks>>,
    sent: Vec<Vec<u8>>,
}

fn address(agent: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], u16::try_from(agent + 1).expect("port")))
}

fn pair() -> Pair {
    let mut configs = configs();
    let public = |secret: [u8; 32]| {
        let secret = boringtun::x25519::StaticSecret::from(secret);
        PublicKey(boringtun::x25519::PublicKey::from(&secret).to_bytes())
    };
    let now = Instant::now();
    let mut engines = Vec::new();
    for (number, config) in configs.iter_mut().enumerate() {
        for link in &mut config.links {
            link.public_key = public(SECRETS[1 - number]);
        }
        let tables = Tables::build(config, &RoutingState::default()).expect("tables");
        let mut engine = Engine::new(SecureLinks::new(SECRETS[number]), 1);
        engine.install(Arc::new(tables), &config.links, now);
        engines.push(engine);
    }
    let sent = exchange(&mut engines);
    assert!(sent.len() >= 3, "no handshake: {sent:?}");
    Pair { engines, sent }
}

/// Sends one packet from the first engine to the second, which must deliver it. Returns all datagrams of both.
fn exchange(engines: &mut [Engine<SecureLinks>]) -> Vec<Vec<u8>> {
    let now = Instant::now();
    let (mut sent, mut got) = (Vec::new(), Vec::new());
    let mut first = Collected::default();
    let mut packet = packets()[0].clone();
    engines[0].handle_tun(NicIndex::FIRST, &mut packet, now, &mut first, &mut Collected::default());
    let mut in_flight: Vec<(usize, Vec<u8>)> = first.datagrams.into_iter().map(|(_, d)| (1, d)).collect();
    while let Some((to, datagram)) = in_flight.pop() {
        let (mut out, mut delivered) = (Collected::default(), Collected::default());
        engines[to].handle_udp(&datagram, address(1 - to), now, &mut out, &mut delivered);
        engines[to].drained(now);
        in_flight.extend(out.datagrams.into_iter().map(|(_, d)| (1 - to, d)));
        sent.push(datagram);
        got.extend(delivered.packets);
    }
    assert_eq!(got, [packets()[0].clone()]);
    sent
}

#[test]
fn packet_parser() {
    let good = packets();
    let pair = Mutex::new(pair());
    let check = AssertUnwindSafe(|input: &[u8]| {
        let choice = usize::from(input.first().copied().unwrap_or(0)) % good.len();
        for mut bytes in [input.to_vec(), edit(&good[choice], input.get(1..).unwrap_or(&[]))] {
            if let Some(info) = packet::parse(&bytes) {
                assert!(info.len <= bytes.len());
                assert!(info.transport.is_none_or(|t| t <= info.len));
                let mut clamped = bytes[..info.len].to_vec();
                packet::clamp_mss(&mut clamped, &info, 1420);
                assert_eq!(clamped.len(), info.len);
                let from = if info.source.is_ipv4() {
                    [10, 0, 0, 1].into()
                } else {
                    [0xfd; 16].into()
                };
                let what = packet::icmp::IcmpError::TimeExceeded;
                if let Some(answer) = packet::icmp::error(from, &bytes[..info.len], &info, what) {
                    let parsed = packet::parse(&answer).expect("the engine's own answer parses");
                    assert_eq!((parsed.source, parsed.destination), (from, info.source));
                }
            }
            let pair = &mut *pair.lock().expect("pair");
            let before = pair.engines[0].stats().totals;
            let (mut out, mut delivered) = (Collected::default(), Collected::default());
            pair.engines[0].handle_tun(NicIndex::FIRST, &mut bytes, Instant::now(), &mut out, &mut delivered);
            let after = pair.engines[0].stats().totals;
            let done = |f: fn(&tombolo_proto::status::Totals) -> u64| f(&after) - f(&before);
            let all = done(|t| t.tun_out) + done(|t| t.link_out) + done(|t| t.replied) + done(|t| t.dropped);
            assert_eq!((done(|t| t.tun_in), all), (1, 1), "conservation: {before:?} {after:?}");
        }
    });
    fuzz!("packet", move |input: &[u8]| check(input));
}

#[test]
fn link_demultiplexer() {
    let pair = Mutex::new(pair());
    let check = AssertUnwindSafe(|input: &[u8]| {
        let pair = &mut *pair.lock().expect("pair");
        let choice = usize::from(input.first().copied().unwrap_or(0)) % pair.sent.len();
        let good = pair.sent[choice].clone();
        let edited = edit(&good, input.get(1..).unwrap_or(&[]));
        for datagram in [input, &edited, &good[..good.len().min(input.len())]] {
            for (number, engine) in pair.engines.iter_mut().enumerate() {
                let count = |engine: &Engine<SecureLinks>| {
                    let stats = engine.stats();
                    let good = stats.totals.link_in + stats.control_datagrams;
                    (stats.datagrams, good + stats.refused_datagrams)
                };
                let before = count(engine);
                let (mut out, mut delivered) = (Collected::default(), Collected::default());
                engine.handle_udp(datagram, address(1 - number), Instant::now(), &mut out, &mut delivered);
                assert!(delivered.packets.is_empty(), "a forged datagram was delivered");
                let after = count(engine);
                assert_eq!(
                    after,
                    (before.0 + 1, before.1 + 1),
                    "every datagram is counted once: as a packet, as the link's own, or as refused"
                );
            }
        }
    });
    fuzz!("datagram", move |input: &[u8]| check(input));
    // Bad input must not only be dropped, but also leave the link between the two agents intact.
    exchange(&mut pair.lock().expect("pair").engines);
}
