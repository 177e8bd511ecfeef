use super::*;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tombolo_engine::security::{Counted, FlowKey};

const SUBSCRIPTION: &str = "/subscriptions/00000000-0000-0000-0000-000000000001";

fn event(kind: FlowEventKind, protocol: u8, direction: Direction) -> FlowEvent {
    let counts = match kind {
        FlowEventKind::Continue | FlowEventKind::End => [(52, 29_952), (47, 27_072)],
        FlowEventKind::Begin | FlowEventKind::Denied => [(0, 0), (0, 0)],
    };
    let [forward, backward] = counts.map(|(packets, bytes)| Counted { packets, bytes });
    FlowEvent {
        kind,
        at: Instant::now(),
        key: FlowKey {
            nic: 0,
            direction,
            protocol,
            source: [10, 0, 0, 4].into(),
            destination: [1, 2, 3, 4].into(),
            ports: (28_746, 443),
        },
        rule: 1,
        is_local: false,
        forward,
        backward,
    }
}

fn shown(format: FlowLogFormat, event: &FlowEvent) -> String {
    let mut out = String::new();
    tuple(
        &mut out,
        format,
        event,
        UNIX_EPOCH + Duration::from_millis(1_542_110_402_599),
    );
    out
}

fn log(format: FlowLogFormat) -> FlowLog {
    let group = format!("{SUBSCRIPTION}/resourceGroups/NetworkWatcherRG/providers/Microsoft.Network");
    FlowLog {
        id: ResourceId::new(format!("{group}/networkWatchers/NetworkWatcher_region1/flowLogs/web")),
        guid: "00000000-0000-4000-8000-00000000000a".into(),
        target: ResourceId::new(format!("{group}/networkSecurityGroups/web\"1")),
        format,
        nics: Vec::new(),
    }
}

/// The tuples of Azure's documentation.
#[test]
fn n14_tuples_have_azures_layouts() {
    use FlowEventKind::{Begin, Continue, Denied, End};
    use FlowLogFormat::{Group1, Group2, Network4};
    let head = "10.0.0.4,1.2.3.4,28746,443";
    for (format, kind, direction, expected) in [
        (Group1, Begin, Direction::Outbound, format!("1542110402,{head},T,O,A")),
        (Group1, Denied, Direction::Inbound, format!("1542110402,{head},T,I,D")),
        (
            Group2,
            Begin,
            Direction::Outbound,
            format!("1542110402,{head},T,O,A,B,,,,"),
        ),
        (
            Group2,
            Denied,
            Direction::Inbound,
            format!("1542110402,{head},T,I,D,B,,,,"),
        ),
        (
            Group2,
            Continue,
            Direction::Outbound,
            format!("1542110402,{head},T,O,A,C,52,29952,47,27072"),
        ),
        (
            Group2,
            End,
            Direction::Outbound,
            format!("1542110402,{head},T,O,A,E,52,29952,47,27072"),
        ),
        (
            Network4,
            Begin,
            Direction::Outbound,
            format!("1542110402599,{head},6,O,B,X,0,0,0,0"),
        ),
        (
            Network4,
            Denied,
            Direction::Inbound,
            format!("1542110402599,{head},6,I,D,X,0,0,0,0"),
        ),
        (
            Network4,
            Denied,
            Direction::Outbound,
            format!("1542110402599,{head},6,O,D,NX,0,0,0,0"),
        ),
        (
            Network4,
            Continue,
            Direction::Inbound,
            format!("1542110402599,{head},6,I,C,X,52,29952,47,27072"),
        ),
        (
            Network4,
            End,
            Direction::Outbound,
            format!("1542110402599,{head},6,O,E,X,52,29952,47,27072"),
        ),
    ] {
        assert_eq!(shown(format, &event(kind, TCP, direction)), format!("\"{expected}\""));
    }
    assert_eq!(shown(Group1, &event(End, TCP, Direction::Outbound)), "");
    let udp = shown(Group2, &event(Begin, UDP, Direction::Outbound));
    assert_eq!(udp, format!("\"1542110402,{head},U,O,A,B,,,,\""));
    // NSG flow logs have TCP and UDP only.
    assert_eq!(shown(Group2, &event(Begin, 1, Direction::Outbound)), "");
    let icmp = shown(Network4, &event(Begin, 1, Direction::Outbound));
    assert_eq!(icmp, "\"1542110402599,10.0.0.4,1.2.3.4,0,0,1,O,B,X,0,0,0,0\"");
    let local = FlowEvent {
        is_local: true,
        ..event(Begin, TCP, Direction::Inbound)
    };
    assert!(shown(Network4, &local).contains(",B,NX_LOCAL_DST,0,"));
}

#[test]
fn n14_tuples_follow_each_other() {
    let mut out = String::new();
    for _ in 0..2 {
        let event = event(FlowEventKind::Begin, TCP, Direction::Outbound);
        assert!(tuple(&mut out, FlowLogFormat::Group1, &event, UNIX_EPOCH));
    }
    let all: Vec<String> = serde_json::from_str(&format!("[{out}]")).unwrap();
    assert_eq!(all, ["0,10.0.0.4,1.2.3.4,28746,443,T,O,A"; 2]);
}

fn at() -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(1_663_146_052_562_508_599)
}

fn rules() -> Vec<RuleTuples<'static>> {
    let rule = |group, rule, tuples| RuleTuples { group, rule, tuples };
    vec![
        rule(None, None, "\"t0\""),
        rule(
            Some("guid"),
            Some("defaultSecurityRules/AllowVnetInBound"),
            "\"t1\",\"t2\"",
        ),
        rule(Some("guid"), Some("securityRules/web"), "\"t3\""),
        rule(Some("other"), Some("securityRules/web"), "\"t4\""),
    ]
}

#[test]
fn n14_a_record_of_a_vnet_flow_log() {
    let log = log(FlowLogFormat::Network4);
    let text = record(&log, None, "0200DEADBEEF", at(), &rules());
    assert!(!text.contains('\n'));
    let read: Value = serde_json::from_str(&text).unwrap();
    let expected = json!({
        "time": "2022-09-14T09:00:52.5625085Z",
        "flowLogVersion": 4,
        "flowLogGUID": "00000000-0000-4000-8000-00000000000a",
        "macAddress": "0200DEADBEEF",
        "category": "FlowLogFlowEvent",
        "flowLogResourceID": log.id.as_str().to_ascii_uppercase(),
        "targetResourceID": log.target,
        "operationName": "FlowLogFlowEvent",
        "flowRecords": {"flows": [
            {"aclID": "unspecified", "flowGroups": [{"rule": "unspecified", "flowTuples": ["t0"]}]},
            {"aclID": "guid", "flowGroups": [
                {"rule": "DefaultRule_AllowVnetInBound", "flowTuples": ["t1", "t2"]},
                {"rule": "UserRule_web", "flowTuples": ["t3"]},
            ]},
            {"aclID": "other", "flowGroups": [{"rule": "UserRule_web", "flowTuples": ["t4"]}]},
        ]},
    });
    assert_eq!(read, expected);
}

#[test]
fn n14_a_record_of_an_nsg_flow_log() {
    for (format, version) in [(FlowLogFormat::Group1, 1), (FlowLogFormat::Group2, 2)] {
        let log = log(format);
        let text = record(&log, Some("guid"), "0200DEADBEEF", at(), &rules()[1..3]);
        let read: Value = serde_json::from_str(&text).unwrap();
        let expected = json!({
            "time": "2022-09-14T09:00:52.5625085Z",
            "systemId": "guid",
            "macAddress": "0200DEADBEEF",
            "category": "NetworkSecurityGroupFlowEvent",
            "resourceId": log.target.as_str().to_ascii_uppercase(),
            "operationName": "NetworkSecurityGroupFlowEvents",
            "properties": {"Version": version, "flows": [
                {"rule": "DefaultRule_AllowVnetInBound", "flows": [{"mac": "0200DEADBEEF", "flowTuples": ["t1", "t2"]}]},
                {"rule": "UserRule_web", "flows": [{"mac": "0200DEADBEEF", "flowTuples": ["t3"]}]},
            ]},
        });
        assert_eq!(read, expected);
    }
}

#[test]
fn n14_paths_have_azures_names_and_stay_in_the_directory() {
    let hour = hour(at());
    assert_eq!(hour, "y=2022/m=09/d=14/h=09/m=00");
    let of = |log: &FlowLog| path(log, "0200DEADBEEF", &hour).to_str().unwrap().to_owned();
    assert_eq!(
        of(&log(FlowLogFormat::Group2)),
        "insights-logs-networksecuritygroupflowevent/resourceId=/SUBSCRIPTIONS/00000000-0000-0000-0000-000000000001/\
         RESOURCEGROUPS/NETWORKWATCHERRG/PROVIDERS/MICROSOFT.NETWORK/NETWORKSECURITYGROUPS/WEB_1/y=2022/m=09/d=14/h=09/\
         m=00/macAddress=0200DEADBEEF/PT1H.json"
    );
    assert_eq!(
        of(&log(FlowLogFormat::Network4)),
        "insights-logs-flowlogflowevent/flowLogResourceID=/00000000-0000-0000-0000-000000000001_NETWORKWATCHERRG/\
         NETWORKWATCHER_REGION1_WEB/y=2022/m=09/d=14/h=09/m=00/macAddress=0200DEADBEEF/PT1H.json"
    );
    for bad in ["/../../../etc/passwd", "/a/./../b", "", "//", "/a\0b/\n"] {
        for format in [FlowLogFormat::Group2, FlowLogFormat::Network4] {
            let log = FlowLog {
                id: ResourceId::new(bad),
                target: ResourceId::new(bad),
                ..log(format)
            };
            let path = path(&log, "0200DEADBEEF", &hour);
            let plain = |c: std::path::Component<'_>| matches!(c, std::path::Component::Normal(_));
            assert!(path.components().all(plain), "{}", path.display());
        }
    }
}
