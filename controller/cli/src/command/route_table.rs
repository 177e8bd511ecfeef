//! Route tables and their routes.

use crate::context::Context;
use crate::failure::UsageError;
use crate::options::{Child, child, name};
use crate::output::{Column, at, items, name_at};
use anyhow::Result;
use clap::{Subcommand, ValueEnum};
use comfy_table::Cell;
use ipnet::IpNet;
use serde_json::{Value, json};
use std::net::IpAddr;
use tombolo_client::path::segment;
use tombolo_proto::arm::Kind;

#[derive(Debug, Subcommand)]
pub(crate) enum RouteTable {
    /// Create a route table
    Create {
        /// Name of the route table
        #[arg(value_parser = name)]
        name: String,
        /// The table's subnets have no gateway routes (R15)
        #[arg(long)]
        disable_bgp_route_propagation: bool,
        /// Region [default: the group's]
        #[arg(short, long)]
        location: Option<String>,
    },
    /// List route tables
    List,
    /// Show a route table with its routes
    Show {
        /// Name of the route table
        #[arg(value_parser = name)]
        name: String,
    },
    /// Change a route table
    Update {
        /// Name of the route table
        #[arg(value_parser = name)]
        name: String,
        /// The table's subnets have no gateway routes (R15)
        #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", required = true)]
        disable_bgp_route_propagation: Option<bool>,
    },
    /// Delete a route table
    Delete {
        /// Name of the route table
        #[arg(value_parser = name)]
        name: String,
    },
    /// Manage the routes of a table, named TABLE/ROUTE
    #[command(subcommand)]
    Route(Route),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Route {
    /// Create or replace a route
    Create {
        /// Name of the route, as TABLE/ROUTE
        #[arg(value_parser = child)]
        name: Child,
        /// Destination prefix of the route
        #[arg(short = 'p', long)]
        address_prefix: IpNet,
        /// Type of the next hop (R10)
        #[arg(short = 't', long, value_enum)]
        next_hop_type: NextHop,
        /// Address of the appliance, with --next-hop-type VirtualAppliance only
        #[arg(short = 'i', long, visible_alias = "next-hop-ip")]
        next_hop_ip_address: Option<IpAddr>,
    },
    /// Change a route
    Update {
        /// Name of the route, as TABLE/ROUTE
        #[arg(value_parser = child)]
        name: Child,
        /// New destination prefix of the route
        #[arg(short = 'p', long)]
        address_prefix: Option<IpNet>,
        /// New type of the next hop (R10)
        #[arg(short = 't', long, value_enum)]
        next_hop_type: Option<NextHop>,
        /// New address of the appliance, with next-hop type VirtualAppliance only
        #[arg(short = 'i', long, visible_alias = "next-hop-ip")]
        next_hop_ip_address: Option<IpAddr>,
    },
    /// List the routes of a table
    List {
        /// Name of the route table
        #[arg(value_parser = name)]
        table: String,
    },
    /// Show a route
    Show {
        /// Name of the route, as TABLE/ROUTE
        #[arg(value_parser = child)]
        name: Child,
    },
    /// Delete a route
    Delete {
        /// Name of the route, as TABLE/ROUTE
        #[arg(value_parser = child)]
        name: Child,
    },
}

/// Azure's next-hop types, also accepted in lower case and kebab case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub(crate) enum NextHop {
    #[value(aliases = ["virtualappliance", "virtual-appliance"])]
    VirtualAppliance,
    #[value(aliases = ["virtualnetworkgateway", "virtual-network-gateway"])]
    VirtualNetworkGateway,
    #[value(aliases = ["vnetlocal", "vnet-local"])]
    VnetLocal,
    #[value(alias = "internet")]
    Internet,
    #[value(alias = "none")]
    None,
}

const COLUMNS: &[Column] = &[
    ("Name", |v| Cell::new(at(v, "/name"))),
    ("Location", |v| Cell::new(at(v, "/location"))),
    ("Routes", |v| Cell::new(items(v, "/properties/routes").count())),
    ("Subnets", |v| {
        let subnet = |s: &Value| {
            let id = at(s, "/id");
            format!(
                "{}/{}",
                segment(&id, "virtualNetworks").unwrap_or_default(),
                name_at(s, "/id")
            )
        };
        Cell::new(
            items(v, "/properties/subnets")
                .map(subnet)
                .collect::<Vec<_>>()
                .join(", "),
        )
    }),
    ("Gateway routes off", |v| {
        Cell::new(at(v, "/properties/disableBgpRoutePropagation"))
    }),
];

const ROUTE_COLUMNS: &[Column] = &[
    ("Name", |v| Cell::new(at(v, "/name"))),
    ("Prefix", |v| Cell::new(at(v, "/properties/addressPrefix"))),
    ("Next hop type", |v| Cell::new(at(v, "/properties/nextHopType"))),
    ("Next hop IP", |v| Cell::new(at(v, "/properties/nextHopIpAddress"))),
];

impl RouteTable {
    /// Creates, changes, deletes or prints route tables or their routes.
    pub(crate) async fn run(&self, c: &Context) -> Result<()> {
        match self {
            Self::Create {
                name,
                disable_bgp_route_propagation,
                location,
            } => {
                let body = json!({
                    "location": c.location(location.as_deref()).await?,
                    "properties": {"disableBgpRoutePropagation": disable_bgp_route_propagation},
                });
                c.put(&path(c, name)?, &body, &format!("Created route table {name}."))
                    .await
            }
            Self::List => {
                let all = c.list(Kind::RouteTable).await?;
                c.out.list(
                    &all,
                    COLUMNS,
                    "No route tables. Create one: tombolo route-table create NAME",
                )
            }
            Self::Show { name } => {
                let table = c.get(Kind::RouteTable, name).await?;
                c.out.item(&table, COLUMNS)?;
                if !c.out.is_json() {
                    let routes: Vec<_> = items(&table, "/properties/routes").cloned().collect();
                    c.out.title("\nRoutes");
                    c.out.list(&routes, ROUTE_COLUMNS, "none")?;
                }
                Ok(())
            }
            Self::Update {
                name,
                disable_bgp_route_propagation,
            } => {
                let change = |table: &mut Value| {
                    table["properties"]["disableBgpRoutePropagation"] = json!(disable_bgp_route_propagation);
                };
                c.update(Kind::RouteTable, name, change).await
            }
            Self::Delete { name } => c.remove(Kind::RouteTable, name).await,
            Self::Route(route) => route.run(c).await,
        }
    }
}

impl Route {
    async fn run(&self, c: &Context) -> Result<()> {
        let route = |n: &Child| Ok::<_, anyhow::Error>(format!("{}/routes/{}", path(c, &n.parent)?, n.name));
        match self {
            Self::Create {
                name,
                address_prefix,
                next_hop_type,
                next_hop_ip_address,
            } => {
                if (*next_hop_type == NextHop::VirtualAppliance) != next_hop_ip_address.is_some() {
                    let hint =
                        "set --next-hop-ip-address with --next-hop-type VirtualAppliance, and with no other type (R10)";
                    return Err(
                        UsageError::new("next-hop type and next-hop address contradict each other", hint).into(),
                    );
                }
                let kind = next_hop_type.to_possible_value();
                let body = json!({"properties": {
                    "addressPrefix": address_prefix,
                    "nextHopType": kind.as_ref().map(|v| v.get_name()),
                    "nextHopIpAddress": next_hop_ip_address,
                }});
                let what = format!("Created route {} to {address_prefix} in {}.", name.name, name.parent);
                c.put(&route(name)?, &body, &what).await
            }
            Self::Update {
                name,
                address_prefix,
                next_hop_type,
                next_hop_ip_address,
            } => {
                if address_prefix.is_none() && next_hop_type.is_none() && next_hop_ip_address.is_none() {
                    let hint = "add --address-prefix, --next-hop-type or --next-hop-ip-address";
                    return Err(UsageError::new("nothing to change", hint).into());
                }
                let change = |route: &mut Value| {
                    let properties = &mut route["properties"];
                    if let Some(prefix) = address_prefix {
                        properties["addressPrefix"] = json!(prefix);
                    }
                    if let Some(kind) = next_hop_type {
                        properties["nextHopType"] = json!(kind.to_possible_value().as_ref().map(|v| v.get_name()));
                        // The present address belongs to the old type of next hop, so it is removed. If the new type is
                        // VirtualAppliance, the user must give --next-hop-ip-address too.
                        properties["nextHopIpAddress"] = Value::Null;
                    }
                    if let Some(address) = next_hop_ip_address {
                        properties["nextHopIpAddress"] = json!(address);
                    }
                };
                let what = format!("Updated route {} in {}.", name.name, name.parent);
                c.edit(&route(name)?, &what, change).await
            }
            Self::List { table } => {
                let all = c.client.arm_list(&format!("{}/routes", path(c, table)?)).await?;
                c.out.list(&all, ROUTE_COLUMNS, "No routes.")
            }
            Self::Show { name } => c.out.item(&c.client.arm_get(&route(name)?).await?, ROUTE_COLUMNS),
            Self::Delete { name } => c.delete(&route(name)?, "route").await,
        }
    }
}

fn path(c: &Context, name: &str) -> Result<String> {
    c.item(Kind::RouteTable, name)
}
