//! The options, properties and columns of back-end pools.

use crate::command::lb::children::{ChildKind, Help};
use crate::command::lb::frontend_ip::PART as FRONT_ENDS;
use crate::command::lb::part::Part;
use crate::context::Context;
use crate::failure::UsageError;
use crate::options::{name, reference};
use crate::output::{Column, at, items, name_at};
use anyhow::Result;
use clap::Args;
use comfy_table::Cell;
use serde_json::{Value, json};
use std::net::IpAddr;
use tombolo_client::path::segment;
use tombolo_proto::arm::Kind;

#[derive(Debug)]
pub(crate) struct Pool;

/// The properties of a pool.
#[derive(Debug, Args)]
pub(crate) struct Fields {
    /// Addresses that replace all present addresses of the pool, instead of network interfaces; if the option has no
    /// value, all addresses are removed. Needs SKU Standard
    #[arg(long, value_name = "NAME=ADDRESS", num_args = 0.., value_delimiter = ',', value_parser = address)]
    backend_addresses: Option<Vec<(String, IpAddr)>>,
    /// Virtual network of the addresses, by name or id [default: that of the first front end]
    #[arg(long, value_name = "VNET", value_parser = reference, requires = "backend_addresses")]
    vnet: Option<String>,
    /// Time during which flows of a removed member continue, in seconds; only 0 is supported (L7)
    #[arg(long, visible_alias = "drain-period-in-seconds", value_name = "SECONDS")]
    drain_period: Option<u32>,
}

/// Parses `NAME=ADDRESS`. The error says what is wrong.
fn address(text: &str) -> Result<(String, IpAddr), String> {
    let wrong = || format!("'{text}' is not an address of a pool: write NAME=ADDRESS, such as one=10.1.0.9");
    let (own, address) = text.split_once('=').ok_or_else(wrong)?;
    Ok((name(own)?, address.parse().map_err(|_| wrong())?))
}

pub(crate) const PART: Part = Part {
    kind: Kind::BackendPool,
    columns: COLUMNS,
};

const COLUMNS: &[Column] = &[
    ("Name", |v| Cell::new(at(v, "/name"))),
    ("Members", |v| Cell::new(members(v).join(", "))),
    ("Rules", |v| {
        let rules = items(v, "/properties/loadBalancingRules").map(|r| name_at(r, "/id"));
        Cell::new(rules.collect::<Vec<_>>().join(", "))
    }),
    ("Drain period", |v| Cell::new(at(v, "/properties/drainPeriodInSeconds"))),
];

/// Returns the members of a pool: addresses, or network interfaces with their ipConfigurations.
pub(crate) fn members(pool: &Value) -> Vec<String> {
    let addresses = items(pool, "/properties/loadBalancerBackendAddresses");
    let addresses = addresses
        .map(|a| at(a, "/properties/ipAddress"))
        .filter(|a| !a.is_empty());
    let nics = items(pool, "/properties/backendIPConfigurations").map(|configuration| {
        let id = at(configuration, "/id");
        let nic = segment(&id, "networkInterfaces").unwrap_or_default();
        format!("{nic}/{}", name_at(configuration, "/id"))
    });
    addresses.chain(nics).collect()
}

impl Fields {
    /// Returns the properties whose options are given, for a pool of `balancer`.
    fn properties(&self, c: &Context, balancer: &Value) -> Result<Value> {
        let mut properties = json!({});
        if let Some(seconds) = self.drain_period {
            properties["drainPeriodInSeconds"] = json!(seconds);
        }
        if let Some(addresses) = &self.backend_addresses {
            let vnet = match &self.vnet {
                _ if addresses.is_empty() => Value::Null,
                Some(vnet) => c.reference(Kind::VirtualNetwork, vnet)?,
                None => vnet_of_front_end(balancer)?,
            };
            let one = |(name, ip): &(String, IpAddr)| json!({"name": name, "properties": {"ipAddress": ip}});
            properties["loadBalancerBackendAddresses"] = addresses.iter().map(one).collect();
            properties["virtualNetwork"] = vnet;
        }
        Ok(properties)
    }
}

/// Returns a reference to the virtual network of the first front end. Without a front end, returns a [`UsageError`].
pub(super) fn vnet_of_front_end(balancer: &Value) -> Result<Value> {
    let first = FRONT_ENDS.of(balancer).into_iter().next();
    let subnet = first.map(|f| at(&f, "/properties/subnet/id")).unwrap_or_default();
    match subnet.rsplit_once("/subnets/") {
        Some((vnet, _)) => Ok(json!({"id": vnet})),
        None => Err(UsageError::new(
            "the load balancer has no front end, whose virtual network is the default",
            "add --vnet",
        )
        .into()),
    }
}

impl ChildKind for Pool {
    type New = Fields;
    type Changes = Fields;
    const PART: Part = PART;
    const HELP: Help = Help {
        noun: "pool",
        place: "POOL",
        create: "; without --backend-addresses, its members are the network interfaces that name it",
        list: ", with their members",
        delete: " to which neither a rule nor a network interface refers",
        options: "--backend-addresses or --drain-period",
    };

    fn complete(new: &Fields, c: &Context, balancer: &Value) -> Result<Value> {
        new.properties(c, balancer)
    }

    fn changes(given: &Fields, c: &Context, balancer: &Value) -> Result<Value> {
        given.properties(c, balancer)
    }
}
