//! The resources for which the traffic of a link between two agents counts.

use crate::lookup::{half_towards, vnet_of};
use crate::path::parent_id;
use crate::resource::{Agent, Binding, Connection, PeeringState};
use crate::topology::Topology;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tombolo_proto::id::{AgentId, ResourceId};

/// What a resource is, as far as its price depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// A half of a peering.
    Peering,
    /// A connection to another virtual network gateway.
    VnetToVnet,
    /// A connection to a site.
    Site,
    /// A connection to a circuit.
    ExpressRoute,
    /// A circuit.
    Circuit,
}

/// A resource for which traffic counts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Payer {
    /// The resource.
    pub resource: ResourceId,
    /// What it is.
    pub kind: Kind,
    /// The region that pays.
    pub region: String,
    /// The region at the other end. `None`: it is not known, or is no region.
    pub remote_region: Option<String>,
}

/// An end of links.
enum End<'t> {
    /// A machine in a VNet.
    Machine { vnet: ResourceId },
    /// An instance of a gateway in a VNet.
    Gateway { vnet: ResourceId, gateway: &'t ResourceId },
    /// An edge of a circuit.
    Edge { circuit: &'t ResourceId },
    /// The device of a site.
    Device { connection: &'t Connection },
}

impl End<'_> {
    const fn vnet(&self) -> Option<&ResourceId> {
        match self {
            Self::Machine { vnet } | Self::Gateway { vnet, .. } => Some(vnet),
            Self::Edge { .. } | Self::Device { .. } => None,
        }
    }
}

/// Finds the resources for the links of a topology.
pub struct Payers<'t> {
    topology: &'t Topology,
    ends: BTreeMap<AgentId, End<'t>>,
}

impl<'t> Payers<'t> {
    /// Those of `topology`.
    #[must_use]
    pub fn of(topology: &'t Topology) -> Self {
        let agents = topology.agents.values();
        let agents = agents.filter_map(|agent| Some((agent.id.clone(), end_of(topology, agent)?)));
        let sites = topology.connections.values().map(|connection| {
            let device = AgentId::of_site(&connection.envelope.id);
            (device, End::Device { connection })
        });
        Self {
            topology,
            ends: agents.chain(sites).collect(),
        }
    }

    /// Whether there is an agent, or a device of a site, with this name.
    #[must_use]
    pub fn knows(&self, name: &AgentId) -> bool {
        self.ends.contains_key(name)
    }

    /// The resources for which the traffic counts that `agent` sends and receives over its link with `peer`. What it sends is
    /// egress of each of them, and what it receives is ingress. Empty if the traffic stays in a VNet, or if the two have
    /// no link.
    #[must_use]
    pub fn of_link(&self, agent: &AgentId, peer: &AgentId) -> Vec<Payer> {
        let (Some(own), Some(other)) = (self.ends.get(agent), self.ends.get(peer)) else {
            return Vec::new();
        };
        let found = match (own, other) {
            (End::Gateway { gateway, .. }, End::Gateway { gateway: far, .. }) => {
                vec![self.connection(gateway, far)]
            }
            (End::Gateway { gateway, .. }, End::Device { connection }) if connection.gateway1 == **gateway => {
                vec![self.payer_of(connection)]
            }
            (End::Gateway { gateway, .. }, End::Edge { circuit }) => vec![self.connection(gateway, circuit)],
            // The machine sends to the edge in place of the gateway. If the gateway is in a hub, the packets cross the
            // peering with it (Meter-5).
            (End::Machine { vnet }, End::Edge { circuit }) => match self.way_to(vnet, circuit) {
                Some((connection, hub)) => vec![self.payer_of(connection), self.peering(vnet, &hub)],
                None => Vec::new(),
            },
            (End::Edge { circuit }, End::Machine { vnet }) => match self.way_to(vnet, circuit) {
                Some((_, hub)) => vec![self.circuit(circuit), self.peering(&hub, vnet)],
                None => Vec::new(),
            },
            (End::Edge { circuit }, End::Gateway { .. }) => vec![self.circuit(circuit)],
            (own, other) => match (own.vnet(), other.vnet()) {
                (Some(vnet), Some(remote)) => vec![self.peering(vnet, remote)],
                _ => Vec::new(),
            },
        };
        found.into_iter().flatten().collect()
    }

    /// The half of the peering of `vnet` with `remote`.
    fn peering(&self, vnet: &ResourceId, remote: &ResourceId) -> Option<Payer> {
        let vnet = self.topology.vnets.get(vnet)?;
        let half = half_towards(vnet, remote)?;
        let remote = self.topology.vnets.get(remote);
        Some(Payer {
            resource: half.id.clone(),
            kind: Kind::Peering,
            region: vnet.envelope.location.clone(),
            remote_region: remote.map(|vnet| vnet.envelope.location.clone()),
        })
    }

    fn connection(&self, gateway: &ResourceId, far: &ResourceId) -> Option<Payer> {
        let mut all = self.topology.connections.values();
        let found = all.find(|connection| connection.gateway1 == *gateway && connection.gateway2 == *far)?;
        self.payer_of(found)
    }

    fn payer_of(&self, connection: &Connection) -> Option<Payer> {
        let gateways = &self.topology.gateways;
        let own = gateways.get(&connection.gateway1)?;
        let far = gateways.get(&connection.gateway2);
        let is_site = self.topology.local_gateways.contains_key(&connection.gateway2);
        Some(Payer {
            resource: connection.envelope.id.clone(),
            kind: match far {
                Some(_) => Kind::VnetToVnet,
                None if is_site => Kind::Site,
                None => Kind::ExpressRoute,
            },
            region: own.envelope.location.clone(),
            remote_region: far.map(|gateway| gateway.envelope.location.clone()),
        })
    }

    fn circuit(&self, circuit: &ResourceId) -> Option<Payer> {
        let circuit = self.topology.circuits.get(circuit)?;
        Some(Payer {
            resource: circuit.envelope.id.clone(),
            kind: Kind::Circuit,
            region: circuit.envelope.location.clone(),
            remote_region: None,
        })
    }

    /// The connection by which machines of a VNet use a circuit, and the VNet of its gateway: their own one or a hub.
    fn way_to(&self, vnet: &ResourceId, circuit: &ResourceId) -> Option<(&Connection, ResourceId)> {
        let own = self.topology.vnets.get(vnet)?;
        let mut halves = own.peerings.iter();
        let to_hub = halves.find(|half| half.use_remote_gateways && half.state == PeeringState::Connected);
        let hubs = [Some(vnet), to_hub.map(|half| &half.remote_vnet)];
        self.topology.connections.values().find_map(|connection| {
            let gateway = self.topology.gateways.get(&connection.gateway1)?;
            let at = vnet_of(gateway)?;
            let leads = connection.gateway2 == *circuit && hubs.contains(&Some(&at));
            leads.then_some((&**connection, at))
        })
    }
}

fn end_of<'t>(topology: &'t Topology, agent: &'t Agent) -> Option<End<'t>> {
    Some(match &agent.binding {
        Binding::Vm { nics, served, .. } => {
            let nic = nics.first().and_then(|nic| topology.nics.get(nic));
            let of_nic = nic.and_then(|nic| nic.ip_configurations.first()).map(|c| &c.subnet);
            End::Machine {
                vnet: parent_id(of_nic.or(served.first())?),
            }
        }
        Binding::Gateway { gateway, .. } => End::Gateway {
            vnet: vnet_of(&**topology.gateways.get(gateway)?)?,
            gateway,
        },
        Binding::Edge { circuit, .. } => End::Edge { circuit },
        // A site probe has no links, so nothing is charged for it.
        Binding::Site { .. } => return None,
    })
}
