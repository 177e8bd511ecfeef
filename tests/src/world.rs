//! All agents of a topology in one process. Each has the engine of real agents, over unencrypted links, and a simulated
//! kernel, which sends packets for other destinations back to the TUN device.

use crate::arm;
use crate::model::Why;
use crate::model::walk::TTL;
use crate::operation::{Origin, Packet, Part, Protocol, gateway_agent, site_device};
use crate::product::{SITE_ASN, agent_id};
use etherparse::PacketBuilder;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tombolo_engine::buffer::{Collected, TransmitSink};
use tombolo_engine::engine::Engine;
use tombolo_engine::host_routes::sending_nic;
use tombolo_engine::link::PlainLinks;
use tombolo_engine::packet::{TCP, UDP, parse};
use tombolo_engine::security::{Flows, RuleName};
use tombolo_engine::tables::{RoutingState, Tables};
use tombolo_engine::verdict::DropReason;
use tombolo_proto::config::{AgentConfig, Role};
use tombolo_proto::id::{AgentId, PublicKey, ResourceId};
use tombolo_proto::route::Route;
use tombolo_topology::compile::{Compiler, compile};
use tombolo_topology::learned_routes::{LearnedReports, LearnedRoutes};
use tombolo_topology::resource::{Connection, ConnectionType, Envelope, LocalNetworkGateway, SiteBgp};
use tombolo_topology::topology::Topology;

/// What the product has done with a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The agents that decided about the packet, in order. An agent that decided twice, as an appliance does, occurs twice.
    pub path: Vec<String>,
    /// The decision of the last agent of the path.
    pub end: End,
    /// The ends of the packet as its destination got it. None: it was not delivered.
    pub arrived: Option<Ends>,
}

/// Addresses and ports of a packet; ports 0 with ICMP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub ports: (u16, u16),
}

impl Ends {
    /// The ends of a packet.
    #[must_use]
    pub const fn of(packet: &Packet) -> Self {
        Self {
            source: packet.source,
            destination: packet.destination,
            ports: match packet.protocol {
                Protocol::Icmp => (0, 0),
                Protocol::Tcp | Protocol::Udp => packet.ports,
            },
        }
    }

    /// Reads the ends from the bytes of a packet. None: it is malformed.
    fn read(bytes: &[u8]) -> Option<Self> {
        let info = parse(bytes)?;
        let ports = match info.protocol {
            TCP | UDP => ((info.ports >> 16) as u16, (info.ports & 0xffff) as u16),
            _ => (0, 0),
        };
        Some(Self {
            source: info.source,
            destination: info.destination,
            ports,
        })
    }
}

/// How the last agent of the path ended a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Delivered to the kernel of the destination.
    Delivered,
    /// Dropped by an engine for this reason. The flag is true if the packet came from the TUN device, and false if it
    /// came from a link.
    Dropped(DropReason, bool),
    /// A forwarding kernel decremented the TTL to zero.
    Kernel,
    /// No handshake succeeds, because the two ends of the link have different preshared keys, or only one end has a key.
    KeyMismatch,
    /// The receiver has no link with the sender.
    UnknownPeer,
}

impl End {
    /// The model's reason for the loss. None: the packet was delivered, or the model has no such reason, as for
    /// [`End::UnknownPeer`].
    #[must_use]
    pub const fn loss_reason(self) -> Option<Why> {
        Some(match self {
            Self::Delivered | Self::UnknownPeer => return None,
            Self::Kernel => Why::Loop,
            Self::KeyMismatch => Why::NoTunnel,
            Self::Dropped(reason, from_tun) => match reason {
                DropReason::SpoofedSource if from_tun => Why::Spoofed,
                DropReason::SpoofedSource => Why::Source,
                DropReason::NoRoute
                | DropReason::RouteNone
                | DropReason::RouteInternet
                | DropReason::TransitNotAllowed => Why::Unrouted,
                DropReason::NoOwner => Why::NoOwner,
                DropReason::ApplianceUnreachable => Why::Appliance,
                DropReason::AccessDenied => Why::AccessOff,
                DropReason::NoGateway => Why::NoGateway,
                DropReason::NotForwarding => Why::NotForwarding,
                DropReason::Hairpin | DropReason::TtlExceeded | DropReason::TtlExceededSilent => Why::Loop,
                DropReason::SecurityRule => Why::Security,
                DropReason::NoBalancingRule => Why::NoBalancingRule,
                DropReason::BalancerProtocol => Why::BalancerProtocol,
                DropReason::NoBackEnd => Why::NoBackEnd,
                DropReason::BackEndItself => Why::BackEndItself,
                DropReason::NoLink => Why::NoLink,
                DropReason::BackEndGone
                | DropReason::FlowEnded
                | DropReason::Malformed
                | DropReason::UnknownFragment
                | DropReason::FlowTableFull
                | DropReason::NicFlowLimit
                | DropReason::BandwidthExceeded
                | DropReason::LinkDown
                | DropReason::TooBig
                | DropReason::BadDatagram
                | DropReason::Replayed
                | DropReason::QueueFull
                | DropReason::Congestion
                | DropReason::SendRefused
                | DropReason::DeviceRefused => return None,
            },
        })
    }
}

/// How many flows each engine has room for, much more than a run has. The default of real agents needs more memory.
const FLOWS: usize = 1 << 16;

struct Host {
    config: AgentConfig,
    engine: Engine<PlainLinks>,
}

/// All agents of a topology, the devices of sites, and one clock, which the caller advances.
pub struct World {
    hosts: BTreeMap<AgentId, Host>,
    addresses: BTreeMap<SocketAddr, AgentId>,
    /// The names of the sites' devices, by endpoint. A datagram to one of these has left the fabric.
    sites: BTreeMap<SocketAddr, String>,
    /// The back ends of load balancers that are down, each with its probe.
    unhealthy: BTreeSet<(ResourceId, IpAddr)>,
    now: Instant,
    mutation: Option<Mutation>,
}

/// A defect that a test injects into the product, to prove that the comparison with the model notices it.
#[derive(Debug, Clone, Copy)]
pub enum Mutation {
    /// Changes every agent's configuration before its tables are built.
    Config(fn(&mut AgentConfig)),
    /// Changes the topology before it is compiled.
    Topology(fn(&mut Topology)),
    /// Changes the routes that sites announce, before gateways learn them.
    Announced(fn(&mut Vec<Route>)),
    /// Changes every agent's configuration before its tables are built, and gets the agent's learned routes for this.
    Learned(fn(&mut AgentConfig, &RoutingState)),
    /// The engines forget all flows before each packet.
    Forgetful,
    /// The engines forget all flows when they get another configuration.
    ForgetfulUpdates,
    /// Changes the number of seconds that pass for the engines.
    Clock(fn(u64) -> u64),
    /// Back ends' replies keep the address and port of the back end.
    UntranslatedReplies,
}

impl World {
    /// A world without agents. `mutation` is a defect of all its agents.
    #[must_use]
    pub fn new(mutation: Option<Mutation>) -> Self {
        Self {
            hosts: BTreeMap::new(),
            addresses: BTreeMap::new(),
            sites: BTreeMap::new(),
            unhealthy: BTreeSet::new(),
            now: Instant::now(),
            mutation,
        }
    }

    /// Sets the back ends of load balancers that their agents report as down, from the next [`update`](Self::update) on.
    pub fn set_unhealthy(&mut self, unhealthy: &BTreeSet<(ResourceId, IpAddr)>) {
        self.unhealthy.clone_from(unhealthy);
    }

    /// Compiles the configuration of every agent, and installs it in an engine of the agent's own. An agent that has an
    /// engine keeps it with its flows. `announced` has the BGP routes of the site behind each VNet's gateway; a VNet without
    /// a gateway is skipped. Agents whose configuration does not compile (revoked ones) are left out.
    ///
    /// # Panics
    /// If a compiled configuration differs after it was written as bytes and read back, or if no tables can be built
    /// from a configuration.
    pub fn update(&mut self, topology: &Topology, announced: &BTreeMap<String, Vec<Route>>) {
        let mutation = self.mutation;
        let mut shown = topology.clone();
        if let Some(Mutation::Topology(mutation)) = mutation {
            mutation(&mut shown);
        }
        let mut reports = LearnedReports::default();
        let mut sites = BTreeMap::new();
        for (number, (vnet, routes)) in (1..).zip(announced) {
            let Some(connection) = join_site(&mut shown, vnet, number) else {
                continue;
            };
            let mut routes = routes.clone();
            if let Some(Mutation::Announced(mutation)) = mutation {
                mutation(&mut routes);
            }
            sites.insert(SocketAddr::from(([203, 0, 113, number], SITE_PORT)), site_device(vnet));
            let heard = [(connection, Arc::new(routes))].into();
            reports.learned.insert(agent_id(&gateway_agent(vnet)), heard);
        }
        if !self.unhealthy.is_empty() {
            // An agent's report about back ends of others has no effect.
            let agents = topology.agents.keys();
            reports.unhealthy = agents.map(|id| (id.clone(), self.unhealthy.clone())).collect();
        }
        let is_moving = !sites.is_empty() || !self.unhealthy.is_empty();
        let moving = is_moving.then(|| LearnedRoutes::new(&shown, &Compiler::new(&shown), reports));
        let mut before = std::mem::take(&mut self.hosts);
        if matches!(mutation, Some(Mutation::ForgetfulUpdates)) {
            before.clear();
        }
        self.addresses.clear();
        for (id, agent) in &topology.agents {
            let Some(mut config) = compile(&shown, id) else {
                continue;
            };
            let bytes = config.to_bytes();
            let again = AgentConfig::from_bytes(&bytes).unwrap_or_else(|e| panic!("{id}: {e}"));
            assert_eq!(again, config, "{id}");
            let dynamic = moving.as_ref().map(|m| m.routing_state(&config)).unwrap_or_default();
            match mutation {
                Some(Mutation::Config(mutation)) => mutation(&mut config),
                Some(Mutation::Learned(mutation)) => mutation(&mut config, &dynamic),
                Some(
                    Mutation::Topology(_)
                    | Mutation::Announced(_)
                    | Mutation::Forgetful
                    | Mutation::ForgetfulUpdates
                    | Mutation::Clock(_)
                    | Mutation::UntranslatedReplies,
                )
                | None => {}
            }
            let tables = Tables::build(&config, &dynamic).unwrap_or_else(|e| panic!("{id}: {e}"));
            let mut engine = before.remove(id).map_or_else(|| new_engine(id), |host| host.engine);
            engine.install(Arc::new(tables), &config.links, self.now);
            while engine.recheck_flows() {}
            if let Some(endpoint) = agent.reach.endpoints.first() {
                self.addresses.insert(*endpoint, id.clone());
            }
            self.hosts.insert(id.clone(), Host { config, engine });
        }
        self.sites = sites;
    }

    /// Removes an agent's engine with its flows, as if the agent's machine were replaced. The next [`update`](Self::update)
    /// gives the agent another engine.
    pub fn remove(&mut self, agent: &str) {
        self.hosts.remove(&agent_id(agent));
    }

    /// Lets this number of seconds pass. Nothing happens meanwhile.
    pub fn pass(&mut self, seconds: u64) {
        let seconds = match self.mutation {
            Some(Mutation::Clock(mutation)) => mutation(seconds),
            _ => seconds,
        };
        self.now += Duration::from_secs(seconds);
    }

    /// Makes all engines forget the flows that security groups have allowed.
    pub fn forget_flows(&mut self) {
        let now = self.now;
        self.hosts.values_mut().for_each(|host| host.forget_flows(now));
    }

    /// How often each security rule at an agent's NICs has decided: the names of the group and the rule, and the number.
    #[must_use]
    pub fn rule_hits(&self, agent: &str) -> BTreeMap<(String, String), u64> {
        let mut hits = BTreeMap::new();
        let host = self.hosts.get(&agent_id(agent));
        for (name, count) in host.into_iter().flat_map(|h| h.engine.rule_hits()) {
            *hits.entry((name.group.name().to_owned(), name.rule)).or_default() += count;
        }
        hits
    }

    /// How often each security rule at the NICs of all agents has decided.
    #[must_use]
    pub fn all_rule_hits(&self) -> BTreeMap<RuleName, u64> {
        let mut hits = BTreeMap::new();
        for (name, count) in self.hosts.values().flat_map(|h| h.engine.rule_hits()) {
            *hits.entry(name).or_default() += count;
        }
        hits
    }

    /// The configuration of an agent, with the mutation. None: the agent does not exist or has no configuration.
    #[must_use]
    pub fn config(&self, agent: &AgentId) -> Option<&AgentConfig> {
        self.hosts.get(agent).map(|h| &h.config)
    }

    /// Sends a packet, and follows it until it is delivered or lost. None: an agent on the path has no configuration,
    /// or a datagram leads to an endpoint that no agent has. Counters of the engines change; links and tables do not.
    ///
    /// # Panics
    /// If an engine does not do exactly one of these with the packet: send a datagram, deliver it to the kernel, count
    /// a drop. Also panics if source and destination are of different address families, or if the packet's origin has
    /// no valid id of an agent.
    pub fn send(&mut self, packet: &Packet) -> Option<Outcome> {
        let mut bytes = build(packet);
        let mut path = Vec::new();
        let (mut at, mut from) = match &packet.origin {
            Origin::Kernel { agent } => (agent_id(agent), None),
            Origin::Link { from, to } => (agent_id(to), Some(self.name_of(from))),
        };
        loop {
            path.push(at.to_string());
            if let Some(from) = &from
                && !from.as_str().starts_with(AgentId::SITE)
                && self.key(from, &at) != self.key(&at, from)
            {
                // A failed handshake delivers nothing, so the receiver does not belong to the path. With `Origin::Link`
                // the receiver stays in the path, because the test itself put the packet on its link.
                if path.len() > 1 {
                    path.pop();
                }
                return Some(Outcome::lost(path, End::KeyMismatch));
            }
            let host = self.hosts.get_mut(&at)?;
            if matches!(self.mutation, Some(Mutation::Forgetful)) {
                host.forget_flows(self.now);
            }
            let untouched = bytes.clone();
            let before: Vec<u64> = host.drops();
            let replied = host.engine.stats().totals.replied;
            let mut out = Collected::default();
            let mut to_kernel = Collected::default();
            match &from {
                None => {
                    let ends = Ends::read(&bytes)?;
                    let nic = sending_nic(&host.config, ends.source, ends.destination);
                    host.engine
                        .handle_tun(nic, &mut bytes, self.now, &mut out, &mut to_kernel);
                }
                Some(from) => {
                    let mut wire = Collected::default();
                    let name = from.as_str().as_bytes();
                    let slot = wire.reserve(
                        &SocketAddr::from(([0, 0, 0, 0], 0)).into(),
                        1 + name.len() + bytes.len(),
                    );
                    slot[0] = u8::try_from(name.len()).unwrap_or(u8::MAX);
                    slot[1..=name.len()].copy_from_slice(name);
                    slot[1 + name.len()..].copy_from_slice(&bytes);
                    let source = SocketAddr::from(([192, 0, 2, 250], 1));
                    host.engine.handle_udp(slot, source, self.now, &mut out, &mut to_kernel);
                    host.engine.drained(self.now);
                }
            }
            let after = host.drops();
            let dropped = before.iter().zip(&after).position(|(b, a)| b != a);
            let answered = host.engine.stats().totals.replied > replied;
            let events = out.datagrams.len() + to_kernel.packets.len() + usize::from(dropped.is_some());
            assert_eq!(events, 1, "{at}: conservation: {packet:?}");
            if answered {
                let end = End::Dropped(DropReason::TtlExceeded, false);
                return Some(Outcome::lost(path, end));
            }
            if let Some(index) = dropped {
                let reason = DropReason::ALL[index];
                if reason == DropReason::BadDatagram {
                    return Some(Outcome::lost(path, End::UnknownPeer));
                }
                let end = End::Dropped(reason, from.is_none());
                return Some(Outcome::lost(path, end));
            }
            if let Some(delivered) = to_kernel.packets.pop() {
                let arrived = Ends::read(&delivered)?;
                if host.is_own(arrived.destination) {
                    return Some(Outcome::delivered(path, arrived));
                }
                bytes = delivered;
                if decrement_ttl(&mut bytes).is_none() {
                    return Some(Outcome::lost(path, End::Kernel));
                }
                from = None;
            } else if let Some((to, datagram)) = out.datagrams.pop() {
                if let Some(site) = self.sites.get(&to) {
                    path.push(site.clone());
                    return Some(Outcome::delivered(path, Ends::read(inner(&datagram))?));
                }
                let next = self.addresses.get(&to).cloned()?;
                bytes = match (self.mutation, from.is_none()) {
                    (Some(Mutation::UntranslatedReplies), true) => untouched,
                    _ => inner(&datagram).to_vec(),
                };
                from = Some(at);
                at = next;
            }
        }
    }

    /// The name of an agent, or of a site's device, in links.
    fn name_of(&self, name: &str) -> AgentId {
        match name.strip_suffix("-site") {
            Some(vnet) => AgentId::of_site(&ResourceId::new(arm::network(&site_connection(vnet)))),
            None => agent_id(name),
        }
    }

    fn key(&self, at: &AgentId, peer: &AgentId) -> Option<[u8; 32]> {
        let links = &self.hosts.get(at)?.config.links;
        links.iter().find(|l| l.peer == *peer)?.preshared_key.map(|k| k.0)
    }
}

impl Outcome {
    const fn lost(path: Vec<String>, end: End) -> Self {
        Self {
            path,
            end,
            arrived: None,
        }
    }

    const fn delivered(path: Vec<String>, arrived: Ends) -> Self {
        Self {
            path,
            end: End::Delivered,
            arrived: Some(arrived),
        }
    }
}

/// The packet in a datagram of a link: it follows the name of the sender.
fn inner(datagram: &[u8]) -> &[u8] {
    &datagram[1 + usize::from(datagram[0])..]
}

/// The UDP port of every site's device: 51820, the port in WireGuard's examples.
const SITE_PORT: u16 = 51_820;

fn site_connection(vnet: &str) -> String {
    format!("connections/{vnet}-to-site")
}

/// Joins a site to a VNet's gateway by a connection with BGP, and returns the connection's id. None: the VNet has no gateway.
fn join_site(topology: &mut Topology, vnet: &str, number: u8) -> Option<ResourceId> {
    let gateway = ResourceId::new(arm::network(&format!("virtualNetworkGateways/{vnet}-gw")));
    let envelope = topology.gateways.get(&gateway)?.envelope.clone();
    let named = |path: &str| Envelope {
        id: ResourceId::new(arm::network(path)),
        ..envelope.clone()
    };
    let local = LocalNetworkGateway {
        envelope: named(&format!("localNetworkGateways/{vnet}-site")),
        address: Some(IpAddr::from([203, 0, 113, number])),
        port: SITE_PORT,
        public_key: Some(PublicKey([number; 32])),
        address_space: Vec::new(),
        bgp: Some(SiteBgp {
            asn: SITE_ASN,
            address: IpAddr::from([192, 168, number, 1]),
        }),
    };
    let connection = Connection {
        envelope: named(&site_connection(vnet)),
        connection_type: ConnectionType::IPsec,
        gateway1: gateway,
        gateway2: local.envelope.id.clone(),
        tunnel_addresses: Vec::new(),
        shared_key: Some("key".into()),
        routing_weight: 0,
        enable_bgp: true,
        dpd_timeout: None,
        authorization: None,
    };
    let id = connection.envelope.id.clone();
    topology
        .local_gateways
        .insert(local.envelope.id.clone(), Arc::new(local));
    topology.connections.insert(id.clone(), Arc::new(connection));
    Some(id)
}

fn new_engine(agent: &AgentId) -> Engine<PlainLinks> {
    let mut engine = Engine::new(PlainLinks::new(agent.clone()), 1);
    engine.share_flows(Arc::new(Flows::new(FLOWS, 1)));
    engine
}

impl Host {
    fn forget_flows(&mut self, now: Instant) {
        self.engine.share_flows(Arc::new(Flows::new(FLOWS, 1)));
        // The cache of decisions remembers admitted flows too; new tables clear it.
        if let Some(tables) = self.engine.tables().cloned() {
            self.engine.refresh(tables, now);
        }
    }

    fn drops(&self) -> Vec<u64> {
        DropReason::ALL.iter().map(|r| self.engine.stats().drops(*r)).collect()
    }

    /// Whether the address belongs to the host or to a subnet that it serves.
    fn is_own(&self, address: IpAddr) -> bool {
        match &self.config.role {
            Role::Vm { nics, served, .. } => {
                // With floating IP, the hosts of the back ends have the address of the front end, and no other machine does.
                if let Some(front_end) = self.config.front_ends.iter().find(|f| f.address == address) {
                    let owned = self.config.owned_back_ends();
                    let mut own = owned.iter().filter(|(_, _, owner)| **owner == self.config.agent);
                    return own.any(|(rule, _, _)| front_end.rules.iter().any(|r| r.id == rule.id));
                }
                let mut own = nics.iter().flat_map(|n| &n.addresses);
                own.any(|a| a.addr() == address) || served.iter().any(|s| s.contains(&address))
            }
            Role::VpnGateway { addresses, .. } | Role::ExpressRouteGateway { addresses, .. } => {
                addresses.contains(&address)
            }
            Role::CircuitEdge { networks, .. } => networks.iter().any(|n| n.address == address),
        }
    }
}

/// The bytes of a packet, with the TTL [`TTL`].
fn build(packet: &Packet) -> Vec<u8> {
    const DATA: &[u8] = b"model";
    const WINDOW: u16 = 65_535;
    let builder = match (packet.source, packet.destination) {
        (IpAddr::V4(s), IpAddr::V4(d)) => PacketBuilder::ipv4(s.octets(), d.octets(), TTL),
        (IpAddr::V6(s), IpAddr::V6(d)) => PacketBuilder::ipv6(s.octets(), d.octets(), TTL),
        (s, d) => unreachable!("{s} and {d} are of different families"),
    };
    let mut bytes = Vec::new();
    let (from, to) = packet.ports;
    let is_reply = packet.part == Part::Reply;
    let done = match packet.protocol {
        Protocol::Udp => builder.udp(from, to).write(&mut bytes, DATA),
        Protocol::Tcp => match packet.part {
            Part::First => builder.tcp(from, to, 0, WINDOW).syn().write(&mut bytes, &[]),
            Part::Reply => builder.tcp(from, to, 0, WINDOW).syn().ack(1).write(&mut bytes, &[]),
            Part::Later => builder.tcp(from, to, 1, WINDOW).ack(1).write(&mut bytes, DATA),
            Part::Close => builder.tcp(from, to, 1, WINDOW).fin().ack(1).write(&mut bytes, &[]),
            Part::Reset => builder.tcp(from, to, 1, WINDOW).rst().write(&mut bytes, &[]),
        },
        Protocol::Icmp => match (packet.source.is_ipv4(), is_reply) {
            (true, false) => builder.icmpv4_echo_request(from, 1).write(&mut bytes, DATA),
            (true, true) => builder.icmpv4_echo_reply(from, 1).write(&mut bytes, DATA),
            (false, false) => builder.icmpv6_echo_request(from, 1).write(&mut bytes, DATA),
            (false, true) => builder.icmpv6_echo_reply(from, 1).write(&mut bytes, DATA),
        },
    };
    done.unwrap_or_else(|e| unreachable!("a packet: {e}"));
    bytes
}

/// Decrements the TTL or hop limit as a forwarding kernel does, and corrects IPv4's checksum. None: the TTL would become 0,
/// so the kernel drops the packet.
fn decrement_ttl(packet: &mut [u8]) -> Option<()> {
    let v4 = packet[0] >> 4 == 4;
    let ttl = &mut packet[if v4 { 8 } else { 7 }];
    if *ttl <= 1 {
        return None;
    }
    *ttl -= 1;
    if v4 {
        packet[10..12].fill(0);
        let mut sum: u32 = packet[..20]
            .chunks_exact(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        let sum = !u16::try_from(sum).unwrap_or(u16::MAX);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    Some(())
}
