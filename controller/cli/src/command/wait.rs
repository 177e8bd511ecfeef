//! `tombolo wait`: waits for a revision to be in force.

use crate::context::Context;
use anyhow::Result;
use clap::Args;
use serde_json::json;
use tombolo_proto::id::Revision;

#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// Revision to wait for [default: the newest]
    revision: Option<u64>,
}

impl Wait {
    /// Waits until the revision is in force on every connected agent, `--timeout` at most (see [`Context::wait`]). If
    /// no revision is given, waits for the revision that is the newest when the command starts.
    pub(crate) async fn run(&self, c: &Context) -> Result<()> {
        let revision = match self.revision {
            Some(revision) => Revision(revision),
            None => c.client.revisions().await?.desired,
        };
        c.wait(revision).await?;
        if c.out.is_json() {
            c.out.json(&json!({"revision": revision, "inForce": true}))?;
        }
        Ok(())
    }
}
