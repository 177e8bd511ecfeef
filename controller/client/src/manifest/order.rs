//! The order in which resources are written and deleted.

use serde_json::Value;
use tombolo_proto::arm::Kind;

/// The position of a step in a plan. A step with an earlier variant is carried out earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    // These deletions come first, because a resource that is to be deleted could conflict with a new one. A resource is
    // deleted before the resources that it refers to.
    DeleteConnection,
    DeleteSite,
    DeleteCircuit,
    DeletePeering,
    DeleteNic,
    /// The first of two updates of a NIC: the NIC leaves back-end pools and inbound NAT rules. The step comes before the
    /// deletion of these, before the deletion of their load balancer, and before another NIC uses the same NAT rule.
    NicRelease,
    DeleteLoadBalancer,
    DeleteGateway,
    DeleteVnet,
    Group,
    /// A resource that refers to no other resource.
    Independent,
    /// A network security group. Its rules refer to application security groups, and subnets and NICs refer to it.
    SecurityGroup,
    RouteTable,
    PublicIp,
    Vnet,
    /// A peering half that stops using a remote gateway. A VNet uses either one remote gateway or its own gateways
    /// (P23). So this step comes before the creation of a gateway in the same VNet, and before another half of the VNet
    /// starts to use a remote gateway.
    PeeringOff,
    Gateway,
    /// A peering half that is `Disconnected`. A PUT returns the half to `Initiated`. The step comes before the creation
    /// of the other half, which would otherwise be refused (P14).
    PeeringReset,
    /// A peering half with `allowGatewayTransit`. The step comes before the step of the other half, which may have
    /// `useRemoteGateways` (P20).
    PeeringTransit,
    Peering,
    /// A peering half with `useRemoteGateways`. The step comes after the creation of the gateway and of the half with
    /// `allowGatewayTransit` (P20).
    PeeringUse,
    /// A load balancer. Its front ends are in subnets, and NICs refer to its pools and inbound NAT rules.
    LoadBalancer,
    /// A NIC with a static address that the controller could allocate to a front end in the next step. Without references
    /// to load balancers of the next step.
    NicReserve,
    /// A load balancer with a front end for which the controller allocates an address.
    LoadBalancerAllocated,
    Nic,
    Circuit,
    /// A connection that stops using BGP. The step comes before the step that removes the BGP settings of the
    /// connection's site (G4).
    ConnectionOff,
    Site,
    Connection,
    /// A flow log. It refers to what it records.
    FlowLog,
    // These resources are deleted last, because a resource may refer to them until a step of the plan has updated it.
    DeleteSubnet,
    DeleteRouteTable,
    DeletePublicIp,
    DeleteSecurityGroup,
    DeleteIndependent,
    DeleteGroup,
}

/// Returns the rank for creating a resource.
pub(super) fn creation_rank(kind: Kind, body: &Value) -> Rank {
    match kind {
        Kind::ResourceGroup => Rank::Group,
        Kind::NetworkSecurityGroup => Rank::SecurityGroup,
        Kind::RouteTable => Rank::RouteTable,
        Kind::PublicIpAddress => Rank::PublicIp,
        Kind::VirtualNetwork | Kind::Subnet => Rank::Vnet,
        Kind::VirtualNetworkGateway => Rank::Gateway,
        Kind::Peering if flag(body, "useRemoteGateways") => Rank::PeeringUse,
        Kind::Peering if flag(body, "allowGatewayTransit") => Rank::PeeringTransit,
        Kind::Peering => Rank::Peering,
        Kind::LoadBalancer => Rank::LoadBalancer,
        Kind::NetworkInterface => Rank::Nic,
        Kind::LocalNetworkGateway => Rank::Site,
        Kind::Circuit => Rank::Circuit,
        Kind::Connection => Rank::Connection,
        Kind::FlowLog => Rank::FlowLog,
        // Resources of the other kinds in a manifest refer to no resource, so their order does not matter.
        _ => Rank::Independent,
    }
}

/// Returns the rank of the step that updates a resource. `current` is the controller's body, and `desired` the
/// manifest's.
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
        Kind::LoadBalancer => Rank::DeleteLoadBalancer,
        Kind::VirtualNetworkGateway => Rank::DeleteGateway,
        Kind::VirtualNetwork => Rank::DeleteVnet,
        Kind::Subnet => Rank::DeleteSubnet,
        Kind::RouteTable => Rank::DeleteRouteTable,
        Kind::PublicIpAddress => Rank::DeletePublicIp,
        Kind::NetworkSecurityGroup => Rank::DeleteSecurityGroup,
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
