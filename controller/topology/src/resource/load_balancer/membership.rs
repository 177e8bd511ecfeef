//! The members of back-end pools and the targets of inbound NAT rules. Ip configurations of network interfaces refer to
//! them (L2).

use super::{AdminState, LoadBalancer, find};
use crate::arm::body::{MAX_ITEMS, Object};
use crate::draft::Draft;
use crate::path::{child_id, is_child_of, parent_id};
use crate::resource::frame::{Child, view};
use crate::resource::{NetworkInterface, NicIpConfiguration};
use crate::rules::place::Place;
use crate::topology::Topology;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
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
        let named = || (Some(nic.envelope.id.clone()), Some(id_of(nic, configuration)));
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

/// All ip configurations of network interfaces.
fn configurations(topology: &Topology) -> impl Iterator<Item = (&NetworkInterface, &NicIpConfiguration)> {
    let nics = topology.nics.values();
    nics.flat_map(|nic| nic.ip_configurations.iter().map(move |c| (&**nic, c)))
}

fn id_of(nic: &NetworkInterface, configuration: &NicIpConfiguration) -> ResourceId {
    child_id(&nic.envelope.id, "ipConfigurations", &configuration.name)
}

/// The VNet of a network interface. `None`: it has no ip configuration.
pub(super) fn vnet_of(nic: &NetworkInterface) -> Option<ResourceId> {
    nic.ip_configurations.first().map(|c| parent_id(&c.subnet))
}

/// The ids of the load balancers to which a network interface refers.
fn balancer_ids(nic: &NetworkInterface) -> BTreeSet<ResourceId> {
    let configurations = nic.ip_configurations.iter();
    let children = configurations.flat_map(|c| c.load_balancer_pools.iter().chain(&c.inbound_nat_rules));
    children.map(parent_id).collect()
}

/// The load balancers to whose pools and inbound NAT rules a network interface refers, ordered by id.
pub(crate) fn load_balancers_of<'t>(topology: &'t Topology, nic: &NetworkInterface) -> Vec<&'t Arc<LoadBalancer>> {
    let ids = balancer_ids(nic).into_iter();
    ids.filter_map(|id| topology.load_balancers.get(&id)).collect()
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

/// The ip configurations of network interfaces, by the pools and inbound NAT rules to which they refer, and by address.
#[derive(Default)]
pub(crate) struct BackEnds {
    pools: BTreeMap<ResourceId, Vec<ResourceId>>,
    nat_rules: BTreeMap<ResourceId, Vec<ResourceId>>,
    /// By VNet and address. Collected only for VNets that a pool names.
    addresses: BTreeMap<ResourceId, BTreeMap<IpAddr, ResourceId>>,
}

impl BackEnds {
    /// Collects the references of all network interfaces.
    pub(crate) fn of(topology: &Topology) -> Self {
        let mut all = Self::default();
        let pools = topology.load_balancers.values().flat_map(|b| &b.pools);
        for vnet in pools.filter_map(|p| p.virtual_network.clone()) {
            all.addresses.entry(vnet).or_default();
        }
        for (nic, configuration) in configurations(topology) {
            for pool in &configuration.load_balancer_pools {
                let members = all.pools.entry(pool.clone()).or_default();
                members.push(id_of(nic, configuration));
            }
            for rule in &configuration.inbound_nat_rules {
                let targets = all.nat_rules.entry(rule.clone()).or_default();
                targets.push(id_of(nic, configuration));
            }
            if !all.addresses.is_empty()
                && let Some(here) = all.addresses.get_mut(&parent_id(&configuration.subnet))
            {
                here.insert(configuration.address, id_of(nic, configuration));
            }
        }
        all
    }

    /// The ip configurations that refer to a pool, ordered by network interface.
    pub(crate) fn of_pool(&self, pool: &ResourceId) -> impl Iterator<Item = &ResourceId> + use<'_> {
        self.pools.get(pool).into_iter().flatten()
    }

    /// The ip configurations that refer to an inbound NAT rule: at most one.
    pub(crate) fn of_nat_rule(&self, rule: &ResourceId) -> impl Iterator<Item = &ResourceId> + use<'_> {
        self.nat_rules.get(rule).into_iter().flatten()
    }

    /// The ip configuration with an address in a VNet that a pool names.
    pub(crate) fn at(&self, vnet: &ResourceId, address: IpAddr) -> Option<&ResourceId> {
        self.addresses.get(vnet)?.get(&address)
    }
}

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
    /// of addresses has no interfaces, a pool is not too large, and all members of a load balancer are in one VNet (L2).
    pub(crate) fn check_load_balancing_of(&mut self, nic: &NetworkInterface) {
        let ids = balancer_ids(nic);
        if ids.is_empty() {
            return;
        }
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
        let users = super::check::first_ten(users);
        if !users.is_empty() {
            let message = format!(
                "Virtual network {vnet} cannot be deleted, because the following back-end pools have addresses in it: {users}. \
                 Remove these addresses first."
            );
            self.problems.add("XVirtualNetworkInUseByPool", vnet, message);
        }
    }
}
