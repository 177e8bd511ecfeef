//! Judges a connectivity check (M5): compares what live probes have found with what `explain` expects, names the resource
//! of each hop, and the reason why probes do not arrive. Sends nothing; the caller lets the agent of the source probe.
//!
//! * `answer`: the result in its JSON form.
//! * `path`: the hops, observed and expected.
//! * `place`: the resources of hops.
//! * `issues`: the reasons why probes stop.

mod answer;
mod issues;
mod path;
mod place;

use crate::explain::{Explanation, explain};
use crate::learned_routes::LearnedReports;
use crate::topology::{AgentStatuses, Topology};
pub use answer::{
    ConnectionStatus, Connectivity, ConnectivityHop, ConnectivityInformation, ContextEntry, Difference, HopKind,
    HopLink, HopLinkProperties, Issue, IssueKind, Origin, Severity,
};
use issues::Case;
pub use issues::rule_name;
use path::{Evidence, Line, Path};
use place::PlaceKind;
use std::collections::BTreeMap;
use tombolo_proto::fabric::{CheckRequest, ExplainRequest, Protocol};
use tombolo_proto::probe::ProbeReport;

/// The largest TTL of a trace: the default of traceroute.
pub const MAX_TTL: u8 = 30;

/// Number of TTLs that a trace probes beyond the expected hops. Hops beyond these are not seen.
const MARGIN: usize = 4;

/// The explanations with which a check is compared.
#[derive(Debug, Clone)]
pub struct Expected {
    /// The explanation of the packets that are probed.
    pub explained: Explanation,
    /// The explanation of echo requests between the same addresses, whose trace is the expected one. Equal to `explained` in
    /// a check with ICMP.
    pub echo: Explanation,
    /// The destination port; `None` for ICMP.
    pub port: Option<u16>,
}

/// The reports of the source's agent.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'a> {
    /// The report of a ping or of connections.
    pub probe: &'a ProbeReport,
    /// The report of a trace; `None`: there is none.
    pub trace: Option<&'a ProbeReport>,
}

impl Expected {
    /// Explains the packets of a check, and echo requests between the same ends.
    ///
    /// # Errors
    /// As [`explain`].
    pub fn of(topology: &Topology, reports: &LearnedReports, question: &CheckRequest) -> Result<Self, String> {
        let ask = |protocol, destination_port| {
            let question = ExplainRequest {
                from: question.from.clone(),
                to: question.to.clone(),
                protocol,
                destination_port,
                ttl: None,
                design: false,
            };
            explain(topology, reports, &question)
        };
        let explained = ask(question.protocol, question.port)?;
        let echo = match question.protocol {
            Protocol::Icmp => explained.clone(),
            Protocol::Tcp | Protocol::Udp => ask(Protocol::Icmp, None)?,
        };
        Ok(Self {
            explained,
            echo,
            port: question.port,
        })
    }

    /// The largest TTL that a trace should probe.
    #[must_use]
    pub fn max_ttl(&self, topology: &Topology) -> u8 {
        if path::leaves(topology, &self.echo) || path::from_site(topology, &self.echo) {
            // The routers of a site are not known.
            return MAX_TTL;
        }
        let expected = self.echo.trace.len() + MARGIN;
        u8::try_from(expected).map_or(MAX_TTL, |ttl| ttl.min(MAX_TTL))
    }

    /// The result of the check. The reports come from an agent, and may have any content.
    #[must_use]
    pub fn judge(&self, topology: &Topology, statuses: &AgentStatuses, observed: Observed<'_>) -> Connectivity {
        let probe = observed.probe;
        let evidence = Evidence {
            topology,
            explained: &self.explained,
            echo: &self.echo,
            trace: observed.trace.filter(|trace| trace.error.is_none()),
        };
        let mut path = path::of(evidence, probe.received > 0 || probe.refused > 0);
        let case = Case {
            topology,
            statuses,
            explained: &self.explained,
            probe,
        };
        let issues = issues::of(case, &mut path);
        let received = probe.received.min(probe.sent);
        let status = match (&probe.error, received) {
            (Some(_), _) => ConnectionStatus::Unknown,
            (None, 0) => ConnectionStatus::Unreachable,
            (None, _) => ConnectionStatus::Reachable,
        };
        let latencies = Some(&probe.rtts_ms).filter(|_| status == ConnectionStatus::Reachable);
        let [min, avg, max] = spread(latencies.map_or(&[], Vec::as_slice));
        Connectivity {
            source: self.explained.source,
            destination: self.explained.destination,
            protocol: self.explained.protocol,
            port: self.port,
            explained: self.explained.reachable,
            summary: self.explained.summary.clone(),
            difference: path.difference.map(|(_, difference)| difference),
            information: ConnectivityInformation {
                connection_status: status,
                avg_latency_in_ms: avg,
                min_latency_in_ms: min,
                max_latency_in_ms: max,
                probes_sent: probe.sent,
                probes_failed: probe.sent - received,
                hops: self.hops(&path, &issues),
            },
        }
    }

    fn hops(&self, path: &Path, issues: &[(usize, Issue)]) -> Vec<ConnectivityHop> {
        let last = path.lines.len() - 1;
        let id = |line: usize| format!("hop-{line}");
        let link = |from: usize, to: usize| HopLink {
            next_hop_id: id(to),
            link_type: self.route_type(&path.lines[from.min(to)]),
            issues: Vec::new(),
            context: BTreeMap::new(),
            resource_id: path.lines[to].place.resource.clone(),
            properties: round_trip(&path.lines[from.max(to)].rtts_ms),
        };
        let hop = |(number, line): (usize, &Line)| {
            let next = (number < last).then_some(number + 1);
            let before = number.checked_sub(1);
            let own = issues.iter().filter(|(at, _)| *at == number);
            ConnectivityHop {
                kind: self.kind(line, number),
                id: id(number),
                address: line.place.address,
                resource_id: line.place.resource.clone(),
                next_hop_ids: next.map(id).into_iter().collect(),
                previous_hop_ids: before.map(id).into_iter().collect(),
                links: next.map(|next| link(number, next)).into_iter().collect(),
                previous_links: before.map(|before| link(number, before)).into_iter().collect(),
                issues: own.map(|(_, issue)| issue.clone()).collect(),
            }
        };
        path.lines.iter().enumerate().map(hop).collect()
    }

    fn kind(&self, line: &Line, number: usize) -> HopKind {
        let is_destination = line.place.address == Some(self.explained.destination);
        match line.place.kind {
            _ if number == 0 => HopKind::Source,
            PlaceKind::Nic { forwards: true } if !is_destination => HopKind::VirtualAppliance,
            PlaceKind::Nic { .. } => HopKind::VnetLocal,
            PlaceKind::Gateway => HopKind::VirtualNetworkGateway,
            PlaceKind::Edge => HopKind::ExpressRouteCircuit,
            PlaceKind::Outside | PlaceKind::Site if is_destination => HopKind::Destination,
            PlaceKind::Outside | PlaceKind::Site => HopKind::Internet,
        }
    }

    /// The next hop type of the effective route by which the agent of a hop sends the packet on.
    fn route_type(&self, line: &Line) -> Option<String> {
        let agent = line.place.agent.as_ref()?;
        let mut hops = self.explained.request.hops.iter().rev();
        let sends = hops.find(|hop| hop.agent == *agent)?;
        sends.route.as_ref().map(|route| route.next_hop_type.clone())
    }
}

/// The smallest, the mean and the largest of times, in whole milliseconds, at least 1, as stock clients need integers.
fn spread(times_ms: &[f64]) -> [Option<u32>; 3] {
    // The times come from an agent. A time out of the range of a probe's timeout is cut to that range.
    let whole = |time: f64| {
        let time = time.clamp(1.0, 60_000.0).round();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "within 1 to 60,000"
        )]
        let whole = time as u32;
        whole
    };
    let (Some(min), Some(max)) = (
        times_ms.iter().copied().reduce(f64::min),
        times_ms.iter().copied().reduce(f64::max),
    ) else {
        return [None; 3];
    };
    #[expect(clippy::cast_precision_loss, reason = "at most as many times as probes")]
    let mean = times_ms.iter().map(|t| t.clamp(0.0, 60_000.0)).sum::<f64>() / times_ms.len() as f64;
    [min, mean, max].map(|time| Some(whole(time)))
}

/// The mean of times in whole milliseconds, at least 1. `None`: there are none.
#[must_use]
pub fn mean(times_ms: &[f64]) -> Option<u32> {
    let [_, mean, _] = spread(times_ms);
    mean
}

fn round_trip(rtts_ms: &[f64]) -> HopLinkProperties {
    let [round_trip_time_min, round_trip_time_avg, round_trip_time_max] = spread(rtts_ms);
    HopLinkProperties {
        round_trip_time_min,
        round_trip_time_avg,
        round_trip_time_max,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// M5: latencies are whole milliseconds, and at least 1, whatever an agent reports.
    #[test]
    fn m5_latencies_are_whole_and_at_least_one() {
        assert_eq!(spread(&[]), [None; 3]);
        assert_eq!(spread(&[0.02, 0.4]), [Some(1), Some(1), Some(1)]);
        assert_eq!(spread(&[1.0, 2.6, 9.5]), [Some(1), Some(4), Some(10)]);
        assert_eq!(spread(&[-5.0, 1e300]), [Some(1), Some(30_000), Some(60_000)]);
    }
}
