//! The kinds of ARM items and their paths, shared by controller, client and command line.
//!
//! Each kind is a variant of [`Kind`] and a row of the table `KINDS`.

mod name;
mod path;

pub use name::{check_group_name, check_name};
pub use path::{ArmPath, child_id, is_child_of, parent_id, shown};

use serde::Serialize;
use std::fmt;

/// The kinds of ARM items. The JSON form is the name that plans of manifests use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// A resource group, which contains the resources of all other kinds.
    ResourceGroup,
    /// A virtual network (`virtualNetworks`).
    VirtualNetwork,
    /// A subnet of a virtual network (`virtualNetworks/subnets`).
    Subnet,
    /// One half of a peering (`virtualNetworks/virtualNetworkPeerings`).
    Peering,
    /// A route table (`routeTables`).
    RouteTable,
    /// A user-defined route of a route table (`routeTables/routes`).
    Route,
    /// A network interface (`networkInterfaces`).
    NetworkInterface,
    /// An address of a network interface (`networkInterfaces/ipConfigurations`), read-only.
    NicIpConfiguration,
    /// A public IP address (`publicIPAddresses`).
    PublicIpAddress,
    /// A VPN or ExpressRoute gateway (`virtualNetworkGateways`).
    VirtualNetworkGateway,
    /// An instance of a gateway (`virtualNetworkGateways/ipConfigurations`), read-only.
    GatewayIpConfiguration,
    /// A connection of a gateway (`connections`).
    Connection,
    /// The description of a site (`localNetworkGateways`).
    LocalNetworkGateway,
    /// An ExpressRoute circuit (`expressRouteCircuits`).
    Circuit,
    /// A peering of a circuit (`expressRouteCircuits/peerings`).
    CircuitPeering,
    /// An authorization of a circuit (`expressRouteCircuits/authorizations`).
    CircuitAuthorization,
    /// An application security group (`applicationSecurityGroups`).
    ApplicationSecurityGroup,
    /// A network security group (`networkSecurityGroups`).
    NetworkSecurityGroup,
    /// A security rule of the user (`networkSecurityGroups/securityRules`).
    SecurityRule,
    /// A default rule of a group (`networkSecurityGroups/defaultSecurityRules`), read-only.
    DefaultSecurityRule,
    /// An internal load balancer (`loadBalancers`).
    LoadBalancer,
    /// A front end of a load balancer (`loadBalancers/frontendIPConfigurations`). It is written with its load balancer.
    FrontEnd,
    /// A back-end pool of a load balancer (`loadBalancers/backendAddressPools`).
    BackendPool,
    /// A rule of a load balancer (`loadBalancers/loadBalancingRules`). It is written with its load balancer.
    LoadBalancingRule,
    /// A health probe of a load balancer (`loadBalancers/probes`). It is written with its load balancer.
    Probe,
    /// An inbound NAT rule of a load balancer (`loadBalancers/inboundNatRules`).
    InboundNatRule,
    /// An outbound rule of a load balancer (`loadBalancers/outboundRules`). The list is always empty.
    OutboundRule,
    /// A flow log (`networkWatchers/flowLogs`). It is stored by itself, because network watchers are not.
    FlowLog,
    /// A virtual machine (`Microsoft.Compute/virtualMachines`). It can only be read and deleted.
    VirtualMachine,
    /// An extension of a virtual machine (`virtualMachines/extensions`). The list is always empty.
    VirtualMachineExtension,
}

const NETWORK: &str = "Microsoft.Network";
const COMPUTE: &str = "Microsoft.Compute";
const RESOURCES: &str = "Microsoft.Resources";
/// The providers whose resources lie in resource groups.
const PROVIDERS: [&str; 2] = [NETWORK, COMPUTE];

/// The fixed properties of a kind, which the methods of [`Kind`] return.
struct Row {
    kind: Kind,
    provider: &'static str,
    types: &'static str,
    title: &'static str,
    listed: bool,
    writable: bool,
    command: Option<&'static str>,
}

impl Row {
    const fn of(kind: Kind, provider: &'static str, types: &'static str, title: &'static str) -> Self {
        Self {
            kind,
            provider,
            types,
            title,
            listed: true,
            writable: true,
            command: None,
        }
    }

    /// Marks a kind whose only properties are region and tags. The program `tombolo` has a command `name` for these
    /// resources, which it generates from this row.
    const fn command(self, name: &'static str) -> Self {
        Self {
            command: Some(name),
            ..self
        }
    }

    /// Whether items of the kind lie directly in a resource group and can be written.
    const fn is_writable_at_top(&self) -> bool {
        let (types, mut i) = (self.types.as_bytes(), 0);
        while i < types.len() {
            if types[i] == b'/' {
                return false;
            }
            i += 1;
        }
        self.writable && !matches!(self.kind, Kind::ResourceGroup)
    }

    /// Marks a kind that can only be read: either it is a view of other resources, or the controller has no resources
    /// of it.
    const fn read_only(self) -> Self {
        Self {
            writable: false,
            ..self
        }
    }

    /// Marks a kind that is missing in its resource provider's list of types, as in Azure.
    const fn unlisted(self) -> Self {
        Self { listed: false, ..self }
    }
}

/// One row for each variant of [`Kind`], in the same order.
const KINDS: &[Row] = &[
    Row::of(Kind::ResourceGroup, RESOURCES, "resourceGroups", "resource group").unlisted(),
    Row::of(Kind::VirtualNetwork, NETWORK, "virtualNetworks", "virtual network"),
    Row::of(Kind::Subnet, NETWORK, "virtualNetworks/subnets", "subnet"),
    Row::of(
        Kind::Peering,
        NETWORK,
        "virtualNetworks/virtualNetworkPeerings",
        "peering",
    ),
    Row::of(Kind::RouteTable, NETWORK, "routeTables", "route table"),
    Row::of(Kind::Route, NETWORK, "routeTables/routes", "route"),
    Row::of(
        Kind::NetworkInterface,
        NETWORK,
        "networkInterfaces",
        "network interface",
    ),
    Row::of(
        Kind::NicIpConfiguration,
        NETWORK,
        "networkInterfaces/ipConfigurations",
        "ip configuration",
    )
    .read_only()
    .unlisted(),
    Row::of(Kind::PublicIpAddress, NETWORK, "publicIPAddresses", "public address"),
    Row::of(
        Kind::VirtualNetworkGateway,
        NETWORK,
        "virtualNetworkGateways",
        "gateway",
    ),
    Row::of(
        Kind::GatewayIpConfiguration,
        NETWORK,
        "virtualNetworkGateways/ipConfigurations",
        "ip configuration",
    )
    .read_only()
    .unlisted(),
    Row::of(Kind::Connection, NETWORK, "connections", "connection"),
    Row::of(
        Kind::LocalNetworkGateway,
        NETWORK,
        "localNetworkGateways",
        "local network gateway",
    ),
    Row::of(Kind::Circuit, NETWORK, "expressRouteCircuits", "circuit"),
    Row::of(
        Kind::CircuitPeering,
        NETWORK,
        "expressRouteCircuits/peerings",
        "circuit peering",
    ),
    Row::of(
        Kind::CircuitAuthorization,
        NETWORK,
        "expressRouteCircuits/authorizations",
        "circuit authorization",
    ),
    Row::of(
        Kind::ApplicationSecurityGroup,
        NETWORK,
        "applicationSecurityGroups",
        "application security group",
    )
    .command("asg"),
    Row::of(
        Kind::NetworkSecurityGroup,
        NETWORK,
        "networkSecurityGroups",
        "network security group",
    ),
    Row::of(
        Kind::SecurityRule,
        NETWORK,
        "networkSecurityGroups/securityRules",
        "security rule",
    ),
    Row::of(
        Kind::DefaultSecurityRule,
        NETWORK,
        "networkSecurityGroups/defaultSecurityRules",
        "default security rule",
    )
    .read_only(),
    Row::of(Kind::LoadBalancer, NETWORK, "loadBalancers", "load balancer"),
    Row::of(
        Kind::FrontEnd,
        NETWORK,
        "loadBalancers/frontendIPConfigurations",
        "front end",
    )
    .read_only()
    .unlisted(),
    Row::of(
        Kind::BackendPool,
        NETWORK,
        "loadBalancers/backendAddressPools",
        "back-end pool",
    ),
    Row::of(
        Kind::LoadBalancingRule,
        NETWORK,
        "loadBalancers/loadBalancingRules",
        "load-balancing rule",
    )
    .read_only()
    .unlisted(),
    Row::of(Kind::Probe, NETWORK, "loadBalancers/probes", "probe")
        .read_only()
        .unlisted(),
    Row::of(
        Kind::InboundNatRule,
        NETWORK,
        "loadBalancers/inboundNatRules",
        "inbound NAT rule",
    ),
    Row::of(
        Kind::OutboundRule,
        NETWORK,
        "loadBalancers/outboundRules",
        "outbound rule",
    )
    .read_only()
    .unlisted(),
    Row::of(Kind::FlowLog, NETWORK, "networkWatchers/flowLogs", "flow log"),
    Row::of(Kind::VirtualMachine, COMPUTE, "virtualMachines", "virtual machine").read_only(),
    Row::of(
        Kind::VirtualMachineExtension,
        COMPUTE,
        "virtualMachines/extensions",
        "extension",
    )
    .read_only(),
];

const TOP_COUNT: usize = {
    let (mut count, mut i) = (0, 0);
    while i < KINDS.len() {
        count += KINDS[i].is_writable_at_top() as usize;
        i += 1;
    }
    count
};

impl Kind {
    /// The kinds whose items lie directly in a resource group and can be written, in the order of the variants.
    pub const TOP: [Self; TOP_COUNT] = {
        let (mut all, mut count, mut i) = ([Self::ResourceGroup; TOP_COUNT], 0, 0);
        while i < KINDS.len() {
            if KINDS[i].is_writable_at_top() {
                all[count] = KINDS[i].kind;
                count += 1;
            }
            i += 1;
        }
        all
    };

    fn row(self) -> &'static Row {
        &KINDS[self as usize]
    }

    /// All kinds, resource groups included, in the order of the variants.
    pub fn all() -> impl Iterator<Item = Self> {
        KINDS.iter().map(|row| row.kind)
    }

    /// The kind of a provider's type path, e.g. `Microsoft.Network` and `virtualNetworks/subnets`. Case is ignored.
    /// `None`: the type is unknown, or it is the type of resource groups, whose resource ids have no provider.
    #[must_use]
    pub fn of(provider: &str, types: &str) -> Option<Self> {
        let inside = KINDS.iter().filter(|row| row.kind != Self::ResourceGroup);
        let mut same =
            inside.filter(|row| row.provider.eq_ignore_ascii_case(provider) && row.types.eq_ignore_ascii_case(types));
        same.next().map(|row| row.kind)
    }

    /// The name of the resource provider, e.g. `Microsoft.Network`; for resource groups `Microsoft.Resources`.
    #[must_use]
    pub fn provider(self) -> &'static str {
        self.row().provider
    }

    /// The type path without the provider, e.g. `virtualNetworks/subnets`.
    #[must_use]
    pub fn types(self) -> &'static str {
        self.row().types
    }

    /// The full type of ARM, e.g. `Microsoft.Network/virtualNetworks/subnets`.
    #[must_use]
    pub fn type_name(self) -> String {
        format!("{}/{}", self.provider(), self.types())
    }

    /// The last segment of the type path, which precedes the item's name in a resource id.
    #[must_use]
    pub fn collection(self) -> &'static str {
        let types = self.types();
        types.rsplit_once('/').map_or(types, |(_, last)| last)
    }

    /// The kind's name in messages to users, in lower case, e.g. `virtual network`.
    #[must_use]
    pub fn title(self) -> &'static str {
        self.row().title
    }

    /// Whether items of the kind lie directly in a resource group. False for children of other items, and for resource
    /// groups themselves.
    #[must_use]
    pub fn is_top_level(self) -> bool {
        self != Self::ResourceGroup && !self.types().contains('/')
    }

    /// Whether items of the kind can be written. Items of the other kinds are read-only: either they are views of other
    /// resources, or there are none and their list is always empty.
    #[must_use]
    pub fn is_writable(self) -> bool {
        self.row().writable
    }

    /// The name of the kind's command in the command line, if region and tags are the kind's only properties; `None`
    /// for other kinds, whose commands have code of their own.
    #[must_use]
    pub fn plain_command(self) -> Option<&'static str> {
        self.row().command
    }

    /// Whether the resource provider's list of types contains the kind.
    #[must_use]
    pub fn is_listed(self) -> bool {
        self.row().listed
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.title())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_line_and_is_found_by_its_type() {
        for (position, row) in KINDS.iter().enumerate() {
            assert_eq!(row.kind as usize, position, "{:?}", row.kind);
            let found = Kind::of(&row.provider.to_uppercase(), &row.types.to_uppercase());
            assert_eq!(found, Some(row.kind).filter(|k| *k != Kind::ResourceGroup));
            let top = row.kind.is_top_level() && row.kind.is_writable();
            assert_eq!(Kind::TOP.contains(&row.kind), top, "{:?}", row.kind);
        }
    }
}
