//! Walks a packet through the fabric, hop by hop, with the agents' own decision code.
//!
//! The walk shows the result of the policy, with the routes that agents report as learned. A live probe shows the
//! result in the network. If the two differ, a link is down.
//!
//! * `answer`: the question and the answer in their JSON form.
//! * `names`: resolves the operator's names to agents and addresses.
//! * `node`: one agent, which decides with the engine's tables.
//! * `walk`: from agent to agent.
//! * `stop`: the reason why a packet stops, and the remedy.
//! * `transit`: the reason why a gateway or an edge does not forward a packet.
//! * `finding`: a finding with cause and remedy; findings about owners and agents.
//! * `gateways`: findings about gateways, connections and circuits between VNets.
//! * `sites`: findings about addresses outside of all VNets.

mod answer;
mod finding;
mod gateways;
mod names;
mod no_route;
mod node;
mod sites;
mod stop;
mod transit;
mod walk;

use crate::learned_routes::LearnedReports;
use crate::topology::Topology;
pub use answer::{DEFAULT_TTL, Explanation, Hop, Ingress, MatchedRoute, Protocol, Question, Stop, TraceHop, Walk};
use node::Packet;
use std::net::IpAddr;
use walk::{Answer, End, Fabric};

/// Walks a packet and its reply from agent to agent. Each agent decides with its compiled configuration.
///
/// # Errors
/// A name is unknown or ambiguous (the message lists the candidates), the ends have no common address family, or the
/// TTL is 0.
pub fn explain(topology: &Topology, reports: &LearnedReports, question: &Question) -> Result<Explanation, String> {
    let from = names::source(topology, &question.from)?;
    let to = names::destination(topology, &question.to)?;
    let (source, destination) = names::pair(&from, &to)?;
    let ttl = question.ttl.unwrap_or(DEFAULT_TTL);
    if ttl == 0 {
        return Err("ttl: 0 is not within 1 to 255".into());
    }
    let Some(start) = from.agent else {
        return Err(format!("from: {} has no agent", from.label));
    };
    let mut fabric = Fabric::new(topology, reports);
    let there = |ttl| Packet::new(source, destination, question.protocol, question.destination_port, ttl);
    let (request, end) = fabric.walk(&start, None, &mut there(ttl)?);
    let reply = match &end {
        End::Delivered(last) => {
            let mut back = Packet::new(destination, source, question.protocol, None, DEFAULT_TTL)?;
            Some(fabric.walk(last, None, &mut back).0)
        }
        // The fabric cannot know the path inside a site, so the walk assumes that the site answers.
        End::LeftFabric { agent, device } => {
            let mut back = Packet::new(destination, source, question.protocol, None, DEFAULT_TTL)?;
            Some(fabric.walk(agent, device.as_ref(), &mut back).0)
        }
        End::Expired(..) | End::Stopped => None,
    };
    let reachable = reply.as_ref().is_some_and(|reply| reply.delivered);
    let mut trace = Vec::new();
    for ttl in 1..=ttl {
        let (_, end) = fabric.walk(&start, None, &mut there(ttl)?);
        let (line, last) = match end {
            End::Expired(agent, answer) => {
                let address = match answer {
                    Some(answer) if comes_back(&mut fabric, &answer, source)? => Some(answer.address),
                    _ => None,
                };
                (TraceHop { ttl, agent, address }, false)
            }
            End::Delivered(agent) => {
                let address = reachable.then_some(destination);
                (TraceHop { ttl, agent, address }, true)
            }
            // The next hops are the site's own routers, which the controller does not know.
            End::LeftFabric { .. } | End::Stopped => break,
        };
        trace.push(line);
        if last {
            break;
        }
    }
    Ok(Explanation {
        source,
        destination,
        protocol: question.protocol,
        reachable,
        summary: summary(&request, reply.as_ref()),
        request,
        reply,
        trace,
    })
}

/// Whether an ICMP error reaches the source of the packet.
fn comes_back(fabric: &mut Fabric<'_>, answer: &Answer, source: IpAddr) -> Result<bool, String> {
    let mut error = Packet::new(answer.address, source, Protocol::Icmp, None, DEFAULT_TTL)?;
    let (at, from) = &answer.start;
    Ok(matches!(
        fabric.walk(at, from.as_ref(), &mut error).1,
        End::Delivered(_)
    ))
}

/// One sentence for people: the path, or the stop with its remedy.
fn summary(request: &Walk, reply: Option<&Walk>) -> String {
    let path = |walk: &Walk| {
        let mut agents: Vec<&str> = walk.hops.iter().map(|hop| hop.agent.as_str()).collect();
        agents.dedup();
        agents.join(" → ")
    };
    match (&request.stop, reply.map(|reply| &reply.stop)) {
        (Some(stop), _) => stop.text.clone(),
        (None, Some(Some(stop))) => format!("arrives ({}), but the answer does not: {}", path(request), stop.text),
        (None, _) => format!("reachable: {}", path(request)),
    }
}
