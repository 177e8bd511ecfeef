//! Members of an empty back-end pool. Which machines are to answer behind a front end, only the operator knows. So a network
//! interface is proposed only if the configuration shows that it is a server of this load balancer: another pool or an
//! inbound NAT rule of it leads there; or, if a route names the front end as its appliance, the interface forwards.

use super::super::change::{RepairChange, view};
use super::super::stopped::Stopped;
use super::front::Front;
use crate::path::parent_id;
use crate::resource::{NetworkInterface, NicIpConfiguration, pool_members};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::IpAddr;
use tombolo_proto::id::ResourceId;

/// Largest number of ip configurations that are proposed. Each is a state of the network that the search keeps.
const MAX_MEMBERS: usize = 16;

/// Adds an ip configuration to an empty pool of the front end's rules, for each one that could be a member.
pub(super) fn candidates(stopped: &Stopped<'_>, front: &Front<'_>) -> Vec<RepairChange> {
    let topology = stopped.topology;
    let pools: BTreeSet<&ResourceId> = front.rules().flat_map(|rule| &rule.pools).collect();
    let empty = pools
        .into_iter()
        .filter(|pool| pool_members(topology, pool).is_empty())
        .collect::<Vec<_>>();
    if empty.is_empty() {
        return Vec::new();
    }
    let vnet = parent_id(&front.front_end.subnet);
    let of_pools = front.balancer.pools.iter();
    let of_pools = of_pools.flat_map(|pool| pool_members(topology, &pool.id));
    let known: BTreeSet<(ResourceId, IpAddr)> = of_pools
        .filter_map(|member| Some((member.nic?, member.address)))
        .collect();
    let mut all = Vec::new();
    for nic in topology.nics.values() {
        for configuration in &nic.ip_configurations {
            let is_usable = parent_id(&configuration.subnet) == vnet
                && configuration.address.is_ipv4() == front.front_end.address.is_ipv4()
                && configuration.address != stopped.source;
            if is_usable && all.len() < MAX_MEMBERS && is_server(&known, front, nic, configuration) {
                all.extend(
                    empty
                        .iter()
                        .filter_map(|pool| member(stopped, pool, nic, configuration)),
                );
            }
        }
    }
    all
}

/// Whether an ip configuration is of a server of the load balancer. `known`: the members of its pools.
fn is_server(
    known: &BTreeSet<(ResourceId, IpAddr)>,
    front: &Front<'_>,
    nic: &NetworkInterface,
    own: &NicIpConfiguration,
) -> bool {
    if front.is_appliance {
        return nic.enable_ip_forwarding;
    }
    let of_balancer = |child: &ResourceId| parent_id(child) == front.balancer.envelope.id;
    let mut named = own.load_balancer_pools.iter().chain(&own.inbound_nat_rules);
    named.any(of_balancer) || known.contains(&(nic.envelope.id.clone(), own.address))
}

/// The PUT of a network interface with one of its ip configurations in a pool.
fn member(
    stopped: &Stopped<'_>,
    pool: &ResourceId,
    nic: &NetworkInterface,
    own: &NicIpConfiguration,
) -> Option<RepairChange> {
    let id = &nic.envelope.id;
    let mut body = view(stopped.topology, id)?;
    let shown = body.pointer_mut("/properties/ipConfigurations")?.as_array_mut()?;
    let shown = shown.iter_mut().find(|shown| shown["name"] == own.name.as_str())?;
    let properties = shown.get_mut("properties")?.as_object_mut()?;
    let pools = properties.entry("loadBalancerBackendAddressPools").or_insert(json!([]));
    match pools {
        Value::Array(pools) => pools.push(json!({"id": pool})),
        other => *other = json!([{"id": pool}]),
    }
    let text = format!(
        "add the network interface {} ({}) to the empty pool {} of the load balancer {}",
        id.name(),
        own.address,
        pool.name(),
        parent_id(pool).name()
    );
    Some(RepairChange::put(text, id, body))
}
