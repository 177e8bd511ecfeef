//! POST `topology`: the resources of a resource group, virtual network or subnet, and how they are associated (M6).

use crate::rest::failure::{Failure, excerpt, ok};
use axum::response::Response;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tombolo_proto::arm::parent_id;
use tombolo_proto::id::ResourceId;
use tombolo_topology::resource::{Binding, NetworkInterface, Subnet, VirtualNetwork};
use tombolo_topology::topology::Topology;
use uuid::Uuid;

/// What the answer is about.
enum Scope {
    Group(String),
    Network(ResourceId),
    Subnet(ResourceId),
}

/// The answer to a request. The times are those of the request, because nothing is stored.
pub(super) fn answer(topology: &Topology, subscription: &str, body: &Value) -> Result<Response, Failure> {
    let scope = scope(topology, subscription, body)?;
    let vnets = topology
        .vnets
        .values()
        .filter(|vnet| scope.has_network(&vnet.envelope.id));
    let mut resources = Vec::new();
    for vnet in vnets {
        if !matches!(scope, Scope::Subnet(_)) {
            resources.push(network(vnet));
        }
        for subnet in vnet.subnets.iter().filter(|subnet| scope.has_subnet(&subnet.id)) {
            resources.push(of_subnet(vnet, subnet));
        }
    }
    for nic in topology.nics.values() {
        let subnet = nic.ip_configurations.first().map(|c| &c.subnet);
        let is_here = match &scope {
            Scope::Group(group) => in_group(&nic.envelope.id, group),
            Scope::Network(vnet) => subnet.is_some_and(|subnet| parent_id(subnet) == *vnet),
            Scope::Subnet(id) => subnet == Some(id),
        };
        if is_here {
            resources.push(of_nic(topology, nic));
        }
    }
    let now = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
    Ok(ok(&json!({
        "id": Uuid::new_v4(), "createdDateTime": now, "lastModified": now, "resources": resources,
    })))
}

impl Scope {
    fn has_network(&self, vnet: &ResourceId) -> bool {
        match self {
            Self::Group(group) => in_group(vnet, group),
            Self::Network(id) => id == vnet,
            Self::Subnet(subnet) => parent_id(subnet) == *vnet,
        }
    }

    fn has_subnet(&self, subnet: &ResourceId) -> bool {
        match self {
            Self::Group(_) | Self::Network(_) => true,
            Self::Subnet(id) => id == subnet,
        }
    }
}

fn in_group(id: &ResourceId, group: &str) -> bool {
    let key = id.key();
    key.split_once("/providers/").is_some_and(|(of, _)| of == group)
}

fn scope(topology: &Topology, subscription: &str, body: &Value) -> Result<Scope, Failure> {
    let id = |field: &str| {
        body.pointer(&format!("/{field}/id"))
            .and_then(Value::as_str)
            .map(ResourceId::new)
    };
    let missing = |field: &'static str, what: &str| {
        let message = format!("{field}: '{}' was not found", excerpt(what));
        Failure::bad("InvalidResourceReference", message).at(field)
    };
    if let Some(name) = body.get("targetResourceGroupName").and_then(Value::as_str) {
        let group = format!("/subscriptions/{subscription}/resourceGroups/{name}");
        let found = topology.resource_groups.contains_key(&ResourceId::new(group.clone()));
        return match found {
            true => Ok(Scope::Group(group.to_ascii_lowercase())),
            false => Err(missing("targetResourceGroupName", name)),
        };
    }
    if let Some(vnet) = id("targetVirtualNetwork") {
        return match topology.vnets.contains_key(&vnet) {
            true => Ok(Scope::Network(vnet)),
            false => Err(missing("targetVirtualNetwork", vnet.as_str())),
        };
    }
    if let Some(subnet) = id("targetSubnet") {
        let vnet = topology.vnets.get(&parent_id(&subnet));
        return match vnet.is_some_and(|vnet| vnet.subnets.iter().any(|s| s.id == subnet)) {
            true => Ok(Scope::Subnet(subnet)),
            false => Err(missing("targetSubnet", subnet.as_str())),
        };
    }
    let message = "one of targetResourceGroupName, targetVirtualNetwork and targetSubnet is required";
    Err(Failure::bad("InvalidRequestFormat", message).at("targetResourceGroupName"))
}

fn association(id: &ResourceId, kind: &str) -> Value {
    json!({"name": id.name(), "resourceId": id, "associationType": kind})
}

fn resource(id: &ResourceId, location: &str, associations: Vec<Value>) -> Value {
    json!({"name": id.name(), "id": id, "location": location, "associations": associations})
}

fn network(vnet: &VirtualNetwork) -> Value {
    let subnets = vnet.subnets.iter().map(|subnet| association(&subnet.id, "Contains"));
    let peers = vnet
        .peerings
        .iter()
        .map(|half| association(&half.remote_vnet, "Associated"));
    resource(
        &vnet.envelope.id,
        &vnet.envelope.location,
        subnets.chain(peers).collect(),
    )
}

fn of_subnet(vnet: &VirtualNetwork, subnet: &Subnet) -> Value {
    let named = subnet.network_security_group.iter().chain(&subnet.route_table);
    let associations = named.map(|id| association(id, "Associated"));
    resource(&subnet.id, &vnet.envelope.location, associations.collect())
}

fn of_nic(topology: &Topology, nic: &NetworkInterface) -> Value {
    let id = &nic.envelope.id;
    let subnet = nic.ip_configurations.first().map(|c| &c.subnet);
    let addresses = nic
        .ip_configurations
        .iter()
        .filter_map(|c| c.public_ip_address.as_ref());
    let machines = topology.agents.values().filter_map(|agent| match &agent.binding {
        Binding::Vm { vm, nics, .. } if nics.contains(id) && !agent.revoked => Some(vm),
        Binding::Vm { .. } | Binding::Gateway { .. } | Binding::Edge { .. } | Binding::Site { .. } => None,
    });
    let all = subnet
        .into_iter()
        .chain(&nic.network_security_group)
        .chain(addresses)
        .chain(machines);
    resource(
        id,
        &nic.envelope.location,
        all.map(|id| association(id, "Associated")).collect(),
    )
}
