//! The rules of a half for overlaps, gateway transit and limits (P7, P10 to P14, P19, P20, P22, P23, P27, P30, G16,
//! X1).

use super::PeeringSpec;
use crate::draft::Draft;
use crate::lookup::{gateways_of, occupied_prefixes};
use crate::net::DisjointSet;
use crate::net::pairs;
use crate::resource::{Peering, PeeringState, VirtualNetwork};
use ipnet::IpNet;
use tombolo_proto::config::Transport;
use tombolo_proto::id::ResourceId;

impl Draft<'_> {
    /// Checks a new or changed half of `vnet` against all rules, before the half is written to the draft. `old`: this
    /// half before the change. `other`: the half of `remote` that points to `vnet`.
    pub(super) fn check_half(
        &mut self,
        id: &ResourceId,
        vnet: &VirtualNetwork,
        remote: &VirtualNetwork,
        spec: &PeeringSpec,
        old: Option<&Peering>,
        other: Option<&Peering>,
    ) {
        if let Some(twin) = vnet
            .peerings
            .iter()
            .find(|p| p.id != *id && p.remote_vnet == remote.envelope.id)
        {
            self.problems.add(
                "AnotherPeeringAlreadyReferencesRemoteVnet",
                id,
                format!(
                    "Peering {id} cannot be created: peering {} already references remote virtual network {} (P7).",
                    twin.id, remote.envelope.id
                ),
            );
        }
        let disjoint = self.check_overlap(id, vnet, remote);
        if old.is_none() && other.is_some_and(|o| o.state == PeeringState::Disconnected) {
            self.problems.add(
                "RemotePeeringIsDisconnected",
                id,
                format!(
                    "Cannot create or update peering {id} because remote peering {} referencing parent virtual network \
                     {} is in Disconnected state. Update or re-create the remote peering to get it back to Initiated \
                     state. Peering gets Disconnected when remote vnet or remote peering is deleted and re-created \
                     (P14).",
                    other.map(|o| o.id.to_string()).unwrap_or_default(),
                    vnet.envelope.id
                ),
            );
        }
        let limit = self.topology.settings.peerings_per_vnet as usize;
        if old.is_none() && vnet.peerings.len() >= limit {
            self.problems.add(
                "XPeeringLimitReached",
                id,
                format!(
                    "Virtual network {} has {limit} peerings, the most it may have (X1).",
                    vnet.envelope.id
                ),
            );
        }
        if old.is_none() {
            self.check_addresses_of_new_peering(id, vnet, remote);
        }
        self.check_transit(id, vnet, remote, spec, old, other);
        self.check_transport(id, spec, old, other);
        // If the two VNets overlap, the check of P10 has reported it already, and the check of VPN would report it
        // again.
        if spec.use_remote_gateways && disjoint {
            self.check_vpn_before_using(id, &vnet.envelope.id, &remote.envelope.id);
        }
    }

    /// A link has one transport, so the halves must not request different ones (D6).
    fn check_transport(&mut self, id: &ResourceId, spec: &PeeringSpec, old: Option<&Peering>, other: Option<&Peering>) {
        let own = spec.transport.or(old.map(|o| o.transport)).unwrap_or_default();
        let Some(other) = other.filter(|o| o.transport != Transport::Automatic && o.transport != own) else {
            return;
        };
        if own != Transport::Automatic {
            let message = format!(
                "Peering {id} cannot have transport {own:?} because remote peering {} has {:?} (D6).",
                other.id, other.transport
            );
            self.problems
                .add("XPeeringTransportConflict", "properties.transport", message);
        }
    }

    /// Checks that the two VNets do not overlap (P10), and that neither of them overlaps a third VNet that is peered
    /// with the other one (P11, P12). Returns whether the two VNets are disjoint.
    fn check_overlap(&mut self, id: &ResourceId, vnet: &VirtualNetwork, remote: &VirtualNetwork) -> bool {
        let (own, far) = (
            DisjointSet::new(&vnet.address_space),
            DisjointSet::new(&remote.address_space),
        );
        let common = own.overlaps_with(&remote.address_space);
        let subject = format!("Cannot create or update peering {id}.");
        if !common.is_empty() {
            self.problems.add(
                "VnetAddressSpacesOverlap",
                id,
                overlap_message(&subject, &vnet.envelope.id, &remote.envelope.id, &common),
            );
        }
        let ids = (&vnet.envelope.id, &remote.envelope.id);
        for third in remote.peerings.iter().filter(|p| p.remote_vnet != *ids.0) {
            self.check_third(&subject, id, &own, ids.0, ids.1, third);
        }
        for third in vnet.peerings.iter().filter(|p| p.remote_vnet != *ids.1 && p.id != *id) {
            self.check_third(&subject, id, &far, ids.1, ids.0, third);
        }
        common.is_empty()
    }

    /// Checks that the VNet `candidate`, which becomes a peer of the VNet `middle` or gets a new address space, does
    /// not overlap another peer of `middle` (P11). `third`: the half of `middle` towards that other peer. `space`: the
    /// address space of `candidate`.
    fn check_third(
        &mut self,
        subject: &str,
        target: &ResourceId,
        space: &DisjointSet,
        candidate: &ResourceId,
        middle: &ResourceId,
        third: &Peering,
    ) {
        let overlaps = space.overlaps_with(&occupied_prefixes(&self.topology, third));
        if !overlaps.is_empty() {
            self.problems.add(
                "VnetAddressSpaceOverlapsWithAlreadyPeeredVnet",
                target,
                format!(
                    "{subject} Virtual networks {candidate} and {middle} cannot be peered because address space of the first \
                     virtual network overlaps with address space of virtual network {} already peered with the second \
                     virtual network. Overlapping address prefixes: {} (P11).",
                    third.remote_vnet,
                    pairs(&overlaps)
                ),
            );
        }
    }

    /// Repeats the checks of P10 and P11 for a VNet with a new address space (P27). The checks cover the VNets towards
    /// which the VNet has a half, and also those that only have a half towards it, because these halves will sync the
    /// new space.
    pub(crate) fn check_peers_after_space_change(&mut self, new: &VirtualNetwork) {
        let id = &new.envelope.id;
        let space = DisjointSet::new(&new.address_space);
        let subject = format!("Cannot change the address space of virtual network {id}.");
        let mut neighbours: Vec<(ResourceId, Vec<IpNet>, bool)> = new
            .peerings
            .iter()
            .map(|p| {
                let alive = p.state != PeeringState::Disconnected;
                (p.remote_vnet.clone(), occupied_prefixes(&self.topology, p), alive)
            })
            .collect();
        for (owner, half) in self.halves_towards(id) {
            let known = neighbours.iter().any(|(n, ..)| *n == owner);
            if half.state != PeeringState::Disconnected && !known {
                let current = self.topology.vnets.get(&owner).map(|v| v.address_space.clone());
                neighbours.push((owner, current.unwrap_or_default(), true));
            }
        }
        for (neighbour, counted, alive) in neighbours {
            let overlaps = space.overlaps_with(&counted);
            if !overlaps.is_empty() {
                self.problems.add(
                    "VnetAddressSpacesOverlap",
                    "properties.addressSpace",
                    overlap_message(&subject, id, &neighbour, &overlaps),
                );
            }
            let remote = self.topology.vnets.get(&neighbour).cloned().filter(|_| alive);
            for third in remote.iter().flat_map(|r| &r.peerings).filter(|p| p.remote_vnet != *id) {
                self.check_third(&subject, id, &space, id, &neighbour, third);
            }
        }
    }

    /// Checks the gateway flags of a half (P19, P20, P22, P23, P30). For a half with useRemoteGateways, the remote VNet
    /// must have a gateway, and its half, if it exists, must have allowGatewayTransit. The half's own VNet must have no
    /// gateway and no second half with useRemoteGateways.
    fn check_transit(
        &mut self,
        id: &ResourceId,
        vnet: &VirtualNetwork,
        remote: &VirtualNetwork,
        spec: &PeeringSpec,
        old: Option<&Peering>,
        other: Option<&Peering>,
    ) {
        self.check_global_transit(id, vnet, remote, spec);
        // The other half may have been created first, with useRemoteGateways. At that time this half did not exist, so
        // its allowGatewayTransit is checked now.
        if old.is_none()
            && !spec.allow_gateway_transit
            && let Some(other) = other.filter(|o| o.use_remote_gateways)
        {
            self.transit_not_allowed(&other.id, id);
        }
        if !spec.use_remote_gateways {
            return;
        }
        if gateways_of(&self.topology, &remote.envelope.id).next().is_none() {
            self.problems.add(
                "RemoteVnetHasNoGateways",
                "properties.useRemoteGateways",
                format!(
                    "Peering {id} cannot have UseRemoteGateways flag set to true because remote virtual network {} \
                     referenced by the peering does not have any gateways (P20).",
                    remote.envelope.id
                ),
            );
        }
        if let Some(other) = other.filter(|o| !o.allow_gateway_transit) {
            self.transit_not_allowed(id, &other.id);
        }
        let own = gateways_of(&self.topology, &vnet.envelope.id).next();
        if let Some(own) = own.map(|g| g.envelope.id.clone()) {
            self.problems.add(
                "XVnetHasOwnGateway",
                "properties.useRemoteGateways",
                format!(
                    "Peering {id} cannot have UseRemoteGateways flag set to true because virtual network {} has a \
                     gateway of its own, {own} (P20, P23).",
                    vnet.envelope.id
                ),
            );
        }
        if let Some(twin) = vnet.peerings.iter().find(|p| p.id != *id && p.use_remote_gateways) {
            self.problems.add(
                "XAnotherPeeringUsesRemoteGateways",
                "properties.useRemoteGateways",
                format!(
                    "Peering {id} cannot have UseRemoteGateways flag set to true because peering {} already has it \
                     (P20).",
                    twin.id
                ),
            );
        }
    }

    /// Refuses gateway transit across regions while the setting forbids it (P30).
    fn check_global_transit(
        &mut self,
        id: &ResourceId,
        vnet: &VirtualNetwork,
        remote: &VirtualNetwork,
        spec: &PeeringSpec,
    ) {
        let global = vnet.envelope.location != remote.envelope.location;
        if global && !self.topology.settings.global_gateway_transit {
            for (flag, on) in [
                ("allowGatewayTransit", spec.allow_gateway_transit),
                ("useRemoteGateways", spec.use_remote_gateways),
            ] {
                if on {
                    self.problems.add(
                        "XGlobalPeeringFeatureNotAllowed",
                        format!("properties.{flag}"),
                        format!(
                            "Peering {id} crosses regions ({} and {}): {flag} must be false while the setting \
                             globalGatewayTransit is off (P30).",
                            vnet.envelope.location, remote.envelope.location
                        ),
                    );
                }
            }
        }
    }

    /// Adds the problem that the half `user` has useRemoteGateways, but the half `owner` of the remote VNet lacks
    /// allowGatewayTransit (P20).
    fn transit_not_allowed(&mut self, user: &ResourceId, owner: &ResourceId) {
        self.problems.add(
            "XRemotePeeringTransitNotAllowed",
            "properties.useRemoteGateways",
            format!(
                "Peering {user} cannot have UseRemoteGateways flag set to true, because corresponding remote peering \
                 {owner} has AllowGatewayTransit flag set to false (P20)."
            ),
        );
    }
}

/// The message of the problem that two VNets overlap (P10).
fn overlap_message(subject: &str, a: &ResourceId, b: &ResourceId, overlaps: &[(IpNet, IpNet)]) -> String {
    format!(
        "{subject} Virtual networks {a} and {b} cannot be peered because their address spaces overlap. Overlapping \
         address prefixes: {}",
        pairs(overlaps)
    )
}
