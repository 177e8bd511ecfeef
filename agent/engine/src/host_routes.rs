//! The NIC by which the kernel of a machine with several NICs sends a packet whose source is no address of a NIC (D37):
//! a packet that the machine forwards, or a packet of a socket that is not bound to an address.
//!
//! As in an Azure VM, the first NIC is the default, and another NIC is used for its own subnet and for the prefixes
//! that an administrator has routed to it. Agents compute their kernel's routes with these functions, and the
//! controller's `explain` predicts these routes with them.

use crate::tables::NicIndex;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::IpAddr;
use tombolo_proto::config::{AgentConfig, Role, Subnet};
use tombolo_proto::id::ResourceId;

/// The prefixes that a machine's kernel sends by other NICs than the first: the subnets of these NICs, unless an
/// earlier NIC is in the same subnet, and their [`host_routes`](tombolo_proto::config::Nic::host_routes). Empty for
/// other roles and for machines with one NIC.
#[must_use]
pub fn host_routes(config: &AgentConfig) -> BTreeMap<IpNet, NicIndex> {
    let Role::Vm { nics, .. } = &config.role else {
        return BTreeMap::new();
    };
    let routed = nics.iter().map(|nic| {
        let subnet = config.subnets.iter().find(|s| s.id == nic.subnet);
        RoutedNic {
            subnet: &nic.subnet,
            prefixes: subnet.map_or(&[], |s| &s.prefixes),
            host_routes: &nic.host_routes,
        }
    });
    routes_of(&routed.collect::<Vec<_>>())
}

/// The properties of a NIC that determine which routes of the kernel lead to it.
#[derive(Debug, Clone, Copy)]
pub struct RoutedNic<'a> {
    /// The NIC's subnet.
    pub subnet: &'a ResourceId,
    /// The prefixes of the subnet.
    pub prefixes: &'a [IpNet],
    /// The NIC's [`host_routes`](tombolo_proto::config::Nic::host_routes).
    pub host_routes: &'a [IpNet],
}

/// The same as [`host_routes`], for NICs in the order in which the machine has them.
#[must_use]
pub fn routes_of(nics: &[RoutedNic<'_>]) -> BTreeMap<IpNet, NicIndex> {
    let mut routes = BTreeMap::new();
    let numbered = || nics.iter().zip((0..).map(NicIndex)).skip(1);
    for (nic, index) in numbered() {
        if nics
            .iter()
            .take(index.get())
            .any(|earlier| earlier.subnet == nic.subnet)
        {
            continue;
        }
        routes.extend(nic.prefixes.iter().map(|prefix| (prefix.trunc(), index)));
    }
    for (nic, index) in numbered() {
        routes.extend(nic.host_routes.iter().map(|prefix| (prefix.trunc(), index)));
    }
    routes
}

/// The NIC by which the kernel sends packets to all addresses of `prefix`, if its routes are those of [`host_routes`].
/// The longest route that contains the prefix decides.
#[must_use]
pub fn egress_nic(routes: &BTreeMap<IpNet, NicIndex>, prefix: &IpNet) -> NicIndex {
    let around = routes.iter().filter(|(route, _)| route.contains(prefix));
    let longest = around.max_by_key(|(route, _)| route.prefix_len());
    longest.map_or(NicIndex::FIRST, |(_, nic)| *nic)
}

/// The NIC by which a machine's kernel sends a packet: the NIC that has the packet's source address, or else the NIC
/// for the destination.
#[must_use]
pub fn sending_nic(config: &AgentConfig, source: IpAddr, destination: IpAddr) -> NicIndex {
    let Role::Vm { nics, .. } = &config.role else {
        return NicIndex::FIRST;
    };
    let mut numbered = nics.iter().zip((0..).map(NicIndex));
    let own = numbered.find(|(nic, _)| nic.addresses.iter().any(|a| a.addr() == source));
    own.map_or_else(
        || egress_nic(&host_routes(config), &destination.into()),
        |(_, index)| index,
    )
}

/// The subnets whose routes the kernel uses for packets whose source is no address of a NIC: the subnet of the first
/// NIC, and served subnets. The subnets of further NICs are left out. For other roles than VMs, all subnets.
pub fn default_subnets(config: &AgentConfig) -> impl Iterator<Item = &Subnet> {
    let (nics, served) = match &config.role {
        Role::Vm { nics, served, .. } => (nics.as_slice(), served.as_slice()),
        Role::VpnGateway { .. } | Role::ExpressRouteGateway { .. } | Role::CircuitEdge { .. } => (&[][..], &[][..]),
    };
    let serves = |s: &Subnet| served.iter().any(|p| s.prefixes.iter().any(|of| of.contains(p)));
    let first = nics.first().map(|nic| &nic.subnet);
    let of_first = config.subnets.iter().filter(move |s| Some(&s.id) == first);
    let others = config
        .subnets
        .iter()
        .filter(move |s| Some(&s.id) != first && (serves(s) || !nics.iter().any(|nic| nic.subnet == s.id)));
    of_first.chain(others)
}
