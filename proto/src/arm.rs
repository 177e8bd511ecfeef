//! The kinds of ARM items and their paths: what controller, client and command line have in common.
//!
//! A kind is a variant of [`Kind`] and a line of its table.

mod name;
mod path;

pub use name::{check_group_name, check_name};
pub use path::{ArmPath, child_id, is_child_of, parent_id, shown};

use serde::Serialize;
use std::fmt;

/// The kinds of items. Their JSON form is the name that plans of manifests use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// A resource group.
    ResourceGroup,
    /// `virtualNetworks`.
    VirtualNetwork,
    /// `virtualNetworks/subnets`.
    Subnet,
    /// `virtualNetworks/virtualNetworkPeerings`.
    Peering,
    /// `routeTables`.
    RouteTable,
    /// `routeTables/routes`.
    Route,
    /// `networkInterfaces`.
    NetworkInterface,
    /// `networkInterfaces/ipConfigurations`, read-only.
    NicIpConfiguration,
    /// `publicIPAddresses`.
    PublicIpAddress,
    /// `virtualNetworkGateways`.
    VirtualNetworkGateway,
    /// `virtualNetworkGateways/ipConfigurations`, read-only.
    GatewayIpConfiguration,
    /// `connections`.
    Connection,
    /// `localNetworkGateways`.
    LocalNetworkGateway,
    /// `expressRouteCircuits`.
    Circuit,
    /// `expressRouteCircuits/peerings`.
    CircuitPeering,
    /// `expressRouteCircuits/authorizations`: always empty.
    CircuitAuthorization,
    /// `applicationSecurityGroups`.
    ApplicationSecurityGroup,
    /// `networkSecurityGroups`.
    NetworkSecurityGroup,
    /// `networkSecurityGroups/securityRules`.
    SecurityRule,
    /// `networkSecurityGroups/defaultSecurityRules`, read-only.
    DefaultSecurityRule,
    /// `Microsoft.Compute/virtualMachines`, read-only.
    VirtualMachine,
    /// `virtualMachines/extensions`: always empty.
    VirtualMachineExtension,
}

const NETWORK: &str = "Microsoft.Network";
const COMPUTE: &str = "Microsoft.Compute";
const RESOURCES: &str = "Microsoft.Resources";
/// Those with resources inside of groups.
const PROVIDERS: [&str; 2] = [NETWORK, COMPUTE];

/// What is fixed of a kind.
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

    /// Region and tags are all that can be said of it: the command line has this command for it, from this table alone.
    const fn command(self, name: &'static str) -> Self {
        Self {
            command: Some(name),
            ..self
        }
    }

    /// Lies directly in a group, and can be written.
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

    /// A view of other resources: it can be read only.
    const fn read_only(self) -> Self {
        Self {
            writable: false,
            ..self
        }
    }

    /// Not among the types that a provider lists: Azure has no path of its own for it, or another provider lists it.
    const fn unlisted(self) -> Self {
        Self { listed: false, ..self }
    }
}

/// One line for each variant of [`Kind`], in the same order.
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
    )
    .read_only(),
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
    /// Everything that lies directly in a group and can be written.
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

    /// All kinds.
    pub fn all() -> impl Iterator<Item = Self> {
        KINDS.iter().map(|row| row.kind)
    }

    /// The kind of a provider's type path, e.g. `Microsoft.Network` and `virtualNetworks/subnets`, without regard to case.
    #[must_use]
    pub fn of(provider: &str, types: &str) -> Option<Self> {
        let inside = KINDS.iter().filter(|row| row.kind != Self::ResourceGroup);
        let mut same =
            inside.filter(|row| row.provider.eq_ignore_ascii_case(provider) && row.types.eq_ignore_ascii_case(types));
        same.next().map(|row| row.kind)
    }

    /// The provider, e.g. `Microsoft.Network`.
    #[must_use]
    pub fn provider(self) -> &'static str {
        self.row().provider
    }

    /// The types from the top down, e.g. `virtualNetworks/subnets`.
    #[must_use]
    pub fn types(self) -> &'static str {
        self.row().types
    }

    /// ARM's type string, e.g. `Microsoft.Network/virtualNetworks/subnets`.
    #[must_use]
    pub fn type_name(self) -> String {
        format!("{}/{}", self.provider(), self.types())
    }

    /// The last type: the segment of a path that stands before the item's name.
    #[must_use]
    pub fn collection(self) -> &'static str {
        let types = self.types();
        types.rsplit_once('/').map_or(types, |(_, last)| last)
    }

    /// For people, in lower case, e.g. `virtual network`.
    #[must_use]
    pub fn title(self) -> &'static str {
        self.row().title
    }

    /// Whether it lies directly in a resource group.
    #[must_use]
    pub fn is_top_level(self) -> bool {
        self != Self::ResourceGroup && !self.types().contains('/')
    }

    /// Whether it can be written; if not, it is a view of other resources.
    #[must_use]
    pub fn is_writable(self) -> bool {
        self.row().writable
    }

    /// The command of the command line, for a kind of which nothing but region and tags can be said.
    #[must_use]
    pub fn plain_command(self) -> Option<&'static str> {
        self.row().command
    }

    /// Whether its provider lists it among its types.
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
