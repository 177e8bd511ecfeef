//! Recorded documents of gateways, connections, sites and circuits.

use super::{bare, envelope, etag, id, ip, net};
use tombolo_golden::{all_of, golden};
use tombolo_proto::config::GatewayKind;
use tombolo_proto::id::PublicKey;
use tombolo_topology::resource::{
    CircuitAuthorization, Connection, ConnectionType, ExpressRouteCircuit, GatewayIpConfiguration, LocalNetworkGateway,
    PrivatePeering, SiteBgp, VirtualNetworkGateway,
};

pub(super) fn gateway(name: &str, gateway_type: GatewayKind) -> VirtualNetworkGateway {
    let instance = |name: &str, address: &str| GatewayIpConfiguration {
        name: name.into(),
        subnet: id("virtualNetworks/Hub/subnets/GatewaySubnet"),
        address: ip(address),
        is_static: name == "one",
        public_ip_address: (name == "one").then(|| id("publicIPAddresses/Public")),
    };
    VirtualNetworkGateway {
        envelope: envelope(&format!("virtualNetworkGateways/{name}")),
        ip_configurations: vec![instance("one", "10.1.255.4"), instance("two", "10.1.255.5")],
        gateway_type,
        vpn_type: "RouteBased".into(),
        active_active: true,
        enable_bgp: true,
        asn: 65_001,
        bgp_peering_address: ip("10.1.255.254"),
        sku: "VpnGw1".into(),
    }
}

pub(super) fn connections() -> Vec<(&'static str, Connection)> {
    let ends = [
        ("vnet", "virtualNetworkGateways/Vpn", "virtualNetworkGateways/Branch"),
        ("site", "virtualNetworkGateways/Vpn", "localNetworkGateways/Site"),
        (
            "circuit",
            "virtualNetworkGateways/Express",
            "expressRouteCircuits/Circuit",
        ),
    ];
    let types = all_of!(ConnectionType {
        Vnet2Vnet,
        IPsec,
        ExpressRoute
    });
    let connection = |((name, from, to), connection_type): ((&'static str, &str, &str), ConnectionType)| {
        let connection = Connection {
            envelope: envelope(&format!("connections/{name}")),
            connection_type,
            gateway1: id(from),
            gateway2: id(to),
            tunnel_addresses: vec![ip("10.1.255.20"), ip("10.1.255.21")],
            shared_key: Some("secret".into()),
            routing_weight: 10,
            enable_bgp: true,
            dpd_timeout: Some(45),
            authorization: (connection_type == ConnectionType::ExpressRoute)
                .then(|| id("expressRouteCircuits/Circuit/authorizations/first")),
        };
        (name, connection)
    };
    ends.into_iter().zip(types).map(connection).collect()
}

pub(super) fn site() -> LocalNetworkGateway {
    LocalNetworkGateway {
        envelope: envelope("localNetworkGateways/Site"),
        address: Some(ip("192.0.2.50")),
        port: 51_821,
        public_key: Some(PublicKey([7; 32])),
        address_space: vec![net("10.9.0.0/16")],
        bgp: Some(SiteBgp {
            asn: 65_021,
            address: ip("172.16.0.1"),
        }),
    }
}

fn peering(shared_key: Option<String>) -> PrivatePeering {
    PrivatePeering {
        id: id("expressRouteCircuits/Circuit/peerings/AzurePrivatePeering"),
        etag: etag(),
        peer_asn: 65_030,
        primary: net("172.16.1.0/30"),
        secondary: net("172.16.1.4/30"),
        vlan_id: 100,
        shared_key,
    }
}

pub(super) fn circuit() -> ExpressRouteCircuit {
    ExpressRouteCircuit {
        envelope: envelope("expressRouteCircuits/Circuit"),
        private_peering: Some(peering(Some("secret".into()))),
        authorizations: vec![CircuitAuthorization {
            id: id("expressRouteCircuits/Circuit/authorizations/first"),
            etag: uuid::Uuid::from_u128(7),
            key: uuid::Uuid::from_u128(8),
        }],
    }
}

#[test]
fn documents_of_gateways() {
    let golden = golden!();
    let empty = VirtualNetworkGateway {
        envelope: bare("virtualNetworkGateways/Vpn"),
        ip_configurations: vec![],
        gateway_type: GatewayKind::Vpn,
        vpn_type: "RouteBased".into(),
        active_active: false,
        enable_bgp: false,
        asn: 65_515,
        bgp_peering_address: ip("10.1.255.254"),
        sku: "VpnGw1".into(),
    };
    golden.cases(
        "virtual_network_gateway",
        &[
            ("vpn", gateway("Vpn", GatewayKind::Vpn)),
            ("expressRoute", gateway("Express", GatewayKind::ExpressRoute)),
            ("minimal", empty),
        ],
    );
    let mut all = connections();
    all.push((
        "minimal",
        Connection {
            envelope: bare("connections/vnet"),
            connection_type: ConnectionType::Vnet2Vnet,
            gateway1: id("virtualNetworkGateways/Vpn"),
            gateway2: id("virtualNetworkGateways/Branch"),
            tunnel_addresses: vec![],
            shared_key: None,
            routing_weight: 0,
            enable_bgp: false,
            dpd_timeout: None,
            authorization: None,
        },
    ));
    golden.cases("connection", &all);
    let empty = LocalNetworkGateway {
        envelope: bare("localNetworkGateways/Site"),
        address: None,
        port: 51_820,
        public_key: None,
        address_space: vec![],
        bgp: None,
    };
    golden.cases("local_network_gateway", &[("full", site()), ("minimal", empty)]);
    let empty = ExpressRouteCircuit {
        envelope: bare("expressRouteCircuits/Circuit"),
        private_peering: None,
        authorizations: vec![],
    };
    golden.cases(
        "private_peering",
        &[("full", peering(Some("secret".into()))), ("minimal", peering(None))],
    );
    golden.cases("express_route_circuit", &[("full", circuit()), ("minimal", empty)]);
}
