//! The front ends of load balancers.

use super::children::{ChildKind, Help};
use super::part::Part;
use crate::context::Context;
use crate::options::subnet;
use crate::output::{Column, at, items, name_at};
use anyhow::Result;
use clap::Args;
use comfy_table::Cell;
use serde_json::{Value, json};
use std::net::IpAddr;
use tombolo_client::path::segment;
use tombolo_proto::arm::Kind;

#[derive(Debug)]
pub(crate) struct FrontendIp;

/// The options of a new front end.
#[derive(Debug, Args)]
pub(crate) struct New {
    /// Subnet, as VNET/SUBNET or id
    #[arg(short, long, value_parser = subnet)]
    subnet: String,
    /// Static address [default: allocated]
    #[arg(short = 'a', long)]
    private_ip_address: Option<IpAddr>,
}

/// The options that change a front end.
#[derive(Debug, Args)]
pub(crate) struct Changes {
    /// New subnet, as VNET/SUBNET or id; without --private-ip-address, a new address is allocated
    #[arg(short, long, value_parser = subnet)]
    subnet: Option<String>,
    /// New static address
    #[arg(short = 'a', long)]
    private_ip_address: Option<IpAddr>,
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

impl ChildKind for FrontendIp {
    type New = New;
    type Changes = Changes;
    const PART: Part = PART;
    const HELP: Help = Help {
        noun: "front end",
        place: "FRONTEND",
        create: "",
        list: "",
        delete: " to which no rule refers",
        options: "--subnet or --private-ip-address",
    };

    fn complete(new: &New, c: &Context, _: &Value) -> Result<Value> {
        properties(c, &new.subnet, new.private_ip_address)
    }

    fn changes(given: &Changes, c: &Context, _: &Value) -> Result<Value> {
        Ok(match (&given.subnet, given.private_ip_address) {
            (None, None) => json!({}),
            (None, ip) => address(ip),
            (Some(subnet), ip) => properties(c, subnet, ip)?,
        })
    }
}
