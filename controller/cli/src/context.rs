//! The state and the functions that commands share: the client, the resource group, the output, and the wait until a
//! change is in force.

use crate::config::Config;
use crate::failure::{NegativeResult, UsageError};
use crate::options::Global;
use crate::output::{Column, Output, items};
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

/// Time after which a spinner appears. Most calls end earlier, and a spinner that flashes for a moment would distract
/// the user.
const SPINNER_DELAY: Duration = Duration::from_millis(500);
/// Time between two frames of the spinner.
const SPINNER_INTERVAL: Duration = Duration::from_millis(120);

/// The state that commands share: the client of the controller, the configuration, and the output.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) config: Config,
    pub(crate) out: Output,
    global: Global,
}

impl Context {
    /// Reads the configuration and makes the client, without connecting to the controller.
    ///
    /// # Errors
    /// As [`Config::load`] and [`Config::client`].
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

    /// Returns the resource group of the resources that the user names.
    ///
    /// # Errors
    /// [`UsageError`]: neither an option nor a variable nor the configuration file sets a resource group.
    pub(crate) fn group(&self) -> Result<Group> {
        let name = self.config.resource_group.as_deref().ok_or_else(|| {
            UsageError::new(
                "no resource group is given",
                "-g NAME, TOMBOLO_RESOURCE_GROUP, or `tombolo login -g NAME`; `tombolo group list` shows all groups",
            )
        })?;
        Ok(Group::new(&self.config.subscription, name))
    }

    /// Returns the path of the subscription of the resources that the user names.
    pub(crate) fn subscription(&self) -> String {
        format!("/subscriptions/{}", self.config.subscription)
    }

    /// Returns the path of a resource in the group (see [`Self::group`]). Whether the resource exists is not checked.
    pub(crate) fn item(&self, kind: Kind, name: &str) -> Result<String> {
        Ok(self.group()?.item(kind.collection(), name))
    }

    /// Returns the property of a body that refers to a resource, by name or full id; null if `name` is empty.
    pub(crate) fn reference(&self, kind: Kind, name: &str) -> Result<Value> {
        if name.is_empty() {
            return Ok(Value::Null);
        }
        Ok(json!({"id": self.group()?.resolve(kind.collection(), name)}))
    }

    /// Returns a list of references to resources (see [`Self::reference`]). Empty names are left out.
    pub(crate) fn references(&self, kind: Kind, names: &[String]) -> Result<Value> {
        let named = names.iter().filter(|name| !name.is_empty());
        named.map(|name| self.reference(kind, name)).collect()
    }

    /// Lists the resources of a kind, in the group if one is set, otherwise in the whole subscription. Reads them from
    /// the controller.
    pub(crate) async fn list(&self, kind: Kind) -> Result<Vec<Value>> {
        match &self.config.resource_group {
            Some(_) => Ok(self
                .client
                .arm_list(&self.group()?.collection(kind.collection()))
                .await?),
            None => self.list_all(kind).await,
        }
    }

    /// Lists the resources of a kind in the whole subscription.
    pub(crate) async fn list_all(&self, kind: Kind) -> Result<Vec<Value>> {
        let path = format!("{}/providers/{}", self.subscription(), kind.type_name());
        Ok(self.client.arm_list(&path).await?)
    }

    /// Reads a resource of the group from the controller. A resource that does not exist is an error with status 404.
    pub(crate) async fn get(&self, kind: Kind, name: &str) -> Result<Value> {
        Ok(self.client.arm_get(&self.item(kind, name)?).await?)
    }

    /// Reads a resource of the group, and prints it as JSON or with one line for each column.
    pub(crate) async fn show(&self, kind: Kind, name: &str, columns: &[Column]) -> Result<()> {
        self.out.item(&self.get(kind, name).await?, columns)
    }

    /// POST of an action whose result is a list, with further query parameters. Returns the items of the list. If the
    /// result is no list, returns no items.
    pub(crate) async fn post_list(&self, path: &str, query: &[(&str, &str)]) -> Result<Vec<Value>> {
        let answer = self.client.arm_post_with(path, query, &json!({})).await?;
        Ok(items(&answer, "/value").cloned().collect())
    }

    /// Reads a resource of the group, changes it, and writes it back. Prints a message, or the resource as JSON. If
    /// another client writes the resource between the read and the write, that change is lost.
    pub(crate) async fn update(&self, kind: Kind, name: &str, change: impl FnOnce(&mut Value)) -> Result<()> {
        self.edit(&self.item(kind, name)?, &format!("Updated {kind} {name}."), change)
            .await
    }

    /// Deletes a resource of the group. A resource that does not exist is no error.
    pub(crate) async fn remove(&self, kind: Kind, name: &str) -> Result<()> {
        self.delete(&self.item(kind, name)?, kind.title()).await
    }

    /// Returns the given region, or the region of the group, which it reads from the controller.
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

    /// If `--wait` is set, waits until the last write of this process is in force; otherwise returns at once. The
    /// errors are those of [`Self::wait`].
    pub(crate) async fn wait_if_requested(&self) -> Result<()> {
        if self.global.wait {
            self.wait(self.client.last_revision()).await
        } else {
            Ok(())
        }
    }

    /// Waits until a revision is in force on every connected agent, but no longer than `--timeout`. Prints a note when
    /// the revision is in force.
    ///
    /// # Errors
    /// [`NegativeResult`]: the revision is not in force in time; the message names the agents on which it is not.
    /// Otherwise: the controller does not answer.
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
        Err(NegativeResult(format!(
            "revision {revision} is stored, but after {:?} it is not in force at: {} (see `tombolo status`)",
            self.global.timeout,
            agents.join(", ")
        ))
        .into())
    }

    /// Writes a resource by a PUT, and prints `message`, or the resource as JSON. Then waits if `--wait` is set.
    pub(crate) async fn put(&self, path: &str, body: &Value, message: &str) -> Result<()> {
        let answer = self.client.arm_put(path, body).await?;
        self.report_write(&answer, message).await
    }

    /// Reports a write: prints `message`, or the written resource (`answer`) as JSON. Then waits if `--wait` is set.
    pub(crate) async fn report_write(&self, answer: &Value, message: &str) -> Result<()> {
        if self.out.is_json() {
            self.out.json(answer)?;
        } else {
            self.out.note(message);
        }
        self.wait_if_requested().await
    }

    /// Deletes a resource. `title` is the name of its kind in messages. As in Azure, a resource that does not exist is
    /// no error; the message then says that it did not exist. Then waits if `--wait` is set.
    pub(crate) async fn delete(&self, path: &str, title: &str) -> Result<()> {
        let existed = self.client.arm_delete(path).await?;
        let name = tombolo_client::path::last(path);
        let message = if existed {
            format!("Deleted {title} {name}.")
        } else {
            format!("There was no {title} {name}.")
        };
        self.report(&json!({"deleted": existed}), &message).await
    }

    /// Reports a change that has no resource to show: prints `message`, or `json` in JSON format. Then waits if
    /// `--wait` is set.
    pub(crate) async fn report(&self, json: &Value, message: &str) -> Result<()> {
        if self.out.is_json() {
            self.out.json(json)?;
        } else {
            self.out.line(message);
        }
        self.wait_if_requested().await
    }

    /// Reads a resource, changes it, and writes it back. Prints as [`Self::put`] does. If another client writes the
    /// resource between the read and the write, that change is lost.
    pub(crate) async fn edit(&self, path: &str, message: &str, change: impl FnOnce(&mut Value)) -> Result<()> {
        let mut body = self.client.arm_get(path).await?;
        change(&mut body);
        self.put(path, &body, message).await
    }

    /// Asks a yes-or-no question on the terminal, and blocks until it is answered. Returns whether the answer is `y` or
    /// `yes`. With `--yes`, asks nothing and returns true.
    ///
    /// # Errors
    /// [`UsageError`]: standard input is no terminal and `--yes` is not set. Otherwise: the terminal cannot be read.
    pub(crate) fn confirm(&self, question: &str) -> Result<bool> {
        if self.global.yes {
            return Ok(true);
        }
        if !std::io::stdin().is_terminal() {
            let what = format!("{question} Standard input is not a terminal, so this cannot be answered");
            return Err(UsageError::new(what, "add --yes to answer with yes").into());
        }
        eprint!("{question} [y/N] ");
        std::io::stderr().flush()?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer)?;
        Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
    }

    /// Runs `work` and returns its result. If the work takes longer than [`SPINNER_DELAY`], shows a spinner with
    /// `text`. Shows no spinner if standard error is not a terminal or the output format is JSON.
    pub(crate) async fn progress<T>(&self, text: &str, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(SPINNER_DELAY) => {}
        }
        if self.out.is_json() || !std::io::stderr().is_terminal() {
            return work.await;
        }
        let bar = ProgressBar::new_spinner().with_message(text.to_owned());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(SPINNER_INTERVAL);
        let done = work.await;
        bar.finish_and_clear();
        done
    }
}
