//! What one agent must know: complete, self-contained, the same bytes for the same input.
//!
//! [`AgentConfig`] is policy and comes from the controller alone. What agents learn by themselves (link health,
//! endpoints) is another input of the engine's tables and never stands here (decision D11).
//! An agent refuses a configuration with a field that it does not know: half-understood policy is not policy.

use crate::id::{AgentId, KeyPin, PresharedKey, PublicKey, ResourceId, Secret};
use crate::route::{EffectiveRoute, GatewayHop};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;

/// Inner MTU of every TUN device unless set otherwise, bytes (D20).
pub const DEFAULT_MTU: u16 = 1420;

/// Most lanes of an agent (D15).
pub const MAX_LANES: u16 = 64;

/// Everything one agent must know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentConfig {
    /// Whom this is for.
    pub agent: AgentId,
    /// The VNet that the agent stands for (a part of); the circuit of an edge.
    pub vnet: ResourceId,
    /// The VNet's address space; no host bits set. Empty at an edge.
    pub address_space: Vec<IpNet>,
    /// MTU of the TUN device, bytes, 1280 to 9000.
    pub mtu: u16,
    /// How the silence of a link is noticed.
    #[serde(default, skip_serializing_if = "Probes::is_default")]
    pub probes: Probes,
    /// What the agent is in its VNet.
    pub role: Role,
    /// The subnets that packets leave through at this agent, each with its effective routes (R20): those of the
    /// agent's NICs, or `GatewaySubnet`.
    pub subnets: Vec<Subnet>,
    /// Address → agent, one space for the own VNet and one for each VNet that packets may be delivered to directly.
    /// Exactly one is [`SpaceKind::Local`]; at an edge it is empty.
    pub spaces: Vec<Space>,
    /// The agents that this one may have links with, ordered by `peer`.
    pub links: Vec<Link>,
}

/// How it is noticed that a link with an alternative does not answer, and that it does again (D19).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Probes {
    /// From one to the next, milliseconds, 50 to 10,000.
    pub interval: u32,
    /// So many in a row without an answer, and the link is down: 1 to 100.
    pub misses: u32,
    /// So many in a row with an answer, 1 to 1000,
    pub answers: u32,
    /// for so long, milliseconds, up to 600,000, and it is back.
    pub hold: u32,
}

impl Default for Probes {
    fn default() -> Self {
        Self {
            interval: 100,
            misses: 3,
            answers: 10,
            hold: 3000,
        }
    }
}

impl Probes {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// What is out of range: the name, the value, and the range.
    #[must_use]
    pub fn out_of_range(&self) -> Option<(&'static str, u32, RangeInclusive<u32>)> {
        [
            ("probeInterval", self.interval, 50..=10_000),
            ("probeMisses", self.misses, 1..=100),
            ("probeAnswers", self.answers, 1..=1000),
            ("probeHold", self.hold, 0..=600_000),
        ]
        .into_iter()
        .find(|(_, value, range)| !range.contains(value))
    }
}

/// What an agent is in its VNet (D7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "type",
    rename_all = "camelCase",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum Role {
    /// A virtual machine: some NICs of one VNet.
    Vm {
        /// The NICs, the primary one first. Never empty.
        nics: Vec<Nic>,
        /// Whole subnets (or parts of them) whose other machines sit behind this host (D8). May be empty.
        served: Vec<IpNet>,
        /// The gateways that the VNet uses, its own or a peer's (P23): what these tell of routes is taken.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        gateways: Vec<UsedGateway>,
    },
    /// One `ipConfiguration` of a VPN gateway.
    VpnGateway {
        /// The virtual network gateway.
        gateway: ResourceId,
        /// Addresses of this instance in `GatewaySubnet`: the engine answers traceroute with the first of the
        /// packet's family, and packets to any of them go to the host's kernel.
        addresses: Vec<IpAddr>,
        /// Prefixes of the own side: the own VNet and the spokes that use this gateway. Packets from these that run
        /// out of TTL here are answered; others are dropped silently and counted (T5, D23).
        own_side: Vec<IpNet>,
        /// The gateway's ASN (G4).
        #[serde(default = "default_asn")]
        asn: u32,
        /// What lies behind each VPN connection, as far as it is configured: the far VNet and its spokes, the prefixes of a
        /// local network gateway. What is learned comes on top (D11).
        transit: Vec<TransitRoute>,
        /// The connections, ordered by id.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        connections: Vec<GatewayConnection>,
        /// The BGP speaker towards sites; none: no connection to a site uses BGP.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bgp: Option<Speaker>,
        /// What a VPN gateway does with the TTL of packets that come from a site (T6).
        #[serde(default, skip_serializing_if = "SiteTtl::is_silent_hop")]
        site_ttl: SiteTtl,
    },
    /// One `ipConfiguration` of an ExpressRoute gateway: it brings packets from circuits into its VNet (T4).
    ExpressRouteGateway {
        /// The virtual network gateway.
        gateway: ResourceId,
        /// Addresses of this instance in `GatewaySubnet`.
        addresses: Vec<IpAddr>,
        /// Prefixes of the own side: the own VNet and the spokes that use this gateway.
        own_side: Vec<IpNet>,
        /// The circuits that it is connected to, ordered by connection.
        circuits: Vec<LinkedCircuit>,
    },
    /// The provider edge of one link of a circuit, the MSEE (E1). Its kernel forwards (D23).
    CircuitEdge {
        /// The circuit.
        circuit: ResourceId,
        /// Which of its two links.
        link: CircuitLink,
        /// The own address on the line to the customer edge, with the length of the line's prefix.
        line: IpNet,
        /// The VNets that are linked to the circuit, ordered by connection.
        networks: Vec<CircuitNetwork>,
        /// Whether linked VNets reach each other through the circuit (E6, section 12).
        vnet_to_vnet: bool,
        /// The BGP speaker towards the customer edge.
        bgp: Speaker,
    },
}

impl Role {
    /// Whether it carries others' packets: gateways and edges do.
    #[must_use]
    pub const fn relays(&self) -> bool {
        match self {
            Self::Vm { .. } => false,
            Self::VpnGateway { .. } | Self::ExpressRouteGateway { .. } | Self::CircuitEdge { .. } => true,
        }
    }
}

/// G4.
pub const DEFAULT_ASN: u32 = 65_515;

const fn default_asn() -> u32 {
    DEFAULT_ASN
}

/// A gateway as a VM of its VNet, or of a spoke, sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UsedGateway {
    /// The virtual network gateway.
    pub gateway: ResourceId,
    /// Which of the two that a VNet may have (G2).
    pub kind: GatewayKind,
    /// Its instances share the flows (active-active, G6); otherwise the first that answers has all.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub spread: bool,
    /// Its instances, in order of preference.
    pub instances: Vec<GatewayHop>,
    /// The edges of the circuits that it is connected to, with their tunnel addresses: packets go to them directly (T4).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub edges: Vec<GatewayHop>,
}

/// One of the two links of a circuit (E1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CircuitLink {
    /// The first.
    Primary,
    /// The second.
    Secondary,
}

impl CircuitLink {
    /// `primary` or `secondary`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Secondary => "secondary",
        }
    }
}

/// What VPN gateways do with the TTL of packets whose source is a site's (T6).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SiteTtl {
    /// They take one and are silent.
    #[default]
    SilentHop,
    /// They take none.
    Transparent,
}

impl SiteTtl {
    /// Whether it is the default.
    #[must_use]
    pub fn is_silent_hop(&self) -> bool {
        *self == Self::SilentHop
    }
}

/// A connection of a VPN gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GatewayConnection {
    /// The connection resource.
    pub connection: ResourceId,
    /// The links that it consists of, in order of preference: the far gateway's instances, or the site's device.
    pub ends: Vec<AgentId>,
    /// Whether routes are exchanged over it (G18, G19): BGP is on at both ends, with unlike ASNs (G4).
    pub exchange: bool,
    /// The ASN of the far end.
    pub asn: u32,
    /// The far end is a site: its packets are a site's (T6).
    pub site: bool,
    /// `routingWeight` (R7).
    pub weight: u32,
}

/// A circuit as an ExpressRoute gateway sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LinkedCircuit {
    /// The connection resource.
    pub connection: ResourceId,
    /// The circuit.
    pub circuit: ResourceId,
    /// `routingWeight` (E12).
    pub weight: u32,
    /// Its edges with their tunnel addresses, the primary one first; those that have no agent are left out.
    pub edges: Vec<GatewayHop>,
}

/// A VNet that is linked to a circuit, as the edge sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CircuitNetwork {
    /// The connection of the VNet's gateway to the circuit.
    pub connection: ResourceId,
    /// The VNet.
    pub vnet: ResourceId,
    /// What its gateway advertises: whole ranges of its own and of the spokes that use it, nothing else (E5).
    pub prefixes: Vec<IpNet>,
    /// The gateway's ASN.
    pub asn: u32,
    /// The own end of the tunnel: an address of the VNet's `GatewaySubnet` (T4).
    pub address: IpAddr,
    /// The instances of the VNet's ExpressRoute gateway, in order of preference.
    pub gateways: Vec<AgentId>,
}

/// What an agent's BGP speaker is and whom it speaks with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Speaker {
    /// The own ASN.
    pub asn: u32,
    /// BGP identifier.
    pub router_id: Ipv4Addr,
    /// Ordered by id.
    pub neighbours: Vec<Neighbour>,
}

/// A BGP neighbour: a site's device or a customer edge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Neighbour {
    /// What it belongs to: the connection to the site, or the circuit.
    pub id: ResourceId,
    /// Its address.
    pub address: IpAddr,
    /// The own address towards it.
    pub local_address: IpAddr,
    /// Its ASN; never the own one (G4).
    pub asn: u32,
    /// It is not on a network of the host: sessions may pass routers.
    pub multihop: bool,
    /// Forwarding towards it is judged by BFD (RFC 5880), every 300 ms, where it speaks that too. Not with `multihop`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bfd: bool,
    /// Signs the session (RFC 2385); at most 80 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// More prefixes than this cost the session (G23, E13).
    pub max_prefixes: u32,
    /// Hold time to ask for, seconds, 3 to 65535 (E4). Keepalives come three times as often.
    pub hold_time: u16,
}

/// A NIC of the agent's host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Nic {
    /// The network interface resource.
    pub id: ResourceId,
    /// Its private addresses, the primary one first, with the prefix length of their subnet.
    pub addresses: Vec<IpNet>,
    /// The subnet, one of [`AgentConfig::subnets`].
    pub subnet: ResourceId,
    /// `enableIPForwarding`: may take packets for others, and emit packets with foreign sources (R12, D10).
    pub ip_forwarding: bool,
}

/// A subnet with its effective routes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Subnet {
    /// The subnet resource.
    pub id: ResourceId,
    /// Its prefixes.
    pub prefixes: Vec<IpNet>,
    /// All effective routes that are configured, `Invalid` ones included, ordered as they are shown. The engine uses
    /// `Active` ones; among these a prefix occurs once. Learned routes come on top, by the same precedence (R7).
    pub routes: Vec<EffectiveRoute>,
    /// `disableBgpRoutePropagation` (R15): no learned routes here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub isolated: bool,
}

/// A gateway's forwarding entry: a prefix behind a VPN connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TransitRoute {
    /// The destination.
    pub prefix: IpNet,
    /// The connection that it lies behind.
    pub connection: ResourceId,
    /// The far gateway's instances, in order of preference.
    pub via: Vec<AgentId>,
}

/// The addresses of one VNet and who owns them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Space {
    /// The VNet.
    pub vnet: ResourceId,
    /// What it is to this agent's VNet.
    pub kind: SpaceKind,
    /// The prefixes in use: the own address space, or the peering's `remoteAddressSpace` (as last synced, P27).
    pub prefixes: Vec<IpNet>,
    /// Address → agent; longest prefix wins, so that a NIC's /32 comes before "subnet served by" (D8).
    pub owners: Vec<Owner>,
}

/// What a space is to this agent's VNet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "type",
    rename_all = "camelCase",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum SpaceKind {
    /// The own VNet.
    Local {},
    /// A VNet with a `Connected` peering.
    Peered {
        /// The own half of the peering.
        peering: ResourceId,
        /// `allowVirtualNetworkAccess` of the own half (P17): off, packets that cross this peering are dropped, both ways.
        allow_access: bool,
        /// `allowForwardedTraffic` of the own half (P18).
        allow_forwarded: bool,
    },
    /// On a gateway only: a spoke that uses it as remote gateway (P21). The gateway delivers into it.
    GatewayClient {},
}

/// Who has an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Owner {
    /// A NIC's address as /32 or /128, a gateway instance's address, or a served prefix.
    pub prefix: IpNet,
    /// The agent.
    pub agent: AgentId,
    /// The NIC has `enableIPForwarding`. Diagnosis only: the owner itself enforces it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ip_forwarding: bool,
}

/// One agent that this one may have an encrypted link with. Brought up by the first packet unless `always_on`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Link {
    /// The other end.
    pub peer: AgentId,
    /// Its pinned identity (D14).
    pub public_key: PublicKey,
    /// Derived from the connection's shared key (D14); only on links of VPN connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preshared_key: Option<PresharedKey>,
    /// Its pinned key for QUIC; none: it has no QUIC, or must not use it here (links of VPN connections).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic: Option<KeyPin>,
    /// What may carry the link.
    #[serde(default)]
    pub transport: Transport,
    /// Where to send the first packet; none: wait for the other end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<SocketAddr>,
    /// Where the other end takes QUIC besides (D6): tried when no connection comes up at its `endpoint`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic_endpoint: Option<SocketAddr>,
    /// Lanes of the other end, 1 to [`MAX_LANES`] (D15): a lane of this end beyond them has no counterpart there, and
    /// leaves its packets to the first.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub lanes: u16,
    /// Keep a session up without traffic (VPN connections).
    pub always_on: bool,
    /// This end starts handshakes of an `always_on` link and sends its keepalives (one end only, chosen by id).
    pub initiator: bool,
    /// What the other end is to this one.
    pub relation: Relation,
    /// What the other end may speak for: sources of packets that may arrive on this link (D10).
    pub sources: Vec<IpNet>,
    /// What it may carry beyond `sources`, being an appliance.
    pub foreign: ForeignSources,
    /// Another way stands in for it: while it is in use its silence is noticed within 300 ms (D19).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub watched: bool,
    /// The other end is a stock WireGuard device: it understands WireGuard and nothing of what agents say inside (D16).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stock: bool,
    /// `dpdTimeoutSeconds` of the connection with a stock device: silence after which it is given up, seconds, 9 to 3600. None: six
    /// seconds where packets want an answer, else fifteen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_after: Option<u16>,
}

const fn one() -> u16 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
const fn is_one(n: &u16) -> bool {
    *n == 1
}

/// What may carry a link (D6).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Transport {
    /// WireGuard first, QUIC where that is blocked or shaped, and back when it works again.
    #[default]
    Automatic,
    /// WireGuard alone.
    WireGuard,
    /// QUIC alone.
    Quic,
}

/// What the other end of a link is to this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "type",
    rename_all = "camelCase",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum Relation {
    /// A VM of the same VNet.
    VnetLocal {},
    /// A VM of a peered VNet.
    Peering {
        /// The own half: the `peering` of a [`SpaceKind::Peered`] space, whose flags apply.
        peering: ResourceId,
    },
    /// A gateway that this agent's VNet uses, its own or a peer's.
    Gateway {},
    /// This agent is a gateway, the other end a VM of its VNet or of a spoke that uses it.
    GatewayClient {},
    /// Both ends are gateways, joined by a VPN connection.
    Connection {
        /// This side's connection resource.
        connection: ResourceId,
    },
    /// This agent is a VPN gateway, the other end the device of a site (D16).
    Site {
        /// The connection resource.
        connection: ResourceId,
    },
    /// The other end is an edge of a circuit: of a gateway that is connected to it, or of a VM that uses that gateway.
    Edge {
        /// The connection resource.
        connection: ResourceId,
    },
    /// This agent is an edge, the other end an instance of an ExpressRoute gateway.
    CircuitGateway {
        /// The connection resource.
        connection: ResourceId,
    },
    /// This agent is an edge, the other end a VM of a linked VNet or of a spoke of it: packets come, none go (T4).
    CircuitClient {
        /// The connection resource.
        connection: ResourceId,
    },
    /// The VNet's other gateway, of the other kind (G2).
    OtherGateway {},
}

/// The kind of a virtual network gateway.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum GatewayKind {
    /// `Vpn`.
    #[default]
    Vpn,
    /// `ExpressRoute`.
    ExpressRoute,
}

/// Sources beyond `sources` that a link may carry because its far end has a NIC with `enableIPForwarding` (D10, P18).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ForeignSources {
    /// Nothing.
    None,
    /// An appliance in a peered VNet, `allowForwardedTraffic` on: anything outside the receiver's own address space.
    OutsideOwnSpace,
    /// An appliance in the own VNet: anything but the receiver's own addresses.
    Any,
}

impl AgentConfig {
    /// The canonical bytes: what travels, what is cached, what the digest is taken of.
    ///
    /// # Panics
    /// Never: the types have no map with non-text keys and no failing serializer.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        #[expect(clippy::unwrap_used, reason = "no type in here can fail to serialize")]
        serde_json::to_vec(self).unwrap()
    }

    /// Makes the secrets in it unreadable, for showing it: zeros for preshared keys, `…` for passwords.
    pub fn blank_secrets(&mut self) {
        for link in &mut self.links {
            link.preshared_key = link.preshared_key.map(|_| PresharedKey([0; 32]));
        }
        let speaker = match &mut self.role {
            Role::VpnGateway { bgp, .. } => bgp.as_mut(),
            Role::CircuitEdge { bgp, .. } => Some(bgp),
            Role::Vm { .. } | Role::ExpressRouteGateway { .. } => None,
        };
        for neighbour in speaker.into_iter().flat_map(|s| &mut s.neighbours) {
            neighbour.password = neighbour.password.take().map(|_| Secret("…".into()));
        }
    }

    /// Reads canonical bytes.
    ///
    /// # Errors
    /// What is wrong and where, in words for the controller's log.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidConfig> {
        let config: Self = serde_json::from_slice(bytes).map_err(|e| InvalidConfig(e.to_string()))?;
        config.check()?;
        Ok(config)
    }

    /// Checks what the types alone do not say.
    ///
    /// # Errors
    /// The first broken promise.
    pub fn check(&self) -> Result<(), InvalidConfig> {
        let fail = |what: String| Err(InvalidConfig(what));
        if !(1280..=9000).contains(&self.mtu) {
            return fail(format!("mtu: {} is not within 1280 to 9000", self.mtu));
        }
        if let Some((name, value, range)) = self.probes.out_of_range() {
            let (least, most) = range.into_inner();
            return fail(format!("probes: {name}: {value} is not within {least} to {most}"));
        }
        if self
            .spaces
            .iter()
            .filter(|s| matches!(s.kind, SpaceKind::Local {}))
            .count()
            != 1
        {
            return fail("spaces: exactly one must be local".into());
        }
        if let Role::Vm { nics, .. } = &self.role {
            if nics.is_empty() {
                return fail("role.nics: a VM has at least one NIC".into());
            }
            for nic in nics {
                if nic.addresses.is_empty() {
                    return fail(format!("role.nics: {} has no address", nic.id));
                }
                if !self.subnets.iter().any(|s| s.id == nic.subnet) {
                    return fail(format!("role.nics: {} is in unknown subnet {}", nic.id, nic.subnet));
                }
            }
        }
        for pair in self.links.windows(2) {
            if pair[0].peer >= pair[1].peer {
                return fail(format!("links: not ordered, or twice, at {}", pair[1].peer));
            }
        }
        if let Some(own) = self.links.iter().find(|l| l.peer == self.agent) {
            return fail(format!("links: {} is the agent itself", own.peer));
        }
        for link in &self.links {
            if !(1..=MAX_LANES).contains(&link.lanes) {
                return fail(format!(
                    "links: {} has {} lanes, not within 1 to {MAX_LANES}",
                    link.peer, link.lanes
                ));
            }
            if let Relation::Peering { peering } = &link.relation {
                let known = |s: &Space| matches!(&s.kind, SpaceKind::Peered { peering: p, .. } if p == peering);
                if !self.spaces.iter().any(known) {
                    return fail(format!("links: {} belongs to unknown peering {peering}", link.peer));
                }
            }
        }
        Ok(())
    }
}

/// A configuration that breaks a promise of its type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidConfig(pub String);

/// BLAKE3 of a configuration's canonical bytes, as lower-case hex.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}
