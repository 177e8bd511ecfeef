//! The rule that networks which VPN joins are pairwise disjoint (G16). VPN joins the VNets whose gateways are
//! connected. It also joins the VNets that use these gateways, because a gateway advertises the prefixes of such VNets
//! as its own (P21b).

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
    /// Checks that all networks that a new connection between two gateways would join are disjoint: those that VPN
    /// joins with the first gateway's VNet, and those that it joins with the second one's. `id`: the connection, which
    /// the problems name.
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

    /// Checks the half `id`, which has `useRemoteGateways`. It joins `vnet` with `remote` and with all networks that
    /// VPN joins with `remote`, so all these networks must be disjoint.
    pub(crate) fn check_vpn_before_using(&mut self, id: &ResourceId, vnet: &ResourceId, remote: &ResourceId) {
        let subject = format!("Peering {id} cannot have UseRemoteGateways flag set to true.");
        self.check_union(id, &subject, vnet, remote);
    }

    /// Checks that the networks that VPN joins with `first` and those that it joins with `second` are all disjoint.
    fn check_union(&mut self, target: &ResourceId, subject: &str, first: &ResourceId, second: &ResourceId) {
        let mut joined = self.joined_with(first);
        joined.extend(self.joined_with(second));
        let vnets: Vec<Arc<VirtualNetwork>> = joined
            .iter()
            .filter_map(|id| self.topology.vnets.get(id).cloned())
            .collect();
        self.check_joined(target, subject, vnets.iter().map(|v| &**v));
    }

    /// Checks that a VNet with a new address space is disjoint from all networks that VPN joins with it.
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

    /// Adds a problem for each pair of overlapping VNets among `vnets`. `subject` begins the messages.
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

    /// The ids of all VNets that VPN joins with `start`, including `start`: by connections and by halves with
    /// `useRemoteGateways`, over any number of steps. An `Initiated` half counts too, because the check does not run
    /// again when the half becomes `Connected`.
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
