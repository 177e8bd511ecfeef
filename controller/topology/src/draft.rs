//! The draft of a change, and the errors that every request can meet.

use crate::path::{ArmPath, Kind, shown};
use crate::problems::{Problems, group_not_found, not_found};
use crate::topology::Topology;
use uuid::Uuid;

/// The state that a change works on, with the problems found so far. A draft with problems is discarded.
pub(crate) struct Draft<'a> {
    pub(crate) topology: Topology,
    pub(crate) problems: Problems,
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

    /// Refuses a write of an item that is only a view of other resources.
    pub(crate) fn read_only(&mut self, path: &ArmPath) {
        self.problems.add(
            "XReadOnlyResource",
            &path.id(),
            format!("{} is a view of other resources and cannot be written", path.id()),
        );
    }

    /// Adds the 404 problem of a missing resource group.
    pub(crate) fn group_not_found(&mut self, path: &ArmPath) {
        let problem = group_not_found(&path.resource_group);
        self.problems
            .add_status(404, problem.code, problem.target, problem.message);
    }

    /// Adds the 404 problem of a missing item.
    pub(crate) fn not_found(&mut self, path: &ArmPath) {
        let problem = not_found(path);
        self.problems
            .add_status(404, problem.code, problem.target, problem.message);
    }

    /// Adds the 404 problem of a child whose parent is missing.
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

/// A new etag if `new` differs from `old`; `None` if the two are equal and the old etag stays valid.
pub(crate) fn changed<T: PartialEq>(old: Option<&T>, new: &T, new_guid: &mut dyn FnMut() -> Uuid) -> Option<Uuid> {
    (old != Some(new)).then(new_guid)
}
