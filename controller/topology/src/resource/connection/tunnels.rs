//! The addresses of the tunnels to a circuit's edges, in the gateway's `GatewaySubnet` (T4).

use crate::arm::body::Object;
use crate::draft::Draft;
use crate::net::first_free;
use crate::path::{parent_id, shown};
use crate::resource::{Connection, ExpressRouteCircuit, VirtualNetworkGateway};
use crate::rules::address::{find_subnet, used_addresses};
use std::net::IpAddr;
use tombolo_proto::id::ResourceId;

/// The number of tunnels of a connection to a circuit: one to the edge of the primary line, and one to the edge of the
/// secondary line (E1).
const TUNNELS_PER_CIRCUIT: usize = 2;

impl Draft<'_> {
    /// The tunnel addresses of a connection to `circuit`, the primary line's first. If the body has none, an existing
    /// connection keeps its addresses. A new connection gets the two lowest free addresses of `GatewaySubnet`, in the
    /// address family of the circuit's lines if the subnet has it. If the result has fewer than two addresses, a
    /// problem gives the reason.
    pub(super) fn tunnel_addresses(
        &mut self,
        id: &ResourceId,
        properties: &Object<'_>,
        gateway: &VirtualNetworkGateway,
        circuit: &ExpressRouteCircuit,
        old: Option<&Connection>,
    ) -> Vec<IpAddr> {
        let place = gateway.ip_configurations.first();
        let Some(subnet) = place.and_then(|c| find_subnet(&self.topology, &c.subnet)) else {
            return Vec::new();
        };
        let mut used = used_addresses(&self.topology, &parent_id(&subnet.id), id);
        if let Some(given) = self.given_tunnel_addresses(properties) {
            let asker = format!("Connection {id}");
            for (address, at) in &given {
                self.check_given(id, &asker, at, &subnet, *address, &used);
                used.insert(*address);
            }
            return given.into_iter().map(|(address, _)| address).collect();
        }
        if let Some(old) = old {
            return old.tunnel_addresses.clone();
        }
        let ipv6 = circuit
            .private_peering
            .as_ref()
            .is_some_and(|p| p.primary.addr().is_ipv6());
        let mut prefixes: Vec<_> = subnet.prefixes.iter().collect();
        prefixes.sort_by_key(|p| p.addr().is_ipv6() != ipv6);
        let mut addresses = Vec::new();
        while addresses.len() < TUNNELS_PER_CIRCUIT {
            let Some(address) = prefixes.iter().find_map(|p| first_free(p, &used)) else {
                self.subnet_is_full(id, &subnet, ipv6);
                break;
            };
            used.insert(address);
            addresses.push(address);
        }
        addresses
    }

    /// Reads `tunnelAddresses`, each address with its field for messages. An address that cannot be read adds a problem
    /// and is left out. `None`: the member is missing, empty, no list, or too long. The last two also add a problem.
    fn given_tunnel_addresses(&mut self, properties: &Object<'_>) -> Option<Vec<(IpAddr, String)>> {
        let items = properties.list("tunnelAddresses", TUNNELS_PER_CIRCUIT, &mut self.problems)?;
        if items.is_empty() {
            return None;
        }
        let at = properties.at("tunnelAddresses");
        if items.len() != TUNNELS_PER_CIRCUIT {
            let message = format!(
                "{at}: {} addresses, there must be one for each of the two links (T4)",
                items.len()
            );
            self.problems.add("InvalidRequestFormat", at, message);
        }
        let mut given = Vec::new();
        for item in items {
            let Some(text) = item.text(&mut self.problems) else {
                continue;
            };
            match text.parse() {
                Ok(address) => given.push((address, item.path)),
                Err(_) => {
                    let message = format!("{}: '{}' is not an IP address", item.path, shown(text));
                    self.problems.add("InvalidIPAddressFormat", item.path, message);
                }
            }
        }
        Some(given)
    }
}
