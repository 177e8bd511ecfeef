//! The WireGuard and BGP configuration of a site's device, without its private key (D16).

use crate::lookup;
use crate::path::ArmPath;
use crate::problems::{Problem, Rejection, not_found};
use crate::resource::{Agent, Binding, ConnectionType, VirtualNetworkGateway};
use crate::topology::Topology;
use ipnet::IpNet;
use serde::Serialize;
use std::net::{IpAddr, SocketAddr};
use tombolo_proto::id::{AgentId, PresharedKey, PublicKey, ResourceId};

/// The configuration of a device for one connection: one WireGuard interface for each instance of the gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceConfig {
    /// The id of the connection.
    pub connection: ResourceId,
    /// The id of the virtual network gateway.
    pub gateway: ResourceId,
    /// The id of the local network gateway, which describes the site.
    pub site: ResourceId,
    /// The UDP port that the device listens on.
    pub port: u16,
    /// The device's public key from the local network gateway. `None`: not set yet.
    pub public_key: Option<PublicKey>,
    /// Inner MTU, bytes (D20).
    pub mtu: u16,
    /// The WireGuard preshared key, equal for all instances. A secret.
    pub preshared_key: PresharedKey,
    /// The gateway's instances that have an agent, the preferred one first.
    pub instances: Vec<DeviceTunnel>,
    /// The prefixes reachable through the gateway: its VNet, and the VNets that use it (P21).
    pub prefixes: Vec<IpNet>,
    /// The prefixes of the site itself (G7).
    pub site_prefixes: Vec<IpNet>,
    /// The BGP session. `None`: the connection does not use BGP.
    pub bgp: Option<DeviceBgp>,
}

/// One tunnel of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceTunnel {
    /// The agent of the gateway's instance.
    pub agent: AgentId,
    /// The agent's WireGuard public key.
    pub public_key: PublicKey,
    /// The agent's first endpoint. `None`: unknown, so the agent must start the handshake.
    pub endpoint: Option<SocketAddr>,
}

/// The BGP session of a device (G4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceBgp {
    /// The device's BGP address inside the tunnel.
    pub address: IpAddr,
    /// The device's ASN.
    pub asn: u32,
    /// The gateway's BGP address.
    pub gateway_address: IpAddr,
    /// The gateway's ASN.
    pub gateway_asn: u32,
}

/// The configuration of the device at the far end of an IPsec connection.
///
/// # Errors
/// Status 404: the connection does not exist. Status 400: its far end is not a device, or it has no shared key yet.
pub fn config(topology: &Topology, connection: &ResourceId) -> Result<DeviceConfig, Rejection> {
    let Some(found) = topology.connections.get(connection) else {
        let unnamed = |_| refused(404, "ResourceNotFound", format!("{connection} is not a connection."));
        let path = ArmPath::parse(connection.as_str()).map_err(unnamed)?;
        return Err(Rejection {
            status: 404,
            problems: vec![not_found(&path)],
        });
    };
    let id = &found.envelope.id;
    let site = topology.local_gateways.get(&found.gateway2);
    let ends = topology.gateways.get(&found.gateway1).zip(site);
    let Some((gateway, site)) = ends.filter(|_| found.connection_type == ConnectionType::IPsec) else {
        let message = format!(
            "Connection {id} is of type {:?}: only one of type IPsec ends at a device (G9).",
            found.connection_type
        );
        return Err(refused(400, "XNoDevice", message));
    };
    let Some(preshared_key) = found.preshared_key() else {
        let message = format!("Connection {id} has no shared key yet (G11).");
        return Err(refused(400, "XSharedKeyRequired", message));
    };
    let bgp = site.bgp.filter(|_| found.enable_bgp).map(|bgp| DeviceBgp {
        address: bgp.address,
        asn: bgp.asn,
        gateway_address: gateway.bgp_peering_address,
        gateway_asn: gateway.asn,
    });
    Ok(DeviceConfig {
        connection: id.clone(),
        gateway: gateway.envelope.id.clone(),
        site: site.envelope.id.clone(),
        port: site.port,
        public_key: site.public_key,
        mtu: topology.settings.mtu,
        preshared_key,
        instances: instances(topology, gateway),
        prefixes: lookup::advertised_prefixes(topology, gateway),
        site_prefixes: site.address_space.clone(),
        bgp,
    })
}

fn refused(status: u16, code: &'static str, message: String) -> Rejection {
    Rejection {
        status,
        problems: vec![Problem {
            code,
            message,
            target: None,
        }],
    }
}

/// One tunnel for each instance of the gateway that has an agent, in order of `ipConfigurations`.
fn instances(topology: &Topology, gateway: &VirtualNetworkGateway) -> Vec<DeviceTunnel> {
    let serves = |agent: &Agent, name: &str| {
        matches!(&agent.binding, Binding::Gateway { gateway: g, ip_configuration }
            if *g == gateway.envelope.id && ip_configuration.eq_ignore_ascii_case(name))
    };
    let agent = |name: &str| {
        let mut agents = topology.agents.values().filter(|a| !a.revoked);
        agents.find(|a| serves(a, name))
    };
    let agents = gateway.ip_configurations.iter().filter_map(|c| agent(&c.name));
    agents
        .map(|agent| DeviceTunnel {
            agent: agent.id.clone(),
            public_key: agent.public_key,
            endpoint: agent.reach.endpoints.first().copied(),
        })
        .collect()
}
