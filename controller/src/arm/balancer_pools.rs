//! Actions on the back-end pools of load balancers: the ports by which inbound NAT rules lead to a member of a pool, and
//! the migration of pools of network interfaces to pools of addresses (L2).

use super::action::posted;
use super::call::Call;
use super::resource::missing;
use crate::rest::Rest;
use crate::rest::failure::{Failure, at_revision, excerpt, ok};
use axum::response::Response;
use serde_json::{Value, json};
use std::net::IpAddr;
use tombolo_proto::id::ResourceId;
use tombolo_topology::change::Change;
use tombolo_topology::path::{Kind, parent_id};
use tombolo_topology::resource::{BackendPool, InboundNatRule, LoadBalancer, PoolMember, pool_members};
use tombolo_topology::topology::Topology;

/// POST `loadBalancers/{lb}/backendAddressPools/{p}/queryInboundNatRulePortMapping`: the inbound NAT rules of the load
/// balancer whose target is one member of the pool. The body names the member by `ipAddress`, by `ipConfiguration`, or by
/// both. Responds synchronously with 200; Azure may respond with 202.
pub(super) fn port_mappings(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    let path = posted(call)?;
    if path.kind() != Some(Kind::BackendPool) {
        return Err(call.not_found());
    }
    let topology = rest.app.writer.current().topology;
    let balancer = topology.load_balancers.get(&parent_id(&path.id()));
    let pool = balancer.and_then(|b| b.pools.iter().find(|pool| pool.id == path.id()));
    let (Some(balancer), Some(pool)) = (balancer, pool) else {
        return Err(missing(&topology, &path));
    };
    let member = member(&topology, pool, &call.object()?)?;
    let mappings: Vec<Value> = rules_to(&topology, balancer, &member).map(mapping).collect();
    Ok(ok(&json!({"inboundNatRulePortMappings": mappings})))
}

fn mapping(rule: &InboundNatRule) -> Value {
    json!({
        "inboundNatRuleName": rule.id.name(),
        "protocol": rule.protocol,
        "frontendPort": rule.front_end_port,
        "backendPort": rule.back_end_port,
    })
}

/// The member of the pool that the body names.
///
/// # Errors
/// 400 if the body names no member, in wrong form, or one that is not in the pool.
fn member(topology: &Topology, pool: &BackendPool, body: &Value) -> Result<PoolMember, Failure> {
    let address = field(body, "ipAddress").map(read_address).transpose()?;
    let configuration = field(body, "ipConfiguration").map(read_id).transpose()?;
    let target = match (&address, &configuration) {
        (None, None) => {
            let message = "ipAddress: the body must name a member of the pool by ipAddress or ipConfiguration.id (L2)";
            return Err(Failure::bad("InvalidRequestFormat", message).at("ipAddress"));
        }
        (Some(_), _) => "ipAddress",
        (None, Some(_)) => "ipConfiguration.id",
    };
    let is_named = |member: &PoolMember| {
        address.is_none_or(|a| member.address == a)
            && (configuration.is_none() || member.ip_configuration == configuration)
    };
    let found = pool_members(topology, &pool.id).into_iter().find(is_named);
    found.ok_or_else(|| {
        let named = [address.map(|a| a.to_string()), configuration.map(|c| c.to_string())];
        let named: Vec<String> = named.into_iter().flatten().collect();
        let message = format!(
            "{target}: {} is no member of back-end pool {}. Name a member of the pool (L2).",
            excerpt(&named.join(" with ")),
            pool.id
        );
        Failure::bad("XNotInPool", message).at(target)
    })
}

/// The member of a body with this name, ignoring case as ARM does. `None`: it is absent or null.
fn field<'b>(body: &'b Value, name: &str) -> Option<&'b Value> {
    let mut fields = body.as_object().into_iter().flatten();
    let (_, value) = fields.find(|(own, value)| own.eq_ignore_ascii_case(name) && !value.is_null())?;
    Some(value)
}

fn read_address(given: &Value) -> Result<IpAddr, Failure> {
    let address = given.as_str().and_then(|text| text.parse().ok());
    address.ok_or_else(|| {
        let message = format!("ipAddress: {} is not an IP address", excerpt(&given.to_string()));
        Failure::bad("InvalidIPAddressFormat", message).at("ipAddress")
    })
}

fn read_id(given: &Value) -> Result<ResourceId, Failure> {
    let id = given.get("id").and_then(Value::as_str);
    id.map(ResourceId::new).ok_or_else(|| {
        let message = "ipConfiguration.id: the id of an ip configuration of a network interface is missing";
        Failure::bad("InvalidRequestFormat", message).at("ipConfiguration.id")
    })
}

/// The inbound NAT rules of the load balancer whose target is the member's ip configuration.
fn rules_to<'t>(
    topology: &'t Topology,
    balancer: &'t LoadBalancer,
    member: &PoolMember,
) -> impl Iterator<Item = &'t InboundNatRule> {
    let nic = member.nic.as_ref().and_then(|nic| topology.nics.get(nic));
    let mut configurations = nic.into_iter().flat_map(|nic| &nic.ip_configurations);
    let address = member.address;
    let referred = configurations
        .find(|c| c.address == address)
        .map(|c| &c.inbound_nat_rules);
    let rules = balancer.nat_rules.iter();
    rules.filter(move |rule| referred.is_some_and(|referred| referred.contains(&rule.id)))
}

/// POST `loadBalancers/{lb}/migrateToIpBased`: turns pools of network interfaces into pools of addresses. The answer lists
/// those of the named pools, or of all pools, that are pools of addresses now; so a request that is repeated gets the
/// same answer.
pub(super) async fn migrate(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    let path = posted(call)?;
    if path.kind() != Some(Kind::LoadBalancer) {
        return Err(call.not_found());
    }
    let body = call.object()?;
    let named: Option<Vec<String>> = field(&body, "pools").map(|names| {
        let names = names.as_array().into_iter().flatten();
        names.filter_map(Value::as_str).map(str::to_owned).collect()
    });
    let change = Change::MigratePools {
        path: path.clone(),
        body,
    };
    let committed = rest.change(change).await?;
    let topology = &committed.published.topology;
    let balancer = topology.load_balancers.get(&path.id());
    let balancer = balancer.ok_or_else(|| missing(topology, &path))?;
    let is_named = |pool: &BackendPool| {
        let is = |name: &String| name.eq_ignore_ascii_case(pool.id.name());
        named.as_ref().is_none_or(|named| named.iter().any(is))
    };
    let migrated = balancer
        .pools
        .iter()
        .filter(|pool| !pool.addresses.is_empty() && is_named(pool));
    let migrated: Vec<&str> = migrated.map(|pool| pool.id.name()).collect();
    Ok(at_revision(
        ok(&json!({"migratedPools": migrated})),
        committed.published.revision,
    ))
}
