//! Internal load balancers, as agents apply them (L1 to L11, D35).
//!
//! The agent that sends a packet to a front end chooses the back end, and sends the packet to the agent that owns this
//! back end. The owner replaces the front end's address and port by those of the back end, and the reverse in replies.

use super::{AgentConfig, Owner};
use crate::id::{AgentId, ResourceId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
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
    /// Whether the client gets a reset if it goes on with a TCP flow that has ended by its idle timeout
    /// (`enableTcpReset`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tcp_reset: bool,
    /// The addresses of the back ends, in ascending order. All are in the front end's VNet (L2).
    pub back_ends: Vec<IpAddr>,
    /// The back ends about which the operator decides, and not the probe: true if new flows may go to them, false if not
    /// (`adminState` `Up` and `Down`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub decided: BTreeMap<IpAddr, bool>,
    /// The probe that tells which of the other back ends get flows (L6). `None`: all do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<HealthProbe>,
    /// Whether established TCP flows end when all back ends are down, as with the SKU Basic (L8).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ends_flows: bool,
}

/// Time after which a back end without probe is gone if there is no link with its agent, in seconds: the default interval
/// of probes (L6).
pub const GONE_WITHOUT_PROBE: u32 = 15;

impl BalancingRule {
    /// Time in seconds after which a back end is gone if the link with its agent is down for that long (D36): the interval
    /// of the probe times its threshold, or [`GONE_WITHOUT_PROBE`].
    #[must_use]
    pub fn gone_after(&self) -> u32 {
        let of_probe = |probe: &HealthProbe| probe.interval.saturating_mul(probe.threshold.into());
        self.probe.as_ref().map_or(GONE_WITHOUT_PROBE, of_probe)
    }
}

/// A health probe (L6). The agent that owns a back end probes it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HealthProbe {
    /// The probe.
    pub id: ResourceId,
    /// The protocol of the probe.
    pub protocol: ProbeProtocol,
    /// The port of the back end, 1 to 65,535.
    pub port: u16,
    /// The path of an HTTP or HTTPS probe; empty for TCP.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// Time between two probes of a back end, in seconds, at least 1 (`intervalInSeconds`).
    pub interval: u32,
    /// Number of consecutive results after which the state of a back end changes, at least 1 (`probeThreshold`).
    pub threshold: u16,
    /// Whether all back ends get flows when all are down (`noHealthyBackendsBehavior` is `AllProbedUp`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all_up_when_all_down: bool,
}

/// The protocol of a [`HealthProbe`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProbeProtocol {
    /// A TCP connection.
    Tcp,
    /// An HTTP GET, which must be answered with status 200.
    Http,
    /// The same over TLS. The certificate is not checked.
    Https,
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

impl AgentConfig {
    /// The back ends in this configuration that are probed (L6): each once for each probe, with the agent that owns the
    /// back end. Ordered by probe and address. Back ends without an agent are left out.
    #[must_use]
    pub fn probed_back_ends(&self) -> Vec<ProbedBackEnd<'_>> {
        let mut all = BTreeMap::new();
        for (rule, address, owner) in self.owned_back_ends() {
            if let Some(probe) = &rule.probe {
                all.insert((&probe.id, address), (probe, owner));
            }
        }
        let each = all.into_iter();
        let each = each.map(|((_, address), (probe, owner))| ProbedBackEnd { probe, address, owner });
        each.collect()
    }

    /// The back ends of all rules, each with its rule and the agent that owns the back end. Back ends without an agent are
    /// left out.
    #[must_use]
    pub fn owned_back_ends(&self) -> Vec<(&BalancingRule, IpAddr, &AgentId)> {
        let mut all = Vec::new();
        for front_end in &self.front_ends {
            let spaces = self.spaces.iter().filter(|space| space.vnet == front_end.vnet);
            let owners = spaces.flat_map(|space| &space.owners);
            // Almost all owners have single addresses, so few prefixes are left to search.
            let is_host = |owner: &&Owner| owner.prefix.prefix_len() == owner.prefix.max_prefix_len();
            let (hosts, prefixes): (Vec<_>, Vec<_>) = owners.partition(is_host);
            let hosts: BTreeMap<IpAddr, &AgentId> = hosts.iter().map(|o| (o.prefix.addr(), &o.agent)).collect();
            let owner_of = |address: &IpAddr| {
                let covering = prefixes.iter().filter(|owner| owner.prefix.contains(address));
                let covering = covering.max_by_key(|owner| owner.prefix.prefix_len());
                let host = hosts.get(address).copied();
                host.or_else(|| covering.map(|owner| &owner.agent))
            };
            for rule in &front_end.rules {
                let owned = rule.back_ends.iter().filter_map(|a| Some((rule, *a, owner_of(a)?)));
                all.extend(owned);
            }
        }
        all
    }
}

/// A back end that is probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbedBackEnd<'c> {
    /// The probe.
    pub probe: &'c HealthProbe,
    /// The address of the back end.
    pub address: IpAddr,
    /// The agent that owns the back end, and probes it.
    pub owner: &'c AgentId,
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
            if let Some(probe) = &rule.probe
                && (probe.port == 0 || probe.interval == 0 || probe.threshold == 0)
            {
                return Err(format!(
                    "frontEnds: port, interval and threshold of probe {} must be at least 1",
                    probe.id
                ));
            }
            if rule.back_ends.windows(2).any(|pair| pair[0] >= pair[1]) {
                return Err(format!("frontEnds: the back ends of rule {} are not in order", rule.id));
            }
        }
    }
    Ok(())
}
