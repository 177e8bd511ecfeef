//! The manifests that a command is given.

use crate::context::Context;
use anyhow::{Context as _, Result};
use clap::Args;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use tombolo_client::fabric::Assertion;
use tombolo_client::manifest::{Manifest, Plan};
use tombolo_client::path::Group;

#[derive(Debug, Args)]
pub(crate) struct Files {
    /// Manifest file, folder of manifests, or - for standard input; may be repeated
    #[arg(short = 'f', long = "file", required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// In the resource groups that the files name, delete all resources that the files do not contain
    #[arg(long)]
    prune: bool,
}

/// As [`Files`], of a command that can do without.
#[derive(Debug, Args)]
pub(crate) struct OptionalFiles {
    /// Manifest file, folder of manifests, or - for standard input; may be repeated
    #[arg(short = 'f', long = "file", required_unless_present = "since", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// In the resource groups that the files name, delete all resources that the files do not contain
    #[arg(long, requires = "files")]
    prune: bool,
}

impl OptionalFiles {
    /// As [`Files::plan`]. `None`: there are no files.
    pub(super) async fn plan(&self, c: &Context) -> Result<Option<(Plan, Vec<Assertion>)>> {
        if self.files.is_empty() {
            return Ok(None);
        }
        let files = Files {
            files: self.files.clone(),
            prune: self.prune,
        };
        files.plan(c).await.map(Some)
    }
}

impl Files {
    /// Reads all files as one manifest, and compares the manifest with the controller's resources. Returns the changes, and
    /// the assertions of the files.
    ///
    /// # Errors
    /// A file is not valid, a document needs a default resource group and none is set, or the controller does not
    /// answer.
    pub(super) async fn plan(&self, c: &Context) -> Result<(Plan, Vec<Assertion>)> {
        let manifest = read(&self.files)?;
        // Documents without a group use the default group. If every document has a group, the user need not set a
        // default, and the placeholder `none` below has no effect.
        let needs_default = manifest.documents().iter().any(|(_, d)| d.resource_group.is_none());
        let default = if needs_default {
            c.group()?
        } else {
            Group::new(&c.config.subscription, "none")
        };
        let work = Plan::read(&c.client, &manifest, &default, self.prune);
        let plan = c.progress("comparing with the controller", work).await?;
        Ok((plan, manifest.assertions()))
    }
}

/// Reads manifest files, folders of manifests, and `-` for standard input, as one manifest.
///
/// # Errors
/// A file cannot be read, or is not valid.
pub(super) fn read(files: &[PathBuf]) -> Result<Manifest> {
    let mut manifest = Manifest::default();
    for file in files {
        if file == Path::new("-") {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .context("cannot read standard input")?;
            manifest.parse("standard input", &text)?;
        } else {
            for (origin, document) in Manifest::load(file)?.documents() {
                manifest.add(origin, document.clone());
            }
        }
    }
    Ok(manifest)
}
