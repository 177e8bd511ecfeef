//! Records the JSON of an agent's configuration, except for its role.

use super::{agent, at, id, ip, net};
use std::collections::BTreeMap;
use std::net::IpAddr;
use tombolo_golden::{all_of, every_variant, golden};
use tombolo_proto::config::{
    ALL_PORTS, Access, AccessOff, AddressMatch, AgentConfig, ApplicationGroup, Arrival, BalancedProtocol,
    BalancingRule, Direction, Distribution, Feature, FlowLog, FlowLogFormat, FlowLogs, ForeignSources, FrontEnd,
    HealthProbe, Limits, Link, LoggedGroup, LoggedNic, Nic, NicBandwidth, Owner, PortRange, ProbeProtocol, Probes,
    Relation, Role, RuleProtocol, SecuredNic, Security, SecurityGroup, SecurityRule, Space, SpaceKind, Subnet,
    TransitRoute, Transport,
};
use tombolo_proto::id::{KeyPin, PresharedKey, PublicKey};
use tombolo_proto::route::{EffectiveRoute, GatewayHop, NextHop, RouteSource, RouteState};

pub(super) fn nic() -> Nic {
    Nic {
        id: id("networkInterfaces/vm"),
        addresses: vec![net("10.1.0.4/24"), net("fd00:1::4/64")],
        subnet: id("virtualNetworks/hub/subnets/default"),
        ip_forwarding: true,
        host_routes: vec![net("10.9.0.0/16")],
    }
}

pub(super) fn transit() -> TransitRoute {
    TransitRoute {
        prefix: net("10.2.0.0/16"),
        connection: id("connections/to-branch"),
        via: vec![agent("branch-gw0"), agent("branch-gw1")],
    }
}

pub(super) fn hop() -> GatewayHop {
    GatewayHop {
        agent: agent("hub-gw0"),
        address: ip("10.1.255.4"),
    }
}

fn relations() -> Vec<(&'static str, Relation)> {
    let connection = || id("connections/to-branch");
    let relations = vec![
        ("vnetLocal", Relation::VnetLocal {}),
        (
            "peering",
            Relation::Peering {
                peering: id("virtualNetworks/hub/virtualNetworkPeerings/to-spoke"),
            },
        ),
        ("gateway", Relation::Gateway {}),
        ("gatewayClient", Relation::GatewayClient {}),
        (
            "connection",
            Relation::Connection {
                connection: connection(),
            },
        ),
        (
            "site",
            Relation::Site {
                connection: connection(),
            },
        ),
        (
            "edge",
            Relation::Edge {
                connection: connection(),
            },
        ),
        (
            "circuitGateway",
            Relation::CircuitGateway {
                connection: connection(),
            },
        ),
        (
            "circuitClient",
            Relation::CircuitClient {
                connection: connection(),
            },
        ),
        ("otherGateway", Relation::OtherGateway {}),
    ];
    every_variant!(
        Relation {
            VnetLocal,
            Peering,
            Gateway,
            GatewayClient,
            Connection,
            Site,
            Edge,
            CircuitGateway,
            CircuitClient,
            OtherGateway
        },
        relations.iter().map(|(_, relation)| relation)
    );
    relations
}

#[test]
fn relations_of_links() {
    golden!().cases("relation", &relations());
}

fn full_link() -> Link {
    Link {
        peer: agent("spoke-vm"),
        public_key: PublicKey([3; 32]),
        preshared_key: Some(PresharedKey([4; 32])),
        quic: Some(KeyPin([5; 32])),
        transport: Transport::Quic,
        endpoint: Some(at("192.0.2.7:51820")),
        quic_endpoint: Some(at("[2001:db8::7]:443")),
        peer_lanes: 4,
        many_routes: false,
        always_on: true,
        initiator: true,
        relation: Relation::Peering {
            peering: id("virtualNetworks/hub/virtualNetworkPeerings/to-spoke"),
        },
        sources: vec![net("10.3.0.4/32"), net("fd00:3::4/128")],
        foreign: ForeignSources::OutsideOwnSpace,
        arrivals: vec![Arrival {
            source: net("0.0.0.0/0"),
            destination: net("10.9.0.0/16"),
            nic: 0,
        }],
        monitored: true,
        third_party: true,
        dpd_timeout: Some(45),
    }
}

fn minimal_link() -> Link {
    Link {
        peer: agent("hub-vm2"),
        public_key: PublicKey([6; 32]),
        preshared_key: None,
        quic: None,
        transport: Transport::Automatic,
        endpoint: None,
        quic_endpoint: None,
        peer_lanes: 1,
        many_routes: false,
        always_on: false,
        initiator: false,
        relation: Relation::VnetLocal {},
        sources: vec![],
        foreign: ForeignSources::None,
        arrivals: Vec::new(),
        monitored: false,
        third_party: false,
        dpd_timeout: None,
    }
}

#[test]
fn links() {
    golden!().cases("link", &[("full", full_link()), ("minimal", minimal_link())]);
}

fn routes() -> Vec<EffectiveRoute> {
    let peering = || id("virtualNetworks/hub/virtualNetworkPeerings/to-spoke");
    let hops = [
        NextHop::VnetLocal {},
        NextHop::VnetPeering { peering: peering() },
        NextHop::VnetGlobalPeering { peering: peering() },
        NextHop::VirtualNetworkGateway {
            gateways: vec![hop()],
            spread: true,
        },
        NextHop::VirtualNetworkGateway {
            gateways: vec![],
            spread: false,
        },
        NextHop::VirtualAppliance {
            address: ip("10.1.0.9"),
        },
        NextHop::Internet {},
        NextHop::None {},
    ];
    every_variant!(
        NextHop {
            VnetLocal,
            VnetPeering,
            VnetGlobalPeering,
            VirtualNetworkGateway,
            VirtualAppliance,
            Internet,
            None
        },
        &hops
    );
    let route = |next_hop| EffectiveRoute {
        name: None,
        source: RouteSource::Default,
        state: RouteState::Active,
        prefix: net("10.0.0.0/8"),
        next_hop,
    };
    let mut routes: Vec<_> = hops.into_iter().map(route).collect();
    routes.push(EffectiveRoute {
        name: Some("to-appliance".into()),
        source: RouteSource::User,
        state: RouteState::Invalid,
        prefix: net("fd00::/8"),
        next_hop: NextHop::None {},
    });
    routes
}

#[test]
fn effective_routes() {
    golden!().document("effective_routes", &routes());
}

fn spaces() -> Vec<Space> {
    let kinds = [
        SpaceKind::Local {},
        SpaceKind::Peered {
            peering: id("virtualNetworks/hub/virtualNetworkPeerings/to-spoke"),
            allow_access: true,
            allow_forwarded: false,
        },
        SpaceKind::GatewayClient {},
    ];
    every_variant!(
        SpaceKind {
            Local,
            Peered,
            GatewayClient
        },
        &kinds
    );
    let owner = |ip_forwarding| Owner {
        prefix: net("10.1.0.4/32"),
        agent: agent("hub-vm"),
        ip_forwarding,
    };
    let space = |kind| Space {
        vnet: id("virtualNetworks/hub"),
        kind,
        prefixes: vec![net("10.1.0.0/16")],
        owners: vec![owner(true), owner(false)],
    };
    kinds.into_iter().map(space).collect()
}

#[test]
fn spaces_of_every_kind() {
    golden!().document("spaces", &spaces());
}

fn subnet(isolated: bool) -> Subnet {
    Subnet {
        id: id("virtualNetworks/hub/subnets/default"),
        prefixes: vec![net("10.1.0.0/24"), net("fd00:1::/64")],
        routes: routes(),
        isolated,
    }
}

/// A group with a rule of every protocol, direction and access, and with every form of addresses. `group` is the name of
/// an application security group.
fn security_group(group: &str) -> SecurityGroup {
    let protocols = all_of!(RuleProtocol {
        Any,
        Tcp,
        Udp,
        Icmp,
        Esp,
        Ah
    });
    let directions = all_of!(Direction { Inbound, Outbound });
    let accesses = all_of!(Access { Allow, Deny });
    let addresses = [
        AddressMatch::Any,
        AddressMatch::Prefixes(vec![net("10.1.0.0/24"), net("fd00:1::4/128")]),
        AddressMatch::Sets(vec![group.to_owned()]),
        AddressMatch::Sets(vec!["VirtualNetwork".into()]),
    ];
    every_variant!(AddressMatch { Any, Prefixes, Sets }, &addresses);
    let ports = [
        vec![ALL_PORTS],
        vec![
            PortRange { first: 443, last: 443 },
            PortRange {
                first: 8000,
                last: 8080,
            },
        ],
    ];
    let kinds = directions.into_iter().cycle().zip(accesses.into_iter().cycle());
    let kinds = protocols.into_iter().zip(kinds).enumerate();
    let rule = |((n, (protocol, (direction, access))), priority): ((usize, _), u16)| SecurityRule {
        name: format!("securityRules/r{n}"),
        priority,
        direction,
        access,
        protocol,
        source: addresses[n % 4].clone(),
        source_ports: ports[n % 2].clone(),
        destination: addresses[(n + 1) % 4].clone(),
        destination_ports: ports[(n + 1) % 2].clone(),
    };
    SecurityGroup {
        id: id("networkSecurityGroups/rules"),
        rules: kinds.zip(100..).map(rule).collect(),
    }
}

fn flow_logs() -> FlowLogs {
    let formats = all_of!(FlowLogFormat {
        Group1,
        Group2,
        Network4
    });
    let vm = id("networkInterfaces/vm");
    let logs = formats.into_iter().zip(1..).map(|(format, n)| FlowLog {
        id: id(&format!("networkWatchers/w/flowLogs/{n}")),
        guid: format!("00000000-0000-4000-8000-00000000000{n}"),
        target: id("virtualNetworks/hub"),
        format,
        nics: vec![vm.clone()],
    });
    FlowLogs {
        logs: logs.collect(),
        nics: vec![LoggedNic {
            id: vm.clone(),
            mac: "02DEADBEEF01".to_owned(),
        }],
        groups: vec![LoggedGroup {
            id: id("networkSecurityGroups/rules"),
            guid: "00000000-0000-4000-8000-000000000009".to_owned(),
        }],
    }
}

fn security() -> Security {
    let name = "group".to_owned();
    let group = security_group(&name);
    let nic = |tail: &str, prefixes: &[&str], subnet_group, nic_group| SecuredNic {
        id: id(tail),
        prefixes: prefixes.iter().map(|p| net(p)).collect(),
        subnet: id("virtualNetworks/hub/subnets/default"),
        subnet_group,
        nic_group,
    };
    Security {
        nics: vec![
            nic(
                "networkInterfaces/vm",
                &["10.1.0.4/32", "fd00:1::4/128"],
                Some(group.id.clone()),
                Some(group.id.clone()),
            ),
            nic("virtualNetworks/hub/subnets/served", &["10.1.7.0/24"], None, None),
        ],
        groups: vec![group],
        application_groups: vec![ApplicationGroup {
            name,
            addresses: vec![ip("10.1.0.4"), ip("fd00:1::4")],
        }],
        access_off: AccessOff::TagOnly,
        flow_timeout_minutes: 30,
        reevaluate: true,
        flow_logs: Some(flow_logs()),
    }
}

#[test]
fn security_of_agents() {
    let minimal = Security {
        groups: vec![],
        application_groups: vec![],
        nics: vec![],
        access_off: AccessOff::Block,
        flow_timeout_minutes: 4,
        reevaluate: false,
        flow_logs: None,
    };
    golden!().document("access_off", &all_of!(AccessOff { Block, TagOnly }));
    golden!().cases("security", &[("full", security()), ("minimal", minimal)]);
}

/// Agents and controllers of later versions must know the features under these names.
#[test]
fn features_of_configurations() {
    let features = all_of!(Feature {
        SecurityGroups,
        Reevaluate,
        DevicePerNic,
        ManyRoutes,
        LoadBalancers,
        ConfigDelta,
        ConnectProbe,
        FlowLogs,
        PacketCapture,
        Limits,
        FlowLogTail
    });
    assert_eq!(features, Feature::ALL);
    let names: Vec<&str> = features.into_iter().map(Feature::name).collect();
    golden!().written("features", &[("features", names)]);
}

fn health_probe(with_path: bool) -> HealthProbe {
    let protocols = all_of!(ProbeProtocol { Tcp, Http, Https });
    HealthProbe {
        id: id("loadBalancers/lb/probes/probe"),
        protocol: protocols[usize::from(with_path)],
        port: 8080,
        path: if with_path { "/health".into() } else { String::new() },
        interval: 5,
        threshold: 2,
        all_up_when_all_down: with_path,
    }
}

fn front_end() -> FrontEnd {
    let back_ends = vec!["10.1.0.4".parse().unwrap(), "10.1.0.6".parse().unwrap()];
    let decided: BTreeMap<IpAddr, bool> = back_ends.iter().copied().zip([true, false]).collect();
    let protocols = all_of!(BalancedProtocol { Tcp, Udp, All });
    let distributions = all_of!(Distribution {
        Default,
        SourceIP,
        SourceIPProtocol
    });
    let rules = protocols.into_iter().zip(distributions).zip(0u16..);
    let rules = rules.map(|((protocol, distribution), n)| BalancingRule {
        id: id(&format!("loadBalancers/lb/loadBalancingRules/{n}")),
        protocol,
        port: if n == 2 { 0 } else { 80 },
        back_end_port: if n == 2 { 0 } else { 8080 },
        distribution,
        floating_ip: n == 1,
        idle_timeout_minutes: 4,
        tcp_reset: n == 0,
        back_ends: back_ends.clone(),
        probe: (n < 2).then(|| health_probe(n == 1)),
        decided: if n == 0 { decided.clone() } else { BTreeMap::new() },
        ends_flows: n == 0,
    });
    FrontEnd {
        id: id("loadBalancers/lb/frontendIPConfigurations/front"),
        vnet: id("virtualNetworks/hub"),
        address: "10.1.0.36".parse().unwrap(),
        rules: rules.collect(),
    }
}

/// The limits of a VM and of a VPN gateway.
fn limits() -> (Limits, Limits) {
    let vm = Limits {
        nics: vec![NicBandwidth {
            nic: id("networkInterfaces/vm"),
            outbound: 50,
        }],
        tunnels: None,
        flows_of_nic: Some(1000),
    };
    let gateway = Limits {
        tunnels: Some(325),
        ..Limits::default()
    };
    (vm, gateway)
}

#[test]
fn limits_of_agents() {
    let (vm, gateway) = limits();
    golden!().cases("limits", &[("vm", vm), ("gateway", gateway)]);
}

#[test]
fn agent_configurations() {
    let full = AgentConfig {
        agent: agent("hub-vm"),
        vnet: id("virtualNetworks/hub"),
        address_space: vec![net("10.1.0.0/16"), net("fd00:1::/48")],
        mtu: 1400,
        probes: Probes {
            interval: 200,
            misses: 4,
            answers: 5,
            hold: 6000,
        },
        role: super::role::full_vm(),
        subnets: vec![subnet(true), subnet(false)],
        spaces: spaces(),
        links: vec![minimal_link(), full_link()],
        security: Some(security()),
        front_ends: vec![front_end()],
        limits: Some(limits().0),
    };
    AgentConfig::from_bytes(&full.to_bytes()).unwrap();
    let minimal = AgentConfig {
        agent: agent("hub-vm"),
        vnet: id("virtualNetworks/hub"),
        address_space: vec![],
        mtu: 1420,
        probes: Probes::default(),
        role: Role::Vm {
            nics: vec![],
            served: vec![],
            gateways: vec![],
        },
        subnets: vec![],
        spaces: vec![],
        links: vec![],
        security: None,
        front_ends: Vec::new(),
        limits: None,
    };
    // The digests record the order of fields too. A changed digest would make the controller send each configuration
    // again.
    let digests: Vec<_> = [&full, &minimal]
        .map(|config| tombolo_proto::config::digest(&config.to_bytes()))
        .into();
    golden!().cases("agent_config", &[("full", full), ("minimal", minimal)]);
    golden!().document("agent_config_digests", &digests);
}
