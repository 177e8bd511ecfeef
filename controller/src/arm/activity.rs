//! The activity log in the form of Azure Monitor.

use super::call::Call;
use crate::activity::Filter;
use crate::rest::Rest;
use crate::rest::failure::{Failure, excerpt, ok};
use axum::response::Response;
use http::{Method, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;

/// GET of the events of a subscription, the newest first.
pub(super) async fn list(rest: &Rest, call: &Call) -> Result<Response, Failure> {
    if call.method != Method::GET {
        return Err(Failure::method(&call.method, &call.text()));
    }
    let parameter = |name: &str| call.query.get(name).map(String::as_str).unwrap_or_default();
    let text = parameter("$filter");
    let wrong = |what: String| Failure::bad("InvalidFilterInQueryString", format!("$filter: {what}.")).at("$filter");
    let mut filter = Filter::parse(text).map_err(wrong)?;
    filter.subscription = Some(call.lower[1].clone());
    let token = parameter("$skiptoken");
    if !token.is_empty() {
        let before = token.parse().map_err(|_| {
            let message = format!("$skipToken: '{}' is not from a link to a next page", excerpt(token));
            Failure::bad("InvalidSkipToken", message).at("$skipToken")
        })?;
        filter.before = Some(before);
    }
    let page = rest.app.activity.page(filter).await;
    let page = page.map_err(|e| Failure::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", e.to_string()))?;
    let mut answer = json!({"value": page.events});
    if let Some(next) = page.next {
        let filter = utf8_percent_encode(text, NON_ALPHANUMERIC);
        let version = call.api_version();
        answer["nextLink"] = json!(format!(
            "{}{}{version}&$filter={filter}&$skipToken={next}",
            call.base,
            call.text()
        ));
    }
    Ok(ok(&answer))
}
