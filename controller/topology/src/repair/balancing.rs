//! Changes of load balancers: a rule for the port of the packet, and back ends that an operator has taken out.

use super::change::{RepairChange, view};
use super::stopped::{Candidate, Stopped};
use crate::resource::LoadBalancer;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use tombolo_proto::fabric::Protocol;
use tombolo_proto::id::ResourceId;

pub(super) fn candidates(stopped: &Stopped<'_>) -> Vec<Candidate> {
    let balancers = stopped.topology.load_balancers.values();
    match stopped.stop.reason.as_str() {
        "no_balancing_rule" => balancers
            .flat_map(|balancer| with_rule(stopped, balancer))
            .map(Candidate::from)
            .collect(),
        "no_back_end" => balancers
            .flat_map(|balancer| back_in(stopped, balancer).chain(with_pool(stopped, balancer)))
            .map(Candidate::from)
            .collect(),
        _ => Vec::new(),
    }
}

/// Gives each pool of the balancer, in turn, to its rules without one, if it has the front end.
fn with_pool<'a>(stopped: &'a Stopped<'_>, balancer: &'a LoadBalancer) -> impl Iterator<Item = RepairChange> + 'a {
    let front_end = balancer.front_ends.iter().find(|f| f.address == stopped.destination);
    let rules = balancer
        .rules
        .iter()
        .filter(move |rule| front_end.is_some_and(|f| rule.front_end == f.id));
    let without = rules.filter(|rule| rule.pools.is_empty());
    without
        .flat_map(|rule| balancer.pools.iter().map(move |pool| (rule, pool)))
        .filter_map(|(rule, pool)| {
            let id = &balancer.envelope.id;
            let mut body = view(stopped.topology, id)?;
            let rules = body.pointer_mut("/properties/loadBalancingRules")?.as_array_mut()?;
            let found = rules.iter_mut().find(|shown| shown["name"] == rule.id.name())?;
            found["properties"]["backendAddressPool"] = json!({"id": pool.id});
            let text = format!(
                "give the pool {} to the rule {} of the load balancer {}",
                pool.id.name(),
                rule.id.name(),
                id.name()
            );
            Some(RepairChange::put(text, id, body))
        })
}

/// Ends the `adminState` Down of addresses in a pool of a balancer that has the front end.
fn back_in<'a>(stopped: &'a Stopped<'_>, balancer: &'a LoadBalancer) -> impl Iterator<Item = RepairChange> + 'a {
    let front_end = balancer.front_ends.iter().find(|f| f.address == stopped.destination);
    let rules = balancer
        .rules
        .iter()
        .filter(move |rule| front_end.is_some_and(|f| rule.front_end == f.id));
    let pools: BTreeSet<&ResourceId> = rules.flat_map(|rule| &rule.pools).collect();
    pools.into_iter().filter_map(|pool| {
        let mut body = view(stopped.topology, pool)?;
        let addresses = body
            .pointer_mut("/properties/loadBalancerBackendAddresses")?
            .as_array_mut()?;
        let mut out = Vec::new();
        for address in addresses {
            let state = address.pointer_mut("/properties/adminState")?;
            if *state == "Down" {
                *state = json!("None");
                out.push(address["name"].as_str().unwrap_or_default().to_owned());
            }
        }
        let text = format!(
            "end the adminState Down of {} in the pool {}",
            out.join(", "),
            pool.name()
        );
        (!out.is_empty()).then(|| RepairChange::put(text, pool, body))
    })
}

/// Adds a load-balancing rule for the packet's port to the balancer, if it has the front end. The rule has the pool and the
/// probe of another rule of this front end. If there is none, each pool is tried, with the first probe.
fn with_rule(stopped: &Stopped<'_>, balancer: &LoadBalancer) -> Vec<RepairChange> {
    let Some(front_end) = balancer.front_ends.iter().find(|f| f.address == stopped.destination) else {
        return Vec::new();
    };
    let like = balancer.rules.iter().find(|rule| rule.front_end == front_end.id);
    let (pools, probe) = match like {
        Some(rule) if !rule.pools.is_empty() => (rule.pools.iter().collect(), rule.probe.as_ref()),
        _ => {
            let pools: Vec<&ResourceId> = balancer.pools.iter().map(|pool| &pool.id).collect();
            (pools, balancer.probes.first().map(|probe| &probe.id))
        }
    };
    let rule = |pool: &&ResourceId| new_rule(stopped, balancer, &front_end.id, (*pool, probe));
    pools.iter().filter_map(rule).collect()
}

fn new_rule(
    stopped: &Stopped<'_>,
    balancer: &LoadBalancer,
    front_end: &ResourceId,
    (pool, probe): (&ResourceId, Option<&ResourceId>),
) -> Option<RepairChange> {
    let port = stopped.port?;
    let protocol = match stopped.explanation.protocol {
        Protocol::Tcp => "Tcp",
        Protocol::Udp => "Udp",
        Protocol::Icmp => return None,
    };
    let name = format!("{}-{port}", protocol.to_ascii_lowercase());
    let mut properties = json!({
        "frontendIPConfiguration": {"id": front_end}, "backendAddressPool": {"id": pool},
        "protocol": protocol, "frontendPort": port, "backendPort": port,
    });
    if let (Some(probe), Some(properties)) = (probe, properties.as_object_mut()) {
        properties.insert("probe".into(), json!({"id": probe}));
    }
    let id = &balancer.envelope.id;
    let mut body = view(stopped.topology, id)?;
    let rules: &mut Vec<Value> = body.pointer_mut("/properties/loadBalancingRules")?.as_array_mut()?;
    rules.push(json!({"name": name, "properties": properties}));
    let text = format!(
        "add the rule {name} to the load balancer {}, to the pool {}",
        id.name(),
        pool.name()
    );
    Some(RepairChange::put(text, id, body))
}
