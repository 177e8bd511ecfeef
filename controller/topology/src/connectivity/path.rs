//! The hops of a checked path: those that a trace has observed, and where it is silent, those that `explain` expects.

use super::answer::Difference;
use super::place::{Place, PlaceKind, of_address, of_agent};
use crate::explain::{Explanation, TraceHop};
use crate::resource::Binding;
use crate::topology::Topology;
use std::net::IpAddr;
use tombolo_proto::id::AgentId;
use tombolo_proto::probe::ProbeReport;

/// What is known about a path before and after the probes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Evidence<'a> {
    pub(super) topology: &'a Topology,
    /// The explanation of the packets that are probed.
    pub(super) explained: &'a Explanation,
    /// The explanation of echo requests, whose trace is the expected one.
    pub(super) echo: &'a Explanation,
    /// The report of the trace; `None`: the agent could not trace.
    pub(super) trace: Option<&'a ProbeReport>,
}

/// A hop of the path.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) place: Place,
    /// Round-trip times of the trace, in milliseconds.
    pub(super) rtts_ms: Vec<f64>,
}

/// The path of the probes.
#[derive(Debug, Clone)]
pub(super) struct Path {
    /// The source first; never empty.
    pub(super) lines: Vec<Line>,
    /// The first difference between the observed and the expected trace, and the number of its line.
    pub(super) difference: Option<(usize, Difference)>,
}

impl Path {
    /// The number of the agent's line. If there is none, adds one behind the last agent: routers of a site come after all
    /// agents.
    pub(super) fn line_of(&mut self, topology: &Topology, agent: &AgentId, address: Option<IpAddr>) -> usize {
        let found = self
            .lines
            .iter()
            .position(|line| line.place.agent.as_ref() == Some(agent));
        found.unwrap_or_else(|| {
            let last = self.lines.iter().rposition(|line| line.place.agent.is_some());
            let number = last.map_or(self.lines.len(), |last| last + 1);
            self.lines.insert(number, Line::expected(topology, agent, address));
            if let Some((line, _)) = &mut self.difference
                && *line >= number
            {
                *line += 1;
            }
            number
        })
    }

    /// Adds a line, or the round-trip times to the last line if it belongs to the same agent: an appliance can answer at
    /// two TTLs, one for its agent and one for its kernel. Returns the number of the line.
    fn push(&mut self, line: Line) -> usize {
        // The source's own line stays alone, because its agent is no hop.
        let is_first = self.lines.len() == 1;
        match self.lines.last_mut().filter(|_| !is_first) {
            Some(last) if last.place.agent.is_some() && last.place.agent == line.place.agent => {
                last.rtts_ms.extend(line.rtts_ms);
            }
            _ => self.lines.push(line),
        }
        self.lines.len() - 1
    }
}

impl Line {
    fn expected(topology: &Topology, agent: &AgentId, address: Option<IpAddr>) -> Self {
        let unknown = || Place {
            agent: Some(agent.clone()),
            address,
            resource: None,
            kind: PlaceKind::Outside,
        };
        Self {
            place: of_agent(topology, agent, address).unwrap_or_else(unknown),
            rtts_ms: Vec::new(),
        }
    }
}

/// Whether a packet that arrives leaves the agents' network for a site. The controller does not know the routers there.
pub(super) fn leaves(topology: &Topology, explained: &Explanation) -> bool {
    let last = explained.request.hops.last().filter(|_| explained.request.delivered);
    last.is_some_and(|hop| {
        let is_edge = || topology.agents.get(&hop.agent).map(|a| &a.binding);
        hop.relation.as_deref() == Some("site") || matches!(is_edge(), Some(Binding::Edge { .. }))
    })
}

/// The path of the probes. `arrived`: the destination has answered a probe.
pub(super) fn of(evidence: Evidence<'_>, arrived: bool) -> Path {
    let Evidence {
        topology, explained, ..
    } = evidence;
    let source = explained.request.hops.first().map(|hop| &hop.agent);
    let source = source.and_then(|agent| of_agent(topology, agent, Some(explained.source)));
    let mut path = Path {
        lines: vec![Line {
            place: source.unwrap_or_else(|| of_address(topology, explained.source, [])),
            rtts_ms: Vec::new(),
        }],
        difference: None,
    };
    add_trace(&mut path, evidence);
    // Hops that are silent although they should answer may be passed; those that another way avoids are not.
    let is_complete = match path.difference {
        None => true,
        Some((_, difference)) => arrived && difference.observed.is_none(),
    };
    if is_complete {
        for hop in explained.request.hops.iter().skip(1) {
            path.line_of(topology, &hop.agent, Some(explained.destination));
        }
    }
    let reached = path
        .lines
        .last()
        .is_some_and(|l| l.place.address == Some(explained.destination));
    if is_complete && leaves(topology, explained) && !reached {
        path.lines.push(Line {
            place: Place {
                agent: None,
                address: Some(explained.destination),
                resource: None,
                kind: PlaceKind::Outside,
            },
            rtts_ms: Vec::new(),
        });
    }
    path
}

/// Adds the hops of the trace, up to the first one that is silent although it should answer, if no later one answers.
fn add_trace(path: &mut Path, evidence: Evidence<'_>) {
    let expected = &evidence.echo.trace;
    let hops = evidence.trace.map_or(&[][..], |trace| &trace.hops);
    let answered = hops
        .iter()
        .rposition(|hop| hop.address.is_some())
        .map_or(0, |last| last + 1);
    let is_open = leaves(evidence.topology, evidence.echo);
    for index in 0..expected.len().max(answered) {
        let wanted = expected.get(index);
        let seen = hops.get(index).and_then(|hop| hop.address);
        let agents = wanted.into_iter().chain(expected).map(|hop| &hop.agent);
        let place = match (seen, wanted) {
            (Some(address), Some(hop)) if hop.address != seen => of_address(evidence.topology, address, agents),
            (Some(address), None) => of_address(evidence.topology, address, agents),
            (_, Some(hop)) => {
                let place = Line::expected(evidence.topology, &hop.agent, hop.address).place;
                Place {
                    address: hop.address.or(place.address),
                    ..place
                }
            }
            // A silent router of a site, before one that answers.
            (None, None) => continue,
        };
        let differs = evidence.trace.is_some() && is_different(evidence.topology, wanted, seen, &place, is_open);
        let rtts_ms = hops.get(index).map(|hop| hop.rtts_ms.clone()).unwrap_or_default();
        let line = path.push(Line { place, rtts_ms });
        if differs && path.difference.is_none() {
            let difference = Difference {
                ttl: u8::try_from(index + 1).unwrap_or(u8::MAX),
                expected: wanted.and_then(|hop| hop.address),
                observed: seen,
            };
            path.difference = Some((line, difference));
        }
        if path.difference.is_some() && index + 1 >= answered {
            return;
        }
    }
}

/// Whether a hop of the trace is another one than expected. The instances of one gateway count as equal, because the flow
/// of each probe chooses an instance of its own.
fn is_different(
    topology: &Topology,
    wanted: Option<&TraceHop>,
    seen: Option<IpAddr>,
    place: &Place,
    is_open: bool,
) -> bool {
    let Some(wanted) = wanted else { return !is_open };
    if wanted.address == seen {
        return false;
    }
    let instance = of_agent(topology, &wanted.agent, wanted.address).filter(|p| p.kind == PlaceKind::Gateway);
    seen.is_none()
        || wanted.address.is_none()
        || instance.is_none_or(|instance| place.kind != PlaceKind::Gateway || instance.resource != place.resource)
}
