//! The rules of a load balancer as a whole: limits, properties of the SKU, and members in one VNet (L2, L6, L9).

use super::part::first_ten;
use crate::back_ends::{BackEnds, vnet_of_nic};
use crate::draft::Draft;
use crate::path::is_child_of;
use crate::resource::{BalancedProtocol, LoadBalancer, LoadBalancerSku, ProbeProtocol};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use tombolo_proto::id::ResourceId;

impl Draft<'_> {
    /// Checks a new or changed load balancer, all children of which have been read. `old`: the load balancer before the
    /// change.
    pub(super) fn check_load_balancer(&mut self, old: Option<&LoadBalancer>, new: &LoadBalancer) {
        let back_ends = BackEnds::of(&self.topology);
        self.check_limits(new, &back_ends);
        self.check_front_end_ports(new);
        self.check_back_end_ports(new);
        self.check_shared_back_ends(new);
        self.check_sku(new);
        self.check_front_ends_and_pools(new);
        self.check_pools_of_addresses(new, &back_ends);
        self.check_one_vnet(new, &new.envelope.id);
        if let Some(old) = old {
            self.check_removed(old, new, &back_ends);
        }
    }

    fn check_limits(&mut self, new: &LoadBalancer, back_ends: &BackEnds) {
        let limits = new.sku.limits();
        let id = &new.envelope.id;
        let rules = new.rules.len() + new.nat_rules.len();
        for (what, count, limit) in [
            ("front ends", new.front_ends.len(), limits.front_ends),
            ("rules, inbound NAT rules included", rules, limits.rules),
        ] {
            if count > limit {
                let message = format!(
                    "Load balancer {id} has {count} {what}; at most {limit} are possible with the SKU {:?}.",
                    new.sku
                );
                self.problems.add("XTooManyItems", id, message);
            }
        }
        for pool in &new.pools {
            let count = pool.addresses.len() + back_ends.of_pool(&pool.id).count();
            self.check_member_count(&pool.id, new.sku, count);
        }
    }

    /// Checks the number of a pool's members.
    pub(super) fn check_member_count(&mut self, pool: &ResourceId, sku: LoadBalancerSku, count: usize) {
        let limit = sku.limits().members;
        if count > limit {
            let message = format!(
                "Back-end pool {pool} has {count} members; at most {limit} are possible with the SKU {sku:?} of its load balancer."
            );
            self.problems.add("XTooManyItems", pool, message);
        }
    }

    /// Checks the properties that only the SKU Standard has: HA ports (L9), pools of addresses (L2), HTTPS probes (L6) and
    /// `enableTcpReset` (L3).
    fn check_sku(&mut self, new: &LoadBalancer) {
        if new.sku == LoadBalancerSku::Standard {
            return;
        }
        for rule in new.rules.iter().filter(|r| r.protocol == BalancedProtocol::All) {
            let message = format!(
                "Load-balancing rule {} has protocol All (HA ports), which needs a load balancer with the SKU Standard; {} has the \
                 SKU Basic. Use the protocol Tcp or Udp with a port, or create the load balancer with sku.name Standard (L9).",
                rule.id, new.envelope.id
            );
            self.problems.add("XHaPortsNeedInternalStandard", &rule.id, message);
        }
        for probe in new.probes.iter().filter(|p| p.protocol == ProbeProtocol::Https) {
            let message = format!(
                "Probe {} has protocol Https, which needs a load balancer with the SKU Standard; {} has the SKU Basic. Use the \
                 protocol Tcp or Http, or create the load balancer with sku.name Standard (L6).",
                probe.id, new.envelope.id
            );
            self.problems.add("XHttpsProbeNeedsStandard", &probe.id, message);
        }
        for pool in new.pools.iter().filter(|p| !p.addresses.is_empty()) {
            let message = format!(
                "Back-end pool {} has addresses in loadBalancerBackendAddresses, which need a load balancer with the SKU Standard; \
                 {} has the SKU Basic. Refer to the pool from network interfaces, or create the load balancer with sku.name \
                 Standard (L2).",
                pool.id, new.envelope.id
            );
            self.problems.add("XPoolOfAddressesNeedsStandard", &pool.id, message);
        }
        let balanced = new.rules.iter().filter(|r| r.tcp_reset).map(|r| &r.id);
        let translated = new.nat_rules.iter().filter(|r| r.tcp_reset).map(|r| &r.id);
        for rule in balanced.chain(translated) {
            let message = format!(
                "Rule {rule} has enableTcpReset true, which needs a load balancer with the SKU Standard; {} has the SKU Basic. \
                 Leave enableTcpReset out, or create the load balancer with sku.name Standard (L3).",
                new.envelope.id
            );
            self.problems.add("XTcpResetNeedsStandard", rule, message);
        }
    }

    /// Checks that no front end is a member of a pool: neither a front end of this load balancer nor, in this one's
    /// pools, of another one.
    fn check_front_ends_and_pools(&mut self, new: &LoadBalancer) {
        let id = &new.envelope.id;
        let others = self.topology.load_balancers.values();
        let others: Vec<_> = others.filter(|b| b.envelope.id != *id).cloned().collect();
        let all = || others.iter().map(|b| &**b).chain([new]);
        let mut found = Vec::new();
        for pool in new.pools.iter().filter(|p| !p.addresses.is_empty()) {
            let Some(vnet) = &pool.virtual_network else { continue };
            let front_ends = all().flat_map(|b| &b.front_ends);
            let here = front_ends.filter(|f| is_child_of(&f.subnet, vnet));
            let here: BTreeMap<IpAddr, &ResourceId> = here.map(|f| (f.address, &f.id)).collect();
            for address in &pool.addresses {
                if let Some(front_end) = here.get(&address.address) {
                    let message = format!(
                        "Address {} of '{}' in back-end pool {} belongs to front end {front_end}. A front end cannot be a back end: \
                         remove it from the pool (L2).",
                        address.address, address.name, pool.id
                    );
                    found.push(("XPoolAddressIsFrontend", pool.id.clone(), message));
                }
            }
        }
        if let Some(vnet) = new.vnet() {
            let pools = others.iter().flat_map(|b| &b.pools);
            let pools = pools.filter(|p| p.virtual_network.as_ref() == Some(&vnet));
            let addresses = pools.flat_map(|p| p.addresses.iter().map(|a| (a.address, &p.id)));
            let addresses: BTreeMap<IpAddr, &ResourceId> = addresses.collect();
            for front_end in &new.front_ends {
                if let Some(pool) = addresses.get(&front_end.address) {
                    let message = format!(
                        "Address {} of front end {} is a member of back-end pool {pool}. A front end cannot be a back end: choose \
                         another address, or remove it from the pool (L2).",
                        front_end.address, front_end.id
                    );
                    found.push(("XPoolAddressIsFrontend", front_end.id.clone(), message));
                }
            }
        }
        for (code, target, message) in found {
            self.problems.add(code, &target, message);
        }
    }

    /// Checks that no pool has both addresses and network interfaces.
    fn check_pools_of_addresses(&mut self, new: &LoadBalancer, back_ends: &BackEnds) {
        for pool in new.pools.iter().filter(|p| !p.addresses.is_empty()) {
            let members = first_ten(back_ends.of_pool(&pool.id));
            if !members.is_empty() {
                let message = format!(
                    "Back-end pool {} cannot have addresses while the following ip configurations refer to it: {members}. Use a \
                     pool of its own for the addresses (L2).",
                    pool.id
                );
                self.problems.add("XPoolMixesInterfacesAndAddresses", &pool.id, message);
            }
        }
    }

    /// Checks that the front ends and all members of all pools are in one VNet (L2): the addresses of pools, and the
    /// network interfaces in pools and behind inbound NAT rules.
    pub(super) fn check_one_vnet(&mut self, balancer: &LoadBalancer, target: &ResourceId) {
        let mut vnets: BTreeMap<ResourceId, String> = BTreeMap::new();
        if let Some(vnet) = balancer.vnet() {
            vnets.insert(vnet, "its front ends".to_owned());
        }
        for pool in &balancer.pools {
            if let Some(vnet) = &pool.virtual_network {
                let user = || format!("back-end pool '{}'", pool.id.name());
                vnets.entry(vnet.clone()).or_insert_with(user);
            }
        }
        let children: BTreeSet<&ResourceId> = balancer.child_ids().collect();
        for nic in self.topology.nics.values() {
            let configurations = nic.ip_configurations.iter();
            let mut references = configurations.flat_map(|c| c.load_balancer_pools.iter().chain(&c.inbound_nat_rules));
            if let Some(reference) = references.find(|r| children.contains(r))
                && let Some(vnet) = vnet_of_nic(nic)
            {
                let user = || format!("network interface {} in '{}'", nic.envelope.id, reference.name());
                vnets.entry(vnet).or_insert_with(user);
            }
        }
        let mut all = vnets.iter();
        if let (Some((first, of_first)), Some((second, of_second))) = (all.next(), all.next()) {
            let message = format!(
                "Load balancer {} would span the virtual networks {first} ({of_first}) and {second} ({of_second}). Its front ends \
                 and all members of its back-end pools must be in one virtual network, even if the virtual networks are peered \
                 (L2). Use a load balancer in each virtual network.",
                balancer.envelope.id
            );
            self.problems.add("XPoolAcrossVnets", target, message);
        }
    }

    /// Checks that no removed pool or inbound NAT rule is in use by a network interface.
    fn check_removed(&mut self, old: &LoadBalancer, new: &LoadBalancer, back_ends: &BackEnds) {
        let left: BTreeSet<&ResourceId> = new.child_ids().collect();
        for pool in old.pools.iter().filter(|p| !left.contains(&p.id)) {
            let users = first_ten(back_ends.of_pool(&pool.id));
            if !users.is_empty() {
                let message = format!(
                    "Back-end pool {} cannot be removed, because the following ip configurations are in it: {users}. Remove it \
                     from these network interfaces first.",
                    pool.id
                );
                self.problems.add("XLoadBalancerPoolInUse", &pool.id, message);
            }
        }
        for rule in old.nat_rules.iter().filter(|r| !left.contains(&r.id)) {
            let users = first_ten(back_ends.of_nat_rule(&rule.id));
            if !users.is_empty() {
                let message = format!(
                    "Inbound NAT rule {} cannot be removed, because its target is ip configuration {users}. Remove the rule from \
                     this network interface first.",
                    rule.id
                );
                self.problems.add("XInboundNatRuleInUse", &rule.id, message);
            }
        }
    }
}
