//! The fabric API: REST for objects that ARM does not have. Unknown fields are refused (D3), and errors have ARM's
//! error object.
//!
//! * `join`: join tokens, and the joining of agents.
//! * `assertions`: what every change must leave true.
//! * `agents`: agents, their configurations and progress.
//! * `capture`: live captures of packets, and the states of those that are resources.
//! * `flow_log`: the records of flow logs while agents make them.
//! * `device`: the configuration of a site's VPN device.
//! * `diagnosis`: explain, probe, check and connection monitors.
//! * `operation`: health, metrics, settings, API tokens, backup.
//! * `reach`: which addresses reach which, and what changes would connect and cut.
//! * `usage`: what resources have carried, and what that costs.
//! * `packages`: packages of agents for new machines.

mod agents;
mod assertions;
mod capture;
mod device;
mod diagnosis;
mod flow_log;
mod join;
mod operation;
mod packages;
mod reach;
mod usage;

use crate::rest::Rest;
use axum::Router;
use axum::routing::{delete, get, post};
use std::sync::Arc;

/// The routes of the fabric API that need no token.
pub(crate) fn open() -> Router<Arc<Rest>> {
    Router::new()
        .route("/fabric/v1/health", get(operation::health))
        .route("/fabric/v1/ca", get(operation::authority))
        .route("/fabric/v1/join", post(join::join))
        .route("/packages/{name}", get(packages::download))
}

/// The routes of the fabric API that need a token; the caller adds the middleware that checks the token.
pub(crate) fn guarded() -> Router<Arc<Rest>> {
    Router::new()
        .route("/fabric/v1/tokens", get(join::list).post(join::create))
        .route("/fabric/v1/tokens/{id}", delete(join::delete))
        .route("/fabric/v1/agents", get(agents::list))
        .route("/fabric/v1/agents/{id}", get(agents::one).delete(agents::delete))
        .route("/fabric/v1/agents/{id}/revoke", post(agents::revoke))
        .route("/fabric/v1/agents/{id}/config", get(agents::config))
        .route("/fabric/v1/agents/{id}/tables", get(agents::tables))
        .route("/fabric/v1/revisions", get(agents::revisions))
        .route("/fabric/v1/revisions/{revision}/wait", get(agents::wait))
        .route("/fabric/v1/device-config", post(device::config))
        .route("/fabric/v1/explain", post(diagnosis::explain))
        .route("/fabric/v1/probe", post(diagnosis::probe))
        .route("/fabric/v1/check", post(diagnosis::check))
        .route("/fabric/v1/capture", post(capture::live))
        .route("/fabric/v1/captures", get(capture::list))
        .route("/fabric/v1/flow-logs/tail", post(flow_log::tail))
        .route("/fabric/v1/monitors", get(diagnosis::monitors))
        .route("/fabric/v1/reach", post(reach::reach))
        .route("/fabric/v1/reach/diff", post(reach::diff))
        .route("/fabric/v1/repair", post(reach::repair))
        .route("/fabric/v1/usage", post(usage::usage))
        .route("/fabric/v1/assertions", get(assertions::get).put(assertions::put))
        .route(
            "/fabric/v1/settings",
            get(operation::settings).put(operation::set_settings),
        )
        .route(
            "/fabric/v1/api-tokens",
            get(operation::api_tokens).post(operation::create_api_token),
        )
        .route("/fabric/v1/api-tokens/{id}", delete(operation::delete_api_token))
        .route("/fabric/v1/packages", get(packages::list))
        .route("/metrics", get(operation::metrics))
        .route("/fabric/v1/backup", post(operation::backup))
}
