//! The rules of sites, that is, of local network gateways and IPsec connections (G3, G4, G7, G9, G11 to G13, G16, X8,
//! D16).

use super::{World, codes, connection_body, gateway_body, net};
use crate::change::Change;
use crate::path::ArmPath;
use crate::resource::{Binding, Settings};
use crate::topology::AgentStatuses;
use serde_json::{Value, json};
use tombolo_proto::id::{AgentId, PublicKey, ResourceId};
use tombolo_proto::status::{AgentStatus, LinkState, LinkStatus};

fn site(name: &str) -> String {
    net(&format!("localNetworkGateways/{name}"))
}

fn key(byte: u8) -> String {
    PublicKey([byte; 32]).to_string()
}

fn bgp(asn: u32, address: &str) -> Value {
    json!({"bgpSettings": {"asn": asn, "bgpPeeringAddress": address}})
}

/// A hub with a VPN gateway. The hub is peered with a spoke, and its gateway is connected to the gateway of a branch.
fn world() -> World {
    let mut w = World::new();
    for (name, prefix) in [
        ("hub", "10.1.0.0/16"),
        ("spoke", "10.2.0.0/16"),
        ("branch", "10.3.0.0/16"),
    ] {
        w.vnet(name, &[prefix]).unwrap();
    }
    w.gateway("hub", "10.1.255.0/27").unwrap();
    w.gateway("branch", "10.3.255.0/27").unwrap();
    w.peer_both("hub", "spoke");
    w.connect("there", "hub", "branch").unwrap();
    w.connect("back", "branch", "hub").unwrap();
    w
}

#[test]
fn g7_d16_a_local_network_gateway_and_its_defaults() {
    let mut w = World::new();
    let body = w.site("loc", &["10.7.0.0/16"], json!({})).unwrap();
    let p = &body["properties"];
    assert_eq!(
        p["localNetworkAddressSpace"],
        json!({"addressPrefixes": ["10.7.0.0/16"]})
    );
    assert_eq!(p["wireGuardPort"], 51820);
    for absent in ["gatewayIpAddress", "wireGuardPublicKey", "bgpSettings"] {
        assert!(p.get(absent).is_none(), "{absent}");
    }
    assert_eq!(body["type"], "Microsoft.Network/localNetworkGateways");
    assert_eq!(
        w.put(&site("loc"), body.clone()).unwrap(),
        body,
        "writing back changes nothing"
    );
    let full = json!({
        "gatewayIpAddress": "192.0.2.7", "wireGuardPort": 4500, "wireGuardPublicKey": key(7),
        "bgpSettings": {"asn": 65021, "bgpPeeringAddress": "10.7.0.125", "peerWeight": 0},
    });
    let body = w.site("loc", &["10.7.0.0/16"], full.clone()).unwrap();
    for (name, value) in full.as_object().unwrap() {
        assert_eq!(body["properties"][name], *value, "{name}");
    }
    // Stock clients do not know the WireGuard properties. They send sites with an empty list of prefixes and empty
    // strings, which are accepted.
    let stock = json!({"gatewayIpAddress": "", "fqdn": "", "bgpSettings": null});
    w.site("stock", &[], stock).unwrap();
    assert!(w.delete(&site("stock")).unwrap());
    assert!(!w.delete(&site("stock")).unwrap());
}

#[test]
fn g7_d16_what_a_local_network_gateway_cannot_have() {
    let mut w = World::new();
    for (more, code) in [
        (json!({"fqdn": "site.example"}), "XNotSupported"),
        (json!({"gatewayIpAddress": "0.0.0.0"}), "XInvalidEndpoint"),
        (json!({"gatewayIpAddress": "x"}), "InvalidIPAddressFormat"),
        (json!({"wireGuardPort": 0}), "InvalidRequestFormat"),
        (json!({"wireGuardPort": 65536}), "InvalidRequestFormat"),
        (json!({"wireGuardPublicKey": "abc"}), "XInvalidPublicKey"),
        (json!({"wireGuardPublicKey": key(0)}), "XInvalidPublicKey"),
        (json!({"bgpSettings": {"asn": 65021}}), "InvalidRequestFormat"),
        (
            json!({"bgpSettings": {"bgpPeeringAddress": "10.7.0.1"}}),
            "InvalidRequestFormat",
        ),
        (bgp(65021, "127.0.0.1"), "XAddressPrefixNotAllowed"),
        (bgp(65021, "169.254.1.1"), "XAddressPrefixNotAllowed"),
    ] {
        assert_eq!(codes(w.site("loc", &["10.7.0.0/16"], more.clone())), [code], "{more}");
    }
    for (prefixes, code) in [
        (&["10.7.0.1/16"][..], "InvalidCIDRNotation"),
        (&["0.0.0.0/0"], "XAddressPrefixNotAllowed"),
        (&["10.7.0.0/16", "10.7.1.0/24"], "XAddressRangesOverlap"),
    ] {
        assert_eq!(codes(w.site("loc", prefixes, json!({}))), [code], "{prefixes:?}");
    }
    w.site("loc", &[], bgp(65021, "169.254.21.2")).unwrap();
}

#[test]
fn g4_asns_that_a_site_cannot_have() {
    let mut w = World::new();
    for asn in [
        8074, 8075, 12076, 23456, 64496, 64511, 65515, 65517, 65520, 65535, 65551,
    ] {
        assert_eq!(
            codes(w.site("loc", &[], bgp(asn, "10.7.0.1"))),
            ["XReservedAsn"],
            "{asn}"
        );
    }
    for asn in [1, 65021, 65514, 65516, 65521, 65552, u32::MAX] {
        w.site("loc", &[], bgp(asn, "10.7.0.1")).unwrap();
    }
}

#[test]
fn g9_an_ipsec_connection() {
    let mut w = world();
    w.site("loc", &["10.7.0.0/16"], json!({})).unwrap();
    let nowhere = w.connect_site("c", "hub", "nowhere", json!({}));
    assert_eq!(codes(nowhere), ["InvalidResourceReference"]);
    let body = w
        .connect_site("c", "hub", "loc", json!({"sharedKey": "abc", "routingWeight": 5}))
        .unwrap();
    let p = &body["properties"];
    assert_eq!(p["connectionType"], "IPsec");
    assert_eq!(p["localNetworkGateway2"], json!({"id": site("loc")}));
    assert_eq!(p["routingWeight"], 5);
    for absent in ["virtualNetworkGateway2", "peer", "tunnelAddresses", "sharedKey"] {
        assert!(p.get(absent).is_none(), "{absent}");
    }
    assert_eq!(
        w.put(&net("connections/c"), body.clone()).unwrap(),
        body,
        "writing back changes nothing"
    );
    w.site("other", &["10.8.0.0/16"], json!({})).unwrap();
    let moved = w.connect_site("c", "hub", "other", json!({}));
    assert_eq!(codes(moved), ["XConnectionGatewaysImmutable"]);
    let moved = w.connect_site("c", "branch", "loc", json!({}));
    assert_eq!(codes(moved), ["XConnectionGatewaysImmutable"]);
    assert_eq!(codes(w.connect("c", "hub", "branch")), ["XConnectionTypeImmutable"]);
    assert_eq!(codes(w.delete(&site("loc"))), ["XLocalNetworkGatewayCannotBeDeleted"]);
    w.delete(&net("connections/c")).unwrap();
    assert!(w.delete(&site("loc")).unwrap());
}

#[test]
fn g9_connections_to_sites_need_a_vpn_gateway() {
    let mut w = World::new();
    w.vnet("hub", &["10.1.0.0/16"]).unwrap();
    w.express_gateway("hub", "10.1.255.0/27").unwrap();
    w.site("loc", &["10.7.0.0/16"], json!({})).unwrap();
    let gateway = json!({"virtualNetworkGateway1": {"id": net("virtualNetworkGateways/hub-er")}});
    assert_eq!(
        codes(w.connect_site("c", "hub", "loc", gateway)),
        ["XGatewayTypeMismatch"]
    );
    w.gateway("hub", "10.1.255.0/27").unwrap();
    let far = json!({"virtualNetworkGateway2": {"id": net("virtualNetworkGateways/hub-er")}});
    let body = connection_body("hub", "x", far);
    assert_eq!(codes(w.put(&net("connections/c"), body)), ["XGatewayTypeMismatch"]);
}

#[test]
fn g3_policy_based_gateways_have_one_site_and_no_bgp() {
    let mut w = World::new();
    w.vnet("old", &["10.1.0.0/16"]).unwrap();
    w.subnet("old", "GatewaySubnet", "10.1.255.0/27").unwrap();
    let body = gateway_body("old", json!({"vpnType": "PolicyBased"}));
    w.put(&net("virtualNetworkGateways/old-gw"), body).unwrap();
    w.site("a", &["10.7.0.0/16"], bgp(65021, "10.7.0.1")).unwrap();
    w.site("b", &["10.8.0.0/16"], json!({})).unwrap();
    let with_bgp = json!({"enableBgp": true});
    assert_eq!(
        codes(w.connect_site("a", "old", "a", with_bgp)),
        ["XRouteBasedRequired"]
    );
    w.connect_site("a", "old", "a", json!({})).unwrap();
    assert_eq!(
        codes(w.connect_site("b", "old", "b", json!({}))),
        ["XRouteBasedRequired"]
    );
}

#[test]
fn g4_bgp_needs_the_sites_settings_as_long_as_it_is_used() {
    let mut w = world();
    w.site("loc", &["10.7.0.0/16"], json!({})).unwrap();
    let with_bgp = || json!({"enableBgp": true});
    assert_eq!(
        codes(w.connect_site("c", "hub", "loc", with_bgp())),
        ["XBgpSettingsRequired"]
    );
    w.site("loc", &["10.7.0.0/16"], bgp(65021, "10.7.0.1")).unwrap();
    w.connect_site("c", "hub", "loc", with_bgp()).unwrap();
    assert_eq!(
        codes(w.site("loc", &["10.7.0.0/16"], json!({}))),
        ["XBgpSettingsRequired"]
    );
    w.connect_site("c", "hub", "loc", json!({})).unwrap();
    w.site("loc", &["10.7.0.0/16"], json!({})).unwrap();
}

#[test]
fn g7_g16_a_sites_prefixes_overlap_nothing() {
    let mut w = world();
    let overlap = ["XLocalNetworkOverlap"];
    // A site cannot be connected to a gateway if its prefix overlaps the gateway's VNet, a peer of that VNet, or a VNet
    // that VPN joins with it.
    for prefix in ["10.1.7.0/24", "10.2.7.0/24", "10.3.7.0/24", "10.0.0.0/14"] {
        w.site("bad", &[prefix], json!({})).unwrap();
        let refused = w.connect_site("bad", "hub", "bad", json!({})).unwrap_err();
        assert!(refused.problems.iter().all(|p| p.code == overlap[0]), "{prefix}");
        assert!(
            refused.problems[0].message.contains("localNetworkGateways/bad"),
            "{}",
            refused.problems[0].message
        );
    }
    // A site cannot be connected either if the address of its BGP peer is in one of these networks.
    w.site("bad", &[], bgp(65021, "10.1.0.9")).unwrap();
    assert_eq!(codes(w.connect_site("bad", "hub", "bad", json!({}))), overlap);
    // A site cannot be connected either if its prefix overlaps another site of the same gateway, or a site of a gateway
    // that VPN joins with this one (G16).
    w.site("loc", &["10.7.0.0/16"], json!({})).unwrap();
    w.connect_site("loc", "hub", "loc", json!({})).unwrap();
    w.site("twin", &["10.7.9.0/24"], json!({})).unwrap();
    assert_eq!(codes(w.connect_site("twin", "hub", "twin", json!({}))), overlap);
    assert_eq!(codes(w.connect_site("twin", "branch", "twin", json!({}))), overlap);
    // A change of a connected site's prefixes is refused if they would overlap such a network.
    assert_eq!(codes(w.site("loc", &["10.3.0.0/16"], json!({}))), overlap);
    w.site("loc", &["10.9.0.0/16"], json!({})).unwrap();
    // A change of a VNet's address space is refused if it would overlap the site. The VNet can be the gateway's own, a
    // peer of it, or one that VPN joins with it.
    for (vnet, own) in [
        ("hub", "10.1.0.0/16"),
        ("spoke", "10.2.0.0/16"),
        ("branch", "10.3.0.0/16"),
    ] {
        assert_eq!(codes(w.vnet(vnet, &[own, "10.9.8.0/24"])), overlap, "{vnet}");
        w.vnet(vnet, &[own, &format!("10.{}.8.0/24", 20 + own.len() + vnet.len())])
            .unwrap();
    }
}

/// G16: if VPN joins the networks of two gateways, their sites must not overlap, whichever site or connection was
/// created first.
#[test]
fn g16_sites_of_joined_gateways_are_disjoint() {
    let mut w = world();
    w.vnet("far", &["10.4.0.0/16"]).unwrap();
    w.gateway("far", "10.4.255.0/27").unwrap();
    w.site("loc", &["10.7.0.0/16"], json!({})).unwrap();
    w.connect_site("loc", "hub", "loc", json!({})).unwrap();
    w.site("twin", &["10.7.9.0/24", "10.8.0.0/16"], json!({})).unwrap();
    let overlap = ["XLocalNetworkOverlap"];
    let refused = w.connect_site("twin", "branch", "twin", json!({})).unwrap_err();
    let message = &refused.problems[0].message;
    for part in [
        "localNetworkGateways/loc",
        "localNetworkGateways/twin",
        "10.7.9.0/24, 10.7.0.0/16",
        "G16",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    // A gateway that VPN does not join with the hub can have a site that overlaps the hub's. While the two sites
    // overlap, no connection can be created that would join their gateways, even if only over a third gateway.
    w.connect_site("twin", "far", "twin", json!({})).unwrap();
    assert_eq!(codes(w.connect("far-branch", "far", "branch")), overlap);
    w.site("twin", &["10.8.0.0/16"], json!({})).unwrap();
    w.connect("far-branch", "far", "branch").unwrap();
    assert_eq!(codes(w.site("twin", &["10.7.9.0/24"], json!({}))), overlap);
    assert_eq!(codes(w.site("twin", &["10.8.0.0/16"], bgp(65021, "10.7.9.1"))), overlap);
    // A site can be connected to two gateways that VPN joins: it counts as one network and does not overlap itself.
    w.connect_site("loc-branch", "branch", "loc", json!({})).unwrap();
}

#[test]
fn g7_g16_networks_that_come_later_overlap_no_site() {
    let mut w = world();
    w.site("loc", &["10.7.0.0/16"], json!({})).unwrap();
    w.connect_site("loc", "hub", "loc", json!({})).unwrap();
    w.vnet("late", &["10.7.1.0/24"]).unwrap();
    let overlap = ["XLocalNetworkOverlap"];
    assert_eq!(codes(w.peer("hub", "late", json!({}))), overlap);
    // A VNet that overlaps the hub's site can be peered with the branch, but it cannot use the branch's gateway.
    w.peer("branch", "late", json!({"allowGatewayTransit": true})).unwrap();
    w.peer("late", "branch", json!({})).unwrap();
    assert_eq!(
        codes(w.peer("late", "branch", json!({"useRemoteGateways": true}))),
        overlap
    );
    // While a VNet that overlaps the hub's site uses the branch's gateway, no connection between the hub and the branch
    // can be created.
    w.delete(&net("connections/there")).unwrap();
    w.delete(&net("connections/back")).unwrap();
    w.peer("late", "branch", json!({"useRemoteGateways": true})).unwrap();
    assert_eq!(codes(w.connect("there", "hub", "branch")), overlap);
}

#[test]
fn g13_sites_of_one_gateway_are_told_apart() {
    let mut w = world();
    let full = |k: u8, address: &str, peer: &str| {
        json!({
            "gatewayIpAddress": address, "wireGuardPublicKey": key(k),
            "bgpSettings": {"asn": 65021, "bgpPeeringAddress": peer},
        })
    };
    w.site("a", &[], full(1, "192.0.2.1", "10.7.0.1")).unwrap();
    w.connect_site("a", "hub", "a", json!({})).unwrap();
    assert_eq!(
        codes(w.connect_site("again", "hub", "a", json!({}))),
        ["XRedundantTunnelNotAllowed"]
    );
    for (more, code) in [
        (full(1, "192.0.2.2", "10.7.0.2"), "XKeyInUse"),
        (full(2, "192.0.2.1", "10.7.0.2"), "XRedundantTunnelNotAllowed"),
        (full(2, "192.0.2.2", "10.7.0.1"), "XRedundantTunnelNotAllowed"),
    ] {
        w.site("b", &[], more.clone()).unwrap();
        let refused = codes(w.connect_site("b", "hub", "b", json!({})));
        assert_eq!(refused[0], code, "{more}");
    }
    w.site("b", &[], full(2, "192.0.2.2", "10.7.0.2")).unwrap();
    w.connect_site("b", "hub", "b", json!({})).unwrap();
    assert_eq!(codes(w.site("b", &[], full(1, "192.0.2.2", "10.7.0.2"))), ["XKeyInUse"]);
    // A site can be connected to two gateways.
    w.connect_site("a-branch", "branch", "a", json!({})).unwrap();
}

#[test]
fn x8_sites_count_as_tunnels() {
    let mut w = world();
    let two = Settings {
        tunnels_per_gateway: 2,
        ..Settings::default()
    };
    w.apply(&Change::SetSettings(two)).unwrap();
    w.site("a", &["10.7.0.0/16"], json!({})).unwrap();
    w.site("b", &["10.8.0.0/16"], json!({})).unwrap();
    w.connect_site("a", "hub", "a", json!({})).unwrap();
    assert_eq!(
        codes(w.connect_site("b", "hub", "b", json!({}))),
        ["XTunnelLimitReached"]
    );
}

#[test]
fn g11_g12_m8_status_of_a_site() {
    let mut w = world();
    w.site("loc", &["10.7.0.0/16"], json!({})).unwrap();
    let body = w.connect_site("loc", "hub", "loc", json!({})).unwrap();
    assert_eq!(body["properties"]["connectionStatus"], "Unknown");
    let binding = Binding::Gateway {
        gateway: ResourceId::new(net("virtualNetworkGateways/hub-gw")),
        ip_configuration: "default".to_owned(),
    };
    w.join("hub-agent", binding).unwrap();
    let hub = AgentId::new("hub-agent").unwrap();
    let connection = net("connections/loc");
    let mut statuses = AgentStatuses::default();
    statuses.connected.insert(hub.clone());
    statuses.agents.insert(hub.clone(), AgentStatus::default());
    let seen = |w: &World, statuses: &AgentStatuses| {
        let body = w
            .now
            .view(&ArmPath::parse(&net("connections/loc")).unwrap(), statuses)
            .unwrap();
        let tunnel = &body["properties"]["tunnelConnectionStatus"][0];
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        (
            text(&body["properties"]["connectionStatus"]),
            text(&tunnel["reason"]),
            text(&tunnel["tunnel"]),
        )
    };
    let expect = |w: &World, statuses: &AgentStatuses, reason: &str| {
        let (status, why, _) = seen(w, statuses);
        assert_eq!(status, "NotConnected");
        assert!(why.contains(reason), "{why}");
    };
    expect(&w, &statuses, "no shared key is set (G11)");
    let set = Change::SetSharedKey {
        connection: ResourceId::new(&*connection),
        value: "abc".to_owned(),
        if_match: None,
    };
    w.apply(&set).unwrap();
    expect(&w, &statuses, "no wireGuardPublicKey");
    w.site("loc", &["10.7.0.0/16"], json!({"wireGuardPublicKey": key(7)}))
        .unwrap();
    assert_eq!(seen(&w, &statuses).0, "Unknown", "not reported yet");
    for (state, status, reason) in [
        (LinkState::Connecting, "Connecting", ""),
        (
            LinkState::Unreachable,
            "NotConnected",
            "PeerReachability: the site's device does not answer",
        ),
        (
            LinkState::NoEndpoint,
            "NotConnected",
            "PeerReachability: the endpoint of the site's device is unknown",
        ),
        (LinkState::Up, "Connected", ""),
    ] {
        let link = LinkStatus {
            state,
            ..LinkStatus::new(AgentId::of_site(&ResourceId::new(&*connection)))
        };
        statuses.agents.get_mut(&hub).unwrap().links = vec![link];
        let expected = (status.to_owned(), reason.to_owned(), "hub-agent-loc".to_owned());
        assert_eq!(seen(&w, &statuses), expected, "{state:?}");
    }
    // If both ends of the connection have the same ASN, its tunnel is up, and the tunnel's status says why no routes
    // come.
    let equal = gateway_body("hub", json!({"bgpSettings": {"asn": 65021}}));
    w.put(&net("virtualNetworkGateways/hub-gw"), equal).unwrap();
    let more = json!({"wireGuardPublicKey": key(7), "bgpSettings": {"asn": 65021, "bgpPeeringAddress": "10.7.0.1"}});
    w.site("loc", &["10.7.0.0/16"], more).unwrap();
    w.connect_site("loc", "hub", "loc", json!({"enableBgp": true})).unwrap();
    let (status, why, _) = seen(&w, &statuses);
    assert_eq!(status, "Connected");
    assert!(why.contains("both ends have ASN 65021"), "{why}");
}

#[test]
fn d16_nobody_has_a_devices_key() {
    let mut w = world();
    let binding = || Binding::Gateway {
        gateway: ResourceId::new(net("virtualNetworkGateways/hub-gw")),
        ip_configuration: "default".to_owned(),
    };
    let own = super::agent_of("hub-agent", binding()).public_key.to_string();
    w.site("loc", &[], json!({"wireGuardPublicKey": own})).unwrap();
    assert_eq!(codes(w.join("hub-agent", binding())), ["XKeyInUse"]);
    w.delete(&site("loc")).unwrap();
    w.apply(&Change::DeleteToken("token-of-hub-agent".to_owned())).unwrap();
    w.join("hub-agent", binding()).unwrap();
    assert_eq!(
        codes(w.site("loc", &[], json!({"wireGuardPublicKey": own}))),
        ["XKeyInUse"]
    );
}

#[test]
fn d14_d16_what_a_device_is_told() {
    let mut w = world();
    let id = ResourceId::new(net("connections/loc"));
    let code = |w: &World, id: &ResourceId| {
        let refused = crate::device::config(&w.now, id).unwrap_err();
        (refused.status, refused.problems[0].code)
    };
    assert_eq!(code(&w, &id), (404, "ResourceNotFound"));
    assert_eq!(code(&w, &ResourceId::new("x")), (404, "ResourceNotFound"));
    let there = ResourceId::new(net("connections/there"));
    assert_eq!(code(&w, &there), (400, "XNoDevice"));
    w.site("loc", &["10.7.0.0/16"], bgp(65021, "10.7.0.1")).unwrap();
    w.connect_site("loc", "hub", "loc", json!({})).unwrap();
    assert_eq!(code(&w, &id), (400, "XSharedKeyRequired"));
    w.connect_site("loc", "hub", "loc", json!({"sharedKey": "abc"}))
        .unwrap();
    let told = crate::device::config(&w.now, &id).unwrap();
    assert!(told.bgp.is_none() && told.instances.is_empty());
    assert_eq!(told.prefixes, ["10.1.0.0/16".parse().unwrap()]);
    // P21: if a spoke uses the gateway, the device's configuration has the spoke's prefixes too.
    w.peer("hub", "spoke", json!({"allowGatewayTransit": true})).unwrap();
    w.peer("spoke", "hub", json!({"useRemoteGateways": true})).unwrap();
    let binding = Binding::Gateway {
        gateway: ResourceId::new(net("virtualNetworkGateways/hub-gw")),
        ip_configuration: "default".to_owned(),
    };
    w.join("hub-agent", binding).unwrap();
    w.connect_site("loc", "hub", "loc", json!({"enableBgp": true})).unwrap();
    let told = crate::device::config(&w.now, &id).unwrap();
    assert_eq!(told.prefixes.len(), 2);
    assert_eq!(told.instances[0].endpoint, Some("192.0.2.1:4500".parse().unwrap()));
    let session = told.bgp.unwrap();
    assert_eq!((session.asn, session.gateway_asn), (65021, 65515));
    assert_eq!(
        session.gateway_address,
        "10.1.255.30".parse::<std::net::IpAddr>().unwrap()
    );
    // D14: the preshared key depends on the ids of both ends, but not on the casing of these ids. So connections with
    // different ends have different preshared keys.
    let connection = &w.now.connections[&id];
    assert_eq!(connection.preshared_key(), Some(told.preshared_key));
    let mut upper = (**connection).clone();
    upper.gateway1 = ResourceId::new(upper.gateway1.as_str().to_ascii_uppercase());
    assert_eq!(upper.preshared_key(), Some(told.preshared_key));
    assert_ne!(w.now.connections[&there].preshared_key(), Some(told.preshared_key));
    let shown = serde_json::to_value(&told).unwrap();
    assert_eq!(shown["port"], 51820);
    assert_eq!(shown["presharedKey"].as_str().unwrap().len(), 44);
}
