//! Decides which pairs of agents have a link, and which sources each end may use (D9, D10, D14).

use super::index::{Circuit, Index, Instance, Machine, Site, Tunnel, Vnet};
use super::prefix;
use crate::resource::{Agent, is_premium};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use tombolo_proto::config::{CircuitLink, ForeignSources, Link, Relation, Transport};
use tombolo_proto::id::AgentId;

/// The links of a VM: to the machines of its VNet and of VNets with a `Connected` peering, to the instances of the
/// gateways that its VNet uses, and to the edges of these gateways' circuits. All lists of links in this file are
/// ordered by peer.
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
            let sources = allowed_sources(machine, &peer.half.remote_address_space, own_space);
            let foreign = foreign_sources_of_peer(machine, peer.half.allow_forwarded_traffic);
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

/// Adds the links of a VM to the gateways that its VNet uses, and to the edges of the circuits that these gateways are
/// connected to. `hub`: the position of the VNet that has these gateways.
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
        links.edit(instance.agent, |link| {
            link.monitored = alternatives;
            // A machine to which a gateway advertises routes keeps its link with the gateway open. The machine starts
            // the handshake, because the gateway could not start it if the machine were behind a NAT (D11).
            (link.always_on, link.initiator) = (hub.learns_routes(), hub.learns_routes());
        });
    }
    // Machines send packets for a circuit to its edges directly, but packets from a circuit reach them through the
    // gateway. Answers of an edge itself have the edge's tunnel address as source, so the gateway may send from these
    // addresses (T4).
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
        links.edit(instance.agent, |link| {
            (link.monitored, link.always_on, link.initiator) = (alternatives, true, true);
        });
    }
    for (circuit, connection) in index.circuits_of(hub) {
        for (edge, _) in circuit.ends(connection) {
            let relation = Relation::Edge {
                connection: connection.envelope.id.clone(),
            };
            let none = ForeignSources::None;
            links.add(edge, relation, Transport::Automatic, Vec::new(), none);
            links.edit(edge, |link| link.monitored = true);
        }
    }
    // A peering takes precedence over the gateways (P25). But if the gateways lead to the same prefix as the peering,
    // packets take the path through the gateways while the direct link to the peered VNet's machine is down. To detect
    // this, the direct link is monitored.
    let contributed = hub.connection_prefixes();
    for peer in &vnet.peers {
        let stands_in = peer.half.remote_address_space.iter().any(|p| contributed.contains(p));
        for machine in index.vnets[peer.remote].machines.iter().filter(|_| stands_in) {
            links.edit(machine.agent, |link| link.monitored = true);
        }
    }
}

/// The links of an instance of a VPN gateway: to the VMs of its VNet and of the spokes that use the gateway
/// (`useRemoteGateways`), to the instances of the VNet's ExpressRoute gateway, to the devices of its sites, and to the
/// instances at the far ends of its connections.
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
    let mut local_prefixes = own_space.clone();
    for client in &vnet.clients {
        local_prefixes.extend(&client.half.remote_address_space);
        for machine in &index.vnets[client.vnet].machines {
            let sources = allowed_sources(machine, &client.half.remote_address_space, own_space);
            let foreign = foreign_sources_of_peer(machine, client.half.allow_forwarded_traffic);
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
        let sources = prefix::subtract(&tunnel.prefixes, &local_prefixes);
        for end in tunnel_ends(index, tunnel) {
            // The link must authenticate with the connection's shared key, which only WireGuard's handshake can do
            // (D14).
            let transport = Transport::WireGuard;
            links.add(
                end.agent,
                relation.clone(),
                transport,
                sources.clone(),
                ForeignSources::None,
            );
            links.edit(end.agent, |link| {
                link.always_on = true;
                // Exactly one end must start the handshake. Both ends compare the same two agent names, so they agree
                // on which end starts it.
                link.initiator = own.agent.id < end.agent.id;
                link.preshared_key = tunnel.connection.preshared_key();
                link.monitored = true;
            });
        }
    }
    links.finish()
}

/// The links of an instance of an ExpressRoute gateway: to the VMs of its VNet and of the spokes that use the gateway,
/// to the edges of its circuits, and to the instances of the VNet's VPN gateway.
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
    if index.circuits_of(vnet).any(|(circuit, _)| is_premium(circuit.resource)) {
        let machines = std::iter::once(vnet.position).chain(vnet.clients.iter().map(|client| client.vnet));
        let machines = machines.flat_map(|position| index.vnets[position].machines.iter().map(|m| m.agent));
        for agent in machines.chain(vnet.instances.iter().map(|instance| instance.agent)) {
            links.edit(agent, |link| link.many_routes = agent.reach.many_routes);
        }
    }
    for (circuit, connection) in index.circuits_of(vnet) {
        for (edge, hop) in circuit.ends(connection) {
            let relation = Relation::Edge {
                connection: connection.envelope.id.clone(),
            };
            let sources = vec![IpNet::from(hop.address)];
            links.add(edge, relation, Transport::Automatic, sources, ForeignSources::None);
            links.edit(edge, |link| {
                (link.always_on, link.initiator) = (true, own.agent.id < edge.id);
                link.monitored = true;
            });
        }
    }
    links.finish()
}

/// The links of the edge on which one of a circuit's lines ends: to the instances of the gateways that are connected to
/// the circuit, and to the VMs of these gateways' VNets and of the spokes that use the gateways, because VMs send to
/// the edge directly (T4). Empty if no agent is bound to that line.
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
            links.edit(instance.agent, |link| {
                (link.always_on, link.initiator) = (true, own.id < instance.agent.id);
                link.monitored = true;
                link.many_routes = is_premium(circuit.resource) && instance.agent.reach.many_routes;
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

/// The instances at the far end of a tunnel, the preferred one first. Empty while this side's connection object has no
/// shared key: a tunnel without one would be less secure than the operator requested (G11).
pub(super) fn tunnel_ends<'i, 't>(index: &'i Index<'t>, tunnel: &Tunnel<'t>) -> impl Iterator<Item = &'i Instance<'t>> {
    let keyed = tunnel.connection.shared_key.is_some();
    index.vnets[tunnel.remote].instances.iter().filter(move |_| keyed)
}

/// The source addresses from which a machine of another VNet may send to the receiver: the machine's own addresses that
/// are within `synced`, the prefixes that the receiver's half of the peering has synced (P27). An appliance may use all
/// synced addresses of its VNet, even without `allowForwardedTraffic` (P18). Addresses of the receiver's own space are
/// never permitted (D10).
fn allowed_sources(machine: &Machine<'_>, synced: &[IpNet], own_space: &[IpNet]) -> Vec<IpNet> {
    if machine.forwards() {
        return prefix::subtract(synced, own_space);
    }
    let mut sources = machine.sources.clone();
    sources.retain(|source| prefix::covered(source, synced));
    prefix::subtract(&sources, own_space)
}

/// Whether a machine of a peered VNet may forward packets whose sources are outside of its own VNet. Only an appliance
/// may, and only if the receiver's half has `allowForwardedTraffic` (P18).
fn foreign_sources_of_peer(machine: &Machine<'_>, allow_forwarded: bool) -> ForeignSources {
    match machine.forwards() && allow_forwarded {
        true => ForeignSources::OutsideOwnSpace,
        false => ForeignSources::None,
    }
}

/// The sources of the packets that the VPN gateway of `hub` may relay to a machine (P21d): the prefixes reachable
/// through the gateway's connections (even if the machine's VNet prefers a peering for them, D9), the hub VNet, and the
/// spokes that use the gateway. Addresses in `own_space`, the address space of the machine's VNet, are left out.
fn relayed(hub: &Vnet<'_>, own_space: &[IpNet]) -> Vec<IpNet> {
    let mut sources = hub.connection_prefixes();
    sources.extend(&hub.resource.address_space);
    sources.extend(hub.clients.iter().flat_map(|client| &client.half.remote_address_space));
    prefix::subtract(&sources, own_space)
}

/// The links of the agent `own`, ordered by peer. There is one link for each peer, and none with `own` itself.
struct Links<'a> {
    own: &'a AgentId,
    links: BTreeMap<AgentId, Link>,
}

impl<'a> Links<'a> {
    /// No links yet.
    fn of(own: &'a AgentId) -> Self {
        Self {
            own,
            links: BTreeMap::new(),
        }
    }

    /// Adds a link that is not kept open and not monitored. If `own` already has a link with the peer, nothing changes:
    /// two agents that are related in several ways have one link, with the relation that is added first.
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
            peer_lanes: peer.reach.lanes,
            many_routes: false,
            always_on: false,
            initiator: false,
            relation,
            sources,
            foreign,
            arrivals: Vec::new(),
            monitored: false,
            third_party: false,
            dpd_timeout: None,
        });
    }

    /// Changes the link with an agent, if it exists.
    fn edit(&mut self, peer: &Agent, change: impl FnOnce(&mut Link)) {
        if let Some(link) = self.links.get_mut(&peer.id) {
            change(link);
        }
    }

    /// Sets whether this gateway's links with its client machines are kept open; they are if the gateway advertises
    /// learned routes over them (D11). All other links that have been added before this call are set to not kept open.
    fn keep_client_links_open(&mut self, open: bool) {
        for link in self.links.values_mut() {
            link.always_on = open && matches!(link.relation, Relation::GatewayClient {});
        }
    }

    /// Adds a link to an instance of the VNet's other gateway: the VPN gateway for an ExpressRoute gateway, and the
    /// reverse. The two gateways exchange routes only to show them in their learned routes; they relay no packets to
    /// each other (E8).
    fn add_other(&mut self, other: &Agent, own: &Agent) {
        let none = ForeignSources::None;
        self.add(other, Relation::OtherGateway {}, Transport::Automatic, Vec::new(), none);
        self.edit(other, |link| {
            (link.always_on, link.initiator) = (true, own.id < other.id);
        });
    }

    /// Adds a link to the device of a site, a third-party peer that supports WireGuard only (D16). Nothing is added
    /// while the device's key or the shared key is missing.
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
            // A device of a third party has one WireGuard session. Lane 0, the agent's first thread, has this session
            // (D15).
            peer_lanes: 1,
            many_routes: false,
            always_on: true,
            initiator: endpoint.is_some(),
            relation: Relation::Site {
                connection: site.connection.envelope.id.clone(),
            },
            sources,
            foreign: ForeignSources::None,
            arrivals: Vec::new(),
            monitored: false,
            third_party: true,
            dpd_timeout: site.connection.dpd_timeout,
        };
        self.links.insert(peer, link);
    }

    /// The collected links, ordered by peer.
    fn finish(self) -> Vec<Link> {
        self.links.into_values().collect()
    }
}
