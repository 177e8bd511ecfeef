//! `tombolo login`: tests a controller and a token, and saves them.

use crate::config::{self, Config};
use crate::options::Global;
use crate::output::Output;
use anyhow::Result;
use clap::Args;
use serde_json::json;

/// Saves --controller, --ca and --token-file (or --token), and the defaults -g and --subscription.
#[derive(Debug, Args)]
pub(crate) struct Login {}

impl Login {
    /// Sends requests to test the controller and the token, and then replaces the configuration file. If a test fails,
    /// the file stays unchanged.
    pub(crate) async fn run(&self, global: &Global) -> Result<()> {
        let config = Config::load(global)?;
        let client = config.client()?;
        client.health().await?;
        let revisions = client.revisions().await?;
        let path = config::path(global);
        config.to_file()?.write(&path)?;
        let out = Output::new(global.output);
        if out.is_json() {
            return out.json(&json!({
                "controller": client.base(), "revision": revisions.desired, "config": path,
            }));
        }
        out.note(&format!(
            "Logged in at {} (revision {}).",
            client.base(),
            revisions.desired
        ));
        out.note(&format!("Saved in {}.", path.display()));
        Ok(())
    }
}
