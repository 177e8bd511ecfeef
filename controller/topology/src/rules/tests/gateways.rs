//! The rules of gateways and connections: G1 to G4, G6, G9 to G14, G16, X7, X8, R16.

use super::{SUBSCRIPTION, World, codes, connection_body, gateway_body, net};
use crate::change::Change;
use crate::path::ArmPath;
use crate::resource::{Binding, Settings};
use crate::topology::AgentStatuses;
use serde_json::{Value, json};
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::status::{AgentStatus, LinkState, LinkStatus};

fn gw(vnet: &str) -> String {
    net(&format!("virtualNetworkGateways/{vnet}-gw"))
}

fn world() -> World {
    let mut w = World::new();
    w.vnet("hub", &["10.1.0.0/16"]).unwrap();
    w.vnet("branch", &["10.2.0.0/16"]).unwrap();
    w
}

fn joined() -> World {
    let mut w = world();
    w.gateway("hub", "10.1.255.0/27").unwrap();
    w.gateway("branch", "10.2.255.0/27").unwrap();
    w
}

#[test]
fn g4_defaults() {
    let mut w = world();
    let body = w.gateway("hub", "10.1.255.0/27").unwrap();
    let p = &body["properties"];
    assert_eq!(
        (&p["gatewayType"], &p["vpnType"]),
        (&json!("Vpn"), &json!("RouteBased"))
    );
    assert_eq!(
        p["bgpSettings"],
        json!({
            "asn": 65515,
            "bgpPeeringAddress": "10.1.255.30",
            "bgpPeeringAddresses": [{
                "ipconfigurationId": format!("{}/ipConfigurations/default", gw("hub")),
                "defaultBgpIpAddresses": ["10.1.255.30"],
                "customBgpIpAddresses": [],
                "tunnelIpAddresses": [],
            }],
            "peerWeight": 0,
        })
    );
    assert_eq!(p["ipConfigurations"][0]["properties"]["privateIPAddress"], "10.1.255.4");
    assert_eq!(
        w.put(&gw("hub"), body.clone()).unwrap(),
        body,
        "writing back changes nothing"
    );
    let users = &w.get(&net("virtualNetworks/hub/subnets/GatewaySubnet"))["properties"]["ipConfigurations"];
    assert_eq!(users[0]["id"], format!("{}/ipConfigurations/default", gw("hub")));
}

/// G14: a connection may join VNets of two regions, resource groups and subscriptions.
#[test]
fn g14_a_connection_joins_regions_and_subscriptions() {
    let mut w = World::new();
    w.vnet("hub", &["10.1.0.0/16"]).unwrap();
    w.gateway("hub", "10.1.255.0/27").unwrap();
    // The branch is in another region, group and subscription.
    let there = |text: &str| {
        let text = text.replace(SUBSCRIPTION, "00000000-0000-0000-0000-000000000002");
        text.replace("/lab/", "/other/").replace("region1", "region2")
    };
    let group = "/subscriptions/00000000-0000-0000-0000-000000000002/resourceGroups/other";
    let vnet = json!({"location": "region2", "properties": {
        "addressSpace": {"addressPrefixes": ["10.2.0.0/16"]},
        "subnets": [{"name": "GatewaySubnet", "properties": {"addressPrefix": "10.2.255.0/27"}}],
    }});
    let gateway: Value = serde_json::from_str(&there(&gateway_body("branch", json!({})).to_string())).unwrap();
    w.put(group, json!({"location": "region2"})).unwrap();
    w.put(&there(&net("virtualNetworks/branch")), vnet).unwrap();
    w.put(&there(&gw("branch")), gateway).unwrap();

    let ends = |near: &str, far: &str, location: &str| {
        json!({"location": location, "properties": {
            "connectionType": "Vnet2Vnet", "sharedKey": "abc",
            "virtualNetworkGateway1": {"id": near}, "virtualNetworkGateway2": {"id": far},
        }})
    };
    let (hub, branch) = (gw("hub"), there(&gw("branch")));
    let body = w.put(&net("connections/out"), ends(&hub, &branch, "region1")).unwrap();
    assert_eq!(body["properties"]["virtualNetworkGateway2"]["id"], branch);
    w.put(&there(&net("connections/back")), ends(&branch, &hub, "region2"))
        .unwrap();
}

#[test]
fn g4_reserved_asns_and_peering_addresses() {
    let mut w = world();
    w.subnet("hub", "GatewaySubnet", "10.1.255.0/27").unwrap();
    let with = |bgp: Value| gateway_body("hub", json!({"bgpSettings": bgp}));
    for asn in [8074, 12076, 23456, 64496, 65517, 65520, 65535, 65551] {
        assert_eq!(
            codes(w.put(&gw("hub"), with(json!({"asn": asn})))),
            ["XReservedAsn"],
            "{asn}"
        );
    }
    for asn in [json!(0), json!("65516"), json!(4_294_967_296_u64), json!(1.5)] {
        assert_eq!(
            codes(w.put(&gw("hub"), with(json!({"asn": asn})))),
            ["InvalidRequestFormat"],
            "{asn}"
        );
    }
    let outside = with(json!({"bgpPeeringAddress": "10.1.0.4"}));
    assert_eq!(codes(w.put(&gw("hub"), outside)), ["PrivateIPAddressNotInSubnet"]);
    let apipa = with(json!({"asn": 65516, "bgpPeeringAddress": "169.254.21.5"}));
    assert_eq!(
        w.put(&gw("hub"), apipa).unwrap()["properties"]["bgpSettings"]["asn"],
        65516
    );
}

/// G4: the BGP address of a gateway can be the first instance's address or a free address, but not the second
/// instance's: that instance speaks BGP from its own address.
#[test]
fn g4_the_bgp_address_is_no_other_instances() {
    let mut w = world();
    w.subnet("hub", "GatewaySubnet", "10.1.255.0/28").unwrap();
    let subnet = json!({"id": net("virtualNetworks/hub/subnets/GatewaySubnet")});
    let with = |addresses: &[Option<&str>], bgp: Value| {
        let configs = addresses.iter().enumerate().map(|(i, address)| {
            let method = if address.is_some() { "Static" } else { "Dynamic" };
            let properties = json!({
                "subnet": subnet, "privateIPAddress": address, "privateIPAllocationMethod": method,
            });
            json!({"name": format!("i{i}"), "properties": properties})
        });
        let configs: Vec<Value> = configs.collect();
        let more = json!({"activeActive": configs.len() > 1, "ipConfigurations": configs, "bgpSettings": bgp});
        gateway_body("hub", more)
    };
    let bgp = |address: &str| json!({"bgpPeeringAddress": address});
    let two = [Some("10.1.255.4"), Some("10.1.255.5")];
    let refused = w.put(&gw("hub"), with(&two, bgp("10.1.255.5"))).unwrap_err();
    let problem = &refused.problems[0];
    assert_eq!(problem.code, "PrivateIPAddressInUse");
    assert_eq!(
        problem.target.as_deref(),
        Some("properties.bgpSettings.bgpPeeringAddress")
    );
    for part in ["10.1.255.5", "another instance", "G4", "10.1.255.0/28"] {
        assert!(problem.message.contains(part), "{part}: {}", problem.message);
    }
    assert!(w.view(&gw("hub")).is_none(), "nothing has changed");
    w.put(&gw("hub"), with(&two, bgp("10.1.255.4"))).unwrap();
    // After the first instance is removed, the second one is the first, so its address may be the BGP address.
    let one = [Some("10.1.255.5")];
    assert!(w.put(&gw("hub"), with(&one, bgp("10.1.255.5"))).is_ok());
    w.delete(&gw("hub")).unwrap();
    // An instance for which the body requests no address does not get the gateway's BGP address. This holds when the
    // gateway is created and when it is changed, with a BGP address from the body and with the default one.
    let body = w.put(&gw("hub"), with(&[None], bgp("10.1.255.5"))).unwrap();
    let address =
        |body: &Value, n: usize| body["properties"]["ipConfigurations"][n]["properties"]["privateIPAddress"].clone();
    assert_eq!(address(&body, 0), "10.1.255.4");
    let body = w.put(&gw("hub"), with(&[None, None], json!({"asn": 65515}))).unwrap();
    assert_eq!(
        (address(&body, 0), address(&body, 1)),
        (json!("10.1.255.4"), json!("10.1.255.6"))
    );
    assert_eq!(body["properties"]["bgpSettings"]["bgpPeeringAddress"], "10.1.255.5");
    // The body cannot request the same address for the second instance and as BGP address. If it requests the present
    // BGP address for the second instance and has no BGP address, the instance gets this address, and the gateway gets
    // another BGP address.
    let onto = [Some("10.1.255.4"), Some("10.1.255.5")];
    assert_eq!(
        codes(w.put(&gw("hub"), with(&onto, bgp("10.1.255.5")))),
        ["PrivateIPAddressInUse"]
    );
    let body = w.put(&gw("hub"), with(&onto, json!({}))).unwrap();
    assert_eq!(body["properties"]["bgpSettings"]["bgpPeeringAddress"], "10.1.255.14");
}

#[test]
fn g1_only_in_its_own_subnet() {
    let mut w = world();
    w.subnet("hub", "s", "10.1.0.0/24").unwrap();
    let mut body = gateway_body("hub", json!({}));
    body["properties"]["ipConfigurations"][0]["properties"]["subnet"]["id"] =
        net("virtualNetworks/hub/subnets/s").into();
    assert_eq!(codes(w.put(&gw("hub"), body)), ["XGatewaySubnetRequired"]);
    assert_eq!(
        codes(w.put(&gw("hub"), gateway_body("hub", json!({})))),
        ["InvalidResourceReference"]
    );
    w.gateway("hub", "10.1.255.0/29").unwrap();
    assert_eq!(
        codes(w.delete(&net("virtualNetworks/hub/subnets/GatewaySubnet"))),
        ["InUseSubnetCannotBeDeleted"]
    );
    assert_eq!(
        codes(w.subnet("hub", "GatewaySubnet", "10.1.254.0/27")),
        ["InUsePrefixCannotBeDeleted"]
    );
}

#[test]
fn g2_one_vpn_gateway_a_vnet() {
    let mut w = joined();
    assert_eq!(
        codes(w.put(&net("virtualNetworkGateways/second"), gateway_body("hub", json!({})))),
        ["XGatewayLimitReached"]
    );
    let elsewhere = gateway_body("branch", json!({}));
    assert_eq!(
        codes(w.put(&gw("hub"), elsewhere)),
        ["XGatewaySubnetImmutable", "XGatewayLimitReached"]
    );
}

#[test]
fn g3_types() {
    let mut w = joined();
    w.vnet("old", &["10.3.0.0/16"]).unwrap();
    w.subnet("old", "GatewaySubnet", "10.3.255.0/27").unwrap();
    w.put(&gw("old"), gateway_body("old", json!({"vpnType": "policybased"})))
        .unwrap();
    assert_eq!(
        codes(w.put(&gw("old"), gateway_body("old", json!({})))),
        ["XVpnTypeImmutable"]
    );
    assert_eq!(codes(w.connect("c", "hub", "old")), ["XRouteBasedRequired"]);
    w.vnet("x", &["10.4.0.0/16"]).unwrap();
    w.subnet("x", "GatewaySubnet", "10.4.255.0/27").unwrap();
    let other = gateway_body("x", json!({"gatewayType": "LocalGateway"}));
    assert_eq!(codes(w.put(&gw("x"), other)), ["XGatewayTypeNotSupported"]);
}

#[test]
fn g6_active_active_has_two_instances() {
    let mut w = world();
    w.subnet("hub", "GatewaySubnet", "10.1.255.0/27").unwrap();
    let subnet = json!({"id": net("virtualNetworks/hub/subnets/GatewaySubnet")});
    let configs = |n: usize| -> Value {
        (0..n)
            .map(|i| json!({"name": format!("i{i}"), "properties": {"subnet": subnet}}))
            .collect()
    };
    let with = |n| gateway_body("hub", json!({"activeActive": true, "ipConfigurations": configs(n)}));
    assert_eq!(
        codes(w.put(&gw("hub"), with(1))),
        ["XActiveActiveNeedsTwoIpConfigurations"]
    );
    assert_eq!(codes(w.put(&gw("hub"), with(3))), ["XTooManyItems"]);
    let body = w.put(&gw("hub"), with(2)).unwrap();
    let address = |i: usize| &body["properties"]["ipConfigurations"][i]["properties"]["privateIPAddress"];
    assert_eq!((address(0), address(1)), (&json!("10.1.255.4"), &json!("10.1.255.5")));
}

#[test]
fn g9_connection_types_and_references() {
    let mut w = joined();
    let id = net("connections/c");
    let client = connection_body("hub", "branch", json!({"connectionType": "VPNClient"}));
    assert_eq!(codes(w.put(&id, client)), ["XConnectionTypeNotSupported"]);
    // Each type has its own property for the far end.
    for kind in ["IPsec", "IPSec", "ExpressRoute"] {
        let body = connection_body("hub", "branch", json!({"connectionType": kind}));
        assert_eq!(codes(w.put(&id, body)), ["InvalidRequestFormat"], "{kind}");
    }
    assert_eq!(codes(w.connect("c", "hub", "nowhere")), ["InvalidResourceReference"]);
    assert_eq!(codes(w.connect("c", "hub", "hub")), ["XConnectionToItself"]);
    let body = w.connect("c", "hub", "branch").unwrap();
    assert_eq!(body["properties"]["connectionType"], "Vnet2Vnet");
    assert_eq!(
        body["properties"]["virtualNetworkGateway2"],
        json!({"id": gw("branch")})
    );
    w.vnet("x", &["10.9.0.0/16"]).unwrap();
    w.gateway("x", "10.9.255.0/27").unwrap();
    assert_eq!(codes(w.connect("c", "hub", "x")), ["XConnectionGatewaysImmutable"]);
    w.site("loc", &["10.7.0.0/16"], json!({})).unwrap();
    assert_eq!(
        codes(w.connect_site("c", "hub", "loc", json!({}))),
        ["XConnectionTypeImmutable"]
    );
}

/// G4: a connection between gateways with equal ASNs is accepted, as in Azure, although its BGP session never comes up.
/// The connection is `Connected`, because its tunnel is up, and the tunnel's status names the reason why no routes
/// come.
#[test]
fn g4_equal_asns_are_taken_and_exchange_no_routes() {
    let mut w = joined();
    let body = |from, to| connection_body(from, to, json!({"sharedKey": "abc", "enableBgp": true}));
    w.put(&net("connections/there"), body("hub", "branch")).unwrap();
    w.put(&net("connections/back"), body("branch", "hub")).unwrap();
    for vnet in ["hub", "branch"] {
        let binding = Binding::Gateway {
            gateway: ResourceId::new(gw(vnet)),
            ip_configuration: "default".to_owned(),
        };
        w.join(&format!("{vnet}-agent"), binding).unwrap();
    }
    let hub = AgentId::new("hub-agent").unwrap();
    let mut statuses = AgentStatuses::default();
    statuses.connected.insert(hub.clone());
    let up = LinkStatus {
        state: LinkState::Up,
        ..LinkStatus::new(AgentId::new("branch-agent").unwrap())
    };
    let status = AgentStatus {
        links: vec![up],
        ..AgentStatus::default()
    };
    statuses.agents.insert(hub, status);
    let path = ArmPath::parse(&net("connections/there")).unwrap();
    let seen = |w: &World| w.now.view(&path, &statuses).unwrap()["properties"].clone();
    assert_eq!(seen(&w)["connectionStatus"], "Connected");
    let reason = seen(&w)["tunnelConnectionStatus"][0]["reason"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(reason.contains("65515") && reason.contains("G4"), "{reason}");
    w.put(
        &gw("branch"),
        gateway_body("branch", json!({"bgpSettings": {"asn": 65516}})),
    )
    .unwrap();
    assert_eq!(seen(&w)["connectionStatus"], "Connected");
    assert!(seen(&w)["tunnelConnectionStatus"][0].get("reason").is_none());
}

#[test]
fn g11_shared_key_is_checked_kept_and_never_shown() {
    let mut w = joined();
    let id = net("connections/c");
    let put = |w: &mut World, key: &str| w.put(&id, connection_body("hub", "branch", json!({"sharedKey": key})));
    for bad in ["", "a b", "a-b", "a~b", "ä", &"x".repeat(129)] {
        let refused = put(&mut w, bad).unwrap_err();
        assert_eq!(refused.problems[0].code, "XInvalidSharedKey", "{bad}");
        assert!(
            bad.is_empty() || !refused.problems[0].message.contains(bad),
            "the key is not repeated"
        );
    }
    let body = put(&mut w, &"k".repeat(128)).unwrap();
    assert!(!body.to_string().contains("kkkk"));
    let key = |w: &World| {
        w.now.connections[&ResourceId::new(net("connections/c"))]
            .shared_key
            .clone()
    };
    w.put(&id, body).unwrap();
    assert_eq!(key(&w), Some("k".repeat(128)), "writing back what was read keeps it");
    let set = |value: &str| Change::SetSharedKey {
        if_match: None,
        connection: ResourceId::new(net("connections/c")),
        value: value.to_owned(),
    };
    w.apply(&set("new")).unwrap();
    assert_eq!(key(&w).as_deref(), Some("new"));
    assert_eq!(codes(w.apply(&set("a b"))), ["XInvalidSharedKey"]);
    let outdated = Change::SetSharedKey {
        connection: ResourceId::new(&*id),
        value: "newer".to_owned(),
        if_match: Some(uuid::Uuid::nil().to_string()),
    };
    assert_eq!(w.apply(&outdated).unwrap_err().status, 412);
    w.delete(&id).unwrap();
    assert_eq!(w.apply(&set("new")).unwrap_err().status, 404);
}

#[test]
fn g13_no_second_tunnel_between_the_same_pair() {
    let mut w = joined();
    w.connect("there", "hub", "branch").unwrap();
    w.connect("back", "branch", "hub").unwrap();
    assert_eq!(
        codes(w.connect("again", "hub", "branch")),
        ["XRedundantTunnelNotAllowed"]
    );
    w.connect("there", "hub", "branch").unwrap();
}

#[test]
fn g16_networks_joined_by_vpn_are_disjoint_over_any_number_of_steps() {
    let mut w = joined();
    w.vnet("twin", &["10.1.0.0/17"]).unwrap();
    w.gateway("twin", "10.1.100.0/27").unwrap();
    assert_eq!(codes(w.connect("c", "hub", "twin")), ["XVpnNetworksOverlap"]);
    w.connect("hub-branch", "hub", "branch").unwrap();
    assert_eq!(codes(w.connect("c", "branch", "twin")), ["XVpnNetworksOverlap"]);
    // A change of a VNet's address space is refused if networks that VPN joins would overlap.
    w.vnet("far", &["10.3.0.0/16"]).unwrap();
    w.gateway("far", "10.3.255.0/27").unwrap();
    w.connect("branch-far", "branch", "far").unwrap();
    assert_eq!(
        codes(w.vnet("far", &["10.3.0.0/16", "10.1.7.0/24"])),
        ["XVpnNetworksOverlap"]
    );
    w.vnet("far", &["10.3.0.0/16", "10.4.0.0/24"]).unwrap();
}

/// G16, P21b: a gateway advertises the prefixes of the VNets that use it as its own. So VPN joins these VNets too, and
/// they must not overlap the other joined networks.
#[test]
fn g16_counts_the_vnets_that_use_a_gateway() {
    let mut w = joined();
    w.connect("there", "hub", "branch").unwrap();
    w.vnet("spoke", &["10.8.0.0/16"]).unwrap();
    w.vnet("twin", &["10.8.0.0/17"]).unwrap();
    let user = json!({"useRemoteGateways": true});
    let owner = json!({"allowGatewayTransit": true});
    w.peer("hub", "spoke", owner.clone()).unwrap();
    w.peer("spoke", "hub", user.clone()).unwrap();
    w.peer("branch", "twin", owner).unwrap();
    assert_eq!(codes(w.peer("twin", "branch", user.clone())), ["XVpnNetworksOverlap"]);
    w.peer("twin", "branch", json!({})).unwrap();
    assert_eq!(codes(w.peer("twin", "branch", user.clone())), ["XVpnNetworksOverlap"]);
    // If useRemoteGateways is set first, a later connection that would join overlapping VNets is refused.
    w.delete(&net("connections/there")).unwrap();
    w.peer("twin", "branch", user.clone()).unwrap();
    assert_eq!(codes(w.connect("there", "hub", "branch")), ["XVpnNetworksOverlap"]);
    // A change of an address space that would make VNets overlap that VPN joins is refused too.
    w.vnet("twin", &["10.9.0.0/16"]).unwrap();
    w.connect("there", "hub", "branch").unwrap();
    assert_eq!(codes(w.vnet("twin", &["10.8.7.0/24"])), ["XVpnNetworksOverlap"]);
    w.vnet("twin", &["10.10.0.0/16"]).unwrap();
    w.peer("spoke", "hub", user).unwrap();
}

#[test]
fn x8_tunnels_of_a_gateway() {
    let mut w = joined();
    let one = Settings {
        tunnels_per_gateway: 1,
        ..Settings::default()
    };
    w.apply(&Change::SetSettings(one)).unwrap();
    w.vnet("x", &["10.9.0.0/16"]).unwrap();
    w.gateway("x", "10.9.255.0/27").unwrap();
    w.connect("a", "hub", "branch").unwrap();
    assert_eq!(codes(w.connect("b", "hub", "x")), ["XTunnelLimitReached"]);
}

#[test]
fn r16_no_gateway_where_a_default_route_is() {
    let mut w = world();
    let route = json!({"name": "all", "properties": {"addressPrefix": "::/0", "nextHopType": "None"}});
    let body = json!({"location": "region1", "properties": {"routes": [route]}});
    w.put(&net("routeTables/t"), body).unwrap();
    let subnet = json!({"properties": {"addressPrefix": "10.1.255.0/27", "routeTable": {"id": net("routeTables/t")}}});
    assert_eq!(
        codes(w.put(&net("virtualNetworks/hub/subnets/GatewaySubnet"), subnet)),
        ["XGatewaySubnetRestriction"]
    );
}

#[test]
fn deletion_order() {
    let mut w = joined();
    w.connect("there", "hub", "branch").unwrap();
    assert_eq!(codes(w.delete(&gw("hub"))), ["VirtualNetworkGatewayCannotBeDeleted"]);
    assert_eq!(codes(w.delete(&gw("branch"))), ["VirtualNetworkGatewayCannotBeDeleted"]);
    w.delete(&net("connections/there")).unwrap();
    let binding = Binding::Gateway {
        gateway: ResourceId::new(gw("hub")),
        ip_configuration: "default".to_owned(),
    };
    w.join("hub-gw", binding).unwrap();
    assert_eq!(codes(w.delete(&gw("hub"))), ["XGatewayInUseByAgent"]);
    let renamed = gateway_body(
        "hub",
        json!({"ipConfigurations": [{"name": "other", "properties": {
        "subnet": {"id": net("virtualNetworks/hub/subnets/GatewaySubnet")}}}]}),
    );
    assert_eq!(codes(w.put(&gw("hub"), renamed)), ["XGatewayInUseByAgent"]);
    w.apply(&Change::DeleteAgent(AgentId::new("hub-gw").unwrap())).unwrap();
    assert!(w.delete(&gw("hub")).unwrap());
}

#[test]
fn g12_m8_status_follows_what_the_gateway_agents_report() {
    let mut w = joined();
    w.connect("there", "hub", "branch").unwrap();
    let path = ArmPath::parse(&net("connections/there")).unwrap();
    let mut statuses = AgentStatuses::default();
    let seen = |w: &World, statuses: &AgentStatuses| {
        let body = w.now.view(&path, statuses).unwrap();
        let p = &body["properties"];
        let reason = p["tunnelConnectionStatus"][0]["reason"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        (p["connectionStatus"].as_str().unwrap().to_owned(), reason)
    };
    assert_eq!(seen(&w, &statuses).0, "Unknown");
    for vnet in ["hub", "branch"] {
        let binding = Binding::Gateway {
            gateway: ResourceId::new(gw(vnet)),
            ip_configuration: "default".to_owned(),
        };
        w.join(&format!("{vnet}-agent"), binding).unwrap();
    }
    assert_eq!(seen(&w, &statuses).0, "Unknown", "never reported");
    let (hub, branch) = (
        AgentId::new("hub-agent").unwrap(),
        AgentId::new("branch-agent").unwrap(),
    );
    statuses.connected.insert(hub.clone());
    statuses.agents.insert(hub.clone(), AgentStatus::default());
    let (status, reason) = seen(&w, &statuses);
    assert_eq!(status, "NotConnected");
    assert!(reason.contains("no counterpart connection"), "{reason}");
    w.connect("back", "branch", "hub").unwrap();
    assert_eq!(seen(&w, &statuses).0, "Unknown");
    for (state, status, reason) in [
        (LinkState::Connecting, "Connecting", ""),
        (LinkState::AuthenticationFailed, "NotConnected", "Authentication: "),
        (LinkState::Unreachable, "NotConnected", "PeerReachability: "),
        (LinkState::NoEndpoint, "NotConnected", "PeerReachability: "),
        (LinkState::Up, "Connected", ""),
    ] {
        let link = LinkStatus {
            state,
            rx_bytes: 7,
            tx_bytes: 9,
            rx_packets: 1,
            tx_packets: 1,
            ..LinkStatus::new(branch.clone())
        };
        statuses.agents.get_mut(&hub).unwrap().links = vec![link];
        let now = seen(&w, &statuses);
        assert_eq!(now.0, status, "{state:?}");
        assert!(now.1.starts_with(reason), "{state:?}: {}", now.1);
    }
    let body = w.now.view(&path, &statuses).unwrap();
    assert_eq!(body["properties"]["ingressBytesTransferred"], 7);
    assert_eq!(body["properties"]["egressBytesTransferred"], 9);
    assert_eq!(
        body["properties"]["tunnelConnectionStatus"][0]["tunnel"],
        "hub-agent-branch-agent"
    );
    statuses.connected.clear();
    assert_eq!(seen(&w, &statuses).0, "Unknown", "nobody can say");
}
