//! The fabric API: requests as clients send them, and responses as clients read and print them.

use std::collections::BTreeMap;
use tombolo_golden::{every_variant, golden};
use tombolo_proto::config::CircuitLink;
use tombolo_proto::fabric::{
    AgentRevision, AgentView, ApiTokenRequest, AssertedTraffic, Assertion, Binding, CheckRequest, DeviceBgp,
    DeviceConfig, DeviceRequest, DeviceTunnel, ExplainRequest, JoinReply, JoinRequest, ListResponse, MonitorOutcome,
    MonitorResult, MonitorTestView, MonitorView, NewApiToken, NewToken, Package, Packages, Probe, ProbeAnswer,
    ProposedChange, Protocol, ReachDiffRequest, ReachRequest, Rejected, Revisions, StoredAssertions, Token,
    TokenRequest, UsageRequest, Waited,
};
use tombolo_proto::id::{AgentId, PresharedKey, PublicKey, ResourceId, Revision};
use tombolo_proto::probe::{ProbeKind, ProbeReport};
use tombolo_proto::status::AgentStatus;

/// Golden files that the controller's tests record. The client must be able to read them.
const CONTROLLER: &str = "../../../controller/tests/golden";
const TOPOLOGY: &str = "../../../controller/topology/tests/golden";
const AGENT: &str = "../../../agent/tests/golden";

fn agent(name: &str) -> AgentId {
    name.parse().unwrap()
}

fn bindings() -> Vec<(&'static str, Binding)> {
    let bindings = vec![
        (
            "vm",
            Binding::Vm {
                vm: ResourceId::new("/vm"),
                nics: vec![ResourceId::new("/nic")],
                served: vec![ResourceId::new("/subnet")],
            },
        ),
        (
            "gateway",
            Binding::Gateway {
                gateway: ResourceId::new("/gateway"),
                ip_configuration: "one".into(),
            },
        ),
        (
            "edge",
            Binding::Edge {
                circuit: ResourceId::new("/circuit"),
                link: CircuitLink::Secondary,
            },
        ),
        (
            "site",
            Binding::Site {
                attachments: vec![ResourceId::new("/circuit"), ResourceId::new("/localGateway")],
                address: "192.168.7.10".parse().unwrap(),
            },
        ),
    ];
    every_variant!(
        Binding {
            Vm,
            Gateway,
            Edge,
            Site
        },
        bindings.iter().map(|(_, binding)| binding)
    );
    bindings
}

fn binding() -> Binding {
    bindings().swap_remove(0).1
}

#[test]
fn tokens() {
    golden!().cases("binding", &bindings());
    let new = NewToken {
        id: "0123456789abcdef".into(),
        token: "tmb1.0123456789abcdef.secret.pin".into(),
        agent: agent("vm"),
        expires: 1_800_000_000,
    };
    golden!().document("new_token", &new);
    let token = Token {
        id: "0123456789abcdef".into(),
        agent: agent("vm"),
        binding: binding(),
        expires: 1_800_000_000,
    };
    golden!().document("token", &token);
    let new = NewApiToken {
        id: "0123456789abcdef".into(),
        name: "ci".into(),
        token: "tmba.0123456789abcdef.secret".into(),
    };
    golden!().document("new_api_token", &new);
}

fn rejected() -> Rejected {
    Rejected {
        revision: Revision(7),
        reason: "mtu".into(),
    }
}

#[test]
fn agents() {
    let full = AgentView {
        id: agent("vm"),
        binding: binding(),
        public_key: PublicKey([1; 32]),
        endpoints: vec!["192.0.2.7:51820".parse().unwrap()],
        quic_endpoint: Some("192.0.2.7:443".parse().unwrap()),
        lanes: Some(4),
        revoked: true,
        connected: true,
        applied_revision: Some(Revision(6)),
        applied_digest: Some("ab".into()),
        desired_digest: Some("cd".into()),
        rejected: Some(rejected()),
        status: Some(AgentStatus::default()),
    };
    let minimal = AgentView {
        id: agent("vm"),
        binding: binding(),
        public_key: PublicKey([1; 32]),
        endpoints: vec![],
        quic_endpoint: None,
        lanes: None,
        revoked: false,
        connected: false,
        applied_revision: None,
        applied_digest: None,
        desired_digest: None,
        rejected: None,
        status: None,
    };
    golden!().cases("agent_view", &[("full", full), ("minimal", minimal)]);
}

#[test]
fn revisions() {
    let line = |applied, rejected| AgentRevision {
        agent: agent("vm"),
        connected: true,
        applied,
        up_to_date: false,
        rejected,
    };
    let revisions = Revisions {
        desired: Revision(7),
        in_force: Revision(6),
        agents: vec![line(Some(Revision(6)), Some(rejected())), line(None, None)],
    };
    golden!().document("revisions", &revisions);
    let waited = Waited {
        in_force: false,
        waiting_for: vec![agent("vm")],
    };
    golden!().document("waited", &waited);
    let package = Package {
        name: "tombolo-agent_0.1.0-1_amd64.deb".into(),
        size: 4_000_000,
        sha256: "ab".repeat(32),
    };
    let packages = Packages {
        folder: "/usr/share/tombolo/packages".into(),
        value: vec![package],
    };
    golden!().document("packages", &packages);
}

/// Records the client's requests, which the controller's tests send.
#[test]
fn questions() {
    let full = ExplainRequest {
        from: "vm-a".into(),
        to: "vm-b".into(),
        protocol: Protocol::Tcp,
        destination_port: Some(443),
        ttl: Some(2),
        design: false,
    };
    let minimal = ExplainRequest {
        from: "vm-a".into(),
        to: "vm-b".into(),
        protocol: Protocol::Icmp,
        destination_port: None,
        ttl: None,
        design: false,
    };
    let asserted = |ports: &[&str]| AssertedTraffic {
        from: "spoke-a".into(),
        to: "spoke-b".into(),
        protocol: Some(Protocol::Tcp).filter(|_| !ports.is_empty()),
        ports: ports.iter().map(ToString::to_string).collect(),
    };
    golden!().cases(
        "reach_request",
        &[
            (
                "full",
                ReachRequest {
                    from: vec!["spoke-a".into()],
                    to: vec!["hub/workload".into(), "10.1.0.0/24".into()],
                },
            ),
            ("minimal", ReachRequest::default()),
        ],
    );
    let diff = ReachDiffRequest {
        since: Some(Revision(7)),
        until: Some(Revision(9)),
        changes: vec![
            ProposedChange {
                path: "/subscriptions/s/resourceGroups/g".into(),
                body: Some(serde_json::json!({"location": "region1"})),
                sync_remote_address_space: true,
            },
            ProposedChange {
                path: "/subscriptions/s/resourceGroups/old".into(),
                body: None,
                sync_remote_address_space: false,
            },
        ],
        // The form of an assertion is the one of the private type `Written`.
        assertions: vec![
            Assertion::Never(asserted(&["22", "8000-8080"])),
            Assertion::Always(asserted(&[])),
        ],
    };
    golden!().cases(
        "reach_diff_request",
        &[("full", diff), ("minimal", ReachDiffRequest::default())],
    );
    let stored = StoredAssertions {
        assertions: vec![Assertion::Never(asserted(&["22"]))],
    };
    golden!().cases(
        "stored_assertions",
        &[("full", stored), ("minimal", StoredAssertions::default())],
    );
    let usage = UsageRequest {
        from: 1_700_000_000,
        to: 1_800_000_000,
        prices: Some(serde_json::json!({"peering": 0.02})),
    };
    golden!().cases(
        "usage_request",
        &[("full", usage), ("minimal", UsageRequest::default())],
    );
    golden!().cases("explain_request", &[("full", full), ("minimal", minimal)]);
    let full = Probe {
        from: "vm-a".into(),
        to: "vm-b".into(),
        kind: ProbeKind::Trace,
        count: Some(2),
        interval_ms: Some(100),
        timeout_ms: Some(200),
        max_ttl: Some(8),
        port: None,
    };
    let connect = Probe {
        kind: ProbeKind::Connect,
        max_ttl: None,
        port: Some(443),
        ..full.clone()
    };
    let minimal = Probe {
        from: "vm-a".into(),
        to: "vm-b".into(),
        kind: ProbeKind::Ping,
        count: None,
        interval_ms: None,
        timeout_ms: None,
        max_ttl: None,
        port: None,
    };
    golden!().cases("probe", &[("connect", connect), ("full", full), ("minimal", minimal)]);
    let unknown = serde_json::from_str::<Probe>(r#"{"from": "a", "to": "b", "kind": "ping", "size": 9}"#);
    assert!(unknown.unwrap_err().to_string().contains("unknown field `size`"));
    let report = || ProbeReport {
        sent: 3,
        received: 0,
        rtts_ms: vec![],
        hops: vec![],
        refused: 0,
        unreachable: 0,
        error: None,
    };
    let full = ProbeAnswer {
        from: Some("10.1.0.4".parse().unwrap()),
        to: Some("10.2.0.4".parse().unwrap()),
        report: report(),
    };
    let minimal = ProbeAnswer {
        from: None,
        to: None,
        report: report(),
    };
    golden!().cases("probed", &[("full", full), ("minimal", minimal)]);
    let full = CheckRequest {
        from: "vm-a".into(),
        to: "vm-b".into(),
        protocol: Protocol::Tcp,
        port: Some(443),
    };
    let minimal = CheckRequest {
        protocol: Protocol::Icmp,
        port: None,
        ..full.clone()
    };
    golden!().cases("check_request", &[("full", full), ("minimal", minimal)]);
}

#[test]
fn monitors() {
    let result = |outcome| MonitorResult {
        time: 1_800_000_000,
        outcome,
        checks_failed_percent: Some(20),
        round_trip_time_ms: Some(7),
        reason: None,
    };
    let unknown = MonitorResult {
        checks_failed_percent: None,
        round_trip_time_ms: None,
        reason: Some("agent vm-a is not connected".into()),
        ..result(MonitorOutcome::Indeterminate)
    };
    let test = |history| MonitorTestView {
        group: "web".into(),
        configuration: "https".into(),
        source: "a".into(),
        destination: "b".into(),
        history,
    };
    let full = MonitorView {
        id: ResourceId::new("/monitor"),
        running: true,
        tests: vec![
            test(vec![
                result(MonitorOutcome::Pass),
                result(MonitorOutcome::Fail),
                unknown,
            ]),
            test(vec![]),
        ],
    };
    let minimal = MonitorView {
        running: false,
        tests: vec![],
        ..full.clone()
    };
    golden!().cases("monitor_view", &[("full", full), ("minimal", minimal)]);
}

fn device(full: bool) -> DeviceConfig {
    let tunnel = |endpoint: Option<&str>| DeviceTunnel {
        agent: agent("hub-gw0"),
        public_key: PublicKey([1; 32]),
        endpoint: endpoint.map(|e| e.parse().unwrap()),
    };
    DeviceConfig {
        connection: ResourceId::new("/connection"),
        gateway: ResourceId::new("/gateway"),
        site: ResourceId::new("/site"),
        port: 51_820,
        public_key: full.then_some(PublicKey([7; 32])),
        mtu: 1420,
        preshared_key: PresharedKey([2; 32]),
        instances: vec![tunnel(full.then_some("192.0.2.7:51820"))],
        prefixes: vec!["10.1.0.0/16".parse().unwrap()],
        site_prefixes: vec!["10.9.0.0/16".parse().unwrap()],
        bgp: full.then(|| DeviceBgp {
            address: "172.16.0.1".parse().unwrap(),
            asn: 65_021,
            gateway_address: "10.1.255.254".parse().unwrap(),
            gateway_asn: 65_515,
        }),
    }
}

#[test]
fn configurations_of_devices() {
    golden!().cases("device_config", &[("full", device(true)), ("minimal", device(false))]);
}

/// The controller reads every request that the tests of agents and of the controller record.
#[test]
fn requests_to_the_controller() {
    let golden = golden!();
    let joins: BTreeMap<String, JoinRequest> = golden.read(&format!("{AGENT}/join_request"));
    assert_eq!((joins["full"].lanes, joins["minimal"].lanes), (Some(4), None));
    let JoinReply { agent, .. } = golden.read(&format!("{CONTROLLER}/join_reply"));
    assert_eq!(agent.as_str(), "vm-c");
    let questions: BTreeMap<String, ExplainRequest> = golden.read("explain_request_with_nulls");
    assert_eq!(questions["full"].protocol, Protocol::Tcp);
    // A null in a request means the same as an absent field.
    assert_eq!(
        (questions["minimal"].destination_port, questions["minimal"].ttl),
        (None, None)
    );
    let token = TokenRequest {
        agent: "vm-a".parse().unwrap(),
        binding: binding(),
        ttl_seconds: Some(60),
    };
    let text = serde_json::to_value(&token).unwrap();
    assert_eq!((&text["agent"], &text["ttlSeconds"]), (&"vm-a".into(), &60.into()));
    let device = DeviceRequest {
        connection: ResourceId::new("/connection"),
    };
    let api_token = ApiTokenRequest { name: "ci".into() };
    assert_eq!(
        serde_json::json!([device, api_token]),
        serde_json::json!([{"connection": "/connection"}, {"name": "ci"}])
    );
}

/// The client reads every answer that the controller's tests record.
#[test]
fn answers_of_the_controller() {
    let golden = golden!();
    let devices: BTreeMap<String, DeviceConfig> = golden.read(&format!("{TOPOLOGY}/device_config"));
    assert_eq!(devices["full"].instances.len(), 2);
    let bindings: BTreeMap<String, Binding> = golden.read(&format!("{TOPOLOGY}/binding"));
    assert_eq!(bindings.len(), 4);

    #[derive(serde::Deserialize)]
    struct Answers {
        tokens: ListResponse<Token>,
        agents: ListResponse<AgentView>,
        agent: AgentView,
        revisions: Revisions,
        waited: Waited,
        probed: ProbeAnswer,
        token: NewToken,
        #[serde(rename = "apiToken")]
        api_token: NewApiToken,
    }
    let answers: Answers = golden.read(&format!("{CONTROLLER}/fabric_answers"));
    assert_eq!((answers.tokens.value.len(), answers.agents.value.len()), (1, 3));
    assert!(answers.agent.applied_revision.is_some() && answers.agent.status.is_some());
    assert_eq!(answers.revisions.agents.len(), 3);
    assert_eq!(
        (answers.waited.in_force, answers.waited.waiting_for),
        (false, vec![agent("vm-b")])
    );
    assert_eq!(answers.probed.report.sent, 3);
    assert_eq!(answers.token.agent, agent("vm-d"));
    assert_eq!(answers.api_token.name, "ci");
}
