//! Configurations of the WireGuard devices of sites.

use crate::client::{Body, Client};
use crate::error::Error;
use reqwest::Method;
use serde_json::json;
use tombolo_proto::fabric::{DeviceConfig, DeviceRequest};
use tombolo_proto::id::ResourceId;

impl Client {
    /// Returns the configuration for the site's device at the remote end of a connection of type `IPsec`, computed from
    /// the present state. It contains the preshared key.
    ///
    /// # Errors
    /// Any [`Error`]. The connection does not exist, has another type, or has no shared key yet: [`Error::Api`].
    pub async fn device_config(&self, connection: &ResourceId) -> Result<DeviceConfig, Error> {
        let body = json!(DeviceRequest {
            connection: connection.clone()
        });
        let response = self.fabric(Method::POST, "device-config", Body::Json(&body)).await?;
        self.typed(response).await
    }
}
