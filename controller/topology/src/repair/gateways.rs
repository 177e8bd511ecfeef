//! Changes of connections: exchange of routes. An object for the way back (G10) needs the shared key, and no answer may have it.

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
    }
    all
}
