//! One agent of a walk, with its configuration and the engine's decisions.

use super::answer::Protocol;
use etherparse::PacketBuilder;
use std::net::IpAddr;
use tombolo_engine::decide::{Ingress, Trace, decide};
use tombolo_engine::packet;
use tombolo_engine::tables::{Dynamic, Tables};
use tombolo_engine::verdict::{DropReason, Verdict};
use tombolo_proto::config::{AgentConfig, Link, Role};
use tombolo_proto::id::AgentId;

/// An agent that decides on packets.
pub(super) struct Node {
    pub(super) config: AgentConfig,
    /// The engine's tables, including learned routes. An error is the one with which the agent would reject the
    /// configuration.
    tables: Result<Tables, String>,
}

/// An agent's decision, and the route and subnet that led to it.
pub(super) struct Decision {
    pub(super) step: Step,
    pub(super) trace: Trace,
}

/// An agent's action on a packet.
pub(super) enum Step {
    /// The agent delivers the packet to its host.
    Deliver,
    /// The agent sends the packet to another one, with the TTL decremented if this hop does so.
    Forward(AgentId),
    /// The TTL expired. The address sends an ICMP error; `None`: no answer.
    Expired(Option<IpAddr>),
    /// The agent drops the packet.
    Drop(DropReason),
}

impl Node {
    pub(super) fn new(config: AgentConfig, dynamic: &Dynamic) -> Self {
        let tables = Tables::build(&config, dynamic).map_err(|e| e.to_string());
        Self { config, tables }
    }

    /// Decides on a packet that arrives over the link with `from`; `None`: from the host itself.
    ///
    /// # Errors
    /// The configuration is unusable, the agent has no link with `from`, or the packet is malformed.
    pub(super) fn decide(&self, from: Option<&AgentId>, packet: &mut Packet) -> Result<Decision, String> {
        let tables = self.tables.as_ref().map_err(Clone::clone)?;
        let ingress = match from {
            None => Ingress::Tun,
            Some(peer) => Ingress::Link(
                tables
                    .link_with(peer)
                    .ok_or_else(|| format!("it has no link with {peer}"))?,
            ),
        };
        let info = packet::parse(&packet.bytes).ok_or("the packet is malformed")?;
        let mut trace = Trace::default();
        let step = match decide(tables, ingress, &info, Some(&mut trace)) {
            Verdict::Deliver => Step::Deliver,
            Verdict::Forward { link, take_ttl } => {
                if take_ttl {
                    packet::take_ttl(&mut packet.bytes);
                }
                Step::Forward(tables.peer(link).clone())
            }
            Verdict::TimeExceeded => Step::Expired(tables.gateway_address(info.source)),
            Verdict::Drop(DropReason::TtlExceededSilent) => Step::Expired(None),
            Verdict::Drop(reason) => Step::Drop(reason),
        };
        Ok(Decision { step, trace })
    }

    /// The link with another agent.
    pub(super) fn link(&self, peer: &AgentId) -> Option<&Link> {
        self.config.links.iter().find(|link| link.peer == *peer)
    }

    /// Whether an address is the destination's own: it belongs to this host, or to a machine behind it.
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

    /// At an edge, whether its kernel sends packets for an address down the line to the customer.
    pub(super) fn sends_down(&self, address: IpAddr) -> bool {
        self.tables.as_ref().is_ok_and(|t| t.is_customers(address))
    }

    /// Whether the agent is the edge of a circuit.
    pub(super) fn is_edge(&self) -> bool {
        matches!(self.config.role, Role::CircuitEdge { .. })
    }

    /// The source address of the host kernel's ICMP errors: the first one of the family of `like`.
    pub(super) fn kernel_address(&self, like: IpAddr) -> Option<IpAddr> {
        let same = |a: &IpAddr| a.is_ipv4() == like.is_ipv4();
        match &self.config.role {
            Role::Vm { nics, .. } => {
                let mut addresses = nics.iter().flat_map(|nic| &nic.addresses).map(ipnet::IpNet::addr);
                addresses.find(same)
            }
            Role::VpnGateway { addresses, .. } | Role::ExpressRouteGateway { addresses, .. } => {
                addresses.iter().copied().find(same)
            }
            // An edge answers a VNet from its end of the tunnel, and the customer from its address on the line (D23).
            Role::CircuitEdge { line, networks, .. } => {
                let network = networks.iter().find(|n| n.prefixes.iter().any(|p| p.contains(&like)));
                Some(network.map_or(line.addr(), |n| n.address)).filter(same)
            }
        }
    }
}

/// A packet of a walk.
#[derive(Debug, Clone)]
pub(super) struct Packet {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    bytes: Vec<u8>,
}

impl Packet {
    /// An echo request, a SYN or a datagram.
    ///
    /// # Errors
    /// The two addresses are of different families.
    pub(super) fn new(
        source: IpAddr,
        destination: IpAddr,
        protocol: Protocol,
        port: Option<u16>,
        ttl: u8,
    ) -> Result<Self, String> {
        /// The source port: the first ephemeral port of RFC 6335.
        const CLIENT_PORT: u16 = 49_152;
        let start = match (source, destination) {
            (IpAddr::V4(s), IpAddr::V4(d)) => PacketBuilder::ipv4(s.octets(), d.octets(), ttl),
            (IpAddr::V6(s), IpAddr::V6(d)) => PacketBuilder::ipv6(s.octets(), d.octets(), ttl),
            _ => return Err(format!("{source} and {destination} are of different families")),
        };
        let mut bytes = Vec::with_capacity(64);
        let port = port.unwrap_or(CLIENT_PORT);
        match protocol {
            Protocol::Icmp if source.is_ipv4() => start.icmpv4_echo_request(1, 1).write(&mut bytes, &[]),
            Protocol::Icmp => start.icmpv6_echo_request(1, 1).write(&mut bytes, &[]),
            Protocol::Tcp => start.tcp(CLIENT_PORT, port, 0, 65_535).syn().write(&mut bytes, &[]),
            Protocol::Udp => start.udp(CLIENT_PORT, port).write(&mut bytes, &[]),
        }
        .map_err(|e| format!("cannot build a packet: {e}"))?;
        Ok(Self {
            source,
            destination,
            bytes,
        })
    }

    /// The present TTL of the packet.
    pub(super) fn ttl(&self) -> u8 {
        packet::parse(&self.bytes).map_or(0, |info| info.ttl)
    }

    /// Decrements the TTL, as a forwarding kernel does.
    pub(super) fn take_ttl(&mut self) {
        packet::take_ttl(&mut self.bytes);
    }
}
