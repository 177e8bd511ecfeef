//! One agent of a walk, with its configuration and the engine's decisions.

use super::answer::{BandwidthLimit, DEFAULT_TTL, SecurityCheck};
use super::security::{Flows, Judged};
use etherparse::PacketBuilder;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tombolo_engine::decide::{Ingress, KnownFlow, Trace, decide_in_flow};
use tombolo_engine::host_routes::{egress_nic, host_routes, sending_nic};
use tombolo_engine::packet;
use tombolo_engine::packet::PacketInfo;
use tombolo_engine::packet::icmp::{self, IcmpError};
use tombolo_engine::packet::rewrite::{End, rewrite};
use tombolo_engine::security::{FROM_HOST, NicRules, PreparedGroups};
use tombolo_engine::tables::{LinkIndex, NicIndex, RoutingState, Tables};
use tombolo_engine::verdict::{DropReason, Verdict};
use tombolo_proto::config::{AgentConfig, Direction, Link, Nic, Role};
use tombolo_proto::fabric::Protocol;
use tombolo_proto::id::AgentId;

/// An agent of a walk, which decides on packets by its configuration.
pub(crate) struct Node {
    /// The configuration with which the agent decides.
    pub(crate) config: AgentConfig,
    /// The engine's tables, including learned routes; or the error with which the agent would reject the configuration.
    tables: Result<Tables, String>,
}

/// What an agent remembers during the walks.
pub(super) struct Memory {
    security: Security,
    /// The flow that a load balancer has sent to a back end of this agent during the walks.
    translated: Option<Translated>,
}

/// What security groups do with the packets of the walks.
enum Security {
    /// No security group applies to any network interface of the agent.
    None,
    /// Their rules decide. The value has the flows that the agent's network interfaces have admitted (N6).
    Applied(Flows),
    /// No packet is denied. The network interfaces that a packet passes are noted.
    Noted(Vec<Passed>),
}

/// A network interface with a security group that a packet passes, and the packet as the rules see it there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Passed {
    /// The number of the interface in the agent's tables.
    pub(crate) nic: u8,
    /// The number by which the agent keeps the flows of the interface.
    pub(crate) flow_nic: u8,
    pub(crate) direction: Direction,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// Source and destination port, unless the packet is ICMP.
    pub(crate) ports: Option<(u16, u16)>,
}

impl Memory {
    /// The memory of an agent without flows. `applies`: the rules of security groups decide; otherwise the interfaces
    /// that packets pass are noted.
    pub(super) fn of(node: &Node, applies: bool) -> Self {
        Self {
            security: match (&node.config.security, applies) {
                (None, _) => Security::None,
                (Some(_), true) => Security::Applied(Flows::new()),
                (Some(_), false) => Security::Noted(Vec::new()),
            },
            translated: None,
        }
    }

    /// The interfaces that packets have passed since the last call.
    pub(super) fn take_passed(&mut self) -> Vec<Passed> {
        match &mut self.security {
            Security::Noted(passed) => std::mem::take(passed),
            Security::None | Security::Applied(_) => Vec::new(),
        }
    }

    /// Whether the agent has translated a packet to `address`, a back end of its own.
    pub(super) fn has_translated_to(&self, address: IpAddr) -> bool {
        self.translated.is_some_and(|translated| translated.back_end == address)
    }
}

/// A flow that a load balancer has sent to a back end.
#[derive(Debug, Clone, Copy)]
struct Translated {
    client: IpAddr,
    back_end: IpAddr,
    /// The front end's address, and the ports of the packet to it.
    front_end: (IpAddr, Option<(u16, u16)>),
    /// Whether the client is behind this agent too.
    is_local: bool,
}

impl Translated {
    fn is_reply(&self, packet: &Packet) -> bool {
        packet.is_answer && packet.source == self.back_end && packet.destination == self.client
    }

    /// The address and the port that replies have as source when they leave; port 0: that of the packet.
    fn source_of_replies(&self) -> (IpAddr, u16) {
        let (address, ports) = self.front_end;
        (address, ports.map_or(0, |(_, to)| to))
    }
}

/// An agent's decision, and the route, subnet and security rules that led to it.
pub(super) struct Decision {
    /// What the agent does with the packet.
    pub(super) step: Step,
    /// The subnet, route, VNet and connection that led to the step.
    pub(super) trace: Trace,
    /// The security rules that decided. `None`: the packet passed no network interface with a security group.
    pub(super) security: Option<SecurityCheck>,
    /// The limit of bandwidth for which the packet counts. `None`: for none.
    pub(super) bandwidth: Option<BandwidthLimit>,
}

/// An agent's action on a packet.
pub(super) enum Step {
    /// The agent delivers the packet to its host.
    Deliver,
    /// The agent sends the packet over a link to this agent or device. If this agent is a hop that decrements the TTL,
    /// the packet has the decremented TTL already.
    Forward(AgentId),
    /// The TTL expired. An ICMP error is sent from this address; `None`: no error is sent.
    Expired(Option<IpAddr>),
    /// The agent drops the packet.
    Drop(DropReason),
}

impl Node {
    /// Builds the engine's tables from a configuration and the agent's learned routes. `groups`: the security groups, if
    /// the configuration does not have their rules. If they cannot be built, each
    /// decision of the node fails with the reason.
    pub(super) fn new(config: AgentConfig, dynamic: &RoutingState, groups: Option<&PreparedGroups>) -> Self {
        let tables = match groups {
            None => Tables::build(&config, dynamic),
            Some(groups) => Tables::build_sharing(&config, dynamic, groups),
        };
        Self {
            config,
            tables: tables.map_err(|e| e.to_string()),
        }
    }

    /// The rules of the security groups at a network interface. `None`: there is no such interface.
    pub(crate) fn rules(&self, nic: u8) -> Option<&Arc<NicRules>> {
        self.tables.as_ref().ok()?.security()?.shared_rules(nic)
    }

    /// Whether a route leads from `source`, an address of the agent's host, to `destination`. Whether packets arrive is
    /// another question.
    pub(crate) fn has_route(&self, source: IpAddr, destination: IpAddr) -> bool {
        let Ok(tables) = &self.tables else { return false };
        let info = PacketInfo {
            source,
            destination,
            ttl: DEFAULT_TTL,
            protocol: packet::TCP,
            transport: None,
            ports: 0,
            len: 0,
        };
        let ingress = Ingress::Tun(sending_nic(&self.config, source, destination));
        let without = [DropReason::NoRoute, DropReason::RouteNone, DropReason::RouteInternet];
        let verdict = decide_in_flow(tables, ingress, &info, KnownFlow::default(), None);
        !matches!(verdict, Verdict::Drop(reason) if without.contains(&reason))
    }

    /// Decides on a packet that arrives over the link with `from`; `None`: from the agent's own host. Decrements the
    /// packet's TTL if the agent would. Keeps the packet's flow in `memory` if a network interface with a security group
    /// admits it, so that the reply needs no rule there. `back_end`: load balancers choose the back end with this
    /// address, if they have it.
    pub(super) fn decide(
        &self,
        memory: &mut Memory,
        from: Option<&AgentId>,
        back_end: Option<IpAddr>,
        packet: &mut Packet,
    ) -> Result<Decision, String> {
        let tables = self.tables.as_ref().map_err(Clone::clone)?;
        let ingress = match from {
            None => Ingress::Tun(sending_nic(&self.config, packet.source, packet.destination)),
            Some(peer) => Ingress::Link(
                tables
                    .link_with(peer)
                    .ok_or_else(|| format!("it has no link with {peer}"))?,
            ),
        };
        let info = packet::parse(&packet.bytes).ok_or("the packet is malformed")?;
        let mut trace = Trace::default();
        let reply = memory.translated.filter(|t| from.is_none() && t.is_reply(packet));
        let known = KnownFlow {
            back_end,
            front_end: reply.map(|reply| reply.source_of_replies()),
        };
        let is_turned = reply.is_some_and(|reply| reply.is_local);
        let verdict = match decide_in_flow(tables, ingress, &info, known, Some(&mut trace)) {
            // The agent turns the reply to the client behind it, whatever the routes say (D35).
            _ if is_turned => Verdict::Drop(DropReason::Hairpin),
            verdict => verdict,
        };
        // A packet between a client and a back end behind this agent leaves one of its NICs and comes to another (D35).
        let stays = match verdict {
            Verdict::Translate(_) => from.is_none(),
            Verdict::Drop(DropReason::Hairpin) => is_turned,
            _ => false,
        };
        let leaving = if stays {
            let checked = (&packet.bytes[..], &info);
            judge(&self.config, tables, &mut memory.security, ingress, checked, LEAVES)
        } else {
            None
        };
        // The back end gets the packet with its own address and port (L5), which the security rules see (N12).
        let (verdict, info) = match verdict {
            Verdict::Translate(index) => {
                let flow = (packet.destination, packet.ports);
                let (nic, info) = tables
                    .translate(index, &mut packet.bytes)
                    .ok_or("it has no such back end")?;
                packet.follow(&info);
                memory.translated = Some(Translated {
                    client: info.source,
                    back_end: info.destination,
                    front_end: flow,
                    is_local: from.is_none(),
                });
                (Verdict::Deliver(nic), info)
            }
            Verdict::Drop(DropReason::Hairpin) if stays => {
                if let Some(translated) = reply {
                    packet.reply_from(translated.source_of_replies());
                }
                let info = packet::parse(&packet.bytes).ok_or("the packet is malformed")?;
                (Verdict::Deliver(nic_of(&self.config, info.destination)), info)
            }
            other => (other, info),
        };
        let came_from = match stays {
            true => Ingress::Link(LinkIndex(FROM_HOST)),
            false => ingress,
        };
        let judged = match leaving {
            Some(leaving) if leaving.refused.is_some() => Some(leaving),
            leaving => {
                let checked = (&packet.bytes[..], &info);
                judge(&self.config, tables, &mut memory.security, came_from, checked, verdict).or(leaving)
            }
        };
        let (security, refused) = judged.map_or((None, None), |j| (Some(j.check), j.refused));
        if let (Some(translated), Verdict::Forward { .. }) = (reply, verdict) {
            packet.reply_from(translated.source_of_replies());
        }
        let verdict = refused.map_or(verdict, Verdict::Drop);
        let bandwidth = self.bandwidth_limit(tables, ingress, verdict);
        let step = match verdict {
            Verdict::Deliver(_) | Verdict::Translate(_) => Step::Deliver,
            Verdict::Forward { link, decrement_ttl } => {
                if decrement_ttl {
                    packet::decrement_ttl(&mut packet.bytes);
                }
                Step::Forward(tables.peer(link).clone())
            }
            Verdict::TimeExceeded => Step::Expired(tables.gateway_address(info.source)),
            Verdict::Drop(DropReason::TtlExceededSilent) => Step::Expired(None),
            Verdict::Drop(reason) => Step::Drop(reason),
        };
        Ok(Decision {
            step,
            trace,
            security,
            bandwidth,
        })
    }

    /// The limit of bandwidth for which a packet counts with this verdict.
    fn bandwidth_limit(&self, tables: &Tables, ingress: Ingress, verdict: Verdict) -> Option<BandwidthLimit> {
        let limit = tables.bandwidth_limit(ingress, verdict)?;
        let resource = match (limit.nic, &self.config.role) {
            (Some(nic), _) => nic,
            (None, Role::VpnGateway { gateway, .. }) => gateway,
            (None, Role::Vm { .. } | Role::ExpressRouteGateway { .. } | Role::CircuitEdge { .. }) => return None,
        };
        Some(BandwidthLimit {
            resource: resource.clone(),
            mbps: limit.rate,
        })
    }

    /// The link with another agent or device. `None`: the configuration has none.
    pub(super) fn link(&self, peer: &AgentId) -> Option<&Link> {
        self.config.links.iter().find(|link| link.peer == *peer)
    }

    /// Whether a packet to `address` has reached its destination at this agent: the address belongs to this host, or to
    /// a subnet that the host serves.
    pub(super) fn has(&self, address: IpAddr) -> bool {
        match &self.config.role {
            Role::Vm { nics, served, .. } => {
                let mut addresses = nics.iter().flat_map(|nic| &nic.addresses);
                addresses.any(|a| a.addr() == address) || served.iter().any(|p| p.contains(&address))
            }
            Role::VpnGateway { addresses, .. } | Role::ExpressRouteGateway { addresses, .. } => {
                addresses.contains(&address)
            }
            Role::CircuitEdge { networks, .. } => networks.iter().any(|n| n.address == address),
        }
    }

    /// Whether the agent is an edge whose host's kernel sends packets for `address` over the line to the customer.
    pub(super) fn sends_to_customer(&self, address: IpAddr) -> bool {
        self.tables.as_ref().is_ok_and(|t| t.is_customers(address))
    }

    /// Whether the agent is the edge of a circuit.
    pub(super) fn is_edge(&self) -> bool {
        matches!(self.config.role, Role::CircuitEdge { .. })
    }

    /// The address from which the host's kernel sends ICMP errors to the address `like`: the first address, of the same
    /// address family, of the NIC by which it sends them. `None`: there is no such address.
    pub(super) fn kernel_address(&self, like: IpAddr) -> Option<IpAddr> {
        let same = |a: &IpAddr| a.is_ipv4() == like.is_ipv4();
        match &self.config.role {
            Role::Vm { nics, .. } => {
                let nic = egress_nic(&host_routes(&self.config), &like.into());
                let addresses = nics.get(nic.get()).into_iter().flat_map(|nic| &nic.addresses);
                addresses.map(ipnet::IpNet::addr).find(same)
            }
            Role::VpnGateway { addresses, .. } | Role::ExpressRouteGateway { addresses, .. } => {
                addresses.iter().copied().find(same)
            }
            // An edge answers a VNet from its tunnel address, and the customer from its address on the line (D23).
            Role::CircuitEdge { line, networks, .. } => {
                let network = networks.iter().find(|n| n.prefixes.iter().any(|p| p.contains(&like)));
                Some(network.map_or(line.addr(), |n| n.address)).filter(same)
            }
        }
    }
}

/// For security groups: the packet leaves the NIC by which it was sent.
const LEAVES: Verdict = Verdict::Forward {
    link: LinkIndex(FROM_HOST),
    decrement_ttl: false,
};

/// Applies the security groups of an agent to a packet. `None`: the packet passes no NIC with a group.
fn judge(
    config: &AgentConfig,
    tables: &Tables,
    security: &mut Security,
    ingress: Ingress,
    packet: (&[u8], &PacketInfo),
    verdict: Verdict,
) -> Option<Judged> {
    let nics = tables.security()?;
    match security {
        Security::None => None,
        Security::Applied(flows) => flows.check(config, nics, ingress, packet, verdict),
        Security::Noted(passed) => {
            let info = packet.1;
            let passage = nics.passage(ingress, info, verdict)?;
            let has_ports = matches!(info.protocol, packet::TCP | packet::UDP);
            #[expect(clippy::cast_possible_truncation, reason = "each half is one port")]
            let ports = has_ports.then_some(((info.ports >> 16) as u16, info.ports as u16));
            passed.push(Passed {
                nic: passage.nic,
                flow_nic: nics.flow_nic(passage.nic),
                direction: passage.direction,
                source: info.source,
                destination: info.destination,
                ports,
            });
            None
        }
    }
}

/// The NIC to which an agent delivers packets for an address of its own.
fn nic_of(config: &AgentConfig, address: IpAddr) -> NicIndex {
    let nics = match &config.role {
        Role::Vm { nics, .. } => nics.as_slice(),
        Role::VpnGateway { .. } | Role::ExpressRouteGateway { .. } | Role::CircuitEdge { .. } => &[],
    };
    let has = |nic: &Nic| nic.addresses.iter().any(|own| own.addr() == address);
    let position = nics
        .iter()
        .position(has)
        .and_then(|position| u8::try_from(position).ok());
    position.map_or(NicIndex::FIRST, NicIndex)
}

/// A packet of a walk, as bytes that the engine can parse.
#[derive(Debug, Clone)]
pub(crate) struct Packet {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(super) protocol: Protocol,
    /// Source and destination port. `None`: ICMP.
    pub(super) ports: Option<(u16, u16)>,
    /// Whether the packet answers another one: the reply to a request, or an ICMP error.
    pub(super) is_answer: bool,
    bytes: Vec<u8>,
}

impl Packet {
    /// Builds an echo request, a TCP SYN or an empty UDP datagram. `port`: the destination port, ignored for ICMP.
    pub(crate) fn request(
        source: IpAddr,
        destination: IpAddr,
        protocol: Protocol,
        port: Option<u16>,
        ttl: u8,
    ) -> Result<Self, String> {
        /// The source port of the packet: the first of the ephemeral ports of RFC 6335.
        const CLIENT_PORT: u16 = 49_152;
        let ports = (CLIENT_PORT, port.unwrap_or(CLIENT_PORT));
        Self::build(source, destination, protocol, ports, ttl, false)
    }

    /// Builds the reply to this request: an echo reply, a TCP SYN with ACK or an empty UDP datagram, from the request's
    /// destination and port to its source and port.
    pub(crate) fn reply(&self) -> Result<Self, String> {
        let ports = self.ports.map_or((0, 0), |(from, to)| (to, from));
        Self::build(self.destination, self.source, self.protocol, ports, DEFAULT_TTL, true)
    }

    fn build(
        source: IpAddr,
        destination: IpAddr,
        protocol: Protocol,
        (from, to): (u16, u16),
        ttl: u8,
        is_answer: bool,
    ) -> Result<Self, String> {
        let start = match (source, destination) {
            (IpAddr::V4(s), IpAddr::V4(d)) => PacketBuilder::ipv4(s.octets(), d.octets(), ttl),
            (IpAddr::V6(s), IpAddr::V6(d)) => PacketBuilder::ipv6(s.octets(), d.octets(), ttl),
            _ => return Err(format!("{source} and {destination} are of different families")),
        };
        // The largest packet has 60 bytes: the headers of IPv6 and TCP.
        let mut bytes = Vec::with_capacity(64);
        match (protocol, is_answer) {
            (Protocol::Icmp, false) if source.is_ipv4() => start.icmpv4_echo_request(1, 1).write(&mut bytes, &[]),
            (Protocol::Icmp, true) if source.is_ipv4() => start.icmpv4_echo_reply(1, 1).write(&mut bytes, &[]),
            (Protocol::Icmp, false) => start.icmpv6_echo_request(1, 1).write(&mut bytes, &[]),
            (Protocol::Icmp, true) => start.icmpv6_echo_reply(1, 1).write(&mut bytes, &[]),
            (Protocol::Tcp, false) => start.tcp(from, to, 0, 65_535).syn().write(&mut bytes, &[]),
            (Protocol::Tcp, true) => start.tcp(from, to, 0, 65_535).syn().ack(1).write(&mut bytes, &[]),
            (Protocol::Udp, _) => start.udp(from, to).write(&mut bytes, &[]),
        }
        .map_err(|e| format!("cannot build a packet: {e}"))?;
        Ok(Self {
            source,
            destination,
            protocol,
            ports: (protocol != Protocol::Icmp).then_some((from, to)),
            is_answer,
            bytes,
        })
    }

    /// Takes over destination and ports after a load balancer has replaced them in the packet's bytes.
    fn follow(&mut self, info: &PacketInfo) {
        self.destination = info.destination;
        #[expect(clippy::cast_possible_truncation, reason = "each half is one port")]
        let ports = ((info.ports >> 16) as u16, info.ports as u16);
        self.ports = self.ports.map(|_| ports);
    }

    /// Replaces the source by a front end, as the agent of a back end does with replies (L5).
    fn reply_from(&mut self, (address, port): (IpAddr, u16)) {
        if let Some(mut info) = packet::parse(&self.bytes)
            && rewrite(&mut self.bytes, &mut info, End::Source, (address, port))
        {
            self.source = address;
            self.ports = self.ports.map(|(_, to)| (port, to));
        }
    }

    /// Builds the ICMP error "time exceeded" from `address` to the source of this packet, of which the error quotes the
    /// beginning. `None`: the address is of the other family, or this packet is malformed.
    pub(super) fn time_exceeded(&self, address: IpAddr) -> Option<Self> {
        let info = packet::parse(&self.bytes)?;
        Some(Self {
            source: address,
            destination: self.source,
            protocol: Protocol::Icmp,
            ports: None,
            is_answer: true,
            bytes: icmp::error(address, &self.bytes, &info, IcmpError::TimeExceeded)?,
        })
    }

    /// The present TTL of the packet; 0 if it is malformed.
    pub(super) fn ttl(&self) -> u8 {
        packet::parse(&self.bytes).map_or(0, |info| info.ttl)
    }

    /// Decrements the TTL by one and corrects the checksum, as a forwarding kernel does.
    pub(super) fn decrement_ttl(&mut self) {
        packet::decrement_ttl(&mut self.bytes);
    }

    /// The protocol, addresses and ports for a message: `tcp 10.0.0.4:49152 -> 10.1.0.4:443`, `icmp 10.0.0.4 -> 10.1.0.4`.
    pub(super) fn flow(&self) -> String {
        let (source, destination) = (self.source, self.destination);
        let protocol = match self.protocol {
            Protocol::Icmp => "icmp",
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        match self.ports {
            Some((from, to)) => {
                let (source, destination) = (SocketAddr::new(source, from), SocketAddr::new(destination, to));
                format!("{protocol} {source} -> {destination}")
            }
            None => format!("{protocol} {source} -> {destination}"),
        }
    }
}
