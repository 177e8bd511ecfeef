//! Which agents may have a link, and what each end may speak for (D9, D10, D14).

use super::index::{Index, Instance, Machine, Tunnel, Vnet};
use super::prefix;
use crate::resource::Agent;
use ipnet::IpNet;
use std::collections::BTreeMap;
use tombolo_proto::config::{ForeignSources, Link, Relation, Transport};
use tombolo_proto::id::AgentId;

/// The links of a VM: its VNet's machines, those of `Connected` peers, and the gateway in use.
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
            machine.speaks_for.clone(),
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
    let transport = vnet.hub.map_or(Transport::Automatic, |hub| vnet.transport_to(hub));
    if let Some(hub) = vnet.hub.map(|hub| &index.vnets[hub]) {
        let relayed = relayed(hub, own_space);
        for instance in &hub.instances {
            let mut sources = relayed.clone();
            sources.push(IpNet::from(instance.address));
            let sources = prefix::sorted(&sources);
            let relation = Relation::Gateway {};
            links.add(instance.agent, relation, transport, sources, ForeignSources::None);
        }
    }
    links.finish()
}

/// The links of a gateway instance: machines of its VNet and of its clients, and the other ends of its connections.
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
            machine.speaks_for.clone(),
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
    for tunnel in &vnet.tunnels {
        let relation = Relation::Connection {
            connection: tunnel.connection.envelope.id.clone(),
        };
        let sources = prefix::subtract(&tunnel.prefixes, &own_side);
        for end in tunnel_ends(index, tunnel) {
            // Only WireGuard's handshake proves the shared key (D14).
            let transport = Transport::WireGuard;
            links.add(
                end.agent,
                relation.clone(),
                transport,
                sources.clone(),
                ForeignSources::None,
            );
            if let Some(link) = links.links.get_mut(&end.agent.id) {
                link.always_on = true;
                link.initiator = own.agent.id < end.agent.id;
                link.preshared_key = tunnel.connection.preshared_key();
            }
        }
    }
    links.finish()
}

/// The far ends of a tunnel, in order of preference. None while the own object has no shared key: a tunnel without
/// one would stand on less than was asked for (G11).
pub(super) fn tunnel_ends<'i, 't>(index: &'i Index<'t>, tunnel: &Tunnel<'t>) -> impl Iterator<Item = &'i Instance<'t>> {
    let keyed = tunnel.connection.shared_key.is_some();
    index.vnets[tunnel.remote].instances.iter().filter(move |_| keyed)
}

/// The sources that a machine of another VNet may use here: its own as far as they are known (P27); an appliance also
/// those of its whole VNet, which it may forward for without `allowForwardedTraffic` (P18). Nothing of the own space
/// (D10).
fn known(machine: &Machine<'_>, synced: &[IpNet], own_space: &[IpNet]) -> Vec<IpNet> {
    if machine.forwards() {
        return prefix::subtract(synced, own_space);
    }
    let mut sources = machine.speaks_for.clone();
    sources.retain(|source| prefix::covered(source, synced));
    prefix::subtract(&sources, own_space)
}

/// P18: the receiver's half decides what an appliance of the peer may bring along.
fn foreign_of_peer(machine: &Machine<'_>, allow_forwarded: bool) -> ForeignSources {
    match machine.forwards() && allow_forwarded {
        true => ForeignSources::OutsideOwnSpace,
        false => ForeignSources::None,
    }
}

/// All that the gateway of `hub` may relay to a machine of the VNet with `own_space`: what lies behind its connections
/// (also where the VNet itself prefers a peering, D9), its VNet and its clients (P21d), but nothing of the own space.
fn relayed(hub: &Vnet<'_>, own_space: &[IpNet]) -> Vec<IpNet> {
    let mut sources = hub.contributed();
    sources.extend(&hub.resource.address_space);
    sources.extend(hub.clients.iter().flat_map(|client| &client.half.remote_address_space));
    prefix::subtract(&sources, own_space)
}

/// Links in the making: ordered by the other end, one each, none to oneself.
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
            endpoint: peer.endpoints.first().copied(),
            always_on: false,
            initiator: false,
            relation,
            sources,
            foreign,
            watched: false,
            stock: false,
        });
    }

    fn finish(self) -> Vec<Link> {
        self.links.into_values().collect()
    }
}
