//! Resource groups.

use crate::context::Context;
use crate::options::group_name;
use crate::output::{Column, at};
use anyhow::Result;
use clap::Subcommand;
use comfy_table::Cell;
use serde_json::json;
use tombolo_client::manifest::DEFAULT_LOCATION;
use tombolo_client::path::Group as Path;

#[derive(Debug, Subcommand)]
pub(crate) enum Group {
    /// Create a resource group
    Create {
        /// Name of the resource group
        #[arg(value_parser = group_name)]
        name: String,
        /// Region of the group, and of resources in it that are created without --location
        #[arg(short, long, default_value = DEFAULT_LOCATION)]
        location: String,
    },
    /// List the resource groups
    List,
    /// Show a resource group
    Show {
        /// Name of the resource group
        #[arg(value_parser = group_name)]
        name: String,
    },
    /// Delete a resource group and all resources in it
    Delete {
        /// Name of the resource group
        #[arg(value_parser = group_name)]
        name: String,
    },
}

const COLUMNS: &[Column] = &[
    ("Name", |v| Cell::new(at(v, "/name"))),
    ("Location", |v| Cell::new(at(v, "/location"))),
    ("State", |v| Cell::new(at(v, "/properties/provisioningState"))),
];

impl Group {
    /// Creates or prints resource groups. To delete a group with all its resources, first asks the user, and does
    /// nothing if the answer is no, which is not an error.
    pub(crate) async fn run(&self, c: &Context) -> Result<()> {
        let path = |name: &str| Path::new(&c.config.subscription, name).path();
        match self {
            Self::Create { name, location } => {
                c.put(
                    &path(name),
                    &json!({"location": location}),
                    &format!("Created resource group {name}."),
                )
                .await
            }
            Self::List => {
                let all = c
                    .client
                    .arm_list(&format!("{}/resourceGroups", c.subscription()))
                    .await?;
                c.out.list(
                    &all,
                    COLUMNS,
                    "No resource groups. Create one: tombolo group create NAME",
                )
            }
            Self::Show { name } => c.out.item(&c.client.arm_get(&path(name)).await?, COLUMNS),
            Self::Delete { name } => {
                if !c.confirm(&format!("Delete resource group {name} and everything in it?"))? {
                    return c.report(&json!({"deleted": false}), "Nothing was changed.").await;
                }
                c.delete(&path(name), "resource group").await
            }
        }
    }
}
