//! What joins VNets with what lies outside: gateways, connections, sites, circuits.

use super::super::status;
use super::{Views, reference, top};
use crate::path::Kind;
use crate::resource::{Connection, ConnectionType};
use serde_json::{Value, json};

impl Views<'_> {
    pub(crate) fn connection(&self, connection: &Connection) -> Value {
        let status = status::of(self.topology, self.live, connection);
        let mut properties = json!({
            "connectionType": connection.connection_type,
            "virtualNetworkGateway1": reference(&connection.gateway1),
            "routingWeight": connection.routing_weight,
            "enableBgp": connection.enable_bgp,
            "dpdTimeoutSeconds": connection.dpd_timeout.unwrap_or(0),
            "connectionStatus": status.status,
            "ingressBytesTransferred": status.ingress,
            "egressBytesTransferred": status.egress,
            "tunnelConnectionStatus": status.tunnels,
            "usePolicyBasedTrafficSelectors": false,
            "ipsecPolicies": [],
            "trafficSelectorPolicies": [],
        });
        let far = match connection.connection_type {
            ConnectionType::Vnet2Vnet => "virtualNetworkGateway2",
            ConnectionType::IPsec => "localNetworkGateway2",
            ConnectionType::ExpressRoute => {
                properties["tunnelAddresses"] = json!(connection.tunnel_addresses);
                "peer"
            }
        };
        properties[far] = reference(&connection.gateway2);
        top(&connection.envelope, Kind::Connection, properties)
    }
}
