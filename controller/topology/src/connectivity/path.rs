//! The hops of a checked path: those that a trace has observed, and where it is silent, those that `explain` expects.

use super::answer::Difference;
use super::place::{Place, PlaceKind, of_address, of_agent};
use crate::explain::{Explanation, TraceHop};
use crate::resource::Binding;
use crate::topology::Topology;
use std::net::IpAddr;
use tombolo_proto::id::AgentId;
use tombolo_proto::probe::{Hop, ProbeReport};

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
    /// The number of the agent's line. If there is none, adds one behind the last agent: routers of a site with the
    /// destination come after all agents.
    pub(super) fn line_of(&mut self, topology: &Topology, agent: &AgentId, address: Option<IpAddr>) -> usize {
        let found = self
            .lines
            .iter()
            .position(|line| line.place.agent.as_ref() == Some(agent));
        found.unwrap_or_else(|| {
            let forwards = |line: &Line| line.place.agent.is_some() && line.place.kind != PlaceKind::Site;
            let last = self.lines.iter().rposition(forwards);
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

/// Whether the probes come from a site. The controller does not know the routers there.
pub(super) fn from_site(topology: &Topology, explained: &Explanation) -> bool {
    let first = explained.request.hops.first();
    let binding = first
        .and_then(|hop| topology.agents.get(&hop.agent))
        .map(|a| &a.binding);
    matches!(binding, Some(Binding::Site { .. }))
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
    let before = match from_site(evidence.topology, evidence.echo) {
        true => routers_before(evidence.topology, hops, evidence.echo),
        false => 0,
    };
    let (of_site, hops) = hops.split_at(before);
    // A router of the site may be silent, so it has a line only if it answers.
    for hop in of_site.iter().filter(|hop| hop.address.is_some()) {
        let place = Place {
            agent: None,
            address: hop.address,
            resource: None,
            kind: PlaceKind::Outside,
        };
        let rtts_ms = hop.rtts_ms.clone();
        path.push(Line { place, rtts_ms });
    }
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
                ttl: u8::try_from(before + index + 1).unwrap_or(u8::MAX),
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

/// The number of routers in a site that the probes pass before the first agent, by the trace. If a machine of a VNet has
/// answered, all hops before the expected ones are such routers. Otherwise it is the first place where the trace shows
/// exactly the expected hops, or else the first expected address. If there is none, all hops up to the last answer are
/// routers of the site.
fn routers_before(topology: &Topology, hops: &[Hop], echo: &Explanation) -> usize {
    let expected: Vec<_> = echo.trace.iter().map(|hop| hop.address).collect();
    let seen: Vec<_> = hops.iter().map(|hop| hop.address).collect();
    let has_arrived = seen.last() == Some(&Some(echo.destination));
    // In another site, further routers that are not known come before the destination.
    if has_arrived && echo.request.delivered && !leaves(topology, echo) {
        return seen.len().saturating_sub(expected.len());
    }
    let exact = || {
        let mut windows = seen.windows(expected.len().max(1));
        windows.position(|window| window == expected)
    };
    let by_address = || {
        let visible = expected.iter().enumerate().filter(|(_, wanted)| wanted.is_some());
        let mut places =
            visible.filter_map(|(index, wanted)| seen.iter().position(|s| s == wanted)?.checked_sub(index));
        places.next()
    };
    let answered = seen.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
    exact().or_else(by_address).unwrap_or(answered)
}

/// Whether a hop of the trace is another one than expected. The instances of one gateway, and the edges of one circuit, count
/// as equal, because the flow of each probe chooses one of them.
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
    let is_shared = |place: &Place| matches!(place.kind, PlaceKind::Gateway | PlaceKind::Edge);
    let instance = of_agent(topology, &wanted.agent, wanted.address).filter(is_shared);
    seen.is_none()
        || wanted.address.is_none()
        || instance.is_none_or(|instance| !is_shared(place) || instance.resource != place.resource)
}
