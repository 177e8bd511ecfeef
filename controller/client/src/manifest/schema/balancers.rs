//! Internal load balancers and their children.

use crate::manifest::named::Named;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU16;
use tombolo_proto::config::Distribution;

/// An internal load balancer with its children. A child that the manifest omits is kept unless pruning deletes it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LoadBalancer {
    /// Region of the resource; if absent, the region of the virtual network of the first front end if this is in the
    /// same document and names one, or else the region of the document.
    pub location: Option<String>,
    /// Tags of the resource.
    pub tags: BTreeMap<String, String>,
    /// The SKU; default `Standard`. It cannot change after the creation.
    pub sku: LoadBalancerSku,
    /// The front ends (L1).
    pub front_ends: Named<FrontEnd>,
    /// The back-end pools (L2).
    pub pools: Named<BackendPool>,
    /// The health probes (L6).
    pub probes: Named<Probe>,
    /// The load-balancing rules (L3).
    pub rules: Named<BalancingRule>,
    /// The inbound NAT rules. A network interface that names a rule is its target.
    pub inbound_nat_rules: Named<InboundNatRule>,
}

/// The SKU of a load balancer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoadBalancerSku {
    /// Without HA ports (L9) and without pools of addresses.
    Basic,
    /// With all properties.
    #[default]
    Standard,
}

/// A front end: a private address at which the load balancer receives packets (L1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FrontEnd {
    /// The subnet, as `virtual-network/subnet` or full id.
    pub subnet: String,
    /// Static address; without it the controller allocates one that no network interface of the manifest names.
    #[serde(default, rename = "privateIPAddress")]
    pub private_ip_address: Option<IpAddr>,
}

/// A back-end pool (L2). Its members are either `addresses`, or the network interfaces that name the pool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BackendPool {
    /// Name or full id of the virtual network of `addresses`; if absent, that of the first front end.
    pub virtual_network: Option<String>,
    /// Addresses by name. If there are none, the members are network interfaces.
    pub addresses: Named<IpAddr>,
    /// Time in seconds during which flows of a removed member continue. The controller refuses values other than 0.
    pub drain_period_in_seconds: Option<u32>,
}

/// A health probe (L6).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Probe {
    /// The protocol of the probe.
    pub protocol: ProbeProtocol,
    /// The port of the back ends.
    pub port: NonZeroU16,
    /// The path of the HTTP request; set with `Http` and `Https`, and only with these.
    #[serde(default)]
    pub request_path: Option<String>,
    /// Time between two probes of a back end; default 15 s, at least 5 s.
    #[serde(default = "probe_interval")]
    pub interval_in_seconds: u16,
    /// Number of consecutive equal results that change the health of a back end, from 1 to 100; default 1.
    #[serde(default = "probe_threshold")]
    pub probe_threshold: u16,
    /// Whether back ends get flows while all of them are down; default `AllProbedDown`.
    #[serde(default)]
    pub no_healthy_backends_behavior: NoHealthyBackends,
}

/// Azure's default of `intervalInSeconds`.
fn probe_interval() -> u16 {
    15
}

/// Azure's default of `probeThreshold`.
fn probe_threshold() -> u16 {
    1
}

/// The protocol of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeProtocol {
    /// A TCP connection that the back end accepts.
    Tcp,
    /// A GET over HTTP that the back end answers with status 200.
    Http,
    /// A GET over HTTPS that the back end answers with status 200.
    Https,
}

/// The values of `noHealthyBackendsBehavior`: the back ends that get new flows while all of a pool are down.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NoHealthyBackends {
    /// No back end gets new flows.
    #[default]
    AllProbedDown,
    /// All back ends get new flows.
    AllProbedUp,
}

/// A load-balancing rule (L3): packets to a port of a front end go to the members of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BalancingRule {
    /// The protocol. `All` is for all ports of TCP and UDP (HA ports, L9).
    pub protocol: BalancedProtocol,
    /// Name of the front end; may be absent if the load balancer has only one.
    #[serde(default)]
    pub front_end: Option<String>,
    /// Port of the front end. Must be absent or 0 with the protocol `All`.
    #[serde(default, alias = "frontendPort")]
    pub front_end_port: Option<u16>,
    /// Port of the back ends; default `frontEndPort`. Must be absent or 0 with the protocol `All`.
    #[serde(default, alias = "backendPort")]
    pub back_end_port: Option<u16>,
    /// Name of the back-end pool; may be absent if the load balancer has only one.
    #[serde(default)]
    pub pool: Option<String>,
    /// Name of the probe. If it is absent, all back ends count as healthy.
    #[serde(default)]
    pub probe: Option<String>,
    /// The fields of a packet that choose its back end (L4); default `Default`.
    #[serde(default)]
    pub load_distribution: Distribution,
    /// Time without packets after which a flow ends, from 4 to 30 minutes; default 4.
    #[serde(default = "idle_timeout")]
    pub idle_timeout_in_minutes: u16,
    /// Whether packets keep the address and the port of the front end; the two ports must be equal then.
    #[serde(default, rename = "enableFloatingIP")]
    pub enable_floating_ip: bool,
    /// Whether both ends of a TCP flow get a reset when the flow times out.
    #[serde(default)]
    pub enable_tcp_reset: bool,
}

/// The protocol of a load-balancing rule or of an inbound NAT rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BalancedProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// TCP and UDP on all ports (L9); not possible in an inbound NAT rule.
    All,
}

/// An inbound NAT rule: a port of a front end leads to the one network interface that names the rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InboundNatRule {
    /// The protocol, `Tcp` or `Udp`.
    pub protocol: BalancedProtocol,
    /// Name of the front end; may be absent if the load balancer has only one.
    #[serde(default)]
    pub front_end: Option<String>,
    /// Port of the front end.
    #[serde(alias = "frontendPort")]
    pub front_end_port: NonZeroU16,
    /// Port of the back end; default `frontEndPort`.
    #[serde(default, alias = "backendPort")]
    pub back_end_port: Option<NonZeroU16>,
    /// Time without packets after which a flow ends, from 4 to 30 minutes; default 4.
    #[serde(default = "idle_timeout")]
    pub idle_timeout_in_minutes: u16,
    /// Whether packets keep the address and the port of the front end; the two ports must be equal then.
    #[serde(default, rename = "enableFloatingIP")]
    pub enable_floating_ip: bool,
    /// Whether both ends of a TCP flow get a reset when the flow times out.
    #[serde(default)]
    pub enable_tcp_reset: bool,
}

/// Azure's default of `idleTimeoutInMinutes`.
fn idle_timeout() -> u16 {
    4
}
