//! What the agents would do with a packet, hop by hop, by the agents' own code.
//!
//! The walk says what policy says, with the routes that agents report to have learned; what the network does is a probe's
//! matter. Where the two disagree, a link is down.
//!
//! * `answer`: the question and the answer, as they travel.
//! * `names`: from what an operator types to agents and addresses.
//! * `node`: one agent, deciding with the engine's tables.
//! * `walk`: from agent to agent.
//! * `stop`: what stops a packet, in words that say what to do.
//! * `transit`: why a gateway or an edge does not pass a packet on.
//! * `why`: why there is no way, from the topology: routes, peerings, owners.
//! * `gateways`: the same for gateways, connections and circuits between VNets.
//! * `sites`: the same for addresses outside all VNets.

mod answer;
mod gateways;
mod names;
mod no_route;
mod node;
mod sites;
mod stop;
mod transit;
mod walk;
mod why;

use crate::learned_routes::Reports;
use crate::topology::Topology;
pub use answer::{DEFAULT_TTL, Explanation, Hop, Ingress, MatchedRoute, Protocol, Question, Stop, TraceHop, Walk};
use node::Packet;
use std::net::IpAddr;
use walk::{Answer, End, Fabric};

/// Walks a packet and the answer to it from agent to agent, each deciding by its compiled configuration.
///
/// # Errors
/// A name that nobody has, or that several have (they are listed); no common address family; a TTL of 0.
pub fn explain(topology: &Topology, reports: &Reports, question: &Question) -> Result<Explanation, String> {
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
        // From there on it is the site's matter, and so is that an answer comes.
        End::Left { agent, device } => {
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
            // The site's own routers come next, which nobody here knows.
            End::Left { .. } | End::Stopped => break,
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
