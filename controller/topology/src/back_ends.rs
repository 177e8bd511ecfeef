//! The references of network interfaces to load balancers: which ip configurations are in a back-end pool, and which one
//! is the target of an inbound NAT rule.

use crate::path::{child_id, parent_id};
use crate::resource::{LoadBalancer, NetworkInterface, NicIpConfiguration};
use crate::topology::Topology;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_proto::id::ResourceId;

/// All ip configurations of network interfaces.
pub(crate) fn configurations(topology: &Topology) -> impl Iterator<Item = (&NetworkInterface, &NicIpConfiguration)> {
    let nics = topology.nics.values();
    nics.flat_map(|nic| nic.ip_configurations.iter().map(move |c| (&**nic, c)))
}

/// The id of an ip configuration of a network interface.
pub(crate) fn ip_configuration_id(nic: &NetworkInterface, configuration: &NicIpConfiguration) -> ResourceId {
    child_id(&nic.envelope.id, "ipConfigurations", &configuration.name)
}

/// The VNet of a network interface. `None`: it has no ip configuration.
pub(crate) fn vnet_of_nic(nic: &NetworkInterface) -> Option<ResourceId> {
    nic.ip_configurations.first().map(|c| parent_id(&c.subnet))
}

/// The ids of the load balancers to which a network interface refers.
pub(crate) fn load_balancer_ids(nic: &NetworkInterface) -> BTreeSet<ResourceId> {
    let configurations = nic.ip_configurations.iter();
    let children = configurations.flat_map(|c| c.load_balancer_pools.iter().chain(&c.inbound_nat_rules));
    children.map(parent_id).collect()
}

/// The load balancers to whose pools and inbound NAT rules a network interface refers, ordered by id.
pub(crate) fn load_balancers_of<'t>(topology: &'t Topology, nic: &NetworkInterface) -> Vec<&'t Arc<LoadBalancer>> {
    let ids = load_balancer_ids(nic).into_iter();
    ids.filter_map(|id| topology.load_balancers.get(&id)).collect()
}

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
                members.push(ip_configuration_id(nic, configuration));
            }
            for rule in &configuration.inbound_nat_rules {
                let targets = all.nat_rules.entry(rule.clone()).or_default();
                targets.push(ip_configuration_id(nic, configuration));
            }
            if !all.addresses.is_empty()
                && let Some(here) = all.addresses.get_mut(&parent_id(&configuration.subnet))
            {
                here.insert(configuration.address, ip_configuration_id(nic, configuration));
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
