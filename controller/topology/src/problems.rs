//! The problems of a refused change: a bounded list in the order of the checks. Also the 404 errors that several kinds
//! of requests share.

use crate::path::{ArmPath, shown};
use tombolo_proto::id::ResourceId;

/// A refused change, or a failed read. The state stays as it was. The order of the problems is fixed: the first one
/// supplies the code and message of the HTTP error, and all of them go into its `details`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", problems.first().map_or("refused", |p| p.message.as_str()))]
pub struct Rejection {
    /// The HTTP status, which is that of the first problem: 400, 403, 404, 409 or 412.
    pub status: u16,
    /// The problems; never empty. At most 100, followed by one with the code `XMoreProblems` if there are more; it
    /// counts the others.
    pub problems: Vec<Problem>,
}

/// One broken rule of a refused change.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Azure's error code, or a code of this project, which starts with `X`.
    pub code: &'static str,
    /// Text for people: the field, its value and the broken rule.
    pub message: String,
    /// The field or resource, in ARM's words (`properties.addressSpace.addressPrefixes[0]`). `None`: the problem
    /// concerns the request as a whole.
    pub target: Option<String>,
}

/// The problems of one change, in the order in which the rules are checked.
#[derive(Default)]
pub(crate) struct Problems {
    status: Option<u16>,
    list: Vec<Problem>,
    unlisted: usize,
}

/// The maximum number of problems that an answer lists; later problems are only counted. One body can break a rule once
/// for each of its items, so the limit bounds the size of an answer. A hundred problems are far more than a person
/// reads.
const MAX_PROBLEMS: usize = 100;

impl Problems {
    /// Adds a problem with status 400; see [`Self::add_status`]. `code`: Azure's code, or one that begins with `X`.
    pub(crate) fn add(&mut self, code: &'static str, target: impl IntoTarget, message: String) {
        self.add_status(400, code, target, message);
    }

    /// Adds a problem. The status of the first problem becomes the status of the answer; the statuses of later problems
    /// are ignored. After [`MAX_PROBLEMS`] problems, further ones are only counted.
    pub(crate) fn add_status(&mut self, status: u16, code: &'static str, target: impl IntoTarget, message: String) {
        self.status.get_or_insert(status);
        let target = target.into_target();
        if self.list.len() == MAX_PROBLEMS {
            self.unlisted += 1;
        } else {
            self.list.push(Problem { code, message, target });
        }
    }

    /// Whether no problem has been added.
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The number of added problems, including those that are only counted. Code compares this number before and after
    /// a check to see whether the check has found a problem.
    pub(crate) fn len(&self) -> usize {
        self.list.len() + self.unlisted
    }

    /// The rejection with all listed problems. If there are further problems, which are only counted, one more entry
    /// gives their number. The caller must check before that there is at least one problem.
    pub(crate) fn into_rejection(mut self) -> Rejection {
        if self.unlisted > 0 {
            self.list.push(Problem {
                code: "XMoreProblems",
                message: format!("and {} more problems", self.unlisted),
                target: None,
            });
        }
        Rejection {
            status: self.status.unwrap_or(400),
            problems: self.list,
        }
    }
}

/// A value that can be the target of a problem: a field's path, a resource's id, or `None`.
pub(crate) trait IntoTarget {
    /// The text of the target. `None`: the problem has no target.
    fn into_target(self) -> Option<String>;
}
impl IntoTarget for Option<String> {
    fn into_target(self) -> Option<String> {
        self
    }
}
impl IntoTarget for String {
    fn into_target(self) -> Option<String> {
        Some(self)
    }
}
impl IntoTarget for &str {
    fn into_target(self) -> Option<String> {
        Some(self.to_owned())
    }
}
impl IntoTarget for &ResourceId {
    fn into_target(self) -> Option<String> {
        Some(self.to_string())
    }
}

/// The problem that the resource group with the name `group` does not exist, with Azure's code and message. The caller
/// gives it the status 404.
pub(crate) fn group_not_found(group: &str) -> Problem {
    Problem {
        code: "ResourceGroupNotFound",
        message: format!("Resource group '{}' could not be found.", shown(group)),
        target: None,
    }
}

/// The problem that the item at `path` does not exist, with Azure's code and message, which differ for top-level and
/// child resources. The caller gives it the status 404.
pub(crate) fn not_found(path: &ArmPath) -> Problem {
    let (code, message) = if path.segments.len() > 1 {
        ("NotFound", format!("Resource {} not found.", path.id()))
    } else {
        (
            "ResourceNotFound",
            format!(
                "The Resource '{}/{}/{}' under resource group '{}' was not found.",
                path.provider.as_deref().unwrap_or_default(),
                path.types(),
                path.name(),
                path.resource_group
            ),
        )
    };
    Problem {
        code,
        message,
        target: Some(path.id().to_string()),
    }
}
