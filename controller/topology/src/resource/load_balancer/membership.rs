//! The members of back-end pools and the targets of inbound NAT rules. Ip configurations of network interfaces refer to
//! them (L2).

use super::part::{find, first_ten};
use crate::arm::body::{MAX_ITEMS, Object};
use crate::back_ends::{BackEnds, configurations, ip_configuration_id, load_balancer_ids};
use crate::draft::Draft;
use crate::path::{is_child_of, parent_id};
use crate::resource::frame::{Child, view};
use crate::resource::{AdminState, LoadBalancer, NetworkInterface, NicIpConfiguration};
use crate::rules::place::Place;
use crate::topology::Topology;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use tombolo_proto::id::ResourceId;

/// A member of a back-end pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolMember {
    /// The address.
    pub address: IpAddr,
    /// The network interface that has the address. `None`: an address of a pool of addresses that no network interface
    /// in the VNet has.
    pub nic: Option<ResourceId>,
    /// The ip configuration that has the address.
    pub ip_configuration: Option<ResourceId>,
    /// Whether the operator overrides the member's health. For a network interface that refers to the pool always
    /// [`AdminState::None`].
    pub admin_state: AdminState,
}

/// The members of a back-end pool, ordered by address and without duplicates. Empty if the pool does not exist. Each
/// call visits all network interfaces.
#[must_use]
pub fn pool_members(topology: &Topology, pool: &ResourceId) -> Vec<PoolMember> {
    let balancer = topology.load_balancers.get(&parent_id(pool));
    let Some(pool) = balancer.and_then(|b| find(&b.pools, pool)) else {
        return Vec::new();
    };
    let own = pool.addresses.iter();
    let mut members: BTreeMap<IpAddr, PoolMember> = own
        .map(|a| {
            let member = PoolMember {
                address: a.address,
                nic: None,
                ip_configuration: None,
                admin_state: a.admin_state,
            };
            (a.address, member)
        })
        .collect();
    let is_of_addresses = !members.is_empty();
    for (nic, configuration) in configurations(topology) {
        let named = || {
            (
                Some(nic.envelope.id.clone()),
                Some(ip_configuration_id(nic, configuration)),
            )
        };
        if is_of_addresses {
            let here = pool.virtual_network.as_ref();
            let here = here.is_some_and(|vnet| is_child_of(&configuration.subnet, vnet));
            if let Some(member) = members.get_mut(&configuration.address).filter(|_| here) {
                (member.nic, member.ip_configuration) = named();
            }
        } else if configuration.load_balancer_pools.contains(&pool.id) {
            let (nic, ip_configuration) = named();
            members.entry(configuration.address).or_insert(PoolMember {
                address: configuration.address,
                nic,
                ip_configuration,
                admin_state: AdminState::None,
            });
        }
    }
    members.into_values().collect()
}

/// The network interfaces in the pools and behind the inbound NAT rules of a load balancer, as bodies of top-level items.
pub(super) const NETWORK_INTERFACES: Child = Child {
    name: "networkInterfaces",
    kind: None,
    writes: None,
    item: |_, _| None,
    list: |views, parent| {
        let balancer = views.topology.load_balancers.get(parent)?;
        let pools = balancer.pools.iter().flat_map(|p| {
            let own = p.addresses.iter();
            let at = own.filter_map(|a| views.back_ends().at(p.virtual_network.as_ref()?, a.address));
            views.back_ends().of_pool(&p.id).chain(at)
        });
        let rules = balancer.nat_rules.iter();
        let rules = rules.flat_map(|r| views.back_ends().of_nat_rule(&r.id));
        let nics: BTreeSet<ResourceId> = pools.chain(rules).map(parent_id).collect();
        let nics = nics.iter().filter_map(|id| views.topology.nics.get(id));
        Some(nics.map(|nic| view(&**nic, views)).collect())
    },
};

impl Draft<'_> {
    /// Reads `loadBalancerBackendAddressPools` and `loadBalancerInboundNatRules` of an ip configuration. A pool or rule
    /// that does not exist, or is in another region or subscription, is a problem. Returns their ids.
    pub(crate) fn resolve_load_balancing(
        &mut self,
        inner: &Object<'_>,
        place: &Place<'_>,
    ) -> (Vec<ResourceId>, Vec<ResourceId>) {
        let pools = self.resolve_balanced(
            inner,
            "loadBalancerBackendAddressPools",
            "DuplicateIpConfigurationReferenceOnBackendAddressPool",
            place,
            |balancer, id| find(&balancer.pools, id).map(|p| &p.id),
        );
        let rules = self.resolve_balanced(
            inner,
            "loadBalancerInboundNatRules",
            "XInboundNatRuleInUse",
            place,
            |balancer, id| find(&balancer.nat_rules, id).map(|r| &r.id),
        );
        (pools, rules)
    }

    /// Reads the references to children of load balancers in the list `name`. `duplicate`: the code for a child that is
    /// in the list twice. `own`: the stored id of a child.
    fn resolve_balanced(
        &mut self,
        inner: &Object<'_>,
        name: &str,
        duplicate: &'static str,
        place: &Place<'_>,
        own: impl for<'b> Fn(&'b LoadBalancer, &ResourceId) -> Option<&'b ResourceId>,
    ) -> Vec<ResourceId> {
        let items = inner.list(name, MAX_ITEMS, &mut self.problems).unwrap_or_default();
        let mut found: Vec<ResourceId> = Vec::new();
        for item in items {
            let Some(object) = item.object(&mut self.problems) else {
                continue;
            };
            let child = self.resolve_child_beside(&object, place, |topology, id| {
                let balancer = topology.load_balancers.get(&parent_id(id))?;
                Some((own(balancer, id)?.clone(), balancer.envelope.location.clone()))
            });
            let Some(child) = child else { continue };
            if found.contains(&child) {
                let message = format!(
                    "{}: the ip configuration refers to {child} twice. Remove one of the references.",
                    item.path
                );
                self.problems.add(duplicate, item.path, message);
            } else {
                found.push(child);
            }
        }
        found
    }

    /// Checks the pools and inbound NAT rules of a network interface, which is in the draft: a rule has one target, a pool
    /// of addresses has no interfaces, a pool is not too large, all members of a load balancer are in one VNet (L2), and no
    /// two rules use the same port of the network interface (L3).
    pub(crate) fn check_load_balancing_of(&mut self, nic: &NetworkInterface) {
        let ids = load_balancer_ids(nic);
        if ids.is_empty() {
            return;
        }
        self.check_shared_back_ends_of(nic);
        let back_ends = BackEnds::of(&self.topology);
        for id in ids {
            let Some(balancer) = self.topology.load_balancers.get(&id).cloned() else {
                continue;
            };
            self.check_one_vnet(&balancer, &nic.envelope.id);
            let of = |list: fn(&NicIpConfiguration) -> &Vec<ResourceId>| {
                let all = nic.ip_configurations.iter().flat_map(list);
                all.filter(|child| is_child_of(child, &id)).collect::<BTreeSet<_>>()
            };
            for rule in of(|c| &c.inbound_nat_rules) {
                let targets: Vec<&ResourceId> = back_ends.of_nat_rule(rule).collect();
                if let [first, second, ..] = targets.as_slice() {
                    let message = format!(
                        "Inbound NAT rule {rule} cannot have two targets: {first} and {second}. Remove the rule from one of them, \
                         and create another rule with a front-end port of its own."
                    );
                    self.problems.add("XInboundNatRuleInUse", &nic.envelope.id, message);
                }
            }
            for pool in of(|c| &c.load_balancer_pools) {
                self.check_member_count(pool, balancer.sku, back_ends.of_pool(pool).count());
                if find(&balancer.pools, pool).is_some_and(|p| !p.addresses.is_empty()) {
                    let message = format!(
                        "Network interface {} cannot be in back-end pool {pool}, because the pool has addresses. Add the address of \
                         the network interface to the pool, or use a pool without addresses (L2).",
                        nic.envelope.id
                    );
                    self.problems
                        .add("XPoolMixesInterfacesAndAddresses", &nic.envelope.id, message);
                }
            }
        }
    }

    /// The addresses of all pools in a VNet.
    pub(super) fn pool_addresses_in(&self, vnet: &ResourceId) -> Vec<IpAddr> {
        let pools = self.topology.load_balancers.values().flat_map(|b| &b.pools);
        let here = pools.filter(|p| p.virtual_network.as_ref() == Some(vnet));
        here.flat_map(|p| p.addresses.iter().map(|a| a.address)).collect()
    }

    /// Adds a problem if a pool names a VNet, so that the VNet cannot be deleted.
    pub(crate) fn check_no_pool_in(&mut self, vnet: &ResourceId) {
        let pools = self.topology.load_balancers.values().flat_map(|b| &b.pools);
        let users = pools
            .filter(|p| p.virtual_network.as_ref() == Some(vnet))
            .map(|p| &p.id);
        let users = first_ten(users);
        if !users.is_empty() {
            let message = format!(
                "Virtual network {vnet} cannot be deleted, because the following back-end pools have addresses in it: {users}. \
                 Remove these addresses first."
            );
            self.problems.add("XVirtualNetworkInUseByPool", vnet, message);
        }
    }
}
