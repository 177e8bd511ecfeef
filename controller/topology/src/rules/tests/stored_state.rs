//! State that version 0.1 accepted and that is refused now. It stays writable: a client can send what GET has shown, and
//! can repair it. Only what a request adds is checked.

use super::{World, codes, connection_body, gateway_body, net, token, vm_id, with};
use crate::address_use;
use crate::change::{Change, Rejection};
use crate::path::ArmPath;
use crate::resource::{Binding, Reach};
use serde_json::{Value, json};
use std::sync::Arc;
use tombolo_proto::id::{AgentId, ResourceId};

fn reference(tail: &str) -> Value {
    json!({"id": net(tail)})
}

fn id(tail: &str) -> ResourceId {
    ResourceId::new(net(tail))
}

/// Sends what GET shows of `tail`, with a tag that makes the PUT a change.
fn rewrite(w: &mut World, tail: &str) -> Result<Value, Rejection> {
    let mut body = w.get(&net(tail));
    body["tags"] = json!({"version": "0.2"});
    w.put(&net(tail), body)
}

/// The codes of a refusal, which must name `remedy` in its first message.
fn refused(result: Result<Value, Rejection>, remedy: &str) -> Vec<&'static str> {
    let message = result.as_ref().unwrap_err().problems[0].message.clone();
    assert!(message.contains(remedy), "{message}");
    codes(result)
}

/// A VNet `hub` with a subnet `s`.
fn world() -> World {
    let mut w = World::new();
    w.vnet("hub", &["10.0.0.0/16", "fd00::/48"]).unwrap();
    w.subnet("hub", "s", "10.0.0.0/24").unwrap();
    w
}

/// A NIC `n` that uses the public address `p`, and an agent with an IPv4 and an IPv6 endpoint.
fn used_public_address(properties: Value, sku: &str) -> (World, Value) {
    let mut w = world();
    let public = json!({"location": "region1", "sku": {"name": sku}, "properties": properties});
    w.put(&net("publicIPAddresses/p"), public).unwrap();
    let inner = json!({"subnet": reference("virtualNetworks/hub/subnets/s"), "publicIPAddress": reference("publicIPAddresses/p")});
    let body = json!({"location": "region1", "properties": {"ipConfigurations": [{"name": "c", "properties": inner}]}});
    w.put(&net("networkInterfaces/n"), body).unwrap();
    let binding = Binding::Vm {
        vm: vm_id("vm1"),
        nics: vec![id("networkInterfaces/n")],
        served: vec![],
    };
    w.join("vm1", binding).unwrap();
    report(&mut w, &["192.0.2.7:4500", "[2001:db8::7]:4500"]);
    let shown = w.get(&net("publicIPAddresses/p"));
    (w, shown)
}

fn report(w: &mut World, endpoints: &[&str]) {
    let endpoints = endpoints.iter().map(|e| e.parse().unwrap()).collect();
    let change = Change::SetReach {
        agent: AgentId::new("vm1").unwrap(),
        reach: Reach::at(endpoints),
    };
    w.apply(&change).unwrap();
}

fn shown_address(w: &World) -> Value {
    w.get(&net("publicIPAddresses/p"))["properties"]["ipAddress"].clone()
}

#[test]
fn writing_back_a_dynamic_public_address_does_not_fix_it() {
    let (mut w, shown) = used_public_address(json!({"publicIPAllocationMethod": "Dynamic"}), "Basic");
    assert_eq!(shown["properties"]["ipAddress"], "192.0.2.7");
    assert_eq!(w.put(&net("publicIPAddresses/p"), shown.clone()).unwrap(), shown);
    report(&mut w, &["192.0.2.8:4500"]);
    assert_eq!(shown_address(&w), "192.0.2.8");
    let given = with(shown["properties"].clone(), json!({"ipAddress": "203.0.113.9"}));
    let body = json!({"location": "region1", "properties": given});
    w.put(&net("publicIPAddresses/p"), body).unwrap();
    assert_eq!(
        shown_address(&w),
        "192.0.2.8",
        "the address of a dynamic one is read-only"
    );
}

#[test]
fn a_static_public_address_is_set_by_another_address_of_its_family() {
    let (mut w, shown) = used_public_address(json!({"publicIPAddressVersion": "IPv6"}), "Standard");
    assert_eq!(shown["properties"]["ipAddress"], "2001:db8::7");
    assert_eq!(w.put(&net("publicIPAddresses/p"), shown.clone()).unwrap(), shown);
    report(&mut w, &["192.0.2.8:4500", "[2001:db8::8]:4500"]);
    assert_eq!(shown_address(&w), "2001:db8::8", "writing back sets nothing");
    report(&mut w, &["192.0.2.8:4500"]);
    assert_eq!(shown_address(&w), "2001:2::1", "an IPv4 endpoint is not shown");
    let put = |w: &mut World, address: &str| {
        let properties = json!({"publicIPAddressVersion": "IPv6", "ipAddress": address});
        let body = json!({"location": "region1", "properties": properties});
        w.put(&net("publicIPAddresses/p"), body)
    };
    assert_eq!(
        refused(put(&mut w, "203.0.113.9"), "leave ipAddress out"),
        ["InvalidRequestFormat"]
    );
    put(&mut w, "2001:2::ff").unwrap();
    assert_eq!(shown_address(&w), "2001:2::1", "a placeholder of a client is not kept");
    put(&mut w, "2001:db8::99").unwrap();
    report(&mut w, &["[2001:db8::8]:4500"]);
    assert_eq!(shown_address(&w), "2001:db8::99");
    let kept = json!({"location": "region1", "properties": {"publicIPAddressVersion": "IPv6"}});
    w.put(&net("publicIPAddresses/p"), kept).unwrap();
    assert_eq!(shown_address(&w), "2001:db8::99");
}

#[test]
fn a_public_address_of_version_0_1_is_static_and_keeps_its_sku() {
    let mut w = world();
    let tail = "publicIPAddresses/p";
    w.put(&net(tail), json!({"location": "region1"})).unwrap();
    let stored = Arc::make_mut(w.now.public_ips.get_mut(&id(tail)).unwrap());
    // Version 0.1 stored neither the SKU nor the method, because both had their defaults, and it chose no address.
    stored.envelope.echoed.clear();
    stored.ip_address = None;
    let shown = w.get(&net(tail));
    assert_eq!(shown["sku"]["name"], "Standard");
    assert_eq!(shown["properties"]["publicIPAllocationMethod"], "Static");
    assert!(shown["properties"].get("ipAddress").is_none());
    let written = w.put(&net(tail), shown).unwrap();
    assert_eq!(written["properties"]["publicIPAllocationMethod"], "Static");
    assert_eq!(written["properties"]["ipAddress"], "198.18.0.1");
    let dynamic = json!({"location": "region1", "properties": {"publicIPAllocationMethod": "Dynamic"}});
    assert_eq!(
        refused(
            w.put(&net(tail), dynamic.clone()),
            "Set publicIPAllocationMethod to Static, or sku.name to Basic"
        ),
        ["StandardSkuPublicIPAddressesMustBeStatic"],
        "the SKU stays that of the old resource"
    );
    // A body without SKU and method keeps those of a Basic address, too.
    let basic = with(dynamic, json!({"sku": {"name": "Basic", "tier": "Global"}}));
    w.put(&net(tail), basic).unwrap();
    let kept = w.put(&net(tail), json!({"location": "region1"})).unwrap();
    assert_eq!(kept["sku"], json!({"name": "Basic", "tier": "Global"}));
    assert_eq!(kept["properties"]["publicIPAllocationMethod"], "Dynamic");
    assert!(kept["properties"].get("ipAddress").is_none());
}

#[test]
fn a_nic_in_a_delegated_subnet_stays_writable() {
    let mut w = world();
    w.nic("n", "hub/subnets/s", None).unwrap();
    let vnet = Arc::make_mut(w.now.vnets.get_mut(&id("virtualNetworks/hub")).unwrap());
    let service = |name: &str| json!({"name": name, "properties": {"serviceName": name}});
    let delegations = json!([
        service("Microsoft.Web/serverFarms"),
        service("Microsoft.Sql/managedInstances")
    ]);
    vnet.subnets[0].echoed.insert("delegations".to_owned(), delegations);
    rewrite(&mut w, "networkInterfaces/n").unwrap();
    assert_eq!(
        refused(w.nic("other", "hub/subnets/s", None), "remove the delegation"),
        ["XSubnetIsDelegated"]
    );
    let subnet = net("virtualNetworks/hub/subnets/s");
    let body = |delegations: Value| json!({"properties": {"addressPrefix": "10.0.0.0/24", "delegations": delegations}});
    // The same services in another order and casing.
    let same = json!([
        service("Microsoft.Sql/managedInstances"),
        service("microsoft.web/serverfarms")
    ]);
    w.put(&subnet, body(same)).unwrap();
    let other = json!([
        service("Microsoft.Web/serverFarms"),
        service("Microsoft.Netapp/volumes")
    ]);
    assert_eq!(
        refused(w.put(&subnet, body(other)), "Delete the resources in the subnet first"),
        ["SubnetDelegationsCannotChangeWhenSubnetUsedByResource"]
    );
    w.put(&subnet, body(json!([service("Microsoft.Web/serverFarms")])))
        .unwrap();
    w.put(&subnet, body(json!([]))).unwrap();
    w.nic("other", "hub/subnets/s", None).unwrap();
}

/// A served subnet is in use by its agent, which is no NIC.
#[test]
fn the_delegation_of_a_served_subnet_is_not_removed() {
    let mut w = world();
    w.nic("n", "hub/subnets/s", None).unwrap();
    let subnet = net("virtualNetworks/hub/subnets/lan");
    let delegations = json!([{"name": "d", "properties": {"serviceName": "Microsoft.Web/serverFarms"}}]);
    let body = json!({"properties": {"addressPrefix": "10.0.1.0/24", "delegations": delegations}});
    w.put(&subnet, body).unwrap();
    let binding = Binding::Vm {
        vm: vm_id("vm1"),
        nics: vec![id("networkInterfaces/n")],
        served: vec![ResourceId::new(subnet)],
    };
    w.join("vm1", binding).unwrap();
    assert_eq!(
        codes(w.subnet("hub", "lan", "10.0.1.0/24")),
        ["SubnetDelegationsCannotChangeWhenSubnetUsedByResource"]
    );
}

/// P1: version 0.1 accepted references to every region.
#[test]
fn p1_a_reference_that_is_stored_already_is_not_checked_again() {
    let mut w = world();
    let local = || json!({"location": "region1"});
    for kind in ["routeTables", "networkSecurityGroups", "applicationSecurityGroups"] {
        for name in ["old", "new"] {
            w.put(&net(&format!("{kind}/{name}")), local()).unwrap();
        }
    }
    let group = |name: &str| reference(&format!("networkSecurityGroups/{name}"));
    let table = |name: &str| reference(&format!("routeTables/{name}"));
    let subnet = |name: &str| json!({"properties": {"addressPrefix": "10.0.0.0/24", "routeTable": table(name), "networkSecurityGroup": group(name)}});
    w.put(&net("virtualNetworks/hub/subnets/s"), subnet("old")).unwrap();
    let nic = |name: &str| {
        let inner = json!({"subnet": reference("virtualNetworks/hub/subnets/s"),
            "applicationSecurityGroups": [reference(&format!("applicationSecurityGroups/{name}"))]});
        json!({"location": "region1", "properties": {
            "networkSecurityGroup": group(name), "ipConfigurations": [{"name": "c", "properties": inner}]}})
    };
    w.put(&net("networkInterfaces/n"), nic("old")).unwrap();
    let rule = |name: &str| {
        json!({"properties": {
            "protocol": "Tcp", "access": "Allow", "direction": "Inbound", "priority": 100, "sourcePortRange": "*",
            "sourceApplicationSecurityGroups": [reference(&format!("applicationSecurityGroups/{name}"))],
            "destinationAddressPrefix": "*", "destinationPortRange": "22",
        }})
    };
    w.put(&net("networkSecurityGroups/old/securityRules/r"), rule("old"))
        .unwrap();
    w.gateway("hub", "10.0.255.0/27").unwrap();
    w.put(&net("publicIPAddresses/p"), local()).unwrap();
    let mut public = w.get(&net("virtualNetworkGateways/hub-gw"));
    public["properties"]["ipConfigurations"][0]["properties"]["publicIPAddress"] = reference("publicIPAddresses/p");
    w.put(&net("virtualNetworkGateways/hub-gw"), public).unwrap();
    w.vnet("far", &["10.9.0.0/16"]).unwrap();
    w.gateway("far", "10.9.255.0/27").unwrap();
    w.put(&net("connections/c"), connection_body("far", "hub", json!({})))
        .unwrap();

    // The VNet, a public address, a gateway and the application security groups move to another region than everything
    // else.
    let gateway = Arc::make_mut(w.now.gateways.get_mut(&id("virtualNetworkGateways/far-gw")).unwrap());
    gateway.envelope.location = "region9".to_owned();
    let public = Arc::make_mut(w.now.public_ips.get_mut(&id("publicIPAddresses/p")).unwrap());
    public.envelope.location = "region9".to_owned();
    let vnet = Arc::make_mut(w.now.vnets.get_mut(&id("virtualNetworks/hub")).unwrap());
    vnet.envelope.location = "region9".to_owned();
    for group in w.now.application_security_groups.values_mut() {
        Arc::make_mut(group).envelope.location = "region9".to_owned();
    }
    for tail in [
        "networkInterfaces/n",
        "virtualNetworkGateways/hub-gw",
        "connections/c",
        "virtualNetworks/hub",
        "virtualNetworks/hub/subnets/s",
        "networkSecurityGroups/old",
        "networkSecurityGroups/old/securityRules/r",
    ] {
        rewrite(&mut w, tail).unwrap_or_else(|why| panic!("{tail}: {why}"));
    }

    let wrong = "InvalidResourceReference";
    let remedy = "Create 'new' in region 'region9'";
    let changed = w.put(&net("virtualNetworks/hub/subnets/s"), subnet("new"));
    assert_eq!(refused(changed, remedy), [wrong, wrong]);
    let remedy = "Create 'new' in region 'region1'";
    let changed = w.put(&net("networkSecurityGroups/old/securityRules/r"), rule("new"));
    assert_eq!(refused(changed, remedy), [wrong]);
    assert_eq!(refused(w.put(&net("networkInterfaces/n"), nic("new")), remedy), [wrong]);
    let added = w.nic("n2", "hub/subnets/s", None);
    assert_eq!(refused(added, "Create 's' in region 'region1'"), [wrong]);
    w.delete(&net("connections/c")).unwrap();
    let again = w.put(&net("connections/c"), connection_body("far", "hub", json!({})));
    assert_eq!(refused(again, "Create 'far-gw' in region 'region1'"), [wrong]);
    w.delete(&net("virtualNetworkGateways/hub-gw")).unwrap();
    let again = w.put(&net("virtualNetworkGateways/hub-gw"), gateway_body("hub", json!({})));
    assert_eq!(codes(again), [wrong]);
}

/// P33: version 0.1 accepted every text as a DNS server.
#[test]
fn p33_a_dns_server_that_is_stored_already_is_not_checked_again() {
    let mut w = world();
    w.nic("n", "hub/subnets/s", None).unwrap();
    let servers = |all: &[&str]| json!({"dnsServers": all});
    let vnet = Arc::make_mut(w.now.vnets.get_mut(&id("virtualNetworks/hub")).unwrap());
    let odd = json!({"dhcpOptions": {"DnsServers": ["dc1.example", 7]}});
    vnet.envelope.echoed.insert("properties".to_owned(), odd);
    let nic = Arc::make_mut(w.now.nics.get_mut(&id("networkInterfaces/n")).unwrap());
    let odd = json!({"dnsSettings": {"dnsServers": ["dc1.example", "10.0.0.4"]}});
    nic.envelope.echoed.insert("properties".to_owned(), odd);
    rewrite(&mut w, "virtualNetworks/hub").unwrap();
    rewrite(&mut w, "networkInterfaces/n").unwrap();

    let mut body = w.get(&net("networkInterfaces/n"));
    body["properties"]["dnsSettings"] = servers(&["dc1.example", "10.0.0.5"]);
    let kept = w.put(&net("networkInterfaces/n"), body.clone()).unwrap();
    assert_eq!(
        kept["properties"]["dnsSettings"]["dnsServers"],
        json!(["dc1.example", "10.0.0.5"])
    );
    body["properties"]["dnsSettings"] = servers(&["dc2.example"]);
    let changed = w.put(&net("networkInterfaces/n"), body);
    assert_eq!(refused(changed, "Give an address"), ["InvalidIPAddressFormat"]);
    let mut body = w.get(&net("virtualNetworks/hub"));
    body["properties"]["dhcpOptions"] = servers(&["dc1.example"]);
    w.put(&net("virtualNetworks/hub"), body.clone()).unwrap();
    body["properties"]["dhcpOptions"] = servers(&["dc1.example", "dc2.example"]);
    assert_eq!(
        codes(w.put(&net("virtualNetworks/hub"), body)),
        ["InvalidIPAddressFormat"]
    );
}

/// N9: a NIC whose groups stay does not answer for the members of other NICs.
#[test]
fn n9_a_nic_with_unchanged_groups_is_not_checked_again() {
    const CODE: &str = "AllApplicationSecurityGroupsInSecurityRuleMustBeFromSameVnet";
    let mut w = world();
    for vnet in 2..5 {
        w.vnet(&format!("v{vnet}"), &[&format!("10.{vnet}.0.0/16")]).unwrap();
        w.subnet(&format!("v{vnet}"), "s", &format!("10.{vnet}.0.0/24"))
            .unwrap();
    }
    for group in ["applicationSecurityGroups/web", "networkSecurityGroups/g"] {
        w.put(&net(group), json!({"location": "region1"})).unwrap();
    }
    let nic = |vnet: &str, groups: Value| {
        let inner = json!({"subnet": reference(&format!("virtualNetworks/{vnet}/subnets/s")), "applicationSecurityGroups": groups});
        json!({"location": "region1", "properties": {"ipConfigurations": [{"name": "c", "properties": inner}]}})
    };
    let web = || json!([reference("applicationSecurityGroups/web")]);
    for vnet in ["hub", "v2", "v3"] {
        w.put(&net(&format!("networkInterfaces/{vnet}")), nic(vnet, web()))
            .unwrap();
    }
    let rule = json!({"properties": {
        "protocol": "Tcp", "access": "Allow", "direction": "Inbound", "priority": 100, "sourcePortRange": "*",
        "sourceApplicationSecurityGroups": web(), "destinationAddressPrefix": "*", "destinationPortRange": "22",
    }});
    let path = net("networkSecurityGroups/g/securityRules/r");
    let wrong = w.put(&path, rule.clone()).unwrap_err();
    let message = &wrong.problems[0].message;
    assert!(message.contains("Remove a group from the rule"), "{message}");
    let named = message.matches("/virtualNetworks/").count();
    assert_eq!(named, 2, "two virtual networks show the conflict: {message}");

    // The rule is stored while the members are in one VNet, and the others are added behind its back.
    let others = ["v2", "v3"].map(|vnet| {
        let id = id(&format!("networkInterfaces/{vnet}"));
        let nic = w.now.nics[&id].clone();
        w.delete(id.as_str()).unwrap();
        (id, nic)
    });
    w.put(&path, rule).unwrap();
    w.now.nics.extend(others);
    rewrite(&mut w, "networkInterfaces/hub").unwrap();
    rewrite(&mut w, "networkInterfaces/v2").unwrap();
    w.put(&net("networkInterfaces/v2"), nic("v2", json!([]))).unwrap();
    assert_eq!(codes(w.put(&net("networkInterfaces/v2"), nic("v2", web()))), [CODE]);
}

/// D7: join tokens go with the virtual machine, the NICs and the served subnets that they name.
#[test]
fn d7_tokens_go_with_what_they_name() {
    let mut w = world();
    let other = net("").replace("/lab/", "/other/");
    let group = |name: &str| {
        ArmPath::parse(&net("virtualNetworks/x"))
            .unwrap()
            .group_id()
            .as_str()
            .replace("lab", name)
    };
    w.put(&group("other"), json!({"location": "region1"})).unwrap();
    w.subnet("hub", "lan", "10.0.1.0/24").unwrap();
    w.nic("n", "hub/subnets/s", None).unwrap();
    w.nic("m", "hub/subnets/s", None).unwrap();
    let far_vnet = format!("{other}virtualNetworks/far");
    let body = json!({"location": "region1", "properties": {"addressSpace": {"addressPrefixes": ["10.9.0.0/16"]},
        "subnets": [{"name": "s", "properties": {"addressPrefix": "10.9.0.0/24"}}]}});
    w.put(&far_vnet, body).unwrap();
    let far_nic = format!("{other}networkInterfaces/far");
    let inner = json!({"subnet": {"id": format!("{far_vnet}/subnets/s")}});
    let body = json!({"location": "region1", "properties": {"ipConfigurations": [{"name": "c", "properties": inner}]}});
    w.put(&far_nic, body).unwrap();
    let far_vm = |name: &str| ResourceId::new(vm_id(name).as_str().replace("/lab/", "/other/"));
    let bind = |vm: ResourceId, nic: &str| Binding::Vm {
        vm,
        nics: vec![ResourceId::new(nic)],
        served: vec![],
    };
    for (name, binding) in [
        ("alone", bind(vm_id("alone"), &net("networkInterfaces/n"))),
        ("far", bind(far_vm("far"), &far_nic)),
        ("guest", bind(far_vm("guest"), &net("networkInterfaces/m"))),
    ] {
        w.apply(&Change::PutToken(token(name, binding))).unwrap();
    }
    let tokens = |w: &World| w.now.tokens.keys().cloned().collect::<Vec<_>>();
    let lost = vm_id("alone");
    assert!(
        !w.delete(lost.as_str()).unwrap(),
        "no agent has joined, so no machine exists"
    );
    assert_eq!(tokens(&w), ["token-of-far", "token-of-guest"]);
    w.delete(&group("lab")).unwrap();
    assert_eq!(tokens(&w), ["token-of-far"]);
}

#[test]
fn a_nic_in_use_names_both_ways_to_free_it() {
    let (mut w, _) = used_public_address(json!({}), "Standard");
    let gone = w.delete(&net("networkInterfaces/n")).unwrap_err();
    let message = &gone.problems[0].message;
    assert!(
        message.contains("Delete this virtual machine or agent 'vm1' first"),
        "{message}"
    );
}

#[test]
fn addresses_in_use_are_counted_by_prefix() {
    let mut w = world();
    let body = json!({"properties": {"addressPrefixes": ["10.0.2.0/24", "10.0.4.0/24", "fd00:0:0:1::/64"]}});
    w.put(&net("virtualNetworks/hub/subnets/many"), body).unwrap();
    w.nic("out", "hub/subnets/s", Some("10.0.0.9")).unwrap();
    for (name, address) in [
        ("a", "10.0.2.4"),
        ("b", "10.0.2.254"),
        ("c", "10.0.4.4"),
        ("d", "fd00:0:0:1::9"),
    ] {
        w.nic(name, "hub/subnets/many", Some(address)).unwrap();
    }
    let vnet = &w.now.vnets[&id("virtualNetworks/hub")];
    let used = address_use::subnets(&w.now, vnet);
    assert_eq!((used[0].used, used[0].usable), (1, 251));
    assert_eq!((used[1].used, used[1].usable), (4, 9_007_199_254_740_991));
}

/// N6: the setting that has the effect of `flushConnection` is the remedy.
#[test]
fn n6_the_refusal_of_flush_connection_names_the_setting() {
    let mut w = World::new();
    let body = json!({"location": "region1", "properties": {"flushConnection": true}});
    let wrong = w.put(&net("networkSecurityGroups/g"), body);
    assert_eq!(refused(wrong, "set the setting reevaluate to true"), ["XNotSupported"]);
}
