//! Faults of a network: one thing is broken that may let a packet arrive.

use super::{apply, set_key, view};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde_json::{Value, json};
use tombolo_proto::config::Access;
use tombolo_proto::id::ResourceId;
use tombolo_topology::topology::Topology;

/// A fault: what is broken, the network with it, and the number of changes that reverse it.
pub(crate) struct Fault {
    pub(crate) what: String,
    pub(crate) broken: Topology,
    pub(crate) reversal: usize,
    /// The resource that the answer must name if it has no repair, because only a person can mend the fault. `None`: there
    /// must be a repair.
    pub(crate) by_hand: Option<String>,
}

/// The network with one property of a resource replaced.
fn with(topology: &Topology, id: &ResourceId, pointer: &str, value: Value) -> Option<Topology> {
    let mut body = view(topology, id)?;
    *body.pointer_mut(pointer)? = value;
    apply(topology, id.as_str(), Some(body), false)
}

/// All faults of a network, in random order.
pub(crate) fn all(topology: &Topology, rng: &mut StdRng) -> Vec<Fault> {
    let mut all = Vec::new();
    let mut add = |what: String, broken: Option<Topology>, reversal: usize| {
        all.extend(broken.map(|broken| Fault {
            what,
            broken,
            reversal,
            by_hand: None,
        }));
    };
    for half in topology.vnets.values().flat_map(|vnet| &vnet.peerings) {
        for (flag, is_set) in [
            ("allowVirtualNetworkAccess", half.allow_virtual_network_access),
            ("allowForwardedTraffic", half.allow_forwarded_traffic),
            ("useRemoteGateways", half.use_remote_gateways),
        ] {
            if is_set {
                let broken = with(topology, &half.id, &format!("/properties/{flag}"), json!(false));
                add(format!("{flag} off at {}", half.id), broken, 1);
            }
        }
        // The remaining half must be put again, or else be deleted if it uses remote gateways, and this one be created (P14).
        if half.allow_virtual_network_access {
            let broken = apply(topology, half.id.as_str(), None, false);
            add(format!("no {}", half.id), broken, 3);
        }
    }
    for nic in topology.nics.values().filter(|nic| nic.enable_ip_forwarding) {
        let id = &nic.envelope.id;
        add(
            format!("{id} does not forward"),
            with(topology, id, "/properties/enableIPForwarding", json!(false)),
            1,
        );
    }
    for table in topology.route_tables.keys() {
        let route = json!({"properties": {"addressPrefix": "10.0.0.0/9", "nextHopType": "None"}});
        add(
            format!("a black hole in {table}"),
            apply(topology, &format!("{table}/routes/hole"), Some(route), false),
            1,
        );
        let broken = with(topology, table, "/properties/disableBgpRoutePropagation", json!(true));
        add(format!("no propagation in {table}"), broken, 1);
    }
    for connection in topology.connections.values() {
        let id = &connection.envelope.id;
        let broken = set_key(topology, id, "another");
        add(format!("another key of {id}"), broken, 1);
        // The object must be created again, and get the key of its counterpart.
        add(format!("no {id}"), apply(topology, id.as_str(), None, false), 2);
        let broken = with(topology, id, "/properties/enableBgp", json!(false));
        add(format!("enableBgp off at {id}"), broken, 1);
    }
    for group in topology.network_security_groups.values() {
        for rule in group.security_rules.iter().filter(|rule| rule.access == Access::Allow) {
            let broken = apply(topology, rule.id.as_str(), None, false);
            add(format!("no {}", rule.id), broken, 1);
        }
        let group = &group.envelope.id;
        for direction in ["Inbound", "Outbound"] {
            let rule = json!({"properties": {
                "priority": rng.random_range(101..4000), "direction": direction, "access": "Deny", "protocol": "*",
                "sourceAddressPrefix": "*", "sourcePortRange": "*", "destinationAddressPrefix": "*", "destinationPortRange": "*",
            }});
            let id = format!("{group}/securityRules/fault");
            add(
                format!("{direction} deny in {group}"),
                apply(topology, &id, Some(rule), false),
                1,
            );
        }
    }
    for balancer in topology.load_balancers.values() {
        let id = &balancer.envelope.id;
        for number in 0..balancer.rules.len() {
            let place = format!("/properties/loadBalancingRules/{number}/properties/backendAddressPool");
            let broken = with(topology, id, &place, Value::Null);
            add(format!("rule {number} of {id} has no pool"), broken, 1);
        }
        if let Some(mut body) = view(topology, id) {
            body["properties"]["loadBalancingRules"] = json!([]);
            let broken = apply(topology, id.as_str(), Some(body), false);
            add(format!("no rules in {id}"), broken, 1);
        }
        for pool in &balancer.pools {
            let mut body = view(topology, &pool.id).unwrap_or_default();
            let addresses = body.pointer_mut("/properties/loadBalancerBackendAddresses");
            for address in addresses.and_then(Value::as_array_mut).into_iter().flatten() {
                address["properties"]["adminState"] = json!("Down");
            }
            let broken = apply(topology, pool.id.as_str(), Some(body), false);
            add(format!("all of {} down", pool.id), broken, 1);
        }
    }
    for pool in topology.load_balancers.values().flat_map(|balancer| &balancer.pools) {
        all.extend(emptied(topology, &pool.id).map(|broken| Fault {
            what: format!("no members of {}", pool.id),
            broken,
            reversal: 1,
            by_hand: Some(pool.id.name().to_owned()),
        }));
    }
    all.shuffle(rng);
    all
}

/// The network after all network interfaces have left a back-end pool. `None`: none was in it.
fn emptied(topology: &Topology, pool: &ResourceId) -> Option<Topology> {
    let mut emptied = None;
    for nic in topology.nics.values() {
        let mut configurations = nic.ip_configurations.iter();
        if !configurations.any(|configuration| configuration.load_balancer_pools.contains(pool)) {
            continue;
        }
        let now = emptied.as_ref().unwrap_or(topology);
        let mut body = view(now, &nic.envelope.id)?;
        for configuration in body["properties"]["ipConfigurations"].as_array_mut()? {
            let pools = configuration["properties"]["loadBalancerBackendAddressPools"].as_array_mut();
            if let Some(pools) = pools {
                pools.retain(|shown| shown["id"] != pool.as_str());
            }
        }
        emptied = Some(apply(now, nic.envelope.id.as_str(), Some(body), false)?);
    }
    emptied
}
