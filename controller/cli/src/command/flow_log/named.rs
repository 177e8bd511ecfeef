//! Flow logs by name.

use crate::context::Context;
use crate::failure::UsageError;
use crate::output::at;
use anyhow::Result;
use serde_json::Value;

/// The flow logs of all regions.
pub(super) async fn all(c: &Context) -> Result<Vec<Value>> {
    let mut logs = Vec::new();
    let watchers = format!("{}/providers/Microsoft.Network/networkWatchers", c.subscription());
    for watcher in c.client.arm_list(&watchers).await? {
        logs.extend(c.client.arm_list(&format!("{}/flowLogs", at(&watcher, "/id"))).await?);
    }
    Ok(logs)
}

/// A way to name a region.
pub(super) const REST: &str = "the REST API, which names a region's network watcher";

/// The flow log with a name. `hint` says how to name its region.
///
/// # Errors
/// [`UsageError`]: there is none, or several regions have one.
pub(super) fn find<'l>(logs: &'l [Value], name: &str, hint: &str) -> Result<&'l Value> {
    let is_named = |log: &&Value| at(log, "/name").eq_ignore_ascii_case(name);
    let mut found = logs.iter().filter(is_named);
    match (found.next(), found.next()) {
        (Some(log), None) => Ok(log),
        (Some(_), Some(_)) => {
            let what = format!("several regions have a flow log '{name}'");
            Err(UsageError::new(what, hint).into())
        }
        (None, _) => {
            let what = format!("there is no flow log '{name}'");
            Err(UsageError::new(what, "`tombolo flow-log list`").into())
        }
    }
}
