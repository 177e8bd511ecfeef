//! Manifests with load balancers.

use super::*;

const BALANCERS: &str = include_str!("../../../tests/balancers.yaml");
const NET: &str = "/subscriptions/s/resourceGroups/lab/providers/Microsoft.Network";

fn body(desired: &[DesiredResource], name: &str) -> Value {
    desired.iter().find(|e| e.name == name).unwrap().body.clone()
}

fn child(kind: &str, name: &str) -> Value {
    json!({"id": format!("{NET}/loadBalancers/web/{kind}/{name}")})
}

#[test]
fn load_balancers_come_after_their_subnets_and_before_their_network_interfaces() {
    let plan = Plan::make(&expanded(BALANCERS), &Server::default(), false).unwrap();
    for balancer in ["web", "appliances", "old"] {
        assert!(position(&plan, "hub") < position(&plan, balancer));
        assert!(position(&plan, balancer) < position(&plan, "one-nic"));
    }
}

#[test]
fn load_balancers_expand_with_azures_names_and_defaults() {
    let desired = expanded(BALANCERS);
    let web = body(&desired, "web");
    assert_eq!(web["location"], "region2", "the region of its virtual network");
    assert_eq!(web["sku"], json!({"name": "Standard"}));
    assert_eq!(body(&desired, "old")["sku"], json!({"name": "Basic"}));
    let subnet = |name: &str| json!({"id": format!("{NET}/virtualNetworks/hub/subnets/{name}")});
    let properties = &web["properties"];
    assert_eq!(
        properties["frontendIPConfigurations"],
        json!([
            {"name": "front", "properties": {"subnet": subnet("workload"), "privateIPAllocationMethod": "Static",
                "privateIPAddress": "10.1.0.36", "privateIPAddressVersion": "IPv4"}},
            {"name": "other", "properties": {"subnet": subnet("outside"), "privateIPAllocationMethod": "Dynamic"}},
        ])
    );
    let address = |ip: &str| json!({"ipAddress": ip, "virtualNetwork": null, "subnet": null});
    assert_eq!(
        properties["backendAddressPools"],
        json!([
            {"name": "servers", "properties": {"loadBalancerBackendAddresses": null, "virtualNetwork": null,
                "drainPeriodInSeconds": null}},
            {"name": "outside", "properties": {
                "loadBalancerBackendAddresses": [
                    {"name": "one", "properties": address("10.1.1.9")}, {"name": "two", "properties": address("10.1.1.10")},
                ],
                "virtualNetwork": {"id": format!("{NET}/virtualNetworks/hub")}, "drainPeriodInSeconds": 0,
            }},
        ])
    );
    assert_eq!(
        properties["probes"][1]["properties"],
        json!({"protocol": "Tcp", "port": 22, "requestPath": null, "intervalInSeconds": 15, "probeThreshold": 1,
            "noHealthyBackendsBehavior": "AllProbedUp"})
    );
    let pool = child("backendAddressPools", "outside");
    assert_eq!(
        properties["loadBalancingRules"][1]["properties"],
        json!({
            "protocol": "Udp", "frontendIPConfiguration": child("frontendIPConfigurations", "other"), "frontendPort": 53,
            "backendPort": 53, "backendAddressPool": pool, "backendAddressPools": [pool], "probe": null,
            "loadDistribution": "Default", "idleTimeoutInMinutes": 4, "enableFloatingIP": true, "enableTcpReset": false,
        })
    );
    assert_eq!(
        properties["inboundNatRules"][0]["properties"],
        json!({
            "protocol": "Tcp", "frontendIPConfiguration": child("frontendIPConfigurations", "front"),
            "frontendPort": 2222, "backendPort": 22, "idleTimeoutInMinutes": 4, "enableFloatingIP": false,
            "enableTcpReset": false,
        })
    );
}

#[test]
fn l9_a_rule_for_all_ports_names_no_port_and_the_only_front_end_and_pool_need_no_name() {
    let appliances = body(&expanded(BALANCERS), "appliances");
    let rule = &appliances["properties"]["loadBalancingRules"][0]["properties"];
    let id = |kind: &str, name: &str| json!({"id": format!("{NET}/loadBalancers/appliances/{kind}/{name}")});
    assert_eq!((&rule["frontendPort"], &rule["backendPort"]), (&json!(0), &json!(0)));
    assert_eq!(rule["frontendIPConfiguration"], id("frontendIPConfigurations", "front"));
    assert_eq!(rule["backendAddressPool"], id("backendAddressPools", "all"));
}

#[test]
fn l2_each_address_of_a_nic_has_its_own_pools_and_rules() {
    let desired = expanded(BALANCERS);
    let configuration = |nic: &str, index: usize| {
        let body = body(&desired, nic);
        body["properties"]["ipConfigurations"][index]["properties"].clone()
    };
    let one = configuration("one-nic", 0);
    assert_eq!(
        one["loadBalancerBackendAddressPools"],
        json!([child("backendAddressPools", "servers")])
    );
    assert_eq!(
        one["loadBalancerInboundNatRules"],
        json!([child("inboundNatRules", "ssh")])
    );
    let second = configuration("two-nic", 1);
    assert_eq!(
        second["loadBalancerBackendAddressPools"],
        json!([{"id": format!("{NET}/loadBalancers/old/backendAddressPools/legacy")}])
    );
    assert_eq!(second["loadBalancerInboundNatRules"], Value::Null);
}

#[test]
fn l2_the_network_interfaces_of_a_pool_in_the_controllers_answer_are_no_difference() {
    let desired = expanded(BALANCERS);
    let mut server = server_after(&desired);
    for e in desired.iter().filter(|e| e.kind == Kind::LoadBalancer) {
        let mut body = answer(e, &json!({"inboundNatPools": [], "outboundRules": []}));
        body["sku"]["tier"] = json!("Regional");
        for pool in body["properties"]["backendAddressPools"].as_array_mut().unwrap() {
            let addresses = &mut pool["properties"]["loadBalancerBackendAddresses"];
            if addresses.is_null() {
                *addresses = json!([{"name": "n", "properties": {"networkInterfaceIPConfiguration": {"id": "/x"}}}]);
            }
        }
        server.insert(e.kind, &e.path, body);
    }
    let plan = Plan::make(&desired, &server, true).unwrap();
    assert!(plan.is_empty(), "{:?}", plan.changes().collect::<Vec<_>>());
}

#[test]
fn l2_a_nic_leaves_a_removed_rule_before_the_load_balancer_is_written() {
    let server = server_after(&expanded(BALANCERS));
    let renamed = BALANCERS.replace("      ssh: ", "      shell: ");
    let desired = expanded(&renamed.replace("[web/ssh]", "[web/shell]"));
    let plan = Plan::make(&desired, &server, true).unwrap();
    assert_eq!(names(&plan, Action::Update), ["one-nic", "web", "one-nic"]);
    let first = plan.changes().next().unwrap();
    let left = &first.body["properties"]["ipConfigurations"][0]["properties"];
    assert_eq!(left["loadBalancerInboundNatRules"], json!([]));
    assert_eq!(
        left["loadBalancerBackendAddressPools"],
        json!([child("backendAddressPools", "servers")]),
        "other references stay"
    );
    assert_eq!(left["privateIPAddress"], "10.1.0.4");
    assert!(first.note.as_ref().unwrap().contains("(L2)"));

    // If the NIC gets no new reference, the first update is its only one.
    let desired = expanded(&renamed.replace(", inboundNatRules: [web/ssh]", ""));
    let plan = Plan::make(&desired, &server, true).unwrap();
    assert_eq!(names(&plan, Action::Update), ["one-nic", "web"]);
    // Without pruning, the rule stays, and nothing depends on the order.
    let plan = Plan::make(&desired, &server, false).unwrap();
    assert_eq!(names(&plan, Action::Update), ["web", "one-nic"]);
}

#[test]
fn l3_contradictions_of_load_balancers_are_reported_at_once() {
    let text = invalid(
        "loadBalancers:
  a:
    sku: Basic
    frontEnds: {f: {subnet: hub/s}, g: {subnet: nowhere}}
    pools: {p: {}, q: {addresses: {one: 10.1.0.4}}, r: {virtualNetwork: hub}}
    probes: {t: {protocol: Tcp, port: 80, requestPath: /}, h: {protocol: Http, port: 80}}
    rules:
      none: {protocol: Tcp, frontEndPort: 80, pool: p}
      unknown: {protocol: Tcp, frontEnd: x, frontEndPort: 80, pool: p, probe: y}
      pool: {protocol: Tcp, frontEnd: f, frontEndPort: 80}
      ports: {protocol: All, frontEnd: f, frontEndPort: 80, pool: p}
      port: {protocol: Udp, frontEnd: f, pool: p}
      idle: {protocol: Tcp, frontEnd: f, frontEndPort: 80, pool: p, idleTimeoutInMinutes: 31}
      floating: {protocol: Tcp, frontEnd: f, frontEndPort: 80, backEndPort: 81, pool: p, enableFloatingIP: true}
    inboundNatRules:
      all: {protocol: All, frontEnd: F, frontEndPort: 80}
  b: {pools: {q: {addresses: {one: 10.1.0.4}}}, rules: {r: {protocol: Tcp, frontEndPort: 80}}}
networkInterfaces:
  n: {subnet: hub/s, loadBalancerPools: [p]}
  m: {loadBalancerPools: [a/p], ipConfigurations: {c: {subnet: hub/s}}}
",
    );
    let a = "test.yaml: loadBalancers.a";
    let b = "test.yaml: loadBalancers.b";
    let expected = [
        format!("{a}.frontEnds.g: subnet: 'nowhere' must be written as virtual-network/subnet, or as a full id"),
        format!("{a}.pools.q: addresses need sku Standard (L2)"),
        format!("{a}.pools.r: virtualNetwork is allowed with addresses only (L2)"),
        format!("{a}.probes.t: requestPath must be set with protocol Http or Https, and not with Tcp (L6)"),
        format!("{a}.probes.h: requestPath must be set with protocol Http or Https, and not with Tcp (L6)"),
        format!("{a}.rules.none: frontEnd is needed, because frontEnds has f, g (L3)"),
        format!("{a}.rules.unknown: frontEnd: there is no 'x'; frontEnds has f, g (L3)"),
        format!("{a}.rules.unknown: probe: there is no 'y'; probes has t, h (L3)"),
        format!("{a}.rules.pool: pool is needed, because pools has p, q, r (L3)"),
        format!("{a}.rules.ports: protocol All is for all ports: leave frontEndPort and backEndPort out (L9)"),
        format!("{a}.rules.ports: protocol All needs sku Standard (L9)"),
        format!(
            "{a}.rules.port: frontEndPort is needed, from 1 to 65535, and backEndPort is not 0; for all ports, set protocol \
             All (L9)"
        ),
        format!("{a}.rules.idle: idleTimeoutInMinutes: 31 is not within 4 to 30 (L3)"),
        format!("{a}.rules.floating: with enableFloatingIP, backEndPort must be equal to frontEndPort, or be left out (L3)"),
        format!("{a}.inboundNatRules.all: protocol must be Tcp or Udp: only rules have protocol All (L9)"),
        format!("{b}.pools.q: virtualNetwork is needed, because there is no front end (L2)"),
        format!("{b}.rules.r: frontEnd is needed, because frontEnds is empty (L3)"),
        "test.yaml: networkInterfaces.n: loadBalancerPools: 'p' must be written as a name of loadBalancers, a slash and a \
         name of backendAddressPools, or as a full id (L2)"
            .to_owned(),
        "test.yaml: networkInterfaces.m: set either subnet (with privateIPAddress, publicIPAddress, loadBalancerPools and \
         inboundNatRules) or ipConfigurations, not both"
            .to_owned(),
    ];
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn l2_a_pool_that_does_not_exist_is_a_dangling_reference() {
    let desired = expanded(&BALANCERS.replace("[web/servers]", "[web/serfers]"));
    let text = Plan::make(&desired, &server_of([].into_iter()), false);
    assert!(
        text.is_ok(),
        "references into groups that were not read are not checked"
    );
    let server = server_after(&expanded(BALANCERS));
    let text = Plan::make(&desired, &server, false).unwrap_err().to_string();
    let part = "network interface one-nic refers to loadBalancers/web/backendAddressPools/serfers";
    assert!(text.contains(part), "{text}");
    assert_eq!(text.lines().count(), 2, "{text}");
}

#[test]
fn mistakes_in_load_balancers_are_named_with_their_line() {
    for (text, part) in [
        ("probes: {p: {protocol: Icmp, port: 80}}", "Tcp"),
        ("probes: {p: {protocol: Tcp, port: 0}}", "nonzero"),
        ("rules: {r: {protocol: Tcp, frontEndPort: 65536}}", "65536"),
        ("inboundNatRules: {r: {protocol: Tcp}}", "frontEndPort"),
        ("pools: {p: {addresses: {one: 10.1.0}}}", "invalid"),
        ("frontEnds: {f: {}}", "subnet"),
        ("sku: Gateway", "Standard"),
    ] {
        let error = parse_error(&format!("loadBalancers:\n  b:\n    {text}\n"));
        assert!(error.contains(part) && error.contains("line 3"), "{text}: {error}");
    }
}
