//! Reads documents from files.

use crate::manifest::error::ManifestError;
use crate::manifest::expand::{self, DesiredResource};
use crate::manifest::schema::Document;
use crate::path::Group;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use tombolo_proto::fabric::Assertion;

/// Documents, each with its origin: the name of its file, for error messages.
#[derive(Debug, Clone, Default)]
pub struct Manifest {
    documents: Vec<(String, Document)>,
}

impl Manifest {
    /// Reads a file, or all files `*.yaml` and `*.yml` of a folder and its subfolders, sorted by path. Symbolic links
    /// to folders are not followed. A file may have several documents. Blocks on the file system.
    ///
    /// # Errors
    /// [`ManifestError::Read`]: a file or folder cannot be read, a file is not UTF-8, or the folder has no such file.
    /// [`ManifestError::Parse`]: a file is not a manifest.
    pub fn load(path: &Path) -> Result<Self, ManifestError> {
        let mut manifest = Self::default();
        for file in files_of(path)? {
            let text = std::fs::read_to_string(&file).map_err(|e| read_error(&file, &e))?;
            manifest.parse(&file.display().to_string(), &text)?;
        }
        Ok(manifest)
    }

    /// Adds the documents of a YAML text. Errors name `origin`, usually the file. Empty documents are skipped.
    /// References between documents are checked later, by [`Self::expand`] and [`Plan::make`](super::Plan::make).
    ///
    /// # Errors
    /// [`ManifestError::Parse`]: a document is not valid. The documents before it in `text` have been added.
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

    /// Adds a document that comes from another file format, such as the `resources:` of a topology file. `origin` names
    /// it in errors, as in [`Self::parse`]. The document is not checked here.
    pub fn add(&mut self, origin: &str, document: Document) {
        self.documents.push((origin.to_owned(), document));
    }

    /// Returns the documents in the order in which they were added, each after its origin.
    #[must_use]
    pub fn documents(&self) -> &[(String, Document)] {
        &self.documents
    }

    /// Returns the assertions of all documents, in their order.
    #[must_use]
    pub fn assertions(&self) -> Vec<Assertion> {
        let all = self.documents.iter().flat_map(|(_, document)| &document.assertions);
        all.cloned().collect()
    }

    /// Returns the ARM bodies of all resources, in an order in which an empty controller accepts them. `default`
    /// provides the subscription, and the resource group of documents that name none. Each resource group is one of the
    /// resources. Sends no request.
    ///
    /// # Errors
    /// [`ManifestError::Invalid`] with all problems: duplicate resources, missing properties, or properties that
    /// exclude each other.
    pub fn expand(&self, default: &Group) -> Result<Vec<DesiredResource>, ManifestError> {
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
            // `file_type` does not follow symbolic links, so the walk ends even if a link points to a parent folder.
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
