//! ARM requests by path: get, put, delete, list, post. A call that starts a long-running operation polls its state
//! until the operation has ended (section 5 of the REST contract).

use crate::client::{Body, Client};
use crate::error::{ApiError, Error};
use crate::path::API_VERSION;
use reqwest::header::{HeaderMap, LOCATION, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode};
use serde_json::Value;
use std::time::{Duration, Instant};

/// Longest time that a call polls the state of a long-running operation; it may then poll the operation's result for
/// the same time. After this timeout, the operation continues at the controller.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(300);
/// Pause between two polls if the response has no `Retry-After`.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Bounds of `Retry-After`, in seconds: with 0, the client would poll without a pause, and with a long pause it would
/// learn late that the operation has ended.
const RETRY_AFTER_BOUNDS: (u64, u64) = (1, 30);
const VERSION: (&str, &str) = ("api-version", API_VERSION);

impl Client {
    /// GET of one resource. Returns the body as the controller sends it; null if the body is empty.
    ///
    /// # Errors
    /// Any [`Error`]. A resource that does not exist is an [`Error::Api`] with status 404.
    pub async fn arm_get(&self, path: &str) -> Result<Value, Error> {
        self.arm_get_with(path, &[]).await
    }

    /// As [`Self::arm_get`], with further query parameters, as for [`Self::arm_post_with`].
    ///
    /// # Errors
    /// As [`Self::arm_get`].
    pub async fn arm_get_with(&self, path: &str, query: &[(&str, &str)]) -> Result<Value, Error> {
        let query: Vec<_> = [&[VERSION], query].concat();
        let response = self.send(Method::GET, path, &query, Body::None, None).await?;
        self.json(response).await
    }

    /// GET of one resource; `None` if the controller answers 404, because the resource or one of its parents (such as
    /// its resource group) does not exist.
    ///
    /// # Errors
    /// Any [`Error`], except an [`Error::Api`] with status 404.
    pub async fn arm_find(&self, path: &str) -> Result<Option<Value>, Error> {
        match self.arm_get(path).await {
            Ok(value) => Ok(Some(value)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// GET of a collection. `path` is the path of an item without the item's name, such as `…/virtualNetworks`. Follows
    /// `nextLink`, and returns the items of all pages in the controller's order.
    ///
    /// # Errors
    /// Any [`Error`]. A page without an array `value` is an [`Error::Protocol`], and a `nextLink` to another host is an
    /// [`Error::Invalid`]. A collection whose resource group or parent does not exist is an [`Error::Api`] with status
    /// 404.
    pub async fn arm_list(&self, path: &str) -> Result<Vec<Value>, Error> {
        let mut all = Vec::new();
        let mut response = self.send(Method::GET, path, &[VERSION], Body::None, None).await?;
        loop {
            let mut page = self.json(response).await?;
            match page.get_mut("value").map(Value::take) {
                Some(Value::Array(items)) => all.extend(items),
                _ => {
                    return Err(Error::Protocol {
                        what: format!("GET {path}"),
                        reason: "no 'value' array".into(),
                    });
                }
            }
            match page.get("nextLink").and_then(Value::as_str) {
                Some(next) => response = self.send(Method::GET, next, &[], Body::None, None).await?,
                None => return Ok(all),
            }
        }
    }

    /// PUT: creates or replaces a resource, and waits for the operation, at most 5 minutes. `body` is the complete ARM
    /// body of the resource; the controller checks it. The method is idempotent. Returns the resource as it is after
    /// the operation.
    ///
    /// # Errors
    /// Any [`Error`]. If the operation was accepted and fails later, the error is an [`Error::Api`] with status 400. If
    /// it takes longer, the error is an [`Error::Timeout`], and the operation may still succeed later. A body that
    /// breaks a rule is an [`Error::Api`], and nothing changes.
    pub async fn arm_put(&self, path: &str, body: &Value) -> Result<Value, Error> {
        self.arm_put_with(path, &[], body).await
    }

    /// As [`Self::arm_put`], with further query parameters, given as name and value, such as `syncRemoteAddressSpace`
    /// and `true`. They are percent-encoded. `api-version` must not be among them.
    ///
    /// # Errors
    /// As [`Self::arm_put`].
    pub async fn arm_put_with(&self, path: &str, query: &[(&str, &str)], body: &Value) -> Result<Value, Error> {
        let query: Vec<_> = [&[VERSION], query].concat();
        let response = self.send(Method::PUT, path, &query, Body::Json(body), None).await?;
        match operation(response.headers()) {
            None => self.json(response).await,
            Some(operation) => {
                self.poll_status(&operation, path).await?;
                self.arm_get(path).await
            }
        }
    }

    /// DELETE; waits for the operation, at most 5 minutes for its end and 5 minutes for its result. Returns whether the
    /// resource existed; the result is also false if its parent does not exist.
    ///
    /// # Errors
    /// As [`Self::arm_put`], except that status 404 of the DELETE is no error. A resource that others use is not
    /// deleted; the error is an [`Error::Api`].
    pub async fn arm_delete(&self, path: &str) -> Result<bool, Error> {
        match self.send(Method::DELETE, path, &[VERSION], Body::None, None).await {
            Ok(response) if response.status() == StatusCode::ACCEPTED => {
                self.finish(response, path).await?;
                Ok(true)
            }
            Ok(response) => Ok(response.status() != StatusCode::NO_CONTENT),
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// POST of an action, such as `effectiveRouteTable`, which is the last segment of `path`. Waits for its operation,
    /// at most 5 minutes for its end and 5 minutes for its result. Returns the result; null if the action has none.
    ///
    /// # Errors
    /// As [`Self::arm_put`]. If the resource does not exist, the error is an [`Error::Api`] with status 404.
    pub async fn arm_post(&self, path: &str, body: &Value) -> Result<Value, Error> {
        self.arm_post_with(path, &[], body).await
    }

    /// As [`Self::arm_post`], with further query parameters, given as name and value, such as `peer` and `10.2.30.125`.
    /// They are percent-encoded. `api-version` must not be among them.
    ///
    /// # Errors
    /// As [`Self::arm_post`].
    pub async fn arm_post_with(&self, path: &str, query: &[(&str, &str)], body: &Value) -> Result<Value, Error> {
        let query: Vec<_> = [&[VERSION], query].concat();
        let response = self.send(Method::POST, path, &query, Body::Json(body), None).await?;
        if response.status() == StatusCode::ACCEPTED {
            self.finish(response, path).await
        } else {
            self.json(response).await
        }
    }

    /// Waits for the operation that a response with status 202 has started. Returns its result, which is read from the
    /// URL in the header `Location`; null if the response has no such header.
    async fn finish(&self, accepted: Response, path: &str) -> Result<Value, Error> {
        let location = text(accepted.headers(), LOCATION.as_str());
        match (operation(accepted.headers()), location) {
            (Some(operation), location) => {
                self.poll_status(&operation, path).await?;
                match location {
                    Some(location) => self.poll_result(&location, path).await,
                    None => Ok(Value::Null),
                }
            }
            (None, Some(location)) => self.poll_result(&location, path).await,
            (None, None) => Ok(Value::Null),
        }
    }

    /// Polls `operations/{op}` until the operation has ended.
    async fn poll_status(&self, operation: &str, path: &str) -> Result<(), Error> {
        let deadline = Instant::now() + OPERATION_TIMEOUT;
        loop {
            let response = self.send(Method::GET, operation, &[], Body::None, None).await?;
            let pause = retry_after(response.headers());
            let value = self.json(response).await?;
            match value.get("status").and_then(Value::as_str) {
                Some("Succeeded") => return Ok(()),
                Some("Failed" | "Canceled") => {
                    let body = serde_json::to_vec(&value).unwrap_or_default();
                    return Err(Error::Api(Box::new(ApiError::read(400, path, &body))));
                }
                _ => self.pause(pause, deadline, path).await?,
            }
        }
    }

    /// Polls `operationResults/{op}` until the status is not 202, and returns the body of that response.
    async fn poll_result(&self, location: &str, path: &str) -> Result<Value, Error> {
        let deadline = Instant::now() + OPERATION_TIMEOUT;
        let mut location = location.to_owned();
        loop {
            let response = self.send(Method::GET, &location, &[], Body::None, None).await?;
            if response.status() != StatusCode::ACCEPTED {
                return self.json(response).await;
            }
            if let Some(next) = text(response.headers(), LOCATION.as_str()) {
                location = next;
            }
            self.pause(retry_after(response.headers()), deadline, path).await?;
        }
    }

    /// Sleeps for `pause`. Fails at once if the pause would end after the deadline.
    async fn pause(&self, pause: Duration, deadline: Instant, path: &str) -> Result<(), Error> {
        if Instant::now() + pause > deadline {
            return Err(Error::Timeout {
                base: self.base().to_owned(),
                what: path.to_owned(),
            });
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(ToOwned::to_owned)
}

fn operation(headers: &HeaderMap) -> Option<String> {
    text(headers, "azure-asyncoperation")
}

/// Returns the pause before the next poll: `Retry-After` within its bounds, or [`POLL_INTERVAL`].
fn retry_after(headers: &HeaderMap) -> Duration {
    let (least, most) = RETRY_AFTER_BOUNDS;
    text(headers, RETRY_AFTER.as_str())
        .and_then(|s| s.parse().ok())
        .map_or(POLL_INTERVAL, |s: u64| Duration::from_secs(s.clamp(least, most)))
}
