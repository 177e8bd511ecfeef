//! `tombolo routes`: the effective routes of a network interface, as Azure shows them.

use crate::context::Context;
use crate::failure::{NotFound, UsageError};
use crate::output::{Column, at, items, state};
use anyhow::Result;
use clap::Args;
use comfy_table::Cell;
use serde_json::{Value, json};
use tombolo_client::fabric::Binding;
use tombolo_proto::arm::Kind;

#[derive(Debug, Args)]
pub(crate) struct Routes {
    /// Network interface, machine or agent, by name or id
    name: String,
}

const COLUMNS: &[Column] = &[
    ("Source", |v| Cell::new(at(v, "/source"))),
    ("State", |v| state(&at(v, "/state"))),
    ("Prefix", |v| Cell::new(at(v, "/addressPrefix"))),
    ("Next hop type", |v| Cell::new(at(v, "/nextHopType"))),
    ("Next hop IP", |v| Cell::new(at(v, "/nextHopIpAddress"))),
];

impl Routes {
    /// Prints the effective routes of each network interface that the name stands for.
    pub(crate) async fn run(&self, c: &Context) -> Result<()> {
        let nics = self.nics(c).await?;
        let mut all = Vec::new();
        for nic in &nics {
            let answer = c
                .client
                .arm_post(&format!("{nic}/effectiveRouteTable"), &json!({}))
                .await?;
            all.push((nic, items(&answer, "/value").cloned().collect::<Vec<Value>>()));
        }
        if c.out.is_json() {
            let each = all.iter().map(|(nic, routes)| json!({"nic": nic, "routes": routes}));
            return c.out.json(&each.collect::<Vec<_>>());
        }
        for (nic, routes) in &all {
            if all.len() > 1 {
                c.out.title(tombolo_client::path::last(nic));
            }
            c.out.list(routes, COLUMNS, "no routes")?;
        }
        Ok(())
    }

    /// Returns the ids of the network interfaces that the name or id stands for: one interface, or all interfaces of a
    /// machine.
    ///
    /// # Errors
    /// [`NotFound`]: nothing has this name. [`UsageError`]: several network interfaces have it.
    async fn nics(&self, c: &Context) -> Result<Vec<String>> {
        let lower = self.name.to_ascii_lowercase();
        if lower.contains("/networkinterfaces/") {
            return Ok(vec![self.name.clone()]);
        }
        let all = c.list(Kind::NetworkInterface).await?;
        let found: Vec<_> = all
            .iter()
            .filter(|n| at(n, "/name").eq_ignore_ascii_case(&self.name))
            .map(|n| at(n, "/id"))
            .collect();
        match found.len() {
            0 => {}
            1 => return Ok(found),
            _ => {
                let what = format!("several network interfaces are called {}", self.name);
                return Err(UsageError::new(what, format!("-g GROUP, or a full id: {}", found.join(", "))).into());
            }
        }
        for agent in c.client.agents().await? {
            let Binding::Vm { vm, nics, .. } = &agent.binding else {
                continue;
            };
            let is_named = |id: &str| id.eq_ignore_ascii_case(&self.name);
            if is_named(agent.id.as_str()) || is_named(vm.as_str()) || is_named(vm.name()) {
                return Ok(nics.iter().map(|n| n.as_str().to_owned()).collect());
            }
        }
        let names = all.iter().map(|n| at(n, "/name")).collect::<Vec<_>>().join(", ");
        let known = if names.is_empty() {
            "there are none".to_owned()
        } else {
            format!("interfaces: {names}")
        };
        Err(NotFound(format!(
            "there is no network interface or machine '{}' ({known})",
            self.name
        ))
        .into())
    }
}
