//! The resources for which traffic counts (Meter-1 to Meter-6), in the network of Azure's interoperability articles: a hub
//! with gateways of both types, a spoke, a branch in another region, a site and a circuit.

use super::{World, connection_body, gateway_body, net, vm_id};
use crate::metering::{Amounts, Payer, Payers, Prices};
use crate::resource::Binding;
use serde_json::json;
use std::collections::BTreeMap;
use tombolo_proto::config::CircuitLink;
use tombolo_proto::id::{AgentId, PublicKey, ResourceId};

const GIGABYTE: u64 = 1_000_000_000;

fn agent(name: &str) -> AgentId {
    AgentId::new(name).unwrap()
}

/// `loc1` is a site. The appliance is a machine of the hub that forwards packets.
fn world() -> World {
    let mut w = World::new();
    for (name, prefix) in [
        ("hub", "10.10.30.0/24"),
        ("spoke", "10.11.30.0/26"),
        ("spoke2", "10.12.30.0/26"),
    ] {
        w.vnet(name, &[prefix]).unwrap();
    }
    let branch =
        json!({"location": "region2", "properties": {"addressSpace": {"addressPrefixes": ["10.11.30.64/26"]}}});
    w.put(&net("virtualNetworks/branch"), branch).unwrap();
    w.circuit("er1", 30).unwrap();
    w.gateway("hub", "10.10.30.128/26").unwrap();
    w.express_gateway("hub", "10.10.30.128/26").unwrap();
    w.subnet("branch", "GatewaySubnet", "10.11.30.96/27").unwrap();
    let mut branch = gateway_body("branch", json!({"bgpSettings": {"asn": 65516}}));
    branch["location"] = json!("region2");
    w.put(&net("virtualNetworkGateways/branch-gw"), branch).unwrap();
    w.subnet("hub", "work", "10.10.30.0/28").unwrap();
    for vnet in ["spoke", "spoke2"] {
        w.peer(
            "hub",
            vnet,
            json!({"allowGatewayTransit": true, "allowForwardedTraffic": true}),
        )
        .unwrap();
        w.peer(
            vnet,
            "hub",
            json!({"useRemoteGateways": true, "allowForwardedTraffic": true}),
        )
        .unwrap();
        let prefix = if vnet == "spoke" {
            "10.11.30.0/28"
        } else {
            "10.12.30.0/28"
        };
        w.subnet(vnet, "work", prefix).unwrap();
    }
    for (name, from, to) in [("there", "hub", "branch"), ("back", "branch", "hub")] {
        let mut body = connection_body(from, to, json!({"enableBgp": true, "sharedKey": "abc"}));
        if from == "branch" {
            body["location"] = json!("region2");
        }
        w.put(&net(&format!("connections/{name}")), body).unwrap();
    }
    let device = json!({"wireGuardPublicKey": PublicKey([7; 32]).to_string()});
    w.site("loc1", &["10.2.30.0/25"], device).unwrap();
    w.connect_site("loc1", "hub", "loc1", json!({"sharedKey": "abc"}))
        .unwrap();
    let tunnels = json!({"tunnelAddresses": ["10.10.30.150", "10.10.30.151"]});
    w.link("er1", "hub", "er1", tunnels).unwrap();
    for (name, vnet, address) in [
        ("appliance", "hub", "10.10.30.4"),
        ("a", "spoke", "10.11.30.4"),
        ("b", "spoke2", "10.12.30.4"),
    ] {
        w.nic(name, &format!("{vnet}/subnets/work"), Some(address)).unwrap();
        let binding = Binding::Vm {
            vm: vm_id(name),
            nics: vec![ResourceId::new(net(&format!("networkInterfaces/{name}")))],
            served: Vec::new(),
        };
        w.join(name, binding).unwrap();
    }
    for (name, gateway) in [("hub-vpn", "hub-gw"), ("hub-er", "hub-er"), ("branch-vpn", "branch-gw")] {
        let binding = Binding::Gateway {
            gateway: ResourceId::new(net(&format!("virtualNetworkGateways/{gateway}"))),
            ip_configuration: "default".to_owned(),
        };
        w.join(name, binding).unwrap();
    }
    let binding = Binding::Edge {
        circuit: ResourceId::new(net("expressRouteCircuits/er1")),
        link: CircuitLink::Primary,
    };
    w.join("edge", binding).unwrap();
    w
}

/// What counts for which resource, by name, after these hops: sender, receiver and bytes.
fn counted(w: &World, hops: &[(&str, &str, u64)]) -> BTreeMap<String, (Payer, Amounts)> {
    let payers = Payers::of(&w.now);
    let device = AgentId::of_site(&ResourceId::new(net("connections/loc1")));
    let named = |name: &str| if name == "loc1" { device.clone() } else { agent(name) };
    let mut all: BTreeMap<String, (Payer, Amounts)> = BTreeMap::new();
    for (from, to, bytes) in hops {
        let (from, to) = (named(from), named(to));
        // A device of a site counts nothing.
        let mut count = |at: &AgentId, peer: &AgentId, add: &dyn Fn(&mut Amounts)| {
            let of_agent = *at != device;
            for payer in payers.of_link(at, peer).into_iter().filter(|_| of_agent) {
                let name = payer.resource.as_str().rsplit("Microsoft.Network/").next().unwrap();
                let entry = all.entry(name.to_owned());
                add(&mut entry.or_insert((payer, Amounts::default())).1);
            }
        };
        count(&from, &to, &|amounts| amounts.egress_bytes += bytes);
        count(&to, &from, &|amounts| amounts.ingress_bytes += bytes);
    }
    all
}

/// Bytes in and out of each resource.
fn bytes(w: &World, hops: &[(&str, &str, u64)]) -> Vec<(String, u64, u64)> {
    let all = counted(w, hops).into_iter();
    all.map(|(name, (_, amounts))| (name, amounts.ingress_bytes, amounts.egress_bytes))
        .collect()
}

fn half(from: &str, to: &str) -> String {
    format!("virtualNetworks/{from}/virtualNetworkPeerings/{to}")
}

fn row(name: &str, ingress: u64, egress: u64) -> (String, u64, u64) {
    (name.to_owned(), ingress, egress)
}

#[test]
fn meter_1_a_gigabyte_counts_at_both_ends_of_a_peering() {
    let w = world();
    let expected = [
        row(&half("hub", "to-spoke"), GIGABYTE, 0),
        row(&half("spoke", "to-hub"), 0, GIGABYTE),
    ];
    assert_eq!(bytes(&w, &[("a", "appliance", GIGABYTE)]), expected);
}

#[test]
fn meter_4_traffic_through_an_appliance_crosses_two_peerings() {
    let w = world();
    let expected = [
        row(&half("hub", "to-spoke"), 5, 0),
        row(&half("hub", "to-spoke2"), 0, 5),
        row(&half("spoke", "to-hub"), 0, 5),
        row(&half("spoke2", "to-hub"), 5, 0),
    ];
    assert_eq!(bytes(&w, &[("a", "appliance", 5), ("appliance", "b", 5)]), expected);
}

#[test]
fn meter_5_traffic_with_the_gateway_of_the_hub_crosses_the_peering() {
    let w = world();
    let expected = [
        row("connections/back", 7, 0),
        row("connections/there", 0, 7),
        row(&half("hub", "to-spoke"), 7, 0),
        row(&half("spoke", "to-hub"), 0, 7),
    ];
    assert_eq!(
        bytes(&w, &[("a", "hub-vpn", 7), ("hub-vpn", "branch-vpn", 7)]),
        expected
    );
    let expected = [
        row("connections/loc1", 3, 0),
        row(&half("hub", "to-spoke"), 0, 3),
        row(&half("spoke", "to-hub"), 3, 0),
    ];
    assert_eq!(bytes(&w, &[("loc1", "hub-vpn", 3), ("hub-vpn", "a", 3)]), expected);
    // Machines send to the edge directly, and get packets from the gateway.
    let expected = [
        row("connections/er1", 2, 9),
        row("expressRouteCircuits/er1", 9, 2),
        row(&half("hub", "to-spoke"), 9, 2),
        row(&half("spoke", "to-hub"), 2, 9),
    ];
    let both_ways = [("a", "edge", 9), ("edge", "hub-er", 2), ("hub-er", "a", 2)];
    assert_eq!(bytes(&w, &both_ways), expected);
}

#[test]
fn meter_6_traffic_inside_a_network_counts_for_nothing() {
    let mut w = world();
    assert_eq!(bytes(&w, &[("appliance", "hub-vpn", 4), ("hub-vpn", "hub-er", 4)]), []);
    assert_eq!(
        bytes(&w, &[("a", "nobody", 4), ("a", "b", 4)]),
        [],
        "there is no such link"
    );
    w.delete(&net(&half("spoke", "to-hub"))).unwrap();
    let expected = [row(&half("hub", "to-spoke"), 4, 0)];
    assert_eq!(bytes(&w, &[("a", "appliance", 4)]), expected, "the half is gone");
}

/// A month of the published lab, with a bill that was computed by hand. Region 2 is in zone 2.
#[test]
fn meter_1_meter_3_meter_5_the_bill_of_a_month() {
    let w = world();
    let month = [
        // Spoke to spoke through the appliance: 400 GB. Each of the four ends is charged 400 × 0.01 = 4.
        ("a", "appliance", 400 * GIGABYTE),
        ("appliance", "b", 400 * GIGABYTE),
        // Spoke to branch by VPN: 100 GB. The peering's two ends: 1 each. Egress of the hub's region: 100 × 0.035 = 3.50.
        ("a", "hub-vpn", 100 * GIGABYTE),
        ("hub-vpn", "branch-vpn", 100 * GIGABYTE),
        // The branch's answers: 50 GB. Egress of region 2: 50 × 0.09 = 4.50. The peering's two ends: 0.50 each.
        ("branch-vpn", "hub-vpn", 50 * GIGABYTE),
        ("hub-vpn", "a", 50 * GIGABYTE),
        // Site to spoke: 20 GB. The peering's two ends: 0.20 each.
        ("loc1", "hub-vpn", 20 * GIGABYTE),
        ("hub-vpn", "a", 20 * GIGABYTE),
    ];
    let prices = Prices {
        zones: [("region2".to_owned(), "2".to_owned())].into(),
        ..Prices::default()
    };
    let charged: BTreeMap<String, f64> = counted(&w, &month)
        .into_iter()
        .filter_map(|(name, (payer, amounts))| {
            let charge = prices.charge(&payer, &amounts)?;
            Some((name, charge.ingress + charge.egress))
        })
        .collect();
    let expected = [
        ("connections/back".to_owned(), 4.5),
        ("connections/there".to_owned(), 3.5),
        (half("hub", "to-spoke"), 4.0 + 1.0 + 0.5 + 0.2),
        (half("hub", "to-spoke2"), 4.0),
        (half("spoke", "to-hub"), 4.0 + 1.0 + 0.5 + 0.2),
        (half("spoke2", "to-hub"), 4.0),
    ];
    assert_eq!(charged.len(), expected.len(), "{charged:?}");
    for (name, price) in expected {
        assert!((charged[&name] - price).abs() < 1e-9, "{name}: {charged:?}");
    }
    let total: f64 = charged.values().sum();
    assert!((total - 27.4).abs() < 1e-9, "{total}");
}
