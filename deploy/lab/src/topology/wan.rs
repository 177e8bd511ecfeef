//! Reads those properties of circuits and local network gateways in a topology's resources with which the machines of
//! sites must agree.

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

/// The private peering of a circuit, as the resources define it.
#[derive(Debug, Clone)]
pub(super) struct Circuit {
    /// ASN of the customer's routers.
    pub(super) peer_asn: u32,
    primary: Ipv4Net,
    secondary: Ipv4Net,
}

/// The addresses of a line, each with the length of the line's prefix (E1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineAddresses {
    /// Address of the customer edge.
    pub customer: Ipv4Net,
    /// Address of the provider edge.
    pub edge: Ipv4Net,
}

impl Circuit {
    /// Returns the prefix that contains the two addresses of the primary or secondary line.
    pub(super) fn prefix(&self, link: CircuitLink) -> Ipv4Net {
        match link {
            CircuitLink::Primary => self.primary,
            CircuitLink::Secondary => self.secondary,
        }
    }
}

/// The properties of a local network gateway, the remote side of a connection to a site. They describe a site's VPN
/// device.
#[derive(Debug, Clone)]
pub(crate) struct Device {
    /// Name of the local network gateway in the resources.
    pub(crate) name: String,
    pub(crate) address: Option<IpAddr>,
    pub(crate) port: Option<u16>,
    pub(crate) has_key: bool,
    pub(crate) asn: Option<u32>,
    pub(crate) bgp_address: Option<IpAddr>,
}

/// Returns the prefix if it is an IPv4 prefix; `None` for an IPv6 prefix, because sites have only IPv4.
fn v4(prefix: IpNet) -> Option<Ipv4Net> {
    match prefix {
        IpNet::V4(prefix) => Some(prefix),
        IpNet::V6(_) => None,
    }
}

/// Returns the first and the second host address of a prefix, each with the prefix length; `None` if the prefix has
/// fewer than two host addresses.
fn ends(prefix: Ipv4Net) -> Option<(Ipv4Net, Ipv4Net)> {
    let mut hosts = prefix.hosts().map(|a| Ipv4Net::new(a, prefix.prefix_len()).ok());
    Some((hosts.next()??, hosts.next()??))
}

impl Topology {
    /// Returns the private peering of the circuit `name`, which may be written in any case of letters. Returns `None`
    /// if the circuit does not exist, or has no private peering with IPv4 prefixes.
    pub(super) fn circuit(&self, name: &str) -> Option<Circuit> {
        let circuit = self.resources.express_route_circuits.find(name)?;
        let peering = circuit.private_peering.as_ref()?;
        Some(Circuit {
            peer_asn: peering.peer_asn,
            primary: v4(peering.primary.0)?,
            secondary: v4(peering.secondary.0)?,
        })
    }

    /// Returns the local network gateway that a connection leads to; `None` if the connection leads to no local network
    /// gateway.
    pub(crate) fn device(&self, connection: &str) -> Option<Device> {
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

    /// Returns the key that signs the BGP sessions of a circuit; `None` if the circuit does not exist or has no key.
    /// Upper and lower case letters in the circuit's name are not distinguished.
    #[must_use]
    pub fn circuit_key(&self, name: &str) -> Option<&str> {
        let circuit = self.resources.express_route_circuits.find(name)?;
        circuit.private_peering.as_ref()?.shared_key.as_deref()
    }

    /// Returns a copy of the resources in which the local network gateways have the public keys of the sites' devices.
    /// `keys` has the public keys by connection; keys for connections that do not exist or lead to no local network
    /// gateway are ignored. Upper and lower case letters in the connections' names are not distinguished.
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

    /// Returns the host of a customer edge, and the name of BIRD's protocol for its session with a neighbour. `from`
    /// names the customer edge and the neighbour; the site and the customer edge must be written as in the topology,
    /// because the name of the host is made from them. Returns `None` if the customer edge, the line or the tunnel does
    /// not exist, or if `from` does not have exactly one of `line` and `tunnel`.
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

    /// Returns the addresses of a circuit's primary or secondary line. Returns `None` if the circuit does not exist,
    /// has no private peering with IPv4, or its prefix has fewer than two host addresses. Upper and lower case letters
    /// in the circuit's name are not distinguished.
    #[must_use]
    pub fn line_addresses(&self, circuit: &str, link: CircuitLink) -> Option<LineAddresses> {
        let (customer, edge) = ends(self.circuit(circuit)?.prefix(link))?;
        Some(LineAddresses { customer, edge })
    }

    /// Returns the address that the topology gives the first `ipConfiguration` of a network interface; `None` if it
    /// gives none.
    fn vm_address(&self, nic: &str) -> Option<IpAddr> {
        let nic = self.resources.network_interfaces.find(nic)?;
        let first = nic.ip_configurations.iter().next();
        first.map_or(nic.private_ip_address, |(_, c)| c.private_ip_address)
    }

    /// Returns the overlay address that the topology gives a host. For a VM this is the primary address, for a site's
    /// machine it is [`Machine::address`](super::site::Machine::address). Returns `None` if the controller allocates
    /// the address, and for all other hosts. The name of the host is case-sensitive.
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
    /// Returns the machine's address in the site. For a customer edge this is the address inside its first tunnel, or
    /// without a tunnel the address on its link to the LAN router. Returns `None` for a customer edge with neither.
    #[must_use]
    pub fn address(&self) -> Option<Ipv4Addr> {
        match self.role {
            super::site::MachineRole::LanRouter => Some(self.site.lan.router.addr()),
            super::site::MachineRole::Host(address) => Some(address),
            super::site::MachineRole::CustomerEdge(edge) => {
                let tunnel = edge.tunnels.first().map(|t| t.address);
                tunnel.or_else(|| Some(edge.lan?.addr()))
            }
        }
    }
}
