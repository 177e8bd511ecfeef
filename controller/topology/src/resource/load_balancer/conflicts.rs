//! Conflicts between rules, inbound NAT rules included: two rules for the same packets to a front end, or two rules that
//! translate packets to the same port of a back end (L3, L9).

use crate::back_ends::{ip_configuration_id, load_balancer_ids};
use crate::draft::Draft;
use crate::path::{Kind, parent_id};
use crate::resource::{BalancedProtocol, LoadBalancer, NetworkInterface, NicIpConfiguration};
use crate::topology::Topology;
use std::collections::{BTreeMap, BTreeSet};
use tombolo_proto::id::ResourceId;

/// A rule of either kind in the checks for conflicts.
#[derive(Clone, Copy)]
struct Forwarded<'b> {
    id: &'b ResourceId,
    kind: Kind,
    protocol: BalancedProtocol,
    port: u16,
}

/// Finds pairs of rules for the same packets. The rules are those of one front end, of one pool, or of one back end.
#[derive(Default)]
struct Ports<'b> {
    by_port: BTreeMap<(BalancedProtocol, u16), Forwarded<'b>>,
    first: Option<Forwarded<'b>>,
    all: Option<Forwarded<'b>>,
}

impl<'b> Ports<'b> {
    /// Adds a rule. Returns an earlier rule for the same protocol and port. A rule for all ports conflicts with every
    /// other one.
    fn add(&mut self, rule: Forwarded<'b>) -> Option<Forwarded<'b>> {
        let is_all = rule.protocol == BalancedProtocol::All;
        let same = self.by_port.insert((rule.protocol, rule.port), rule);
        let found = same.or(self.all).or(self.first.filter(|_| is_all));
        self.first.get_or_insert(rule);
        if is_all {
            self.all.get_or_insert(rule);
        }
        found
    }
}

/// The protocol and back-end port that two rules have in common, for a message.
fn what_is_shared(first: Forwarded<'_>, second: Forwarded<'_>) -> String {
    match (first.protocol, second.protocol) {
        (BalancedProtocol::All, BalancedProtocol::All) => "the same protocol All and backend port 0".to_owned(),
        (a, b) if a == b => format!("the same protocol {a} and backend port {}", second.port),
        (a, b) => format!("the protocols {a} and {b}, of which All is for all backend ports,"),
    }
}

impl Draft<'_> {
    /// Checks that no two rules are for the same protocol and port of one front end.
    pub(super) fn check_front_end_ports(&mut self, new: &LoadBalancer) {
        let mut front_ends: BTreeMap<&ResourceId, Ports<'_>> = BTreeMap::new();
        let rules = new.rules.iter().map(|r| {
            (
                &r.front_end,
                Kind::LoadBalancingRule,
                r.protocol,
                r.front_end_port,
                &r.id,
            )
        });
        let nat_rules = new.nat_rules.iter();
        let nat_rules = nat_rules.map(|r| (&r.front_end, Kind::InboundNatRule, r.protocol, r.front_end_port, &r.id));
        for (front_end, kind, protocol, port, id) in rules.chain(nat_rules) {
            let rule = Forwarded {
                id,
                kind,
                protocol,
                port,
            };
            let Some(first) = front_ends.entry(front_end).or_default().add(rule) else {
                continue;
            };
            let message = format!(
                "The {} {} (protocol {}, frontendPort {}) and the {} {id} (protocol {protocol}, frontendPort {port}) are for the \
                 same packets to front end {front_end}. Give one of them another port or front end. A rule with protocol All is \
                 for all ports (L9).",
                first.kind, first.id, first.protocol, first.port, kind
            );
            self.problems.add("XRulesUseSameFrontendPort", id, message);
        }
    }

    /// Checks that no two rules without floating IP use one port of the same back ends.
    pub(super) fn check_back_end_ports(&mut self, new: &LoadBalancer) {
        let mut pools: BTreeMap<&ResourceId, Ports<'_>> = BTreeMap::new();
        for rule in new.rules.iter().filter(|r| !r.floating_ip) {
            let Some(pool) = rule.pools.first() else { continue };
            let this = Forwarded {
                id: &rule.id,
                kind: Kind::LoadBalancingRule,
                protocol: rule.protocol,
                port: rule.back_end_port,
            };
            let Some(first) = pools.entry(pool).or_default().add(this) else {
                continue;
            };
            let message = format!(
                "Load balancing rules {} and {} with floating IP disabled use {}, and must not be used with the same backend \
                 address pool {pool}. Give one of them another backendPort or pool, or set enableFloatingIP.",
                first.id,
                rule.id,
                what_is_shared(first, this)
            );
            self.problems
                .add("RulesUseSameBackendPortProtocolAndPool", &rule.id, message);
        }
    }

    /// Checks a new or changed load balancer: no two rules translate packets to the same port of an ip configuration that
    /// refers to it. One of the two may belong to another load balancer.
    pub(super) fn check_shared_back_ends(&mut self, new: &LoadBalancer) {
        let refers = |nic: &&NetworkInterface| load_balancer_ids(nic).contains(&new.envelope.id);
        let nics = self.topology.nics.values().map(|nic| &**nic).filter(refers);
        let (mut checked, mut found) = (BTreeSet::new(), BTreeMap::new());
        for nic in nics {
            for configuration in &nic.ip_configurations {
                // Most network interfaces of a pool have the same references. It is enough to check one of them.
                if checked.insert((&configuration.load_balancer_pools, &configuration.inbound_nat_rules)) {
                    collect_shared(&self.topology, Some(new), nic, configuration, &mut found);
                }
            }
        }
        let is_own = |rule: &ResourceId| parent_id(rule) == new.envelope.id;
        for ((first, second), message) in found {
            // Two rules of other load balancers are not the subject of this change.
            if let Some(own) = [&second, &first].into_iter().find(|rule| is_own(rule)) {
                self.problems.add(SHARED, own, message);
            }
        }
    }

    /// Checks a network interface, which is in the draft: no two rules translate packets to the same port of one of its ip
    /// configurations.
    pub(super) fn check_shared_back_ends_of(&mut self, nic: &NetworkInterface) {
        let mut found = BTreeMap::new();
        for configuration in &nic.ip_configurations {
            collect_shared(&self.topology, None, nic, configuration, &mut found);
        }
        for message in found.into_values() {
            self.problems.add(SHARED, &nic.envelope.id, message);
        }
    }
}

/// Azure's code for two rules that use one port of an ip configuration. All load balancers here are of one type, internal.
const SHARED: &str = "RulesOfSameLoadBalancerTypeUseSameBackendPortProtocolAndIPConfig";

/// Adds the pairs of rules without floating IP that translate packets to the same port of an ip configuration, each with a
/// message. `changed`: a load balancer that takes the place of the one in the topology. Two rules of one pool are left
/// out: [`Draft::check_back_end_ports`] finds them.
fn collect_shared(
    topology: &Topology,
    changed: Option<&LoadBalancer>,
    nic: &NetworkInterface,
    configuration: &NicIpConfiguration,
    found: &mut BTreeMap<(ResourceId, ResourceId), String>,
) {
    let balancer = |child: &ResourceId| {
        let id = parent_id(child);
        let own = changed.filter(|balancer| balancer.envelope.id == id);
        own.or_else(|| topology.load_balancers.get(&id).map(|balancer| &**balancer))
    };
    let of_pool = |pool: &ResourceId| {
        let rules = balancer(pool).into_iter().flat_map(|balancer| &balancer.rules);
        let rules = rules.filter(|rule| !rule.floating_ip && rule.pools.contains(pool));
        let rules = rules.map(|rule| Forwarded {
            id: &rule.id,
            kind: Kind::LoadBalancingRule,
            protocol: rule.protocol,
            port: rule.back_end_port,
        });
        rules.collect::<Vec<_>>()
    };
    let of_nat_rule = |id: &ResourceId| {
        let rules = balancer(id).into_iter().flat_map(|balancer| &balancer.nat_rules);
        let rules = rules.filter(|rule| !rule.floating_ip && rule.id == *id);
        let rules = rules.map(|rule| Forwarded {
            id: &rule.id,
            kind: Kind::InboundNatRule,
            protocol: rule.protocol,
            port: rule.back_end_port,
        });
        rules.collect::<Vec<_>>()
    };
    let pools = configuration.load_balancer_pools.iter().map(of_pool);
    let nat_rules = configuration.inbound_nat_rules.iter().map(of_nat_rule);
    let (mut ports, mut pool_of) = (Ports::default(), BTreeMap::new());
    for (group, rule) in (0_usize..)
        .zip(pools.chain(nat_rules))
        .flat_map(|(n, rules)| rules.into_iter().map(move |r| (n, r)))
    {
        pool_of.insert(rule.id, group);
        let Some(first) = ports.add(rule) else { continue };
        if pool_of.get(first.id) == Some(&group) {
            continue;
        }
        let message = format!(
            "Load balancer rules {} and {} belong to load balancers of the same type, use {} with floating IP disabled, and must \
             not be used with the same backend IP {}. Give one of them another backendPort, set enableFloatingIP, or remove the \
             ip configuration from one of them (L3).",
            first.id,
            rule.id,
            what_is_shared(first, rule),
            ip_configuration_id(nic, configuration)
        );
        found.entry((first.id.clone(), rule.id.clone())).or_insert(message);
    }
}
