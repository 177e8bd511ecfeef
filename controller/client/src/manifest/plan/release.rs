//! Network interfaces that must leave back-end pools and inbound NAT rules before other steps of a plan.
//!
//! A load balancer is written before the network interfaces that refer to its children. But a child that a network
//! interface still refers to can neither be removed nor, if it is a pool, get addresses instead of network interfaces
//! (L2). And an inbound NAT rule has only one target. So a network interface that leaves such a child has an update of
//! its own, which comes first and changes only these references.

use super::{Action, Server, Step};
use crate::manifest::compare::{counterpart, name, tidy};
use crate::manifest::expand::DesiredResource;
use crate::manifest::order::Rank;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use tombolo_proto::arm::Kind;

/// The properties of an ip configuration that refer to children of load balancers.
pub(super) const REFERENCES: [&str; 2] = ["loadBalancerBackendAddressPools", "loadBalancerInboundNatRules"];
/// The lists of children to which network interfaces can refer.
const TARGETS: [&str; 2] = ["backendAddressPools", "inboundNatRules"];

/// The children that network interfaces leave early. Ids are in lower case.
pub(super) struct Releases {
    /// Children that the plan removes, and pools that get addresses.
    closed: BTreeSet<String>,
    /// The path of the network interface that refers to a child after the plan. Of several network interfaces in a pool,
    /// it is any one of them.
    targets: BTreeMap<String, String>,
}

impl Releases {
    /// `deleted` has the paths, in lower case, of the resources that pruning deletes; `None` without pruning.
    pub(super) fn of(desired: &[DesiredResource], server: &Server, deleted: Option<&BTreeSet<String>>) -> Self {
        let mut closed = BTreeSet::new();
        let balancers = server.items.iter().filter(|(_, (kind, _))| *kind == Kind::LoadBalancer);
        for (path, (_, body)) in balancers {
            let planned = desired.iter().find(|e| e.path.eq_ignore_ascii_case(path));
            for list in TARGETS {
                let planned = planned.map(|e| children(&e.body, list));
                for child in children(body, list) {
                    let closes = match planned {
                        None => deleted.is_some_and(|deleted| deleted.contains(path)),
                        Some(planned) => match counterpart(planned, child) {
                            None => deleted.is_some(),
                            Some(planned) => planned
                                .pointer("/properties/loadBalancerBackendAddresses")
                                .is_some_and(Value::is_array),
                        },
                    };
                    if closes {
                        let own = name(child).unwrap_or_default();
                        closed.insert(format!("{path}/{list}/{own}").to_ascii_lowercase());
                    }
                }
            }
        }
        let nics = desired.iter().filter(|e| e.kind == Kind::NetworkInterface);
        let targets = nics.flat_map(|e| {
            let path = e.path.to_ascii_lowercase();
            references(&e.body).into_iter().map(move |id| (id, path.clone()))
        });
        Self {
            closed,
            targets: targets.collect(),
        }
    }

    /// The step in which a network interface leaves children, with the whole body after the step. `None`: it need not
    /// leave any early, or `e` is not a network interface.
    pub(super) fn step(&self, e: &DesiredResource, current: &Value) -> Option<Step> {
        if e.kind != Kind::NetworkInterface {
            return None;
        }
        let kept = references(&e.body);
        let path = e.path.to_ascii_lowercase();
        let is_taken = |id: &str| {
            let is_nat_rule = id.contains("/inboundnatrules/");
            is_nat_rule && self.targets.get(id).is_some_and(|target| *target != path)
        };
        let leaves = |id: &str| !kept.contains(id) && (self.closed.contains(id) || is_taken(id));
        if !references(current).iter().any(|id| leaves(id)) {
            return None;
        }
        let mut body = current.clone();
        let configurations = body
            .pointer_mut("/properties/ipConfigurations")
            .and_then(Value::as_array_mut);
        for configuration in configurations.into_iter().flatten() {
            for property in REFERENCES {
                let list = configuration.pointer_mut(&format!("/properties/{property}"));
                if let Some(list) = list.and_then(Value::as_array_mut) {
                    list.retain(|item| !id_of(item).is_some_and(|id| leaves(&id)));
                }
            }
        }
        Some(Step {
            action: Action::Update,
            kind: e.kind,
            group: e.group.clone(),
            name: e.name.clone(),
            path: e.path.clone(),
            note: Some("leaves back-end pools and inbound NAT rules, so that these can change (L2)".to_owned()),
            before: shown(current),
            after: shown(&body),
            body,
            sync: false,
            rank: Rank::NicRelease,
        })
    }
}

/// The children in one list of a load balancer's body.
pub(super) fn children<'b>(body: &'b Value, list: &str) -> &'b [Value] {
    let all = body.pointer(&format!("/properties/{list}")).and_then(Value::as_array);
    all.map_or(&[], Vec::as_slice)
}

/// The ip configurations of a network interface.
pub(super) fn configurations(nic: &Value) -> &[Value] {
    children(nic, "ipConfigurations")
}

/// The id of a reference, in lower case.
pub(super) fn id_of(reference: &Value) -> Option<String> {
    Some(reference.get("id")?.as_str()?.to_ascii_lowercase())
}

/// The ids, in lower case, of the children of load balancers to which a network interface refers.
fn references(nic: &Value) -> BTreeSet<String> {
    let lists = configurations(nic).iter().flat_map(|c| {
        let list = |property| c.pointer(&format!("/properties/{property}")).and_then(Value::as_array);
        REFERENCES.into_iter().filter_map(list)
    });
    lists.flatten().filter_map(id_of).collect()
}

/// The references of each ip configuration, for display.
fn shown(nic: &Value) -> Value {
    let one = |c: &Value| {
        let properties = REFERENCES.map(|property| (property, c["properties"][property].clone()));
        let properties: BTreeMap<_, _> = properties.into_iter().collect();
        json!({"name": c["name"], "properties": properties})
    };
    let all: Vec<_> = configurations(nic).iter().map(one).collect();
    tidy(&json!({"properties": {"ipConfigurations": all}}))
}
