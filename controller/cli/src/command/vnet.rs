//! Virtual networks.

use crate::command::{peering, subnet};
use crate::context::Context;
use crate::failure::UsageError;
use crate::options::name;
use crate::output::{Column, at, items, text};
use anyhow::Result;
use clap::Subcommand;
use comfy_table::Cell;
use ipnet::IpNet;
use serde_json::{Value, json};
use tombolo_client::path::segment;
use tombolo_proto::arm::Kind;

#[derive(Debug, Subcommand)]
pub(crate) enum Vnet {
    /// Create a virtual network
    Create {
        /// Name of the virtual network
        #[arg(value_parser = name)]
        name: String,
        /// Address space: one or several prefixes, such as 10.1.0.0/16
        #[arg(short = 'p', long = "address-prefix", visible_alias = "address-prefixes", required = true, num_args = 1.., value_delimiter = ',')]
        prefixes: Vec<IpNet>,
        /// Region [default: the group's]
        #[arg(short, long)]
        location: Option<String>,
        /// Name of a subnet to create in the virtual network
        #[arg(long, value_parser = name, requires = "subnet_prefix")]
        subnet_name: Option<String>,
        /// Prefix of that subnet
        #[arg(long, requires = "subnet_name")]
        subnet_prefix: Option<IpNet>,
    },
    /// List virtual networks
    List,
    /// Show a virtual network with its subnets and peerings
    Show {
        /// Name of the virtual network
        #[arg(value_parser = name)]
        name: String,
    },
    /// Change the address space; peered VNets use the new one after `tombolo peering sync`
    Update {
        /// Name of the virtual network
        #[arg(value_parser = name)]
        name: String,
        /// Prefixes that replace the whole address space
        #[arg(short = 'p', long = "address-prefix", visible_alias = "address-prefixes", num_args = 1.., value_delimiter = ',')]
        prefixes: Vec<IpNet>,
        /// Prefixes to add to the address space
        #[arg(long = "add-prefix", num_args = 1.., value_delimiter = ',', conflicts_with = "prefixes")]
        add: Vec<IpNet>,
        /// Prefixes to remove from the address space
        #[arg(long = "remove-prefix", num_args = 1.., value_delimiter = ',', conflicts_with = "prefixes")]
        remove: Vec<IpNet>,
    },
    /// Delete a virtual network
    Delete {
        /// Name of the virtual network
        #[arg(value_parser = name)]
        name: String,
    },
}

const SPACE: &str = "/properties/addressSpace/addressPrefixes";

const COLUMNS: &[Column] = &[
    ("Name", |v| Cell::new(at(v, "/name"))),
    ("Group", |v| {
        Cell::new(segment(&at(v, "/id"), "resourceGroups").unwrap_or_default())
    }),
    ("Location", |v| Cell::new(at(v, "/location"))),
    ("Address space", |v| Cell::new(at(v, SPACE))),
    ("Subnets", |v| Cell::new(items(v, "/properties/subnets").count())),
    ("Peerings", |v| {
        Cell::new(items(v, "/properties/virtualNetworkPeerings").count())
    }),
];

impl Vnet {
    /// Creates, changes, deletes or prints virtual networks. An update changes only the address space. An update
    /// without an option is a [`UsageError`].
    pub(crate) async fn run(&self, c: &Context) -> Result<()> {
        match self {
            Self::Create {
                name,
                prefixes,
                location,
                subnet_name,
                subnet_prefix,
            } => {
                let mut body = json!({
                    "location": c.location(location.as_deref()).await?,
                    "properties": {"addressSpace": {"addressPrefixes": prefixes}},
                });
                if let (Some(subnet), Some(prefix)) = (subnet_name, subnet_prefix) {
                    let subnet = json!({"name": subnet, "properties": {"addressPrefix": prefix}});
                    body["properties"]["subnets"] = json!([subnet]);
                }
                c.put(&path(c, name)?, &body, &format!("Created virtual network {name}."))
                    .await
            }
            Self::List => {
                let all = c.list(Kind::VirtualNetwork).await?;
                c.out.list(
                    &all,
                    COLUMNS,
                    "No virtual networks. Create one: tombolo vnet create NAME -p PREFIX",
                )
            }
            Self::Show { name } => {
                let vnet = c.get(Kind::VirtualNetwork, name).await?;
                c.out.item(&vnet, COLUMNS)?;
                if !c.out.is_json() {
                    let subnets: Vec<_> = items(&vnet, "/properties/subnets").cloned().collect();
                    c.out.title("\nSubnets");
                    c.out.list(&subnets, subnet::COLUMNS, "none")?;
                    let peerings: Vec<_> = items(&vnet, "/properties/virtualNetworkPeerings").cloned().collect();
                    c.out.title("\nPeerings");
                    c.out.list(&peerings, peering::COLUMNS, "none")?;
                }
                Ok(())
            }
            Self::Update {
                name,
                prefixes,
                add,
                remove,
            } => {
                if prefixes.is_empty() && add.is_empty() && remove.is_empty() {
                    let hint = "add --address-prefix, --add-prefix or --remove-prefix";
                    return Err(UsageError::new("nothing to change", hint).into());
                }
                let change = |vnet: &mut Value| change_space(vnet, prefixes, add, remove);
                c.update(Kind::VirtualNetwork, name, change).await
            }
            Self::Delete { name } => c.remove(Kind::VirtualNetwork, name).await,
        }
    }
}

/// Changes the address space in the VNet's body: replaces all prefixes by `prefixes` if that is not empty, then removes
/// the prefixes in `remove` and appends those in `add`.
fn change_space(vnet: &mut Value, prefixes: &[IpNet], add: &[IpNet], remove: &[IpNet]) {
    let mut space: Vec<String> = if prefixes.is_empty() {
        items(vnet, SPACE).map(|p| text(Some(p))).collect()
    } else {
        prefixes.iter().map(ToString::to_string).collect()
    };
    space.retain(|p| !remove.iter().any(|r| r.to_string() == *p));
    let new: Vec<_> = add
        .iter()
        .map(ToString::to_string)
        .filter(|p| !space.contains(p))
        .collect();
    space.extend(new);
    vnet["properties"]["addressSpace"]["addressPrefixes"] = json!(space);
    // A PUT without peerings keeps the VNet's peerings. If the body contained them as they were read, the PUT could
    // undo what another client has changed since.
    if let Some(properties) = vnet["properties"].as_object_mut() {
        properties.remove("virtualNetworkPeerings");
    }
}

fn path(c: &Context, name: &str) -> Result<String> {
    c.item(Kind::VirtualNetwork, name)
}
