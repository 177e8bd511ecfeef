//! Azure Resource Manager's REST dialect: case-insensitive paths, `api-version` on every request, Azure's status codes.
//!
//! * `call`: the parsed request.
//! * `graph`: the directory that the metadata of the cloud names; it has no entries.
//! * `login`: discovery and login of stock clients, without authorization.
//! * `subscription`: subscriptions, tenants, locations, providers, and lists across resource groups.
//! * `resource`: resource groups, resources and collections.
//! * `action`: effective routes and security groups of network interfaces, shared keys, and resets.
//! * `activity`: the activity log.
//! * `effective_security`: effective security rules in ARM's form.
//! * `balancer_health`: the health of the back ends of a load-balancing rule.
//! * `balancer_pools`: actions on the back-end pools of load balancers.
//! * `bgp_routes`: routes and BGP sessions of gateways and circuits.
//! * `metrics`: metrics of resources.
//! * `consumption`: what the traffic of resources costs.
//! * `usage`: numbers of resources and addresses in use, free addresses of a VNet, and service tags.
//! * `watcher`: Network Watcher: its actions, such as next hop, IP flow verify and connectivity check.
//! * `deployment`: template deployments.

mod action;
mod activity;
mod balancer_health;
mod balancer_pools;
mod bgp_routes;
mod call;
mod consumption;
mod deployment;
mod effective_security;
mod graph;
mod login;
mod metrics;
mod resource;
mod subscription;
mod usage;
mod watcher;

use crate::rest::failure::{Failure, excerpt};
use crate::rest::{Rest, json};
use axum::extract::{Request, State};
use axum::response::Response;
use call::Call;
use std::sync::Arc;
use uuid::Uuid;

/// Serves a request whose path does not belong to the fabric API. Checks its token and `api-version`, except for the
/// paths of discovery and login.
///
/// # Errors
/// A response with ARM's error object: 401 without a valid token, otherwise the status of the failed check.
pub(crate) async fn serve(State(rest): State<Arc<Rest>>, request: Request) -> Result<Response, Failure> {
    let (mut head, body) = request.into_parts();
    let (uri, extensions) = (head.uri.clone(), std::mem::take(&mut head.extensions));
    let mut call = Call::read(head)?;
    let open = login::needs_no_token(&call);
    if !open {
        rest.check(call.headers(), &uri, &extensions)?;
        if !graph::serves(&call) {
            call.check_api_version()?;
        }
    }
    // The body is read after the token has been checked, so that clients without a token cannot fill the memory.
    let limit = if open { json::MAX_OPEN_BODY } else { json::MAX_BODY };
    call.read_body(body, limit).await?;
    if open {
        return login::serve(&rest, &call);
    }
    route(&rest, &call).await
}

/// Serves an authorized request by its path.
async fn route(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    let path: Vec<&str> = call.lower.iter().map(String::as_str).collect();
    match path[..] {
        ["graph", ..] => graph::serve(call),
        ["subscriptions"] | ["tenants"] => subscription::list_roots(rest, call),
        ["subscriptions", subscription, ..] if Uuid::try_parse(subscription).is_err() => {
            let message = format!(
                "The provided subscription identifier '{}' is malformed or invalid: it must be a GUID.",
                excerpt(&call.segments[1])
            );
            Err(Failure::bad("InvalidSubscriptionId", message))
        }
        ["subscriptions", _, ref path @ ..] => {
            subscription::check_known(rest, call, path)?;
            route_in_subscription(rest, call, path).await
        }
        _ => Err(call.not_found()),
    }
}

/// Serves a request by its path below a subscription.
async fn route_in_subscription(rest: &Rest, call: &Call, path: &[&str]) -> Result<Response, Failure> {
    match *path {
        [] | ["locations" | "resources" | "resourcegroups"] | ["resourcegroups", _, "resources"] => {
            subscription::list_in_subscription(rest, call)
        }
        ["providers"] | ["providers", _] | ["providers", _, "register"] => subscription::providers(rest, call),
        ["operationresults", _] | ["providers", _, "locations", _, "operations" | "operationresults", _] => {
            subscription::operation(call)
        }
        ["providers", "microsoft.network", "networkwatchers"] => watcher::list(rest, call),
        ["providers", "microsoft.network", "locations", _, "usages"] => usage::of_location(rest, call),
        ["providers", "microsoft.network", "locations", _, "servicetags"] => usage::service_tags(rest, call),
        ["providers", "microsoft.insights", "eventtypes", "management", "values"] => activity::list(rest, call).await,
        ["providers", "microsoft.consumption", "usagedetails"] => consumption::usage_details(rest, call).await,
        ["providers", _, _] => resource::collection(rest, call),
        [.., "providers", "microsoft.insights", "metrics"] => metrics::figures(rest, call).await,
        [.., "providers", "microsoft.insights", "metricdefinitions"] => metrics::definitions(rest, call),
        [.., "providers", "microsoft.insights", "metricnamespaces"] => metrics::namespaces(rest, call),
        ["resourcegroups", _] => resource::item(rest, call).await,
        ["resourcegroups", _, "providers", provider, ref types @ ..] => {
            route_in_group(rest, call, provider, types).await
        }
        _ => Err(call.not_found()),
    }
}

/// Serves a request for an item in a resource group. `provider` is the resource provider, and `path` has the segments
/// after it.
async fn route_in_group(rest: &Rest, call: &Call, provider: &str, path: &[&str]) -> Result<Response, Failure> {
    match (provider, path) {
        ("microsoft.resources", ["deployments", ..]) => deployment::serve(rest, call).await,
        ("microsoft.network", ["networkwatchers", ..]) => watcher::serve(rest, call).await,
        (_, ["connections", _, "sharedkey"] | ["connections", _, "sharedkey", "reset"]) => {
            action::shared_key(rest, call).await
        }
        (
            _,
            [
                "virtualnetworkgateways",
                _,
                "getlearnedroutes" | "getadvertisedroutes" | "getbgppeerstatus",
            ],
        ) => bgp_routes::gateway(rest, call),
        (
            _,
            [
                "expressroutecircuits",
                _,
                "peerings",
                _,
                "routetables" | "routetablessummary",
                _,
            ],
        ) => bgp_routes::circuit(rest, call),
        (_, ["expressroutecircuits", _, "peerings", _, "sharedkey"]) => action::circuit_key(rest, call),
        ("microsoft.network", ["virtualnetworkgateways", _, "reset"]) => action::reset_gateway(rest, call),
        ("microsoft.network", ["connections", _, "resetconnection"]) => action::reset_connection(rest, call),
        ("microsoft.network", ["loadbalancers", _, "loadbalancingrules", _, "health"]) => {
            balancer_health::of_rule(rest, call)
        }
        (
            "microsoft.network",
            [
                "loadbalancers",
                _,
                "backendaddresspools",
                _,
                "queryinboundnatruleportmapping",
            ],
        ) => balancer_pools::port_mappings(rest, call),
        ("microsoft.network", ["loadbalancers", _, "migratetoipbased"]) => balancer_pools::migrate(rest, call).await,
        ("microsoft.network", ["virtualnetworks", _, "checkipaddressavailability"]) => usage::free_address(rest, call),
        ("microsoft.network", ["virtualnetworks", _, "usages"]) => usage::of_vnet(rest, call),
        (_, [_, _, "effectiveroutetable"]) => action::effective_routes(rest, call),
        (_, [_, _, "effectivenetworksecuritygroups"]) => action::effective_security_groups(rest, call),
        (_, []) => Err(call.not_found()),
        // Types and names alternate, so a path with an odd number of segments ends in a type.
        (_, types) if types.len() % 2 == 1 => resource::collection(rest, call),
        _ => resource::item(rest, call).await,
    }
}
