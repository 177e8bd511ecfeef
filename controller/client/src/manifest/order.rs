//! The order in which resources are written and deleted.

use serde_json::Value;
use tombolo_proto::arm::Kind;

/// The position of a step in a plan. Steps are carried out in the order of the variants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    // Deletions come first, because a remaining resource could conflict with a new one. A resource is deleted before
    // those that it refers to.
    DeleteConnection,
    DeleteSite,
    DeleteCircuit,
    DeletePeering,
    DeleteNic,
    DeleteGateway,
    DeleteVnet,
    Group,
    /// A resource that refers to no other resource.
    Independent,
    RouteTable,
    PublicIp,
    Vnet,
    /// A half that stops using a remote gateway. A VNet uses one gateway (P23), so this half precedes a gateway of its
    /// own VNet, and another half that starts to use a remote gateway.
    PeeringOff,
    Gateway,
    /// A half that is `Disconnected`. A PUT returns it to `Initiated`; until then the other half cannot be created
    /// (P14).
    PeeringReset,
    /// A half with `allowGatewayTransit`, before the other half with `useRemoteGateways` (P20).
    PeeringTransit,
    Peering,
    /// A half with `useRemoteGateways`, after the gateway and the transit flag (P20).
    PeeringUse,
    Nic,
    Circuit,
    /// A connection that stops using BGP, before its site loses its BGP settings (G4).
    ConnectionOff,
    Site,
    Connection,
    // These resources are deleted last, because resources that are updated may have referred to them until then.
    DeleteSubnet,
    DeleteRouteTable,
    DeletePublicIp,
    DeleteIndependent,
    DeleteGroup,
}

/// Returns the rank for creating a resource.
pub(super) fn creation_rank(kind: Kind, body: &Value) -> Rank {
    match kind {
        Kind::ResourceGroup => Rank::Group,
        Kind::RouteTable => Rank::RouteTable,
        Kind::PublicIpAddress => Rank::PublicIp,
        Kind::VirtualNetwork | Kind::Subnet => Rank::Vnet,
        Kind::VirtualNetworkGateway => Rank::Gateway,
        Kind::Peering if flag(body, "useRemoteGateways") => Rank::PeeringUse,
        Kind::Peering if flag(body, "allowGatewayTransit") => Rank::PeeringTransit,
        Kind::Peering => Rank::Peering,
        Kind::NetworkInterface => Rank::Nic,
        Kind::LocalNetworkGateway => Rank::Site,
        Kind::Circuit => Rank::Circuit,
        Kind::Connection => Rank::Connection,
        // No other kind of a manifest has references, so its order does not matter.
        _ => Rank::Independent,
    }
}

/// Returns the rank for updating a resource from the controller's body `current` to `desired`.
pub(super) fn update_rank(kind: Kind, current: &Value, desired: &Value) -> Rank {
    if kind == Kind::Peering {
        if flag(current, "useRemoteGateways") && !flag(desired, "useRemoteGateways") {
            return Rank::PeeringOff;
        }
        if current.pointer("/properties/peeringState").and_then(Value::as_str) == Some("Disconnected") {
            return Rank::PeeringReset;
        }
    }
    if kind == Kind::Connection && flag(current, "enableBgp") && !flag(desired, "enableBgp") {
        return Rank::ConnectionOff;
    }
    creation_rank(kind, desired)
}

/// Returns the rank for deleting a resource.
pub(super) fn deletion_rank(kind: Kind) -> Rank {
    match kind {
        Kind::Connection => Rank::DeleteConnection,
        Kind::LocalNetworkGateway => Rank::DeleteSite,
        Kind::Circuit => Rank::DeleteCircuit,
        Kind::Peering => Rank::DeletePeering,
        Kind::NetworkInterface => Rank::DeleteNic,
        Kind::VirtualNetworkGateway => Rank::DeleteGateway,
        Kind::VirtualNetwork => Rank::DeleteVnet,
        Kind::Subnet => Rank::DeleteSubnet,
        Kind::RouteTable => Rank::DeleteRouteTable,
        Kind::PublicIpAddress => Rank::DeletePublicIp,
        Kind::ResourceGroup => Rank::DeleteGroup,
        _ => Rank::DeleteIndependent,
    }
}

fn flag(body: &Value, name: &str) -> bool {
    body.get("properties")
        .and_then(|p| p.get(name))
        .and_then(Value::as_bool)
        == Some(true)
}
