//! The reasons why probes do not arrive, from the explanation, the trace and the reports of agents.

use super::answer::{ContextEntry, Difference, Issue, IssueKind, Origin, Severity};
use super::path::{Path, leaves};
use super::place::PlaceKind;
use crate::explain::{Explanation, Walk};
use crate::path::shown;
use crate::topology::{AgentStatuses, Topology};
use tombolo_engine::verdict::DropReason;
use tombolo_proto::config::Direction;
use tombolo_proto::id::AgentId;
use tombolo_proto::probe::ProbeReport;
use tombolo_proto::route::RouteSource;
use tombolo_proto::status::LinkState;

/// The reasons of drops that a change of a route can end. `loop` is the one of `explain` for a routing loop.
const OF_ROUTES: [&str; 7] = [
    DropReason::NoRoute.name(),
    DropReason::RouteNone.name(),
    DropReason::RouteInternet.name(),
    DropReason::ApplianceUnreachable.name(),
    DropReason::NoGateway.name(),
    DropReason::Hairpin.name(),
    "loop",
];

/// The state of the network in which probes were sent, and their results.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case<'a> {
    pub(super) topology: &'a Topology,
    pub(super) statuses: &'a AgentStatuses,
    pub(super) explained: &'a Explanation,
    pub(super) probe: &'a ProbeReport,
}

fn context(entries: &[(&str, &str)]) -> Vec<ContextEntry> {
    let entry = |(key, value): &(&str, &str)| ContextEntry {
        key: (*key).to_owned(),
        value: (*value).to_owned(),
    };
    entries.iter().map(entry).collect()
}

/// The issues of a check, each with the number of its line. Adds a line for the agent at which packets stop, if the path
/// has none.
pub(super) fn of(case: Case<'_>, path: &mut Path) -> Vec<(usize, Issue)> {
    if let Some(error) = &case.probe.error {
        let issue = Issue {
            origin: Origin::Local,
            severity: Severity::Error,
            kind: IssueKind::SocketBind,
            context: context(&[("Reason", &shown(error))]),
        };
        return vec![(0, issue)];
    }
    let arrived = case.probe.received > 0;
    let severity = if arrived { Severity::Warning } else { Severity::Error };
    let mut found = Vec::new();
    if let Some(walk) = stopped(case.explained) {
        found.extend(of_stop(case, walk, path, severity));
    }
    let difference = path.difference;
    if let Some((line, difference)) = difference {
        found.push((line, of_difference(case, path, line, difference, severity)));
    }
    // A refusal comes from the destination, so the probes have passed every hop before.
    let is_refused = case.probe.refused > 0 && case.explained.reachable;
    let is_named = found.iter().any(|(_, issue)| issue.kind == IssueKind::GuestFirewall);
    if !arrived && (found.is_empty() || (is_refused && !is_named)) {
        found.push(of_destination(case, path));
    }
    found
}

/// The walk that does not arrive, by `explain`: that of the packet, or that of the reply.
fn stopped(explained: &Explanation) -> Option<&Walk> {
    let walks = [Some(&explained.request), explained.reply.as_ref()];
    walks.into_iter().flatten().find(|walk| walk.stop.is_some())
}

/// The issue of a packet that stops by `explain`.
fn of_stop(case: Case<'_>, walk: &Walk, path: &mut Path, severity: Severity) -> Option<(usize, Issue)> {
    let stop = walk.stop.as_ref()?;
    let line = path.line_of(case.topology, &stop.agent, Some(case.explained.destination));
    let last = walk.hops.last().filter(|hop| hop.agent == stop.agent);
    let check = last.and_then(|hop| hop.security.as_ref());
    let issue = |origin, kind, entries: &[(&str, &str)]| Issue {
        origin,
        severity,
        kind,
        context: context(entries),
    };
    Some((
        line,
        match check.filter(|_| stop.reason == DropReason::SecurityRule.name()) {
            Some(check) => {
                let origin = match check.direction {
                    Direction::Inbound => Origin::Inbound,
                    Direction::Outbound => Origin::Outbound,
                };
                let group = check.groups.last();
                let rule = group.and_then(|group| group.rule.as_ref());
                let name = rule.map(|rule| rule_name(&rule.name)).unwrap_or_default();
                let group = group.map_or("", |group| group.group.as_str());
                let entries = [("RuleName", name.as_str()), ("NetworkSecurityGroup", group)];
                issue(origin, IssueKind::NetworkSecurityRule, &entries)
            }
            None => {
                let route = last.and_then(|hop| hop.route.as_ref());
                let user = route.filter(|route| route.source == RouteSource::User);
                // A user's route to an appliance that nobody owns is a fault of the route.
                let is_route = OF_ROUTES.contains(&stop.reason.as_str())
                    || (user.is_some() && stop.reason == DropReason::NoOwner.name());
                let reason = ("Reason", stop.reason.as_str());
                if is_route {
                    let kind = if user.is_some() { "User" } else { "System" };
                    let entries = [("RouteType", kind), reason];
                    issue(Origin::Outbound, IssueKind::UserDefinedRoute, &entries)
                } else {
                    issue(Origin::Local, IssueKind::Platform, &[reason])
                }
            }
        },
    ))
}

/// The issue of the first hop at which the trace differs from the expected one.
fn of_difference(case: Case<'_>, path: &Path, line: usize, difference: Difference, severity: Severity) -> Issue {
    let text = |address: Option<std::net::IpAddr>| address.map_or_else(|| "*".to_owned(), |a| a.to_string());
    let (expected, observed) = (text(difference.expected), text(difference.observed));
    let mut entries = vec![("Expected", expected.as_str()), ("Observed", observed.as_str())];
    let agent = path.lines.get(line).and_then(|line| line.place.agent.as_ref());
    let is_silent = difference.observed.is_none();
    let before = line
        .checked_sub(1)
        .and_then(|before| path.lines[before].place.agent.as_ref());
    let link = before
        .zip(agent)
        .and_then(|(before, agent)| link(case.statuses, before, agent));
    let refused = case.probe.refused > 0;
    let (origin, kind) = match agent {
        Some(agent) if is_silent && !case.statuses.connected.contains(agent) => {
            (Origin::Local, IssueKind::AgentStopped)
        }
        Some(_) if is_silent && link.is_some() => {
            entries.push(("Reason", link.unwrap_or_default()));
            (Origin::Inbound, IssueKind::Platform)
        }
        // The packet should reach the machine of the destination, and its agent runs. Behind an appliance it is not known
        // whether the appliance's own system has forwarded the packet.
        Some(agent)
            if is_silent
                && is_destination(case.explained, agent)
                && case.explained.reachable
                && (refused || !is_appliance(path, line.saturating_sub(1))) =>
        {
            entries.push(("Reason", if refused { "refused" } else { "noAnswer" }));
            (Origin::Inbound, IssueKind::GuestFirewall)
        }
        _ => (Origin::Inbound, IssueKind::Platform),
    };
    Issue {
        origin,
        severity,
        kind,
        context: context(&entries),
    }
}

/// The issue of probes that nobody answers although `explain` says that they arrive, and the trace agrees.
fn of_destination(case: Case<'_>, path: &Path) -> (usize, Issue) {
    let probe = case.probe;
    let reason = if probe.refused > 0 {
        "refused"
    } else if probe.unreachable > 0 {
        "unreachable"
    } else {
        "noAnswer"
    };
    // A machine of a site is not known, so only its refusal is a sign of itself.
    let is_known = !leaves(case.topology, case.explained);
    let kind = if probe.refused > 0 || (is_known && probe.unreachable == 0) {
        IssueKind::GuestFirewall
    } else {
        IssueKind::Unknown
    };
    let issue = Issue {
        origin: Origin::Inbound,
        severity: Severity::Error,
        kind,
        context: context(&[("Reason", reason)]),
    };
    (path.lines.len() - 1, issue)
}

/// Whether a line, unless it is the source, is an appliance.
fn is_appliance(path: &Path, line: usize) -> bool {
    let place = path.lines.get(line).map(|line| &line.place);
    line > 0 && place.is_some_and(|place| place.kind == PlaceKind::Nic { forwards: true })
}

fn is_destination(explained: &Explanation, agent: &AgentId) -> bool {
    let last = explained.request.hops.last();
    explained.request.delivered && last.is_some_and(|hop| hop.agent == *agent)
}

/// Why the link between two agents does not carry packets, as the first one reports it. `None`: it does, as far as is
/// known.
fn link(statuses: &AgentStatuses, from: &AgentId, to: &AgentId) -> Option<&'static str> {
    let status = statuses.agents.get(from)?;
    let link = status.links.iter().find(|link| link.peer == *to)?;
    match link.state {
        LinkState::Unreachable => Some("linkUnreachable"),
        LinkState::AuthenticationFailed => Some("linkAuthenticationFailed"),
        LinkState::NoEndpoint => Some("linkNoEndpoint"),
        LinkState::Idle | LinkState::Connecting | LinkState::Up => None,
    }
}

/// The name of a security rule in the words of Network Watcher: `UserRule_x` or `DefaultRule_x`. `name`:
/// `securityRules/x` or `defaultSecurityRules/x`; other names stay as they are.
#[must_use]
pub fn rule_name(name: &str) -> String {
    match name.split_once('/') {
        Some(("defaultSecurityRules", name)) => format!("DefaultRule_{name}"),
        Some((_, name)) => format!("UserRule_{name}"),
        None => name.to_owned(),
    }
}
