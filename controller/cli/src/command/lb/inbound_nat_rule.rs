//! The inbound NAT rules of load balancers.

use super::children::{ChildKind, Help};
use super::part::Part;
use super::rule::Flows;
use crate::context::Context;
use crate::options::word;
use crate::output::{Column, at, name_at};
use anyhow::Result;
use clap::{Args, ValueEnum};
use comfy_table::Cell;
use serde_json::{Value, json};
use tombolo_client::path::segment;
use tombolo_proto::arm::Kind;

#[derive(Debug)]
pub(crate) struct InboundNatRule;

/// The options of a new rule.
#[derive(Debug, Args)]
pub(crate) struct New {
    /// Protocol of the packets
    #[arg(long, value_enum, ignore_case = true)]
    protocol: Protocol,
    /// Port of the front end
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    frontend_port: u16,
    /// Port of the back end
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    backend_port: u16,
    #[command(flatten)]
    flows: Flows,
}

/// The options that change a rule.
#[derive(Debug, Args)]
pub(crate) struct Changes {
    /// Protocol of the packets
    #[arg(long, value_enum, ignore_case = true)]
    protocol: Option<Protocol>,
    /// Port of the front end
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    frontend_port: Option<u16>,
    /// Port of the back end
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    backend_port: Option<u16>,
    #[command(flatten)]
    flows: Flows,
}

/// The protocols of inbound NAT rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

pub(super) const PART: Part = Part {
    kind: Kind::InboundNatRule,
    columns: COLUMNS,
};

const COLUMNS: &[Column] = &[
    ("Name", |v| Cell::new(at(v, "/name"))),
    ("Protocol", |v| Cell::new(at(v, "/properties/protocol"))),
    ("Front end", |v| {
        Cell::new(name_at(v, "/properties/frontendIPConfiguration/id"))
    }),
    ("Port", |v| Cell::new(at(v, "/properties/frontendPort"))),
    ("Back-end port", |v| Cell::new(at(v, "/properties/backendPort"))),
    ("Target", |v| {
        let id = at(v, "/properties/backendIPConfiguration/id");
        Cell::new(segment(&id, "networkInterfaces").unwrap_or_default())
    }),
    ("Idle timeout", |v| Cell::new(at(v, "/properties/idleTimeoutInMinutes"))),
    ("Floating IP", |v| Cell::new(at(v, "/properties/enableFloatingIP"))),
];

/// Returns the given ones of these properties.
fn given(protocol: Option<Protocol>, frontend_port: Option<u16>, backend_port: Option<u16>) -> Value {
    let mut properties = json!({});
    if let Some(protocol) = &protocol {
        properties["protocol"] = word(protocol);
    }
    if let Some(port) = frontend_port {
        properties["frontendPort"] = json!(port);
    }
    if let Some(port) = backend_port {
        properties["backendPort"] = json!(port);
    }
    properties
}

impl ChildKind for InboundNatRule {
    type New = New;
    type Changes = Changes;
    const PART: Part = PART;
    const HELP: Help = Help {
        noun: "rule",
        place: "RULE",
        create: "; the network interface that names it is its target (`nic update --lb-inbound-nat-rules`)",
        list: ", with their targets",
        delete: " to which no network interface refers",
        options: "--protocol, --frontend-port, --backend-port or another property",
    };

    fn complete(new: &New, _: &Context, balancer: &Value) -> Result<Value> {
        let mut properties = given(Some(new.protocol), Some(new.frontend_port), Some(new.backend_port));
        new.flows.apply_to(&mut properties, balancer, true)?;
        Ok(properties)
    }

    fn changes(changes: &Changes, _: &Context, balancer: &Value) -> Result<Value> {
        let mut properties = given(changes.protocol, changes.frontend_port, changes.backend_port);
        changes.flows.apply_to(&mut properties, balancer, false)?;
        Ok(properties)
    }
}
