//! `tombolo backup`: saves the controller's store.

use crate::context::Context;
use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::json;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct Backup {
    /// File to write; it contains secrets, so only its owner may read it
    file: PathBuf,
    /// Replace an existing file
    #[arg(long)]
    force: bool,
}

impl Backup {
    /// Downloads the backup, writes it to the file with mode 0600, and returns when the file is on the disk. If the
    /// file exists and `--force` is not set, returns an error and does not change the file.
    pub(crate) async fn run(&self, c: &Context) -> Result<()> {
        let failed = || format!("cannot write {}", self.file.display());
        let bytes = c.progress("saving", c.client.backup()).await?;
        let mut options = OpenOptions::new();
        options.write(true).mode(0o600);
        if self.force {
            options.create(true).truncate(true)
        } else {
            options.create_new(true)
        };
        let mut file = options.open(&self.file).with_context(failed)?;
        file.write_all(&bytes)
            .and_then(|()| file.sync_all())
            .with_context(failed)?;
        if c.out.is_json() {
            return c.out.json(&json!({"file": self.file, "bytes": bytes.len()}));
        }
        let name = self.file.display();
        c.out.note(&format!("Saved {} bytes to {name}.", bytes.len()));
        c.out.note(&format!(
            "Restore it, with the controller stopped: tombolo-controller restore --data-dir DIR --from {name}"
        ));
        Ok(())
    }
}
