//! Azure Resource Manager's REST dialect: case-insensitive paths, `api-version` on every request, Azure's status codes.
//!
//! * `call`: the parsed request.
//! * `login`: discovery and login of stock clients, without authorization.
//! * `subscription`: subscriptions, tenants, locations, providers, and lists across resource groups.
//! * `resource`: resource groups, resources and collections.
//! * `action`: effective routes and shared keys.
//! * `bgp_routes`: routes and BGP sessions of gateways and circuits.
//! * `watcher`: Network Watcher's next hop.
//! * `deployment`: template deployments.

mod action;
mod bgp_routes;
mod call;
mod deployment;
mod login;
mod resource;
mod subscription;
mod watcher;

use crate::rest::failure::{Failure, shown};
use crate::rest::{Rest, json};
use axum::extract::{Request, State};
use axum::response::Response;
use call::Call;
use std::sync::Arc;
use uuid::Uuid;

/// Serves a request with a path outside of the fabric API.
///
/// # Errors
/// ARM's error object.
pub(crate) async fn serve(State(rest): State<Arc<Rest>>, request: Request) -> Result<Response, Failure> {
    let (mut head, body) = request.into_parts();
    let (uri, extensions) = (head.uri.clone(), std::mem::take(&mut head.extensions));
    let mut call = Call::read(head)?;
    let open = login::needs_no_token(&call);
    if !open {
        rest.check(call.headers(), &uri, &extensions)?;
        call.check_api_version()?;
    }
    // Only now, so that clients without a token cannot fill the memory.
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
    if let ["subscriptions", subscription, ..] = path[..]
        && Uuid::try_parse(subscription).is_err()
    {
        let message = format!(
            "The provided subscription identifier '{}' is malformed or invalid: it must be a GUID.",
            shown(&call.segments[1])
        );
        return Err(Failure::bad("InvalidSubscriptionId", message));
    }
    match path[..] {
        ["subscriptions"] | ["tenants"] => subscription::list_roots(rest, call),
        ["subscriptions", _] | ["subscriptions", _, "locations" | "resources" | "resourcegroups"] => {
            subscription::list_in_subscription(rest, call)
        }
        ["subscriptions", _, "providers"]
        | ["subscriptions", _, "providers", _]
        | ["subscriptions", _, "providers", _, "register"] => subscription::providers(rest, call),
        ["subscriptions", _, "operationresults", _]
        | [
            "subscriptions",
            _,
            "providers",
            _,
            "locations",
            _,
            "operations" | "operationresults",
            _,
        ] => subscription::operation(call),
        ["subscriptions", _, "providers", "microsoft.network", "networkwatchers"] => watcher::list(rest, call),
        ["subscriptions", _, "providers", _, _] => resource::collection(rest, call),
        ["subscriptions", _, "resourcegroups", _] => resource::item(rest, call).await,
        ["subscriptions", _, "resourcegroups", _, "resources"] => subscription::list_in_subscription(rest, call),
        [
            "subscriptions",
            _,
            "resourcegroups",
            _,
            "providers",
            "microsoft.resources",
            "deployments",
            ..,
        ] => deployment::serve(rest, call).await,
        [
            "subscriptions",
            _,
            "resourcegroups",
            _,
            "providers",
            "microsoft.network",
            "networkwatchers",
            ..,
        ] => watcher::serve(rest, call),
        ["subscriptions", _, "resourcegroups", _, "providers", _, ref types @ ..] => match types {
            ["connections", _, "sharedkey"] | ["connections", _, "sharedkey", "reset"] => {
                action::shared_key(rest, call).await
            }
            [
                "virtualnetworkgateways",
                _,
                "getlearnedroutes" | "getadvertisedroutes" | "getbgppeerstatus",
            ] => bgp_routes::gateway(rest, call),
            [
                "expressroutecircuits",
                _,
                "peerings",
                _,
                "routetables" | "routetablessummary",
                _,
            ] => bgp_routes::circuit(rest, call),
            ["expressroutecircuits", _, "peerings", _, "sharedkey"] => action::circuit_key(rest, call),
            [_, _, "effectiveroutetable"] => action::effective_routes(rest, call),
            [_, _, "effectivenetworksecuritygroups"] => action::effective_security_groups(rest, call),
            [] => Err(call.not_found()),
            types if types.len() % 2 == 1 => resource::collection(rest, call),
            _ => resource::item(rest, call).await,
        },
        _ => Err(call.not_found()),
    }
}
