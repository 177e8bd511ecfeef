//! Internal load balancers: their bodies and front ends (L1, L3).

use super::{World, net, with};
use crate::change::Rejection;
use crate::resource::{AdminState, BalancedProtocol, Distribution, LoadBalancerSku, ProbeProtocol};
use crate::topology::{AgentStatuses, Topology};
use serde_json::{Value, json};
use tombolo_proto::id::ResourceId;

/// A VNet `hub` in region1 with the subnets `s` and `t`.
pub(super) fn world() -> World {
    let mut w = World::new();
    w.vnet("hub", &["10.0.0.0/16"]).unwrap();
    w.subnet("hub", "s", "10.0.0.0/24").unwrap();
    w.subnet("hub", "t", "10.0.1.0/24").unwrap();
    w
}

pub(super) fn reference(tail: &str) -> Value {
    json!({"id": net(tail)})
}

/// The id of the load balancer `lb`, or of one of its children.
pub(super) fn lb(child: &str) -> String {
    net(&format!("loadBalancers/lb{child}"))
}

pub(super) fn front_end(name: &str, subnet: &str, more: Value) -> Value {
    let properties = json!({"subnet": reference(&format!("virtualNetworks/{subnet}"))});
    json!({"name": name, "properties": with(properties, more)})
}

pub(super) fn rule(name: &str, more: Value) -> Value {
    let properties = json!({
        "protocol": "Tcp", "frontendPort": 80, "backendPort": 8080,
        "frontendIPConfiguration": {"id": lb("/frontendIPConfigurations/fe")},
        "backendAddressPool": {"id": lb("/backendAddressPools/pool")},
        "probe": {"id": lb("/probes/probe")},
    });
    json!({"name": name, "properties": with(properties, more)})
}

pub(super) fn nat_rule(name: &str, more: Value) -> Value {
    let properties = json!({
        "protocol": "Tcp", "frontendPort": 2222, "backendPort": 22,
        "frontendIPConfiguration": {"id": lb("/frontendIPConfigurations/fe")},
    });
    json!({"name": name, "properties": with(properties, more)})
}

pub(super) fn probe(more: Value) -> Value {
    json!({"name": "probe", "properties": with(json!({"protocol": "Tcp", "port": 8080}), more)})
}

/// The body of a load balancer with one child of each kind. `more` replaces lists of children.
pub(super) fn body(sku: &str, more: Value) -> Value {
    let lists = json!({
        "frontendIPConfigurations": [front_end("fe", "hub/subnets/s", json!({}))],
        "backendAddressPools": [{"name": "pool"}],
        "probes": [probe(json!({}))],
        "loadBalancingRules": [rule("web", json!({}))],
        "inboundNatRules": [nat_rule("ssh", json!({}))],
    });
    json!({"location": "region1", "sku": {"name": sku}, "properties": with(lists, more)})
}

pub(super) fn put(w: &mut World, more: Value) -> Result<Value, Rejection> {
    w.put(&lb(""), body("Standard", more))
}

/// The code and target of the only problem, the text of which must contain `text`.
pub(super) fn only<T: std::fmt::Debug>(result: Result<T, Rejection>, text: &str) -> (&'static str, String) {
    let refused = result.unwrap_err();
    assert_eq!((refused.problems.len(), refused.status), (1, 400), "{refused:?}");
    let problem = &refused.problems[0];
    assert!(problem.message.contains(text), "{text}: {}", problem.message);
    (problem.code, problem.target.clone().unwrap_or_default())
}

pub(super) fn at(list: &str, field: &str) -> String {
    format!("properties.{list}[0].properties.{field}")
}

#[test]
fn l3_a_load_balancer_is_shown_with_defaults_and_back_references() {
    let mut w = world();
    let shown = put(&mut w, json!({})).unwrap();
    assert_eq!(shown["sku"], json!({"name": "Standard", "tier": "Regional"}));
    let rule_id = json!([{"id": lb("/loadBalancingRules/web")}]);
    let properties = |list: &str| shown["properties"][list][0]["properties"].clone();
    let fe = properties("frontendIPConfigurations");
    assert_eq!(fe["privateIPAddress"], "10.0.0.4");
    assert_eq!(fe["privateIPAllocationMethod"], "Dynamic");
    assert_eq!(fe["privateIPAddressVersion"], "IPv4");
    assert_eq!(fe["loadBalancingRules"], rule_id);
    assert_eq!(fe["inboundNatRules"], json!([{"id": lb("/inboundNatRules/ssh")}]));
    let pool = properties("backendAddressPools");
    assert_eq!(pool["loadBalancingRules"], rule_id);
    for list in ["backendIPConfigurations", "loadBalancerBackendAddresses"] {
        assert_eq!(pool[list], json!([]), "{list}");
    }
    let probe = properties("probes");
    assert_eq!(
        probe,
        json!({"protocol": "Tcp", "port": 8080, "intervalInSeconds": 15, "numberOfProbes": 2, "probeThreshold": 1,
            "noHealthyBackendsBehavior": "AllProbedDown", "loadBalancingRules": rule_id, "provisioningState": "Succeeded"})
    );
    let rule = properties("loadBalancingRules");
    assert_eq!(rule["loadDistribution"], "Default");
    assert_eq!(rule["idleTimeoutInMinutes"], 4);
    for flag in [
        "enableFloatingIP",
        "enableTcpReset",
        "disableOutboundSnat",
        "enableConnectionTracking",
    ] {
        assert_eq!(rule[flag], false, "{flag}");
    }
    let pool_id = json!({"id": lb("/backendAddressPools/pool")});
    assert_eq!(rule["backendAddressPool"], pool_id);
    assert_eq!(rule["backendAddressPools"], json!([pool_id]));
    for list in ["outboundRules", "inboundNatPools"] {
        assert_eq!(shown["properties"][list], json!([]), "{list}");
    }
    // Each child has a body of its own, and the collections list them.
    for (collection, name) in [
        ("frontendIPConfigurations", "fe"),
        ("backendAddressPools", "pool"),
        ("probes", "probe"),
        ("loadBalancingRules", "web"),
        ("inboundNatRules", "ssh"),
    ] {
        let child = &shown["properties"][collection][0];
        assert_eq!(child["type"], format!("Microsoft.Network/loadBalancers/{collection}"));
        assert_eq!(w.get(&lb(&format!("/{collection}/{name}"))), *child, "{collection}");
        let listed = w.now.list(&lb(&format!("/{collection}")), &AgentStatuses::default());
        assert_eq!(listed.unwrap(), std::slice::from_ref(child), "{collection}");
    }
    assert_eq!(
        w.now.list(&lb("/outboundRules"), &AgentStatuses::default()).unwrap(),
        [Value::Null; 0]
    );
    assert_eq!(w.view(&lb("/outboundRules/o")), None);
}

/// What GET shows can be written back, and changes neither a value nor an etag, also from the store.
#[test]
fn l3_writing_back_a_load_balancer_changes_nothing() {
    let mut w = world();
    let full = json!({
        "frontendIPConfigurations": [with(front_end("fe", "hub/subnets/s", json!({"privateIPAddress": "10.0.0.9",
            "privateIPAllocationMethod": "Static"})), json!({"zones": ["1", "2"]}))],
        "backendAddressPools": [{"name": "pool", "properties": {"drainPeriodInSeconds": 0}},
            {"name": "addresses", "properties": {"syncMode": "Manual", "virtualNetwork": reference("virtualNetworks/hub"),
                "loadBalancerBackendAddresses": [{"name": "a", "properties": {"ipAddress": "10.0.1.7", "adminState": "down"}}]}},
            {"name": "each", "properties": {"loadBalancerBackendAddresses": [{"name": "a", "properties": {
                "ipAddress": "10.0.1.8", "subnet": reference("virtualNetworks/hub/subnets/t")}}]}}],
        "probes": [probe(json!({"protocol": "http", "requestPath": "/up", "intervalInSeconds": 5, "probeThreshold": 3,
            "numberOfProbes": 4, "noHealthyBackendsBehavior": "AllProbedUp"}))],
        "loadBalancingRules": [rule("web", json!({"loadDistribution": "sourceip", "enableTcpReset": true,
            "idleTimeoutInMinutes": 30, "disableOutboundSnat": true, "enableConnectionTracking": true})),
            rule("dsr", json!({"protocol": "Udp", "frontendPort": 53, "backendPort": 53, "enableFloatingIP": true, "probe": null}))],
    });
    let first = w.put(&lb(""), body("standard", full)).unwrap();
    let mut written = w.put(&lb(""), first.clone()).unwrap();
    assert_eq!(written, first);
    for child in [
        "/backendAddressPools/addresses",
        "/backendAddressPools/each",
        "/inboundNatRules/ssh",
    ] {
        let shown = w.get(&lb(child));
        assert_eq!(w.put(&lb(child), shown.clone()).unwrap(), shown, "{child}");
    }
    let documents = w.now.documents_since(&Topology::default());
    let documents = documents.iter().map(|d| (&*d.key, d.value.as_deref().unwrap()));
    let read = Topology::from_documents(documents).unwrap();
    assert_eq!(w.now.documents_since(&read), []);
    w.now = read;
    written = w.get(&lb(""));
    assert_eq!(written, first);
    let balancer = w.now.load_balancers[&ResourceId::new(lb(""))].clone();
    assert_eq!(balancer.sku, LoadBalancerSku::Standard);
    assert_eq!(balancer.vnet(), Some(ResourceId::new(net("virtualNetworks/hub"))));
    assert_eq!(balancer.front_ends[0].zones, ["1", "2"]);
    assert!(balancer.front_ends[0].is_static);
    assert_eq!(balancer.pools[1].addresses[0].admin_state, AdminState::Down);
    assert_eq!(balancer.pools[0].drain_period_seconds, Some(0));
    let probe = &balancer.probes[0];
    assert_eq!(
        (probe.protocol, probe.interval_seconds, probe.threshold),
        (ProbeProtocol::Http, 5, 3)
    );
    assert_eq!((probe.number, probe.all_up_when_all_down), (4, true));
    let rule = &balancer.rules[0];
    assert_eq!(
        (rule.protocol, rule.distribution),
        (BalancedProtocol::Tcp, Distribution::SourceIp)
    );
    assert!(rule.tcp_reset && !rule.floating_ip && balancer.rules[1].floating_ip);
}

/// The etag of a child changes only with the child.
#[test]
fn l3_a_change_of_one_child_renews_its_etag_alone() {
    let mut w = world();
    let before = put(&mut w, json!({})).unwrap();
    let after = put(
        &mut w,
        json!({"loadBalancingRules": [rule("web", json!({"frontendPort": 81}))]}),
    )
    .unwrap();
    assert_ne!(before["etag"], after["etag"]);
    for list in [
        "frontendIPConfigurations",
        "backendAddressPools",
        "probes",
        "inboundNatRules",
    ] {
        assert_eq!(before["properties"][list], after["properties"][list], "{list}");
    }
    let etag = |shown: &Value| shown["properties"]["loadBalancingRules"][0]["etag"].clone();
    assert_ne!(etag(&before), etag(&after));
}

/// Clients of older API versions leave out members that they do not know, but not the lists of children.
#[test]
fn l3_members_that_older_clients_do_not_know_are_kept() {
    let mut w = world();
    let address = |state: Value| {
        let properties =
            json!({"ipAddress": "10.0.1.7", "virtualNetwork": reference("virtualNetworks/hub"), "adminState": state});
        json!([{"name": "pool", "properties": {"loadBalancerBackendAddresses": [{"name": "a", "properties": properties}]}}])
    };
    let lists = |state: Value, probe_more: Value, rule_more: Value| {
        json!({
            "backendAddressPools": address(state),
            "probes": [probe(probe_more)],
            "loadBalancingRules": [rule("web", rule_more)],
        })
    };
    let full = put(
        &mut w,
        lists(
            json!("Up"),
            json!({"noHealthyBackendsBehavior": "AllProbedUp"}),
            json!({"enableConnectionTracking": true, "disableOutboundSnat": true}),
        ),
    );
    let full = full.unwrap();
    let again = put(&mut w, lists(Value::Null, json!({}), json!({}))).unwrap();
    assert_eq!(again, full);
    let removed = put(
        &mut w,
        json!({"inboundNatRules": null, "loadBalancingRules": null, "probes": null}),
    )
    .unwrap();
    for list in ["inboundNatRules", "loadBalancingRules", "probes"] {
        assert_eq!(removed["properties"][list], json!([]), "{list}");
    }
}

#[test]
fn l3_the_pool_of_a_rule_is_singular_or_plural() {
    let mut w = world();
    let pool = || json!({"id": lb("/backendAddressPools/POOL")});
    let shown = put(&mut w, json!({})).unwrap();
    for more in [
        json!({"backendAddressPool": null, "backendAddressPools": [pool()]}),
        json!({"backendAddressPool": pool(), "backendAddressPools": null}),
        json!({"backendAddressPool": pool(), "backendAddressPools": [pool()]}),
        json!({"backendAddressPool": pool(), "backendAddressPools": []}),
    ] {
        let again = put(&mut w, json!({"loadBalancingRules": [rule("web", more.clone())]})).unwrap();
        assert_eq!(again, shown, "{more}");
    }
    let none = rule("web", json!({"backendAddressPool": null, "backendAddressPools": []}));
    let without = put(&mut w, json!({"loadBalancingRules": [none]})).unwrap();
    let properties = &without["properties"]["loadBalancingRules"][0]["properties"];
    assert_eq!(
        (&properties["backendAddressPools"], properties.get("backendAddressPool")),
        (&json!([]), None)
    );
}

#[test]
fn l1_several_pools_of_a_rule_are_refused() {
    let mut w = world();
    let pools = json!([{"name": "pool"}, {"name": "two"}]);
    let two = rule(
        "web",
        json!({"backendAddressPools": [{"id": lb("/backendAddressPools/two")}]}),
    );
    let refused = put(
        &mut w,
        json!({"backendAddressPools": pools, "loadBalancingRules": [two]}),
    );
    let at = at("loadBalancingRules", "backendAddressPool.id");
    assert_eq!(only(refused, "a rule has one pool"), ("XNotSupported", at));
}

/// L1: everything that is not internal is refused by its name, with what to do instead.
#[test]
fn l1_public_and_gateway_load_balancers_are_refused_by_name() {
    let mut w = world();
    w.put(&net("publicIPAddresses/p"), json!({"location": "region1"}))
        .unwrap();
    let public = || reference("publicIPAddresses/p");
    let of_front_end = |more: Value| json!({"frontendIPConfigurations": [front_end("fe", "hub/subnets/s", more)]});
    let of_pool = |more: Value| json!({"backendAddressPools": [{"name": "pool", "properties": more}]});
    let of_nat_rule = |more: Value| json!({"inboundNatRules": [nat_rule("ssh", more)]});
    let other = json!({"loadBalancerBackendAddresses": [{"name": "a", "properties": {
        "ipAddress": "10.0.1.7", "virtualNetwork": reference("virtualNetworks/hub"),
        "loadBalancerFrontendIPConfiguration": {"id": lb("/frontendIPConfigurations/fe")}}}]});
    for (target, more, text) in [
        (
            at("frontendIPConfigurations", "publicIPAddress"),
            of_front_end(json!({"publicIPAddress": public()})),
            "internal",
        ),
        (
            at("frontendIPConfigurations", "publicIPPrefix"),
            of_front_end(json!({"publicIPPrefix": public()})),
            "internal",
        ),
        (
            at("frontendIPConfigurations", "gatewayLoadBalancer"),
            of_front_end(json!({"gatewayLoadBalancer": public()})),
            "VirtualAppliance",
        ),
        (
            at("backendAddressPools", "tunnelInterfaces"),
            of_pool(json!({"tunnelInterfaces": [{"port": 1}]})),
            "leave it out",
        ),
        (
            at(
                "backendAddressPools",
                "loadBalancerBackendAddresses[0].properties.loadBalancerFrontendIPConfiguration",
            ),
            of_pool(other),
            "a machine",
        ),
        (
            at("inboundNatRules", "frontendPortRangeStart"),
            of_nat_rule(json!({"frontendPortRangeStart": 500})),
            "each machine",
        ),
        (
            at("inboundNatRules", "frontendPortRangeEnd"),
            of_nat_rule(json!({"frontendPortRangeEnd": 600})),
            "each machine",
        ),
        (
            at("inboundNatRules", "backendAddressPool"),
            of_nat_rule(json!({"backendAddressPool": public()})),
            "each machine",
        ),
        (
            "properties.outboundRules".into(),
            json!({"outboundRules": [{"name": "o"}]}),
            "internal",
        ),
        (
            "properties.inboundNatPools".into(),
            json!({"inboundNatPools": [{"name": "o"}]}),
            "each machine",
        ),
    ] {
        let refused = put(&mut w, more);
        assert_eq!(only(refused, text), ("XNotSupported", target));
        assert_eq!(w.view(&lb("")), None);
    }
    for (sku, target) in [
        (json!({"name": "Gateway"}), "sku.name"),
        (json!({"name": "Standard", "tier": "Global"}), "sku.tier"),
    ] {
        let refused = w.put(&lb(""), with(body("", json!({})), json!({"sku": sku})));
        assert_eq!(only(refused, "not supported"), ("XNotSupported", target.to_owned()));
    }
    let odd = w.put(&lb(""), body("Gold", json!({})));
    assert_eq!(
        only(odd, "Basic, Standard"),
        ("InvalidRequestFormat", "sku.name".to_owned())
    );
    // Without a subnet, a front end could only be public.
    let none = put(&mut w, json!({"frontendIPConfigurations": [{"name": "fe"}]}));
    assert_eq!(
        only(none, "required"),
        ("InvalidRequestFormat", at("frontendIPConfigurations", "subnet"))
    );
}

#[test]
fn l1_a_front_end_has_an_address_that_nobody_else_gets() {
    let mut w = world();
    w.nic("first", "hub/subnets/s", Some("10.0.0.5")).unwrap();
    let fixed = |address: &str| {
        let more = json!({"privateIPAddress": address, "privateIPAllocationMethod": "Static"});
        json!({"frontendIPConfigurations": [front_end("fe", "hub/subnets/s", more)]})
    };
    let in_use = put(&mut w, fixed("10.0.0.5"));
    let target = at("frontendIPConfigurations", "privateIPAddress");
    let (text, outside) = (net("networkInterfaces/first"), put(&mut w, fixed("10.0.1.5")));
    assert_eq!(only(in_use, &text), ("PrivateIPAddressInUse", target.clone()));
    assert_eq!(only(outside, "10.0.0.0/24"), ("PrivateIPAddressNotInSubnet", target));
    put(&mut w, fixed("10.0.0.4")).unwrap();
    let taken = w.nic("second", "hub/subnets/s", Some("10.0.0.4")).unwrap_err();
    assert_eq!(taken.problems[0].code, "PrivateIPAddressInUse");
    assert!(taken.problems[0].message.contains(&lb("")), "{taken}");
    let next = w.nic("second", "hub/subnets/s", None).unwrap();
    let address = &next["properties"]["ipConfigurations"][0]["properties"]["privateIPAddress"];
    assert_eq!(address, "10.0.0.6");
    // A dynamic front end keeps its address; it moves with its subnet.
    let dynamic = |subnet: &str| json!({"frontendIPConfigurations": [front_end("fe", subnet, json!({}))]});
    let shown = put(&mut w, dynamic("hub/subnets/s")).unwrap();
    let address =
        |shown: &Value| shown["properties"]["frontendIPConfigurations"][0]["properties"]["privateIPAddress"].clone();
    assert_eq!(address(&shown), "10.0.0.4");
    let moved = put(&mut w, dynamic("hub/subnets/t")).unwrap();
    assert_eq!(address(&moved), "10.0.1.4");
    // The subnet shows its front end, and cannot be deleted.
    let subnet = net("virtualNetworks/hub/subnets/t");
    let user = json!([{"id": lb("/frontendIPConfigurations/fe")}]);
    assert_eq!(w.get(&subnet)["properties"]["ipConfigurations"], user);
    assert_eq!(only(w.delete(&subnet), &lb("")).0, "InUseSubnetCannotBeDeleted");
    let gone = put(
        &mut w,
        json!({"frontendIPConfigurations": [], "loadBalancingRules": [], "inboundNatRules": []}),
    );
    gone.unwrap();
    assert!(w.delete(&subnet).unwrap());
}

#[test]
fn l1_the_front_ends_are_in_one_vnet_of_the_region() {
    let mut w = world();
    w.vnet("spoke", &["10.2.0.0/16"]).unwrap();
    w.subnet("spoke", "s", "10.2.0.0/24").unwrap();
    let far = json!({"location": "region2", "properties": {"addressSpace": {"addressPrefixes": ["10.9.0.0/16"]}}});
    w.put(&net("virtualNetworks/far"), far).unwrap();
    w.subnet("far", "s", "10.9.0.0/24").unwrap();
    w.subnet("hub", "GatewaySubnet", "10.0.255.0/27").unwrap();
    let two = |second: &str| {
        let ends = [
            front_end("fe", "hub/subnets/s", json!({})),
            front_end("two", second, json!({})),
        ];
        json!({"frontendIPConfigurations": ends})
    };
    let refused = put(&mut w, two("spoke/subnets/s"));
    let second = lb("/frontendIPConfigurations/two");
    assert_eq!(only(refused, "one virtual network"), ("XFrontendsAcrossVnets", second));
    let only_far = json!({"frontendIPConfigurations": [front_end("fe", "far/subnets/s", json!({}))]});
    let target = at("frontendIPConfigurations", "subnet.id");
    assert_eq!(
        only(put(&mut w, only_far), "'region2'"),
        ("InvalidResourceReference", target)
    );
    assert_eq!(
        only(put(&mut w, two("hub/subnets/GatewaySubnet")), "G1"),
        ("GatewaySubnet", lb(""))
    );
    let missing = put(&mut w, two("hub/subnets/nowhere"));
    assert_eq!(only(missing, "nowhere").0, "InvalidResourceReference");
    put(&mut w, two("hub/subnets/t")).unwrap();
    let service = json!([{"name": "web", "properties": {"serviceName": "Microsoft.Web/serverFarms"}}]);
    let delegated = json!({"properties": {"addressPrefix": "10.0.2.0/24", "delegations": service}});
    w.put(&net("virtualNetworks/hub/subnets/d"), delegated).unwrap();
    assert_eq!(
        only(put(&mut w, two("hub/subnets/d")), "delegation").0,
        "XSubnetIsDelegated"
    );
}
