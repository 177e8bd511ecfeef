//! Tests of gateways with sites and circuits: templates as Azure's clients send them, shared keys, devices, edges,
//! routes and BGP sessions.

use super::world::{GROUP, World, answer};
use reqwest::Method;
use serde_json::{Value, json};

const NET: &str = "~/providers/Microsoft.Network";

fn id(tail: &str) -> Value {
    json!({"id": format!("{GROUP}/providers/Microsoft.Network/{tail}")})
}

/// A controller with a hub VNet, a VPN gateway and an ExpressRoute gateway in the hub, a site and a circuit. There are
/// no connections yet.
async fn hub() -> World {
    let world = World::start(&[]).await;
    world.put("~", json!({"location": "region1"})).await;
    let subnet = json!({"name": "GatewaySubnet", "properties": {"addressPrefix": "10.10.30.128/25"}});
    let hub = json!({"location": "region1", "properties": {
        "addressSpace": {"addressPrefixes": ["10.10.30.0/24"]}, "subnets": [subnet],
    }});
    world.put(&format!("{NET}/virtualNetworks/hub"), hub).await;
    for (name, kind) in [("vpn", "Vpn"), ("er", "ExpressRoute")] {
        let place = json!({"subnet": id("virtualNetworks/hub/subnets/GatewaySubnet")});
        let gateway = json!({"location": "region1", "properties": {
            "gatewayType": kind, "enableBgp": true, "ipConfigurations": [{"name": "default", "properties": place}],
        }});
        world
            .put(&format!("{NET}/virtualNetworkGateways/{name}"), gateway)
            .await;
    }
    let site = json!({"location": "region1", "properties": {
        "gatewayIpAddress": "192.0.2.7", "localNetworkAddressSpace": {"addressPrefixes": ["10.2.30.0/25"]},
        "bgpSettings": {"asn": 65021, "bgpPeeringAddress": "10.2.30.125"},
    }});
    world.put(&format!("{NET}/localNetworkGateways/loc1"), site).await;
    world
        .put(
            &format!("{NET}/expressRouteCircuits/er1"),
            json!({"location": "region1"}),
        )
        .await;
    let peering = json!({"properties": {
        "peeringType": "AzurePrivatePeering", "peerASN": 65021, "vlanId": 300, "sharedKey": "circuitkey",
        "primaryPeerAddressPrefix": "192.168.30.16/30", "secondaryPeerAddressPrefix": "192.168.30.20/30",
    }});
    world
        .put(
            &format!("{NET}/expressRouteCircuits/er1/peerings/AzurePrivatePeering"),
            peering,
        )
        .await;
    world
}

/// Creates a connection by a template, as `az network vpn-connection create` does.
async fn deploy(world: &World, name: &str, kind: &str, gateway: &str, far: (&str, &str)) {
    // Connections to circuits have no shared key.
    let key = (kind != "ExpressRoute").then_some("[parameters('sharedKey')]");
    let body = json!({"properties": {"mode": "Incremental", "parameters": {"sharedKey": {"value": "abc123"}}, "template": {
        "parameters": {"sharedKey": {"type": "securestring"}},
        "resources": [{
            "type": "Microsoft.Network/connections", "name": name, "apiVersion": "2015-06-15", "location": "region1",
            "properties": {
                "connectionType": kind, "virtualNetworkGateway1": id(&format!("virtualNetworkGateways/{gateway}")),
                far.0: id(far.1), "enableBgp": true, "routingWeight": 10, "sharedKey": key,
            },
        }],
        "outputs": {"resource": {"type": "object", "value": format!("[reference('{name}')]")}},
    }}});
    let path = format!("~/providers/Microsoft.Resources/deployments/{name}");
    let begun = world.arm(Method::PUT, &path, Some(body)).await;
    assert_eq!(begun.status, 201, "{begun:?}");
    let operation = begun.header("azure-asyncoperation").unwrap().to_owned();
    let ended = answer(world.client.get(&operation).bearer_auth(&world.token)).await;
    assert_eq!(ended.body["status"], "Succeeded", "{ended:?}");
}

#[tokio::test]
async fn sites_and_circuits_are_connected_by_templates_too() {
    let world = hub().await;
    deploy(
        &world,
        "to-loc1",
        "IPSec",
        "vpn",
        ("localNetworkGateway2", "localNetworkGateways/loc1"),
    )
    .await;
    deploy(
        &world,
        "to-er1",
        "ExpressRoute",
        "er",
        ("peer", "expressRouteCircuits/er1"),
    )
    .await;
    let shown = world.arm(Method::GET, &format!("{NET}/connections/to-er1"), None).await;
    assert_eq!(
        shown.body["properties"]["tunnelAddresses"],
        json!(["10.10.30.134", "10.10.30.135"])
    );
    let patched = world
        .arm(
            Method::PATCH,
            &format!("{NET}/expressRouteCircuits/er1"),
            Some(json!({"tags": {"a": "b"}})),
        )
        .await;
    assert_eq!(
        (patched.status.as_u16(), &patched.body["tags"]["a"]),
        (200, &json!("b"))
    );
    let all = world.arm(Method::GET, "~/resources", None).await;
    assert_eq!(all.body["value"].as_array().map(Vec::len), Some(7));
    let none = world
        .arm(
            Method::GET,
            &format!("{NET}/expressRouteCircuits/er1/authorizations"),
            None,
        )
        .await;
    assert_eq!((none.status.as_u16(), &none.body["value"]), (200, &json!([])));
    for (path, code) in [
        ("expressRouteCircuits/er1", "XCircuitCannotBeDeleted"),
        ("localNetworkGateways/loc1", "XLocalNetworkGatewayCannotBeDeleted"),
    ] {
        let refused = world.arm(Method::DELETE, &format!("{NET}/{path}"), None).await;
        assert_eq!((refused.status.as_u16(), refused.code()), (400, code));
    }
    assert_eq!(world.arm(Method::DELETE, "~", None).await.status, 202);
}

#[tokio::test]
async fn the_key_of_a_peering_is_read_by_its_own_path_only() {
    let world = hub().await;
    let peering = format!("{NET}/expressRouteCircuits/er1/peerings/AzurePrivatePeering");
    let circuit = world
        .arm(Method::GET, &format!("{NET}/expressRouteCircuits/er1"), None)
        .await;
    assert!(!circuit.body.to_string().contains("circuitkey"));
    let key = world.arm(Method::GET, &format!("{peering}/sharedkey"), None).await;
    assert_eq!((key.status.as_u16(), &key.body["value"]), (200, &json!("circuitkey")));
    let put = world
        .arm(
            Method::PUT,
            &format!("{peering}/sharedkey"),
            Some(json!({"value": "x"})),
        )
        .await;
    assert_eq!(put.status, 405);
    let none = format!("{NET}/expressRouteCircuits/er1/peerings/other/sharedkey");
    assert_eq!(world.arm(Method::GET, &none, None).await.status, 404);
}

#[tokio::test]
async fn a_device_is_told_what_it_needs_by_those_who_may_see_keys() {
    let world = hub().await;
    deploy(
        &world,
        "to-loc1",
        "IPsec",
        "vpn",
        ("localNetworkGateway2", "localNetworkGateways/loc1"),
    )
    .await;
    let question = json!({"connection": format!("{GROUP}/providers/Microsoft.Network/connections/to-loc1")});
    let told = world
        .fabric(Method::POST, "device-config", Some(question.clone()))
        .await;
    assert_eq!(told.status, 200, "{told:?}");
    assert_eq!(
        told.body["bgp"],
        json!({"address": "10.2.30.125", "asn": 65021, "gatewayAddress": "10.10.30.254", "gatewayAsn": 65515})
    );
    assert_eq!(told.body["prefixes"], json!(["10.10.30.0/24"]));
    assert_eq!(told.body["presharedKey"].as_str().map(str::len), Some(44));
    let unknown = json!({"connection": "x", "more": 1});
    let refused = world.fabric(Method::POST, "device-config", Some(unknown)).await;
    assert_eq!(refused.status, 400);
    let missing = world
        .fabric(Method::POST, "device-config", Some(json!({"connection": "x"})))
        .await;
    assert_eq!((missing.status.as_u16(), missing.code()), (404, "ResourceNotFound"));
    let stranger = world.client.post(world.url("/fabric/v1/device-config")).json(&question);
    assert_eq!(answer(stranger).await.status, 401);
}

#[tokio::test]
async fn an_edge_joins_with_a_token_of_its_own() {
    let world = hub().await;
    let circuit = format!("{GROUP}/providers/Microsoft.Network/expressRouteCircuits/er1");
    let token = |agent: &str, link: &str| json!({"agent": agent, "binding": {"type": "edge", "circuit": circuit, "link": link}});
    let made = world
        .fabric(Method::POST, "tokens", Some(token("er1-primary", "primary")))
        .await;
    assert_eq!(made.status, 201, "{made:?}");
    let listed = world.fabric(Method::GET, "tokens", None).await;
    assert_eq!(
        listed.body["value"][0]["binding"],
        json!({"type": "edge", "circuit": circuit, "link": "primary"})
    );
    let odd = world
        .fabric(Method::POST, "tokens", Some(token("er1-third", "third")))
        .await;
    assert_eq!(odd.status, 400);
    let reserved = world
        .fabric(Method::POST, "tokens", Some(token("site.x", "secondary")))
        .await;
    assert_eq!((reserved.status.as_u16(), reserved.code()), (400, "XReservedAgentName"));
}

#[tokio::test]
async fn routes_and_sessions_are_shown_in_azures_words() {
    let world = hub().await;
    deploy(
        &world,
        "to-loc1",
        "IPsec",
        "vpn",
        ("localNetworkGateway2", "localNetworkGateways/loc1"),
    )
    .await;
    let ask = async |path: &str| world.arm(Method::POST, &format!("{NET}/{path}"), None).await;
    let gateway = "virtualNetworkGateways/vpn";
    let learned = ask(&format!("{gateway}/getLearnedRoutes")).await;
    assert_eq!(learned.status, 200, "{learned:?}");
    assert_eq!(learned.body["value"][0]["network"], "10.10.30.0/24");
    assert_eq!(learned.body["value"][0]["origin"], "Network");
    let peers = ask(&format!("{gateway}/getBgpPeerStatus")).await;
    assert_eq!(
        (&peers.body["value"][0]["neighbor"], &peers.body["value"][0]["state"]),
        (&json!("10.2.30.125"), &json!("Unknown"))
    );
    for (path, status, code) in [
        (format!("{gateway}/getAdvertisedRoutes"), 400, "InvalidRequestFormat"),
        (
            "virtualNetworkGateways/x/getLearnedRoutes".to_owned(),
            404,
            "ResourceNotFound",
        ),
        (
            "expressRouteCircuits/er1/peerings/AzurePrivatePeering/routeTables/third".to_owned(),
            400,
            "InvalidRequestFormat",
        ),
        (
            "expressRouteCircuits/x/peerings/AzurePrivatePeering/routeTables/primary".to_owned(),
            404,
            "NotFound",
        ),
    ] {
        let refused = ask(&path).await;
        assert_eq!((refused.status.as_u16(), refused.code()), (status, code), "{path}");
    }
    let version = "api-version=2022-01-01";
    let url = |query: &str| {
        let path = NET.replacen('~', GROUP, 1);
        world.url(&format!("{path}/{gateway}/{query}&{version}"))
    };
    for (query, status, length) in [
        ("getAdvertisedRoutes?peer=10.2.30.125", 200, Some(0)),
        ("getBgpPeerStatus?peer=10.9.9.9", 200, Some(0)),
        ("getAdvertisedRoutes?peer=x", 400, None),
    ] {
        let asked = answer(world.client.post(url(query)).bearer_auth(&world.token)).await;
        assert_eq!(asked.status.as_u16(), status, "{query}");
        assert_eq!(asked.body["value"].as_array().map(Vec::len), length, "{query}");
    }
    let table = "expressRouteCircuits/er1/peerings/AzurePrivatePeering";
    let routes = ask(&format!("{table}/routeTables/primary")).await;
    assert_eq!((routes.status.as_u16(), &routes.body["value"]), (200, &json!([])));
    let summary = ask(&format!("{table}/routeTablesSummary/secondary")).await;
    assert_eq!(summary.body["value"][0]["neighbor"], "192.168.30.21");
    let read = world
        .arm(Method::GET, &format!("{NET}/{gateway}/getLearnedRoutes"), None)
        .await;
    assert_eq!(read.status, 405);
}
