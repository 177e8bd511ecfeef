//! Network interfaces that must have their static addresses before a load balancer gets allocated ones (L1).
//!
//! A load balancer is written before the network interfaces that refer to its children. If one of its front ends has no
//! address in the manifest, the controller allocates one, which can be the static address of a network interface that is
//! written later. Such a network interface is written earlier, without references to the load balancer. A second step
//! adds the references, after the load balancer has been written.

use super::release::{REFERENCES, children, configurations, id_of};
use super::{Server, Step};
use crate::manifest::compare::counterpart;
use crate::manifest::expand::DesiredResource;
use crate::manifest::order::Rank;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use tombolo_proto::arm::Kind;

/// The front ends for which a plan lets the controller allocate addresses. Ids and paths are in lower case.
pub(super) struct Reservations {
    /// The paths of their load balancers.
    balancers: BTreeSet<String>,
    /// The ids of their subnets.
    subnets: BTreeSet<String>,
}

impl Reservations {
    pub(super) fn of(desired: &[DesiredResource], server: &Server) -> Self {
        let mut all = Self {
            balancers: BTreeSet::new(),
            subnets: BTreeSet::new(),
        };
        for e in desired.iter().filter(|e| e.kind == Kind::LoadBalancer) {
            let present = server.find(&e.path).map_or(&[][..], front_ends);
            for front_end in front_ends(&e.body).iter().filter(|f| !is_static(f)) {
                let subnet = subnet_of(front_end);
                // A front end that stays in its subnet keeps its address.
                let stays = counterpart(present, front_end).is_some_and(|before| subnet_of(before) == subnet);
                if let Some(subnet) = subnet.filter(|_| !stays) {
                    all.subnets.insert(subnet);
                    all.balancers.insert(e.path.to_ascii_lowercase());
                }
            }
        }
        all
    }

    /// The network interface `e` as it is to be written before addresses are allocated: without references to load
    /// balancers that are written later. `current`: the present body. `None`: an allocation cannot take an address of `e`,
    /// or `e` is not a network interface.
    pub(super) fn early(&self, e: &DesiredResource, current: Option<&Value>) -> Option<DesiredResource> {
        if e.kind != Kind::NetworkInterface {
            return None;
        }
        let present = current.map_or(&[][..], configurations);
        let held = |c: &Value| counterpart(present, c).is_some_and(|before| place_of(before) == place_of(c));
        let is_in_danger =
            |c: &Value| is_static(c) && subnet_of(c).is_some_and(|subnet| self.subnets.contains(&subnet)) && !held(c);
        if !configurations(&e.body).iter().any(is_in_danger) {
            return None;
        }
        let mut early = e.clone();
        let all = early.body.pointer_mut("/properties/ipConfigurations");
        for configuration in all.and_then(Value::as_array_mut).into_iter().flatten() {
            let before = counterpart(present, configuration).cloned().unwrap_or_default();
            for property in REFERENCES {
                let pointer = format!("/properties/{property}");
                let before = before.pointer(&pointer).and_then(Value::as_array);
                let before: BTreeSet<String> = before.into_iter().flatten().filter_map(id_of).collect();
                let exists = |id: &String| before.contains(id) || !self.is_written_later(id);
                let list = configuration.pointer_mut(&pointer).and_then(Value::as_array_mut);
                if let Some(list) = list {
                    list.retain(|reference| id_of(reference).is_some_and(|id| exists(&id)));
                }
            }
        }
        Some(early)
    }

    /// Makes a step the early one of its network interface.
    pub(super) fn mark(step: &mut Step) {
        step.rank = Rank::NicReserve;
        step.note = Some("gets its static address before front ends are allocated addresses (L1)".to_owned());
    }

    /// The position of a step for `e`, whose position among steps without allocated addresses is `rank`.
    pub(super) fn rank(&self, e: &DesiredResource, rank: Rank) -> Rank {
        if self.balancers.contains(&e.path.to_ascii_lowercase()) {
            return Rank::LoadBalancerAllocated;
        }
        rank
    }

    /// Whether the child of a load balancer with this id, in lower case, belongs to one that gets an allocated address.
    fn is_written_later(&self, id: &str) -> bool {
        let parent = id.rsplitn(3, '/').nth(2);
        parent.is_some_and(|parent| self.balancers.contains(parent))
    }
}

fn front_ends(balancer: &Value) -> &[Value] {
    children(balancer, "frontendIPConfigurations")
}

/// Whether a front end or an ip configuration has an address in the manifest.
fn is_static(configuration: &Value) -> bool {
    configuration.pointer("/properties/privateIPAllocationMethod") == Some(&json!("Static"))
}

/// The id, in lower case, of the subnet of a front end or an ip configuration.
fn subnet_of(configuration: &Value) -> Option<String> {
    id_of(configuration.pointer("/properties/subnet")?)
}

/// The subnet and the address of an ip configuration.
fn place_of(configuration: &Value) -> (Option<String>, Option<&Value>) {
    let address = configuration.pointer("/properties/privateIPAddress");
    (subnet_of(configuration), address)
}
