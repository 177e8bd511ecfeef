//! Manifests: declarative files with Azure's property names. They are read, compared with the controller, and applied.
//!
//! ```text
//! files ──Manifest::load──▶ Manifest ──expand──▶ ARM bodies ──Plan::make──▶ Plan ──Plan::apply──▶ done
//!                                                    controller's state ──┘
//! ```
//!
//! A manifest is the union of its documents. Applying it creates and updates the resources that it contains. All other
//! resources are unchanged, unless pruning deletes them. A second application changes nothing.

mod apply;
mod compare;
mod expand;
mod named;
mod order;
mod plan;
mod schema;

pub use apply::{Applied, ApplyError};
pub use expand::{Expanded, GATEWAY_IP_CONFIGURATION, NIC_IP_CONFIGURATION};
pub use named::Named;
pub use plan::{Action, Plan, Server, Step};
pub use schema::{
    Connection, ConnectionType, Document, ExpressRouteCircuit, GatewayIpConfiguration, LocalNetworkGateway,
    NetworkInterface, NextHopType, NicIpConfiguration, Peering, PlainResource, Prefix, PrivatePeering, PublicIpAddress,
    Route, RouteTable, SkuTier, Subnet, VirtualNetwork, VirtualNetworkGateway,
};
pub use tombolo_proto::arm::Kind;

use crate::path::Group;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// The region of resources for which neither their document nor they themselves name one.
pub const DEFAULT_LOCATION: &str = "region1";

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
        /// Name of the file.
        origin: String,
        /// The problem, with line and column.
        reason: String,
    },
    /// The documents contradict each other, or refer to resources that do not exist. Contains every problem; never empty.
    #[error("{}", .0.join("\n"))]
    Invalid(Vec<String>),
}

/// Documents with their origins.
#[derive(Debug, Clone, Default)]
pub struct Manifest {
    documents: Vec<(String, Document)>,
}

impl Manifest {
    /// Reads a file, or all files `*.yaml` and `*.yml` of a folder and its subfolders, sorted by path.
    ///
    /// # Errors
    /// A file cannot be read or is not a manifest, or the folder has no such file.
    pub fn load(path: &Path) -> Result<Self, ManifestError> {
        let mut manifest = Self::default();
        for file in files_of(path)? {
            let text = std::fs::read_to_string(&file).map_err(|e| read_error(&file, &e))?;
            manifest.parse(&file.display().to_string(), &text)?;
        }
        Ok(manifest)
    }

    /// Adds the documents of a text. Errors name `origin`, usually the file. Empty documents are skipped.
    ///
    /// # Errors
    /// [`ManifestError::Parse`]; the documents before the wrong one have been added.
    pub fn parse(&mut self, origin: &str, text: &str) -> Result<(), ManifestError> {
        for document in serde_norway::Deserializer::from_str(text) {
            let document = Option::<Document>::deserialize(document).map_err(|e| ManifestError::Parse {
                origin: origin.to_owned(),
                reason: e.to_string(),
            })?;
            if let Some(document) = document {
                self.add(origin, document);
            }
        }
        Ok(())
    }

    /// Adds a document that comes from another file format, such as the `resources:` of a topology file.
    pub fn add(&mut self, origin: &str, document: Document) {
        self.documents.push((origin.to_owned(), document));
    }

    /// Returns the documents, each after its origin.
    #[must_use]
    pub fn documents(&self) -> &[(String, Document)] {
        &self.documents
    }

    /// Returns the ARM bodies in an order in which an empty controller accepts them. `default` provides the subscription, and
    /// the resource group of documents that name none.
    ///
    /// # Errors
    /// [`ManifestError::Invalid`]: duplicate resources, or properties that exclude each other.
    pub fn expand(&self, default: &Group) -> Result<Vec<Expanded>, ManifestError> {
        expand::expand(&self.documents, default)
    }
}

fn read_error(path: &Path, error: &std::io::Error) -> ManifestError {
    ManifestError::Read {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}

/// Returns `path` itself, or the YAML files below a folder. A folder without YAML files is an error.
fn files_of(path: &Path) -> Result<Vec<PathBuf>, ManifestError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(|e| read_error(&folder, &e))? {
            let entry = entry.map_err(|e| read_error(&folder, &e))?;
            let kind = entry.file_type().map_err(|e| read_error(&entry.path(), &e))?;
            let yaml = entry.path().extension().is_some_and(|x| x == "yaml" || x == "yml");
            // `file_type` does not follow symbolic links, so the walk ends even if one points to a parent folder.
            if kind.is_dir() {
                folders.push(entry.path());
            } else if yaml {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(ManifestError::Read {
            path: path.to_owned(),
            reason: "no *.yaml in this folder".into(),
        });
    }
    Ok(files)
}

#[cfg(test)]
mod tests;
