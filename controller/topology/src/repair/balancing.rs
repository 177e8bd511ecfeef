//! Changes of load balancers: a rule for the packet, the pool of a rule, back ends that an operator has taken out, and members
//! of an empty pool.
//!
//! * `front`: a front end at which a packet stops.
//! * `new_rule`: a rule for the packet.
//! * `members`: members of an empty pool.

mod front;
mod members;
mod new_rule;

use super::change::{RepairChange, view};
use super::stopped::{Candidate, Stopped};
use crate::resource::BalancingRule;
use front::Front;
use serde_json::json;
use std::collections::BTreeSet;
use tombolo_proto::id::ResourceId;

pub(super) fn candidates(stopped: &Stopped<'_>) -> Vec<Candidate> {
    let fronts = front::all(stopped);
    let fronts = fronts.iter();
    match stopped.stop.reason.as_str() {
        "no_balancing_rule" => fronts.flat_map(|front| new_rule::candidates(stopped, front)).collect(),
        "no_back_end" => fronts
            .flat_map(|front| {
                let mut all = back_in(stopped, front);
                all.extend(with_pool(stopped, front));
                all.extend(members::candidates(stopped, front));
                all
            })
            .map(Candidate::from)
            .collect(),
        _ => Vec::new(),
    }
}

/// Gives each pool of the balancer, in turn, to the rules of the front end that have none.
fn with_pool(stopped: &Stopped<'_>, front: &Front<'_>) -> Vec<RepairChange> {
    let without = front.rules().filter(|rule| rule.pools.is_empty());
    let pairs = without.flat_map(|rule| front.balancer.pools.iter().map(move |pool| (rule, pool)));
    let give = |(rule, pool): (&BalancingRule, &crate::resource::BackendPool)| {
        let id = &front.balancer.envelope.id;
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
    };
    pairs.filter_map(give).collect()
}

/// Ends the `adminState` Down of addresses in the pools of the front end's rules.
fn back_in(stopped: &Stopped<'_>, front: &Front<'_>) -> Vec<RepairChange> {
    let pools: BTreeSet<&ResourceId> = front.rules().flat_map(|rule| &rule.pools).collect();
    let all = pools.into_iter().filter_map(|pool| {
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
    });
    all.collect()
}
