//! The Azure Resource Manager dialect: paths without regard to case, `api-version` on every call, Azure's status codes.
//!
//! * `call`: a request, taken apart. * `login`: discovery and tokens for stock clients, before any authorization.
//! * `subscription`: what stands above resource groups. * `resource`: groups, items, collections.
//! * `action`: effective routes, shared keys. * `exchange`: routes and sessions of gateways and circuits.
//! * `watcher`: next hop. * `deployment`: templates.

mod action;
mod call;
mod deployment;
mod exchange;
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

/// Serves everything that is not the fabric API.
pub(crate) async fn serve(State(rest): State<Arc<Rest>>, request: Request) -> Result<Response, Failure> {
    let (mut head, body) = request.into_parts();
    let (uri, extensions) = (head.uri.clone(), std::mem::take(&mut head.extensions));
    let mut call = Call::read(head)?;
    let open = login::needs_no_token(&call);
    if !open {
        rest.check(call.headers(), &uri, &extensions)?;
        call.check_api_version()?;
    }
    // Not before: strangers may not fill the memory.
    let most = if open { json::MAX_OPEN_BODY } else { json::MAX_BODY };
    call.take_body(body, most).await?;
    if open {
        return login::serve(&rest, &call);
    }
    route(&rest, &call).await
}

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
        ["subscriptions"] | ["tenants"] => subscription::top(rest, call),
        ["subscriptions", _] | ["subscriptions", _, "locations" | "resources" | "resourcegroups"] => {
            subscription::below(rest, call)
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
        ["subscriptions", _, "resourcegroups", _, "resources"] => subscription::below(rest, call),
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
            ] => exchange::gateway(rest, call),
            [
                "expressroutecircuits",
                _,
                "peerings",
                _,
                "routetables" | "routetablessummary",
                _,
            ] => exchange::circuit(rest, call),
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
