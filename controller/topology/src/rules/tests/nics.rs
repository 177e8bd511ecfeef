//! The rules of network interfaces and public addresses: allocation of addresses (P2), deletion while in use, no NIC in
//! a `GatewaySubnet` (G1).

use super::{World, codes, net, vm_id};
use crate::resource::{Binding, NicIpConfiguration};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use tombolo_proto::id::ResourceId;

fn world() -> World {
    let mut w = World::new();
    w.vnet("hub", &["10.0.0.0/16", "fd00::/48"]).unwrap();
    w.subnet("hub", "s", "10.0.0.0/29").unwrap();
    w
}

fn address(body: &Value) -> &str {
    body["properties"]["ipConfigurations"][0]["properties"]["privateIPAddress"]
        .as_str()
        .unwrap()
}

#[test]
fn p2_dynamic_addresses_are_the_lowest_free_and_stay() {
    let mut w = world();
    let first = w.nic("a", "hub/subnets/s", None).unwrap();
    assert_eq!(address(&first), "10.0.0.4");
    assert_eq!(
        address(&w.nic("b", "hub/subnets/s", Some("10.0.0.5")).unwrap()),
        "10.0.0.5"
    );
    assert_eq!(address(&w.nic("c", "hub/subnets/s", None).unwrap()), "10.0.0.6");
    assert_eq!(codes(w.nic("d", "hub/subnets/s", None)), ["SubnetIsFull"]);
    w.delete(&net("networkInterfaces/a")).unwrap();
    // A NIC with a dynamic address keeps the address in later PUTs, although a lower one is free now. A PUT of the body
    // that GET has shown changes nothing either.
    let c = w.get(&net("networkInterfaces/c"));
    assert_eq!(w.put(&net("networkInterfaces/c"), c.clone()).unwrap(), c);
    assert_eq!(address(&w.nic("c", "hub/subnets/s", None).unwrap()), "10.0.0.6");
    assert_eq!(address(&w.nic("d", "hub/subnets/s", None).unwrap()), "10.0.0.4");
}

#[test]
fn static_addresses_are_inside_free_and_not_reserved() {
    let mut w = world();
    assert_eq!(
        codes(w.nic("a", "hub/subnets/s", Some("10.0.0.9"))),
        ["PrivateIPAddressNotInSubnet"]
    );
    for reserved in ["10.0.0.0", "10.0.0.3", "10.0.0.7"] {
        assert_eq!(
            codes(w.nic("a", "hub/subnets/s", Some(reserved))),
            ["PrivateIPAddressInReservedRange"]
        );
    }
    w.nic("a", "hub/subnets/s", Some("10.0.0.4")).unwrap();
    let refused = w.nic("b", "hub/subnets/s", Some("10.0.0.4")).unwrap_err();
    assert_eq!(refused.problems[0].code, "PrivateIPAddressInUse");
    assert!(
        refused.problems[0].message.contains(&net("networkInterfaces/a")),
        "{refused}"
    );
    assert_eq!(
        codes(w.nic("b", "hub/subnets/s", Some("10.0.0.x"))),
        ["InvalidIPAddressFormat", "InvalidRequestFormat"][..1]
    );
    // In a PUT of a NIC, the address that this NIC has does not count as in use.
    w.nic("a", "hub/subnets/s", Some("10.0.0.4")).unwrap();
    w.nic("a", "hub/subnets/s", Some("10.0.0.6")).unwrap();
}

#[test]
fn several_configurations_the_primary_first_and_ipv6() {
    let mut w = world();
    let dual = json!({"properties": {"addressPrefixes": ["10.0.1.0/24", "fd00::/64"]}});
    w.put(&net("virtualNetworks/hub/subnets/dual"), dual).unwrap();
    let subnet = json!({"id": net("virtualNetworks/hub/subnets/dual")});
    let body = |configs: Value| json!({"location": "region1", "properties": {"enableIPForwarding": true, "ipConfigurations": configs}});
    let nic = net("networkInterfaces/n");
    let shown = w
        .put(
            &nic,
            body(json!([
                {"name": "six", "properties": {"subnet": subnet, "privateIPAddressVersion": "ipv6"}},
                {"name": "four", "properties": {"subnet": subnet, "primary": true}},
                {"name": "fixed", "properties": {"subnet": subnet, "privateIPAddress": "10.0.1.4", "privateIPAllocationMethod": "STATIC"}},
            ])),
        )
        .unwrap();
    let configs = shown["properties"]["ipConfigurations"].as_array().unwrap();
    let seen: Vec<_> = configs
        .iter()
        .map(|c| {
            (
                c["name"].as_str().unwrap(),
                c["properties"]["privateIPAddress"].as_str().unwrap(),
                c["properties"]["primary"].as_bool().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            ("four", "10.0.1.5", true),
            ("six", "fd00::4", false),
            ("fixed", "10.0.1.4", false)
        ]
    );
    assert_eq!(configs[2]["properties"]["privateIPAllocationMethod"], "Static");
    assert_eq!(shown["properties"]["enableIPForwarding"], true);
    let two = json!([
        {"name": "a", "properties": {"subnet": subnet}},
        {"name": "A", "properties": {"subnet": {"id": net("virtualNetworks/hub/subnets/s")}}},
    ]);
    assert_eq!(
        codes(w.put(&nic, body(two))),
        [
            "DuplicateResourceName",
            "IpConfigurationsOnSameNicCannotUseDifferentSubnets"
        ]
    );
    assert_eq!(codes(w.put(&nic, body(json!([])))), ["InvalidRequestFormat"]);
}

#[test]
fn a_nic_stays_in_its_vnet() {
    let mut w = world();
    w.vnet("other", &["10.9.0.0/16"]).unwrap();
    w.subnet("other", "s", "10.9.0.0/24").unwrap();
    w.subnet("hub", "t", "10.0.1.0/24").unwrap();
    w.nic("n", "hub/subnets/s", None).unwrap();
    assert_eq!(address(&w.nic("n", "hub/subnets/t", None).unwrap()), "10.0.1.4");
    assert_eq!(
        codes(w.nic("n", "other/subnets/s", None)),
        ["XNicVirtualNetworkImmutable"]
    );
    assert_eq!(
        codes(w.nic("n", "hub/subnets/nowhere", None)),
        ["InvalidResourceReference"]
    );
}

#[test]
fn g1_no_nic_in_the_gateway_subnet() {
    let mut w = world();
    w.subnet("hub", "GatewaySubnet", "10.0.255.0/27").unwrap();
    assert_eq!(codes(w.nic("n", "hub/subnets/gatewaysubnet", None)), ["GatewaySubnet"]);
}

#[test]
fn a_nic_with_an_agent_cannot_be_deleted() {
    let mut w = world();
    w.nic("n", "hub/subnets/s", None).unwrap();
    let binding = Binding::Vm {
        vm: vm_id("vm1"),
        nics: vec![ResourceId::new(net("networkInterfaces/n"))],
        served: vec![],
    };
    w.join("vm1", binding).unwrap();
    assert_eq!(codes(w.delete(&net("networkInterfaces/n"))), ["NicInUse"]);
    let body = w.get(&net("networkInterfaces/n"));
    assert_eq!(body["properties"]["virtualMachine"]["id"], vm_id("vm1").as_str());
    assert_eq!(body["properties"]["primary"], true);
}

#[test]
fn public_addresses_have_one_user_and_are_held_by_it() {
    let mut w = world();
    let id = net("publicIPAddresses/p");
    let body = json!({"location": "region1", "sku": {"name": "Standard"}, "properties": {"publicIPAllocationMethod": "static", "ipAddress": "203.0.113.5"}});
    let shown = w.put(&id, body).unwrap();
    assert_eq!(shown["properties"]["publicIPAllocationMethod"], "Static");
    assert_eq!(shown["properties"]["ipAddress"], "203.0.113.5");
    assert_eq!(shown["sku"], json!({"name": "Standard", "tier": "Regional"}));
    let nic = |name: &str| {
        json!({"location": "region1", "properties": {"ipConfigurations": [{"name": name, "properties": {
        "subnet": {"id": net("virtualNetworks/hub/subnets/s")}, "publicIPAddress": {"id": net("publicIPAddresses/P")}}}]}})
    };
    w.put(&net("networkInterfaces/n"), nic("c")).unwrap();
    let user = format!("{}/ipConfigurations/c", net("networkInterfaces/n"));
    assert_eq!(w.get(&id)["properties"]["ipConfiguration"]["id"], user);
    assert_eq!(
        codes(w.put(&net("networkInterfaces/m"), nic("c"))),
        ["PublicIPAddressInUse"]
    );
    w.put(&net("networkInterfaces/n"), nic("renamed")).unwrap();
    assert_eq!(codes(w.delete(&id)), ["PublicIPAddressCannotBeDeleted"]);
    w.delete(&net("networkInterfaces/n")).unwrap();
    assert!(w.delete(&id).unwrap());
}

/// Puts `count` addresses of a subnet into the state, as those of one interface. Requests for that many would take minutes.
fn fill(w: &mut World, vnet: &str, count: u32) {
    let template = w
        .now
        .nics
        .get(&ResourceId::new(net(&format!("networkInterfaces/{vnet}"))))
        .unwrap();
    let mut many = (**template).clone();
    many.envelope.id = ResourceId::new(net(&format!("networkInterfaces/{vnet}-many")));
    let one = many.ip_configurations[0].clone();
    many.ip_configurations = (0..count)
        .map(|n| NicIpConfiguration {
            address: IpAddr::from(Ipv4Addr::from(0x0900_0000 + n)),
            ..one.clone()
        })
        .collect();
    w.now.nics.insert(many.envelope.id.clone(), Arc::new(many));
}

#[test]
fn x4_private_addresses_of_a_vnet_and_of_peered_vnets() {
    let mut w = World::new();
    for (name, prefix) in [("a", "10.1"), ("b", "10.2"), ("c", "10.3")] {
        w.vnet(name, &[&format!("{prefix}.0.0/16")]).unwrap();
        w.subnet(name, "s", &format!("{prefix}.0.0/24")).unwrap();
        w.nic(name, &format!("{name}/subnets/s"), None).unwrap();
    }
    fill(&mut w, "a", 65_534);
    w.nic("last", "a/subnets/s", None).unwrap();
    assert_eq!(
        codes(w.nic("more", "a/subnets/s", None)),
        ["XPrivateAddressLimitReached"]
    );
    fill(&mut w, "b", 62_462);
    w.peer("a", "b", json!({})).unwrap();
    w.peer("b", "a", json!({})).unwrap();
    w.nic("fits", "b/subnets/s", None).unwrap();
    assert_eq!(
        codes(w.nic("more", "b/subnets/s", None)),
        ["XPrivateAddressLimitReached"]
    );
    assert_eq!(codes(w.peer("a", "c", json!({}))), ["XPrivateAddressLimitReached"]);
    w.peer("c", "b", json!({})).unwrap();
    w.nic("elsewhere", "c/subnets/s", None).unwrap();
}
