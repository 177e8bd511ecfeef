//! Explains why a load balancer has no back end for a packet (L8).

use super::finding::{Facts, Finding};
use crate::path::{ArmPath, Kind, parent_id};
use crate::topology::Topology;
use std::net::IpAddr;
use tombolo_engine::decide::Trace;
use tombolo_proto::config::{AgentConfig, BalancingRule};
use tombolo_proto::id::ResourceId;

/// The finding for a packet to a front end whose rule has no back end for it: there is no pool, the pool is empty, or none of
/// its back ends answers the probe. Names why, where the agents of the back ends report it.
pub(super) fn finding(facts: Facts<'_>, config: &AgentConfig, trace: &Trace) -> Finding {
    /// Number of back ends that are named.
    const NAMED: usize = 5;
    let mut rules = config.front_ends.iter().flat_map(|front_end| &front_end.rules);
    let rule = rules.find(|rule| trace.balancing_rule.as_ref() == Some(&rule.id));
    let is_out = |rule: &BalancingRule, address: &IpAddr| rule.decided.get(address) == Some(&false);
    if let Some(rule) = rule.filter(|r| !r.back_ends.is_empty() && r.back_ends.iter().all(|a| is_out(r, a))) {
        return Finding::new(
            "L8",
            format!("the adminState of all back ends of {} is Down", rule.id.name()),
            "set the adminState of a back end to None or Up",
        );
    }
    let Some((rule, probe)) = rule
        .filter(|r| !r.back_ends.is_empty())
        .and_then(|r| Some((r, r.probe.as_ref()?)))
    else {
        return match &trace.balancing_rule {
            Some(rule) => without_members(facts.topology, rule),
            None => Finding::new(
                "L8",
                "the load balancer has no back end that could take the packet",
                "add network interfaces to its back-end pools",
            ),
        };
    };
    let probed = config.probed_back_ends();
    let reason = |address: IpAddr| {
        let mut owned = probed.iter().filter(|b| b.address == address && b.probe.id == probe.id);
        let failures = facts.reports.failures.get(owned.next()?.owner)?;
        failures.get(&(probe.id.clone(), address))
    };
    let named = rule.back_ends.iter().take(NAMED).map(|address| match reason(*address) {
        _ if is_out(rule, address) => format!("{address} (adminState Down)"),
        Some(failure) => format!("{address} ({failure})"),
        None => address.to_string(),
    });
    let named: Vec<String> = named.collect();
    let more = match rule.back_ends.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let (name, port) = (probe.id.name(), probe.port);
    Finding::new(
        "L8",
        format!(
            "{} of the load balancer has no back end that is up: {}{more} do not pass the probe {name} of port {port}",
            rule.id.name(),
            named.join(", ")
        ),
        format!(
            "let a program answer at port {port} of a back end, and let its security groups admit the tag AzureLoadBalancer (L6)"
        ),
    )
}

/// The finding for a load-balancing rule or an inbound NAT rule to which no back end belongs.
fn without_members(topology: &Topology, id: &ResourceId) -> Finding {
    let owner = parent_id(id);
    let (name, balancer) = (id.name(), owner.name());
    if ArmPath::parse(id.as_str()).ok().and_then(|path| path.kind()) == Some(Kind::InboundNatRule) {
        return Finding::new(
            "L8",
            format!(
                "no network interface is the target of the inbound NAT rule {name} of the load balancer {balancer}"
            ),
            format!("name {name} in loadBalancerInboundNatRules of an ip configuration of the target"),
        )
        .at(id);
    }
    let resource = topology.load_balancers.get(&owner);
    let rule = resource.and_then(|balancer| balancer.rules.iter().find(|rule| rule.id == *id));
    match rule.and_then(|rule| rule.pools.first()) {
        None => Finding::new(
            "L8",
            format!("the rule {name} of the load balancer {balancer} has no back-end pool"),
            "give it a pool: its property backendAddressPool",
        )
        .at(id),
        Some(pool) => Finding::new(
            "L8",
            format!(
                "the back-end pool {} of the load balancer {balancer}, to which the rule {name} leads, has no member for \
                 the packet",
                pool.name()
            ),
            format!(
                "add the network interfaces of the servers to the pool {} (loadBalancerBackendAddressPools of their ip \
                 configurations), or their addresses",
                pool.name()
            ),
        )
        .at(pool),
    }
}
