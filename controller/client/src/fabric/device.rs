//! Configurations of the WireGuard devices of sites.

use crate::client::{Body, Client};
use crate::error::Error;
use reqwest::Method;
use serde_json::json;
use tombolo_proto::fabric::{DeviceConfig, DeviceRequest};
use tombolo_proto::id::ResourceId;

impl Client {
    /// Returns the configuration for the site's device at the remote end of a connection of type `IPsec`, computed from
    /// the present state. It contains the preshared key. It does not contain the device's private key, which the
    /// controller does not have. `connection` is compared case-insensitively.
    ///
    /// # Errors
    /// Any [`Error`]. If the connection does not exist, it is an [`Error::Api`] with status 404. If the connection has
    /// another type or no shared key yet, the status is 400.
    pub async fn device_config(&self, connection: &ResourceId) -> Result<DeviceConfig, Error> {
        let body = json!(DeviceRequest {
            connection: connection.clone()
        });
        let response = self.fabric(Method::POST, "device-config", Body::Json(&body)).await?;
        self.typed(response).await
    }
}
