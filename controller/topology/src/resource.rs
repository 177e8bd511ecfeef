//! The resources as typed data. Every value in a [`crate::topology::Topology`] satisfies the rules: it comes from an
//! accepted change, or from the documents that such changes wrote.
//!
//! Each top-level resource is one document of the store. Children (subnets, peerings, routes) are part of their parent.
//! Field names of the stored form are Azure's. Names and ids keep the casing of their creation.
//!
//! Each kind has one file with its type and its implementation of [`frame::Resource`]. A kind is known only if the
//! macro `each_kind` below has a line for it.

mod agent;
mod application_security_group;
mod connection;
pub(crate) mod document;
mod envelope;
mod express_route_circuit;
mod flow_log;
pub(crate) mod frame;
mod load_balancer;
mod local_network_gateway;
mod network_interface;
mod network_security_group;
mod public_ip_address;
pub(crate) mod registry;
mod route_table;
mod settings;
mod virtual_machine;
mod virtual_network;
mod virtual_network_gateway;

pub use agent::{Agent, JoinToken, Reach};
pub use application_security_group::ApplicationSecurityGroup;
pub use connection::{Connection, ConnectionType};
pub use envelope::{Envelope, ResourceGroup};
pub use express_route_circuit::{CircuitAuthorization, ExpressRouteCircuit, PrivatePeering};
pub(crate) use express_route_circuit::{is_premium, max_prefixes};
pub(crate) use flow_log::of_target as flow_logs_of;
pub use flow_log::{FlowLog, WATCHER_GROUP, WATCHER_PREFIX};
pub use load_balancer::{
    AdminState, BackendPool, BalancedProtocol, BalancingRule, Distribution, FrontEnd, InboundNatRule, LoadBalancer,
    LoadBalancerSku, PoolAddress, PoolMember, Probe, ProbeProtocol, pool_members,
};
pub use local_network_gateway::{LocalNetworkGateway, SiteBgp};
pub(crate) use network_interface::mac_of;
pub use network_interface::{NetworkInterface, NicIpConfiguration};
pub use network_security_group::{NetworkSecurityGroup, RuleAddresses, RulePorts, RuleSide, SecurityRule};
pub use public_ip_address::PublicIpAddress;
pub use route_table::{Route, RouteTable, UserNextHop};
pub use settings::{AddressSpaceChange, Era, GatewayBandwidth, Settings};
pub use tombolo_proto::fabric::Binding;
pub use virtual_network::{Peering, PeeringState, Subnet, VirtualNetwork};
pub use virtual_network_gateway::{GatewayIpConfiguration, VirtualNetworkGateway};

/// Passes every kind of stored resource to the macro `define`, as a pair: the name of its map in `Topology`, and its
/// type. A kind comes before the kinds that it refers to: the deletion of a resource group goes through the kinds in
/// this order, and so deletes a resource before those that it uses.
macro_rules! each_kind {
    ($define:ident) => {
        $define! {
            /// Flow logs of network watchers, by id.
            flow_logs: FlowLog,
            /// Connections of gateways, by id.
            connections: Connection,
            /// Local network gateways, which describe sites, by id.
            local_gateways: LocalNetworkGateway,
            /// Virtual network gateways of both types, by id.
            gateways: VirtualNetworkGateway,
            /// ExpressRoute circuits with their peerings, by id.
            circuits: ExpressRouteCircuit,
            /// Network interfaces, by id.
            nics: NetworkInterface,
            /// Load balancers, by id.
            load_balancers: LoadBalancer,
            /// Virtual networks with their subnets and peerings, by id.
            vnets: VirtualNetwork,
            /// Route tables with their routes, by id.
            route_tables: RouteTable,
            /// Public IP addresses, by id.
            public_ips: PublicIpAddress,
            /// Network security groups with their rules, by id.
            network_security_groups: NetworkSecurityGroup,
            /// Application security groups, by id.
            application_security_groups: ApplicationSecurityGroup,
        }
    };
}
pub(crate) use each_kind;
