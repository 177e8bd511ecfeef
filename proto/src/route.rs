//! Effective routes in Azure's terms (R1 to R21), and the routes that agents advertise to each other.

use crate::id::{AgentId, ResourceId};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// The origin of an effective route (R21).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RouteSource {
    /// A system route. Its next hop is the VNet, a peering, `Internet` or `None`.
    Default,
    /// A user-defined route of the subnet's route table.
    User,
    /// A route whose next hop is a gateway, either of the own VNet or of a peered VNet.
    VirtualNetworkGateway,
}

/// Whether a route takes part in lookups (R8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RouteState {
    /// The route is the best one of its prefix. Lookups use the longest prefix among active routes.
    Active,
    /// Another route overrides this route. The route is displayed, and lookups ignore it, with one exception: a gateway
    /// route that is overridden by a peering's route is used while the direct link to the destination's owner is down.
    Invalid,
}

/// A route that agents advertise inside links, or that a BGP neighbour announces (G18, E5, E6).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Route {
    /// The destination, without host bits.
    pub prefix: IpNet,
    /// The next hop, if it is not the agent that advertises the route. Only routes that an ExpressRoute gateway
    /// advertises have such a next hop, which is an edge (T4).
    #[serde(default)]
    pub via: Option<AgentId>,
    /// The AS path, the neighbouring AS first. Inside a VNet the advertising gateway does not add its own ASN.
    pub as_path: Vec<u32>,
    /// `routingWeight` of the connection from which the gateway learned the route. It has an effect only inside a VNet;
    /// in routes that are advertised elsewhere it is 0.
    pub weight: u32,
    /// The owner of the address space.
    pub origin: RouteOrigin,
}

/// The owner of the address space that a route leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RouteOrigin {
    /// The route leads to a VNet.
    Vnet,
    /// The route leads to a site (T6).
    Site,
}

/// A next hop: an instance of a gateway, or an edge of a circuit that the gateway is connected to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GatewayHop {
    /// The agent to send to.
    pub agent: AgentId,
    /// The agent's address in `GatewaySubnet`; for an edge, the address of its end of the tunnel. This field is only
    /// displayed.
    pub address: IpAddr,
}

/// The next hop of a route, as a type and perhaps an address (R1, R3, R10).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "type", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum NextHop {
    /// The owner of the destination in the own VNet.
    VnetLocal {},
    /// The owner of the destination in a peered VNet of the same region.
    #[serde(rename = "VNetPeering")]
    VnetPeering {
        /// This VNet's half of the peering. The owner of the destination is looked up in the
        /// [`Space`](crate::config::Space) with this id.
        peering: ResourceId,
    },
    /// The owner of the destination in a peered VNet of another region.
    #[serde(rename = "VNetGlobalPeering")]
    VnetGlobalPeering {
        /// This VNet's half of the peering, as in [`VnetPeering`](Self::VnetPeering).
        peering: ResourceId,
    },
    /// A gateway of the own VNet or of a peered one, or the edges of a circuit that the gateway is connected to.
    VirtualNetworkGateway {
        /// The instances or edges, in order of preference. Empty: none of them has an agent.
        gateways: Vec<GatewayHop>,
        /// Whether all of the instances or edges that are up share the flows (E4, G6). Otherwise the first one that is
        /// up carries all flows.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        spread: bool,
    },
    /// The owner of this address in the own VNet or in a directly peered one. Packets are dropped if the address has no
    /// owner there (R11).
    VirtualAppliance {
        /// The address in `nextHopIpAddress` of the route.
        address: IpAddr,
    },
    /// The Internet. The overlay does not carry packets to the Internet; they are dropped.
    Internet {},
    /// Packets are dropped silently (R13).
    None {},
}

impl NextHop {
    /// Azure's name of the type of next hop, as in `nextHopType`.
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

    /// The addresses that Azure displays as `nextHopIpAddress`: those of gateway instances or edges in order of
    /// preference, or that of an appliance. Empty for the other types.
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

/// One effective route of a subnet, after selection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EffectiveRoute {
    /// The name of a user-defined route; `None` for all others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The origin of the route.
    pub source: RouteSource,
    /// Whether lookups use the route.
    pub state: RouteState,
    /// The destination, without host bits.
    pub prefix: IpNet,
    /// The next hop of packets to the destination.
    pub next_hop: NextHop,
}
