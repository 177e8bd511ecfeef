//! Records the JSON of each role of an agent.

use super::config::{hop, nic, transit};
use super::{agent, id, ip, net};
use tombolo_golden::{every_variant, golden};
use tombolo_proto::config::{
    CircuitLink, CircuitNetwork, GatewayConnection, GatewayKind, LinkedCircuit, Neighbour, Role, SiteTtl, Speaker,
    UsedGateway,
};
use tombolo_proto::id::Secret;

pub(super) fn full_vm() -> Role {
    Role::Vm {
        nics: vec![nic()],
        served: vec![net("10.1.9.0/24")],
        gateways: vec![
            UsedGateway {
                gateway: id("virtualNetworkGateways/hub"),
                kind: GatewayKind::ExpressRoute,
                spread: true,
                instances: vec![hop()],
                edges: vec![hop()],
            },
            UsedGateway {
                gateway: id("virtualNetworkGateways/hub"),
                kind: GatewayKind::Vpn,
                spread: false,
                instances: vec![],
                edges: vec![],
            },
        ],
    }
}

fn speaker() -> Speaker {
    Speaker {
        asn: 65_515,
        router_id: [10, 1, 255, 4].into(),
        neighbours: vec![
            Neighbour {
                id: id("connections/to-site"),
                address: ip("172.16.0.1"),
                local_address: ip("10.1.255.4"),
                asn: 65_021,
                multihop: true,
                bfd: true,
                password: Some(Secret("secret".into())),
                max_prefixes: 4000,
                hold_time: 180,
            },
            Neighbour {
                id: id("connections/to-site"),
                address: ip("172.16.0.5"),
                local_address: ip("10.1.255.4"),
                asn: 65_021,
                multihop: false,
                bfd: false,
                password: None,
                max_prefixes: 4000,
                hold_time: 9,
            },
        ],
    }
}

#[test]
fn roles_of_agents() {
    let gateway = || id("virtualNetworkGateways/hub");
    let roles = vec![
        ("vm", full_vm()),
        (
            "minimalVm",
            Role::Vm {
                nics: vec![],
                served: vec![],
                gateways: vec![],
            },
        ),
        (
            "vpnGateway",
            Role::VpnGateway {
                gateway: gateway(),
                addresses: vec![ip("10.1.255.4"), ip("fd00:1::4")],
                local_prefixes: vec![net("10.1.0.0/16")],
                asn: 65_001,
                transit: vec![transit()],
                connections: vec![GatewayConnection {
                    connection: id("connections/to-site"),
                    ends: vec![agent("site.0123456789abcdef")],
                    exchange: true,
                    asn: 65_021,
                    site: true,
                    weight: 10,
                }],
                bgp: Some(speaker()),
                site_ttl: SiteTtl::Transparent,
            },
        ),
        (
            "minimalVpnGateway",
            Role::VpnGateway {
                gateway: gateway(),
                addresses: vec![],
                local_prefixes: vec![],
                asn: 65_515,
                transit: vec![],
                connections: vec![],
                bgp: None,
                site_ttl: SiteTtl::SilentHop,
            },
        ),
        (
            "expressRouteGateway",
            Role::ExpressRouteGateway {
                gateway: gateway(),
                addresses: vec![ip("10.1.255.5")],
                local_prefixes: vec![net("10.1.0.0/16")],
                circuits: vec![LinkedCircuit {
                    connection: id("connections/to-circuit"),
                    circuit: id("expressRouteCircuits/er1"),
                    weight: 20,
                    edges: vec![hop()],
                }],
            },
        ),
        (
            "circuitEdge",
            Role::CircuitEdge {
                circuit: id("expressRouteCircuits/er1"),
                link: CircuitLink::Secondary,
                line: net("172.16.0.2/30"),
                networks: vec![CircuitNetwork {
                    connection: id("connections/to-circuit"),
                    vnet: id("virtualNetworks/hub"),
                    prefixes: vec![net("10.1.0.0/16")],
                    asn: 65_515,
                    address: ip("10.1.255.20"),
                    gateways: vec![agent("hub-er0")],
                }],
                vnet_to_vnet: true,
                bgp: speaker(),
            },
        ),
    ];
    every_variant!(
        Role {
            Vm,
            VpnGateway,
            ExpressRouteGateway,
            CircuitEdge
        },
        roles.iter().map(|(_, role)| role)
    );
    golden!().cases("role", &roles);
}
