//! Tests of the diagnosis of security groups: effective security rules of a network interface, and Network Watcher's IP
//! flow verify.

use crate::fake_agent::FakeAgent;
use crate::world::{Answer, GROUP, SUBSCRIPTION, World};
use reqwest::Method;
use serde_json::{Value, json};

const NET: &str = "~/providers/Microsoft.Network";

fn id(tail: &str) -> Value {
    json!({"id": format!("{GROUP}/providers/Microsoft.Network/{tail}")})
}

/// Two peered VNets. The subnet `w` of the VNet `a` (10.1.0.0/24) has the group `subnet` without rules; the NIC `a-nic`
/// (10.1.0.4) has the group `nic` with three rules.
pub(crate) async fn secured() -> World {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    world.peer("a", "b").await;
    world.peer("b", "a").await;
    let here = json!({"location": "region1"});
    world
        .put(&format!("{NET}/applicationSecurityGroups/web"), here.clone())
        .await;
    world.put(&format!("{NET}/networkSecurityGroups/subnet"), here).await;
    let rules = json!([
        {"name": "https", "properties": {
            "priority": 200, "direction": "Inbound", "access": "Deny", "protocol": "Tcp", "sourceAddressPrefix": "10.2.0.0/16",
            "sourcePortRange": "*", "destinationAddressPrefix": "*", "destinationPortRange": "443",
        }},
        {"name": "many", "properties": {
            "priority": 210, "direction": "Inbound", "access": "Allow", "protocol": "Icmp",
            "sourceAddressPrefixes": ["10.2.0.0/24", "192.168.0.7"], "sourcePortRange": "*",
            "destinationAddressPrefix": "VirtualNetwork", "destinationPortRanges": ["80", "8000-8080"],
        }},
        {"name": "asg", "properties": {
            "priority": 220, "direction": "Outbound", "access": "Deny", "protocol": "*",
            "sourceApplicationSecurityGroups": [id("applicationSecurityGroups/web")], "sourcePortRange": "1000-1999",
            "destinationAddressPrefix": "Internet", "destinationPortRange": "*",
        }},
    ]);
    let group = json!({"location": "region1", "properties": {"securityRules": rules}});
    world.put(&format!("{NET}/networkSecurityGroups/nic"), group).await;
    let subnet = json!({"properties": {
        "addressPrefix": "10.1.0.0/24", "networkSecurityGroup": id("networkSecurityGroups/subnet"),
    }});
    world.put(&format!("{NET}/virtualNetworks/a/subnets/w"), subnet).await;
    let configuration = json!({"name": "ipconfig1", "properties": {
        "subnet": id("virtualNetworks/a/subnets/w"), "privateIPAllocationMethod": "Static", "privateIPAddress": "10.1.0.4",
        "applicationSecurityGroups": [id("applicationSecurityGroups/web")],
    }});
    let nic = json!({"location": "region1", "properties": {
        "ipConfigurations": [configuration], "networkSecurityGroup": id("networkSecurityGroups/nic"),
    }});
    world.put(&format!("{NET}/networkInterfaces/a-nic"), nic).await;
    world
}

async fn effective(world: &World, nic: &str) -> Answer {
    let path = format!("{NET}/networkInterfaces/{nic}/effectiveNetworkSecurityGroups");
    world.arm(Method::POST, &path, None).await
}

/// M2, N8, N9: the groups of the subnet and of the NIC are separate entries, with names, protocols, ports and prefixes as
/// Azure writes them, and tags are spelled out. An agent that has joined changes nothing, because it has learned nothing.
#[tokio::test]
async fn n8_n9_effective_security_groups_of_a_nic() {
    let world = secured().await;
    let alone = effective(&world, "a-nic").await;
    FakeAgent::join(&world, "vm-a", "a-nic").await;
    let answer = effective(&world, "a-nic").await;
    assert_eq!((answer.status.as_u16(), &answer.body), (200, &alone.body));
    assert_eq!(answer.body["nextLink"], Value::Null);
    let [of_subnet, of_nic] = &answer.body["value"].as_array().unwrap()[..] else {
        panic!("two groups apply: {answer:?}");
    };
    assert_eq!(of_subnet["networkSecurityGroup"], id("networkSecurityGroups/subnet"));
    // The table of Azure's command line reads both ids in each entry.
    let both = json!({"subnet": id("virtualNetworks/a/subnets/w"), "networkInterface": id("networkInterfaces/a-nic")});
    assert_eq!(of_subnet["association"], both);
    assert_eq!(of_subnet["effectiveSecurityRules"].as_array().unwrap().len(), 6);
    assert_eq!(of_nic["networkSecurityGroup"], id("networkSecurityGroups/nic"));
    assert_eq!(of_nic["association"], both);

    let tag = json!(["10.1.0.0/16", "10.2.0.0/16", "168.63.129.16/32"]);
    let internet = of_nic["tagMap"]["Internet"].clone();
    assert_eq!(of_nic["tagMap"]["VirtualNetwork"], tag);
    assert_eq!(of_nic["tagMap"]["AzureLoadBalancer"], json!(["168.63.129.16/32"]));
    assert_eq!(internet[0], "0.0.0.0/5");
    let rules = of_nic["effectiveSecurityRules"].as_array().unwrap();
    assert_eq!(rules.len(), 9);
    let rule = |name: &str| rules.iter().find(|rule| rule["name"] == name).unwrap().clone();
    assert_eq!(
        rule("securityRules/https"),
        json!({
            "name": "securityRules/https", "protocol": "Tcp", "access": "Deny", "priority": 200, "direction": "Inbound",
            "sourcePortRange": "0-65535", "sourcePortRanges": ["0-65535"],
            "destinationPortRange": "443-443", "destinationPortRanges": ["443-443"],
            "sourceAddressPrefix": "10.2.0.0/16", "sourceAddressPrefixes": ["10.2.0.0/16"],
            "destinationAddressPrefix": "0.0.0.0/0", "destinationAddressPrefixes": ["0.0.0.0/0"],
            "expandedSourceAddressPrefix": [], "expandedDestinationAddressPrefix": [],
        })
    );
    let many = rule("securityRules/many");
    assert_eq!(many["protocol"], "Icmp");
    assert_eq!(many["sourceAddressPrefix"], Value::Null);
    assert_eq!(many["sourceAddressPrefixes"], json!(["10.2.0.0/24", "192.168.0.7/32"]));
    assert_eq!(many["destinationPortRanges"], json!(["80-80", "8000-8080"]));
    assert_eq!(many["destinationAddressPrefix"], "VirtualNetwork");
    assert_eq!(many["expandedDestinationAddressPrefix"], tag);
    let asg = rule("securityRules/asg");
    assert_eq!(asg["protocol"], "All");
    assert_eq!(asg["sourceAddressPrefixes"], json!(["10.1.0.4/32"]));
    assert_eq!(
        (
            &asg["destinationAddressPrefix"],
            &asg["expandedDestinationAddressPrefix"]
        ),
        (&json!("Internet"), &internet)
    );
    assert_eq!(
        rule("defaultSecurityRules/AllowVnetInBound")["sourceAddressPrefix"],
        "VirtualNetwork"
    );

    let none = effective(&world, "b-nic").await;
    assert_eq!((none.status.as_u16(), &none.body["value"]), (200, &json!([])));
    let missing = effective(&world, "nobody").await;
    assert_eq!((missing.status.as_u16(), missing.code()), (404, "ResourceNotFound"));
    let path = format!("{NET}/networkInterfaces/a-nic/effectiveNetworkSecurityGroups");
    assert_eq!(world.arm(Method::GET, &path, None).await.status, 405);
}

/// The path of an action of Network Watcher.
pub(crate) fn watcher(action: &str) -> String {
    format!(
        "/subscriptions/{SUBSCRIPTION}/resourceGroups/NetworkWatcherRG/providers/Microsoft.Network/networkWatchers/NetworkWatcher_region1/{action}"
    )
}

/// The body of a question about TCP from or to `a-nic`, with some of its members replaced; null removes one.
fn question(changes: Value) -> Value {
    let mut body = json!({
        "targetResourceId": format!("{GROUP}/providers/Microsoft.Compute/virtualMachines/vm-a"),
        "direction": "Inbound", "protocol": "TCP",
        "localIPAddress": "10.1.0.4", "localPort": "443", "remoteIPAddress": "10.2.0.4", "remotePort": "60000",
    });
    for (name, value) in changes.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// M4: the access and the deciding rule, for both directions and for every port of the sender. Routes have no part in it.
#[tokio::test]
async fn m4_ip_flow_verify_names_the_rule() {
    let world = secured().await;
    FakeAgent::join(&world, "vm-a", "a-nic").await;
    FakeAgent::join(&world, "vm-b", "b-nic").await;
    let denied = ("Deny", json!("securityRules/https"));
    for (changes, (access, rule)) in [
        (json!({}), denied.clone()),
        (json!({"localPort": 443, "remotePort": "*"}), denied),
        (
            json!({"localPort": "80"}),
            ("Allow", json!("defaultSecurityRules/AllowVnetInBound")),
        ),
        (
            json!({"protocol": "udp"}),
            ("Allow", json!("defaultSecurityRules/AllowVnetInBound")),
        ),
        (
            json!({"remoteIPAddress": "203.0.113.7"}),
            ("Deny", json!("defaultSecurityRules/DenyAllInBound")),
        ),
        (
            json!({"direction": "outbound"}),
            ("Allow", json!("defaultSecurityRules/AllowVnetOutBound")),
        ),
        (
            json!({"direction": "Outbound", "remoteIPAddress": "203.0.113.7", "localPort": "1500"}),
            ("Deny", json!("securityRules/asg")),
        ),
        (
            json!({"direction": "Outbound", "remoteIPAddress": "203.0.113.7", "localPort": "*"}),
            ("Deny", json!("securityRules/asg")),
        ),
        (
            json!({"direction": "Outbound", "remoteIPAddress": "203.0.113.7", "localPort": "2000"}),
            ("Allow", json!("defaultSecurityRules/AllowInternetOutBound")),
        ),
        (
            json!({"targetNicResourceId": format!("{GROUP}/providers/Microsoft.Network/networkInterfaces/b-nic"), "localIPAddress": "10.2.0.4"}),
            ("Allow", Value::Null),
        ),
    ] {
        let answer = world
            .arm(Method::POST, &watcher("ipFlowVerify"), Some(question(changes.clone())))
            .await;
        let expected = json!({"access": access, "ruleName": rule});
        assert_eq!((answer.status.as_u16(), &answer.body), (200, &expected), "{changes}");
    }
    for (changes, code, target) in [
        (json!({"direction": "Sideways"}), "InvalidRequestFormat", "direction"),
        (json!({"direction": null}), "InvalidRequestFormat", "direction"),
        (json!({"protocol": "ICMP"}), "InvalidRequestFormat", "protocol"),
        (json!({"localPort": "*"}), "InvalidRequestFormat", "localPort"),
        (
            json!({"direction": "Outbound", "remotePort": "*"}),
            "InvalidRequestFormat",
            "remotePort",
        ),
        (json!({"localPort": "65536"}), "InvalidRequestFormat", "localPort"),
        (json!({"remotePort": null}), "InvalidRequestFormat", "remotePort"),
        (
            json!({"localIPAddress": "10.1.0.77"}),
            "InvalidRequestFormat",
            "localIPAddress",
        ),
        (
            json!({"remoteIPAddress": "fd00::1"}),
            "InvalidRequestFormat",
            "remoteIPAddress",
        ),
        (
            json!({"remoteIPAddress": "*"}),
            "InvalidRequestFormat",
            "remoteIPAddress",
        ),
        (
            json!({"targetResourceId": "/nowhere"}),
            "InvalidResourceReference",
            "targetResourceId",
        ),
    ] {
        let refused = world
            .arm(Method::POST, &watcher("ipFlowVerify"), Some(question(changes.clone())))
            .await;
        assert_eq!(
            (
                refused.status.as_u16(),
                refused.code(),
                &refused.body["error"]["target"]
            ),
            (400, code, &json!(target)),
            "{changes}: {refused:?}"
        );
    }
    let other = world
        .arm(Method::POST, &watcher("queryAvailableProviders"), Some(json!({})))
        .await;
    assert_eq!((other.status.as_u16(), other.code()), (400, "XActionNotSupported"));
}

/// D40: the fabric API's `explain` names the deciding rule.
#[tokio::test]
async fn d40_explain_names_the_security_rule() {
    let world = secured().await;
    FakeAgent::join(&world, "vm-a", "a-nic").await;
    FakeAgent::join(&world, "vm-b", "b-nic").await;
    let question = json!({"from": "vm-b", "to": "vm-a", "protocol": "tcp", "destinationPort": 443});
    let answer = world.fabric(Method::POST, "explain", Some(question)).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.body["reachable"]),
        (200, &json!(false)),
        "{answer:?}"
    );
    let stop = &answer.body["request"]["stop"];
    assert_eq!(
        (&stop["reason"], &stop["rule"]),
        (&json!("security_rule"), &json!("N4"))
    );
    let hop = answer.body["request"]["hops"].as_array().unwrap().last().unwrap();
    let security = &hop["security"];
    assert_eq!(
        (&security["direction"], &security["knownFlow"]),
        (&json!("Inbound"), &json!(false))
    );
    assert_eq!(
        security["groups"][0]["rule"]["name"],
        "defaultSecurityRules/AllowVnetInBound"
    );
    assert_eq!(
        security["groups"][1]["rule"],
        json!({
            "name": "securityRules/https", "priority": 200, "source": {"name": "10.2.0.0/16"}, "destination": {"name": "*"},
        })
    );
}

/// N3, N4: the diagnostic lists the groups in the order in which they decide, with each rule up to the one that decides and
/// the fields that match.
#[tokio::test]
async fn n3_n4_the_configuration_diagnostic_shows_rule_by_rule() {
    let world = secured().await;
    let nic = format!("{GROUP}/providers/Microsoft.Network/networkInterfaces/a-nic");
    let profile = |source: &str, port: &str| {
        json!({
            "direction": "Inbound", "protocol": "TCP", "source": source, "destination": "10.1.0.4", "destinationPort": port,
        })
    };
    let body =
        json!({"targetResourceId": nic, "profiles": [profile("10.2.0.4/32", "443"), profile("203.0.113.7", "80")]});
    let answer = world
        .arm(Method::POST, &watcher("networkConfigurationDiagnostic"), Some(body))
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let result = |n: usize| &answer.body["results"][n]["networkSecurityGroupResult"];
    assert_eq!(answer.body["results"][0]["profile"]["destinationPort"], "443");
    assert_eq!(result(0)["securityRuleAccessResult"], "Deny");
    let groups = result(0)["evaluatedNetworkSecurityGroups"].as_array().unwrap();
    let [of_subnet, of_nic] = &groups[..] else {
        panic!("{groups:?}")
    };
    assert_eq!(of_subnet["appliedTo"], id("virtualNetworks/a/subnets/w")["id"]);
    assert_eq!(
        of_subnet["matchedRule"],
        json!({"ruleName": "DefaultRule_AllowVnetInBound", "action": "Allow"})
    );
    assert_eq!(
        of_nic["matchedRule"],
        json!({"ruleName": "UserRule_https", "action": "Deny"})
    );
    assert_eq!(
        of_nic["rulesEvaluationResult"],
        json!([{
            "name": "UserRule_https", "protocolMatched": true, "sourceMatched": true, "sourcePortMatched": true,
            "destinationMatched": true, "destinationPortMatched": true,
        }])
    );
    // The subnet's group denies the second packet, so the interface's group is not asked.
    let groups = result(1)["evaluatedNetworkSecurityGroups"].as_array().unwrap();
    assert_eq!((groups.len(), &groups[0]["matchedRule"]["action"]), (1, &json!("Deny")));
    let rules = groups[0]["rulesEvaluationResult"].as_array().unwrap();
    assert_eq!(rules.len(), 3, "{rules:?}");
    assert_eq!(rules[0]["sourceMatched"], false, "{rules:?}");

    for (profile, words) in [
        (
            profile("VirtualNetwork", "80"),
            "source: 'VirtualNetwork' is not a single address",
        ),
        (profile("10.2.0.4", "*"), "destinationPort: '*' is not possible"),
        (json!({"direction": "Sideways"}), "direction: 'Sideways'"),
    ] {
        let body = json!({"targetResourceId": nic, "profiles": [profile]});
        let refused = world
            .arm(Method::POST, &watcher("networkConfigurationDiagnostic"), Some(body))
            .await;
        let message = refused.body["error"]["message"].as_str().unwrap_or_default();
        assert!(refused.status == 400 && message.contains(words), "{refused:?}");
    }
}

/// M6: the resources of a VNet with their associations.
#[tokio::test]
async fn m6_the_topology_of_a_network() {
    let world = secured().await;
    let question = json!({"targetVirtualNetwork": id("virtualNetworks/a")});
    let answer = world.arm(Method::POST, &watcher("topology"), Some(question)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let resources = answer.body["resources"].as_array().unwrap();
    let named = |name: &str| resources.iter().find(|r| r["name"] == name).unwrap();
    assert_eq!(resources.len(), 3, "{resources:?}");
    assert_eq!(
        named("a")["associations"][0],
        json!({"name": "w", "resourceId": id("virtualNetworks/a/subnets/w")["id"], "associationType": "Contains"})
    );
    assert_eq!(
        named("w")["associations"],
        json!([{"name": "subnet", "resourceId": id("networkSecurityGroups/subnet")["id"], "associationType": "Associated"}])
    );
    let of_nic = named("a-nic")["associations"].as_array().unwrap();
    assert_eq!(of_nic.iter().map(|a| &a["name"]).collect::<Vec<_>>(), ["w", "nic"]);
    for (question, words) in [
        (json!({}), "one of targetResourceGroupName"),
        (
            json!({"targetSubnet": id("virtualNetworks/a/subnets/none")}),
            "targetSubnet: '",
        ),
        (
            json!({"targetResourceGroupName": "none"}),
            "targetResourceGroupName: 'none' was not found",
        ),
    ] {
        let refused = world.arm(Method::POST, &watcher("topology"), Some(question)).await;
        let message = refused.body["error"]["message"].as_str().unwrap_or_default();
        assert!(refused.status == 400 && message.contains(words), "{refused:?}");
    }
}
