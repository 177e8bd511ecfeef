//! Compares what is said with what is: the controller's routes with what agents have installed, `explain` and the
//! topology's expectations with real pings and traceroutes.

mod phases;
mod rows;
mod tables;

pub use phases::{Phase, phases};
pub use rows::{Heard, Outcome, Tried, rows};
pub use tables::tables;

use crate::lab::Lab;
use crate::probe::{Ping, Pinged, Traced, path};
use anyhow::{Context, Result};
use futures::StreamExt;
use serde::Deserialize;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;
use tombolo_client::fabric::ExplainRequest;

/// Pairs that are tried at the same time.
const AT_ONCE: usize = 16;

/// What the comparison found.
#[derive(Debug, Clone, Default)]
pub struct Agreement {
    /// Agents whose tables were compared.
    pub agents: usize,
    /// Network interfaces whose effective routes were compared.
    pub interfaces: usize,
    /// Pairs of addresses that were explained and tried, and whether they reach each other.
    pub pairs: Vec<Pair>,
    /// Every disagreement; empty if all is well.
    pub problems: Vec<String>,
}

/// One direction between two virtual machines, in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The host that asks.
    pub from: String,
    /// The host that is asked, as [`Lab::address`] takes it.
    pub to: String,
    /// Pings are answered.
    pub reachable: bool,
    /// What traceroute shows.
    pub hops: Vec<Option<IpAddr>>,
}

impl Agreement {
    /// How many pairs reach each other.
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

/// The part of an explanation that can be seen from outside.
#[derive(Debug, Deserialize)]
struct Explained {
    reachable: bool,
    summary: String,
    trace: Vec<TraceHop>,
}

#[derive(Debug, Deserialize)]
struct TraceHop {
    address: Option<IpAddr>,
}

/// Compares everything: installed tables, effective routes, and every pair of virtual machines in both families.
///
/// # Errors
/// The controller, an agent or a probe does not answer at all. A disagreement is no error.
pub async fn all(lab: &Lab) -> Result<Agreement> {
    let mut found = tables(lab).await?;
    let names = pairs(lab);
    let tried: Vec<_> = futures::stream::iter(names)
        .map(|(from, to)| pair(lab, from, to))
        .buffered(AT_ONCE.min(lab.hosts().at_once()))
        .collect()
        .await;
    for result in tried {
        let (pair, problem) = result?;
        found.problems.extend(problem);
        found.pairs.push(pair);
    }
    Ok(found)
}

/// Every ordered pair of virtual machines, in each family that both have.
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

/// Explains a pair and tries it. The second part says how they disagree.
async fn pair(lab: &Lab, from: String, to: String) -> Result<(Pair, Option<String>)> {
    let destination = lab.address(&to)?;
    let request = ExplainRequest {
        from: from.clone(),
        to: destination.to_string(),
        protocol: None,
        destination_port: None,
        ttl: None,
    };
    let said = lab
        .client()?
        .explain(&request)
        .await
        .with_context(|| format!("explain {from} {to}"))?;
    let said: Explained = serde_json::from_value(said).with_context(|| format!("explain {from} {to}"))?;
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
    let look = said.reachable || !expected.is_empty();
    let (mut pinged, mut traced) = seen(lab, (&from, &to), how, 1, look).await?;
    // A first packet waits for the handshake of a link, on a machine that is emulated for seconds.
    if said.reachable && pinged.none() {
        (pinged, traced) = seen(lab, (&from, &to), Ping::REACHABLE, 1, look).await?;
    }
    // There is one probe a hop, and a busy machine may answer it too late: that is no disagreement, so ask again.
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

/// Pings a pair, and traces it with so many probes a TTL. On a way that ends at once there is nothing to see, so `look`
/// says whether there may be something; an answered ping says so too.
async fn seen(
    lab: &Lab,
    (from, to): (&str, &str),
    how: Ping,
    probes: u8,
    look: bool,
) -> Result<(Pinged, Option<Traced>)> {
    let pinged = lab.ping(from, to, how).await?;
    let traced = if look || pinged.received > 0 {
        Some(lab.trace(from, to, probes).await?)
    } else {
        None
    };
    Ok((pinged, traced))
}

#[cfg(test)]
mod golden {
    use super::{Explained, TraceHop};
    use std::collections::BTreeMap;
    use tombolo_golden::golden;

    /// The file is one that the controller's tests record.
    #[test]
    fn explanations_of_the_controller() {
        let read: BTreeMap<String, Explained> =
            golden!().read("../../../../controller/topology/tests/golden/explanation");
        let Explained {
            reachable,
            summary,
            trace,
        } = &read["full"];
        assert_eq!((*reachable, &**summary), (true, "summary"));
        let addresses: Vec<_> = trace.iter().map(|TraceHop { address }| address.is_some()).collect();
        assert_eq!(addresses, [true, false]);
    }
}
