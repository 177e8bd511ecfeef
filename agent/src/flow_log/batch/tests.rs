use super::*;
use serde_json::Value;
use std::time::{Duration, Instant, UNIX_EPOCH};
use tombolo_engine::security::Counted;
use tombolo_proto::config::{Direction, FlowLog, LoggedGroup, LoggedNic};
use tombolo_proto::id::ResourceId;

fn id(text: &str) -> ResourceId {
    ResourceId::new(text)
}

/// A log of the group `/web`, which applies to `/a` and `/b`, and one of the subnet of `/a`.
fn logs() -> Arc<FlowLogs> {
    let log = |name: &str, target: &str, format, nics: &[&str]| FlowLog {
        id: id(&format!("/networkWatchers/w/flowLogs/{name}")),
        guid: "00000000-0000-4000-8000-00000000000a".into(),
        target: id(target),
        format,
        nics: nics.iter().map(|nic| id(nic)).collect(),
    };
    let nic = |name: &str, mac: &str| LoggedNic {
        id: id(name),
        mac: mac.into(),
    };
    Arc::new(FlowLogs {
        logs: vec![
            log("group", "/web", FlowLogFormat::Group2, &["/a", "/b"]),
            log("subnet", "/subnet", FlowLogFormat::Network4, &["/a"]),
        ],
        nics: vec![nic("/a", "02000000000A"), nic("/b", "02000000000B")],
        groups: vec![LoggedGroup {
            id: id("/web"),
            guid: "00000000-0000-4000-8000-0000000000ff".into(),
        }],
    })
}

fn rule(number: u32) -> Option<Arc<LoggedRule>> {
    let rule = |nic: &str, group: &str| LoggedRule {
        nic: id(nic),
        rule: (!group.is_empty()).then(|| (id(group), "securityRules/https".to_owned())),
    };
    let rules = [
        rule("/a", "/web"),
        rule("/b", "/web"),
        rule("/a", "/other"),
        rule("/a", ""),
        rule("/gone", "/web"),
    ];
    rules.into_iter().nth(number as usize - 1).map(Arc::new)
}

fn event(kind: FlowEventKind, rule: u32, port: u16) -> FlowEvent {
    FlowEvent {
        kind,
        at: Instant::now(),
        key: FlowKey {
            nic: 0,
            direction: Direction::Inbound,
            protocol: 6,
            source: [10, 0, 0, 1].into(),
            destination: [10, 0, 0, 2].into(),
            ports: (port, 443),
        },
        rule,
        is_local: false,
        forward: Counted::default(),
        backward: Counted::default(),
    }
}

fn tuples(value: &Value) -> usize {
    match value {
        Value::Object(map) => map
            .iter()
            .map(|(k, v)| {
                if k == "flowTuples" {
                    v.as_array().unwrap().len()
                } else {
                    tuples(v)
                }
            })
            .sum(),
        Value::Array(items) => items.iter().map(tuples).sum(),
        _ => 0,
    }
}

/// N14: the group that decides logs. A log of a group has the flows about which its rules decide, that of a subnet all
/// flows of its NICs.
#[test]
fn n14_each_log_has_its_flows() {
    let mut batch = Batch::new(logs());
    for number in 1..=5 {
        let is_known = batch.add(&event(FlowEventKind::Begin, number, 1), UNIX_EPOCH, rule, |_| {});
        assert_eq!(is_known, number < 5, "the last one's NIC has no log");
    }
    assert_eq!(batch.tuples(), 5, "two of the group, and three of the subnet");
    let records = batch.records(UNIX_EPOCH + Duration::from_secs(3600));
    assert!(records.iter().all(|written| {
        let record: Value = serde_json::from_str(&written.record).unwrap();
        written.tuples == tuples(&record) as u64
    }));
    let mut found: Vec<(String, usize)> = records
        .iter()
        .map(|written| {
            let record: Value = serde_json::from_str(&written.record).unwrap();
            let path = written.path.to_str().unwrap();
            assert!(path.contains("/y=1970/m=01/d=01/h=01/m=00/"), "{path}");
            let name = path.split('/').next().unwrap();
            (
                format!("{name} {}", record["macAddress"].as_str().unwrap()),
                tuples(&record),
            )
        })
        .collect();
    found.sort();
    assert_eq!(
        found,
        [
            ("insights-logs-flowlogflowevent 02000000000A".to_owned(), 3),
            ("insights-logs-networksecuritygroupflowevent 02000000000A".to_owned(), 1),
            ("insights-logs-networksecuritygroupflowevent 02000000000B".to_owned(), 1),
        ]
    );
}

#[test]
fn d38_denied_packets_of_one_flow_are_one_record() {
    let mut batch = Batch::new(logs());
    for port in [1, 1, 2, 1] {
        batch.add(&event(FlowEventKind::Denied, 2, port), UNIX_EPOCH, rule, |_| {});
    }
    batch.add(&event(FlowEventKind::Begin, 2, 1), UNIX_EPOCH, rule, |_| {});
    batch.add(&event(FlowEventKind::End, 2, 1), UNIX_EPOCH, rule, |_| {});
    assert_eq!(batch.tuples(), 4);
    assert!(batch.bytes() > 4 * 40);
}

#[test]
fn a_batch_without_events_has_no_record() {
    assert!(Batch::new(logs()).records(UNIX_EPOCH).is_empty());
    let mut batch = Batch::new(logs());
    batch.add(&event(FlowEventKind::Begin, 5, 1), UNIX_EPOCH, rule, |_| {});
    batch.add(&event(FlowEventKind::Begin, 9, 1), UNIX_EPOCH, |_| None, |_| {});
    assert!(batch.records(UNIX_EPOCH).is_empty(), "the NIC has no log any more");
}
