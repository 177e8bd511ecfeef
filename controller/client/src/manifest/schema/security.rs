//! Network security groups and their rules.

use super::Prefix;
use crate::manifest::named::Named;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use tombolo_proto::config::{Access, Direction, RuleProtocol};

/// A network security group with the user's rules. The default rules (N2) are not part of a manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NetworkSecurityGroup {
    /// Region of the resource; if absent, the region of its document.
    pub location: Option<String>,
    /// Tags of the resource.
    pub tags: BTreeMap<String, String>,
    /// The user's rules; a rule that the manifest omits is kept unless pruning deletes it.
    pub rules: Named<SecurityRule>,
}

/// A security rule (N1). The sources are given by one of `sourceAddressPrefix`, `sourceAddressPrefixes` and
/// `sourceApplicationSecurityGroups`; if all three are absent, the rule matches every source. The destinations are
/// given in the same way. The ports of each side are given either by the singular or by the plural property.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecurityRule {
    /// A text for people, at most 140 characters.
    #[serde(default)]
    pub description: Option<String>,
    /// From 100 to 4096, and unique among the rules of the same group and direction. The matching rule with the lowest
    /// number decides (N3).
    pub priority: u16,
    /// Whether the rule matches packets that the NIC receives or packets that the NIC sends.
    pub direction: Direction,
    /// Whether packets that match are allowed or denied.
    pub access: Access,
    /// The protocol; default `*`, which matches every protocol.
    #[serde(default)]
    pub protocol: RuleProtocol,
    /// One prefix, address, range of addresses or service tag, or `*`.
    #[serde(default)]
    pub source_address_prefix: Option<RuleAddress>,
    /// Prefixes, addresses and ranges of addresses (N11).
    #[serde(default)]
    pub source_address_prefixes: Vec<RuleAddress>,
    /// Names or full ids of application security groups (N9).
    #[serde(default)]
    pub source_application_security_groups: Vec<String>,
    /// One port or range of ports, or `*`. Default: `*`, unless the plural property is given.
    #[serde(default)]
    pub source_port_range: Option<RulePorts>,
    /// Ports and ranges of ports (N11).
    #[serde(default)]
    pub source_port_ranges: Vec<RulePorts>,
    /// One prefix, address, range of addresses or service tag, or `*`.
    #[serde(default)]
    pub destination_address_prefix: Option<RuleAddress>,
    /// Prefixes, addresses and ranges of addresses (N11).
    #[serde(default)]
    pub destination_address_prefixes: Vec<RuleAddress>,
    /// Names or full ids of application security groups (N9).
    #[serde(default)]
    pub destination_application_security_groups: Vec<String>,
    /// One port or range of ports, or `*`. There is no default: this property or the plural one must be given.
    #[serde(default)]
    pub destination_port_range: Option<RulePorts>,
    /// Ports and ranges of ports (N11).
    #[serde(default)]
    pub destination_port_ranges: Vec<RulePorts>,
}

/// The address, prefix, range of addresses or service tag of a security rule, as the user wrote it. Reading a manifest
/// checks that a prefix has no host bits. The controller checks all other texts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct RuleAddress(pub String);

impl<'de> Deserialize<'de> for RuleAddress {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        if text.is_empty() {
            let wrong =
                "an address is empty: write a prefix, an address, a service tag or '*', or leave the property out";
            return Err(de::Error::custom(wrong));
        }
        // No range and no service tag contains a slash.
        if text.contains('/') {
            Prefix::parse(&text).map_err(de::Error::custom)?;
        }
        Ok(Self(text))
    }
}

/// A port, a range of ports such as `8000-8080`, or `*`, as the user wrote it. In YAML, a port may also be a number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct RulePorts(pub String);

impl<'de> Deserialize<'de> for RulePorts {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Ports;
        impl Visitor<'_> for Ports {
            type Value = RulePorts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port from 0 to 65535, a range of ports such as 8000-8080, or '*'")
            }

            fn visit_u64<E: de::Error>(self, port: u64) -> Result<RulePorts, E> {
                self.visit_str(&port.to_string())
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<RulePorts, E> {
                let (first, last) = text.split_once('-').unwrap_or((text, text));
                let port = |text: &str| text.trim().parse::<u16>().ok();
                let is_range = matches!((port(first), port(last)), (Some(first), Some(last)) if first <= last);
                if text == "*" || is_range {
                    Ok(RulePorts(text.to_owned()))
                } else {
                    Err(E::invalid_value(de::Unexpected::Str(text), &self))
                }
            }
        }
        d.deserialize_any(Ports)
    }
}
