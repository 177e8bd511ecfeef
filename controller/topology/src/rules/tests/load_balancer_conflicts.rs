//! Conflicts between rules that translate packets to the same port of a network interface (L3).

use super::load_balancer_members::{join, pool, ssh};
use super::load_balancers::{body, lb, nat_rule, only, put, rule, world};
use super::{codes, net, with};
use serde_json::{Value, json};

const SHARED: &str = "RulesOfSameLoadBalancerTypeUseSameBackendPortProtocolAndIPConfig";

/// The id of the load balancer `other`, or of one of its children.
fn other(child: &str) -> String {
    net(&format!("loadBalancers/other{child}"))
}

/// The body of the load balancer `other` with the pools `pool` and `second` and the rule `web` of `pool`.
fn other_body(more: Value) -> Value {
    let of_other = json!({
        "frontendIPConfiguration": {"id": other("/frontendIPConfigurations/fe")},
        "backendAddressPool": {"id": other("/backendAddressPools/pool")},
        "probe": null,
    });
    let lists = json!({
        "backendAddressPools": [{"name": "pool"}, {"name": "second"}],
        "probes": [], "inboundNatRules": [],
        "loadBalancingRules": [rule("web", with(of_other, more))],
    });
    body("Standard", lists)
}

/// A packet from one client port to two front ends would be the same flow at the back end, so replies could not be told
/// apart.
#[test]
fn l3_rules_of_two_load_balancers_do_not_share_the_port_of_a_network_interface() {
    let mut w = world();
    put(&mut w, json!({})).unwrap();
    w.put(&other(""), other_body(json!({}))).unwrap();
    let both = json!([pool(), {"id": other("/backendAddressPools/pool")}]);
    let refused = join(&mut w, "n", "hub/subnets/t", both.clone(), Value::Null);
    let text = format!(
        "Load balancer rules {} and {} belong to load balancers of the same type, use the same protocol Tcp and backend port \
         8080 with floating IP disabled, and must not be used with the same backend IP {}",
        lb("/loadBalancingRules/web"),
        other("/loadBalancingRules/web"),
        net("networkInterfaces/n/ipConfigurations/c")
    );
    assert_eq!(only(refused, &text), (SHARED, net("networkInterfaces/n")));
    for more in [
        json!({"backendPort": 8081}),
        json!({"protocol": "Udp"}),
        json!({"frontendPort": 8080, "enableFloatingIP": true}),
    ] {
        w.put(&other(""), other_body(more.clone())).unwrap();
        join(&mut w, "n", "hub/subnets/t", both.clone(), Value::Null).unwrap_or_else(|why| panic!("{more}: {why:?}"));
        // The load balancer that changes is at fault, whichever of the two it is.
        let refused = w.put(&other(""), other_body(json!({})));
        assert_eq!(only(refused, &text), (SHARED, other("/loadBalancingRules/web")));
    }
    w.put(&other(""), other_body(json!({"backendPort": 8081}))).unwrap();
    let refused = put(
        &mut w,
        json!({"loadBalancingRules": [rule("web", json!({"backendPort": 8081}))]}),
    );
    assert_eq!(only(refused, "port 8081"), (SHARED, lb("/loadBalancingRules/web")));
    let all = json!({"protocol": "All", "frontendPort": 0, "backendPort": 0});
    let refused = w.put(&other(""), other_body(all));
    assert_eq!(only(refused, "Tcp and All"), (SHARED, other("/loadBalancingRules/web")));
    // Another network interface may be in the pool of each.
    w.delete(&net("networkInterfaces/n")).unwrap();
    w.put(&other(""), other_body(json!({}))).unwrap();
    join(&mut w, "n", "hub/subnets/t", json!([pool()]), Value::Null).unwrap();
    let of_other = json!([{"id": other("/backendAddressPools/pool")}]);
    join(&mut w, "m", "hub/subnets/t", of_other, Value::Null).unwrap();
}

/// The same within one load balancer: two pools with the same network interface, or an inbound NAT rule.
#[test]
fn l3_an_inbound_nat_rule_and_another_pool_do_not_share_the_port_of_a_network_interface() {
    let mut w = world();
    let nat = |port: u16| json!({"inboundNatRules": [nat_rule("ssh", json!({"backendPort": port}))]});
    put(&mut w, nat(8080)).unwrap();
    let refused = join(&mut w, "n", "hub/subnets/t", json!([pool()]), json!([ssh()]));
    assert_eq!(
        only(refused, "inboundNatRules/ssh"),
        (SHARED, net("networkInterfaces/n"))
    );
    put(&mut w, nat(22)).unwrap();
    join(&mut w, "n", "hub/subnets/t", json!([pool()]), json!([ssh()])).unwrap();
    let refused = put(&mut w, nat(8080));
    assert_eq!(only(refused, "port 8080"), (SHARED, lb("/inboundNatRules/ssh")));
    // The child's own PUT is checked too.
    let own = nat_rule("ssh", json!({"backendPort": 8080}));
    assert_eq!(codes(w.put(&lb("/inboundNatRules/ssh"), own)), [SHARED]);

    w.put(&other(""), other_body(json!({}))).unwrap();
    let mut body = w.get(&other(""));
    let mut second = body["properties"]["loadBalancingRules"][0].clone();
    second["name"] = json!("second");
    second["properties"]["frontendPort"] = json!(81);
    second["properties"]["backendAddressPool"] = json!({"id": other("/backendAddressPools/second")});
    second["properties"]["backendAddressPools"] = Value::Null;
    body["properties"]["loadBalancingRules"]
        .as_array_mut()
        .unwrap()
        .push(second);
    w.put(&other(""), body).unwrap();
    let of_other = |names: &[&str]| -> Value {
        let id = |name: &&str| json!({"id": other(&format!("/backendAddressPools/{name}"))});
        names.iter().map(id).collect()
    };
    let refused = join(&mut w, "m", "hub/subnets/t", of_other(&["pool", "second"]), Value::Null);
    assert_eq!(
        only(refused, "loadBalancingRules/second"),
        (SHARED, net("networkInterfaces/m"))
    );
    join(&mut w, "m", "hub/subnets/t", of_other(&["second"]), Value::Null).unwrap();
}
