//! The effective security rules of a network interface, in ARM's form: the rules of each group that applies to it, with
//! the prefixes for which tags stand there (N8, N9).

use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use tombolo_proto::config::{AddressMatch, PortRange, RuleProtocol, SERVICE_TAGS, SecurityRule};
use tombolo_topology::nic_security::{AppliedGroup, NicSecurity};
use tombolo_topology::resource::NetworkInterface;

/// The entry of the answer for one group that applies to `nic`. `association` names both the subnet and the NIC,
/// whichever of them has the group, because the table of Azure's command line reads both.
pub(super) fn group(security: &NicSecurity, applied: &AppliedGroup<'_>, nic: &NetworkInterface) -> Value {
    let subnet = nic.ip_configurations.first().map(|c| json!({"id": c.subnet}));
    let rules: Vec<_> = applied.group.rules.iter().map(|r| rule(security, r)).collect();
    let tags: Map<String, Value> = SERVICE_TAGS
        .into_iter()
        .filter(|tag| applied.group.rules.iter().any(|rule| names(rule, tag)))
        .map(|tag| (tag.to_owned(), json!(security.prefixes(tag))))
        .collect();
    json!({
        "networkSecurityGroup": {"id": applied.group.id},
        "association": {"subnet": subnet, "networkInterface": {"id": nic.envelope.id}},
        "effectiveSecurityRules": rules,
        "tagMap": tags,
    })
}

/// Whether the sources or the destinations of the rule name the tag.
fn names(rule: &SecurityRule, tag: &str) -> bool {
    let side = |addresses: &AddressMatch| match addresses {
        AddressMatch::Sets(sets) => sets.iter().any(|set| set == tag),
        AddressMatch::Any | AddressMatch::Prefixes(_) => false,
    };
    side(&rule.source) || side(&rule.destination)
}

/// An effective rule: its ports and prefixes, and the prefixes for which its tags stand at the network interface.
pub(super) fn rule(security: &NicSecurity, rule: &SecurityRule) -> Value {
    let mut shown = json!({
        "name": rule.name,
        "protocol": match rule.protocol {
            RuleProtocol::Any => json!("All"),
            other => json!(other),
        },
        "access": rule.access,
        "priority": rule.priority,
        "direction": rule.direction,
    });
    let sides = [
        ("source", "Source", &rule.source, &rule.source_ports),
        ("destination", "Destination", &rule.destination, &rule.destination_ports),
    ];
    for (name, capital, side, ports) in sides {
        let Addresses { prefixes, expanded } = addresses(security, side);
        let ports: Vec<_> = ports.iter().map(port_range).collect();
        // Clients read the singular property if there is one value, but expect that the plural property is always
        // present.
        if let [prefix] = &prefixes[..] {
            shown[format!("{name}AddressPrefix")] = json!(prefix);
        }
        if let [range] = &ports[..] {
            shown[format!("{name}PortRange")] = json!(range);
        }
        shown[format!("{name}AddressPrefixes")] = json!(prefixes);
        shown[format!("{name}PortRanges")] = json!(ports);
        shown[format!("expanded{capital}AddressPrefix")] = json!(expanded);
    }
    shown
}

/// The addresses of one side of a rule.
struct Addresses {
    /// Prefixes, or the name of a tag.
    prefixes: Vec<String>,
    /// The prefixes for which the tag stands; empty if the side names no tag.
    expanded: Vec<String>,
}

fn addresses(security: &NicSecurity, side: &AddressMatch) -> Addresses {
    let plain = |prefixes: Vec<String>| Addresses {
        prefixes,
        expanded: Vec::new(),
    };
    match side {
        AddressMatch::Any => plain(vec!["0.0.0.0/0".into()]),
        AddressMatch::Prefixes(prefixes) => plain(prefixes.iter().map(ToString::to_string).collect()),
        AddressMatch::Sets(sets) => match &sets[..] {
            [tag] if SERVICE_TAGS.contains(&tag.as_str()) => Addresses {
                prefixes: vec![tag.clone()],
                expanded: texts(security, tag).collect(),
            },
            // Azure's form has no property for application security groups, so the answer lists the addresses of their
            // members.
            groups => {
                let members = groups.iter().flat_map(|group| security.prefixes(group));
                let members: BTreeSet<_> = members.collect();
                plain(members.iter().map(ToString::to_string).collect())
            }
        },
    }
}

/// The prefixes of a set as text.
fn texts(security: &NicSecurity, set: &str) -> impl Iterator<Item = String> {
    security.prefixes(set).into_iter().map(|prefix| prefix.to_string())
}

fn port_range(range: &PortRange) -> String {
    format!("{}-{}", range.first, range.last)
}
