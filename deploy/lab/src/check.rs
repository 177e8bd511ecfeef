//! Compares what is said with what is: the controller's routes with the agents' own tables, and `explain` with real
//! pings and traceroutes.

use crate::lab::Lab;
use crate::probe::{Ping, Traced, path};
use anyhow::{Context, Result};
use futures::StreamExt;
use serde::Deserialize;
use serde_json::Value;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;
use tombolo_client::fabric::ExplainRequest;
use tombolo_proto::config::{AgentConfig, Role};

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

/// Compares everything: agents' tables, effective routes, and every pair of virtual machines in both families.
///
/// # Errors
/// The controller, an agent or a probe does not answer at all. A disagreement is no error.
pub async fn all(lab: &Lab) -> Result<Agreement> {
    let mut found = tables(lab).await?;
    let names = pairs(lab);
    let tried: Vec<_> = futures::stream::iter(names)
        .map(|(from, to)| pair(lab, from, to))
        .buffered(AT_ONCE)
        .collect()
        .await;
    for result in tried {
        let (pair, problem) = result?;
        found.problems.extend(problem);
        found.pairs.push(pair);
    }
    Ok(found)
}

/// Compares the controller's view with the agents' own tables, without sending a packet. Agents that do not run are
/// left out.
///
/// # Errors
/// The controller or an agent does not answer.
pub async fn tables(lab: &Lab) -> Result<Agreement> {
    let mut found = Agreement::default();
    let client = lab.client()?;
    for (name, _) in lab.topology().agents().filter(|(name, _)| lab.agent_runs(name)) {
        let mut wanted = client
            .agent_config(name)
            .await
            .with_context(|| format!("configuration of {name}"))?;
        let mut own = lab.agent_tables(name).await?;
        for config in [&mut wanted, &mut own] {
            config.links.iter_mut().for_each(|l| l.preshared_key = None);
        }
        found.agents += 1;
        if wanted != own {
            found.problems.push(format!(
                "{name} runs other tables than the controller says: {}",
                difference(&wanted, &own)
            ));
        }
        let Role::Vm { nics, .. } = &own.role else { continue };
        for nic in nics {
            let subnet = own.subnets.iter().find(|s| s.id == nic.subnet);
            let mut theirs: Vec<_> = subnet.into_iter().flat_map(|s| &s.routes).map(own_route).collect();
            let answer = client
                .arm_post(&format!("{}/effectiveRouteTable", nic.id), &Value::Null)
                .await;
            let answer = answer.with_context(|| format!("effective routes of {}", nic.id.name()))?;
            let routes = answer["value"].as_array().context("effective routes without 'value'")?;
            let mut said: Vec<_> = routes.iter().map(arm_route).collect();
            theirs.sort();
            said.sort();
            found.interfaces += 1;
            if said != theirs {
                let only = |a: &[String], b: &[String]| {
                    a.iter()
                        .filter(|x| !b.contains(x))
                        .cloned()
                        .collect::<Vec<_>>()
                        .join("; ")
                };
                found.problems.push(format!(
                    "effective routes of {}: only shown: [{}], only used: [{}]",
                    nic.id.name(),
                    only(&said, &theirs),
                    only(&theirs, &said)
                ));
            }
        }
    }
    Ok(found)
}

/// Where two configurations differ first, in their canonical form.
fn difference(wanted: &AgentConfig, own: &AgentConfig) -> String {
    let text = |c: &AgentConfig| serde_json::to_string(c).unwrap_or_default();
    let (wanted, own) = (text(wanted), text(own));
    let at = wanted.bytes().zip(own.bytes()).take_while(|(a, b)| a == b).count();
    let part = |s: &str| s.chars().skip(at.saturating_sub(60)).take(160).collect::<String>();
    format!("…{}… against …{}…", part(&wanted), part(&own))
}

/// A route of an agent's tables in the words of the REST interface (R21).
fn own_route(route: &tombolo_proto::route::EffectiveRoute) -> String {
    let hops: Vec<_> = route.next_hop.addresses().iter().map(ToString::to_string).collect();
    format!(
        "{} {:?} {:?} {} {}",
        route.prefix,
        route.source,
        route.state,
        route.next_hop.type_name(),
        hops.join(",")
    )
}

fn arm_route(route: &Value) -> String {
    let list = |v: &Value| {
        let all = v.as_array().into_iter().flatten().filter_map(Value::as_str);
        all.collect::<Vec<_>>().join(",")
    };
    format!(
        "{} {} {} {} {}",
        list(&route["addressPrefix"]),
        route["source"].as_str().unwrap_or("?"),
        route["state"].as_str().unwrap_or("?"),
        route["nextHopType"].as_str().unwrap_or("?"),
        list(&route["nextHopIpAddress"])
    )
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
    let pinged = lab.ping(&from, &to, how).await?;
    // Nothing to see on a way that ends at once, unless a ping says otherwise.
    let traced = if said.reachable || !expected.is_empty() || pinged.received > 0 {
        lab.traceroute(&from, &to).await?
    } else {
        Traced {
            hops: Vec::new(),
            reached: false,
        }
    };
    let reachable = pinged.received > 0;
    let problem = if reachable != said.reachable || pinged.received > 0 && !pinged.all() {
        Some(format!(
            "{from} → {to}: explain says {} ({}), ping: {pinged}",
            if said.reachable { "reachable" } else { "not reachable" },
            said.summary
        ))
    } else if traced.hops != expected {
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
            hops: traced.hops,
        },
        problem,
    ))
}
