//! `tombolo apply` and `tombolo diff`: compare manifests with the controller's resources, and change the resources.

use super::files::Files;
use super::reach;
use crate::context::Context;
use anyhow::Result;
use clap::Args;
use owo_colors::OwoColorize as _;
use serde_json::{Value, json};
use similar::{ChangeTag, TextDiff};
use std::fmt::Write as _;
use std::process::ExitCode;
use tombolo_client::manifest::{Action, Plan, Step};
use tombolo_client::path::Group;

#[derive(Debug, Args)]
pub(crate) struct Apply {
    #[command(flatten)]
    files: Files,
    /// Show what would change and what that would connect and cut, check the assertions, and change nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Diff {
    #[command(flatten)]
    files: Files,
    /// Exit with code 1 if there is a difference
    #[arg(long)]
    exit_code: bool,
}

impl Apply {
    /// Compares the manifests with the controller's resources, prints the difference, asks the user, and carries out
    /// the plan if the answer is yes. The answer no is not an error. If a step fails, the changes of the steps before
    /// it stay. At the end, waits if `--wait` is set. If an assertion of the manifests or a stored one would not hold
    /// afterwards, changes nothing, and the exit code is 1.
    pub(crate) async fn run(&self, c: &Context) -> Result<ExitCode> {
        if self.dry_run {
            return show_effects(c, &self.files, false).await;
        }
        let (plan, assertions) = self.files.plan(c).await?;
        if !c.out.is_json() {
            show(c, &plan);
        }
        if !plan.is_empty() && (!assertions.is_empty() || has_stored_assertions(c).await) {
            let question = plan.reach_diff(assertions);
            let answer = c
                .progress("checking the assertions", c.client.reach_diff(&question))
                .await?;
            if reach::has_broken(&answer) {
                if c.out.is_json() {
                    c.out.json(&answer)?;
                } else {
                    reach::show_difference(c.out, &answer);
                    c.out.note(
                        "Nothing was changed: change the files so that the assertions hold, or change the assertions.",
                    );
                }
                return Ok(ExitCode::FAILURE);
            }
        }
        self.carry_out(c, &plan).await.map(|()| ExitCode::SUCCESS)
    }

    async fn carry_out(&self, c: &Context, plan: &Plan) -> Result<()> {
        if plan.is_empty() {
            if c.out.is_json() {
                c.out.json(plan)?;
            }
            return c.wait_if_requested().await;
        }
        if !c.confirm("Apply these changes?")? {
            c.out.note("Nothing was changed.");
            return Ok(());
        }
        let applied = plan
            .apply(&c.client, |step| {
                c.out
                    .note(&format!("{} {} {} …", verb(step.action), step.kind, step.name))
            })
            .await?;
        if c.out.is_json() {
            c.out.json(plan)?;
        } else {
            c.out.line(&format!(
                "Applied {} change(s); revision {}.",
                applied.changed, applied.revision
            ));
        }
        c.wait_if_requested().await
    }
}

impl Diff {
    /// Prints the difference, what it would connect and cut, and the assertions that would not hold; changes nothing.
    /// The exit code is 1 if an assertion would not hold, or if there is a difference and `--exit-code` is set.
    pub(crate) async fn run(&self, c: &Context) -> Result<ExitCode> {
        show_effects(c, &self.files, self.exit_code).await
    }
}

/// Whether the controller has assertions that may refuse changes.
async fn has_stored_assertions(c: &Context) -> bool {
    // A controller that does not know the request has none.
    let stored = c.client.assertions().await;
    stored.is_ok_and(|stored| !reach::is_empty(&stored, "/assertions"))
}

/// Prints what the files would change, connect and cut, and which of their assertions would not hold. The exit code
/// is 1 if there is such an assertion, or a change and `fails_on_change` is true.
async fn show_effects(c: &Context, files: &Files, fails_on_change: bool) -> Result<ExitCode> {
    let (plan, assertions) = files.plan(c).await?;
    let question = plan.reach_diff(assertions);
    let work = c.client.reach_diff(&question);
    let reach = c.progress("computing what that connects and cuts", work).await?;
    if c.out.is_json() {
        let mut effects = json!(plan);
        effects["reach"] = reach.clone();
        c.out.json(&effects)?;
    } else {
        show(c, &plan);
        if !plan.is_empty() || reach::has_broken(&reach) {
            reach::show_difference(c.out, &reach);
        }
    }
    let fails = fails_on_change && !plan.is_empty();
    Ok(match fails || reach::has_broken(&reach) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

fn verb(action: Action) -> &'static str {
    match action {
        Action::Create => "Creating",
        Action::Update => "Updating",
        Action::Delete => "Deleting",
        Action::Unchanged => "Keeping",
    }
}

/// Prints every change with its difference, in the order of the plan, and then a summary.
fn show(c: &Context, plan: &Plan) {
    for step in plan.changes() {
        c.out.line(render(step, c.out.colour).trim_end());
    }
    let n = |action| plan.count(action);
    if plan.is_empty() {
        c.out.line(&format!(
            "No changes: {} resource(s) are as they should be.",
            n(Action::Unchanged)
        ));
    } else {
        c.out.line(&format!(
            "\n{} to create, {} to update, {} to delete, {} unchanged.",
            n(Action::Create),
            n(Action::Update),
            n(Action::Delete),
            n(Action::Unchanged)
        ));
    }
}

/// Formats a step: a headline, then the changed lines with a few unchanged lines around them.
fn render(step: &Step, colour: bool) -> String {
    let paint = |text: &str, action: Action| match (colour, action) {
        (true, Action::Create) => text.green().to_string(),
        (true, Action::Update) => text.yellow().to_string(),
        (true, Action::Delete) => text.red().to_string(),
        _ => text.to_owned(),
    };
    let sign = match step.action {
        Action::Create => "+",
        Action::Update => "~",
        Action::Delete => "-",
        Action::Unchanged => " ",
    };
    let mut out = paint(&format!("{sign} {} {}", step.kind, step.name), step.action);
    if let Some(note) = &step.note {
        // Writing to a String cannot fail.
        let _ = write!(out, ": {note}");
    }
    out.push('\n');
    if step.action == Action::Delete {
        return out;
    }
    let (before, after) = (yaml(&step.before, &step.group), yaml(&step.after, &step.group));
    let diff = TextDiff::from_lines(&before, &after);
    // For a new resource, every line counts as context and is shown. The number of lines is not `usize::MAX`, because
    // the crate `similar` doubles it, which would overflow.
    let context_lines = if step.action == Action::Create {
        usize::MAX / 4
    } else {
        3
    };
    for group in diff.grouped_ops(context_lines) {
        for change in group.iter().flat_map(|op| diff.iter_changes(op)) {
            let line = change.value().trim_end_matches('\n');
            let (mark, action) = match change.tag() {
                ChangeTag::Delete => ("-", Action::Delete),
                ChangeTag::Insert => ("+", Action::Create),
                ChangeTag::Equal => (" ", Action::Unchanged),
            };
            out.push_str(&paint(&format!("    {mark} {line}"), action));
            out.push('\n');
        }
    }
    out
}

/// Formats a body as YAML. In ids of resources in the step's group, only the part after the provider
/// `Microsoft.Network` is shown.
fn yaml(value: &Value, group: &Group) -> String {
    if value.is_null() {
        return String::new();
    }
    let short = shorten(value, &format!("{}/providers/Microsoft.Network/", group.path()));
    serde_norway::to_string(&short).unwrap_or_default()
}

fn shorten(value: &Value, prefix: &str) -> Value {
    match value {
        Value::String(s) if s.get(..prefix.len()).is_some_and(|p| p.eq_ignore_ascii_case(prefix)) => {
            Value::String(s[prefix.len()..].to_owned())
        }
        Value::Array(a) => Value::Array(a.iter().map(|v| shorten(v, prefix)).collect()),
        Value::Object(o) => Value::Object(o.iter().map(|(k, v)| (k.clone(), shorten(v, prefix))).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tombolo_client::manifest::Manifest;
    use tombolo_client::manifest::Server;

    #[test]
    fn a_difference_shows_what_comes_and_goes() {
        let group = Group::new("s", "g");
        let mut before = Manifest::default();
        before
            .parse("a", "virtualNetworks: {v: {addressSpace: [10.0.0.0/8]}}")
            .unwrap();
        let mut after = Manifest::default();
        after
            .parse("a", "virtualNetworks: {v: {addressSpace: [10.0.0.0/8, 11.0.0.0/8]}}")
            .unwrap();
        let mut server = Server::default();
        for e in before.expand(&group).unwrap() {
            server.insert(e.kind, &e.path, e.body);
        }
        let plan = Plan::make(&after.expand(&group).unwrap(), &server, false).unwrap();
        let text: String = plan.changes().map(|s| render(s, false)).collect();
        assert!(text.contains("~ virtual network v"), "{text}");
        assert!(text.contains("    + ") && text.contains("11.0.0.0/8"), "{text}");
        assert!(!text.lines().any(|l| l.starts_with("    - ")), "{text}");
        let new = Plan::make(&after.expand(&group).unwrap(), &Server::default(), false).unwrap();
        let text: String = new.changes().map(|s| render(s, false)).collect();
        assert!(
            text.contains("+ resource group g") && text.contains("addressPrefixes:"),
            "{text}"
        );
    }
}
