//! Which agents may have a link, and which sources each end may use (D9, D10, D14).

use super::index::{Circuit, Index, Instance, Machine, Site, Tunnel, Vnet};
use super::prefix;
use crate::resource::Agent;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use tombolo_proto::config::{CircuitLink, ForeignSources, Link, Relation, Transport};
use tombolo_proto::id::AgentId;

/// The links of a VM: to the machines of its VNet and of `Connected` peers, and to the gateways in use.
pub(super) fn of_machine(index: &Index<'_>, vnet: &Vnet<'_>, own: &Machine<'_>) -> Vec<Link> {
    let own_space = &vnet.resource.address_space;
    let mut links = Links::of(&own.agent.id);
    for machine in &vnet.machines {
        let foreign = match machine.forwards() {
            true => ForeignSources::Any,
            false => ForeignSources::None,
        };
        links.add(
            machine.agent,
            Relation::VnetLocal {},
            Transport::Automatic,
            machine.sources.clone(),
            foreign,
        );
    }
    for peer in &vnet.peers {
        let relation = Relation::Peering {
            peering: peer.half.id.clone(),
        };
        for machine in &index.vnets[peer.remote].machines {
            let sources = known(machine, &peer.half.remote_address_space, own_space);
            let foreign = foreign_of_peer(machine, peer.half.allow_forwarded_traffic);
            if !sources.is_empty() {
                links.add(machine.agent, relation.clone(), peer.transport(), sources, foreign);
            }
        }
    }
    if let Some(hub) = vnet.hub {
        links_to_gateways(&mut links, index, vnet, hub);
    }
    links.finish()
}

/// Adds the links of a VM to the gateways in use, those of the VNet at position `hub`, and to the edges behind them.
fn links_to_gateways(links: &mut Links<'_>, index: &Index<'_>, vnet: &Vnet<'_>, hub: usize) {
    let (own_space, transport) = (&vnet.resource.address_space, vnet.transport_to(hub));
    let hub = &index.vnets[hub];
    let relayed = relayed(hub, own_space);
    let alternatives = hub.instances.len() + hub.er_instances.len() > 1;
    for instance in &hub.instances {
        let mut sources = relayed.clone();
        sources.push(IpNet::from(instance.address));
        let sources = prefix::sorted(&sources);
        let relation = Relation::Gateway {};
        links.add(instance.agent, relation, transport, sources, ForeignSources::None);
        links.with(instance.agent, |link| {
            link.watched = alternatives;
            // A client of advertised routes keeps its link open. It is the initiator because a machine may be
            // behind address translation (D11).
            (link.always_on, link.initiator) = (hub.learns_routes(), hub.learns_routes());
        });
    }
    // Machines send to the edges directly. Packets from a circuit, and answers of the edges themselves, come
    // through the gateway (T4).
    let edges: Vec<IpNet> = index
        .circuits_of(hub)
        .flat_map(|(_, connection)| connection.tunnel_addresses.iter().copied().map(IpNet::from))
        .collect();
    for instance in &hub.er_instances {
        let mut sources = edges.clone();
        sources.push(IpNet::from(instance.address));
        let sources = prefix::sorted(&sources);
        let relation = Relation::Gateway {};
        links.add(instance.agent, relation, transport, sources, ForeignSources::None);
        links.with(instance.agent, |link| {
            (link.watched, link.always_on, link.initiator) = (alternatives, true, true);
        });
    }
    for (circuit, connection) in index.circuits_of(hub) {
        for (edge, _) in circuit.ends(connection) {
            let relation = Relation::Edge {
                connection: connection.envelope.id.clone(),
            };
            let none = ForeignSources::None;
            links.add(edge, relation, Transport::Automatic, Vec::new(), none);
            links.with(edge, |link| link.watched = true);
        }
    }
    // While the direct link is down, packets use the gateways if they lead to the same prefix; so the direct link
    // is monitored (P25 reversed).
    let contributed = hub.connection_prefixes();
    for peer in &vnet.peers {
        let stands_in = peer.half.remote_address_space.iter().any(|p| contributed.contains(p));
        for machine in index.vnets[peer.remote].machines.iter().filter(|_| stands_in) {
            links.with(machine.agent, |link| link.watched = true);
        }
    }
}

/// The links of an instance of a VPN gateway. Its peers are the machines of its VNet and of its clients, the VNet's
/// ExpressRoute gateway, and the other ends of its connections.
pub(super) fn of_gateway(index: &Index<'_>, vnet: &Vnet<'_>, own: &Instance<'_>) -> Vec<Link> {
    let own_space = &vnet.resource.address_space;
    let mut links = Links::of(&own.agent.id);
    for machine in &vnet.machines {
        let foreign = match machine.forwards() {
            true => ForeignSources::Any,
            false => ForeignSources::None,
        };
        links.add(
            machine.agent,
            Relation::GatewayClient {},
            Transport::Automatic,
            machine.sources.clone(),
            foreign,
        );
    }
    let mut own_side = own_space.clone();
    for client in &vnet.clients {
        own_side.extend(&client.half.remote_address_space);
        for machine in &index.vnets[client.vnet].machines {
            let sources = known(machine, &client.half.remote_address_space, own_space);
            let foreign = foreign_of_peer(machine, client.half.allow_forwarded_traffic);
            if !sources.is_empty() {
                let (relation, transport) = (Relation::GatewayClient {}, vnet.transport_to(client.vnet));
                links.add(machine.agent, relation, transport, sources, foreign);
            }
        }
    }
    links.keep_client_links_open(vnet.learns_routes());
    for instance in &vnet.er_instances {
        links.add_other(instance.agent, own.agent);
    }
    for site in &vnet.sites {
        links.add_site(site);
    }
    for tunnel in &vnet.tunnels {
        let relation = Relation::Connection {
            connection: tunnel.connection.envelope.id.clone(),
        };
        let sources = prefix::subtract(&tunnel.prefixes, &own_side);
        for end in tunnel_ends(index, tunnel) {
            // Only WireGuard's handshake authenticates with the shared key (D14).
            let transport = Transport::WireGuard;
            links.add(
                end.agent,
                relation.clone(),
                transport,
                sources.clone(),
                ForeignSources::None,
            );
            links.with(end.agent, |link| {
                link.always_on = true;
                link.initiator = own.agent.id < end.agent.id;
                link.preshared_key = tunnel.connection.preshared_key();
                link.watched = true;
            });
        }
    }
    links.finish()
}

/// The links of an instance of an ExpressRoute gateway. Its peers are the machines of its VNet and of its clients, the
/// edges of its circuits, and the VNet's VPN gateway.
pub(super) fn of_circuit_gateway(index: &Index<'_>, vnet: &Vnet<'_>, own: &Instance<'_>) -> Vec<Link> {
    let mut links = Links::of(&own.agent.id);
    let clients = vnet.clients.iter().map(|client| client.vnet);
    for position in std::iter::once(vnet.position).chain(clients) {
        for machine in &index.vnets[position].machines {
            links.add(
                machine.agent,
                Relation::GatewayClient {},
                vnet.transport_to(position),
                machine.sources.clone(),
                ForeignSources::None,
            );
        }
    }
    links.keep_client_links_open(true);
    for instance in &vnet.instances {
        links.add_other(instance.agent, own.agent);
    }
    for (circuit, connection) in index.circuits_of(vnet) {
        for (edge, hop) in circuit.ends(connection) {
            let relation = Relation::Edge {
                connection: connection.envelope.id.clone(),
            };
            let sources = vec![IpNet::from(hop.address)];
            links.add(edge, relation, Transport::Automatic, sources, ForeignSources::None);
            links.with(edge, |link| {
                (link.always_on, link.initiator) = (true, own.agent.id < edge.id);
                link.watched = true;
            });
        }
    }
    links.finish()
}

/// The links of an edge. Its peers are the gateways that are connected to its circuit, and the machines of their VNets
/// and clients, which send to the edge directly (T4).
pub(super) fn of_edge(index: &Index<'_>, circuit: &Circuit<'_>, link: CircuitLink) -> Vec<Link> {
    let Some(own) = circuit.edges[link as usize] else {
        return Vec::new();
    };
    let mut links = Links::of(&own.id);
    for linked in &circuit.links {
        let vnet = &index.vnets[linked.vnet];
        let connection = &linked.connection.envelope.id;
        for instance in &vnet.er_instances {
            let relation = Relation::CircuitGateway {
                connection: connection.clone(),
            };
            let none = ForeignSources::None;
            links.add(instance.agent, relation, Transport::Automatic, Vec::new(), none);
            links.with(instance.agent, |link| {
                (link.always_on, link.initiator) = (true, own.id < instance.agent.id);
                link.watched = true;
            });
        }
        let clients = vnet.clients.iter().map(|client| client.vnet);
        for position in std::iter::once(vnet.position).chain(clients) {
            for machine in &index.vnets[position].machines {
                let relation = Relation::CircuitClient {
                    connection: connection.clone(),
                };
                let sources = match machine.forwards() {
                    true => vnet.advertised(),
                    false => machine.sources.clone(),
                };
                links.add(
                    machine.agent,
                    relation,
                    Transport::Automatic,
                    sources,
                    ForeignSources::None,
                );
            }
        }
    }
    links.finish()
}

/// The far ends of a tunnel, the preferred one first. Empty while this side's connection has no shared key: a tunnel
/// without one would be less secure than requested (G11).
pub(super) fn tunnel_ends<'i, 't>(index: &'i Index<'t>, tunnel: &Tunnel<'t>) -> impl Iterator<Item = &'i Instance<'t>> {
    let keyed = tunnel.connection.shared_key.is_some();
    index.vnets[tunnel.remote].instances.iter().filter(move |_| keyed)
}

/// The source addresses that a machine of another VNet may use here: its own, as far as they are synced (P27). An
/// appliance may use those of its whole VNet, even without `allowForwardedTraffic` (P18). Addresses of the receiver's
/// own space are never among them (D10).
fn known(machine: &Machine<'_>, synced: &[IpNet], own_space: &[IpNet]) -> Vec<IpNet> {
    if machine.forwards() {
        return prefix::subtract(synced, own_space);
    }
    let mut sources = machine.sources.clone();
    sources.retain(|source| prefix::covered(source, synced));
    prefix::subtract(&sources, own_space)
}

/// The foreign sources of a peer's machine: the receiver's half decides whether an appliance may forward them (P18).
fn foreign_of_peer(machine: &Machine<'_>, allow_forwarded: bool) -> ForeignSources {
    match machine.forwards() && allow_forwarded {
        true => ForeignSources::OutsideOwnSpace,
        false => ForeignSources::None,
    }
}

/// The sources that the VPN gateway of `hub` may relay to a machine of the VNet with `own_space`. They are the prefixes
/// behind its connections (even where the VNet prefers a peering for them, D9), its VNet, and its clients (P21d),
/// without the VNet's own space.
fn relayed(hub: &Vnet<'_>, own_space: &[IpNet]) -> Vec<IpNet> {
    let mut sources = hub.connection_prefixes();
    sources.extend(&hub.resource.address_space);
    sources.extend(hub.clients.iter().flat_map(|client| &client.half.remote_address_space));
    prefix::subtract(&sources, own_space)
}

/// Collects links, ordered by peer: one for each peer, none to the agent itself.
struct Links<'a> {
    own: &'a AgentId,
    links: BTreeMap<AgentId, Link>,
}

impl<'a> Links<'a> {
    fn of(own: &'a AgentId) -> Self {
        Self {
            own,
            links: BTreeMap::new(),
        }
    }

    /// Adds a link unless one with the peer exists: the first relation wins.
    fn add(
        &mut self,
        peer: &Agent,
        relation: Relation,
        transport: Transport,
        sources: Vec<IpNet>,
        foreign: ForeignSources,
    ) {
        if peer.id == *self.own {
            return;
        }
        self.links.entry(peer.id.clone()).or_insert_with(|| Link {
            peer: peer.id.clone(),
            public_key: peer.public_key,
            preshared_key: None,
            quic: peer
                .certificate_key
                .parse()
                .ok()
                .filter(|_| transport != Transport::WireGuard),
            transport,
            endpoint: peer.reach.endpoints.first().copied(),
            quic_endpoint: peer.reach.quic_endpoint.filter(|_| transport != Transport::WireGuard),
            lanes: peer.reach.lanes,
            always_on: false,
            initiator: false,
            relation,
            sources,
            foreign,
            watched: false,
            stock: false,
            dead_after: None,
        });
    }

    /// Changes the link with an agent, if it exists.
    fn with(&mut self, peer: &Agent, change: impl FnOnce(&mut Link)) {
        if let Some(link) = self.links.get_mut(&peer.id) {
            change(link);
        }
    }

    /// Sets whether clients keep their links open, because the gateway advertises learned routes to them (D11).
    fn keep_client_links_open(&mut self, open: bool) {
        for link in self.links.values_mut() {
            link.always_on = open && matches!(link.relation, Relation::GatewayClient {});
        }
    }

    /// Adds the VNet's gateway of the other type. The two exchange routes for display and relay no packets (E8).
    fn add_other(&mut self, other: &Agent, own: &Agent) {
        let none = ForeignSources::None;
        self.add(other, Relation::OtherGateway {}, Transport::Automatic, Vec::new(), none);
        self.with(other, |link| {
            (link.always_on, link.initiator) = (true, own.id < other.id);
        });
    }

    /// Adds the device of a site: a third-party peer that supports WireGuard only (D16).
    fn add_site(&mut self, site: &Site<'_>) {
        let (Some(peer), Some(public_key)) = (site.device(), site.local.public_key) else {
            return;
        };
        let sources = site.prefixes.iter().copied().chain(site.bgp_address());
        let sources = prefix::sorted(&sources.collect::<Vec<_>>());
        let endpoint = site.local.address.map(|ip| SocketAddr::new(ip, site.local.port));
        let link = Link {
            peer: peer.clone(),
            public_key,
            preshared_key: site.connection.preshared_key(),
            quic: None,
            transport: Transport::WireGuard,
            endpoint,
            quic_endpoint: None,
            // A third-party device has one session, which lane 0 holds (D15).
            lanes: 1,
            always_on: true,
            initiator: endpoint.is_some(),
            relation: Relation::Site {
                connection: site.connection.envelope.id.clone(),
            },
            sources,
            foreign: ForeignSources::None,
            watched: false,
            stock: true,
            dead_after: site.connection.dpd_timeout,
        };
        self.links.insert(peer, link);
    }

    fn finish(self) -> Vec<Link> {
        self.links.into_values().collect()
    }
}
