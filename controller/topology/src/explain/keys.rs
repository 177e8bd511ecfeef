//! Connections between gateways whose two objects have different shared keys. The handshake of such a tunnel fails (D14), so no
//! packet and no route passes.

use super::finding::Finding;
use crate::learned_routes::LearnedReports;
use crate::lookup::connection;
use crate::resource::{Binding, Connection, ConnectionType};
use crate::topology::Topology;
use std::collections::BTreeMap;
use tombolo_proto::id::{AgentId, ResourceId};

/// The finding that the connection `id` and its counterpart have different shared keys. `None`: they have the same one, or one
/// of the two has none, or it is no connection between gateways.
pub(super) fn differ(topology: &Topology, id: &ResourceId) -> Option<Finding> {
    let one = topology.connections.get(id)?;
    let back = connection(topology, &one.gateway2, &one.gateway1)?;
    if one.connection_type != ConnectionType::Vnet2Vnet || !have_different_keys(one, back) {
        return None;
    }
    let (here, there) = (id.name(), back.envelope.id.name());
    let finding = Finding::new(
        "D14",
        format!(
            "the connections {here} and {there} have different shared keys, so the handshake of their tunnel fails"
        ),
        format!("set the shared key of one of them to that of the other: tombolo connection shared-key set {there}"),
    );
    Some(finding.at(&back.envelope.id))
}

fn have_different_keys(one: &Connection, back: &Connection) -> bool {
    one.shared_key.is_some() && back.shared_key.is_some() && one.shared_key != back.shared_key
}

/// The reports, with the links down that agents would report as down because their handshake fails.
pub(super) fn with_failed_handshakes(topology: &Topology, reports: &LearnedReports) -> LearnedReports {
    let mut reports = reports.clone();
    let tunnels = topology.connections.values();
    let tunnels = tunnels.filter(|c| c.connection_type == ConnectionType::Vnet2Vnet);
    let by_ends: BTreeMap<(&ResourceId, &ResourceId), &Connection> =
        tunnels.map(|c| ((&c.gateway1, &c.gateway2), &**c)).collect();
    for ((here, there), one) in &by_ends {
        let back = by_ends.get(&(*there, *here));
        if !back.is_some_and(|back| have_different_keys(one, back)) {
            continue;
        }
        for own in instances(topology, here) {
            let down = reports.down.entry(own.clone()).or_default();
            down.extend(instances(topology, there).cloned());
        }
    }
    reports
}

/// The agents of a gateway.
fn instances<'t>(topology: &'t Topology, gateway: &'t ResourceId) -> impl Iterator<Item = &'t AgentId> + 't {
    let is_instance = move |binding: &Binding| matches!(binding, Binding::Gateway { gateway: g, .. } if g == gateway);
    let agents = topology.agents.values();
    agents
        .filter(move |agent| is_instance(&agent.binding))
        .map(|agent| &agent.id)
}
