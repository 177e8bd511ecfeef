//! Changes of security groups: a rule that allows the packet, or the removal of the rule that denies it.

use super::change::{RepairChange, free_name};
use super::stopped::{Candidate, Stopped};
use crate::explain::GroupCheck;
use serde_json::json;
use std::collections::BTreeSet;
use std::net::IpAddr;
use tombolo_proto::config::Direction;
use tombolo_proto::fabric::Protocol;
use tombolo_proto::id::ResourceId;

/// The beginning of the names of a user's rules in effective security rules (N2).
const USERS_RULES: &str = "securityRules/";

pub(super) fn candidates(stopped: &Stopped<'_>) -> Vec<Candidate> {
    let check = stopped.walk.hops.last().and_then(|hop| hop.security.as_ref());
    let Some((check, group)) = check.and_then(|check| Some((check, check.groups.last()?))) else {
        return Vec::new();
    };
    if stopped.stop.reason != "security_rule" {
        return Vec::new();
    }
    let mut all = Vec::new();
    all.extend(allow(stopped, check.direction, group).map(Candidate::from));
    if let Some(name) = group.rule.as_ref().and_then(|rule| rule.name.strip_prefix(USERS_RULES)) {
        let text = format!("delete the rule {name} of the security group {}", group.group.name());
        let id = ResourceId::new(format!("{}/{USERS_RULES}{name}", group.group));
        all.push(RepairChange::delete(text, &id).into());
    }
    all
}

/// A rule that allows exactly this packet, before the rule that denies it. `None`: no priority is free.
fn allow(stopped: &Stopped<'_>, direction: Direction, by: &GroupCheck) -> Option<RepairChange> {
    let group = stopped.topology.network_security_groups.get(&by.group)?;
    let denying = by.rule.as_ref().map_or(u16::MAX, |rule| rule.priority);
    let rules = group.security_rules.iter().filter(|rule| rule.direction == direction);
    let taken: BTreeSet<u16> = rules.map(|rule| rule.priority).collect();
    let priority = (100..=denying.saturating_sub(1).min(4096))
        .rev()
        .find(|priority| !taken.contains(priority))?;
    let (protocol, source_port, destination_port) = ports(stopped);
    let direction = match direction {
        Direction::Inbound => "Inbound",
        Direction::Outbound => "Outbound",
    };
    let (source, destination) = (stopped.source, stopped.destination);
    let name = name(
        direction,
        protocol,
        &destination_port,
        &source_port,
        (source, destination),
    );
    let name = free_name(stopped.topology, &format!("{}/securityRules", by.group), &name);
    let properties = json!({
        "priority": priority, "direction": direction, "access": "Allow", "protocol": protocol,
        "sourceAddressPrefix": source, "sourcePortRange": source_port,
        "destinationAddressPrefix": destination, "destinationPortRange": destination_port,
    });
    let text = format!(
        "add the rule {name} to the security group {}: {direction} {protocol} from {source} port {source_port} to {destination} port \
         {destination_port}, Allow, priority {priority}",
        by.group.name()
    );
    let id = ResourceId::new(format!("{}/{USERS_RULES}{name}", by.group));
    Some(RepairChange::put(text, &id, json!({"properties": properties})))
}

/// The protocol of the packet in a rule, and its source and destination port. The source port of a request may be any.
fn ports(stopped: &Stopped<'_>) -> (&'static str, String, String) {
    let any = || "*".to_owned();
    let port = stopped.port.map_or_else(any, |port| port.to_string());
    let (protocol, port) = match stopped.explanation.protocol {
        Protocol::Icmp => ("Icmp", any()),
        Protocol::Tcp => ("Tcp", port),
        Protocol::Udp => ("Udp", port),
    };
    match stopped.is_reply {
        false => (protocol, any(), port),
        true => (protocol, port, any()),
    }
}

fn name(direction: &str, protocol: &str, port: &str, from_port: &str, ends: (IpAddr, IpAddr)) -> String {
    let port = match (port, from_port) {
        ("*", "*") => String::new(),
        ("*", from) => format!("-from-{from}"),
        (to, _) => format!("-{to}"),
    };
    let address = |address: IpAddr| address.to_string().replace(':', "-");
    format!(
        "Allow{direction}-{protocol}{port}-{}-{}",
        address(ends.0),
        address(ends.1)
    )
}
