//! The rules of network security groups.

use super::hits::{self, Hits};
use crate::context::Context;
use crate::failure::UsageError;
use crate::options::{Child, child, name, reference, word};
use crate::output::{Column, at, items, name_at};
use anyhow::Result;
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand, ValueEnum};
use comfy_table::Cell;
use serde_json::{Value, json};
use tombolo_proto::arm::Kind;

#[derive(Debug, Subcommand)]
pub(crate) enum Rule {
    /// Create or replace a rule
    Create {
        /// Name of the rule, as GROUP/RULE
        #[arg(value_parser = child)]
        name: Child,
        /// From 100 to 4096, unique in the group and direction; the matching rule with the lowest number decides (N3)
        #[arg(long, value_parser = clap::value_parser!(u16).range(100..=4096))]
        priority: u16,
        #[command(flatten)]
        fields: Fields,
    },
    /// Change a rule
    Update {
        /// Name of the rule, as GROUP/RULE
        #[arg(value_parser = child)]
        name: Child,
        /// From 100 to 4096, unique in the group and direction; the matching rule with the lowest number decides (N3)
        #[arg(long, value_parser = clap::value_parser!(u16).range(100..=4096))]
        priority: Option<u16>,
        #[command(flatten)]
        fields: Fields,
    },
    /// List the rules of a group, in the order in which they are tried, with the number of packets about which each
    /// rule has decided
    List {
        /// Name of the network security group
        #[arg(value_parser = name)]
        group: String,
        /// List the default rules too (N2)
        #[arg(long)]
        include_default: bool,
        /// Show the number of packets at each network interface, instead of their sum
        #[arg(long)]
        per_nic: bool,
    },
    /// Show a rule
    Show {
        /// Name of the rule, as GROUP/RULE
        #[arg(value_parser = child)]
        name: Child,
    },
    /// Delete a rule
    Delete {
        /// Name of the rule, as GROUP/RULE
        #[arg(value_parser = child)]
        name: Child,
    },
}

/// The properties of a rule except its priority. Properties of a new rule that are not given have the defaults of
/// Azure's command line.
#[derive(Debug, Args)]
pub(crate) struct Fields {
    /// Whether packets that match are allowed or denied [default of a new rule: Allow]
    #[arg(long, value_enum, ignore_case = true)]
    access: Option<Access>,
    /// Whether the rule matches packets to the NIC or packets from it [default of a new rule: Inbound]
    #[arg(long, value_enum, ignore_case = true)]
    direction: Option<Direction>,
    /// Protocol of the packets; '*' is every protocol [default of a new rule: *]
    #[arg(long, value_enum, ignore_case = true)]
    protocol: Option<Protocol>,
    /// Prefixes, addresses or ranges of addresses; or one service tag (N9) or '*' [default of a new rule: *]
    #[arg(long, alias = "source-address-prefix", value_name = "PREFIX", num_args = 1.., value_delimiter = ',',
        value_parser = NonEmptyStringValueParser::new())]
    source_address_prefixes: Vec<String>,
    /// Ports or ranges of ports, such as 8000-8080; or '*' [default of a new rule: *]
    #[arg(long, alias = "source-port-range", value_name = "PORTS", num_args = 1.., value_delimiter = ',',
        value_parser = ports)]
    source_port_ranges: Vec<String>,
    /// Prefixes, addresses or ranges of addresses; or one service tag (N9) or '*' [default of a new rule: *]
    #[arg(long, alias = "destination-address-prefix", value_name = "PREFIX", num_args = 1.., value_delimiter = ',',
        value_parser = NonEmptyStringValueParser::new())]
    destination_address_prefixes: Vec<String>,
    /// Ports or ranges of ports, such as 8000-8080; or '*' [default of a new rule: 80; * for Icmp, Esp and Ah]
    #[arg(long, alias = "destination-port-range", value_name = "PORTS", num_args = 1.., value_delimiter = ',',
        value_parser = ports)]
    destination_port_ranges: Vec<String>,
    /// Application security groups of the sources, by name or id, instead of prefixes
    #[arg(long, value_name = "GROUP", num_args = 1.., value_delimiter = ',', value_parser = reference,
        conflicts_with = "source_address_prefixes")]
    source_asgs: Vec<String>,
    /// Application security groups of the destinations, by name or id, instead of prefixes
    #[arg(long, value_name = "GROUP", num_args = 1.., value_delimiter = ',', value_parser = reference,
        conflicts_with = "destination_address_prefixes")]
    destination_asgs: Vec<String>,
    /// Description of the rule, at most 140 characters; an empty text removes the description
    #[arg(long)]
    description: Option<String>,
}

/// The effect of a rule on a packet that matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub(crate) enum Access {
    Allow,
    Deny,
}

/// The direction of the packets that a rule matches, as seen from the NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub(crate) enum Direction {
    Inbound,
    Outbound,
}

/// The protocols that a rule can match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub(crate) enum Protocol {
    #[value(name = "*", alias = "any")]
    Any,
    Tcp,
    Udp,
    Icmp,
    Esp,
    Ah,
}

/// Checks that a text is a port, a range of ports or `*`, and returns the text unchanged. The error says which texts
/// are allowed.
fn ports(text: &str) -> Result<String, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let is_range = matches!((first.parse::<u16>(), last.parse::<u16>()), (Ok(first), Ok(last)) if first <= last);
    if text == "*" || is_range {
        Ok(text.to_owned())
    } else {
        Err("must be a port from 0 to 65535, a range of ports such as 8000-8080, or '*'".to_owned())
    }
}

/// Sets the singular and the plural form of a property, as Azure's command line does: writes one value to the singular
/// form, or several values to the plural form. The form that is not used becomes null. Without values both forms become
/// null.
fn set(properties: &mut Value, singular: &str, plural: &str, values: &[String]) {
    properties[singular] = if let [one] = values { json!(one) } else { Value::Null };
    properties[plural] = if values.len() > 1 { json!(values) } else { Value::Null };
}

impl Fields {
    /// Sets the properties whose options are given. The other properties do not change, except that prefixes replace
    /// application security groups of the same side, and application security groups replace prefixes (N9).
    fn apply_to(&self, properties: &mut Value, c: &Context) -> Result<()> {
        if let Some(access) = &self.access {
            properties["access"] = word(access);
        }
        if let Some(direction) = &self.direction {
            properties["direction"] = word(direction);
        }
        if let Some(protocol) = &self.protocol {
            properties["protocol"] = word(protocol);
        }
        if let Some(text) = &self.description {
            properties["description"] = if text.is_empty() { Value::Null } else { json!(text) };
        }
        for (side, prefixes, groups, ports) in [
            (
                "source",
                &self.source_address_prefixes,
                &self.source_asgs,
                &self.source_port_ranges,
            ),
            (
                "destination",
                &self.destination_address_prefixes,
                &self.destination_asgs,
                &self.destination_port_ranges,
            ),
        ] {
            let asgs = format!("{side}ApplicationSecurityGroups");
            let (prefix, list) = (format!("{side}AddressPrefix"), format!("{side}AddressPrefixes"));
            if !prefixes.is_empty() {
                set(properties, &prefix, &list, prefixes);
                properties[asgs] = Value::Null;
            } else if !groups.is_empty() {
                set(properties, &prefix, &list, &[]);
                properties[asgs] = c.references(Kind::ApplicationSecurityGroup, groups)?;
            }
            if !ports.is_empty() {
                set(
                    properties,
                    &format!("{side}PortRange"),
                    &format!("{side}PortRanges"),
                    ports,
                );
            }
        }
        Ok(())
    }

    /// Whether none of the options is given.
    fn is_empty(&self) -> bool {
        let Self {
            access,
            direction,
            protocol,
            source_address_prefixes,
            source_port_ranges,
            destination_address_prefixes,
            destination_port_ranges,
            source_asgs,
            destination_asgs,
            description,
        } = self;
        let lists = [
            source_address_prefixes,
            source_port_ranges,
            destination_address_prefixes,
            destination_port_ranges,
            source_asgs,
            destination_asgs,
        ];
        let has_word = access.is_some() || direction.is_some() || protocol.is_some() || description.is_some();
        !has_word && lists.into_iter().all(Vec::is_empty)
    }
}

/// Returns the defaults of Azure's command line, which are the properties of a new rule whose options are not given.
/// There is one difference: the default destination port is `*` and not 80 if the protocol has no ports.
fn defaults(protocol: Option<Protocol>) -> Value {
    let has_ports = !matches!(protocol, Some(Protocol::Icmp | Protocol::Esp | Protocol::Ah));
    json!({
        "access": "Allow",
        "direction": "Inbound",
        "protocol": "*",
        "sourceAddressPrefix": "*",
        "sourcePortRange": "*",
        "destinationAddressPrefix": "*",
        "destinationPortRange": if has_ports { "80" } else { "*" },
    })
}

/// Returns the prefixes or the application security groups of one side of a rule (`source` or `destination`), as a cell
/// of a table.
fn addresses(rule: &Value, side: &str) -> Cell {
    let property = |rest: &str| format!("/properties/{side}{rest}");
    let mut all = vec![
        at(rule, &property("AddressPrefix")),
        at(rule, &property("AddressPrefixes")),
    ];
    let groups = property("ApplicationSecurityGroups");
    all.extend(items(rule, &groups).map(|group| name_at(group, "/id")));
    all.retain(|text| !text.is_empty());
    Cell::new(all.join(", "))
}

/// Returns the ports of one side of a rule (`source` or `destination`), as a cell of a table.
fn port_ranges(rule: &Value, side: &str) -> Cell {
    let single = at(rule, &format!("/properties/{side}PortRange"));
    Cell::new(if single.is_empty() {
        at(rule, &format!("/properties/{side}PortRanges"))
    } else {
        single
    })
}

/// The columns of lists of rules.
pub(super) const COLUMNS: &[Column] = &[
    ("Name", |v| Cell::new(at(v, "/name"))),
    ("Direction", |v| Cell::new(at(v, "/properties/direction"))),
    ("Priority", |v| Cell::new(at(v, "/properties/priority"))),
    ("Access", |v| Cell::new(at(v, "/properties/access"))),
    ("Protocol", |v| Cell::new(at(v, "/properties/protocol"))),
    ("Source", |v| addresses(v, "source")),
    ("Source ports", |v| port_ranges(v, "source")),
    ("Destination", |v| addresses(v, "destination")),
    ("Ports", |v| port_ranges(v, "destination")),
];

/// The column with the counters of rules.
const COUNTERS: Column = ("Hits", hits::cell);

/// Returns the rules of a group in the order in which they are tried: inbound before outbound, then by priority (N3).
pub(super) fn of_group(group: &Value, include_default: bool) -> Vec<Value> {
    let default = items(group, "/properties/defaultSecurityRules").filter(|_| include_default);
    let mut rules: Vec<Value> = items(group, "/properties/securityRules")
        .chain(default)
        .cloned()
        .collect();
    rules.sort_by_key(|rule| {
        let priority = rule.pointer("/properties/priority").and_then(Value::as_u64);
        (at(rule, "/properties/direction"), priority)
    });
    rules
}

impl Rule {
    /// Creates, changes, deletes or prints rules. An update without an option is a [`UsageError`].
    pub(super) async fn run(&self, c: &Context) -> Result<()> {
        let path = |n: &Child| {
            let group = c.item(Kind::NetworkSecurityGroup, &n.parent)?;
            Ok::<_, anyhow::Error>(format!("{group}/{}/{}", Kind::SecurityRule.collection(), n.name))
        };
        match self {
            Self::Create { name, priority, fields } => {
                let mut properties = defaults(fields.protocol);
                properties["priority"] = json!(priority);
                fields.apply_to(&mut properties, c)?;
                let what = format!("Created security rule {} in {}.", name.name, name.parent);
                c.put(&path(name)?, &json!({"properties": properties}), &what).await
            }
            Self::Update { name, priority, fields } => {
                if priority.is_none() && fields.is_empty() {
                    let hint = "add --priority or another property; `tombolo nsg rule update --help` lists them";
                    return Err(UsageError::new("nothing to change", hint).into());
                }
                let mut changes = json!({});
                if let Some(priority) = priority {
                    changes["priority"] = json!(priority);
                }
                fields.apply_to(&mut changes, c)?;
                let change = |rule: &mut Value| {
                    for (property, value) in changes.as_object().into_iter().flatten() {
                        rule["properties"][property] = value.clone();
                    }
                };
                let what = format!("Updated security rule {} in {}.", name.name, name.parent);
                c.edit(&path(name)?, &what, change).await
            }
            Self::List {
                group,
                include_default,
                per_nic,
            } => {
                let group = c.get(Kind::NetworkSecurityGroup, group).await?;
                let mut rules = of_group(&group, *include_default);
                Hits::of(&c.client.agents().await?).add_to(&mut rules, *per_nic);
                let columns: Vec<Column> = COLUMNS.iter().copied().chain([COUNTERS]).collect();
                c.out.list(
                    &rules,
                    &columns,
                    "No rules except the default ones: --include-default lists them.",
                )
            }
            Self::Show { name } => c.out.item(&c.client.arm_get(&path(name)?).await?, COLUMNS),
            Self::Delete { name } => c.delete(&path(name)?, Kind::SecurityRule.title()).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n11_one_value_goes_to_the_singular_property_and_several_to_the_plural_one() {
        let mut properties = json!({"p": "old", "ps": ["old", "older"]});
        set(&mut properties, "p", "ps", &["a".into()]);
        assert_eq!(properties, json!({"p": "a", "ps": null}));
        set(&mut properties, "p", "ps", &["a".into(), "b".into()]);
        assert_eq!(properties, json!({"p": null, "ps": ["a", "b"]}));
        set(&mut properties, "p", "ps", &[]);
        assert_eq!(properties, json!({"p": null, "ps": null}));
    }

    #[test]
    fn n3_rules_are_listed_in_the_order_in_which_they_are_tried() {
        let rule = |name: &str, direction: &str, priority: u16| json!({"name": name, "properties": {"direction": direction, "priority": priority}});
        let group = json!({"properties": {
            "securityRules": [rule("d", "Outbound", 100), rule("b", "Inbound", 1000), rule("a", "Inbound", 200)],
            "defaultSecurityRules": [rule("c", "Inbound", 65000)],
        }});
        let names = |include_default| -> String {
            let rules = of_group(&group, include_default);
            rules.iter().map(|rule| at(rule, "/name")).collect()
        };
        assert_eq!(names(true), "abcd");
        assert_eq!(names(false), "abd");
    }

    #[test]
    fn a_new_rule_for_a_protocol_without_ports_has_no_port() {
        assert_eq!(defaults(None)["destinationPortRange"], "80");
        assert_eq!(defaults(Some(Protocol::Tcp))["destinationPortRange"], "80");
        assert_eq!(defaults(Some(Protocol::Icmp))["destinationPortRange"], "*");
    }
}
