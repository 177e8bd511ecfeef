//! Questions about reachability: of the present network, and of the network after changes that are only proposed.

use super::Protocol;
use crate::id::Revision;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A question which addresses reach which.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ReachRequest {
    /// Only packets from these: names of virtual networks, of subnets (`VNET/SUBNET`), network interfaces, machines,
    /// application security groups, front ends (`LB/FRONT-END`) and sites, ids, addresses or prefixes. Empty: from all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<String>,
    /// Only packets to these, in the same forms. Empty: to all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<String>,
}

/// A question what changes would connect and cut, and whether assertions would hold after them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ReachDiffRequest {
    /// The state to compare with: that of an earlier revision. `None`: the one that the changes are made to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Revision>,
    /// The state that the changes are made to: that of an earlier revision. `None`: the present one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Revision>,
    /// The changes, in the order in which they would be made. At most [`MAX_PROPOSED_CHANGES`].
    pub changes: Vec<ProposedChange>,
    /// What must and must not be reachable after the changes. At most [`MAX_ASSERTIONS`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub assertions: Vec<Assertion>,
}

/// The assertions that every change must leave true.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StoredAssertions {
    /// All of them. At most [`MAX_ASSERTIONS`].
    pub assertions: Vec<Assertion>,
}

/// Largest number of [`ReachDiffRequest::changes`].
pub const MAX_PROPOSED_CHANGES: usize = 20_000;

/// Largest number of [`ReachDiffRequest::assertions`] and of [`StoredAssertions::assertions`].
pub const MAX_ASSERTIONS: usize = 1_000;

/// A write of an ARM resource that is only proposed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProposedChange {
    /// The path of the resource: `/subscriptions/…`.
    pub path: String,
    /// The body of a PUT. `None`: the resource would be deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Value>,
    /// Whether the PUT of a peering has `syncRemoteAddressSpace=true` (P27).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sync_remote_address_space: bool,
}

/// What must never, or always, be reachable. In its JSON and YAML form it is an object with one property: `never` or
/// `always`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum Assertion {
    /// None of this traffic arrives, from any of the sources to any of the destinations.
    Never(AssertedTraffic),
    /// All of this traffic arrives, from each of the sources to each of the destinations, and the replies come back.
    Always(AssertedTraffic),
}

/// The written form of an [`Assertion`].
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    never: Option<AssertedTraffic>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    always: Option<AssertedTraffic>,
}

impl TryFrom<Written> for Assertion {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        match (written.never, written.always) {
            (Some(never), None) => Ok(Self::Never(never)),
            (None, Some(always)) => Ok(Self::Always(always)),
            (Some(_), Some(_)) => Err("an assertion has either never or always: write two".into()),
            (None, None) => Err("an assertion needs never or always, with from and to".into()),
        }
    }
}

impl From<Assertion> for Written {
    fn from(assertion: Assertion) -> Self {
        let (never, always) = match assertion {
            Assertion::Never(traffic) => (Some(traffic), None),
            Assertion::Always(traffic) => (None, Some(traffic)),
        };
        Self { never, always }
    }
}

/// The traffic about which an assertion speaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AssertedTraffic {
    /// The sources, in a form of [`ReachRequest::from`].
    pub from: String,
    /// The destinations, in the same forms.
    pub to: String,
    /// The protocol. `None`: TCP, UDP and ICMP; with ports, TCP and UDP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Destination ports: `443` or `8000-8080`. Empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<String>,
}
