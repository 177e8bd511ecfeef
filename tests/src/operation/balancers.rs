//! Load balancers as data, and their random generator.

use super::universe::VnetPlan;
use super::{Operation, Protocol};
use rand::Rng;
use rand::seq::IndexedRandom;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The port of the front end of each inbound NAT rule, and the port of its target.
pub const NAT_PORTS: (u16, u16) = (7, 22);

/// An internal load balancer with one pool, `pool`, and one probe, `probe`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balancer {
    /// The VNet of front ends and pool. The load balancer has the region of this VNet.
    pub vnet: String,
    /// The subnet of the front ends.
    pub subnet: String,
    /// The SKU: `Standard`, or else `Basic`.
    pub is_standard: bool,
    /// The addresses of the front ends, which have the names `fe0`, `fe1` and so on.
    pub front_ends: Vec<IpAddr>,
    /// The addresses of the pool. Empty: network interfaces name the pool.
    pub addresses: Vec<IpAddr>,
    /// The load-balancing rules. The name of each one says its front end, protocol and port.
    pub rules: Vec<BalancingRule>,
    /// Whether there is an inbound NAT rule `nat` for TCP at the first front end, with the ports [`NAT_PORTS`].
    pub has_nat_rule: bool,
    /// Whether `noHealthyBackendsBehavior` of the probe is `AllProbedUp`.
    pub all_up_when_all_down: bool,
}

/// A load-balancing rule (L3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BalancingRule {
    /// The position of the front end.
    pub front_end: usize,
    /// TCP or UDP. None: `All`, for HA ports (L9).
    pub protocol: Option<Protocol>,
    /// The port of the front end; 0 with `All`.
    pub port: u16,
    /// The port of the back ends; 0 with `All`.
    pub back_end_port: u16,
    /// `loadDistribution` (L4).
    pub distribution: Distribution,
    /// `enableFloatingIP`.
    pub floating_ip: bool,
    /// `idleTimeoutInMinutes`, 4 to 30.
    pub idle_timeout: u8,
    /// Whether the rule has the probe.
    pub is_probed: bool,
}

/// The fields of a packet by which a rule chooses the back end (L4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distribution {
    /// Addresses, ports and protocol.
    Default,
    /// The addresses.
    SourceIp,
    /// Addresses and protocol.
    SourceIpProtocol,
}

impl BalancingRule {
    /// The name of the rule.
    #[must_use]
    pub fn name(&self) -> String {
        let protocol = match self.protocol {
            Some(Protocol::Tcp) => "tcp",
            Some(Protocol::Udp) => "udp",
            Some(Protocol::Icmp) => "icmp",
            None => "all",
        };
        format!("fe{}-{protocol}-{}", self.front_end, self.port)
    }
}

/// The properties of a VNet's load balancer that stay the same.
#[derive(Debug, Clone)]
pub struct BalancerPlan {
    /// The name of the load balancer.
    pub name: String,
    /// Whether its only rule is for HA ports (L9).
    pub is_for_appliances: bool,
    /// Whether the pool has addresses. Otherwise network interfaces name it with all their addresses.
    pub by_address: bool,
    /// Whether the last NICs of machines are back ends. Otherwise the first ones are.
    of_last_nics: bool,
    is_standard: bool,
    /// The subnet of the front ends.
    subnet: &'static str,
    /// The addresses of the front ends.
    pub front_ends: Vec<IpAddr>,
}

impl BalancerPlan {
    /// Draws the plan for the VNet with these ranges. `slot` is the second octet of the VNet's IPv4 ranges, and `is_dual` tells
    /// whether the VNet has IPv6 ranges.
    pub(super) fn draw(vnet: &str, (slot, is_dual): (u8, bool), rng: &mut impl Rng) -> Self {
        let is_for_appliances = rng.random_bool(0.35);
        let is_standard = is_for_appliances || rng.random_bool(0.35);
        let v6 = is_dual && rng.random_bool(0.5);
        // Two rules for all ports cannot have the same pool.
        let families: &[bool] = match (is_for_appliances, v6) {
            (true, v6) => &[v6],
            (false, true) => &[false, true],
            (false, false) if rng.random_bool(0.5) => &[false, false],
            (false, false) => &[false],
        };
        // The host of one machine may serve the subnet `b`.
        let (subnet, third) = if rng.random_bool(0.3) { ("b", 1) } else { ("a", 0) };
        Self {
            name: format!("lb-{vnet}"),
            is_for_appliances,
            by_address: is_standard && rng.random_bool(0.3),
            of_last_nics: rng.random_bool(0.3),
            is_standard,
            subnet,
            front_ends: families
                .iter()
                .zip(200..)
                .map(|(v6, host)| match v6 {
                    false => IpAddr::V4(Ipv4Addr::new(10, slot, third, host)),
                    true => {
                        let last = Ipv6Addr::new(0xfd00, slot.into(), 0, third.into(), 0, 0, 0, host.into());
                        IpAddr::V6(last)
                    }
                })
                .collect(),
        }
    }

    /// The NIC of a machine with these NICs that may be a back end.
    pub(super) fn nic_of<'n>(&self, nics: &'n [String]) -> Option<&'n String> {
        match self.of_last_nics {
            true => nics.last(),
            false => nics.first(),
        }
    }

    /// The addresses that can be back ends: those of a NIC of each machine.
    pub(super) fn back_ends(&self, plan: &VnetPlan) -> Vec<IpAddr> {
        let of_machine = |nics: &Vec<String>| {
            let mut all = plan.nics.iter();
            let nic = all.find(|(name, _, _)| Some(name) == self.nic_of(nics));
            nic.map(|(_, _, addresses)| addresses.clone()).unwrap_or_default()
        };
        plan.vms.iter().flat_map(|(_, nics, _)| of_machine(nics)).collect()
    }

    /// Draws the creation or a change of the load balancer of a VNet.
    pub(super) fn put(&self, plan: &VnetPlan, rng: &mut impl Rng) -> Operation {
        let mut addresses = self.back_ends(plan);
        addresses.retain(|_| rng.random_bool(0.8));
        if addresses.is_empty() {
            addresses = self.back_ends(plan);
        }
        Operation::PutBalancer {
            balancer: self.name.clone(),
            body: Balancer {
                vnet: plan.name.clone(),
                subnet: self.subnet.into(),
                is_standard: self.is_standard,
                front_ends: self.front_ends.clone(),
                addresses: if self.by_address { addresses } else { Vec::new() },
                rules: self.rules(rng),
                has_nat_rule: !self.is_for_appliances,
                all_up_when_all_down: rng.random_bool(0.15),
            },
        }
    }

    /// Draws rules that do not conflict with each other (L3).
    fn rules(&self, rng: &mut impl Rng) -> Vec<BalancingRule> {
        let mut places = Vec::new();
        if self.is_for_appliances {
            places.push((0, None, 0));
        } else {
            for front_end in 0..self.front_ends.len() {
                for port in [22, 80, 443] {
                    places.push((front_end, Some(Protocol::Tcp), port));
                    places.push((front_end, Some(Protocol::Udp), port));
                }
            }
            places.retain(|_| rng.random_bool(0.7));
        }
        let mut rule = |(front_end, protocol, port): (usize, Option<Protocol>, u16)| {
            let floating_ip = rng.random_bool(0.2);
            // Two rules cannot use the same port of a network interface.
            let is_nats = protocol == Some(Protocol::Tcp) && port == NAT_PORTS.1;
            let base = if front_end == 0 { 8000 } else { 9000 };
            BalancingRule {
                front_end,
                protocol,
                port,
                back_end_port: match port {
                    0 => 0,
                    _ if floating_ip || front_end == 0 && rng.random_bool(0.3) && !is_nats => port,
                    _ => base + port,
                },
                distribution: *[
                    Distribution::Default,
                    Distribution::Default,
                    Distribution::SourceIp,
                    Distribution::SourceIpProtocol,
                ]
                .choose(rng)
                .unwrap_or(&Distribution::Default),
                floating_ip,
                idle_timeout: rng.random_range(4..=30),
                is_probed: rng.random_bool(0.8),
            }
        };
        places.into_iter().map(&mut rule).collect()
    }
}
