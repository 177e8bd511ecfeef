//! Changes of load balancers: a rule for the packet, the pool of a rule, back ends that an operator has taken out, and members
//! of an empty pool.
//!
//! * `new_rule`: a rule for the packet.
//! * `members`: members of an empty pool.

mod members;
mod new_rule;

use super::change::{RepairChange, view};
use super::stopped::{Candidate, Stopped};
use crate::resource::{BalancingRule, FrontEnd, LoadBalancer};
use serde_json::json;
use std::collections::BTreeSet;
use std::net::IpAddr;
use tombolo_proto::id::ResourceId;

pub(super) fn candidates(stopped: &Stopped<'_>) -> Vec<Candidate> {
    let fronts = fronts(stopped);
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

/// A front end at which a packet stops.
struct Front<'t> {
    balancer: &'t LoadBalancer,
    front_end: &'t FrontEnd,
    /// Whether a route of the packet names the front end as its virtual appliance (R11). Otherwise it is the destination.
    is_appliance: bool,
}

impl<'t> Front<'t> {
    /// The load-balancing rules of the front end.
    fn rules(&self) -> impl Iterator<Item = &'t BalancingRule> + use<'t> {
        let front_end = &self.front_end.id;
        self.balancer
            .rules
            .iter()
            .filter(move |rule| rule.front_end == *front_end)
    }
}

/// The front ends at which the packet may stop: its destination, and the appliances of the routes on its path.
fn fronts<'a>(stopped: &Stopped<'a>) -> Vec<Front<'a>> {
    let routes = stopped.walk.hops.iter().rev().filter_map(|hop| hop.route.as_ref());
    let appliances: BTreeSet<IpAddr> = routes.flat_map(|route| &route.next_hop_ip_address).copied().collect();
    let mut found = Vec::new();
    for balancer in stopped.topology.load_balancers.values() {
        for front_end in &balancer.front_ends {
            let is_appliance = appliances.contains(&front_end.address);
            if front_end.address == stopped.destination || is_appliance {
                found.push(Front {
                    balancer,
                    front_end,
                    is_appliance: front_end.address != stopped.destination,
                });
            }
        }
    }
    found
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
