//! Network security groups.

mod hits;
mod rule;

use crate::command::plain::{RegionAndTags, UpdateOrDelete};
use crate::context::Context;
use crate::options::name;
use crate::output::{Column, at, items, name_at};
use anyhow::Result;
use clap::Subcommand;
use comfy_table::Cell;
use rule::Rule;
use serde_json::{Value, json};
use tombolo_client::path::segment;
use tombolo_proto::arm::Kind;

#[derive(Debug, Subcommand)]
pub(crate) enum Nsg {
    /// Create a network security group; a group that exists keeps its rules
    Create {
        /// Name of the network security group
        #[arg(value_parser = name)]
        name: String,
        #[command(flatten)]
        own: RegionAndTags,
    },
    /// List network security groups
    List,
    /// Show a network security group with its rules and default rules, in the order in which they are tried
    Show {
        /// Name of the network security group
        #[arg(value_parser = name)]
        name: String,
    },
    #[command(flatten)]
    Other(UpdateOrDelete),
    /// Manage the rules of a group; a rule is named GROUP/RULE
    #[command(subcommand)]
    Rule(Rule),
}

const COLUMNS: &[Column] = &[
    ("Name", |v| Cell::new(at(v, "/name"))),
    ("Location", |v| Cell::new(at(v, "/location"))),
    ("Rules", |v| Cell::new(items(v, "/properties/securityRules").count())),
    ("Subnets", |v| {
        let subnet = |s: &Value| {
            let id = at(s, "/id");
            let vnet = segment(&id, "virtualNetworks").unwrap_or_default();
            format!("{vnet}/{}", name_at(s, "/id"))
        };
        let subnets: Vec<_> = items(v, "/properties/subnets").map(subnet).collect();
        Cell::new(subnets.join(", "))
    }),
    ("Network interfaces", |v| {
        let nics = items(v, "/properties/networkInterfaces").map(|nic| name_at(nic, "/id"));
        Cell::new(nics.collect::<Vec<_>>().join(", "))
    }),
];

impl Nsg {
    /// Creates, changes, deletes or prints network security groups or their rules. An update of a group replaces all
    /// its tags.
    pub(crate) async fn run(&self, c: &Context) -> Result<()> {
        match self {
            Self::Create { name, own } => {
                let path = c.item(Kind::NetworkSecurityGroup, name)?;
                // A PUT without rules would remove all rules of a group that exists, so the body is based on the
                // present group.
                let old = c.client.arm_find(&path).await?;
                let verb = if old.is_some() { "Updated" } else { "Created" };
                let mut body = old.unwrap_or_else(|| json!({}));
                own.apply_to(&mut body, c).await?;
                c.put(&path, &body, &format!("{verb} network security group {name}."))
                    .await
            }
            Self::List => {
                let all = c.list(Kind::NetworkSecurityGroup).await?;
                let empty = "No network security groups. Create one: tombolo nsg create NAME";
                c.out.list(&all, COLUMNS, empty)
            }
            Self::Show { name } => {
                let group = c.get(Kind::NetworkSecurityGroup, name).await?;
                c.out.item(&group, COLUMNS)?;
                if !c.out.is_json() {
                    c.out.title("\nRules");
                    c.out.list(&rule::of_group(&group, true), rule::COLUMNS, "none")?;
                }
                Ok(())
            }
            Self::Other(verb) => verb.run(c, Kind::NetworkSecurityGroup).await,
            Self::Rule(rule) => rule.run(c).await,
        }
    }
}
