//! Random sequences of events at encrypted links: configurations that grow, shrink and change keys, datagrams of peers and
//! of strangers, lost, duplicated and late datagrams, control messages of a hostile peer, restarts, and the passing of
//! time. Several real sets of links exchange packets over WireGuard and QUIC, so that inputs also reach the code that only
//! authenticated peers reach.
//!
//! The tests check these invariants: nothing panics; a packet from a link was sent by the peer with the link's keys; an
//! event concerns a link of the configuration in force; a link has a status only while it is in that configuration.

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tombolo_engine::buffer::{Collected, Path, Port};
use tombolo_engine::link::secure::SecureLinks;
use tombolo_engine::link::{Event, LinkSet, Opened};
use tombolo_engine::tables::LinkIndex;
use tombolo_proto::config::{ForeignSources, Link, Probes, Relation, Transport};
use tombolo_proto::id::{AgentId, KeyPin, PublicKey};
use tombolo_tests::corpus;

/// The number of agents in the test. Configurations also name agents that do not exist.
const NODES: usize = 3;

/// The number of key pairs of each agent. An agent uses one key pair at a time, and may use another one after a
/// restart.
const KEYS: u8 = 2;

/// Names in the order of configurations. The agents have the names at odd positions. So the links that come and go with
/// the names at even positions stand before and behind the agents' links in each configuration.
const NAMES: [&str; 7] = ["a", "b", "c", "d", "e", "f", "g"];

/// The most datagrams that are in flight at a time; further ones are lost. So `carry(MAX_IN_FLIGHT)` delivers all of them.
const MAX_IN_FLIGHT: usize = 256;

/// The first byte of the test's own packets: IPv4 with a header of 20 bytes.
const OWN: u8 = 0x45;

/// The number of random inputs in `make test`, and the length of the longest input in bytes. Larger numbers cover more
/// and take longer.
const ITERATIONS: usize = 1500;
const MAX_INPUT: usize = 768;

/// Reads operations from the bytes of an input. After the last byte it reads zeros.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::from(self.byte()) % limit.max(1)
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let len = self.below(most + 1).min(self.0.len());
        let (bytes, rest) = self.0.split_at(len);
        self.0 = rest;
        bytes.to_vec()
    }
}

/// The private key of an agent, by its position in [`NAMES`] and the number of its key pair. It is used for X25519 and for
/// Ed25519.
fn secret(name: usize, key: u8) -> [u8; 32] {
    let mut secret = [0x40 + key; 32];
    // The second byte has the agent's number, because X25519 ignores some bits of the first and the last byte.
    secret[1] = u8::try_from(name).expect("few names");
    secret
}

fn links_of(name: usize, key: u8, lane: u16) -> SecureLinks {
    let mut pkcs8 = vec![
        0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
    ];
    pkcs8.extend_from_slice(&secret(name, key));
    let pkcs8 = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pkcs8));
    let links = SecureLinks::new(secret(name, key));
    links.with_quic(pkcs8, [7; 32]).expect("an Ed25519 key").of_lane(lane)
}

/// The public keys and pins of each agent, by the agent's position in [`NAMES`] and the number of its key pair.
struct Pinned(Vec<Vec<(PublicKey, KeyPin)>>);

impl Pinned {
    fn new() -> Self {
        let of = |name| {
            let of = |key| {
                let links = links_of(name, key, 0);
                (links.public_key(), links.pin().expect("it has QUIC"))
            };
            (0..KEYS).map(of).collect()
        };
        Self((0..NAMES.len()).map(of).collect())
    }
}

fn address(name: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 1000 + 10 * u16::try_from(name).expect("few names")))
}

struct Node {
    name: usize,
    key: u8,
    links: SecureLinks,
    /// The node's configuration: for each link the peer's position in [`NAMES`] and the number of its key pair.
    config: Vec<(usize, u8)>,
    /// The inputs that the node has handled since its events were last polled. This number bounds the number of events.
    unpolled: usize,
}

/// A datagram on the simulated network.
struct InFlight {
    from: SocketAddr,
    to: SocketAddr,
    bytes: Vec<u8>,
}

struct World<'a> {
    pinned: &'a Pinned,
    nodes: Vec<Node>,
    wire: VecDeque<InFlight>,
    now: Instant,
    buffer: Vec<u8>,
}

impl<'a> World<'a> {
    /// Creates agents that all have links with each other, and lets them exchange packets.
    fn new(pinned: &'a Pinned, transport: u8) -> Self {
        let node = |number: usize| {
            let name = 2 * number + 1;
            Node {
                name,
                key: 0,
                links: links_of(name, 0, 0),
                config: Vec::new(),
                unpolled: 0,
            }
        };
        let mut world = Self {
            pinned,
            nodes: (0..NODES).map(node).collect(),
            wire: VecDeque::new(),
            now: Instant::now(),
            buffer: vec![0; 66_000],
        };
        let known: Vec<_> = (0..NODES).map(|n| (2 * n + 1, 0)).collect();
        for node in 0..NODES {
            let others = known.iter().copied().filter(|(name, _)| *name != 2 * node + 1);
            world.update(node, others.collect(), transport);
        }
        for node in 0..NODES {
            for link in 0..NODES - 1 {
                world.send(node, link, 100);
            }
        }
        world.carry(MAX_IN_FLIGHT);
        world
    }

    fn link(&self, (name, key): (usize, u8), flags: u8) -> Link {
        let (public_key, quic) = self.pinned.0[name][usize::from(key)];
        Link {
            peer: AgentId::new(NAMES[name]).expect("a name"),
            public_key,
            preshared_key: None,
            endpoint: (flags & 16 == 0).then(|| address(name)),
            quic_endpoint: None,
            peer_lanes: 1 + u16::from(flags >> 7),
            many_routes: false,
            quic: (flags & 3 != 1).then_some(quic),
            transport: match flags & 3 {
                0 | 3 => Transport::Quic,
                1 => Transport::WireGuard,
                _ => Transport::Automatic,
            },
            always_on: flags & 4 != 0,
            initiator: flags & 8 != 0,
            relation: Relation::Gateway {},
            sources: Vec::new(),
            foreign: ForeignSources::None,
            arrivals: Vec::new(),
            monitored: flags & 32 != 0,
            third_party: flags & 0x7f == 0x41,
            dpd_timeout: None,
        }
    }

    fn update(&mut self, node: usize, config: Vec<(usize, u8)>, flags: u8) {
        let links: Vec<Link> = config.iter().map(|one| self.link(*one, flags)).collect();
        let node = &mut self.nodes[node];
        node.links.update(&links, self.now);
        for link in 0..u32::try_from(links.len()).expect("few links") {
            node.links.accept_routes(LinkIndex(link), flags & 64 == 0);
            node.links.accept_health(LinkIndex(link), flags & 64 == 0);
        }
        let before = std::mem::replace(&mut node.config, config);
        // An event that is still pending after an update must concern a link that both configurations contain, the old
        // and the new one, with the same key of the peer.
        while let Some(event) = node.links.poll_event() {
            let stayed = |one: &&(usize, u8)| node.config.contains(one) && NAMES[one.0] == event.peer().as_str();
            // There is one exception: `update` itself reports a link without an endpoint as down, so the old
            // configuration need not contain it.
            let nowhere = matches!(event, Event::Down(_));
            let known = nowhere && node.config.iter().any(|(n, _)| NAMES[*n] == event.peer().as_str());
            assert!(
                known || before.iter().any(|one| stayed(&one)),
                "{event:?} after an update"
            );
        }
        node.unpolled = 0;
        self.check_status();
    }

    /// Asserts that each link with a status is in the configuration.
    fn check_status(&self) {
        for node in &self.nodes {
            for status in node.links.status(self.now) {
                let known = node.config.iter().any(|(name, _)| NAMES[*name] == status.peer.as_str());
                assert!(known, "{} still has a status", status.peer);
            }
        }
    }

    fn events(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        let mut count = 0;
        while let Some(event) = node.links.poll_event() {
            count += 1;
            let known = node.config.iter().find(|(n, _)| NAMES[*n] == event.peer().as_str());
            let Some((name, _)) = known else {
                panic!("{event:?} concerns no link of the configuration");
            };
            if let Event::RoutesReceived(_, table) | Event::HealthReceived(_, table) = &event {
                let by = table.first().is_none_or(|by| usize::from(*by) == *name);
                assert!(by, "{}'s table came from {}", NAMES[*name], table[0]);
            }
        }
        let most = 8 * (node.unpolled + 1) + 4 * node.config.len();
        assert!(count <= most, "{count} events of {} inputs", node.unpolled);
        node.unpolled = 0;
    }

    /// Puts the datagrams that a node wants to send on the simulated network.
    fn take(&mut self, node: usize, mut out: Collected) {
        self.nodes[node].links.flush(self.now, &mut out);
        let from = address(self.nodes[node].name);
        for (to, bytes) in out.datagrams {
            if self.wire.len() < MAX_IN_FLIGHT {
                self.wire.push_back(InFlight { from, to, bytes });
            }
        }
        self.nodes[node].unpolled += 1;
    }

    /// Sends a packet that contains its sender's name and key number, so that the receiver can check them.
    fn send(&mut self, node: usize, link: usize, len: usize) {
        let (name, key) = (self.nodes[node].name, self.nodes[node].key);
        let mut packet = vec![0; len.max(20)];
        packet[0] = OWN;
        // WireGuard pads packets, and the receiver removes the padding according to IPv4's total length, so this field
        // must be right.
        let total = u16::try_from(packet.len()).expect("short");
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        (packet[4], packet[5]) = (u8::try_from(name).expect("few names"), key);
        self.seal(node, link, &packet);
    }

    fn seal(&mut self, node: usize, link: usize, packet: &[u8]) {
        let mut out = Collected::default();
        let link = LinkIndex(u32::try_from(link).expect("few links"));
        let links = &mut self.nodes[node].links;
        links.is_ready(link, self.now);
        links.max_packet(link);
        links.seal(link, packet, 0, self.now, &mut out);
        self.take(node, out);
    }

    /// Asserts that a packet from a link was sent by the link's peer, with the key of the configuration.
    fn came_out(node: &Node, link: LinkIndex, packet: &[u8]) {
        let Some(peer) = node.config.get(link.get()) else {
            panic!("a packet of link {link:?}, there are {}", node.config.len());
        };
        if packet.first() == Some(&OWN) && packet.len() >= 20 {
            let by = (usize::from(packet[4]), packet[5]);
            assert_eq!(by, *peer, "the sender of the packet, and the link's peer");
        }
    }

    fn receive(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8], port: Port) {
        let Some(number) = self.nodes.iter().position(|n| address(n.name) == to) else {
            return;
        };
        let mut out = Collected::default();
        let (node, buffer) = (&mut self.nodes[number], &mut self.buffer);
        let path = Path {
            remote: from,
            local: None,
            port,
        };
        if let Opened::Packet(link, range) = node.links.open(bytes, path, self.now, buffer, &mut out) {
            Self::came_out(node, link, &buffer[range]);
        }
        while let Some((link, range)) = node.links.next_packet(self.now, buffer, &mut out) {
            Self::came_out(node, link, &buffer[range]);
        }
        self.take(number, out);
    }

    fn carry(&mut self, most: usize) {
        for _ in 0..most {
            let Some(InFlight { from, to, bytes }) = self.wire.pop_front() else {
                return;
            };
            self.receive(from, to, &bytes, Port::Lane);
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        for number in 0..NODES {
            let mut out = Collected::default();
            self.nodes[number].links.handle_timeout(self.now, &mut out);
            self.take(number, out);
        }
    }

    fn restart(&mut self, number: usize, key: u8, lane: u16) {
        let node = &mut self.nodes[number];
        (node.key, node.links) = (key, links_of(node.name, key, lane));
        let config = std::mem::take(&mut node.config);
        self.update(number, config, 0);
    }

    /// Sends a control message of the protocol inside links, with random contents. A hostile peer could send it.
    fn control(&mut self, node: usize, link: usize, input: &mut Input<'_>) {
        let mut packet = vec![0; 48];
        (packet[0], packet[6], packet[7]) = (0x60, 253, 1);
        for (at, last) in [(8, 1), (24, 2)] {
            (
                packet[at],
                packet[at + 1],
                packet[at + 12],
                packet[at + 13],
                packet[at + 15],
            ) = (0xfe, 0x80, 0x74, 0x6d, last);
        }
        packet[40] = input.byte() % 9;
        for at in [41, 42, 46, 47] {
            packet[at] = input.byte();
        }
        if [6, 8].contains(&packet[40]) {
            // Kind 6 is a part of a route table, kind 8 of a table of health. The numbers for kind, digest, index and count are small, so that
            // random parts sometimes belong to one table.
            packet.push(input.byte() % 3);
            packet.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, input.byte() % 4]);
            packet.extend_from_slice(&[0, input.byte() % 4, 0, input.byte() % 5]);
        }
        packet.extend(input.bytes(200));
        let payload = u16::try_from(packet.len() - 40).expect("short");
        packet[4..6].copy_from_slice(&payload.to_be_bytes());
        self.seal(node, link, &packet);
    }

    /// Reads one operation from the input, and performs it.
    fn step(&mut self, input: &mut Input<'_>) {
        let kind = input.byte() % 20;
        let number = input.below(NODES);
        let links = self.nodes[number].config.len();
        match kind {
            0..=2 => {
                let (members, keys, flags) = (input.byte(), input.byte(), input.byte());
                let own = self.nodes[number].name;
                let member = |name: usize| name != own && members >> name & 1 == 1;
                let chosen = (0..NAMES.len()).filter(|name| member(*name));
                // The key number is mostly 0, which all agents use at first. If it were often another number, links
                // would rarely work.
                let config = chosen.map(|name| (name, u8::from(keys >> name & 1 == 1 && keys & 128 != 0) % KEYS));
                self.update(number, config.collect(), flags);
            }
            3..=5 => {
                let (link, len) = (input.below(links + 1), 8 * usize::from(input.byte()));
                self.send(number, link, len);
            }
            6 | 7 => self.carry(1 + input.below(8)),
            8 => self.carry(MAX_IN_FLIGHT),
            9 => self.pass(Duration::from_millis(u64::from(input.byte()) * 4)),
            10 => {
                for _ in 0..1 + input.below(8) {
                    self.pass(Duration::from_millis(100));
                    self.carry(MAX_IN_FLIGHT);
                }
            }
            11 => self.events(number),
            12 => {
                let name = u8::try_from(self.nodes[number].name).expect("few names");
                let table = vec![name; 40 * input.below(64)];
                let link = u32::try_from(input.below(links + 1)).expect("few links");
                let table: Arc<[u8]> = Arc::from(table);
                self.nodes[number].links.advertise_health(&table, self.now);
                self.nodes[number].links.return_health(LinkIndex(link), self.now);
                self.nodes[number].links.advertise(LinkIndex(link), table);
                self.nodes[number].links.advertise_now(self.now);
                self.pass(Duration::ZERO);
            }
            13 => {
                let link = input.below(links + 1);
                self.control(number, link, input);
            }
            14 => {
                // A datagram of a stranger.
                let port = if input.byte() & 1 == 0 { Port::Lane } else { Port::Quic };
                let bytes = input.bytes(255);
                let to = address(self.nodes[number].name);
                self.receive(address(input.below(NAMES.len())), to, &bytes, port);
            }
            15 => {
                // A datagram in flight is lost, duplicated, late, changed, cut off, or comes from another address.
                let at = input.below(self.wire.len());
                let Some(mut datagram) = self.wire.remove(at) else {
                    return;
                };
                match input.byte() % 6 {
                    0 => {}
                    1 => {
                        let (from, to, bytes) = (datagram.from, datagram.to, datagram.bytes.clone());
                        self.wire.push_back(datagram);
                        self.receive(from, to, &bytes, Port::Lane);
                    }
                    2 => self.wire.push_back(datagram),
                    3 => {
                        let (place, value) = (input.below(datagram.bytes.len()), input.byte());
                        if let Some(byte) = datagram.bytes.get_mut(place) {
                            *byte ^= value;
                        }
                        self.wire.push_front(datagram);
                    }
                    4 => {
                        let len = input.below(datagram.bytes.len() + 1);
                        datagram.bytes.truncate(len);
                        self.wire.push_front(datagram);
                    }
                    _ => {
                        datagram.from = address(input.below(NAMES.len()));
                        self.wire.push_front(datagram);
                    }
                }
            }
            16 => {
                // A restarted agent rarely gets another key. If keys changed often, no agent would have a valid link
                // for long.
                let key = u8::from(input.byte() > 200);
                self.restart(number, key, u16::from(input.byte() > 240));
            }
            17 => {
                let mut out = Collected::default();
                self.nodes[number].links.drain(self.now, &mut out);
                self.take(number, out);
            }
            18 => {
                let peer = AgentId::new(NAMES[input.below(NAMES.len())]).expect("a name");
                let to = address(input.below(NAMES.len()));
                let links = &mut self.nodes[number].links;
                links.set_endpoint(&peer, to);
                links.prepare_session(&peer, self.now);
                links.source_unavailable([192, 0, 2, 1].into());
                links.remember_endpoints(&[(peer, to)].into());
            }
            _ => {
                let links = &mut self.nodes[number].links;
                links.set_mtu(1280 + 8 * u16::from(input.byte()));
                links.set_probes(Probes::default());
                links.take_lost();
                let _ = links.endpoints();
            }
        }
    }
}

fn run(pinned: &Pinned, input: &[u8]) {
    let mut input = Input(input);
    let mut world = World::new(pinned, input.byte());
    while !input.0.is_empty() {
        world.step(&mut input);
    }
    world.check_status();
    for node in 0..NODES {
        world.events(node);
    }
}

#[test]
fn link_states() {
    let pinned = Pinned::new();
    let mut check = move |input: &[u8]| run(&pinned, input);
    corpus::replay("links", &mut check);
    bolero::check!()
        .with_iterations(ITERATIONS)
        .with_max_len(MAX_INPUT)
        .for_each(check);
}
