//! Golden files of the answers about reachability and repairs.

use super::{id, ip, net};
use serde_json::json;
use tombolo_golden::golden;
use tombolo_proto::fabric::{AssertedTraffic, Assertion};
use tombolo_topology::reach::{
    ChangedTraffic, Difference, EndGroup, EndView, ReachAnswer, ReachEntry, TrafficView, Violation,
};
use tombolo_topology::repair::{ByHand, Repair, RepairAnswer, RepairChange};

fn end() -> EndView {
    EndView {
        id: id("networkInterfaces/vm-nic"),
        address: ip("10.1.0.4"),
        prefix: None,
    }
}

fn site() -> EndView {
    EndView {
        id: id("localNetworkGateways/office"),
        address: ip("172.16.0.1"),
        prefix: Some(net("172.16.0.0/16")),
    }
}

fn traffic() -> TrafficView {
    TrafficView {
        tcp: vec!["22".into(), "443 from 1024-65535".into()],
        udp: vec!["*".into()],
        icmp: true,
    }
}

fn changed() -> ChangedTraffic {
    ChangedTraffic {
        from_name: "hub/workload: vm-nic".into(),
        to_name: "site office".into(),
        from: vec![end()],
        to: vec![site()],
        traffic: traffic(),
    }
}

#[test]
fn reachability() {
    let group = |name: &str, member| EndGroup {
        name: name.into(),
        members: vec![member],
    };
    let full = ReachAnswer {
        groups: vec![group("hub/workload", end()), group("site office", site())],
        entries: vec![
            ReachEntry {
                from: 0,
                to: 1,
                traffic: traffic(),
            },
            ReachEntry {
                from: 1,
                to: 0,
                traffic: TrafficView::default(),
            },
        ],
    };
    golden!().cases("reach", &[("full", full), ("minimal", ReachAnswer::default())]);
    let full = Difference {
        connects: vec![changed()],
        cuts: vec![changed()],
    };
    golden!().cases(
        "reach_difference",
        &[("full", full), ("minimal", Difference::default())],
    );
    let violation = Violation {
        assertion: 2,
        asserted: Assertion::Never(AssertedTraffic {
            from: "hub".into(),
            to: "office".into(),
            protocol: None,
            ports: Vec::new(),
        }),
        from: end(),
        to: site(),
        pairs: 3,
        traffic: traffic(),
        text: "text".into(),
    };
    golden!().document("reach_violation", &violation);
}

#[test]
fn repairs() {
    let change = |body| RepairChange {
        text: "set a flag".into(),
        path: "/subscriptions/s".into(),
        sync_remote_address_space: true,
        body,
        copy_from: None,
        generate_key: false,
        delete: true,
        etag: Some("W/\"00000000-0000-0000-0000-000000000001\"".into()),
        is_new: true,
    };
    let copied = RepairChange {
        copy_from: Some("/subscriptions/s/sharedkey".into()),
        generate_key: true,
        ..change(None)
    };
    let by_hand = ByHand {
        text: "do it".into(),
        cause: "it is not done".into(),
        why: "only you can".into(),
        after: vec!["set a flag".into()],
    };
    let full = RepairAnswer {
        reachable: false,
        repairs: vec![Repair {
            changes: vec![change(Some(json!({"properties": {}}))), change(None), copied],
            connects: vec![changed()],
            cuts: Vec::new(),
        }],
        by_hand: vec![by_hand],
        cut_off: true,
        summary: "set a flag".into(),
    };
    let minimal = RepairAnswer {
        reachable: true,
        repairs: Vec::new(),
        by_hand: Vec::new(),
        cut_off: false,
        summary: "reachable".into(),
    };
    golden!().cases("repair", &[("full", full), ("minimal", minimal)]);
}
