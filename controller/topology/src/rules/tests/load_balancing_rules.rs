//! The rules and probes of load balancers, conflicts between rules, references to children, and limits (L3, L6, L9).

use super::load_balancers::{at, body, front_end, lb, nat_rule, only, probe, put, rule, world};
use super::{codes, net, with};
use crate::change::Change;
use crate::topology::AgentStatuses;
use serde_json::{Value, json};

#[test]
fn l6_probes_have_a_port_a_path_and_an_interval() {
    let mut w = world();
    let mut with_probe = |more: Value| put(&mut w, json!({"probes": [probe(more)]}));
    for port in [19, 21, 25, 70, 110, 119, 143, 220, 993] {
        for protocol in ["Http", "Https"] {
            let refused = with_probe(json!({"protocol": protocol, "requestPath": "/", "port": port}));
            assert_eq!(only(refused, "(L6)"), ("XProbePortNotAllowed", at("probes", "port")));
        }
        with_probe(json!({"port": port})).unwrap();
    }
    let long = "/".repeat(2049);
    for (field, more) in [
        ("port", json!({"port": 0})),
        ("port", json!({"port": 65536})),
        ("port", json!({"port": null})),
        ("protocol", json!({"protocol": null})),
        ("protocol", json!({"protocol": "Udp"})),
        ("requestPath", json!({"requestPath": "/up"})),
        ("requestPath", json!({"protocol": "Http"})),
        ("requestPath", json!({"protocol": "Https", "requestPath": ""})),
        (
            "requestPath",
            json!({"protocol": "Http", "requestPath": "/a\r\nHost: x"}),
        ),
        ("requestPath", json!({"protocol": "Http", "requestPath": "/a b"})),
        ("requestPath", json!({"protocol": "Http", "requestPath": long})),
        ("intervalInSeconds", json!({"intervalInSeconds": 4})),
        ("intervalInSeconds", json!({"intervalInSeconds": 65536})),
        ("intervalInSeconds", json!({"intervalInSeconds": 2.5})),
        ("probeThreshold", json!({"probeThreshold": 0})),
        ("probeThreshold", json!({"probeThreshold": 101})),
        ("numberOfProbes", json!({"numberOfProbes": 0})),
        ("noHealthyBackendsBehavior", json!({"noHealthyBackendsBehavior": "Up"})),
    ] {
        let refused = with_probe(more.clone());
        assert_eq!(
            only(refused, field),
            ("InvalidRequestFormat", at("probes", field)),
            "{more}"
        );
    }
    with_probe(json!({"protocol": "Https", "requestPath": "up.html", "intervalInSeconds": 65535})).unwrap();
}

#[test]
fn l9_ha_ports_have_protocol_all_and_port_0() {
    let mut w = world();
    let mut with_rule = |more: Value| put(&mut w, json!({"loadBalancingRules": [rule("web", more)]}));
    let all = |front_end: Value, back_end: Value| json!({"protocol": "All", "frontendPort": front_end, "backendPort": back_end});
    for (field, more) in [
        ("frontendPort", all(json!(80), json!(0))),
        ("backendPort", all(json!(0), json!(80))),
        ("frontendPort", json!({"frontendPort": 0})),
        ("backendPort", json!({"backendPort": 0})),
        ("frontendPort", json!({"protocol": "Udp", "frontendPort": 0})),
    ] {
        let refused = with_rule(more.clone());
        assert_eq!(
            only(refused, "(L9)"),
            ("InvalidRequestFormat", at("loadBalancingRules", field)),
            "{more}"
        );
    }
    let lists = json!({"loadBalancingRules": [rule("web", all(json!(0), Value::Null))], "inboundNatRules": []});
    let shown = put(&mut w, lists).unwrap();
    let properties = &shown["properties"]["loadBalancingRules"][0]["properties"];
    assert_eq!(
        (&properties["frontendPort"], &properties["backendPort"]),
        (&json!(0), &json!(0))
    );
}

#[test]
fn l9_ha_ports_need_the_sku_standard() {
    let mut w = world();
    let ha = json!({"protocol": "All", "frontendPort": 0, "backendPort": 0});
    let more = json!({"loadBalancingRules": [rule("ha", ha)], "inboundNatRules": []});
    let refused = w.put(&lb(""), body("Basic", more.clone()));
    let target = lb("/loadBalancingRules/ha");
    assert_eq!(only(refused, "(L9)"), ("XHaPortsNeedInternalStandard", target));
    put(&mut w, more).unwrap();
}

#[test]
fn l3_tcp_reset_needs_the_sku_standard() {
    let mut w = world();
    let on = json!({"enableTcpReset": true});
    for (list, name) in [("loadBalancingRules", "web"), ("inboundNatRules", "ssh")] {
        let item = if name == "web" {
            rule(name, on.clone())
        } else {
            nat_rule(name, on.clone())
        };
        let more = json!({list: [item]});
        let refused = w.put(&lb(""), body("Basic", more.clone()));
        let target = lb(&format!("/{list}/{name}"));
        assert_eq!(only(refused, "(L3)"), ("XTcpResetNeedsStandard", target));
    }
    put(&mut w, json!({"loadBalancingRules": [rule("web", on)]})).unwrap();
}

#[test]
fn the_sku_is_basic_unless_given_and_does_not_change() {
    let mut w = world();
    let mut without = body("", json!({}));
    without.as_object_mut().unwrap().remove("sku");
    let shown = w.put(&lb(""), without.clone()).unwrap();
    assert_eq!(shown["sku"], json!({"name": "Basic", "tier": "Regional"}));
    let changed = put(&mut w, json!({}));
    assert_eq!(
        only(changed, "Basic to Standard"),
        ("XLoadBalancerSkuImmutable", "sku.name".to_owned())
    );
    w.delete(&lb("")).unwrap();
    put(&mut w, json!({})).unwrap();
    // A body without a SKU keeps the present one.
    assert_eq!(w.put(&lb(""), without).unwrap()["sku"]["name"], "Standard");
}

#[test]
fn l3_two_rules_are_not_for_the_same_packets() {
    const CODE: &str = "XRulesUseSameFrontendPort";
    let mut w = world();
    let pools = json!([{"name": "pool"}, {"name": "two"}]);
    let second = |more: Value| {
        rule(
            "second",
            with(
                json!({"backendAddressPool": {"id": lb("/backendAddressPools/two")}}),
                more,
            ),
        )
    };
    let ha = json!({"protocol": "All", "frontendPort": 0, "backendPort": 0});
    let mut with_rules = |rules: Value, nat_rules: Value| {
        let lists = json!({"backendAddressPools": pools, "loadBalancingRules": rules, "inboundNatRules": nat_rules});
        put(&mut w, lists)
    };
    let same = with_rules(json!([rule("web", json!({})), second(json!({}))]), json!([]));
    let target = lb("/loadBalancingRules/second");
    assert_eq!(only(same, &lb("/loadBalancingRules/web")), (CODE, target.clone()));
    let after_all = with_rules(
        json!([rule("ha", ha.clone()), second(json!({"protocol": "Udp"}))]),
        json!([]),
    );
    assert_eq!(only(after_all, "all ports"), (CODE, target.clone()));
    let before_all = with_rules(json!([rule("web", json!({})), second(ha.clone())]), json!([]));
    assert_eq!(only(before_all, "all ports"), (CODE, target));
    let ssh = lb("/inboundNatRules/ssh");
    let nat = with_rules(
        json!([rule("web", json!({"frontendPort": 2222}))]),
        json!([nat_rule("ssh", json!({}))]),
    );
    assert_eq!(only(nat, "inbound NAT rule"), (CODE, ssh.clone()));
    let nat = with_rules(json!([rule("ha", ha)]), json!([nat_rule("ssh", json!({}))]));
    assert_eq!(only(nat, "inbound NAT rule"), (CODE, ssh));
    let others = [rule("web", json!({})), second(json!({"protocol": "Udp"}))];
    with_rules(
        json!(others),
        json!([nat_rule("ssh", json!({})), nat_rule("rdp", json!({"frontendPort": 81}))]),
    )
    .unwrap();
    // By its own PUT.
    let refused = w.put(
        &lb("/inboundNatRules/new"),
        nat_rule("new", json!({"frontendPort": 80})),
    );
    assert_eq!(only(refused, &lb("/loadBalancingRules/web")).0, CODE);
}

#[test]
fn l3_two_rules_do_not_share_the_port_of_a_back_end() {
    const CODE: &str = "RulesUseSameBackendPortProtocolAndPool";
    let mut w = world();
    let ends = json!([
        front_end("fe", "hub/subnets/s", json!({})),
        front_end("two", "hub/subnets/s", json!({}))
    ]);
    let second = |more: Value| {
        let other = json!({"frontendIPConfiguration": {"id": lb("/frontendIPConfigurations/two")}});
        rule("second", with(other, more))
    };
    let mut with_second = |more: Value| {
        let rules = json!([rule("web", json!({})), second(more)]);
        put(
            &mut w,
            json!({"frontendIPConfigurations": ends, "loadBalancingRules": rules}),
        )
    };
    let target = lb("/loadBalancingRules/second");
    let refused = with_second(json!({}));
    let text = format!(
        "Load balancing rules {} and {target} with floating IP disabled use the same protocol Tcp and backend port 8080",
        lb("/loadBalancingRules/web")
    );
    assert_eq!(only(refused, &text), (CODE, target.clone()));
    let all = json!({"protocol": "All", "frontendPort": 0, "backendPort": 0});
    assert_eq!(only(with_second(all), "Tcp and All"), (CODE, target));
    with_second(json!({"protocol": "Udp"})).unwrap();
    with_second(json!({"backendPort": 8081})).unwrap();
    with_second(json!({"frontendPort": 8080, "enableFloatingIP": true})).unwrap();
}

#[test]
fn l6_https_probes_need_the_sku_standard() {
    let mut w = world();
    let with_probe = |protocol: &str| {
        let probe = probe(json!({"protocol": protocol, "requestPath": "/"}));
        json!({"probes": [probe], "loadBalancingRules": [rule("web", json!({}))]})
    };
    let refused = w.put(&lb(""), body("Basic", with_probe("Https")));
    assert_eq!(only(refused, "(L6)"), ("XHttpsProbeNeedsStandard", lb("/probes/probe")));
    w.put(&lb(""), body("Basic", with_probe("Http"))).unwrap();
    let mut w = world();
    w.put(&lb(""), body("Standard", with_probe("Https"))).unwrap();
}

#[test]
fn l3_each_field_of_a_rule_has_its_error() {
    let mut w = world();
    for (list, field, more) in [
        ("loadBalancingRules", "protocol", json!({"protocol": "Icmp"})),
        ("loadBalancingRules", "protocol", json!({"protocol": null})),
        ("loadBalancingRules", "frontendPort", json!({"frontendPort": null})),
        ("loadBalancingRules", "frontendPort", json!({"frontendPort": 65536})),
        ("loadBalancingRules", "backendPort", json!({"backendPort": null})),
        (
            "loadBalancingRules",
            "idleTimeoutInMinutes",
            json!({"idleTimeoutInMinutes": 3}),
        ),
        (
            "loadBalancingRules",
            "idleTimeoutInMinutes",
            json!({"idleTimeoutInMinutes": 31}),
        ),
        (
            "loadBalancingRules",
            "loadDistribution",
            json!({"loadDistribution": "Random"}),
        ),
        (
            "loadBalancingRules",
            "frontendIPConfiguration",
            json!({"frontendIPConfiguration": null}),
        ),
        ("loadBalancingRules", "enableTcpReset", json!({"enableTcpReset": "yes"})),
        ("inboundNatRules", "protocol", json!({"protocol": "All"})),
        ("inboundNatRules", "frontendPort", json!({"frontendPort": 0})),
        ("inboundNatRules", "backendPort", json!({"backendPort": null})),
    ] {
        let item = if list == "inboundNatRules" {
            nat_rule("r", more.clone())
        } else {
            rule("r", more.clone())
        };
        let refused = put(&mut w, json!({list: [item]}));
        assert_eq!(
            only(refused, field),
            ("InvalidRequestFormat", at(list, field)),
            "{more}"
        );
    }
    let floating = json!({"enableFloatingIP": true});
    for (list, item) in [
        ("loadBalancingRules", rule("r", floating.clone())),
        ("inboundNatRules", nat_rule("r", floating)),
    ] {
        let refused = put(&mut w, json!({list: [item]}));
        assert_eq!(
            only(refused, "(L3)"),
            ("XFloatingIpNeedsEqualPorts", at(list, "backendPort"))
        );
    }
}

#[test]
fn l3_rules_refer_to_children_of_their_load_balancer() {
    let mut w = world();
    for (field, target) in [
        ("frontendIPConfiguration", lb("/frontendIPConfigurations/none")),
        ("backendAddressPool", lb("/backendAddressPools/none")),
        ("probe", lb("/probes/none")),
        ("probe", lb("/backendAddressPools/pool")),
        ("probe", net("loadBalancers/other/probes/probe")),
    ] {
        let refused = put(
            &mut w,
            json!({"loadBalancingRules": [rule("web", json!({field: {"id": target}}))]}),
        );
        let field = at("loadBalancingRules", &format!("{field}.id"));
        assert_eq!(only(refused, &target), ("InvalidResourceReference", field));
    }
    // A child that cannot be read is the only problem: the rules that refer to it have none.
    let refused = put(&mut w, json!({"probes": [probe(json!({"port": 0}))]}));
    assert_eq!(only(refused, "port").0, "InvalidRequestFormat");
}

#[test]
fn l3_a_child_stays_while_a_rule_refers_to_it() {
    let mut w = world();
    put(&mut w, json!({})).unwrap();
    let without_nat = |more: Value| with(json!({"inboundNatRules": []}), more);
    for (list, code) in [
        ("frontendIPConfigurations", "XLoadBalancerFrontendInUse"),
        ("backendAddressPools", "XLoadBalancerPoolInUse"),
        ("probes", "XLoadBalancerProbeInUse"),
    ] {
        let refused = put(&mut w, without_nat(json!({list: []})));
        assert_eq!(only(refused, &lb("/loadBalancingRules/web")).0, code);
    }
    let nat = put(
        &mut w,
        json!({"frontendIPConfigurations": [], "loadBalancingRules": []}),
    );
    assert_eq!(only(nat, &lb("/inboundNatRules/ssh")).0, "XLoadBalancerFrontendInUse");
    let pool = lb("/backendAddressPools/pool");
    assert_eq!(
        only(w.delete(&pool), "Remove the rule"),
        ("XLoadBalancerPoolInUse", pool.clone())
    );
    put(&mut w, json!({"loadBalancingRules": []})).unwrap();
    assert!(w.delete(&pool).unwrap());
    assert!(!w.delete(&pool).unwrap());
}

#[test]
fn children_have_writes_of_their_own_or_are_written_with_the_load_balancer() {
    let mut w = world();
    let pool = lb("/backendAddressPools/new");
    assert_eq!(codes(w.put(&pool, json!({}))), ["ParentResourceNotFound"]);
    assert_eq!(
        codes(w.put(&lb("/inboundNatRules/new"), json!({}))),
        ["ParentResourceNotFound"]
    );
    put(&mut w, json!({})).unwrap();
    let made = w.put(&pool, json!({"name": "new"})).unwrap();
    assert_eq!(w.get(&lb(""))["properties"]["backendAddressPools"][1], made);
    let nat = lb("/inboundNatRules/new");
    let made = w.put(&nat, nat_rule("new", json!({"frontendPort": 2223}))).unwrap();
    assert_eq!(w.get(&lb(""))["properties"]["inboundNatRules"][1], made);
    let refused = w.put(&lb("/inboundNatRules/-"), nat_rule("-", json!({"frontendPort": 2224})));
    assert_eq!(codes(refused), ["InvalidResourceName"]);
    assert!(w.delete(&nat).unwrap() && w.delete(&pool).unwrap());
    assert!(!w.delete(&nat).unwrap());
    for child in [
        "frontendIPConfigurations/fe",
        "probes/probe",
        "loadBalancingRules/web",
        "outboundRules/o",
    ] {
        let id = lb(&format!("/{child}"));
        let text = if child.starts_with("outbound") {
            "(L1)"
        } else {
            "PUT the load balancer"
        };
        assert_eq!(only(w.put(&id, json!({})), text), ("XReadOnlyResource", id.clone()));
        assert_eq!(codes(w.delete(&id)), ["XReadOnlyResource"]);
    }
    let path = super::path(&lb(""));
    let tags = json!({"tags": {"a": "b"}});
    let patched = w.apply(&Change::PatchTags {
        path,
        body: tags.clone(),
        if_match: None,
    });
    patched.unwrap();
    assert_eq!(w.get(&lb(""))["tags"], tags["tags"]);
    let listed = w.now.list(&net("loadBalancers"), &AgentStatuses::default()).unwrap();
    assert_eq!(listed, [w.get(&lb(""))]);
    assert!(w.delete(&lb("")).unwrap());
    assert!(!w.delete(&lb("")).unwrap());
}

#[test]
fn a_load_balancer_has_azures_limits() {
    let mut w = world();
    w.subnet("hub", "wide", "10.0.8.0/21").unwrap();
    let nat_rules = |count: u16| -> Vec<Value> {
        let of = |n: u16| nat_rule(&format!("r{n}"), json!({"frontendPort": 1000 + n}));
        (0..count).map(of).collect()
    };
    let full = json!({"inboundNatRules": nat_rules(1499)});
    put(&mut w, full).unwrap();
    let refused = put(&mut w, json!({"inboundNatRules": nat_rules(1500)}));
    assert_eq!(only(refused, "1501 rules"), ("XTooManyItems", lb("")));
    w.delete(&lb("")).unwrap();
    let refused = w.put(&lb(""), body("Basic", json!({"inboundNatRules": nat_rules(250)})));
    assert_eq!(only(refused, "at most 250"), ("XTooManyItems", lb("")));
    let more = |count: usize| -> Vec<Value> {
        let names = (1..count).map(|n| format!("fe{n}"));
        let ends = names.map(|name| front_end(&name, "hub/subnets/wide", json!({})));
        std::iter::once(front_end("fe", "hub/subnets/wide", json!({})))
            .chain(ends)
            .collect()
    };
    let refused = put(&mut w, json!({"frontendIPConfigurations": more(601)}));
    assert_eq!(only(refused, "at most 600"), ("XTooManyItems", lb("")));
    put(&mut w, json!({"frontendIPConfigurations": more(600)})).unwrap();
}
