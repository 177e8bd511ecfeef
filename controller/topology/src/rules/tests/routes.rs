//! The rules of route tables and routes: R10, R15 to R17, X6.

use super::{World, codes, net};
use serde_json::{Value, json};

fn table() -> String {
    net("routeTables/t")
}

fn world() -> World {
    let mut w = World::new();
    w.vnet("hub", &["10.0.0.0/16"]).unwrap();
    w.put(&table(), json!({"location": "region1"})).unwrap();
    w
}

fn route(w: &mut World, name: &str, properties: Value) -> Result<Value, crate::change::Rejection> {
    w.put(&format!("{}/routes/{name}", table()), json!({"properties": properties}))
}

#[test]
fn r10_next_hop_types() {
    let mut w = world();
    for (i, hop) in ["VirtualNetworkGateway", "vnetlocal", "INTERNET", "None"]
        .into_iter()
        .enumerate()
    {
        let body = route(
            &mut w,
            hop,
            json!({"addressPrefix": format!("10.{i}.0.0/16"), "nextHopType": hop}),
        )
        .unwrap();
        assert!(
            body["properties"]["nextHopType"]
                .as_str()
                .unwrap()
                .eq_ignore_ascii_case(hop)
        );
        assert!(body["properties"].get("nextHopIpAddress").is_none());
    }
    assert_eq!(
        w.get(&format!("{}/routes/vnetlocal", table()))["properties"]["nextHopType"],
        "VnetLocal"
    );
    let body =
        json!({"addressPrefix": "10.9.0.0/16", "nextHopType": "VirtualAppliance", "nextHopIpAddress": "10.0.0.5"});
    assert_eq!(
        route(&mut w, "a", body).unwrap()["properties"]["nextHopIpAddress"],
        "10.0.0.5"
    );
    for hop in ["VNetPeering", "VNetGlobalPeering", "VirtualNetworkServiceEndpoint", "x"] {
        let refused = route(&mut w, "b", json!({"addressPrefix": "10.8.0.0/16", "nextHopType": hop}));
        assert_eq!(codes(refused), ["XInvalidNextHopType"], "{hop}");
    }
    let hop = |more: Value| {
        let mut body = json!({"addressPrefix": "10.8.0.0/16", "nextHopType": "VirtualAppliance"});
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        body
    };
    assert_eq!(codes(route(&mut w, "b", hop(json!({})))), ["XInvalidNextHopAddress"]);
    assert_eq!(
        codes(route(&mut w, "b", hop(json!({"nextHopIpAddress": "x"})))),
        ["InvalidIPAddressFormat"]
    );
    assert_eq!(
        codes(route(&mut w, "b", hop(json!({"nextHopIpAddress": "fd00::1"})))),
        ["XInvalidNextHopAddress"]
    );
    let with_address = hop(json!({"nextHopType": "None", "nextHopIpAddress": "10.0.0.5"}));
    assert_eq!(codes(route(&mut w, "b", with_address)), ["XInvalidNextHopAddress"]);
    assert_eq!(
        codes(route(&mut w, "b", json!({}))),
        ["InvalidRequestFormat", "InvalidRequestFormat"]
    );
    let host_bits = json!({"addressPrefix": "10.8.0.1/16", "nextHopType": "None"});
    assert_eq!(codes(route(&mut w, "b", host_bits)), ["InvalidCIDRNotation"]);
}

#[test]
fn one_route_a_prefix() {
    let mut w = world();
    route(
        &mut w,
        "a",
        json!({"addressPrefix": "10.0.0.0/8", "nextHopType": "None"}),
    )
    .unwrap();
    let twin = json!({"addressPrefix": "10.0.0.0/8", "nextHopType": "Internet"});
    assert_eq!(codes(route(&mut w, "b", twin)), ["XDuplicateRoutePrefix"]);
}

#[test]
fn r17_a_table_in_use_stays() {
    let mut w = world();
    let subnet = net("virtualNetworks/hub/subnets/s");
    let with = json!({"properties": {"addressPrefix": "10.0.0.0/24", "routeTable": {"id": table()}}});
    let body = w.put(&subnet, with).unwrap();
    assert_eq!(body["properties"]["routeTable"]["id"], table());
    assert_eq!(w.get(&table())["properties"]["subnets"], json!([{"id": subnet}]));
    assert_eq!(codes(w.delete(&table())), ["InUseRouteTableCannotBeDeleted"]);
    w.put(&subnet, json!({"properties": {"addressPrefix": "10.0.0.0/24"}}))
        .unwrap();
    assert!(w.delete(&table()).unwrap());
    let dangling = json!({"properties": {"addressPrefix": "10.0.0.0/24", "routeTable": {"id": table()}}});
    assert_eq!(codes(w.put(&subnet, dangling)), ["InvalidResourceReference"]);
}

#[test]
fn r15_r16_what_the_gateway_subnet_allows() {
    let mut w = world();
    route(
        &mut w,
        "all",
        json!({"addressPrefix": "0.0.0.0/0", "nextHopType": "None"}),
    )
    .unwrap();
    let subnet = net("virtualNetworks/hub/subnets/GatewaySubnet");
    let with = json!({"properties": {"addressPrefix": "10.0.255.0/27", "routeTable": {"id": table()}}});
    assert_eq!(codes(w.put(&subnet, with.clone())), ["XGatewaySubnetRestriction"]);
    w.delete(&format!("{}/routes/all", table())).unwrap();
    w.put(&subnet, with).unwrap();
    assert_eq!(
        codes(route(
            &mut w,
            "all",
            json!({"addressPrefix": "0.0.0.0/0", "nextHopType": "None"})
        )),
        ["XGatewaySubnetRestriction"]
    );
    // The route table of a GatewaySubnet may have any route except a default route (R16).
    let spoke =
        json!({"addressPrefix": "10.2.0.0/16", "nextHopType": "VirtualAppliance", "nextHopIpAddress": "10.0.0.5"});
    route(&mut w, "spoke", spoke).unwrap();
    let off = json!({"location": "region1", "properties": {"disableBgpRoutePropagation": true}});
    assert_eq!(codes(w.put(&table(), off)), ["XGatewaySubnetRestriction"]);
}

#[test]
fn routes_are_children_with_etags() {
    let mut w = world();
    let a = route(
        &mut w,
        "a",
        json!({"addressPrefix": "10.1.0.0/16", "nextHopType": "None"}),
    )
    .unwrap();
    let before = w.get(&table())["etag"].clone();
    route(
        &mut w,
        "b",
        json!({"addressPrefix": "10.2.0.0/16", "nextHopType": "None"}),
    )
    .unwrap();
    assert_eq!(w.get(&format!("{}/routes/A", table())), a);
    assert_ne!(w.get(&table())["etag"], before);
    // If a client writes back a body that it has read, nothing changes. If the list of routes in a PUT's body lacks a
    // route, that route is removed.
    let mut body = w.get(&table());
    assert_eq!(w.put(&table(), body.clone()).unwrap(), body);
    body["properties"]["routes"].as_array_mut().unwrap().remove(0);
    w.put(&table(), body).unwrap();
    assert!(w.view(&format!("{}/routes/a", table())).is_none());
    assert!(w.delete(&format!("{}/routes/b", table())).unwrap());
    assert!(!w.delete(&format!("{}/routes/b", table())).unwrap());
}

#[test]
fn x6_limits() {
    let mut w = world();
    let routes: Vec<Value> = (0..401)
        .map(|i| json!({"name": format!("r{i}"), "properties": {"addressPrefix": format!("10.{}.{}.0/24", i / 256, i % 256), "nextHopType": "None"}}))
        .collect();
    let body = |routes: &[Value]| json!({"location": "region1", "properties": {"routes": routes}});
    assert_eq!(codes(w.put(&table(), body(&routes))), ["XTooManyItems"]);
    w.put(&table(), body(&routes[..400])).unwrap();
    let more = json!({"addressPrefix": "11.0.0.0/24", "nextHopType": "None"});
    assert_eq!(codes(route(&mut w, "more", more)), ["XTooManyItems"]);
    for i in 1..200 {
        w.put(&net(&format!("routeTables/t{i}")), json!({"location": "region1"}))
            .unwrap();
    }
    assert_eq!(
        codes(w.put(&net("routeTables/more"), json!({"location": "region1"}))),
        ["XRouteTableLimitReached"]
    );
}
