//! Writes the ARM bodies of items, in the JSON types that strict clients require.

use crate::back_ends::BackEnds;
use crate::path::{Kind, child_id, is_child_of, parent_id};
use crate::resource::{Agent, Binding, Envelope, ResourceGroup};
use crate::topology::{AgentStatuses, Topology};
use ipnet::IpNet;
use serde_json::{Map, Value, json};
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_proto::id::ResourceId;
use uuid::Uuid;

/// The topology and the agents' statuses from which the bodies of items are written. Some members list the users of an
/// item, such as the ip configurations in a subnet. These users are collected once, when the first body needs them.
pub(crate) struct Views<'t> {
    pub(crate) topology: &'t Topology,
    pub(crate) statuses: &'t AgentStatuses,
    /// The VNet whose subnets' users are collected. `None`: all VNets.
    only: Option<ResourceId>,
    users: OnceCell<Users>,
    vms: OnceCell<BTreeMap<ResourceId, Arc<Agent>>>,
    endpoints: OnceCell<Endpoints>,
    back_ends: OnceCell<BackEnds>,
}

/// The agents of network interfaces and of instances of gateways, which report underlay addresses for them. Revoked
/// agents are left out.
#[derive(Default)]
pub(crate) struct Endpoints(BTreeMap<ResourceId, Arc<Agent>>);

impl Endpoints {
    /// Collects the addresses of all agents.
    pub(crate) fn of(topology: &Topology) -> Self {
        let mut all = BTreeMap::new();
        for agent in topology.agents.values().filter(|a| !a.revoked) {
            match &agent.binding {
                Binding::Vm { nics, .. } => all.extend(nics.iter().map(|nic| (nic.clone(), Arc::clone(agent)))),
                Binding::Gateway {
                    gateway,
                    ip_configuration,
                } => {
                    let instance = child_id(gateway, "ipConfigurations", ip_configuration);
                    all.insert(instance, Arc::clone(agent));
                }
                Binding::Edge { .. } | Binding::Site { .. } => {}
            }
        }
        Self(all)
    }

    /// The best address behind an ip configuration of a network interface or a gateway for which `wanted` is true.
    /// `None`: no agent has reported one.
    pub(crate) fn of_user(&self, ip_configuration: &ResourceId, wanted: impl Fn(&IpAddr) -> bool) -> Option<IpAddr> {
        let nic = || self.0.get(&parent_id(ip_configuration));
        let agent = self.0.get(ip_configuration).or_else(nic)?;
        agent.reach.endpoints.iter().map(|e| e.ip()).find(wanted)
    }
}

/// The ids of the ip configurations and front ends that use each subnet and each public address.
#[derive(Default)]
struct Users {
    subnets: BTreeMap<ResourceId, Vec<String>>,
    public_ips: BTreeMap<ResourceId, String>,
}

impl Users {
    /// Adds the ip configuration `id` of a NIC or gateway, or a front end of a load balancer. A public address has one
    /// user; if two are added, the last one is kept.
    fn add(&mut self, id: String, subnet: &ResourceId, public_ip: Option<&ResourceId>) {
        if let Some(public_ip) = public_ip {
            self.public_ips.insert(public_ip.clone(), id.clone());
        }
        self.subnets.entry(subnet.clone()).or_default().push(id);
    }
}

/// An etag in the format of HTTP and ARM: `W/"…"`.
pub(crate) fn weak_etag(etag: Uuid) -> String {
    format!("W/\"{etag}\"")
}

/// A reference to another resource: `{"id": "…"}`.
pub(crate) fn reference(id: impl ToString) -> Value {
    json!({"id": id.to_string()})
}

/// References to other resources, in the given order: `[{"id": "…"}]`.
pub(crate) fn references<'i>(ids: impl IntoIterator<Item = &'i ResourceId>) -> Value {
    ids.into_iter().map(reference).collect()
}

/// An address space in ARM's format, `{"addressPrefixes": […]}`, in the given order.
pub(crate) fn address_space(prefixes: &[IpNet]) -> Value {
    json!({"addressPrefixes": prefixes})
}

/// The value of `privateIPAddressVersion` for an address: `IPv4` or `IPv6`.
pub(crate) fn address_version(address: IpAddr) -> &'static str {
    if address.is_ipv6() { "IPv6" } else { "IPv4" }
}

/// The value of `privateIPAllocationMethod`: `Static` if the request asked for a static address, else `Dynamic`.
pub(crate) fn allocation_method(is_static: bool) -> &'static str {
    if is_static { "Static" } else { "Dynamic" }
}

/// An object with all members of `own`, and with those members of `echoed` that `own` lacks. If `own` or `echoed` is
/// not an object, the result is `own`.
pub(crate) fn merge_echoed(own: Value, echoed: Option<&Value>) -> Value {
    let (Value::Object(own), Some(Value::Object(echoed))) = (&own, echoed) else {
        return own;
    };
    let mut all = echoed.clone();
    all.extend(own.iter().map(|(k, v)| (k.clone(), v.clone())));
    Value::Object(all)
}

/// The body of a top-level resource. It has the members of the resource's envelope, including those that are only kept
/// and shown, and `properties` with the two members that every kind has: `provisioningState` and `resourceGuid`.
pub(crate) fn top_level(envelope: &Envelope, kind: Kind, mut properties: Value) -> Value {
    properties["provisioningState"] = "Succeeded".into();
    properties["resourceGuid"] = envelope.resource_guid.to_string().into();
    let own = json!({
        "id": envelope.id,
        "name": envelope.id.name(),
        "type": kind.type_name(),
        "etag": weak_etag(envelope.etag),
        "location": envelope.location,
        "tags": envelope.tags,
        "properties": merge_echoed(properties, envelope.echoed.get("properties")),
    });
    merge_echoed(own, Some(&Value::Object(envelope.echoed.clone())))
}

/// The body of a child resource. Adds `provisioningState` to `properties`, as every kind of child has it.
pub(crate) fn child(id: &ResourceId, kind: Kind, etag: Uuid, mut properties: Value) -> Value {
    properties["provisioningState"] = "Succeeded".into();
    json!({
        "id": id,
        "name": id.name(),
        "type": kind.type_name(),
        "etag": weak_etag(etag),
        "properties": properties,
    })
}

impl<'t> Views<'t> {
    /// Views of the whole topology. The users of subnets and public addresses are collected when the first body needs
    /// them.
    pub(crate) fn new(topology: &'t Topology, statuses: &'t AgentStatuses) -> Self {
        Self {
            topology,
            statuses,
            only: None,
            users: OnceCell::new(),
            vms: OnceCell::new(),
            endpoints: OnceCell::new(),
            back_ends: OnceCell::new(),
        }
    }

    /// Views for the body of one VNet or of its children. Only the users of this VNet's subnets are collected.
    pub(crate) fn within(topology: &'t Topology, statuses: &'t AgentStatuses, vnet: ResourceId) -> Self {
        Self {
            only: Some(vnet),
            ..Self::new(topology, statuses)
        }
    }

    /// The collected users. The first call visits all NICs, gateways and load balancers.
    fn users(&self) -> &Users {
        self.users.get_or_init(|| {
            let mut users = Users::default();
            let wanted = |subnet: &ResourceId| self.only.as_ref().is_none_or(|vnet| is_child_of(subnet, vnet));
            for nic in self.topology.nics.values() {
                for c in nic.ip_configurations.iter().filter(|c| wanted(&c.subnet)) {
                    let id = format!("{}/ipConfigurations/{}", nic.envelope.id, c.name);
                    users.add(id, &c.subnet, c.public_ip_address.as_ref());
                }
            }
            for gateway in self.topology.gateways.values() {
                for c in gateway.ip_configurations.iter().filter(|c| wanted(&c.subnet)) {
                    let id = format!("{}/ipConfigurations/{}", gateway.envelope.id, c.name);
                    users.add(id, &c.subnet, c.public_ip_address.as_ref());
                }
            }
            let balancers = self.topology.load_balancers.values();
            for front_end in balancers.flat_map(|b| &b.front_ends).filter(|f| wanted(&f.subnet)) {
                users.add(front_end.id.to_string(), &front_end.subnet, None);
            }
            users
        })
    }

    /// The ids of the ip configurations and front ends in a subnet. `None`: it has none.
    pub(crate) fn subnet_users(&self, subnet: &ResourceId) -> Option<&[String]> {
        self.users().subnets.get(subnet).map(Vec::as_slice)
    }

    /// The id of the ip configuration that uses the public address `id`. `None`: no collected ip configuration uses it;
    /// [`Self::within`] collects only those of one VNet.
    pub(crate) fn public_ip_user(&self, id: &ResourceId) -> Option<&String> {
        self.users().public_ips.get(id)
    }

    /// The underlay address behind an ip configuration, as its agent has reported it; see [`Endpoints::of_user`].
    pub(crate) fn endpoint(&self, ip_configuration: &ResourceId, wanted: impl Fn(&IpAddr) -> bool) -> Option<IpAddr> {
        let all = self.endpoints.get_or_init(|| Endpoints::of(self.topology));
        all.of_user(ip_configuration, wanted)
    }

    /// The ip configurations behind pools and inbound NAT rules. The first call visits all NICs.
    pub(crate) fn back_ends(&self) -> &BackEnds {
        self.back_ends.get_or_init(|| BackEnds::of(self.topology))
    }

    /// The virtual machines by id, each with its agent. Revoked agents are left out.
    pub(crate) fn vms(&self) -> &BTreeMap<ResourceId, Arc<Agent>> {
        self.vms.get_or_init(|| {
            let agents = self.topology.agents.values().filter(|a| !a.revoked);
            let vms = agents.filter_map(|agent| match &agent.binding {
                Binding::Vm { vm, .. } => Some((vm.clone(), Arc::clone(agent))),
                Binding::Gateway { .. } | Binding::Edge { .. } | Binding::Site { .. } => None,
            });
            vms.collect()
        })
    }
}

/// The ARM body of a resource group. It has no etag.
pub(crate) fn group(group: &ResourceGroup) -> Value {
    json!({
        "id": group.id,
        "name": group.id.name(),
        "type": Kind::ResourceGroup.type_name(),
        "location": group.location,
        "tags": group.tags,
        "properties": {"provisioningState": "Succeeded"},
    })
}

/// The members of a body that the generic resource lists show: `id`, `name`, `type`, `location` and `tags`.
pub(crate) fn generic(body: &Value) -> Value {
    let mut short = Map::new();
    for name in ["id", "name", "type", "location", "tags"] {
        if let Some(value) = body.get(name) {
            short.insert(name.to_owned(), value.clone());
        }
    }
    Value::Object(short)
}
