//! Tests of ARM's dialect: status codes, upper and lower case, collections, actions, lists of whole subscriptions, and
//! template deployments.

use crate::fake_agent::FakeAgent;
use crate::world::{GROUP, SUBSCRIPTION, World, answer};
use reqwest::{Method, StatusCode};
use serde_json::json;

const NET: &str = "~/providers/Microsoft.Network";

#[tokio::test]
async fn codes_and_headers_of_an_items_life() {
    let world = World::start(&[]).await;
    let missing = world
        .arm(
            Method::PUT,
            &format!("{NET}/virtualNetworks/v"),
            Some(json!({"location": "r"})),
        )
        .await;
    assert_eq!(
        (missing.status.as_u16(), missing.code()),
        (404, "ResourceGroupNotFound")
    );
    assert_eq!(world.arm(Method::HEAD, "~", None).await.status, 404);
    assert_eq!(world.put("~", json!({"location": "region1"})).await.status, 201);
    assert_eq!(world.put("~", json!({"location": "region1"})).await.status, 200);
    assert_eq!(world.arm(Method::HEAD, "~", None).await.status, 204);

    let path = format!("{NET}/virtualNetworks/Hub");
    let absent = world.arm(Method::GET, &path, None).await;
    assert_eq!((absent.status.as_u16(), absent.code()), (404, "ResourceNotFound"));
    assert!(
        absent.body["error"]["message"].as_str().unwrap().starts_with(
            "The Resource 'Microsoft.Network/virtualNetworks/Hub' under resource group 'lab' was not found."
        )
    );
    let body = json!({"location": "region1", "tags": null, "properties": {"addressSpace": {"addressPrefixes": ["10.1.0.0/16"]}, "unheardOf": 1}});
    let made = world.put(&path, body.clone()).await;
    assert_eq!(made.status, 201);
    assert_eq!(made.header("etag"), made.body["etag"].as_str());
    assert_eq!(made.header("content-type"), Some("application/json; charset=utf-8"));
    assert_eq!(made.body["properties"]["provisioningState"], "Succeeded");
    let again = world.put(&path, body).await;
    assert_eq!(
        (again.status.as_u16(), again.revision()),
        (200, made.revision()),
        "the same again is no change"
    );

    // Paths may have any mix of upper and lower case, a trailing slash and any api-version. Responses have the names as
    // they were written at the creation.
    let odd = format!(
        "/SUBSCRIPTIONS/{SUBSCRIPTION}/resourcegroups/LAB/providers/microsoft.network/VirtualNetworks/hUB/?api-version=2031-01-01-preview"
    );
    let found = world.send(Method::GET, &odd, None).await;
    assert_eq!((found.status.as_u16(), &found.body["id"]), (200, &made.body["id"]));

    let tagged = world
        .arm(Method::PATCH, &path, Some(json!({"tags": {"env": "test"}})))
        .await;
    assert_eq!(
        (tagged.status.as_u16(), &tagged.body["tags"]),
        (200, &json!({"env": "test"}))
    );
    let stale = world.client.delete(world.url(&format!(
        "{GROUP}/providers/Microsoft.Network/virtualNetworks/Hub?api-version=2024-05-01"
    )));
    let stale = answer(
        stale
            .bearer_auth(&world.token)
            .header("if-match", made.header("etag").unwrap()),
    )
    .await;
    assert_eq!((stale.status.as_u16(), stale.code()), (412, "PreconditionFailed"));
    assert_eq!(world.arm(Method::DELETE, &path, None).await.status, 200);
    assert_eq!(world.arm(Method::DELETE, &path, None).await.status, 204);
    let unknown = world.arm(Method::GET, &format!("{NET}/wormholes/w"), None).await;
    assert_eq!((unknown.status.as_u16(), unknown.code()), (404, "InvalidResourceType"));
}

#[tokio::test]
async fn a_group_goes_with_all_that_is_in_it() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    let gone = world.arm(Method::DELETE, "~", None).await;
    assert_eq!(gone.status, StatusCode::ACCEPTED, "{gone:?}");
    let location = gone.header("location").unwrap();
    assert!(location.starts_with(&world.url("/subscriptions/")));
    assert_eq!(gone.header("retry-after"), Some("1"));
    let ended = answer(world.client.get(location).bearer_auth(&world.token)).await;
    assert_eq!(ended.status, 200);
    let lost = world.arm(Method::GET, "~/resources", None).await;
    assert_eq!((lost.status.as_u16(), lost.code()), (404, "ResourceGroupNotFound"));
}

#[tokio::test]
async fn lists_above_the_resources() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    let other = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/x";
    world.put(other, json!({"location": "region2"})).await;
    let names = async |path: &str, field: &str| -> Vec<String> {
        let listed = world.arm(Method::GET, path, None).await;
        assert_eq!(listed.status, 200, "{path}: {listed:?}");
        let items = listed.body["value"].as_array().unwrap();
        items.iter().map(|i| i[field].as_str().unwrap().to_owned()).collect()
    };
    let subscription = format!("/subscriptions/{SUBSCRIPTION}");
    assert_eq!(
        names("/subscriptions", "subscriptionId").await,
        [SUBSCRIPTION, "11111111-2222-3333-4444-555555555555"]
    );
    assert_eq!(names("/tenants", "displayName").await, ["Tombolo"]);
    assert_eq!(
        names(&format!("{subscription}/locations"), "name").await,
        ["region1", "region2"]
    );
    assert_eq!(names(&format!("{subscription}/resourcegroups"), "name").await, ["lab"]);
    assert_eq!(
        names(&format!("{subscription}/providers"), "registrationState").await,
        ["Registered"; 6]
    );
    assert_eq!(names(&format!("{subscription}/resources?$filter=resourceType%20eq%20'Microsoft.Network/virtualNetworks'%20and%20name%20eq%20'A'"), "name").await, ["a"]);
    assert_eq!(names("~/resources", "name").await.len(), 4);
    assert_eq!(
        names(
            &format!("{subscription}/providers/Microsoft.Network/virtualNetworks"),
            "name"
        )
        .await,
        ["a", "b"]
    );
    assert_eq!(names(&format!("{NET}/virtualNetworks/a/subnets"), "name").await, ["w"]);
    assert_eq!(names(&format!("{NET}/networkSecurityGroups"), "name").await, [""; 0]);
    assert_eq!(
        names(
            &format!("{subscription}/providers/Microsoft.Network/networkWatchers"),
            "location"
        )
        .await,
        ["region1", "region2"]
    );
    let bad = world
        .arm(Method::GET, &format!("{subscription}/resources?$filter=nonsense"), None)
        .await;
    assert_eq!((bad.status.as_u16(), bad.code()), (400, "InvalidFilterInQueryString"));
    let registered = world
        .arm(
            Method::POST,
            &format!("{subscription}/providers/microsoft.network/register"),
            None,
        )
        .await;
    assert_eq!(
        (registered.status.as_u16(), &registered.body["namespace"]),
        (200, &json!("Microsoft.Network"))
    );
    let refused = world
        .arm(
            Method::PUT,
            &format!("{NET}/natGateways/n"),
            Some(json!({"location": "r"})),
        )
        .await;
    assert_eq!(
        (refused.status.as_u16(), refused.code()),
        (400, "XResourceTypeNotSupported")
    );
}

#[tokio::test]
async fn effective_routes_are_those_that_are_sent() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    world.peer("a", "b").await;
    world.peer("b", "a").await;
    let table = json!({"location": "region1", "properties": {"routes": [
        {"name": "via", "properties": {"addressPrefix": "10.7.0.0/16", "nextHopType": "virtualappliance", "nextHopIpAddress": "10.1.0.9"}},
    ], "disableBgpRoutePropagation": true}});
    world.put(&format!("{NET}/routeTables/rt"), table).await;
    let subnet = json!({"properties": {"addressPrefix": "10.1.0.0/24", "routeTable": {"id": format!("{GROUP}/providers/Microsoft.Network/routeTables/rt")}}});
    world.put(&format!("{NET}/virtualNetworks/a/subnets/w"), subnet).await;
    let routes = world
        .arm(
            Method::POST,
            &format!("{NET}/networkInterfaces/a-nic/effectiveRouteTable"),
            None,
        )
        .await;
    assert_eq!(routes.status, 200);
    let shown = routes.body["value"].as_array().unwrap().iter();
    assert!(
        shown.into_iter().all(|r| r["disableBgpRoutePropagation"] == true),
        "R15"
    );
    let find = |prefix: &str| {
        routes.body["value"]
            .as_array()
            .unwrap()
            .iter()
            .find(|r| r["addressPrefix"] == json!([prefix]))
            .cloned()
            .unwrap()
    };
    assert_eq!(find("10.1.0.0/16")["nextHopType"], "VnetLocal");
    assert_eq!(find("10.2.0.0/16")["nextHopType"], "VNetPeering");
    let user = find("10.7.0.0/16");
    assert_eq!(
        (&user["source"], &user["name"], &user["nextHopIpAddress"]),
        (&json!("User"), &json!("via"), &json!(["10.1.0.9"]))
    );

    FakeAgent::join(&world, "vm-a", "a-nic").await;
    let watcher = format!(
        "/subscriptions/{SUBSCRIPTION}/resourceGroups/NetworkWatcherRG/providers/Microsoft.Network/networkWatchers/NetworkWatcher_region1/nextHop"
    );
    let vm = format!("{GROUP}/providers/Microsoft.Compute/virtualMachines/vm-a");
    for (to, kind, address, table) in [
        ("10.2.0.4", "VnetPeering", json!(null), "System Route"),
        ("10.7.1.1", "VirtualAppliance", json!("10.1.0.9"), "routeTables/rt"),
        ("192.168.1.1", "None", json!(null), "System Route"),
    ] {
        let body = json!({"targetResourceId": vm, "sourceIPAddress": "10.1.0.4", "destinationIPAddress": to});
        let hop = world.arm(Method::POST, &watcher, Some(body)).await;
        assert_eq!(
            (
                hop.status.as_u16(),
                &hop.body["nextHopType"],
                &hop.body["nextHopIpAddress"]
            ),
            (200, &json!(kind), &address),
            "{to}: {hop:?}"
        );
        assert!(hop.body["routeTableId"].as_str().unwrap().ends_with(table));
    }
}

#[tokio::test]
async fn shared_keys_are_set_read_and_reset() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    for (vnet, n) in [("a", 1), ("b", 2)] {
        let subnet = json!({"properties": {"addressPrefix": format!("10.{n}.255.0/27")}});
        world
            .put(&format!("{NET}/virtualNetworks/{vnet}/subnets/GatewaySubnet"), subnet)
            .await;
        world
            .put(
                &format!("{NET}/publicIPAddresses/{vnet}-pip"),
                json!({"location": "region1"}),
            )
            .await;
        let id = |kind: &str| json!({"id": format!("{GROUP}/providers/Microsoft.Network/{kind}")});
        let gateway = json!({"location": "region1", "properties": {
            "gatewayType": "Vpn", "vpnType": "RouteBased", "sku": {"name": "VpnGw1", "tier": "VpnGw1"},
            "ipConfigurations": [{"name": "default", "properties": {
                "subnet": id(&format!("virtualNetworks/{vnet}/subnets/GatewaySubnet")), "publicIPAddress": id(&format!("publicIPAddresses/{vnet}-pip")),
            }}],
        }});
        world
            .put(&format!("{NET}/virtualNetworkGateways/{vnet}-gw"), gateway)
            .await;
    }
    let id = |name: &str| json!({"id": format!("{GROUP}/providers/Microsoft.Network/virtualNetworkGateways/{name}")});
    let connection = json!({"location": "region1", "properties": {
        "connectionType": "Vnet2Vnet", "virtualNetworkGateway1": id("a-gw"), "virtualNetworkGateway2": id("b-gw"), "sharedKey": "firstKey1",
    }});
    let made = world.put(&format!("{NET}/connections/c"), connection).await;
    assert!(!made.body.to_string().contains("firstKey1"), "write-only");
    let key = format!("{NET}/connections/c/sharedkey");
    assert_eq!(world.arm(Method::GET, &key, None).await.body["value"], "firstKey1");
    let set = world.arm(Method::PUT, &key, Some(json!({"value": "secondKey2"}))).await;
    assert_eq!((set.status.as_u16(), &set.body["value"]), (200, &json!("secondKey2")));
    assert!(set.revision() > made.revision());
    let reset = world
        .arm(Method::POST, &format!("{key}/reset"), Some(json!({"keyLength": 40})))
        .await;
    assert_eq!((reset.status.as_u16(), &reset.body["keyLength"]), (200, &json!(40)));
    let value = world.arm(Method::GET, &key, None).await.body["value"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        value.len() == 40 && value.chars().all(|c| c.is_ascii_alphanumeric()),
        "{value}"
    );
    for bad in [
        json!({"keyLength": 0}),
        json!({"keyLength": "x"}),
        json!({"keyLength": 1000}),
    ] {
        assert_eq!(
            world.arm(Method::POST, &format!("{key}/reset"), Some(bad)).await.status,
            400
        );
    }
    assert_eq!(world.arm(Method::PUT, &key, Some(json!({}))).await.status, 400);
    let listed = world
        .arm(
            Method::GET,
            &format!("{NET}/virtualNetworkGateways/a-gw/connections"),
            None,
        )
        .await;
    assert_eq!(listed.body["value"].as_array().map(Vec::len), Some(1));
    assert_eq!(
        world
            .arm(Method::GET, &format!("{NET}/connections/none/sharedkey"), None)
            .await
            .status,
        404
    );
}

/// The template that `az network lb create` sends.
#[tokio::test]
async fn a_load_balancer_is_deployed_by_a_template() {
    let world = World::start(&[]).await;
    world.put("~", json!({"location": "region1"})).await;
    let vnet = json!({"location": "region1", "properties": {"addressSpace": {"addressPrefixes": ["10.1.0.0/16"]},
        "subnets": [{"name": "work", "properties": {"addressPrefix": "10.1.0.0/24"}}]}});
    world.put("~/providers/Microsoft.Network/virtualNetworks/v", vnet).await;
    let subnet = format!("{GROUP}/providers/Microsoft.Network/virtualNetworks/v/subnets/work");
    let front_end = json!({"name": "LoadBalancerFrontEnd", "properties": {"privateIPAllocationMethod": "Dynamic",
        "privateIPAddress": null, "privateIPAddressVersion": "IPv4", "subnet": {"id": subnet}}});
    let balancer = json!({"type": "Microsoft.Network/loadBalancers", "name": "lb", "location": "region1", "tags": {},
        "apiVersion": "2023-04-01", "dependsOn": [], "sku": {"name": "Standard"}, "properties": {
            "backendAddressPools": [{"name": "lbbepool"}], "frontendIPConfigurations": [front_end]}});
    let template = json!({"parameters": {}, "variables": {}, "resources": [balancer],
        "outputs": {"loadBalancer": {"type": "object", "value": "[reference('lb')]"}}});
    let body = json!({"properties": {"mode": "incremental", "parameters": {}, "template": template}});
    let path = "~/providers/Microsoft.Resources/deployments/lb_deploy_x";
    let begun = world.arm(Method::PUT, path, Some(body)).await;
    assert_eq!(begun.status, 201, "{begun:?}");
    let done = world.arm(Method::GET, path, None).await;
    assert_eq!(done.body["properties"]["provisioningState"], "Succeeded", "{done:?}");
    let output = &done.body["properties"]["outputs"]["loadBalancer"]["value"];
    let made = world
        .arm(Method::GET, "~/providers/Microsoft.Network/loadBalancers/lb", None)
        .await;
    assert_eq!(&made.body["properties"], output);
    assert_eq!(made.body["sku"]["name"], "Standard");
    let address = &output["frontendIPConfigurations"][0]["properties"]["privateIPAddress"];
    assert_eq!(address, "10.1.0.4");
}

#[tokio::test]
async fn a_template_is_deployed_in_order() {
    let mut world = World::start(&[]).await;
    world.put("~", json!({"location": "region1"})).await;
    let vnet = |name: &str, prefix: &str, after: &[&str]| {
        json!({"type": "Microsoft.Network/virtualNetworks", "name": name, "apiVersion": "2024-05-01", "dependsOn": after,
               "location": "[parameters('place')]", "properties": {"addressSpace": {"addressPrefixes": [prefix]}}})
    };
    let deployment = |resources: serde_json::Value| {
        json!({"properties": {"mode": "incremental", "parameters": {"place": {"value": "region1"}}, "template": {
            "parameters": {"place": {"type": "string"}, "key": {"type": "secureString", "defaultValue": "hidden"}},
            "resources": resources, "outputs": {"net": {"type": "object", "value": "[reference('x')]"}},
        }}})
    };
    let path = "~/providers/Microsoft.Resources/deployments/d";
    let body = deployment(json!([
        vnet("x", "10.5.0.0/16", &["Microsoft.Network/virtualNetworks/y"]),
        vnet("y", "10.6.0.0/16", &[]),
    ]));
    let checked = world
        .arm(Method::POST, &format!("{path}/validate"), Some(body.clone()))
        .await;
    assert_eq!(
        (
            checked.status.as_u16(),
            &checked.body["properties"]["provisioningState"]
        ),
        (200, &json!("Succeeded"))
    );
    let begun = world.arm(Method::PUT, path, Some(body)).await;
    assert_eq!(
        (begun.status.as_u16(), &begun.body["properties"]["provisioningState"]),
        (201, &json!("Accepted")),
        "{begun:?}"
    );
    let operation = begun.header("azure-asyncoperation").unwrap().to_owned();
    let ended = answer(world.client.get(&operation).bearer_auth(&world.token)).await;
    assert_eq!(
        (ended.status.as_u16(), &ended.body["status"]),
        (200, &json!("Succeeded"))
    );
    world.kill_and_restart().await;
    let done = world.arm(Method::GET, path, None).await;
    let properties = &done.body["properties"];
    assert_eq!(properties["provisioningState"], "Succeeded");
    assert_eq!(
        properties["outputs"]["net"]["value"]["addressSpace"]["addressPrefixes"],
        json!(["10.5.0.0/16"])
    );
    assert_eq!(properties["outputResources"].as_array().map(Vec::len), Some(2));
    assert!(!done.body.to_string().contains("hidden"));
    // The resources that were written before the refused one stay, and the deployment has failed.
    let body = deployment(json!([vnet("w", "10.7.0.0/16", &[]), vnet("z", "10.8.0.1/16", &["w"])]));
    let begun = world.arm(Method::PUT, path, Some(body)).await;
    assert_eq!(begun.status, 201, "{begun:?}");
    let operation = begun.header("azure-asyncoperation").unwrap().to_owned();
    let ended = answer(world.client.get(&operation).bearer_auth(&world.token)).await;
    assert_eq!(
        (&ended.body["status"], &ended.body["error"]["code"]),
        (&json!("Failed"), &json!("DeploymentFailed")),
        "{ended:?}"
    );
    assert!(ended.body["error"]["details"][0]["message"].is_string());
    let done = world.arm(Method::GET, path, None).await;
    assert_eq!(done.body["properties"]["provisioningState"], "Failed");
    // A malformed template changes nothing.
    let odd = json!({"type": "Microsoft.Network/virtualNetworks", "name": "a/b", "dependsOn": ["v"], "properties": {}});
    let body = deployment(json!([vnet("v", "10.9.0.0/16", &[]), odd]));
    assert_eq!(world.arm(Method::PUT, path, Some(body)).await.status, 400);
    let vnet_v = world.arm(Method::GET, "~/providers/Microsoft.Network/virtualNetworks/v", None);
    assert_eq!(vnet_v.await.status, 404);
    let refused = world
        .arm(
            Method::PUT,
            path,
            Some(deployment(json!([{"type": "a/b", "name": "[uniqueString()]"}]))),
        )
        .await;
    assert_eq!((refused.status.as_u16(), refused.code()), (400, "InvalidTemplate"));
    assert_eq!(world.arm(Method::DELETE, path, None).await.status, 204);
    let gone = world.arm(Method::GET, path, None).await;
    assert_eq!((gone.status.as_u16(), gone.code()), (404, "DeploymentNotFound"));
    // Deleting a resource group deletes its deployments.
    assert_eq!(
        world.arm(Method::PUT, path, Some(deployment(json!([])))).await.status,
        201
    );
    assert_eq!(world.arm(Method::DELETE, "~", None).await.status, 202);
    world.put("~", json!({"location": "region1"})).await;
    assert_eq!(world.arm(Method::GET, path, None).await.code(), "DeploymentNotFound");
    world.kill_and_restart().await;
    assert_eq!(world.arm(Method::GET, path, None).await.code(), "DeploymentNotFound");
}
