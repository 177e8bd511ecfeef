//! Network security groups as agents enforce them (N1 to N11).
//!
//! The rules of a group are the same at every NIC to which the group applies. But a tag can stand for other addresses
//! at each NIC. So rules contain the names of sets of addresses, and the agent finds the addresses of each set for each
//! NIC.

use super::FlowLogs;
use crate::id::ResourceId;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Largest number of rules of one group in one direction: 1,000 rules of the user (X5) and the three default rules of
/// the direction (N2).
pub const MAX_RULES: usize = 1003;

/// Largest number of entries in [`Security::nics`]. An agent numbers the entries with eight bits.
pub const MAX_NICS: usize = 255;

/// Names of the service tags that rules may use (N8, N9). The agent finds the addresses of each tag.
pub const SERVICE_TAGS: [&str; 3] = ["VirtualNetwork", "Internet", "AzureLoadBalancer"];

/// The security groups that an agent enforces (D25).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Security {
    /// The groups to which [`Self::nics`] refers, ordered by id.
    pub groups: Vec<SecurityGroup>,
    /// The application security groups to which the rules refer, ordered by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub application_groups: Vec<ApplicationGroup>,
    /// First the NICs of [`Role::Vm`](super::Role::Vm) in the same order, and then the served subnets. Each served
    /// subnet is followed by the NICs in it that have a group or a flow log of their own and whose machines have no agent. The NICs
    /// of [`Role::Vm`](super::Role::Vm) and the served subnets are listed even if they have no group, so that the
    /// number of a NIC does not change when a group is attached. Only if there would be more than [`MAX_NICS`] entries,
    /// served subnets without a group are left out.
    pub nics: Vec<SecuredNic>,
    /// The effect that a peering with `allowVirtualNetworkAccess` off has at NICs with a group (P17, D28).
    #[serde(default, skip_serializing_if = "AccessOff::is_block")]
    pub access_off: AccessOff,
    /// Idle timeout of flows, in minutes, from 4 to 30 (`flowTimeoutInMinutes` of the VNet). If a flow has no packets
    /// for longer, its next packet needs a rule again (N6).
    #[serde(default = "default_flow_timeout", skip_serializing_if = "is_default_flow_timeout")]
    pub flow_timeout_minutes: u8,
    /// Whether changed rules apply to established flows too (the setting `reevaluate`, D34). `false`: they apply to new
    /// flows only (N6). Needs [`Feature::Reevaluate`](super::Feature::Reevaluate).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reevaluate: bool,
    /// The flow logs that cover some of [`Self::nics`] (N14). `None`: no log covers any of them. Needs
    /// [`Feature::FlowLogs`](super::Feature::FlowLogs).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow_logs: Option<FlowLogs>,
}

/// Azure's default of `flowTimeoutInMinutes`, in minutes (N6).
pub const DEFAULT_FLOW_TIMEOUT: u8 = 4;

const fn default_flow_timeout() -> u8 {
    DEFAULT_FLOW_TIMEOUT
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_default_flow_timeout(minutes: &u8) -> bool {
    *minutes == DEFAULT_FLOW_TIMEOUT
}

/// The effect that a peering with `allowVirtualNetworkAccess` off has at NICs to which a security group applies (D28).
/// At NICs without a group, the effect is always that of [`AccessOff::Block`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AccessOff {
    /// Packets from and to the peer are dropped (Azure in 2017).
    #[default]
    Block,
    /// The addresses of the peer do not belong to the tag `VirtualNetwork`. So default rules deny packets from the
    /// peer, but a rule of the user may allow them (Azure today).
    TagOnly,
}

impl AccessOff {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    fn is_block(&self) -> bool {
        *self == Self::Block
    }
}

/// A network security group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecurityGroup {
    /// The group's resource id.
    pub id: ResourceId,
    /// The rules of both directions, default rules included, ordered by direction and priority.
    pub rules: Vec<SecurityRule>,
}

/// The addresses of an application security group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ApplicationGroup {
    /// The name by which [`AddressMatch::Sets`] refers to the group: its resource id in lower case.
    pub name: String,
    /// The addresses of the NICs in the group, ordered.
    pub addresses: Vec<IpAddr>,
}

/// A NIC, or a subnet of machines without an agent, with the security groups that apply to it (N4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecuredNic {
    /// The resource id of the NIC or of the subnet.
    pub id: ResourceId,
    /// The addresses of the NIC, or the prefixes of the subnet. An address belongs to the entry that has the longest
    /// prefix which contains the address.
    pub prefixes: Vec<IpNet>,
    /// The subnet whose routes contribute prefixes to the tag `VirtualNetwork` (N8); one of
    /// [`AgentConfig::subnets`](super::AgentConfig::subnets).
    pub subnet: ResourceId,
    /// The group of the subnet. `None`: the subnet has no group, and allows all packets (N5).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet_group: Option<ResourceId>,
    /// The group of the NIC. `None`: the NIC has no group, and allows all packets (N5).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nic_group: Option<ResourceId>,
}

impl Security {
    /// Checks whether an agent can enforce the groups.
    ///
    /// # Errors
    /// A text that names the first wrong field and its value. A field is wrong if there are too many NICs or rules, if
    /// the flow timeout is not within 4 to 30 minutes, if a group or an application security group is listed twice, if
    /// a prefix is listed twice, if a NIC names a group that is not listed, if a rule names an unknown set, or if a
    /// range of ports is in the wrong order. The flow logs are checked too.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.nics.len() > MAX_NICS {
            return Err(format!(
                "security.nics: {} entries; at most {MAX_NICS} are possible",
                self.nics.len()
            ));
        }
        if !(4..=30).contains(&self.flow_timeout_minutes) {
            return Err(format!(
                "security.flowTimeoutMinutes: {} is not within 4 to 30",
                self.flow_timeout_minutes
            ));
        }
        let ids: BTreeSet<_> = self.groups.iter().map(|g| &g.id).collect();
        if ids.len() < self.groups.len() {
            return Err("security.groups: an id is listed twice".into());
        }
        for nic in &self.nics {
            let named = nic.subnet_group.iter().chain(&nic.nic_group);
            if let Some(missing) = named.into_iter().find(|id| !ids.contains(id)) {
                return Err(format!(
                    "security.nics: {} names group {missing}, which is not in security.groups",
                    nic.id
                ));
            }
        }
        let mut owner_of = BTreeMap::new();
        let prefixes = self
            .nics
            .iter()
            .flat_map(|nic| nic.prefixes.iter().map(move |prefix| (nic, prefix)));
        for (nic, prefix) in prefixes {
            // If two entries had the same prefix, the agent could not know whose groups apply to a packet.
            if let Some(other) = owner_of.insert(prefix.trunc(), &nic.id) {
                return Err(format!(
                    "security.nics: {other} and {} have the prefix {prefix}; a prefix belongs to one entry alone (D25): \
                     remove it from the other",
                    nic.id
                ));
            }
        }
        let application: BTreeSet<_> = self.application_groups.iter().map(|g| g.name.as_str()).collect();
        if application.len() < self.application_groups.len() {
            return Err("security.applicationGroups: a name is listed twice".into());
        }
        let is_known = |name: &String| SERVICE_TAGS.contains(&name.as_str()) || application.contains(name.as_str());
        for group in &self.groups {
            for direction in [Direction::Inbound, Direction::Outbound] {
                let count = group.rules.iter().filter(|r| r.direction == direction).count();
                if count > MAX_RULES {
                    return Err(format!(
                        "security.groups: {} has {count} rules {direction:?}; at most {MAX_RULES} are possible",
                        group.id
                    ));
                }
            }
            for rule in &group.rules {
                let at = || format!("security.groups: rule {} of {}", rule.name, group.id);
                for side in [&rule.source, &rule.destination] {
                    if let AddressMatch::Sets(names) = side
                        && let Some(unknown) = names.iter().find(|n| !is_known(n))
                    {
                        return Err(format!("{} names the unknown set {unknown}", at()));
                    }
                }
                let mut ports = rule.source_ports.iter().chain(&rule.destination_ports);
                if let Some(reversed) = ports.find(|p| p.first > p.last) {
                    return Err(format!(
                        "{}: ports {}-{} are reversed",
                        at(),
                        reversed.first,
                        reversed.last
                    ));
                }
            }
        }
        self.flow_logs.as_ref().map_or(Ok(()), |logs| logs.check(self))
    }
}

/// All ports: the range of a rule that applies to every port.
pub const ALL_PORTS: PortRange = PortRange {
    first: 0,
    last: u16::MAX,
};

/// The direction of the packets to which a rule applies, as seen from the NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Direction {
    /// Packets that are delivered to the NIC.
    Inbound,
    /// Packets that the NIC sends.
    Outbound,
}

impl Direction {
    /// The other direction.
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Inbound => Self::Outbound,
            Self::Outbound => Self::Inbound,
        }
    }
}

/// The effect of a rule on a packet that matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Access {
    /// The rule allows the packet.
    Allow,
    /// The packet is dropped without an answer (N7).
    Deny,
}

/// The protocol that a rule matches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RuleProtocol {
    /// Every protocol.
    #[default]
    #[serde(rename = "*")]
    Any,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP, and ICMPv6 for IPv6.
    Icmp,
    /// ESP (IP protocol 50).
    Esp,
    /// AH (IP protocol 51).
    Ah,
}

/// Ports from `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortRange {
    /// The lowest port.
    pub first: u16,
    /// The highest port; not below `first`.
    pub last: u16,
}

/// The addresses that one side of a rule matches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AddressMatch {
    /// Every address of both families.
    Any,
    /// Addresses in one of these prefixes, none of which has host bits set.
    Prefixes(Vec<IpNet>),
    /// Addresses in one of these sets: a tag (N8, N9), or one or more application security groups.
    Sets(Vec<String>),
}

/// A security rule (N1, N11).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecurityRule {
    /// `securityRules/NAME` or `defaultSecurityRules/NAME`, as effective security rules show it.
    pub name: String,
    /// 100 to 4096 for rules of the user, 65000 and above for default rules. Of the rules that match, the one with the
    /// lowest number decides (N3).
    pub priority: u16,
    /// The direction of the packets to which the rule applies.
    pub direction: Direction,
    /// Whether the rule allows or denies packets that match.
    pub access: Access,
    /// The protocol that the rule matches.
    pub protocol: RuleProtocol,
    /// The source addresses that the rule matches.
    pub source: AddressMatch,
    /// The source ports that the rule matches. Not used if the protocol is ICMP, ESP or AH. If the protocol is any,
    /// packets without ports match only a rule with [`ALL_PORTS`].
    pub source_ports: Vec<PortRange>,
    /// The destination addresses that the rule matches.
    pub destination: AddressMatch,
    /// The destination ports that the rule matches, with the same exceptions as for source ports.
    pub destination_ports: Vec<PortRange>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nic(id: &str, prefixes: &[&str]) -> SecuredNic {
        SecuredNic {
            id: ResourceId::new(id),
            prefixes: prefixes.iter().map(|p| p.parse().unwrap()).collect(),
            subnet: ResourceId::new("/subnet"),
            subnet_group: None,
            nic_group: None,
        }
    }

    fn check(nics: Vec<SecuredNic>) -> Result<(), String> {
        let security = Security {
            groups: Vec::new(),
            application_groups: Vec::new(),
            nics,
            access_off: AccessOff::Block,
            flow_timeout_minutes: DEFAULT_FLOW_TIMEOUT,
            reevaluate: false,
            flow_logs: None,
        };
        security.check()
    }

    #[test]
    fn d25_a_prefix_belongs_to_one_nic() {
        let (a, b) = (nic("/a", &["10.0.0.4/32", "fd00::4/128"]), nic("/b", &["10.0.0.5/32"]));
        assert_eq!(
            check(vec![a.clone(), b.clone(), nic("/subnet", &["10.0.0.0/24"])]),
            Ok(())
        );
        for (second, named) in [
            (nic("/c", &["10.0.0.5/32"]), "/b and /c have the prefix 10.0.0.5/32"),
            (
                nic("/c", &["10.0.1.0/24", "10.0.1.9/24"]),
                "/c and /c have the prefix 10.0.1.9/24",
            ),
            (nic("/c", &["fd00::4/128"]), "/a and /c have the prefix fd00::4/128"),
        ] {
            let refused = check(vec![a.clone(), b.clone(), second]).unwrap_err();
            assert!(
                refused.starts_with("security.nics: ") && refused.contains(named),
                "{refused}"
            );
        }
    }
}
