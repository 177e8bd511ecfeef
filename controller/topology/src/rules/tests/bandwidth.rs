//! The bandwidth of network interfaces and gateways, and the flows of network interfaces: P32, X9, X16.

use super::{World, codes, gateway_body, net, path};
use crate::change::Change;
use crate::resource::{Binding, Era, GatewayBandwidth, Settings};
use crate::topology::AgentStatuses;
use serde_json::{Value, json};
use tombolo_proto::id::{AgentId, ResourceId};
use tombolo_proto::status::{AgentStatus, TunnelUse};

fn gw() -> String {
    net("virtualNetworkGateways/hub-gw")
}

fn world() -> World {
    let mut w = World::new();
    w.vnet("hub", &["10.1.0.0/16"]).unwrap();
    w.subnet("hub", "work", "10.1.0.0/24").unwrap();
    w.subnet("hub", "GatewaySubnet", "10.1.255.0/27").unwrap();
    w
}

fn bandwidth(w: &World) -> Value {
    w.get(&gw())["properties"]["tunnelBandwidth"].clone()
}

/// P32: the tag is a number of Mbit/s. A change of tags alone is checked too.
#[test]
fn p32_the_bandwidth_of_a_nic_is_a_number_of_mbit_per_second() {
    let mut w = world();
    let nic = net("networkInterfaces/vm-nic");
    let mut body = w.nic("vm-nic", "hub/subnets/work", None).unwrap();
    for wrong in ["", "0", "-1", "1.5", "100001", "50 Mbps", "4294967297"] {
        body["tags"] = json!({"tombolo-bandwidth": wrong});
        let refused = w.put(&nic, body.clone()).unwrap_err();
        let problem = &refused.problems[0];
        assert_eq!(problem.code, "InvalidRequestFormat", "{wrong}");
        assert_eq!(problem.target.as_deref(), Some("tags.tombolo-bandwidth"));
        for word in ["tags.tombolo-bandwidth", "1 to 100000", "(P32)"] {
            assert!(problem.message.contains(word), "{}", problem.message);
        }
        let tags = Change::PatchTags {
            path: path(&nic),
            body: json!({"tags": {"tombolo-bandwidth": wrong}}),
            if_match: None,
        };
        assert_eq!(codes(w.apply(&tags)), ["InvalidRequestFormat"]);
    }
    for right in ["1", " 50 ", "100000"] {
        body["tags"] = json!({"tombolo-bandwidth": right});
        let shown = w.put(&nic, body.clone()).unwrap();
        assert_eq!(shown["tags"], body["tags"]);
        let stored = w.now.nics[&ResourceId::new(&nic)].bandwidth();
        assert_eq!(stored, right.trim().parse().ok());
    }
}

/// X9: what Azure publishes for each SKU, in each era and generation.
#[test]
fn x9_the_figures_of_skus() {
    let mut w = world();
    for (sku, generation, now, then) in [
        ("Basic", "Generation1", Some(100), Some(100)),
        ("Standard", "None", Some(100), Some(100)),
        ("HighPerformance", "None", Some(200), Some(200)),
        ("VpnGw1", "Generation1", Some(650), Some(650)),
        ("VpnGw1AZ", "Generation2", Some(650), Some(650)),
        ("VpnGw2", "Generation1", Some(1000), Some(1000)),
        ("VpnGw2", "Generation2", Some(1250), Some(1000)),
        ("VpnGw3AZ", "Generation1", Some(1250), Some(1250)),
        ("vpngw3", "Generation2", Some(2500), Some(1250)),
        ("VpnGw4", "Generation2", Some(5000), None),
        ("VpnGw5AZ", "None", Some(10_000), None),
        ("VpnGw6", "None", None, None),
        ("AZ", "None", None, None),
    ] {
        let more = json!({"sku": {"name": sku, "tier": sku}, "vpnGatewayGeneration": generation});
        w.put(&gw(), gateway_body("hub", more)).unwrap();
        for (era, expected) in [(Era::AzureCurrent, now), (Era::Azure2017, then)] {
            let settings = Settings {
                gateway_bandwidth: GatewayBandwidth::Azure,
                ..Settings::of(era)
            };
            w.apply(&Change::SetSettings(settings)).unwrap();
            let shown = bandwidth(&w);
            assert_eq!(shown["publishedMbps"], json!(expected), "{sku} {generation} {era:?}");
            assert_eq!(shown["limitMbps"], json!(expected), "{sku} {generation} {era:?}");
        }
    }
}

/// X9: an ExpressRoute gateway has a figure and no limit, because packets to circuits do not pass it.
#[test]
fn x9_an_express_route_gateway_has_no_limit() {
    let mut w = world();
    let settings = Settings {
        gateway_bandwidth: GatewayBandwidth::Azure,
        ..Settings::default()
    };
    w.apply(&Change::SetSettings(settings)).unwrap();
    for (sku, figure) in [("Standard", 1000), ("ErGw2AZ", 2000), ("UltraPerformance", 10_000)] {
        let more = json!({"gatewayType": "ExpressRoute", "sku": {"name": sku, "tier": sku}});
        w.put(&gw(), gateway_body("hub", more)).unwrap();
        let shown = bandwidth(&w);
        assert_eq!(
            (&shown["publishedMbps"], &shown["limitMbps"]),
            (&json!(figure), &Value::Null)
        );
    }
}

/// G5, X9: the body of a gateway shows the figure, the limit and what its agents report. Written back, the property has no
/// effect.
#[test]
fn g5_x9_a_gateway_shows_its_bandwidth() {
    let mut w = world();
    let body = w.put(&gw(), gateway_body("hub", json!({}))).unwrap();
    let unlimited = json!({
        "publishedMbps": 650, "limitMbps": null, "lastMinuteBytes": null, "droppedPackets": null,
    });
    assert_eq!(body["properties"]["tunnelBandwidth"], unlimited);
    let mut other = body;
    other["properties"]["tunnelBandwidth"]["limitMbps"] = json!(7);
    assert_eq!(w.put(&gw(), other).unwrap()["properties"]["tunnelBandwidth"], unlimited);

    let limited = Settings {
        gateway_bandwidth: GatewayBandwidth::Mbps(100),
        ..Settings::default()
    };
    w.apply(&Change::SetSettings(limited)).unwrap();
    w.join(
        "hub-gw",
        Binding::Gateway {
            gateway: ResourceId::new(gw()),
            ip_configuration: "default".into(),
        },
    )
    .unwrap();
    let status = |tunnels| AgentStatus {
        tunnels,
        drops: [("bandwidth_exceeded".to_owned(), 3), ("no_route".to_owned(), 9)].into(),
        ..AgentStatus::default()
    };
    let shown = |status: AgentStatus| {
        let statuses = AgentStatuses {
            agents: [(AgentId::new("hub-gw").unwrap(), status)].into(),
            ..AgentStatuses::default()
        };
        w.now.view(&path(&gw()), &statuses).unwrap()["properties"]["tunnelBandwidth"].clone()
    };
    let used = TunnelUse {
        last_minute_bytes: 5_000_000,
    };
    assert_eq!(
        shown(status(Some(used))),
        json!({"publishedMbps": 650, "limitMbps": 100, "lastMinuteBytes": 5_000_000, "droppedPackets": 3})
    );
    // An agent of an earlier version.
    assert_eq!(shown(status(None))["lastMinuteBytes"], Value::Null);
}

/// X16: the number of flows has a range.
#[test]
fn x16_the_number_of_flows_has_a_range() {
    let mut w = world();
    for (flows, is_valid) in [(0, false), (1, true), (500_000, true), (500_001, false)] {
        let settings = Settings {
            flows_per_nic: flows,
            ..Settings::default()
        };
        let changed = w.apply(&Change::SetSettings(settings));
        match is_valid {
            true => drop(changed.unwrap()),
            false => {
                let refused = changed.unwrap_err();
                let message = &refused.problems[0].message;
                assert!(
                    message.contains("flowsPerNic") && message.contains("1 to 500000"),
                    "{message}"
                );
            }
        }
    }
}
