//! Explains a packet that a security group denies: the rule that decides, and the rule that would allow the packet.

use super::answer::{DecidingRule, GroupCheck, RuleField, SecurityCheck};
use super::finding::Finding;
use super::node::Packet;
use crate::path::{ArmPath, Kind};
use tombolo_proto::config::Direction;
use tombolo_proto::fabric::Protocol;
use tombolo_proto::id::ResourceId;

/// The beginning of the names of default rules in effective security rules (N2).
const DEFAULT_RULES: &str = "defaultSecurityRules/";

/// The priorities that a user's rule can have (N1).
const PRIORITIES: std::ops::RangeInclusive<u16> = 100..=4096;

/// Explains `check`, a decision of security groups to deny `packet`. The last group of `check` is the one that denies
/// the packet (N4).
pub(super) fn by_rules(packet: &Packet, check: &SecurityCheck) -> Finding {
    let flow = packet.flow();
    let Some(by) = check.groups.last() else {
        let cause = format!("the security groups of {} deny {flow}", check.at.name());
        return Finding::new("N4", cause, "check the rules of these groups").at(&check.at);
    };
    let group = by.group.name();
    let direction = direction_name(check.direction);
    let place = format!("{} {}", kind_of(&by.attached_to), by.attached_to.name());
    let mut cause = match &by.rule {
        Some(rule) => format!(
            "{}rule {} (priority {}, {direction}) of group {group} on {place} denies {flow}",
            if is_default(rule) { "default " } else { "" },
            name_of(rule),
            rule.priority
        ),
        None => format!("no {direction} rule of group {group} on {place} matches {flow}, so the group denies it"),
    };
    let mut remedy = remedy(packet, direction, by);
    let outside = outside_virtual_network(packet, by);
    let tag = if packet.is_answer {
        let here = kind_of(&check.at);
        cause = format!("{cause}, which is a reply whose request did not pass this {here}");
        remedy = format!("let the request take the same path as its reply, or {remedy}");
        "N6"
    } else if !outside.is_empty() {
        let is = if outside.len() == 1 { "is" } else { "are" };
        cause = format!(
            "{cause}, as {} {is} not in the tag VirtualNetwork there",
            outside.join(" and ")
        );
        "N8"
    } else if check.groups.len() > 1 {
        let others: Vec<&str> = check.groups.iter().rev().skip(1).map(|g| g.group.name()).collect();
        cause = format!("{cause}; group {} allows it, but both groups must", others.join(", "));
        "N4"
    } else {
        "N3"
    };
    // A default rule cannot be changed (N2), so the finding names the group, to which a rule must be added.
    let resource = match &by.rule {
        Some(rule) if !is_default(rule) => ResourceId::new(format!("{}/{}", by.group, rule.name)),
        _ => by.group.clone(),
    };
    Finding::new(tag, cause, remedy).at(&resource)
}

/// The change with which the group of `by` would allow the packet, in words.
fn remedy(packet: &Packet, direction: &str, by: &GroupCheck) -> String {
    let group = by.group.name();
    let allow = |priorities: &str| {
        let needed = selector(packet);
        format!("add an {direction} Allow rule with a priority {priorities} for {needed} to group {group}")
    };
    let (lowest, highest) = PRIORITIES.into_inner();
    match &by.rule {
        Some(rule) if !is_default(rule) => {
            let name = name_of(rule);
            if rule.priority <= lowest {
                return format!(
                    "change or delete rule {name} of group {group}, as no rule can come before priority {lowest}"
                );
            }
            format!("{}, or change rule {name}", allow(&format!("below {}", rule.priority)))
        }
        _ => allow(&format!("from {lowest} to {highest}")),
    }
}

/// The addresses of a packet that are not in the tag `VirtualNetwork` at the network interface, as text, if a default
/// rule of `group` denies the packet for this reason (N2, N8). Empty if the rule denies the packet for another reason.
fn outside_virtual_network(packet: &Packet, group: &GroupCheck) -> Vec<String> {
    if !group.rule.as_ref().is_some_and(is_default) {
        return Vec::new();
    }
    let allows_vnet = |name: &str| ["AllowVnetInBound", "AllowVnetOutBound"].contains(&name);
    let mut others = group.not_matched.iter();
    let inside = others.find(|rule| rule.name.strip_prefix(DEFAULT_RULES).is_some_and(allows_vnet));
    let differs = |field| inside.is_some_and(|rule| rule.differs.contains(&field));
    let ends = [
        (RuleField::Source, packet.source),
        (RuleField::Destination, packet.destination),
    ];
    let outside = ends.into_iter().filter(|(field, _)| differs(*field));
    outside.map(|(_, address)| address.to_string()).collect()
}

/// The fields that a new rule needs to match the packet, in words.
fn selector(packet: &Packet) -> String {
    let protocol = match packet.protocol {
        Protocol::Icmp => "Icmp",
        Protocol::Tcp => "Tcp",
        Protocol::Udp => "Udp",
    };
    let ends = format!(
        "source {}, destination {}, protocol {protocol}",
        packet.source, packet.destination
    );
    match packet.ports {
        Some((_, port)) => format!("{ends} and destination port {port}"),
        None => ends,
    }
}

/// Whether a rule is one of the default rules, with which every group ends (N2).
fn is_default(rule: &DecidingRule) -> bool {
    rule.name.starts_with(DEFAULT_RULES)
}

/// The name of a rule without `securityRules/` or `defaultSecurityRules/`.
fn name_of(rule: &DecidingRule) -> &str {
    rule.name.rsplit('/').next().unwrap_or(&rule.name)
}

/// The kind of the subnet or network interface `id`, in words.
fn kind_of(id: &ResourceId) -> &'static str {
    match ArmPath::parse(id.as_str()).ok().and_then(|path| path.kind()) {
        Some(Kind::Subnet) => "subnet",
        _ => "network interface",
    }
}

const fn direction_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Inbound => "Inbound",
        Direction::Outbound => "Outbound",
    }
}
