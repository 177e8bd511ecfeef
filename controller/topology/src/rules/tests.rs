//! Builds a topology for the tests of the rules. The tests change it by requests such as an ARM client sends.

mod bandwidth;
mod circuits;
mod exchange;
mod express_route;
mod fabric;
mod flow_logs;
mod gateways;
mod load_balancer_conflicts;
mod load_balancer_members;
mod load_balancer_migration;
mod load_balancers;
mod load_balancing_rules;
mod metering;
mod nics;
mod peerings;
mod property;
mod routes;
mod security_groups;
mod site_probe;
mod sites;
mod stock_clients;
mod stored_state;
mod troubleshoot;
mod unsupported;
mod views;
mod vnets;

use crate::change::{Change, Outcome, Rejection};
use crate::path::ArmPath;
use crate::resource::{Agent, Binding, JoinToken, Reach};
use crate::topology::{AgentStatuses, Topology};
use serde_json::{Value, json};
use tombolo_proto::id::{AgentId, PublicKey, ResourceId};
use uuid::Uuid;

/// The subscription of all resources in these tests.
pub(super) const SUBSCRIPTION: &str = "00000000-0000-0000-0000-000000000001";

/// A topology, and the number of GUIDs that have been used for it.
pub(super) struct World {
    pub(super) now: Topology,
    pub(super) guids: u128,
}

/// The id of a resource in group `lab`, e.g. `net("virtualNetworks/hub")`.
pub(super) fn net(tail: &str) -> String {
    format!("/subscriptions/{SUBSCRIPTION}/resourceGroups/lab/providers/Microsoft.Network/{tail}")
}

/// The id of a VM in group `lab`.
pub(super) fn vm_id(name: &str) -> ResourceId {
    ResourceId::new(format!(
        "/subscriptions/{SUBSCRIPTION}/resourceGroups/lab/providers/Microsoft.Compute/virtualMachines/{name}"
    ))
}

/// The parsed path of an id.
pub(super) fn path(id: &str) -> ArmPath {
    ArmPath::parse(id).unwrap()
}

impl World {
    /// A topology with the resource group `lab`.
    pub(super) fn new() -> Self {
        let mut world = Self {
            now: Topology::default(),
            guids: 0,
        };
        let group = format!("/subscriptions/{SUBSCRIPTION}/resourceGroups/lab");
        world.put(&group, json!({"location": "region1"})).unwrap();
        world
    }

    /// Applies a change. After a refusal the topology is the same as before.
    pub(super) fn apply(&mut self, change: &Change) -> Result<Outcome, Rejection> {
        let guids = &mut self.guids;
        let mut new_guid = || {
            *guids += 1;
            Uuid::from_u128(*guids)
        };
        let outcome = self.now.apply(change, &mut new_guid)?;
        self.now = outcome.topology.clone();
        Ok(outcome)
    }

    /// Sends a PUT, and returns the body that GET shows afterwards.
    pub(super) fn put(&mut self, id: &str, body: Value) -> Result<Value, Rejection> {
        let change = Change::Put {
            path: path(id),
            body,
            if_match: None,
            sync_remote_address_space: false,
        };
        self.apply(&change)?;
        Ok(self.get(id))
    }

    /// Sends a DELETE. True: the item existed.
    pub(super) fn delete(&mut self, id: &str) -> Result<bool, Rejection> {
        let change = Change::Delete {
            path: path(id),
            if_match: None,
        };
        self.apply(&change).map(|o| o.created_or_removed)
    }

    /// The body of an item. `None`: it does not exist.
    pub(super) fn view(&self, id: &str) -> Option<Value> {
        self.now.view(&path(id), &AgentStatuses::default())
    }

    /// The body of an item that exists.
    pub(super) fn get(&self, id: &str) -> Value {
        self.view(id).unwrap_or_else(|| panic!("{id} is not there"))
    }

    /// Sends a PUT of a VNet. The body has no lists of subnets and peerings, so present ones stay.
    pub(super) fn vnet(&mut self, name: &str, prefixes: &[&str]) -> Result<Value, Rejection> {
        let body = json!({"location": "region1", "properties": {"addressSpace": {"addressPrefixes": prefixes}}});
        self.put(&net(&format!("virtualNetworks/{name}")), body)
    }

    /// Sends a PUT of a subnet with one prefix.
    pub(super) fn subnet(&mut self, vnet: &str, name: &str, prefix: &str) -> Result<Value, Rejection> {
        let body = json!({"properties": {"addressPrefix": prefix}});
        self.put(&net(&format!("virtualNetworks/{vnet}/subnets/{name}")), body)
    }

    /// Sends a PUT of the half from `from` to `to`, named `to-{to}`. `flags`: its other properties.
    pub(super) fn peer(&mut self, from: &str, to: &str, flags: Value) -> Result<Value, Rejection> {
        self.peer_synced(from, to, flags, false)
    }

    /// Sends a PUT of a half like [`Self::peer`]. `sync`: the query parameter `syncRemoteAddressSpace`.
    pub(super) fn peer_synced(&mut self, from: &str, to: &str, flags: Value, sync: bool) -> Result<Value, Rejection> {
        let mut properties = json!({"remoteVirtualNetwork": {"id": net(&format!("virtualNetworks/{to}"))}});
        for (name, value) in flags.as_object().unwrap() {
            properties[name] = value.clone();
        }
        let id = half(from, to);
        let change = Change::Put {
            path: path(&id),
            body: json!({"properties": properties}),
            if_match: None,
            sync_remote_address_space: sync,
        };
        self.apply(&change)?;
        Ok(self.get(&id))
    }

    /// Creates both halves of a peering.
    pub(super) fn peer_both(&mut self, a: &str, b: &str) {
        self.peer(a, b, json!({})).unwrap();
        self.peer(b, a, json!({})).unwrap();
    }

    /// `peeringState` and `peeringSyncLevel` of the half from `from` to `to`.
    pub(super) fn state(&self, from: &str, to: &str) -> (String, String) {
        let body = self.get(&half(from, to));
        let text = |name: &str| body["properties"][name].as_str().unwrap().to_owned();
        (text("peeringState"), text("peeringSyncLevel"))
    }

    /// Creates a VPN gateway named `{vnet}-gw`, and its `GatewaySubnet` with `prefix`.
    pub(super) fn gateway(&mut self, vnet: &str, prefix: &str) -> Result<Value, Rejection> {
        self.subnet(vnet, "GatewaySubnet", prefix)?;
        self.put(
            &net(&format!("virtualNetworkGateways/{vnet}-gw")),
            gateway_body(vnet, json!({})),
        )
    }

    /// Creates a local network gateway. `more`: further properties.
    pub(super) fn site(&mut self, name: &str, prefixes: &[&str], more: Value) -> Result<Value, Rejection> {
        let properties = with(json!({"localNetworkAddressSpace": {"addressPrefixes": prefixes}}), more);
        let body = json!({"location": "region1", "properties": properties});
        self.put(&net(&format!("localNetworkGateways/{name}")), body)
    }

    /// Creates an IPsec connection from `{vnet}-gw` to a site. `more`: further properties.
    pub(super) fn connect_site(&mut self, name: &str, vnet: &str, site: &str, more: Value) -> Result<Value, Rejection> {
        let properties = json!({
            "connectionType": "IPSec",
            "virtualNetworkGateway1": {"id": net(&format!("virtualNetworkGateways/{vnet}-gw"))},
            "localNetworkGateway2": {"id": net(&format!("localNetworkGateways/{site}")), "properties": {"x": 1}},
        });
        let body = json!({"location": "region1", "properties": with(properties, more)});
        self.put(&net(&format!("connections/{name}")), body)
    }

    /// Creates an ExpressRoute gateway named `{vnet}-er`, and its `GatewaySubnet` with `prefix`.
    pub(super) fn express_gateway(&mut self, vnet: &str, prefix: &str) -> Result<Value, Rejection> {
        self.subnet(vnet, "GatewaySubnet", prefix)?;
        let body = gateway_body(vnet, json!({"gatewayType": "ExpressRoute"}));
        self.put(&net(&format!("virtualNetworkGateways/{vnet}-er")), body)
    }

    /// Creates a circuit with a private peering over the lines 192.168.`third`.16/30 and 192.168.`third`.20/30.
    pub(super) fn circuit(&mut self, name: &str, third: u8) -> Result<Value, Rejection> {
        let peering = json!({"name": "AzurePrivatePeering", "properties": peering_properties(third)});
        let body = json!({"location": "region1", "properties": {"peerings": [peering]}});
        self.put(&net(&format!("expressRouteCircuits/{name}")), body)
    }

    /// Creates an ExpressRoute connection from `{vnet}-er` to a circuit. `more`: further properties.
    pub(super) fn link(&mut self, name: &str, vnet: &str, circuit: &str, more: Value) -> Result<Value, Rejection> {
        let properties = json!({
            "connectionType": "ExpressRoute",
            "virtualNetworkGateway1": {"id": net(&format!("virtualNetworkGateways/{vnet}-er"))},
            "peer": {"id": net(&format!("expressRouteCircuits/{circuit}"))},
        });
        let body = json!({"location": "region1", "properties": with(properties, more)});
        self.put(&net(&format!("connections/{name}")), body)
    }

    /// Sends a PUT of a NIC with one ip configuration, static if `address` is given. `subnet`: `vnet/subnets/name`.
    pub(super) fn nic(&mut self, name: &str, subnet: &str, address: Option<&str>) -> Result<Value, Rejection> {
        let method = if address.is_some() { "Static" } else { "Dynamic" };
        let body = json!({"location": "region1", "properties": {"ipConfigurations": [{"name": "ipconfig1", "properties": {
            "subnet": {"id": net(&format!("virtualNetworks/{subnet}"))},
            "privateIPAddress": address,
            "privateIPAllocationMethod": method,
        }}]}});
        self.put(&net(&format!("networkInterfaces/{name}")), body)
    }

    /// Creates the connection object from `{from}-gw` to `{to}-gw`.
    pub(super) fn connect(&mut self, name: &str, from: &str, to: &str) -> Result<Value, Rejection> {
        self.put(
            &net(&format!("connections/{name}")),
            connection_body(from, to, json!({"sharedKey": "abc"})),
        )
    }

    /// Creates a token and joins with it.
    pub(super) fn join(&mut self, agent: &str, binding: Binding) -> Result<(), Rejection> {
        let token = token(agent, binding);
        self.apply(&Change::PutToken(token.clone()))?;
        let stored = self.now.tokens[&token.id].binding.clone();
        let change = Change::Join {
            token: token.id,
            agent: agent_of(agent, stored),
        };
        self.apply(&change).map(|_| ())
    }
}

/// The id of the half `to-{to}` of the VNet `from`.
pub(super) fn half(from: &str, to: &str) -> String {
    net(&format!("virtualNetworks/{from}/virtualNetworkPeerings/to-{to}"))
}

/// `properties`, overridden by those of `more`.
pub(super) fn with(mut properties: Value, more: Value) -> Value {
    for (name, value) in more.as_object().unwrap() {
        properties[name] = value.clone();
    }
    properties
}

/// The properties of a private peering over lines in 192.168.`third`.0/24.
pub(super) fn peering_properties(third: u8) -> Value {
    json!({
        "peeringType": "AzurePrivatePeering",
        "peerASN": 65021,
        "primaryPeerAddressPrefix": format!("192.168.{third}.16/30"),
        "secondaryPeerAddressPrefix": format!("192.168.{third}.20/30"),
        "vlanId": 300,
    })
}

/// The body of a gateway with one instance in the `GatewaySubnet` of a VNet. `more` overrides its properties.
pub(super) fn gateway_body(vnet: &str, more: Value) -> Value {
    let properties = json!({"gatewayType": "Vpn", "ipConfigurations": [{"name": "default", "properties": {
        "subnet": {"id": net(&format!("virtualNetworks/{vnet}/subnets/GatewaySubnet"))},
    }}]});
    json!({"location": "region1", "properties": with(properties, more)})
}

/// The body of a `Vnet2Vnet` connection from `{from}-gw` to `{to}-gw`. `more` overrides its properties.
pub(super) fn connection_body(from: &str, to: &str, more: Value) -> Value {
    let end = |vnet: &str| json!({"id": net(&format!("virtualNetworkGateways/{vnet}-gw")), "properties": {"x": 1}});
    let properties = json!({
        "connectionType": "vnet2vnet",
        "virtualNetworkGateway1": end(from),
        "virtualNetworkGateway2": end(to),
    });
    json!({"location": "region1", "properties": with(properties, more)})
}

/// A join token named `token-of-{agent}`.
pub(super) fn token(agent: &str, binding: Binding) -> JoinToken {
    JoinToken {
        id: format!("token-of-{agent}"),
        hash: "00".to_owned(),
        agent: AgentId::new(agent).unwrap(),
        binding,
        expires: 0,
    }
}

/// An agent with an endpoint, and with keys that depend on its name.
pub(super) fn agent_of(name: &str, binding: Binding) -> Agent {
    let mut key = [0; 32];
    for (slot, byte) in key.iter_mut().zip(name.bytes()) {
        *slot = byte;
    }
    Agent {
        id: AgentId::new(name).unwrap(),
        binding,
        public_key: PublicKey(key),
        certificate_key: format!("cert-{name}"),
        reach: Reach::at(vec!["192.0.2.1:4500".parse().unwrap()]),
        revoked: false,
    }
}

/// The codes of a refusal's problems, in order.
pub(super) fn codes<T: std::fmt::Debug>(result: Result<T, Rejection>) -> Vec<&'static str> {
    result.unwrap_err().problems.iter().map(|p| p.code).collect()
}
