//! Configurations of the WireGuard devices of sites (D16).

use crate::id::{AgentId, PresharedKey, PublicKey, ResourceId};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// A request for the configuration of the WireGuard device at the remote end of a connection.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeviceRequest {
    /// The id of the connection.
    pub connection: ResourceId,
}

/// The configuration of the WireGuard device at the remote end of a connection of type `IPsec` (D16).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceConfig {
    /// Id of the connection.
    pub connection: ResourceId,
    /// Id of the VPN gateway.
    pub gateway: ResourceId,
    /// Id of the local network gateway that describes the site.
    pub site: ResourceId,
    /// UDP port on which the device listens.
    pub port: u16,
    /// Public key of the device, as set in the local network gateway; `None` if no key is set there yet.
    pub public_key: Option<PublicKey>,
    /// The MTU of packets inside the tunnels, in bytes (D20).
    pub mtu: u16,
    /// Preshared key of the tunnels to all instances. A secret.
    pub preshared_key: PresharedKey,
    /// The tunnels, one for each instance of the gateway that has an agent, the preferred instance first. Empty while
    /// no agent has joined for the gateway.
    pub instances: Vec<DeviceTunnel>,
    /// Prefixes that the site reaches through the gateway: the prefixes of the gateway's VNet and of the spokes that
    /// use the gateway (P21). Routes that the gateway learns are not listed: a device that speaks BGP receives them
    /// over its BGP session.
    pub prefixes: Vec<IpNet>,
    /// Prefixes of the site itself.
    pub site_prefixes: Vec<IpNet>,
    /// The BGP session; `None` if the connection does not use BGP.
    pub bgp: Option<DeviceBgp>,
}

/// A tunnel from a device to one instance of the gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceTunnel {
    /// Name of the instance's agent.
    pub agent: AgentId,
    /// WireGuard public key of the agent.
    pub public_key: PublicKey,
    /// Endpoint of the agent; `None` if it is not known. The agent has to initiate the handshake then.
    pub endpoint: Option<SocketAddr>,
}

/// The BGP session of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceBgp {
    /// Address of the device inside the tunnel.
    pub address: IpAddr,
    /// ASN of the site.
    pub asn: u32,
    /// The BGP address of the gateway's first instance. Every other instance speaks BGP from its own address.
    pub gateway_address: IpAddr,
    /// ASN of the gateway.
    pub gateway_asn: u32,
}
