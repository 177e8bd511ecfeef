//! Changes of load balancers: a rule for the port of the packet.

use super::change::{RepairChange, view};
use super::stopped::{Candidate, Stopped};
use crate::resource::LoadBalancer;
use serde_json::{Value, json};
use tombolo_proto::fabric::Protocol;

pub(super) fn candidates(stopped: &Stopped<'_>) -> Vec<Candidate> {
    if stopped.stop.reason != "no_balancing_rule" {
        return Vec::new();
    }
    let balancers = stopped.topology.load_balancers.values();
    balancers
        .filter_map(|balancer| with_rule(stopped, balancer))
        .map(Candidate::from)
        .collect()
}

/// Adds a load-balancing rule for the packet's port to the balancer, if it has the front end. The rule has the pool and the
/// probe of another rule of this front end, or the first ones.
fn with_rule(stopped: &Stopped<'_>, balancer: &LoadBalancer) -> Option<RepairChange> {
    let front_end = balancer.front_ends.iter().find(|f| f.address == stopped.destination)?;
    let port = stopped.port?;
    let protocol = match stopped.explanation.protocol {
        Protocol::Tcp => "Tcp",
        Protocol::Udp => "Udp",
        Protocol::Icmp => return None,
    };
    let pool = balancer.pools.first()?;
    let name = format!("{}-{port}", protocol.to_ascii_lowercase());
    let mut properties = json!({
        "frontendIPConfiguration": {"id": front_end.id}, "backendAddressPool": {"id": pool.id},
        "protocol": protocol, "frontendPort": port, "backendPort": port,
    });
    if let (Some(probe), Some(properties)) = (balancer.probes.first(), properties.as_object_mut()) {
        properties.insert("probe".into(), json!({"id": probe.id}));
    }
    let id = &balancer.envelope.id;
    let mut body = view(stopped.topology, id)?;
    let rules: &mut Vec<Value> = body.pointer_mut("/properties/loadBalancingRules")?.as_array_mut()?;
    rules.push(json!({"name": name, "properties": properties}));
    let text = format!(
        "add the rule {name} to the load balancer {}, to the pool {}",
        id.name(),
        pool.id.name()
    );
    Some(RepairChange::put(text, id, body))
}
