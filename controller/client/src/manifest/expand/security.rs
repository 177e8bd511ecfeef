//! Turns the network security groups of a manifest into request bodies.

use super::Expansion;
use crate::manifest::schema::{NetworkSecurityGroup, RuleAddress, RulePorts, SecurityRule};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tombolo_proto::arm::Kind;
use tombolo_proto::config::Direction;

/// Priorities that a user's rule may have (N1).
const PRIORITIES: std::ops::RangeInclusive<u16> = 100..=4096;

/// The properties of a rule that describe its sources, or those that describe its destinations.
struct Side<'a> {
    /// The beginning of the properties' names: `source` or `destination`.
    name: &'static str,
    prefix: Option<&'a RuleAddress>,
    prefixes: &'a [RuleAddress],
    groups: &'a [String],
    ports: Option<&'a RulePorts>,
    port_list: &'a [RulePorts],
}

fn sides(rule: &SecurityRule) -> [Side<'_>; 2] {
    let source = Side {
        name: "source",
        prefix: rule.source_address_prefix.as_ref(),
        prefixes: &rule.source_address_prefixes,
        groups: &rule.source_application_security_groups,
        ports: rule.source_port_range.as_ref(),
        port_list: &rule.source_port_ranges,
    };
    let destination = Side {
        name: "destination",
        prefix: rule.destination_address_prefix.as_ref(),
        prefixes: &rule.destination_address_prefixes,
        groups: &rule.destination_application_security_groups,
        ports: rule.destination_port_range.as_ref(),
        port_list: &rule.destination_port_ranges,
    };
    [source, destination]
}

/// The list as JSON, or null if the list is empty.
fn list<T: serde::Serialize>(items: &[T]) -> Value {
    if items.is_empty() { Value::Null } else { json!(items) }
}

impl Expansion<'_> {
    pub(super) fn security_group(&mut self, name: &str, group: &NetworkSecurityGroup) {
        let mut rules = Vec::new();
        let mut taken: BTreeMap<(Direction, u16), &str> = BTreeMap::new();
        for (rule, r) in group.rules.iter() {
            let place = format!("networkSecurityGroups.{name}.rules.{rule}");
            if !PRIORITIES.contains(&r.priority) {
                let (least, most) = (PRIORITIES.start(), PRIORITIES.end());
                let text = format!("priority: {} is not within {least} to {most} (N1)", r.priority);
                self.problem(&place, &text);
            }
            if let Some(first) = taken.insert((r.direction, r.priority), rule) {
                let text = format!(
                    "priority: rule {first} with the same direction has {} too; choose another number (N1)",
                    r.priority
                );
                self.problem(&place, &text);
            }
            let mut properties = json!({
                "description": r.description,
                "priority": r.priority,
                "direction": r.direction,
                "access": r.access,
                "protocol": r.protocol,
            });
            for side in sides(r) {
                self.side(&place, &side, &mut properties);
            }
            rules.push(json!({"name": rule, "properties": properties}));
        }
        let body = json!({"properties": {"securityRules": rules}});
        self.push_resource(
            Kind::NetworkSecurityGroup,
            name,
            group.location.as_ref(),
            &group.tags,
            body,
        );
    }

    /// Adds the addresses and ports of one side to the properties of a rule. If the manifest omits all addresses of the
    /// side, or all ports of the sources, the value is `*`; other properties that the manifest omits become null. Adds
    /// a problem at `place` if addresses or ports are given in several ways, or if the ports of the destinations are
    /// absent.
    fn side(&mut self, place: &str, side: &Side<'_>, properties: &mut Value) {
        let Side { name, .. } = side;
        let given = [
            side.prefix.is_some(),
            !side.prefixes.is_empty(),
            !side.groups.is_empty(),
        ];
        let given = given.into_iter().filter(|is_given| *is_given).count();
        if given > 1 {
            let text = format!(
                "set one of {name}AddressPrefix, {name}AddressPrefixes and {name}ApplicationSecurityGroups, not several (N9)"
            );
            self.problem(place, &text);
        }
        let prefix = match side.prefix {
            None if given == 0 => json!("*"),
            prefix => json!(prefix),
        };
        properties[format!("{name}AddressPrefix")] = prefix;
        properties[format!("{name}AddressPrefixes")] = list(side.prefixes);
        properties[format!("{name}ApplicationSecurityGroups")] =
            self.references(Kind::ApplicationSecurityGroup, side.groups);

        let ports = match (side.ports, side.port_list) {
            (None, []) if *name == "source" => json!("*"),
            (None, []) => {
                let text = format!("{name}PortRange is needed, such as 443 or '*'; {name}PortRanges for several");
                self.problem(place, &text);
                Value::Null
            }
            (Some(_), [_, ..]) => {
                let text = format!("set either {name}PortRange or {name}PortRanges, not both");
                self.problem(place, &text);
                Value::Null
            }
            (ports, _) => json!(ports),
        };
        properties[format!("{name}PortRange")] = ports;
        properties[format!("{name}PortRanges")] = list(side.port_list);
    }
}
