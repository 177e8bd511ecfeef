//! Internal load balancers, as agents apply them (L1 to L11, D35).
//!
//! The agent that sends a packet to a front end chooses the back end, and sends the packet to the agent that owns this
//! back end. The owner replaces the front end's address and port by those of the back end, and the reverse in replies.

use crate::id::ResourceId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// A front end of a load balancer: one address, with the rules for the packets that are sent to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FrontEnd {
    /// The front-end IP configuration.
    pub id: ResourceId,
    /// The VNet that has the address (L1). [`AgentConfig::spaces`](super::AgentConfig::spaces) has an entry for it.
    pub vnet: ResourceId,
    /// The address. No agent owns it.
    pub address: IpAddr,
    /// The rules. At most one of them applies to a packet: the rule for its protocol and port, or otherwise the rule for
    /// all protocols and ports.
    pub rules: Vec<BalancingRule>,
}

/// A rule of a front end (L3), or an inbound NAT rule, which has one back end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BalancingRule {
    /// The load-balancing rule or the inbound NAT rule.
    pub id: ResourceId,
    /// The protocol of the packets to which the rule applies.
    pub protocol: BalancedProtocol,
    /// The destination port of these packets. 0 with [`BalancedProtocol::All`]: all ports (L9).
    pub port: u16,
    /// The port at the back ends. 0 with [`BalancedProtocol::All`]: the port stays.
    pub back_end_port: u16,
    /// The fields of a packet that decide which back end it goes to (L4).
    #[serde(default, skip_serializing_if = "Distribution::is_default")]
    pub distribution: Distribution,
    /// Whether packets reach the back end with the front end's address and port (`enableFloatingIP`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub floating_ip: bool,
    /// Time without packets after which a flow ends, in minutes, 4 to 30 (`idleTimeoutInMinutes`).
    pub idle_timeout_minutes: u8,
    /// The addresses of the back ends, in ascending order. All are in the front end's VNet (L2).
    pub back_ends: Vec<IpAddr>,
}

/// The protocol of a [`BalancingRule`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BalancedProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// All protocols and ports: HA ports (L9).
    All,
}

/// The fields of a packet that decide which back end its flow goes to (L4).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Distribution {
    /// Addresses, ports and protocol.
    #[default]
    Default,
    /// The two addresses.
    SourceIP,
    /// The two addresses and the protocol.
    SourceIPProtocol,
}

impl Distribution {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    fn is_default(&self) -> bool {
        *self == Self::Default
    }
}

/// Checks the invariants of front ends: no address and no pair of protocol and port twice, ports only without
/// [`BalancedProtocol::All`], idle timeouts within their range, and back ends in order.
///
/// # Errors
/// The first invariant that is violated, as text that names the field and its value.
pub(super) fn check(front_ends: &[FrontEnd]) -> Result<(), String> {
    let mut addresses = BTreeSet::new();
    for front_end in front_ends {
        let id = &front_end.id;
        if !addresses.insert((&front_end.vnet, front_end.address)) {
            return Err(format!("frontEnds: {} is the address of two", front_end.address));
        }
        let mut matched = BTreeSet::new();
        for rule in &front_end.rules {
            let all = rule.protocol == BalancedProtocol::All;
            if all != (rule.port == 0) || all != (rule.back_end_port == 0) {
                return Err(format!(
                    "frontEnds: rule {} has the ports {} and {}; only a rule for all protocols has 0",
                    rule.id, rule.port, rule.back_end_port
                ));
            }
            if !matched.insert((rule.protocol, rule.port)) {
                return Err(format!("frontEnds: {id} has two rules for port {}", rule.port));
            }
            if !(4..=30).contains(&rule.idle_timeout_minutes) {
                return Err(format!(
                    "frontEnds: the idle timeout {} of rule {} is not within 4 to 30 minutes",
                    rule.idle_timeout_minutes, rule.id
                ));
            }
            if rule.back_ends.windows(2).any(|pair| pair[0] >= pair[1]) {
                return Err(format!("frontEnds: the back ends of rule {} are not in order", rule.id));
            }
        }
    }
    Ok(())
}
