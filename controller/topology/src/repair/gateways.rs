//! Changes of connections and of what they lead to: exchange of routes, shared keys, missing objects, and prefixes of sites.
//!
//! * `keys`: shared keys, and an object for the way back (G10, G11).

mod keys;

use super::change::{RepairChange, view};
use super::stopped::{Candidate, Stopped};
use crate::lookup::{connection, vnet_of};
use crate::resource::{Connection, ConnectionType, VirtualNetworkGateway};
use serde_json::json;
use std::sync::Arc;
use tombolo_proto::config::GatewayKind;
use tombolo_proto::id::ResourceId;

pub(super) fn candidates(stopped: &Stopped<'_>) -> Vec<Candidate> {
    let near: Vec<_> = near(stopped).collect();
    let mut all = Vec::new();
    for one in &near {
        let back = match one.connection_type {
            ConnectionType::ExpressRoute => continue,
            ConnectionType::Vnet2Vnet => connection(stopped.topology, &one.gateway2, &one.gateway1),
            ConnectionType::IPsec => None,
        };
        exchange(stopped, one, back, &mut all);
        if one.connection_type == ConnectionType::Vnet2Vnet {
            all.extend(keys::candidates(stopped, one, back));
        }
    }
    all.extend(to_circuit(stopped).into_iter().map(Candidate::from));
    all.extend(site_prefix(stopped).map(Candidate::from));
    all
}

/// The connections of gateways of the virtual networks near the path.
fn near<'a>(stopped: &'a Stopped<'_>) -> impl Iterator<Item = &'a Connection> + 'a {
    let topology = stopped.topology;
    let all = topology.connections.values().map(|connection| &**connection);
    all.filter(move |connection| {
        let gateway = topology.gateways.get(&connection.gateway1);
        let vnet = gateway.and_then(|gateway| vnet_of(gateway));
        vnet.is_some_and(|vnet| stopped.near.contains(&vnet))
    })
}

/// Turns `enableBgp` on, or off where both gateways have the same ASN, so that no session comes up (G4).
fn exchange(stopped: &Stopped<'_>, one: &Connection, back: Option<&Connection>, all: &mut Vec<Candidate>) {
    let topology = stopped.topology;
    let set = |connection: &Connection, value: bool| {
        let id = &connection.envelope.id;
        let verb = if value { "set" } else { "turn off" };
        let text = format!("{verb} enableBgp of the connection {}", id.name());
        RepairChange::set(topology, text, id, "/properties/enableBgp", json!(value))
            .filter(|_| connection.enable_bgp != value)
    };
    let asn = |gateway: &ResourceId| topology.gateways.get(gateway).map(|gateway| gateway.asn);
    let is_useless = back.is_some() && asn(&one.gateway1) == asn(&one.gateway2);
    let values: &[bool] = if is_useless { &[true, false] } else { &[true] };
    for value in values {
        let first = set(one, *value);
        all.extend(first.clone().map(Candidate::from));
        if let (Some(first), Some(second)) = (first, back.and_then(|back| set(back, *value)))
            && back.is_some_and(|back| one.envelope.id < back.envelope.id)
        {
            all.push(Candidate::of(vec![first, second]));
        }
    }
}

/// Connects the ExpressRoute gateways near the path with the circuit that the packet lacks (E7).
fn to_circuit(stopped: &Stopped<'_>) -> Vec<RepairChange> {
    let topology = stopped.topology;
    let circuit = stopped.stop.resource.as_ref();
    let circuit =
        circuit.filter(|id| stopped.stop.rule.as_deref() == Some("E7") && topology.circuits.contains_key(*id));
    let Some(circuit) = circuit else {
        return Vec::new();
    };
    let is_near = |gateway: &&Arc<VirtualNetworkGateway>| {
        let vnet = vnet_of(gateway);
        gateway.gateway_type == GatewayKind::ExpressRoute && vnet.is_some_and(|vnet| stopped.near.contains(&vnet))
    };
    let create = |gateway: &Arc<VirtualNetworkGateway>| {
        let id = &gateway.envelope.id;
        let (group, _) = id.as_str().split_once("/providers/")?;
        let connections = format!("{group}/providers/Microsoft.Network/connections");
        let name = super::change::free_name(topology, &connections, &format!("{}-to-{}", id.name(), circuit.name()));
        let text = format!(
            "create the connection {name} of the gateway {} with the circuit {}, which opens all networks that the circuit announces",
            id.name(),
            circuit.name()
        );
        let body = json!({"location": gateway.envelope.location, "properties": {
            "connectionType": "ExpressRoute", "virtualNetworkGateway1": {"id": id}, "peer": {"id": circuit},
        }});
        let id = ResourceId::new(format!("{connections}/{name}"));
        Some(RepairChange::put(text, &id, body))
    };
    topology.gateways.values().filter(is_near).filter_map(create).collect()
}

/// Adds the source of a packet of a site to the address space of its local network gateway (D16).
fn site_prefix(stopped: &Stopped<'_>) -> Option<RepairChange> {
    if stopped.stop.reason != "spoofed_source" || stopped.stop.rule.as_deref() != Some("D16") {
        return None;
    }
    let connection = stopped.topology.connections.get(stopped.stop.resource.as_ref()?)?;
    let site = &connection.gateway2;
    let mut body = view(stopped.topology, site)?;
    let prefix = ipnet::IpNet::from(stopped.source);
    let space = body.pointer_mut("/properties/localNetworkAddressSpace/addressPrefixes")?;
    space.as_array_mut()?.push(json!(prefix));
    let text = format!(
        "add {prefix} to the address space of the local network gateway {}",
        site.name()
    );
    Some(RepairChange::put(text, site, body))
}
