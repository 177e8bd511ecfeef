//! Subnets.

use crate::context::Context;
use crate::failure::UsageError;
use crate::options::{Child, child, name, optional_reference, reference};
use crate::output::{Column, at, items, name_at};
use anyhow::Result;
use clap::Subcommand;
use comfy_table::Cell;
use ipnet::IpNet;
use serde_json::{Value, json};
use tombolo_client::path::segment;
use tombolo_proto::arm::Kind;

#[derive(Debug, Subcommand)]
pub(crate) enum Subnet {
    /// Create a subnet
    Create {
        /// Name of the subnet, as VNET/SUBNET
        #[arg(value_parser = child)]
        name: Child,
        /// One or several prefixes inside the VNet's address space, such as 10.1.0.0/24
        #[arg(short = 'p', long = "address-prefix", visible_alias = "address-prefixes", required = true, num_args = 1.., value_delimiter = ',')]
        prefixes: Vec<IpNet>,
        /// Route table of the subnet, by name or id
        #[arg(long, value_parser = reference)]
        route_table: Option<String>,
        /// Network security group of the subnet, by name or id (N4)
        #[arg(long, visible_alias = "nsg", value_name = "GROUP", value_parser = optional_reference)]
        network_security_group: Option<String>,
    },
    /// List the subnets of a virtual network
    List {
        /// Name of the virtual network
        #[arg(value_parser = name)]
        vnet: String,
    },
    /// Show a subnet
    Show {
        /// Name of the subnet, as VNET/SUBNET
        #[arg(value_parser = child)]
        name: Child,
    },
    /// Change a subnet
    Update {
        /// Name of the subnet, as VNET/SUBNET
        #[arg(value_parser = child)]
        name: Child,
        /// Prefixes that replace all present ones
        #[arg(short = 'p', long = "address-prefix", visible_alias = "address-prefixes", num_args = 1.., value_delimiter = ',')]
        prefixes: Vec<IpNet>,
        /// New route table of the subnet, by name or id
        #[arg(long, value_parser = reference)]
        route_table: Option<String>,
        /// Remove the route table from the subnet
        #[arg(long, conflicts_with = "route_table")]
        no_route_table: bool,
        /// New network security group of the subnet, by name or id; '' removes the present one (N4)
        #[arg(long, visible_alias = "nsg", value_name = "GROUP", value_parser = optional_reference)]
        network_security_group: Option<String>,
    },
    /// Delete a subnet
    Delete {
        /// Name of the subnet, as VNET/SUBNET
        #[arg(value_parser = child)]
        name: Child,
    },
}

/// The columns of lists of subnets.
pub(crate) const COLUMNS: &[Column] = &[
    ("VNet", |v| {
        Cell::new(segment(&at(v, "/id"), "virtualNetworks").unwrap_or_default())
    }),
    ("Name", |v| Cell::new(at(v, "/name"))),
    ("Prefixes", |v| {
        let single = at(v, "/properties/addressPrefix");
        Cell::new(if single.is_empty() {
            at(v, "/properties/addressPrefixes")
        } else {
            single
        })
    }),
    ("Route table", |v| Cell::new(name_at(v, "/properties/routeTable/id"))),
    ("Security group", |v| {
        Cell::new(name_at(v, "/properties/networkSecurityGroup/id"))
    }),
    ("In use", |v| {
        Cell::new(items(v, "/properties/ipConfigurations").count())
    }),
];

/// The prefixes of a subnet as `addressPrefix` or as `addressPrefixes`, as Azure's command line sends them.
fn in_azures_form<P>(prefixes: &[P]) -> (Option<&P>, Option<&[P]>) {
    match prefixes {
        [single] => (Some(single), None),
        many => (None, Some(many)),
    }
}

impl Subnet {
    /// Creates, changes, deletes or prints subnets. An update without an option is a [`UsageError`].
    pub(crate) async fn run(&self, c: &Context) -> Result<()> {
        let group = c.group()?;
        let path = |n: &Child| group.subnet(&n.parent, &n.name);
        let table = |name: &Option<String>| match name {
            Some(name) => json!({"id": group.resolve("routeTables", name)}),
            None => Value::Null,
        };
        match self {
            Self::Create {
                name,
                prefixes,
                route_table,
                network_security_group,
            } => {
                let security = network_security_group.as_deref().unwrap_or_default();
                let (single, list) = in_azures_form(prefixes);
                let properties = json!({
                    "addressPrefix": single,
                    "addressPrefixes": list,
                    "routeTable": table(route_table),
                    "networkSecurityGroup": c.reference(Kind::NetworkSecurityGroup, security)?,
                });
                let what = format!("Created subnet {}/{}.", name.parent, name.name);
                c.put(&path(name), &json!({"properties": properties}), &what).await
            }
            Self::List { vnet } => {
                let all = c
                    .client
                    .arm_list(&format!("{}/subnets", group.item("virtualNetworks", vnet)))
                    .await?;
                c.out.list(
                    &all,
                    COLUMNS,
                    "No subnets. Create one: tombolo subnet create VNET/NAME -p PREFIX",
                )
            }
            Self::Show { name } => c.out.item(&c.client.arm_get(&path(name)).await?, COLUMNS),
            Self::Update {
                name,
                prefixes,
                route_table,
                no_route_table,
                network_security_group,
            } => {
                let changes_routes = route_table.is_some() || *no_route_table;
                if prefixes.is_empty() && !changes_routes && network_security_group.is_none() {
                    let hint = "add --address-prefix, --route-table, --no-route-table or --network-security-group";
                    return Err(UsageError::new("nothing to change", hint).into());
                }
                let security = network_security_group.as_ref();
                let security = security
                    .map(|name| c.reference(Kind::NetworkSecurityGroup, name))
                    .transpose()?;
                let change = |subnet: &mut Value| {
                    if !prefixes.is_empty() {
                        let (single, list) = in_azures_form(prefixes);
                        subnet["properties"]["addressPrefix"] = json!(single);
                        subnet["properties"]["addressPrefixes"] = json!(list);
                    }
                    if changes_routes {
                        subnet["properties"]["routeTable"] = table(route_table);
                    }
                    if let Some(security) = security {
                        subnet["properties"]["networkSecurityGroup"] = security;
                    }
                };
                c.edit(
                    &path(name),
                    &format!("Updated subnet {}/{}.", name.parent, name.name),
                    change,
                )
                .await
            }
            Self::Delete { name } => c.delete(&path(name), "subnet").await,
        }
    }
}
