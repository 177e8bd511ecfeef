//! Bad input to the code that enforces security groups: packets, ICMP errors, the file of saved flows, and the
//! configuration. It leads to a refusal or a counted drop, and never to a panic.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tombolo_engine::buffer::Collected;
use tombolo_engine::engine::Engine;
use tombolo_engine::link::PlainLinks;
use tombolo_engine::packet::quoted::{flow_of_error, translate};
use tombolo_engine::packet::rewrite::End;
use tombolo_engine::packet::{self, ICMP, ICMPV6};
use tombolo_engine::security::{Belongs, BootTime, FROM_HOST, FlowKey, FlowTable, Flows, belongs_to, fragment_of};
use tombolo_engine::tables::{RoutingState, Tables};
use tombolo_proto::config::{AgentConfig, Direction};
use tombolo_tests::corpus::edit;
use tombolo_tests::fuzz;

const OWN: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 0, 10));
const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 2, 0, 10));

/// The sum of 16-bit words modulo 65,535, as checksums have it (RFC 1071).
fn sum(bytes: &[u8]) -> u64 {
    let words = bytes
        .chunks(2)
        .map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0)));
    words.sum::<u64>() % 0xffff
}

/// The key of the packets that go the other way.
fn reply(key: &FlowKey) -> FlowKey {
    FlowKey {
        direction: key.direction.opposite(),
        source: key.destination,
        destination: key.source,
        ports: (key.ports.1, key.ports.0),
        ..*key
    }
}

/// A flow that was found in a packet is found again, in both directions, and as no other flow.
fn check_key(table: &FlowTable, key: &FlowKey) {
    assert!(table.insert(key, FROM_HOST, 240, 0).is_ok(), "{key:?}");
    let found = table.find(key, 0).unwrap_or_else(|| panic!("{key:?}"));
    assert!(found.forward);
    // A packet from an address and port to the same address and port is its own reply.
    let is_own_reply = (key.source, key.ports.0) == (key.destination, key.ports.1);
    let back = table.find(&reply(key), 0);
    assert!(is_own_reply || back.is_some_and(|flow| !flow.forward), "{key:?}");
}

#[test]
fn flow_keys_of_packets() {
    let table = FlowTable::new(4096, 1, 7);
    fuzz!("flow_key", move |bytes: &[u8]| {
        // Random bytes are hardly ever an IP header, so the first byte is also replaced by that of both versions.
        for first in [bytes.first().copied().unwrap_or(0), 0x45, 0x60] {
            let mut packet = bytes.to_vec();
            if let Some(byte) = packet.first_mut() {
                *byte = first;
            }
            let Some(info) = packet::parse(&packet) else { continue };
            for direction in [Direction::Inbound, Direction::Outbound] {
                match belongs_to(&packet, &info, 0, direction) {
                    Belongs::Flow { key, .. } => {
                        assert_eq!((key.source, key.destination), (info.source, info.destination));
                        assert_eq!((key.protocol, key.direction), (info.protocol, direction));
                        check_key(&table, &key);
                    }
                    Belongs::Error { quoted } => {
                        assert!(matches!(info.protocol, ICMP | ICMPV6));
                        assert_eq!(quoted.source, info.destination);
                        assert_eq!(quoted.direction, direction.opposite());
                    }
                    Belongs::Fragment { of, data } => {
                        assert!(data.start > 0 && data.start <= data.end);
                        assert_eq!(fragment_of(&packet, &info), Some((of, data)));
                    }
                    Belongs::Malformed => {}
                }
            }
        }
    });
}

#[test]
fn icmp_errors_that_quote_anything() {
    fuzz!("icmp_error", |quoted: &[u8]| {
        let quoted = &quoted[..quoted.len().min(1400)];
        let len = u16::try_from(28 + quoted.len()).expect("a short packet").to_be_bytes();
        for kind in [3, 4, 5, 11, 12] {
            let mut error = vec![0x45, 0, len[0], len[1], 0, 0, 0, 0, 64, ICMP, 0, 0];
            // The error goes from the other machine to the own one, so it must quote a packet of the own one.
            error.extend([10, 2, 0, 10, 10, 1, 0, 10]);
            error.extend([kind, 1, 0, 0, 0, 0, 0, 0]);
            error.extend(quoted);
            let info = packet::parse(&error).expect("the header is valid");
            assert_eq!((info.source, info.destination), (OTHER, OWN));
            match belongs_to(&error, &info, 0, Direction::Inbound) {
                Belongs::Error { quoted } => {
                    assert_eq!((quoted.source, quoted.direction), (OWN, Direction::Outbound));
                }
                Belongs::Flow { key, .. } => assert_eq!((key.source, key.ports), (OTHER, (0, 0))),
                other => panic!("{other:?}"),
            }
            let flow = flow_of_error(&error, &info);
            assert!(flow.is_none_or(|flow| flow.destination == OWN));
            for (end, old) in [(End::Source, OTHER), (End::Destination, OWN)] {
                let (mut changed, mut now) = (error.clone(), info);
                if translate(&mut changed, &mut now, end, old, ([10, 9, 9, 9].into(), 77)) {
                    assert_eq!(packet::parse(&changed), Some(now));
                    // The checksum covers the quoted packet, so the sum stays the same.
                    assert_eq!(sum(&changed[20..]), sum(&error[20..]));
                } else {
                    assert_eq!(changed, error);
                }
            }
        }
    });
}

#[test]
fn d34_saved_flows() {
    let at = BootTime {
        boot: [b'b'; 16],
        since_boot: Duration::from_secs(1000),
    };
    let table = FlowTable::new(1024, 1, 7);
    for port in 0..20 {
        let key = FlowKey {
            nic: 0,
            direction: [Direction::Inbound, Direction::Outbound][usize::from(port % 2)],
            protocol: if port % 3 == 0 { 6 } else { 17 },
            source: OTHER,
            destination: OWN,
            ports: (port, 443),
        };
        table.insert(&key, FROM_HOST, 240, 100).expect("room");
    }
    let good = table.save(&at, 110);
    fuzz!("saved_flows", move |bytes: &[u8]| {
        for file in [bytes.to_vec(), edit(&good, bytes), [&good[..44], bytes].concat()] {
            let table = FlowTable::new(1024, 1, 9);
            match table.load(&file, &at, 10_000) {
                Ok(count) => {
                    assert_eq!(table.len(), count);
                    let again = FlowTable::new(1024, 1, 11);
                    assert_eq!(again.load(&table.save(&at, 10_000), &at, 10_000), Ok(count));
                }
                Err(_) => assert!(table.is_empty()),
            }
        }
    });
}

/// A configuration with security groups.
fn secured() -> Vec<u8> {
    let config = serde_json::json!({
        "agent": "vm", "vnet": "/vnet", "addressSpace": ["10.1.0.0/16"], "mtu": 1420,
        "role": {"type": "vm", "served": [], "nics": [{"id": "/nic", "subnet": "/subnet",
            "addresses": ["10.1.0.10/24"], "ipForwarding": false}]},
        "subnets": [{"id": "/subnet", "prefixes": ["10.1.0.0/24"], "routes": [{"source": "Default", "state": "Active",
            "prefix": "10.1.0.0/16", "nextHop": {"type": "VnetLocal"}}]}],
        "spaces": [{"vnet": "/vnet", "kind": {"type": "local"}, "prefixes": ["10.1.0.0/16"], "owners": [
            {"prefix": "10.1.0.10/32", "agent": "vm"}, {"prefix": "10.1.0.11/32", "agent": "b"}]}],
        "links": [{"peer": "b", "publicKey": tombolo_proto::id::PublicKey([7; 32]), "transport": "WireGuard",
            "alwaysOn": false, "initiator": false, "relation": {"type": "vnetLocal"}, "foreign": "none",
            "endpoint": "192.0.2.1:51820", "sources": ["10.1.0.11/32"]}],
        "security": {
            "groups": [{"id": "/web", "rules": [
                {"name": "securityRules/a", "priority": 100, "direction": "Inbound", "access": "Allow", "protocol": "Tcp",
                    "source": {"sets": ["VirtualNetwork", "/servers"]}, "sourcePorts": [{"first": 0, "last": 65535}],
                    "destination": "any", "destinationPorts": [{"first": 80, "last": 90}, {"first": 443, "last": 443}]},
                {"name": "securityRules/b", "priority": 200, "direction": "Outbound", "access": "Deny", "protocol": "*",
                    "source": {"prefixes": ["10.1.0.0/24", "fd00::/8"]}, "sourcePorts": [{"first": 0, "last": 65535}],
                    "destination": "any", "destinationPorts": [{"first": 0, "last": 65535}]}]}],
            "applicationGroups": [{"name": "/servers", "addresses": ["10.1.0.10", "fd00::1"]}],
            "nics": [{"id": "/nic", "prefixes": ["10.1.0.10/32"], "subnet": "/subnet", "subnetGroup": "/web",
                "nicGroup": "/web"}],
            "accessOff": "tagOnly", "flowTimeoutMinutes": 30, "reevaluate": true,
        },
    });
    config.to_string().into_bytes()
}

#[test]
fn security_configuration() {
    let good = secured();
    let syn = {
        let mut packet = Vec::new();
        let header = etherparse::PacketBuilder::ipv4([10, 1, 0, 11], [10, 1, 0, 10], 64);
        header
            .tcp(40_000, 443, 1, 2)
            .syn()
            .write(&mut packet, &[])
            .expect("packet");
        packet
    };
    let begin = good
        .windows(10)
        .position(|text| text == b"\"security\"")
        .expect("the field");
    let accepted = std::cell::Cell::new(0);
    let check = std::panic::AssertUnwindSafe(|bytes: &[u8]| {
        // Edits in the text of the groups alone, because most other edits break the configuration for another reason.
        let edited = [&good[..begin], &edit(&good[begin..], bytes)].concat();
        for text in [&edited[..], bytes] {
            let Ok(config) = AgentConfig::from_bytes(text) else {
                continue;
            };
            accepted.set(accepted.get() + 1);
            let again = AgentConfig::from_bytes(&config.to_bytes()).expect("own bytes");
            assert_eq!(again.security, config.security);
            let Ok(tables) = Tables::build(&config, &RoutingState::default()) else {
                continue;
            };
            let mut engine = Engine::new(PlainLinks::new(config.agent.clone()), 1);
            engine.share_flows(Arc::new(Flows::new(1024, 1)));
            engine.install(Arc::new(tables), &config.links, Instant::now());
            let (mut tx, mut rx) = (Collected::default(), Collected::default());
            let datagram = [&[1, b'b'][..], &syn].concat();
            let from = ([192, 0, 2, 1], 51_820).into();
            engine.handle_udp(&datagram, from, Instant::now(), &mut tx, &mut rx);
            while engine.recheck_flows() {}
            assert!(engine.stats().conserved());
            if text == good {
                assert_eq!(rx.packets.len(), 1, "the rules allow this packet: {:?}", engine.stats());
            }
        }
    });
    fuzz!("security", move |bytes: &[u8]| check(bytes));
    // An edit of nothing is accepted, and so must be some others.
    println!("{} configurations were accepted", accepted.get());
    assert!(accepted.get() > 10);
}
