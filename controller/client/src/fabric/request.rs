//! Requests to the fabric API.

use crate::client::{Body, Client};
use crate::error::Error;
use reqwest::Method;

impl Client {
    /// Sends a request to `/fabric/v1/{path}`. Returns when the head of a successful response has arrived.
    pub(super) async fn fabric(&self, method: Method, path: &str, body: Body<'_>) -> Result<reqwest::Response, Error> {
        self.send(method, &format!("/fabric/v1/{path}"), &[], body, None).await
    }
}
