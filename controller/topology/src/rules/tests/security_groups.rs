//! Network security groups: which rules and associations are accepted (N1, N2, N9, N11, N13, X5), and what is shown.

use super::*;
use tombolo_proto::config::{AddressMatch, Direction};

fn group() -> String {
    net("networkSecurityGroups/web")
}

fn rule_id(name: &str) -> String {
    format!("{}/securityRules/{name}", group())
}

/// A rule that is valid, with some of its properties replaced; null removes one.
fn rule(changes: Value) -> Value {
    let mut properties = json!({
        "protocol": "Tcp", "access": "Allow", "direction": "Inbound", "priority": 100,
        "sourceAddressPrefix": "*", "sourcePortRange": "*", "destinationAddressPrefix": "*", "destinationPortRange": "443",
    });
    for (name, value) in changes.as_object().unwrap() {
        properties[name] = value.clone();
    }
    json!({"properties": properties})
}

fn world() -> World {
    let mut w = World::new();
    w.put(&group(), json!({"location": "region1"})).unwrap();
    w
}

#[test]
fn n2_a_group_has_six_default_rules_that_cannot_be_written() {
    let mut w = world();
    let shown = w.get(&group());
    let defaults = shown["properties"]["defaultSecurityRules"].as_array().unwrap().clone();
    let names: Vec<&str> = defaults.iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "AllowVnetInBound",
            "AllowAzureLoadBalancerInBound",
            "DenyAllInBound",
            "AllowVnetOutBound",
            "AllowInternetOutBound",
            "DenyAllOutBound"
        ]
    );
    let id = defaults[0]["id"].as_str().unwrap();
    assert_eq!(w.get(id), defaults[0]);
    assert_eq!(codes(w.put(id, rule(json!({})))), ["XReadOnlyResource"]);
}

#[test]
fn n1_a_rule_comes_back_as_it_was_written() {
    let mut w = world();
    let shown = w.put(&rule_id("https"), rule(json!({}))).unwrap();
    let properties = &shown["properties"];
    assert_eq!(properties["sourceAddressPrefix"], "*");
    assert_eq!(properties["destinationPortRange"], "443");
    assert_eq!(properties["destinationPortRanges"], json!([]));
    let again = w.put(&rule_id("https"), json!({"properties": properties})).unwrap();
    assert_eq!(again, shown, "writing back what was read changes nothing");
    assert_eq!(w.get(&group())["properties"]["securityRules"], json!([shown]));
}

#[test]
fn n1_a_group_without_rules_in_its_body_loses_them() {
    let mut w = world();
    w.put(&rule_id("https"), rule(json!({}))).unwrap();
    w.put(&group(), json!({"location": "region1"})).unwrap();
    assert_eq!(w.get(&group())["properties"]["securityRules"], json!([]));
    assert!(!w.delete(&rule_id("https")).unwrap());
}

#[test]
fn n1_two_rules_of_a_direction_cannot_have_one_priority() {
    let mut w = world();
    w.put(&rule_id("first"), rule(json!({}))).unwrap();
    let refused = w.put(&rule_id("second"), rule(json!({}))).unwrap_err();
    assert_eq!(refused.problems[0].code, "SecurityRuleConflict");
    assert_eq!(
        refused.problems[0].message,
        "Security rule first conflicts with rule second. Rules cannot have the same Priority and Direction. To learn more, see \
         aka.ms/nsgrules."
    );
    w.put(&rule_id("second"), rule(json!({"direction": "Outbound"})))
        .unwrap();
    w.put(&rule_id("third"), rule(json!({"priority": 101}))).unwrap();
}

#[test]
fn n1_each_field_has_its_error() {
    let mut w = world();
    for (changes, expected) in [
        (json!({"priority": 99}), "SecurityRuleInvalidPriority"),
        (json!({"priority": 4097}), "SecurityRuleInvalidPriority"),
        (json!({"priority": null}), "InvalidRequestFormat"),
        (json!({"protocol": null}), "InvalidRequestFormat"),
        (json!({"protocol": "Sctp"}), "InvalidRequestFormat"),
        (json!({"access": "Maybe"}), "InvalidRequestFormat"),
        (json!({"direction": "Sideways"}), "InvalidRequestFormat"),
        (json!({"description": "x".repeat(141)}), "InvalidRequestFormat"),
        (
            json!({"sourceAddressPrefix": "10.0.0.1/24"}),
            "SecurityRuleInvalidAddressPrefix",
        ),
        (
            json!({"sourceAddressPrefix": "Storage"}),
            "SecurityRuleInvalidAddressPrefix",
        ),
        (
            json!({"sourceAddressPrefix": "10.0.0.9-10.0.0.1"}),
            "SecurityRuleInvalidAddressPrefix",
        ),
        (
            json!({"sourceAddressPrefix": "10.0.0.1-fd00::1"}),
            "SecurityRuleInvalidAddressPrefix",
        ),
        (
            json!({"destinationAddressPrefix": "fd00:::1"}),
            "SecurityRuleInvalidAddressPrefix",
        ),
        (json!({"sourceAddressPrefix": null}), "InvalidRequestFormat"),
        (
            json!({"destinationPortRange": "443-80"}),
            "SecurityRuleInvalidPortRange",
        ),
        (json!({"destinationPortRange": "65536"}), "SecurityRuleInvalidPortRange"),
        (json!({"destinationPortRange": null}), "InvalidRequestFormat"),
        (json!({"destinationPortRange": "+22"}), "SecurityRuleInvalidPortRange"),
        (
            json!({"destinationPortRange": "22", "destinationPortRanges": ["443"]}),
            "XSecurityRuleMixesPorts",
        ),
        (
            json!({"sourceAddressPrefix": null, "sourceAddressPrefixes": ["10.0.0.0/8", "Internet"]}),
            "SecurityRuleParameterContainsUnsupportedValue",
        ),
        (
            json!({"sourcePortRange": null, "sourcePortRanges": ["*"]}),
            "SecurityRuleParameterContainsInvalidPortRanges",
        ),
        (
            json!({"sourceAddressPrefixes": ["10.0.0.0/8"]}),
            "XSecurityRuleMixesAddresses",
        ),
        (
            json!({"sourceAddressPrefix": null, "sourceApplicationSecurityGroups": [{"id": net("applicationSecurityGroups/x")}]}),
            "InvalidResourceReference",
        ),
    ] {
        let before = w.now.clone();
        assert_eq!(
            codes(w.put(&rule_id("r"), rule(changes.clone()))),
            [expected],
            "{changes}"
        );
        assert!(w.now.documents_since(&before).is_empty(), "{changes} changed something");
    }
}

#[test]
fn n11_a_list_with_all_addresses_matches_all_addresses() {
    let mut w = world();
    let changes = json!({"sourceAddressPrefix": null, "sourceAddressPrefixes": ["10.0.0.0/8", "0.0.0.0/0"]});
    w.put(&rule_id("r"), rule(changes)).unwrap();
    let group = ResourceId::new(group());
    let compiled = w.now.network_security_groups[&group].compiled(Direction::Inbound);
    assert_eq!(compiled[0].source, AddressMatch::Any);
}

#[test]
fn n11_a_rule_may_have_several_prefixes_and_ports() {
    let mut w = world();
    let many = json!({
        "sourceAddressPrefix": null, "sourceAddressPrefixes": ["10.0.0.0/8", "192.168.0.7", "172.16.0.1-172.16.0.2", "fd00::/8"],
        "destinationPortRange": null, "destinationPortRanges": ["80", "8000-8080"],
    });
    let shown = w.put(&rule_id("many"), rule(many)).unwrap();
    assert_eq!(shown["properties"]["destinationPortRanges"], json!(["80", "8000-8080"]));
    let stored = w.now.network_security_groups.values().next().unwrap();
    let compiled = stored.compiled(Direction::Inbound);
    let AddressMatch::Prefixes(prefixes) = &compiled[0].source else {
        panic!("prefixes");
    };
    let texts: Vec<String> = prefixes.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "10.0.0.0/8",
            "192.168.0.7/32",
            "172.16.0.1/32",
            "172.16.0.2/32",
            "fd00::/8"
        ]
    );
    assert_eq!(compiled[0].destination_ports.len(), 2);
}

#[test]
fn n3_rules_are_compiled_in_order_of_priority_with_the_default_rules_last() {
    let mut w = world();
    w.put(&rule_id("late"), rule(json!({"priority": 300}))).unwrap();
    w.put(&rule_id("early"), rule(json!({"priority": 200}))).unwrap();
    w.put(&rule_id("out"), rule(json!({"direction": "Outbound"}))).unwrap();
    let stored = w.now.network_security_groups.values().next().unwrap();
    let names: Vec<String> = stored
        .compiled(Direction::Inbound)
        .into_iter()
        .map(|r| r.name)
        .collect();
    assert_eq!(
        names,
        [
            "securityRules/early",
            "securityRules/late",
            "defaultSecurityRules/AllowVnetInBound",
            "defaultSecurityRules/AllowAzureLoadBalancerInBound",
            "defaultSecurityRules/DenyAllInBound"
        ]
    );
}

#[test]
fn n9_a_tag_is_known_in_any_casing_and_stays_as_it_was_written() {
    let mut w = world();
    let shown = w
        .put(&rule_id("tag"), rule(json!({"sourceAddressPrefix": "virtualnetwork"})))
        .unwrap();
    assert_eq!(shown["properties"]["sourceAddressPrefix"], "virtualnetwork");
    let stored = w.now.network_security_groups.values().next().unwrap();
    assert_eq!(
        stored.compiled(Direction::Inbound)[0].source,
        AddressMatch::Sets(vec!["VirtualNetwork".into()])
    );
}

#[test]
fn a_group_that_is_used_cannot_be_deleted() {
    let mut w = world();
    w.vnet("hub", &["10.0.0.0/16"]).unwrap();
    let subnet = net("virtualNetworks/hub/subnets/s");
    let body = json!({"properties": {"addressPrefix": "10.0.0.0/24", "networkSecurityGroup": {"id": group()}}});
    let shown = w.put(&subnet, body).unwrap();
    assert_eq!(shown["properties"]["networkSecurityGroup"]["id"], group());
    assert_eq!(w.get(&group())["properties"]["subnets"], json!([{"id": subnet}]));
    assert_eq!(
        codes(w.delete(&group()).map(|_| json!({}))),
        ["InUseNetworkSecurityGroupCannotBeDeleted"]
    );
    w.subnet("hub", "s", "10.0.0.0/24").unwrap();
    assert!(w.delete(&group()).unwrap());
}

#[test]
fn n13_a_gateway_subnet_has_no_security_group() {
    let mut w = world();
    w.vnet("hub", &["10.0.0.0/16"]).unwrap();
    let body = json!({"properties": {"addressPrefix": "10.0.255.0/27", "networkSecurityGroup": {"id": group()}}});
    assert_eq!(
        codes(w.put(&net("virtualNetworks/hub/subnets/GatewaySubnet"), body)),
        ["XGatewaySubnetCannotHaveSecurityGroup"]
    );
}

#[test]
fn x5_a_group_has_at_most_1000_rules_and_4000_addresses_a_side() {
    let mut w = world();
    let rules = |count: u32, addresses: &[String]| -> Value {
        let all = (0..count).map(|n| {
            let mut one =
                rule(json!({"priority": 100 + n, "sourceAddressPrefix": null, "sourceAddressPrefixes": addresses}));
            one["name"] = format!("r{n}").into();
            one
        });
        json!({"location": "region1", "properties": {"securityRules": all.collect::<Vec<_>>()}})
    };
    w.put(&group(), rules(1000, &["10.0.0.1".into()])).unwrap();
    assert_eq!(
        codes(w.put(&group(), rules(1001, &["10.0.0.1".into()]))),
        ["XTooManyItems"]
    );
    let body = rule(json!({"priority": 4000, "direction": "Outbound"}));
    assert_eq!(codes(w.put(&rule_id("one-more"), body)), ["XTooManyItems"]);
    let addresses: Vec<String> = (0..100).map(|n| format!("10.0.0.{n}")).collect();
    w.put(&group(), rules(40, &addresses)).unwrap();
    assert_eq!(codes(w.put(&group(), rules(41, &addresses))), ["XTooManyItems"]);
}
