//! The inbound NAT rules of load balancers.

use super::part::Part;
use super::rule::Flows;
use crate::context::Context;
use crate::options::{Child, child, name, word};
use crate::output::{Column, at, name_at};
use anyhow::Result;
use clap::{Subcommand, ValueEnum};
use comfy_table::Cell;
use serde_json::{Value, json};
use tombolo_client::path::segment;
use tombolo_proto::arm::Kind;

#[derive(Debug, Subcommand)]
pub(crate) enum InboundNatRule {
    /// Create or replace a rule; the network interface that names it is its target (`nic update --lb-inbound-nat-rules`)
    Create {
        /// Name of the rule, as LB/RULE
        #[arg(value_parser = child)]
        name: Child,
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
    },
    /// Change a rule
    Update {
        /// Name of the rule, as LB/RULE
        #[arg(value_parser = child)]
        name: Child,
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
    },
    /// List the inbound NAT rules of a load balancer, with their targets
    List {
        /// Name of the load balancer
        #[arg(value_parser = name)]
        balancer: String,
    },
    /// Show a rule
    Show {
        /// Name of the rule, as LB/RULE
        #[arg(value_parser = child)]
        name: Child,
    },
    /// Delete a rule to which no network interface refers
    Delete {
        /// Name of the rule, as LB/RULE
        #[arg(value_parser = child)]
        name: Child,
    },
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

impl InboundNatRule {
    pub(super) async fn run(&self, c: &Context) -> Result<()> {
        match self {
            Self::Create {
                name,
                protocol,
                frontend_port,
                backend_port,
                flows,
            } => {
                let mut properties = given(Some(*protocol), Some(*frontend_port), Some(*backend_port));
                let complete = |b: &Value| flows.apply_to(&mut properties, b, true).map(|()| properties);
                PART.create(c, name, complete).await
            }
            Self::Update {
                name,
                protocol,
                frontend_port,
                backend_port,
                flows,
            } => {
                let mut properties = given(*protocol, *frontend_port, *backend_port);
                let complete = |b: &Value| flows.apply_to(&mut properties, b, false).map(|()| properties);
                let options = "--protocol, --frontend-port, --backend-port or another property";
                PART.update(c, name, options, complete).await
            }
            Self::List { balancer } => PART.list(c, balancer).await,
            Self::Show { name } => PART.show(c, name).await,
            Self::Delete { name } => PART.delete(c, name).await,
        }
    }
}
