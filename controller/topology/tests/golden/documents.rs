//! The keys of all documents in a recorded store, and the body that the REST API shows for each resource in it.

use super::{GROUP, etag, fabric, hybrid, id, ip, load_balancer, net, network};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use tombolo_golden::golden;
use tombolo_proto::config::GatewayKind;
use tombolo_topology::path::ArmPath;
use tombolo_topology::topology::{AgentStatuses, Topology};

/// A topology with at least one resource of every kind.
pub(super) fn topology() -> Topology {
    let group = network::group();
    let (vnet, nic) = (network::vnet(), network::nic());
    let (public, table) = (network::public_ip(), network::route_table());
    let balancer = load_balancer::load_balancer();
    let flow_log = network::flow_log();
    let application_group = network::application_security_group();
    let security_group = network::network_security_group();
    let gateways = [("Vpn", GatewayKind::Vpn), ("Express", GatewayKind::ExpressRoute)];
    let gateways = gateways.map(|(name, kind)| hybrid::gateway(name, kind));
    let connections = hybrid::connections().into_iter().map(|(_, c)| c);
    let (site, circuit) = (hybrid::site(), hybrid::circuit());
    let agents = fabric::agents().into_iter().map(|(_, a)| a);
    let token = fabric::token();
    Topology {
        resource_groups: [(group.id.clone(), Arc::new(group))].into(),
        vnets: [(vnet.envelope.id.clone(), Arc::new(vnet))].into(),
        nics: [(nic.envelope.id.clone(), Arc::new(nic))].into(),
        load_balancers: [(balancer.envelope.id.clone(), Arc::new(balancer))].into(),
        public_ips: [(public.envelope.id.clone(), Arc::new(public))].into(),
        route_tables: [(table.envelope.id.clone(), Arc::new(table))].into(),
        gateways: gateways.map(|g| (g.envelope.id.clone(), Arc::new(g))).into(),
        connections: connections.map(|c| (c.envelope.id.clone(), Arc::new(c))).collect(),
        local_gateways: [(site.envelope.id.clone(), Arc::new(site))].into(),
        circuits: [(circuit.envelope.id.clone(), Arc::new(circuit))].into(),
        network_security_groups: [(security_group.envelope.id.clone(), Arc::new(security_group))].into(),
        application_security_groups: [(application_group.envelope.id.clone(), Arc::new(application_group))].into(),
        flow_logs: [(flow_log.envelope.id.clone(), Arc::new(flow_log))].into(),
        agents: agents.map(|a| (a.id.clone(), Arc::new(a))).collect(),
        tokens: [(token.id.clone(), Arc::new(token))].into(),
        settings: Arc::new(fabric::settings()),
    }
}

#[test]
fn keys_of_the_store() {
    let topology = topology();
    let documents = topology.documents_since(&Topology::default());
    let keys: Vec<&String> = documents.iter().map(|d| &d.key).collect();
    golden!().written("store_keys", &[("keys", keys)]);

    let stored = documents.iter().map(|d| (&*d.key, d.value.as_deref().unwrap()));
    let read = Topology::from_documents(stored).unwrap();
    assert_eq!(read.documents_since(&topology), []);
    assert_eq!(topology.documents_since(&read), []);
}

/// The body that GET returns for each kind of item.
#[test]
fn views_of_every_resource() {
    let topology = topology();
    let live = AgentStatuses::default();
    let arm = |tail: &str| id(tail).as_str().to_owned();
    let paths = [
        ("resourceGroup", GROUP.to_owned()),
        ("virtualNetwork", arm("virtualNetworks/Hub")),
        ("subnet", arm("virtualNetworks/Hub/subnets/default")),
        ("peering", arm("virtualNetworks/Hub/virtualNetworkPeerings/to-1")),
        ("networkInterface", arm("networkInterfaces/Vm")),
        ("loadBalancer", arm("loadBalancers/Balancer")),
        ("frontEnd", arm("loadBalancers/Balancer/frontendIPConfigurations/f0")),
        ("backendPool", arm("loadBalancers/Balancer/backendAddressPools/Nics")),
        ("loadBalancingRule", arm("loadBalancers/Balancer/loadBalancingRules/r0")),
        ("probe", arm("loadBalancers/Balancer/probes/p1")),
        ("inboundNatRule", arm("loadBalancers/Balancer/inboundNatRules/Ssh")),
        ("publicIPAddress", arm("publicIPAddresses/Public")),
        ("routeTable", arm("routeTables/Table")),
        ("route", arm("routeTables/Table/routes/r0")),
        ("vpnGateway", arm("virtualNetworkGateways/Vpn")),
        ("expressRouteGateway", arm("virtualNetworkGateways/Express")),
        ("vnetConnection", arm("connections/vnet")),
        ("siteConnection", arm("connections/site")),
        ("circuitConnection", arm("connections/circuit")),
        ("localNetworkGateway", arm("localNetworkGateways/Site")),
        ("circuit", arm("expressRouteCircuits/Circuit")),
        (
            "circuitPeering",
            arm("expressRouteCircuits/Circuit/peerings/AzurePrivatePeering"),
        ),
        ("applicationSecurityGroup", arm("applicationSecurityGroups/Group")),
        ("networkSecurityGroup", arm("networkSecurityGroups/Rules")),
        ("securityRule", arm("networkSecurityGroups/Rules/securityRules/r1")),
        (
            "defaultSecurityRule",
            arm("networkSecurityGroups/Rules/defaultSecurityRules/DenyAllInBound"),
        ),
        ("flowLog", network::FLOW_LOG.to_owned()),
        (
            "virtualMachine",
            format!("{GROUP}/providers/Microsoft.Compute/virtualMachines/Vm"),
        ),
    ];
    let view = |(name, path): &(&'static str, String)| {
        let view = topology.view(&ArmPath::parse(path).unwrap(), &live);
        (*name, view.unwrap_or_else(|| panic!("{path} is not there")))
    };
    golden!().written("views", &paths.iter().map(view).collect::<Vec<(&str, Value)>>());
}

/// Documents that earlier versions wrote lack fields that were added later. So a document is read even if it lacks
/// every field that has a default.
#[test]
fn documents_with_no_field_that_has_a_default() {
    let envelope = json!({"location": "region1", "etag": etag(), "resourceGuid": etag()});
    let document = |path: &str, more: Value| {
        let mut object: Map<String, Value> = envelope.as_object().unwrap().clone();
        object.insert("id".into(), json!(id(path)));
        object.extend(more.as_object().unwrap().clone());
        (format!("arm{}", id(path).key()), Value::Object(object).to_string())
    };
    let address = ip("10.1.255.4");
    let documents = [
        document(
            "virtualNetworks/Hub",
            json!({"addressSpace": [net("10.1.0.0/16")], "peerings": [],
                "subnets": [{"id": id("virtualNetworks/Hub/subnets/s"), "etag": etag(), "prefixes": [net("10.1.0.0/24")]}]}),
        ),
        document("publicIPAddresses/Public", json!({})),
        document(
            "networkInterfaces/Vm",
            json!({"enableIpForwarding": false, "ipConfigurations": [
                {"name": "one", "subnet": id("virtualNetworks/Hub/subnets/s"), "address": address, "isStatic": true}]}),
        ),
        document(
            "loadBalancers/Balancer",
            json!({"sku": "Basic", "frontendIPConfigurations": [{
                    "id": id("loadBalancers/Balancer/frontendIPConfigurations/f"), "etag": etag(),
                    "subnet": id("virtualNetworks/Hub/subnets/s"), "address": ip("10.1.0.9"), "isStatic": true}],
                "backendAddressPools": [{"id": id("loadBalancers/Balancer/backendAddressPools/p"), "etag": etag()}],
                "probes": [{"id": id("loadBalancers/Balancer/probes/p"), "etag": etag(), "protocol": "Tcp", "port": 80,
                    "intervalSeconds": 15, "threshold": 1, "number": 2}],
                "loadBalancingRules": [{"id": id("loadBalancers/Balancer/loadBalancingRules/r"), "etag": etag(),
                    "protocol": "Tcp", "frontEnd": id("loadBalancers/Balancer/frontendIPConfigurations/f"),
                    "frontEndPort": 80, "backEndPort": 80, "distribution": "Default", "idleTimeoutMinutes": 4,
                    "floatingIp": false, "tcpReset": false}],
                "inboundNatRules": []}),
        ),
        document(
            "networkSecurityGroups/Rules",
            json!({"securityRules": [{
                "id": id("networkSecurityGroups/Rules/securityRules/r"), "etag": etag(), "priority": 100,
                "direction": "Inbound", "access": "Deny", "protocol": "*",
                "source": {"addresses": {"prefix": "*"}, "ports": {"range": "*"}},
                "destination": {"addresses": {"prefix": "*"}, "ports": {"range": "*"}}}]}),
        ),
        document(
            "virtualNetworkGateways/Vpn",
            json!({"ipConfigurations": [], "vpnType": "RouteBased", "activeActive": false, "enableBgp": false,
                "asn": 65515, "bgpPeeringAddress": address, "sku": "VpnGw1"}),
        ),
        document(
            "connections/vnet",
            json!({"gateway1": id("virtualNetworkGateways/Vpn"), "gateway2": id("virtualNetworkGateways/Branch"),
                "routingWeight": 0, "enableBgp": false}),
        ),
        document("localNetworkGateways/Site", json!({"port": 51820, "addressSpace": []})),
        document("expressRouteCircuits/Circuit", json!({})),
    ];
    let read = Topology::from_documents(documents.iter().map(|(k, v)| (&**k, v.as_bytes()))).unwrap();
    let found = read.vnets.len()
        + read.public_ips.len()
        + read.nics.len()
        + read.load_balancers.len()
        + read.network_security_groups.len()
        + read.gateways.len()
        + read.connections.len()
        + read.local_gateways.len()
        + read.circuits.len();
    assert_eq!(found, documents.len());
}
