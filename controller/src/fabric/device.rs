//! The configuration of a site's VPN device (D16). It contains the preshared key, so a request for the configuration
//! needs a token, as a request for a shared key does.

use crate::rest::failure::{Failure, ok};
use crate::rest::{Rest, json};
use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::json as object;
use std::sync::Arc;
use tombolo_proto::fabric::DeviceRequest;
use tombolo_topology::device;

/// POST `device-config`: the configuration for the VPN device of the site at the other end of a connection.
pub(super) async fn config(State(rest): State<Arc<Rest>>, request: Request) -> Result<Response, Failure> {
    let DeviceRequest { connection } = json::typed(request).await?;
    let topology = rest.app.writer.current().topology;
    Ok(ok(&object!(device::config(&topology, &connection)?)))
}
