//! The health probes of load balancers.

use super::children::{ChildKind, Help};
use super::part::Part;
use crate::context::Context;
use crate::options::word;
use crate::output::{Column, at, items, name_at};
use anyhow::Result;
use clap::{Args, ValueEnum};
use comfy_table::Cell;
use serde_json::{Value, json};
use tombolo_proto::arm::Kind;

#[derive(Debug)]
pub(crate) struct Probe;

/// The options of a new probe.
#[derive(Debug, Args)]
pub(crate) struct New {
    /// Protocol of the probe
    #[arg(long, value_enum, ignore_case = true)]
    protocol: Protocol,
    /// Port of the back ends
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    #[command(flatten)]
    fields: Fields,
}

/// The options that change a probe.
#[derive(Debug, Args)]
pub(crate) struct Changes {
    /// Protocol of the probe; Tcp removes the path
    #[arg(long, value_enum, ignore_case = true)]
    protocol: Option<Protocol>,
    /// Port of the back ends
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    #[command(flatten)]
    fields: Fields,
}

/// The properties of a probe except its protocol and port.
#[derive(Debug, Args)]
pub(crate) struct Fields {
    /// Path of the HTTP request, with protocol Http or Https only
    #[arg(long)]
    path: Option<String>,
    /// Time between two probes of a back end, in seconds [default of a new probe: 15]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u16).range(5..))]
    interval: Option<u16>,
    /// Number of consecutive equal results that change the health of a back end [default of a new probe: 1]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=100))]
    probe_threshold: Option<u16>,
    /// Whether back ends get new flows while all of them are down [default of a new probe: AllProbedDown]
    #[arg(long, value_enum, ignore_case = true)]
    no_healthy_backends_behavior: Option<NoHealthyBackends>,
}

/// The protocols of probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub(crate) enum Protocol {
    Tcp,
    Http,
    Https,
}

/// The back ends that get new flows while all are down: none, or all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub(crate) enum NoHealthyBackends {
    AllProbedDown,
    AllProbedUp,
}

pub(super) const PART: Part = Part {
    kind: Kind::Probe,
    columns: COLUMNS,
};

const COLUMNS: &[Column] = &[
    ("Name", |v| Cell::new(at(v, "/name"))),
    ("Protocol", |v| Cell::new(at(v, "/properties/protocol"))),
    ("Port", |v| Cell::new(at(v, "/properties/port"))),
    ("Path", |v| Cell::new(at(v, "/properties/requestPath"))),
    ("Interval", |v| Cell::new(at(v, "/properties/intervalInSeconds"))),
    ("Threshold", |v| Cell::new(at(v, "/properties/probeThreshold"))),
    ("All down", |v| {
        Cell::new(at(v, "/properties/noHealthyBackendsBehavior"))
    }),
    ("Rules", |v| {
        let rules = items(v, "/properties/loadBalancingRules").map(|r| name_at(r, "/id"));
        Cell::new(rules.collect::<Vec<_>>().join(", "))
    }),
];

impl Fields {
    /// Returns the properties whose options are given. The protocol `Tcp` removes the path.
    pub(super) fn properties(&self, protocol: Option<Protocol>, port: Option<u16>) -> Value {
        let mut properties = json!({});
        if let Some(protocol) = &protocol {
            properties["protocol"] = word(protocol);
            if *protocol == Protocol::Tcp {
                properties["requestPath"] = Value::Null;
            }
        }
        if let Some(port) = port {
            properties["port"] = json!(port);
        }
        if let Some(path) = &self.path {
            properties["requestPath"] = json!(path);
        }
        if let Some(seconds) = self.interval {
            properties["intervalInSeconds"] = json!(seconds);
        }
        if let Some(count) = self.probe_threshold {
            properties["probeThreshold"] = json!(count);
        }
        if let Some(behavior) = &self.no_healthy_backends_behavior {
            properties["noHealthyBackendsBehavior"] = word(behavior);
        }
        properties
    }
}

impl ChildKind for Probe {
    type New = New;
    type Changes = Changes;
    const PART: Part = PART;
    const HELP: Help = Help {
        noun: "probe",
        place: "PROBE",
        create: "",
        list: "",
        delete: " to which no rule refers",
        options: "--protocol, --port, --path or another property",
    };

    fn complete(new: &New, _: &Context, _: &Value) -> Result<Value> {
        Ok(new.fields.properties(Some(new.protocol), Some(new.port)))
    }

    fn changes(given: &Changes, _: &Context, _: &Value) -> Result<Value> {
        Ok(given.fields.properties(given.protocol, given.port))
    }
}
