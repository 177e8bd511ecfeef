//! Calls about the controller: health, certificate, metrics, settings, backup.

use crate::client::{Body, Client};
use crate::error::Error;
use reqwest::Method;
use serde_json::{Value, json};
use std::time::Duration;
use tombolo_proto::fabric::UsageRequest;

/// Longest time that a backup may take. It is longer than for other requests, because the controller sends its whole
/// store.
const BACKUP_TIMEOUT: Duration = Duration::from_secs(600);

impl Client {
    /// Returns the controller's health and revision, as the JSON of `GET /fabric/v1/health`. Needs no token. The object has
    /// two fields: `status`, which is always `"ok"`, because a controller that cannot answer shows as an error instead;
    /// and `revision`, the newest revision of the controller's store as a number, whether or not agents have it in force.
    ///
    /// # Errors
    /// Any [`Error`]: the controller does not answer, or answers with an error.
    pub async fn health(&self) -> Result<Value, Error> {
        let response = self.fabric(Method::GET, "health", Body::None).await?;
        self.json(response).await
    }

    /// Returns the certificate of the controller's CA in PEM. Needs no token. If the client trusts the system's
    /// authorities, the certificate is only as trustworthy as these: compare its SHA-256 with the PIN of a join token.
    ///
    /// # Errors
    /// Any [`Error`]: the controller cannot be reached, or refuses the request.
    pub async fn ca(&self) -> Result<String, Error> {
        let response = self.fabric(Method::GET, "ca", Body::None).await?;
        response
            .text()
            .await
            .map_err(|e| Error::transport(self.base(), "GET /fabric/v1/ca", &e))
    }

    /// Returns the controller's metrics in Prometheus' text format, as of now. Needs a token.
    ///
    /// # Errors
    /// Any [`Error`]: the controller cannot be reached, or refuses the request.
    pub async fn metrics(&self) -> Result<String, Error> {
        let response = self.send(Method::GET, "/metrics", &[], Body::None, None).await?;
        response
            .text()
            .await
            .map_err(|e| Error::transport(self.base(), "GET /metrics", &e))
    }

    /// Returns all settings with their present values, as a JSON object.
    ///
    /// # Errors
    /// Any [`Error`]: the controller cannot be reached, or refuses the request.
    pub async fn settings(&self) -> Result<Value, Error> {
        let response = self.fabric(Method::GET, "settings", Body::None).await?;
        self.json(response).await
    }

    /// Replaces all settings, and returns them. A setting that `settings` omits gets its default. To change one
    /// setting, change it in the value that [`Self::settings`] returns.
    ///
    /// # Errors
    /// Any [`Error`]. An unknown name, or a value that is out of range, is an [`Error::Api`] with status 400; then no
    /// setting changes.
    pub async fn put_settings(&self, settings: &Value) -> Result<Value, Error> {
        let response = self.fabric(Method::PUT, "settings", Body::Json(settings)).await?;
        self.json(response).await
    }

    /// Returns what each resource has carried within a time, and what that costs. The result is a JSON object with `entries`,
    /// `total` and `prices`.
    ///
    /// # Errors
    /// Any [`Error`]. A price that is no number, or an unknown name of one, is an [`Error::Api`] with status 400.
    pub async fn usage(&self, request: &UsageRequest) -> Result<Value, Error> {
        let response = self.fabric(Method::POST, "usage", Body::Json(&json!(request))).await?;
        self.json(response).await
    }

    /// Returns a consistent copy of the controller's store: the content of a file that `tombolo-controller restore`
    /// reads. The controller keeps running. The copy contains secrets, and is held in memory as a whole. Waits for at
    /// most 10 minutes.
    ///
    /// # Errors
    /// Any [`Error`]: the controller cannot be reached, or refuses the request.
    pub async fn backup(&self) -> Result<Vec<u8>, Error> {
        let path = "/fabric/v1/backup";
        let response = self
            .send(Method::POST, path, &[], Body::None, Some(BACKUP_TIMEOUT))
            .await?;
        let bytes = response
            .bytes()
            .await
            .map_err(|e| Error::transport(self.base(), path, &e))?;
        Ok(bytes.to_vec())
    }
}
