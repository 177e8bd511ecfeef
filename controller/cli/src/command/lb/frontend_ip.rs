//! The front ends of load balancers.

use super::part::Part;
use crate::context::Context;
use crate::options::{Child, child, name, subnet};
use crate::output::{Column, at, items, name_at};
use anyhow::Result;
use clap::Subcommand;
use comfy_table::Cell;
use serde_json::{Value, json};
use std::net::IpAddr;
use tombolo_client::path::segment;
use tombolo_proto::arm::Kind;

#[derive(Debug, Subcommand)]
pub(crate) enum FrontendIp {
    /// Create or replace a front end
    Create {
        /// Name of the front end, as LB/FRONTEND
        #[arg(value_parser = child)]
        name: Child,
        /// Subnet, as VNET/SUBNET or id
        #[arg(short, long, value_parser = subnet)]
        subnet: String,
        /// Static address [default: allocated]
        #[arg(short = 'a', long)]
        private_ip_address: Option<IpAddr>,
    },
    /// Change a front end
    Update {
        /// Name of the front end, as LB/FRONTEND
        #[arg(value_parser = child)]
        name: Child,
        /// New subnet, as VNET/SUBNET or id; without --private-ip-address, a new address is allocated
        #[arg(short, long, value_parser = subnet)]
        subnet: Option<String>,
        /// New static address
        #[arg(short = 'a', long)]
        private_ip_address: Option<IpAddr>,
    },
    /// List the front ends of a load balancer
    List {
        /// Name of the load balancer
        #[arg(value_parser = name)]
        balancer: String,
    },
    /// Show a front end
    Show {
        /// Name of the front end, as LB/FRONTEND
        #[arg(value_parser = child)]
        name: Child,
    },
    /// Delete a front end to which no rule refers
    Delete {
        /// Name of the front end, as LB/FRONTEND
        #[arg(value_parser = child)]
        name: Child,
    },
}

pub(super) const PART: Part = Part {
    kind: Kind::FrontEnd,
    columns: COLUMNS,
};

const COLUMNS: &[Column] = &[
    ("Name", |v| Cell::new(at(v, "/name"))),
    ("Address", |v| Cell::new(at(v, "/properties/privateIPAddress"))),
    ("Allocation", |v| {
        Cell::new(at(v, "/properties/privateIPAllocationMethod"))
    }),
    ("Subnet", |v| {
        let id = at(v, "/properties/subnet/id");
        let vnet = segment(&id, "virtualNetworks").unwrap_or_default();
        Cell::new(format!("{vnet}/{}", name_at(v, "/properties/subnet/id")))
    }),
    ("Rules", |v| {
        let rules = items(v, "/properties/loadBalancingRules").chain(items(v, "/properties/inboundNatRules"));
        Cell::new(rules.map(|r| name_at(r, "/id")).collect::<Vec<_>>().join(", "))
    }),
];

/// Returns the properties that set a static address, or those that have an address allocated.
fn address(given: Option<IpAddr>) -> Value {
    match given {
        None => json!({"privateIPAllocationMethod": "Dynamic"}),
        Some(ip) => json!({
            "privateIPAllocationMethod": "Static",
            "privateIPAddress": ip,
            "privateIPAddressVersion": if ip.is_ipv4() { "IPv4" } else { "IPv6" },
        }),
    }
}

/// Returns the properties of a new front end.
pub(super) fn properties(c: &Context, subnet: &str, given: Option<IpAddr>) -> Result<Value> {
    let mut properties = address(given);
    properties["subnet"] = subnet_reference(c, subnet)?;
    Ok(properties)
}

fn subnet_reference(c: &Context, subnet: &str) -> Result<Value> {
    Ok(json!({"id": c.group()?.resolve_subnet(subnet).map_err(anyhow::Error::msg)?}))
}

impl FrontendIp {
    pub(super) async fn run(&self, c: &Context) -> Result<()> {
        match self {
            Self::Create {
                name,
                subnet,
                private_ip_address,
            } => {
                PART.create(c, name, |_| properties(c, subnet, *private_ip_address))
                    .await
            }
            Self::Update {
                name,
                subnet,
                private_ip_address,
            } => {
                let changes = |_: &Value| {
                    Ok(match (subnet, private_ip_address) {
                        (None, None) => json!({}),
                        (None, given) => address(*given),
                        (Some(subnet), given) => properties(c, subnet, *given)?,
                    })
                };
                PART.update(c, name, "--subnet or --private-ip-address", changes).await
            }
            Self::List { balancer } => PART.list(c, balancer).await,
            Self::Show { name } => PART.show(c, name).await,
            Self::Delete { name } => PART.delete(c, name).await,
        }
    }
}
