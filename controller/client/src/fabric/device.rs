//! The devices of sites.

use crate::client::{Body, Client};
use crate::error::Error;
use ipnet::IpNet;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::net::{IpAddr, SocketAddr};
use tombolo_proto::id::{AgentId, PresharedKey, PublicKey, ResourceId};

/// What the device at the far end of an IPsec connection has to be told (D16).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceConfig {
    /// The connection.
    pub connection: ResourceId,
    /// The gateway.
    pub gateway: ResourceId,
    /// The local network gateway that describes the site.
    pub site: ResourceId,
    /// UDP port that the device listens at.
    pub port: u16,
    /// The device's key as the site's resource has it; none: not told yet.
    pub public_key: Option<PublicKey>,
    /// Inner MTU, bytes.
    pub mtu: u16,
    /// The same for all instances. A secret.
    pub preshared_key: PresharedKey,
    /// The gateway's instances that have an agent, in order of preference.
    pub instances: Vec<DeviceTunnel>,
    /// What lies behind the gateway: its VNet, and those that use it.
    pub prefixes: Vec<IpNet>,
    /// The prefixes of the site itself.
    pub site_prefixes: Vec<IpNet>,
    /// The BGP session; none: the connection does not use BGP.
    pub bgp: Option<DeviceBgp>,
}

/// One tunnel of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceTunnel {
    /// The agent at the other end.
    pub agent: AgentId,
    /// Its identity.
    pub public_key: PublicKey,
    /// Where it is reached; none: not known, it has to call.
    pub endpoint: Option<SocketAddr>,
}

/// The BGP session of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceBgp {
    /// The device's address inside the tunnel.
    pub address: IpAddr,
    /// Its ASN.
    pub asn: u32,
    /// The gateway's address.
    pub gateway_address: IpAddr,
    /// The gateway's ASN.
    pub gateway_asn: u32,
}

impl Client {
    /// What the device at the far end of an IPsec connection has to be told. Holds a secret.
    ///
    /// # Errors
    /// Those of the controller: no such connection, no device at its end, no shared key yet.
    pub async fn device_config(&self, connection: &ResourceId) -> Result<DeviceConfig, Error> {
        let body = json!({"connection": connection});
        let response = self.fabric(Method::POST, "device-config", Body::Json(&body)).await?;
        self.typed(response).await
    }
}
