//! The rules of virtual networks, subnets and resource groups, and of the parts that all requests share: P1 to P4, G1,
//! R17.

use super::{SUBSCRIPTION, World, codes, net, path};
use crate::change::Change;
use crate::resource::Binding;
use serde_json::{Value, json};
use std::sync::Arc;
use tombolo_proto::id::ResourceId;

fn vnet_body(prefixes: &[&str], more: Value) -> Value {
    let mut properties = json!({"addressSpace": {"addressPrefixes": prefixes}});
    for (name, value) in more.as_object().unwrap() {
        properties[name] = value.clone();
    }
    json!({"location": "region1", "properties": properties})
}

fn hub() -> String {
    net("virtualNetworks/hub")
}

#[test]
fn created_is_said_once() {
    let mut w = World::new();
    let put = |w: &mut World| {
        let change = Change::Put {
            path: path(&hub()),
            body: vnet_body(&["10.0.0.0/16"], json!({})),
            if_match: None,
            sync_remote_address_space: false,
        };
        w.apply(&change).unwrap()
    };
    assert!(put(&mut w).created_or_removed);
    let before = w.now.clone();
    let again = put(&mut w);
    assert!(!again.created_or_removed);
    let id = path(&hub()).id();
    assert!(
        Arc::ptr_eq(&before.vnets[&id], &again.topology.vnets[&id]),
        "unchanged: the same"
    );
    assert!(w.delete(&hub()).unwrap());
    assert!(!w.delete(&hub()).unwrap());
}

#[test]
fn names_keep_the_casing_of_their_creation() {
    let mut w = World::new();
    w.vnet("Hub", &["10.0.0.0/16"]).unwrap();
    let again = w.vnet("hUB", &["10.0.0.0/16", "10.1.0.0/16"]).unwrap();
    assert_eq!(again["name"], "Hub");
    assert_eq!(again["id"], net("virtualNetworks/Hub"));
    let other_case = net("virtualNetworks/HUB").replace("Microsoft.Network", "microsoft.network");
    assert_eq!(w.get(&other_case), again);
    w.subnet("hub", "S1", "10.0.0.0/24").unwrap();
    assert_eq!(
        w.get(&net("virtualNetworks/hub/subnets/s1"))["id"],
        net("virtualNetworks/Hub/subnets/S1")
    );
}

#[test]
fn p2_subnets_inside_one_range_and_large_enough() {
    let mut w = World::new();
    w.vnet("hub", &["10.0.0.0/17", "10.0.128.0/17", "fd00::/48"]).unwrap();
    assert_eq!(codes(w.subnet("hub", "s", "10.9.0.0/24")), ["NetcfgInvalidSubnet"]);
    assert_eq!(
        codes(w.subnet("hub", "s", "10.0.0.0/16")),
        ["NetcfgInvalidSubnet"],
        "two ranges are not one"
    );
    assert_eq!(codes(w.subnet("hub", "s", "10.0.0.0/30")), ["NetcfgInvalidSubnet"]);
    w.subnet("hub", "s", "10.0.0.0/29").unwrap();
    let dual = json!({"properties": {"addressPrefixes": ["10.0.1.0/24", "fd00::/64"]}});
    let body = w.put(&net("virtualNetworks/hub/subnets/dual"), dual).unwrap();
    assert_eq!(
        body["properties"]["addressPrefixes"],
        json!(["10.0.1.0/24", "fd00::/64"])
    );
    assert!(body["properties"].get("addressPrefix").is_none());
}

#[test]
fn p2_subnets_do_not_overlap() {
    let mut w = World::new();
    w.vnet("hub", &["10.0.0.0/16"]).unwrap();
    w.subnet("hub", "s", "10.0.0.0/24").unwrap();
    assert_eq!(
        codes(w.subnet("hub", "t", "10.0.0.128/25")),
        ["NetcfgSubnetRangesOverlap"]
    );
    let body = vnet_body(
        &["10.0.0.0/16"],
        json!({"subnets": [
            {"name": "a", "properties": {"addressPrefix": "10.0.0.0/24"}},
            {"name": "b", "properties": {"addressPrefix": "10.0.0.0/25"}},
            {"name": "c", "properties": {"addressPrefix": "10.0.0.128/25"}},
        ]}),
    );
    assert_eq!(
        codes(w.put(&hub(), body)),
        ["NetcfgSubnetRangesOverlap", "NetcfgSubnetRangesOverlap"]
    );
}

#[test]
fn p3_ranges_prefixes_and_subnets_in_use_stay() {
    let mut w = World::new();
    w.vnet("hub", &["10.0.0.0/16", "10.1.0.0/16"]).unwrap();
    w.subnet("hub", "s", "10.0.0.0/24").unwrap();
    w.subnet("hub", "t", "10.0.1.0/24").unwrap();
    w.nic("n", "hub/subnets/s", None).unwrap();
    // An address range of a VNet cannot be removed while a subnet is in it.
    assert_eq!(
        codes(w.vnet("hub", &["10.1.0.0/16"])),
        ["InUsePrefixCannotBeDeleted", "InUsePrefixCannotBeDeleted"]
    );
    w.vnet("hub", &["10.0.0.0/17"]).unwrap();
    // A subnet's prefix cannot be removed while an address in it is in use.
    assert_eq!(
        codes(w.subnet("hub", "s", "10.0.2.0/24")),
        ["InUsePrefixCannotBeDeleted"]
    );
    w.subnet("hub", "t", "10.0.2.0/24").unwrap();
    // A subnet with a NIC cannot be removed. The DELETE of the subnet, a PUT of the VNet without the subnet, and the
    // DELETE of the VNet are all refused.
    let refused = w.delete(&net("virtualNetworks/hub/subnets/s")).unwrap_err();
    assert_eq!(refused.problems[0].code, "InUseSubnetCannotBeDeleted");
    assert!(
        refused.problems[0]
            .message
            .contains("networkInterfaces/n/ipConfigurations/ipconfig1"),
        "{refused}"
    );
    assert_eq!(
        codes(w.put(&hub(), vnet_body(&["10.0.0.0/17"], json!({"subnets": []})))),
        ["InUseSubnetCannotBeDeleted"]
    );
    assert_eq!(codes(w.delete(&hub())), ["InUseSubnetCannotBeDeleted"]);
    w.delete(&net("networkInterfaces/n")).unwrap();
    assert!(w.delete(&net("virtualNetworks/hub/subnets/s")).unwrap());
    assert!(w.delete(&hub()).unwrap());
}

#[test]
fn p4_ranges_of_one_vnet_do_not_overlap() {
    let mut w = World::new();
    assert_eq!(
        codes(w.vnet("hub", &["10.0.0.0/16", "10.0.0.0/16"])),
        ["XAddressRangesOverlap"]
    );
    assert_eq!(
        codes(w.vnet("hub", &["10.0.1.0/24", "10.1.0.0/16", "10.0.0.0/16"])),
        ["XAddressRangesOverlap"]
    );
    assert_eq!(
        codes(w.vnet("hub", &["fd00::/48", "fd00::/64"])),
        ["XAddressRangesOverlap"]
    );
}

#[test]
fn prefixes_are_read_strictly() {
    let mut w = World::new();
    assert_eq!(codes(w.vnet("hub", &["10.0.0.1/16"])), ["InvalidCIDRNotation"]);
    assert_eq!(codes(w.vnet("hub", &["fd00::1/64"])), ["InvalidCIDRNotation"]);
    for bad in [
        "10.0.0.0",
        "10.0.0/16",
        "10.0.0.0/33",
        "x/8",
        "",
        "010.0.0.0/8",
        "10.0.0.0/-1",
        "fd00::/129",
    ] {
        assert_eq!(codes(w.vnet("hub", &[bad])), ["InvalidAddressPrefixFormat"], "{bad}");
    }
    for bad in [
        "127.0.0.0/16",
        "0.0.0.0/0",
        "224.0.0.0/8",
        "169.254.0.0/24",
        "::/0",
        "ff00::/16",
        "10.0.0.0/31",
    ] {
        assert_eq!(codes(w.vnet("hub", &[bad])), ["XAddressPrefixNotAllowed"], "{bad}");
    }
}

#[test]
fn all_problems_of_a_body_at_once_in_order() {
    let mut w = World::new();
    let body = json!({"location": 7, "tags": {"a": 1}, "properties": {
        "flowTimeoutInMinutes": 3,
        "enableDdosProtection": "no",
        "addressSpace": {"addressPrefixes": ["10.0.0.1/16", 5]},
        "subnets": [
            {"name": "s", "properties": {"addressPrefix": "10.0.0.0/24", "delegations": {}}},
            {"name": "S", "properties": {"addressPrefix": "10.0.1.0/24"}},
            {"properties": {}},
            "x",
        ],
    }});
    let refused = w.put(&hub(), body).unwrap_err();
    let found: Vec<_> = refused
        .problems
        .iter()
        .map(|p| (p.code, p.target.as_deref().unwrap_or("")))
        .collect();
    assert_eq!(refused.status, 400);
    assert_eq!(
        found,
        [
            ("InvalidRequestFormat", "properties.enableDdosProtection"),
            ("InvalidRequestFormat", "properties.flowTimeoutInMinutes"),
            ("InvalidRequestFormat", "location"),
            ("InvalidRequestFormat", "tags.a"),
            ("InvalidCIDRNotation", "properties.addressSpace.addressPrefixes[0]"),
            ("InvalidRequestFormat", "properties.addressSpace.addressPrefixes[1]"),
            ("InvalidRequestFormat", "properties.subnets[0].properties.delegations"),
            ("InvalidRequestFormat", "properties.subnets[2].name"),
            ("InvalidRequestFormat", "properties.subnets[3]"),
            ("DuplicateResourceName", hub().as_str()),
        ]
    );
    assert!(w.view(&hub()).is_none());
}

#[test]
fn absent_null_unknown_and_read_only() {
    let mut w = World::new();
    let body = json!({
        "location": "region1", "tags": null, "id": 5, "etag": "x", "type": [], "unknown": {"a": 1},
        "properties": {
            "addressSpace": {"addressPrefixes": ["10.0.0.0/16"], "x": 1}, "dhcpOptions": null, "subnets": null,
            "provisioningState": 7, "resourceGuid": "no", "unknown": [1],
        },
    });
    let body = w.put(&hub(), body).unwrap();
    assert_eq!(body["properties"]["provisioningState"], "Succeeded");
    assert!(body.get("unknown").is_none() && body["properties"].get("unknown").is_none());
    assert_eq!(
        codes(w.put(&hub(), json!([]))),
        ["InvalidRequestFormat", "InvalidRequestFormat"]
    );
    assert_eq!(
        codes(w.put(&hub(), json!({"location": "region1", "properties": {}}))),
        ["InvalidRequestFormat"],
        "the address space is required"
    );
    assert_eq!(
        codes(w.put(
            &net("virtualNetworks/x"),
            json!({"properties": {"addressSpace": {"addressPrefixes": ["10.0.0.0/8"]}}})
        )),
        ["LocationRequired"]
    );
}

#[test]
fn subnets_are_kept_when_omitted_and_replaced_when_given() {
    let mut w = World::new();
    w.vnet("hub", &["10.0.0.0/16"]).unwrap();
    w.subnet("hub", "s", "10.0.0.0/24").unwrap();
    let t = w.subnet("hub", "t", "10.0.1.0/24").unwrap();
    w.vnet("hub", &["10.0.0.0/16", "10.1.0.0/16"]).unwrap();
    assert_eq!(w.get(&hub())["properties"]["subnets"].as_array().unwrap().len(), 2);
    let body = vnet_body(
        &["10.0.0.0/16"],
        json!({"subnets": [{"name": "t", "properties": {"addressPrefix": "10.0.1.0/24"}}, {"name": "u", "properties": {"addressPrefix": "10.0.0.0/24"}}]}),
    );
    w.put(&hub(), body).unwrap();
    assert!(w.view(&net("virtualNetworks/hub/subnets/s")).is_none());
    assert_eq!(
        w.get(&net("virtualNetworks/hub/subnets/t")),
        t,
        "untouched, etag included"
    );
}

#[test]
fn echoed_properties_come_back_and_writing_back_changes_nothing() {
    let mut w = World::new();
    let body = vnet_body(
        &["10.0.0.0/16"],
        json!({
            "dhcpOptions": {"dnsServers": ["10.0.0.4"]},
            "flowTimeoutInMinutes": 10,
            "subnets": [{"name": "s", "properties": {"addressPrefix": "10.0.0.0/24", "privateEndpointNetworkPolicies": "Enabled"}}],
        }),
    );
    let shown = w.put(&hub(), body).unwrap();
    assert_eq!(shown["properties"]["dhcpOptions"], json!({"dnsServers": ["10.0.0.4"]}));
    assert_eq!(
        shown["properties"]["subnets"][0]["properties"]["privateEndpointNetworkPolicies"],
        "Enabled"
    );
    let before = w.now.clone();
    assert_eq!(w.put(&hub(), shown.clone()).unwrap(), shown);
    assert!(w.now.documents_since(&before).is_empty());
}

#[test]
fn policies_that_nobody_enforces_are_refused() {
    let mut w = World::new();
    w.vnet("hub", &["10.0.0.0/16"]).unwrap();
    let body = json!({"properties": {"addressPrefix": "10.0.0.0/24", "natGateway": {"id": net("natGateways/n")}}});
    assert_eq!(
        codes(w.put(&net("virtualNetworks/hub/subnets/s"), body)),
        ["InvalidResourceReference"]
    );
}

#[test]
fn what_is_missing_is_named() {
    let mut w = World::new();
    let elsewhere = hub().replace("/lab/", "/nowhere/");
    let refused = w.put(&elsewhere, vnet_body(&["10.0.0.0/16"], json!({}))).unwrap_err();
    assert_eq!(
        (refused.status, refused.problems[0].code),
        (404, "ResourceGroupNotFound")
    );
    let refused = w.subnet("nowhere", "s", "10.0.0.0/24").unwrap_err();
    assert_eq!(
        (refused.status, refused.problems[0].code),
        (404, "ParentResourceNotFound")
    );
    let refused = w.put(&net("unheardOf/x"), json!({})).unwrap_err();
    assert_eq!((refused.status, refused.problems[0].code), (404, "InvalidResourceType"));
    let tags = Change::PatchTags {
        path: path(&hub()),
        body: json!({"tags": {}}),
        if_match: None,
    };
    let refused = w.apply(&tags).unwrap_err();
    assert_eq!((refused.status, refused.problems[0].code), (404, "ResourceNotFound"));
    assert_eq!(
        refused.problems[0].message,
        "The Resource 'Microsoft.Network/virtualNetworks/hub' under resource group 'lab' was not found."
    );
}

#[test]
fn what_cannot_be_read_is_not_taken_for_deleted() {
    let mut w = World::new();
    w.vnet("hub", &["10.1.0.0/16"]).unwrap();
    w.subnet("hub", "s", "10.1.0.0/24").unwrap();
    w.nic("n", "hub/subnets/s", None).unwrap();
    for subnet in [
        json!({"name": "s", "properties": {"addressPrefix": "no prefix"}}),
        json!(1),
    ] {
        let body = vnet_body(&["10.1.0.0/16"], json!({"subnets": [subnet]}));
        let found = codes(w.put(&hub(), body));
        assert!(!found.contains(&"InUseSubnetCannotBeDeleted"), "{found:?}");
    }
    // P6: if a child in a body has an id and no name, the name is taken from the id and must follow the rule of names.
    let named = json!({"id": format!("{}/subnets/-bad-", hub()), "properties": {"addressPrefix": "10.1.1.0/24"}});
    let body = vnet_body(&["10.1.0.0/16"], json!({"subnets": [named]}));
    assert!(codes(w.put(&hub(), body)).contains(&"InvalidResourceName"));
}

#[test]
fn if_match_and_tags() {
    let mut w = World::new();
    w.vnet("hub", &["10.0.0.0/16"]).unwrap();
    let put = |w: &mut World, if_match: &str, prefix: &str| {
        let change = Change::Put {
            path: path(&hub()),
            body: vnet_body(&[prefix], json!({})),
            if_match: Some(if_match.to_owned()),
            sync_remote_address_space: false,
        };
        w.apply(&change).map(|_| ())
    };
    let etag = w.get(&hub())["etag"].as_str().unwrap().to_owned();
    put(&mut w, &etag, "10.1.0.0/16").unwrap();
    let refused = put(&mut w, &etag, "10.2.0.0/16").unwrap_err();
    assert_eq!((refused.status, refused.problems[0].code), (412, "PreconditionFailed"));
    put(&mut w, "*", "10.3.0.0/16").unwrap();
    let patch = |body: Value, if_match: Option<&str>| Change::PatchTags {
        path: path(&hub()),
        body,
        if_match: if_match.map(ToOwned::to_owned),
    };
    let tags = json!({"tags": {"team": "net"}, "properties": {"ignored": 1}});
    assert_eq!(w.apply(&patch(tags.clone(), Some(&etag))).unwrap_err().status, 412);
    w.apply(&patch(tags, Some("*"))).unwrap();
    // A PATCH without tags changes nothing.
    w.apply(&patch(json!({}), None)).unwrap();
    w.apply(&patch(json!({"tags": null}), None)).unwrap();
    let body = w.get(&hub());
    assert_eq!(body["tags"], json!({"team": "net"}));
    assert_eq!(
        body["properties"]["addressSpace"]["addressPrefixes"],
        json!(["10.3.0.0/16"])
    );
}

#[test]
fn locations_are_normalised_and_do_not_change() {
    let mut w = World::new();
    let at = |location: &str| {
        let mut body = vnet_body(&["10.0.0.0/16"], json!({}));
        body["location"] = location.into();
        body
    };
    assert_eq!(w.put(&hub(), at("West Region")).unwrap()["location"], "westregion");
    w.put(&hub(), at("westREGION")).unwrap();
    let refused = w.put(&hub(), at("east")).unwrap_err();
    assert_eq!(
        (refused.status, refused.problems[0].code),
        (409, "InvalidResourceLocation")
    );
}

#[test]
fn absurd_sizes_are_refused() {
    let mut w = World::new();
    let many: Vec<String> = (0..1001).map(|i| format!("10.{}.{}.0/24", i / 256, i % 256)).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(codes(w.vnet("hub", &many)), ["XTooManyItems"]);
    w.vnet("hub", &many[..1000]).unwrap();
    let same: Vec<Value> = (0..3000)
        .map(|i| json!({"name": format!("s{i}"), "properties": {"addressPrefix": "10.0.0.0/24"}}))
        .collect();
    let refused = w
        .put(&hub(), vnet_body(&["10.0.0.0/16"], json!({"subnets": same})))
        .unwrap_err();
    assert_eq!(refused.problems.len(), 101);
    assert_eq!(refused.problems[100].code, "XMoreProblems");
}

#[test]
fn x3_subnets_of_a_vnet() {
    let mut w = World::new();
    let with = |count: u32| {
        let prefix = |i: u32| format!("10.{}.{}.0/24", i / 256, i % 256);
        let subnet = |i| json!({"name": format!("s{i}"), "properties": {"addressPrefix": prefix(i)}});
        vnet_body(
            &["10.0.0.0/8"],
            json!({"subnets": (0..count).map(subnet).collect::<Vec<_>>()}),
        )
    };
    assert_eq!(codes(w.put(&hub(), with(3001))), ["XTooManyItems"]);
    assert!(w.view(&hub()).is_none());
    w.put(&hub(), with(3000)).unwrap();
    assert_eq!(codes(w.subnet("hub", "more", "10.200.0.0/24")), ["XTooManyItems"]);
}

#[test]
fn groups_hold_their_location_and_their_name() {
    let mut w = World::new();
    let group = |name: &str| format!("/subscriptions/{SUBSCRIPTION}/resourceGroups/{name}");
    assert_eq!(
        codes(w.put(&group("x."), json!({"location": "r"}))),
        ["InvalidResourceName"]
    );
    assert_eq!(codes(w.put(&group("x"), json!({}))), ["LocationRequired"]);
    assert_eq!(
        codes(w.put("/subscriptions/nonsense/resourceGroups/x", json!({"location": "r"}))),
        ["InvalidSubscriptionId"]
    );
    let body = w
        .put(
            &group("x (1)".replace(' ', "_").as_str()),
            json!({"location": "r", "tags": {"a": "b"}}),
        )
        .unwrap();
    assert_eq!(body["type"], "Microsoft.Resources/resourceGroups");
    assert_eq!(body["tags"], json!({"a": "b"}));
    assert_eq!(
        codes(w.put(&group("x_(1)"), json!({"location": "r2"}))),
        ["InvalidResourceLocation"]
    );
    assert_eq!(codes(w.delete(&group("nowhere"))), ["ResourceGroupNotFound"]);
}

#[test]
fn deleting_a_group_takes_its_contents_or_says_what_stands_in_the_way() {
    let mut w = World::new();
    let other = format!("/subscriptions/{SUBSCRIPTION}/resourceGroups/other");
    w.put(&other, json!({"location": "region1"})).unwrap();
    w.vnet("hub", &["10.1.0.0/16"]).unwrap();
    w.vnet("far", &["10.2.0.0/16"]).unwrap();
    w.subnet("hub", "s", "10.1.0.0/24").unwrap();
    w.gateway("hub", "10.1.255.0/27").unwrap();
    w.gateway("far", "10.2.255.0/27").unwrap();
    w.connect("there", "hub", "far").unwrap();
    w.connect("back", "far", "hub").unwrap();
    w.nic("n", "hub/subnets/s", None).unwrap();
    w.put(&net("routeTables/t"), json!({"location": "region1"})).unwrap();
    w.put(&net("publicIPAddresses/p"), json!({"location": "region1"}))
        .unwrap();
    // The group has a VNet. In another group there are a NIC in a subnet of this VNet, and a peering half towards this
    // VNet. The NIC blocks the deletion of the first group; the half does not.
    let nic = json!({"location": "region1", "properties": {"ipConfigurations": [
        {"name": "c", "properties": {"subnet": {"id": net("virtualNetworks/hub/subnets/s")}}}]}});
    let outside = net("networkInterfaces/outside").replace("/lab/", "/other/");
    w.put(&outside, nic).unwrap();
    let vnet = net("virtualNetworks/v").replace("/lab/", "/other/");
    w.put(&vnet, vnet_body(&["10.3.0.0/16"], json!({}))).unwrap();
    let to = |id: &str| json!({"properties": {"remoteVirtualNetwork": {"id": id}}});
    w.put(&format!("{vnet}/virtualNetworkPeerings/p"), to(&hub())).unwrap();
    w.put(&format!("{}/virtualNetworkPeerings/p", hub()), to(&vnet))
        .unwrap();
    let group = format!("/subscriptions/{SUBSCRIPTION}/resourceGroups/lab");
    let before = w.now.clone();
    let refused = w.delete(&group).unwrap_err();
    assert_eq!(refused.status, 409);
    assert_eq!(
        codes::<()>(Err(refused)),
        ["ResourceGroupDeletionBlocked", "InUseSubnetCannotBeDeleted"]
    );
    assert!(w.now.documents_since(&before).is_empty());
    w.delete(&outside).unwrap();
    // A VM of the group does not block its deletion. Its agent is removed, even if its NIC is in another group.
    w.put(
        &format!("{vnet}/subnets/s"),
        json!({"properties": {"addressPrefix": "10.3.0.0/24"}}),
    )
    .unwrap();
    let nic = json!({"location": "region1", "properties": {"ipConfigurations": [
        {"name": "c", "properties": {"subnet": {"id": format!("{vnet}/subnets/s")}}}]}});
    w.put(&outside, nic).unwrap();
    let binding = Binding::Vm {
        vm: super::vm_id("m"),
        nics: vec![ResourceId::new(&*outside)],
        served: vec![],
    };
    w.join("m", binding).unwrap();
    assert!(w.delete(&group).unwrap());
    assert!(w.now.agents.is_empty());
    assert!(w.now.gateways.is_empty() && w.now.connections.is_empty() && w.now.route_tables.is_empty());
    assert_eq!(w.now.vnets.len(), 1);
    let half = w.get(&format!("{vnet}/virtualNetworkPeerings/p"));
    assert_eq!(half["properties"]["peeringState"], "Disconnected");
}
