//! `tombolo assertion`: the assertions that every change must leave true.

use super::files;
use super::reach::show_broken;
use crate::context::Context;
use crate::output::{at, items};
use anyhow::{Result, bail};
use clap::Subcommand;
use comfy_table::Cell;
use serde_json::Value;
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum Assertion {
    /// Show the stored assertions, and those that do not hold now
    Show,
    /// Replace the stored assertions by those of manifests; all of them must hold now
    Set {
        /// Manifest file, folder of manifests, or - for standard input; may be repeated. Only its assertions are used
        #[arg(short = 'f', long = "file", required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Delete all stored assertions
    Delete,
}

impl Assertion {
    /// Changes the stored assertions as asked, and prints them.
    pub(crate) async fn run(&self, c: &Context) -> Result<()> {
        let stored = match self {
            Self::Show => c.client.assertions().await?,
            Self::Set { files } => {
                let assertions = files::read(files)?.assertions();
                if assertions.is_empty() {
                    bail!("the files have no assertions: write some under 'assert', or use 'tombolo assertion delete'");
                }
                c.client.put_assertions(assertions).await?
            }
            Self::Delete => c.client.put_assertions(Vec::new()).await?,
        };
        if c.out.is_json() {
            c.out.json(&stored)?;
            return Ok(());
        }
        let rows = items(&stored, "/assertions").map(row).collect();
        let columns = ["Holds", "From", "To", "Protocol", "Ports"];
        c.out.table(&columns, rows, "There are no stored assertions.");
        let broken = items(&stored, "/violations").map(|text| at(text, ""));
        show_broken(c.out, "Assertions that do not hold now", broken.collect());
        Ok(())
    }
}

fn row(assertion: &Value) -> Vec<Cell> {
    let kind = match assertion.get("never") {
        Some(_) => "never",
        None => "always",
    };
    let of = |name: &str| at(assertion, &format!("/{kind}/{name}"));
    let ports: Vec<&str> = items(assertion, &format!("/{kind}/ports"))
        .filter_map(Value::as_str)
        .collect();
    let or_all = |text: String| if text.is_empty() { "all".to_owned() } else { text };
    [
        kind.to_owned(),
        of("from"),
        of("to"),
        or_all(of("protocol")),
        or_all(ports.join(", ")),
    ]
    .map(Cell::new)
    .into()
}
