//! Compares the tables that the controller computes with the tables in each agent's engine (its packet path), and the
//! routes that each agent has recorded with those in the kernel of the agent's host.

use super::Agreement;
use crate::command::{self, HELPER_TIMEOUT};
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

/// Makes three comparisons for each agent that runs: the tables that the controller computes with those that the agent
/// has installed; the routes that the agent has recorded as set in the kernel with those of its host's kernel; and the
/// effective routes that the REST interface shows for the agent's network interfaces with the agent's tables. Sends no
/// packets between hosts. A disagreement is no error: it is in [`Agreement::problems`]. An agent that does not run is
/// left out.
///
/// # Errors
/// The controller or a running agent does not answer, an agent has no tables yet, or `ip` cannot run on a host.
pub async fn tables(lab: &Lab) -> Result<Agreement> {
    let mut found = Agreement::default();
    let client = lab.client()?;
    for (name, _) in lab.topology().agents().filter(|(name, _)| lab.agent_runs(name)) {
        // The controller computes these tables with the agents' own code, from the routes that agents report as
        // learned. So a difference shows that the agent works with another configuration or with other learned routes.
        let desired = client
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
        note("routes", difference(&engine_routes(&desired), &engine_routes(&tables)));
        note("links", difference(&engine_links(&desired), &engine_links(&tables)));
        note(
            "transit",
            difference(&engine_transit(&desired), &engine_transit(&tables)),
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
            let effective: BTreeSet<_> = routes
                .iter()
                .filter(|r| r["state"] == "Active")
                .map(arm_route_text)
                .collect();
            let subnet = tables.subnets.iter().find(|s| s.id == nic.subnet);
            let used = subnet.into_iter().flat_map(|s| &s.routes);
            let used = used.map(|r| format!("{} {}", r.prefix, hop_text(&r.hop))).collect();
            found.interfaces += 1;
            if let Some(difference) = difference(&effective, &used) {
                let nic = nic.id.name();
                found.problems.push(format!("effective routes of {nic}: {difference}"));
            }
        }
    }
    Ok(found)
}

/// Formats the elements that only one of the two sets has; `None` if the sets are equal.
fn difference<T: Ord + Debug>(desired: &BTreeSet<T>, installed: &BTreeSet<T>) -> Option<String> {
    let only =
        |a: &BTreeSet<T>, b: &BTreeSet<T>| a.difference(b).map(|x| format!("{x:?}")).collect::<Vec<_>>().join("; ");
    (desired != installed).then(|| {
        format!(
            "only at the controller: [{}], only installed: [{}]",
            only(desired, installed),
            only(installed, desired)
        )
    })
}

/// Formats the next hop of a route in an engine. The text contains only those properties of the next hop that the REST
/// interface shows too (R21).
fn hop_text(hop: &InstalledHop) -> String {
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

/// Formats an active route of the REST interface: its prefix, and its next hop in the form of [`hop_text`].
fn arm_route_text(route: &Value) -> String {
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

/// Returns the routes of all subnets, each as one text with subnet, prefix and next hop.
fn engine_routes(tables: &InstalledTables) -> BTreeSet<String> {
    let mut routes = BTreeSet::new();
    for subnet in &tables.subnets {
        for route in &subnet.routes {
            let hop = match &route.hop {
                InstalledHop::Peering { vnet } => {
                    format!("VNetPeering {:?}", vnet.as_ref().map(|v| v.name().to_owned()))
                }
                InstalledHop::Gateway { link, .. } => format!("VirtualNetworkGateway {}", link.is_some()),
                other => hop_text(other),
            };
            routes.insert(format!("{} {} {hop}", subnet.id.name(), route.prefix));
        }
    }
    routes
}

/// The properties of a link that are compared: the peer, the prefixes from which the peer may send, the exceptions from
/// these prefixes, and the permitted foreign sources.
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

/// Returns the prefixes that a gateway forwards into its connections, each with the name of the connection.
fn engine_transit(tables: &InstalledTables) -> BTreeSet<(IpNet, String)> {
    let transit = tables.transit.iter();
    transit.map(|t| (t.prefix, t.connection.name().to_owned())).collect()
}

/// A route of the kernel: the route's prefix, and a text with its device or type and its table.
type KernelLine = (IpNet, String);

/// Returns the routes that the agent has recorded as set in the kernel, in the form of [`kernel_routes`].
fn planned_routes(kernel: &InstalledKernel) -> BTreeSet<KernelLine> {
    let line = |(prefix, route): (&IpNet, &KernelRoute)| {
        let table = if prefix.prefix_len() == 0 {
            kernel.default_table
        } else {
            kernel.table
        };
        let what = match route {
            KernelRoute::Device => kernel
                .further_devices
                .get(prefix)
                .map_or(kernel.device.as_str(), String::as_str),
            KernelRoute::Throw => "throw",
            KernelRoute::Line => EDGE_LINE,
        };
        (*prefix, format!("{what} in {table}"))
    };
    let mut lines: BTreeSet<_> = kernel.routes.iter().map(line).collect();
    // For every route into the TUN device except a default route, the agent also sets an unreachable route to the same
    // prefix, which the kernel uses while the device does not exist (D22). The agent's record does not list the
    // unreachable routes.
    let devices = kernel.routes.iter().filter(|(_, r)| **r == KernelRoute::Device);
    let fallbacks = devices.filter(|(p, _)| p.prefix_len() > 0);
    lines.extend(fallbacks.map(|(p, _)| (*p, format!("unreachable in {}", kernel.table))));
    lines
}

/// Reads the routes in the agent's two routing tables in the kernel of its host: the table of default routes and the
/// table of all other routes.
fn kernel_routes(lab: &Lab, host: &str, kernel: &InstalledKernel) -> Result<BTreeSet<KernelLine>> {
    let mut routes = BTreeSet::new();
    for family in ["-4", "-6"] {
        let argv = ["ip", "-j", family, "route", "show", "table", "all"].map(str::to_owned);
        let shown = command::finish(&lab.hosts().wrap(host, &argv), HELPER_TIMEOUT)?;
        let parsed = parse_kernel_routes(&shown.stdout, family == "-6", [kernel.table, kernel.default_table]);
        routes.extend(parsed.with_context(|| format!("routes of {host}: {}", shown.stderr))?);
    }
    Ok(routes)
}

/// A route in the output of `ip -j route`.
#[derive(Deserialize)]
struct Shown {
    #[serde(rename = "type")]
    kind: Option<String>,
    dst: String,
    dev: Option<String>,
}

/// Parses the output of `ip -j route show table all` for one address family. Returns the routes of `tables`.
fn parse_kernel_routes(text: &str, v6: bool, tables: [u32; 2]) -> Result<Vec<KernelLine>> {
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
        let lines: Vec<_> = parse_kernel_routes(text, false, [7, 8])
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
        let arm = |text: &str| arm_route_text(&serde_json::from_str(text).unwrap());
        let appliance =
            r#"{"addressPrefix":["10.3.0.0/16"],"nextHopType":"VirtualAppliance","nextHopIpAddress":["10.1.0.5"]}"#;
        let installed = InstalledHop::Appliance {
            address: "10.1.0.5".parse().unwrap(),
            vnet: None,
        };
        assert_eq!(arm(appliance), format!("10.3.0.0/16 {}", hop_text(&installed)));
        let global = r#"{"addressPrefix":["10.2.0.0/16"],"nextHopType":"VNetGlobalPeering","nextHopIpAddress":[]}"#;
        assert_eq!(
            arm(global),
            format!("10.2.0.0/16 {}", hop_text(&InstalledHop::Peering { vnet: None }))
        );
    }
}
