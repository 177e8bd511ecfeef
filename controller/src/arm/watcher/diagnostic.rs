//! POST `networkConfigurationDiagnostic`: what the security groups of a network interface say about given packets, rule by rule
//! (N3, N4).

use super::super::action::nic_security;
use super::fields::{port, word};
use crate::rest::failure::{Failure, excerpt, ok};
use axum::response::Response;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::Arc;
use tombolo_proto::config::{Access, Direction, SecurityRule};
use tombolo_proto::fabric::Protocol;
use tombolo_proto::id::ResourceId;
use tombolo_topology::connectivity::rule_name;
use tombolo_topology::learned_routes::LearnedReports;
use tombolo_topology::nic_security::{EvaluatedGroup, FieldMatches, FirstPacket};
use tombolo_topology::resource::{Binding, NetworkInterface};
use tombolo_topology::topology::Topology;

/// Largest number of profiles of a request.
const MAX_PROFILES: usize = 100;

/// The answer to a request.
pub(super) fn answer(topology: &Topology, reports: &LearnedReports, body: &Value) -> Result<Response, Failure> {
    let nic = target(topology, body)?;
    let security = nic_security(topology, reports, &nic)?;
    let profiles = body
        .get("profiles")
        .and_then(Value::as_array)
        .map_or(&[][..], Vec::as_slice);
    if profiles.is_empty() || profiles.len() > MAX_PROFILES {
        let message = format!("profiles: {} entries; 1 to {MAX_PROFILES} are possible", profiles.len());
        return Err(Failure::bad("InvalidRequestFormat", message).at("profiles"));
    }
    let mut results = Vec::with_capacity(profiles.len());
    for profile in profiles {
        let packet = packet(profile)?;
        let groups = security
            .as_ref()
            .map(|security| security.evaluate(&packet))
            .unwrap_or_default();
        // Without a group, everything is allowed (N5).
        let access = groups.last().map_or(Access::Allow, |group| group.access);
        results.push(json!({
            "profile": profile,
            "networkSecurityGroupResult": {
                "securityRuleAccessResult": access,
                "evaluatedNetworkSecurityGroups": groups.iter().map(group).collect::<Vec<_>>(),
            },
        }));
    }
    Ok(ok(&json!({"results": results})))
}

/// The network interface with the id `targetResourceId`, or the first one of the virtual machine with this id.
fn target(topology: &Topology, body: &Value) -> Result<Arc<NetworkInterface>, Failure> {
    let id = body.get("targetResourceId").and_then(Value::as_str).unwrap_or_default();
    let id = ResourceId::new(id);
    let agents = topology.agents.values().filter(|agent| !agent.revoked);
    let mut nics = agents.filter_map(|agent| match &agent.binding {
        Binding::Vm { vm, nics, .. } if *vm == id => nics.first(),
        Binding::Vm { .. } | Binding::Gateway { .. } | Binding::Edge { .. } | Binding::Site { .. } => None,
    });
    let found = topology.nics.get(&id).or_else(|| topology.nics.get(nics.next()?));
    found.cloned().ok_or_else(|| {
        let message = format!(
            "targetResourceId: '{}' is neither a network interface nor a virtual machine that has joined",
            excerpt(id.as_str())
        );
        Failure::bad("InvalidResourceReference", message).at("targetResourceId")
    })
}

/// The packet of a profile. All properties are texts; a port may also be a number.
fn packet(profile: &Value) -> Result<FirstPacket, Failure> {
    let direction = word(
        profile,
        "direction",
        [("Inbound", Direction::Inbound), ("Outbound", Direction::Outbound)],
    )?;
    let protocol = word(
        profile,
        "protocol",
        [("TCP", Protocol::Tcp), ("UDP", Protocol::Udp), ("ICMP", Protocol::Icmp)],
    )?;
    let (source, destination) = (one(profile, "source")?, one(profile, "destination")?);
    if source.is_ipv4() != destination.is_ipv4() {
        let message = format!("destination: {destination} is not of the address family of source, {source}");
        return Err(Failure::bad("InvalidRequestFormat", message).at("destination"));
    }
    let destination_port = match protocol {
        Protocol::Icmp => 0,
        Protocol::Tcp | Protocol::Udp => port(profile, "destinationPort")?.ok_or_else(|| {
            let message = "destinationPort: '*' is not possible; name one port";
            Failure::bad("InvalidRequestFormat", message).at("destinationPort")
        })?,
    };
    Ok(FirstPacket {
        direction,
        protocol,
        source,
        destination,
        source_port: None,
        destination_port,
    })
}

/// The single address of a property. A prefix of one address is possible too.
fn one(profile: &Value, field: &str) -> Result<IpAddr, Failure> {
    let text = profile.get(field).and_then(Value::as_str).unwrap_or_default();
    let single = text
        .strip_suffix("/32")
        .or_else(|| text.strip_suffix("/128"))
        .unwrap_or(text);
    single.parse().map_err(|_| {
        let message = format!(
            "{field}: '{}' is not a single address; tags and larger prefixes are not possible here",
            excerpt(text)
        );
        Failure::bad("InvalidRequestFormat", message).at(field)
    })
}

fn group(group: &EvaluatedGroup<'_>) -> Value {
    let decided = group.rules.last().filter(|(_, matches)| matches.all());
    json!({
        "networkSecurityGroupId": group.applied.group.id,
        "appliedTo": group.applied.attached_to,
        "matchedRule": decided.map(|(rule, _)| json!({"ruleName": rule_name(&rule.name), "action": rule.access})),
        "rulesEvaluationResult": group.rules.iter().map(evaluated).collect::<Vec<_>>(),
    })
}

fn evaluated((rule, matches): &(&SecurityRule, FieldMatches)) -> Value {
    json!({
        "name": rule_name(&rule.name),
        "protocolMatched": matches.protocol,
        "sourceMatched": matches.source,
        "sourcePortMatched": matches.source_port,
        "destinationMatched": matches.destination,
        "destinationPortMatched": matches.destination_port,
    })
}
