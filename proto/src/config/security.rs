//! Network security groups as agents enforce them (N1 to N11).
//!
//! A group's rules are the same for every NIC that it applies to. What a tag or an application security group means
//! differs by NIC, so rules name sets of addresses, and the agent knows for each NIC which addresses these have there.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Largest number of rules of one group: 1,000 of the user's (X5) and the default rules of one direction.
pub const MAX_RULES: usize = 1003;

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
