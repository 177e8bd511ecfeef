//! Compares the tables and routes that the controller computes with the tables of agents, and compares the answers of
//! `explain` and the topology's expectations with real pings and traceroutes. Checks the assertions of the resources.

mod assertions;
mod phases;
pub(crate) mod report;
mod rows;
mod site_view;
mod tables;

pub use phases::{Phase, phases};
pub use rows::{LearnedResult, Outcome, RowResult, rows};
pub use site_view::{SiteViewPhase, SiteViewRow, site_view};
pub use tables::tables;

use crate::lab::Lab;
use crate::probe::{Ping, PingResult, TraceResult, path};
use anyhow::{Context, Result};
use futures::StreamExt;
use serde::Deserialize;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;
use tombolo_client::fabric::{ExplainRequest, Protocol};

/// Returns the mark of a result: `✓` if it is as expected.
const fn mark(good: bool) -> &'static str {
    if good { "✓" } else { "✗" }
}

/// Largest number of pairs of hosts that are pinged and traced at the same time. With more pairs, replies would arrive
/// after the timeouts of `ping` and `traceroute` on a small machine.
const MAX_CONCURRENT: usize = 16;

/// The result of comparing the controller's answers with agents and live packets.
#[derive(Debug, Clone, Default)]
pub struct Agreement {
    /// Number of agents whose tables were compared.
    pub agents: usize,
    /// Number of network interfaces whose effective routes were compared with the tables of the interface's agent.
    pub interfaces: usize,
    /// The pairs of hosts for which `explain` was compared with live packets.
    pub pairs: Vec<Pair>,
    /// All disagreements that were found, each as one line of text.
    pub problems: Vec<String>,
}

/// The result for one ordered pair of virtual machines, source and destination, in one address family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// Name of the source host.
    pub from: String,
    /// Destination host and address family, as `HOST/4` or `HOST/6`.
    pub to: String,
    /// Whether any ping was answered.
    pub reachable: bool,
    /// The address of each hop that traceroute showed; `None` is a silent hop. The list is empty if no hop answered, or
    /// if the pair was not traced.
    pub hops: Vec<Option<IpAddr>>,
}

impl Agreement {
    /// Returns the number of pairs for which a ping was answered.
    #[must_use]
    pub fn reachable(&self) -> usize {
        self.pairs.iter().filter(|p| p.reachable).count()
    }
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "routes of {} interfaces and tables of {} agents; explain, ping and traceroute of {} pairs, {} of which reach",
            self.interfaces,
            self.agents,
            self.pairs.len(),
            self.reachable()
        )
    }
}

/// The part of an answer of `explain` that pings and traces can verify.
#[derive(Debug, Deserialize)]
struct Explanation {
    reachable: bool,
    summary: String,
    trace: Vec<TraceHop>,
}

/// A hop that `explain` expects a trace to show. A hop without an address is silent.
#[derive(Debug, Deserialize)]
struct TraceHop {
    address: Option<IpAddr>,
}

/// Compares the agents' tables with those that the controller computes, and the effective routes with the agents'
/// tables, as [`tables()`] does. Then compares `explain` with live packets for every ordered pair of virtual machines,
/// in each address family that both have, also for machines whose agent does not run. At last checks the assertions of
/// the topology's resources. A disagreement is no error: it is
/// in [`Agreement::problems`]. Changes nothing in the lab.
///
/// # Errors
/// The controller or a running agent does not answer, an agent has no tables yet, or `ping`, `traceroute` or `ip`
/// cannot run.
pub async fn all(lab: &Lab) -> Result<Agreement> {
    let mut found = tables(lab).await?;
    let names = pairs(lab);
    let tried: Vec<_> = futures::stream::iter(names)
        .map(|(from, to)| check_pair(lab, from, to))
        .buffered(MAX_CONCURRENT.min(lab.hosts().max_concurrent()))
        .collect()
        .await;
    for result in tried {
        let (pair, problem) = result?;
        found.problems.extend(problem);
        found.pairs.push(pair);
    }
    found.problems.extend(assertions::broken(lab).await?);
    Ok(found)
}

/// Returns every ordered pair of two different virtual machines, once for each address family in which both have an
/// address. The first string is the name of the source host. The second is the name of the destination host with the
/// family, as `NAME/4` or `NAME/6`.
fn pairs(lab: &Lab) -> Vec<(String, String)> {
    let vms: Vec<_> = lab
        .topology()
        .agents()
        .filter(|(_, h)| h.vm.is_some())
        .map(|(n, _)| n)
        .collect();
    let mut pairs = Vec::new();
    for from in &vms {
        for to in vms.iter().filter(|to| to != &from) {
            for family in ["4", "6"] {
                let has = |name: &str| lab.address(&format!("{name}/{family}")).is_ok();
                if has(from) && has(to) {
                    pairs.push(((*from).to_owned(), format!("{to}/{family}")));
                }
            }
        }
    }
    pairs
}

/// Compares `explain` with live packets for one pair. Returns the pair, and the disagreement if there is one.
async fn check_pair(lab: &Lab, from: String, to: String) -> Result<(Pair, Option<String>)> {
    let destination = lab.address(&to)?;
    let request = ExplainRequest {
        from: from.clone(),
        to: destination.to_string(),
        protocol: Protocol::Icmp,
        destination_port: None,
        ttl: None,
        design: false,
    };
    let said = lab
        .client()?
        .explain(&request)
        .await
        .with_context(|| format!("explain {from} {to}"))?;
    let said: Explanation = serde_json::from_value(said).with_context(|| format!("explain {from} {to}"))?;
    let mut expected: Vec<_> = said.trace.iter().map(|h| h.address).collect();
    while expected.last() == Some(&None) {
        expected.pop();
    }
    let how = if said.reachable {
        Ping {
            count: 1,
            ..Ping::REACHABLE
        }
    } else {
        Ping {
            count: 2,
            timeout: Duration::from_millis(400),
            ..Ping::UNREACHABLE
        }
    };
    let trace = said.reachable || !expected.is_empty();
    let (mut pinged, mut traced) = ping_and_trace(lab, (&from, &to), how, 1, trace).await?;
    // The first packet on a link waits for the link's handshake. On an emulated machine the handshake takes seconds,
    // longer than `ping` waits.
    if said.reachable && pinged.none() {
        (pinged, traced) = ping_and_trace(lab, (&from, &to), Ping::REACHABLE, 1, trace).await?;
    }
    // The trace has only one probe for each hop. A busy machine may answer this probe too late. That would look like a
    // disagreement, so the trace is repeated with more probes.
    if traced.as_ref().is_some_and(|t| t.hops != expected) {
        traced = Some(lab.traceroute(&from, &to).await?);
    }
    let hops = traced.as_ref().map(|t| t.hops.clone()).unwrap_or_default();
    let reachable = pinged.received > 0;
    let problem = if reachable != said.reachable || pinged.received > 0 && !pinged.all() {
        Some(format!(
            "{from} → {to}: explain says {} ({}), ping: {pinged}",
            if said.reachable { "reachable" } else { "not reachable" },
            said.summary
        ))
    } else if hops != expected {
        let traced = traced.map(|t| t.to_string()).unwrap_or_default();
        Some(format!(
            "{from} → {to}: explain expects the hops {}, traceroute: {traced}",
            path(&expected)
        ))
    } else {
        None
    };
    Ok((
        Pair {
            from,
            to,
            reachable,
            hops,
        },
        problem,
    ))
}

/// Pings from one host of a pair to the other, and traces the path if `trace` is set or a ping was answered. Callers do
/// not set `trace` if the source itself drops the packets: such a trace shows no hops, and ends only after all its
/// timeouts.
async fn ping_and_trace(
    lab: &Lab,
    (from, to): (&str, &str),
    how: Ping,
    probes: u8,
    trace: bool,
) -> Result<(PingResult, Option<TraceResult>)> {
    let pinged = lab.ping(from, to, how).await?;
    let traced = if trace || pinged.received > 0 {
        Some(lab.trace(from, to, probes).await?)
    } else {
        None
    };
    Ok((pinged, traced))
}

#[cfg(test)]
mod golden {
    use super::{Explanation, TraceHop};
    use std::collections::BTreeMap;
    use tombolo_golden::golden;

    /// The lab can read the answer of `explain` that the controller's golden tests have recorded. So the controller and
    /// the lab agree on the format.
    #[test]
    fn explanations_of_the_controller() {
        let read: BTreeMap<String, Explanation> =
            golden!().read("../../../../controller/topology/tests/golden/explanation");
        let Explanation {
            reachable,
            summary,
            trace,
        } = &read["full"];
        assert_eq!((*reachable, &**summary), (true, "summary"));
        let addresses: Vec<_> = trace.iter().map(|TraceHop { address }| address.is_some()).collect();
        assert_eq!(addresses, [true, false]);
    }
}
