//! The health of the back ends of a load-balancing rule, in ARM's form (L6).

use super::action::posted;
use super::call::Call;
use super::resource::missing;
use crate::rest::Rest;
use crate::rest::failure::{Failure, ok};
use axum::response::Response;
use serde_json::{Value, json};
use tombolo_topology::back_end_health::{MemberHealth, Reports};
use tombolo_topology::path::{Kind, parent_id};

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
    let health = Reports::of(&topology, &statuses).members_of(rule);
    let up = health.iter().filter(|one| one.is_up).count();
    let down = health.len() - up;
    let addresses: Vec<Value> = health.iter().map(entry).collect();
    Ok(ok(
        &json!({"up": up, "down": down, "loadBalancerBackendAddresses": addresses}),
    ))
}

fn entry(health: &MemberHealth) -> Value {
    json!({
        "ipAddress": health.member.address,
        "networkInterfaceIPConfigurationId": health.member.ip_configuration,
        "state": if health.is_up { "Up" } else { "Down" },
        "reason": health.reason,
    })
}
