//! Helpers for all children of a load balancer: how a body describes them, and how they refer to each other.

use crate::arm::body::Object;
use crate::draft::{Draft, changed};
use crate::path::{ArmPath, Kind, child_id};
use crate::problems::Problems;
use crate::resource::{BackendPool, BalancingRule, FrontEnd, InboundNatRule, LoadBalancer, Probe};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use tombolo_proto::id::ResourceId;
use uuid::Uuid;

/// A child of a load balancer.
pub(super) trait Part: PartialEq {
    fn id(&self) -> &ResourceId;
    fn etag(&mut self) -> &mut Uuid;
}

macro_rules! parts {
    ($($part:ident)*) => {
        $(impl Part for $part {
            fn id(&self) -> &ResourceId {
                &self.id
            }
            fn etag(&mut self) -> &mut Uuid {
                &mut self.etag
            }
        })*
    };
}
parts!(FrontEnd BackendPool Probe BalancingRule InboundNatRule);

/// Children by id.
pub(super) fn by_id<P: Part>(all: &[P]) -> BTreeMap<&ResourceId, &P> {
    all.iter().map(|one| (one.id(), one)).collect()
}

/// The child with an id. `None`: there is none.
pub(super) fn find<'p, P: Part>(all: &'p [P], id: &ResourceId) -> Option<&'p P> {
    all.iter().find(|one| one.id() == id)
}

/// Sets new etags on the children that differ from those with the same id in `old`.
pub(super) fn renew<P: Part>(all: &mut [P], old: &[P], new_guid: &mut dyn FnMut() -> Uuid) {
    let old = by_id(old);
    for one in all {
        if let Some(etag) = changed(old.get(one.id()).copied(), one, new_guid) {
            *one.etag() = etag;
        }
    }
}

/// The largest number of probes, and of pools, of a load balancer. It bounds the size of its document; Azure limits
/// neither.
pub(super) const MAX_CHILDREN: usize = 1_500;

/// A child as a body describes it.
pub(super) struct Described<'b> {
    /// The id of the child, in the casing of its creation.
    pub(super) id: ResourceId,
    /// The child's object in the body.
    pub(super) item: Object<'b>,
    /// The member `properties` of the object; empty if it is missing.
    pub(super) properties: Object<'b>,
}

impl<'b> Described<'b> {
    /// The child in the body of its own PUT.
    pub(super) fn of_body(id: ResourceId, body: &'b Value, problems: &mut Problems) -> Self {
        let item = Object::root(body, problems);
        let properties = item.object_or_empty("properties", problems);
        Self { id, item, properties }
    }
}

/// The children to which rules may refer.
pub(super) struct Siblings {
    /// The ids of the children after the change.
    pub(super) ids: BTreeSet<ResourceId>,
    /// The ids of the children before the change.
    pub(super) before: BTreeSet<ResourceId>,
}

impl Siblings {
    /// The children of a load balancer that does not change.
    pub(super) fn of(balancer: &LoadBalancer) -> Self {
        let front_ends = balancer.front_ends.iter().map(|f| &f.id);
        let others = balancer.pools.iter().map(|p| &p.id);
        let all = front_ends.chain(others).chain(balancer.probes.iter().map(|p| &p.id));
        Self {
            ids: all.cloned().collect(),
            before: BTreeSet::new(),
        }
    }
}

/// The first ten ids as text for a message; empty if there are none. A message that lists thousands helps nobody.
pub(super) fn first_ten<'i>(ids: impl Iterator<Item = &'i ResourceId>) -> String {
    let texts: Vec<String> = ids.take(10).map(ToString::to_string).collect();
    texts.join(", ")
}

impl Draft<'_> {
    /// The children of one kind that the body of the load balancer `id` lists, each with a valid name. `before`: the ids
    /// of the present children, whose casing stays.
    pub(super) fn described_children<'b>(
        &mut self,
        id: &ResourceId,
        properties: &Object<'b>,
        kind: Kind,
        before: &BTreeSet<ResourceId>,
    ) -> Vec<Described<'b>> {
        let items = properties.list(kind.collection(), MAX_CHILDREN, &mut self.problems);
        let mut described = Vec::new();
        for item in items.into_iter().flatten() {
            let Some(item) = item.object(&mut self.problems) else {
                continue;
            };
            let Some(name) = self.child_name(&item) else { continue };
            let own = child_id(id, kind.collection(), &name);
            let properties = item.object_or_empty("properties", &mut self.problems);
            described.push(Described {
                id: before.get(&own).cloned().unwrap_or(own),
                item,
                properties,
            });
        }
        self.check_unique_names(id, kind.title(), described.iter().map(|d| d.id.name()));
        described
    }

    /// The sibling to which a rule `from` refers, in the casing of its creation. `None`: it does not exist, and a problem
    /// says so.
    pub(super) fn resolve_sibling(
        &mut self,
        (path, at): (ArmPath, String),
        kind: Kind,
        from: &ResourceId,
        siblings: &Siblings,
    ) -> Option<ResourceId> {
        let id = path.id();
        let of_kind = path.kind() == Some(kind);
        if let Some(found) = siblings.ids.get(&id).filter(|_| of_kind) {
            return Some(found.clone());
        }
        if !of_kind || !siblings.before.contains(&id) {
            self.dangling(from, &path, &at);
            return None;
        }
        let code = match kind {
            Kind::FrontEnd => "XLoadBalancerFrontendInUse",
            Kind::BackendPool => "XLoadBalancerPoolInUse",
            _ => "XLoadBalancerProbeInUse",
        };
        let message = format!(
            "{at}: The {kind} {id} cannot be removed while {from} refers to it. Remove the reference in the same request, or \
             keep the {kind}."
        );
        self.problems.add(code, at, message);
        None
    }
}
