//! `tombolo reach`: which addresses reach which, by which protocols and ports, and what changes would connect and cut.

use super::files::OptionalFiles;
use crate::context::Context;
use crate::output::{Output, at, items};
use anyhow::Result;
use clap::{Args, Subcommand};
use comfy_table::Cell;
use owo_colors::OwoColorize as _;
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::ExitCode;
use tombolo_client::fabric::{ReachDiffRequest, ReachRequest};
use tombolo_proto::id::Revision;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Reach {
    #[command(subcommand)]
    command: Option<ReachCommand>,
    /// Only packets from this virtual network, VNET/SUBNET, network interface, machine, application security group, site,
    /// address or prefix; may be repeated
    #[arg(long, value_name = "NAME")]
    from: Vec<String>,
    /// Only packets to this one, in the same forms, or to LB/FRONT-END; may be repeated
    #[arg(long, value_name = "NAME")]
    to: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum ReachCommand {
    /// Show what the changes of manifests would connect and cut, and check their assertions; or what changes since an
    /// earlier revision have connected and cut. Changes nothing
    Diff(ReachDiff),
}

#[derive(Debug, Args)]
struct ReachDiff {
    #[command(flatten)]
    files: OptionalFiles,
    /// Compare with the state of this earlier revision; `tombolo status` shows the present one
    #[arg(long, value_name = "REVISION")]
    since: Option<u64>,
    /// Compare up to the state of this earlier revision, not up to the present one
    #[arg(long, value_name = "REVISION", requires = "since", conflicts_with = "files")]
    until: Option<u64>,
    /// Exit with code 1 if anything would be connected or cut
    #[arg(long)]
    exit_code: bool,
}

impl Reach {
    /// Prints who reaches whom. For `reach diff`, the exit code is 1 if an assertion would not hold, of the files or a stored
    /// one, or if there is a difference and `--exit-code` is set.
    pub(crate) async fn run(&self, c: &Context) -> Result<ExitCode> {
        if let Some(ReachCommand::Diff(diff)) = &self.command {
            let plan = diff.files.plan(c).await?;
            let mut question = plan.map_or_else(ReachDiffRequest::default, |(plan, assertions)| {
                plan.reach_diff(assertions)
            });
            question.since = diff.since.map(Revision);
            question.until = diff.until.map(Revision);
            let answer = c.client.reach_diff(&question).await?;
            if c.out.is_json() {
                c.out.json(&answer)?;
            } else {
                show_difference(c.out, &answer);
            }
            let differs = diff.exit_code && !(is_empty(&answer, "/connects") && is_empty(&answer, "/cuts"));
            return Ok(match differs || has_broken(&answer) {
                true => ExitCode::FAILURE,
                false => ExitCode::SUCCESS,
            });
        }
        let request = ReachRequest {
            from: self.from.clone(),
            to: self.to.clone(),
        };
        let answer = c.client.reach(&request).await?;
        if c.out.is_json() {
            c.out.json(&answer)?;
        } else {
            show(c.out, &answer);
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Whether an assertion of the question would not hold, or a stored one would refuse the changes.
pub(crate) fn has_broken(answer: &Value) -> bool {
    !is_empty(answer, "/violations") || !is_empty(answer, "/refused")
}

/// Whether a list in an answer has no item.
pub(crate) fn is_empty(answer: &Value, pointer: &str) -> bool {
    items(answer, pointer).next().is_none()
}

const COLUMNS: [&str; 5] = ["From", "To", "TCP", "UDP", "ICMP"];

/// Prints a table with a row for each pair of groups. Senders that send the same to a group share a row.
fn show(out: Output, answer: &Value) {
    let names: Vec<String> = items(answer, "/groups").map(|group| at(group, "/name")).collect();
    let name = |entry: &Value, side: &str| {
        let position = entry
            .get(side)
            .and_then(Value::as_u64)
            .and_then(|n| usize::try_from(n).ok());
        position.and_then(|n| names.get(n)).cloned().unwrap_or_default()
    };
    let mut rows: BTreeMap<(String, [String; 3]), Vec<String>> = BTreeMap::new();
    for entry in items(answer, "/entries") {
        rows.entry((name(entry, "from"), traffic(entry)))
            .or_default()
            .push(name(entry, "to"));
    }
    let rows = rows
        .into_iter()
        .map(|((from, traffic), to)| row(from, to.join("\n"), traffic));
    out.table(&COLUMNS, rows.collect(), "Nothing reaches anything.");
}

fn row(from: String, to: String, traffic: [String; 3]) -> Vec<Cell> {
    let ends = [from, to].into_iter();
    ends.chain(traffic).map(Cell::new).collect()
}

/// The ports of TCP, those of UDP, and whether ICMP arrives, as cells of a table.
fn traffic(entry: &Value) -> [String; 3] {
    let ports = |name: &str| {
        let texts: Vec<&str> = items(entry, name).filter_map(Value::as_str).collect();
        match texts.as_slice() {
            [] => "-".to_owned(),
            ["*"] => "all".to_owned(),
            texts => texts.join(", "),
        }
    };
    let icmp = entry.get("icmp").and_then(Value::as_bool) == Some(true);
    [ports("/tcp"), ports("/udp"), if icmp { "yes" } else { "-" }.to_owned()]
}

/// Prints assertions that do not hold, if there are any, below a title.
pub(crate) fn show_broken(out: Output, title: &str, texts: Vec<String>) {
    if !texts.is_empty() {
        out.title(&format!("\n{title}"));
    }
    for text in texts {
        let text = format!("✗ {text}");
        out.line(&if out.colour { text.red().to_string() } else { text });
    }
}

/// Prints what changes connect and cut, and the assertions that do not hold.
pub(crate) fn show_difference(out: Output, answer: &Value) {
    for (pointer, title, none) in [
        ("/connects", "Connects", "Connects nothing new."),
        ("/cuts", "Cuts", "Cuts nothing."),
    ] {
        let rows: Vec<_> = items(answer, pointer)
            .map(|entry| row(at(entry, "/fromName"), at(entry, "/toName"), traffic(entry)))
            .collect();
        if rows.is_empty() {
            out.line(none);
        } else {
            out.title(&format!("\n{title}"));
            out.table(&COLUMNS, rows, "");
        }
    }
    let broken = items(answer, "/violations").map(|v| at(v, "/text"));
    show_broken(out, "Assertions that do not hold", broken.collect());
    let refused = items(answer, "/refused").map(|text| at(text, ""));
    show_broken(
        out,
        "Refused by stored assertions, which would no longer hold",
        refused.collect(),
    );
}
