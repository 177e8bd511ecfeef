//! Errors of manifests.

use std::path::PathBuf;

/// Why a manifest cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// A file or folder cannot be read.
    #[error("{}: {reason}", path.display())]
    Read {
        /// Path of the file or folder.
        path: PathBuf,
        /// The system's error message.
        reason: String,
    },
    /// A document is not YAML, or has an unknown property or a wrong value.
    #[error("{origin}: {reason}")]
    Parse {
        /// Name of the file that contains the document.
        origin: String,
        /// The problem, with line and column.
        reason: String,
    },
    /// The documents contradict each other or lack a property, or they refer to resources that do not exist. Contains
    /// every problem; never empty.
    #[error("{}", .0.join("\n"))]
    Invalid(Vec<String>),
}
