//! One agent of a walk, with its configuration and the engine's decisions.

use etherparse::PacketBuilder;
use std::net::IpAddr;
use tombolo_engine::decide::{Ingress, Trace, decide};
use tombolo_engine::packet;
use tombolo_engine::tables::{RoutingState, Tables};
use tombolo_engine::verdict::{DropReason, Verdict};
use tombolo_proto::config::{AgentConfig, Link, Role};
use tombolo_proto::fabric::Protocol;
use tombolo_proto::id::AgentId;

/// An agent of a walk, which decides on packets by its configuration.
pub(super) struct Node {
    /// The configuration with which the agent decides.
    pub(super) config: AgentConfig,
    /// The engine's tables, including learned routes; or the error with which the agent would reject the configuration.
    tables: Result<Tables, String>,
}

/// An agent's decision, and the route and subnet that led to it.
pub(super) struct Decision {
    /// What the agent does with the packet.
    pub(super) step: Step,
    /// The subnet, route, VNet and connection that led to the step.
    pub(super) trace: Trace,
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
    /// Builds the engine's tables from a configuration and the agent's learned routes. If they cannot be built, each
    /// decision of the node fails with the reason.
    pub(super) fn new(config: AgentConfig, dynamic: &RoutingState) -> Self {
        let tables = Tables::build(&config, dynamic).map_err(|e| e.to_string());
        Self { config, tables }
    }

    /// Decides on a packet that arrives over the link with `from`. `None`: the packet comes from the agent's own host.
    /// Decrements the packet's TTL if the agent would do so.
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
        Ok(Decision { step, trace })
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

    /// The address from which the host's kernel sends ICMP errors to the address `like`: the host's first address of
    /// the same address family. `None`: the host has no address of this family.
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
            // An edge answers a VNet from its tunnel address, and the customer from its address on the line (D23).
            Role::CircuitEdge { line, networks, .. } => {
                let network = networks.iter().find(|n| n.prefixes.iter().any(|p| p.contains(&like)));
                Some(network.map_or(line.addr(), |n| n.address)).filter(same)
            }
        }
    }
}

/// A packet of a walk, as bytes that the engine can parse.
#[derive(Debug, Clone)]
pub(super) struct Packet {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    bytes: Vec<u8>,
}

impl Packet {
    /// Builds an echo request, a TCP SYN or an empty UDP datagram. `port`: the destination port, ignored for ICMP.
    pub(super) fn new(
        source: IpAddr,
        destination: IpAddr,
        protocol: Protocol,
        port: Option<u16>,
        ttl: u8,
    ) -> Result<Self, String> {
        /// The source port of the packet: the first of the ephemeral ports of RFC 6335.
        const CLIENT_PORT: u16 = 49_152;
        let start = match (source, destination) {
            (IpAddr::V4(s), IpAddr::V4(d)) => PacketBuilder::ipv4(s.octets(), d.octets(), ttl),
            (IpAddr::V6(s), IpAddr::V6(d)) => PacketBuilder::ipv6(s.octets(), d.octets(), ttl),
            _ => return Err(format!("{source} and {destination} are of different families")),
        };
        // The largest packet has 60 bytes: the headers of IPv6 and TCP.
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

    /// The present TTL of the packet; 0 if it is malformed.
    pub(super) fn ttl(&self) -> u8 {
        packet::parse(&self.bytes).map_or(0, |info| info.ttl)
    }

    /// Decrements the TTL by one and corrects the checksum, as a forwarding kernel does.
    pub(super) fn decrement_ttl(&mut self) {
        packet::decrement_ttl(&mut self.bytes);
    }
}
