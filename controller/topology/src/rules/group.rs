//! The rules of resource groups: their creation, tags, and deletion with all resources inside.

use crate::arm::body::Object;
use crate::draft::Draft;
use crate::path::{ArmPath, shown};
use crate::resource::{Binding, ResourceGroup, registry};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use tombolo_proto::arm::check_group_name;
use tombolo_proto::id::ResourceId;

impl Draft<'_> {
    /// PUT of a resource group. The subscription need not exist: any GUID is accepted as a subscription. True: the
    /// group is new.
    pub(crate) fn put_group(&mut self, path: &ArmPath, body: &Value) -> bool {
        let id = path.id();
        let old = self.topology.resource_groups.get(&id).cloned();
        if old.is_none() {
            self.check_subscription(&path.subscription);
            self.check_group_name(&path.resource_group);
        }
        let root = Object::root(body, &mut self.problems);
        let location = self.location(&root, old.as_deref().map(|g| g.location.as_str()), &id);
        let new = ResourceGroup {
            id: old.as_deref().map_or(id, |g| g.id.clone()),
            location,
            tags: root.tags(&mut self.problems),
        };
        if old.as_deref() != Some(&new) {
            self.topology.resource_groups.insert(new.id.clone(), Arc::new(new));
        }
        old.is_none()
    }

    /// PATCH of a group's tags. `None`: the tags stay as they are. A missing group is a problem.
    pub(crate) fn patch_group(&mut self, path: &ArmPath, tags: Option<BTreeMap<String, String>>) {
        let Some(old) = self.topology.resource_groups.get(&path.id()).cloned() else {
            return self.group_not_found(path);
        };
        let mut new = (*old).clone();
        new.tags = tags.unwrap_or(new.tags);
        if new != *old {
            self.topology.resource_groups.insert(path.id(), Arc::new(new));
        }
    }

    /// Checks that the id of a subscription is a GUID.
    fn check_subscription(&mut self, subscription: &str) {
        if subscription.parse::<uuid::Uuid>().is_err() {
            self.problems.add(
                "InvalidSubscriptionId",
                None::<String>,
                format!(
                    "The provided subscription identifier '{}' is malformed or invalid: it must be a GUID.",
                    shown(subscription)
                ),
            );
        }
    }

    /// Checks the name of a new group by ARM's rule.
    fn check_group_name(&mut self, name: &str) {
        if check_group_name(name).is_err() {
            self.problems.add(
                "InvalidResourceName",
                None::<String>,
                format!(
                    "Resource group name '{}' is invalid: 1 to 90 letters, digits, '_', '-', '.', '(' and ')', not \
                     ending with '.'.",
                    shown(name)
                ),
            );
        }
    }

    /// Deletes all resources of a group in the order of the registry, so that a resource is deleted before the
    /// resources that it uses, and then deletes the group. The agents and join tokens of the group's virtual machines,
    /// gateways and circuits are removed with it, and the join tokens that name its NICs and subnets. If a resource outside of the group, or an agent of such a resource, uses
    /// a resource of the group, nothing is deleted. True: the group was deleted.
    pub(crate) fn delete_group(&mut self, path: &ArmPath) -> bool {
        let Some(group) = self.topology.resource_groups.get(&path.id()).cloned() else {
            self.group_not_found(path);
            return false;
        };
        let before = std::mem::take(&mut self.problems);
        let inside = |id: &ResourceId| ArmPath::parse(id.as_str()).is_ok_and(|p| p.group_id() == group.id);
        self.remove_agents(|binding| match binding {
            Binding::Vm { vm: object, .. }
            | Binding::Gateway { gateway: object, .. }
            | Binding::Edge { circuit: object, .. } => inside(object),
            Binding::Site { attachments, .. } => attachments.iter().any(inside),
        });
        // A token for a machine outside of the group is useless without the NICs and subnets that it names.
        self.topology.tokens.retain(|_, token| match &token.binding {
            Binding::Vm { nics, served, .. } => !nics.iter().chain(served).any(inside),
            Binding::Gateway { .. } | Binding::Edge { .. } | Binding::Site { .. } => true,
        });
        for stored in registry::ENTRIES.iter().filter_map(|entry| entry.stored.as_ref()) {
            for id in (stored.ids)(&self.topology).iter().filter(|id| inside(id)) {
                (stored.delete)(self, id, None);
            }
        }
        let blocking = std::mem::replace(&mut self.problems, before);
        if !blocking.is_empty() {
            self.problems.add_status(
                409,
                "ResourceGroupDeletionBlocked",
                &group.id,
                format!(
                    "Deletion of resource group '{}' failed: {} of its resources cannot be deleted, see details.",
                    path.resource_group,
                    blocking.len()
                ),
            );
            for problem in blocking.into_rejection().problems {
                self.problems.add(problem.code, problem.target, problem.message);
            }
            return false;
        }
        self.topology.resource_groups.remove(&group.id);
        true
    }
}
