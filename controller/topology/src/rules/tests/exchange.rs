//! The routes and BGP sessions that ARM shows for gateways and circuits (M7, E1, E9).

use super::{World, connection_body, gateway_body, net};
use crate::resource::Binding;
use crate::topology::AgentStatuses;
use serde_json::{Value, json};
use tombolo_proto::config::CircuitLink;
use tombolo_proto::id::{AgentId, PublicKey, ResourceId};
use tombolo_proto::route::{Route, RouteOrigin};
use tombolo_proto::status::{AgentStatus, BgpPeerState, BgpPeerStatus, LinkState, LinkStatus, NeighbourRoutes};

fn gw(name: &str) -> ResourceId {
    ResourceId::new(net(&format!("virtualNetworkGateways/{name}")))
}

fn agent(name: &str) -> AgentId {
    AgentId::new(name).unwrap()
}

fn route(prefix: &str, path: &[u32]) -> Route {
    Route {
        prefix: prefix.parse().unwrap(),
        via: None,
        as_path: path.to_vec(),
        weight: 0,
        origin: RouteOrigin::Site,
    }
}

/// The network of Azure's interoperability articles: a hub with gateways of both types, a spoke, a branch, a site and a
/// circuit.
fn world() -> World {
    let mut w = World::new();
    for (name, prefix) in [
        ("hub", "10.10.30.0/24"),
        ("spoke", "10.11.30.0/26"),
        ("branch", "10.11.30.64/26"),
    ] {
        w.vnet(name, &[prefix]).unwrap();
    }
    w.circuit("er1", 30).unwrap();
    w.gateway("hub", "10.10.30.128/25").unwrap();
    w.express_gateway("hub", "10.10.30.128/25").unwrap();
    w.subnet("branch", "GatewaySubnet", "10.11.30.96/27").unwrap();
    let branch = gateway_body("branch", json!({"bgpSettings": {"asn": 65516}}));
    w.put(gw("branch-gw").as_str(), branch).unwrap();
    w.peer("hub", "spoke", json!({"allowGatewayTransit": true})).unwrap();
    w.peer("spoke", "hub", json!({"useRemoteGateways": true})).unwrap();
    for (name, from, to) in [("there", "hub", "branch"), ("back", "branch", "hub")] {
        let body = connection_body(from, to, json!({"enableBgp": true, "sharedKey": "abc"}));
        w.put(&net(&format!("connections/{name}")), body).unwrap();
    }
    let device = json!({
        "wireGuardPublicKey": PublicKey([7; 32]).to_string(),
        "bgpSettings": {"asn": 65021, "bgpPeeringAddress": "10.2.30.125"},
    });
    w.site("loc1", &["10.2.30.125/32"], device).unwrap();
    w.connect_site("loc1", "hub", "loc1", json!({"enableBgp": true, "sharedKey": "abc"}))
        .unwrap();
    w.link(
        "er1",
        "hub",
        "er1",
        json!({"tunnelAddresses": ["10.10.30.150", "10.10.30.151"]}),
    )
    .unwrap();
    for (name, gateway) in [("hub-vpn", "hub-gw"), ("hub-er", "hub-er"), ("branch-vpn", "branch-gw")] {
        let binding = Binding::Gateway {
            gateway: gw(gateway),
            ip_configuration: "default".to_owned(),
        };
        w.join(name, binding).unwrap();
    }
    for (name, link) in [("edge1", CircuitLink::Primary), ("edge2", CircuitLink::Secondary)] {
        let circuit = ResourceId::new(net("expressRouteCircuits/er1"));
        w.join(name, Binding::Edge { circuit, link }).unwrap();
    }
    w
}

/// The status of an agent with an established session that began `since` seconds ago, and one route from the neighbour.
fn session(neighbour: &str, address: &str, since: f64) -> AgentStatus {
    let neighbour = ResourceId::new(net(neighbour));
    AgentStatus {
        learned: vec![NeighbourRoutes {
            neighbour: neighbour.clone(),
            routes: vec![route("10.2.30.0/25", &[65021])],
        }],
        bgp: vec![BgpPeerStatus {
            neighbour,
            address: address.parse().unwrap(),
            local_address: "192.0.2.9".parse().unwrap(),
            asn: 65021,
            state: BgpPeerState::Connected,
            since,
            received: 1,
            sent: 1,
            last_error: None,
        }],
        ..AgentStatus::default()
    }
}

fn up(peer: &str) -> LinkStatus {
    LinkStatus {
        state: LinkState::Up,
        ..LinkStatus::new(agent(peer))
    }
}

fn statuses() -> AgentStatuses {
    let mut statuses = AgentStatuses::default();
    let with = |links: Vec<LinkStatus>, status: AgentStatus| AgentStatus { links, ..status };
    let vpn = with(
        vec![up("branch-vpn")],
        session("connections/loc1", "10.2.30.125", 3_723.0),
    );
    let er = with(vec![up("edge1")], AgentStatus::default());
    let edge = session("expressRouteCircuits/er1", "192.168.30.17", 90_061.0);
    let edge = with(vec![up("hub-er")], edge);
    for (name, status) in [("hub-vpn", vpn), ("hub-er", er), ("edge1", edge)] {
        statuses.connected.insert(agent(name));
        statuses.agents.insert(agent(name), status);
    }
    statuses
}

fn line(list: &[Value], network: &str, source: &str) -> Value {
    let found = list
        .iter()
        .find(|r| r["network"] == network && r["sourcePeer"] == source);
    found
        .cloned()
        .unwrap_or_else(|| panic!("{network} from {source}: {list:#?}"))
}

#[test]
fn m7_e9_learned_routes_of_a_gateway() {
    let (w, statuses) = (world(), statuses());
    let all = w.now.learned_routes(&gw("hub-gw"), &statuses).unwrap();
    // P21b: the prefixes of the hub and of the spoke are both shown as local networks of the hub's gateway.
    for own in ["10.10.30.0/24", "10.11.30.0/26"] {
        let line = line(&all, own, "10.10.30.254");
        assert_eq!((&line["origin"], &line["asPath"]), (&json!("Network"), &json!("")));
    }
    let by_vpn = line(&all, "10.2.30.0/25", "10.2.30.125");
    assert_eq!((&by_vpn["origin"], &by_vpn["weight"]), (&json!("EBgp"), &json!(32768)));
    assert_eq!(
        (&by_vpn["nextHop"], &by_vpn["asPath"]),
        (&json!("10.2.30.125"), &json!("65021"))
    );
    // The ExpressRoute gateway advertises the circuit's routes to the VPN gateway. The VPN gateway shows these routes
    // with the edge as next hop, and does not advertise them further (G20).
    let by_circuit = line(&all, "10.2.30.0/25", "10.10.30.133");
    assert_eq!(
        (&by_circuit["origin"], &by_circuit["weight"]),
        (&json!("IBgp"), &json!(32769))
    );
    assert_eq!(
        (&by_circuit["nextHop"], &by_circuit["asPath"]),
        (&json!("10.10.30.150"), &json!("12076-65021"))
    );
    let er = w.now.learned_routes(&gw("hub-er"), &statuses).unwrap();
    let site = line(&er, "10.2.30.0/25", "10.10.30.150");
    assert_eq!(
        (&site["weight"], &site["localAddress"]),
        (&json!(32769), &json!("10.10.30.133"))
    );
    // G19: the branch learns the site's route from the hub.
    let branch = w.now.learned_routes(&gw("branch-gw"), &statuses).unwrap();
    let site = line(&branch, "10.2.30.0/25", "10.10.30.254");
    assert_eq!(site["asPath"], "65515-65021");
    assert!(w.now.learned_routes(&gw("nowhere"), &statuses).is_none());
}

#[test]
fn m7_g18_g20_e5_advertised_routes_are_those_of_one_peer() {
    let (w, statuses) = (world(), statuses());
    let of = |gateway: &str, peer: &str| {
        let all = w
            .now
            .advertised_routes(&gw(gateway), peer.parse().unwrap(), &statuses)
            .unwrap();
        let text = |v: &Value, name: &str| v[name].as_str().unwrap().to_owned();
        let mut lines: Vec<_> = all
            .iter()
            .map(|r| format!("{} {}", text(r, "network"), text(r, "asPath")))
            .collect();
        lines.sort();
        lines
    };
    let own = ["10.10.30.0/24 65515", "10.11.30.0/26 65515"];
    let site = of("hub-gw", "10.2.30.125");
    assert!(own.iter().all(|line| site.contains(&(*line).to_owned())), "{site:?}");
    assert!(
        !site.iter().any(|line| line.starts_with("10.2.30")),
        "nothing goes back: {site:?}"
    );
    let branch = of("hub-gw", "10.11.30.126");
    assert_eq!(branch, [own[0], own[1], "10.2.30.0/25 65515-65021"]);
    assert_eq!(of("hub-er", "10.10.30.150"), own, "nothing of the VPN");
    assert!(of("hub-gw", "192.0.2.1").is_empty());
    let first = &w
        .now
        .advertised_routes(&gw("hub-gw"), "10.2.30.125".parse().unwrap(), &statuses)
        .unwrap()[0];
    assert_eq!(
        (&first["origin"], &first["nextHop"]),
        (&json!("Igp"), &json!("10.10.30.254"))
    );
}

#[test]
fn m7_sessions_of_a_gateway() {
    let (w, mut statuses) = (world(), statuses());
    let of = |statuses: &AgentStatuses, gateway: &str| w.now.bgp_peers(&gw(gateway), statuses).unwrap();
    let find = |all: &[Value], neighbour: &str| all.iter().find(|p| p["neighbor"] == neighbour).cloned().unwrap();
    let vpn = of(&statuses, "hub-gw");
    assert_eq!(vpn.len(), 2);
    let site = find(&vpn, "10.2.30.125");
    assert_eq!(
        (&site["state"], &site["asn"], &site["routesReceived"]),
        (&json!("Connected"), &json!(65021), &json!(1))
    );
    assert_eq!(
        (&site["connectedDuration"], &site["localAddress"]),
        (&json!("01:02:03"), &json!("10.10.30.254"))
    );
    let branch = find(&vpn, "10.11.30.126");
    assert_eq!((&branch["state"], &branch["asn"]), (&json!("Connected"), &json!(65516)));
    assert_eq!(
        branch["connectedDuration"],
        json!(null),
        "nobody counts how long a link is up"
    );
    let er = of(&statuses, "hub-er");
    assert_eq!(er.len(), 2, "both tunnels, whether or not an edge is there");
    let primary = find(&er, "10.10.30.150");
    assert_eq!(
        (&primary["state"], &primary["asn"], &primary["routesReceived"]),
        (&json!("Connected"), &json!(12076), &json!(1))
    );
    assert_eq!(find(&er, "10.10.30.151")["state"], "Unknown");
    statuses.connected.clear();
    assert_eq!(
        find(&of(&statuses, "hub-gw"), "10.2.30.125")["state"],
        "Unknown",
        "nobody can say"
    );
}

/// G4: for a connection without BGP, or with equal ASNs at both ends, no BGP session is shown.
#[test]
fn g4_sessions_that_there_are_not() {
    let mut w = world();
    w.connect_site("loc1", "hub", "loc1", json!({})).unwrap();
    let equal = gateway_body("branch", json!({"bgpSettings": {"asn": 65515}}));
    w.put(gw("branch-gw").as_str(), equal).unwrap();
    assert!(w.now.bgp_peers(&gw("hub-gw"), &statuses()).unwrap().is_empty());
}

#[test]
fn e1_the_route_table_of_a_circuit() {
    let (w, statuses) = (world(), statuses());
    let circuit = ResourceId::new(net("expressRouteCircuits/er1"));
    let of = |link| w.now.circuit_routes(&circuit, link, &statuses).unwrap();
    let primary = of(CircuitLink::Primary);
    let line = |network: &str| primary.iter().find(|r| r["network"] == network).cloned().unwrap();
    // As in Azure, the AS path of a VNet's prefix has only the ASN of the VNet's gateway.
    for vnet in ["10.10.30.0/24", "10.11.30.0/26"] {
        assert_eq!(
            (&line(vnet)["path"], &line(vnet)["nextHop"]),
            (&json!("65515"), &json!("10.10.30.133"))
        );
    }
    let site = line("10.2.30.0/25");
    assert_eq!(
        (&site["path"], &site["nextHop"]),
        (&json!("65021"), &json!("192.168.30.17"))
    );
    assert_eq!(of(CircuitLink::Secondary).len(), 2, "its edge has not reported");
    let summary = w
        .now
        .circuit_routes_summary(&circuit, CircuitLink::Primary, &statuses)
        .unwrap();
    assert_eq!(summary[0]["neighbor"], "192.168.30.17");
    assert_eq!(
        (&summary[0]["upDown"], &summary[0]["statePfxRcd"]),
        (&json!("1.01:01:01"), &json!("1"))
    );
    assert_eq!(
        (&summary[1]["as"], &summary[1]["statePfxRcd"]),
        (&json!(65515), &json!("2"))
    );
    assert_eq!(summary[1]["upDown"], "up");
    let down = w
        .now
        .circuit_routes_summary(&circuit, CircuitLink::Secondary, &statuses)
        .unwrap();
    assert_eq!(down[0]["upDown"], "down");
    let bare = ResourceId::new(net("expressRouteCircuits/none"));
    assert!(w.now.circuit_routes(&bare, CircuitLink::Primary, &statuses).is_none());
}
