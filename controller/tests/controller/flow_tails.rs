//! Tails of flow logs (D38): agents that write the logs are followed, and what they send reaches the client as lines.

use crate::fake_agent::{FakeAgent, Stream};
use crate::features::hello_of_today;
use crate::flow_logs::{body, watcher};
use crate::world::{Answer, EVENT_TIMEOUT, GROUP, World, until};
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::time::Duration;
use tombolo_proto::control_stream::agent_message::Message as FromAgent;
use tombolo_proto::control_stream::controller_message::Message as FromController;
use tombolo_proto::control_stream::{self, CaptureData};
use tombolo_proto::flow_tail::TailRequest;
use tombolo_proto::id::ResourceId;

fn log(name: &str) -> String {
    format!("{}/flowLogs/{name}", watcher("region1"))
}

/// Two VNets `a` and `b`, each with a network interface and a flow log of this name.
async fn world() -> World {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    for name in ["a", "b"] {
        let target = format!("{GROUP}/providers/Microsoft.Network/virtualNetworks/{name}");
        let made = world.arm(Method::PUT, &log(name), Some(body(&target))).await;
        assert_eq!(made.status, 201, "{made:?}");
    }
    world
}

async fn joined(world: &World, name: &str) -> (FakeAgent, Stream) {
    let agent = FakeAgent::join(world, &format!("vm-{name}"), &format!("{name}-nic")).await;
    let stream = connected(&agent).await;
    (agent, stream)
}

async fn connected(agent: &FakeAgent) -> Stream {
    let mut stream = agent.open_stream(hello_of_today(agent)).await.unwrap();
    let (config, _) = stream.config().await;
    stream.applied(&config).await;
    stream
}

/// The lines that a client gets.
struct Tail {
    response: reqwest::Response,
    rest: Vec<u8>,
    lines: VecDeque<Value>,
}

impl Tail {
    async fn begin(world: &World, request: &Value) -> Self {
        Self::begin_with(world, request, &world.token).await
    }

    async fn begin_with(world: &World, request: &Value, token: &str) -> Self {
        let sent = world
            .client
            .post(world.url("/fabric/v1/flow-logs/tail"))
            .bearer_auth(token);
        let response = sent.json(request).send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "application/x-ndjson");
        Self {
            response,
            rest: Vec::new(),
            lines: VecDeque::new(),
        }
    }

    async fn next(&mut self) -> Value {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return line;
            }
            let chunk = tokio::time::timeout(EVENT_TIMEOUT, self.response.chunk()).await;
            self.rest.extend(chunk.unwrap().unwrap().expect("a line"));
            let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else {
                continue;
            };
            let complete: Vec<u8> = self.rest.drain(..=end).collect();
            let lines = complete.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            self.lines
                .extend(lines.map(|line| serde_json::from_slice::<Value>(line).unwrap()));
        }
    }

    /// The next line of this type.
    async fn next_of(&mut self, kind: &str) -> Value {
        loop {
            let line = self.next().await;
            if line["type"] == kind {
                return line;
            }
        }
    }
}

fn state(agent: &str, state: &str) -> Value {
    json!({"type": "agent", "agent": agent, "state": state})
}

/// The next list of captures and tails that the agent gets.
async fn list(stream: &mut Stream) -> Vec<control_stream::Capture> {
    loop {
        if let Some(FromController::Captures(list)) = stream.next().await.unwrap() {
            return list.captures;
        }
    }
}

/// The id and the request of the only tail in the next list.
async fn tail_of(stream: &mut Stream) -> (String, TailRequest) {
    let list = list(stream).await;
    let [tail] = &list[..] else { panic!("{list:?}") };
    assert!(tail.request.is_empty());
    (tail.id.clone(), serde_json::from_slice(&tail.tail).unwrap())
}

async fn send(stream: &Stream, id: &str, data: impl Into<Vec<u8>>) {
    let data = CaptureData {
        id: id.to_owned(),
        data: data.into(),
        end: false,
    };
    stream.send(FromAgent::CaptureData(data)).await;
}

fn record(log: &str, port: u16) -> Value {
    let vnet = log.rsplit('/').next().unwrap();
    let nic = format!("{GROUP}/providers/Microsoft.Network/networkInterfaces/{vnet}-nic");
    json!({
        "timeMs": 1_800_000_000_123u64, "log": log, "format": "network4", "nic": nic, "macAddress": "0200DEADBEEF",
        "source": "10.1.0.4", "sourcePort": port, "destination": "10.2.0.4", "destinationPort": 443, "protocol": 6,
        "direction": "Inbound", "state": "D", "group": "/group", "rule": "UserRule_no", "encryption": "X",
        "packetsSent": 0, "bytesSent": 0, "packetsReceived": 0, "bytesReceived": 0,
    })
}

fn line(entry: &Value) -> String {
    format!("{entry}\n")
}

/// D38: the records of all agents that write the logs reach the client, with the name of the agent; agents send more when the
/// client has read; and they stop when the client has gone.
#[tokio::test]
async fn d38_records_of_all_agents_reach_the_client() {
    let world = world().await;
    let (_one, mut a) = joined(&world, "a").await;
    let mut tail = Tail::begin(&world, &json!({})).await;
    assert_eq!(tail.next().await, json!({"type": "agents", "count": 1}));
    assert_eq!(tail.next().await, state("vm-a", "following"));
    let (of_a, request) = tail_of(&mut a).await;
    assert_eq!((request.logs, request.window), (Vec::new(), 262_144));
    // An agent that joins later is followed too.
    let (_two, mut b) = joined(&world, "b").await;
    let mut lines = vec![tail.next().await, tail.next().await];
    if lines[1]["state"] == "waiting" {
        lines[1] = tail.next().await;
    }
    assert_eq!(
        lines,
        [json!({"type": "agents", "count": 2}), state("vm-b", "following")]
    );
    let (of_b, request) = tail_of(&mut b).await;
    assert_eq!(request.window, 262_144, "8 MiB are enough for 32 agents");

    let first = record(&log("a"), 1);
    let text = line(&json!({"record": first}));
    let (begin, end) = text.split_at(50);
    send(&a, &of_a, begin).await;
    send(&b, &of_b, line(&json!({"record": record(&log("b"), 2)}))).await;
    let mut expected = record(&log("b"), 2);
    expected["type"] = "record".into();
    expected["agent"] = "vm-b".into();
    assert_eq!(tail.next().await, expected);
    send(&a, &of_a, end.to_owned() + &line(&json!({"dropped": 5}))).await;
    let mut expected = first;
    expected["type"] = "record".into();
    expected["agent"] = "vm-a".into();
    assert_eq!(tail.next().await, expected);
    assert_eq!(
        tail.next().await,
        json!({"type": "dropped", "agent": "vm-a", "records": 5})
    );
    let read = loop {
        if let Some(FromController::CaptureRead(read)) = a.next().await.unwrap()
            && read.bytes > 50
        {
            break read;
        }
    };
    assert_eq!(
        (read.id, read.bytes),
        (of_a, (text.len() + "{\"dropped\":5}\n".len()) as u64)
    );
    drop(tail);
    assert_eq!(list(&mut a).await, []);
    assert_eq!(list(&mut b).await, []);
}

/// D38: a tail names the agents that it waits for, and follows an agent again that was away.
#[tokio::test]
async fn d38_an_agent_that_comes_back_is_followed_again() {
    let world = world().await;
    let agent = FakeAgent::join(&world, "vm-a", "a-nic").await;
    let mut tail = Tail::begin(
        &world,
        &json!({"logs": [log("a").to_uppercase()], "region": "Region 1"}),
    )
    .await;
    assert_eq!(tail.next().await, json!({"type": "agents", "count": 1}));
    let waiting = tail.next().await;
    assert_eq!(
        (&waiting["agent"], &waiting["state"]),
        (&json!("vm-a"), &json!("waiting"))
    );
    for _ in 0..2 {
        let mut stream = connected(&agent).await;
        assert_eq!(tail.next().await, state("vm-a", "following"));
        let (id, request) = tail_of(&mut stream).await;
        assert_eq!(request.logs, [ResourceId::new(log("a"))]);
        send(&stream, &id, line(&json!({"record": record(&log("a"), 1)}))).await;
        assert_eq!(tail.next().await["sourcePort"], 1);
        drop(stream);
        let mut waiting = tail.next().await;
        assert_eq!(waiting["message"].take(), "the agent has disconnected");
        assert_eq!(waiting["state"], "waiting");
    }
    // A log that is deleted has no agents.
    assert_eq!(world.arm(Method::DELETE, &log("a"), None).await.status, 204);
    assert_eq!(tail.next().await, json!({"type": "agents", "count": 0}));
}

/// D38, D27: an agent of an earlier version is named, and gets nothing that it cannot read.
#[tokio::test]
async fn d38_d27_an_older_agent_is_named_and_gets_no_tail() {
    let world = world().await;
    let agent = FakeAgent::join(&world, "vm-a", "a-nic").await;
    let mut hello = hello_of_today(&agent);
    hello.features.retain(|feature| feature != "flowLogTail");
    let mut stream = agent.open_stream(hello).await.unwrap();
    let (config, _) = stream.config().await;
    stream.applied(&config).await;
    let mut tail = Tail::begin(&world, &json!({"logs": [log("a")]})).await;
    tail.next_of("agents").await;
    let failed = tail.next().await;
    assert_eq!(failed["state"], "failed");
    let message = failed["message"].as_str().unwrap();
    assert!(message.starts_with("agent vm-a is too old"), "{message}");
    assert!(stream.quiet().await);
    drop(stream);
    let mut lines = vec![tail.next().await];
    let mut updated = connected(&agent).await;
    if lines[0]["state"] == "waiting" {
        lines.push(tail.next().await);
    }
    assert_eq!(lines.pop(), Some(state("vm-a", "following")));
    tail_of(&mut updated).await;
}

/// D38: an agent sends records to four tails, beside its captures.
#[tokio::test]
async fn d38_the_tails_of_an_agent_are_limited() {
    let world = world().await;
    let (_agent, _stream) = joined(&world, "a").await;
    let mut tails = Vec::new();
    for _ in 0..4 {
        let mut tail = Tail::begin(&world, &json!({"logs": [log("a")]})).await;
        tail.next_of("agents").await;
        assert_eq!(tail.next().await, state("vm-a", "following"));
        tails.push(tail);
    }
    let mut fifth = Tail::begin(&world, &json!({"logs": [log("a")]})).await;
    fifth.next_of("agents").await;
    let failed = fifth.next().await;
    assert_eq!(failed["state"], "failed");
    assert!(failed["message"].as_str().unwrap().contains("to 4 tails"), "{failed}");
    tails.pop();
    assert_eq!(fifth.next_of("agent").await, state("vm-a", "following"));
}

/// D38: what a hostile agent sends does not reach the client, and ends its records: malformed lines, lines without an end,
/// characters that a terminal obeys, and more than the window. Records of logs and network interfaces of others are left out.
#[tokio::test]
async fn d38_a_hostile_agent_is_not_followed() {
    let world = world().await;
    let (_agent, mut stream) = joined(&world, "a").await;
    let mut escape = record(&log("a"), 1);
    escape["rule"] = "\u{1b}[2J".into();
    for (bad, expected) in [
        ("\u{1b}[2J\n".to_owned(), "malformed record: column 1"),
        (
            line(&json!({"record": escape})),
            "malformed record: rule: the character \\u{1b}",
        ),
        ("x".repeat(5000), "malformed record: a line is longer than 4096"),
        ("x".repeat(262_145), "sent more than it may"),
    ] {
        let mut tail = Tail::begin(&world, &json!({"logs": [log("a")]})).await;
        tail.next_of("agents").await;
        assert_eq!(tail.next().await, state("vm-a", "following"));
        let (id, _) = tail_of(&mut stream).await;
        send(&stream, &id, line(&json!({"record": record(&log("b"), 7)}))).await;
        let mut of_other = record(&log("a"), 7);
        of_other["nic"] = format!("{GROUP}/providers/Microsoft.Network/networkInterfaces/b-nic").into();
        send(&stream, &id, line(&json!({"record": of_other}))).await;
        send(&stream, &id, bad).await;
        let failed = tail.next().await;
        let message = failed["message"].as_str().unwrap();
        assert!(failed["state"] == "failed" && message.contains(expected), "{failed}");
        assert!(!message.chars().any(char::is_control), "{message:?}");
        assert_eq!(list(&mut stream).await, []);
    }
}

/// D38: a tail ends soon after its token was deleted, although nothing happens in it.
#[tokio::test]
async fn d38_a_tail_ends_with_its_token() {
    let world = world().await;
    let made = world
        .fabric(Method::POST, "api-tokens", Some(json!({"name": "ci"})))
        .await;
    let text = |name: &str| made.body[name].as_str().unwrap().to_owned();
    let mut tail = Tail::begin_with(&world, &json!({}), &text("token")).await;
    tail.next_of("agents").await;
    world
        .fabric(Method::DELETE, &format!("api-tokens/{}", text("id")), None)
        .await;
    let end = async { while tail.response.chunk().await.unwrap().is_some() {} };
    tokio::time::timeout(Duration::from_secs(60), end)
        .await
        .expect("an end");
}

/// D38: impossible requests are refused by the field.
#[tokio::test]
async fn d38_impossible_tails_are_refused() {
    let world = world().await;
    let ask = async |body: Value| world.fabric(Method::POST, "flow-logs/tail", Some(body)).await;
    let outcome = |answer: &Answer| {
        let error = &answer.body["error"];
        (
            answer.status.as_u16(),
            answer.code().to_owned(),
            error["target"].clone(),
        )
    };
    let mut disabled = world.arm(Method::GET, &log("b"), None).await.body;
    disabled["properties"]["enabled"] = false.into();
    assert_eq!(world.arm(Method::PUT, &log("b"), Some(disabled)).await.status, 200);
    for (body, code, target, words) in [
        (
            json!({"logs": [log("none")]}),
            "InvalidResourceReference",
            "logs",
            "does not exist",
        ),
        (
            json!({"logs": [log("b")]}),
            "InvalidRequestFormat",
            "logs",
            "not enabled",
        ),
        (
            json!({"logs": vec![log("a"); 65]}),
            "InvalidRequestFormat",
            "logs",
            "65 entries",
        ),
        (
            json!({"logs": [log("a")], "region": "region9"}),
            "InvalidRequestFormat",
            "region",
            "is in region 'region1', not in 'region9'",
        ),
    ] {
        let refused = ask(body).await;
        assert_eq!(outcome(&refused), (400, code.to_owned(), json!(target)), "{refused:?}");
        let message = refused.body["error"]["message"].as_str().unwrap();
        assert!(message.starts_with(target) && message.contains(words), "{message}");
    }
    assert_eq!(ask(json!({"log": "x"})).await.status, 400, "unknown fields");
    let anonymous = world
        .client
        .post(world.url("/fabric/v1/flow-logs/tail"))
        .json(&json!({}));
    assert_eq!(anonymous.send().await.unwrap().status(), 401);

    let mut tails = Vec::new();
    for _ in 0..16 {
        tails.push(Tail::begin(&world, &json!({})).await);
    }
    let refused = ask(json!({})).await;
    assert_eq!(outcome(&refused), (409, "XTailLimitReached".to_owned(), Value::Null));
    tails.pop();
    let again = json!({"region": "region1"});
    until("the place of the tail that has ended", async || {
        let sent = world.client.post(world.url("/fabric/v1/flow-logs/tail"));
        let response = sent.bearer_auth(&world.token).json(&again).send().await.unwrap();
        (response.status() == 200).then_some(())
    })
    .await;
}
