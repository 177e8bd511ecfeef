//! Carries out a plan, step by step.

use crate::client::Client;
use crate::error::Error;
use crate::manifest::documents::Manifest;
use crate::manifest::error::ManifestError;
use crate::manifest::plan::{Action, Plan, Server, Step};
use crate::path::Group;
use serde_json::Value;
use tombolo_proto::arm::Kind;
use tombolo_proto::fabric::{Assertion, ProposedChange, ReachDiffRequest};
use tombolo_proto::id::Revision;

/// A plan that could not be made or carried out.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The manifest is not valid.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The controller's state could not be read, so nothing was changed.
    #[error(transparent)]
    Read(#[from] Error),
    /// A step failed. The steps before it are done. If the same manifest is applied again, the new plan contains this
    /// step and those after it.
    #[error("{kind} {name}: {source}")]
    Step {
        /// Kind of the resource.
        kind: Kind,
        /// Name of the resource.
        name: String,
        /// Number of steps that were done before.
        done: usize,
        /// The error of the call.
        source: Error,
    },
}

/// The result of a plan that was carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApplyResult {
    /// Number of resources that were created, updated or deleted.
    pub changed: usize,
    /// Largest revision in the responses to all writes of the client so far; 0 if it has written nothing.
    pub revision: Revision,
}

impl Plan {
    /// Compares a manifest with the controller's resources, which it reads. Changes nothing. `default` is as for
    /// [`Manifest::expand`], `prune` as for [`Plan::make`].
    ///
    /// # Errors
    /// [`ApplyError::Manifest`]: the manifest is not valid. [`ApplyError::Read`]: the controller's resources cannot be
    /// read.
    pub async fn read(client: &Client, manifest: &Manifest, default: &Group, prune: bool) -> Result<Self, ApplyError> {
        let desired = manifest.expand(default)?;
        let server = Server::read(client, &desired).await?;
        Ok(Self::make(&desired, &server, prune)?)
    }

    /// Carries out the steps that change something, in order, and waits for each before the next. Calls `progress`
    /// before each of these steps. Does not compare the controller's state again, so changes that were made after
    /// [`Self::read`] may be overwritten. If the future is dropped, the step in progress may still be carried out by
    /// the controller; the steps after it are not. The method does not undo steps.
    ///
    /// # Errors
    /// [`ApplyError::Step`] for the first step that fails. The steps after that one are not attempted, and those before
    /// it stay done.
    pub async fn apply(&self, client: &Client, mut progress: impl FnMut(&Step)) -> Result<ApplyResult, ApplyError> {
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
        Ok(ApplyResult {
            changed,
            revision: client.last_revision(),
        })
    }
}

impl Plan {
    /// The changes as a question what they would connect and cut, and whether `assertions` would hold after them.
    #[must_use]
    pub fn reach_diff(&self, assertions: Vec<Assertion>) -> ReachDiffRequest {
        ReachDiffRequest {
            changes: self.changes().map(Step::proposed).collect(),
            assertions,
            ..ReachDiffRequest::default()
        }
    }
}

impl Step {
    /// The step as a change that is only proposed.
    fn proposed(&self) -> ProposedChange {
        ProposedChange {
            path: self.path.clone(),
            body: (self.action != Action::Delete).then(|| in_azures_form(&self.body)),
            sync_remote_address_space: self.sync,
        }
    }

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
                client
                    .arm_put_with(&self.path, query, &in_azures_form(&self.body))
                    .await
                    .map(drop)
            }
        }
    }
}

/// The body with `addressPrefix` in place of a list of one prefix in each subnet, as Azure's command line sends it. The
/// controller shows a subnet in the form of the request.
fn in_azures_form(body: &Value) -> Value {
    let mut body = body.clone();
    let subnets = body.pointer_mut("/properties/subnets").and_then(Value::as_array_mut);
    let properties = subnets.into_iter().flatten().filter_map(|s| s.get_mut("properties"));
    for properties in properties.filter_map(Value::as_object_mut) {
        if let Some([single]) = properties
            .get("addressPrefixes")
            .and_then(Value::as_array)
            .map(Vec::as_slice)
        {
            let single = single.clone();
            properties.remove("addressPrefixes");
            properties.insert("addressPrefix".to_owned(), single);
        }
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_single_prefix_of_a_subnet_is_no_list() {
        let body = |one: Value| {
            json!({"properties": {"addressSpace": {"addressPrefixes": ["10.0.0.0/8"]}, "subnets": [
                {"name": "one", "properties": one},
                {"name": "two", "properties": {"addressPrefixes": ["10.1.0.0/24", "fd00::/64"]}},
            ]}})
        };
        let sent = in_azures_form(&body(json!({"addressPrefixes": ["10.0.0.0/24"]})));
        assert_eq!(sent, body(json!({"addressPrefix": "10.0.0.0/24"})));
        assert_eq!(
            in_azures_form(&json!({"location": "region1"})),
            json!({"location": "region1"})
        );
    }
}
