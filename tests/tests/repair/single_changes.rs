//! All changes of one property or resource of a network that could let a packet on, found without the product's search.

use super::{apply, set_key, view};
use serde_json::{Value, json};
use tombolo_proto::config::Direction;
use tombolo_proto::id::ResourceId;
use tombolo_topology::resource::SecurityRule;
use tombolo_topology::topology::Topology;

/// A write: in words, its path, its body (`None`: a deletion), and whether it syncs a peering.
pub(crate) struct Write {
    pub(crate) what: String,
    path: String,
    body: Option<Value>,
    sync: bool,
    /// The shared key to set at the connection `path`.
    key: Option<String>,
}

impl Write {
    /// The network after the write. `None`: it is refused.
    pub(crate) fn applied_to(&self, topology: &Topology) -> Option<Topology> {
        match &self.key {
            Some(key) => set_key(topology, &ResourceId::new(self.path.as_str()), key),
            None => apply(topology, &self.path, self.body.clone(), self.sync),
        }
    }
}

/// The write of a resource with one property replaced.
fn set(topology: &Topology, id: &ResourceId, name: &str, value: Value) -> Option<Write> {
    let mut body = view(topology, id)?;
    let what = format!("{name} of {id}: {value}");
    body["properties"].as_object_mut()?.insert(name.to_owned(), value);
    Some(put(what, id.to_string(), body))
}

fn put(what: String, path: String, body: Value) -> Write {
    Write {
        what,
        path,
        body: Some(body),
        sync: false,
        key: None,
    }
}

fn delete(id: &ResourceId) -> Write {
    Write {
        what: format!("delete {id}"),
        path: id.to_string(),
        body: None,
        sync: false,
        key: None,
    }
}

/// All single changes of a network.
pub(crate) fn all(topology: &Topology) -> Vec<Write> {
    let mut all = Vec::new();
    peerings(topology, &mut all);
    routes(topology, &mut all);
    security(topology, &mut all);
    for nic in topology.nics.values() {
        let forwards = json!(!nic.enable_ip_forwarding);
        all.extend(set(topology, &nic.envelope.id, "enableIPForwarding", forwards));
    }
    for connection in topology.connections.values() {
        let bgp = json!(!connection.enable_bgp);
        all.extend(set(topology, &connection.envelope.id, "enableBgp", bgp));
        for other in topology.connections.values() {
            if let Some(key) = other
                .shared_key
                .clone()
                .filter(|_| other.gateway1 == connection.gateway2)
            {
                let id = connection.envelope.id.to_string();
                let what = format!("the key of {} at {id}", other.envelope.id);
                let mut write = put(what, id, Value::Null);
                write.key = Some(key);
                all.push(write);
            }
        }
    }
    balancers(topology, &mut all);
    all
}

fn balancers(topology: &Topology, all: &mut Vec<Write>) {
    for balancer in topology.load_balancers.values() {
        let id = &balancer.envelope.id;
        for pool in &balancer.pools {
            for number in 0..balancer.rules.len() {
                let mut body = view(topology, id).unwrap_or_default();
                body["properties"]["loadBalancingRules"][number]["properties"]["backendAddressPool"] =
                    json!({"id": pool.id});
                all.push(put(
                    format!("{} to rule {number} of {id}", pool.id),
                    id.to_string(),
                    body,
                ));
            }
            let mut body = view(topology, &pool.id).unwrap_or_default();
            let addresses = body.pointer_mut("/properties/loadBalancerBackendAddresses");
            for address in addresses.and_then(Value::as_array_mut).into_iter().flatten() {
                address["properties"]["adminState"] = json!("None");
            }
            all.push(put(format!("all of {} up", pool.id), pool.id.to_string(), body));
        }
    }
}

fn peerings(topology: &Topology, all: &mut Vec<Write>) {
    for vnet in topology.vnets.values() {
        for half in &vnet.peerings {
            for (name, is_set) in [
                ("allowVirtualNetworkAccess", half.allow_virtual_network_access),
                ("allowForwardedTraffic", half.allow_forwarded_traffic),
                ("allowGatewayTransit", half.allow_gateway_transit),
                ("useRemoteGateways", half.use_remote_gateways),
            ] {
                all.extend(set(topology, &half.id, name, json!(!is_set)));
            }
            if let Some(body) = view(topology, &half.id) {
                let mut sync = put(format!("sync {}", half.id), half.id.to_string(), body);
                sync.sync = true;
                all.push(sync);
            }
            all.push(delete(&half.id));
        }
        for remote in topology.vnets.keys().filter(|remote| **remote != vnet.envelope.id) {
            if vnet.peerings.iter().any(|half| half.remote_vnet == *remote) {
                continue;
            }
            for flags in 0..8 {
                let (forwarded, transit, uses) = (flags & 1 > 0, flags & 2 > 0, flags & 4 > 0);
                let path = format!("{}/virtualNetworkPeerings/new-{}", vnet.envelope.id, remote.name());
                let body = json!({"properties": {
                    "remoteVirtualNetwork": {"id": remote}, "allowVirtualNetworkAccess": true,
                    "allowForwardedTraffic": forwarded, "allowGatewayTransit": transit, "useRemoteGateways": uses,
                }});
                all.push(put(format!("create {path}: {body}"), path, body));
            }
        }
    }
}

fn routes(topology: &Topology, all: &mut Vec<Write>) {
    let forwarding = topology.nics.values().filter(|nic| nic.enable_ip_forwarding);
    let appliances: Vec<_> = forwarding
        .flat_map(|nic| nic.ip_configurations.iter().map(|configuration| configuration.address))
        .collect();
    let prefixes: Vec<_> = topology.vnets.values().flat_map(|vnet| &vnet.address_space).collect();
    for table in topology.route_tables.values() {
        let id = &table.envelope.id;
        let propagates = json!(!table.disable_bgp_route_propagation);
        all.extend(set(topology, id, "disableBgpRoutePropagation", propagates));
        for route in &table.routes {
            all.push(delete(&ResourceId::new(format!("{id}/routes/{}", route.id.name()))));
        }
        for prefix in &prefixes {
            for appliance in appliances.iter().filter(|a| a.is_ipv4() == prefix.addr().is_ipv4()) {
                let path = format!("{id}/routes/new-{}", prefix.to_string().replace(['/', ':'], "-"));
                let body = json!({"properties": {
                    "addressPrefix": prefix, "nextHopType": "VirtualAppliance", "nextHopIpAddress": appliance,
                }});
                all.push(put(format!("{prefix} over {appliance} in {id}"), path, body));
            }
            let path = format!("{id}/routes/new-{}", prefix.to_string().replace(['/', ':'], "-"));
            let body = json!({"properties": {"addressPrefix": prefix, "nextHopType": "VirtualNetworkGateway"}});
            all.push(put(format!("{prefix} over the gateway in {id}"), path, body));
        }
    }
    for subnet in topology.vnets.values().flat_map(|vnet| &vnet.subnets) {
        for (name, is_set) in [
            ("routeTable", subnet.route_table.is_some()),
            ("networkSecurityGroup", subnet.network_security_group.is_some()),
        ] {
            if is_set {
                all.extend(set(topology, &subnet.id, name, Value::Null));
            }
        }
    }
}

fn security(topology: &Topology, all: &mut Vec<Write>) {
    for group in topology.network_security_groups.values() {
        let id = &group.envelope.id;
        for rule in &group.security_rules {
            all.push(delete(&ResourceId::new(format!(
                "{id}/securityRules/{}",
                rule.id.name()
            ))));
        }
        for (direction, name) in [(Direction::Inbound, "Inbound"), (Direction::Outbound, "Outbound")] {
            let is_taken = |priority: &u16| {
                let mut rules = group.security_rules.iter();
                rules.any(|rule: &SecurityRule| rule.direction == direction && rule.priority == *priority)
            };
            let Some(priority) = (100..4096).find(|priority| !is_taken(priority)) else {
                continue;
            };
            let path = format!("{id}/securityRules/new-{name}");
            let body = json!({"properties": {
                "priority": priority, "direction": name, "access": "Allow", "protocol": "*",
                "sourceAddressPrefix": "*", "sourcePortRange": "*", "destinationAddressPrefix": "*", "destinationPortRange": "*",
            }});
            all.push(put(format!("allow all {name} in {id}"), path, body));
        }
    }
    for nic in topology
        .nics
        .values()
        .filter(|nic| nic.network_security_group.is_some())
    {
        all.extend(set(topology, &nic.envelope.id, "networkSecurityGroup", Value::Null));
    }
}
