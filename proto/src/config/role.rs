//! The role of an agent and the configuration of each role.

use super::{GatewayKind, Nic, TransitRoute};
use crate::id::{AgentId, ResourceId, Secret};
use crate::route::GatewayHop;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr};

/// The role of an agent in its VNet (D7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "type",
    rename_all = "camelCase",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum Role {
    /// A virtual machine with NICs in one VNet.
    Vm {
        /// The NICs of the host, the primary one first. The list is never empty.
        nics: Vec<Nic>,
        /// Subnets, or parts of subnets, whose machines have no agent and are reached through this host (D8).
        served: Vec<IpNet>,
        /// The gateways that the VNet uses: its own, or those of a peered VNet (P23). The agent accepts routes that
        /// they advertise.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        gateways: Vec<UsedGateway>,
    },
    /// One instance of a VPN gateway: one of its `ipConfigurations`.
    VpnGateway {
        /// The virtual network gateway that this is an instance of.
        gateway: ResourceId,
        /// Addresses of this instance in `GatewaySubnet`. The source of an ICMP error is the first of these addresses
        /// that belongs to the packet's address family. Packets to any of these addresses are delivered to the host's
        /// kernel.
        addresses: Vec<IpAddr>,
        /// Prefixes of the own VNet and of the spokes that use this gateway. If the TTL of a packet from one of these
        /// prefixes expires here, the gateway answers with an ICMP error. Expired packets from elsewhere are dropped
        /// silently and counted (T5, D23).
        #[serde(rename = "ownSide")]
        local_prefixes: Vec<IpNet>,
        /// The gateway's ASN (G4). Default [`DEFAULT_ASN`].
        #[serde(default = "default_asn")]
        asn: u32,
        /// The configured prefixes that are reached over each VPN connection: the prefixes of the remote VNet and of
        /// the spokes that use its gateway, or the prefixes of a local network gateway. Learned routes are added to
        /// these (D11).
        transit: Vec<TransitRoute>,
        /// The connections, ordered by resource id.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        connections: Vec<GatewayConnection>,
        /// The BGP speaker towards sites. `None`: no connection to a site uses BGP.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bgp: Option<Speaker>,
        /// Handling of the TTL of packets from a site (T6). Default [`SiteTtl::SilentHop`].
        #[serde(default, skip_serializing_if = "SiteTtl::is_silent_hop")]
        site_ttl: SiteTtl,
    },
    /// One instance of an ExpressRoute gateway: one of its `ipConfigurations`. It forwards packets from circuits into
    /// its VNet. Packets in the opposite direction go from the VMs to the edges directly, and bypass the gateway (T4).
    ExpressRouteGateway {
        /// The virtual network gateway that this is an instance of.
        gateway: ResourceId,
        /// Addresses of this instance in `GatewaySubnet`. Packets to them are delivered to the host's kernel.
        addresses: Vec<IpAddr>,
        /// Prefixes of the own VNet and of the spokes that use this gateway.
        #[serde(rename = "ownSide")]
        local_prefixes: Vec<IpNet>,
        /// The circuits that the gateway is connected to, ordered by connection.
        circuits: Vec<LinkedCircuit>,
    },
    /// The provider's edge of one line of a circuit, an MSEE (E1). The kernel of its host forwards packets (D23).
    CircuitEdge {
        /// The circuit that the edge belongs to.
        circuit: ResourceId,
        /// The line of the circuit that ends here.
        link: CircuitLink,
        /// The edge's address on the line to the customer edge, with the prefix length of the line's network.
        line: IpNet,
        /// The VNets that are linked to the circuit, ordered by connection.
        networks: Vec<CircuitNetwork>,
        /// Whether linked VNets reach each other through the circuit (E6): the operator's setting `circuitVnetToVnet`.
        vnet_to_vnet: bool,
        /// The BGP speaker towards the customer edge.
        bgp: Speaker,
    },
}

impl Role {
    /// Whether the agent forwards packets of other hosts as its main task: true for gateways and edges, false for VMs,
    /// even with IP forwarding.
    #[must_use]
    pub const fn relays(&self) -> bool {
        match self {
            Self::Vm { .. } => false,
            Self::VpnGateway { .. } | Self::ExpressRouteGateway { .. } | Self::CircuitEdge { .. } => true,
        }
    }
}

/// ASN of a gateway for which none is configured (G4): Azure's default.
pub const DEFAULT_ASN: u32 = 65_515;

/// ASN of every edge (E1): Microsoft's ASN on ExpressRoute.
pub const EDGE_ASN: u32 = 12_076;

/// Largest number of prefixes of one address family that a BGP neighbour may announce: Azure's limit (E13, G23).
pub const MAX_PREFIXES: u32 = 4000;

/// The same limit for the customer of a Premium circuit (E13, X11).
pub const MAX_PREFIXES_PREMIUM: u32 = 10_000;

const fn default_asn() -> u32 {
    DEFAULT_ASN
}

/// A gateway, as a VM of its VNet or of a spoke sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UsedGateway {
    /// The gateway's resource id.
    pub gateway: ResourceId,
    /// The kind of the gateway. A VNet has at most one of each kind (G2).
    pub kind: GatewayKind,
    /// Whether the instances share the flows (active-active, G6). If not, the first instance that is up carries all
    /// flows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub spread: bool,
    /// The instances, in order of preference.
    pub instances: Vec<GatewayHop>,
    /// The edges of the circuits that the gateway is connected to, with the addresses of their tunnels. Packets go to
    /// the edges directly (T4).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub edges: Vec<GatewayHop>,
}

/// One of the two lines of a circuit (E1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CircuitLink {
    /// The primary line of the circuit.
    Primary,
    /// The secondary line of the circuit.
    Secondary,
}

impl CircuitLink {
    /// The name in JSON and on the command line: `primary` or `secondary`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Secondary => "secondary",
        }
    }
}

/// Handling of the TTL of packets from a site, at VPN gateways (T6).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SiteTtl {
    /// Decrement the TTL, and drop an expired packet silently.
    #[default]
    SilentHop,
    /// Leave the TTL unchanged, so that the gateway is no hop in a traceroute of the site.
    Transparent,
}

impl SiteTtl {
    /// Whether it is the default value, which serde omits.
    #[must_use]
    pub fn is_silent_hop(&self) -> bool {
        *self == Self::SilentHop
    }
}

/// One connection of a VPN gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GatewayConnection {
    /// The connection's resource id.
    pub connection: ResourceId,
    /// The peers of the connection's links, in order of preference: instances of the remote gateway, or the device of
    /// the site.
    pub ends: Vec<AgentId>,
    /// Whether both ends exchange routes (G18, G19). True if BGP is enabled at both ends and their ASNs differ (G4).
    pub exchange: bool,
    /// The ASN of the remote end.
    pub asn: u32,
    /// Whether the remote end is a site. If so, [`SiteTtl`] applies to packets from it (T6).
    pub site: bool,
    /// `routingWeight` (R7): of several connections that lead to a prefix, the one with the highest value is preferred.
    pub weight: u32,
}

impl GatewayConnection {
    /// Whether the gateway advertises the prefixes of this connection over its other connections, and forwards packets
    /// between this connection and those. True for a connection that exchanges routes, and for every connection to a
    /// site: the prefixes of a site without BGP are configured (G18, G19).
    #[must_use]
    pub const fn is_advertised(&self) -> bool {
        self.exchange || self.site
    }
}

/// A circuit, as an ExpressRoute gateway sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LinkedCircuit {
    /// The connection of the gateway to the circuit.
    pub connection: ResourceId,
    /// The circuit that the gateway is connected to.
    pub circuit: ResourceId,
    /// `routingWeight` of the connection (E12): the higher value is preferred.
    pub weight: u32,
    /// The edges with the addresses of their tunnels, the primary line first. An edge without an agent is omitted.
    pub edges: Vec<GatewayHop>,
}

/// A VNet that is linked to a circuit, as an edge sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CircuitNetwork {
    /// The connection of the VNet's gateway to the circuit.
    pub connection: ResourceId,
    /// The VNet that is linked to the circuit.
    pub vnet: ResourceId,
    /// Prefixes that the VNet's gateway advertises: the whole address spaces of the VNet and of the spokes that use the
    /// gateway (E5).
    pub prefixes: Vec<IpNet>,
    /// The ASN of the VNet's gateway.
    pub asn: u32,
    /// The edge's end of the tunnel: an address of the VNet's `GatewaySubnet` (T4).
    pub address: IpAddr,
    /// The instances of the VNet's ExpressRoute gateway, in order of preference.
    pub gateways: Vec<AgentId>,
}

/// The BGP speaker of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Speaker {
    /// The ASN of the speaker.
    pub asn: u32,
    /// The BGP identifier of the speaker (RFC 4271, 4.2).
    pub router_id: Ipv4Addr,
    /// The neighbours of the speaker, ordered by id.
    pub neighbours: Vec<Neighbour>,
}

/// A BGP neighbour: a site's device or a customer edge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Neighbour {
    /// The connection to the site, or the circuit.
    pub id: ResourceId,
    /// The neighbour's address.
    pub address: IpAddr,
    /// The speaker's own address on this session.
    pub local_address: IpAddr,
    /// The neighbour's ASN; it differs from the speaker's (G4).
    pub asn: u32,
    /// Whether the neighbour's address is on no network of the host. If so, the session crosses routers (EBGP
    /// multihop).
    pub multihop: bool,
    /// Whether BFD runs with the neighbour (RFC 5880), with an interval of 300 ms, if the neighbour supports it. Never
    /// together with `multihop`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bfd: bool,
    /// Key of the TCP MD5 signature (RFC 2385), at most 80 characters, which is the limit of Linux. `None`: the session
    /// has no signature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// Largest number of prefixes of one address family that the neighbour may announce. If it announces more, the
    /// session is closed (G23, E13).
    pub max_prefixes: u32,
    /// The hold time that the speaker proposes, in seconds, 3 to 65,535 (E4). The interval of keepalives is a third of
    /// the negotiated hold time.
    pub hold_time: u16,
}
