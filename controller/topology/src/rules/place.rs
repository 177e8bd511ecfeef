//! The rule that a resource and those that it uses are in one region and subscription (P1).

use crate::arm::body::Object;
use crate::draft::Draft;
use crate::path::{ArmPath, parent_id};
use crate::resource::{Envelope, Subnet};
use crate::topology::Topology;
use tombolo_proto::id::ResourceId;

/// A resource that refers to others.
pub(crate) struct Place<'p> {
    /// The id of the resource.
    pub(crate) id: &'p ResourceId,
    /// Its region. Empty if the body has no valid one; then regions are not compared, because a problem says so already.
    pub(crate) location: &'p str,
    /// The ids to which the stored resource refers. They are not checked again, because version 0.1 accepted targets in
    /// every region, and such a resource must stay writable.
    pub(crate) held: Vec<ResourceId>,
}

impl<'p> Place<'p> {
    /// The place of a resource with this envelope, whose stored form refers to `held`.
    pub(crate) fn of(envelope: &'p Envelope, held: Vec<ResourceId>) -> Self {
        Self {
            id: &envelope.id,
            location: &envelope.location,
            held,
        }
    }
}

/// The subscription in an id; empty if it is no id of ARM.
fn subscription(id: &ResourceId) -> String {
    ArmPath::parse(id.as_str()).map_or_else(|_| String::new(), |path| path.subscription.to_ascii_lowercase())
}

impl Draft<'_> {
    /// Resolves the reference `name` of `object` as [`resolve`](Self::resolve) does, and checks that its target is in
    /// the region and subscription of `place`. Returns the id of the target, in any region. `None`: the reference is
    /// absent, malformed, or its target does not exist.
    pub(crate) fn resolve_beside(
        &mut self,
        object: &Object<'_>,
        name: &str,
        place: &Place<'_>,
        find: impl for<'t> Fn(&'t Topology, &ResourceId) -> Option<&'t Envelope>,
    ) -> Option<ResourceId> {
        let found = self.resolve(object, name, place.id, |t, id| located(find(t, id)?))?;
        Some(self.check_beside(found, place, &object.at(&format!("{name}.id"))))
    }

    /// Resolves an object `{"id": "…"}`, as [`resolve_beside`](Self::resolve_beside) does with a member.
    pub(crate) fn resolve_own_beside(
        &mut self,
        object: &Object<'_>,
        place: &Place<'_>,
        find: impl for<'t> Fn(&'t Topology, &ResourceId) -> Option<&'t Envelope>,
    ) -> Option<ResourceId> {
        let found = self.resolve_own(object, place.id, |t, id| located(find(t, id)?))?;
        Some(self.check_beside(found, place, &object.at("id")))
    }

    /// Resolves an object `{"id": "…"}` that refers to a child, as [`resolve_own_beside`](Self::resolve_own_beside) does.
    /// `find` returns the id of the child and the region of its parent.
    pub(crate) fn resolve_child_beside(
        &mut self,
        object: &Object<'_>,
        place: &Place<'_>,
        find: impl Fn(&Topology, &ResourceId) -> Option<(ResourceId, String)>,
    ) -> Option<ResourceId> {
        let found = self.resolve_own(object, place.id, find)?;
        Some(self.check_beside(found, place, &object.at("id")))
    }

    /// Checks that the VNet of a subnet is in the region and subscription of the NIC, gateway or load balancer at
    /// `place`. `at`: the field that refers to the subnet.
    pub(crate) fn check_beside_vnet(&mut self, subnet: &Subnet, place: &Place<'_>, at: &str) {
        let vnet = self.topology.vnets.get(&parent_id(&subnet.id));
        if let Some(location) = vnet.map(|v| v.envelope.location.clone()) {
            self.check_beside((subnet.id.clone(), location), place, at);
        }
    }

    /// Adds a problem if the target of the reference at the field `at` is in another region or subscription than `place`,
    /// and the reference is new. Returns the id of the target.
    fn check_beside(&mut self, (target, location): (ResourceId, String), place: &Place<'_>, at: &str) -> ResourceId {
        if place.held.contains(&target) {
            return target;
        }
        let (there, here) = (subscription(&target), subscription(place.id));
        let name = target.name();
        let difference = if there != here {
            format!(
                "they are in the subscriptions {there} and {here} (P1). Create '{name}' in subscription {here}, and refer to \
                 that one"
            )
        } else if location != place.location && !place.location.is_empty() {
            let here = place.location;
            format!(
                "they are in the regions '{location}' and '{here}' (P1). Create '{name}' in region '{here}', and refer to \
                 that one"
            )
        } else {
            return target;
        };
        self.problems.add(
            "InvalidResourceReference",
            at,
            format!(
                "{at}: Resource {target} referenced by resource {} was not found. Please make sure that the referenced \
                 resource exists, and that both resources are in the same region and subscription: {difference}.",
                place.id
            ),
        );
        target
    }
}

/// The id and the region of a resource with this envelope.
fn located(envelope: &Envelope) -> Option<(ResourceId, String)> {
    Some((envelope.id.clone(), envelope.location.clone()))
}
