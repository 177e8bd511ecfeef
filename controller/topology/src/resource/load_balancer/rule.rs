//! The load-balancing rules of a load balancer (L3, L4, L9).

use super::part::{Described, Siblings, find};
use crate::arm::body::{MAX_ITEMS, Object, Shape, missing};
use crate::arm::view::{child, reference, references};
use crate::draft::Draft;
use crate::path::{ArmPath, Kind};
use crate::resource::frame::Child;
use crate::rules::request::without_defaults;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::fmt;
use tombolo_proto::id::ResourceId;
use uuid::Uuid;

/// A load-balancing rule: packets to a port of a front end go to the members of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BalancingRule {
    /// The full resource id.
    pub id: ResourceId,
    /// A GUID that is new after each change of the rule.
    pub etag: Uuid,
    /// The protocol. [`BalancedProtocol::All`] is that of HA ports (L9).
    pub protocol: BalancedProtocol,
    /// The id of the front end.
    pub front_end: ResourceId,
    /// The port of the front end; 0 with [`BalancedProtocol::All`].
    pub front_end_port: u16,
    /// The port of the back ends; 0 with [`BalancedProtocol::All`]. With floating IP it is the front end's port.
    pub back_end_port: u16,
    /// The ids of the pools: at most one. Without a pool, the rule forwards no packets.
    #[serde(default)]
    pub pools: Vec<ResourceId>,
    /// The id of the probe. `None`: all back ends count as healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<ResourceId>,
    /// The fields of a packet that choose its back end (L4).
    pub distribution: Distribution,
    /// `idleTimeoutInMinutes`: after this time without packets a flow is forgotten, 4 to 30.
    pub idle_timeout_minutes: u16,
    /// `enableFloatingIP`: packets keep the front end's address and port.
    pub floating_ip: bool,
    /// `enableTcpReset`: both ends of a TCP flow get a reset when the flow times out.
    pub tcp_reset: bool,
    /// Properties that are kept and shown, but have no effect.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub echoed: Map<String, Value>,
}

/// The protocol of a load-balancing rule or an inbound NAT rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum BalancedProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// TCP and UDP on all ports (L9). No inbound NAT rule has it.
    All,
}

impl BalancedProtocol {
    pub(super) const NAMES: [(&'static str, Self); 3] = [("Tcp", Self::Tcp), ("Udp", Self::Udp), ("All", Self::All)];
}

impl fmt::Display for BalancedProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "Tcp",
            Self::Udp => "Udp",
            Self::All => "All",
        })
    }
}

/// The fields of a packet from which the hash of its flow is computed (L4).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Distribution {
    /// Source and destination address, source and destination port, and protocol.
    #[default]
    Default,
    /// Source and destination address.
    #[serde(rename = "SourceIP")]
    SourceIp,
    /// Source and destination address, and protocol.
    #[serde(rename = "SourceIPProtocol")]
    SourceIpProtocol,
}

impl Distribution {
    const NAMES: [(&'static str, Self); 3] = [
        ("Default", Self::Default),
        ("SourceIP", Self::SourceIp),
        ("SourceIPProtocol", Self::SourceIpProtocol),
    ];
}

/// `idleTimeoutInMinutes` of rules: Azure's range and default.
const IDLE_TIMEOUT: std::ops::RangeInclusive<i64> = 4..=30;
const DEFAULT_IDLE_TIMEOUT: u16 = 4;

/// The properties that are kept and shown, but have no effect. A client of an older API version may not know them, so a
/// body without them keeps them.
const ECHOED: [(&str, Shape); 2] = [
    ("disableOutboundSnat", Shape::Bool),
    ("enableConnectionTracking", Shape::Bool),
];

fn echoed_defaults() -> Value {
    json!({"disableOutboundSnat": false, "enableConnectionTracking": false})
}

/// The load-balancing rules of a load balancer as child items. They are written with their load balancer.
pub(super) const RULES: Child = Child {
    name: "loadBalancingRules",
    kind: Some(Kind::LoadBalancingRule),
    writes: None,
    item: |views, path| {
        let balancer = views.topology.load_balancers.get(&path.parent()?.id())?;
        find(&balancer.rules, &path.id()).map(BalancingRule::view)
    },
    list: |views, parent| {
        let balancer = views.topology.load_balancers.get(parent)?;
        Some(balancer.rules.iter().map(BalancingRule::view).collect())
    },
};

impl BalancingRule {
    /// The ARM body of the rule.
    pub(super) fn view(&self) -> Value {
        let mut properties = echoed_defaults();
        for (name, value) in &self.echoed {
            properties[name] = value.clone();
        }
        properties["protocol"] = json!(self.protocol);
        properties["frontendIPConfiguration"] = reference(&self.front_end);
        properties["frontendPort"] = self.front_end_port.into();
        properties["backendPort"] = self.back_end_port.into();
        properties["loadDistribution"] = json!(self.distribution);
        properties["idleTimeoutInMinutes"] = self.idle_timeout_minutes.into();
        properties["enableFloatingIP"] = self.floating_ip.into();
        properties["enableTcpReset"] = self.tcp_reset.into();
        // Some clients read the singular property, others the plural one.
        properties["backendAddressPools"] = references(&self.pools);
        if let Some(pool) = self.pools.first() {
            properties["backendAddressPool"] = reference(pool);
        }
        if let Some(probe) = &self.probe {
            properties["probe"] = reference(probe);
        }
        child(&self.id, Kind::LoadBalancingRule, self.etag, properties)
    }
}

/// The members that load-balancing rules and inbound NAT rules have in common.
pub(super) struct Forwarding {
    pub(super) front_end: ResourceId,
    pub(super) idle_timeout_minutes: u16,
    pub(super) floating_ip: bool,
    pub(super) tcp_reset: bool,
}

impl Draft<'_> {
    /// Reads a load-balancing rule. `old`: the rule before the change. `None`: it cannot be read, and a problem gives the
    /// reason.
    pub(super) fn read_balancing_rule(
        &mut self,
        described: &Described<'_>,
        siblings: &Siblings,
        old: Option<&BalancingRule>,
    ) -> Option<BalancingRule> {
        let (id, properties) = (&described.id, &described.properties);
        let before = self.problems.len();
        let protocol = self.required_choice(properties, "protocol", &BalancedProtocol::NAMES);
        let ports = protocol.and_then(|protocol| self.balanced_ports(properties, protocol));
        let forwarding = self.read_forwarding(described, siblings);
        if let (Some(forwarding), Some(ports)) = (&forwarding, ports) {
            self.check_floating_ports(properties, forwarding, ports);
        }
        let pools = self.pools_of_rule(properties, id, siblings);
        let probe = properties.reference("probe", &mut self.problems);
        let probe = probe.and_then(|probe| self.resolve_sibling(probe, Kind::Probe, id, siblings));
        let distribution = self.optional_choice(properties, "loadDistribution", &Distribution::NAMES);
        let mut echoed = old.map_or_else(Map::new, |r| r.echoed.clone());
        echoed.extend(properties.echo(&ECHOED, &mut self.problems));
        without_defaults(&mut echoed, &echoed_defaults());
        if self.problems.len() > before {
            return None;
        }
        let (forwarding, (front_end_port, back_end_port)) = (forwarding?, ports?);
        Some(BalancingRule {
            id: id.clone(),
            etag: old.map_or(Uuid::nil(), |r| r.etag),
            protocol: protocol?,
            front_end: forwarding.front_end,
            front_end_port,
            back_end_port,
            pools,
            probe,
            distribution: distribution.unwrap_or_default(),
            idle_timeout_minutes: forwarding.idle_timeout_minutes,
            floating_ip: forwarding.floating_ip,
            tcp_reset: forwarding.tcp_reset,
            echoed,
        })
    }

    /// Reads the front end, the idle timeout and the flags of a load-balancing rule or an inbound NAT rule. `None`: the
    /// front end is missing, and a problem says so.
    pub(super) fn read_forwarding(&mut self, described: &Described<'_>, siblings: &Siblings) -> Option<Forwarding> {
        let (id, properties) = (&described.id, &described.properties);
        let timeout = properties.integer("idleTimeoutInMinutes", IDLE_TIMEOUT, &mut self.problems);
        let floating_ip = properties.boolean("enableFloatingIP", &mut self.problems);
        let tcp_reset = properties.boolean("enableTcpReset", &mut self.problems);
        if properties.get("frontendIPConfiguration").is_none() {
            missing(&mut self.problems, &properties.at("frontendIPConfiguration"));
        }
        let front_end = properties.reference("frontendIPConfiguration", &mut self.problems)?;
        Some(Forwarding {
            front_end: self.resolve_sibling(front_end, Kind::FrontEnd, id, siblings)?,
            idle_timeout_minutes: timeout
                .and_then(|t| u16::try_from(t).ok())
                .unwrap_or(DEFAULT_IDLE_TIMEOUT),
            floating_ip: floating_ip.unwrap_or(false),
            tcp_reset: tcp_reset.unwrap_or(false),
        })
    }

    /// Checks that a rule with floating IP has equal ports: its packets are not translated.
    pub(super) fn check_floating_ports(
        &mut self,
        properties: &Object<'_>,
        forwarding: &Forwarding,
        (front_end_port, back_end_port): (u16, u16),
    ) {
        if forwarding.floating_ip && front_end_port != back_end_port {
            let at = properties.at("backendPort");
            let message = format!(
                "{at}: with enableFloatingIP the port of packets stays, so backendPort must be the frontendPort \
                 {front_end_port}, and not {back_end_port} (L3)."
            );
            self.problems.add("XFloatingIpNeedsEqualPorts", at, message);
        }
    }

    /// The ports of the front end and of the back ends. With the protocol `All` both are 0, and otherwise neither is (L9).
    fn balanced_ports(&mut self, properties: &Object<'_>, protocol: BalancedProtocol) -> Option<(u16, u16)> {
        if protocol != BalancedProtocol::All {
            let front_end = self.balanced_port(properties, "frontendPort", protocol);
            let back_end = self.balanced_port(properties, "backendPort", protocol);
            return front_end.zip(back_end);
        }
        if properties.get("frontendPort").is_none() {
            missing(&mut self.problems, &properties.at("frontendPort"));
        }
        for name in ["frontendPort", "backendPort"] {
            let port = properties.integer(name, 0..=i64::from(u16::MAX), &mut self.problems);
            if let Some(port) = port.filter(|p| *p != 0) {
                let at = properties.at(name);
                let message = format!(
                    "{at}: {port} is not possible with protocol All, which is for all ports. Set frontendPort and backendPort to \
                     0, or the protocol to Tcp or Udp (L9)."
                );
                self.problems.add("InvalidRequestFormat", at, message);
            }
        }
        Some((0, 0))
    }

    /// A port of a rule for one protocol, 1 to 65535.
    fn balanced_port(&mut self, properties: &Object<'_>, name: &str, protocol: BalancedProtocol) -> Option<u16> {
        if properties.get(name).and_then(Value::as_i64) == Some(0) {
            let at = properties.at(name);
            let message = format!(
                "{at}: 0 is not a port of protocol {protocol}. Write a port from 1 to 65535; port 0 is for protocol All, which \
                 balances all ports (L9)."
            );
            self.problems.add("InvalidRequestFormat", at, message);
            return None;
        }
        self.required_port(properties, name)
    }

    /// The pool of a rule, from `backendAddressPool` and `backendAddressPools`. Clients send one of them, or both with the
    /// same pool; a null in one of them removes nothing. Several pools are refused (L1).
    fn pools_of_rule(&mut self, properties: &Object<'_>, id: &ResourceId, siblings: &Siblings) -> Vec<ResourceId> {
        let mut references: Vec<(ArmPath, String)> = Vec::new();
        let items = properties.list("backendAddressPools", MAX_ITEMS, &mut self.problems);
        for item in items.into_iter().flatten() {
            let object = item.object(&mut self.problems);
            references.extend(object.and_then(|o| o.own_reference(&mut self.problems)));
        }
        references.extend(properties.reference("backendAddressPool", &mut self.problems));
        let mut pools: Vec<ResourceId> = Vec::new();
        for reference in references {
            let at = reference.1.clone();
            let Some(pool) = self.resolve_sibling(reference, Kind::BackendPool, id, siblings) else {
                continue;
            };
            if pools.contains(&pool) {
                continue;
            }
            if let Some(first) = pools.first() {
                let message = format!(
                    "{at}: {pool} is not supported: in Azure a gateway load balancer would use several pools. Here, a rule has one \
                     pool, and this one has {first} already; remove one of them from backendAddressPools and backendAddressPool \
                     (L1)."
                );
                self.problems.add("XNotSupported", at, message);
            } else {
                pools.push(pool);
            }
        }
        pools
    }
}
