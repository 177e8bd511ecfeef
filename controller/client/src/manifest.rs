//! Manifests: declarative files with Azure's property names. They are read, compared with the controller, and applied.
//!
//! ```text
//! files ──Manifest::load──▶ Manifest ──expand──▶ ARM bodies ──Plan::make──▶ Plan ──Plan::apply──▶ done
//!                                                    controller's state ──┘
//! ```
//!
//! A manifest is the union of its documents. Applying a manifest creates or updates the resources that it contains. All
//! other resources stay unchanged, except that pruning deletes those in the manifest's resource groups. Applying the
//! same manifest again changes nothing.

mod apply;
mod compare;
mod documents;
mod error;
mod expand;
mod named;
mod order;
mod plan;
mod schema;

pub use apply::{ApplyError, ApplyResult};
pub use documents::Manifest;
pub use error::ManifestError;
pub use expand::{DesiredResource, GATEWAY_IP_CONFIGURATION, NIC_IP_CONFIGURATION};
pub use named::Named;
pub use plan::{Action, Plan, Server, Step};
pub use schema::{
    BackendPool, BalancedProtocol, BalancingRule, Connection, ConnectionType, DEFAULT_LOCATION, Document,
    ExpressRouteCircuit, FlowLog, FrontEnd, GatewayIpConfiguration, InboundNatRule, LoadBalancer, LoadBalancerSku,
    LocalNetworkGateway, NetworkInterface, NetworkSecurityGroup, NextHopType, NicIpConfiguration, NoHealthyBackends,
    Peering, PlainResource, Prefix, PrivatePeering, Probe, ProbeProtocol, PublicIpAddress, Route, RouteTable,
    RuleAddress, RulePorts, SecurityRule, SkuTier, Subnet, VirtualNetwork, VirtualNetworkGateway,
};
pub use tombolo_proto::arm::Kind;

#[cfg(test)]
mod tests;
