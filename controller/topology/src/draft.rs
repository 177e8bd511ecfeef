//! The draft of a change, and the errors that several kinds of requests share.

use crate::path::{ArmPath, Kind, shown};
use crate::problems::{Problems, group_not_found, not_found};
use crate::topology::Topology;
use uuid::Uuid;

/// The state that a change works on, with the problems found so far. Once the draft has a problem, its topology may be
/// inconsistent. [`crate::rules::apply`] discards such a draft.
pub(crate) struct Draft<'a> {
    /// The state before the change, plus what the change has altered so far.
    pub(crate) topology: Topology,
    /// The problems found so far, in the order of the checks.
    pub(crate) problems: Problems,
    /// Returns a new GUID at each call.
    pub(crate) new_guid: &'a mut dyn FnMut() -> Uuid,
}

impl Draft<'_> {
    /// The kind of item that a path names. `None`: the type is unknown, and a problem with status 404 says so.
    pub(crate) fn kind(&mut self, path: &ArmPath) -> Option<Kind> {
        let kind = path.kind();
        if kind.is_none() {
            self.problems.add_status(
                404,
                "InvalidResourceType",
                &path.id(),
                format!(
                    "The resource type '{}' could not be found in the namespace '{}'.",
                    shown(&path.types()),
                    shown(path.provider.as_deref().unwrap_or_default()),
                ),
            );
        }
        kind
    }

    /// Adds the problem that the item at `path` cannot be written: either its body is derived from other resources, or it
    /// is written with its parent only.
    pub(crate) fn read_only(&mut self, path: &ArmPath) {
        let id = path.id();
        let message = match (path.kind(), path.parent()) {
            (Some(kind @ (Kind::FrontEnd | Kind::LoadBalancingRule | Kind::Probe)), Some(parent)) => {
                format!(
                    "{id} cannot be written by itself. PUT the load balancer {} with the {kind}.",
                    parent.id()
                )
            }
            (Some(Kind::OutboundRule), _) => format!("{id}: outbound rules are not supported (L1)"),
            _ => format!("{id} is a view of other resources and cannot be written"),
        };
        self.problems.add("XReadOnlyResource", &id, message);
    }

    /// Adds the problem, with status 404, that the resource group of `path` does not exist.
    pub(crate) fn group_not_found(&mut self, path: &ArmPath) {
        let problem = group_not_found(&path.resource_group);
        self.problems
            .add_status(404, problem.code, problem.target, problem.message);
    }

    /// Adds the problem, with status 404, that the item at `path` does not exist.
    pub(crate) fn not_found(&mut self, path: &ArmPath) {
        let problem = not_found(path);
        self.problems
            .add_status(404, problem.code, problem.target, problem.message);
    }

    /// Adds the problem, with status 404, that the parent of the child at `path` does not exist.
    pub(crate) fn parent_not_found(&mut self, path: &ArmPath) {
        let parent = path.parent().map(|p| p.id().to_string()).unwrap_or_default();
        self.problems.add_status(
            404,
            "ParentResourceNotFound",
            &path.id(),
            format!(
                "Can not perform requested operation on nested resource. Parent resource '{}' not found.",
                shown(&parent)
            ),
        );
    }
}

/// A new etag if `new` differs from `old`. `None`: the two are equal, so the old etag stays.
pub(crate) fn changed<T: PartialEq>(old: Option<&T>, new: &T, new_guid: &mut dyn FnMut() -> Uuid) -> Option<Uuid> {
    (old != Some(new)).then(new_guid)
}
