//! Walks a packet from agent to agent. Each agent decides with its own configuration; between two decisions the kernel
//! of an appliance forwards (R12, D23).

use super::answer::{Hop, Ingress, MatchedRoute, Walk};
use super::finding::Facts;
use super::node::{Decision, Node, Packet, Step};
use super::stop;
use crate::compile::Compiler;
use crate::learned_routes::{LearnedReports, LearnedRoutes};
use crate::topology::Topology;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use tombolo_proto::config::Relation;
use tombolo_proto::id::AgentId;
use tombolo_proto::route::EffectiveRoute;

/// The agents that packets have reached so far, each compiled once.
pub(super) struct Fabric<'t> {
    facts: Facts<'t>,
    compiler: Compiler<'t>,
    learned: LearnedRoutes,
    nodes: BTreeMap<AgentId, Option<Node>>,
}

/// The end of a walk.
pub(super) enum End {
    /// The packet reached the agent that has the destination.
    Delivered(AgentId),
    /// The TTL expired at this agent, which may answer.
    Expired(AgentId, Option<Answer>),
    /// The packet left the fabric into a site: over the link with its device, or down the line of an edge.
    LeftFabric {
        /// The last agent of the walk.
        agent: AgentId,
        /// The site's device. `None`: down the line.
        device: Option<AgentId>,
    },
    /// The packet was dropped.
    Stopped,
}

/// An ICMP error that an agent sends.
pub(super) struct Answer {
    /// The source address of the error.
    pub(super) address: IpAddr,
    /// The agent that decides on the error first, and the link over which the error arrives there. The TUN device of
    /// the agent delivers a kernel's error; an engine's error returns over the link of the packet.
    pub(super) start: (AgentId, Option<AgentId>),
}

impl<'t> Fabric<'t> {
    pub(super) fn new(topology: &'t Topology, reports: &'t LearnedReports) -> Self {
        let compiler = Compiler::new(topology);
        let learned = LearnedRoutes::new(topology, &compiler, reports.clone());
        Self {
            facts: Facts {
                topology,
                reports,
                subnet: None,
            },
            compiler,
            learned,
            nodes: BTreeMap::new(),
        }
    }

    /// An agent, compiled at first use. `None`: it is revoked, unknown, or bound to a deleted resource.
    pub(super) fn node(&mut self, agent: &AgentId) -> Option<&Node> {
        let (compiler, learned) = (&self.compiler, &self.learned);
        let make = || {
            let config = compiler.compile(agent)?;
            let dynamic = learned.routing_state(&config);
            Some(Node::new(config, &dynamic))
        };
        self.nodes.entry(agent.clone()).or_insert_with(make).as_ref()
    }

    /// Walks a packet from the agent `start`, where it arrives over the link with `from`; `None`: from the host itself.
    pub(super) fn walk(&mut self, start: &AgentId, from: Option<&AgentId>, packet: &mut Packet) -> (Walk, End) {
        let mut hops = Vec::new();
        let mut seen = BTreeSet::new();
        let (mut at, mut from) = (start.clone(), from.cloned());
        loop {
            let facts = self.facts;
            let stopped = |hops, stop| {
                let walk = Walk {
                    delivered: false,
                    hops,
                    stop: Some(stop),
                };
                (walk, End::Stopped)
            };
            let Some(node) = self.node(&at) else {
                return stopped(hops, stop::no_configuration(facts.topology, &at));
            };
            // The decision depends on agent and link only, so the same pair again means a routing loop, which the TTL
            // ends.
            if !seen.insert((at.clone(), from.clone())) {
                return stopped(hops, stop::routing_loop(node, packet));
            }
            let ttl = packet.ttl();
            let (step, trace) = match node.decide(from.as_ref(), packet) {
                Ok(Decision { step, trace }) => (step, trace),
                Err(what) => return stopped(hops, stop::unusable(&at, &what)),
            };
            let mut hop = Hop {
                agent: at.clone(),
                vnet: node.config.vnet.clone(),
                ingress: match &from {
                    Some(from) => Ingress::Link { from: from.clone() },
                    None => Ingress::Device {},
                },
                ttl,
                subnet: trace.subnet.clone(),
                route: trace.route.as_ref().map(matched),
                verdict: String::new(),
                next: None,
                relation: None,
            };
            match step {
                Step::Forward(next) => {
                    hop.verdict = format!("forwards to {next}");
                    hop.next = Some(next.clone());
                    hop.relation = node.link(&next).map(|link| relation(&link.relation).to_owned());
                    if node.link(&next).is_some_and(|link| link.stock) {
                        hop.verdict = "forwards to the site's device".into();
                        hops.push(hop);
                        let end = End::LeftFabric {
                            agent: at,
                            device: Some(next),
                        };
                        return (left_fabric(hops), end);
                    }
                    let one_sided = stop::one_sided(node, &next);
                    if self.node(&next).is_some_and(|far| far.link(&at).is_none()) {
                        hops.push(hop);
                        return stopped(hops, one_sided);
                    }
                    from = Some(at);
                    at = next;
                }
                Step::Deliver if node.has(packet.destination) => {
                    hop.verdict = format!("delivers to {}", packet.destination);
                    hops.push(hop);
                    let walk = Walk {
                        delivered: true,
                        hops,
                        stop: None,
                    };
                    return (walk, End::Delivered(at));
                }
                Step::Deliver => {
                    let answer = node.kernel_address(packet.source).map(|address| Answer {
                        address,
                        start: (at.clone(), None),
                    });
                    if ttl <= 1 {
                        hop.verdict = "its kernel does not forward it: the TTL expires".into();
                        let stop = stop::expired(node, packet);
                        hops.push(hop);
                        return (stopped(hops, stop).0, End::Expired(at, answer));
                    }
                    packet.take_ttl();
                    if node.sends_down(packet.destination) {
                        hop.verdict = "its kernel forwards it down the line to the customer edge".into();
                        hops.push(hop);
                        let end = End::LeftFabric {
                            agent: at,
                            device: None,
                        };
                        return (left_fabric(hops), end);
                    }
                    hop.verdict = if node.is_edge() {
                        "its kernel forwards it (E6)".into()
                    } else {
                        "passes it to its kernel, which forwards it (enableIPForwarding)".into()
                    };
                    from = None;
                }
                Step::Expired(answer) => {
                    hop.verdict = match answer {
                        Some(answer) => format!("the TTL expires: answers from {answer}"),
                        None => "the TTL expires: no answer".into(),
                    };
                    let stop = stop::expired(node, packet);
                    let answer = answer.zip(from).map(|(address, back)| Answer {
                        address,
                        start: (back, Some(at.clone())),
                    });
                    hops.push(hop);
                    return (stopped(hops, stop).0, End::Expired(at, answer));
                }
                Step::Drop(reason) => {
                    hop.verdict = format!("drops it: {reason}");
                    let stop = stop::dropped(facts, node, from.as_ref(), packet, &trace, reason);
                    hops.push(hop);
                    return stopped(hops, stop);
                }
            }
            hops.push(hop);
        }
    }
}

/// The packet leaves the fabric, to a site or a customer edge.
fn left_fabric(hops: Vec<Hop>) -> Walk {
    Walk {
        delivered: true,
        hops,
        stop: None,
    }
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
