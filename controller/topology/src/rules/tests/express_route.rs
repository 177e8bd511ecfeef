//! The rules of ExpressRoute gateways and their connections (G1 to G4, G9, G12, P20, T4, E1 to E3, X7, X12, X13).

use super::{World, codes, gateway_body, half, net, peering_properties};
use crate::change::Change;
use crate::path::ArmPath;
use crate::resource::Binding;
use crate::topology::{AgentStatuses, Topology};
use serde_json::{Value, json};
use tombolo_proto::config::CircuitLink;
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::status::{AgentStatus, LinkState, LinkStatus};

fn gw(name: &str) -> String {
    net(&format!("virtualNetworkGateways/{name}"))
}

fn circuit(name: &str) -> String {
    net(&format!("expressRouteCircuits/{name}"))
}

fn world() -> World {
    let mut w = World::new();
    w.vnet("hub", &["10.10.30.0/24"]).unwrap();
    w.circuit("er1", 30).unwrap();
    w.circuit("er2", 31).unwrap();
    w
}

#[test]
fn g4_an_express_route_gateway_has_an_asn_and_no_bgp_address() {
    let mut w = world();
    let body = w.express_gateway("hub", "10.10.30.128/25").unwrap();
    let p = &body["properties"];
    assert_eq!(p["gatewayType"], "ExpressRoute");
    assert_eq!(p["bgpSettings"], json!({"asn": 65515, "peerWeight": 0}));
    assert_eq!(
        p["ipConfigurations"][0]["properties"]["privateIPAddress"],
        "10.10.30.132"
    );
    assert_eq!(
        w.put(&gw("hub-er"), body.clone()).unwrap(),
        body,
        "writing back changes nothing"
    );
    // The BGP address that a stock client sends for an ExpressRoute gateway is ignored (D3). The address therefore
    // stays free, and the VPN gateway can get it.
    let more =
        json!({"gatewayType": "ExpressRoute", "bgpSettings": {"asn": 65515, "bgpPeeringAddress": "10.10.30.254"}});
    w.put(&gw("hub-er"), gateway_body("hub", more)).unwrap();
    let vpn = w.put(&gw("hub-vpn"), gateway_body("hub", json!({}))).unwrap();
    assert_eq!(vpn["properties"]["bgpSettings"]["bgpPeeringAddress"], "10.10.30.254");
    assert_eq!(
        vpn["properties"]["ipConfigurations"][0]["properties"]["privateIPAddress"],
        "10.10.30.133"
    );
}

#[test]
fn g4_the_bgp_address_of_a_vpn_gateway_is_free_and_its_own() {
    let mut w = world();
    w.express_gateway("hub", "10.10.30.128/25").unwrap();
    let with = |address: &str| gateway_body("hub", json!({"bgpSettings": {"bgpPeeringAddress": address}}));
    for (address, code) in [
        ("10.10.30.132", "PrivateIPAddressInUse"),
        ("10.10.30.131", "PrivateIPAddressInReservedRange"),
        ("10.10.30.255", "PrivateIPAddressInReservedRange"),
        ("10.10.30.4", "PrivateIPAddressNotInSubnet"),
    ] {
        assert_eq!(codes(w.put(&gw("hub-vpn"), with(address))), [code], "{address}");
    }
    let body = w.put(&gw("hub-vpn"), with("10.10.30.200")).unwrap();
    assert_eq!(body["properties"]["bgpSettings"]["bgpPeeringAddress"], "10.10.30.200");
    let users = w.subnet("hub", "GatewaySubnet", "10.10.30.128/26");
    assert_eq!(codes(users), ["InUsePrefixCannotBeDeleted"]);
}

#[test]
fn g2_x7_one_gateway_of_each_type() {
    let mut w = world();
    w.express_gateway("hub", "10.10.30.128/25").unwrap();
    w.gateway("hub", "10.10.30.128/25").unwrap();
    for kind in ["Vpn", "ExpressRoute"] {
        let third = gateway_body("hub", json!({"gatewayType": kind}));
        assert_eq!(codes(w.put(&gw("third"), third)), ["XGatewayLimitReached"], "{kind}");
    }
    let other = gateway_body("hub", json!({"gatewayType": "expressroute"}));
    assert_eq!(
        codes(w.put(&gw("hub-gw"), other)),
        ["XGatewayTypeImmutable", "XGatewayLimitReached"]
    );
}

#[test]
fn g1_two_types_need_a_27() {
    let mut w = world();
    w.express_gateway("hub", "10.10.30.128/28").unwrap();
    assert_eq!(
        codes(w.put(&gw("hub-gw"), gateway_body("hub", json!({})))),
        ["XGatewaySubnetTooSmall"]
    );
    w.delete(&gw("hub-er")).unwrap();
    w.gateway("hub", "10.10.30.128/28").unwrap();
    assert_eq!(
        codes(w.express_gateway("hub", "10.10.30.128/28")),
        ["XGatewaySubnetTooSmall"]
    );
    w.delete(&gw("hub-gw")).unwrap();
    w.gateway("hub", "10.10.30.128/27").unwrap();
    w.express_gateway("hub", "10.10.30.128/27").unwrap();
    // A later PUT of the subnet cannot make it too small for both gateways either. Two /28 prefixes are too small,
    // although together they have as many addresses as a /27.
    let id = net("virtualNetworks/hub/subnets/GatewaySubnet");
    let smaller = json!({"properties": {"addressPrefixes": ["10.10.30.128/28", "10.10.30.144/28"]}});
    let refused = codes(w.put(&id, smaller));
    assert!(refused.contains(&"XGatewaySubnetTooSmall"), "{refused:?}");
}

#[test]
fn g3_coexistence_is_route_based() {
    let mut w = world();
    w.subnet("hub", "GatewaySubnet", "10.10.30.128/25").unwrap();
    let policy = |kind: &str| gateway_body("hub", json!({"gatewayType": kind, "vpnType": "PolicyBased"}));
    assert_eq!(
        codes(w.put(&gw("hub-er"), policy("ExpressRoute"))),
        ["XRouteBasedRequired"]
    );
    w.put(&gw("hub-gw"), policy("Vpn")).unwrap();
    assert_eq!(
        codes(w.express_gateway("hub", "10.10.30.128/25")),
        ["XRouteBasedRequired"]
    );
    w.delete(&gw("hub-gw")).unwrap();
    w.express_gateway("hub", "10.10.30.128/25").unwrap();
    assert_eq!(codes(w.put(&gw("hub-gw"), policy("Vpn"))), ["XRouteBasedRequired"]);
}

#[test]
fn p20_an_express_route_gateway_is_a_gateway() {
    let mut w = world();
    w.vnet("spoke", &["10.11.30.0/26"]).unwrap();
    w.peer("hub", "spoke", json!({"allowGatewayTransit": true})).unwrap();
    let using = json!({"useRemoteGateways": true});
    assert_eq!(
        codes(w.peer("spoke", "hub", using.clone())),
        ["RemoteVnetHasNoGateways"]
    );
    w.express_gateway("hub", "10.10.30.128/25").unwrap();
    w.gateway("hub", "10.10.30.128/25").unwrap();
    w.peer("spoke", "hub", using.clone()).unwrap();
    let remote = &w.get(&half("spoke", "hub"))["properties"]["remoteGateways"];
    assert_eq!(*remote, json!([{"id": gw("hub-er")}, {"id": gw("hub-gw")}]));
    // While a VNet uses a remote gateway, no gateway can be created in it. While a VNet has a gateway, its peering
    // cannot get useRemoteGateways.
    assert_eq!(
        codes(w.express_gateway("spoke", "10.11.30.32/27")),
        ["XVnetUsesRemoteGateways"]
    );
    w.peer("spoke", "hub", json!({})).unwrap();
    w.express_gateway("spoke", "10.11.30.32/27").unwrap();
    assert_eq!(codes(w.peer("spoke", "hub", using)), ["XVnetHasOwnGateway"]);
}

#[test]
fn g9_e1_a_connection_to_a_circuit() {
    let mut w = world();
    w.express_gateway("hub", "10.10.30.128/25").unwrap();
    assert_eq!(
        codes(w.link("c", "hub", "nowhere", json!({}))),
        ["InvalidResourceReference"]
    );
    w.gateway("hub", "10.10.30.128/25").unwrap();
    let vpn = json!({"virtualNetworkGateway1": {"id": gw("hub-gw")}});
    assert_eq!(codes(w.link("c", "hub", "er1", vpn)), ["XGatewayTypeMismatch"]);
    w.put(&circuit("bare"), json!({"location": "region1"})).unwrap();
    assert_eq!(
        codes(w.link("c", "hub", "bare", json!({}))),
        ["XCircuitHasNoPrivatePeering"]
    );
    let keyed = w.link("c", "hub", "er1", json!({"sharedKey": "xy"}));
    assert_eq!(codes(keyed), ["XSharedKeyNotUsed"]);
    let body = w
        .link("c", "hub", "er1", json!({"sharedKey": null, "routingWeight": 3}))
        .unwrap();
    let p = &body["properties"];
    assert_eq!(p["connectionType"], "ExpressRoute");
    assert_eq!(p["peer"], json!({"id": circuit("er1")}));
    assert!(p.get("virtualNetworkGateway2").is_none() && p.get("localNetworkGateway2").is_none());
    assert_eq!(
        w.put(&net("connections/c"), body.clone()).unwrap(),
        body,
        "writing back changes nothing"
    );
    let key = Change::SetSharedKey {
        connection: ResourceId::new(net("connections/c")),
        value: "abc".to_owned(),
        if_match: None,
    };
    assert_eq!(codes(w.apply(&key)), ["XSharedKeyNotUsed"]);
    assert_eq!(
        codes(w.link("c", "hub", "er2", json!({}))),
        ["XConnectionGatewaysImmutable"]
    );
    assert_eq!(
        codes(w.link("again", "hub", "er1", json!({}))),
        ["XCircuitAlreadyConnected"]
    );
    assert_eq!(codes(w.delete(&gw("hub-er"))), ["VirtualNetworkGatewayCannotBeDeleted"]);
    assert_eq!(codes(w.delete(&circuit("er1"))), ["XCircuitCannotBeDeleted"]);
    let peering = format!("{}/peerings/AzurePrivatePeering", circuit("er1"));
    assert_eq!(codes(w.delete(&peering)), ["XCircuitPeeringCannotBeDeleted"]);
    let none = json!({"location": "region1", "properties": {"peerings": []}});
    assert_eq!(codes(w.put(&circuit("er1"), none)), ["XCircuitPeeringCannotBeDeleted"]);
    w.delete(&net("connections/c")).unwrap();
    assert!(w.delete(&peering).unwrap() && w.delete(&circuit("er1")).unwrap());
}

#[test]
fn t4_tunnels_have_two_addresses_of_the_gateway_subnet() {
    let mut w = world();
    w.express_gateway("hub", "10.10.30.128/25").unwrap();
    w.gateway("hub", "10.10.30.128/25").unwrap();
    let body = w.link("c1", "hub", "er1", json!({})).unwrap();
    assert_eq!(
        body["properties"]["tunnelAddresses"],
        json!(["10.10.30.134", "10.10.30.135"])
    );
    for (given, code) in [
        (json!(["10.10.30.140"]), "InvalidRequestFormat"),
        (json!(["10.10.30.140", "10.10.30.141", "10.10.30.142"]), "XTooManyItems"),
        (json!(["10.10.30.140", "x"]), "InvalidIPAddressFormat"),
        (json!(["10.10.30.140", "10.10.30.140"]), "PrivateIPAddressInUse"),
        (json!(["10.10.30.140", "10.10.30.132"]), "PrivateIPAddressInUse"),
        (json!(["10.10.30.140", "10.10.30.254"]), "PrivateIPAddressInUse"),
        (json!(["10.10.30.140", "10.10.30.135"]), "PrivateIPAddressInUse"),
        (json!(["10.10.30.140", "10.10.30.4"]), "PrivateIPAddressNotInSubnet"),
        (
            json!(["10.10.30.140", "10.10.30.128"]),
            "PrivateIPAddressInReservedRange",
        ),
    ] {
        let refused = w.link("c2", "hub", "er2", json!({"tunnelAddresses": given.clone()}));
        assert_eq!(codes(refused), [code], "{given}");
    }
    let given = json!({"tunnelAddresses": ["10.10.30.137", "10.10.30.136"]});
    let body = w.link("c2", "hub", "er2", given.clone()).unwrap();
    assert_eq!(body["properties"]["tunnelAddresses"], given["tunnelAddresses"]);
    // If the body of a PUT has no tunnel addresses, the connection keeps its present ones.
    let body = w.link("c2", "hub", "er2", json!({"tunnelAddresses": []})).unwrap();
    assert_eq!(body["properties"]["tunnelAddresses"], given["tunnelAddresses"]);
    // The tunnel addresses of a connection are in use: no other resource can request them or gets them as free
    // addresses.
    let instance = json!({"bgpSettings": {"bgpPeeringAddress": "10.10.30.137"}});
    assert_eq!(
        codes(w.put(&gw("hub-gw"), gateway_body("hub", instance))),
        ["PrivateIPAddressInUse"]
    );
    let two = json!({"ipConfigurations": [
        {"name": "default", "properties": {"subnet": {"id": net("virtualNetworks/hub/subnets/GatewaySubnet")}}},
        {"name": "second", "properties": {"subnet": {"id": net("virtualNetworks/hub/subnets/GatewaySubnet")}}},
    ]});
    let body = w.put(&gw("hub-gw"), gateway_body("hub", two)).unwrap();
    assert_eq!(
        body["properties"]["ipConfigurations"][1]["properties"]["privateIPAddress"],
        "10.10.30.138"
    );
}

#[test]
fn t4_a_full_gateway_subnet_is_said() {
    let mut w = world();
    w.express_gateway("hub", "10.10.30.128/29").unwrap();
    w.link("c1", "hub", "er1", json!({})).unwrap();
    assert_eq!(codes(w.link("c2", "hub", "er2", json!({}))), ["SubnetIsFull"]);
}

#[test]
fn e1_lines_overlap_no_linked_vnet() {
    let mut w = world();
    w.vnet("home", &["192.168.30.0/24"]).unwrap();
    w.express_gateway("home", "192.168.30.64/27").unwrap();
    let overlap = ["XCircuitPrefixOverlap"];
    assert_eq!(codes(w.link("c", "home", "er1", json!({}))), overlap);
    w.link("c", "home", "er2", json!({})).unwrap();
    let moved = json!({"properties": peering_properties(30)});
    let peering = format!("{}/peerings/AzurePrivatePeering", circuit("er2"));
    assert_eq!(codes(w.put(&peering, moved)), overlap);
    assert_eq!(codes(w.vnet("home", &["192.168.30.0/24", "192.168.31.0/24"])), overlap);
    w.vnet("spoke", &["192.168.31.0/24"]).unwrap();
    w.peer("home", "spoke", json!({"allowGatewayTransit": true})).unwrap();
    w.peer("spoke", "home", json!({})).unwrap();
    assert_eq!(
        codes(w.peer("spoke", "home", json!({"useRemoteGateways": true}))),
        overlap
    );
}

#[test]
fn x12_circuits_of_a_gateway() {
    let mut w = World::new();
    w.vnet("hub", &["10.10.0.0/16"]).unwrap();
    w.express_gateway("hub", "10.10.255.0/24").unwrap();
    let mut link = |n: u8, location: &str| {
        let name = format!("c{n}");
        w.circuit(&name, n).unwrap();
        let mut body = w.get(&circuit(&name));
        body["properties"]["serviceProviderProperties"] = json!({"peeringLocation": location, "bandwidthInMbps": 50});
        w.put(&circuit(&name), body).unwrap();
        let linked = w.link(&name, "hub", &name, json!({})).map(|_| ());
        linked.map_err(|r| r.problems[0].code)
    };
    for n in 0..4 {
        assert_eq!(link(n, "Silicon Valley"), Ok(()));
    }
    assert_eq!(link(4, "silicon valley"), Err("XCircuitLimitReached"));
    for n in 5..17 {
        assert_eq!(link(n, &format!("place{}", n / 4)), Ok(()));
    }
    assert_eq!(link(17, "elsewhere"), Err("XCircuitLimitReached"));
}

#[test]
fn x13_vnets_of_a_circuit() {
    let mut w = world();
    let link = |w: &mut World, n: u8| {
        let vnet = format!("v{n}");
        w.vnet(&vnet, &[&format!("10.20.{n}.0/24")]).unwrap();
        w.express_gateway(&vnet, &format!("10.20.{n}.0/27")).unwrap();
        w.link(&vnet, &vnet, "er1", json!({})).map(|_| ())
    };
    for n in 0..10 {
        link(&mut w, n).unwrap();
    }
    assert_eq!(codes(link(&mut w, 10)), ["XCircuitLinkLimitReached"]);
    let mut body = w.get(&circuit("er1"));
    let standard = body["sku"].clone();
    body["sku"] = json!({"name": "Premium_MeteredData", "tier": "Premium", "family": "MeteredData"});
    w.put(&circuit("er1"), body.clone()).unwrap();
    for n in 11..21 {
        link(&mut w, n).unwrap();
    }
    assert_eq!(codes(link(&mut w, 21)), ["XCircuitLinkLimitReached"]);
    body["sku"] = standard;
    assert_eq!(codes(w.put(&circuit("er1"), body)), ["XCircuitLinkLimitReached"]);
}

#[test]
fn g12_status_of_a_connection_to_a_circuit() {
    let mut w = world();
    w.express_gateway("hub", "10.10.30.128/25").unwrap();
    w.link("c", "hub", "er1", json!({})).unwrap();
    let path = ArmPath::parse(&net("connections/c")).unwrap();
    let mut statuses = AgentStatuses::default();
    let seen = |w: &World, statuses: &AgentStatuses| {
        let body = w.now.view(&path, statuses).unwrap();
        let tunnels = body["properties"]["tunnelConnectionStatus"].as_array().unwrap().clone();
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let reasons: Vec<_> = tunnels.iter().map(|t| text(&t["reason"])).collect();
        (text(&body["properties"]["connectionStatus"]), reasons.join("|"))
    };
    assert_eq!(seen(&w, &statuses).0, "Unknown");
    let binding = Binding::Gateway {
        gateway: ResourceId::new(gw("hub-er")),
        ip_configuration: "default".to_owned(),
    };
    w.join("hub-agent", binding).unwrap();
    let hub = AgentId::new("hub-agent").unwrap();
    statuses.connected.insert(hub.clone());
    statuses.agents.insert(hub.clone(), AgentStatus::default());
    assert_eq!(
        seen(&w, &statuses),
        ("NotConnected".into(), "no agent serves circuit er1".into())
    );
    for (name, link) in [
        ("z-primary", CircuitLink::Primary),
        ("a-secondary", CircuitLink::Secondary),
    ] {
        let circuit = ResourceId::new(circuit("er1"));
        w.join(name, Binding::Edge { circuit, link }).unwrap();
    }
    let link = |edge: &str, state| LinkStatus {
        state,
        ..LinkStatus::new(AgentId::new(edge).unwrap())
    };
    statuses.agents.get_mut(&hub).unwrap().links = vec![
        link("a-secondary", LinkState::Up),
        link("z-primary", LinkState::Unreachable),
    ];
    let expected = "PeerReachability: the circuit's edge does not answer|";
    assert_eq!(
        seen(&w, &statuses),
        ("Connected".into(), expected.into()),
        "one is enough (E4)"
    );
    statuses.agents.get_mut(&hub).unwrap().links.remove(0);
    assert_eq!(seen(&w, &statuses).0, "NotConnected");

    // E13: a gateway with too many prefixes has no connection. Those of a spoke that uses it count too.
    let space: Vec<String> = (0..1000u32)
        .map(|n| format!("10.{}.{}.0/24", 100 + (n >> 8), n & 255))
        .collect();
    let space: Vec<&str> = space.iter().map(String::as_str).collect();
    w.vnet("spoke", &space).unwrap();
    w.peer("hub", "spoke", json!({"allowGatewayTransit": true})).unwrap();
    let before = seen(&w, &statuses);
    w.peer("spoke", "hub", json!({"useRemoteGateways": true})).unwrap();
    let (status, reason) = seen(&w, &statuses);
    assert_eq!(status, "NotConnected");
    assert!(reason.starts_with("the gateway advertises 1001 prefixes"), "{reason}");
    w.peer("spoke", "hub", json!({"useRemoteGateways": false})).unwrap();
    assert_eq!(seen(&w, &statuses), before);
}

/// Gateways, connections, sites and circuits do not change when they are written to the store and read back.
#[test]
fn documents_are_read_back() {
    let mut w = world();
    w.express_gateway("hub", "10.10.30.128/25").unwrap();
    w.gateway("hub", "10.10.30.128/25").unwrap();
    w.link("c", "hub", "er1", json!({})).unwrap();
    w.site(
        "loc",
        &["10.2.30.0/25"],
        json!({"bgpSettings": {"asn": 65021, "bgpPeeringAddress": "10.2.30.125"}}),
    )
    .unwrap();
    w.connect_site("loc", "hub", "loc", json!({"sharedKey": "abc", "enableBgp": true}))
        .unwrap();
    let circuit = ResourceId::new(circuit("er1"));
    let link = CircuitLink::Primary;
    w.join("edge", Binding::Edge { circuit, link }).unwrap();
    let documents = w.now.documents_since(&Topology::default());
    let read = |documents: &[crate::topology::DocumentChange]| {
        let all = documents.iter().map(|d| (d.key.as_str(), d.value.as_deref().unwrap()));
        Topology::from_documents(all).unwrap()
    };
    let again = read(&documents);
    assert!(again.documents_since(&w.now).is_empty());
    assert_eq!(
        (
            again.circuits.len(),
            again.local_gateways.len(),
            again.connections.len()
        ),
        (2, 1, 2)
    );
    // Earlier versions, which had no ExpressRoute, stored gateways and connections without a type. Such documents are
    // read as VPN gateways and VNet-to-VNet connections.
    let old: Vec<_> = documents
        .into_iter()
        .filter(|d| !d.key.ends_with("/c"))
        .map(|mut d| {
            let mut value: Value = serde_json::from_slice(d.value.as_deref().unwrap()).unwrap();
            for name in ["gatewayType", "connectionType", "tunnelAddresses"] {
                value.as_object_mut().unwrap().remove(name);
            }
            d.value = Some(serde_json::to_vec(&value).unwrap());
            d
        })
        .collect();
    let gateway = read(&old).gateways[&ResourceId::new(gw("hub-gw"))].clone();
    assert_eq!(gateway, w.now.gateways[&ResourceId::new(gw("hub-gw"))]);
}
