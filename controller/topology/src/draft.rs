//! A topology in the middle of a change, and the errors that every request can meet.

use crate::path::{ArmPath, Kind, shown};
use crate::problems::{Problems, group_not_found, not_found};
use crate::topology::Topology;
use uuid::Uuid;

/// A topology in the middle of a change.
pub(crate) struct Draft<'a> {
    pub(crate) topology: Topology,
    pub(crate) problems: Problems,
    pub(crate) fresh: &'a mut dyn FnMut() -> Uuid,
}

impl Draft<'_> {
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

    pub(crate) fn read_only(&mut self, path: &ArmPath) {
        self.problems.add(
            "XReadOnlyResource",
            &path.id(),
            format!("{} is a view of other resources and cannot be written", path.id()),
        );
    }

    pub(crate) fn group_not_found(&mut self, path: &ArmPath) {
        let problem = group_not_found(&path.resource_group);
        self.problems
            .add_status(404, problem.code, problem.target, problem.message);
    }

    pub(crate) fn not_found(&mut self, path: &ArmPath) {
        let problem = not_found(path);
        self.problems
            .add_status(404, problem.code, problem.target, problem.message);
    }

    /// The parent of a child is missing.
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

/// Keeps `etag` where nothing changed: `None` if `new` equals `old`, else a fresh one.
pub(crate) fn changed<T: PartialEq>(old: Option<&T>, new: &T, fresh: &mut dyn FnMut() -> Uuid) -> Option<Uuid> {
    (old != Some(new)).then(fresh)
}
