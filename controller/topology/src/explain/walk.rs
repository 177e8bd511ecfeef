//! Walks a packet from agent to agent. Each agent decides with its own configuration. An appliance's agent decides
//! twice: it delivers the packet to its host, whose kernel forwards the packet back to the agent, and then the agent
//! sends it on (R12, D23).

use super::answer::{Hop, Ingress, MatchedRoute, Stop, Walk};
use super::finding::Facts;
use super::keys;
use super::node::{Decision, Memory, Node, Packet, Passed, Step};
use super::stop;
use crate::compile::Compiler;
use crate::learned_routes::{LearnedReports, LearnedRoutes};
use crate::topology::Topology;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::OnceLock;
use tombolo_engine::decide::Trace;
use tombolo_engine::routing::routes_for_neighbour;
use tombolo_engine::security::PreparedGroups;
use tombolo_engine::verdict::DropReason;
use tombolo_proto::config::{BalancingRule, Relation};
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::route::{EffectiveRoute, NextHop};

/// The agents of a topology. Each is compiled at its first use, and then shared by all walks.
pub(crate) struct Agents<'t> {
    facts: Facts<'t>,
    compiler: Compiler<'t>,
    learned: LearnedRoutes,
    /// The security groups, if all agents share them.
    groups: Option<PreparedGroups>,
    nodes: BTreeMap<AgentId, OnceLock<Option<Node>>>,
}

/// The walks of one flow, with what the agents remember of it.
pub(crate) struct Fabric<'a> {
    agents: &'a Agents<'a>,
    memories: BTreeMap<AgentId, Memory>,
    /// Whether the rules of security groups decide. Otherwise the interfaces that packets pass are noted.
    applies_rules: bool,
    /// The back end that load balancers choose, if they have it. `None`: the one that agents would choose.
    back_end: Option<IpAddr>,
    /// The back ends among which load balancers have chosen.
    back_ends: BTreeSet<IpAddr>,
    /// The rules of the front ends that were the destination or the next hop of a packet.
    rules_met: Vec<BalancingRule>,
}

/// The end of a walk.
pub(crate) enum End {
    /// The packet reached the agent that has the destination.
    Delivered(AgentId),
    /// The TTL expired at this agent. The second value is the ICMP error that the agent sends; `None`: it sends none.
    Expired(AgentId, Option<Answer>),
    /// The packet left the agents' network for a site: over the link with the site's device, or over an edge's line to
    /// the customer.
    LeftFabric {
        /// The last agent of the walk.
        agent: AgentId,
        /// The site's device. `None`: the packet left over the line to the customer.
        device: Option<AgentId>,
    },
    /// The packet was dropped.
    Stopped,
}

/// Where a packet goes after a hop.
enum Next {
    /// The first value is the agent that gets the packet. The second one is the agent over whose link the packet
    /// arrives there; `None`: it arrives from the first agent's own host.
    Agent(AgentId, Option<AgentId>),
    /// The walk ends. If the packet does not arrive, the [`Stop`] gives the reason.
    End(Option<Box<Stop>>, End),
}

/// An ICMP error that an agent sends.
pub(crate) struct Answer {
    /// The error, which quotes the packet whose TTL expired.
    pub(super) error: Packet,
    /// The agent that decides on the error first, and the peer over whose link the error arrives there. An error of the
    /// engine goes back over the link of the packet. An error of the host's kernel enters the agent's own TUN device,
    /// so there is no peer and no link.
    pub(super) start: (AgentId, Option<AgentId>),
}

impl<'t> Agents<'t> {
    /// Computes the learned routes of all gateways and edges. Nothing else is compiled yet.
    pub(crate) fn new(topology: &'t Topology, reports: &'t LearnedReports) -> Self {
        Self::with(topology, reports, Compiler::new(topology), None)
    }

    /// The same, for walks that reach most agents: security groups are in memory only once. Walks cannot name the rules
    /// that decide.
    pub(crate) fn sharing_groups(topology: &'t Topology, reports: &'t LearnedReports) -> Self {
        let compiler = Compiler::without_rules(topology);
        let (groups, application_groups) = compiler.security_groups();
        let groups = PreparedGroups::new(groups, &application_groups);
        Self::with(topology, reports, compiler, Some(groups))
    }

    /// The facts from which stops are explained.
    pub(super) const fn facts(&self) -> Facts<'t> {
        self.facts
    }

    /// The prefixes that a gateway or edge advertises to a BGP neighbour outside, each with the length of its AS path. Empty
    /// if the agent has no configuration.
    pub(super) fn advertised(&self, agent: &AgentId, neighbour: &ResourceId) -> Vec<(IpNet, usize)> {
        let Some(node) = self.get(agent) else { return Vec::new() };
        let state = self.learned.routing_state(&node.config);
        let routes = routes_for_neighbour(&node.config, &state, neighbour).into_iter();
        routes.map(|route| (route.prefix, route.as_path.len())).collect()
    }

    /// The security groups that all agents share. `None`: each agent has its own.
    pub(crate) fn into_groups(self) -> Option<PreparedGroups> {
        self.groups
    }

    fn with(
        topology: &'t Topology,
        reports: &'t LearnedReports,
        compiler: Compiler<'t>,
        groups: Option<PreparedGroups>,
    ) -> Self {
        let learned = LearnedRoutes::new(topology, &compiler, keys::with_failed_handshakes(topology, reports));
        let nodes = topology.agents.keys().map(|agent| (agent.clone(), OnceLock::new()));
        Self {
            facts: Facts {
                topology,
                reports,
                subnet: None,
            },
            compiler,
            learned,
            groups,
            nodes: nodes.collect(),
        }
    }

    /// An agent. `None`: it is revoked, unknown, or bound to a deleted resource.
    pub(crate) fn get(&self, agent: &AgentId) -> Option<&Node> {
        let make = || {
            let config = self.compiler.compile(agent)?;
            let dynamic = self.learned.routing_state(&config);
            Some(Node::new(config, &dynamic, self.groups.as_ref()))
        };
        self.nodes.get(agent)?.get_or_init(make).as_ref()
    }
}

impl<'a> Fabric<'a> {
    /// Walks in which the rules of security groups decide.
    pub(super) fn new(agents: &'a Agents<'a>) -> Self {
        Self::with(agents, true, None)
    }

    /// Walks in which no security group denies a packet, but the interfaces with a group are noted. `back_end`: load
    /// balancers choose the back end with this address, if they have it.
    pub(crate) fn without_rules(agents: &'a Agents<'a>, back_end: Option<IpAddr>) -> Self {
        Self::with(agents, false, back_end)
    }

    fn with(agents: &'a Agents<'a>, applies_rules: bool, back_end: Option<IpAddr>) -> Self {
        Self {
            agents,
            memories: BTreeMap::new(),
            applies_rules,
            back_end,
            back_ends: BTreeSet::new(),
            rules_met: Vec::new(),
        }
    }

    /// The interfaces that packets have passed since the last call, each with its agent.
    pub(crate) fn take_passed(&mut self) -> Vec<(AgentId, Passed)> {
        let mut all = Vec::new();
        for (agent, memory) in &mut self.memories {
            all.extend(memory.take_passed().into_iter().map(|passed| (agent.clone(), passed)));
        }
        all
    }

    /// The back ends among which load balancers have chosen during the walks.
    pub(crate) fn possible_back_ends(&self) -> BTreeSet<IpAddr> {
        self.back_ends.clone()
    }

    /// The rules of the front ends that packets have met during the walks, as their destination or as a next hop.
    pub(crate) fn rules_met(&self) -> &[BalancingRule] {
        &self.rules_met
    }

    /// Walks a packet from the agent `start`, where it arrives over the link with `from`. `None`: it comes from the
    /// agent's own host. Changes the packet's TTL. The walk always ends, because it stops as a routing loop when the
    /// packet reaches the same agent over the same link again.
    pub(crate) fn walk(&mut self, start: &AgentId, from: Option<&AgentId>, packet: &mut Packet) -> (Walk, End) {
        let mut hops = Vec::new();
        let mut seen = BTreeSet::new();
        let (mut at, mut from) = (start.clone(), from.cloned());
        let (stop, end) = loop {
            // The decision depends only on the agent and on the link. If the same agent and link occur again, the
            // packet is therefore in a routing loop. In the network, the TTL would end that loop.
            let repeated = !seen.insert((at.clone(), from.clone()));
            match self.visit(&at, from.as_ref(), packet, repeated, &mut hops) {
                Next::Agent(next, link) => (at, from) = (next, link),
                Next::End(stop, end) => break (stop.map(|stop| *stop), end),
            }
        };
        let walk = Walk {
            delivered: stop.is_none(),
            hops,
            stop,
        };
        (walk, end)
    }

    /// Notes the front end that is the destination or the next hop of a packet, if there is one.
    fn meet_front_end(&mut self, node: &Node, destination: IpAddr, trace: &Trace) {
        let hop = trace.route.as_ref().and_then(|route| match &route.next_hop {
            NextHop::VirtualAppliance { address } => Some(*address),
            _ => None,
        });
        for front_end in &node.config.front_ends {
            if front_end.address == destination || Some(front_end.address) == hop {
                self.rules_met.extend(front_end.rules.iter().cloned());
            }
            let chosen = front_end
                .rules
                .iter()
                .filter(|rule| trace.balancing_rule.as_ref() == Some(&rule.id));
            // A back end that the operator has taken out gets no new flow.
            let takes_flows = |rule: &BalancingRule, address: &IpAddr| rule.decided.get(address) != Some(&false);
            let possible = chosen.flat_map(|rule| rule.back_ends.iter().filter(|address| takes_flows(rule, address)));
            self.back_ends.extend(possible);
        }
    }

    /// Computes one agent's decision on a packet, and adds the hop. `repeated`: the packet has reached this agent over
    /// the same link before.
    fn visit(
        &mut self,
        at: &AgentId,
        from: Option<&AgentId>,
        packet: &mut Packet,
        repeated: bool,
        hops: &mut Vec<Hop>,
    ) -> Next {
        let (agents, facts) = (self.agents, self.agents.facts);
        let stopped = |stop| Next::End(Some(Box::new(stop)), End::Stopped);
        let Some(node) = agents.get(at) else {
            return stopped(stop::no_configuration(facts.topology, at));
        };
        if repeated {
            return stopped(stop::routing_loop(node, packet));
        }
        let ttl = packet.ttl();
        let (applies_rules, sent_to) = (self.applies_rules, packet.destination);
        let memory = self.memories.entry(at.clone());
        let memory = memory.or_insert_with(|| Memory::of(node, applies_rules));
        let Decision {
            step,
            trace,
            security,
            bandwidth,
        } = match node.decide(memory, from, self.back_end, packet) {
            Ok(decision) => decision,
            Err(what) => return stopped(stop::unusable(at, &what)),
        };
        let has_translated = memory.has_translated_to(packet.destination);
        if !applies_rules && !node.config.front_ends.is_empty() {
            self.meet_front_end(node, sent_to, &trace);
        }
        let mut hop = Hop {
            agent: at.clone(),
            vnet: node.config.vnet.clone(),
            ingress: from.map_or(Ingress::Device {}, |from| Ingress::Link { from: from.clone() }),
            ttl,
            subnet: trace.subnet.clone(),
            route: trace.route.as_ref().map(matched),
            security,
            bandwidth,
            verdict: String::new(),
            next: None,
            relation: None,
        };
        let next = match step {
            Step::Forward(next) => {
                hop.verdict = format!("forwards to {next}");
                hop.next = Some(next.clone());
                hop.relation = node.link(&next).map(|link| relation(&link.relation).to_owned());
                let to_site = node.link(&next).is_some_and(|link| link.third_party);
                let one_sided = stop::one_sided(node, &next);
                if to_site {
                    hop.verdict = "forwards to the site's device".into();
                    Next::left_fabric(at, Some(next))
                } else if agents.get(&next).is_some_and(|far| far.link(at).is_none()) {
                    stopped(one_sided)
                } else if let Some(stop) = stop::different_keys(facts.topology, node, &next) {
                    stopped(stop)
                } else {
                    Next::Agent(next, Some(at.clone()))
                }
            }
            // A front end with floating IP is an address of the host too.
            Step::Deliver if has_translated || node.has(packet.destination) => {
                hop.verdict = format!("delivers to {}", packet.destination);
                Next::End(None, End::Delivered(at.clone()))
            }
            Step::Deliver => forward_by_kernel(node, packet, &mut hop),
            Step::Expired(answer) => {
                hop.verdict = match answer {
                    Some(answer) => format!("the TTL expires: answers from {answer}"),
                    None => "the TTL expires: no answer".into(),
                };
                let error = answer.and_then(|address| packet.time_exceeded(address));
                let answer = error.zip(from).map(|(error, back)| Answer {
                    error,
                    start: (back.clone(), Some(at.clone())),
                });
                Next::End(
                    Some(Box::new(stop::expired(node, packet))),
                    End::Expired(at.clone(), answer),
                )
            }
            Step::Drop(reason) => {
                hop.verdict = format!("drops it: {reason}");
                stopped(match (&hop.security, reason) {
                    (Some(check), DropReason::SecurityRule) => stop::denied(node, packet, check),
                    _ => stop::dropped(facts, node, from, packet, &trace, reason),
                })
            }
        };
        hops.push(hop);
        next
    }
}

impl Next {
    /// The walk ends because the packet leaves the agents' network, to a site's device or over an edge's line.
    fn left_fabric(agent: &AgentId, device: Option<AgentId>) -> Self {
        let agent = agent.clone();
        Self::End(None, End::LeftFabric { agent, device })
    }
}

/// The kernel of an appliance's or an edge's host forwards a packet that the agent delivered to it. Decrements the TTL,
/// and adds the verdict to `hop`.
fn forward_by_kernel(node: &Node, packet: &mut Packet, hop: &mut Hop) -> Next {
    let at = &node.config.agent;
    // A router drops a packet whose TTL would become 0 (RFC 1812, section 5.3.1).
    if hop.ttl <= 1 {
        hop.verdict = "its kernel does not forward it: the TTL expires".into();
        let address = node.kernel_address(packet.source);
        let error = address.and_then(|address| packet.time_exceeded(address));
        let answer = error.map(|error| Answer {
            error,
            start: (at.clone(), None),
        });
        return Next::End(
            Some(Box::new(stop::expired(node, packet))),
            End::Expired(at.clone(), answer),
        );
    }
    packet.decrement_ttl();
    if node.sends_to_customer(packet.destination) {
        hop.verdict = "its kernel forwards it down the line to the customer edge".into();
        return Next::left_fabric(at, None);
    }
    hop.verdict = if node.is_edge() {
        "its kernel forwards it (E6)".into()
    } else {
        "passes it to its kernel, which forwards it (enableIPForwarding)".into()
    };
    Next::Agent(at.clone(), None)
}

/// A route in Azure's terms (R21).
fn matched(route: &EffectiveRoute) -> MatchedRoute {
    MatchedRoute {
        name: route.name.clone(),
        source: route.source,
        address_prefix: route.prefix,
        next_hop_type: route.next_hop.type_name().to_owned(),
        next_hop_ip_address: route.next_hop.addresses(),
    }
}

/// The name of a relation in the JSON form.
fn relation(relation: &Relation) -> &'static str {
    match relation {
        Relation::VnetLocal {} => "vnetLocal",
        Relation::Peering { .. } => "peering",
        Relation::Gateway {} => "gateway",
        Relation::GatewayClient {} => "gatewayClient",
        Relation::Connection { .. } => "connection",
        Relation::Site { .. } => "site",
        Relation::Edge { .. } => "edge",
        Relation::CircuitGateway { .. } => "circuitGateway",
        Relation::CircuitClient { .. } => "circuitClient",
        Relation::OtherGateway {} => "otherGateway",
    }
}
