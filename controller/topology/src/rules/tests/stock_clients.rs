//! Tests of requests and answers of stock clients of Azure: members that the clients read unconditionally, and requests
//! that Azure refuses too.

use super::{World, codes, connection_body, gateway_body, net, path, vm_id, with};
use crate::address_use;
use crate::change::{Change, Rejection};
use crate::resource::{Binding, Reach};
use serde_json::{Value, json};
use tombolo_proto::config::MAX_NICS;
use tombolo_proto::id::{AgentId, ResourceId};

/// A VNet `hub` in region1 and a VNet `far` in region2, each with a subnet `s`.
fn world() -> World {
    let mut w = World::new();
    w.vnet("hub", &["10.0.0.0/16", "fd00::/48"]).unwrap();
    w.subnet("hub", "s", "10.0.0.0/24").unwrap();
    let body = json!({"location": "region2", "properties": {"addressSpace": {"addressPrefixes": ["10.9.0.0/16"]}}});
    w.put(&net("virtualNetworks/far"), body).unwrap();
    w.subnet("far", "s", "10.9.0.0/24").unwrap();
    w
}

fn reference(tail: &str) -> Value {
    json!({"id": net(tail)})
}

/// The body of a NIC with one dynamic address in `subnet`, `vnet/subnets/name`. `more`: further properties.
fn nic_body(subnet: &str, more: Value) -> Value {
    let configuration = json!({"name": "c", "properties": {"subnet": reference(&format!("virtualNetworks/{subnet}"))}});
    json!({"location": "region1", "properties": with(json!({"ipConfigurations": [configuration]}), more)})
}

/// The code and the target of the only problem of a refusal.
fn only<T: std::fmt::Debug>(result: Result<T, Rejection>) -> (&'static str, String) {
    let refused = result.unwrap_err();
    assert_eq!(refused.problems.len(), 1, "{refused}");
    let problem = &refused.problems[0];
    (problem.code, problem.target.clone().unwrap_or_default())
}

#[test]
fn a_nic_has_every_object_and_list_that_clients_read() {
    let mut w = world();
    let shown = w.nic("n", "hub/subnets/s", None).unwrap();
    let properties = &shown["properties"];
    assert_eq!(
        properties["dnsSettings"],
        json!({"dnsServers": [], "appliedDnsServers": []})
    );
    for list in ["hostedWorkloads", "tapConfigurations"] {
        assert_eq!(properties[list], json!([]), "{list}");
    }
    let configuration = &properties["ipConfigurations"][0]["properties"];
    for list in [
        "applicationSecurityGroups",
        "loadBalancerBackendAddressPools",
        "loadBalancerInboundNatRules",
    ] {
        assert_eq!(configuration[list], json!([]), "{list}");
    }
    assert_eq!(w.put(&net("networkInterfaces/n"), shown.clone()).unwrap(), shown);
    let body = nic_body("hub/subnets/s", json!({"dnsSettings": {"dnsServers": ["10.0.0.9"]}}));
    let set = w.put(&net("networkInterfaces/n"), body).unwrap();
    assert_eq!(set["properties"]["dnsSettings"]["dnsServers"], json!(["10.0.0.9"]));
    assert_eq!(w.put(&net("networkInterfaces/n"), set.clone()).unwrap(), set);
    let subnet = w.get(&net("virtualNetworks/far/subnets/s"));
    for list in ["delegations", "serviceEndpoints", "ipConfigurations"] {
        assert_eq!(subnet["properties"][list], json!([]), "{list}");
    }
}

/// P1: NICs, gateways, route tables and security groups are in the region and subscription of their VNet. The refusal
/// names the property.
#[test]
fn p1_what_a_resource_uses_is_in_its_region_and_subscription() {
    let mut w = world();
    let refused = w.put(&net("networkInterfaces/n"), nic_body("far/subnets/s", json!({})));
    let at = "properties.ipConfigurations[0].properties.subnet.id".to_owned();
    assert_eq!(only(refused), ("InvalidResourceReference", at.clone()));
    w.subnet("far", "GatewaySubnet", "10.9.255.0/27").unwrap();
    let refused = w.put(&net("virtualNetworkGateways/far-gw"), gateway_body("far", json!({})));
    assert_eq!(only(refused), ("InvalidResourceReference", at));

    let there = json!({"location": "region2"});
    for kind in ["routeTables", "networkSecurityGroups", "applicationSecurityGroups"] {
        w.put(&net(&format!("{kind}/there")), there.clone()).unwrap();
    }
    for (name, kind) in [
        ("routeTable", "routeTables"),
        ("networkSecurityGroup", "networkSecurityGroups"),
    ] {
        let target = reference(&format!("{kind}/there"));
        let subnet = json!({"addressPrefix": "10.0.0.0/24", name: target});
        let refused = w.put(
            &net("virtualNetworks/hub/subnets/s"),
            json!({"properties": subnet.clone()}),
        );
        assert_eq!(
            only(refused),
            ("InvalidResourceReference", format!("properties.{name}.id"))
        );
        let vnet = json!({"location": "region1", "properties": {
            "addressSpace": {"addressPrefixes": ["10.8.0.0/16"]},
            "subnets": [{"name": "s", "properties": with(subnet, json!({"addressPrefix": "10.8.0.0/24"}))}],
        }});
        let refused = w.put(&net("virtualNetworks/new"), vnet);
        let at = format!("properties.subnets[0].properties.{name}.id");
        assert_eq!(only(refused), ("InvalidResourceReference", at));
    }
    let guarded = json!({"networkSecurityGroup": reference("networkSecurityGroups/there")});
    let refused = w.put(&net("networkInterfaces/n"), nic_body("hub/subnets/s", guarded));
    let at = "properties.networkSecurityGroup.id".to_owned();
    assert_eq!(only(refused), ("InvalidResourceReference", at));
    let mut member = nic_body("hub/subnets/s", json!({}));
    member["properties"]["ipConfigurations"][0]["properties"]["applicationSecurityGroups"] =
        json!([reference("applicationSecurityGroups/there")]);
    let refused = w.put(&net("networkInterfaces/n"), member);
    let at = "properties.ipConfigurations[0].properties.applicationSecurityGroups[0].id".to_owned();
    assert_eq!(only(refused), ("InvalidResourceReference", at));

    // The public address of a gateway or NIC, and the own gateway of a connection.
    w.put(&net("publicIPAddresses/there"), there).unwrap();
    let at = "properties.ipConfigurations[0].properties.publicIPAddress.id".to_owned();
    let public = |mut body: Value| {
        body["properties"]["ipConfigurations"][0]["properties"]["publicIPAddress"] =
            reference("publicIPAddresses/there");
        body
    };
    let refused = w.put(
        &net("networkInterfaces/n"),
        public(nic_body("hub/subnets/s", json!({}))),
    );
    assert_eq!(only(refused), ("InvalidResourceReference", at.clone()));
    w.gateway("hub", "10.0.255.0/27").unwrap();
    let refused = w.put(
        &net("virtualNetworkGateways/hub-gw"),
        public(gateway_body("hub", json!({}))),
    );
    assert_eq!(only(refused), ("InvalidResourceReference", at));
    let mut far = gateway_body("far", json!({}));
    far["location"] = json!("region2");
    w.put(&net("virtualNetworkGateways/far-gw"), far).unwrap();
    let at = "properties.virtualNetworkGateway1.id".to_owned();
    let refused = w.put(&net("connections/c"), connection_body("far", "hub", json!({})));
    assert_eq!(only(refused), ("InvalidResourceReference", at));
    w.put(&net("connections/c"), connection_body("hub", "far", json!({})))
        .unwrap();

    // A group of another subscription.
    let foreign = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/x";
    w.put(foreign, json!({"location": "region1"})).unwrap();
    let group = format!("{foreign}/providers/Microsoft.Network/networkSecurityGroups/g");
    w.put(&group, json!({"location": "region1"})).unwrap();
    let guarded = json!({"networkSecurityGroup": {"id": group}});
    let refused = w.put(&net("networkInterfaces/n"), nic_body("hub/subnets/s", guarded));
    assert_eq!(only(refused).0, "InvalidResourceReference");
    // A region that cannot be read is the only problem.
    let mut body = nic_body("hub/subnets/s", json!({}));
    body["location"] = json!("!");
    let refused = w.put(&net("networkInterfaces/n"), body);
    assert_eq!(
        only(refused),
        ("LocationNotAvailableForResourceType", "location".to_owned())
    );
}

#[test]
fn a_static_public_address_has_a_value_and_a_standard_one_is_static() {
    let mut w = world();
    let id = net("publicIPAddresses/p");
    let body = |sku: Value, properties: Value| json!({"location": "region1", "sku": sku, "properties": properties});
    let standard = || json!({"name": "standard"});
    let refused = w.put(&id, body(standard(), json!({"publicIPAllocationMethod": "Dynamic"})));
    let at = "properties.publicIPAllocationMethod".to_owned();
    assert_eq!(only(refused), ("StandardSkuPublicIPAddressesMustBeStatic", at));
    let odd = w.put(&id, body(json!({"name": "Gold"}), json!({})));
    assert_eq!(only(odd), ("InvalidRequestFormat", "sku.name".to_owned()));

    let first = w.put(&id, body(standard(), json!({}))).unwrap();
    assert_eq!(first["properties"]["publicIPAllocationMethod"], "Static");
    assert_eq!(first["properties"]["ipAddress"], "198.18.0.1");
    assert_eq!(first["sku"], json!({"name": "Standard", "tier": "Regional"}));
    assert_eq!(
        w.put(&id, first.clone()).unwrap(),
        first,
        "writing back changes nothing"
    );
    let again = w.put(&id, body(standard(), json!({}))).unwrap();
    assert_eq!(again["properties"]["ipAddress"], "198.18.0.1", "a static address stays");
    let second = w
        .put(&net("publicIPAddresses/q"), json!({"location": "region1"}))
        .unwrap();
    assert_eq!(second["properties"]["ipAddress"], "198.18.0.2");
    let six = body(standard(), json!({"publicIPAddressVersion": "ipv6"}));
    let six = w.put(&net("publicIPAddresses/six"), six).unwrap();
    assert_eq!(six["properties"]["ipAddress"], "2001:2::1");
    let dynamic = json!({"location": "region1", "properties": {"publicIPAllocationMethod": "Dynamic"}});
    let dynamic = w.put(&net("publicIPAddresses/basic"), dynamic).unwrap();
    assert_eq!(dynamic["sku"]["name"], "Basic");
    assert!(dynamic["properties"].get("ipAddress").is_none());
}

/// The public address of a gateway is the underlay address that its agent reports, unless the operator has set one.
#[test]
fn a_gateway_shows_the_addresses_of_its_tunnels() {
    let mut w = world();
    w.put(&net("publicIPAddresses/p"), json!({"location": "region1"}))
        .unwrap();
    w.subnet("hub", "GatewaySubnet", "10.0.255.0/27").unwrap();
    let instance = |public: Value| {
        gateway_body(
            "hub",
            json!({"ipConfigurations": [{"name": "default", "properties": with(
            json!({"subnet": reference("virtualNetworks/hub/subnets/GatewaySubnet")}), public)}]}),
        )
    };
    let id = net("virtualNetworkGateways/hub-gw");
    let with_public = || instance(json!({"publicIPAddress": reference("publicIPAddresses/p")}));
    let shown = w.put(&id, with_public()).unwrap();
    assert_eq!(
        shown["properties"]["bgpSettings"]["bgpPeeringAddresses"],
        json!([{
            "ipconfigurationId": format!("{id}/ipConfigurations/default"),
            "defaultBgpIpAddresses": ["10.0.255.30"],
            "customBgpIpAddresses": [],
            "tunnelIpAddresses": ["198.18.0.1"],
        }])
    );
    assert_eq!(
        w.put(&id, shown.clone()).unwrap(),
        shown,
        "writing back changes nothing"
    );
    let binding = Binding::Gateway {
        gateway: ResourceId::new(&*id),
        ip_configuration: "default".to_owned(),
    };
    w.join("gw", binding).unwrap();
    let tunnel = |w: &World| {
        let settings = w.get(&id)["properties"]["bgpSettings"].clone();
        settings["bgpPeeringAddresses"][0]["tunnelIpAddresses"].clone()
    };
    assert_eq!(tunnel(&w), json!(["192.0.2.1"]));
    let public = w.get(&net("publicIPAddresses/p"));
    assert_eq!(public["properties"]["ipAddress"], "192.0.2.1");
    // A client that writes the shown address back does not set it: if the agent reports another address later, that one
    // is shown.
    w.put(&net("publicIPAddresses/p"), public).unwrap();
    let moved = Change::SetReach {
        agent: AgentId::new("gw").unwrap(),
        reach: Reach::at(vec!["192.0.2.77:4500".parse().unwrap()]),
    };
    w.apply(&moved).unwrap();
    assert_eq!(tunnel(&w), json!(["192.0.2.77"]));
    let fixed = json!({"location": "region1", "properties": {"ipAddress": "203.0.113.5"}});
    w.put(&net("publicIPAddresses/p"), fixed).unwrap();
    assert_eq!(tunnel(&w), json!(["203.0.113.5"]));
    w.put(&id, instance(json!({}))).unwrap();
    assert_eq!(
        tunnel(&w),
        json!(["192.0.2.77"]),
        "without a public address, that of the agent"
    );
}

/// E3: the owner of a circuit creates keys; one connection may use each of them.
#[test]
fn e3_authorizations_of_a_circuit() {
    let mut w = world();
    w.circuit("er1", 30).unwrap();
    w.express_gateway("hub", "10.0.255.0/27").unwrap();
    let circuit = net("expressRouteCircuits/er1");
    let id = format!("{circuit}/authorizations/first");
    let made = w.put(&id, json!({})).unwrap();
    let key = made["properties"]["authorizationKey"].as_str().unwrap().to_owned();
    assert_eq!(made["properties"]["authorizationUseStatus"], "Available");
    assert_eq!(w.put(&id, made.clone()).unwrap(), made, "the key stays");
    let parent = w.get(&circuit);
    assert_eq!(parent["properties"]["authorizations"], json!([made]));
    assert_eq!(w.put(&circuit, parent.clone()).unwrap(), parent);
    w.circuit("er1", 30).unwrap();
    assert_eq!(w.get(&id), made, "a body without the list keeps it");

    let wrong = json!({"authorizationKey": "00000000-0000-0000-0000-00000000ffff"});
    let refused = w.link("c", "hub", "er1", wrong).unwrap_err();
    assert_eq!(refused.problems[0].code, "XCircuitAuthorizationNotFound");
    assert!(!refused.to_string().contains("ffff"), "{refused}");
    let linked = w.link("c", "hub", "er1", json!({"authorizationKey": key})).unwrap();
    assert!(
        !linked.to_string().contains(&key),
        "the connection does not show the key"
    );
    let used = w.get(&id);
    assert_eq!(used["properties"]["authorizationUseStatus"], "InUse");
    assert_eq!(used["properties"]["connectionResourceUri"], net("connections/c"));
    w.link("c", "hub", "er1", json!({})).unwrap();
    assert_eq!(w.get(&id), used, "a body without the key keeps it");
    assert_eq!(codes(w.delete(&id)), ["XCircuitAuthorizationInUse"]);
    let none = json!({"location": "region1", "properties": {"authorizations": []}});
    assert_eq!(codes(w.put(&circuit, none)), ["XCircuitAuthorizationInUse"]);
    w.vnet("near", &["10.8.0.0/16"]).unwrap();
    w.express_gateway("near", "10.8.255.0/27").unwrap();
    let taken = w.link("d", "near", "er1", json!({"authorizationKey": key}));
    assert_eq!(codes(taken), ["XCircuitAuthorizationInUse"]);
    w.delete(&net("connections/c")).unwrap();
    assert!(w.delete(&id).unwrap());
    assert!(!w.delete(&id).unwrap());
    let lost = format!("{}/authorizations/a", net("expressRouteCircuits/nowhere"));
    assert_eq!(codes(w.put(&lost, json!({}))), ["ParentResourceNotFound"]);
}

#[test]
fn a_tunnel_has_a_protocol_and_a_connection_to_a_circuit_none() {
    let mut w = World::new();
    for (vnet, n) in [("hub", 1), ("branch", 2)] {
        w.vnet(vnet, &[&format!("10.{n}.0.0/16")]).unwrap();
        w.gateway(vnet, &format!("10.{n}.255.0/27")).unwrap();
    }
    let id = net("connections/c");
    let shown = w.put(&id, connection_body("hub", "branch", json!({}))).unwrap();
    assert_eq!(shown["properties"]["connectionProtocol"], "IKEv2");
    assert_eq!(w.put(&id, shown.clone()).unwrap(), shown);
    let old = connection_body("hub", "branch", json!({"connectionProtocol": "ikev1"}));
    assert_eq!(w.put(&id, old).unwrap()["properties"]["connectionProtocol"], "IKEv1");
    let odd = w.put(
        &id,
        connection_body("hub", "branch", json!({"connectionProtocol": "L2TP"})),
    );
    assert_eq!(
        only(odd),
        ("InvalidRequestFormat", "properties.connectionProtocol".to_owned())
    );
    let key = w.put(
        &id,
        connection_body("hub", "branch", json!({"authorizationKey": "abc"})),
    );
    assert_eq!(only(key), ("XNotSupported", "properties.authorizationKey".to_owned()));
    w.circuit("er1", 30).unwrap();
    w.express_gateway("hub", "10.1.255.0/27").unwrap();
    let linked = w.link("er", "hub", "er1", json!({})).unwrap();
    assert!(linked["properties"].get("connectionProtocol").is_none());
}

#[test]
fn p33_dns_servers_are_addresses() {
    let mut w = world();
    let vnet = |servers: Value| {
        json!({"location": "region1", "properties": {
            "addressSpace": {"addressPrefixes": ["10.0.0.0/16", "fd00::/48"]}, "dhcpOptions": {"dnsServers": servers}}})
    };
    let hub = net("virtualNetworks/hub");
    for bad in ["not-an-ip", "10.0.0.0/24", "0.0.0.0", "AzureProvidedDNS"] {
        let refused = w.put(&hub, vnet(json!(["10.0.0.4", bad])));
        let at = "properties.dhcpOptions.dnsServers[1]".to_owned();
        assert_eq!(only(refused), ("InvalidIPAddressFormat", at), "{bad}");
    }
    let shown = w.put(&hub, vnet(json!(["10.0.0.4", "fd00::4"]))).unwrap();
    assert_eq!(
        shown["properties"]["dhcpOptions"],
        json!({"dnsServers": ["10.0.0.4", "fd00::4"]})
    );
    assert_eq!(w.put(&hub, shown.clone()).unwrap(), shown);
    let none = w.vnet("hub", &["10.0.0.0/16", "fd00::/48"]).unwrap();
    assert_eq!(none["properties"]["dhcpOptions"], json!({"dnsServers": []}));
    assert_eq!(w.put(&hub, none.clone()).unwrap(), none);
    let nic = |servers: Value| nic_body("hub/subnets/s", json!({"dnsSettings": {"dnsServers": servers}}));
    let id = net("networkInterfaces/n");
    let refused = w.put(&id, nic(json!(["x"])));
    let at = "properties.dnsSettings.dnsServers[0]".to_owned();
    assert_eq!(only(refused), ("InvalidIPAddressFormat", at));
    let wrong = w.put(&id, nic_body("hub/subnets/s", json!({"dnsSettings": 1})));
    assert_eq!(
        only(wrong),
        ("InvalidRequestFormat", "properties.dnsSettings".to_owned())
    );
    w.put(&id, nic(json!(["AzureProvidedDNS"]))).unwrap();
}

#[test]
fn p2_an_ipv6_subnet_is_a_64() {
    let mut w = world();
    for bad in ["fd00::/63", "fd00::/65", "fd00::/120", "fd00::/127"] {
        assert_eq!(codes(w.subnet("hub", "six", bad)), ["NetcfgInvalidSubnet"], "{bad}");
    }
    w.subnet("hub", "six", "fd00::/64").unwrap();
}

#[test]
fn no_nic_in_a_delegated_subnet() {
    let mut w = world();
    let delegated = json!({"properties": {"addressPrefix": "10.0.1.0/24", "delegations": [
        {"name": "d", "properties": {"serviceName": "Microsoft.Web/serverFarms"}}]}});
    let id = net("virtualNetworks/hub/subnets/web");
    w.put(&id, delegated.clone()).unwrap();
    assert_eq!(codes(w.nic("n", "hub/subnets/web", None)), ["XSubnetIsDelegated"]);
    w.subnet("hub", "web", "10.0.1.0/24").unwrap();
    w.nic("n", "hub/subnets/web", None).unwrap();
    assert_eq!(
        codes(w.put(&id, delegated)),
        ["SubnetDelegationsCannotChangeWhenSubnetUsedByResource"]
    );
}

#[test]
fn service_endpoints_have_a_service_and_a_state() {
    let mut w = world();
    let id = net("virtualNetworks/hub/subnets/s");
    let body =
        |endpoint: Value| json!({"properties": {"addressPrefix": "10.0.0.0/24", "serviceEndpoints": [endpoint]}});
    let shown = w.put(&id, body(json!({"service": "Microsoft.Storage"}))).unwrap();
    assert_eq!(
        shown["properties"]["serviceEndpoints"],
        json!([{"service": "Microsoft.Storage", "provisioningState": "Succeeded"}])
    );
    assert_eq!(w.put(&id, shown.clone()).unwrap(), shown);
    let at = "properties.serviceEndpoints[0].service".to_owned();
    assert_eq!(only(w.put(&id, body(json!({})))), ("InvalidRequestFormat", at));
}

/// N9: the members of all application security groups of one rule are in one VNet, whichever of them comes last.
#[test]
fn n9_the_groups_of_a_rule_have_members_in_one_vnet() {
    const CODE: &str = "AllApplicationSecurityGroupsInSecurityRuleMustBeFromSameVnet";
    let mut w = world();
    w.vnet("spoke", &["10.2.0.0/16"]).unwrap();
    w.subnet("spoke", "s", "10.2.0.0/24").unwrap();
    for group in ["web", "db"] {
        w.put(
            &net(&format!("applicationSecurityGroups/{group}")),
            json!({"location": "region1"}),
        )
        .unwrap();
    }
    let member = |vnet: &str, group: &str| {
        let mut body = nic_body(&format!("{vnet}/subnets/s"), json!({}));
        body["properties"]["ipConfigurations"][0]["properties"]["applicationSecurityGroups"] =
            json!([reference(&format!("applicationSecurityGroups/{group}"))]);
        body
    };
    w.put(&net("networkInterfaces/web1"), member("hub", "web")).unwrap();
    w.put(&net("networkInterfaces/db1"), member("spoke", "db")).unwrap();
    w.put(&net("networkSecurityGroups/g"), json!({"location": "region1"}))
        .unwrap();
    let rule = json!({"properties": {
        "protocol": "Tcp", "access": "Allow", "direction": "Inbound", "priority": 100,
        "sourceApplicationSecurityGroups": [reference("applicationSecurityGroups/web")], "sourcePortRange": "*",
        "destinationApplicationSecurityGroups": [reference("applicationSecurityGroups/db")], "destinationPortRange": "1433",
    }});
    let id = net("networkSecurityGroups/g/securityRules/r");
    assert_eq!(only(w.put(&id, rule.clone())), (CODE, id.clone()));
    w.delete(&net("networkInterfaces/db1")).unwrap();
    w.put(&id, rule).unwrap();
    w.put(&net("networkInterfaces/db1"), member("hub", "db")).unwrap();
    let refused = w.put(&net("networkInterfaces/db2"), member("spoke", "db"));
    assert_eq!(only(refused), (CODE, id));
}

#[test]
fn n6_a_change_that_would_flush_flows_is_refused_by_name() {
    let mut w = World::new();
    let id = net("networkSecurityGroups/g");
    let body = |flush: bool| json!({"location": "region1", "properties": {"flushConnection": flush}});
    let at = "properties.flushConnection".to_owned();
    assert_eq!(only(w.put(&id, body(true))), ("XNotSupported", at));
    let shown = w.put(&id, body(false)).unwrap();
    assert_eq!(shown["properties"]["flushConnection"], false);
    assert_eq!(w.put(&id, shown.clone()).unwrap(), shown);
    let rule = json!({"properties": {
        "protocol": "*", "access": "Deny", "direction": "Inbound", "priority": 100, "sourceAddressPrefix": "10.0.0.0/08",
        "sourcePortRange": "*", "destinationAddressPrefix": "*", "destinationPortRange": "*",
    }});
    let refused = w.put(&format!("{id}/securityRules/r"), rule);
    assert_eq!(only(refused).0, "SecurityRuleInvalidAddressPrefix");
}

/// D25: an agent numbers the NICs and subnets for which it enforces groups with eight bits. The request that would
/// exceed this is refused.
#[test]
fn d25_an_agent_enforces_groups_for_at_most_255_entries() {
    let mut w = World::new();
    w.vnet("hub", &["10.0.0.0/16"]).unwrap();
    w.subnet("hub", "s", "10.0.0.0/24").unwrap();
    w.subnet("hub", "lan", "10.0.4.0/22").unwrap();
    w.put(&net("networkSecurityGroups/g"), json!({"location": "region1"}))
        .unwrap();
    w.nic("host", "hub/subnets/s", None).unwrap();
    let group = || json!({"networkSecurityGroup": reference("networkSecurityGroups/g")});
    let behind = |w: &mut World, n: usize| {
        let id = net(&format!("networkInterfaces/n{n}"));
        w.put(&id, nic_body("hub/subnets/lan", group()))
    };
    let binding = Binding::Vm {
        vm: vm_id("host"),
        nics: vec![ResourceId::new(net("networkInterfaces/host"))],
        served: vec![ResourceId::new(net("virtualNetworks/hub/subnets/lan"))],
    };
    // One entry is that of the host itself.
    for n in 1..MAX_NICS {
        behind(&mut w, n).unwrap();
    }
    w.join("host", binding.clone()).unwrap();
    let at = "properties.networkSecurityGroup".to_owned();
    assert_eq!(
        only(behind(&mut w, MAX_NICS)),
        ("XTooManySecuredInterfaces", at.clone())
    );
    let guarded = json!({"properties": with(json!({"addressPrefix": "10.0.4.0/22"}), group())});
    let lan = net("virtualNetworks/hub/subnets/lan");
    assert_eq!(only(w.put(&lan, guarded.clone())), ("XTooManySecuredInterfaces", at));
    w.delete(&net("networkInterfaces/n1")).unwrap();
    w.put(&lan, guarded).unwrap();
    w.delete(vm_id("host").as_str()).unwrap();
    behind(&mut w, MAX_NICS).unwrap();
    let at = "binding.served".to_owned();
    assert_eq!(only(w.join("host", binding)), ("XTooManySecuredInterfaces", at));
}

#[test]
fn free_addresses_of_a_vnet() {
    let mut w = world();
    w.nic("n", "hub/subnets/s", Some("10.0.0.5")).unwrap();
    let vnet = &w.now.vnets[&path(&net("virtualNetworks/hub")).id()];
    let of = |address: &str| address_use::availability(&w.now, vnet, address.parse().unwrap());
    assert_eq!(of("10.0.7.5"), None, "in no subnet");
    let free = of("10.0.0.6").unwrap();
    assert!(free.available && !free.reserved && free.others.is_empty(), "{free:?}");
    let taken = of("10.0.0.5").unwrap();
    let others: Vec<String> = taken.others.iter().map(ToString::to_string).collect();
    assert!(!taken.available && !taken.reserved, "{taken:?}");
    assert_eq!(others, ["10.0.0.4", "10.0.0.6", "10.0.0.7", "10.0.0.8", "10.0.0.9"]);
    let reserved = of("10.0.0.1").unwrap();
    assert!(!reserved.available && reserved.reserved, "{reserved:?}");
    let used = address_use::subnets(&w.now, vnet);
    assert_eq!((used[0].used, used[0].usable), (1, 251));
}

/// Ansible compares the list that it has sent with the answer, and would otherwise find a change on every run.
#[test]
fn a_subnet_shows_its_prefixes_in_the_form_of_the_request() {
    let mut w = World::new();
    w.vnet("hub", &["10.1.0.0/16"]).unwrap();
    let id = net("virtualNetworks/hub/subnets/web");
    let list = json!({"properties": {"addressPrefixes": ["10.1.1.0/24"]}});
    let shown = w.put(&id, list).unwrap();
    let properties = &shown["properties"];
    assert_eq!(properties["addressPrefixes"], json!(["10.1.1.0/24"]));
    assert!(properties.get("addressPrefix").is_none());
    assert_eq!(
        w.put(&id, shown.clone()).unwrap(),
        shown,
        "writing back changes nothing"
    );
    let single = w.subnet("hub", "web", "10.1.1.0/24").unwrap();
    assert_eq!(single["properties"]["addressPrefix"], "10.1.1.0/24");
    assert!(single["properties"].get("addressPrefixes").is_none());
}
