//! Tenants, subscriptions, locations, providers, and lists across resource groups. A subscription exists while it has a
//! resource group, so the first PUT of a resource group creates it. One subscription always exists
//! ([`DEFAULT_SUBSCRIPTION`]). There is one tenant.

use super::call::Call;
use crate::rest::Rest;
use crate::rest::failure::{Failure, empty, excerpt, ok};
use axum::response::Response;
use http::{Method, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use tombolo_proto::id::ResourceId;
use tombolo_topology::path::{ArmPath, Kind};
use tombolo_topology::topology::Topology;
use uuid::Uuid;

/// The subscription that is listed even if it has no resource group, so that clients always find a subscription to use.
const DEFAULT_SUBSCRIPTION: &str = "00000000-0000-0000-0000-000000000001";
/// The region that is listed if no resource has one.
const DEFAULT_LOCATION: &str = "region1";

/// The resource providers, each with the types that its list has in addition to those of [`Kind`].
const PROVIDERS: [(&str, &[&str]); 6] = [
    (
        "Microsoft.Network",
        &[
            "networkWatchers",
            "locations",
            "locations/operations",
            "locations/operationResults",
        ],
    ),
    ("Microsoft.Compute", &[]),
    (
        "Microsoft.Authorization",
        &["roleDefinitions", "roleAssignments", "permissions", "locks"],
    ),
    (
        "Microsoft.Insights",
        &["metrics", "metricDefinitions", "metricNamespaces", "eventtypes"],
    ),
    ("Microsoft.Consumption", &["usageDetails"]),
    (
        "Microsoft.Resources",
        &[
            "subscriptions",
            "resourceGroups",
            "resources",
            "tenants",
            "deployments",
            "locations",
        ],
    ),
];

/// The resource types that a provider lists.
fn types(namespace: &'static str, further: &[&'static str]) -> Vec<&'static str> {
    let kinds = Kind::all().filter(|kind| kind.is_listed() && kind.provider() == namespace);
    kinds.map(Kind::types).chain(further.iter().copied()).collect()
}

/// The API versions that providers list, newest first, for clients that choose a version from the list. A request may
/// have any date as its version.
const API_VERSIONS: [&str; 8] = [
    "2025-07-01",
    "2025-05-01",
    "2024-11-01",
    "2024-07-01",
    "2024-05-01",
    "2023-11-01",
    "2022-12-01",
    "2022-01-01",
];

/// Checks that a request has this method; the error is 405.
fn require_method(call: &Call, method: &Method) -> Result<(), Failure> {
    if call.method == *method {
        Ok(())
    } else {
        Err(Failure::method(&call.method, &call.text()))
    }
}

/// GET `/subscriptions`: the subscriptions that have resource groups, and [`DEFAULT_SUBSCRIPTION`]. GET `/tenants`: the
/// only tenant.
pub(super) fn list_roots(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    require_method(call, &Method::GET)?;
    let tenant = rest.auth.tenant;
    if call.lower[0] == "tenants" {
        let one = json!({"id": format!("/tenants/{tenant}"), "tenantId": tenant, "displayName": "Tombolo", "tenantCategory": "Home"});
        return Ok(ok(&json!({"value": [one]})));
    }
    let known = known(&rest.app.writer.current().topology);
    let value: Vec<_> = known.iter().map(|s| subscription(s, tenant)).collect();
    Ok(ok(&json!({"value": value})))
}

/// The ids of all subscriptions, in lower case.
fn known(topology: &Topology) -> BTreeSet<String> {
    let groups = topology.resource_groups.keys();
    let groups = groups.filter_map(|id| ArmPath::parse(id.as_str()).ok());
    let mut known: BTreeSet<String> = groups.map(|path| path.subscription.to_ascii_lowercase()).collect();
    known.insert(DEFAULT_SUBSCRIPTION.to_owned());
    known
}

/// Whether the subscription with an id, in lower case, exists.
fn exists(topology: &Topology, id: &str) -> bool {
    let prefix = format!("/subscriptions/{id}/");
    // Ids are ordered by their text in lower case, so the groups of a subscription follow its prefix.
    let groups = topology.resource_groups.range(ResourceId::new(prefix.as_str())..);
    let first = groups.map(|(group, _)| group.as_str()).next();
    let begins = first.and_then(|group| group.get(..prefix.len()));
    id == DEFAULT_SUBSCRIPTION || begins.is_some_and(|begin| begin.eq_ignore_ascii_case(&prefix))
}

/// Checks that the subscription of a request exists. `path`: the segments after the subscription, in lower case. A PUT of
/// a resource group may create the subscription, and what clients ask before they send it, locations and providers, is
/// answered. The result of an operation can be read even if the operation has deleted the last group of the subscription.
///
/// # Errors
/// 404 with code `SubscriptionNotFound`.
pub(super) fn check_known(rest: &Rest, call: &Call, path: &[&str]) -> Result<(), Failure> {
    let exempt = match path {
        ["resourcegroups", _] => call.method == Method::PUT,
        ["locations"] | ["providers"] | ["providers", _] | ["providers", _, "register"] => true,
        ["operationresults", _] | ["providers", _, "locations", _, "operations" | "operationresults", _] => true,
        _ => false,
    };
    if exempt || exists(&rest.app.writer.current().topology, &call.lower[1]) {
        return Ok(());
    }
    let message = format!(
        "The subscription '{0}' could not be found. A subscription exists while it has a resource group: create one with \
         PUT /subscriptions/{0}/resourceGroups/NAME.",
        excerpt(&call.segments[1])
    );
    Err(Failure::missing("SubscriptionNotFound", message))
}

fn subscription(id: &str, tenant: Uuid) -> Value {
    let name = if id == DEFAULT_SUBSCRIPTION { "Tombolo" } else { id };
    json!({
        "id": format!("/subscriptions/{id}"),
        "subscriptionId": id,
        "tenantId": tenant,
        "displayName": name,
        "state": "Enabled",
        "subscriptionPolicies": {"locationPlacementId": "Public", "quotaId": "Unlimited", "spendingLimit": "Off"},
        "authorizationSource": "RoleBased",
        "managedByTenants": [],
    })
}

/// GET of a subscription, of its locations, resource groups and resources, and of the resources of a resource group.
pub(super) fn list_in_subscription(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    require_method(call, &Method::GET)?;
    let topology = rest.app.writer.current().topology;
    let id = &call.segments[1];
    match call.lower.last().map(String::as_str) {
        Some("locations") => {
            let value: Vec<_> = locations(&topology).iter().map(|l| location(id, l)).collect();
            Ok(ok(&json!({"value": value})))
        }
        Some("resources" | "resourcegroups") if call.lower.len() > 2 => {
            let mut value = topology.list(&call.text(), &rest.app.agents.statuses())?;
            if let Some(filter) = call.query.get("$filter").filter(|f| !f.trim().is_empty()) {
                let terms = parse_filter(filter)?;
                value.retain(|item| terms.iter().all(|(name, expected)| matches(item, name, expected)));
            }
            Ok(ok(&page(call, value)?))
        }
        _ => Ok(ok(&subscription(&id.to_ascii_lowercase(), rest.auth.tenant))),
    }
}

/// The page of a list that the parameters `$top` and `$skiptoken` of the request choose, with the URL of the next page.
/// Without `$top` the page has all items.
///
/// # Errors
/// 400 if `$top` is not a whole number from 1, or `$skiptoken` is none of this controller's.
pub(super) fn page(call: &Call, mut value: Vec<Value>) -> Result<Value, Failure> {
    let number = |name: &str| {
        let given = call.query.get(name).filter(|text| !text.trim().is_empty());
        let read = |text: &String| {
            text.trim().parse::<usize>().map_err(|_| {
                let message = format!("{name}: '{}' is not a whole number", excerpt(text));
                Failure::bad("InvalidQueryParameterValue", message).at(name)
            })
        };
        given.map(read).transpose()
    };
    let (top, skipped) = (number("$top")?, number("$skiptoken")?.unwrap_or_default());
    if top == Some(0) {
        let message = "$top: 0 is not a number of items; it is at least 1";
        return Err(Failure::bad("InvalidQueryParameterValue", message).at("$top"));
    }
    value.drain(..skipped.min(value.len()));
    let Some(top) = top.filter(|top| *top < value.len()) else {
        return Ok(json!({"value": value}));
    };
    value.truncate(top);
    let path = utf8_percent_encode(&call.text(), PATH).to_string();
    let mut next = format!("{}{path}{}&$top={top}", call.base, call.api_version());
    if let Some(filter) = call.query.get("$filter") {
        next.push_str(&format!("&$filter={}", utf8_percent_encode(filter, NON_ALPHANUMERIC)));
    }
    next.push_str(&format!("&$skiptoken={}", skipped.saturating_add(top)));
    Ok(json!({"value": value, "nextLink": next}))
}

/// The characters that are encoded in the path of a URL in a response.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.');

fn location(subscription: &str, name: &str) -> Value {
    json!({
        "id": format!("/subscriptions/{subscription}/locations/{name}"),
        "name": name,
        "type": "Region",
        "displayName": name,
        "regionalDisplayName": name,
        "metadata": {
            "regionType": "Physical", "regionCategory": "Recommended", "geographyGroup": "Tombolo", "geography": "Tombolo",
            "longitude": "0", "latitude": "0", "physicalLocation": name, "pairedRegion": [],
        },
    })
}

/// The regions of all resource groups, VNets, network interfaces, network security groups and flow logs, in alphabetical
/// order. [`DEFAULT_LOCATION`] if there are none.
pub(super) fn locations(topology: &Topology) -> BTreeSet<String> {
    let groups = topology.resource_groups.values().map(|g| &g.location);
    let vnets = topology.vnets.values().map(|v| &v.envelope.location);
    let nics = topology.nics.values().map(|n| &n.envelope.location);
    let guards = topology.network_security_groups.values().map(|g| &g.envelope.location);
    let logs = topology.flow_logs.values().map(|log| &log.envelope.location);
    let all = groups.chain(vnets).chain(nics).chain(guards).chain(logs);
    let mut all: BTreeSet<String> = all.cloned().collect();
    if all.is_empty() {
        all.insert(DEFAULT_LOCATION.to_owned());
    }
    all
}

/// Parses a `$filter` of terms `NAME eq 'VALUE'` that are joined by `and`. Returns the names in lower case, and the
/// values.
///
/// # Errors
/// 400 for other filters.
fn parse_filter(filter: &str) -> Result<Vec<(String, String)>, Failure> {
    let bad = || {
        let message = format!(
            "$filter: '{}' is not supported; supported are terms NAME eq 'VALUE' joined by 'and', where NAME is name, \
             resourceType, resourceGroup, location, tagName or tagValue",
            excerpt(filter)
        );
        Failure::bad("InvalidFilterInQueryString", message).at("$filter")
    };
    let mut rest = filter.trim();
    let mut found = Vec::new();
    loop {
        let (name, after) = rest.split_once(char::is_whitespace).ok_or_else(bad)?;
        let (operator, after) = after.trim_start().split_once(char::is_whitespace).ok_or_else(bad)?;
        let quoted = after.trim_start().strip_prefix('\'').ok_or_else(bad)?;
        let (value, after) = quoted.split_once('\'').ok_or_else(bad)?;
        let name = name.to_ascii_lowercase();
        let known = [
            "name",
            "resourcetype",
            "resourcegroup",
            "location",
            "tagname",
            "tagvalue",
        ];
        if !operator.eq_ignore_ascii_case("eq") || !known.contains(&&*name) {
            return Err(bad());
        }
        found.push((name, value.to_owned()));
        rest = after.trim_start();
        if rest.is_empty() {
            return Ok(found);
        }
        let (and, after) = rest.split_once(char::is_whitespace).ok_or_else(bad)?;
        if !and.eq_ignore_ascii_case("and") {
            return Err(bad());
        }
        rest = after.trim_start();
    }
}

/// Whether a resource matches a term of a filter. All comparisons except that of tag values ignore case, as in Azure.
fn matches(item: &Value, name: &str, expected: &str) -> bool {
    let text = |field: &str| item.get(field).and_then(Value::as_str).unwrap_or_default();
    let tags = || item.get("tags").and_then(Value::as_object).into_iter().flatten();
    match name {
        "name" => text("name").eq_ignore_ascii_case(expected),
        "resourcetype" => text("type").eq_ignore_ascii_case(expected),
        "location" => text("location").eq_ignore_ascii_case(expected),
        "resourcegroup" => ArmPath::parse(text("id")).is_ok_and(|p| p.resource_group.eq_ignore_ascii_case(expected)),
        "tagname" => tags().any(|(tag, _)| tag.eq_ignore_ascii_case(expected)),
        _ => tags().any(|(_, value)| value.as_str() == Some(expected)),
    }
}

/// GET of the resource providers, GET of one, and POST `register`, which does nothing because every provider is
/// registered.
pub(super) fn providers(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    let register = call.lower.len() == 5;
    require_method(call, if register { &Method::POST } else { &Method::GET })?;
    let regions: Vec<_> = locations(&rest.app.writer.current().topology).into_iter().collect();
    let view = |(namespace, further): &(&'static str, &[&'static str])| {
        let types: Vec<_> = types(namespace, further)
            .into_iter()
            .map(|t| json!({"resourceType": t, "locations": regions, "apiVersions": API_VERSIONS}))
            .collect();
        json!({
            "id": format!("/subscriptions/{}/providers/{namespace}", call.segments[1]),
            "namespace": namespace,
            "registrationState": "Registered",
            "registrationPolicy": "RegistrationRequired",
            "resourceTypes": types,
        })
    };
    let Some(requested) = call.segments.get(3) else {
        let value: Vec<_> = PROVIDERS.iter().map(view).collect();
        return Ok(ok(&json!({"value": value})));
    };
    let found = PROVIDERS
        .iter()
        .find(|(namespace, _)| namespace.eq_ignore_ascii_case(requested));
    let found = found.map(view).ok_or_else(|| {
        let message = format!("The resource namespace '{}' is invalid.", excerpt(requested));
        Failure::missing("InvalidResourceNamespace", message)
    })?;
    Ok(ok(&found))
}

/// GET of an asynchronous operation. The state is always `Succeeded`, because a client gets the URL of an operation
/// only after its work is done.
pub(super) fn operation(call: &Call) -> Result<Response, Failure> {
    require_method(call, &Method::GET)?;
    let id = call.lower.last().map(String::as_str).unwrap_or_default();
    if Uuid::try_parse(id).is_err() {
        return Err(Failure::missing(
            "NotFound",
            format!("Operation '{}' not found.", excerpt(id)),
        ));
    }
    if call.lower.iter().any(|s| s == "operations") {
        return Ok(ok(&json!({"status": "Succeeded"})));
    }
    Ok(empty(StatusCode::OK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_read() {
        let read = |f: &str| parse_filter(f).ok();
        let two = vec![
            ("name".to_owned(), "a b".to_owned()),
            ("resourcetype".to_owned(), "T/u".to_owned()),
        ];
        assert_eq!(read("name eq 'a b' AND resourceType eq 'T/u'"), Some(two));
        for bad in [
            "x",
            "name eq a",
            "name ne 'a'",
            "name eq 'a' or name eq 'b'",
            "size eq 'a'",
            "name eq 'a",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn filters_hold_without_regard_to_case() {
        let item = json!({
            "id": "/subscriptions/s/resourceGroups/Lab/providers/Microsoft.Network/virtualNetworks/Hub",
            "name": "Hub", "type": "Microsoft.Network/virtualNetworks", "location": "region1", "tags": {"env": "test"},
        });
        for (name, expected, holds) in [
            ("name", "hub", true),
            ("name", "spoke", false),
            ("resourcetype", "microsoft.network/virtualnetworks", true),
            ("resourcegroup", "lab", true),
            ("resourcegroup", "other", false),
            ("tagname", "ENV", true),
            ("tagvalue", "test", true),
            ("tagvalue", "Test", false),
        ] {
            assert_eq!(matches(&item, name, expected), holds, "{name} {expected}");
        }
    }
}
