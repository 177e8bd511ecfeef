//! The WireGuard and BGP configuration of a site's device, without its private key (D16).

use crate::lookup;
use crate::path::ArmPath;
use crate::problems::{Problem, Rejection, not_found};
use crate::resource::{Agent, Binding, ConnectionType, VirtualNetworkGateway};
use crate::topology::Topology;
use tombolo_proto::fabric::{DeviceBgp, DeviceConfig, DeviceTunnel};
use tombolo_proto::id::ResourceId;

/// The configuration of the device at the far end of an IPsec connection, computed from the desired state. It contains
/// the connection's preshared key, but not the private key of the device, which the controller does not have. Instances
/// of the gateway without an agent are left out.
///
/// # Errors
/// Status 404: the connection does not exist. Status 400: the connection's far end is not a device, or the connection
/// has no shared key yet.
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

/// A rejection with one problem.
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

/// One tunnel for each instance of the gateway, in order of `ipConfigurations`. Instances without an agent, or with
/// only a revoked agent, are left out.
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
