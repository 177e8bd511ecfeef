//! Network security groups.

mod hits;
mod rule;

use crate::command::plain::{object, tag};
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
        /// Region [default: the resource group's]
        #[arg(short, long)]
        location: Option<String>,
        /// Tags of the network security group
        #[arg(long, value_name = "NAME=VALUE", num_args = 1.., value_delimiter = ',', value_parser = tag)]
        tags: Option<Vec<(String, String)>>,
    },
    /// List network security groups
    List,
    /// Show a network security group with its rules and default rules, in the order in which they are tried
    Show {
        /// Name of the network security group
        #[arg(value_parser = name)]
        name: String,
    },
    /// Change a network security group
    Update {
        /// Name of the network security group
        #[arg(value_parser = name)]
        name: String,
        /// Tags that replace all present tags; if the option has no value, all tags are removed
        #[arg(long, required = true, value_name = "NAME=VALUE", num_args = 0.., value_delimiter = ',', value_parser = tag)]
        tags: Vec<(String, String)>,
    },
    /// Delete a network security group
    Delete {
        /// Name of the network security group
        #[arg(value_parser = name)]
        name: String,
    },
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
            Self::Create { name, location, tags } => {
                let path = c.item(Kind::NetworkSecurityGroup, name)?;
                // A PUT without rules would remove all rules of a group that exists, so the body is based on the
                // present group.
                let old = c.client.arm_find(&path).await?;
                let verb = if old.is_some() { "Updated" } else { "Created" };
                let mut body = old.unwrap_or_else(|| json!({}));
                if location.is_some() || body.get("location").is_none() {
                    body["location"] = json!(c.location(location.as_deref()).await?);
                }
                if let Some(tags) = tags {
                    body["tags"] = object(tags);
                }
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
            Self::Update { name, tags } => {
                let change = |group: &mut Value| group["tags"] = object(tags);
                c.update(Kind::NetworkSecurityGroup, name, change).await
            }
            Self::Delete { name } => c.remove(Kind::NetworkSecurityGroup, name).await,
            Self::Rule(rule) => rule.run(c).await,
        }
    }
}
