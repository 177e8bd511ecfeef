//! Walks a packet from a site (M10): finds the attachment by which the site's routers send it into the agents' network.
//!
//! The routers of a site are not known, so the walk assumes that they use the routes that gateways and edges advertise to
//! them: the longest prefix, then the attachment that the site prefers, then the shorter AS path.

use super::answer::{Hop, Ingress, MatchedRoute, Walk};
use super::gateways::{edges_of, tunnels_of};
use super::no_way_out;
use super::node::Packet;
use super::stop;
use super::walk::{Agents, Answer, End, Fabric};
use crate::lookup::advertised_prefixes;
use crate::resource::{Binding, VirtualNetworkGateway};
use crate::topology::Topology;
use ipnet::IpNet;
use std::net::IpAddr;
use tombolo_engine::verdict::DropReason;
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::route::RouteSource;

/// A site with a probe, as the source of packets to one destination.
pub(super) struct Site<'t> {
    /// The agent of the probe.
    probe: AgentId,
    attachments: &'t [ResourceId],
    /// Where packets to the destination enter the agents' network. `None`: the site has no route to it.
    entry: Option<Entry>,
}

/// Where packets of a site enter the agents' network.
struct Entry {
    attachment: ResourceId,
    /// The gateway or edge.
    agent: AgentId,
    /// The device over whose link the packets come. `None`: they come over the line of an edge.
    device: Option<AgentId>,
    /// The longest advertised prefix with the destination.
    prefix: IpNet,
    /// The addresses of the gateway or edge that the site's router sends to, if they are known.
    next_hops: Vec<IpAddr>,
}

/// A gateway or edge to which a site is connected, with the prefixes that it advertises to the site.
struct Door {
    agent: AgentId,
    device: Option<AgentId>,
    /// Each prefix with the length of its AS path.
    advertised: Vec<(IpNet, usize)>,
}

/// The attachments of a site, if the agent is its probe and is not revoked.
pub(super) fn attachments<'t>(topology: &'t Topology, agent: &AgentId) -> Option<&'t [ResourceId]> {
    match &topology.agents.get(agent).filter(|a| !a.revoked)?.binding {
        Binding::Site { attachments, .. } => Some(attachments),
        Binding::Vm { .. } | Binding::Gateway { .. } | Binding::Edge { .. } => None,
    }
}

impl<'t> Site<'t> {
    /// Finds the way of packets to `destination` out of the site.
    pub(super) fn new(
        agents: &Agents<'_>,
        probe: &AgentId,
        attachments: &'t [ResourceId],
        destination: IpAddr,
    ) -> Self {
        Self {
            probe: probe.clone(),
            attachments,
            entry: entry(agents, attachments, destination),
        }
    }

    /// Walks a packet from the probe. The first hop stands for the site's routers, which are no hops with a TTL here.
    pub(super) fn walk(&self, agents: &Agents<'_>, fabric: &mut Fabric<'_>, packet: &mut Packet) -> (Walk, End) {
        let Some(entry) = &self.entry else {
            let first = self.attachments.first().cloned();
            let facts = agents.facts();
            let finding = no_way_out::finding(facts, self.attachments, packet.source, packet.destination);
            let hop = self.hop(packet, first.unwrap_or_else(|| ResourceId::new(String::new())));
            let walk = Walk {
                delivered: false,
                hops: vec![Hop {
                    verdict: format!("drops it: {}", DropReason::NoRoute),
                    ..hop
                }],
                stop: Some(stop::in_site(&self.probe, finding)),
            };
            return (walk, End::Stopped);
        };
        let first = Hop {
            route: Some(MatchedRoute {
                name: None,
                source: RouteSource::VirtualNetworkGateway,
                address_prefix: entry.prefix,
                next_hop_type: "VirtualNetworkGateway".to_owned(),
                next_hop_ip_address: entry.next_hops.clone(),
            }),
            verdict: format!("the site's routers send it to {}", entry.agent),
            next: Some(entry.agent.clone()),
            relation: Some(if entry.device.is_some() { "gateway" } else { "edge" }.to_owned()),
            ..self.hop(packet, entry.attachment.clone())
        };
        // D23: the kernel of an edge forwards the packets of the customer, and takes one TTL before the engine sees them.
        let node = agents.get(&entry.agent).filter(|_| entry.device.is_none());
        let (mut walk, end) = match node {
            Some(node) if packet.ttl() <= 1 => {
                let error = node
                    .kernel_address(packet.source)
                    .and_then(|own| packet.time_exceeded(own));
                let start = (entry.agent.clone(), None);
                let walk = Walk {
                    delivered: false,
                    hops: Vec::new(),
                    stop: Some(stop::expired(node, packet)),
                };
                let answer = error.map(|error| Answer { error, start });
                (walk, End::Expired(entry.agent.clone(), answer))
            }
            Some(_) => {
                packet.decrement_ttl();
                fabric.walk(&entry.agent, None, packet)
            }
            None => fabric.walk(&entry.agent, entry.device.as_ref(), packet),
        };
        walk.hops.insert(0, first);
        (walk, end)
    }

    fn hop(&self, packet: &Packet, attachment: ResourceId) -> Hop {
        Hop {
            agent: self.probe.clone(),
            vnet: attachment,
            ingress: Ingress::Device {},
            ttl: packet.ttl(),
            subnet: None,
            route: None,
            security: None,
            verdict: String::new(),
            next: None,
            relation: None,
            bandwidth: None,
        }
    }
}

/// Whether an ICMP error comes back to the site of the packet that caused it.
pub(super) fn reaches_site(agents: &Agents<'_>, fabric: &mut Fabric<'_>, answer: &Answer) -> bool {
    let (at, from) = &answer.start;
    let own = agents.get(at).filter(|node| from.is_none() && node.is_edge());
    // The kernel of an edge sends its own errors over the line, without the engine.
    own.is_some_and(|edge| edge.sends_to_customer(answer.error.destination)) || {
        let (_, end) = fabric.walk(at, from.as_ref(), &mut answer.error.clone());
        matches!(end, End::LeftFabric { .. })
    }
}

/// Where packets of a site to `destination` enter the agents' network. `None`: no attachment advertises a route to it.
fn entry(agents: &Agents<'_>, attachments: &[ResourceId], destination: IpAddr) -> Option<Entry> {
    let mut best: Option<(u8, usize, usize, Entry)> = None;
    for (rank, attachment) in attachments.iter().enumerate() {
        for door in doors(agents, attachment) {
            let around = door
                .advertised
                .iter()
                .filter(|(prefix, _)| prefix.contains(&destination));
            let Some((prefix, path)) = around.max_by_key(|(p, path)| (p.prefix_len(), usize::MAX - path)) else {
                continue;
            };
            let is_better = best.as_ref().is_none_or(|(length, other, others_path, _)| {
                (prefix.prefix_len(), usize::MAX - rank, usize::MAX - path)
                    > (*length, usize::MAX - other, usize::MAX - others_path)
            });
            if is_better {
                let entry = Entry {
                    attachment: attachment.clone(),
                    next_hops: next_hops(agents, &door.agent, destination),
                    agent: door.agent,
                    device: door.device,
                    prefix: *prefix,
                };
                best = Some((prefix.prefix_len(), rank, *path, entry));
            }
        }
    }
    best.map(|(.., entry)| entry)
}

/// The address of a gateway or edge towards a site.
fn next_hops(agents: &Agents<'_>, agent: &AgentId, like: IpAddr) -> Vec<IpAddr> {
    let node = agents.get(agent);
    node.and_then(|node| node.kernel_address(like)).into_iter().collect()
}

/// The gateways or edges of an attachment that carry packets of the site now.
fn doors(agents: &Agents<'_>, attachment: &ResourceId) -> Vec<Door> {
    let topology = agents.facts().topology;
    if topology.circuits.contains_key(attachment) {
        return edges_of(topology, attachment)
            .filter(|edge| announces(agents, edge, attachment))
            .map(|edge| Door {
                advertised: agents.advertised(edge, attachment),
                agent: edge.clone(),
                device: None,
            })
            .collect();
    }
    let mut doors = Vec::new();
    for (connection, gateway) in tunnels_of(topology, attachment) {
        let id = &connection.envelope.id;
        let device = AgentId::of_site(id);
        let site = topology.local_gateways.get(attachment);
        let uses_bgp = connection.enable_bgp && site.is_some_and(|site| site.bgp.is_some());
        for agent in instances_of(topology, gateway) {
            let has_link = agents.get(agent).is_some_and(|node| node.link(&device).is_some());
            let is_down = agents
                .facts()
                .reports
                .down
                .get(agent)
                .is_some_and(|d| d.contains(&device));
            if !has_link || is_down || (uses_bgp && !announces(agents, agent, id)) {
                continue;
            }
            let advertised = match uses_bgp {
                true => agents.advertised(agent, id),
                // The routes that `device-config` prints for a device without BGP.
                false => advertised_prefixes(topology, gateway)
                    .into_iter()
                    .map(|p| (p, 0))
                    .collect(),
            };
            doors.push(Door {
                agent: agent.clone(),
                device: Some(device.clone()),
                advertised,
            });
        }
    }
    doors
}

/// Whether an agent reports routes of a BGP neighbour, so that their session is up.
fn announces(agents: &Agents<'_>, agent: &AgentId, neighbour: &ResourceId) -> bool {
    let learned = agents.facts().reports.learned.get(agent);
    learned
        .and_then(|by| by.get(neighbour))
        .is_some_and(|routes| !routes.is_empty())
}

/// The agents of a gateway that are not revoked, in the order of its ip configurations.
fn instances_of<'t>(
    topology: &'t Topology,
    gateway: &'t VirtualNetworkGateway,
) -> impl Iterator<Item = &'t AgentId> + 't {
    gateway.ip_configurations.iter().filter_map(move |configuration| {
        let serves = |binding: &Binding| {
            matches!(binding, Binding::Gateway { gateway: g, ip_configuration }
                if *g == gateway.envelope.id && ip_configuration.eq_ignore_ascii_case(&configuration.name))
        };
        let mut agents = topology.agents.values().filter(|a| !a.revoked);
        agents.find(|a| serves(&a.binding)).map(|a| &a.id)
    })
}
