//! In which order resources are written and deleted.

use serde::Serialize;
use serde_json::Value;
use std::fmt;

/// What a manifest can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// A resource group.
    ResourceGroup,
    /// A route table with its routes.
    RouteTable,
    /// A public address.
    PublicIpAddress,
    /// A virtual network with its subnets.
    VirtualNetwork,
    /// A subnet by itself: only ever deleted, after its NICs have moved.
    Subnet,
    /// A gateway.
    VirtualNetworkGateway,
    /// One half of a peering.
    Peering,
    /// A network interface.
    NetworkInterface,
    /// A site.
    LocalNetworkGateway,
    /// A circuit with its peering.
    Circuit,
    /// A connection; between two gateways it is one side's.
    Connection,
}

/// The place of a step among all steps; the order of the variants is the order of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    // First goes what would be in the way, users before what they use.
    DeleteConnection,
    DeleteSite,
    DeleteCircuit,
    DeletePeering,
    DeleteNic,
    DeleteGateway,
    DeleteVnet,
    Group,
    RouteTable,
    PublicIp,
    Vnet,
    /// A half that stops using a remote gateway: before a gateway of its own (P23) and before another half that starts.
    PeeringOff,
    Gateway,
    /// A half that is `Disconnected`: a PUT takes it back to `Initiated`, and only then its counterpart can come (P14).
    PeeringReset,
    /// `allowGatewayTransit` before the counterpart's `useRemoteGateways` (P20).
    PeeringTransit,
    Peering,
    /// `useRemoteGateways`, after the gateway and the transit flag exist (P20).
    PeeringUse,
    Nic,
    Circuit,
    /// A connection that stops using BGP: before its site stops having BGP settings (G4).
    ConnectionOff,
    Site,
    Connection,
    // Last what others may have referred to until now.
    DeleteSubnet,
    DeleteRouteTable,
    DeletePublicIp,
    DeleteGroup,
}

impl Kind {
    /// Everything that lies directly in a group.
    pub const TOP: [Self; 8] = [
        Self::RouteTable,
        Self::PublicIpAddress,
        Self::VirtualNetwork,
        Self::VirtualNetworkGateway,
        Self::NetworkInterface,
        Self::LocalNetworkGateway,
        Self::Circuit,
        Self::Connection,
    ];

    /// The segment of its path.
    #[must_use]
    pub fn collection(self) -> &'static str {
        match self {
            Self::ResourceGroup => "resourceGroups",
            Self::RouteTable => "routeTables",
            Self::PublicIpAddress => "publicIPAddresses",
            Self::VirtualNetwork => "virtualNetworks",
            Self::Subnet => "subnets",
            Self::VirtualNetworkGateway => "virtualNetworkGateways",
            Self::Peering => "virtualNetworkPeerings",
            Self::NetworkInterface => "networkInterfaces",
            Self::LocalNetworkGateway => "localNetworkGateways",
            Self::Circuit => "expressRouteCircuits",
            Self::Connection => "connections",
        }
    }

    /// For people, in lower case.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::ResourceGroup => "resource group",
            Self::RouteTable => "route table",
            Self::PublicIpAddress => "public address",
            Self::VirtualNetwork => "virtual network",
            Self::Subnet => "subnet",
            Self::VirtualNetworkGateway => "gateway",
            Self::Peering => "peering",
            Self::NetworkInterface => "network interface",
            Self::LocalNetworkGateway => "local network gateway",
            Self::Circuit => "circuit",
            Self::Connection => "connection",
        }
    }

    /// When to create it, if nothing exists yet.
    pub(super) fn creation_rank(self, body: &Value) -> Rank {
        match self {
            Self::ResourceGroup => Rank::Group,
            Self::RouteTable => Rank::RouteTable,
            Self::PublicIpAddress => Rank::PublicIp,
            Self::VirtualNetwork | Self::Subnet => Rank::Vnet,
            Self::VirtualNetworkGateway => Rank::Gateway,
            Self::Peering if flag(body, "useRemoteGateways") => Rank::PeeringUse,
            Self::Peering if flag(body, "allowGatewayTransit") => Rank::PeeringTransit,
            Self::Peering => Rank::Peering,
            Self::NetworkInterface => Rank::Nic,
            Self::LocalNetworkGateway => Rank::Site,
            Self::Circuit => Rank::Circuit,
            Self::Connection => Rank::Connection,
        }
    }

    /// When to bring an existing one to `desired`.
    pub(super) fn update_rank(self, current: &Value, desired: &Value) -> Rank {
        if self == Self::Peering {
            if flag(current, "useRemoteGateways") && !flag(desired, "useRemoteGateways") {
                return Rank::PeeringOff;
            }
            if current.pointer("/properties/peeringState").and_then(Value::as_str) == Some("Disconnected") {
                return Rank::PeeringReset;
            }
        }
        if self == Self::Connection && flag(current, "enableBgp") && !flag(desired, "enableBgp") {
            return Rank::ConnectionOff;
        }
        self.creation_rank(desired)
    }

    /// When to delete it.
    pub(super) fn deletion_rank(self) -> Rank {
        match self {
            Self::Connection => Rank::DeleteConnection,
            Self::LocalNetworkGateway => Rank::DeleteSite,
            Self::Circuit => Rank::DeleteCircuit,
            Self::Peering => Rank::DeletePeering,
            Self::NetworkInterface => Rank::DeleteNic,
            Self::VirtualNetworkGateway => Rank::DeleteGateway,
            Self::VirtualNetwork => Rank::DeleteVnet,
            Self::Subnet => Rank::DeleteSubnet,
            Self::RouteTable => Rank::DeleteRouteTable,
            Self::PublicIpAddress => Rank::DeletePublicIp,
            Self::ResourceGroup => Rank::DeleteGroup,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.title())
    }
}

fn flag(body: &Value, name: &str) -> bool {
    body.get("properties")
        .and_then(|p| p.get(name))
        .and_then(Value::as_bool)
        == Some(true)
}
