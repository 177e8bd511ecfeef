//! What stops a packet: the agent's reason, and what to do about it.

use super::answer::Stop;
use super::node::{Node, Packet};
use super::why::{self, Why};
use crate::topology::Topology;
use std::net::IpAddr;
use tombolo_engine::decide::Trace;
use tombolo_engine::verdict::DropReason;
use tombolo_proto::config::{AgentConfig, ForeignSources, Relation, Space, SpaceKind};
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::route::{NextHop, RouteSource};

fn stop(agent: &AgentId, reason: impl Into<String>, why: Why) -> Stop {
    Stop {
        agent: agent.clone(),
        reason: reason.into(),
        resource: why.resource,
        rule: Some(why.rule.to_owned()),
        text: why.text,
    }
}

/// The agent at which a packet is to be has no configuration.
pub(super) fn no_configuration(topology: &Topology, agent: &AgentId) -> Stop {
    let text = match topology.agents.get(agent) {
        Some(known) if known.revoked => format!("the agent {agent} is revoked: delete it and join again"),
        Some(_) => format!("the agent {agent} is bound to something that is gone: delete it and join again"),
        None => format!("there is no agent {agent}"),
    };
    stop(agent, "no_configuration", Why::new("D7", text))
}

/// The agent cannot decide: its configuration cannot be used as it is.
pub(super) fn unusable(agent: &AgentId, what: &str) -> Stop {
    let text = format!("the configuration of {agent} cannot be used: {what}");
    stop(agent, "unusable_configuration", Why::new("D2", text))
}

/// An agent forwards to one that has no link back.
pub(super) fn one_sided(node: &Node, far: &AgentId) -> Stop {
    let agent = &node.config.agent;
    let why = match node.link(far).map(|link| &link.relation) {
        Some(Relation::Connection { connection }) => Why::new(
            "G11",
            format!(
                "the far gateway {far} takes no tunnel for the connection {}: set the shared key of its own connection object",
                connection.name()
            ),
        )
        .at(connection),
        Some(Relation::Peering { peering }) => Why::new(
            "P27",
            format!("{far} does not know the addresses of {agent} yet: sync the other half of the peering {}", peering.name()),
        )
        .at(peering),
        _ => Why::new("D10", format!("{far} has no link with {agent}")),
    };
    stop(agent, DropReason::NoLink.name(), why)
}

/// The packet comes to the same place twice.
pub(super) fn round(node: &Node, packet: &Packet) -> Stop {
    let text = format!(
        "the packet goes round until its TTL is used up: the route of {} for {} leads back to it; keep an appliance out \
         of the subnets that it serves",
        node.config.agent, packet.destination
    );
    stop(&node.config.agent, "loop", Why::new("R12", text))
}

/// The TTL ran out.
pub(super) fn expired(node: &Node, packet: &Packet) -> Stop {
    let text = format!(
        "the TTL is used up at {} before {} is reached",
        node.config.agent, packet.destination
    );
    stop(&node.config.agent, DropReason::TtlExceeded.name(), Why::new("T1", text))
}

/// An agent drops the packet.
pub(super) fn dropped(
    topology: &Topology,
    node: &Node,
    from: Option<&AgentId>,
    packet: &Packet,
    trace: &Trace,
    reason: DropReason,
) -> Stop {
    let config = &node.config;
    let name = config.agent.as_str();
    let (source, destination) = (packet.source, packet.destination);
    let next_hop = trace.route.as_ref().map(|route| &route.next_hop);
    let why = match reason {
        DropReason::SpoofedSource => source_refused(topology, node, from, source),
        DropReason::NotForwarding => Why::new(
            "R12",
            format!(
                "{name} gets a packet for {destination}, but none of its network interfaces has enableIPForwarding: set it \
                 on the appliance's interface, and let its system forward (sysctl net.ipv4.ip_forward=1)"
            ),
        ),
        DropReason::NoRoute | DropReason::RouteNone | DropReason::RouteInternet => {
            no_way(topology, config, trace, destination)
        }
        DropReason::NoOwner => {
            let sought = match next_hop {
                Some(NextHop::VirtualAppliance { address }) => *address,
                _ => destination,
            };
            let vnet = trace.vnet.as_ref().unwrap_or(&config.vnet);
            let mut why = why::no_owner(topology, vnet, sought);
            if sought != destination {
                why.text = format!("the next hop {sought} of {}: {}", route_name(trace), why.text);
            }
            why
        }
        DropReason::ApplianceUnreachable => Why::new(
            "R11",
            format!(
                "{} leads to an appliance that is neither in {} nor in a VNet directly peered with it, so it is a black \
                 hole: use an appliance one peering away at most",
                route_name(trace),
                config.vnet.name()
            ),
        ),
        DropReason::AccessDenied => access_denied(config, from, packet, trace),
        DropReason::NoGateway => no_gateway(topology, config, trace),
        DropReason::TransitNotAllowed => Why::new(
            "D9",
            format!(
                "the gateway {name} does not relay to {destination}: a gateway serves its own VNet, the VNets that use it \
                 (useRemoteGateways) and its connections, never a plain peering and never one connection to another"
            ),
        ),
        DropReason::Hairpin => Why::new(
            "R12",
            format!(
                "the next hop of {destination} at {name} is where the packet comes from: check {}",
                route_name(trace)
            ),
        ),
        DropReason::NoLink => Why::new(
            "D10",
            format!("{name} has no link with the agent that has {destination}"),
        ),
        DropReason::Malformed
        | DropReason::TtlExceededSilent
        | DropReason::TtlExceeded
        | DropReason::LinkDown
        | DropReason::TooBig
        | DropReason::BadDatagram
        | DropReason::Replayed
        | DropReason::QueueFull
        | DropReason::Congestion
        | DropReason::SendRefused
        | DropReason::DeviceRefused => Why::new("T8", format!("{name} drops the packet: {reason}")),
    };
    stop(&config.agent, reason.name(), why)
}

fn route_name(trace: &Trace) -> String {
    let subnet = trace.subnet.as_ref().map_or("", ResourceId::name);
    match &trace.route {
        Some(route) => {
            let name = route.name.as_deref().map(|n| format!(" '{n}'")).unwrap_or_default();
            let kind = match route.source {
                RouteSource::Default => "system",
                RouteSource::User => "user",
                RouteSource::VirtualNetworkGateway => "gateway",
            };
            format!(
                "the {kind} route{name} {} ({}) of subnet {subnet}",
                route.prefix,
                route.next_hop.type_name()
            )
        }
        None => format!("the routes of subnet {subnet}"),
    }
}

/// No route, or one to `Internet` or `None`: a user's own, or the system's because nothing better is there.
fn no_way(topology: &Topology, config: &AgentConfig, trace: &Trace, destination: IpAddr) -> Why {
    if let Some(route) = trace.route.as_ref().filter(|r| r.source == RouteSource::User) {
        let rule = match route.next_hop {
            NextHop::None {} => "R13",
            _ => "R10",
        };
        let why = Why::new(
            rule,
            format!("{} takes {destination} out of the VNets", route_name(trace)),
        );
        return match &trace.subnet {
            Some(subnet) => why.at(subnet),
            None => why,
        };
    }
    why::no_route(topology, &config.vnet, destination)
}

fn no_gateway(topology: &Topology, config: &AgentConfig, trace: &Trace) -> Why {
    if let Some(connection) = &trace.connection {
        return why::far_gateway(topology, connection);
    }
    let Some(gateway) = why::serving(topology, &config.vnet) else {
        return Why::new(
            "R14",
            format!(
                "{} needs a VPN gateway, and {} has none, nor uses a peer's (useRemoteGateways)",
                route_name(trace),
                config.vnet.name()
            ),
        );
    };
    why::gateway_agents(topology, gateway).unwrap_or_else(|| {
        let id = &gateway.envelope.id;
        Why::new("D7", format!("no instance of the gateway {} can be reached", id.name())).at(id)
    })
}

fn access_denied(config: &AgentConfig, from: Option<&AgentId>, packet: &Packet, trace: &Trace) -> Why {
    let ingress = from.and_then(|from| config.links.iter().find(|link| link.peer == *from));
    let peering = match ingress.map(|link| &link.relation) {
        Some(Relation::Peering { peering }) => Some(peering),
        _ => config.spaces.iter().find_map(|space| match &space.kind {
            SpaceKind::Peered {
                peering,
                allow_access: false,
                ..
            } => {
                // By way of a gateway or an appliance, the addresses alone say whose packet it is.
                let covers = |a: IpAddr| space.prefixes.iter().any(|p| p.contains(&a));
                let crossed = Some(&space.vnet) == trace.vnet.as_ref();
                (crossed || covers(packet.source) || covers(packet.destination)).then_some(peering)
            }
            _ => None,
        }),
    };
    let text = |name: &str| {
        format!(
            "allowVirtualNetworkAccess is off on the peering {name} of {}: nothing passes between its two VNets on any path, set it on both halves",
            config.vnet.name()
        )
    };
    match peering {
        Some(peering) => Why::new("P17", text(peering.name())).at(peering),
        None => Why::new("P17", text("")),
    }
}

/// A source that this host, or the link, may not speak for.
fn source_refused(topology: &Topology, node: &Node, from: Option<&AgentId>, source: IpAddr) -> Why {
    let config = &node.config;
    let name = config.agent.as_str();
    let link = from.and_then(|from| node.link(from));
    let Some(link) = link else {
        return Why::new(
            "R12",
            format!(
                "{name} may not send from {source}, which is none of its addresses: only a network interface with \
                 enableIPForwarding may"
            ),
        );
    };
    let from = &link.peer;
    let own = config.address_space.iter().any(|p| p.contains(&source));
    let vnet = config.vnet.name();
    match &link.relation {
        _ if own && !matches!(link.relation, Relation::VnetLocal {}) => Why::new(
            "D10",
            format!("{source} belongs to {vnet} itself, so {name} takes it from nobody outside"),
        ),
        Relation::Peering { peering } if link.foreign == ForeignSources::None && forwards(config, from) => Why::new(
            "P18",
            format!(
                "{from} forwards for {source}, which is outside its VNet: set allowForwardedTraffic on the peering {} of \
                 {vnet}, the receiving side",
                peering.name()
            ),
        )
        .at(peering),
        Relation::GatewayClient {} if link.foreign == ForeignSources::None => {
            let half = client_half(topology, config, from);
            let why = Why::new(
                "P18",
                format!(
                    "{from} sends from {source}, which it may not speak for here: if it is an appliance, set \
                     allowForwardedTraffic on the peering of {vnet} that leads to it"
                ),
            );
            match half {
                Some(half) => why.at(&half),
                None => why,
            }
        }
        Relation::Gateway {} | Relation::Connection { .. } => Why::new(
            "D9",
            format!(
                "the gateway {from} may not relay packets from {source}: it speaks for what lies behind its connections, \
                 for its VNet and for the VNets that use it (useRemoteGateways with allowGatewayTransit)"
            ),
        ),
        _ => Why::new(
            "R12",
            format!("{from} may not send from {source}: set enableIPForwarding on its network interface"),
        ),
    }
}

fn forwards(config: &AgentConfig, agent: &AgentId) -> bool {
    let owners = config.spaces.iter().flat_map(|space| &space.owners);
    owners.filter(|o| o.agent == *agent).any(|o| o.ip_forwarding)
}

/// At a gateway: the half that leads to the client in which an agent stands.
fn client_half(topology: &Topology, config: &AgentConfig, agent: &AgentId) -> Option<ResourceId> {
    let of_agent = |space: &&Space| space.owners.iter().any(|o| o.agent == *agent);
    let client = config.spaces.iter().find(of_agent)?;
    let vnet = topology.vnets.get(&config.vnet)?;
    why::half(vnet, &client.vnet).map(|half| half.id.clone())
}
