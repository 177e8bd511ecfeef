//! Changes of connections: exchange of routes, and the object for the way back.

use super::change::RepairChange;
use super::stopped::{Candidate, Stopped};
use crate::lookup::vnet_of;
use crate::resource::{Connection, ConnectionType};
use serde_json::json;
use tombolo_proto::id::ResourceId;

pub(super) fn candidates(stopped: &Stopped<'_>) -> Vec<Candidate> {
    let topology = stopped.topology;
    let is_near = |gateway: &ResourceId| {
        let vnet = topology.gateways.get(gateway).and_then(|gateway| vnet_of(gateway));
        vnet.is_some_and(|vnet| stopped.near.contains(&vnet))
    };
    let mut all = Vec::new();
    for connection in topology.connections.values() {
        if connection.connection_type == ConnectionType::ExpressRoute || !is_near(&connection.gateway1) {
            continue;
        }
        let id = &connection.envelope.id;
        let exchange = |connection: &Connection| {
            let id = &connection.envelope.id;
            let text = format!("set enableBgp of the connection {}", id.name());
            RepairChange::set(topology, text, id, "/properties/enableBgp", json!(true))
                .filter(|_| !connection.enable_bgp)
        };
        let back = topology
            .connections
            .values()
            .find(|other| other.gateway1 == connection.gateway2 && other.gateway2 == connection.gateway1);
        let one = exchange(connection);
        all.extend(one.clone().map(Candidate::from));
        if let (Some(one), Some(other)) = (one, back.and_then(|back| exchange(back)))
            && back.is_some_and(|back| id < &back.envelope.id)
        {
            all.push(Candidate {
                changes: vec![one, other],
            });
        }
        if back.is_none() && connection.connection_type == ConnectionType::Vnet2Vnet {
            all.extend(way_back(stopped, connection));
        }
    }
    all
}

/// The connection object of the far gateway (G10), with the same shared key.
fn way_back(stopped: &Stopped<'_>, connection: &Connection) -> Option<Candidate> {
    let key = connection.shared_key.as_ref()?;
    let far = stopped.topology.gateways.get(&connection.gateway2)?;
    let id = &connection.envelope.id;
    let group = far.envelope.id.as_str().split("/providers/").next()?;
    let name = format!("{}-back", id.name());
    let body = json!({"location": far.envelope.location, "properties": {
        "connectionType": "Vnet2Vnet", "virtualNetworkGateway1": {"id": connection.gateway2},
        "virtualNetworkGateway2": {"id": connection.gateway1}, "enableBgp": connection.enable_bgp, "sharedKey": key,
    }});
    let text = format!(
        "create the connection {name} from {} to {}",
        connection.gateway2.name(),
        connection.gateway1.name()
    );
    let path = ResourceId::new(format!("{group}/providers/Microsoft.Network/connections/{name}"));
    Some(RepairChange::put(text, &path, body).into())
}
