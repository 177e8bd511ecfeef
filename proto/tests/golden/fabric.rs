//! Records the requests and responses of the fabric API.

use super::agent;
use tombolo_golden::golden;
use tombolo_proto::fabric::{AgentRevision, NewApiToken, NewToken, Probe, Rejected, Revisions, Waited};
use tombolo_proto::id::Revision;
use tombolo_proto::probe::ProbeKind;

#[test]
fn requests_and_answers_of_the_fabric_api() {
    let golden = golden!();
    let full = Probe {
        from: "vm-a".into(),
        to: "vm-b".into(),
        kind: ProbeKind::Trace,
        count: Some(2),
        interval_ms: Some(100),
        timeout_ms: Some(200),
        max_ttl: Some(8),
    };
    let minimal = Probe {
        from: "vm-a".into(),
        to: "vm-b".into(),
        kind: ProbeKind::Ping,
        count: None,
        interval_ms: None,
        timeout_ms: None,
        max_ttl: None,
    };
    golden.written("fabric_probe", &[("full", full), ("minimal", minimal)]);
    let unknown = serde_json::from_str::<Probe>(r#"{"from": "a", "to": "b", "kind": "ping", "size": 9}"#);
    assert!(unknown.unwrap_err().to_string().contains("unknown field `size`"));

    let line = |rejected: Option<Rejected>| AgentRevision {
        agent: agent("vm"),
        connected: true,
        applied: rejected.as_ref().map(|_| Revision(6)),
        up_to_date: false,
        rejected,
    };
    let refused = Rejected {
        revision: Revision(7),
        reason: "mtu".into(),
    };
    let revisions = Revisions {
        desired: Revision(7),
        in_force: Revision(6),
        agents: vec![line(Some(refused)), line(None)],
    };
    golden.written("fabric_revisions", &[("revisions", revisions)]);
    let waited = Waited {
        in_force: false,
        waiting_for: vec![agent("vm")],
    };
    golden.written("fabric_waited", &[("waited", waited)]);
    let token = NewToken {
        id: "0123456789abcdef".into(),
        token: "tmb1.ID.SECRET.PIN".into(),
        agent: agent("vm"),
        expires: 1_700_000_000,
    };
    golden.written("fabric_new_token", &[("token", token)]);
    let token = NewApiToken {
        id: "0123456789abcdef".into(),
        name: "ci".into(),
        token: "secret".into(),
    };
    golden.written("fabric_new_api_token", &[("token", token)]);
}
