//! Does what a plan says, step by step.

use crate::client::Client;
use crate::error::Error;
use crate::manifest::plan::{Action, Plan, Server, Step};
use crate::manifest::{Manifest, ManifestError};
use crate::path::Group;
use tombolo_proto::id::Revision;

/// A plan that could not be made or carried out.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The manifest itself.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The controller's state could not be read.
    #[error(transparent)]
    Read(#[from] Error),
    /// A step was refused; those before it are done, and applying again goes on from here.
    #[error("{kind} {name}: {source}")]
    Step {
        /// What was to be changed.
        kind: crate::manifest::Kind,
        /// Its name.
        name: String,
        /// How many steps were done.
        done: usize,
        /// What the controller said.
        source: Error,
    },
}

/// What came of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// Steps that changed something.
    pub changed: usize,
    /// The revision that holds after it; 0 if nothing was written.
    pub revision: Revision,
}

impl Plan {
    /// Reads what the controller has and compares.
    ///
    /// # Errors
    /// The manifest is not valid, or the controller does not answer.
    pub async fn read(client: &Client, manifest: &Manifest, default: &Group, prune: bool) -> Result<Self, ApplyError> {
        let wanted = manifest.expand(default)?;
        let server = Server::read(client, &wanted).await?;
        Ok(Self::make(&wanted, &server, prune)?)
    }

    /// Does the steps in order; `progress` sees each before it is done.
    ///
    /// # Errors
    /// The first step that is refused; nothing after it is done.
    pub async fn apply(&self, client: &Client, mut progress: impl FnMut(&Step)) -> Result<Applied, ApplyError> {
        let mut changed = 0;
        for step in self.changes() {
            progress(step);
            step.run(client).await.map_err(|source| ApplyError::Step {
                kind: step.kind,
                name: step.name.clone(),
                done: changed,
                source,
            })?;
            changed += 1;
        }
        Ok(Applied {
            changed,
            revision: client.last_revision(),
        })
    }
}

impl Step {
    async fn run(&self, client: &Client) -> Result<(), Error> {
        match self.action {
            Action::Unchanged => Ok(()),
            Action::Delete => client.arm_delete(&self.path).await.map(drop),
            Action::Create | Action::Update => {
                let query: &[_] = if self.sync {
                    &[("syncRemoteAddressSpace", "true")]
                } else {
                    &[]
                };
                client.arm_put_with(&self.path, query, &self.body).await.map(drop)
            }
        }
    }
}
