//! Golden files of manifests with networks, peerings, route tables and network interfaces.

use std::collections::BTreeMap;
use tombolo_client::manifest::{
    Document, FlowLog, Named, NetworkInterface, NetworkSecurityGroup, NextHopType, NicIpConfiguration, Peering,
    PlainResource, Prefix, PublicIpAddress, Route, RouteTable, RuleAddress, RulePorts, SecurityRule, Subnet,
    VirtualNetwork,
};
use tombolo_golden::{all_of, golden};
use tombolo_proto::config::{Access, Direction, RuleProtocol, Transport};
use tombolo_proto::fabric::{AssertedTraffic, Assertion, Protocol};

/// Parses a prefix. Panics if the text is none.
pub(super) fn prefix(text: &str) -> Prefix {
    Prefix(text.parse().unwrap())
}

/// Items by name, in this order.
pub(super) fn named<T>(items: impl IntoIterator<Item = (&'static str, T)>) -> Named<T> {
    items.into_iter().map(|(name, item)| (name.to_owned(), item)).collect()
}

/// The tags of every resource that has tags here.
pub(super) fn tags() -> BTreeMap<String, String> {
    BTreeMap::from([("owner".into(), "net".into())])
}

fn vnet() -> VirtualNetwork {
    let one = Subnet {
        address_prefix: Some(prefix("10.1.0.0/24")),
        address_prefixes: vec![],
        route_table: Some("table".into()),
        network_security_group: Some("web".into()),
    };
    let several = Subnet {
        address_prefix: None,
        address_prefixes: vec![prefix("10.1.1.0/24"), prefix("fd00:1::/64")],
        route_table: None,
        network_security_group: None,
    };
    let peering = Peering {
        remote_virtual_network: "spoke".into(),
        allow_virtual_network_access: false,
        allow_forwarded_traffic: true,
        allow_gateway_transit: true,
        use_remote_gateways: true,
        do_not_verify_remote_gateways: true,
        transport: Transport::WireGuard,
    };
    VirtualNetwork {
        location: Some("region2".into()),
        tags: tags(),
        address_space: vec![prefix("10.1.0.0/16"), prefix("fd00:1::/48")],
        subnets: named([("one", one), ("several", several)]),
        peerings: named([("to-spoke", peering)]),
    }
}

fn table() -> RouteTable {
    let types = all_of!(NextHopType {
        VirtualAppliance,
        VirtualNetworkGateway,
        VnetLocal,
        Internet,
        None
    });
    let names = ["appliance", "gateway", "local", "internet", "none"];
    let route = |(name, next_hop_type): (&'static str, NextHopType)| {
        let route = Route {
            address_prefix: prefix("10.0.0.0/8"),
            next_hop_type,
            next_hop_ip_address: (name == "appliance").then(|| "10.1.0.9".parse().unwrap()),
        };
        (name, route)
    };
    RouteTable {
        location: Some("region2".into()),
        tags: tags(),
        disable_bgp_route_propagation: true,
        routes: named(names.into_iter().zip(types).map(route)),
    }
}

fn interfaces() -> Named<NetworkInterface> {
    let simple = NetworkInterface {
        location: Some("region2".into()),
        tags: tags(),
        subnet: Some("hub/one".into()),
        private_ip_address: Some("10.1.0.4".parse().unwrap()),
        public_ip_address: Some("public".into()),
        ip_configurations: Named::default(),
        enable_ip_forwarding: true,
        network_security_group: Some("web".into()),
        application_security_groups: vec!["group".into(), "other".into()],
        load_balancer_pools: vec!["full/interfaces".into()],
        inbound_nat_rules: vec!["full/ssh".into()],
    };
    let configuration = |full: bool| NicIpConfiguration {
        subnet: "hub/several".into(),
        private_ip_address: full.then(|| "10.1.1.4".parse().unwrap()),
        public_ip_address: full.then(|| "public".into()),
        load_balancer_pools: full.then(|| "full/interfaces".into()).into_iter().collect(),
        inbound_nat_rules: full.then(|| "full/ssh".into()).into_iter().collect(),
    };
    let several = NetworkInterface {
        location: None,
        tags: BTreeMap::new(),
        subnet: None,
        private_ip_address: None,
        public_ip_address: None,
        ip_configurations: named([("full", configuration(true)), ("minimal", configuration(false))]),
        enable_ip_forwarding: false,
        network_security_group: None,
        application_security_groups: vec![],
        load_balancer_pools: vec![],
        inbound_nat_rules: vec![],
    };
    named([("simple", simple), ("several", several)])
}

fn public() -> PublicIpAddress {
    PublicIpAddress {
        location: Some("region2".into()),
        tags: tags(),
        ip_address: Some("192.0.2.9".parse().unwrap()),
    }
}

fn plain() -> PlainResource {
    PlainResource {
        location: Some("region2".into()),
        tags: tags(),
    }
}

/// A rule with every protocol, direction and access, and with each form of addresses and ports.
fn security_group() -> NetworkSecurityGroup {
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
    let addresses = |texts: &[&str]| texts.iter().map(|t| RuleAddress((*t).into())).collect::<Vec<_>>();
    let ports = |texts: &[&str]| texts.iter().map(|t| RulePorts((*t).into())).collect::<Vec<_>>();
    let bare = |priority, protocol, direction, access| SecurityRule {
        description: None,
        priority,
        direction,
        access,
        protocol,
        source_address_prefix: None,
        source_address_prefixes: vec![],
        source_application_security_groups: vec![],
        source_port_range: None,
        source_port_ranges: vec![],
        destination_address_prefix: None,
        destination_address_prefixes: vec![],
        destination_application_security_groups: vec![],
        destination_port_range: ports(&["443"]).pop(),
        destination_port_ranges: vec![],
    };
    let kinds = protocols
        .into_iter()
        .zip(directions.into_iter().cycle())
        .zip(accesses.into_iter().cycle());
    let names = ["any", "tcp", "udp", "icmp", "esp", "ah"];
    let rules = names.into_iter().zip(kinds).zip(100..).map(|((name, kind), priority)| {
        let ((protocol, direction), access) = kind;
        (name, bare(priority, protocol, direction, access))
    });
    let singular = SecurityRule {
        description: Some("text".into()),
        source_address_prefix: addresses(&["VirtualNetwork"]).pop(),
        source_port_range: ports(&["1024-65535"]).pop(),
        destination_address_prefix: addresses(&["10.1.0.0/24"]).pop(),
        destination_port_range: ports(&["*"]).pop(),
        ..bare(200, RuleProtocol::Tcp, Direction::Inbound, Access::Allow)
    };
    let plural = SecurityRule {
        source_address_prefixes: addresses(&["10.1.0.4", "10.1.0.8-10.1.0.9"]),
        source_port_ranges: ports(&["53", "1024-65535"]),
        destination_application_security_groups: vec!["group".into()],
        destination_port_range: None,
        destination_port_ranges: ports(&["80", "8000-8080"]),
        ..bare(201, RuleProtocol::Udp, Direction::Inbound, Access::Allow)
    };
    let reversed = SecurityRule {
        source_application_security_groups: vec!["group".into(), "other".into()],
        destination_address_prefixes: addresses(&["fd00:1::/64"]),
        ..bare(202, RuleProtocol::Udp, Direction::Inbound, Access::Deny)
    };
    NetworkSecurityGroup {
        location: Some("region2".into()),
        tags: tags(),
        rules: named(rules.chain([("singular", singular), ("plural", plural), ("reversed", reversed)])),
    }
}

fn flow_logs() -> Named<FlowLog> {
    let full = FlowLog {
        location: Some("region1".into()),
        tags: tags(),
        network_security_group: Some("web".into()),
        virtual_network: Some("hub".into()),
        subnet: Some("hub/workload".into()),
        network_interface: Some("nic".into()),
        enabled: Some(false),
        format_version: Some(1),
        storage_account: Some("/subscriptions/s/logs".into()),
    };
    named([("full", full), ("minimal", FlowLog::default())])
}

#[test]
fn declarative_files() {
    let full = Document {
        resource_group: Some("lab".into()),
        location: Some("region1".into()),
        virtual_networks: named([("hub", vnet())]),
        route_tables: named([("table", table())]),
        network_interfaces: interfaces(),
        public_ip_addresses: named([("public", public())]),
        virtual_network_gateways: super::gateways::gateways(),
        connections: super::gateways::connections(),
        local_network_gateways: super::gateways::sites(),
        express_route_circuits: super::gateways::circuits(),
        application_security_groups: named([("group", plain())]),
        network_security_groups: named([("web", security_group())]),
        load_balancers: super::balancers::balancers(),
        flow_logs: flow_logs(),
        assertions: vec![Assertion::Never(AssertedTraffic {
            from: "spoke-a".into(),
            to: "spoke-b".into(),
            protocol: Some(Protocol::Tcp),
            ports: vec!["22".into(), "8000-8080".into()],
        })],
    };
    golden!().cases("manifest", &[("full", full), ("minimal", Document::default())]);
}

/// Documents that omit every property that has a default can be read, and always expand to the same bodies.
#[test]
fn declarative_files_without_any_option() {
    let text = r#"{
        "virtualNetworks": {"v": {"addressSpace": ["10.1.0.0/16"], "subnets": {"s": {}},
            "peerings": {"p": {"remoteVirtualNetwork": "w"}}}},
        "routeTables": {"t": {"routes": {"r": {"addressPrefix": "10.0.0.0/8", "nextHopType": "None"}}}},
        "networkInterfaces": {"n": {"ipConfigurations": {"i": {"subnet": "v/s"}}}},
        "publicIPAddresses": {"a": {}},
        "applicationSecurityGroups": {"g": {}},
        "networkSecurityGroups": {"g": {}, "h": {"rules": {"r": {"priority": 100, "direction": "Inbound", "access": "Deny"}}}},
        "loadBalancers": {"b": {}, "c": {
            "frontEnds": {"f": {"subnet": "v/s"}}, "pools": {"p": {}}, "probes": {"t": {"protocol": "Tcp", "port": 80}},
            "rules": {"r": {"protocol": "Tcp", "frontEndPort": 80}, "all": {"protocol": "All"},
                "azure": {"protocol": "Tcp", "frontendPort": 81, "backendPort": 8081}},
            "inboundNatRules": {"n": {"protocol": "Tcp", "frontEndPort": 22}}}},
        "virtualNetworkGateways": {"g": {"virtualNetwork": "v", "ipConfigurations": {"i": {}}}},
        "connections": {"c": {"virtualNetworkGateway1": "g", "peer": "e"}},
        "localNetworkGateways": {"l": {}},
        "expressRouteCircuits": {"e": {"privatePeering":
            {"peerAsn": 65030, "primary": "172.16.1.0/30", "secondary": "172.16.1.4/30"}}}
    }"#;
    let read: Document = serde_json::from_str(text).unwrap();
    golden!().document("manifest_defaults", &read);
}
