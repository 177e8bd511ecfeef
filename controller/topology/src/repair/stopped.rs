//! A packet that stops, with what is near its path; and the changes that could help it on.

use super::change::RepairChange;
use crate::explain::{Explanation, Stop, Walk};
use crate::lookup::vnet_of;
use crate::resource::{Binding, VirtualNetwork};
use crate::topology::Topology;
use std::collections::BTreeSet;
use std::net::IpAddr;
use tombolo_proto::id::{AgentId, ResourceId};

/// Changes that only make sense together.
pub(super) struct Candidate {
    pub(super) changes: Vec<RepairChange>,
    /// Less likely changes in their place. Each is tried only if those before do not heal.
    pub(super) otherwise: Vec<Vec<RepairChange>>,
}

impl Candidate {
    /// Changes without others in their place.
    pub(super) const fn of(changes: Vec<RepairChange>) -> Self {
        Self {
            changes,
            otherwise: Vec::new(),
        }
    }

    /// The first of these sets of changes, and the others in its place. `None`: there is none.
    pub(super) fn first_of(mut all: impl Iterator<Item = Vec<RepairChange>>) -> Option<Self> {
        Some(Self {
            changes: all.next()?,
            otherwise: all.collect(),
        })
    }
}

impl From<RepairChange> for Candidate {
    fn from(change: RepairChange) -> Self {
        Self::of(vec![change])
    }
}

/// A packet that stops, and what is near its path.
pub(super) struct Stopped<'a> {
    pub(super) topology: &'a Topology,
    pub(super) explanation: &'a Explanation,
    /// The destination port of the packet. `None`: it has none, or any.
    pub(super) port: Option<u16>,
    /// The walk that stops: of the packet, or of its reply.
    pub(super) walk: &'a Walk,
    pub(super) stop: &'a Stop,
    pub(super) is_reply: bool,
    /// The source of the packet that stops, and its destination.
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    /// The virtual networks of both ends and of the path, and their neighbours.
    pub(super) near: BTreeSet<ResourceId>,
}

impl<'a> Stopped<'a> {
    pub(super) fn of(topology: &'a Topology, explanation: &'a Explanation, port: Option<u16>) -> Option<Self> {
        let (walk, is_reply) = match (&explanation.request.stop, &explanation.reply) {
            (Some(_), _) => (&explanation.request, false),
            (None, reply) => (reply.as_ref()?, true),
        };
        let stop = walk.stop.as_ref()?;
        let ends = (explanation.source, explanation.destination);
        let (source, destination) = if is_reply { (ends.1, ends.0) } else { ends };
        let mut near: BTreeSet<ResourceId> = BTreeSet::new();
        for address in [source, destination] {
            near.extend(vnets_with(topology, address).map(|vnet| vnet.envelope.id.clone()));
        }
        let walks = [Some(&explanation.request), explanation.reply.as_ref()];
        near.extend(
            walks
                .into_iter()
                .flatten()
                .flat_map(|walk| &walk.hops)
                .map(|hop| hop.vnet.clone()),
        );
        near.extend(neighbours(topology, &near));
        Some(Self {
            topology,
            explanation,
            port,
            walk,
            stop,
            is_reply,
            source,
            destination,
            near,
        })
    }

    /// The virtual networks near the path.
    pub(super) fn vnets(&self) -> impl Iterator<Item = &'a VirtualNetwork> + '_ {
        self.near
            .iter()
            .filter_map(|id| self.topology.vnets.get(id))
            .map(|vnet| &**vnet)
    }

    /// The network interfaces of a machine's agent.
    pub(super) fn nics_of(&self, agent: &AgentId) -> Vec<ResourceId> {
        match self.topology.agents.get(agent).map(|agent| &agent.binding) {
            Some(Binding::Vm { nics, .. }) => nics.clone(),
            Some(Binding::Gateway { .. } | Binding::Edge { .. } | Binding::Site { .. }) | None => Vec::new(),
        }
    }
}

/// The virtual networks with a peering half from or to one of these, and those whose gateways are connected to one of theirs.
fn neighbours(topology: &Topology, vnets: &BTreeSet<ResourceId>) -> Vec<ResourceId> {
    let mut found = Vec::new();
    for vnet in topology.vnets.values() {
        for half in &vnet.peerings {
            if vnets.contains(&vnet.envelope.id) {
                found.push(half.remote_vnet.clone());
            } else if vnets.contains(&half.remote_vnet) {
                found.push(vnet.envelope.id.clone());
            }
        }
    }
    let vnet = |gateway: &ResourceId| topology.gateways.get(gateway).and_then(|gateway| vnet_of(gateway));
    for connection in topology.connections.values() {
        if let (Some(here), Some(there)) = (vnet(&connection.gateway1), vnet(&connection.gateway2)) {
            if vnets.contains(&here) {
                found.push(there);
            } else if vnets.contains(&there) {
                found.push(here);
            }
        }
    }
    found
}

/// The virtual networks whose address space has an address.
pub(super) fn vnets_with(topology: &Topology, address: IpAddr) -> impl Iterator<Item = &VirtualNetwork> {
    let all = topology.vnets.values().map(|vnet| &**vnet);
    all.filter(move |vnet| vnet.address_space.iter().any(|prefix| prefix.contains(&address)))
}
