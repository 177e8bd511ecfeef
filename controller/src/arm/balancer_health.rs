//! The health of the back ends of a load-balancing rule, in ARM's form (L6).

use super::action::posted;
use super::call::Call;
use super::resource::missing;
use crate::rest::Rest;
use crate::rest::failure::{Failure, ok};
use axum::response::Response;
use serde_json::{Value, json};
use std::net::IpAddr;
use tombolo_proto::id::ResourceId;
use tombolo_proto::status::{BackEndHealth, ProbeFailure};
use tombolo_topology::path::{Kind, parent_id};
use tombolo_topology::resource::{BalancingRule, Binding, PoolMember, pool_members};
use tombolo_topology::topology::{AgentStatuses, Topology};

/// POST `loadBalancers/{lb}/loadBalancingRules/{r}/health`: which back ends of the rule are up, by the last reports of the
/// agents that own them. Responds synchronously with 200; Azure responds with 202.
pub(super) fn of_rule(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    let path = posted(call)?;
    if path.kind() != Some(Kind::LoadBalancingRule) {
        return Err(call.not_found());
    }
    let topology = rest.app.writer.current().topology;
    let balancer = topology.load_balancers.get(&parent_id(&path.id()));
    let rule = balancer.and_then(|b| b.rules.iter().find(|rule| rule.id == path.id()));
    let rule = rule.ok_or_else(|| missing(&topology, &path))?;
    let statuses = rest.app.agents.statuses();
    let members = rule.pools.iter().flat_map(|pool| pool_members(&topology, pool));
    let health: Vec<_> = members
        .map(|member| of_member(&topology, &statuses, rule, &member))
        .collect();
    let up = health.iter().filter(|(is_up, _)| *is_up).count();
    let down = health.len() - up;
    let addresses: Vec<Value> = health.into_iter().map(|(_, address)| address).collect();
    Ok(ok(
        &json!({"up": up, "down": down, "loadBalancerBackendAddresses": addresses}),
    ))
}

/// Whether a member is up, and its entry in the answer.
fn of_member(
    topology: &Topology,
    statuses: &AgentStatuses,
    rule: &BalancingRule,
    member: &PoolMember,
) -> (bool, Value) {
    let reported = rule
        .probe
        .as_ref()
        .map(|probe| report_of(topology, statuses, probe, member));
    let (is_up, reason) = match (member.admin_state.decided(), reported) {
        (Some(up), _) => (up, "The adminState of the back end decides.".to_owned()),
        (None, None) => (true, "The rule has no probe.".to_owned()),
        (None, Some(Some(health))) if health.up => (true, "The back end answers the probe.".to_owned()),
        (None, Some(Some(health))) => (false, reason_of(health.reason)),
        (None, Some(None)) => (false, "No agent has probed the back end yet.".to_owned()),
    };
    let entry = json!({
        "ipAddress": member.address,
        "networkInterfaceIPConfigurationId": member.ip_configuration,
        "state": if is_up { "Up" } else { "Down" },
        "reason": reason,
    });
    (is_up, entry)
}

/// The text for a back end that is down. Agents of earlier versions report no reason.
fn reason_of(failure: Option<ProbeFailure>) -> String {
    match failure {
        Some(failure) => format!("The back end is down: {failure}."),
        None => "The back end does not answer the probe.".to_owned(),
    }
}

/// The report about a member by the agent of its network interface. If no agent has the network interface, by the agent
/// that serves its subnet.
fn report_of<'s>(
    topology: &Topology,
    statuses: &'s AgentStatuses,
    probe: &ResourceId,
    member: &PoolMember,
) -> Option<&'s BackEndHealth> {
    let subnets = topology.vnets.values().flat_map(|vnet| &vnet.subnets);
    let serving: Vec<&ResourceId> = subnets
        .filter(|subnet| subnet.prefixes.iter().any(|p| p.contains(&member.address)))
        .map(|subnet| &subnet.id)
        .collect();
    let owns = |binding: &Binding| match binding {
        Binding::Vm { nics, served, .. } => {
            member.nic.as_ref().is_some_and(|nic| nics.contains(nic)) || served.iter().any(|s| serving.contains(&s))
        }
        Binding::Gateway { .. } | Binding::Edge { .. } => false,
    };
    let is_about = |health: &&BackEndHealth, address: IpAddr| health.probe == *probe && health.address == address;
    let owners = topology
        .agents
        .values()
        .filter(|agent| !agent.revoked && owns(&agent.binding));
    let mut reports = owners.filter_map(|agent| statuses.agents.get(&agent.id));
    reports.find_map(|status| status.health.iter().find(|health| is_about(health, member.address)))
}
