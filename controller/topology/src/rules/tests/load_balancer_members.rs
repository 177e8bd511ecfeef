//! The members of back-end pools and the targets of inbound NAT rules (L2).

use super::load_balancers::{body, front_end, lb, nat_rule, only, put, reference, world};
use super::{World, codes, net, with};
use crate::change::Rejection;
use crate::resource::{AdminState, pool_members};
use crate::topology::AgentStatuses;
use serde_json::{Value, json};
use tombolo_proto::id::ResourceId;

pub(super) fn pool() -> Value {
    json!({"id": lb("/backendAddressPools/pool")})
}

pub(super) fn ssh() -> Value {
    json!({"id": lb("/inboundNatRules/ssh")})
}

/// The body of a NIC with one ip configuration `c` in `subnet`, `vnet/subnets/name`.
fn nic_body(subnet: &str, pools: Value, nat_rules: Value) -> Value {
    json!({"location": "region1", "properties": {"ipConfigurations": [{"name": "c", "properties": {
        "subnet": reference(&format!("virtualNetworks/{subnet}")),
        "loadBalancerBackendAddressPools": pools,
        "loadBalancerInboundNatRules": nat_rules,
    }}]}})
}

pub(super) fn join(
    w: &mut World,
    name: &str,
    subnet: &str,
    pools: Value,
    nat_rules: Value,
) -> Result<Value, Rejection> {
    w.put(
        &net(&format!("networkInterfaces/{name}")),
        nic_body(subnet, pools, nat_rules),
    )
}

/// A pool of addresses, each with a state. `more`: further properties of the pool.
fn pool_of(addresses: &[(&str, &str)], vnet: &str, more: Value) -> Value {
    let address = |(name, address): &(&str, &str)| {
        let vnet = reference(&format!("virtualNetworks/{vnet}"));
        json!({"name": name, "properties": {"ipAddress": address, "virtualNetwork": vnet}})
    };
    let addresses: Vec<Value> = addresses.iter().map(address).collect();
    json!({"name": "pool", "properties": with(json!({"loadBalancerBackendAddresses": addresses}), more)})
}

pub(super) fn with_pool(w: &mut World, pool: Value) -> Result<Value, Rejection> {
    put(w, json!({"backendAddressPools": [pool]}))
}

fn spoke(w: &mut World) {
    w.vnet("spoke", &["10.2.0.0/16"]).unwrap();
    w.subnet("spoke", "s", "10.2.0.0/24").unwrap();
    w.peer_both("hub", "spoke");
}

/// Both views of a membership agree as soon as either side is written.
#[test]
fn l2_a_pool_shows_its_network_interfaces_and_they_show_the_pool() {
    let mut w = world();
    put(&mut w, json!({})).unwrap();
    let shown = join(&mut w, "n", "hub/subnets/t", json!([pool()]), json!([ssh()])).unwrap();
    let configuration = &shown["properties"]["ipConfigurations"][0]["properties"];
    assert_eq!(configuration["loadBalancerBackendAddressPools"], json!([pool()]));
    assert_eq!(configuration["loadBalancerInboundNatRules"], json!([ssh()]));
    assert_eq!(w.put(&net("networkInterfaces/n"), shown.clone()).unwrap(), shown);
    let member = reference("networkInterfaces/n/ipConfigurations/c");
    let balancer = w.get(&lb(""));
    let of_pool = balancer["properties"]["backendAddressPools"][0]["properties"].clone();
    assert_eq!(of_pool["backendIPConfigurations"], json!([member]));
    let address =
        json!([{"name": "n_c", "properties": {"adminState": "None", "networkInterfaceIPConfiguration": member}}]);
    assert_eq!(of_pool["loadBalancerBackendAddresses"], address);
    let of_rule = &balancer["properties"]["inboundNatRules"][0]["properties"];
    assert_eq!(of_rule["backendIPConfiguration"], member);
    // A client writes back all of it, also one that leaves out read-only members.
    assert_eq!(w.put(&lb(""), balancer.clone()).unwrap(), balancer);
    let plain = json!({"name": "n_c", "properties": {}});
    let plain = json!({"name": "pool", "properties": {"loadBalancerBackendAddresses": [plain]}});
    let id = lb("/backendAddressPools/pool");
    assert_eq!(
        w.put(&id, plain).unwrap(),
        w.get(&lb(""))["properties"]["backendAddressPools"][0]
    );
    assert_eq!(w.get(&lb("")), balancer);
    // The lists of the other side.
    let list = |path: &str| w.now.list(path, &AgentStatuses::default()).unwrap();
    assert_eq!(list(&lb("/networkInterfaces")), [shown]);
    assert_eq!(list(&net("networkInterfaces/n/loadBalancers")), [balancer]);
    let id = ResourceId::new(id);
    let members = pool_members(&w.now, &id);
    assert_eq!(members.len(), 1);
    assert_eq!(members[0].address.to_string(), "10.0.1.4");
    assert_eq!(members[0].nic, Some(ResourceId::new(net("networkInterfaces/n"))));
    assert_eq!(members[0].ip_configuration.as_ref().unwrap().as_str(), member["id"]);
    // A NIC that leaves the pool, or is deleted, leaves both views.
    join(&mut w, "n", "hub/subnets/t", json!([]), Value::Null).unwrap();
    assert_eq!(pool_members(&w.now, &id), []);
    let left = w.get(&lb(""));
    assert_eq!(
        left["properties"]["backendAddressPools"][0]["properties"]["backendIPConfigurations"],
        json!([])
    );
    assert!(
        left["properties"]["inboundNatRules"][0]["properties"]
            .get("backendIPConfiguration")
            .is_none()
    );
    assert!(
        w.now
            .list(&lb("/networkInterfaces"), &AgentStatuses::default())
            .unwrap()
            .is_empty()
    );
}

#[test]
fn l2_members_are_ordered_by_address() {
    let mut w = world();
    let addresses = [("b", "10.0.1.9"), ("a", "10.0.1.5")];
    let mut body = pool_of(&addresses, "hub", json!({"drainPeriodInSeconds": 0}));
    body["properties"]["loadBalancerBackendAddresses"][1]["properties"]["adminState"] = json!("Down");
    with_pool(&mut w, body).unwrap();
    w.nic("n", "hub/subnets/t", Some("10.0.1.9")).unwrap();
    let id = ResourceId::new(lb("/backendAddressPools/pool"));
    let members = pool_members(&w.now, &id);
    let texts: Vec<String> = members.iter().map(|m| m.address.to_string()).collect();
    assert_eq!(texts, ["10.0.1.5", "10.0.1.9"]);
    assert_eq!((members[0].admin_state, &members[0].nic), (AdminState::Down, &None));
    assert_eq!(members[1].admin_state, AdminState::None);
    let configuration = net("networkInterfaces/n/ipConfigurations/ipconfig1");
    assert_eq!(members[1].ip_configuration, Some(ResourceId::new(&*configuration)));
    let shown = w.get(id.as_str());
    let first = &shown["properties"]["loadBalancerBackendAddresses"][0]["properties"];
    assert_eq!(first["networkInterfaceIPConfiguration"]["id"], configuration);
    assert_eq!(first["virtualNetwork"], reference("virtualNetworks/hub"));
    assert_eq!(shown["properties"]["drainPeriodInSeconds"], 0);
    let nics = w
        .now
        .list(&lb("/networkInterfaces"), &AgentStatuses::default())
        .unwrap();
    assert_eq!(nics.len(), 1);
    assert_eq!(
        pool_members(&w.now, &ResourceId::new(lb("/backendAddressPools/none"))),
        []
    );
}

#[test]
fn l2_a_pool_never_spans_vnets() {
    const CODE: &str = "XPoolAcrossVnets";
    let mut w = world();
    spoke(&mut w);
    put(&mut w, json!({})).unwrap();
    // A NIC in another VNet, even in a peered one, by its pool or by an inbound NAT rule.
    let target = net("networkInterfaces/n");
    for (pools, rules) in [(json!([pool()]), json!([])), (json!([]), json!([ssh()]))] {
        let refused = join(&mut w, "n", "spoke/subnets/s", pools, rules);
        assert_eq!(only(refused, "(L2)"), (CODE, target.clone()));
    }
    // Addresses of another VNet.
    let refused = with_pool(&mut w, pool_of(&[("a", "10.2.0.9")], "spoke", json!({})));
    assert_eq!(only(refused, &net("virtualNetworks/spoke")), (CODE, lb("")));
    let own = json!({"virtualNetwork": reference("virtualNetworks/spoke")});
    let refused = with_pool(&mut w, json!({"name": "pool", "properties": own}));
    assert_eq!(only(refused, "back-end pool 'pool'"), (CODE, lb("")));
    // Addresses of two VNets, and an address in another VNet than that of its pool.
    let mut two = pool_of(&[("a", "10.0.1.9"), ("b", "10.0.1.10")], "hub", json!({}));
    two["properties"]["loadBalancerBackendAddresses"][1]["properties"]["virtualNetwork"] =
        reference("virtualNetworks/spoke");
    let field = |n: usize| {
        format!(
            "properties.backendAddressPools[0].properties.loadBalancerBackendAddresses[{n}].properties.virtualNetwork"
        )
    };
    assert_eq!(only(with_pool(&mut w, two), "(L2)"), (CODE, field(1)));
    let mixed = pool_of(
        &[("a", "10.0.1.9")],
        "hub",
        json!({"virtualNetwork": reference("virtualNetworks/spoke")}),
    );
    assert_eq!(only(with_pool(&mut w, mixed), "(L2)"), (CODE, field(0)));
    // The front ends of a load balancer with members do not move to another VNet.
    join(&mut w, "n", "hub/subnets/t", json!([pool()]), json!([])).unwrap();
    let moved = json!({"frontendIPConfigurations": [front_end("fe", "spoke/subnets/s", json!({}))]});
    assert_eq!(only(put(&mut w, moved), &net("networkInterfaces/n")), (CODE, lb("")));
}

/// A load balancer without a front end has the VNet of its members.
#[test]
fn l2_a_network_interface_is_not_in_pools_of_two_vnets() {
    let mut w = world();
    spoke(&mut w);
    let bare = || json!({"location": "region1", "sku": {"name": "Standard"}, "properties": {"backendAddressPools": [{"name": "pool"}]}});
    w.put(&lb(""), bare()).unwrap();
    join(&mut w, "a", "hub/subnets/t", json!([pool()]), json!([])).unwrap();
    let refused = join(&mut w, "b", "spoke/subnets/s", json!([pool()]), json!([]));
    assert_eq!(only(refused, "(L2)").0, "XPoolAcrossVnets");
    w.put(&net("loadBalancers/other"), bare()).unwrap();
    let other = json!({"id": net("loadBalancers/other/backendAddressPools/pool")});
    join(&mut w, "b", "spoke/subnets/s", json!([other]), json!([])).unwrap();
    let refused = join(&mut w, "a", "hub/subnets/t", json!([pool(), other]), json!([]));
    assert_eq!(only(refused, "loadBalancers/other").0, "XPoolAcrossVnets");
}

#[test]
fn l2_an_address_of_a_pool_is_in_its_vnet() {
    let mut w = world();
    let list = "properties.backendAddressPools[0].properties.loadBalancerBackendAddresses";
    let outside = with_pool(&mut w, pool_of(&[("a", "10.7.0.9")], "hub", json!({})));
    assert_eq!(
        only(outside, "10.0.0.0/16"),
        ("XPoolAddressOutsideVnet", list.to_owned())
    );
    let mut in_subnet = pool_of(&[("a", "10.0.0.9")], "hub", json!({}));
    let first = &mut in_subnet["properties"]["loadBalancerBackendAddresses"][0]["properties"];
    *first = json!({"ipAddress": "10.0.0.9", "subnet": reference("virtualNetworks/hub/subnets/t")});
    let field = format!("{list}[0].properties.ipAddress");
    assert_eq!(
        only(with_pool(&mut w, in_subnet), "10.0.1.0/24"),
        ("XPoolAddressOutsideVnet", field)
    );
    // Each missing or wrong member is named.
    let one = |properties: Value| json!({"name": "pool", "properties": {"loadBalancerBackendAddresses": [{"name": "a", "properties": properties}]}});
    let hub = || reference("virtualNetworks/hub");
    for (field, code, properties) in [
        (
            "virtualNetwork",
            "InvalidRequestFormat",
            json!({"ipAddress": "10.0.1.9"}),
        ),
        ("ipAddress", "InvalidRequestFormat", json!({"virtualNetwork": hub()})),
        (
            "ipAddress",
            "InvalidIPAddressFormat",
            json!({"virtualNetwork": hub(), "ipAddress": "10.0.1"}),
        ),
        (
            "virtualNetwork.id",
            "InvalidResourceReference",
            json!({"virtualNetwork": reference("virtualNetworks/none"), "ipAddress": "10.0.1.9"}),
        ),
        (
            "adminState",
            "InvalidRequestFormat",
            json!({"virtualNetwork": hub(), "ipAddress": "10.0.1.9", "adminState": "Off"}),
        ),
        ("adminState", "XNotSupported", json!({"adminState": "Down"})),
    ] {
        let refused = with_pool(&mut w, one(properties.clone()));
        let target = format!("{list}[0].properties.{field}");
        assert_eq!(
            only(refused, field.split('.').next().unwrap()),
            (code, target),
            "{properties}"
        );
    }
    let twice = with_pool(
        &mut w,
        pool_of(&[("a", "10.0.1.9"), ("b", "10.0.1.9")], "hub", json!({})),
    );
    assert_eq!(only(twice, "twice").0, "XDuplicatePoolAddress");
    let names = with_pool(
        &mut w,
        pool_of(&[("a", "10.0.1.9"), ("A", "10.0.1.8")], "hub", json!({})),
    );
    assert_eq!(codes(names), ["DuplicateResourceName"]);
    for (field, value) in [("drainPeriodInSeconds", json!(-1)), ("syncMode", json!("Sometimes"))] {
        let refused = with_pool(&mut w, json!({"name": "pool", "properties": {field: value}}));
        assert_eq!(only(refused, field).0, "InvalidRequestFormat");
    }
}

/// L7: the time at which a member has left is not known, so its connections cannot go on for a time.
#[test]
fn l7_a_drain_period_is_refused_by_name() {
    let mut w = world();
    let draining = |seconds| json!({"name": "pool", "properties": {"drainPeriodInSeconds": seconds}});
    let refused = with_pool(&mut w, draining(json!(30)));
    assert_eq!(only(refused, "drainPeriodInSeconds").0, "XNotSupported");
    for none in [json!(0), Value::Null] {
        with_pool(&mut w, draining(none)).unwrap();
    }
}

#[test]
fn l2_a_front_end_is_no_back_end() {
    let mut w = world();
    put(&mut w, json!({})).unwrap();
    let own = with_pool(&mut w, pool_of(&[("a", "10.0.0.4")], "hub", json!({})));
    let id = lb("/backendAddressPools/pool");
    assert_eq!(
        only(own, &lb("/frontendIPConfigurations/fe")),
        ("XPoolAddressIsFrontend", id.clone())
    );
    // That of another load balancer, in both orders.
    let bare = |address: &str, pool: Value| {
        let fixed = json!({"privateIPAddress": address, "privateIPAllocationMethod": "Static"});
        let ends = json!([front_end("fe", "hub/subnets/s", fixed)]);
        let lists = json!({"frontendIPConfigurations": ends, "backendAddressPools": [pool]});
        json!({"location": "region1", "sku": {"name": "Standard"}, "properties": lists})
    };
    let other = net("loadBalancers/other");
    let of_other = pool_of(&[("a", "10.0.0.4")], "hub", json!({}));
    let refused = w.put(&other, bare("10.0.0.9", of_other));
    assert_eq!(
        only(refused, &lb("/frontendIPConfigurations/fe")).0,
        "XPoolAddressIsFrontend"
    );
    with_pool(&mut w, pool_of(&[("a", "10.0.0.5")], "hub", json!({}))).unwrap();
    let refused = w.put(&other, bare("10.0.0.5", json!({"name": "pool"})));
    assert_eq!(only(refused, &id).0, "XPoolAddressIsFrontend");
    // A dynamic front end does not get such an address.
    let mut dynamic = bare("", json!({"name": "pool"}));
    dynamic["properties"]["frontendIPConfigurations"] = json!([front_end("fe", "hub/subnets/s", json!({}))]);
    let shown = w.put(&other, dynamic).unwrap();
    let address = &shown["properties"]["frontendIPConfigurations"][0]["properties"]["privateIPAddress"];
    assert_eq!(address, "10.0.0.6");
}

#[test]
fn l2_pools_of_addresses_need_the_sku_standard() {
    let mut w = world();
    let pools = json!({"backendAddressPools": [pool_of(&[("a", "10.0.1.9")], "hub", json!({}))]});
    let refused = w.put(&lb(""), body("Basic", pools));
    assert_eq!(only(refused, "sku.name Standard").0, "XPoolOfAddressesNeedsStandard");
    // A Basic pool lists its network interfaces only as ip configurations.
    w.put(&lb(""), body("Basic", json!({}))).unwrap();
    join(&mut w, "n", "hub/subnets/t", json!([pool()]), json!([])).unwrap();
    let shown = w.get(&lb("/backendAddressPools/pool"));
    assert_eq!(shown["properties"]["loadBalancerBackendAddresses"], json!([]));
    assert_eq!(
        shown["properties"]["backendIPConfigurations"].as_array().map(Vec::len),
        Some(1)
    );
}

#[test]
fn l2_a_pool_has_network_interfaces_or_addresses() {
    const CODE: &str = "XPoolMixesInterfacesAndAddresses";
    let mut w = world();
    put(&mut w, json!({})).unwrap();
    join(&mut w, "n", "hub/subnets/t", json!([pool()]), json!([])).unwrap();
    let addresses = || pool_of(&[("a", "10.0.1.9")], "hub", json!({}));
    let refused = w.put(&lb("/backendAddressPools/pool"), addresses());
    assert_eq!(only(refused, &net("networkInterfaces/n/ipConfigurations/c")).0, CODE);
    join(&mut w, "n", "hub/subnets/t", json!([]), json!([])).unwrap();
    with_pool(&mut w, addresses()).unwrap();
    let refused = join(&mut w, "n", "hub/subnets/t", json!([pool()]), json!([]));
    assert_eq!(only(refused, "(L2)"), (CODE, net("networkInterfaces/n")));
}

#[test]
fn l2_references_of_network_interfaces_are_checked() {
    let mut w = world();
    put(&mut w, json!({})).unwrap();
    let field = |list: &str, n: usize| format!("properties.ipConfigurations[0].properties.{list}[{n}]");
    let (pools, rules) = ("loadBalancerBackendAddressPools", "loadBalancerInboundNatRules");
    let none = json!({"id": lb("/backendAddressPools/none")});
    let refused = join(&mut w, "n", "hub/subnets/t", json!([none]), json!([]));
    let target = format!("{}.id", field(pools, 0));
    assert_eq!(only(refused, "none"), ("InvalidResourceReference", target));
    let swapped = join(&mut w, "n", "hub/subnets/t", json!([ssh()]), json!([]));
    assert_eq!(only(swapped, "ssh").0, "InvalidResourceReference");
    let twice = join(&mut w, "n", "hub/subnets/t", json!([pool(), pool()]), json!([]));
    assert_eq!(
        only(twice, "twice"),
        ("DuplicateIpConfigurationReferenceOnBackendAddressPool", field(pools, 1))
    );
    let twice = join(&mut w, "n", "hub/subnets/t", json!([]), json!([ssh(), ssh()]));
    assert_eq!(only(twice, "twice"), ("XInboundNatRuleInUse", field(rules, 1)));
    // A load balancer in another region.
    let far = json!({"location": "region2", "sku": {"name": "Standard"}, "properties": {"backendAddressPools": [{"name": "p"}]}});
    w.put(&net("loadBalancers/far"), far).unwrap();
    let far = json!([{"id": net("loadBalancers/far/backendAddressPools/p")}]);
    let refused = join(&mut w, "n", "hub/subnets/t", far, json!([]));
    assert_eq!(only(refused, "region2").0, "InvalidResourceReference");
}

#[test]
fn an_inbound_nat_rule_has_one_target() {
    let mut w = world();
    put(&mut w, json!({})).unwrap();
    join(&mut w, "a", "hub/subnets/t", json!([]), json!([ssh()])).unwrap();
    let refused = join(&mut w, "b", "hub/subnets/t", json!([]), json!([ssh()]));
    assert_eq!(
        only(refused, &net("networkInterfaces/a/ipConfigurations/c")),
        ("XInboundNatRuleInUse", net("networkInterfaces/b"))
    );
    // Two ip configurations of one network interface.
    let mut two = nic_body("hub/subnets/t", json!([]), json!([ssh()]));
    let mut second = two["properties"]["ipConfigurations"][0].clone();
    second["name"] = json!("d");
    two["properties"]["ipConfigurations"]
        .as_array_mut()
        .unwrap()
        .push(second);
    let refused = w.put(&net("networkInterfaces/a"), two);
    assert_eq!(only(refused, "two targets").0, "XInboundNatRuleInUse");
}

#[test]
fn what_network_interfaces_refer_to_cannot_be_deleted() {
    let mut w = world();
    put(&mut w, json!({"loadBalancingRules": []})).unwrap();
    join(&mut w, "a", "hub/subnets/t", json!([pool()]), json!([])).unwrap();
    join(&mut w, "b", "hub/subnets/t", json!([]), json!([ssh()])).unwrap();
    let (of_a, of_b) = (
        net("networkInterfaces/a/ipConfigurations/c"),
        net("networkInterfaces/b/ipConfigurations/c"),
    );
    let refused = w.delete(&lb("")).unwrap_err();
    assert_eq!(refused.problems[0].code, "XLoadBalancerInUse");
    let message = &refused.problems[0].message;
    assert!(message.contains(&of_a) && message.contains(&of_b), "{message}");
    let id = lb("/backendAddressPools/pool");
    assert_eq!(only(w.delete(&id), &of_a), ("XLoadBalancerPoolInUse", id.clone()));
    let removed = put(&mut w, json!({"loadBalancingRules": [], "backendAddressPools": []}));
    assert_eq!(only(removed, &of_a), ("XLoadBalancerPoolInUse", id));
    let id = lb("/inboundNatRules/ssh");
    assert_eq!(only(w.delete(&id), &of_b), ("XInboundNatRuleInUse", id.clone()));
    let removed = put(&mut w, json!({"loadBalancingRules": [], "inboundNatRules": []}));
    assert_eq!(only(removed, &of_b), ("XInboundNatRuleInUse", id));
    // A group with all of them is deleted in the right order.
    let group = lb("").split("/providers/").next().unwrap().to_owned();
    assert!(w.delete(&group).unwrap());
    assert!(w.now.load_balancers.is_empty() && w.now.nics.is_empty() && w.now.vnets.is_empty());
}

#[test]
fn a_vnet_with_addresses_of_a_pool_cannot_be_deleted() {
    let mut w = world();
    let lists = json!({"backendAddressPools": [pool_of(&[("a", "10.0.1.9")], "hub", json!({}))]});
    let bare = json!({"location": "region1", "sku": {"name": "Standard"}, "properties": lists});
    w.put(&lb(""), bare).unwrap();
    let vnet = net("virtualNetworks/hub");
    let refused = w.delete(&vnet);
    assert_eq!(
        only(refused, &lb("/backendAddressPools/pool")),
        ("XVirtualNetworkInUseByPool", vnet.clone())
    );
    w.delete(&lb("")).unwrap();
    assert!(w.delete(&vnet).unwrap());
}

#[test]
fn a_pool_has_azures_number_of_members() {
    let mut w = world();
    w.subnet("hub", "wide", "10.0.32.0/19").unwrap();
    w.put(&lb(""), body("Basic", json!({}))).unwrap();
    for n in 0..300 {
        join(&mut w, &format!("n{n}"), "hub/subnets/wide", json!([pool()]), json!([])).unwrap();
    }
    let refused = join(&mut w, "n300", "hub/subnets/wide", json!([pool()]), json!([]));
    assert_eq!(
        only(refused, "at most 300"),
        ("XTooManyItems", lb("/backendAddressPools/pool"))
    );
    let addresses = |count: usize| -> Value {
        let vnet = reference("virtualNetworks/hub");
        let address = |n: usize| {
            let text = format!("10.0.{}.{}", 32 + n / 256, n % 256);
            json!({"name": format!("a{n}"), "properties": {"ipAddress": text, "virtualNetwork": vnet}})
        };
        let all: Vec<Value> = (0..count).map(address).collect();
        let pools = json!([{"name": "pool", "properties": {"loadBalancerBackendAddresses": all}}]);
        let lists = json!({"backendAddressPools": pools, "inboundNatRules": [nat_rule("ssh", json!({}))]});
        body("Standard", lists)["properties"].clone()
    };
    w = world();
    w.subnet("hub", "wide", "10.0.32.0/19").unwrap();
    let body = |count| json!({"location": "region1", "sku": {"name": "Standard"}, "properties": addresses(count)});
    assert_eq!(only(w.put(&lb(""), body(5001)), "at most 5000").0, "XTooManyItems");
    w.put(&lb(""), body(5000)).unwrap();
}
