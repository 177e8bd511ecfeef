//! POST `securityGroupView`: the security rules of each network interface of a virtual machine, as they are configured, and
//! as they apply there (N4, N8).

use super::super::action::nic_security;
use super::super::effective_security;
use crate::rest::failure::{Failure, excerpt, ok};
use axum::response::Response;
use serde_json::{Value, json};
use tombolo_proto::config::SecurityRule;
use tombolo_proto::id::ResourceId;
use tombolo_topology::connectivity::rule_name;
use tombolo_topology::learned_routes::LearnedReports;
use tombolo_topology::nic_security::{AppliedGroup, Attachment, NicSecurity};
use tombolo_topology::path::ArmPath;
use tombolo_topology::resource::{Binding, NetworkInterface};
use tombolo_topology::topology::{AgentStatuses, Topology};

/// The answer to a request.
pub(super) fn answer(topology: &Topology, reports: &LearnedReports, body: &Value) -> Result<Response, Failure> {
    let id = body.get("targetResourceId").and_then(Value::as_str).unwrap_or_default();
    let vm = ResourceId::new(id);
    let agents = topology.agents.values().filter(|agent| !agent.revoked);
    let nics = agents.filter_map(|agent| match &agent.binding {
        Binding::Vm { vm: id, nics, .. } if *id == vm => Some(nics),
        Binding::Vm { .. } | Binding::Gateway { .. } | Binding::Edge { .. } | Binding::Site { .. } => None,
    });
    let nics: Vec<_> = nics.flatten().filter_map(|id| topology.nics.get(id)).collect();
    if nics.is_empty() {
        let message = format!(
            "targetResourceId: '{}' is no virtual machine that has joined",
            excerpt(id)
        );
        return Err(Failure::bad("InvalidResourceReference", message).at("targetResourceId"));
    }
    let shown: Result<Vec<_>, _> = nics.into_iter().map(|nic| view(topology, reports, nic)).collect();
    Ok(ok(&json!({"networkInterfaces": shown?})))
}

fn view(topology: &Topology, reports: &LearnedReports, nic: &NetworkInterface) -> Result<Value, Failure> {
    let security = nic_security(topology, reports, nic)?;
    let applied: Vec<_> = security.iter().flat_map(NicSecurity::groups).collect();
    let association = |attachment| {
        let group = applied.iter().find(|group| group.attachment == attachment)?;
        let rules = configured(topology, group, "securityRules");
        Some(json!({"id": group.attached_to, "securityRules": rules}))
    };
    // All groups have the same default rules (N2).
    let defaults = applied
        .first()
        .map(|group| configured(topology, group, "defaultSecurityRules"));
    let rules = security.iter().flat_map(|security| {
        let rules = security.groups().flat_map(|group| &group.group.rules);
        rules.map(|rule| effective(security, rule))
    });
    Ok(json!({
        "id": nic.envelope.id,
        "securityRuleAssociations": {
            "networkInterfaceAssociation": association(Attachment::Nic),
            "subnetAssociation": association(Attachment::Subnet),
            "defaultSecurityRules": defaults.unwrap_or_else(|| json!([])),
            "effectiveSecurityRules": rules.collect::<Vec<_>>(),
        },
    }))
}

/// The rules of a group in the form of the group's own body.
fn configured(topology: &Topology, group: &AppliedGroup<'_>, list: &str) -> Value {
    let path = ArmPath::parse(group.group.id.as_str());
    let body = path
        .ok()
        .and_then(|path| topology.view(&path, &AgentStatuses::default()));
    body.map_or_else(|| json!([]), |mut body| body["properties"][list].take())
}

/// An effective rule, with the name that it has in this answer.
fn effective(security: &NicSecurity, rule: &SecurityRule) -> Value {
    let mut shown = effective_security::rule(security, rule);
    // Azure writes these two in a way of their own.
    shown["name"] = match rule.name.as_str() {
        "defaultSecurityRules/DenyAllInBound" => json!("DefaultInboundDenyAll"),
        "defaultSecurityRules/DenyAllOutBound" => json!("DefaultOutboundDenyAll"),
        name => json!(rule_name(name)),
    };
    shown
}
