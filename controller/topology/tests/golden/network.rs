//! Recorded documents of groups, VNets, interfaces, public addresses and route tables.

use super::{GROUP, bare, echoed, envelope, etag, id, ip, net};
use serde_json::{Map, json};
use std::collections::BTreeMap;
use tombolo_golden::{all_of, every_variant, golden};
use tombolo_proto::config::{Access, Direction, RuleProtocol, Transport};
use tombolo_proto::id::ResourceId;
use tombolo_topology::resource::Envelope;
use tombolo_topology::resource::{
    ApplicationSecurityGroup, FlowLog, NetworkInterface, NetworkSecurityGroup, NicIpConfiguration, Peering,
    PeeringState, PublicIpAddress, ResourceGroup, Route, RouteTable, RuleAddresses, RulePorts, RuleSide, SecurityRule,
    Subnet, UserNextHop, VirtualNetwork,
};
use uuid::Uuid;

pub(super) fn group() -> ResourceGroup {
    ResourceGroup {
        id: ResourceId::new(GROUP),
        location: "region1".into(),
        tags: BTreeMap::from([("owner".into(), "net".into())]),
    }
}

pub(super) fn vnet() -> VirtualNetwork {
    let subnet = |name: &str, prefixes: &[&str]| Subnet {
        id: id(&format!("virtualNetworks/Hub/subnets/{name}")),
        etag: etag(),
        prefixes: prefixes.iter().map(|p| net(p)).collect(),
        lists_prefixes: false,
        route_table: Some(id("routeTables/Table")),
        network_security_group: Some(id("networkSecurityGroups/Rules")),
        echoed: echoed(json!({"privateEndpointNetworkPolicies": "Disabled"})),
    };
    let gateways = Subnet {
        id: id("virtualNetworks/Hub/subnets/GatewaySubnet"),
        etag: etag(),
        prefixes: vec![net("10.1.255.0/24")],
        lists_prefixes: false,
        route_table: None,
        network_security_group: None,
        echoed: Map::new(),
    };
    let states = all_of!(PeeringState {
        Initiated,
        Connected,
        Disconnected
    });
    let transports = [Transport::Automatic, Transport::WireGuard, Transport::Quic];
    let half = |(n, (state, transport)): (usize, (PeeringState, Transport))| Peering {
        id: id(&format!("virtualNetworks/Hub/virtualNetworkPeerings/to-{n}")),
        etag: etag(),
        resource_guid: Uuid::from_u128(3),
        remote_vnet: id(&format!("virtualNetworks/Spoke{n}")),
        allow_virtual_network_access: true,
        allow_forwarded_traffic: true,
        allow_gateway_transit: true,
        use_remote_gateways: false,
        do_not_verify_remote_gateways: false,
        transport,
        state,
        remote_address_space: vec![net("10.2.0.0/16")],
        local_address_space: vec![net("10.1.0.0/16")],
    };
    VirtualNetwork {
        envelope: envelope("virtualNetworks/Hub"),
        address_space: vec![net("10.1.0.0/16"), net("fd00:1::/48")],
        subnets: vec![subnet("default", &["10.1.0.0/24", "fd00:1::/64"]), gateways],
        peerings: states.into_iter().zip(transports).enumerate().map(half).collect(),
    }
}

pub(super) fn nic() -> NetworkInterface {
    let configuration = |name: &str, address: &str, public: Option<ResourceId>| NicIpConfiguration {
        name: name.into(),
        subnet: id("virtualNetworks/Hub/subnets/default"),
        address: ip(address),
        is_static: public.is_some(),
        application_security_groups: public.iter().map(|_| id("applicationSecurityGroups/Group")).collect(),
        load_balancer_pools: public
            .iter()
            .map(|_| id("loadBalancers/Balancer/backendAddressPools/Nics"))
            .collect(),
        inbound_nat_rules: public
            .iter()
            .map(|_| id("loadBalancers/Balancer/inboundNatRules/Ssh"))
            .collect(),
        public_ip_address: public,
    };
    NetworkInterface {
        envelope: envelope("networkInterfaces/Vm"),
        ip_configurations: vec![
            configuration("one", "10.1.0.4", Some(id("publicIPAddresses/Public"))),
            configuration("two", "fd00:1::4", None),
        ],
        enable_ip_forwarding: true,
        network_security_group: Some(id("networkSecurityGroups/Rules")),
    }
}

pub(super) fn public_ip() -> PublicIpAddress {
    PublicIpAddress {
        envelope: envelope("publicIPAddresses/Public"),
        ip_address: Some(ip("192.0.2.9")),
    }
}

pub(super) fn flow_log() -> FlowLog {
    FlowLog {
        envelope: Envelope {
            id: ResourceId::new(FLOW_LOG),
            ..envelope("")
        },
        target: id("networkSecurityGroups/Rules"),
        storage_id: "/subscriptions/s/resourceGroups/g/providers/Microsoft.Storage/storageAccounts/a".into(),
        enabled: true,
        version: 2,
        retention_days: 7,
        retention_enabled: true,
    }
}

/// The id of the flow log.
pub(super) const FLOW_LOG: &str = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/NetworkWatcherRG/providers/Microsoft.Network/networkWatchers/NetworkWatcher_region1/flowLogs/Log";

pub(super) fn application_security_group() -> ApplicationSecurityGroup {
    ApplicationSecurityGroup {
        envelope: envelope("applicationSecurityGroups/Group"),
    }
}

/// A group with a rule of every protocol, direction and access, and with every form of addresses and ports.
pub(super) fn network_security_group() -> NetworkSecurityGroup {
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
        RuleAddresses::Prefix("VirtualNetwork".into()),
        RuleAddresses::Prefixes(vec!["10.1.0.0/24".into(), "10.2.0.4-10.2.0.9".into()]),
        RuleAddresses::Groups(vec![id("applicationSecurityGroups/Group")]),
    ];
    every_variant!(
        RuleAddresses {
            Prefix,
            Prefixes,
            Groups
        },
        &addresses
    );
    let ports = [
        RulePorts::Range("*".into()),
        RulePorts::Ranges(vec!["443".into(), "8000-8080".into()]),
    ];
    every_variant!(RulePorts { Range, Ranges }, &ports);
    let side = |n: usize| RuleSide {
        addresses: addresses[n % addresses.len()].clone(),
        ports: ports[n % ports.len()].clone(),
    };
    let kinds = directions.into_iter().cycle().zip(accesses.into_iter().cycle());
    let kinds = protocols.into_iter().zip(kinds).enumerate();
    let rules = kinds
        .zip(100..)
        .map(|((n, (protocol, (direction, access))), priority)| SecurityRule {
            id: id(&format!("networkSecurityGroups/Rules/securityRules/r{n}")),
            etag: etag(),
            description: (n == 0).then(|| "text".into()),
            priority,
            direction,
            access,
            protocol,
            source: side(n),
            destination: side(n + 1),
        });
    NetworkSecurityGroup {
        envelope: envelope("networkSecurityGroups/Rules"),
        security_rules: rules.collect(),
    }
}

pub(super) fn route_table() -> RouteTable {
    let hops = vec![
        UserNextHop::VirtualAppliance {
            address: ip("10.1.0.9"),
        },
        UserNextHop::VirtualNetworkGateway,
        UserNextHop::VnetLocal,
        UserNextHop::Internet,
        UserNextHop::None,
    ];
    every_variant!(
        UserNextHop {
            VirtualAppliance,
            VirtualNetworkGateway,
            VnetLocal,
            Internet,
            None
        },
        &hops
    );
    let route = |(n, next_hop): (usize, UserNextHop)| Route {
        id: id(&format!("routeTables/Table/routes/r{n}")),
        etag: etag(),
        prefix: net(&format!("10.{n}.0.0/16")),
        next_hop,
    };
    RouteTable {
        envelope: envelope("routeTables/Table"),
        disable_bgp_route_propagation: true,
        routes: hops.into_iter().enumerate().map(route).collect(),
    }
}

#[test]
fn documents_of_networks() {
    let golden = golden!();
    let without_tags = ResourceGroup {
        id: ResourceId::new(GROUP),
        location: "region1".into(),
        tags: BTreeMap::new(),
    };
    golden.cases("resource_group", &[("full", group()), ("minimal", without_tags)]);
    let empty = VirtualNetwork {
        envelope: bare("virtualNetworks/Hub"),
        address_space: vec![],
        subnets: vec![],
        peerings: vec![],
    };
    golden.cases("virtual_network", &[("full", vnet()), ("minimal", empty)]);
    let empty = NetworkInterface {
        envelope: bare("networkInterfaces/Vm"),
        ip_configurations: vec![],
        enable_ip_forwarding: false,
        network_security_group: None,
    };
    golden.cases("network_interface", &[("full", nic()), ("minimal", empty)]);
    let empty = PublicIpAddress {
        envelope: bare("publicIPAddresses/Public"),
        ip_address: None,
    };
    golden.cases("public_ip_address", &[("full", public_ip()), ("minimal", empty)]);
    let empty = ApplicationSecurityGroup {
        envelope: bare("applicationSecurityGroups/Group"),
    };
    golden.cases(
        "application_security_group",
        &[("full", application_security_group()), ("minimal", empty)],
    );
    let empty = FlowLog {
        envelope: Envelope {
            id: ResourceId::new(FLOW_LOG),
            ..bare("")
        },
        target: id("virtualNetworks/Hub"),
        storage_id: "a".into(),
        enabled: false,
        version: 1,
        retention_days: 0,
        retention_enabled: false,
    };
    golden.cases("flow_log", &[("full", flow_log()), ("minimal", empty)]);
    let empty = NetworkSecurityGroup {
        envelope: bare("networkSecurityGroups/Rules"),
        security_rules: vec![],
    };
    golden.cases(
        "network_security_group",
        &[("full", network_security_group()), ("minimal", empty)],
    );
    let empty = RouteTable {
        envelope: bare("routeTables/Table"),
        disable_bgp_route_propagation: false,
        routes: vec![],
    };
    golden.cases("route_table", &[("full", route_table()), ("minimal", empty)]);
}
