//! The declarative file: what should exist, in Azure's property names; read it, compare it, apply it.
//!
//! ```text
//! files ──Manifest::load──▶ Manifest ──expand──▶ ARM bodies ──Plan::make──▶ Plan ──Plan::apply──▶ done
//!                                                    controller's state ──┘
//! ```
//!
//! A manifest is the sum of its documents. A resource that stands in it is brought to what the manifest says; what the
//! manifest does not mention stays as it is, unless pruning was asked for. Applying twice changes nothing.

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

/// The region of resources that name none.
pub const DEFAULT_LOCATION: &str = "region1";

/// Why a manifest cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// A file or folder cannot be read.
    #[error("{}: {reason}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// In the system's words.
        reason: String,
    },
    /// A document is not what it should be.
    #[error("{origin}: {reason}")]
    Parse {
        /// Which file.
        origin: String,
        /// What, with line and column.
        reason: String,
    },
    /// Documents that do not fit together, or names that lead nowhere. Never empty; all problems at once.
    #[error("{}", .0.join("\n"))]
    Invalid(Vec<String>),
}

/// Documents together.
#[derive(Debug, Clone, Default)]
pub struct Manifest {
    documents: Vec<(String, Document)>,
}

impl Manifest {
    /// Reads a file, or all `*.yaml` and `*.yml` of a folder and its sub-folders, in order of their names.
    ///
    /// # Errors
    /// A file that cannot be read, or is not a manifest.
    pub fn load(path: &Path) -> Result<Self, ManifestError> {
        let mut manifest = Self::default();
        for file in files_of(path)? {
            let text = std::fs::read_to_string(&file).map_err(|e| read_error(&file, &e))?;
            manifest.parse(&file.display().to_string(), &text)?;
        }
        Ok(manifest)
    }

    /// Adds the documents of a text; `origin` stands in errors.
    ///
    /// # Errors
    /// What is wrong, with line and column.
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

    /// Adds a document that was read elsewhere (the `resources:` of a topology file).
    pub fn add(&mut self, origin: &str, document: Document) {
        self.documents.push((origin.to_owned(), document));
    }

    /// The documents with where they come from.
    #[must_use]
    pub fn documents(&self) -> &[(String, Document)] {
        &self.documents
    }

    /// The ARM bodies, in the order in which they can be created from nothing. `default` is the subscription, and the
    /// group of documents that name none.
    ///
    /// # Errors
    /// Everything that is wrong at once: duplicates, properties that exclude each other.
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

/// The files behind a path: itself, or the YAML files of a folder. A folder without any is an error.
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
            // A link to a folder is not followed, so there is no circle.
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
