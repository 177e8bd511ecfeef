//! The shared keys of the two connection objects between two gateways, and an object that is missing (G10, G11). The controller
//! copies or generates keys, so no answer has one.

use super::super::change::{RepairChange, free_name};
use super::super::stopped::{Candidate, Stopped};
use crate::resource::Connection;
use serde_json::json;
use tombolo_proto::id::ResourceId;

/// The changes for `one` and its counterpart.
pub(super) fn candidates(stopped: &Stopped<'_>, one: &Connection, back: Option<&Connection>) -> Vec<Candidate> {
    let Some(back) = back else {
        return counterpart(stopped, one).into_iter().collect();
    };
    let id = &one.envelope.id;
    match (&one.shared_key, &back.shared_key) {
        (Some(own), other) if other.as_ref() != Some(own) => vec![copy(one, &back.envelope.id).into()],
        (None, None) if id < &back.envelope.id => {
            vec![Candidate::of(vec![generate(one), copy(one, &back.envelope.id)])]
        }
        (Some(_) | None, _) => Vec::new(),
    }
}

fn copy(from: &Connection, to: &ResourceId) -> RepairChange {
    let from = &from.envelope.id;
    let text = format!(
        "set the shared key of the connection {} to that of {}",
        to.name(),
        from.name()
    );
    RepairChange::copy_key(text, from, to)
}

fn generate(of: &Connection) -> RepairChange {
    let id = &of.envelope.id;
    RepairChange::generate_key(format!("generate a shared key for the connection {}", id.name()), id)
}

/// Creates the object for the way back, with the same settings and the same key.
fn counterpart(stopped: &Stopped<'_>, one: &Connection) -> Option<Candidate> {
    let topology = stopped.topology;
    let far = topology.gateways.get(&one.gateway2)?;
    let (group, _) = one.gateway2.as_str().split_once("/providers/")?;
    let connections = format!("{group}/providers/Microsoft.Network/connections");
    let wanted = format!("{}-to-{}", one.gateway2.name(), one.gateway1.name());
    let name = free_name(topology, &connections, &wanted);
    let id = ResourceId::new(format!("{connections}/{name}"));
    let text = format!(
        "create the connection {name} from the gateway {} to {}",
        one.gateway2.name(),
        one.gateway1.name()
    );
    let body = json!({"location": far.envelope.location, "properties": {
        "connectionType": "Vnet2Vnet", "virtualNetworkGateway1": {"id": one.gateway2},
        "virtualNetworkGateway2": {"id": one.gateway1}, "routingWeight": one.routing_weight, "enableBgp": one.enable_bgp,
    }});
    let mut changes = Vec::new();
    if one.shared_key.is_none() {
        changes.push(generate(one));
    }
    changes.extend([RepairChange::put(text, &id, body), copy(one, &id)]);
    Some(Candidate::of(changes))
}
