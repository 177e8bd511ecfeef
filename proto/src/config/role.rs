//! What an agent stands for, and what it needs to know for that.

use super::{GatewayKind, Nic, TransitRoute};
use crate::id::{AgentId, ResourceId, Secret};
use crate::route::GatewayHop;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr};

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
        /// Whether linked VNets reach each other through the circuit (E6).
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

/// E1: the ASN of every edge.
pub const EDGE_ASN: u32 = 12_076;

/// Most prefixes of one family that a neighbour may announce (E13, G23).
pub const MAX_PREFIXES: u32 = 4000;

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

impl GatewayConnection {
    /// Whether other ends of the gateway learn of what lies behind this connection, and packets come out of it that
    /// other ends sent: routes are exchanged over it, or a site without BGP is at its end, whose prefixes are configured
    /// (G18, G19).
    #[must_use]
    pub const fn is_advertised(&self) -> bool {
        self.exchange || self.site
    }
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
