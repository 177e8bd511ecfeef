//! `tombolo explain`: the paths of a packet and of its reply. Prints the verdict, the hops, the security rules that
//! decide, and what to do if the packet is dropped. `fix` finds the changes that would let it arrive.

mod fix;
mod graph;

use crate::context::Context;
use crate::output::{Output, at, items, name_at, text};
use anyhow::Result;
use clap::{Args, ValueEnum};
use comfy_table::Cell;
use owo_colors::OwoColorize as _;
use serde_json::Value;
use std::process::ExitCode;
use tombolo_client::fabric::{self, ExplainRequest};

#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// Source: a machine, network interface or agent, by name or id
    from: String,
    /// Destination: a machine, network interface or agent, by name or id, or an address
    to: String,
    /// Protocol of the packet, the same as --protocol
    #[arg(value_name = "PROTOCOL", value_enum, conflicts_with = "protocol")]
    protocol_word: Option<Protocol>,
    /// Destination port, the same as --port
    #[arg(value_name = "PORT", conflicts_with = "port")]
    port_number: Option<u16>,
    /// Protocol of the packet
    #[arg(short, long, value_enum, default_value_t = Protocol::Icmp)]
    protocol: Protocol,
    /// Destination port, with tcp and udp
    #[arg(long)]
    port: Option<u16>,
    /// Initial TTL of the packet [default: 64]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..))]
    ttl: Option<u8>,
    /// Explain the design: as if all agents had joined, and all links and back ends were up
    #[arg(long)]
    design: bool,
    /// Draw both ways as a graph, in place of the tables: `tombolo explain A B --graph svg > path.svg`
    #[arg(long, value_enum, value_name = "FORMAT", conflicts_with = "fix")]
    graph: Option<graph::Format>,
    /// Find the smallest set of changes that lets the packet arrive and its reply come back, and what else they would connect
    /// or cut
    #[arg(long)]
    fix: bool,
    /// Make the changes that --fix finds, after a question
    #[arg(long, requires = "fix")]
    apply: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocol {
    Icmp,
    Tcp,
    Udp,
}

impl Explain {
    /// Asks the controller, and prints the answer. For scripts, the exit code is 1 if the packet or its reply does not
    /// arrive.
    pub(crate) async fn run(&self, c: &Context) -> Result<ExitCode> {
        let request = self.request();
        if self.fix {
            return fix::run(c, &request, self.apply).await;
        }
        let answer = c.client.explain(&request).await?;
        if let Some(format) = self.graph {
            c.out.line(graph::draw(&answer, format).trim_end());
        } else if c.out.is_json() {
            c.out.json(&answer)?;
        } else {
            show(c.out, &self.from, &self.to, &answer);
        }
        let reachable = answer.get("reachable").and_then(Value::as_bool) == Some(true);
        Ok(if reachable {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    fn request(&self) -> ExplainRequest {
        ExplainRequest {
            from: self.from.clone(),
            to: self.to.clone(),
            protocol: match self.protocol_word.unwrap_or(self.protocol) {
                Protocol::Icmp => fabric::Protocol::Icmp,
                Protocol::Tcp => fabric::Protocol::Tcp,
                Protocol::Udp => fabric::Protocol::Udp,
            },
            destination_port: self.port_number.or(self.port),
            ttl: self.ttl,
            design: self.design,
        }
    }
}

fn show(out: Output, from: &str, to: &str, answer: &Value) {
    let reachable = answer.get("reachable").and_then(Value::as_bool) == Some(true);
    let verdict = if reachable { "reachable" } else { "NOT reachable" };
    let verdict = match (out.colour, reachable) {
        (true, true) => verdict.green().bold().to_string(),
        (true, false) => verdict.red().bold().to_string(),
        _ => verdict.to_owned(),
    };
    let ends = format!(
        "{from} ({}) → {to} ({})",
        at(answer, "/source"),
        at(answer, "/destination")
    );
    out.line(&format!("{verdict}: {ends}, {}", at(answer, "/protocol")));
    out.line(&at(answer, "/summary"));
    walk(out, "The way there", answer.get("request"));
    walk(out, "The way back", answer.get("reply").filter(|r| !r.is_null()));
    security(out, answer);
    bandwidth(out, answer);
    let trace: Vec<_> = items(answer, "/trace")
        .map(|h| {
            let address = at(h, "/address");
            vec![
                Cell::new(at(h, "/ttl")),
                Cell::new(if address.is_empty() { "*".to_owned() } else { address }),
                Cell::new(at(h, "/agent")),
            ]
        })
        .collect();
    if !trace.is_empty() {
        out.title("\nWhat traceroute shows");
        out.table(&["TTL", "Address", "Agent"], trace, "");
    }
    for side in ["/request/stop", "/reply/stop"] {
        let Some(stop) = answer.pointer(side).filter(|s| !s.is_null()) else {
            continue;
        };
        let rule = at(stop, "/rule");
        let rule = if rule.is_empty() {
            String::new()
        } else {
            format!(" (rule {rule})")
        };
        out.title("\nWhat stops it");
        out.line(&format!(
            "{} drops it: {}{rule}",
            at(stop, "/agent"),
            at(stop, "/reason")
        ));
        out.title("\nWhat to do");
        // The answer of a controller of an earlier version has the field `text` instead of `remedy`.
        let remedy = at(stop, "/remedy");
        out.line(&if remedy.is_empty() {
            at(stop, "/text")
        } else {
            capitalised(&remedy)
        });
        let resource = at(stop, "/resource");
        if !resource.is_empty() {
            out.line(&format!("See: {resource}"));
        }
    }
}

/// Returns the text with a capital first letter.
fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|c| c.to_uppercase().to_string());
    first.unwrap_or_default() + letters.as_str()
}

fn walk(out: Output, title: &str, walk: Option<&Value>) {
    let Some(walk) = walk else { return };
    out.title(&format!("\n{title}"));
    let rows = items(walk, "/hops")
        .map(|hop| {
            let from = match at(hop, "/ingress/from") {
                link if link.is_empty() => "its host".to_owned(),
                link => link,
            };
            vec![
                Cell::new(at(hop, "/agent")),
                Cell::new(name_at(hop, "/vnet")),
                Cell::new(from),
                Cell::new(at(hop, "/ttl")),
                Cell::new(route(hop.get("route"))),
                Cell::new(at(hop, "/verdict")),
            ]
        })
        .collect();
    out.table(
        &["Agent", "VNet", "From", "TTL", "Route", "Decision"],
        rows,
        "no agent sees it",
    );
}

/// Prints the security rules that decided at each network interface, in both directions, and the rules before a denying
/// one. Prints nothing if the packet passed no network interface with a security group.
fn security(out: Output, answer: &Value) {
    let (mut rows, mut others) = (Vec::new(), Vec::new());
    for (way, hops) in [("there", "/request/hops"), ("back", "/reply/hops")] {
        for check in items(answer, hops).filter_map(|hop| hop.get("security")) {
            let mut row = |group: String, decision: String| {
                let cells = [
                    way.to_owned(),
                    name_at(check, "/at"),
                    at(check, "/direction"),
                    group,
                    decision,
                ];
                rows.push(cells.into_iter().map(Cell::new).collect());
            };
            if check.get("knownFlow").and_then(Value::as_bool) == Some(true) {
                row(String::new(), "known flow: no rule decides (N6)".into());
            }
            for group in items(check, "/groups") {
                row(name_at(group, "/group"), rule(group));
                if at(group, "/access") == "Deny" {
                    others.extend(other_rules(group));
                }
            }
        }
    }
    if !rows.is_empty() {
        out.title("\nSecurity rules");
        out.table(
            &["Way", "Network interface", "Direction", "Group", "Decision"],
            rows,
            "",
        );
    }
    if !others.is_empty() {
        out.title("\nRules before it that do not match");
        out.table(&["Rule", "Priority", "Access", "Differs in"], others, "");
    }
}

/// Prints the limits of bandwidth on the way. Prints nothing if there are none.
fn bandwidth(out: Output, answer: &Value) {
    let mut rows = Vec::new();
    for (way, hops) in [("there", "/request/hops"), ("back", "/reply/hops")] {
        for hop in items(answer, hops) {
            let Some(limit) = hop.get("bandwidth") else { continue };
            let cells = [
                way.to_owned(),
                at(hop, "/agent"),
                name_at(limit, "/resource"),
                at(limit, "/mbps"),
            ];
            rows.push(cells.into_iter().map(Cell::new).collect());
        }
    }
    if !rows.is_empty() {
        out.title("\nLimits of bandwidth");
        out.table(&["Way", "Agent", "Network interface or gateway", "Mbit/s"], rows, "");
    }
}

/// Formats the decision of a group, as in `Allow by AllowVnetInBound (65000), source VirtualNetwork (10.1.0.0/16)`.
fn rule(group: &Value) -> String {
    let access = at(group, "/access");
    let Some(rule) = group.get("rule").filter(|rule| !rule.is_null()) else {
        return format!("{access}: no rule matches");
    };
    let side = |name: &str| {
        let addresses = last_segment(&at(rule, &format!("/{name}/name"))).to_owned();
        let member = at(rule, &format!("/{name}/member"));
        match addresses.as_str() {
            "*" => String::new(),
            _ if member.is_empty() => format!(", {name} {addresses}"),
            _ => format!(", {name} {addresses} ({member})"),
        }
    };
    let name = at(rule, "/name");
    format!(
        "{access} by {} ({}){}{}",
        last_segment(&name),
        at(rule, "/priority"),
        side("source"),
        side("destination")
    )
}

/// The rows of the rules that come before the deciding one, which differ from the packet in some fields.
fn other_rules(group: &Value) -> Vec<Vec<Cell>> {
    let mut rows = Vec::new();
    let earlier = at(group, "/notMatchedEarlier");
    if !earlier.is_empty() {
        rows.push(vec![Cell::new(format!("… {earlier} more before these"))]);
    }
    rows.extend(items(group, "/notMatched").map(|rule| {
        let name = at(rule, "/name");
        vec![
            Cell::new(last_segment(&name)),
            Cell::new(at(rule, "/priority")),
            Cell::new(at(rule, "/access")),
            Cell::new(at(rule, "/differs")),
        ]
    }));
    rows
}

/// The part of a name after its last `/`. Prefixes stay as they are.
fn last_segment(name: &str) -> &str {
    let is_prefix = name.starts_with(|c: char| c.is_ascii_digit()) || name.contains(':');
    match name.rsplit_once('/') {
        Some((_, last)) if !is_prefix => last,
        _ => name,
    }
}

/// Formats a matched route, as in `10.2.0.0/16 VNetPeering (Default)`; empty if there is none.
fn route(route: Option<&Value>) -> String {
    let Some(route) = route.filter(|r| !r.is_null()) else {
        return String::new();
    };
    let via = at(route, "/nextHopIpAddress");
    let via = if via.is_empty() { via } else { format!(" {via}") };
    let name = text(route.get("name"));
    let name = if name.is_empty() { name } else { format!(" '{name}'") };
    format!(
        "{} {}{via} ({}{name})",
        at(route, "/addressPrefix"),
        at(route, "/nextHopType"),
        at(route, "/source")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;
    use serde_json::json;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        explain: Explain,
    }

    fn request(arguments: &str) -> Option<ExplainRequest> {
        let line = Line::try_parse_from(std::iter::once("explain").chain(arguments.split(' ')));
        line.ok().map(|line| line.explain.request())
    }

    #[test]
    fn protocol_and_port_may_follow_the_ends() {
        let asked = request("a b tcp 443").unwrap();
        assert_eq!(
            (asked.protocol, asked.destination_port),
            (fabric::Protocol::Tcp, Some(443))
        );
        assert_eq!(request("a b -p tcp --port 443"), Some(asked.clone()));
        assert_eq!(request("a b tcp --port 443"), Some(asked));
        assert_eq!(request("a b").unwrap().protocol, fabric::Protocol::Icmp);
        for wrong in [
            "a b tcp -p udp",
            "a b tcp 443 --port 80",
            "a b 443",
            "a b tcp 65536",
            "a b sctp",
        ] {
            assert_eq!(request(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn d40_a_rule_is_shown_with_the_addresses_that_match() {
        let group = json!({"access": "Allow", "rule": {
            "name": "defaultSecurityRules/AllowVnetInBound", "priority": 65000,
            "source": {"name": "VirtualNetwork", "member": "10.1.0.0/16"}, "destination": {"name": "*"},
        }});
        assert_eq!(
            rule(&group),
            "Allow by AllowVnetInBound (65000), source VirtualNetwork (10.1.0.0/16)"
        );
        let group = json!({"access": "Deny", "rule": {
            "name": "securityRules/web", "priority": 200, "source": {"name": "10.0.0.0/8"},
            "destination": {"name": "/x/applicationsecuritygroups/web", "member": "10.1.0.4/32"},
        }});
        assert_eq!(
            rule(&group),
            "Deny by web (200), source 10.0.0.0/8, destination web (10.1.0.4/32)"
        );
        assert_eq!(rule(&json!({"access": "Deny"})), "Deny: no rule matches");
    }
}
