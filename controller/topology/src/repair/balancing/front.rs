//! A front end at which a packet stops.

use super::super::stopped::Stopped;
use crate::resource::{BalancingRule, FrontEnd, LoadBalancer};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// A front end at which a packet stops.
pub(super) struct Front<'t> {
    pub(super) balancer: &'t LoadBalancer,
    pub(super) front_end: &'t FrontEnd,
    /// Whether a route of the packet names the front end as its virtual appliance (R11). Otherwise it is the destination.
    pub(super) is_appliance: bool,
}

impl<'t> Front<'t> {
    /// The load-balancing rules of the front end.
    pub(super) fn rules(&self) -> impl Iterator<Item = &'t BalancingRule> + use<'t> {
        let front_end = &self.front_end.id;
        self.balancer
            .rules
            .iter()
            .filter(move |rule| rule.front_end == *front_end)
    }
}

/// The front ends at which the packet may stop: its destination, and the appliances of the routes on its path.
pub(super) fn all<'a>(stopped: &Stopped<'a>) -> Vec<Front<'a>> {
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
