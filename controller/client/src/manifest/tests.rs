//! Manifests are read, refused, ordered and compared here without a controller.

use super::*;
use crate::path::Group;
use serde_json::{Value, json};

const HUB_SPOKE: &str = "
resourceGroup: lab
location: region1
virtualNetworks:
  spoke-a:
    addressSpace: [10.2.0.0/16]
    subnets:
      workload: {addressPrefix: 10.2.0.0/24, routeTable: rt-a}
    peerings:
      to-hub: {remoteVirtualNetwork: hub, allowForwardedTraffic: true, useRemoteGateways: true}
  hub:
    addressSpace: [10.1.0.0/16]
    subnets:
      workload: {addressPrefix: 10.1.0.0/24}
      GatewaySubnet: {addressPrefix: 10.1.255.0/27}
    peerings:
      to-spoke-a: {remoteVirtualNetwork: spoke-a, allowGatewayTransit: true}
  branch:
    location: region2
    addressSpace: [10.9.0.0/16]
    subnets:
      GatewaySubnet: {addressPrefix: 10.9.255.0/27}
routeTables:
  rt-a: {routes: {to-b: {addressPrefix: 10.3.0.0/16, nextHopType: VirtualAppliance, nextHopIpAddress: 10.1.0.5}}}
networkInterfaces:
  hub-vm-nic: {subnet: hub/workload, privateIPAddress: 10.1.0.4}
publicIPAddresses: {hub-gw-pip: {}}
virtualNetworkGateways:
  hub-gw: {virtualNetwork: hub, publicIPAddress: hub-gw-pip, privateIPAddress: 10.1.255.4, asn: 65515}
  branch-gw: {virtualNetwork: branch}
connections:
  hub-to-branch: {virtualNetworkGateway1: hub-gw, virtualNetworkGateway2: branch-gw, sharedKey: abc}
";

fn manifest(text: &str) -> Manifest {
    let mut m = Manifest::default();
    m.parse("test.yaml", text).unwrap();
    m
}

fn group() -> Group {
    Group::new("s", "lab")
}

fn expanded(text: &str) -> Vec<DesiredResource> {
    manifest(text).expand(&group()).unwrap()
}

fn parse_error(text: &str) -> String {
    Manifest::default().parse("test.yaml", text).unwrap_err().to_string()
}

fn invalid(text: &str) -> String {
    manifest(text).expand(&group()).unwrap_err().to_string()
}

/// The state of a controller that has exactly the desired resources. Their bodies also have read-only properties, as in
/// a controller's answers.
fn server_after(desired: &[DesiredResource]) -> Server {
    let mut server = server_of(desired.iter().filter(|e| e.kind != Kind::Peering));
    for e in desired.iter().filter(|e| e.kind == Kind::Peering) {
        let body = answer(e, &json!({"peeringState": "Connected"}));
        server.insert(Kind::Peering, &e.path, body);
    }
    server
}

fn server_of<'a>(desired: impl Iterator<Item = &'a DesiredResource>) -> Server {
    let mut server = Server::default();
    for e in desired {
        let mut body = answer(e, &json!({}));
        for subnet in body
            .pointer_mut("/properties/subnets")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            // In Azure's answers, a subnet with a single prefix has `addressPrefix` and not `addressPrefixes`.
            let prefix = subnet["properties"]["addressPrefixes"][0].take();
            let properties = &mut subnet["properties"];
            properties.as_object_mut().unwrap().remove("addressPrefixes");
            properties["addressPrefix"] = prefix;
        }
        server.insert(e.kind, &e.path, body);
    }
    server
}

fn answer(e: &DesiredResource, more: &Value) -> Value {
    let mut body = e.body.clone();
    body["id"] = json!(e.path);
    body["name"] = json!(e.name.rsplit('/').next());
    body["etag"] = json!("W/\"1\"");
    if e.kind != Kind::ResourceGroup {
        body["properties"]["provisioningState"] = json!("Succeeded");
        for (key, value) in more.as_object().unwrap() {
            body["properties"][key] = value.clone();
        }
    }
    body
}

fn names(plan: &Plan, action: Action) -> Vec<&str> {
    plan.steps
        .iter()
        .filter(|s| s.action == action)
        .map(|s| s.name.as_str())
        .collect()
}

fn position(plan: &Plan, name: &str) -> usize {
    plan.changes()
        .position(|s| s.name == name)
        .unwrap_or_else(|| panic!("{name} is not changed"))
}

#[test]
fn a_hub_and_spoke_is_created_in_an_order_that_works() {
    let desired = expanded(HUB_SPOKE);
    let plan = Plan::make(&desired, &Server::default(), false).unwrap();
    let order: Vec<_> = plan.changes().map(|s| s.name.as_str()).collect();
    assert_eq!(
        order,
        [
            "lab",
            "rt-a",
            "hub-gw-pip",
            "spoke-a",
            "hub",
            "branch",
            "hub-gw",
            "branch-gw",
            // P20: the half with `allowGatewayTransit` comes before the half with `useRemoteGateways`, and both come
            // after the gateway.
            "hub/to-spoke-a",
            "spoke-a/to-hub",
            "hub-vm-nic",
            "hub-to-branch",
        ]
    );
    assert!(plan.steps.iter().all(|s| s.action == Action::Create));
}

#[test]
fn bodies_are_arms() {
    let desired = expanded(HUB_SPOKE);
    let body = |name: &str| &desired.iter().find(|e| e.name == name).unwrap().body;
    let net = "/subscriptions/s/resourceGroups/lab/providers/Microsoft.Network";
    assert_eq!(body("lab"), &json!({"location": "region1"}));
    assert_eq!(
        body("spoke-a"),
        &json!({"location": "region1", "properties": {
            "addressSpace": {"addressPrefixes": ["10.2.0.0/16"]},
            "subnets": [{"name": "workload", "properties": {
                "addressPrefixes": ["10.2.0.0/24"],
                "routeTable": {"id": format!("{net}/routeTables/rt-a")}, "networkSecurityGroup": null,
            }}],
        }})
    );
    assert_eq!(body("branch")["location"], "region2");
    assert_eq!(
        body("branch-gw")["location"],
        "region2",
        "the region of its virtual network"
    );
    assert_eq!(
        body("spoke-a/to-hub")["properties"],
        json!({
            "remoteVirtualNetwork": {"id": format!("{net}/virtualNetworks/hub")},
            "allowVirtualNetworkAccess": true, "allowForwardedTraffic": true, "allowGatewayTransit": false,
            "useRemoteGateways": true, "doNotVerifyRemoteGateways": false, "transport": "Automatic",
        })
    );
    assert_eq!(
        body("hub-gw")["properties"]["ipConfigurations"],
        json!([{"name": "default", "properties": {
            "subnet": {"id": format!("{net}/virtualNetworks/hub/subnets/GatewaySubnet")},
            "publicIPAddress": {"id": format!("{net}/publicIPAddresses/hub-gw-pip")},
            "privateIPAllocationMethod": "Static", "privateIPAddress": "10.1.255.4",
        }}])
    );
    assert_eq!(
        body("hub-vm-nic")["properties"]["ipConfigurations"][0]["properties"]["primary"],
        true
    );
    assert_eq!(body("hub-to-branch")["properties"]["sharedKey"], "abc");
}

#[test]
fn applying_again_changes_nothing() {
    let desired = expanded(HUB_SPOKE);
    let server = server_after(&desired);
    for prune in [false, true] {
        let plan = Plan::make(&desired, &server, prune).unwrap();
        assert!(plan.is_empty(), "{:?}", plan.changes().collect::<Vec<_>>());
        assert_eq!(plan.count(Action::Unchanged), desired.len());
    }
}

#[test]
fn only_what_differs_is_written_and_the_rest_survives() {
    let server = server_after(&expanded(HUB_SPOKE));
    let changed = HUB_SPOKE
        .replace("routeTable: rt-a", "")
        .replace("sharedKey: abc", "sharedKey: xyz");
    let plan = Plan::make(&expanded(&changed), &server, false).unwrap();
    assert_eq!(names(&plan, Action::Update), ["spoke-a", "hub-to-branch"]);
    let vnet = plan.changes().next().unwrap();
    assert_eq!(
        vnet.body["properties"]["subnets"][0]["properties"]["routeTable"],
        Value::Null
    );
    assert_eq!(
        vnet.body["etag"], "W/\"1\"",
        "what the manifest does not mention is sent back as it was"
    );
    let text = format!("{} {}", plan.steps[11].before, serde_json::to_string(&plan).unwrap());
    assert!(
        text.contains("(another secret)") && !text.contains("abc") && !text.contains("xyz"),
        "{text}"
    );
}

#[test]
fn without_prune_extras_stay_and_with_prune_they_go() {
    let desired = expanded(HUB_SPOKE);
    let server = server_after(&desired);
    let smaller = HUB_SPOKE
        .replace("      workload: {addressPrefix: 10.1.0.0/24}\n", "")
        .replace("  hub-vm-nic: {subnet: hub/workload, privateIPAddress: 10.1.0.4}\n", "")
        .replace("      workload: {addressPrefix: 10.2.0.0/24, routeTable: rt-a}\n", "      workload: {addressPrefix: 10.2.0.0/24}\n")
        .replace("  rt-a: {routes: {to-b: {addressPrefix: 10.3.0.0/16, nextHopType: VirtualAppliance, nextHopIpAddress: 10.1.0.5}}}\n", "");
    let smaller = expanded(&smaller);
    let kept = Plan::make(&smaller, &server, false).unwrap();
    assert_eq!(
        names(&kept, Action::Update),
        ["spoke-a"],
        "only the route table's reference"
    );
    let pruned = Plan::make(&smaller, &server, true).unwrap();
    assert_eq!(names(&pruned, Action::Delete), ["hub-vm-nic", "rt-a"]);
    assert_eq!(names(&pruned, Action::Update), ["spoke-a", "hub"]);
    // The NIC is deleted before its subnet, and the route table after the update that removes the reference to it.
    assert!(position(&pruned, "hub-vm-nic") < position(&pruned, "hub"));
    assert!(position(&pruned, "spoke-a") < position(&pruned, "rt-a"));
    let hub = pruned.changes().find(|s| s.name == "hub").unwrap();
    assert_eq!(hub.body["properties"]["subnets"].as_array().unwrap().len(), 1);
}

#[test]
fn a_subnet_in_use_is_deleted_after_its_nic_has_moved() {
    let desired = expanded(HUB_SPOKE);
    let mut server = server_after(&desired);
    let hub = desired.iter().find(|e| e.name == "hub").unwrap();
    let nic = desired.iter().find(|e| e.name == "hub-vm-nic").unwrap();
    let mut body = answer(hub, &json!({}));
    body["properties"]["subnets"][0]["properties"]["ipConfigurations"] =
        json!([{"id": format!("{}/ipConfigurations/ipconfig1", nic.path)}]);
    server.insert(Kind::VirtualNetwork, &hub.path, body);
    let moved = HUB_SPOKE.replace(
        "workload: {addressPrefix: 10.1.0.0/24}",
        "other: {addressPrefix: 10.1.1.0/24}",
    );
    let moved = moved.replace(
        "hub/workload, privateIPAddress: 10.1.0.4",
        "hub/other, privateIPAddress: 10.1.1.4",
    );
    let plan = Plan::make(&expanded(&moved), &server, true).unwrap();
    assert_eq!(names(&plan, Action::Delete), ["hub/workload"]);
    assert!(position(&plan, "hub") < position(&plan, "hub-vm-nic"));
    assert!(position(&plan, "hub-vm-nic") < position(&plan, "hub/workload"));
}

#[test]
fn a_disconnected_half_is_updated_before_its_counterpart_is_created() {
    // P14: the hub's half exists and is Disconnected, because the spoke's half is gone.
    let desired = expanded(HUB_SPOKE);
    let mut server = server_of(desired.iter().filter(|e| e.kind != Kind::Peering));
    let half = desired.iter().find(|e| e.name == "hub/to-spoke-a").unwrap();
    server.insert(
        Kind::Peering,
        &half.path,
        answer(half, &json!({"peeringState": "Disconnected"})),
    );
    let plan = Plan::make(&desired, &server, false).unwrap();
    assert_eq!(names(&plan, Action::Update), ["hub/to-spoke-a"]);
    assert_eq!(names(&plan, Action::Create), ["spoke-a/to-hub"]);
    assert!(position(&plan, "hub/to-spoke-a") < position(&plan, "spoke-a/to-hub"));
}

#[test]
fn a_changed_address_space_is_synced_by_the_other_half() {
    // P27: the hub gets another prefix, and the spoke's half has synced only the old ones.
    let desired = expanded(HUB_SPOKE);
    let mut server = server_after(&desired);
    let half = desired.iter().find(|e| e.name == "spoke-a/to-hub").unwrap();
    let synced = json!({"peeringState": "Connected", "remoteAddressSpace": {"addressPrefixes": ["10.1.0.0/16"]},
        "remoteVirtualNetworkAddressSpace": {"addressPrefixes": ["10.1.0.0/16"]}});
    server.insert(Kind::Peering, &half.path, answer(half, &synced));
    assert!(Plan::make(&desired, &server, false).unwrap().is_empty());
    let grown = expanded(&HUB_SPOKE.replace("[10.1.0.0/16]", "[10.1.0.0/16, 10.5.0.0/16]"));
    let plan = Plan::make(&grown, &server, false).unwrap();
    assert_eq!(names(&plan, Action::Update), ["hub", "spoke-a/to-hub"]);
    assert!(plan.changes().last().unwrap().sync);
}

#[test]
fn remote_gateways_are_released_before_an_own_one_is_created() {
    // P23: a VNet either has its own gateway or uses a remote one. So the half stops using the remote gateway before
    // the VNet gets its own.
    let desired = expanded(HUB_SPOKE);
    let server = server_after(&desired);
    let own = HUB_SPOKE
        .replace(", useRemoteGateways: true", "")
        .replace("  hub-gw:", "  a-gw: {virtualNetwork: spoke-a}\n  hub-gw:")
        .replace(
            "routeTable: rt-a}",
            "routeTable: rt-a}\n      GatewaySubnet: {addressPrefix: 10.2.255.0/27}",
        );
    let plan = Plan::make(&expanded(&own), &server, false).unwrap();
    assert!(position(&plan, "spoke-a/to-hub") < position(&plan, "a-gw"));
}

#[test]
fn resources_with_tags_alone_are_planned_from_the_table_of_kinds() {
    let text = "applicationSecurityGroups:\n  web: {tags: {tier: front}}\n  data: {location: region2}\n";
    let desired = expanded(text);
    let groups: Vec<_> = desired
        .iter()
        .filter(|e| e.kind == Kind::ApplicationSecurityGroup)
        .collect();
    assert_eq!(groups.iter().map(|e| &*e.name).collect::<Vec<_>>(), ["web", "data"]);
    assert_eq!(groups[0].body["tags"], json!({"tier": "front"}));
    assert_eq!(groups[1].body["location"], "region2");

    let server = server_after(&desired);
    assert!(Plan::make(&desired, &server, true).unwrap().is_empty());
    let changed = expanded(&text.replace("front", "back"));
    let plan = Plan::make(&changed, &server, true).unwrap();
    assert_eq!((plan.changes().count(), plan.count(Action::Update)), (1, 1));
    let fewer = expanded("applicationSecurityGroups:\n  web: {tags: {tier: front}}\n");
    let plan = Plan::make(&fewer, &server, true).unwrap();
    let gone: Vec<_> = plan.changes().map(|step| (step.action, &*step.name)).collect();
    assert_eq!(gone, [(Action::Delete, "data")]);
}

#[test]
fn n14_flow_logs_lie_below_the_watcher_of_their_targets_region() {
    let text = "location: region2\nvirtualNetworks:\n  hub: {location: region3, addressSpace: [10.1.0.0/16]}\n\
                networkSecurityGroups:\n  web: {}\nflowLogs:\n  all: {virtualNetwork: hub, tags: {owner: net}}\n  \
                rules: {networkSecurityGroup: web, formatVersion: 1, enabled: false}\n";
    let desired = expanded(text);
    let logs: Vec<_> = desired.iter().filter(|e| e.kind == Kind::FlowLog).collect();
    assert_eq!(
        desired.last().map(|e| e.kind),
        Some(Kind::FlowLog),
        "after their targets"
    );
    let watcher = |region: &str| {
        format!("/resourceGroups/NetworkWatcherRG/providers/Microsoft.Network/networkWatchers/NetworkWatcher_{region}/")
    };
    for (log, region) in [(logs[0], "region3"), (logs[1], "region2")] {
        assert_eq!(log.body["location"], region);
        assert!(log.path.contains(&watcher(region)), "{}", log.path);
    }
    assert_eq!(logs[0].body["tags"], json!({"owner": "net"}));
    let properties = &logs[1].body["properties"];
    assert_eq!(
        properties["targetResourceId"],
        json!(group().item("networkSecurityGroups", "web"))
    );
    assert_eq!(
        (&properties["enabled"], &properties["format"]["version"]),
        (&json!(false), &json!(1))
    );

    let server = server_after(&desired);
    assert!(Plan::make(&desired, &server, false).unwrap().is_empty());
    let plan = Plan::make(&expanded(&text.replace("false", "true")), &server, false).unwrap();
    assert_eq!((plan.changes().count(), plan.count(Action::Update)), (1, 1));
}

#[test]
fn n14_a_flow_log_has_exactly_one_target() {
    for targets in ["", "virtualNetwork: a, networkInterface: b"] {
        let text = invalid(&format!("flowLogs:\n  all: {{{targets}}}\n"));
        assert!(
            text.contains("flowLogs.all: set exactly one of networkSecurityGroup"),
            "{text}"
        );
    }
    let text = invalid("flowLogs:\n  all: {subnet: a}\n");
    assert!(
        text.contains("flowLogs.all: subnet: 'a' must be written as virtual-network/subnet"),
        "{text}"
    );
}

const SECURITY: &str = include_str!("../../tests/security.yaml");

#[test]
fn security_groups_are_created_after_what_they_name_and_before_what_uses_them() {
    let plan = Plan::make(&expanded(SECURITY), &Server::default(), false).unwrap();
    for (first, second) in [
        ("web-servers", "front"),
        ("databases", "front"),
        ("front", "hub"),
        ("back", "data-nic"),
    ] {
        assert!(
            position(&plan, first) < position(&plan, second),
            "{first} before {second}"
        );
    }
}

#[test]
fn n1_a_rule_has_the_defaults_of_azures_command_line() {
    let text = "networkSecurityGroups: {g: {rules: {r:
        {priority: 100, direction: Inbound, access: Deny, destinationPortRange: 22}}}}";
    assert_eq!(
        expanded(text)[1].body["properties"]["securityRules"],
        json!([{"name": "r", "properties": {
            "description": null, "priority": 100, "direction": "Inbound", "access": "Deny", "protocol": "*",
            "sourceAddressPrefix": "*", "sourceAddressPrefixes": null, "sourceApplicationSecurityGroups": null,
            "sourcePortRange": "*", "sourcePortRanges": null,
            "destinationAddressPrefix": "*", "destinationAddressPrefixes": null,
            "destinationApplicationSecurityGroups": null,
            "destinationPortRange": "22", "destinationPortRanges": null,
        }}])
    );
}

#[test]
fn n9_the_groups_of_a_nic_apply_to_all_its_addresses() {
    let desired = expanded(SECURITY);
    let body = |name: &str| &desired.iter().find(|e| e.name == name).unwrap().body["properties"];
    let net = "/subscriptions/s/resourceGroups/lab/providers/Microsoft.Network";
    let data = body("data-nic");
    assert_eq!(
        data["networkSecurityGroup"]["id"],
        format!("{net}/networkSecurityGroups/back")
    );
    for configuration in data["ipConfigurations"].as_array().unwrap() {
        assert_eq!(
            configuration["properties"]["applicationSecurityGroups"],
            json!([{"id": format!("{net}/applicationSecurityGroups/databases")}])
        );
    }
    assert_eq!(body("web-nic")["networkSecurityGroup"], Value::Null);
    assert_eq!(
        body("plain-nic")["ipConfigurations"][0]["properties"]["applicationSecurityGroups"],
        Value::Null
    );
    assert_eq!(
        body("hub")["subnets"][0]["properties"]["networkSecurityGroup"]["id"],
        format!("{net}/networkSecurityGroups/front")
    );
}

#[test]
fn n11_one_value_is_written_to_the_singular_property_and_a_list_to_the_plural_one() {
    let desired = expanded(SECURITY);
    let back = desired.iter().find(|e| e.name == "back").unwrap();
    let rule = &back.body["properties"]["securityRules"][0]["properties"];
    assert_eq!(rule["sourceAddressPrefix"], Value::Null);
    assert_eq!(
        rule["sourceAddressPrefixes"],
        json!(["10.1.0.0/24", "10.2.0.4", "10.2.0.8-10.2.0.9"])
    );
    assert_eq!(rule["sourcePortRange"], Value::Null);
    assert_eq!(rule["sourcePortRanges"], json!(["1024-65535"]));
    assert_eq!(rule["destinationPortRange"], "*");
}

#[test]
fn empty_lists_in_the_controllers_answer_are_no_difference() {
    let desired = expanded(SECURITY);
    let mut server = server_after(&desired);
    for e in desired.iter().filter(|e| e.kind == Kind::NetworkSecurityGroup) {
        let mut body = answer(
            e,
            &json!({"defaultSecurityRules": [], "subnets": [], "networkInterfaces": []}),
        );
        for rule in body["properties"]["securityRules"].as_array_mut().unwrap() {
            for (name, value) in rule["properties"].as_object_mut().unwrap() {
                if value.is_null() && name.ends_with('s') {
                    *value = json!([]);
                }
            }
        }
        server.insert(e.kind, &e.path, body);
    }
    let plan = Plan::make(&desired, &server, true).unwrap();
    assert!(plan.is_empty(), "{:?}", plan.changes().collect::<Vec<_>>());
}

#[test]
fn n1_contradictions_of_rules_are_reported_at_once() {
    let text = invalid(
        "networkSecurityGroups:
  g:
    rules:
      low: {priority: 99, direction: Inbound, access: Allow, destinationPortRange: 22}
      first: {priority: 100, direction: Inbound, access: Allow, destinationPortRange: 22}
      second: {priority: 100, direction: Inbound, access: Deny, destinationPortRange: 22}
      other-way: {priority: 100, direction: Outbound, access: Deny, destinationPortRange: 22}
      no-port: {priority: 101, direction: Inbound, access: Deny}
      ports: {priority: 102, direction: Inbound, access: Deny, destinationPortRange: 22, destinationPortRanges: [22]}
      mixed:
        priority: 103
        direction: Inbound
        access: Deny
        sourceAddressPrefix: Internet
        sourceApplicationSecurityGroups: [a]
        destinationPortRange: 22
",
    );
    let g = "test.yaml: networkSecurityGroups.g.rules";
    let expected = [
        format!("{g}.low: priority: 99 is not within 100 to 4096 (N1)"),
        format!("{g}.second: priority: rule first with the same direction has 100 too; choose another number (N1)"),
        format!("{g}.no-port: destinationPortRange is needed, such as 443 or '*'; destinationPortRanges for several"),
        format!("{g}.ports: set either destinationPortRange or destinationPortRanges, not both"),
        format!(
            "{g}.mixed: set one of sourceAddressPrefix, sourceAddressPrefixes and sourceApplicationSecurityGroups, not several (N9)"
        ),
    ];
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn mistakes_in_rules_are_named_with_their_line() {
    let rule = |text: &str| format!("networkSecurityGroups:\n  g:\n    rules:\n      r: {{{text}}}\n");
    for (text, part) in [
        ("direction: Inbound, access: Deny", "priority"),
        ("priority: 100, access: Deny", "direction"),
        ("priority: 100, direction: Inbound", "access"),
        ("priority: 100, direction: inbound, access: Deny", "Inbound"),
        ("priority: 100, direction: Inbound, access: Deny, protocol: Sctp", "Tcp"),
        (
            "priority: 100, direction: Inbound, access: Deny, destinationPortRange: 65536",
            "0 to 65535",
        ),
        (
            "priority: 100, direction: Inbound, access: Deny, destinationPortRanges: [443-80]",
            "443-80",
        ),
        (
            "priority: 100, direction: Inbound, access: Deny, sourceAddressPrefix: 10.0.0.1/8",
            "write 10.0.0.0/8",
        ),
        (
            "priority: 100, direction: Inbound, access: Deny, sourceAddressPrefixes: ['']",
            "empty",
        ),
    ] {
        let error = parse_error(&rule(text));
        assert!(error.contains(part) && error.contains("line 4"), "{text}: {error}");
    }
}

#[test]
fn dangling_references_are_refused_before_anything_is_written() {
    let wrong = HUB_SPOKE
        .replace("remoteVirtualNetwork: hub", "remoteVirtualNetwork: hob")
        .replace("hub/workload", "hub/work");
    let desired = expanded(&wrong);
    let mut server = Server::default();
    server.insert(Kind::ResourceGroup, &group().path(), json!({}));
    let text = Plan::make(&desired, &server, false).unwrap_err().to_string();
    assert!(
        text.contains("peering spoke-a/to-hub refers to virtualNetworks/hob"),
        "{text}"
    );
    assert!(
        text.contains("network interface hub-vm-nic refers to virtualNetworks/hub/subnets/work"),
        "{text}"
    );
    assert_eq!(text.lines().count(), 2, "{text}");
}

#[test]
fn mistakes_are_named_with_their_line() {
    let unknown = parse_error("virtualNetworks:\n  hub:\n    addressSpace: [10.0.0.0/8]\n    adressSpace: []\n");
    assert!(
        unknown.contains("adressSpace") && unknown.contains("line 4"),
        "{unknown}"
    );
    let twice =
        parse_error("virtualNetworks:\n  hub: {addressSpace: [10.0.0.0/8]}\n  Hub: {addressSpace: [11.0.0.0/8]}\n");
    assert!(
        twice.contains("'Hub' occurs twice here") && twice.contains("line 3"),
        "{twice}"
    );
    let host = parse_error("virtualNetworks:\n  hub: {addressSpace: [10.0.0.1/8]}\n");
    assert!(host.contains("host bits") && host.contains("line 2"), "{host}");
    let name = parse_error("virtualNetworks:\n  a/b: {addressSpace: [10.0.0.0/8]}\n");
    assert!(name.contains("cannot be a name") && name.contains("line 2"), "{name}");
    let field = parse_error("location: x\nlocation: y\n");
    assert!(field.contains("duplicate field"), "{field}");
    let hop = parse_error("routeTables:\n  r: {routes: {x: {addressPrefix: 10.0.0.0/8, nextHopType: Gateway}}}\n");
    assert!(hop.contains("VirtualAppliance") && hop.contains("line 2"), "{hop}");
}

#[test]
fn all_contradictions_are_reported_at_once() {
    let text = invalid(
        "virtualNetworks: {v: {addressSpace: [], subnets: {s: {}}}}
routeTables: {r: {routes: {x: {addressPrefix: 10.0.0.0/8, nextHopType: VirtualAppliance}}}}
networkInterfaces: {n: {privateIPAddress: 10.0.0.4}, m: {subnet: nowhere}}
",
    );
    for part in [
        "addressSpace",
        "v.subnets.s",
        "routes.x",
        "networkInterfaces.n",
        "virtual-network/subnet",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn files_are_merged_and_duplicates_across_them_refused() {
    let mut m = Manifest::default();
    m.parse(
        "a.yaml",
        "resourceGroup: g\nvirtualNetworks: {v: {addressSpace: [10.0.0.0/8]}}\n",
    )
    .unwrap();
    m.parse(
        "b.yaml",
        "resourceGroup: G\nnetworkInterfaces: {n: {subnet: v/s}}\n---\n# empty\n---\nresourceGroup: h\n",
    )
    .unwrap();
    let kinds: Vec<_> = m
        .expand(&group())
        .unwrap()
        .iter()
        .map(|e| (e.kind, e.name.clone()))
        .collect();
    assert_eq!(kinds.iter().filter(|(k, _)| *k == Kind::ResourceGroup).count(), 2);
    m.parse(
        "c.yaml",
        "resourceGroup: g\nvirtualNetworks: {V: {addressSpace: [11.0.0.0/8]}}\n",
    )
    .unwrap();
    let text = m.expand(&group()).unwrap_err().to_string();
    assert_eq!(text, "c.yaml: virtual network V is already defined in a.yaml");
}

#[test]
fn a_folder_is_read_in_order_of_names() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("b.yml", "publicIPAddresses: {two: {}}\n");
    write("a.yaml", "publicIPAddresses: {one: {}}\n");
    write("notes.txt", "not: [a manifest");
    std::fs::create_dir(dir.path().join("c")).unwrap();
    write("c/d.yaml", "publicIPAddresses: {three: {}}\n");
    let m = Manifest::load(dir.path()).unwrap();
    let names: Vec<_> = m
        .expand(&group())
        .unwrap()
        .into_iter()
        .skip(1)
        .map(|e| e.name)
        .collect();
    assert_eq!(names, ["one", "two", "three"]);
    let empty = tempfile::tempdir().unwrap();
    assert!(
        Manifest::load(empty.path())
            .unwrap_err()
            .to_string()
            .contains("no *.yaml")
    );
    assert!(Manifest::load(&empty.path().join("missing.yaml")).is_err());
}

#[test]
fn several_addresses_and_both_families() {
    let desired = expanded(
        "networkInterfaces:
  n:
    enableIPForwarding: true
    ipConfigurations:
      v4: {subnet: hub/a, privateIPAddress: 10.1.0.4}
      v6: {subnet: hub/a, privateIPAddress: 'fd00:1::4'}
      auto: {subnet: hub/a}
",
    );
    let list = desired[1].body["properties"]["ipConfigurations"].as_array().unwrap();
    assert_eq!(list[0]["properties"]["primary"], true);
    assert_eq!(list[1]["properties"]["privateIPAddressVersion"], "IPv6");
    assert_eq!(list[2]["properties"]["privateIPAllocationMethod"], "Dynamic");
}

#[test]
fn gateways_sites_circuits_and_connections_expand() {
    let text = include_str!("../../tests/interop.yaml");
    let all = expanded(text);
    let find = |kind: Kind, name: &str| &all.iter().find(|e| e.kind == kind && e.name == name).unwrap().body;
    let gateway = &find(Kind::VirtualNetworkGateway, "hub-vpn")["properties"];
    assert_eq!(gateway["gatewayType"], "Vpn");
    assert_eq!(
        gateway["bgpSettings"],
        json!({"asn": 65515, "bgpPeeringAddress": "10.10.30.254"})
    );
    let express = &find(Kind::VirtualNetworkGateway, "hub-er")["properties"];
    assert_eq!(
        (&express["gatewayType"], &express["sku"]["name"]),
        (&json!("ExpressRoute"), &json!("Standard"))
    );
    let site = &find(Kind::LocalNetworkGateway, "loc1")["properties"];
    assert_eq!(
        site["localNetworkAddressSpace"]["addressPrefixes"],
        json!(["10.2.30.125/32"])
    );
    assert_eq!(
        site["bgpSettings"],
        json!({"asn": 65021, "bgpPeeringAddress": "10.2.30.125"})
    );
    let circuit = find(Kind::Circuit, "er1");
    assert_eq!(circuit["sku"]["tier"], "Standard");
    assert_eq!(circuit["properties"]["peerings"][0]["properties"]["peerASN"], 65021);
    let connection = |name: &str| find(Kind::Connection, name)["properties"].clone();
    let ends = |name: &str, word: &str| {
        connection(name)[word]["id"]
            .as_str()
            .map(|id| id.rsplit('/').next().unwrap().to_owned())
    };
    assert_eq!(ends("hub-to-loc1", "localNetworkGateway2").as_deref(), Some("loc1"));
    assert_eq!(ends("hub-er2", "peer").as_deref(), Some("er2"));
    assert_eq!(
        connection("hub-er1")["tunnelAddresses"],
        json!(["10.10.30.132", "10.10.30.133"])
    );
    assert_eq!(connection("hub-to-branch")["connectionType"], "Vnet2Vnet");
    // The JSON of a plan contains no secret.
    let plan = Plan::make(&all, &Server::default(), false).unwrap();
    let shown = serde_json::to_string(&plan).unwrap();
    for secret in ["circuitkey", "sitekey", "abc123"] {
        assert!(!shown.contains(secret), "{secret}");
    }
}

#[test]
fn properties_that_exclude_each_other_are_reported() {
    let text = invalid(
        "virtualNetworkGateways: {g: {virtualNetwork: v, gatewayType: ExpressRoute, bgpPeeringAddress: 10.0.0.4}}
localNetworkGateways: {l: {asn: 65021}}
connections:
  a: {virtualNetworkGateway1: g}
  b: {connectionType: IPsec, virtualNetworkGateway1: g, virtualNetworkGateway2: h}
  c: {connectionType: ExpressRoute, virtualNetworkGateway1: g, expressRouteCircuit: e, tunnelAddresses: [10.0.0.4], sharedKey: k}
",
    );
    for part in [
        "virtualNetworkGateways.g: bgpPeeringAddress",
        "localNetworkGateways.l: asn and bgpPeeringAddress",
        "connections.a: virtualNetworkGateway2 is needed",
        "connections.b: virtualNetworkGateway2 is allowed with",
        "connections.b: localNetworkGateway2 is needed",
        "connections.c: tunnelAddresses",
        "connections.c: sharedKey",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let key = parse_error("localNetworkGateways:\n  l: {wireGuardPublicKey: abc}\n");
    assert!(key.contains("32 bytes in base64") && key.contains("line 2"), "{key}");
}

mod balancers;
mod regions;
