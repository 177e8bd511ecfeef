//! In which order resources are written and deleted.

use serde_json::Value;
use tombolo_proto::arm::Kind;

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
    /// Refers to nothing.
    Independent,
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
    DeleteIndependent,
    DeleteGroup,
}

/// When to create a resource, if nothing exists yet.
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
        // Nothing that a manifest can say of them needs an order.
        _ => Rank::Independent,
    }
}

/// When to bring an existing resource to `desired`.
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

/// When to delete a resource.
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
