//! Networks that VPN joins are pairwise disjoint (G16): VNets whose gateways are connected, and VNets that use such a
//! gateway, which advertises their addresses as its own (P21b).

use crate::draft::Draft;
use crate::lookup::vnet_of;
use crate::net::overlaps_within;
use crate::net::pairs;
use crate::resource::{Peering, PeeringState, VirtualNetwork, VirtualNetworkGateway};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tombolo_proto::id::ResourceId;

impl Draft<'_> {
    /// Checks a new connection between two gateways: it joins all networks of both sides.
    pub(crate) fn check_vpn_before_joining(
        &mut self,
        id: &ResourceId,
        first: &VirtualNetworkGateway,
        second: &VirtualNetworkGateway,
    ) {
        if let (Some(first), Some(second)) = (vnet_of(first), vnet_of(second)) {
            self.check_union(id, &format!("Connection {id} cannot be created."), &first, &second);
        }
    }

    /// Checks a half with `useRemoteGateways`: it joins its VNet with all networks that the remote gateway is joined
    /// with.
    pub(crate) fn check_vpn_before_using(&mut self, id: &ResourceId, vnet: &ResourceId, remote: &ResourceId) {
        let subject = format!("Peering {id} cannot have UseRemoteGateways flag set to true.");
        self.check_union(id, &subject, vnet, remote);
    }

    /// Checks that the networks joined with `first` and those joined with `second` are disjoint.
    fn check_union(&mut self, target: &ResourceId, subject: &str, first: &ResourceId, second: &ResourceId) {
        let mut joined = self.joined_with(first);
        joined.extend(self.joined_with(second));
        let vnets: Vec<Arc<VirtualNetwork>> = joined
            .iter()
            .filter_map(|id| self.topology.vnets.get(id).cloned())
            .collect();
        self.check_joined(target, subject, vnets.iter().map(|v| &**v));
    }

    /// Checks a VNet with a new address space against all networks that it is joined with.
    pub(crate) fn check_vpn_after_space_change(&mut self, new: &VirtualNetwork) {
        let id = &new.envelope.id;
        let joined = self.joined_with(id);
        if joined.len() < 2 {
            return;
        }
        let others: Vec<Arc<VirtualNetwork>> = joined
            .iter()
            .filter(|other| *other != id)
            .filter_map(|id| self.topology.vnets.get(id).cloned())
            .collect();
        let subject = format!("Cannot change the address space of virtual network {id}.");
        self.check_joined(id, &subject, others.iter().map(|v| &**v).chain([new]));
    }

    /// Adds a problem for each pair of VNets that overlap.
    fn check_joined<'v>(
        &mut self,
        target: &ResourceId,
        subject: &str,
        vnets: impl Iterator<Item = &'v VirtualNetwork>,
    ) {
        let all: Vec<(IpNet, &ResourceId)> = vnets
            .flat_map(|v| v.address_space.iter().map(|net| (*net, &v.envelope.id)))
            .collect();
        let nets: Vec<IpNet> = all.iter().map(|(net, _)| *net).collect();
        let mut by_pair: BTreeMap<(&ResourceId, &ResourceId), Vec<(IpNet, IpNet)>> = BTreeMap::new();
        for (a, b) in overlaps_within(&nets) {
            let ((net_a, vnet_a), (net_b, vnet_b)) = (all[a], all[b]);
            if vnet_a != vnet_b {
                by_pair.entry((vnet_a, vnet_b)).or_default().push((net_a, net_b));
            }
        }
        for ((a, b), overlaps) in by_pair {
            self.problems.add(
                "XVpnNetworksOverlap",
                target,
                format!(
                    "{subject} Virtual networks {a} and {b} would be joined by VPN, and their address spaces overlap. \
                     Overlapping address prefixes: {} (G16).",
                    pairs(&overlaps)
                ),
            );
        }
    }

    /// All VNets that connections and remote gateways join with `start`, over any number of steps, including `start`. A
    /// half that is not `Connected` yet counts: no check runs again when it connects.
    pub(crate) fn joined_with(&self, start: &ResourceId) -> BTreeSet<ResourceId> {
        let mut edges: BTreeMap<ResourceId, Vec<ResourceId>> = BTreeMap::new();
        for vnet in self.topology.vnets.values() {
            let uses = |p: &&Peering| p.use_remote_gateways && p.state != PeeringState::Disconnected;
            for half in vnet.peerings.iter().filter(uses) {
                let (spoke, hub) = (&vnet.envelope.id, &half.remote_vnet);
                edges.entry(spoke.clone()).or_default().push(hub.clone());
                edges.entry(hub.clone()).or_default().push(spoke.clone());
            }
        }
        for connection in self.topology.connections.values() {
            let end = |id| self.topology.gateways.get(id).and_then(|g| vnet_of(g));
            if let (Some(a), Some(b)) = (end(&connection.gateway1), end(&connection.gateway2)) {
                edges.entry(a.clone()).or_default().push(b.clone());
                edges.entry(b).or_default().push(a);
            }
        }
        let mut seen = BTreeSet::from([start.clone()]);
        let mut open = vec![start.clone()];
        while let Some(next) = open.pop() {
            for neighbour in edges.get(&next).into_iter().flatten() {
                if seen.insert(neighbour.clone()) {
                    open.push(neighbour.clone());
                }
            }
        }
        seen
    }
}
