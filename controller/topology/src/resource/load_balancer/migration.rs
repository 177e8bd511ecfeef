//! The migration of back-end pools: the network interfaces in a pool become addresses of the pool (L2).

use super::membership::pool_members;
use super::part::{MAX_CHILDREN, first_ten};
use super::pool::{AdminState, PoolAddress};
use crate::arm::body::Object;
use crate::back_ends::{BackEnds, vnet_of_nic};
use crate::draft::Draft;
use crate::path::{ArmPath, Kind, child_id, shown};
use crate::resource::{LoadBalancer, LoadBalancerSku};
use crate::topology::Topology;
use serde_json::Value;
use std::collections::BTreeSet;
use tombolo_proto::arm::check_name;
use tombolo_proto::id::ResourceId;

impl Draft<'_> {
    /// POST `migrateToIpBased` of a load balancer. The pools that `pools` of the body names, or all pools, get the
    /// addresses of their network interfaces, which leave the pools. Pools that have addresses already, or no members,
    /// stay as they are. Always false: nothing is created.
    pub(crate) fn migrate_pools(&mut self, path: &ArmPath, body: &Value) -> bool {
        let Some(balancer) = self.topology.load_balancers.get(&path.id()).cloned() else {
            self.not_found(path);
            return false;
        };
        let chosen = self.chosen_pools(body, &balancer);
        if balancer.sku == LoadBalancerSku::Basic {
            let id = &balancer.envelope.id;
            let message = format!(
                "The back-end pools of {id} cannot have addresses, because the SKU of the load balancer is Basic. Create a \
                 load balancer with sku.name Standard (L2)."
            );
            self.problems.add("XPoolOfAddressesNeedsStandard", id, message);
            return false;
        }
        let back_ends = BackEnds::of(&self.topology);
        let mut new = (*balancer).clone();
        let mut migrated = BTreeSet::new();
        for pool in &mut new.pools {
            if !chosen.contains(&pool.id) || back_ends.of_pool(&pool.id).next().is_none() {
                continue;
            }
            (pool.addresses, pool.virtual_network) = addresses_of_members(&self.topology, &pool.id);
            pool.names_virtual_network = false;
            migrated.insert(pool.id.clone());
        }
        // A pool has either network interfaces or addresses, so the network interfaces leave first.
        self.leave_pools(&migrated);
        self.check_load_balancer(Some(&balancer), &new);
        self.commit(new);
        false
    }

    /// The ids of the pools that the body names; without `pools`, of all pools. A name without a pool is a problem.
    fn chosen_pools(&mut self, body: &Value, balancer: &LoadBalancer) -> BTreeSet<ResourceId> {
        let root = Object::root(body, &mut self.problems);
        if root.get("pools").is_none() {
            return balancer.pools.iter().map(|pool| pool.id.clone()).collect();
        }
        let items = root.list("pools", MAX_CHILDREN, &mut self.problems).unwrap_or_default();
        let mut chosen = BTreeSet::new();
        for item in items {
            let Some(name) = item.text(&mut self.problems) else {
                continue;
            };
            let id = child_id(&balancer.envelope.id, Kind::BackendPool.collection(), name);
            match balancer.pools.iter().find(|pool| pool.id == id) {
                Some(pool) => {
                    chosen.insert(pool.id.clone());
                }
                None => {
                    let at = item.path;
                    let pools = first_ten(balancer.pools.iter().map(|pool| &pool.id));
                    let message = format!(
                        "{at}: load balancer {} has no back-end pool '{}'. Its back-end pools are: {pools}.",
                        balancer.envelope.id,
                        shown(name)
                    );
                    self.problems.add("InvalidResourceReference", at, message);
                }
            }
        }
        chosen
    }

    /// Removes the references of all network interfaces to these pools.
    fn leave_pools(&mut self, pools: &BTreeSet<ResourceId>) {
        let nics = self.topology.nics.values().filter(|nic| {
            let mut named = nic.ip_configurations.iter().flat_map(|c| &c.load_balancer_pools);
            named.any(|pool| pools.contains(pool))
        });
        let nics: Vec<_> = nics.cloned().collect();
        for nic in nics {
            let mut nic = (*nic).clone();
            for configuration in &mut nic.ip_configurations {
                configuration.load_balancer_pools.retain(|pool| !pools.contains(pool));
            }
            self.commit(nic);
        }
    }
}

/// The addresses of the network interfaces in a pool, and their VNet. An address is named after its network interface and
/// ip configuration if this is a free and valid name.
fn addresses_of_members(topology: &Topology, pool: &ResourceId) -> (Vec<PoolAddress>, Option<ResourceId>) {
    let mut names = BTreeSet::new();
    let mut vnet = None;
    let members = pool_members(topology, pool).into_iter();
    let addresses = members.map(|member| {
        if let Some(nic) = member.nic.as_ref().and_then(|id| topology.nics.get(id)) {
            vnet = vnet_of_nic(nic);
        }
        let nic = member.nic.as_ref().map_or("", ResourceId::name);
        let configuration = member.ip_configuration.as_ref().map_or("", ResourceId::name);
        let first = format!("{nic}_{configuration}");
        let numbered = (1_usize..).map(|n| format!("address-{n}"));
        let mut candidates = std::iter::once(first).chain(numbered);
        let free = candidates.find(|name| check_name(name).is_ok() && names.insert(name.to_ascii_lowercase()));
        PoolAddress {
            name: free.unwrap_or_default(),
            address: member.address,
            admin_state: AdminState::None,
        }
    });
    (addresses.collect(), vnet)
}
