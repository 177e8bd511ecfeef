//! Golden files of manifests with gateways, connections, sites and circuits.

use super::network::{named, prefix, tags};
use std::collections::BTreeMap;
use tombolo_client::manifest::{
    Connection, ConnectionType, ExpressRouteCircuit, GatewayIpConfiguration, LocalNetworkGateway, Named,
    PrivatePeering, SkuTier, VirtualNetworkGateway,
};
use tombolo_golden::all_of;
use tombolo_proto::config::GatewayKind;
use tombolo_proto::id::PublicKey;

/// Gateways that together have every property of the schema.
pub(super) fn gateways() -> Named<VirtualNetworkGateway> {
    let full = VirtualNetworkGateway {
        location: Some("region2".into()),
        tags: tags(),
        virtual_network: "hub".into(),
        gateway_type: GatewayKind::ExpressRoute,
        public_ip_address: Some("public".into()),
        private_ip_address: Some("10.1.255.4".parse().unwrap()),
        ip_configurations: Named::default(),
        asn: Some(65_001),
        bgp_peering_address: Some("10.1.255.254".parse().unwrap()),
        enable_bgp: true,
        active_active: true,
        vpn_type: Some("RouteBased".into()),
        sku: Some("VpnGw2".into()),
    };
    let instance = GatewayIpConfiguration {
        public_ip_address: Some("public".into()),
        private_ip_address: Some("10.1.255.5".parse().unwrap()),
    };
    let several = VirtualNetworkGateway {
        location: None,
        tags: BTreeMap::new(),
        virtual_network: "hub".into(),
        gateway_type: GatewayKind::Vpn,
        public_ip_address: None,
        private_ip_address: None,
        ip_configurations: named([("one", instance)]),
        asn: None,
        bgp_peering_address: None,
        enable_bgp: false,
        active_active: false,
        vpn_type: None,
        sku: None,
    };
    named([("full", full), ("several", several)])
}

/// Connections that together have every property of the schema.
pub(super) fn connections() -> Named<Connection> {
    let types = all_of!(ConnectionType {
        Vnet2Vnet,
        IPsec,
        ExpressRoute
    });
    let names = ["to-vnet", "to-site", "to-circuit"];
    let connection = |(name, connection_type): (&'static str, ConnectionType)| {
        let connection = Connection {
            location: Some("region2".into()),
            tags: tags(),
            connection_type,
            virtual_network_gateway1: "full".into(),
            virtual_network_gateway2: Some("branch".into()),
            local_network_gateway2: Some("site".into()),
            express_route_circuit: Some("circuit".into()),
            tunnel_addresses: vec!["10.1.255.20".parse().unwrap()],
            shared_key: Some("secret".into()),
            routing_weight: Some(10),
            enable_bgp: true,
            dpd_timeout_seconds: Some(45),
        };
        (name, connection)
    };
    named(names.into_iter().zip(types).map(connection))
}

/// Local network gateways that together have every property of the schema.
pub(super) fn sites() -> Named<LocalNetworkGateway> {
    let site = LocalNetworkGateway {
        location: Some("region2".into()),
        tags: tags(),
        gateway_ip_address: Some("192.0.2.50".parse().unwrap()),
        local_network_address_space: vec![prefix("10.9.0.0/16")],
        asn: Some(65_021),
        bgp_peering_address: Some("172.16.0.1".parse().unwrap()),
        wire_guard_public_key: Some(PublicKey([7; 32])),
        wire_guard_port: Some(51_821),
    };
    named([("site", site)])
}

/// Circuits that together have every property of the schema.
pub(super) fn circuits() -> Named<ExpressRouteCircuit> {
    let peering = || PrivatePeering {
        peer_asn: 65_030,
        primary: prefix("172.16.1.0/30"),
        secondary: prefix("172.16.1.4/30"),
        vlan_id: 100,
        shared_key: Some("secret".into()),
    };
    let tiers = all_of!(SkuTier { Standard, Premium });
    let circuit = |(name, tier): (&'static str, SkuTier)| {
        let circuit = ExpressRouteCircuit {
            location: Some("region2".into()),
            tags: tags(),
            peering_location: Some("city".into()),
            bandwidth_in_mbps: Some(1000),
            sku_tier: Some(tier),
            private_peering: Some(peering()),
        };
        (name, circuit)
    };
    named(["standard", "premium"].into_iter().zip(tiers).map(circuit))
}
