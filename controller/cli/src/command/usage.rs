//! `tombolo usage`: what peerings, connections and circuits have carried, and what that costs.

use crate::context::Context;
use crate::failure::UsageError;
use crate::output::{at, items, name_at};
use anyhow::{Context as _, Result};
use clap::Args;
use comfy_table::{Cell, CellAlignment};
use serde_json::Value;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tombolo_client::fabric::UsageRequest;

#[derive(Debug, Args)]
pub(crate) struct Usage {
    /// Beginning: a date (2026-11-01) or a time (2026-11-01T08:00:00Z), UTC. Default: 30 days before the end
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// End, in the same forms. Default: now
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// File with prices in place of the defaults, YAML or JSON
    #[arg(long, value_name = "FILE")]
    prices: Option<PathBuf>,
}

/// The length of time that is shown by default.
const DEFAULT_LENGTH: Duration = Duration::from_secs(30 * 24 * 60 * 60);

impl Usage {
    /// Prints a table with a row for each resource that has carried something.
    pub(crate) async fn run(&self, c: &Context) -> Result<()> {
        let time = |given: &Option<String>| given.as_deref().map(seconds).transpose();
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let to = time(&self.to)?.unwrap_or(now);
        let from = time(&self.from)?.unwrap_or_else(|| to.saturating_sub(DEFAULT_LENGTH.as_secs()));
        let prices = match &self.prices {
            Some(file) => {
                let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
                let prices: Value =
                    serde_norway::from_str(&text).with_context(|| format!("{}: no prices", file.display()))?;
                Some(prices)
            }
            None => None,
        };
        let has_own_prices = prices.is_some();
        let answer = c.client.usage(&UsageRequest { from, to, prices }).await?;
        if c.out.is_json() {
            c.out.json(&answer)?;
            return Ok(());
        }
        let columns = ["Resource", "Kind", "Ingress", "Egress", "Charge (USD)"];
        let rows: Vec<_> = items(&answer, "/entries").map(row).collect();
        let is_empty = rows.is_empty();
        c.out
            .table(&columns, rows, "Nothing has passed between networks in this time.");
        if !is_empty {
            let total = answer.get("total").and_then(Value::as_f64).unwrap_or_default();
            c.out.line(&format!("Total: {} USD", dollars(total)));
            if !has_own_prices {
                c.out
                    .note("The prices are Azure's as far as they are known, and are not verified. Give your own with --prices.");
            }
        }
        Ok(())
    }
}

fn row(entry: &Value) -> Vec<Cell> {
    let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
    let bytes = |name: &str| right(amount(entry.get(name).and_then(Value::as_u64).unwrap_or_default()));
    let charge = ["ingress", "egress"].map(|of| entry.pointer(&format!("/charge/{of}")).and_then(Value::as_f64));
    let charge = match charge {
        [Some(ingress), Some(egress)] => dollars(ingress + egress),
        _ => "-".to_owned(),
    };
    vec![
        Cell::new(name_of(entry)),
        Cell::new(at(entry, "/kind")),
        bytes("ingressBytes"),
        bytes("egressBytes"),
        right(charge),
    ]
}

/// The name of a resource; that of a peering with its virtual network.
fn name_of(entry: &Value) -> String {
    let id = at(entry, "/resource");
    let vnet = id
        .to_ascii_lowercase()
        .find("/virtualnetworkpeerings/")
        .map(|end| tombolo_client::path::last(&id[..end]));
    match vnet {
        Some(vnet) => format!("{vnet}/{}", name_at(entry, "/resource")),
        None => name_at(entry, "/resource"),
    }
}

/// Bytes in the largest unit of which there is at least one. A gigabyte has 10⁹ bytes, as in prices.
fn amount(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "four digits are shown")]
    let exact = bytes as f64;
    let units = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    match units.iter().find(|(size, _)| exact >= *size) {
        Some((size, unit)) => format!("{:.2} {unit}", exact / size),
        None => format!("{bytes} B"),
    }
}

fn dollars(amount: f64) -> String {
    format!("{amount:.4}")
}

/// A date or a time in seconds of Unix time.
fn seconds(text: &str) -> Result<u64> {
    let wrong = || {
        UsageError::new(
            format!("'{text}' is no time"),
            "a date such as 2026-11-01, or a time such as 2026-11-01T08:00:00Z".to_owned(),
        )
    };
    let with_time = if text.len() == "2026-11-01".len() {
        format!("{text}T00:00:00Z")
    } else {
        text.to_owned()
    };
    let time = OffsetDateTime::parse(&with_time, &Rfc3339).map_err(|_| wrong())?;
    Ok(u64::try_from(time.unix_timestamp()).map_err(|_| wrong())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn times_are_read() {
        assert_eq!(seconds("1970-01-02").unwrap(), 86_400);
        assert_eq!(seconds("1970-01-01T01:00:00Z").unwrap(), 3600);
        for wrong in ["", "yesterday", "2026-13-01", "1970-01-01T01:00:00"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_and_amounts_are_short() {
        let entry = json!({"resource": "/s/virtualNetworks/hub/virtualNetworkPeerings/to-spoke"});
        assert_eq!(name_of(&entry), "hub/to-spoke");
        assert_eq!(name_of(&json!({"resource": "/s/connections/c"})), "c");
        assert_eq!(
            [0, 999, 1500, 2_000_000_000].map(amount),
            ["0 B", "999 B", "1.50 kB", "2.00 GB"]
        );
    }
}
