//! A packet's way from agent to agent. Each agent decides by its own configuration, and the kernel of an appliance
//! forwards in between (R12, D23).

use super::answer::{Hop, Ingress, MatchedRoute, Walk};
use super::node::{Decision, Node, Packet, Step};
use super::stop;
use super::why::Facts;
use crate::compile::Compiler;
use crate::learned_routes::{Moving, Reports};
use crate::topology::Topology;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use tombolo_proto::config::Relation;
use tombolo_proto::id::AgentId;
use tombolo_proto::route::EffectiveRoute;

/// The agents that packets have come to so far, each compiled once.
pub(super) struct Fabric<'t> {
    facts: Facts<'t>,
    compiler: Compiler<'t>,
    moving: Moving,
    nodes: BTreeMap<AgentId, Option<Node>>,
}

/// How a walk ended.
pub(super) enum End {
    /// At an agent that has the destination.
    Delivered(AgentId),
    /// Its TTL ran out at an agent.
    Expired(AgentId, Option<Answer>),
    /// It went on into a site: from this agent, over the link with its device or down the line of an edge.
    Left {
        /// The last agent.
        agent: AgentId,
        /// The site's device; none: down the line.
        device: Option<AgentId>,
    },
    /// It is lost.
    Stopped,
}

/// An ICMP error on its way back.
pub(super) struct Answer {
    /// Its source.
    pub(super) address: IpAddr,
    /// Where it comes first, and over which link: a kernel's answer comes out of its own device, an engine's goes back
    /// the way the packet came.
    pub(super) start: (AgentId, Option<AgentId>),
}

impl<'t> Fabric<'t> {
    pub(super) fn new(topology: &'t Topology, reports: &'t Reports) -> Self {
        let compiler = Compiler::new(topology);
        let moving = Moving::new(topology, &compiler, reports.clone());
        Self {
            facts: Facts {
                topology,
                reports,
                subnet: None,
            },
            compiler,
            moving,
            nodes: BTreeMap::new(),
        }
    }

    /// None: revoked, unknown, or bound to something that is gone.
    pub(super) fn node(&mut self, agent: &AgentId) -> Option<&Node> {
        let (compiler, moving) = (&self.compiler, &self.moving);
        let make = || {
            let config = compiler.compile(agent)?;
            let dynamic = moving.dynamic(&config);
            Some(Node::new(config, &dynamic))
        };
        self.nodes.entry(agent.clone()).or_insert_with(make).as_ref()
    }

    /// Follows a packet from an agent on, where it comes over the link with `from`, or from the host itself.
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
            // Where a packet goes depends on these alone: the same again means for ever (until its TTL is gone).
            if !seen.insert((at.clone(), from.clone())) {
                return stopped(hops, stop::round(node, packet));
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
                        let end = End::Left {
                            agent: at,
                            device: Some(next),
                        };
                        return (left(hops), end);
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
                        hop.verdict = "its kernel forwards no further: the TTL is used up".into();
                        let stop = stop::expired(node, packet);
                        hops.push(hop);
                        return (stopped(hops, stop).0, End::Expired(at, answer));
                    }
                    packet.take_ttl();
                    if node.sends_down(packet.destination) {
                        hop.verdict = "its kernel forwards it down the line to the customer edge".into();
                        hops.push(hop);
                        let end = End::Left {
                            agent: at,
                            device: None,
                        };
                        return (left(hops), end);
                    }
                    hop.verdict = if node.is_edge() {
                        "its kernel forwards it (E6)".into()
                    } else {
                        "hands it to its kernel, which forwards it (enableIPForwarding)".into()
                    };
                    from = None;
                }
                Step::Expired(answer) => {
                    hop.verdict = match answer {
                        Some(answer) => format!("the TTL is used up: answers from {answer}"),
                        None => "the TTL is used up: silent".into(),
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

/// A walk that goes on where no agent is.
fn left(hops: Vec<Hop>) -> Walk {
    Walk {
        delivered: true,
        hops,
        stop: None,
    }
}

/// A route in Azure's words (R21).
fn matched(route: &EffectiveRoute) -> MatchedRoute {
    MatchedRoute {
        name: route.name.clone(),
        source: route.source,
        address_prefix: route.prefix,
        next_hop_type: route.next_hop.type_name().to_owned(),
        next_hop_ip_address: route.next_hop.addresses(),
    }
}

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
