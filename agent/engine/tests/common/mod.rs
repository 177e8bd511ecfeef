//! Configurations and packets for tests, and a simulated network between engines. The test advances the clock.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test's helper; the clock is the test's"
)]

pub mod errors;
pub mod groups;
pub mod lanes;

use boringtun::x25519::{PublicKey as DhPublic, StaticSecret};
use etherparse::PacketBuilder;
use ipnet::IpNet;
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tombolo_engine::buffer::{Collected, Path, Port};
use tombolo_engine::engine::Engine;
use tombolo_engine::link::Event;
use tombolo_engine::link::secure::SecureLinks;
use tombolo_engine::tables::{LinkIndex, NicIndex, RoutingState, Tables};
use tombolo_proto::config::{
    AgentConfig, DEFAULT_MTU, ForeignSources, Link, Nic, Owner, Probes, Relation, Role, Space, SpaceKind, Subnet,
};
use tombolo_proto::id::{AgentId, PresharedKey, PublicKey, ResourceId};
use tombolo_proto::route::{EffectiveRoute, NextHop, RouteSource, RouteState};
use tombolo_proto::status::{LinkState, LinkStatus};

pub fn agent(name: &str) -> AgentId {
    AgentId::new(name).unwrap()
}

pub fn id(name: &str) -> ResourceId {
    ResourceId::new(name)
}

pub fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|t| net(t)).collect()
}

/// An active system route.
pub fn route(prefix: &str, next_hop: NextHop) -> EffectiveRoute {
    EffectiveRoute {
        name: None,
        source: RouteSource::Default,
        state: RouteState::Active,
        prefix: net(prefix),
        next_hop,
    }
}

pub fn owner(prefix: &str, name: &str) -> Owner {
    Owner {
        prefix: net(prefix),
        agent: agent(name),
        ip_forwarding: false,
    }
}

pub fn space(vnet: &str, kind: SpaceKind, prefixes: &[&str], owners: &[(&str, &str)]) -> Space {
    Space {
        vnet: id(vnet),
        kind,
        prefixes: nets(prefixes),
        owners: owners.iter().map(|(p, a)| owner(p, a)).collect(),
    }
}

/// A link over WireGuard with a made-up key, without `always_on`.
pub fn link(peer: &str, relation: Relation, sources: &[&str]) -> Link {
    Link {
        peer: agent(peer),
        public_key: PublicKey([7; 32]),
        preshared_key: None,
        endpoint: None,
        quic_endpoint: None,
        peer_lanes: 1,
        many_routes: false,
        quic: None,
        transport: tombolo_proto::config::Transport::WireGuard,
        always_on: false,
        initiator: false,
        relation,
        sources: nets(sources),
        foreign: ForeignSources::None,
        arrivals: Vec::new(),
        monitored: false,
        third_party: false,
        dpd_timeout: None,
    }
}

/// The configuration of a VM with one NIC, in a VNet with 10.0.0.0/8 and fd00::/8. The VNet's only subnet has the same
/// prefixes.
pub fn vm(name: &str, addresses: &[&str], links: Vec<Link>, owners: &[(&str, &str)]) -> AgentConfig {
    AgentConfig {
        agent: agent(name),
        vnet: id("vnet"),
        address_space: nets(&["10.0.0.0/8", "fd00::/8"]),
        mtu: DEFAULT_MTU,
        probes: Probes::default(),
        role: Role::Vm {
            nics: vec![Nic {
                id: id("nic"),
                addresses: nets(addresses),
                subnet: id("subnet"),
                ip_forwarding: false,
                host_routes: Vec::new(),
            }],
            served: vec![],
            gateways: Vec::new(),
        },
        subnets: vec![Subnet {
            id: id("subnet"),
            prefixes: nets(&["10.0.0.0/8", "fd00::/8"]),
            routes: vec![
                route("10.0.0.0/8", NextHop::VnetLocal {}),
                route("fd00::/8", NextHop::VnetLocal {}),
            ],
            isolated: false,
        }],
        spaces: vec![space("vnet", SpaceKind::Local {}, &["10.0.0.0/8", "fd00::/8"], owners)],
        links,
        security: None,
        front_ends: Vec::new(),
        limits: None,
    }
}

/// Builds a UDP packet with `len` bytes of payload.
pub fn udp(from: &str, to: &str, ttl: u8, len: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let payload = vec![0xab; len];
    match (ip(from), ip(to)) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), ttl)
            .udp(1000, 2000)
            .write(&mut out, &payload)
            .unwrap(),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), ttl)
            .udp(1000, 2000)
            .write(&mut out, &payload)
            .unwrap(),
        _ => panic!("two families"),
    }
    out
}

/// Builds an ICMP echo request.
pub fn echo(from: &str, to: &str) -> Vec<u8> {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (ip(from), ip(to)) else {
        panic!("IPv4 alone")
    };
    let mut out = Vec::new();
    let header = PacketBuilder::ipv4(from.octets(), to.octets(), 64).icmpv4_echo_request(7, 1);
    header.write(&mut out, b"data").unwrap();
    out
}

/// An agent with encrypted links.
pub struct Node {
    pub name: &'static str,
    pub at: SocketAddr,
    /// Address and port of the node's second socket, which is for QUIC alone.
    pub second: Option<SocketAddr>,
    /// The address of this node at which datagrams arrive, as its kernel would report it; `None`: it reports none.
    pub local: Option<IpAddr>,
    /// The path of each datagram that it has sent.
    pub paths: Vec<Path>,
    pub secret: [u8; 32],
    /// Its private key for QUIC in PKCS #8.
    pub key: Option<Vec<u8>>,
    pub engine: Engine<SecureLinks>,
    pub config: AgentConfig,
    pub delivered: Vec<Vec<u8>>,
    pub events: Vec<Event>,
}

impl Node {
    /// Creates a VM 10.0.0.1/24 without links, at the underlay address `at`. Its WireGuard key is 32 bytes of `seed`.
    pub fn new(name: &'static str, at: &str, seed: u8) -> Self {
        let secret = [seed; 32];
        Self {
            name,
            at: at.parse().unwrap(),
            second: None,
            local: None,
            paths: Vec::new(),
            secret,
            key: None,
            engine: Engine::new(SecureLinks::new(secret), 1),
            config: vm(name, &["10.0.0.1/24"], vec![], &[]),
            delivered: Vec::new(),
            events: Vec::new(),
        }
    }

    /// Gives the node a key for QUIC.
    pub fn with_quic(mut self) -> Self {
        let random = aws_lc_rs::rand::SystemRandom::new();
        let algorithm = &aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1_SIGNING;
        let key = aws_lc_rs::signature::EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        self.key = Some(key.as_ref().to_vec());
        self.engine = Engine::new(self.links(), 1);
        self
    }

    fn links(&self) -> SecureLinks {
        let mut links = SecureLinks::new(self.secret);
        if let Some(key) = &self.key {
            let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.clone());
            links = links.with_quic(key.into(), self.secret).unwrap();
        }
        match self.second {
            Some(_) => links.with_second_port(),
            None => links,
        }
    }

    /// Gives the node a second port, for QUIC.
    pub fn with_second_port(mut self, at: &str) -> Self {
        self.second = Some(at.parse().unwrap());
        self.engine = Engine::new(self.links(), 1);
        self
    }

    pub fn public(&self) -> PublicKey {
        PublicKey(DhPublic::from(&StaticSecret::from(self.secret)).to_bytes())
    }

    /// The link with this node, as it stands in the configuration of another node.
    pub fn as_link(&self, sources: &[&str]) -> Link {
        Link {
            public_key: self.public(),
            endpoint: Some(self.at),
            quic_endpoint: self.second,
            quic: self.engine.links().pin(),
            ..link(self.name, Relation::VnetLocal {}, sources)
        }
    }

    /// Installs a configuration, as an agent does.
    pub fn install(&mut self, config: AgentConfig, now: Instant) {
        let tables = Tables::build(&config, &RoutingState::default()).unwrap();
        self.engine.install(Arc::new(tables), &config.links, now);
        self.config = config;
    }

    /// Restarts the agent. It keeps only its keys and its configuration.
    pub fn restart(&mut self, now: Instant) {
        self.engine = Engine::new(self.links(), 2);
        self.install(self.config.clone(), now);
    }

    pub fn link(&self, peer: &str, now: Instant) -> Option<LinkStatus> {
        let mut all = self.engine.links().status(now).into_iter();
        all.find(|l| l.peer.as_str() == peer)
    }

    /// The state of the link with a peer; `Idle` if the link was never used.
    pub fn state(&self, peer: &str, now: Instant) -> LinkState {
        self.link(peer, now).map_or(LinkState::Idle, |l| l.state)
    }
}

/// Nodes, and the datagrams in flight between them.
pub struct World {
    pub nodes: Vec<Node>,
    pub now: Instant,
    /// The datagrams in flight: source, destination, bytes.
    pub wire: VecDeque<(SocketAddr, SocketAddr, Vec<u8>)>,
    /// All datagrams that were ever sent, including those that the network dropped.
    pub seen: Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
    /// Addresses to and from which the network drops all datagrams.
    pub cut: Vec<SocketAddr>,
    /// Whether the network drops all datagrams except those from or to a second port.
    pub lanes_cut: bool,
    /// Whether the network drops the datagrams of WireGuard.
    pub no_wireguard: bool,
    /// Length in bytes above which the network drops datagrams.
    pub longest: usize,
    /// The share of WireGuard's datagrams, from 0 to 1, that the network drops at random.
    pub shaped: Option<f64>,
    /// Whether no node ever reports that its socket has no more datagrams, so that its queue counts as never empty.
    pub busy: bool,
    /// Whether events of the nodes are left unread.
    pub unasked: bool,
    chance: u64,
}

impl World {
    pub fn new(nodes: Vec<Node>) -> Self {
        Self {
            nodes,
            now: Instant::now(),
            wire: VecDeque::new(),
            seen: Vec::new(),
            cut: Vec::new(),
            lanes_cut: false,
            no_wireguard: false,
            longest: usize::MAX,
            shaped: None,
            busy: false,
            unasked: false,
            chance: 1,
        }
    }

    /// Creates two VMs of one VNet, `a` 10.0.0.1 and `b` 10.0.0.2, with a link.
    pub fn pair() -> Self {
        let mut world = Self::strangers();
        world.join(0, 1, |_| {});
        world
    }

    /// The two VMs of [`pair`](Self::pair) without a link.
    pub fn strangers() -> Self {
        let (a, b) = (Node::new("a", "192.0.2.1:1000", 1), Node::new("b", "192.0.2.2:1000", 2));
        Self::new(vec![a, b])
    }

    /// Configures a link between two nodes. `change` may alter the entry of either end.
    pub fn join(&mut self, a: usize, b: usize, change: impl Fn(&mut Link)) {
        let owners = [
            ("10.0.0.1/32", "a"),
            ("10.0.0.2/32", "b"),
            ("fd00::1/128", "a"),
            ("fd00::2/128", "b"),
        ];
        let own = |i: usize| {
            if i == 0 {
                ["10.0.0.1/24", "fd00::1/64"]
            } else {
                ["10.0.0.2/24", "fd00::2/64"]
            }
        };
        for (here, there) in [(a, b), (b, a)] {
            let sources: Vec<String> = own(there)
                .iter()
                .map(|s| IpNet::from(net(s).addr()).to_string())
                .collect();
            let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
            let mut link = self.nodes[there].as_link(&sources);
            change(&mut link);
            let config = vm(self.nodes[here].name, &own(here), vec![link], &owners);
            let now = self.now;
            self.nodes[here].install(config, now);
        }
    }

    fn take(&mut self, node: usize, out: Collected) {
        let (own, second) = (self.nodes[node].at, self.nodes[node].second);
        for (path, (to, bytes)) in out.paths.into_iter().zip(out.datagrams) {
            let at = second.filter(|_| path.port == Port::Quic).unwrap_or(own);
            self.nodes[node].paths.push(path);
            self.wire.push_back((at, to, bytes.clone()));
            self.seen.push((at, to, bytes));
        }
        self.nodes[node].delivered.extend(out.packets);
        while let Some(event) = (!self.unasked).then(|| self.nodes[node].engine.poll_event()).flatten() {
            self.nodes[node].events.push(event);
        }
    }

    /// Sends a packet from the host of a node. Its datagrams are in flight afterwards.
    pub fn send(&mut self, node: usize, mut packet: Vec<u8>) {
        let (mut tx, mut rx) = (Collected::default(), Collected::default());
        self.nodes[node]
            .engine
            .handle_tun(NicIndex::FIRST, &mut packet, self.now, &mut tx, &mut rx);
        self.nodes[node].engine.flush(self.now, &mut tx);
        tx.packets = rx.packets;
        self.take(node, tx);
    }

    /// Lets a node announce that it is about to stop.
    pub fn drain(&mut self, node: usize) {
        let mut tx = Collected::default();
        self.nodes[node].engine.drain(self.now, &mut tx);
        self.nodes[node].engine.flush(self.now, &mut tx);
        self.take(node, tx);
    }

    /// Makes a node advertise a table of routes immediately, by the same calls that an agent makes.
    pub fn advertise(&mut self, node: usize, link: LinkIndex, table: Arc<[u8]>) {
        let mut tx = Collected::default();
        let engine = &mut self.nodes[node].engine;
        engine.links_mut().advertise(link, table);
        engine.links_mut().advertise_now(self.now);
        engine.handle_timeout(self.now, &mut tx);
        engine.flush(self.now, &mut tx);
        self.take(node, tx);
    }

    /// Delivers a datagram to the lane's port of a node.
    pub fn receive(&mut self, node: usize, from: SocketAddr, bytes: &[u8]) {
        self.receive_at(node, from, Port::Lane, bytes);
    }

    /// Delivers a datagram to one of a node's ports.
    pub fn receive_at(&mut self, node: usize, from: SocketAddr, port: Port, bytes: &[u8]) {
        let (mut tx, mut rx) = (Collected::default(), Collected::default());
        let from = Path {
            remote: from,
            local: self.nodes[node].local,
            port,
        };
        self.nodes[node]
            .engine
            .handle_datagram(bytes, from, 0, self.now, &mut tx, &mut rx);
        if !self.busy {
            self.nodes[node].engine.drained(self.now);
        }
        self.nodes[node].engine.flush(self.now, &mut tx);
        tx.packets = rx.packets;
        self.take(node, tx);
    }

    /// Delivers datagrams until none is in flight. No time passes.
    pub fn settle(&mut self) {
        for _ in 0..10_000 {
            let Some((from, to, bytes)) = self.wire.pop_front() else {
                return self.check();
            };
            if self.cut.contains(&to) || self.cut.contains(&from) || bytes.len() > self.longest {
                continue;
            }
            let second = |at| self.nodes.iter().any(|n| n.second == Some(at));
            if self.lanes_cut && !second(to) && !second(from) {
                continue;
            }
            if bytes[0] < 0x40 {
                self.chance = self.chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let drawn = (self.chance >> 40) as f64 / f64::from(1 << 24);
                if self.no_wireguard || self.shaped.is_some_and(|share| drawn < share) {
                    continue;
                }
            }
            if let Some(node) = self.nodes.iter().position(|n| n.at == to) {
                self.receive(node, from, &bytes);
            } else if let Some(node) = self.nodes.iter().position(|n| n.second == Some(to)) {
                self.receive_at(node, from, Port::Quic, &bytes);
            }
        }
        panic!("the engines never come to rest");
    }

    /// Advances the engines' clock step by step, and in each step runs their timers and delivers datagrams. boringtun
    /// uses the system's clock, which this method does not advance.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += Duration::from_millis(100);
            self.serve();
            self.settle();
        }
    }

    /// Runs the timers that are due at each node.
    pub fn serve(&mut self) {
        for node in 0..self.nodes.len() {
            let mut tx = Collected::default();
            if self.nodes[node].engine.poll_timeout().is_some_and(|t| t <= self.now) {
                self.nodes[node].engine.handle_timeout(self.now, &mut tx);
            }
            self.take(node, tx);
        }
    }

    pub fn state(&self, node: usize, peer: &str) -> LinkState {
        self.nodes[node].state(peer, self.now)
    }

    /// Checks that every packet and every datagram was counted by exactly one counter.
    pub fn check(&self) {
        for node in &self.nodes {
            assert!(
                node.engine.stats().conserved(),
                "{}: {:?}",
                node.name,
                node.engine.stats()
            );
        }
    }
}

pub fn psk(fill: u8) -> Option<PresharedKey> {
    Some(PresharedKey([fill; 32]))
}
