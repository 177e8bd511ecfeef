//! A security rule, and the reading of a rule from a request body (N1, N11).

use crate::arm::body::{Object, missing, strict};
use crate::arm::view::{child, reference};
use crate::draft::Draft;
use crate::path::{Kind, child_id, shown};
use crate::rules::place::Place;
use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::net::IpAddr;
use tombolo_proto::config::{self, ALL_PORTS, Access, AddressMatch, Direction, PortRange, RuleProtocol};
use tombolo_proto::id::ResourceId;
use uuid::Uuid;

/// A security rule of a user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecurityRule {
    /// The full resource id.
    pub id: ResourceId,
    /// A value that changes with each change of the rule.
    pub etag: Uuid,
    /// A text of the user, at most 140 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// 100 to 4096; unique among the rules of the same group and direction.
    pub priority: u16,
    /// The direction of the packets to which the rule applies.
    pub direction: Direction,
    /// Whether the rule allows or denies packets that match.
    pub access: Access,
    /// The protocol that the rule matches.
    pub protocol: RuleProtocol,
    /// The source addresses and source ports that the rule matches.
    pub source: RuleSide,
    /// The destination addresses and destination ports that the rule matches.
    pub destination: RuleSide,
}

/// The addresses and ports of one side of a rule: of its sources or its destinations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleSide {
    /// The addresses.
    pub addresses: RuleAddresses,
    /// The ports.
    pub ports: RulePorts,
}

/// The addresses of one side of a rule, as the user wrote them. Every text was checked, and is valid. The names of
/// properties below are those of the sources.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RuleAddresses {
    /// `sourceAddressPrefix`: an address, a prefix, a range `a-b`, a tag or `*`.
    Prefix(String),
    /// `sourceAddressPrefixes`: addresses, prefixes and ranges.
    Prefixes(Vec<String>),
    /// `sourceApplicationSecurityGroups`: ids of application security groups.
    Groups(Vec<ResourceId>),
}

/// The ports of one side of a rule, as the user wrote them. Every text was checked, and is valid. The names of
/// properties below are those of the sources.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RulePorts {
    /// `sourcePortRange`: a port, a range `a-b` or `*`.
    Range(String),
    /// `sourcePortRanges`: ports and ranges.
    Ranges(Vec<String>),
}

/// Largest number of addresses, prefixes and ranges that all sources, or all destinations, of one group name together
/// (X5).
pub(super) const MAX_ADDRESSES: usize = 4000;

/// Priorities that users may give (N1).
const PRIORITIES: std::ops::RangeInclusive<i64> = 100..=4096;

/// Tags that rules may name (N9), in Azure's casing.
const TAGS: [&str; 3] = ["VirtualNetwork", "Internet", "AzureLoadBalancer"];

const PROTOCOLS: [(&str, RuleProtocol); 6] = [
    ("*", RuleProtocol::Any),
    ("Tcp", RuleProtocol::Tcp),
    ("Udp", RuleProtocol::Udp),
    ("Icmp", RuleProtocol::Icmp),
    ("Esp", RuleProtocol::Esp),
    ("Ah", RuleProtocol::Ah),
];

/// The meaning of an address text.
enum Meaning {
    Any,
    Tag(&'static str),
    Prefixes(Vec<IpNet>),
}

/// Reads an address, a prefix, a range, a tag or `*`. The texts `0.0.0.0/0` and `any` mean the same as `*`. `None`: the
/// text is none of these, or is a prefix with host bits set.
fn address_meaning(text: &str) -> Option<Meaning> {
    if matches!(text, "*" | "0.0.0.0/0") || text.eq_ignore_ascii_case("any") {
        return Some(Meaning::Any);
    }
    if let Some(tag) = TAGS.iter().find(|tag| tag.eq_ignore_ascii_case(text)) {
        return Some(Meaning::Tag(tag));
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(Meaning::Prefixes(vec![address.into()]));
    }
    if let Some((first, last)) = text.split_once('-') {
        return address_range(first.trim().parse().ok()?, last.trim().parse().ok()?).map(Meaning::Prefixes);
    }
    let net = strict(text)?;
    (net.trunc() == net).then(|| Meaning::Prefixes(vec![net]))
}

/// The prefixes that together contain exactly the addresses of a range. `None`: the two addresses are of different
/// families or in the wrong order.
fn address_range(first: IpAddr, last: IpAddr) -> Option<Vec<IpNet>> {
    match (first, last) {
        (IpAddr::V4(a), IpAddr::V4(b)) if a <= b => Some(Ipv4Subnets::new(a, b, 0).map(IpNet::V4).collect()),
        (IpAddr::V6(a), IpAddr::V6(b)) if a <= b => Some(Ipv6Subnets::new(a, b, 0).map(IpNet::V6).collect()),
        _ => None,
    }
}

/// Reads a port or a range `a-b` of ports. `None`: the text is neither, or the range is in the wrong order.
fn port_range(text: &str) -> Option<PortRange> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        is_number.then(|| text.parse().ok()).flatten()
    };
    let (first, last): (u16, u16) = (port(first)?, port(last)?);
    (first <= last).then_some(PortRange { first, last })
}

impl RuleAddresses {
    /// The number of addresses, prefixes and ranges as X5 counts them. A tag and `*` count as one, and application
    /// security groups do not count.
    pub(super) fn count(&self) -> usize {
        match self {
            Self::Prefix(_) => 1,
            Self::Prefixes(all) => all.len(),
            Self::Groups(_) => 0,
        }
    }

    /// The form that the addresses have in agents' configurations.
    #[must_use]
    pub fn compiled(&self) -> AddressMatch {
        match self {
            Self::Groups(ids) => AddressMatch::Sets(ids.iter().map(|id| id.as_str().to_ascii_lowercase()).collect()),
            Self::Prefix(one) => match address_meaning(one) {
                Some(Meaning::Any) => AddressMatch::Any,
                Some(Meaning::Tag(tag)) => AddressMatch::Sets(vec![tag.to_owned()]),
                Some(Meaning::Prefixes(nets)) => AddressMatch::Prefixes(nets),
                None => AddressMatch::Prefixes(Vec::new()),
            },
            Self::Prefixes(all)
                if all
                    .iter()
                    .any(|text| matches!(address_meaning(text), Some(Meaning::Any))) =>
            {
                AddressMatch::Any
            }
            Self::Prefixes(all) => {
                let nets = all.iter().filter_map(|text| match address_meaning(text) {
                    Some(Meaning::Prefixes(nets)) => Some(nets),
                    _ => None,
                });
                AddressMatch::Prefixes(nets.flatten().collect())
            }
        }
    }
}

impl RulePorts {
    /// The form that the addresses have in agents' configurations.
    #[must_use]
    pub fn compiled(&self) -> Vec<PortRange> {
        match self {
            Self::Range(text) if text == "*" => vec![ALL_PORTS],
            Self::Range(text) => port_range(text).into_iter().collect(),
            Self::Ranges(all) => all.iter().filter_map(|text| port_range(text)).collect(),
        }
    }
}

impl SecurityRule {
    /// The application security groups that the rule names: first those of its sources, then those of its destinations.
    pub(crate) fn application_groups(&self) -> impl Iterator<Item = &ResourceId> {
        [&self.source, &self.destination]
            .into_iter()
            .flat_map(|side| match &side.addresses {
                RuleAddresses::Groups(ids) => ids.as_slice(),
                RuleAddresses::Prefix(_) | RuleAddresses::Prefixes(_) => &[],
            })
    }

    /// The form that the rule has in agents' configurations.
    #[must_use]
    pub fn compiled(&self) -> config::SecurityRule {
        config::SecurityRule {
            name: format!("securityRules/{}", self.id.name()),
            priority: self.priority,
            direction: self.direction,
            access: self.access,
            protocol: self.protocol,
            source: self.source.addresses.compiled(),
            source_ports: self.source.ports.compiled(),
            destination: self.destination.addresses.compiled(),
            destination_ports: self.destination.ports.compiled(),
        }
    }

    pub(super) fn view(&self) -> Value {
        let mut properties = json!({
            "protocol": self.protocol,
            "access": self.access,
            "direction": self.direction,
            "priority": self.priority,
        });
        if let Some(description) = &self.description {
            properties["description"] = description.as_str().into();
        }
        for (name, side) in [("source", &self.source), ("destination", &self.destination)] {
            let member = |rest: &str| format!("{name}{rest}");
            // Clients read the singular and the plural property, and expect an array in the plural one even if it is
            // not used.
            properties[member("AddressPrefixes")] = json!([]);
            properties[member("PortRanges")] = json!([]);
            match &side.addresses {
                RuleAddresses::Prefix(one) => properties[member("AddressPrefix")] = one.as_str().into(),
                RuleAddresses::Prefixes(all) => properties[member("AddressPrefixes")] = json!(all),
                RuleAddresses::Groups(ids) => {
                    properties[member("ApplicationSecurityGroups")] =
                        ids.iter().map(reference).collect::<Vec<_>>().into();
                }
            }
            match &side.ports {
                RulePorts::Range(one) => properties[member("PortRange")] = one.as_str().into(),
                RulePorts::Ranges(all) => properties[member("PortRanges")] = json!(all),
            }
        }
        child(&self.id, Kind::SecurityRule, self.etag, properties)
    }
}

impl Draft<'_> {
    /// Reads a rule, and adds a problem for everything that is wrong with it. `old` is the rule that the new one
    /// replaces, and `group` the id and the region of the network security group. `None`: a field that every rule needs
    /// is absent or wrong.
    pub(super) fn read_security_rule(
        &mut self,
        (group, location): (&ResourceId, &str),
        name: &str,
        properties: &Object<'_>,
        old: Option<&SecurityRule>,
    ) -> Option<SecurityRule> {
        let id = old.map_or_else(|| child_id(group, "securityRules", name), |r| r.id.clone());
        let protocol = self.required_choice(properties, "protocol", &PROTOCOLS);
        let access = self.required_choice(
            properties,
            "access",
            &[("Allow", Access::Allow), ("Deny", Access::Deny)],
        );
        let direction = self.required_choice(
            properties,
            "direction",
            &[("Inbound", Direction::Inbound), ("Outbound", Direction::Outbound)],
        );
        let priority = self.read_priority(properties, &id);
        let description = properties.text("description", &mut self.problems);
        if description.is_some_and(|text| text.chars().count() > 140) {
            let at = properties.at("description");
            let message = format!("{at}: longer than 140 characters");
            self.problems.add("InvalidRequestFormat", at, message);
        }
        let place = Place {
            id: &id,
            location,
            held: old.map_or_else(Vec::new, |r| r.application_groups().cloned().collect()),
        };
        let source = self.read_side(properties, "source", &place);
        let destination = self.read_side(properties, "destination", &place);
        Some(SecurityRule {
            etag: old.map_or(Uuid::nil(), |r| r.etag),
            id,
            description: description.map(str::to_owned),
            priority: priority?,
            direction: direction?,
            access: access?,
            protocol: protocol?,
            source: source?,
            destination: destination?,
        })
    }

    fn read_priority(&mut self, properties: &Object<'_>, id: &ResourceId) -> Option<u16> {
        if properties.get("priority").is_none() {
            missing(&mut self.problems, &properties.at("priority"));
        }
        let number = properties.integer("priority", i64::MIN..=i64::MAX, &mut self.problems)?;
        if PRIORITIES.contains(&number) {
            return u16::try_from(number).ok();
        }
        self.problems.add(
            "SecurityRuleInvalidPriority",
            properties.at("priority"),
            format!(
                "Security rule has invalid Priority. Value provided: {number}. Allowed range {}-{}. Rule id: {id}.",
                PRIORITIES.start(),
                PRIORITIES.end()
            ),
        );
        None
    }

    /// Reads the addresses and ports of one side of a rule; `side` is `source` or `destination`. `None`: they are
    /// absent or wrong, and a problem was added.
    fn read_side(&mut self, properties: &Object<'_>, side: &str, rule: &Place<'_>) -> Option<RuleSide> {
        let addresses = self.read_addresses(properties, side, rule);
        let ports = self.read_ports(properties, side, rule.id);
        Some(RuleSide {
            addresses: addresses?,
            ports: ports?,
        })
    }

    fn read_addresses(&mut self, properties: &Object<'_>, side: &str, rule: &Place<'_>) -> Option<RuleAddresses> {
        let id = rule.id;
        let (one, many) = (format!("{side}AddressPrefix"), format!("{side}AddressPrefixes"));
        let before = self.problems.len();
        let groups = self.resolve_application_groups(properties, &format!("{side}ApplicationSecurityGroups"), rule);
        if self.problems.len() > before {
            return None;
        }
        let single = properties
            .text(&one, &mut self.problems)
            .filter(|text| !text.is_empty());
        let listed = self.texts(properties, &many);
        match (groups.is_empty(), single, listed.is_empty()) {
            (false, None, true) => Some(RuleAddresses::Groups(groups)),
            (true, Some(text), true) => {
                if address_meaning(text).is_none() {
                    self.bad_address(&properties.at(&one), text);
                    return None;
                }
                Some(RuleAddresses::Prefix(text.to_owned()))
            }
            (true, None, false) => {
                let before = self.problems.len();
                for (text, at) in &listed {
                    match address_meaning(text) {
                        Some(Meaning::Prefixes(_)) => {}
                        Some(Meaning::Any) if text.contains('/') => {}
                        Some(Meaning::Any | Meaning::Tag(_)) => self.problems.add(
                            "SecurityRuleParameterContainsUnsupportedValue",
                            at.clone(),
                            format!(
                                "Security rule parameter {} for rule with Id {id} cannot specify existing VIRTUALNETWORK, \
                                 INTERNET, AZURELOADBALANCER, '*' or system tags. Unsupported value used: {text}.",
                                capitalized(&many)
                            ),
                        ),
                        None => self.bad_address(at, text),
                    }
                }
                let texts = listed.into_iter().map(|(text, _)| text).collect();
                (self.problems.len() == before).then_some(RuleAddresses::Prefixes(texts))
            }
            (true, None, true) => {
                missing(&mut self.problems, &properties.at(&one));
                None
            }
            _ => {
                let at = properties.at(&one);
                let message =
                    format!("{at}: give one of {one}, {many} and {side}ApplicationSecurityGroups, not several (N9)");
                self.problems.add("XSecurityRuleMixesAddresses", at, message);
                None
            }
        }
    }

    fn bad_address(&mut self, at: &str, text: &str) {
        self.problems.add(
            "SecurityRuleInvalidAddressPrefix",
            at,
            format!(
                "Security rule has invalid Address prefix. Value provided: {}",
                shown(text)
            ),
        );
    }

    fn read_ports(&mut self, properties: &Object<'_>, side: &str, id: &ResourceId) -> Option<RulePorts> {
        let (one, many) = (format!("{side}PortRange"), format!("{side}PortRanges"));
        let single = properties
            .text(&one, &mut self.problems)
            .filter(|text| !text.is_empty());
        let listed = self.texts(properties, &many);
        if single.is_some() && !listed.is_empty() {
            let at = properties.at(&one);
            let message = format!("{at}: give {one} or {many}, not both (N11)");
            self.problems.add("XSecurityRuleMixesPorts", at, message);
            return None;
        }
        if let Some(text) = single {
            if text != "*" && port_range(text).is_none() {
                self.bad_ports(&properties.at(&one), text, id);
                return None;
            }
            return Some(RulePorts::Range(text.to_owned()));
        }
        if listed.is_empty() {
            missing(&mut self.problems, &properties.at(&one));
            return None;
        }
        let before = self.problems.len();
        for (text, at) in &listed {
            if text == "*" {
                self.problems.add(
                    "SecurityRuleParameterContainsInvalidPortRanges",
                    at.clone(),
                    format!(
                        "Security rule parameter {} for rule with Id {id} contains invalid port ranges: *. Use {one} for all \
                         ports.",
                        capitalized(&many)
                    ),
                );
            } else if port_range(text).is_none() {
                self.bad_ports(at, text, id);
            }
        }
        let texts = listed.into_iter().map(|(text, _)| text).collect();
        (self.problems.len() == before).then_some(RulePorts::Ranges(texts))
    }

    fn bad_ports(&mut self, at: &str, text: &str, id: &ResourceId) {
        self.problems.add(
            "SecurityRuleInvalidPortRange",
            at,
            format!(
                "Security rule has invalid Port range. Value provided: {}. Value should be an integer OR integer range with '-' \
                 delimiter. Valid range 0-65535. Rule id: {id}.",
                shown(text)
            ),
        );
    }

    fn texts(&mut self, properties: &Object<'_>, name: &str) -> Vec<(String, String)> {
        let items = properties
            .list(name, MAX_ADDRESSES, &mut self.problems)
            .unwrap_or_default();
        let read = items.into_iter().filter_map(|item| {
            let text = item.text(&mut self.problems)?.to_owned();
            Some((text, item.path))
        });
        read.collect()
    }
}

fn capitalized(name: &str) -> String {
    let mut characters = name.chars();
    let first = characters.next().map(|c| c.to_ascii_uppercase());
    first.into_iter().chain(characters).collect()
}
