//! Walks a packet through the fabric, hop by hop, with the agents' own decision code.
//!
//! The walk is computed from the configurations that agents should run and the routes that they report. A live probe
//! (`ping`, `trace`) tests the real network. If the walk and the probe differ, the usual reason is that a link is down,
//! or that an agent does not run the newest configuration yet.
//!
//! * `answer`: the question and the answer in their JSON form.
//! * `names`: resolves the operator's names to agents and addresses.
//! * `node`: one agent, which decides with the engine's tables.
//! * `security`: the security groups that a packet passes, and the rules that decide.
//! * `walk`: the walk of a packet from agent to agent.
//! * `stop`: the reason why a packet stops, and the remedy.
//! * `denied`: the security rule that denies a packet, and the rule that would allow it.
//! * `no_back_end`: the reason why a load balancer has no back end for a packet.
//! * `transit`: the reason why a gateway or an edge does not forward a packet.
//! * `finding`: a finding with cause and remedy; findings about owners and agents.
//! * `gateways`: findings about gateways, connections and circuits between VNets.
//! * `keys`: connections whose two ends have different shared keys.
//! * `sites`: findings about addresses outside of all VNets.
//! * `from_site`: the walk of a packet that a host in a site sends.
//! * `no_way_out`: findings about addresses to which a site has no route.

mod answer;
mod denied;
mod finding;
mod from_site;
mod gateways;
mod keys;
mod names;
mod no_back_end;
mod no_route;
mod no_way_out;
pub(crate) mod node;
mod security;
mod sites;
mod stop;
mod transit;
pub(crate) mod walk;

use crate::learned_routes::LearnedReports;
use crate::topology::Topology;
pub use answer::{
    BandwidthLimit, DEFAULT_TTL, DecidingRule, Explanation, GroupCheck, Hop, Ingress, MatchedAddresses, MatchedRoute,
    OtherRule, RuleField, SecurityCheck, Stop, TraceHop, Walk,
};
use from_site::Site;
use node::Packet;
use std::net::IpAddr;
use tombolo_proto::fabric::ExplainRequest;
use tombolo_proto::id::AgentId;
use walk::{Agents, Answer, End, Fabric};

/// Walks a packet and, if it arrives, its reply from agent to agent, and computes the output of a traceroute. Each
/// agent decides with its compiled configuration and the routes of `reports`; no packet is sent and no agent is asked.
/// The walk assumes that hosts and sites answer. A network interface with a security group that has admitted the packet
/// admits the reply too; one that has not seen the packet lets its rules decide about the reply (N6).
///
/// If the source is a site probe, the packet enters where the gateways and edges of the site advertise a route to the
/// destination (M10). The trace then begins at the first agent, because the site's routers are not known.
///
/// # Errors
/// The text names the reason: a name is unknown or ambiguous (then the text lists the candidates), the source has no
/// agent, the two ends have no address family in common, or the TTL is 0.
pub fn explain(
    topology: &Topology,
    reports: &LearnedReports,
    question: &ExplainRequest,
) -> Result<Explanation, String> {
    let Ends {
        agent: start,
        source,
        destination,
    } = ends(topology, &question.from, &question.to)?;
    let ttl = question.ttl.unwrap_or(DEFAULT_TTL);
    if ttl == 0 {
        return Err("ttl: 0 is not within 1 to 255".into());
    }
    let agents = Agents::new(topology, reports);
    let mut fabric = Fabric::new(&agents);
    let attachments = from_site::attachments(topology, &start);
    let site = attachments.map(|all| Site::new(&agents, &start, all, destination));
    let walk = |fabric: &mut Fabric<'_>, packet: &mut Packet| match &site {
        Some(site) => site.walk(&agents, fabric, packet),
        None => fabric.walk(&start, None, packet),
    };
    let there = |ttl| Packet::request(source, destination, question.protocol, question.destination_port, ttl);
    let mut sent = there(ttl)?;
    let (request, end) = walk(&mut fabric, &mut sent);
    let reply = match &end {
        End::Delivered(last) => Some(fabric.walk(last, None, &mut sent.reply()?).0),
        // The fabric cannot know the path inside a site, so the walk assumes that the site answers.
        End::LeftFabric { agent, device } => Some(fabric.walk(agent, device.as_ref(), &mut sent.reply()?).0),
        End::Expired(..) | End::Stopped => None,
    };
    let reachable = reply.as_ref().is_some_and(|reply| reply.delivered);
    let mut trace = Vec::new();
    for ttl in 1..=ttl {
        let (_, end) = walk(&mut fabric, &mut there(ttl)?);
        let (line, last) = match end {
            End::Expired(agent, answer) => {
                let address = match answer {
                    Some(answer) if site.is_some() => {
                        let reaches = from_site::reaches_site(&agents, &mut fabric, &answer);
                        reaches.then_some(answer.error.source)
                    }
                    Some(answer) if reaches_source(&mut fabric, &answer) => Some(answer.error.source),
                    _ => None,
                };
                (TraceHop { ttl, agent, address }, false)
            }
            End::Delivered(agent) => {
                let address = reachable.then_some(destination);
                (TraceHop { ttl, agent, address }, true)
            }
            // The packet is dropped, or its next hops are routers of a site. The controller does not know these
            // routers, so the trace ends.
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

/// The two ends of packets, and the agent that sends them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ends {
    /// The agent of the source. It may be revoked.
    pub agent: AgentId,
    /// The source address.
    pub source: IpAddr,
    /// The destination address, of the same address family.
    pub destination: IpAddr,
}

/// Resolves the names of a source and a destination as [`explain`] does, without a walk.
///
/// # Errors
/// As [`explain`].
pub fn ends(topology: &Topology, from: &str, to: &str) -> Result<Ends, String> {
    let from = names::source(topology, from)?;
    let to = names::destination(topology, to)?;
    let (source, destination) = names::pair(&from, &to)?;
    let agent = from.agent.ok_or_else(|| format!("from: {} has no agent", from.label))?;
    Ok(Ends {
        agent,
        source,
        destination,
    })
}

/// Whether an ICMP error reaches the source of the packet that caused it. If it does not, a traceroute shows a silent hop.
fn reaches_source(fabric: &mut Fabric<'_>, answer: &Answer) -> bool {
    let (at, from) = &answer.start;
    let (_, end) = fabric.walk(at, from.as_ref(), &mut answer.error.clone());
    matches!(end, End::Delivered(_))
}

/// One sentence for people: the agents on the path, or why the packet stops and what would change that.
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
