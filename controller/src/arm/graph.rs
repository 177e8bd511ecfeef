//! The directory (Microsoft Graph) that the cloud's metadata names. Clients ask it for the names of the principals in
//! role assignments. The directory has no entries, so lists are empty and single objects do not exist. Clients need
//! answers in JSON: Azure's command line ends with a traceback if an answer has another format.

use super::call::Call;
use crate::rest::failure::{Failure, excerpt, ok};
use axum::response::Response;
use http::Method;
use serde_json::json;

/// The collections of the directory that clients read.
const COLLECTIONS: [&str; 6] = [
    "applications",
    "directoryobjects",
    "groups",
    "organization",
    "serviceprincipals",
    "users",
];

/// Whether a request goes to the directory. Such requests have no `api-version`.
pub(super) fn serves(call: &Call) -> bool {
    call.lower.first().is_some_and(|first| first == "graph")
}

/// Serves a request to the directory, `/graph/VERSION/…`.
pub(super) fn serve(call: &Call) -> Result<Response, Failure> {
    let path: Vec<&str> = call.lower.iter().skip(2).map(String::as_str).collect();
    match (&call.method, path.as_slice()) {
        (&Method::GET, [collection]) if COLLECTIONS.contains(collection) => Ok(ok(&json!({"value": []}))),
        (&Method::POST, ["directoryobjects", "getbyids"]) => Ok(ok(&json!({"value": []}))),
        (&Method::GET, [collection, ..]) if COLLECTIONS.contains(collection) => {
            let message = format!("Resource '{}' does not exist.", excerpt(&call.text()));
            Err(Failure::missing("Request_ResourceNotFound", message))
        }
        (&Method::GET, _) => Err(call.not_found()),
        _ => {
            let message = "The directory of this controller has no entries and cannot be changed.";
            Err(Failure::bad("Request_UnsupportedQuery", message))
        }
    }
}
