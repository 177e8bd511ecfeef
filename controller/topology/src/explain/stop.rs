//! What stops a packet: the agent's reason, and what to do about it.

use super::answer::Stop;
use super::node::{Node, Packet};
use super::why::{self, Facts, Why};
use super::{gateways, no_route, transit};
use crate::lookup::half_towards;
use crate::topology::Topology;
use std::net::IpAddr;
use tombolo_engine::decide::Trace;
use tombolo_engine::verdict::DropReason;
use tombolo_proto::config::{AgentConfig, ForeignSources, GatewayKind, Relation, Role, Space, SpaceKind};
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::route::{NextHop, RouteSource};

fn stop(agent: &AgentId, reason: impl Into<String>, why: Why) -> Stop {
    Stop {
        agent: agent.clone(),
        reason: reason.into(),
        resource: why.resource,
        rule: Some(why.rule.to_owned()),
        text: format!("{}: {}", why.cause, why.remedy),
        cause: why.cause,
        remedy: why.remedy,
    }
}

/// The agent at which a packet is to be has no configuration.
pub(super) fn no_configuration(topology: &Topology, agent: &AgentId) -> Stop {
    let (cause, remedy) = match topology.agents.get(agent) {
        Some(known) if known.revoked => (format!("the agent {agent} is revoked"), "delete it and join again"),
        Some(_) => (
            format!("the agent {agent} is bound to something that is gone"),
            "delete it and join again",
        ),
        None => (
            format!("there is no agent {agent}"),
            "make a join token for it and join it",
        ),
    };
    stop(agent, "no_configuration", Why::new("D7", cause, remedy))
}

/// The agent cannot decide: its configuration cannot be used as it is.
pub(super) fn unusable(agent: &AgentId, what: &str) -> Stop {
    let cause = format!("the configuration of {agent} cannot be used: {what}");
    let why = Why::new("D2", cause, "undo the newest change of what the agent stands for");
    stop(agent, "unusable_configuration", why)
}

/// An agent forwards to one that has no link back.
pub(super) fn one_sided(node: &Node, far: &AgentId) -> Stop {
    let agent = &node.config.agent;
    let why = match node.link(far).map(|link| &link.relation) {
        Some(Relation::Connection { connection }) => Why::new(
            "G11",
            format!(
                "the far gateway {far} takes no tunnel for the connection {}",
                connection.name()
            ),
            "set the shared key of its own connection object",
        )
        .at(connection),
        Some(Relation::Peering { peering }) => Why::new(
            "P27",
            format!("{far} does not know the addresses of {agent} yet"),
            format!("sync the other half of the peering {}", peering.name()),
        )
        .at(peering),
        _ => Why::new(
            "D10",
            format!("{far} has no link with {agent}"),
            "look whether both agents run the newest revision: tombolo status",
        ),
    };
    stop(agent, DropReason::NoLink.name(), why)
}

/// The packet comes to the same place twice.
pub(super) fn round(node: &Node, packet: &Packet) -> Stop {
    let why = Why::new(
        "R12",
        format!(
            "the packet goes round until its TTL is used up: the route of {} for {} leads back to it",
            node.config.agent, packet.destination
        ),
        "keep an appliance out of the subnets that it serves",
    );
    stop(&node.config.agent, "loop", why)
}

/// The TTL ran out.
pub(super) fn expired(node: &Node, packet: &Packet) -> Stop {
    let why = Why::new(
        "T1",
        format!(
            "the TTL is used up at {} before {} is reached",
            node.config.agent, packet.destination
        ),
        "start with a greater TTL",
    );
    stop(&node.config.agent, DropReason::TtlExceeded.name(), why)
}

/// An agent drops the packet.
pub(super) fn dropped(
    facts: Facts<'_>,
    node: &Node,
    from: Option<&AgentId>,
    packet: &Packet,
    trace: &Trace,
    reason: DropReason,
) -> Stop {
    let (topology, config) = (facts.topology, &node.config);
    let facts = Facts {
        subnet: trace.subnet.as_ref(),
        ..facts
    };
    let name = config.agent.as_str();
    let (source, destination) = (packet.source, packet.destination);
    let next_hop = trace.route.as_ref().map(|route| &route.next_hop);
    let why = match reason {
        DropReason::SpoofedSource => source_refused(topology, node, from, source),
        DropReason::NotForwarding => Why::new(
            "R12",
            format!(
                "{name} gets a packet for {destination}, but none of its network interfaces has enableIPForwarding"
            ),
            "set it on the appliance's interface, and let its system forward (sysctl net.ipv4.ip_forward=1)",
        ),
        DropReason::NoRoute | DropReason::RouteNone | DropReason::RouteInternet => {
            no_way(facts, config, trace, destination)
        }
        DropReason::NoOwner => {
            let sought = match next_hop {
                Some(NextHop::VirtualAppliance { address }) => *address,
                _ => destination,
            };
            let vnet = trace.vnet.as_ref().unwrap_or(&config.vnet);
            let mut why = why::no_owner(topology, vnet, sought);
            if sought != destination {
                why.cause = format!("the next hop {sought} of {}: {}", route_name(trace), why.cause);
            }
            why
        }
        DropReason::ApplianceUnreachable => Why::new(
            "R11",
            format!(
                "{} leads to an appliance that is neither in {} nor in a VNet directly peered with it, so it is a black \
                 hole",
                route_name(trace),
                config.vnet.name()
            ),
            "use an appliance one peering away at most",
        ),
        DropReason::AccessDenied => access_denied(config, from, packet, trace),
        DropReason::NoGateway => no_gateway(topology, config, trace),
        DropReason::TransitNotAllowed => transit::refused(facts, node, from, trace, destination),
        DropReason::Hairpin => Why::new(
            "R12",
            format!("the next hop of {destination} at {name} is where the packet comes from"),
            format!("check {}", route_name(trace)),
        ),
        DropReason::NoLink => Why::new(
            "D10",
            format!("{name} has no link with the agent that has {destination}"),
            "look whether both agents run the newest revision: tombolo status",
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
        | DropReason::DeviceRefused => Why::new(
            "T8",
            format!("{name} drops the packet: {reason}"),
            "look at the counters of that agent: tombolo-agent status on its host",
        ),
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
fn no_way(facts: Facts<'_>, config: &AgentConfig, trace: &Trace, destination: IpAddr) -> Why {
    if let Role::CircuitEdge { circuit, .. } = &config.role {
        return Why::new(
            "E7",
            format!(
                "no virtual network that is linked to the circuit {} has {destination}, and an edge leads nowhere else",
                circuit.name()
            ),
            "create a connection of type ExpressRoute from the gateway of its virtual network to the circuit",
        )
        .at(circuit);
    }
    if let Some(route) = trace.route.as_ref().filter(|r| r.source == RouteSource::User) {
        let rule = match route.next_hop {
            NextHop::None {} => "R13",
            _ => "R10",
        };
        let name = route.name.as_deref().unwrap_or_default();
        let why = Why::new(
            rule,
            format!("{} takes {destination} out of the VNets", route_name(trace)),
            format!("change or delete the route '{name}', or add one with a longer prefix for {destination}"),
        );
        return match &trace.subnet {
            Some(subnet) => why.at(subnet),
            None => why,
        };
    }
    no_route::no_route(facts, &config.vnet, destination)
}

fn no_gateway(topology: &Topology, config: &AgentConfig, trace: &Trace) -> Why {
    if let Some(connection) = &trace.connection {
        return gateways::far_end(topology, connection);
    }
    let vnet = config.vnet.name();
    let resource = topology.vnets.get(&config.vnet);
    let used = |kind| resource.and_then(|vnet| gateways::used(topology, vnet, kind));
    let Some((_, gateway)) = used(GatewayKind::Vpn) else {
        let route = route_name(trace);
        return match used(GatewayKind::ExpressRoute) {
            Some((_, other)) => Why::new(
                "R14",
                format!(
                    "{route} needs a VPN gateway, and {vnet} uses an ExpressRoute gateway only ({}), to which no \
                     user-defined route leads (E2)",
                    other.envelope.id.name()
                ),
                "delete the route: what a circuit leads to is learned by BGP; or create a VPN gateway beside the other one",
            )
            .at(&other.envelope.id),
            None => Why::new(
                "R14",
                format!("{route} needs a VPN gateway, and {vnet} has none, nor uses a peer's"),
                "create one, or set useRemoteGateways on a peering with a virtual network that has one",
            ),
        };
    };
    why::gateway_agents(topology, gateway).unwrap_or_else(|| {
        let id = &gateway.envelope.id;
        Why::new(
            "D7",
            format!("no instance of the gateway {} can be reached", id.name()),
            "look whether its agents are connected: tombolo status",
        )
        .at(id)
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
    let why = |name: &str| {
        let cause = format!(
            "allowVirtualNetworkAccess is off on the peering {name} of {}, so nothing passes between its two VNets on any \
             path",
            config.vnet.name()
        );
        Why::new("P17", cause, "set it on both halves")
    };
    match peering {
        Some(peering) => why(peering.name()).at(peering),
        None => why(""),
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
            format!("{name} may not send from {source}, which is none of its addresses"),
            "set enableIPForwarding on its network interface if it is an appliance, else send from an own address",
        );
    };
    let from = &link.peer;
    let own = config.address_space.iter().any(|p| p.contains(&source));
    let vnet = config.vnet.name();
    match &link.relation {
        _ if own && !matches!(link.relation, Relation::VnetLocal {}) => Why::new(
            "D10",
            format!("{source} belongs to {vnet} itself, so {name} takes it from nobody outside"),
            "give the sender an address of its own network",
        ),
        Relation::Peering { peering } if link.foreign == ForeignSources::None && forwards(config, from) => Why::new(
            "P18",
            format!("{from} forwards for {source}, which is outside its VNet"),
            format!(
                "set allowForwardedTraffic on the peering {} of {vnet}, the receiving side",
                peering.name()
            ),
        )
        .at(peering),
        Relation::GatewayClient {} if link.foreign == ForeignSources::None => {
            let half = client_half(topology, config, from);
            let why = Why::new(
                "P18",
                format!("{from} sends from {source}, which it may not speak for here"),
                format!(
                    "if it is an appliance, set allowForwardedTraffic on the peering of {vnet} that leads to it; else send \
                     from an address of its own"
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
                 for its VNet and for the VNets that use it"
            ),
            format!(
                "let the VNet of {source} use that gateway (useRemoteGateways with allowGatewayTransit), or have its site \
                 announce the prefix"
            ),
        ),
        _ => Why::new(
            "R12",
            format!("{from} may not send from {source}"),
            "set enableIPForwarding on its network interface",
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
    half_towards(vnet, &client.vnet).map(|half| half.id.clone())
}
