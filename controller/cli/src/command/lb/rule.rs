//! The load-balancing rules of load balancers.

use super::children::{ChildKind, Help};
use super::part::Part;
use super::{address_pool, frontend_ip, probe};
use crate::context::Context;
use crate::failure::UsageError;
use crate::options::{optional_reference, reference, word};
use crate::output::{Column, at, name_at};
use anyhow::Result;
use clap::{Args, ValueEnum};
use comfy_table::Cell;
use serde_json::{Value, json};
use tombolo_proto::arm::Kind;

#[derive(Debug)]
pub(crate) struct Rule;

/// The options of a new rule.
#[derive(Debug, Args)]
pub(crate) struct New {
    /// Protocol of the packets; All is for all ports of TCP and UDP (L9)
    #[arg(long, value_enum, ignore_case = true)]
    protocol: Protocol,
    #[command(flatten)]
    fields: Fields,
}

/// The options that change a rule.
#[derive(Debug, Args)]
pub(crate) struct Changes {
    /// Protocol of the packets; All is for all ports of TCP and UDP (L9)
    #[arg(long, value_enum, ignore_case = true)]
    protocol: Option<Protocol>,
    #[command(flatten)]
    fields: Fields,
}

/// The properties of a rule except its protocol.
#[derive(Debug, Args)]
pub(crate) struct Fields {
    /// Port of the front end; needed for a new rule with protocol Tcp or Udp, and 0 with All
    #[arg(long, value_name = "PORT")]
    frontend_port: Option<u16>,
    /// Port of the back ends; 0 with protocol All [default of a new rule: the port of the front end]
    #[arg(long, value_name = "PORT")]
    backend_port: Option<u16>,
    /// Back-end pool [default of a new rule: the only pool of the load balancer]
    #[arg(long, visible_alias = "backend-pool", value_name = "POOL", value_parser = reference)]
    backend_pool_name: Option<String>,
    /// Probe; '' removes the present one
    #[arg(long, visible_alias = "probe-name", value_parser = optional_reference)]
    probe: Option<String>,
    /// Fields of a packet that choose its back end (L4) [default of a new rule: Default]
    #[arg(long, value_enum, ignore_case = true)]
    load_distribution: Option<Distribution>,
    #[command(flatten)]
    flows: Flows,
}

/// The properties that load-balancing rules and inbound NAT rules have in common.
#[derive(Debug, Args)]
pub(crate) struct Flows {
    /// Front end [default of a new rule: the only front end of the load balancer]
    #[arg(long, visible_alias = "frontend-ip-name", value_name = "FRONTEND", value_parser = reference)]
    frontend_ip: Option<String>,
    /// Time without packets after which a flow ends, in minutes [default of a new rule: 4]
    #[arg(long, value_name = "MINUTES", value_parser = clap::value_parser!(u16).range(4..=30))]
    idle_timeout: Option<u16>,
    /// Whether packets keep the address and port of the front end
    #[arg(long, visible_alias = "enable-floating-ip", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    floating_ip: Option<bool>,
    /// Whether both ends of a TCP flow get a reset when the flow times out
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    enable_tcp_reset: Option<bool>,
}

/// The protocols of load-balancing rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    All,
}

/// The fields of a packet that choose its back end: all of them, the addresses, or the addresses and the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub(crate) enum Distribution {
    Default,
    #[value(name = "SourceIP")]
    SourceIp,
    #[value(name = "SourceIPProtocol")]
    SourceIpProtocol,
}

pub(super) const PART: Part = Part {
    kind: Kind::LoadBalancingRule,
    columns: COLUMNS,
};

const COLUMNS: &[Column] = &[
    ("Name", |v| Cell::new(at(v, "/name"))),
    ("Protocol", |v| Cell::new(at(v, "/properties/protocol"))),
    ("Front end", |v| {
        Cell::new(name_at(v, "/properties/frontendIPConfiguration/id"))
    }),
    ("Port", |v| Cell::new(at(v, "/properties/frontendPort"))),
    ("Pool", |v| Cell::new(name_at(v, "/properties/backendAddressPool/id"))),
    ("Back-end port", |v| Cell::new(at(v, "/properties/backendPort"))),
    ("Probe", |v| Cell::new(name_at(v, "/properties/probe/id"))),
    ("Distribution", |v| Cell::new(at(v, "/properties/loadDistribution"))),
    ("Idle timeout", |v| Cell::new(at(v, "/properties/idleTimeoutInMinutes"))),
    ("Floating IP", |v| Cell::new(at(v, "/properties/enableFloatingIP"))),
];

impl Flows {
    /// Sets the properties whose options are given. For a new rule, sets the front end too, which is the only one of
    /// `balancer` if the option is not given.
    pub(super) fn apply_to(&self, properties: &mut Value, balancer: &Value, is_new: bool) -> Result<()> {
        if is_new || self.frontend_ip.is_some() {
            let given = self.frontend_ip.as_deref();
            properties["frontendIPConfiguration"] = frontend_ip::PART.reference(balancer, given, "--frontend-ip")?;
        }
        if let Some(minutes) = self.idle_timeout {
            properties["idleTimeoutInMinutes"] = json!(minutes);
        }
        if let Some(on) = self.floating_ip {
            properties["enableFloatingIP"] = json!(on);
        }
        if let Some(on) = self.enable_tcp_reset {
            properties["enableTcpReset"] = json!(on);
        }
        Ok(())
    }
}

impl Fields {
    /// Returns the properties whose options are given. The protocol `All` sets both ports to 0 (L9). For a new rule, the
    /// properties are complete.
    pub(super) fn properties(&self, protocol: Option<Protocol>, balancer: &Value, is_new: bool) -> Result<Value> {
        let mut properties = json!({});
        let (mut front_end, mut back_end) = (self.frontend_port, self.backend_port);
        if let Some(protocol) = &protocol {
            properties["protocol"] = word(protocol);
            if *protocol == Protocol::All {
                front_end = front_end.or(Some(0));
                back_end = back_end.or(Some(0));
            }
        }
        if is_new {
            let missing = || {
                UsageError::new(
                    "the rule has no port",
                    "add --frontend-port, or --protocol All for all ports",
                )
            };
            front_end = Some(front_end.ok_or_else(missing)?);
            back_end = back_end.or(front_end);
        }
        if let Some(port) = front_end {
            properties["frontendPort"] = json!(port);
        }
        if let Some(port) = back_end {
            properties["backendPort"] = json!(port);
        }
        if is_new || self.backend_pool_name.is_some() {
            let given = self.backend_pool_name.as_deref();
            let pool = address_pool::pool::PART.reference(balancer, given, "--backend-pool-name")?;
            // The controller shows both properties, and reads both.
            properties["backendAddressPools"] = json!([pool]);
            properties["backendAddressPool"] = pool;
        }
        match self.probe.as_deref() {
            None => {}
            Some("") => properties["probe"] = Value::Null,
            given => properties["probe"] = probe::PART.reference(balancer, given, "--probe")?,
        }
        if let Some(distribution) = &self.load_distribution {
            properties["loadDistribution"] = word(distribution);
        }
        self.flows.apply_to(&mut properties, balancer, is_new)?;
        Ok(properties)
    }
}

impl ChildKind for Rule {
    type New = New;
    type Changes = Changes;
    const PART: Part = PART;
    const HELP: Help = Help {
        noun: "rule",
        place: "RULE",
        create: "",
        list: "",
        delete: "",
        options: "--protocol, --frontend-port or another property; `tombolo lb rule update --help` lists them",
    };

    fn complete(new: &New, _: &Context, balancer: &Value) -> Result<Value> {
        new.fields.properties(Some(new.protocol), balancer, true)
    }

    fn changes(given: &Changes, _: &Context, balancer: &Value) -> Result<Value> {
        given.fields.properties(given.protocol, balancer, false)
    }
}
