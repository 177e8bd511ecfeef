//! The controller itself: health, certificate, metrics, settings, backup.

use crate::client::{Body, Client};
use crate::error::Error;
use reqwest::Method;
use serde_json::Value;
use std::time::Duration;

impl Client {
    /// The controller's liveness and revision; needs no token.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn health(&self) -> Result<Value, Error> {
        let response = self.fabric(Method::GET, "health", Body::None).await?;
        self.json(response).await
    }

    /// The controller's CA certificate, PEM; needs no token.
    ///
    /// # Errors
    /// Those of the controller.
    pub async fn ca(&self) -> Result<String, Error> {
        let response = self.fabric(Method::GET, "ca", Body::None).await?;
        response
            .text()
            .await
            .map_err(|e| Error::transport(self.base(), "GET /fabric/v1/ca", &e))
    }

    /// The controller's metrics, as Prometheus text.
    ///
    /// # Errors
    /// Those of the controller.
    pub async fn metrics(&self) -> Result<String, Error> {
        let response = self.send(Method::GET, "/metrics", &[], Body::None, None).await?;
        response
            .text()
            .await
            .map_err(|e| Error::transport(self.base(), "GET /metrics", &e))
    }

    /// The operator's switches.
    ///
    /// # Errors
    /// Those of the controller.
    pub async fn settings(&self) -> Result<Value, Error> {
        let response = self.fabric(Method::GET, "settings", Body::None).await?;
        self.json(response).await
    }

    /// Sets the operator's switches; what is left out goes back to its default.
    ///
    /// # Errors
    /// Those of the controller: unknown names, wrong values.
    pub async fn put_settings(&self, settings: &Value) -> Result<Value, Error> {
        let response = self.fabric(Method::PUT, "settings", Body::Json(settings)).await?;
        self.json(response).await
    }

    /// A backup of the controller's store, taken while it runs.
    ///
    /// # Errors
    /// Those of the controller.
    pub async fn backup(&self) -> Result<Vec<u8>, Error> {
        let path = "/fabric/v1/backup";
        let limit = Some(Duration::from_secs(600));
        let response = self.send(Method::POST, path, &[], Body::None, limit).await?;
        let bytes = response
            .bytes()
            .await
            .map_err(|e| Error::transport(self.base(), path, &e))?;
        Ok(bytes.to_vec())
    }
}
