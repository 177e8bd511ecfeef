//! Describes why a walk stops at an agent: the agent's drop reason, the cause and the remedy.

use super::answer::{SecurityCheck, Stop};
use super::finding::{self, Facts, Finding};
use super::node::{Node, Packet};
use super::{denied, gateways, keys, no_back_end, no_route, transit};
use crate::lookup::half_towards;
use crate::topology::Topology;
use std::net::IpAddr;
use tombolo_engine::decide::Trace;
use tombolo_engine::verdict::DropReason;
use tombolo_proto::config::{AgentConfig, ForeignSources, GatewayKind, Relation, Role, Space, SpaceKind};
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::route::{NextHop, RouteSource};

/// The stop at `agent` with a finding. `reason`: the name of the drop reason.
fn stop(agent: &AgentId, reason: impl Into<String>, finding: Finding) -> Stop {
    Stop {
        agent: agent.clone(),
        reason: reason.into(),
        resource: finding.resource,
        rule: Some(finding.rule.to_owned()),
        text: format!("{}: {}", finding.cause, finding.remedy),
        cause: finding.cause,
        remedy: finding.remedy,
    }
}

/// The stop at an agent without a configuration: it is revoked, unknown, or bound to a deleted resource.
pub(super) fn no_configuration(topology: &Topology, agent: &AgentId) -> Stop {
    let (cause, remedy) = match topology.agents.get(agent) {
        Some(known) if known.revoked => (format!("the agent {agent} is revoked"), "delete it and join again"),
        Some(_) => (
            format!("the agent {agent} is bound to a resource that was deleted"),
            "delete it and join again",
        ),
        None => (
            format!("there is no agent {agent}"),
            "create a join token for it and join it",
        ),
    };
    stop(agent, "no_configuration", Finding::new("D7", cause, remedy))
}

/// The stop of a packet in a site, whose routers have no route to its destination (M10).
pub(super) fn in_site(probe: &AgentId, finding: Finding) -> Stop {
    stop(probe, DropReason::NoRoute.name(), finding)
}

/// The stop at an agent for which no decision can be computed: the agent would reject its configuration, or has no link
/// with the previous agent. `what`: the reason.
pub(super) fn unusable(agent: &AgentId, what: &str) -> Stop {
    let cause = format!("the configuration of {agent} cannot be used: {what}");
    let finding = Finding::new(
        "D2",
        cause,
        "undo the last change of the resource that the agent is bound to",
    );
    stop(agent, "unusable_configuration", finding)
}

/// The stop at an agent that forwards the packet to the agent `far`. `far` has no link with this agent, so it would
/// drop the packet.
pub(super) fn one_sided(node: &Node, far: &AgentId) -> Stop {
    let agent = &node.config.agent;
    let finding = match node.link(far).map(|link| &link.relation) {
        Some(Relation::Connection { connection }) => Finding::new(
            "G11",
            format!(
                "the far gateway {far} accepts no tunnel for the connection {}",
                connection.name()
            ),
            "set the shared key of the far gateway's connection object",
        )
        .at(connection),
        Some(Relation::Peering { peering }) => Finding::new(
            "P27",
            format!("{far} does not know the addresses of {agent} yet"),
            format!("sync the other half of the peering {}", peering.name()),
        )
        .at(peering),
        _ => Finding::new(
            "D10",
            format!("{far} has no link with {agent}"),
            "check that both agents run the newest revision: tombolo status",
        ),
    };
    stop(agent, DropReason::NoLink.name(), finding)
}

/// The stop at an agent that would send the packet into the tunnel to the agent `far`, if the two ends of the tunnel have
/// different shared keys (D14). `None`: they have the same one, or the link belongs to no connection between gateways.
pub(super) fn different_keys(topology: &Topology, node: &Node, far: &AgentId) -> Option<Stop> {
    let Relation::Connection { connection } = &node.link(far)?.relation else {
        return None;
    };
    let finding = keys::differ(topology, connection)?;
    Some(stop(&node.config.agent, DropReason::LinkDown.name(), finding))
}

/// The stop of a packet that reaches the same agent over the same link twice.
pub(super) fn routing_loop(node: &Node, packet: &Packet) -> Stop {
    let finding = Finding::new(
        "R12",
        format!(
            "routing loop until the TTL expires: the route of {} for {} leads back to it",
            node.config.agent, packet.destination
        ),
        "keep an appliance out of the subnets that it serves",
    );
    stop(&node.config.agent, "loop", finding)
}

/// The stop of a packet whose TTL expires at the agent of `node`.
pub(super) fn expired(node: &Node, packet: &Packet) -> Stop {
    let finding = Finding::new(
        "T1",
        format!(
            "the TTL expires at {} before {} is reached",
            node.config.agent, packet.destination
        ),
        "start with a higher TTL",
    );
    stop(&node.config.agent, DropReason::TtlExceeded.name(), finding)
}

/// The stop at the agent of `node`, which drops the packet for `reason`. `from`: the peer over whose link the packet
/// came. `None`: the packet came from the host. `trace`: the subnet, route and VNet that led to the agent's decision.
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
    let finding = match reason {
        DropReason::SpoofedSource => source_refused(topology, node, from, source),
        DropReason::NotForwarding => Finding::new(
            "R12",
            format!(
                "{name} gets a packet for {destination}, but the network interface at which it arrives has no \
                 enableIPForwarding"
            ),
            "set enableIPForwarding on the appliance's network interface, and enable forwarding in its system (sysctl \
             net.ipv4.ip_forward=1)",
        ),
        DropReason::NoRoute | DropReason::RouteNone | DropReason::RouteInternet => {
            no_usable_route(facts, config, trace, destination)
        }
        DropReason::NoOwner => no_owner(topology, config, trace, destination),
        DropReason::ApplianceUnreachable => Finding::new(
            "R11",
            format!(
                "{} leads to an appliance that is neither in {} nor in a VNet directly peered with it, so it is a black \
                 hole",
                route_name(trace),
                config.vnet.name()
            ),
            "use an appliance in this VNet or in one that is directly peered with it",
        ),
        DropReason::AccessDenied => access_denied(config, from, packet, trace),
        DropReason::NoGateway => no_gateway(topology, config, trace),
        DropReason::TransitNotAllowed => transit::refused(facts, node, from, trace, destination),
        DropReason::Hairpin => Finding::new(
            "R12",
            format!("the next hop of {destination} at {name} is where the packet comes from"),
            format!("check {}", route_name(trace)),
        ),
        DropReason::NoLink => Finding::new(
            "D10",
            format!("{name} has no link with the agent that has {destination}"),
            "check that both agents run the newest revision: tombolo status",
        ),
        DropReason::NoBalancingRule => Finding::new(
            "L3",
            format!(
                "{destination} is a front end of a load balancer, and no rule of it is for {}",
                packet.flow()
            ),
            "add a load-balancing rule for this protocol and port",
        ),
        DropReason::BalancerProtocol => Finding::new(
            "L3",
            format!("{destination} is a front end of a load balancer, which takes TCP and UDP only"),
            "test it with a TCP connection to the port of a rule",
        ),
        DropReason::NoBackEnd => no_back_end::finding(facts, config, trace),
        DropReason::BackEndItself => Finding::new(
            "L11",
            format!("the load balancer has chosen {source}, which is the sender itself"),
            "let the back end connect to itself directly, or to another back end",
        ),
        // `denied` describes drops by a security rule.
        DropReason::SecurityRule
        | DropReason::BackEndGone
        | DropReason::FlowEnded
        | DropReason::UnknownFragment
        | DropReason::FlowTableFull
        | DropReason::NicFlowLimit
        | DropReason::BandwidthExceeded
        | DropReason::Malformed
        | DropReason::TtlExceededSilent
        | DropReason::TtlExceeded
        | DropReason::LinkDown
        | DropReason::TooBig
        | DropReason::BadDatagram
        | DropReason::Replayed
        | DropReason::QueueFull
        | DropReason::Congestion
        | DropReason::SendRefused
        | DropReason::DeviceRefused => Finding::new(
            "T8",
            format!("{name} drops the packet: {reason}"),
            "check the counters of that agent: run tombolo-agent status on its host",
        ),
    };
    stop(&config.agent, reason.name(), finding)
}

/// The stop of a packet that the security groups at a network interface of `node` deny. `check`: their decision.
pub(super) fn denied(node: &Node, packet: &Packet, check: &SecurityCheck) -> Stop {
    let reason = DropReason::SecurityRule.name();
    stop(&node.config.agent, reason, denied::by_rules(packet, check))
}

/// Explains a destination, or a next hop, that no agent owns.
fn no_owner(topology: &Topology, config: &AgentConfig, trace: &Trace, destination: IpAddr) -> Finding {
    let sought = match trace.route.as_ref().map(|route| &route.next_hop) {
        Some(NextHop::VirtualAppliance { address }) => *address,
        _ => destination,
    };
    let vnet = trace.vnet.as_ref().unwrap_or(&config.vnet);
    let of_front_end = finding::unknown_front_end(topology, &config.vnet, vnet, sought);
    let mut finding = of_front_end.unwrap_or_else(|| finding::no_owner(topology, vnet, sought));
    if sought != destination {
        finding.cause = format!("the next hop {sought} of {}: {}", route_name(trace), finding.cause);
    }
    finding
}

/// The matched route for a message, with its source, prefix and subnet.
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

/// Explains why a packet has no usable route: no route matches, or the matching route has the next hop type `Internet`
/// or `None`.
fn no_usable_route(facts: Facts<'_>, config: &AgentConfig, trace: &Trace, destination: IpAddr) -> Finding {
    if let Role::CircuitEdge { circuit, .. } = &config.role {
        return Finding::new(
            "E7",
            format!(
                "no virtual network that is linked to the circuit {} has {destination}, and an edge forwards to linked networks only",
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
        let finding = Finding::new(
            rule,
            format!("{} sends {destination} outside of the VNets", route_name(trace)),
            format!("change or delete the route '{name}', or add one with a longer prefix for {destination}"),
        );
        return match &trace.subnet {
            Some(subnet) => finding.at(subnet),
            None => finding,
        };
    }
    no_route::no_route(facts, &config.vnet, destination)
}

/// Explains why a route that leads to a gateway cannot be used: the gateway does not exist, or none of its instances
/// can be reached.
fn no_gateway(topology: &Topology, config: &AgentConfig, trace: &Trace) -> Finding {
    if let Some(connection) = &trace.connection {
        return gateways::far_end(topology, connection);
    }
    let vnet = config.vnet.name();
    let resource = topology.vnets.get(&config.vnet);
    let used = |kind| resource.and_then(|vnet| gateways::used(topology, vnet, kind));
    let Some((_, gateway)) = used(GatewayKind::Vpn) else {
        let route = route_name(trace);
        return match used(GatewayKind::ExpressRoute) {
            Some((_, other)) => Finding::new(
                "R14",
                format!(
                    "{route} needs a VPN gateway, and {vnet} uses an ExpressRoute gateway only ({}), to which no \
                     user-defined route leads (E2)",
                    other.envelope.id.name()
                ),
                "delete the route, as routes of circuits are learned by BGP; or create a VPN gateway beside the other one",
            )
            .at(&other.envelope.id),
            None => Finding::new(
                "R14",
                format!("{route} needs a VPN gateway, and {vnet} has none, nor uses a peer's"),
                "create one, or set useRemoteGateways on a peering with a virtual network that has one",
            ),
        };
    };
    finding::gateway_agents(topology, gateway).unwrap_or_else(|| {
        let id = &gateway.envelope.id;
        Finding::new(
            "D7",
            format!("no instance of the gateway {} can be reached", id.name()),
            "check that its agents are connected: tombolo status",
        )
        .at(id)
    })
}

/// Explains a packet that is dropped because `allowVirtualNetworkAccess` is off (P17).
fn access_denied(config: &AgentConfig, from: Option<&AgentId>, packet: &Packet, trace: &Trace) -> Finding {
    let ingress = from.and_then(|from| config.links.iter().find(|link| link.peer == *from));
    let peering = match ingress.map(|link| &link.relation) {
        Some(Relation::Peering { peering }) => Some(peering),
        _ => config.spaces.iter().find_map(|space| match &space.kind {
            SpaceKind::Peered {
                peering,
                allow_access: false,
                ..
            } => {
                // The packet may have come through a gateway or an appliance, not over a link of the peering. Then only
                // its addresses show between which two VNets it travels.
                let covers = |a: IpAddr| space.prefixes.iter().any(|p| p.contains(&a));
                let crossed = Some(&space.vnet) == trace.vnet.as_ref();
                (crossed || covers(packet.source) || covers(packet.destination)).then_some(peering)
            }
            _ => None,
        }),
    };
    let finding = |name: &str| {
        let cause = format!(
            "allowVirtualNetworkAccess is off on the peering {name} of {}, so its two VNets cannot reach each other \
             on any path",
            config.vnet.name()
        );
        Finding::new("P17", cause, "set it to true on both halves")
    };
    match peering {
        Some(peering) => finding(peering.name()).at(peering),
        None => finding(""),
    }
}

/// Explains a packet that is dropped because of its source address: the peer `from`, or the agent's own host, must not
/// send from it.
fn source_refused(topology: &Topology, node: &Node, from: Option<&AgentId>, source: IpAddr) -> Finding {
    let config = &node.config;
    let name = config.agent.as_str();
    let link = from.and_then(|from| node.link(from));
    let Some(link) = link else {
        if node.is_edge() {
            return Finding::new(
                "D10",
                format!(
                    "{name} accepts from its customer only prefixes that the customer's router announces, and {source} is in none of them"
                ),
                "let the customer's router announce the prefix over the circuit",
            );
        }
        return Finding::new(
            "R12",
            format!("{name} may not send from {source}, which is none of its addresses"),
            "set enableIPForwarding on its network interface if it is an appliance, otherwise send from one of its addresses",
        );
    };
    let from = &link.peer;
    let own = config.address_space.iter().any(|p| p.contains(&source));
    let vnet = config.vnet.name();
    match &link.relation {
        _ if own && !matches!(link.relation, Relation::VnetLocal {}) => Finding::new(
            "D10",
            format!("{source} belongs to {vnet} itself, so {name} accepts it from no sender outside"),
            "give the sender an address of its own network",
        ),
        Relation::Peering { peering } if link.foreign == ForeignSources::None && forwards(config, from) => {
            Finding::new(
                "P18",
                format!("{from} forwards for {source}, which is outside its VNet"),
                format!(
                    "set allowForwardedTraffic on the peering {} of {vnet}, the receiving side",
                    peering.name()
                ),
            )
            .at(peering)
        }
        Relation::GatewayClient {} if link.foreign == ForeignSources::None => {
            let half = client_half(topology, config, from);
            let finding = Finding::new(
                "P18",
                format!("{from} sends from {source}, which is not an allowed source here"),
                format!(
                    "if it is an appliance, set allowForwardedTraffic on the peering of {vnet} that leads to it; otherwise send \
                     from an address of its own"
                ),
            );
            match half {
                Some(half) => finding.at(&half),
                None => finding,
            }
        }
        Relation::Site { connection } => Finding::new(
            "D16",
            format!(
                "{name} accepts from the site of {} only its prefixes, and {source} is in none of them",
                connection.name()
            ),
            "let the site's router announce the prefix, or add it to the address space of its local network gateway",
        )
        .at(connection),
        Relation::Gateway {} | Relation::Connection { .. } => Finding::new(
            "D9",
            format!(
                "the gateway {from} may not relay packets from {source}: it may relay sources behind its connections, \
                 of its VNet and of the VNets that use it"
            ),
            format!(
                "let the VNet of {source} use that gateway (useRemoteGateways with allowGatewayTransit), or have its site \
                 announce the prefix"
            ),
        ),
        _ => Finding::new(
            "R12",
            format!("{from} may not send from {source}"),
            "set enableIPForwarding on its network interface",
        ),
    }
}

/// Whether `agent` is an appliance: in the configuration, one of its addresses has IP forwarding.
fn forwards(config: &AgentConfig, agent: &AgentId) -> bool {
    let owners = config.spaces.iter().flat_map(|space| &space.owners);
    owners.filter(|o| o.agent == *agent).any(|o| o.ip_forwarding)
}

/// The half of a peering that the gateway's VNet has with the VNet of `agent`, which uses the gateway. `config`: the
/// gateway's configuration. `None`: the agent's VNet does not use the gateway.
fn client_half(topology: &Topology, config: &AgentConfig, agent: &AgentId) -> Option<ResourceId> {
    let of_agent = |space: &&Space| space.owners.iter().any(|o| o.agent == *agent);
    let client = config.spaces.iter().find(of_agent)?;
    let vnet = topology.vnets.get(&config.vnet)?;
    half_towards(vnet, &client.vnet).map(|half| half.id.clone())
}
