//! Finds what joins VNets and gateways: peerings, tunnels, sites and circuits.

use super::super::prefix;
use super::{Circuit, CircuitConnection, Client, Index, Peer, Place, Site, Tunnel, region};
use crate::lookup::exceeds_limit;
use crate::resource::{Binding, Connection, ConnectionType, PeeringState};
use std::collections::BTreeMap;
use std::sync::Arc;
use tombolo_proto::id::ResourceId;
use tombolo_proto::net::overlap;

impl<'t> Index<'t> {
    /// Finds the pairs of halves that are both `Connected` (P13), and from these pairs the VNet whose gateways each
    /// VNet uses: itself, or a peered VNet (P19, P20, P23).
    pub(super) fn join_peers(&mut self, positions: &BTreeMap<&'t ResourceId, usize>) {
        for position in 0..self.vnets.len() {
            let vnet = self.vnets[position].resource;
            let mut peers = Vec::new();
            for half in vnet.peerings.iter().filter(|p| p.state == PeeringState::Connected) {
                let Some(&remote) = positions.get(&half.remote_vnet) else {
                    continue;
                };
                let other = self.vnets[remote].resource;
                let counterpart = other
                    .peerings
                    .iter()
                    .find(|p| p.remote_vnet == vnet.envelope.id && p.state == PeeringState::Connected);
                if let Some(counterpart) = counterpart {
                    peers.push(Peer {
                        half,
                        counterpart,
                        remote,
                        global: region(&vnet.envelope.location) != region(&other.envelope.location),
                    });
                }
            }
            self.vnets[position].peers = peers;
        }
        for position in 0..self.vnets.len() {
            let vnet = &self.vnets[position];
            if vnet.has_gateway() {
                self.vnets[position].hub = Some(position);
                continue;
            }
            let hub = vnet.peers.iter().find(|peer| {
                peer.half.use_remote_gateways
                    && peer.counterpart.allow_gateway_transit
                    && self.vnets[peer.remote].has_gateway()
            });
            let Some((hub, half)) = hub.map(|peer| (peer.remote, peer.counterpart)) else {
                continue;
            };
            self.vnets[position].hub = Some(hub);
            self.vnets[hub].clients.push(Client { vnet: position, half });
        }
    }

    /// Finds the `Vnet2Vnet` connections for which both connection objects exist (G10), and the prefixes that are
    /// reachable through each. With only one of the two objects there is no tunnel.
    pub(super) fn join_tunnels(&mut self) {
        let of_gateway: BTreeMap<&ResourceId, usize> = self
            .vnets
            .iter()
            .filter_map(|vnet| Some((&vnet.gateway?.envelope.id, vnet.position)))
            .collect();
        let mut pairs: BTreeMap<(usize, usize), &'t Connection> = BTreeMap::new();
        let tunnels = self.topology.connections.values();
        for connection in tunnels.filter(|c| c.connection_type == ConnectionType::Vnet2Vnet) {
            let ends = (
                of_gateway.get(&connection.gateway1),
                of_gateway.get(&connection.gateway2),
            );
            if let (Some(&own), Some(&other)) = ends {
                // A request for a second connection between the same gateways is refused (G13), so at most one exists
                // in each direction.
                pairs.entry((own, other)).or_insert(connection);
            }
        }
        let mut tunnels: Vec<(usize, Tunnel<'t>)> = Vec::new();
        for (&(own, remote), connection) in &pairs {
            let Some(back) = pairs.get(&(remote, own)).filter(|_| own != remote) else {
                continue;
            };
            let own_space = &self.vnets[own].resource.address_space;
            let bgp = connection.enable_bgp && back.enable_bgp;
            let asn = |vnet: usize| self.vnets[vnet].gateway.map(|g| g.asn);
            let exchange = bgp && asn(own) != asn(remote);
            let mut prefixes = self.vnets[remote].advertised();
            prefixes.retain(|p| !own_space.iter().any(|o| overlap(o, p)));
            if bgp && !exchange {
                // If both gateways have the same ASN, no BGP session comes up, so no prefix is reachable through the
                // tunnel (G4).
                prefixes.clear();
            }
            tunnels.push((
                own,
                Tunnel {
                    connection,
                    remote,
                    exchange,
                    prefixes,
                },
            ));
        }
        for (own, tunnel) in tunnels {
            self.vnets[own].tunnels.push(tunnel);
        }
        for vnet in &mut self.vnets {
            vnet.tunnels
                .sort_by(|a, b| a.connection.envelope.id.cmp(&b.connection.envelope.id));
        }
    }

    /// Finds the sites that each VPN gateway is connected to, ordered by the connection's id.
    pub(super) fn join_sites(&mut self) {
        for vnet in &mut self.vnets {
            let Some(gateway) = vnet.gateway else { continue };
            let of_gateway =
                |c: &&Arc<Connection>| c.connection_type == ConnectionType::IPsec && c.gateway1 == gateway.envelope.id;
            for connection in self.topology.connections.values().filter(of_gateway) {
                let Some(local) = self.topology.local_gateways.get(&connection.gateway2) else {
                    continue;
                };
                let own_space = &vnet.resource.address_space;
                let mut prefixes = local.address_space.clone();
                prefixes.retain(|p| !own_space.iter().any(|o| overlap(o, p)));
                let asn = local.bgp.map(|b| b.asn).filter(|asn| *asn != gateway.asn);
                vnet.sites.push(Site {
                    connection,
                    local,
                    exchange: connection.enable_bgp && asn.is_some(),
                    prefixes: prefix::sorted(&prefixes),
                });
            }
        }
    }

    /// Finds the edges of each circuit, and the gateways that are connected to it.
    pub(super) fn join_circuits(&mut self) {
        let of_gateway: BTreeMap<&ResourceId, usize> = self
            .vnets
            .iter()
            .filter_map(|vnet| Some((&vnet.er_gateway?.envelope.id, vnet.position)))
            .collect();
        for resource in self.topology.circuits.values() {
            let Some(peering) = &resource.private_peering else {
                continue;
            };
            let position = self.circuits.len();
            let mut edges = [None; 2];
            for agent in self.topology.agents.values().filter(|agent| !agent.revoked) {
                match &agent.binding {
                    Binding::Edge { circuit, link }
                        if *circuit == resource.envelope.id && edges[*link as usize].is_none() =>
                    {
                        edges[*link as usize] = Some(&**agent);
                        let place = Place::Edge {
                            circuit: position,
                            link: *link,
                        };
                        self.agents.insert(&agent.id, place);
                    }
                    _ => {}
                }
            }
            let mut links = Vec::new();
            for connection in self.topology.connections.values() {
                let here = connection.connection_type == ConnectionType::ExpressRoute
                    && connection.gateway2 == resource.envelope.id;
                let vnet = of_gateway.get(&connection.gateway1).filter(|_| here);
                if let Some(vnet) = vnet.filter(|vnet| !exceeds_limit(&self.vnets[**vnet].advertised())) {
                    self.vnets[*vnet].circuits.push((position, links.len()));
                    links.push(CircuitConnection {
                        connection,
                        vnet: *vnet,
                    });
                }
            }
            self.circuits.push(Circuit {
                resource,
                peering,
                edges,
                links,
            });
        }
        for vnet in &mut self.vnets {
            let circuits = &self.circuits;
            let id = |(c, l): &(usize, usize)| &circuits[*c].links[*l].connection.envelope.id;
            vnet.circuits.sort_by(|a, b| id(a).cmp(id(b)));
        }
    }
}
