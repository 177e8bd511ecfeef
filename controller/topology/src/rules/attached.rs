//! The rules of the external networks of gateways, which are sites and the lines of circuits. The prefixes of a site
//! overlap no network that is joined with it (G7, G16). The devices of a gateway's sites can be distinguished (G13).
//! The lines of a circuit overlap no VNet that is linked to it (E1).
//!
//! The checks run on the draft after the change. The topology before the change satisfied these rules, so every
//! violation in the draft comes from this change.

use crate::draft::Draft;
use crate::lookup::occupied_prefixes;
use crate::lookup::{gateways_of, vnet_of};
use crate::net::is_apipa;
use crate::net::pairs;
use crate::net::{DisjointSet, overlaps_within};
use crate::resource::{ConnectionType, ExpressRouteCircuit, LocalNetworkGateway, PeeringState, VirtualNetworkGateway};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tombolo_proto::id::ResourceId;

/// The prefixes of networks, by id.
type Networks = BTreeMap<ResourceId, Vec<IpNet>>;
/// The code and message of an error.
type Violation = (&'static str, String);

impl Draft<'_> {
    /// Checks that the devices of a gateway's sites have different keys, endpoints and BGP addresses (G13, D16).
    /// `joining`: a site that a new connection adds. `target`: the resource that a problem names.
    pub(crate) fn check_sites_distinct(
        &mut self,
        target: &ResourceId,
        gateway: &ResourceId,
        joining: Option<&LocalNetworkGateway>,
    ) {
        let mut sites = self.sites_of(gateway);
        sites.extend(joining.map(|site| Arc::new(site.clone())));
        for (i, a) in sites.iter().enumerate() {
            for b in sites[..i].iter().filter(|b| b.envelope.id != a.envelope.id) {
                let both = |what: &str| {
                    format!(
                        "Local network gateways {} and {} have the same {what}, and are both connected to {gateway}, which \
                         tells its sites apart by it (G13).",
                        b.envelope.id, a.envelope.id
                    )
                };
                if a.public_key.is_some() && a.public_key == b.public_key {
                    self.problems.add("XKeyInUse", target, both("wireGuardPublicKey"));
                }
                if a.address.is_some() && (a.address, a.port) == (b.address, b.port) {
                    let message = both("gatewayIpAddress and wireGuardPort");
                    self.problems.add("XRedundantTunnelNotAllowed", target, message);
                }
                if a.bgp.is_some_and(|a| b.bgp.is_some_and(|b| a.address == b.address)) {
                    let message = both("bgpPeeringAddress");
                    self.problems.add("XRedundantTunnelNotAllowed", target, message);
                }
            }
        }
    }

    /// The sites that a gateway is connected to, ordered by connection.
    fn sites_of(&self, gateway: &ResourceId) -> Vec<Arc<LocalNetworkGateway>> {
        let own = self
            .connections_of(gateway)
            .filter(|c| c.connection_type == ConnectionType::IPsec);
        own.filter_map(|c| self.topology.local_gateways.get(&c.gateway2).cloned())
            .collect()
    }

    /// Runs [`Self::check_attached`] for the VNet of a gateway.
    pub(crate) fn check_attached_to(&mut self, target: &ResourceId, subject: &str, gateway: &VirtualNetworkGateway) {
        if let Some(vnet) = vnet_of(gateway) {
            self.check_attached(target, subject, &[vnet]);
        }
    }

    /// Runs [`Self::check_attached`] for a VNet with a new address space, and for all VNets that have a half of a
    /// peering with it.
    pub(crate) fn check_attached_after_space_change(&mut self, vnet: &ResourceId) {
        let own = self.topology.vnets.get(vnet).into_iter().flat_map(|v| &v.peerings);
        let mut around: Vec<ResourceId> = own.map(|p| p.remote_vnet.clone()).collect();
        around.extend(self.halves_towards(vnet).into_iter().map(|(owner, _)| owner));
        around.push(vnet.clone());
        let subject = format!("Cannot change the address space of virtual network {vnet}.");
        self.check_attached(vnet, &subject, &around);
    }

    /// Checks the external networks of gateways for overlaps: a site must not overlap another site or a VNet that is
    /// joined with it, and a circuit's line must not overlap a VNet that is linked to the circuit. The check covers the
    /// gateways of the VNets `starts`, and of all VNets that VPN joins with them. `subject`: the beginning of each
    /// message. Each violation is reported once.
    pub(crate) fn check_attached(&mut self, target: &ResourceId, subject: &str, starts: &[ResourceId]) {
        let mut all = self.topology.connections.values();
        if !all.any(|c| c.connection_type != ConnectionType::Vnet2Vnet) {
            return;
        }
        let mut found = BTreeSet::new();
        for start in starts {
            let joined = self.joined_with(start);
            let mut sites = BTreeMap::new();
            for vnet in &joined {
                for gateway in gateways_of(&self.topology, vnet) {
                    let own = self.sites_of(&gateway.envelope.id);
                    found.extend(self.overlaps_at(&gateway.envelope.id, &own, vnet, &joined));
                    sites.extend(own.into_iter().map(|site| (site.envelope.id.clone(), site)));
                }
            }
            found.extend(overlapping_sites(&sites));
        }
        for (code, what) in found {
            self.problems.add(code, target, format!("{subject} {what}"));
        }
    }

    /// The violations at one gateway of `vnet`: a site of the gateway that overlaps a joined VNet, or a line of its
    /// circuits that overlaps a linked VNet.
    fn overlaps_at(
        &self,
        gateway: &ResourceId,
        sites: &[Arc<LocalNetworkGateway>],
        vnet: &ResourceId,
        joined: &BTreeSet<ResourceId>,
    ) -> Vec<Violation> {
        let mut found = Vec::new();
        if !sites.is_empty() {
            let networks = self.networks_beside_sites(vnet, joined);
            for site in sites {
                let own = DisjointSet::new(&site_prefixes(site));
                for (other, nets) in &networks {
                    found.extend(site_overlap(
                        &site.envelope.id,
                        ("virtual network", other),
                        &own.overlaps_with(nets),
                    ));
                }
            }
        }
        for connection in self.connections_of(gateway) {
            if let Some(circuit) = self.topology.circuits.get(&connection.gateway2) {
                found.extend(self.line_overlaps(circuit, vnet));
            }
        }
        found
    }

    /// The networks that the sites of a gateway in `vnet` must not overlap: the VNets `joined`, which VPN joins with
    /// `vnet`, and the peered VNets of `vnet` (G7). For a peered VNet, both its synced and its present prefixes count.
    fn networks_beside_sites(&self, vnet: &ResourceId, joined: &BTreeSet<ResourceId>) -> Networks {
        let vnets = joined.iter().filter_map(|id| self.topology.vnets.get(id));
        let mut networks: Networks = vnets
            .map(|v| (v.envelope.id.clone(), v.address_space.clone()))
            .collect();
        let own = self.topology.vnets.get(vnet).into_iter().flat_map(|v| &v.peerings);
        for half in own.filter(|p| p.state != PeeringState::Disconnected) {
            let known = networks.entry(half.remote_vnet.clone()).or_default();
            known.extend(occupied_prefixes(&self.topology, half));
        }
        networks
    }

    /// The violations of a circuit's lines that overlap the linked VNet `vnet`, or a VNet that uses the gateways of
    /// `vnet`.
    fn line_overlaps(&self, circuit: &ExpressRouteCircuit, vnet: &ResourceId) -> Vec<Violation> {
        let Some(peering) = &circuit.private_peering else {
            return Vec::new();
        };
        let lines = DisjointSet::new(&[peering.primary, peering.secondary]);
        let users = self.halves_towards(vnet).into_iter();
        let users = users.filter(|(_, half)| half.use_remote_gateways && half.state != PeeringState::Disconnected);
        let vnets = users.map(|(owner, _)| owner).chain([vnet.clone()]);
        let vnets: Vec<_> = vnets.filter_map(|id| self.topology.vnets.get(&id)).collect();
        let mut found = Vec::new();
        for linked in vnets {
            let overlaps = lines.overlaps_with(&linked.address_space);
            if !overlaps.is_empty() {
                let message = format!(
                    "The lines of circuit {} overlap virtual network {}, which is linked to it. Overlapping address \
                     prefixes: {} (E1).",
                    circuit.envelope.id,
                    linked.envelope.id,
                    pairs(&overlaps)
                );
                found.push(("XCircuitPrefixOverlap", message));
            }
        }
        found
    }
}

/// The violations of sites that overlap each other (G16). `sites`: all sites of gateways that VPN joins; a site to
/// which several gateways are connected is in it once.
fn overlapping_sites(sites: &BTreeMap<ResourceId, Arc<LocalNetworkGateway>>) -> Vec<Violation> {
    let with_owner = |(id, site): (&'_ ResourceId, &Arc<LocalNetworkGateway>)| -> Vec<(IpNet, ResourceId)> {
        site_prefixes(site).into_iter().map(|net| (net, id.clone())).collect()
    };
    let all: Vec<(IpNet, ResourceId)> = sites.iter().flat_map(with_owner).collect();
    let nets: Vec<IpNet> = all.iter().map(|(net, _)| *net).collect();
    let mut by_pair: BTreeMap<(&ResourceId, &ResourceId), Vec<(IpNet, IpNet)>> = BTreeMap::new();
    for (a, b) in overlaps_within(&nets) {
        let ((net_a, site_a), (net_b, site_b)) = (&all[a], &all[b]);
        if site_a != site_b {
            by_pair.entry((site_b, site_a)).or_default().push((*net_b, *net_a));
        }
    }
    let finding = |((site, other), overlaps): ((&ResourceId, &ResourceId), Vec<_>)| {
        site_overlap(site, ("local network gateway", other), &overlaps)
    };
    by_pair.into_iter().filter_map(finding).collect()
}

/// The violation of overlapping prefixes. `None`: nothing overlaps.
fn site_overlap(
    site: &ResourceId,
    (what, other): (&str, &ResourceId),
    overlaps: &[(IpNet, IpNet)],
) -> Option<Violation> {
    let message = || {
        format!(
            "Local network gateway {site} and {what} {other} would be joined by VPN, and their addresses overlap. \
             Overlapping address prefixes: {} (G7, G16).",
            pairs(overlaps)
        )
    };
    (!overlaps.is_empty()).then(|| ("XLocalNetworkOverlap", message()))
}

/// The prefixes of a site, and the address of its BGP peer if none of the prefixes contains it. A link-local BGP
/// address (APIPA) is left out: it is used only inside one tunnel, so sites of different gateways may have the same
/// one.
fn site_prefixes(site: &LocalNetworkGateway) -> Vec<IpNet> {
    let mut prefixes = site.address_space.clone();
    let peer = site.bgp.map(|bgp| bgp.address).filter(|a| !is_apipa(*a));
    let outside = peer.filter(|peer| !prefixes.iter().any(|p| p.contains(peer)));
    prefixes.extend(outside.map(IpNet::from));
    prefixes
}
