//! `tombolo check`: live probes from the source's agent, compared with `explain`.

use crate::context::Context;
use crate::output::{Output, at, items, state};
use anyhow::Result;
use clap::{Args, ValueEnum};
use comfy_table::Cell;
use serde_json::Value;
use std::process::ExitCode;
use tombolo_client::fabric::{CheckRequest, Protocol};

#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Source: a machine, network interface or agent, by name or id
    from: String,
    /// Destination: a machine, network interface or agent, by name or id, or an address
    to: String,
    /// What is sent: echo requests, or TCP connections to a port
    #[arg(value_name = "PROTOCOL", value_enum, default_value_t = Sent::Icmp)]
    protocol: Sent,
    /// Destination port, with tcp
    #[arg(value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..), required_if_eq("protocol", "tcp"))]
    port: Option<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sent {
    Icmp,
    Tcp,
}

impl Check {
    /// Lets the controller make the check, and prints the result. For scripts, the exit code is 1 if the destination did
    /// not answer.
    pub(crate) async fn run(&self, c: &Context) -> Result<ExitCode> {
        let request = CheckRequest {
            from: self.from.clone(),
            to: self.to.clone(),
            protocol: match self.protocol {
                Sent::Icmp => Protocol::Icmp,
                Sent::Tcp => Protocol::Tcp,
            },
            port: self.port,
        };
        let result = c.progress("checking", c.client.check(&request)).await?;
        if c.out.is_json() {
            c.out.json(&result)?;
        } else {
            self.show(c.out, &result);
        }
        Ok(if is_reachable(&result) {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    fn show(&self, out: Output, result: &Value) {
        let (from, to) = (at(result, "/source"), at(result, "/destination"));
        let what = format!("{} {}", at(result, "/protocol"), at(result, "/port"));
        out.line(&format!(
            "{}: {} ({from}) → {} ({to}), {}",
            at(result, "/connectionStatus"),
            self.from,
            self.to,
            what.trim_end()
        ));
        let latency = ["min", "avg", "max"].map(|name| at(result, &format!("/{name}LatencyInMs")));
        let latency = match &latency {
            [min, avg, max] if !avg.is_empty() => format!("; min {min}, mean {avg}, max {max} ms"),
            _ => String::new(),
        };
        out.line(&format!(
            "{} sent, {} failed{latency}",
            at(result, "/probesSent"),
            at(result, "/probesFailed")
        ));
        out.title("\nHops");
        let rows = items(result, "/hops").map(row).collect();
        out.table(&["Type", "Address", "Resource", "Round trip", "Issue"], rows, "none");
        if result.get("difference").is_some_and(Value::is_object) {
            let shown = |side: &str| match at(result, &format!("/difference/{side}")) {
                none if none.is_empty() => "no answer".to_owned(),
                address => address,
            };
            out.line(&format!(
                "\nThe trace differs from explain at TTL {}: expected {}, observed {}",
                at(result, "/difference/ttl"),
                shown("expected"),
                shown("observed")
            ));
        }
        if !is_reachable(result) || result.get("explained").and_then(Value::as_bool) == Some(false) {
            out.line(&format!("\nexplain says: {}", at(result, "/summary")));
        }
    }
}

fn is_reachable(result: &Value) -> bool {
    at(result, "/connectionStatus") == "Reachable"
}

fn row(hop: &Value) -> Vec<Cell> {
    let id = at(hop, "/resourceId");
    // The name of a network interface says more than that of its ip configuration.
    let resource = id.split_once("/ipConfigurations/").map_or(id.as_str(), |(nic, _)| nic);
    let average = at(hop, "/previousLinks/0/properties/roundTripTimeAvg");
    let issues: Vec<_> = items(hop, "/issues").map(issue).collect();
    vec![
        Cell::new(at(hop, "/type")),
        Cell::new(at(hop, "/address")),
        Cell::new(tombolo_client::path::last(resource)),
        Cell::new(if average.is_empty() {
            String::new()
        } else {
            format!("{average} ms")
        }),
        if issues.is_empty() {
            Cell::new("")
        } else {
            state(&issues.join("; "))
        },
    ]
}

fn issue(issue: &Value) -> String {
    let details: Vec<_> = items(issue, "/context")
        .map(|entry| {
            let (key, value) = (at(entry, "/key"), at(entry, "/value"));
            format!("{key} {}", tombolo_client::path::last(&value))
        })
        .collect();
    format!(
        "{} {}, {}: {}",
        at(issue, "/origin"),
        at(issue, "/severity").to_lowercase(),
        at(issue, "/type"),
        details.join(", ")
    )
}
