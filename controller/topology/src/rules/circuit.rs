//! ExpressRoute circuits (E1, X13) and their private peering (E1, G4).

mod peering;

use super::{Draft, changed, echoed, unsupported, without_default_properties};
use crate::arm::body::{Object, Shape};
use crate::arm::view::{circuit_defaults, circuit_sku};
use crate::path::ArmPath;
use crate::resource::{Binding, ExpressRouteCircuit, ResourceGroup};
use serde_json::Value;
use std::sync::Arc;
use tombolo_proto::id::ResourceId;

const TOP: [(&str, Shape); 1] = [("sku", Shape::Object)];
const PROPERTIES: [(&str, Shape); 5] = [
    ("serviceProviderProperties", Shape::Object),
    ("allowClassicOperations", Shape::Bool),
    ("globalReachEnabled", Shape::Bool),
    ("enableDirectPortRateLimit", Shape::Bool),
    ("expressRoutePort", Shape::Object),
];
/// Most members of a list of peerings: one a type.
const MAX_PEERINGS: usize = 3;

impl Draft<'_> {
    pub(crate) fn put_circuit(
        &mut self,
        group: &ResourceGroup,
        path: &ArmPath,
        body: &Value,
        if_match: Option<&str>,
    ) -> bool {
        let old = self.topology.circuits.get(&path.id()).cloned();
        let id = old
            .as_deref()
            .map_or_else(|| Self::new_id(group, path), |c| c.envelope.id.clone());
        self.check_if_match(if_match, old.as_deref().map(|c| c.envelope.etag), &id);
        let root = Object::root(body, &mut self.problems);
        let properties = root.object_or_empty("properties", &mut self.problems);
        self.check_supported(&properties, unsupported::CIRCUIT);
        let mut kept = echoed(&root, &TOP, &PROPERTIES, &mut self.problems);
        without_default_properties(&mut kept, &circuit_defaults());
        if kept.get("sku") == Some(&circuit_sku()) {
            kept.remove("sku");
        }
        let before = old.as_deref().and_then(|c| c.private_peering.as_ref());
        let private_peering = match properties.list("peerings", MAX_PEERINGS, &mut self.problems) {
            // As with VNets: what is left out stays.
            None => before.cloned(),
            Some(items) => self.read_peerings(&id, &items, before),
        };
        let new = ExpressRouteCircuit {
            envelope: self.envelope(&root, id.clone(), old.as_deref().map(|c| &c.envelope), kept),
            private_peering,
        };
        self.check_circuit_in_use(old.as_deref(), &new);
        self.commit_circuit(new);
        old.is_none()
    }

    /// What connections to a circuit ask of it: its peering, its size (X13), lines that overlap no linked VNet.
    fn check_circuit_in_use(&mut self, old: Option<&ExpressRouteCircuit>, new: &ExpressRouteCircuit) {
        let id = &new.envelope.id;
        let users: Vec<_> = self.links_of(id).cloned().collect();
        if users.is_empty() {
            return;
        }
        let had = old.is_some_and(|o| o.private_peering.is_some());
        if had && new.private_peering.is_none() {
            let names: Vec<&str> = users.iter().map(|c| c.envelope.id.as_str()).collect();
            let message = format!(
                "The AzurePrivatePeering of circuit {id} cannot be deleted because connections use it: {} (E1).",
                names.join(", ")
            );
            self.problems.add("XCircuitPeeringCannotBeDeleted", id, message);
        }
        if users.len() > most_links(new) {
            let message = format!(
                "Circuit {id} has {} virtual networks linked to it, and {} are the most that its SKU allows (X13).",
                users.len(),
                most_links(new)
            );
            self.problems.add("XCircuitLinkLimitReached", "sku", message);
        }
    }

    /// After a change of a circuit: its lines against the VNets that are linked to it.
    fn check_lines(&mut self, id: &ResourceId) {
        let gateways: Vec<ResourceId> = self.links_of(id).map(|c| c.gateway1.clone()).collect();
        for gateway in gateways {
            if let Some(gateway) = self.topology.gateways.get(&gateway).cloned() {
                self.check_attached_to(id, &format!("Circuit {id} cannot be changed."), &gateway);
            }
        }
    }

    pub(crate) fn delete_circuit(&mut self, id: &ResourceId, if_match: Option<&str>) -> bool {
        let Some(old) = self.topology.circuits.get(id).cloned() else {
            return false;
        };
        self.check_if_match(if_match, Some(old.envelope.etag), id);
        let users: Vec<String> = self.links_of(id).map(|c| c.envelope.id.to_string()).collect();
        if !users.is_empty() {
            let message = format!(
                "Circuit {id} cannot be deleted because it is still referenced by connections: {}.",
                users.join(", ")
            );
            self.problems.add("XCircuitCannotBeDeleted", id, message);
        }
        let serves = |binding: &Binding| matches!(binding, Binding::Edge { circuit, .. } if circuit == id);
        let mut agents = self.topology.agents.values().filter(|a| !a.revoked);
        if let Some(agent) = agents.find(|a| serves(&a.binding)).map(|a| a.id.clone()) {
            let message = format!("Circuit {id} is served by agent '{agent}'. Delete the agent first.");
            self.problems.add("XCircuitInUseByAgent", id, message);
        }
        self.topology.circuits.remove(id);
        true
    }

    /// Puts a circuit into the draft, with new etags for what differs.
    pub(crate) fn commit_circuit(&mut self, mut new: ExpressRouteCircuit) {
        let id = new.envelope.id.clone();
        let old = self.topology.circuits.get(&id).cloned();
        if let Some(peering) = &mut new.private_peering {
            let before = old.as_deref().and_then(|c| c.private_peering.as_ref());
            peering.etag = changed(before, peering, self.fresh).unwrap_or(peering.etag);
        }
        if let Some(etag) = changed(old.as_deref(), &new, self.fresh) {
            new.envelope.etag = etag;
            self.topology.circuits.insert(id.clone(), Arc::new(new));
            self.check_lines(&id);
        }
    }
}

/// Where a circuit ends: its peering location, or its region (X12).
pub(crate) fn location_of(circuit: &ExpressRouteCircuit) -> String {
    let properties = circuit.envelope.echoed.get("properties");
    let location = properties.and_then(|p| p.pointer("/serviceProviderProperties/peeringLocation"));
    let location = location.and_then(Value::as_str);
    location.unwrap_or(&circuit.envelope.location).to_owned()
}

/// How many VNets may be linked to a circuit: 10, and with a premium one more, by its bandwidth (X13).
pub(crate) fn most_links(circuit: &ExpressRouteCircuit) -> usize {
    let echoed = &circuit.envelope.echoed;
    let tier = echoed.get("sku").and_then(|s| s.get("tier")).and_then(Value::as_str);
    if !tier.is_some_and(|t| t.eq_ignore_ascii_case("Premium")) {
        return 10;
    }
    let properties = echoed.get("properties");
    let mbps = properties.and_then(|p| p.pointer("/serviceProviderProperties/bandwidthInMbps"));
    match mbps.and_then(Value::as_u64).unwrap_or_default() {
        0..100 => 20,
        100..500 => 25,
        500..1_000 => 40,
        1_000..2_000 => 50,
        2_000..5_000 => 60,
        5_000..10_000 => 75,
        10_000.. => 100,
    }
}
