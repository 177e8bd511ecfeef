//! Effective routes, in Azure's words (rules R1 to R21).

use crate::id::{AgentId, ResourceId};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Where a route comes from (R21).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RouteSource {
    /// A system route: VNet, peering, `Internet`, `None`.
    Default,
    /// A user-defined route of the subnet's route table.
    User,
    /// A route that a gateway contributes, own or remote.
    VirtualNetworkGateway,
}

/// Whether a route takes part in the lookup (R8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RouteState {
    /// Won its prefix; longest prefix decides among active routes.
    Active,
    /// Overridden; shown, never used.
    Invalid,
}

/// A route as gateways, edges and sites tell each other of it (G18, E5, E6).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Route {
    /// The destination; no host bits set.
    pub prefix: IpNet,
    /// The agent to send to where that is not the one who tells: an edge, told by the ExpressRoute gateway (T4).
    #[serde(default)]
    pub via: Option<AgentId>,
    /// AS path, the nearest first; without the teller's own ASN inside a VNet.
    pub as_path: Vec<u32>,
    /// `routingWeight` of the connection that it came by, inside a VNet; 0 elsewhere.
    pub weight: u32,
    /// Whose address space it is.
    pub origin: RouteOrigin,
}

/// Whose address space a route leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RouteOrigin {
    /// A VNet's.
    Vnet,
    /// A site's (T6).
    Site,
}

/// One instance of a gateway, or one edge of a circuit behind it, as a next hop.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GatewayHop {
    /// The agent.
    pub agent: AgentId,
    /// Its address in `GatewaySubnet`; of an edge, its end of the tunnel.
    pub address: IpAddr,
}

/// What a route does with a packet (R1, R3, R10).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "type", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum NextHop {
    /// To the owner of the address in the own VNet.
    VnetLocal {},
    /// To the owner of the address in the peered VNet of the same region.
    #[serde(rename = "VNetPeering")]
    VnetPeering {
        /// The own half of the peering: the [`Space`](crate::config::Space) to look the owner up in.
        peering: ResourceId,
    },
    /// To the owner of the address in the peered VNet of another region.
    #[serde(rename = "VNetGlobalPeering")]
    VnetGlobalPeering {
        /// As for `VnetPeering`.
        peering: ResourceId,
    },
    /// To a gateway, own or a peer's, or to the edges of a circuit behind it; in order of preference. Empty: nobody
    /// serves it now.
    VirtualNetworkGateway {
        /// Where to.
        gateways: Vec<GatewayHop>,
        /// All of them at once, flow by flow (E4, G6); otherwise the first that answers.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        spread: bool,
    },
    /// To the owner of this address, in the own VNet or a directly peered one (R11); otherwise a black hole.
    VirtualAppliance {
        /// `nextHopIpAddress` of the route.
        address: IpAddr,
    },
    /// Not carried by the overlay.
    Internet {},
    /// Dropped silently (R13).
    None {},
}

impl NextHop {
    /// Azure's word for the type, as `nextHopType` has it.
    #[must_use]
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::VnetLocal {} => "VnetLocal",
            Self::VnetPeering { .. } => "VNetPeering",
            Self::VnetGlobalPeering { .. } => "VNetGlobalPeering",
            Self::VirtualNetworkGateway { .. } => "VirtualNetworkGateway",
            Self::VirtualAppliance { .. } => "VirtualAppliance",
            Self::Internet {} => "Internet",
            Self::None {} => "None",
        }
    }

    /// `nextHopIpAddress`: the addresses that Azure shows, none for most types.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        match self {
            Self::VirtualNetworkGateway { gateways, .. } => gateways.iter().map(|g| g.address).collect(),
            Self::VirtualAppliance { address } => vec![*address],
            Self::VnetLocal {}
            | Self::VnetPeering { .. }
            | Self::VnetGlobalPeering { .. }
            | Self::Internet {}
            | Self::None {} => Vec::new(),
        }
    }
}

/// One line of a subnet's effective routes: one prefix, after precedence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EffectiveRoute {
    /// The user-defined route's name; none for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where it comes from.
    pub source: RouteSource,
    /// Whether it is used.
    pub state: RouteState,
    /// The destination; no host bits set.
    pub prefix: IpNet,
    /// What happens to a packet.
    pub next_hop: NextHop,
}
