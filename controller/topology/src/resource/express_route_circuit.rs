//! ExpressRoute circuits (E1, X13) and their private peering (E1, G4).

mod authorization;
mod peering;

pub use authorization::CircuitAuthorization;
pub use peering::PrivatePeering;

use crate::arm::body::Shape;
use crate::arm::view::Views;
use crate::draft::{Draft, changed};
use crate::path::Kind;
use crate::resource::frame::{Child, Echoed, Put, Resource};
use crate::resource::{Binding, Envelope};
use crate::rules::unsupported;
use authorization::MAX_AUTHORIZATIONS;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tombolo_proto::config::{MAX_PREFIXES, MAX_PREFIXES_PREMIUM};
use tombolo_proto::id::ResourceId;
use uuid::Uuid;

/// An ExpressRoute circuit: two lines to a customer, and the VNets that are linked to it by connections (E1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExpressRouteCircuit {
    /// The id, region, tags and etag, which every resource has.
    #[serde(flatten)]
    pub envelope: Envelope,
    /// The peering `AzurePrivatePeering`. `None`: no gateway can be connected to the circuit yet.
    #[serde(default)]
    pub private_peering: Option<PrivatePeering>,
    /// The authorizations, in order of creation.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub authorizations: Vec<CircuitAuthorization>,
}

/// The maximum number of peerings in a circuit's body: ARM has three types of peerings, and a circuit has at most one
/// of each type.
const MAX_PEERINGS: usize = 3;

/// The properties that are kept and shown, with Azure's defaults. Three of them have a further effect. The SKU's tier
/// and the bandwidth decide how many VNets can be linked to the circuit (X13, [`max_links`]). The peering location
/// decides which circuits count together in the limit of circuits for a gateway (X12, [`location_of`]).
const ECHOED: Echoed = Echoed {
    top: &[("sku", Shape::Object)],
    top_defaults: || json!({"sku": {"name": "Standard_MeteredData", "tier": "Standard", "family": "MeteredData"}}),
    properties: &[
        ("serviceProviderProperties", Shape::Object),
        ("allowClassicOperations", Shape::Bool),
        ("globalReachEnabled", Shape::Bool),
        ("enableDirectPortRateLimit", Shape::Bool),
        ("expressRoutePort", Shape::Object),
    ],
    defaults: || json!({"allowClassicOperations": false, "globalReachEnabled": false}),
};

impl Resource for ExpressRouteCircuit {
    const KIND: Kind = Kind::Circuit;
    const ECHOED: Echoed = ECHOED;
    const CHILDREN: &'static [Child] = &[peering::PEERINGS, authorization::AUTHORIZATIONS];

    fn read(draft: &mut Draft<'_>, put: &Put<'_, Self>) -> Option<Self> {
        draft.check_supported(&put.properties, unsupported::CIRCUIT);
        let kept = put.echoed(&mut draft.problems);
        let before = put.old().and_then(|c| c.private_peering.as_ref());
        let private_peering = match put.properties.list("peerings", MAX_PEERINGS, &mut draft.problems) {
            // If the body of a PUT has no `peerings`, the present peering stays, as with the lists of a VNet.
            None => before.cloned(),
            Some(items) => draft.read_peerings(&put.id, &items, before),
        };
        let listed = put
            .properties
            .list("authorizations", MAX_AUTHORIZATIONS, &mut draft.problems);
        let authorizations = match listed {
            None => put.old().map_or_else(Vec::new, |c| c.authorizations.clone()),
            Some(items) => draft.read_authorizations(&put.id, &items, put.old()),
        };
        let new = Self {
            envelope: put.envelope(draft, kept),
            private_peering,
            authorizations,
        };
        draft.check_circuit_in_use(put.old(), &new);
        draft.check_authorizations(put.old(), &new);
        Some(new)
    }

    fn renew_children(&mut self, old: Option<&Self>, new_guid: &mut dyn FnMut() -> Uuid) {
        if let Some(peering) = &mut self.private_peering {
            let before = old.and_then(|c| c.private_peering.as_ref());
            peering.etag = changed(before, peering, new_guid).unwrap_or(peering.etag);
        }
        for one in &mut self.authorizations {
            let before = old.and_then(|c| authorization::find(c, one.id.name()));
            one.etag = changed(before, one, new_guid).unwrap_or(one.etag);
        }
    }

    fn after_change(draft: &mut Draft<'_>, id: &ResourceId) {
        draft.check_lines(id);
    }

    fn check_unused(draft: &mut Draft<'_>, id: &ResourceId, _old: &Self) {
        let users: Vec<String> = draft.links_of(id).map(|c| c.envelope.id.to_string()).collect();
        if !users.is_empty() {
            let message = format!(
                "Circuit {id} cannot be deleted because it is still referenced by connections: {}.",
                users.join(", ")
            );
            draft.problems.add("XCircuitCannotBeDeleted", id, message);
        }
        let serves = |binding: &Binding| match binding {
            Binding::Edge { circuit, .. } => circuit == id,
            Binding::Site { attachments, .. } => attachments.contains(id),
            Binding::Vm { .. } | Binding::Gateway { .. } => false,
        };
        let mut agents = draft.topology.agents.values().filter(|a| !a.revoked);
        if let Some(agent) = agents.find(|a| serves(&a.binding)).map(|a| a.id.clone()) {
            let message = format!("Circuit {id} is served by agent '{agent}'. Delete the agent first.");
            draft.problems.add("XCircuitInUseByAgent", id, message);
        }
    }

    fn properties(&self, views: &Views<'_>) -> Value {
        let peerings: Vec<Value> = self.private_peering.iter().map(PrivatePeering::view).collect();
        json!({
            // No service provider takes part, so a circuit is shown as provisioned at once.
            "circuitProvisioningState": "Enabled",
            "serviceProviderProvisioningState": "Provisioned",
            "serviceKey": self.envelope.resource_guid.to_string(),
            "peerings": peerings,
            "authorizations": self.authorizations.iter().map(|one| one.view(views)).collect::<Vec<_>>(),
        })
    }
}

impl Draft<'_> {
    /// Checks that a circuit that has connections can be changed: it keeps its peering (E1), and its SKU still allows
    /// as many connections as it has (X13).
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
        if users.len() > max_links(new) {
            let message = format!(
                "Circuit {id} has {} virtual networks linked to it, and {} are the most that its SKU allows (X13).",
                users.len(),
                max_links(new)
            );
            self.problems.add("XCircuitLinkLimitReached", "sku", message);
        }
    }

    /// Checks after a change of a circuit that its lines do not overlap the VNets that are linked to it.
    fn check_lines(&mut self, id: &ResourceId) {
        let gateways: Vec<ResourceId> = self.links_of(id).map(|c| c.gateway1.clone()).collect();
        for gateway in gateways {
            if let Some(gateway) = self.topology.gateways.get(&gateway).cloned() {
                self.check_attached_to(id, &format!("Circuit {id} cannot be changed."), &gateway);
            }
        }
    }
}

/// The peering location of a circuit, in the casing of the body that set it (X12). Without a peering location it is the
/// circuit's region.
pub(crate) fn location_of(circuit: &ExpressRouteCircuit) -> String {
    let properties = circuit.envelope.echoed.get("properties");
    let location = properties.and_then(|p| p.pointer("/serviceProviderProperties/peeringLocation"));
    let location = location.and_then(Value::as_str);
    location.unwrap_or(&circuit.envelope.location).to_owned()
}

/// Whether the circuit's SKU is of the premium tier, which has higher limits (X11, X13).
pub(crate) fn is_premium(circuit: &ExpressRouteCircuit) -> bool {
    let tier = circuit.envelope.echoed.get("sku").and_then(|sku| sku.get("tier"));
    tier.and_then(Value::as_str)
        .is_some_and(|tier| tier.eq_ignore_ascii_case("Premium"))
}

/// The largest number of prefixes of one address family that the customer may announce to the circuit (X11).
pub(crate) fn max_prefixes(circuit: &ExpressRouteCircuit) -> u32 {
    match is_premium(circuit) {
        true => MAX_PREFIXES_PREMIUM,
        false => MAX_PREFIXES,
    }
}

/// The maximum number of VNets that can be linked to a circuit (X13). With the premium tier it is 20 to 100 VNets,
/// depending on the bandwidth; otherwise it is 10. A premium circuit without a bandwidth has 20. The numbers are
/// Azure's.
pub(crate) fn max_links(circuit: &ExpressRouteCircuit) -> usize {
    if !is_premium(circuit) {
        return 10;
    }
    let properties = circuit.envelope.echoed.get("properties");
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
