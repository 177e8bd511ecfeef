//! Golden files of the fabric API's requests and responses, of the data directory, and of the metrics.

use crate::fake_agent::{FakeAgent, Stream, csr, vm};
use crate::world::{World, answer, until};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use reqwest::Method;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use tombolo_controller::agents::{AgentProgress, Refusal};
use tombolo_golden::{golden, metrics_of};
use tombolo_proto::control_stream::agent_message::Message as FromAgent;
use tombolo_proto::control_stream::controller_message::Message as FromController;
use tombolo_proto::control_stream::{ProbeResult, Rejected, Status};
use tombolo_proto::id::{PublicKey, Revision};
use tombolo_proto::probe::{ProbeReport, ProbeRequest};

/// Folders with the golden files of other crates. They contain the requests that the programs of these crates send.
const AGENT: &str = "../../../agent/tests/golden";
const PROTO: &str = "../../../proto/tests/golden";

/// A copy of a value in which everything that differs from run to run is replaced by a constant of the same form.
fn masked(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let field = |(name, value): (&String, &Value)| {
                let time = ["expires", "created"].contains(&name.as_str()) && value.is_u64();
                (name.clone(), if time { json!(1_800_000_000) } else { masked(value) })
            };
            Value::Object(fields.iter().map(field).collect())
        }
        Value::Array(items) => items.iter().map(masked).collect(),
        Value::String(text) => json!(masked_text(text)),
        other => other.clone(),
    }
}

fn masked_text(text: &str) -> String {
    let is_hex = |length| text.len() == length && text.bytes().all(|b| b.is_ascii_hexdigit());
    if text.parse::<PublicKey>().is_ok() {
        PublicKey([1; 32]).to_string()
    } else if uuid::Uuid::parse_str(text).is_ok() {
        uuid::Uuid::nil().to_string()
    } else if is_hex(64) {
        "ab".repeat(32)
    } else if is_hex(16) {
        "0123456789abcdef".to_owned()
    } else if text.starts_with("tmb1.") {
        "tmb1.ID.SECRET.PIN".to_owned()
    } else if text.starts_with("tmba.") {
        "tmba.ID.SECRET".to_owned()
    } else if text.starts_with("-----BEGIN CERTIFICATE-----") {
        "-----BEGIN CERTIFICATE-----".to_owned()
    } else {
        text.to_owned()
    }
}

/// The request with all fields, which is the case `full` of a golden file.
fn full_case(golden: &str) -> Value {
    let mut cases: BTreeMap<String, Value> = golden!().read(golden);
    cases.remove("full").expect("a case named full")
}

/// Sends a request that must succeed, and returns the body of the response.
async fn ask(world: &World, method: Method, path: &str, body: Option<Value>) -> Value {
    let answer = world.fabric(method, path, body).await;
    assert!(answer.status.is_success(), "{path}: {answer:?}");
    answer.body
}

/// Joins an agent by the request in the agent's golden file, in which a valid token and key replace the recorded ones.
async fn join_as_recorded(world: &World) -> Value {
    let token = json!({"agent": "vm-c", "binding": vm("vm-c", "c-nic")});
    let token = ask(world, Method::POST, "tokens", Some(token)).await;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut request = full_case(&format!("{AGENT}/join_request"));
    request["token"] = token["token"].clone();
    request["csr"] = json!(csr(&key));
    let joined = answer(world.client.post(world.url("/fabric/v1/join")).json(&request)).await;
    assert_eq!(joined.status, 200, "{joined:?}");
    joined.body
}

async fn probe_as_recorded(world: &World, stream: &mut Stream) -> Value {
    let request = full_case(&format!("{PROTO}/probe"));
    let answer = async {
        let Ok(Some(FromController::Probe(probe))) = stream.next().await else {
            panic!("no probe")
        };
        let request: ProbeRequest = serde_json::from_slice(&probe.request).unwrap();
        assert_eq!((request.count, request.max_ttl), (2, 8));
        let report = full_case(&format!("{PROTO}/probe_report"));
        let report = serde_json::from_value::<ProbeReport>(report).unwrap();
        let report = serde_json::to_vec(&report).unwrap();
        stream
            .send(FromAgent::ProbeResult(ProbeResult { id: probe.id, report }))
            .await;
    };
    tokio::join!(ask(world, Method::POST, "probe", Some(request)), answer).0
}

/// Connects both agents: `vm-a` applies the newest configuration and reports a full status, `vm-b` rejects its
/// configuration.
async fn connect(world: &World, [a, b]: [FakeAgent; 2]) -> [Stream; 2] {
    let mut refusing = b.hello(0, "").await.unwrap();
    let (config, _) = refusing.config().await;
    refusing
        .send(FromAgent::Rejected(Rejected {
            revision: config.revision,
            digest: config.digest,
            reason: "mtu".into(),
        }))
        .await;
    let mut applied = a.hello(0, "").await.unwrap();
    let (config, _) = applied.config().await;
    applied.applied(&config).await;
    let status = serde_json::to_vec(&full_case(&format!("{PROTO}/agent_status"))).unwrap();
    let endpoints = vec!["0.0.0.0:51820".to_owned()];
    applied.send(FromAgent::Status(Status { status, endpoints })).await;
    until("status and refusal are shown", async || {
        let revisions = world.fabric(Method::GET, "revisions", None).await.body;
        let [a, b] = [0, 1].map(|place| &revisions["agents"][place]);
        let status = world.fabric(Method::GET, "agents/vm-a", None).await.body["status"]["links"].is_array();
        (status && a["applied"] == revisions["desired"] && b["rejected"].is_object()).then_some(())
    })
    .await;
    [applied, refusing]
}

#[tokio::test]
async fn golden_answers_of_the_fabric_api() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    world.nic("c-nic", "a", "10.1.0.5").await;
    world.nic("d-nic", "a", "10.1.0.6").await;
    world.peer("a", "b").await;
    world.peer("b", "a").await;
    let agents = [
        FakeAgent::join(&world, "vm-a", "a-nic").await,
        FakeAgent::join(&world, "vm-b", "b-nic").await,
    ];
    golden!().document("join_reply", &masked(&join_as_recorded(&world).await));
    let requests: Map<String, Value> = golden!().read("fabric_requests");
    let request = |name: &str| Some(requests[name].clone());
    let get = async |path: &str| masked(&ask(&world, Method::GET, path, None).await);
    let post = async |path: &str, body| masked(&ask(&world, Method::POST, path, body).await);
    let (token, api_token) = (
        post("tokens", request("token")).await,
        post("api-tokens", request("apiToken")).await,
    );
    // From here on, nothing is written to the store, so the recorded revisions are the same in every run.
    let [mut applied, _refusing] = connect(&world, agents).await;
    let mut api_tokens = get("api-tokens").await;
    // The list is ordered by id. The ids are random, so the test orders it by name.
    let listed = api_tokens["value"].as_array_mut().expect("a list");
    listed.sort_by_key(|token| token["name"] == "admin");
    let explain = full_case(&format!("{PROTO}/explain_request"));
    let answers = [
        ("health", get("health").await),
        ("token", token),
        ("tokens", get("tokens").await),
        ("apiToken", api_token),
        ("apiTokens", api_tokens),
        ("agents", get("agents").await),
        ("agent", get("agents/vm-a").await),
        ("agentConfig", get("agents/vm-a/config").await),
        ("agentTables", get("agents/vm-a/tables").await),
        ("revisions", get("revisions").await),
        ("waited", get("revisions/1/wait?timeoutSeconds=0").await),
        ("settings", get("settings").await),
        ("explanation", post("explain", Some(explain)).await),
        ("probed", masked(&probe_as_recorded(&world, &mut applied).await)),
    ];
    golden!().written("fabric_answers", &answers);
    let metrics = world.client.get(world.url("/metrics")).bearer_auth(&world.token);
    let metrics = metrics.send().await.unwrap().text().await.unwrap();
    golden!().text("metrics.txt", &metrics_of(&metrics));
    let set = ask(&world, Method::PUT, "settings", request("settings")).await;
    assert_eq!(&set, &requests["settings"], "all settings are given, and all are shown");
}

#[tokio::test]
async fn golden_errors() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    let one = json!({"agent": "x", "binding": vm("x", "a-nic"), "ttlSeconds": 0});
    let one = world.fabric(Method::POST, "tokens", Some(one)).await;
    let several = json!({"location": "region1", "properties": {
        "addressSpace": {"addressPrefixes": ["10.8.0.1/16", "10.9.0.1/16"]},
    }});
    let path = "~/providers/Microsoft.Network/virtualNetworks/c";
    let several = world.arm(Method::PUT, path, Some(several)).await;
    assert_eq!((one.status.as_u16(), several.status.as_u16()), (400, 400));
    // The controller accepts the field of the request, and answers 404 because the connection does not exist.
    let device = world
        .fabric(Method::POST, "device-config", Some(json!({"connection": "/none"})))
        .await;
    assert_eq!(device.status, 404, "{device:?}");
    golden!().written("errors", &[("one", one.body), ("several", several.body)]);
}

#[tokio::test]
async fn golden_files_of_the_data_directory() {
    let world = World::start(&[]).await;
    let mut names: Vec<String> = std::fs::read_dir(world.data())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let store = rusqlite::Connection::open(world.data().join("state.db")).unwrap();
    let mut tables = store
        .prepare("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name")
        .unwrap();
    let tables: Vec<String> = tables
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let words = |sql: &String| sql.split_whitespace().collect::<Vec<_>>().join(" ");
    let tables = tables.iter().map(words).collect();
    let mut keys = store.prepare("SELECT DISTINCT key FROM log ORDER BY key").unwrap();
    let keys: Vec<String> = keys
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    golden!().written(
        "data_directory",
        &[("files", names), ("tables", tables), ("keys", keys)],
    );
}

#[test]
fn golden_progress_of_agents() {
    let progress = |rejected| AgentProgress {
        agent: "vm-a".parse().unwrap(),
        connected: true,
        applied: Revision(6),
        up_to_date: false,
        digest: "ab".into(),
        desired_digest: "cd".into(),
        rejected,
    };
    let refusal = Refusal {
        revision: Revision(7),
        reason: "mtu".into(),
    };
    golden!().written(
        "agent_progress",
        &[("full", progress(Some(refusal))), ("minimal", progress(None))],
    );
}
