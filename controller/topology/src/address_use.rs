//! The addresses of a virtual network that are free and in use (P2).

use crate::net::{first_free, is_reserved};
use crate::resource::{Subnet, VirtualNetwork};
use crate::rules::address::used_addresses;
use crate::topology::Topology;
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::IpAddr;
use tombolo_proto::id::ResourceId;

/// Whether an address of a VNet is free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Availability {
    /// The address is neither reserved nor in use.
    pub available: bool,
    /// The address is one of those that Azure reserves in each subnet (P2).
    pub reserved: bool,
    /// Up to five free addresses of the same subnet and family, in ascending order. Empty if the address is available.
    pub others: Vec<IpAddr>,
}

/// The number of addresses of a subnet that are in use, and that can be in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetUse<'v> {
    /// The id of the subnet.
    pub subnet: &'v ResourceId,
    /// The number of addresses that resources use.
    pub used: usize,
    /// The number of addresses without the reserved ones, at most 2^53 - 1.
    pub usable: u64,
}

/// The largest number of addresses in an answer: the largest integer that all JSON clients read exactly (RFC 8259,
/// section 6).
const MAX_COUNT: u64 = (1 << 53) - 1;

/// The number of free addresses that an answer suggests in place of one that is not free. Azure's number.
const SUGGESTIONS: usize = 5;

/// The addresses of a VNet that resources use.
fn used(topology: &Topology, vnet: &VirtualNetwork) -> BTreeSet<IpAddr> {
    // No resource has the empty id, so no resource is left out.
    used_addresses(topology, &vnet.envelope.id, &ResourceId::new(""))
}

/// Whether an address is free. `None`: no subnet of the VNet contains it.
#[must_use]
pub fn availability(topology: &Topology, vnet: &VirtualNetwork, address: IpAddr) -> Option<Availability> {
    let prefixes = |subnet: &Subnet| subnet.prefixes.iter().any(|p| p.contains(&address));
    let subnet = vnet.subnets.iter().find(|s| prefixes(s))?;
    let mut used = used(topology, vnet);
    let prefix = subnet.prefixes.iter().find(|p| p.contains(&address))?;
    let reserved = is_reserved(prefix, address);
    let available = !reserved && !used.contains(&address);
    let mut others = Vec::new();
    while !available && others.len() < SUGGESTIONS {
        let Some(free) = first_free(prefix, &used) else { break };
        used.insert(free);
        others.push(free);
    }
    Some(Availability {
        available,
        reserved,
        others,
    })
}

/// The use of the addresses of each subnet of a VNet.
#[must_use]
pub fn subnets<'v>(topology: &Topology, vnet: &'v VirtualNetwork) -> Vec<SubnetUse<'v>> {
    let used = used(topology, vnet);
    // The prefixes of a subnet are disjoint (P2).
    let within = |prefix: &IpNet| used.range(prefix.network()..=prefix.broadcast()).count();
    let one = |subnet: &'v Subnet| {
        let usable = subnet.prefixes.iter().map(|prefix| {
            let bits = u32::from(prefix.max_prefix_len() - prefix.prefix_len());
            // Five addresses of each prefix are reserved.
            1_u64.checked_shl(bits).unwrap_or(u64::MAX).saturating_sub(5)
        });
        SubnetUse {
            subnet: &subnet.id,
            used: subnet.prefixes.iter().map(within).sum(),
            usable: usable.fold(0, u64::saturating_add).min(MAX_COUNT),
        }
    };
    vnet.subnets.iter().map(one).collect()
}
