//! Compares names and bytes that others read (operators, metrics, other agents) with recorded files.

use std::fmt::Write as _;
use tombolo_engine::decide::Trace;
use tombolo_engine::link::AdvertisementStats;
use tombolo_engine::routing::{Refusal, decode, encode};
use tombolo_engine::verdict::DropReason;
use tombolo_golden::{all_of, golden};
use tombolo_proto::id::ResourceId;
use tombolo_proto::route::{EffectiveRoute, NextHop, Route, RouteOrigin, RouteSource, RouteState};

/// Counters, `explain` and the labels of metrics use these names.
#[test]
fn reasons_of_drops_and_refusals() {
    let names: Vec<&str> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
    golden!().document("drop_reasons", &DropReason::ALL.to_vec());
    golden!().written("drop_reason_names", &[("names", names)]);
    let refusals = all_of!(Refusal {
        OwnSpace,
        Loop,
        FirstAs,
        PathLength,
        Martian,
        NextHop,
        Count
    });
    let names: Vec<&str> = refusals.iter().map(|refusal| refusal.name()).collect();
    golden!().written("refusal_names", &[("names", names)]);
}

#[test]
fn counters_and_traces() {
    let stats = AdvertisementStats {
        received: 1,
        applied: 2,
        superseded: 3,
        refused: 4,
        malformed: 5,
    };
    golden!().document("advertisement_stats", &stats);
    let full = Trace {
        subnet: Some(ResourceId::new("/subnet")),
        route: Some(EffectiveRoute {
            name: None,
            source: RouteSource::Default,
            state: RouteState::Active,
            prefix: "10.0.0.0/8".parse().unwrap(),
            next_hop: NextHop::VnetLocal {},
        }),
        connection: Some(ResourceId::new("/connection")),
        vnet: Some(ResourceId::new("/vnet")),
        next: Some("hub-vm".parse().unwrap()),
        balancing_rule: Some(ResourceId::new("/rule")),
        back_end: Some("10.0.0.4".parse().unwrap()),
    };
    golden!().cases("trace", &[("full", full), ("minimal", Trace::default())]);
}

/// The bytes in which agents advertise routes to each other. They depend on the order of fields and variants.
#[test]
fn tables_of_routes() {
    let routes = vec![
        Route {
            prefix: "10.9.0.0/16".parse().unwrap(),
            via: Some("edge-primary".parse().unwrap()),
            as_path: vec![12_076, 65_021],
            weight: 10,
            origin: RouteOrigin::Site,
        },
        Route {
            prefix: "fd00:9::/48".parse().unwrap(),
            via: None,
            as_path: vec![],
            weight: 0,
            origin: RouteOrigin::Vnet,
        },
    ];
    let bytes = encode(&routes);
    assert_eq!(decode(&bytes), Ok(routes));
    let mut text = String::new();
    for byte in &bytes {
        write!(text, "{byte:02x}").unwrap();
    }
    golden!().text("routes.txt", &(text + "\n"));
}
