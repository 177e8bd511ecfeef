//! Tests of the bodies of load balancers and their children.

use super::part::Part;
use super::rule::{Fields, Protocol};
use super::{address_pool, frontend_ip, probe, rule};
use clap::{Args as _, Command, FromArgMatches as _};
use serde_json::{Value, json};

/// A load balancer with front ends and pools of these names.
fn balancer(front_ends: &[&str], pools: &[&str]) -> Value {
    let named = |names: &[&str]| names.iter().map(|n| json!({"name": n})).collect::<Vec<_>>();
    json!({"id": "/lb", "properties": {
        "frontendIPConfigurations": named(front_ends), "backendAddressPools": named(pools), "probes": null,
    }})
}

fn fields(options: &[&str]) -> Fields {
    let command = Fields::augment_args(Command::new("rule").no_binary_name(true));
    Fields::from_arg_matches(&command.get_matches_from(options)).unwrap()
}

#[test]
fn a_child_is_added_or_keeps_its_place_and_its_name() {
    let mut body = balancer(&["a", "b"], &[]);
    let set = |part: Part, body: &mut Value, name: &str| part.set(body, name, json!({"new": true}));
    set(frontend_ip::PART, &mut body, "A");
    set(frontend_ip::PART, &mut body, "c");
    set(probe::PART, &mut body, "p");
    let new = |name: &str| json!({"name": name, "properties": {"new": true}});
    let properties = &body["properties"];
    assert_eq!(
        properties["frontendIPConfigurations"],
        json!([new("a"), {"name": "b"}, new("c")])
    );
    assert_eq!(properties["probes"], json!([new("p")]));
}

#[test]
fn l3_the_only_front_end_and_pool_need_no_name() {
    let reference = |body: &Value, given| address_pool::pool::PART.reference(body, given, "--pool");
    let one = balancer(&["f"], &["p"]);
    assert_eq!(
        reference(&one, None).unwrap(),
        json!({"id": "/lb/backendAddressPools/p"})
    );
    assert_eq!(
        reference(&one, Some("q")).unwrap(),
        json!({"id": "/lb/backendAddressPools/q"})
    );
    assert_eq!(reference(&one, Some("/x/y")).unwrap(), json!({"id": "/x/y"}));
    let several = reference(&balancer(&[], &["p", "q"]), None).unwrap_err();
    assert_eq!(
        several.to_string(),
        "the load balancer has several back-end pools: p, q"
    );
    let none = reference(&balancer(&[], &[]), None).unwrap_err();
    assert_eq!(none.to_string(), "the load balancer has no back-end pool");
}

#[test]
fn l3_a_rule_names_its_pool_in_both_properties_and_changes_only_what_is_given() {
    let body = balancer(&["f"], &["p"]);
    let new = fields(&["--frontend-port", "80", "--floating-ip", "--probe", "t"]);
    let pool = json!({"id": "/lb/backendAddressPools/p"});
    assert_eq!(
        new.properties(Some(Protocol::Tcp), &body, true).unwrap(),
        json!({
            "protocol": "Tcp", "frontendPort": 80, "backendPort": 80, "enableFloatingIP": true,
            "frontendIPConfiguration": {"id": "/lb/frontendIPConfigurations/f"},
            "backendAddressPool": pool, "backendAddressPools": [pool], "probe": {"id": "/lb/probes/t"},
        })
    );
    let change = fields(&["--probe", "", "--load-distribution", "sourceip"]);
    assert_eq!(
        change.properties(None, &body, false).unwrap(),
        json!({"probe": null, "loadDistribution": "SourceIP"})
    );
    assert_eq!(fields(&[]).properties(None, &body, false).unwrap(), json!({}));
}

#[test]
fn l9_protocol_all_is_for_all_ports() {
    let body = balancer(&["f"], &["p"]);
    let all = fields(&[]).properties(Some(Protocol::All), &body, true).unwrap();
    assert_eq!((&all["frontendPort"], &all["backendPort"]), (&json!(0), &json!(0)));
    let error = fields(&[]).properties(Some(Protocol::Udp), &body, true).unwrap_err();
    assert_eq!(error.to_string(), "the rule has no port");
}

#[test]
fn l6_a_tcp_probe_has_no_path() {
    let command = probe::Fields::augment_args(Command::new("probe").no_binary_name(true));
    let fields =
        |options: &[&str]| probe::Fields::from_arg_matches(&command.clone().get_matches_from(options)).unwrap();
    assert_eq!(
        fields(&[]).properties(Some(probe::Protocol::Tcp), None),
        json!({"protocol": "Tcp", "requestPath": null})
    );
    assert_eq!(
        fields(&["--path", "/", "--interval", "5"]).properties(Some(probe::Protocol::Http), Some(80)),
        json!({"protocol": "Http", "port": 80, "requestPath": "/", "intervalInSeconds": 5})
    );
}

#[test]
fn the_members_of_a_pool_are_addresses_or_network_interfaces() {
    let of = |addresses: Value, configurations: Value| {
        address_pool::pool::members(&json!({"properties": {
            "loadBalancerBackendAddresses": addresses, "backendIPConfigurations": configurations,
        }}))
    };
    let nic = json!([{"id": "/g/networkInterfaces/vm/ipConfigurations/one"}]);
    // The controller shows a network interface in both lists.
    assert_eq!(of(json!([{"name": "vm_one", "properties": {}}]), nic), ["vm/one"]);
    assert_eq!(
        of(
            json!([{"name": "a", "properties": {"ipAddress": "10.0.0.4"}}]),
            json!([])
        ),
        ["10.0.0.4"]
    );
    let mut names: Vec<_> = super::PARTS.iter().map(|(_, part)| part.kind).collect();
    names.dedup();
    assert_eq!(names.len(), 5, "{:?}", rule::PART.kind);
}
