//! The resources as typed data. What stands here is valid: parsing and the rules are the only doors in.
//!
//! Each top-level resource is one document of the store; children (subnets, peerings, routes) live in their parent.
//! Field names of the stored form are Azure's. Names and ids keep the casing of their creation.
//!
//! A kind is one file: its type, and the implementation of `frame::Resource`. A line of the registry below makes it known.

mod agent;
mod application_security_group;
mod connection;
pub(crate) mod document;
mod envelope;
mod express_route_circuit;
mod frame;
mod local_network_gateway;
mod network_interface;
mod public_ip_address;
mod route_table;
mod settings;
mod virtual_machine;
mod virtual_network;
mod virtual_network_gateway;

pub use agent::{Agent, Binding, JoinToken, Reach};
pub use application_security_group::ApplicationSecurityGroup;
pub use connection::{Connection, ConnectionType};
pub use envelope::{Envelope, ResourceGroup};
pub use express_route_circuit::{ExpressRouteCircuit, PrivatePeering};
pub(crate) use express_route_circuit::{location_of, most_links};
pub use frame::Map;
pub(crate) use frame::{Child, ChildWrites, Echoed, Entry, Put, Request, Resource, Stored, view};
pub use local_network_gateway::{LocalNetworkGateway, SiteBgp};
pub use network_interface::{NetworkInterface, NicIpConfiguration};
pub use public_ip_address::PublicIpAddress;
pub use route_table::{Route, RouteTable, UserNextHop};
pub use settings::{AddressSpaceChange, Era, Settings};
pub use virtual_network::{Peering, PeeringState, Subnet, VirtualNetwork};
pub(crate) use virtual_network::{counted_space, is_gateway_subnet};
pub use virtual_network_gateway::{GatewayIpConfiguration, VirtualNetworkGateway};
pub(crate) use virtual_network_gateway::{is_apipa, is_reserved_for_customers};

use crate::path::Kind;
use std::collections::BTreeMap;
use std::sync::Arc;
use tombolo_proto::id::AgentId;

/// Defines [`Topology`], with one map for each kind, and [`ENTRIES`].
macro_rules! registry {
    ($($(#[$doc:meta])* $map:ident: $resource:ident,)*) => {
        /// The desired state, valid as a whole, immutable. Cheap to clone in proportion to the number of resources.
        #[derive(Debug, Clone, Default)]
        pub struct Topology {
            /// Resource groups.
            pub resource_groups: Map<ResourceGroup>,
            $($(#[$doc])* pub $map: Map<$resource>,)*
            /// Agents.
            pub agents: BTreeMap<AgentId, Arc<Agent>>,
            /// Join tokens, by their id.
            pub tokens: BTreeMap<String, Arc<JoinToken>>,
            /// The operator's switches.
            pub settings: Arc<Settings>,
        }

        $(impl Stored for $resource {
            fn map(topology: &Topology) -> &Map<Self> {
                &topology.$map
            }
            fn map_mut(topology: &mut Topology) -> &mut Map<Self> {
                &mut topology.$map
            }
            fn envelope(&self) -> &Envelope {
                &self.envelope
            }
            fn envelope_mut(&mut self) -> &mut Envelope {
                &mut self.envelope
            }
        })*

        /// Every kind of top-level resource, in the order of the registry.
        pub(crate) const ENTRIES: &[Entry] = &[$(Entry::of::<$resource>(),)* virtual_machine::VIRTUAL_MACHINES];
    };
}

// Users stand before what they use: a resource group is deleted in this order.
registry! {
    /// Connections.
    connections: Connection,
    /// Local network gateways.
    local_gateways: LocalNetworkGateway,
    /// Virtual network gateways.
    gateways: VirtualNetworkGateway,
    /// Circuits with their peerings.
    circuits: ExpressRouteCircuit,
    /// Network interfaces.
    nics: NetworkInterface,
    /// Virtual networks with their subnets and peerings.
    vnets: VirtualNetwork,
    /// Route tables.
    route_tables: RouteTable,
    /// Public addresses.
    public_ips: PublicIpAddress,
    /// Application security groups.
    application_security_groups: ApplicationSecurityGroup,
}

/// What is known of a kind; none: a child, or a resource group.
pub(crate) fn entry(kind: Kind) -> Option<&'static Entry> {
    ENTRIES.iter().find(|entry| entry.kind == kind)
}

/// What is known of a kind of children.
pub(crate) fn child(kind: Kind) -> Option<&'static Child> {
    ENTRIES
        .iter()
        .flat_map(|entry| entry.children)
        .find(|child| child.kind == Some(kind))
}
