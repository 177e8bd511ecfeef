//! Requests that stock clients of Azure send, and the answers without which they fail.

use crate::fake_agent::FakeAgent;
use crate::world::{Answer, GROUP, SUBSCRIPTION, World, answer};
use reqwest::Method;
use serde_json::json;
use tonic::Code;

const NET: &str = "~/providers/Microsoft.Network";
const OTHER: &str = "11111111-2222-3333-4444-555555555555";

async fn get(world: &World, path: &str) -> Answer {
    world.arm(Method::GET, path, None).await
}

fn outcome(answer: &Answer) -> (u16, &str) {
    (answer.status.as_u16(), answer.code())
}

/// Clients encode the slashes of a scope, and leave a part of a path empty if a resource has no parent.
#[tokio::test]
async fn encoded_and_empty_segments_of_a_path() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    let direct = get(&world, &format!("{NET}/virtualNetworks/a")).await;
    let group = format!("/subscriptions/{SUBSCRIPTION}/resourcegroups/lab");
    for path in [
        format!("{group}/providers/Microsoft.Network//virtualNetworks/a"),
        format!(
            "/%2Fsubscriptions%2F{SUBSCRIPTION}%2FresourceGroups%2Flab/providers/Microsoft.Network/virtualNetworks/a"
        ),
    ] {
        let found = get(&world, &path).await;
        assert_eq!((found.status.as_u16(), &found.body), (200, &direct.body), "{path}");
    }
}

/// A subscription exists while it has a resource group. Its first group creates it.
#[tokio::test]
async fn unknown_subscriptions_are_not_found() {
    let world = World::start(&[]).await;
    let other = format!("/subscriptions/{OTHER}");
    let group = format!("{other}/resourceGroups/x");
    let vnet = format!("{group}/providers/Microsoft.Network/virtualNetworks/v");
    for path in [
        other.clone(),
        format!("{other}/resourcegroups"),
        format!("{other}/resources"),
        format!("{other}/providers/Microsoft.Network/networkWatchers"),
        group.clone(),
        vnet.clone(),
    ] {
        let missing = get(&world, &path).await;
        assert_eq!(outcome(&missing), (404, "SubscriptionNotFound"), "{path}");
        let message = missing.body["error"]["message"].as_str().unwrap();
        assert!(
            message.contains(&format!("PUT {other}/resourceGroups/NAME")),
            "{message}"
        );
    }
    // Clients ask for these before they create the first group.
    for (method, path) in [
        (Method::GET, "locations"),
        (Method::GET, "providers"),
        (Method::GET, "providers/Microsoft.Network"),
        (Method::POST, "providers/Microsoft.Network/register"),
    ] {
        let found = world.arm(method, &format!("{other}/{path}"), None).await;
        assert_eq!(found.status, 200, "{path}: {found:?}");
    }
    let body = json!({"location": "region1", "properties": {"addressSpace": {"addressPrefixes": ["10.5.0.0/16"]}}});
    let early = world.arm(Method::PUT, &vnet, Some(body)).await;
    assert_eq!(outcome(&early), (404, "SubscriptionNotFound"));
    assert_eq!(get(&world, &format!("/subscriptions/{SUBSCRIPTION}")).await.status, 200);

    world.put(&group, json!({"location": "region1"})).await;
    assert_eq!(get(&world, &other).await.status, 200);
    for near in [
        "11111111-2222-3333-4444-555555555554",
        "11111111-2222-3333-4444-555555555556",
    ] {
        let missing = get(&world, &format!("/subscriptions/{near}")).await;
        assert_eq!(outcome(&missing), (404, "SubscriptionNotFound"), "{near}");
    }
    assert_eq!(get(&world, &group).await.status, 200);
    let gone = world.arm(Method::DELETE, &group, None).await;
    assert_eq!(gone.status, 202, "{gone:?}");
    let ended = answer(
        world
            .client
            .get(gone.header("location").unwrap())
            .bearer_auth(&world.token),
    )
    .await;
    assert_eq!(ended.status, 200, "the result can still be read: {ended:?}");
    assert_eq!(outcome(&get(&world, &other).await), (404, "SubscriptionNotFound"));
}

/// Azure's command line ends with a traceback if the directory does not answer in JSON.
#[tokio::test]
async fn the_directory_answers_in_json() {
    let world = World::start(&[]).await;
    let ids = json!({"ids": [OTHER], "types": ["servicePrincipal"]});
    let named = world
        .send(Method::POST, "/graph/v1.0/directoryObjects/getByIds", Some(&ids))
        .await;
    assert_eq!((named.status.as_u16(), &named.body), (200, &json!({"value": []})));
    let filter = "/graph/v1.0/servicePrincipals?$filter=servicePrincipalNames/any(c:c%20eq%20'x')";
    let none = world.send(Method::GET, filter, None).await;
    assert_eq!((none.status.as_u16(), &none.body), (200, &json!({"value": []})));
    let one = world
        .send(Method::GET, &format!("/graph/v1.0/users/{OTHER}"), None)
        .await;
    assert_eq!(outcome(&one), (404, "Request_ResourceNotFound"));
    let odd = world.send(Method::GET, "/graph/v1.0/nonsense", None).await;
    assert_eq!(outcome(&odd), (404, "NotFound"));
    let write = world.send(Method::POST, "/graph/v1.0/users", Some(&json!({}))).await;
    assert_eq!(outcome(&write), (400, "Request_UnsupportedQuery"));
    let stranger = answer(world.client.get(world.url("/graph/v1.0/users"))).await;
    assert_eq!(stranger.status, 401);
}

#[tokio::test]
async fn usages_free_addresses_and_service_tags() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    let check = async |address: &str| {
        let path = format!("{NET}/virtualNetworks/a/CheckIPAddressAvailability?ipAddress={address}");
        get(&world, &path).await
    };
    let free = check("10.1.0.9").await;
    assert_eq!(
        (free.status.as_u16(), &free.body),
        (
            200,
            &json!({"available": true, "availableIPAddresses": [], "isPlatformReserved": false})
        )
    );
    let taken = check("10.1.0.4").await;
    assert_eq!(
        taken.body,
        json!({
            "available": false, "isPlatformReserved": false,
            "availableIPAddresses": ["10.1.0.5", "10.1.0.6", "10.1.0.7", "10.1.0.8", "10.1.0.9"],
        })
    );
    assert_eq!(
        outcome(&check("10.7.0.4").await),
        (400, "PrivateIPAddressNotInAnySubnet")
    );
    assert_eq!(outcome(&check("x").await), (400, "InvalidIPAddressFormat"));
    let missing = get(&world, &format!("{NET}/virtualNetworks/none/usages")).await;
    assert_eq!(outcome(&missing), (404, "ResourceNotFound"));
    let subnets = get(&world, &format!("{NET}/virtualNetworks/a/usages")).await;
    assert_eq!(
        subnets.body["value"],
        json!([{
            "id": format!("{GROUP}/providers/Microsoft.Network/virtualNetworks/a/subnets/w"),
            "name": {"value": "SubnetSpace", "localizedValue": "Subnet size and usage"},
            "currentValue": 1, "limit": 251, "unit": "Count",
        }])
    );
    let region = format!("/subscriptions/{SUBSCRIPTION}/providers/Microsoft.Network/locations/region1");
    let used = get(&world, &format!("{region}/usages")).await;
    let lines = used.body["value"].as_array().unwrap();
    let current = |name: &str| {
        let line = lines.iter().find(|line| line["name"]["value"] == name).unwrap();
        assert!(
            line["name"]["localizedValue"].is_string() && line["limit"].is_u64(),
            "{line}"
        );
        line["currentValue"].as_u64().unwrap()
    };
    assert_eq!((current("VirtualNetworks"), current("NetworkInterfaces")), (2, 2));
    assert_eq!((current("RouteTables"), current("NetworkWatchers")), (0, 1));
    let tags = get(&world, &format!("{region}/serviceTags")).await;
    assert_eq!(tags.body["changeNumber"], "1");
    assert_eq!(tags.body["name"], "public");
    let id = format!("/subscriptions/{SUBSCRIPTION}/providers/Microsoft.Network/serviceTags/public");
    assert_eq!(tags.body["id"], json!(id));
    for list in ["usages", "serviceTags"] {
        let path = region.replace("region1", "nowhere");
        let unknown = get(&world, &format!("{path}/{list}")).await;
        assert_eq!(
            outcome(&unknown),
            (400, "LocationNotAvailableForResourceType"),
            "{list}"
        );
    }
    assert_eq!(
        tags.body["values"][0]["properties"]["addressPrefixes"],
        json!(["168.63.129.16/32"])
    );
}

/// `$top` is the size of a page, and each page but the last has the URL of the next one.
#[tokio::test]
async fn lists_have_pages() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    let base = format!("/subscriptions/{SUBSCRIPTION}/resources");
    let mut next = Some(world.url(&format!("{base}?api-version=2024-11-01&$top=3")));
    let mut pages = Vec::new();
    while let Some(url) = next {
        let page = answer(world.client.get(url).bearer_auth(&world.token)).await;
        assert_eq!(page.status, 200, "{page:?}");
        let items = page.body["value"].as_array().unwrap();
        pages.push(
            items
                .iter()
                .map(|i| i["name"].as_str().unwrap().to_owned())
                .collect::<Vec<_>>(),
        );
        next = page.body["nextLink"].as_str().map(str::to_owned);
    }
    assert_eq!(pages, [vec!["a-nic", "b-nic", "a"], vec!["b"]]);
    let filtered = format!("{base}?$top=1&$filter=resourceType%20eq%20'Microsoft.Network/virtualNetworks'");
    let first = get(&world, &filtered).await;
    let next = first.body["nextLink"].as_str().unwrap();
    let second = answer(world.client.get(next).bearer_auth(&world.token)).await;
    assert_eq!(second.body["value"][0]["name"], "b", "{second:?}");
    assert!(second.body.get("nextLink").is_none());
    for bad in ["$top=0", "$top=x", "$skiptoken=x"] {
        let refused = get(&world, &format!("{base}?{bad}")).await;
        assert_eq!(outcome(&refused), (400, "InvalidQueryParameterValue"), "{bad}");
    }
    let beyond = get(&world, &format!("{base}?$skiptoken=99")).await;
    assert_eq!(beyond.body["value"], json!([]));
}

/// Clients accept only 202 and 204 for a DELETE below network watchers, and 400 for a second watcher of a region.
#[tokio::test]
async fn network_watchers_and_what_is_below_them() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    let rg = format!("/subscriptions/{SUBSCRIPTION}/resourceGroups/NetworkWatcherRG");
    let own = format!("{rg}/providers/Microsoft.Network/networkWatchers/NetworkWatcher_region1");
    let second = format!("{NET}/networkWatchers/mine");
    let put = async |location: &str| {
        let body = json!({"location": location, "properties": {}});
        world.arm(Method::PUT, &second, Some(body)).await
    };
    assert_eq!(
        outcome(&put("Region 1").await),
        (400, "NetworkWatcherCountLimitReached")
    );
    assert_eq!(
        outcome(&put("nowhere").await),
        (400, "LocationNotAvailableForResourceType")
    );
    for path in [
        own.clone(),
        second.clone(),
        format!("{second}/flowLogs/f"),
        format!("{own}/packetCaptures/p"),
        format!("{own}/connectionMonitors/m"),
    ] {
        assert_eq!(world.arm(Method::DELETE, &path, None).await.status, 204, "{path}");
    }
    assert_eq!(get(&world, &own).await.status, 200, "the region still has resources");
    let collection = own.rsplit_once('/').unwrap().0;
    assert_eq!(get(&world, collection).await.status, 200);
    for method in [Method::DELETE, Method::PUT, Method::POST] {
        let refused = world.arm(method.clone(), collection, None).await;
        assert_eq!(refused.status, 405, "{method}");
    }
    for child in ["flowLogs", "packetCaptures"] {
        let list = get(&world, &format!("{own}/{child}")).await;
        assert_eq!(
            (list.status.as_u16(), &list.body),
            (200, &json!({"value": []})),
            "{child}"
        );
        let one = get(&world, &format!("{own}/{child}/x")).await;
        assert_eq!(outcome(&one), (404, "NotFound"), "{child}");
        if child == "flowLogs" {
            continue;
        }
        let refused = world
            .arm(Method::PUT, &format!("{own}/{child}/x"), Some(json!({})))
            .await;
        assert_eq!(outcome(&refused), (400, "InvalidRequestFormat"), "{child}");
    }
}

/// D7: a stock client deletes a virtual machine. Its agent's stream ends, and the agent cannot connect again.
#[tokio::test]
async fn d7_deleting_a_machine_removes_its_agent() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    let agent = FakeAgent::join(&world, "n1", "a-nic").await;
    let mut stream = agent.hello(0, "").await.unwrap();
    stream.config().await;
    let vm = "~/providers/Microsoft.Compute/virtualMachines/n1";
    assert_eq!(get(&world, vm).await.status, 200);
    let nic = format!("{NET}/networkInterfaces/a-nic");
    assert_eq!(outcome(&world.arm(Method::DELETE, &nic, None).await), (400, "NicInUse"));
    let gone = world
        .arm(Method::DELETE, &format!("{vm}?forceDeletion=true"), None)
        .await;
    assert_eq!(gone.status, 200, "{gone:?}");
    assert_eq!(stream.next().await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(agent.refused().await, Code::PermissionDenied);
    assert_eq!(get(&world, vm).await.status, 404);
    assert_eq!(world.arm(Method::DELETE, vm, None).await.status, 204);
    assert_eq!(world.arm(Method::DELETE, &nic, None).await.status, 200);

    // The deletion of a group removes the agents of its machines.
    let agent = FakeAgent::join(&world, "n1", "b-nic").await;
    let mut stream = agent.hello(0, "").await.unwrap();
    stream.config().await;
    assert_eq!(world.arm(Method::DELETE, "~", None).await.status, 202);
    assert_eq!(stream.next().await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(world.fabric(Method::GET, "agents", None).await.body["value"], json!([]));
}

/// A reset ends the control streams of the gateway's agents, which then connect again.
#[tokio::test]
async fn gateways_and_connections_are_reset() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    let id = |tail: &str| json!({"id": format!("{GROUP}/providers/Microsoft.Network/{tail}")});
    for (vnet, n) in [("a", 1), ("b", 2)] {
        let subnet = json!({"properties": {"addressPrefix": format!("10.{n}.255.0/27")}});
        world
            .put(&format!("{NET}/virtualNetworks/{vnet}/subnets/GatewaySubnet"), subnet)
            .await;
        let body = json!({"location": "region1", "properties": {"gatewayType": "Vpn", "ipConfigurations": [
            {"name": "default", "properties": {"subnet": id(&format!("virtualNetworks/{vnet}/subnets/GatewaySubnet"))}}]}});
        world
            .put(&format!("{NET}/virtualNetworkGateways/{vnet}-gw"), body)
            .await;
    }
    let body = json!({"location": "region1", "properties": {"connectionType": "Vnet2Vnet", "sharedKey": "abc",
        "virtualNetworkGateway1": id("virtualNetworkGateways/a-gw"), "virtualNetworkGateway2": id("virtualNetworkGateways/b-gw")}});
    world.put(&format!("{NET}/connections/c"), body).await;
    let binding =
        json!({"type": "gateway", "gateway": id("virtualNetworkGateways/a-gw")["id"], "ipConfiguration": "default"});
    let agent = FakeAgent::join_as(&world, "a-gw", binding).await;
    let mut stream = agent.hello(0, "").await.unwrap();
    stream.config().await;
    let shown = world
        .arm(Method::POST, &format!("{NET}/virtualNetworkGateways/a-gw/reset"), None)
        .await;
    assert_eq!(
        (shown.status.as_u16(), &shown.body["name"]),
        (200, &json!("a-gw")),
        "{shown:?}"
    );
    assert_eq!(stream.next().await.unwrap_err().code(), Code::Aborted);
    let mut stream = agent.hello(0, "").await.unwrap();
    stream.config().await;
    let reset = world
        .arm(Method::POST, &format!("{NET}/connections/c/resetconnection"), None)
        .await;
    assert_eq!(reset.status, 202, "{reset:?}");
    assert_eq!(stream.next().await.unwrap_err().code(), Code::Aborted);
    let ended = answer(
        world
            .client
            .get(reset.header("location").unwrap())
            .bearer_auth(&world.token),
    )
    .await;
    assert_eq!(ended.status, 200);
    for (path, expected) in [
        ("virtualNetworkGateways/none/reset", (404, "ResourceNotFound")),
        ("connections/none/resetconnection", (404, "ResourceNotFound")),
    ] {
        let missing = world.arm(Method::POST, &format!("{NET}/{path}"), None).await;
        assert_eq!(outcome(&missing), expected, "{path}");
    }
    assert_eq!(
        get(&world, &format!("{NET}/connections/c/resetconnection"))
            .await
            .status,
        405
    );
}

/// The metrics of a resource in Azure Monitor's form, before anything has passed.
#[tokio::test]
async fn metrics_have_azures_form() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    world.peer("a", "b").await;
    let insights = format!("{NET}/virtualNetworks/a/virtualNetworkPeerings/to-b/providers/Microsoft.Insights");
    let defined = get(&world, &format!("{insights}/metricDefinitions")).await;
    assert_eq!(defined.status, 200, "{}", defined.body);
    let names: Vec<&str> = defined.body["value"]
        .as_array()
        .unwrap()
        .iter()
        .map(|metric| metric["name"]["value"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        ["XIngressBytes", "XEgressBytes", "XIngressPackets", "XEgressPackets"]
    );
    let namespaces = get(&world, &format!("{insights}/metricNamespaces")).await;
    let peering = "Microsoft.Network/virtualNetworks/virtualNetworkPeerings";
    assert_eq!(
        namespaces.body["value"][0]["properties"]["metricNamespaceName"],
        peering
    );

    let answer = get(&world, &format!("{insights}/metrics")).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(
        (&answer.body["cost"], &answer.body["interval"]),
        (&json!(0), &json!("PT1M"))
    );
    assert_eq!(
        (&answer.body["namespace"], &answer.body["resourceregion"]),
        (&json!(peering), &json!("region1"))
    );
    let metric = &answer.body["value"][0];
    assert_eq!(
        (&metric["name"]["value"], &metric["unit"]),
        (&json!("XIngressBytes"), &json!("Bytes"))
    );
    let data = metric["timeseries"][0]["data"].as_array().unwrap();
    assert!((60..=61).contains(&data.len()), "{data:?}");
    assert!(data[0].get("total").is_none(), "nothing is known from before the start");
    assert_eq!(metric["timeseries"][0]["metadatavalues"], json!([]));
    assert_eq!(
        get(
            &world,
            &format!("{NET}/virtualNetworks/none/providers/Microsoft.Insights/metrics")
        )
        .await
        .status,
        404
    );

    let vnet = get(
        &world,
        &format!("{NET}/virtualNetworks/a/providers/Microsoft.Insights/metrics"),
    )
    .await;
    assert_eq!((vnet.status.as_u16(), &vnet.body["value"]), (200, &json!([])));
    let usage = get(
        &world,
        &format!("/subscriptions/{SUBSCRIPTION}/providers/Microsoft.Consumption/usageDetails"),
    )
    .await;
    assert_eq!((usage.status.as_u16(), &usage.body), (200, &json!({"value": []})));
}

#[tokio::test]
async fn a_metric_that_a_resource_does_not_have_is_refused() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    world.peer("a", "b").await;
    let vnet =
        format!("/subscriptions/{SUBSCRIPTION}/resourceGroups/lab/providers/Microsoft.Network/virtualNetworks/a");
    let metrics = format!("{vnet}/virtualNetworkPeerings/to-b/providers/Microsoft.Insights/metrics");
    let ask = |query: &'static str| {
        let path = format!("{metrics}?api-version=2018-01-01&{query}");
        let world = &world;
        async move { world.send(Method::GET, &path, None).await }
    };
    let known = ask("metricnames=xegressbytes&aggregation=total,count&interval=PT1H").await;
    assert_eq!(known.status, 200, "{}", known.body);
    assert_eq!(known.body["value"][0]["name"]["value"], "XEgressBytes");
    assert_eq!(known.body["interval"], "PT1H");
    let unknown = ask("metricnames=CPU").await;
    assert_eq!(outcome(&unknown), (400, "BadRequest"));
    let message = unknown.body["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("Valid metrics: XIngressBytes,XEgressBytes"),
        "{message}"
    );
    assert_eq!(outcome(&ask("interval=PT7M").await), (400, "BadRequest"));
}
