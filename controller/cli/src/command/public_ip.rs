//! Public addresses.

use crate::context::Context;
use crate::options::name;
use crate::output::{Column, at};
use anyhow::Result;
use clap::Subcommand;
use comfy_table::Cell;
use serde_json::{Value, json};
use std::net::IpAddr;
use tombolo_proto::arm::Kind;

#[derive(Debug, Subcommand)]
pub(crate) enum PublicIp {
    /// Create a public address
    Create {
        /// Name of the public address
        #[arg(value_parser = name)]
        name: String,
        /// Address that the resource shows; it does not affect where agents are reached
        #[arg(short = 'a', long)]
        ip_address: Option<IpAddr>,
        /// Region [default: the group's]
        #[arg(short, long)]
        location: Option<String>,
    },
    /// Change a public address
    Update {
        /// Name of the public address
        #[arg(value_parser = name)]
        name: String,
        /// Address that the resource shows; it does not affect where agents are reached
        #[arg(short = 'a', long)]
        ip_address: IpAddr,
    },
    /// List public addresses
    List,
    /// Show a public address
    Show {
        /// Name of the public address
        #[arg(value_parser = name)]
        name: String,
    },
    /// Delete a public address
    Delete {
        /// Name of the public address
        #[arg(value_parser = name)]
        name: String,
    },
}

const COLUMNS: &[Column] = &[
    ("Name", |v| Cell::new(at(v, "/name"))),
    ("Location", |v| Cell::new(at(v, "/location"))),
    ("Address", |v| Cell::new(at(v, "/properties/ipAddress"))),
];

impl PublicIp {
    /// Creates, changes, deletes or prints public addresses.
    pub(crate) async fn run(&self, c: &Context) -> Result<()> {
        let path = |name: &str| c.item(Kind::PublicIpAddress, name);
        match self {
            Self::Create {
                name,
                ip_address,
                location,
            } => {
                let mut properties = json!({"publicIPAllocationMethod": "Static"});
                if let Some(address) = ip_address {
                    properties["ipAddress"] = json!(address);
                }
                let location = c.location(location.as_deref()).await?;
                let body = json!({"location": location, "sku": {"name": "Standard"}, "properties": properties});
                c.put(&path(name)?, &body, &format!("Created public address {name}."))
                    .await
            }
            Self::Update { name, ip_address } => {
                let change = |address: &mut Value| {
                    address["properties"]["ipAddress"] = json!(ip_address);
                };
                c.update(Kind::PublicIpAddress, name, change).await
            }
            Self::List => c
                .out
                .list(&c.list(Kind::PublicIpAddress).await?, COLUMNS, "No public addresses."),
            Self::Show { name } => c.show(Kind::PublicIpAddress, name, COLUMNS).await,
            Self::Delete { name } => c.remove(Kind::PublicIpAddress, name).await,
        }
    }
}
