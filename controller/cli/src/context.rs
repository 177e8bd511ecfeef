//! What every command needs: the client, the group, the output, and waiting for a change to be in force.

use crate::config::Config;
use crate::failure::{No, Usage};
use crate::options::Global;
use crate::output::{Column, Output};
use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::future::Future;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;
use tombolo_client::Client;
use tombolo_client::path::Group;
use tombolo_proto::arm::Kind;
use tombolo_proto::id::Revision;

/// What every command needs.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) config: Config,
    pub(crate) out: Output,
    global: Global,
}

impl Context {
    pub(crate) fn new(global: Global) -> Result<Self> {
        let config = Config::load(&global)?;
        let client = config.client()?;
        let out = Output::new(global.output);
        Ok(Self {
            client,
            config,
            out,
            global,
        })
    }

    /// The group to work in.
    pub(crate) fn group(&self) -> Result<Group> {
        let name = self.config.resource_group.as_deref().ok_or_else(|| {
            Usage::new(
                "no resource group is given",
                "-g NAME, TOMBOLO_RESOURCE_GROUP, or `tombolo login -g NAME`; `tombolo group list` shows them",
            )
        })?;
        Ok(Group::new(&self.config.subscription, name))
    }

    /// `/subscriptions/{sub}`.
    pub(crate) fn subscription(&self) -> String {
        format!("/subscriptions/{}", self.config.subscription)
    }

    /// The path of a resource in the group.
    pub(crate) fn item(&self, kind: Kind, name: &str) -> Result<String> {
        Ok(self.group()?.item(kind.collection(), name))
    }

    /// The resources of a kind: of the group if one is given, of the whole subscription otherwise.
    pub(crate) async fn list(&self, kind: Kind) -> Result<Vec<Value>> {
        match &self.config.resource_group {
            Some(_) => Ok(self
                .client
                .arm_list(&self.group()?.collection(kind.collection()))
                .await?),
            None => self.list_all(kind).await,
        }
    }

    /// The resources of a kind in the whole subscription.
    pub(crate) async fn list_all(&self, kind: Kind) -> Result<Vec<Value>> {
        let path = format!("{}/providers/{}", self.subscription(), kind.type_name());
        Ok(self.client.arm_list(&path).await?)
    }

    /// A resource of the group.
    pub(crate) async fn get(&self, kind: Kind, name: &str) -> Result<Value> {
        Ok(self.client.arm_get(&self.item(kind, name)?).await?)
    }

    /// Shows a resource of the group.
    pub(crate) async fn show(&self, kind: Kind, name: &str, columns: &[Column]) -> Result<()> {
        self.out.item(&self.get(kind, name).await?, columns)
    }

    /// GET, edit and PUT of a resource of the group.
    pub(crate) async fn update(&self, kind: Kind, name: &str, change: impl FnOnce(&mut Value)) -> Result<()> {
        self.edit(&self.item(kind, name)?, &format!("Updated {kind} {name}."), change)
            .await
    }

    /// Deletes a resource of the group.
    pub(crate) async fn remove(&self, kind: Kind, name: &str) -> Result<()> {
        self.delete(&self.item(kind, name)?, kind.title()).await
    }

    /// The given region, or the group's.
    pub(crate) async fn location(&self, given: Option<&str>) -> Result<String> {
        if let Some(location) = given {
            return Ok(location.to_owned());
        }
        let group = self.client.arm_get(&self.group()?.path()).await?;
        Ok(group
            .get("location")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned())
    }

    /// After a write: waits until it is in force, if that was asked for.
    pub(crate) async fn settle(&self) -> Result<()> {
        if self.global.wait {
            self.wait(self.client.last_revision()).await
        } else {
            Ok(())
        }
    }

    /// Waits until every connected agent has applied a revision, as long as `--timeout` says.
    pub(crate) async fn wait(&self, revision: Revision) -> Result<()> {
        let text = format!("waiting for revision {revision} to be in force");
        let waited = self
            .progress(&text, self.client.wait_in_force(revision, self.global.timeout))
            .await?;
        if waited.in_force {
            self.out.note(&format!("Revision {revision} is in force."));
            return Ok(());
        }
        let agents: Vec<_> = waited.waiting_for.iter().map(ToString::to_string).collect();
        Err(No(format!(
            "revision {revision} is stored, but after {:?} it is not in force at: {} (see `tombolo status`)",
            self.global.timeout,
            agents.join(", ")
        ))
        .into())
    }

    /// Writes a resource and shows nothing but its name, or its body for programs.
    pub(crate) async fn put(&self, path: &str, body: &Value, what: &str) -> Result<()> {
        let answer = self.client.arm_put(path, body).await?;
        self.written(&answer, what).await
    }

    /// Says that a resource was written.
    pub(crate) async fn written(&self, answer: &Value, what: &str) -> Result<()> {
        if self.out.is_json() {
            self.out.json(answer)?;
        } else {
            self.out.note(what);
        }
        self.settle().await
    }

    /// Deletes a resource. One that was not there is said, and is no error, as with Azure.
    pub(crate) async fn delete(&self, path: &str, what: &str) -> Result<()> {
        let was_there = self.client.arm_delete(path).await?;
        let name = tombolo_client::path::last(path);
        let said = if was_there {
            format!("Deleted {what} {name}.")
        } else {
            format!("There was no {what} {name}.")
        };
        self.done(&json!({"deleted": was_there}), &said).await
    }

    /// Says that something was done which has no resource to show; `json` is for programs.
    pub(crate) async fn done(&self, json: &Value, what: &str) -> Result<()> {
        if self.out.is_json() {
            self.out.json(json)?;
        } else {
            self.out.line(what);
        }
        self.settle().await
    }

    /// GET, edit, PUT.
    pub(crate) async fn edit(&self, path: &str, what: &str, change: impl FnOnce(&mut Value)) -> Result<()> {
        let mut body = self.client.arm_get(path).await?;
        change(&mut body);
        self.put(path, &body, what).await
    }

    /// Asks; `--yes` answers. Without a terminal there is nobody to ask.
    pub(crate) fn confirm(&self, question: &str) -> Result<bool> {
        if self.global.yes {
            return Ok(true);
        }
        if !std::io::stdin().is_terminal() {
            return Err(Usage::new(format!("{question} Nobody is there to answer"), "give --yes").into());
        }
        eprint!("{question} [y/N] ");
        std::io::stderr().flush()?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer)?;
        Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
    }

    /// Shows on a terminal that something takes its time, if it takes longer than half a second.
    pub(crate) async fn progress<T>(&self, text: &str, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(Duration::from_millis(500)) => {}
        }
        if self.out.is_json() || !std::io::stderr().is_terminal() {
            return work.await;
        }
        let bar = ProgressBar::new_spinner().with_message(text.to_owned());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(120));
        let done = work.await;
        bar.finish_and_clear();
        done
    }
}
