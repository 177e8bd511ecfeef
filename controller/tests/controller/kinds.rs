//! Sends every HTTP method to every kind of resource. For a new kind, only an entry in `example` must be added.

use crate::world::{Answer, GROUP, SUBSCRIPTION, World, answer};
use reqwest::Method;
use serde_json::{Value, json};
use tombolo_proto::arm::Kind;

/// A body for a resource of a kind, and the path of the resource.
struct Example {
    path: &'static str,
    body: Value,
}

fn id(path: &str) -> Value {
    json!({"id": format!("{GROUP}/providers/Microsoft.Network/{path}")})
}

/// The resources that the examples refer to, in the order of their creation.
fn groundwork() -> Vec<Example> {
    let other = json!({"location": "region1", "properties": {"addressSpace": {"addressPrefixes": ["10.2.0.0/16"]}}});
    vec![
        Example {
            path: "virtualNetworks/other",
            body: other,
        },
        Example {
            path: "virtualNetworks/Vnet/subnets/GatewaySubnet",
            body: json!({"properties": {"addressPrefix": "10.1.255.0/27"}}),
        },
    ]
}

/// The example of a kind. `None` for resource groups and for views of other resources, which cannot be written.
fn example(kind: Kind) -> Option<Example> {
    let (path, body) = match kind {
        Kind::ResourceGroup
        | Kind::NicIpConfiguration
        | Kind::GatewayIpConfiguration
        | Kind::DefaultSecurityRule
        | Kind::FrontEnd
        | Kind::LoadBalancingRule
        | Kind::Probe
        | Kind::OutboundRule
        // Flow logs lie below network watchers; controller/tests/controller/flow_logs.rs has their tests.
        | Kind::FlowLog
        | Kind::VirtualMachine
        | Kind::VirtualMachineExtension => return None,
        Kind::VirtualNetwork => (
            "virtualNetworks/Vnet",
            json!({"location": "region1", "properties": {"addressSpace": {"addressPrefixes": ["10.1.0.0/16"]}}}),
        ),
        Kind::Subnet => (
            "virtualNetworks/Vnet/subnets/Work",
            json!({"properties": {"addressPrefix": "10.1.0.0/24"}}),
        ),
        Kind::Peering => (
            "virtualNetworks/Vnet/virtualNetworkPeerings/To-other",
            json!({"properties": {"remoteVirtualNetwork": id("virtualNetworks/other")}}),
        ),
        Kind::RouteTable => ("routeTables/Table", json!({"location": "region1"})),
        Kind::Route => (
            "routeTables/Table/routes/Route",
            json!({"properties": {"addressPrefix": "10.9.0.0/16", "nextHopType": "None"}}),
        ),
        Kind::NetworkInterface => (
            "networkInterfaces/Nic",
            json!({"location": "region1", "properties": {
                "networkSecurityGroup": id("networkSecurityGroups/Rules"),
                "ipConfigurations": [{"name": "one", "properties": {
                    "subnet": id("virtualNetworks/Vnet/subnets/Work"),
                    "applicationSecurityGroups": [id("applicationSecurityGroups/Group")],
                    "loadBalancerBackendAddressPools": [id("loadBalancers/Balancer/backendAddressPools/Pool")],
                    "loadBalancerInboundNatRules": [id("loadBalancers/Balancer/inboundNatRules/Ssh")],
                }}],
            }}),
        ),
        Kind::PublicIpAddress => ("publicIPAddresses/Public", json!({"location": "region1"})),
        Kind::VirtualNetworkGateway => (
            "virtualNetworkGateways/Gateway",
            json!({"location": "region1", "properties": {"gatewayType": "Vpn", "ipConfigurations": [
                {"name": "one", "properties": {"subnet": id("virtualNetworks/Vnet/subnets/GatewaySubnet")}},
            ]}}),
        ),
        Kind::LocalNetworkGateway => (
            "localNetworkGateways/Site",
            json!({"location": "region1", "properties": {
                "gatewayIpAddress": "192.0.2.1",
                "localNetworkAddressSpace": {"addressPrefixes": ["10.50.0.0/16"]},
            }}),
        ),
        Kind::Connection => (
            "connections/Connection",
            json!({"location": "region1", "properties": {
                "connectionType": "IPsec",
                "virtualNetworkGateway1": id("virtualNetworkGateways/Gateway"),
                "localNetworkGateway2": id("localNetworkGateways/Site"),
            }}),
        ),
        Kind::Circuit => ("expressRouteCircuits/Circuit", json!({"location": "region1"})),
        Kind::CircuitPeering => (
            "expressRouteCircuits/Circuit/peerings/AzurePrivatePeering",
            json!({"properties": {
                "peeringType": "AzurePrivatePeering",
                "peerASN": 65021,
                "primaryPeerAddressPrefix": "192.168.1.16/30",
                "secondaryPeerAddressPrefix": "192.168.1.20/30",
                "vlanId": 300,
            }}),
        ),
        Kind::CircuitAuthorization => ("expressRouteCircuits/Circuit/authorizations/Owner", json!({})),
        Kind::ApplicationSecurityGroup => ("applicationSecurityGroups/Group", json!({"location": "region1"})),
        // Azure's command line sends no `properties`.
        Kind::NetworkSecurityGroup => ("networkSecurityGroups/Rules", json!({"location": "region1"})),
        Kind::SecurityRule => (
            "networkSecurityGroups/Rules/securityRules/Rule",
            json!({"properties": {
                "protocol": "Tcp",
                "access": "Allow",
                "direction": "Inbound",
                "priority": 100,
                "sourceApplicationSecurityGroups": [id("applicationSecurityGroups/Group")],
                "sourcePortRange": "*",
                "destinationAddressPrefix": "*",
                "destinationPortRanges": ["443", "8000-8080"],
            }}),
        ),
        Kind::LoadBalancer => (
            "loadBalancers/Balancer",
            json!({"location": "region1", "sku": {"name": "Standard"}, "properties": {
                "frontendIPConfigurations": [
                    {"name": "one", "properties": {"subnet": id("virtualNetworks/Vnet/subnets/Work")}},
                ],
            }}),
        ),
        Kind::BackendPool => (
            "loadBalancers/Balancer/backendAddressPools/Pool",
            json!({"properties": {"drainPeriodInSeconds": 0}}),
        ),
        Kind::InboundNatRule => (
            "loadBalancers/Balancer/inboundNatRules/Ssh",
            json!({"properties": {
                "protocol": "Tcp",
                "frontendPort": 2222,
                "backendPort": 22,
                "frontendIPConfiguration": id("loadBalancers/Balancer/frontendIPConfigurations/one"),
            }}),
        ),
    };
    Some(Example { path, body })
}

/// The kinds that have an example, each after those that its example refers to.
fn in_order() -> Vec<(Kind, Example)> {
    let examples = Kind::all().filter_map(|kind| Some((kind, example(kind)?)));
    let mut all: Vec<_> = examples.collect();
    let last = [Kind::NetworkInterface, Kind::VirtualNetworkGateway, Kind::Connection];
    all.sort_by_key(|(kind, _)| last.iter().position(|l| l == kind).map_or(0, |at| at + 1));
    all
}

fn arm(path: &str) -> String {
    format!("~/providers/Microsoft.Network/{path}")
}

async fn with_if_match(world: &World, method: Method, path: &str, tag: &str, body: &Value) -> Answer {
    let url = world.url(&format!(
        "{GROUP}/providers/Microsoft.Network/{path}?api-version=2024-05-01"
    ));
    let request = world.client.request(method, url).bearer_auth(&world.token);
    answer(request.header("if-match", tag).json(body)).await
}

async fn names(world: &World, path: &str) -> Vec<String> {
    let listed = world.arm(Method::GET, path, None).await;
    assert_eq!(listed.status, 200, "{path}: {listed:?}");
    let items = listed.body["value"].as_array().unwrap();
    items.iter().map(|i| i["name"].as_str().unwrap().to_owned()).collect()
}

/// Creates, reads, lists and patches one resource, and sends requests that must be refused. The resource exists
/// afterwards.
async fn create_and_read(world: &World, kind: Kind, example: &Example) {
    let Example { path, body } = example;
    let url = arm(path);
    let name = path.rsplit('/').next().unwrap().to_owned();
    let collection = url.rsplit_once('/').unwrap().0;

    let absent = world.arm(Method::GET, &url, None).await;
    assert_eq!(absent.status, 404, "{kind}: {absent:?}");
    assert_eq!(world.arm(Method::DELETE, &url, None).await.status, 204, "{kind}");
    let wrong = world.arm(Method::PUT, &url, Some(json!([]))).await;
    assert_eq!(wrong.status, 400, "{kind}: {wrong:?}");

    let made = world.put(&url, body.clone()).await;
    assert_eq!(made.status, 201, "{kind}");
    assert_eq!(made.body["name"], json!(name), "{kind}");
    assert_eq!(made.body["type"], json!(kind.type_name()), "{kind}");
    assert_eq!(made.body["properties"]["provisioningState"], "Succeeded", "{kind}");
    assert_eq!(made.header("etag"), made.body["etag"].as_str(), "{kind}");
    let read = world.arm(Method::GET, &url, None).await;
    assert_eq!((read.status.as_u16(), &read.body), (200, &made.body), "{kind}");
    assert_eq!(world.arm(Method::HEAD, &url, None).await.status, 204, "{kind}");

    // Writing back the body that was read changes nothing.
    for again in [body.clone(), read.body.clone()] {
        let again = world.put(&url, again).await;
        assert_eq!(
            (again.status.as_u16(), again.revision()),
            (200, made.revision()),
            "{kind}"
        );
        assert_eq!(again.body, made.body, "{kind}");
    }
    assert!(names(world, collection).await.contains(&name), "{kind}");
    let stale = "W/\"00000000-0000-0000-0000-000000000000\"";
    for method in [Method::PUT, Method::DELETE] {
        let refused = with_if_match(world, method.clone(), path, stale, body).await;
        assert_eq!(
            (refused.status.as_u16(), refused.code()),
            (412, "PreconditionFailed"),
            "{kind} {method}"
        );
    }

    let tags = json!({"tags": {"owner": "net"}});
    let patched = world.arm(Method::PATCH, &url, Some(tags.clone())).await;
    if !kind.is_top_level() {
        assert_eq!(
            (patched.status.as_u16(), patched.code()),
            (400, "XPatchNotSupported"),
            "{kind}"
        );
        return;
    }
    assert_eq!(
        (patched.status.as_u16(), &patched.body["tags"]),
        (200, &tags["tags"]),
        "{kind}"
    );
    assert_ne!(patched.body["etag"], made.body["etag"], "{kind}");
    let subscription = format!("/subscriptions/{SUBSCRIPTION}");
    for path in [
        format!("{subscription}/providers/{}", kind.type_name()),
        format!("{subscription}/resources"),
        "~/resources".to_owned(),
    ] {
        assert!(names(world, &path).await.contains(&name), "{kind} in {path}");
    }
}

#[tokio::test]
async fn every_verb_of_every_kind() {
    let mut world = World::start(&[]).await;
    world.put("~", json!({"location": "region1"})).await;
    let all = in_order();
    assert_eq!(
        all.len(),
        Kind::all()
            .filter(|k| k.is_writable() && ![Kind::ResourceGroup, Kind::FlowLog].contains(k))
            .count()
    );
    for (kind, example) in &all {
        if *kind == Kind::Subnet {
            for needed in groundwork() {
                world.put(&arm(needed.path), needed.body).await;
            }
        }
        create_and_read(&world, *kind, example).await;
    }

    // All resources survive a restart.
    let mut before = Vec::new();
    for (_, example) in &all {
        before.push(world.arm(Method::GET, &arm(example.path), None).await.body);
    }
    world.kill_and_restart().await;
    for ((kind, example), before) in all.iter().zip(before) {
        let after = world.arm(Method::GET, &arm(example.path), None).await;
        assert_eq!((after.status.as_u16(), after.body), (200, before), "{kind}");
    }

    for (kind, example) in all.iter().rev() {
        let gone = world.arm(Method::DELETE, &arm(example.path), None).await;
        assert_eq!(gone.status, 200, "{kind}: {gone:?}");
        assert_eq!(
            world.arm(Method::DELETE, &arm(example.path), None).await.status,
            204,
            "{kind}"
        );
        assert_eq!(
            world.arm(Method::GET, &arm(example.path), None).await.status,
            404,
            "{kind}"
        );
    }
}

#[tokio::test]
async fn a_group_takes_items_of_every_kind_with_it() {
    let world = World::start(&[]).await;
    world.put("~", json!({"location": "region1"})).await;
    for (kind, example) in in_order() {
        if kind == Kind::Subnet {
            for needed in groundwork() {
                world.put(&arm(needed.path), needed.body).await;
            }
        }
        world.put(&arm(example.path), example.body).await;
    }
    let gone = world.arm(Method::DELETE, "~", None).await;
    assert_eq!(gone.status, 202, "{gone:?}");
    let left = names(&world, &format!("/subscriptions/{SUBSCRIPTION}/resources")).await;
    assert_eq!(left, [""; 0]);
}

#[tokio::test]
async fn views_cannot_be_written() {
    let world = World::start(&[]).await;
    world.put("~", json!({"location": "region1"})).await;
    let views: Vec<Kind> = Kind::all().filter(|kind| !kind.is_writable()).collect();
    assert!(views.len() >= 5, "{views:?}");
    for kind in views {
        let types: Vec<String> = kind.types().split('/').map(|t| format!("{t}/x")).collect();
        let path = format!("~/providers/{}/{}", kind.provider(), types.join("/"));
        for (method, body) in [(Method::PUT, Some(json!({}))), (Method::DELETE, None)] {
            let refused = world.arm(method.clone(), &path, body).await;
            if (kind, &method) == (Kind::VirtualMachine, &Method::DELETE) {
                // A machine can be deleted (D7). This one does not exist.
                assert_eq!(refused.status, 204);
                continue;
            }
            assert_eq!(
                (refused.status.as_u16(), refused.code()),
                (400, "XReadOnlyResource"),
                "{method} {path}"
            );
        }
        assert_eq!(world.arm(Method::GET, &path, None).await.status, 404, "{kind}");
    }
}

#[tokio::test]
async fn providers_list_the_types_of_the_table() {
    let world = World::start(&[]).await;
    for kind in Kind::all().filter(|kind| kind.is_listed()) {
        let path = format!("/subscriptions/{SUBSCRIPTION}/providers/{}", kind.provider());
        let provider = world.arm(Method::GET, &path, None).await;
        let types = provider.body["resourceTypes"].as_array().unwrap();
        assert!(
            types.iter().any(|t| t["resourceType"] == kind.types()),
            "{kind}: {types:?}"
        );
    }
}
