//! The state of gateways and load balancers as figures, by the last reports of the agents.

use super::history::Gauge;
use tombolo_proto::id::ResourceId;
use tombolo_proto::status::BgpPeerState;
use tombolo_topology::back_end_health::Reports;
use tombolo_topology::resource::Binding;
use tombolo_topology::topology::{AgentStatuses, Topology};

/// All figures that are known.
pub(super) fn all(topology: &Topology, statuses: &AgentStatuses) -> Vec<(ResourceId, Gauge, f64)> {
    let mut found = Vec::new();
    gateways(topology, statuses, &mut found);
    load_balancers(topology, statuses, &mut found);
    found
}

/// The sessions of an agent that is not connected are not known.
fn gateways(topology: &Topology, statuses: &AgentStatuses, found: &mut Vec<(ResourceId, Gauge, f64)>) {
    for id in topology.gateways.keys() {
        let is_instance = |binding: &Binding| matches!(binding, Binding::Gateway { gateway, .. } if gateway == id);
        let agents = topology.agents.values();
        let instances = agents.filter(|a| is_instance(&a.binding) && statuses.connected.contains(&a.id));
        let sessions: Vec<_> = instances
            .filter_map(|agent| statuses.agents.get(&agent.id))
            .flat_map(|status| &status.bgp)
            .collect();
        if sessions.is_empty() {
            continue;
        }
        let up = sessions.iter().filter(|s| s.state == BgpPeerState::Connected).count();
        let sum = |of: fn(&tombolo_proto::status::BgpPeerStatus) -> u64| -> u64 {
            sessions.iter().map(|s| of(s)).fold(0, u64::saturating_add)
        };
        found.push((id.clone(), Gauge::BgpSessionsUp, share(up, sessions.len())));
        found.push((id.clone(), Gauge::BgpRoutesLearned, number(sum(|s| s.received))));
        found.push((id.clone(), Gauge::BgpRoutesAdvertised, number(sum(|s| s.sent))));
    }
}

fn load_balancers(topology: &Topology, statuses: &AgentStatuses, found: &mut Vec<(ResourceId, Gauge, f64)>) {
    let reports = Reports::of(topology, statuses);
    for (id, balancer) in &topology.load_balancers {
        let rules = balancer.rules.iter().filter(|rule| rule.probe.is_some());
        let rules: Vec<(usize, usize)> = rules
            .map(|rule| reports.members_of(rule))
            .map(|members| (members.iter().filter(|m| m.is_up).count(), members.len()))
            .filter(|(_, all)| *all > 0)
            .collect();
        if rules.is_empty() {
            continue;
        }
        let up = rules.iter().map(|(up, _)| up).sum();
        let all = rules.iter().map(|(_, all)| all).sum();
        let served = rules.iter().filter(|(up, _)| *up > 0).count();
        found.push((id.clone(), Gauge::BackEndsUp, 100.0 * share(up, all)));
        found.push((id.clone(), Gauge::RulesUp, 100.0 * share(served, rules.len())));
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "both are far below the numbers that a float holds exactly"
)]
fn share(part: usize, whole: usize) -> f64 {
    part as f64 / whole as f64
}

#[expect(clippy::cast_precision_loss, reason = "a metric needs no more than 15 digits")]
const fn number(n: u64) -> f64 {
    n as f64
}
