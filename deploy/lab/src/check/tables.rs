//! Compares what the controller says with what is installed: in the engine of each agent, and in its host's kernel.

use super::Agreement;
use crate::command::{self, LIMIT};
use crate::lab::Lab;
use crate::site::EDGE_LINE;
use anyhow::{Context, Result};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::net::IpAddr;
use tombolo_proto::config::Role;
use tombolo_proto::id::AgentId;
use tombolo_proto::installed::{InstalledHop, InstalledKernel, InstalledLink, InstalledTables, KernelRoute};

/// Compares the controller's view with what the agents have installed, without sending a packet. Agents that do not run
/// are left out.
///
/// # Errors
/// The controller or an agent does not answer.
pub async fn tables(lab: &Lab) -> Result<Agreement> {
    let mut found = Agreement::default();
    let client = lab.client()?;
    for (name, _) in lab.topology().agents().filter(|(name, _)| lab.agent_runs(name)) {
        // With what the agents report to have learned, by the functions that agents run themselves.
        let wanted = client
            .agent_tables(name)
            .await
            .with_context(|| format!("tables of {name}"))?;
        let config = client
            .agent_config(name)
            .await
            .with_context(|| format!("configuration of {name}"))?;
        let installed = lab.agent_installed(name).await?;
        let tables = installed
            .tables
            .with_context(|| format!("{name} has no tables installed"))?;
        found.agents += 1;
        let mut note = |what: &str, difference: Option<String>| {
            found
                .problems
                .extend(difference.map(|d| format!("{what} of {name}: {d}")));
        };
        note("routes", difference(&engine_routes(&wanted), &engine_routes(&tables)));
        note("links", difference(&engine_links(&wanted), &engine_links(&tables)));
        note(
            "transit",
            difference(&engine_transit(&wanted), &engine_transit(&tables)),
        );
        let actual = kernel_routes(lab, name, &installed.kernel)?;
        note("kernel routes", difference(&planned_routes(&installed.kernel), &actual));

        let Role::Vm { nics, .. } = &config.role else { continue };
        for nic in nics {
            let answer = client
                .arm_post(&format!("{}/effectiveRouteTable", nic.id), &Value::Null)
                .await;
            let answer = answer.with_context(|| format!("effective routes of {}", nic.id.name()))?;
            let routes = answer["value"].as_array().context("effective routes without 'value'")?;
            let said: BTreeSet<_> = routes.iter().filter(|r| r["state"] == "Active").map(shown).collect();
            let subnet = tables.subnets.iter().find(|s| s.id == nic.subnet);
            let used = subnet.into_iter().flat_map(|s| &s.routes);
            let used = used.map(|r| format!("{} {}", r.prefix, hop(&r.hop))).collect();
            found.interfaces += 1;
            if let Some(difference) = difference(&said, &used) {
                let nic = nic.id.name();
                found.problems.push(format!("effective routes of {nic}: {difference}"));
            }
        }
    }
    Ok(found)
}

/// What is said and not so, and what is so and not said. None: nothing.
fn difference<T: Ord + Debug>(said: &BTreeSet<T>, used: &BTreeSet<T>) -> Option<String> {
    let only =
        |a: &BTreeSet<T>, b: &BTreeSet<T>| a.difference(b).map(|x| format!("{x:?}")).collect::<Vec<_>>().join("; ");
    (said != used).then(|| format!("only said: [{}], only used: [{}]", only(said, used), only(used, said)))
}

/// A route of an engine, as far as the REST interface shows it too (R21).
fn hop(hop: &InstalledHop) -> String {
    match hop {
        InstalledHop::Local {} => "VnetLocal".into(),
        InstalledHop::Peering { .. } => "VNetPeering".into(),
        InstalledHop::Gateway { link: Some(_), .. } => "VirtualNetworkGateway".into(),
        InstalledHop::Gateway { link: None, .. } => "VirtualNetworkGateway without an instance".into(),
        InstalledHop::Appliance { address, .. } => format!("VirtualAppliance {address}"),
        InstalledHop::Internet {} => "Internet".into(),
        InstalledHop::None {} => "None".into(),
    }
}

/// An active route of the REST interface in the same words.
fn shown(route: &Value) -> String {
    let list = |v: &Value| {
        let all = v.as_array().into_iter().flatten().filter_map(Value::as_str);
        all.collect::<Vec<_>>().join(",")
    };
    let addresses = list(&route["nextHopIpAddress"]);
    let hop = match route["nextHopType"].as_str().unwrap_or("?") {
        "VNetGlobalPeering" => "VNetPeering".into(),
        "VirtualNetworkGateway" if addresses.is_empty() => "VirtualNetworkGateway without an instance".into(),
        "VirtualAppliance" => format!("VirtualAppliance {addresses}"),
        other => other.to_owned(),
    };
    format!("{} {hop}", list(&route["addressPrefix"]))
}

fn engine_routes(tables: &InstalledTables) -> BTreeSet<String> {
    let mut routes = BTreeSet::new();
    for subnet in &tables.subnets {
        for route in &subnet.routes {
            let hop = match &route.hop {
                InstalledHop::Peering { vnet } => {
                    format!("VNetPeering {:?}", vnet.as_ref().map(|v| v.name().to_owned()))
                }
                InstalledHop::Gateway { link, .. } => format!("VirtualNetworkGateway {}", link.is_some()),
                other => hop(other),
            };
            routes.insert(format!("{} {} {hop}", subnet.id.name(), route.prefix));
        }
    }
    routes
}

/// The other end; what it may speak for, and what not; what it may carry besides.
type LinkLine = (AgentId, BTreeSet<IpNet>, BTreeSet<IpNet>, String);

fn link_line(link: &InstalledLink) -> LinkLine {
    let set = |prefixes: &[IpNet]| prefixes.iter().map(IpNet::trunc).collect();
    let foreign = format!("{:?}", link.foreign);
    (link.peer.clone(), set(&link.sources), set(&link.except), foreign)
}

fn engine_links(tables: &InstalledTables) -> BTreeSet<LinkLine> {
    let links = tables.links.iter();
    links.map(link_line).collect()
}

fn engine_transit(tables: &InstalledTables) -> BTreeSet<(IpNet, String)> {
    let transit = tables.transit.iter();
    transit.map(|t| (t.prefix, t.connection.name().to_owned())).collect()
}

type KernelLine = (IpNet, String);

/// What the agent believes to have set.
fn planned_routes(kernel: &InstalledKernel) -> BTreeSet<KernelLine> {
    let line = |(prefix, route): (&IpNet, &KernelRoute)| {
        let table = if prefix.prefix_len() == 0 {
            kernel.default_table
        } else {
            kernel.table
        };
        let what = match route {
            KernelRoute::Device => kernel.device.as_str(),
            KernelRoute::Throw => "throw",
            KernelRoute::Line => EDGE_LINE,
        };
        (*prefix, format!("{what} in {table}"))
    };
    let mut lines: BTreeSet<_> = kernel.routes.iter().map(line).collect();
    // What leads into the device leads nowhere without it (D22).
    let devices = kernel.routes.iter().filter(|(_, r)| **r == KernelRoute::Device);
    let fallbacks = devices.filter(|(p, _)| p.prefix_len() > 0);
    lines.extend(fallbacks.map(|(p, _)| (*p, format!("unreachable in {}", kernel.table))));
    lines
}

/// What is set on its host, in both of its tables.
fn kernel_routes(lab: &Lab, host: &str, kernel: &InstalledKernel) -> Result<BTreeSet<KernelLine>> {
    let mut routes = BTreeSet::new();
    for family in ["-4", "-6"] {
        let argv = ["ip", "-j", family, "route", "show", "table", "all"].map(str::to_owned);
        let shown = command::finish(&lab.hosts().wrap(host, &argv), LIMIT)?;
        let parsed = parse(&shown.stdout, family == "-6", [kernel.table, kernel.default_table]);
        routes.extend(parsed.with_context(|| format!("routes of {host}: {}", shown.stderr))?);
    }
    Ok(routes)
}

#[derive(Deserialize)]
struct Shown {
    #[serde(rename = "type")]
    kind: Option<String>,
    dst: String,
    dev: Option<String>,
}

/// Routes of these tables in what `ip -j route show table all` prints.
fn parse(text: &str, v6: bool, tables: [u32; 2]) -> Result<Vec<KernelLine>> {
    let routes: Vec<Value> = serde_json::from_str(text)?;
    let names: BTreeMap<String, u32> = tables.map(|t| (t.to_string(), t)).into();
    let mut lines = Vec::new();
    for route in routes {
        let Some(table) = route["table"].as_str().and_then(|t| names.get(t)) else {
            continue;
        };
        let route: Shown = serde_json::from_value(route)?;
        let prefix: IpNet = match route.dst.as_str() {
            "default" if v6 => IpNet::V6(ipnet::Ipv6Net::default()),
            "default" => IpNet::V4(ipnet::Ipv4Net::default()),
            dst => dst.parse().or_else(|_| dst.parse::<IpAddr>().map(IpNet::from))?,
        };
        let what = match route.kind.as_deref() {
            None | Some("unicast") => route.dev.unwrap_or_default(),
            Some(kind) => kind.to_owned(),
        };
        lines.push((prefix, format!("{what} in {table}")));
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_of_our_tables_are_read() {
        let text = r#"[
            {"dst":"default","gateway":"192.0.2.254","dev":"eth0","flags":[]},
            {"dst":"10.1.0.0/16","dev":"tl-a","table":"7","protocol":"116","scope":"link","prefsrc":"10.1.0.4","flags":[]},
            {"type":"throw","dst":"10.1.9.0/24","table":"7","protocol":"116","flags":[]},
            {"dst":"10.2.0.4","dev":"tl-a","table":"7","flags":[]},
            {"dst":"default","dev":"tl-a","table":"8","flags":[]},
            {"type":"local","dst":"10.1.0.4","dev":"tl-a","table":"local","flags":[]}]"#;
        let lines: Vec<_> = parse(text, false, [7, 8])
            .unwrap()
            .into_iter()
            .map(|(p, w)| format!("{p} {w}"))
            .collect();
        let expected = [
            "10.1.0.0/16 tl-a in 7",
            "10.1.9.0/24 throw in 7",
            "10.2.0.4/32 tl-a in 7",
            "0.0.0.0/0 tl-a in 8",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_route_reads_alike_from_both_sides() {
        let arm = |text: &str| shown(&serde_json::from_str(text).unwrap());
        let appliance =
            r#"{"addressPrefix":["10.3.0.0/16"],"nextHopType":"VirtualAppliance","nextHopIpAddress":["10.1.0.5"]}"#;
        let installed = InstalledHop::Appliance {
            address: "10.1.0.5".parse().unwrap(),
            vnet: None,
        };
        assert_eq!(arm(appliance), format!("10.3.0.0/16 {}", hop(&installed)));
        let global = r#"{"addressPrefix":["10.2.0.0/16"],"nextHopType":"VNetGlobalPeering","nextHopIpAddress":[]}"#;
        assert_eq!(
            arm(global),
            format!("10.2.0.0/16 {}", hop(&InstalledHop::Peering { vnet: None }))
        );
    }
}
