//! Lists of collections, and the JSON types that strict clients require in bodies.

use super::{SUBSCRIPTION, World, net, vm_id};
use crate::change::Rejection;
use crate::resource::Binding;
use crate::topology::AgentStatuses;
use serde_json::{Value, json};
use tombolo_proto::id::ResourceId;

fn world() -> World {
    let mut w = World::new();
    w.vnet("hub", &["10.1.0.0/16"]).unwrap();
    w.vnet("branch", &["10.2.0.0/16"]).unwrap();
    w.subnet("hub", "s", "10.1.0.0/24").unwrap();
    w.gateway("hub", "10.1.255.0/27").unwrap();
    w.gateway("branch", "10.2.255.0/27").unwrap();
    w.connect("there", "hub", "branch").unwrap();
    w.connect("back", "branch", "hub").unwrap();
    w.peer_both("hub", "branch");
    w.nic("n", "hub/subnets/s", None).unwrap();
    let route = json!({"name": "r", "properties": {"addressPrefix": "10.9.0.0/16", "nextHopType": "None"}});
    w.put(
        &net("routeTables/t"),
        json!({"location": "region1", "properties": {"routes": [route]}}),
    )
    .unwrap();
    w.put(&net("publicIPAddresses/p"), json!({"location": "region1"}))
        .unwrap();
    w.site(
        "loc",
        &["10.7.0.0/16"],
        json!({"bgpSettings": {"asn": 65021, "bgpPeeringAddress": "10.7.0.1"}}),
    )
    .unwrap();
    w.connect_site("site", "hub", "loc", json!({})).unwrap();
    w.circuit("er1", 30).unwrap();
    w.express_gateway("hub", "10.1.255.0/27").unwrap();
    w.link("link", "hub", "er1", json!({})).unwrap();
    let binding = Binding::Vm {
        vm: vm_id("vm1"),
        nics: vec![ResourceId::new(net("networkInterfaces/n"))],
        served: vec![],
    };
    w.join("vm1", binding).unwrap();
    w
}

fn list(w: &World, collection: &str) -> Result<Vec<Value>, Rejection> {
    w.now.list(collection, &AgentStatuses::default())
}

fn names(w: &World, collection: &str) -> Vec<String> {
    list(w, collection)
        .unwrap()
        .iter()
        .map(|v| v["name"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn collections_in_order_of_id() {
    let w = world();
    assert_eq!(names(&w, &net("virtualNetworks")), ["branch", "hub"]);
    assert_eq!(names(&w, &net("VIRTUALNETWORKS/")), ["branch", "hub"]);
    assert_eq!(names(&w, &net("virtualNetworks/hub/subnets")), ["s", "GatewaySubnet"]);
    assert_eq!(
        names(&w, &net("virtualNetworks/hub/virtualNetworkPeerings")),
        ["to-branch"]
    );
    assert_eq!(names(&w, &net("routeTables/t/routes")), ["r"]);
    assert_eq!(names(&w, &net("networkInterfaces/n/ipConfigurations")), ["ipconfig1"]);
    assert_eq!(
        names(&w, &net("virtualNetworkGateways/hub-gw/ipConfigurations")),
        ["default"]
    );
    assert_eq!(
        names(&w, &net("virtualNetworkGateways/hub-gw/connections")),
        ["back", "site", "there"]
    );
    assert_eq!(names(&w, &net("virtualNetworkGateways/hub-er/connections")), ["link"]);
    assert_eq!(names(&w, &net("localNetworkGateways")), ["loc"]);
    assert_eq!(names(&w, &net("EXPRESSROUTECIRCUITS")), ["er1"]);
    assert_eq!(
        names(&w, &net("expressRouteCircuits/er1/peerings")),
        ["AzurePrivatePeering"]
    );
    assert_eq!(
        names(
            &w,
            &format!("/subscriptions/{SUBSCRIPTION}/providers/microsoft.network/connections")
        ),
        ["back", "link", "site", "there"]
    );
    assert_eq!(
        names(&w, &format!("/subscriptions/{SUBSCRIPTION}/resourcegroups")),
        ["lab"]
    );
    assert!(names(&w, "/subscriptions/00000000-0000-0000-0000-000000000009/resourceGroups").is_empty());
    let machines = net("").replace("Microsoft.Network/", "Microsoft.Compute/virtualMachines");
    assert_eq!(names(&w, &machines), ["vm1"]);
    assert!(names(&w, &format!("{machines}/vm1/extensions")).is_empty());
    let all = names(
        &w,
        &format!("/subscriptions/{SUBSCRIPTION}/resourceGroups/lab/resources"),
    );
    assert_eq!(
        all,
        [
            "back",
            "link",
            "site",
            "there",
            "er1",
            "loc",
            "n",
            "p",
            "t",
            "vm1",
            "branch-gw",
            "hub-er",
            "hub-gw",
            "branch",
            "hub"
        ]
    );
}

#[test]
fn collections_that_do_not_exist() {
    let w = world();
    let code = |collection: &str| {
        let refused = list(&w, collection).unwrap_err();
        assert_eq!(refused.status, 404);
        refused.problems[0].code
    };
    assert_eq!(code(&net("circuits")), "InvalidResourceType");
    assert_eq!(
        code(&net("virtualNetworks").replace("/lab/", "/nowhere/")),
        "ResourceGroupNotFound"
    );
    assert_eq!(code(&net("virtualNetworks/nowhere/subnets")), "ResourceNotFound");
    assert_eq!(code(&net("virtualNetworks/hub/unheardOf")), "InvalidResourceType");
    for odd in [
        "",
        "/",
        "x",
        "/subscriptions",
        "/subscriptions//resourceGroups",
        "/subscriptions/s/x/y/z/a/b/c",
    ] {
        assert_eq!(code(odd), "InvalidResourceType", "{odd}");
    }
}

/// Asserts that the members of a body have the JSON types of ARM's schema. The type depends only on the member's name,
/// not on its place in the body.
fn check_types(value: &Value, at: &str) {
    match value {
        Value::Array(items) => items
            .iter()
            .enumerate()
            .for_each(|(i, v)| check_types(v, &format!("{at}[{i}]"))),
        Value::Object(members) => {
            for (name, v) in members {
                let here = format!("{at}.{name}");
                let good = match name.as_str() {
                    "id"
                    | "name"
                    | "type"
                    | "etag"
                    | "location"
                    | "provisioningState"
                    | "addressPrefix"
                    | "nextHopType"
                    | "privateIPAddress"
                    | "peeringState"
                    | "resourceGuid"
                    | "connectionStatus"
                    | "bgpPeeringAddress"
                    | "primaryPeerAddressPrefix"
                    | "secondaryPeerAddressPrefix"
                    | "serviceKey"
                    | "circuitProvisioningState" => v.is_string(),
                    "tags"
                    | "properties"
                    | "subnet"
                    | "remoteVirtualNetwork"
                    | "addressSpace"
                    | "remoteAddressSpace"
                    | "routeServiceVips"
                    | "bgpSettings"
                    | "sku"
                    | "virtualMachine"
                    | "routeTable"
                    | "localNetworkAddressSpace"
                    | "localNetworkGateway2"
                    | "peer"
                    | "publicIPAddress" => v.is_object(),
                    "subnets"
                    | "virtualNetworkPeerings"
                    | "ipConfigurations"
                    | "routes"
                    | "addressPrefixes"
                    | "remoteGateways"
                    | "delegations"
                    | "tunnelConnectionStatus"
                    | "tunnelAddresses"
                    | "peerings"
                    | "authorizations"
                    | "ipsecPolicies" => v.is_array(),
                    "asn"
                    | "peerASN"
                    | "azureASN"
                    | "vlanId"
                    | "peerWeight"
                    | "routingWeight"
                    | "ingressBytesTransferred"
                    | "egressBytesTransferred"
                    | "idleTimeoutInMinutes" => v.is_u64(),
                    "enableIPForwarding"
                    | "primary"
                    | "activeActive"
                    | "enableBgp"
                    | "disableBgpRoutePropagation"
                    | "allowVirtualNetworkAccess"
                    | "useRemoteGateways"
                    | "enableDdosProtection" => v.is_boolean(),
                    _ => true,
                };
                assert!(good, "{here}: {v}");
                check_types(v, &here);
            }
        }
        _ => {}
    }
}

#[test]
fn bodies_have_the_types_of_the_schema() {
    let w = world();
    for kind in [
        "virtualNetworks",
        "networkInterfaces",
        "publicIPAddresses",
        "routeTables",
        "virtualNetworkGateways",
        "connections",
        "localNetworkGateways",
        "expressRouteCircuits",
    ] {
        let bodies = list(&w, &net(kind)).unwrap();
        assert!(!bodies.is_empty(), "{kind}");
        for body in bodies {
            check_types(&body, kind);
            let id = body["id"].as_str().unwrap();
            assert_eq!(w.get(id), body, "item and list agree");
            assert_eq!(body["type"], format!("Microsoft.Network/{kind}"));
            assert_eq!(body["properties"]["provisioningState"], "Succeeded");
            assert!(body["etag"].as_str().unwrap().starts_with("W/\""));
            for children in [
                "subnets",
                "virtualNetworkPeerings",
                "ipConfigurations",
                "routes",
                "peerings",
            ] {
                for child in body["properties"][children].as_array().into_iter().flatten() {
                    assert_eq!(w.get(child["id"].as_str().unwrap()), *child, "inline and own agree");
                    assert!(child.get("location").is_none());
                }
            }
        }
    }
}
