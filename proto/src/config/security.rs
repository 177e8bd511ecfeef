//! Network security groups as agents enforce them (N1 to N11).
//!
//! A group's rules are the same for every NIC that it applies to. What a tag or an application security group means
//! differs by NIC, so rules name sets of addresses, and the agent knows for each NIC which addresses these have there.

use crate::id::ResourceId;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Largest number of rules of one group: 1,000 of the user's (X5) and the default rules of one direction.
pub const MAX_RULES: usize = 1003;

/// Largest number of [`Security::nics`]: an agent numbers them with eight bits.
pub const MAX_NICS: usize = 255;

/// Names of the service tags that rules may use (N8, N9). The agent knows the addresses of each.
pub const SERVICE_TAGS: [&str; 3] = ["VirtualNetwork", "Internet", "AzureLoadBalancer"];

/// The security groups that an agent enforces (D25).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Security {
    /// The groups that [`Self::nics`] name, ordered by id.
    pub groups: Vec<SecurityGroup>,
    /// The application security groups that the rules name, ordered by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub application_groups: Vec<ApplicationGroup>,
    /// First the NICs of [`Role::Vm`](super::Role::Vm) in the same order, then the subnets and NICs of machines without an
    /// agent that the host serves. Entries without a group are listed too, so that the number of an entry does not
    /// change when a group is attached to another one.
    pub nics: Vec<SecuredNic>,
    /// What `allowVirtualNetworkAccess` off on a peering means at NICs with a group (P17, D28).
    #[serde(default, skip_serializing_if = "AccessOff::is_block")]
    pub access_off: AccessOff,
    /// `flowTimeoutInMinutes` of the VNet, 4 to 30: a flow without packets for this time needs a rule again (N6).
    #[serde(default = "default_flow_timeout", skip_serializing_if = "is_default_flow_timeout")]
    pub flow_timeout_minutes: u8,
}

/// Azure's default of `flowTimeoutInMinutes` (N6).
pub const DEFAULT_FLOW_TIMEOUT: u8 = 4;

const fn default_flow_timeout() -> u8 {
    DEFAULT_FLOW_TIMEOUT
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_default_flow_timeout(minutes: &u8) -> bool {
    *minutes == DEFAULT_FLOW_TIMEOUT
}

/// What `allowVirtualNetworkAccess` off on a peering means at NICs to which a security group applies (D28). At NICs without
/// a group it always means [`AccessOff::Block`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AccessOff {
    /// Packets from and to the peer are dropped (Azure in 2017).
    #[default]
    Block,
    /// The peer is no part of the tag `VirtualNetwork`, so default rules deny its packets; a rule of the user may allow
    /// them (Azure today).
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
    /// The name by which [`AddressMatch::Sets`] refers to the group.
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
    /// The addresses of the NIC, or the prefixes of the subnet. The longest prefix that contains an address decides.
    pub prefixes: Vec<IpNet>,
    /// The subnet whose routes count for the tag `VirtualNetwork` (N8); one of
    /// [`AgentConfig::subnets`](super::AgentConfig::subnets).
    pub subnet: ResourceId,
    /// The group of the subnet. `None`: the subnet allows everything (N5).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet_group: Option<ResourceId>,
    /// The group of the NIC. `None`: the NIC allows everything (N5).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nic_group: Option<ResourceId>,
}

impl Security {
    /// The first contradiction, as text that names the field and its value: too many NICs or rules, a group that is
    /// named but missing or listed twice, a rule that names an unknown set, or a range of ports in the wrong order.
    ///
    /// # Errors
    /// See above.
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
        Ok(())
    }
}

/// Lowest and highest port of a rule that names no ports.
pub const ALL_PORTS: PortRange = PortRange {
    first: 0,
    last: u16::MAX,
};

/// Which packets a rule judges, seen from the NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Direction {
    /// Packets that are delivered to the NIC.
    Inbound,
    /// Packets that the NIC sends.
    Outbound,
}

impl Direction {
    /// The other one.
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Inbound => Self::Outbound,
            Self::Outbound => Self::Inbound,
        }
    }
}

/// What a rule does with a packet that matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Access {
    /// The packet goes on.
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
    /// IP protocol 50.
    Esp,
    /// IP protocol 51.
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
    /// 100 to 4096 for rules of the user, 65000 and above for default rules. The lowest number decides (N3).
    pub priority: u16,
    /// Which packets it judges.
    pub direction: Direction,
    /// What it does with them.
    pub access: Access,
    /// The protocol that it matches.
    pub protocol: RuleProtocol,
    /// The sources that it matches.
    pub source: AddressMatch,
    /// The source ports that it matches. Packets of protocols without ports match [`ALL_PORTS`] alone.
    pub source_ports: Vec<PortRange>,
    /// The destinations that it matches.
    pub destination: AddressMatch,
    /// The destination ports that it matches.
    pub destination_ports: Vec<PortRange>,
}
