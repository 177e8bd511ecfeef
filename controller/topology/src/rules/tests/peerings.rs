//! The rules of peerings: P5 to P30.

use super::{World, codes, half, net, path};
use crate::change::Change;
use crate::resource::{AddressSpaceChange, Settings};
use serde_json::{Value, json};

fn world() -> World {
    let mut world = World::new();
    world.vnet("a", &["10.1.0.0/16"]).unwrap();
    world.vnet("b", &["10.2.0.0/16"]).unwrap();
    world.vnet("c", &["10.3.0.0/16"]).unwrap();
    world
}

fn is(state: &str, level: &str) -> (String, String) {
    (state.to_owned(), level.to_owned())
}

fn connected() -> (String, String) {
    is("Connected", "FullyInSync")
}

#[test]
fn p5_defaults_and_body() {
    let mut w = world();
    let body = w.peer("a", "b", json!({})).unwrap();
    let p = &body["properties"];
    assert_eq!(p["allowVirtualNetworkAccess"], true);
    for off in [
        "allowForwardedTraffic",
        "allowGatewayTransit",
        "useRemoteGateways",
        "doNotVerifyRemoteGateways",
    ] {
        assert_eq!(p[off], false, "{off}");
    }
    assert_eq!(p["peerCompleteVnets"], true);
    assert_eq!(p["peeringState"], "Initiated");
    assert_eq!(p["remoteAddressSpace"]["addressPrefixes"], json!(["10.2.0.0/16"]));
    for own in ["localAddressSpace", "localVirtualNetworkAddressSpace"] {
        assert_eq!(p[own]["addressPrefixes"], json!(["10.1.0.0/16"]), "{own}");
    }
    assert_eq!(body["type"], "Microsoft.Network/virtualNetworks/virtualNetworkPeerings");
    assert_eq!(p["provisioningState"], "Succeeded");
    w.peer("b", "a", json!({})).unwrap();
    let guid = |id: &str, w: &World| w.get(id)["properties"]["resourceGuid"].clone();
    assert_eq!(guid(&half("a", "b"), &w), guid(&half("b", "a"), &w));
}

#[test]
fn all_that_is_wrong_with_a_half_is_said_at_once() {
    let mut w = World::new();
    w.vnet("a", &["10.0.0.0/16"]).unwrap();
    w.vnet("b", &["10.0.0.0/17"]).unwrap();
    let found = codes(w.peer("a", "b", json!({"peerCompleteVnets": false})));
    assert!(found.contains(&"XSubnetPeeringNotSupported"), "{found:?}");
    assert!(found.contains(&"VnetAddressSpacesOverlap"), "{found:?}");
}

#[test]
fn d6_the_transport_is_kept_and_the_halves_agree() {
    let mut w = world();
    let shown = |w: &World, of: &str, to: &str| w.get(&half(of, to))["properties"]["transport"].clone();
    w.peer("a", "b", json!({})).unwrap();
    assert_eq!(shown(&w, "a", "b"), "Automatic");
    w.peer("a", "b", json!({"transport": "quic"})).unwrap();
    // A stock client's PUT has no property `transport`; the half then keeps its transport.
    w.peer("a", "b", json!({"allowForwardedTraffic": true})).unwrap();
    assert_eq!(shown(&w, "a", "b"), "Quic");
    let refused = codes(w.peer("b", "a", json!({"transport": "WireGuard"})));
    assert_eq!(refused, ["XPeeringTransportConflict"]);
    w.peer("b", "a", json!({})).unwrap();
    assert_eq!(
        codes(w.peer("b", "a", json!({"transport": "carrier pigeon"}))),
        ["InvalidRequestFormat"]
    );
    w.peer("a", "b", json!({"transport": "Automatic"})).unwrap();
    w.peer("b", "a", json!({"transport": "WireGuard"})).unwrap();
    assert_eq!([shown(&w, "a", "b"), shown(&w, "b", "a")], ["Automatic", "WireGuard"]);
}

#[test]
fn p6_names() {
    let mut w = world();
    let body = || json!({"properties": {"remoteVirtualNetwork": {"id": net("virtualNetworks/b")}}});
    for bad in ["-x", "x-", ".x", "x.", "a b", "ä", &"x".repeat(81)] {
        let id = net(&format!("virtualNetworks/a/virtualNetworkPeerings/{bad}"));
        assert_eq!(codes(w.put(&id, body())), ["InvalidResourceName"], "{bad}");
    }
    let id = net(&format!(
        "virtualNetworks/a/virtualNetworkPeerings/{}",
        "x.y-z_".repeat(13)
    ));
    w.put(&id, body()).unwrap();
}

#[test]
fn p7_one_peering_a_pair_and_direction() {
    let mut w = world();
    w.peer("a", "b", json!({})).unwrap();
    let again = net("virtualNetworks/a/virtualNetworkPeerings/again");
    let body = json!({"properties": {"remoteVirtualNetwork": {"id": net("virtualNetworks/B")}}});
    assert_eq!(
        codes(w.put(&again, body)),
        ["AnotherPeeringAlreadyReferencesRemoteVnet"]
    );
}

#[test]
fn p8_remote_is_immutable() {
    let mut w = world();
    w.peer("a", "b", json!({})).unwrap();
    for other in ["c", "nowhere"] {
        let body = json!({"properties": {"remoteVirtualNetwork": {"id": net(&format!("virtualNetworks/{other}"))}}});
        assert_eq!(
            codes(w.put(&half("a", "b"), body)),
            ["ChangingRemoteVirtualNetworkNotAllowed"]
        );
    }
}

#[test]
fn p9_remote_must_exist() {
    let mut w = world();
    assert_eq!(codes(w.peer("a", "nowhere", json!({}))), ["InvalidResourceReference"]);
    let far = net("virtualNetworks/b").replace("000000000001", "000000000002");
    let body = json!({"properties": {"remoteVirtualNetwork": {"id": far}}});
    assert_eq!(codes(w.put(&half("a", "b"), body)), ["InvalidGlobalResourceReference"]);
    let body = json!({"properties": {"remoteVirtualNetwork": {"id": net("routeTables/b")}}});
    assert_eq!(codes(w.put(&half("a", "b"), body)), ["InvalidResourceReference"]);
    assert_eq!(
        codes(w.put(&half("a", "b"), json!({"properties": {}}))),
        ["InvalidRequestFormat"]
    );
}

#[test]
fn p10_p12_overlap_and_self() {
    let mut w = world();
    w.vnet("x", &["10.1.128.0/17", "10.9.0.0/16"]).unwrap();
    let refused = w.peer("a", "x", json!({})).unwrap_err();
    assert_eq!(refused.problems[0].code, "VnetAddressSpacesOverlap");
    assert!(
        refused.problems[0]
            .message
            .contains("Overlapping address prefixes: 10.1.0.0/16, 10.1.128.0/17"),
        "{refused}"
    );
    assert_eq!(codes(w.peer("a", "a", json!({}))), ["VnetAddressSpacesOverlap"]);
    assert!(w.view(&half("a", "x")).is_none());
}

#[test]
fn p11_overlap_with_the_remotes_other_peers_and_the_own_ones() {
    let mut w = world();
    w.vnet("a2", &["10.1.0.0/24"]).unwrap();
    w.peer("b", "a", json!({})).unwrap();
    // A half is refused if the VNet overlaps another peer of the remote VNet, even if only one half of that other
    // peering exists.
    let refused = w.peer("a2", "b", json!({})).unwrap_err();
    assert_eq!(
        refused.problems[0].code,
        "VnetAddressSpaceOverlapsWithAlreadyPeeredVnet"
    );
    assert!(
        refused.problems[0].message.contains(&net("virtualNetworks/a")),
        "{refused}"
    );
    // A half is also refused if the remote VNet overlaps another peer of the VNet itself.
    assert_eq!(
        codes(w.peer("b", "a2", json!({}))),
        ["VnetAddressSpaceOverlapsWithAlreadyPeeredVnet"]
    );
}

#[test]
fn p11_a_stale_disconnected_peering_counts() {
    let mut w = world();
    w.vnet("a2", &["10.1.0.0/24"]).unwrap();
    w.peer_both("a", "b");
    w.delete(&net("virtualNetworks/a")).unwrap();
    assert_eq!(w.state("b", "a").0, "Disconnected");
    assert_eq!(
        codes(w.peer("a2", "b", json!({}))),
        ["VnetAddressSpaceOverlapsWithAlreadyPeeredVnet"]
    );
    w.delete(&half("b", "a")).unwrap();
    w.peer("a2", "b", json!({})).unwrap();
}

#[test]
fn p13_both_orders_end_connected() {
    for (first, second) in [("a", "b"), ("b", "a")] {
        let mut w = world();
        w.peer(first, second, json!({})).unwrap();
        assert_eq!(w.state(first, second), is("Initiated", "RemoteNotInSync"));
        let etag = w.get(&half(first, second))["etag"].clone();
        w.peer(second, first, json!({})).unwrap();
        assert_eq!((w.state("a", "b"), w.state("b", "a")), (connected(), connected()));
        assert_ne!(w.get(&half(first, second))["etag"], etag);
    }
}

#[test]
fn p13_update_keeps_the_state() {
    let mut w = world();
    w.peer("a", "b", json!({})).unwrap();
    w.peer("a", "b", json!({"allowForwardedTraffic": true})).unwrap();
    assert_eq!(w.state("a", "b").0, "Initiated");
    w.peer("b", "a", json!({})).unwrap();
    let other = w.get(&half("b", "a"));
    let body = w.peer("a", "b", json!({"allowVirtualNetworkAccess": false})).unwrap();
    assert_eq!(body["properties"]["peeringState"], "Connected");
    assert_eq!(body["properties"]["allowForwardedTraffic"], false, "PUT replaces");
    assert_eq!(w.get(&half("b", "a")), other, "the other half is untouched");
}

#[test]
fn p13_delete_while_connected_disconnects_the_other() {
    let mut w = world();
    w.peer_both("a", "b");
    assert!(w.delete(&half("a", "b")).unwrap());
    assert_eq!(w.state("b", "a").0, "Disconnected");
    assert!(w.view(&half("a", "b")).is_none());
}

#[test]
fn p13_delete_while_initiated_changes_nothing_else() {
    let mut w = world();
    w.peer("a", "b", json!({})).unwrap();
    let b = w.get(&net("virtualNetworks/b"));
    assert!(w.delete(&half("a", "b")).unwrap());
    assert!(!w.delete(&half("a", "b")).unwrap(), "gone already: 204");
    assert_eq!(w.get(&net("virtualNetworks/b")), b);
}

#[test]
fn p13_remote_vnet_deleted_even_if_made_again() {
    let mut w = world();
    w.peer_both("a", "b");
    w.delete(&net("virtualNetworks/b")).unwrap();
    assert_eq!(w.state("a", "b").0, "Disconnected");
    w.vnet("b", &["10.2.0.0/16"]).unwrap();
    assert_eq!(w.state("a", "b").0, "Disconnected");
    assert_eq!(codes(w.peer("b", "a", json!({}))), ["RemotePeeringIsDisconnected"]);
}

#[test]
fn p13_an_initiated_half_waits_for_a_vnet_that_is_made_again() {
    let mut w = world();
    w.peer("a", "b", json!({})).unwrap();
    w.delete(&net("virtualNetworks/b")).unwrap();
    assert_eq!(w.state("a", "b").0, "Initiated");
    assert_eq!(codes(w.peer("a", "b", json!({}))), ["InvalidResourceReference"]);
    // A new VNet with the name of the deleted one cannot create its half while the address spaces of the two VNets
    // overlap.
    w.vnet("b", &["10.1.7.0/24"]).unwrap();
    assert_eq!(codes(w.peer("b", "a", json!({}))), ["VnetAddressSpacesOverlap"]);
    w.vnet("b", &["10.77.0.0/16"]).unwrap();
    w.peer("b", "a", json!({})).unwrap();
    assert_eq!((w.state("a", "b"), w.state("b", "a")), (connected(), connected()));
    let p = w.get(&half("a", "b"))["properties"].clone();
    assert_eq!(p["remoteAddressSpace"]["addressPrefixes"], json!(["10.77.0.0/16"]));
}

#[test]
fn p14_first_recovery_update_the_survivor_then_create() {
    let mut w = world();
    w.peer_both("a", "b");
    w.delete(&half("a", "b")).unwrap();
    assert_eq!(codes(w.peer("a", "b", json!({}))), ["RemotePeeringIsDisconnected"]);
    assert_eq!(w.state("b", "a").0, "Disconnected", "stays");
    w.peer("b", "a", json!({})).unwrap();
    assert_eq!(w.state("b", "a"), is("Initiated", "RemoteNotInSync"));
    w.peer("a", "b", json!({})).unwrap();
    assert_eq!((w.state("a", "b"), w.state("b", "a")), (connected(), connected()));
}

#[test]
fn p14_second_recovery_delete_both_create_both() {
    let mut w = world();
    w.peer_both("a", "b");
    w.delete(&half("a", "b")).unwrap();
    w.delete(&half("b", "a")).unwrap();
    w.peer_both("a", "b");
    assert_eq!((w.state("a", "b"), w.state("b", "a")), (connected(), connected()));
}

#[test]
fn p20_each_row() {
    let using = || json!({"useRemoteGateways": true});
    let mut w = world();
    assert_eq!(codes(w.peer("a", "b", using())), ["RemoteVnetHasNoGateways"]);
    // doNotVerifyRemoteGateways does not lift the rule (P22).
    let unverified = json!({"useRemoteGateways": true, "doNotVerifyRemoteGateways": true});
    assert_eq!(codes(w.peer("a", "b", unverified)), ["RemoteVnetHasNoGateways"]);
    w.gateway("b", "10.2.255.0/27").unwrap();
    // useRemoteGateways is refused if the remote half exists but lacks allowGatewayTransit.
    w.peer("b", "a", json!({})).unwrap();
    assert_eq!(codes(w.peer("a", "b", using())), ["XRemotePeeringTransitNotAllowed"]);
    w.peer("b", "a", json!({"allowGatewayTransit": true})).unwrap();
    let body = w.peer("a", "b", using()).unwrap();
    assert_eq!(
        body["properties"]["remoteGateways"],
        json!([{"id": net("virtualNetworkGateways/b-gw")}])
    );
    // A VNet cannot have a second peering with useRemoteGateways.
    w.gateway("c", "10.3.255.0/27").unwrap();
    assert_eq!(codes(w.peer("a", "c", using())), ["XAnotherPeeringUsesRemoteGateways"]);
    // In a VNet that uses a remote gateway, no gateway can be created.
    assert_eq!(codes(w.gateway("a", "10.1.255.0/27")), ["XVnetUsesRemoteGateways"]);
    // A VNet with a gateway of its own cannot use a remote gateway.
    assert_eq!(codes(w.peer("c", "b", using())), ["XVnetHasOwnGateway"]);
}

#[test]
fn p20_without_a_counterpart_the_check_runs_when_it_appears() {
    let mut w = world();
    w.gateway("b", "10.2.255.0/27").unwrap();
    w.peer("a", "b", json!({"useRemoteGateways": true})).unwrap();
    assert_eq!(codes(w.peer("b", "a", json!({}))), ["XRemotePeeringTransitNotAllowed"]);
    w.peer("b", "a", json!({"allowGatewayTransit": true})).unwrap();
    assert_eq!(w.state("a", "b"), connected());
    // P21: allowGatewayTransit can be switched off although the other half has useRemoteGateways.
    w.peer("b", "a", json!({})).unwrap();
}

#[test]
fn p20_the_hubs_gateway_may_go_and_later_puts_fail() {
    let mut w = world();
    w.gateway("b", "10.2.255.0/27").unwrap();
    w.peer("b", "a", json!({"allowGatewayTransit": true})).unwrap();
    w.peer("a", "b", json!({"useRemoteGateways": true})).unwrap();
    w.delete(&net("virtualNetworkGateways/b-gw")).unwrap();
    let p = w.get(&half("a", "b"))["properties"].clone();
    assert_eq!(
        (&p["useRemoteGateways"], &p["remoteGateways"]),
        (&json!(true), &json!([]))
    );
    assert_eq!(
        codes(w.peer("a", "b", json!({"useRemoteGateways": true}))),
        ["RemoteVnetHasNoGateways"]
    );
    w.put(&net("virtualNetworkGateways/b-gw"), super::gateway_body("b", json!({})))
        .unwrap();
    w.peer("a", "b", json!({"useRemoteGateways": true})).unwrap();
}

#[test]
fn all_problems_at_once_in_order_and_nothing_changed() {
    let mut w = world();
    w.vnet("x", &["10.1.0.0/24"]).unwrap();
    w.peer("b", "a", json!({})).unwrap();
    let before = w.now.clone();
    let refused = codes(w.peer("x", "b", json!({"useRemoteGateways": true})));
    assert_eq!(
        refused,
        [
            "VnetAddressSpaceOverlapsWithAlreadyPeeredVnet",
            "RemoteVnetHasNoGateways"
        ]
    );
    assert!(w.now.documents_since(&before).is_empty());
}

fn resize(w: &mut World, name: &str, prefixes: &[&str]) -> Result<Value, crate::change::Rejection> {
    w.vnet(name, prefixes)
}

#[test]
fn p26_strict_refuses_a_change_while_peered() {
    let mut w = world();
    let strict = Settings {
        address_space_change: AddressSpaceChange::Strict,
        ..Settings::default()
    };
    w.apply(&Change::SetSettings(strict)).unwrap();
    w.peer("a", "b", json!({})).unwrap();
    let refused = codes(resize(&mut w, "a", &["10.1.0.0/16", "10.101.0.0/16"]));
    assert_eq!(refused, ["VnetAddressSpaceCannotChangeDueToPeerings"]);
    w.delete(&half("a", "b")).unwrap();
    resize(&mut w, "a", &["10.1.0.0/16", "10.101.0.0/16"]).unwrap();
}

#[test]
fn p27_sync_levels_on_both_sides_and_old_routes_before_sync() {
    let mut w = world();
    w.peer_both("a", "b");
    resize(&mut w, "a", &["10.1.0.0/16", "10.101.0.0/16"]).unwrap();
    assert_eq!(w.state("a", "b"), is("Connected", "RemoteNotInSync"));
    assert_eq!(w.state("b", "a"), is("Connected", "LocalNotInSync"));
    let p = w.get(&half("b", "a"))["properties"].clone();
    assert_eq!(p["remoteAddressSpace"]["addressPrefixes"], json!(["10.1.0.0/16"]));
    assert_eq!(
        p["remoteVirtualNetworkAddressSpace"]["addressPrefixes"],
        json!(["10.1.0.0/16", "10.101.0.0/16"])
    );
    // The half of b is not synced by a PUT without `syncRemoteAddressSpace`, nor by a sync of the half of a.
    w.peer("b", "a", json!({"allowForwardedTraffic": true})).unwrap();
    w.peer_synced("a", "b", json!({}), true).unwrap();
    assert_eq!(w.state("b", "a").1, "LocalNotInSync");
    w.peer_synced("b", "a", json!({}), true).unwrap();
    assert_eq!((w.state("a", "b"), w.state("b", "a")), (connected(), connected()));
    let p = w.get(&half("b", "a"))["properties"].clone();
    assert_eq!(
        p["remoteAddressSpace"]["addressPrefixes"],
        json!(["10.1.0.0/16", "10.101.0.0/16"])
    );
}

#[test]
fn p27_both_changed() {
    let mut w = world();
    w.peer_both("a", "b");
    resize(&mut w, "a", &["10.1.0.0/16", "10.101.0.0/16"]).unwrap();
    resize(&mut w, "b", &["10.2.0.0/17"]).unwrap();
    let both = is("Connected", "LocalAndRemoteNotInSync");
    assert_eq!((w.state("a", "b"), w.state("b", "a")), (both.clone(), both));
    w.peer_synced("b", "a", json!({}), true).unwrap();
    assert_eq!(w.state("b", "a").1, "RemoteNotInSync");
    assert_eq!(w.state("a", "b").1, "LocalNotInSync");
    w.peer_synced("a", "b", json!({}), true).unwrap();
    assert_eq!((w.state("a", "b"), w.state("b", "a")), (connected(), connected()));
}

#[test]
fn p27_checks_p10_and_p11_against_all_peers() {
    let mut w = world();
    w.peer_both("a", "b");
    w.peer_both("b", "c");
    assert_eq!(
        codes(resize(&mut w, "a", &["10.1.0.0/16", "10.2.1.0/24"])),
        ["VnetAddressSpacesOverlap"]
    );
    let refused = codes(resize(&mut w, "a", &["10.1.0.0/16", "10.3.1.0/24"]));
    assert_eq!(refused, ["VnetAddressSpaceOverlapsWithAlreadyPeeredVnet"]);
    // A change of the address space of a is also refused if it overlaps d: only d has a half, towards a.
    w.vnet("d", &["10.4.0.0/16"]).unwrap();
    w.peer("d", "a", json!({})).unwrap();
    assert_eq!(
        codes(resize(&mut w, "a", &["10.1.0.0/16", "10.4.0.0/24"])),
        ["VnetAddressSpacesOverlap"]
    );
    // b has not synced the new address space of c yet, and still routes its old prefixes. So a change of the address
    // space of a that overlaps these old prefixes is refused.
    resize(&mut w, "c", &["10.33.0.0/16"]).unwrap();
    assert_eq!(
        codes(resize(&mut w, "a", &["10.1.0.0/16", "10.3.1.0/24"])),
        ["VnetAddressSpaceOverlapsWithAlreadyPeeredVnet"]
    );
    w.peer_synced("b", "c", json!({}), true).unwrap();
    resize(&mut w, "a", &["10.1.0.0/16", "10.3.1.0/24"]).unwrap();
}

#[test]
fn p29_subnet_peering_is_refused_clearly() {
    let mut w = world();
    for flags in [
        json!({"peerCompleteVnets": false}),
        json!({"enableOnlyIPv6Peering": true}),
        json!({"localSubnetNames": ["x"]}),
    ] {
        assert_eq!(codes(w.peer("a", "b", flags)), ["XSubnetPeeringNotSupported"]);
    }
}

#[test]
fn p30_global_transit_follows_the_switch() {
    let mut w = world();
    let far = json!({"location": "Region 2", "properties": {"addressSpace": {"addressPrefixes": ["10.7.0.0/16"]}}});
    w.put(&net("virtualNetworks/far"), far).unwrap();
    let off = Settings {
        global_gateway_transit: false,
        ..Settings::default()
    };
    w.peer("far", "a", json!({"allowGatewayTransit": true})).unwrap();
    assert_eq!(
        codes(w.apply(&Change::SetSettings(off.clone()))),
        ["XGlobalPeeringFeatureNotAllowed"]
    );
    w.delete(&half("far", "a")).unwrap();
    w.apply(&Change::SetSettings(off)).unwrap();
    assert_eq!(
        codes(w.peer("far", "a", json!({"allowGatewayTransit": true}))),
        ["XGlobalPeeringFeatureNotAllowed"]
    );
    w.peer("far", "a", json!({})).unwrap();
    w.peer("b", "a", json!({"allowGatewayTransit": true})).unwrap();
}

#[test]
fn x1_limit() {
    let mut w = world();
    let one = Settings {
        peerings_per_vnet: 1,
        ..Settings::default()
    };
    w.apply(&Change::SetSettings(one)).unwrap();
    w.peer("a", "b", json!({})).unwrap();
    assert_eq!(codes(w.peer("a", "c", json!({}))), ["XPeeringLimitReached"]);
    w.peer("a", "b", json!({})).unwrap();
}

#[test]
fn children_have_etags_of_their_own() {
    let mut w = world();
    w.peer("a", "b", json!({})).unwrap();
    w.peer("a", "c", json!({})).unwrap();
    let untouched = w.get(&half("a", "c"))["etag"].clone();
    let vnet = w.get(&net("virtualNetworks/a"))["etag"].clone();
    let stale = w.get(&half("a", "b"))["etag"].as_str().unwrap().to_owned();
    w.peer("a", "b", json!({"allowForwardedTraffic": true})).unwrap();
    assert_eq!(w.get(&half("a", "c"))["etag"], untouched);
    assert_ne!(w.get(&net("virtualNetworks/a"))["etag"], vnet);
    let refused = w
        .apply(&Change::Delete {
            path: path(&half("a", "b")),
            if_match: Some(stale),
        })
        .unwrap_err();
    assert_eq!((refused.status, refused.problems[0].code), (412, "PreconditionFailed"));
    let current = w.get(&half("a", "b"))["etag"].as_str().unwrap().to_owned();
    w.apply(&Change::Delete {
        path: path(&half("a", "b")),
        if_match: Some(current),
    })
    .unwrap();
}

#[test]
fn inline_peerings_of_a_vnet_body() {
    let mut w = world();
    w.peer_both("a", "b");
    w.peer("a", "c", json!({})).unwrap();
    // If a client writes back a body that it has read, nothing changes, not even an etag.
    let body = w.get(&net("virtualNetworks/a"));
    assert_eq!(w.put(&net("virtualNetworks/a"), body.clone()).unwrap(), body);
    // If the body has no list of peerings, the present halves stay.
    w.vnet("a", &["10.1.0.0/16"]).unwrap();
    assert_eq!(w.get(&net("virtualNetworks/a")), body);
    // If the body of a VNet lists a `Disconnected` half without changes, the half is not updated and stays
    // `Disconnected`.
    w.delete(&half("b", "a")).unwrap();
    let body = w.get(&net("virtualNetworks/a"));
    w.put(&net("virtualNetworks/a"), body.clone()).unwrap();
    assert_eq!(w.state("a", "b").0, "Disconnected");
    // If the body's list of peerings lacks a half, the half is removed.
    let mut fewer = body;
    fewer["properties"]["virtualNetworkPeerings"]
        .as_array_mut()
        .unwrap()
        .remove(0);
    w.put(&net("virtualNetworks/a"), fewer).unwrap();
    assert!(w.view(&half("a", "b")).is_none() && w.view(&half("a", "c")).is_some());
}
