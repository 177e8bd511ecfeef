//! What the resources say of circuits and sites, as far as the machines of a site have to agree with it.

use super::Topology;
use super::expected::Learned;
use super::site::{Tunnel, host_name};
use crate::site::{line_device, tunnel_device};
use ipnet::{IpNet, Ipv4Net};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use tombolo_client::manifest::Document;
use tombolo_proto::config::CircuitLink;
use tombolo_proto::id::PublicKey;

/// A circuit's private peering.
#[derive(Debug, Clone)]
pub(super) struct Circuit {
    /// The customer's ASN.
    pub(super) peer_asn: u32,
    primary: Ipv4Net,
    secondary: Ipv4Net,
}

/// A line's addresses: the customer's and the edge's (E1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineAddresses {
    /// The customer edge's.
    pub customer: Ipv4Net,
    /// The edge's.
    pub edge: Ipv4Net,
}

impl Circuit {
    pub(super) fn prefix(&self, link: CircuitLink) -> Ipv4Net {
        match link {
            CircuitLink::Primary => self.primary,
            CircuitLink::Secondary => self.secondary,
        }
    }
}

/// A local network gateway with the connection that leads to it.
#[derive(Debug, Clone)]
pub(super) struct Device {
    /// Its name in the resources.
    pub(super) name: String,
    pub(super) address: Option<IpAddr>,
    pub(super) port: Option<u16>,
    pub(super) has_key: bool,
    pub(super) asn: Option<u32>,
    pub(super) bgp_address: Option<IpAddr>,
}

/// Inside a site there is IPv4 alone.
fn v4(prefix: IpNet) -> Option<Ipv4Net> {
    match prefix {
        IpNet::V4(prefix) => Some(prefix),
        IpNet::V6(_) => None,
    }
}

/// First and second host address of a /30 or /31, with its length.
fn ends(prefix: Ipv4Net) -> Option<(Ipv4Net, Ipv4Net)> {
    let mut hosts = prefix.hosts().map(|a| Ipv4Net::new(a, prefix.prefix_len()).ok());
    Some((hosts.next()??, hosts.next()??))
}

impl Topology {
    /// A circuit that has a private peering.
    pub(super) fn circuit(&self, name: &str) -> Option<Circuit> {
        let circuit = self.resources.express_route_circuits.find(name)?;
        let peering = circuit.private_peering.as_ref()?;
        Some(Circuit {
            peer_asn: peering.peer_asn,
            primary: v4(peering.primary.0)?,
            secondary: v4(peering.secondary.0)?,
        })
    }

    /// The local network gateway that a connection leads to.
    pub(super) fn device(&self, connection: &str) -> Option<Device> {
        let connection = self.resources.connections.find(connection)?;
        let name = connection.local_network_gateway2.as_deref()?;
        let gateway = self.resources.local_network_gateways.find(name)?;
        Some(Device {
            name: name.to_owned(),
            address: gateway.gateway_ip_address,
            port: gateway.wire_guard_port,
            has_key: gateway.wire_guard_public_key.is_some(),
            asn: gateway.asn,
            bgp_address: gateway.bgp_peering_address,
        })
    }

    /// What signs the BGP sessions of a circuit, if anything does.
    #[must_use]
    pub fn circuit_key(&self, name: &str) -> Option<&str> {
        let circuit = self.resources.express_route_circuits.find(name)?;
        circuit.private_peering.as_ref()?.shared_key.as_deref()
    }

    /// The resources with the keys of the sites' devices, by connection, filled in.
    #[must_use]
    pub fn resources_with_keys(&self, keys: &BTreeMap<String, PublicKey>) -> Document {
        let mut resources = self.resources.clone();
        let of_gateway: BTreeMap<String, PublicKey> = keys
            .iter()
            .filter_map(|(connection, key)| Some((self.device(connection)?.name.to_ascii_lowercase(), *key)))
            .collect();
        let gateways = resources.local_network_gateways.iter().map(|(name, gateway)| {
            let mut gateway = gateway.clone();
            if let Some(key) = of_gateway.get(&name.to_ascii_lowercase()) {
                gateway.wire_guard_public_key = Some(*key);
            }
            (name.to_owned(), gateway)
        });
        resources.local_network_gateways = gateways.collect();
        resources
    }

    /// The host of a customer edge, and how its routing daemon calls the session with a neighbour; none: there is no such one.
    #[must_use]
    pub fn session_of(&self, from: &Learned) -> Option<(String, String)> {
        let edge = self.customer_edge(&from.site, &from.router)?;
        let session = match (&from.line, &from.tunnel) {
            (Some(line), None) => line_device(edge.lines.iter().position(|l| l.is(line))?),
            (None, Some(connection)) => {
                let is = |t: &Tunnel| t.connection.eq_ignore_ascii_case(connection);
                tunnel_device(edge.tunnels.iter().position(is)?)
            }
            (Some(_), Some(_)) | (None, None) => return None,
        };
        Some((host_name(&from.site, &from.router), session))
    }

    /// The addresses of the line to one link of a circuit; none if there is no such circuit.
    #[must_use]
    pub fn line_addresses(&self, circuit: &str, link: CircuitLink) -> Option<LineAddresses> {
        let (customer, edge) = ends(self.circuit(circuit)?.prefix(link))?;
        Some(LineAddresses { customer, edge })
    }

    /// The address that a VM's first NIC is given in the file.
    fn vm_address(&self, nic: &str) -> Option<IpAddr> {
        let nic = self.resources.network_interfaces.find(nic)?;
        let first = nic.ip_configurations.iter().next();
        first.map_or(nic.private_ip_address, |(_, c)| c.private_ip_address)
    }

    /// The overlay address of a host as the file gives it: a VM's first, or a site machine's. None if the controller
    /// chooses it.
    #[must_use]
    pub fn given_address(&self, host: &str) -> Option<IpAddr> {
        if let Some(vm) = self.hosts.get(host).and_then(|h| h.vm.as_ref()) {
            return self.vm_address(vm.nics.first()?);
        }
        let machine = self.machines().find(|m| m.host == host)?;
        Some(IpAddr::V4(machine.address()?))
    }
}

impl super::site::Machine<'_> {
    /// The address that it is known by inside the site; none for a customer edge without any link.
    #[must_use]
    pub fn address(&self) -> Option<Ipv4Addr> {
        match self.part {
            super::site::Part::LanRouter => Some(self.site.lan.router.addr()),
            super::site::Part::Host(address) => Some(address),
            super::site::Part::CustomerEdge(edge) => {
                let tunnel = edge.tunnels.first().map(|t| t.address);
                tunnel.or_else(|| Some(edge.lan?.addr()))
            }
        }
    }
}
