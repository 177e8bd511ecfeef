//! The problems of a change, gathered in order and bounded in number, and the 404 errors that several requests share.

use crate::path::{ArmPath, shown};
use tombolo_proto::id::ResourceId;

/// A refused change. The state stays as it was. All problems are listed in a fixed order: the first one supplies the
/// code and message of the HTTP error, and all of them go into `details`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", problems.first().map_or("refused", |p| p.message.as_str()))]
pub struct Rejection {
    /// The HTTP status: 400, 404, 409 or 412.
    pub status: u16,
    /// The problems; never empty.
    pub problems: Vec<Problem>,
}

/// One broken rule of a refused change.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Azure's error code, or a code of this project, which starts with `X`.
    pub code: &'static str,
    /// Text for people: the field, its value and the broken rule.
    pub message: String,
    /// The field or resource, in ARM's words (`properties.addressSpace.addressPrefixes[0]`).
    pub target: Option<String>,
}

/// The problems of one change, in the order in which the rules are checked.
#[derive(Default)]
pub(crate) struct Problems {
    status: Option<u16>,
    list: Vec<Problem>,
    unlisted: usize,
}

/// Problems that an answer lists; later ones are only counted. It bounds the size of an answer: one body can break a
/// rule once for each of its items.
const MAX_PROBLEMS: usize = 100;

impl Problems {
    /// Adds a problem with status 400.
    pub(crate) fn add(&mut self, code: &'static str, target: impl IntoTarget, message: String) {
        self.add_status(400, code, target, message);
    }

    /// Adds a problem. The first problem decides the HTTP status of the answer.
    pub(crate) fn add_status(&mut self, status: u16, code: &'static str, target: impl IntoTarget, message: String) {
        self.status.get_or_insert(status);
        let target = target.into_target();
        if self.list.len() == MAX_PROBLEMS {
            self.unlisted += 1;
        } else {
            self.list.push(Problem { code, message, target });
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len() + self.unlisted
    }

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

/// A value that can be the target of a problem: the name of a field, or the id of a resource.
pub(crate) trait IntoTarget {
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

/// The problem that a resource group does not exist.
pub(crate) fn group_not_found(group: &str) -> Problem {
    Problem {
        code: "ResourceGroupNotFound",
        message: format!("Resource group '{}' could not be found.", shown(group)),
        target: None,
    }
}

/// The problem that an item does not exist: Azure's code and message for top-level and child resources.
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
