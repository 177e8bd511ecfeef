//! A new load-balancing rule for a packet.
//!
//! Only the servers know at which port they listen. The rule has the port of the front end first. If the packet then does not
//! arrive, or the rule is refused, it has a port that the configuration names: one that a security group of a back end
//! admits, or that of a probe.

use super::super::change::{RepairChange, view};
use super::super::stopped::{Candidate, Stopped};
use super::front::Front;
use crate::path::parent_id;
use crate::resource::{LoadBalancerSku, RulePorts, pool_members};
use crate::topology::Topology;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use tombolo_proto::config::{Access, Direction, RuleProtocol};
use tombolo_proto::fabric::Protocol;
use tombolo_proto::id::ResourceId;

/// Largest number of ports of back ends that are tried for one pool.
const MAX_PORTS: usize = 8;

/// The ports and the translation of a new rule.
#[derive(Clone, Copy)]
struct Kind {
    protocol: &'static str,
    port: u16,
    back_end_port: u16,
    floating_ip: bool,
}

/// Adds a rule for the packet to the front end. The rule has the pool and the probe of another rule of this front end. If there
/// is none, each pool is tried, with the first probe.
pub(super) fn candidates(stopped: &Stopped<'_>, front: &Front<'_>) -> Vec<Candidate> {
    let balancer = front.balancer;
    let like = front.rules().find(|rule| !rule.pools.is_empty());
    let (pools, probe): (Vec<&ResourceId>, _) = match like {
        Some(rule) => (rule.pools.iter().collect(), rule.probe.as_ref()),
        None => (
            balancer.pools.iter().map(|pool| &pool.id).collect(),
            balancer.probes.first().map(|probe| &probe.id),
        ),
    };
    let mut all = Vec::new();
    for pool in pools {
        let rules = kinds(stopped, front, pool).into_iter();
        let rules = rules.filter_map(|kind| new_rule(stopped, front, &kind, (pool, probe)));
        all.extend(Candidate::first_of(rules.map(|rule| vec![rule])));
    }
    all
}

/// The rules that could let the packet on, the most likely one first.
fn kinds(stopped: &Stopped<'_>, front: &Front<'_>, pool: &ResourceId) -> Vec<Kind> {
    let (protocol, name) = match stopped.explanation.protocol {
        Protocol::Tcp => (RuleProtocol::Tcp, "Tcp"),
        Protocol::Udp => (RuleProtocol::Udp, "Udp"),
        Protocol::Icmp => return Vec::new(),
    };
    let mut all = Vec::new();
    let for_all_ports = Kind {
        protocol: "All",
        port: 0,
        back_end_port: 0,
        floating_ip: false,
    };
    let takes_all_ports = front.balancer.sku == LoadBalancerSku::Standard;
    // Appliances take all ports (L9), in both directions.
    if front.is_appliance && takes_all_ports {
        all.push(for_all_ports);
    }
    let Some(port) = stopped.port.filter(|_| !stopped.is_reply) else {
        return all;
    };
    // No other rule can be for port 0.
    if port == 0 {
        all.extend((all.is_empty() && takes_all_ports).then_some(for_all_ports));
        return all;
    }
    let to = |back_end_port, floating_ip| Kind {
        protocol: name,
        port,
        back_end_port,
        floating_ip,
    };
    all.push(to(port, false));
    let members = pool_members(stopped.topology, pool);
    let nics: BTreeSet<&ResourceId> = members.iter().filter_map(|member| member.nic.as_ref()).collect();
    let mut ports: BTreeSet<u16> = front.balancer.probes.iter().map(|probe| probe.port).collect();
    for nic in nics {
        ports.extend(ports_admitted(stopped.topology, nic, protocol));
    }
    ports.remove(&port);
    all.extend(ports.into_iter().take(MAX_PORTS).map(|other| to(other, false)));
    all.push(to(port, true));
    all
}

/// The ports that the security groups of a network interface and of its subnets name in rules that admit this protocol. Of
/// a range: its first port.
fn ports_admitted(topology: &Topology, nic: &ResourceId, protocol: RuleProtocol) -> Vec<u16> {
    let Some(nic) = topology.nics.get(nic) else {
        return Vec::new();
    };
    let subnets = nic.ip_configurations.iter().filter_map(|configuration| {
        let vnet = topology.vnets.get(&parent_id(&configuration.subnet))?;
        vnet.subnets.iter().find(|subnet| subnet.id == configuration.subnet)
    });
    let of_subnets = subnets.filter_map(|subnet| subnet.network_security_group.as_ref());
    let groups = of_subnets.chain(&nic.network_security_group);
    let rules = groups
        .filter_map(|group| topology.network_security_groups.get(group))
        .flat_map(|group| &group.security_rules);
    let admits = rules.filter(|rule| {
        let is_for = rule.protocol == protocol || rule.protocol == RuleProtocol::Any;
        is_for && rule.direction == Direction::Inbound && rule.access == Access::Allow
    });
    let texts = admits.flat_map(|rule| match &rule.destination.ports {
        RulePorts::Range(text) => std::slice::from_ref(text),
        RulePorts::Ranges(texts) => texts.as_slice(),
    });
    let first = |text: &String| text.split('-').next()?.trim().parse().ok();
    texts.filter_map(first).filter(|port| *port > 0).collect()
}

fn new_rule(
    stopped: &Stopped<'_>,
    front: &Front<'_>,
    kind: &Kind,
    (pool, probe): (&ResourceId, Option<&ResourceId>),
) -> Option<RepairChange> {
    let balancer = front.balancer;
    let name = match kind.port {
        0 => "all-ports".to_owned(),
        port => format!("{}-{port}", kind.protocol.to_ascii_lowercase()),
    };
    let is_free = |name: &String| {
        balancer
            .rules
            .iter()
            .all(|rule| !rule.id.name().eq_ignore_ascii_case(name))
    };
    let mut names = std::iter::once(name.clone()).chain((2..1000).map(|n| format!("{name}-{n}")));
    let name = names.find(is_free)?;
    let mut properties = json!({
        "frontendIPConfiguration": {"id": front.front_end.id}, "backendAddressPool": {"id": pool},
        "protocol": kind.protocol, "frontendPort": kind.port, "backendPort": kind.back_end_port,
    });
    if kind.floating_ip {
        properties["enableFloatingIP"] = json!(true);
    }
    if let Some(probe) = probe {
        properties["probe"] = json!({"id": probe});
    }
    let id = &balancer.envelope.id;
    let mut body = view(stopped.topology, id)?;
    let rules: &mut Vec<Value> = body.pointer_mut("/properties/loadBalancingRules")?.as_array_mut()?;
    rules.push(json!({"name": name, "properties": properties}));
    let how = match (kind.port, kind.floating_ip) {
        (0, _) => ", for all ports".to_owned(),
        (_, true) => ", with floating IP".to_owned(),
        (port, false) if kind.back_end_port == port => String::new(),
        _ => format!(", port {} (check that they listen there)", kind.back_end_port),
    };
    let text = format!(
        "add the rule {name} to the load balancer {}, to the servers of the pool {}{how}",
        id.name(),
        pool.name()
    );
    Some(RepairChange::put(text, id, body))
}
