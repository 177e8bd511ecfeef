//! Tests of packet captures (D42): the resource, the list that the agent gets, reports, and live captures.

use crate::fake_agent::{FakeAgent, Stream};
use crate::features::hello_of_today;
use crate::security::watcher;
use crate::world::{Answer, EVENT_TIMEOUT, GROUP, World, until};
use reqwest::Method;
use serde_json::{Value, json};
use tombolo_proto::capture::{
    CaptureDelivery, CaptureError, CaptureLayer, CaptureReport, CaptureRequest, CaptureState, CaptureStop,
    STREAM_WINDOW,
};
use tombolo_proto::control_stream::agent_message::Message as FromAgent;
use tombolo_proto::control_stream::controller_message::Message as FromController;
use tombolo_proto::control_stream::{self, CaptureData};

fn capture(tail: &str) -> String {
    watcher(&format!("packetCaptures/{tail}"))
}

fn body() -> Value {
    json!({"properties": {
        "target": format!("{GROUP}/providers/Microsoft.Compute/virtualMachines/vm-a"),
        "storageLocation": {"filePath": "/var/captures/web.cap"},
        "timeLimitInSeconds": 60,
        "filters": [{"protocol": "TCP", "remotePort": "80-90;443"}],
    }})
}

async fn status(world: &World) -> Value {
    let answer = world.arm(Method::POST, &capture("web/queryStatus"), None).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body
}

fn refusal(answer: &Answer) -> (u16, &str, &Value) {
    (answer.status.as_u16(), answer.code(), &answer.body["error"]["target"])
}

/// A world with an agent that has its configuration in force.
async fn world() -> (World, FakeAgent, Stream) {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    let agent = FakeAgent::join(&world, "vm-a", "a-nic").await;
    let mut stream = agent.open_stream(hello_of_today(&agent)).await.unwrap();
    let (config, _) = stream.config().await;
    stream.applied(&config).await;
    (world, agent, stream)
}

/// The next list of captures that the agent gets.
async fn list(stream: &mut Stream) -> Vec<(String, CaptureRequest)> {
    loop {
        if let Some(FromController::Captures(list)) = stream.next().await.unwrap() {
            let read = |c: control_stream::Capture| (c.id, serde_json::from_slice(&c.request).unwrap());
            return list.captures.into_iter().map(read).collect();
        }
    }
}

async fn report(stream: &Stream, id: &str, report: &CaptureReport) {
    let report = control_stream::CaptureReport {
        id: id.to_owned(),
        report: serde_json::to_vec(report).unwrap(),
    };
    stream.send(FromAgent::CaptureReport(report)).await;
}

fn running() -> CaptureReport {
    CaptureReport {
        state: CaptureState::Running,
        started_ms: 1_800_000_000_000,
        packets: 3,
        bytes: 300,
        file: Some("/captures/web.pcapng".into()),
        ..CaptureReport::default()
    }
}

/// D42: a capture starts with its PUT, its agent gets it again after a lost stream, and its result survives a restart of the
/// controller.
#[tokio::test]
async fn d42_a_capture_runs_until_its_agent_reports_the_end() {
    let (mut world, agent, mut stream) = world().await;
    let made = world.arm(Method::PUT, &capture("web"), Some(body())).await;
    assert_eq!(made.status, 201, "{made:?}");
    let properties = &made.body["properties"];
    assert_eq!(properties["provisioningState"], "Succeeded");
    assert_eq!(properties["totalBytesPerSession"], 1_073_741_824);
    assert_eq!(
        properties["storageLocation"],
        json!({"filePath": "/var/captures/web.cap"})
    );
    assert_eq!(status(&world).await["packetCaptureStatus"], "NotStarted");
    let first = list(&mut stream).await;
    let [(id, request)] = &first[..] else {
        panic!("{first:?}")
    };
    assert_eq!(
        (request.layer, request.delivery, request.seconds, request.filters.len()),
        (CaptureLayer::Packets, CaptureDelivery::File, 60, 1)
    );
    report(&stream, id, &running()).await;
    let shown = until("the report", async || {
        let shown = status(&world).await;
        (shown["packetCaptureStatus"] == "Running").then_some(shown)
    })
    .await;
    assert_eq!(
        (
            &shown["captureStartTime"],
            &shown["packets"],
            &shown["packetCaptureError"]
        ),
        (&json!("2027-01-15T08:00:00Z"), &json!(3), &json!([]))
    );
    // A repeated PUT starts no second capture.
    let again = world.arm(Method::PUT, &capture("web"), Some(body())).await;
    assert_eq!((again.status.as_u16(), &again.body), (201, &made.body));

    drop(stream);
    let mut stream = agent.open_stream(hello_of_today(&agent)).await.unwrap();
    assert_eq!(list(&mut stream).await, first, "the list comes again over a new stream");
    let ended = CaptureReport {
        state: CaptureState::Stopped,
        stop_reason: Some(CaptureStop::TimeExceeded),
        ..running()
    };
    report(&stream, id, &ended).await;
    assert_eq!(list(&mut stream).await, [], "what has ended is not asked for");
    world.kill_and_restart().await;
    let shown = status(&world).await;
    assert_eq!(
        (
            &shown["packetCaptureStatus"],
            &shown["stopReason"],
            &shown["agentFilePath"]
        ),
        (
            &json!("Stopped"),
            &json!("TimeExceeded"),
            &json!("/captures/web.pcapng")
        )
    );
    let listed = world.arm(Method::GET, &watcher("packetCaptures"), None).await;
    assert_eq!(listed.body["value"], json!([made.body]));
    for _ in 0..2 {
        assert_eq!(world.arm(Method::DELETE, &capture("web"), None).await.status, 204);
    }
    let gone = world.arm(Method::POST, &capture("web/queryStatus"), None).await;
    assert_eq!((gone.status.as_u16(), gone.code()), (404, "NotFound"));
}

/// D42: stop ends the capture at the agent, whose last report counts; a PUT with other properties replaces the capture.
#[tokio::test]
async fn d42_a_capture_is_stopped_and_replaced() {
    let (world, _agent, mut stream) = world().await;
    world.arm(Method::PUT, &capture("web"), Some(body())).await;
    let (id, _) = list(&mut stream).await.remove(0);
    report(&stream, &id, &running()).await;
    let mut other = body();
    other["properties"]["timeLimitInSeconds"] = json!(30);
    let replaced = world.arm(Method::PUT, &capture("web"), Some(other)).await;
    assert_eq!(replaced.status, 201, "{replaced:?}");
    let second = list(&mut stream).await;
    let [(second, request)] = &second[..] else {
        panic!("{second:?}")
    };
    assert!(*second != id && request.seconds == 30);
    assert_eq!(
        status(&world).await["packets"],
        0,
        "the report was about the earlier one"
    );

    let agent_ends = async {
        assert_eq!(list(&mut stream).await, []);
        let ended = CaptureReport {
            state: CaptureState::Stopped,
            stop_reason: Some(CaptureStop::Stopped),
            packets: 9,
            ..running()
        };
        report(&stream, second, &ended).await;
    };
    let stop = capture("web/stop");
    let (stopped, ()) = tokio::join!(world.arm(Method::POST, &stop, None), agent_ends);
    assert_eq!(stopped.status, 200, "{stopped:?}");
    let shown = status(&world).await;
    assert_eq!(
        (&shown["packetCaptureStatus"], &shown["stopReason"], &shown["packets"]),
        (&json!("Stopped"), &json!("Stopped"), &json!(9))
    );
    assert_eq!(world.arm(Method::POST, &stop, None).await.status, 200, "again");
    let unknown = world.arm(Method::POST, &capture("web/start"), None).await;
    assert_eq!((unknown.status.as_u16(), unknown.code()), (400, "XActionNotSupported"));
}

/// D42: the agent's failure is the state of the capture.
#[tokio::test]
async fn d42_a_failed_capture_says_why() {
    let (world, _agent, mut stream) = world().await;
    world.arm(Method::PUT, &capture("web"), Some(body())).await;
    let (id, _) = list(&mut stream).await.remove(0);
    let failed = CaptureReport {
        state: CaptureState::Error,
        error: Some(CaptureError::LocalFileFailed),
        message: Some(format!("no space\nleft {}", "x".repeat(5000))),
        ..CaptureReport::default()
    };
    report(&stream, &id, &failed).await;
    let shown = until("the failure", async || {
        let shown = status(&world).await;
        (shown["packetCaptureStatus"] == "Error").then_some(shown)
    })
    .await;
    assert_eq!(
        (&shown["packetCaptureError"], &shown["stopReason"]),
        (&json!(["LocalFileFailed"]), &Value::Null)
    );
    let message = shown["message"].as_str().unwrap();
    assert!(
        message.starts_with("no spaceleft x") && message.len() == 300,
        "{message}"
    );
}

/// D42, D27: captures that are not possible are refused by name, and change nothing.
#[tokio::test]
async fn d42_d27_impossible_captures_are_refused() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    let agent = FakeAgent::join(&world, "vm-a", "a-nic").await;
    let put = async |body: Value| world.arm(Method::PUT, &capture("web"), Some(body)).await;
    let live = json!({"target": "vm-a"});
    let away = put(body()).await;
    assert_eq!(refusal(&away), (400, "XAgentNotConnected", &Value::Null), "{away:?}");
    let away = world.fabric(Method::POST, "capture", Some(live.clone())).await;
    assert_eq!(refusal(&away), (400, "XAgentNotConnected", &Value::Null), "{away:?}");

    let mut hello = hello_of_today(&agent);
    hello.features.retain(|feature| feature != "packetCapture");
    let mut stream = agent.open_stream(hello).await.unwrap();
    let (config, _) = stream.config().await;
    stream.applied(&config).await;
    let old = put(body()).await;
    assert_eq!(refusal(&old), (400, "XAgentTooOld", &Value::Null), "{old:?}");
    let old = world.fabric(Method::POST, "capture", Some(live)).await;
    assert_eq!(refusal(&old), (400, "XAgentTooOld", &Value::Null), "{old:?}");
    assert!(stream.quiet().await, "an older agent gets nothing that it cannot read");

    let mut bad = body();
    bad["properties"]["filters"][0]["remotePort"] = json!("90-80");
    let refused = put(bad).await;
    let target = json!("properties.filters[0].remotePort");
    assert_eq!(refusal(&refused), (400, "InvalidRequestFormat", &target), "{refused:?}");
    let mut unknown = body();
    unknown["properties"]["target"] = json!(format!("{GROUP}/providers/Microsoft.Compute/virtualMachines/none"));
    let refused = put(unknown).await;
    let target = json!("properties.target");
    assert_eq!(
        refusal(&refused),
        (400, "InvalidResourceReference", &target),
        "{refused:?}"
    );
    assert_eq!(world.arm(Method::GET, &capture("web"), None).await.status, 404);
    for (bad, target) in [
        (json!({"target": "none"}), json!("target")),
        (
            json!({"target": "vm-a", "filters": [{"protocol": "x"}]}),
            json!("filters[0].protocol"),
        ),
    ] {
        let refused = world.fabric(Method::POST, "capture", Some(bad)).await;
        assert_eq!(
            (refused.status.as_u16(), &refused.body["error"]["target"]),
            (400, &target),
            "{refused:?}"
        );
    }
}

/// D42: an agent makes four captures at a time.
#[tokio::test]
async fn d42_the_captures_of_an_agent_are_limited() {
    let (world, _agent, _stream) = world().await;
    for n in 0..4 {
        let made = world.arm(Method::PUT, &capture(&format!("c{n}")), Some(body())).await;
        assert_eq!(made.status, 201, "{made:?}");
    }
    let refused = world.arm(Method::PUT, &capture("c4"), Some(body())).await;
    assert_eq!(refusal(&refused), (409, "XAgentCaptureLimitReached", &Value::Null));
    let mut other = body();
    other["properties"]["timeLimitInSeconds"] = json!(30);
    let replaced = world.arm(Method::PUT, &capture("c3"), Some(other)).await;
    assert_eq!(replaced.status, 201, "one that is replaced makes room: {replaced:?}");
}

fn data(id: &str, bytes: Vec<u8>, end: bool) -> FromAgent {
    FromAgent::CaptureData(CaptureData {
        id: id.to_owned(),
        data: bytes,
        end,
    })
}

/// Begins a live capture, to which the agent sends its first bytes.
async fn live(world: &World, stream: &mut Stream) -> (String, reqwest::Response) {
    let request = world
        .client
        .post(world.url("/fabric/v1/capture"))
        .bearer_auth(&world.token);
    let request = request.json(&json!({"target": "vm-a", "sealed": true, "seconds": 5}));
    let agent_begins = async {
        let (id, request) = list(stream).await.remove(0);
        assert_eq!(
            (request.layer, request.delivery, request.seconds),
            (CaptureLayer::Datagrams, CaptureDelivery::Stream, 5)
        );
        stream.send(data(&id, vec![1; 10], false)).await;
        id
    };
    let (response, id) = tokio::join!(request.send(), agent_begins);
    let response = response.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/x-pcapng");
    (id, response)
}

/// The number of bytes that the client has read, as the agent is told.
async fn read(stream: &mut Stream) -> u64 {
    loop {
        if let Some(FromController::CaptureRead(read)) = stream.next().await.unwrap() {
            return read.bytes;
        }
    }
}

/// D42: bytes pass to the client as it reads them, and the agent ends the capture when the client has gone.
#[tokio::test]
async fn d42_a_live_capture_ends_with_its_client() {
    let (world, _agent, mut stream) = world().await;
    let (id, mut response) = live(&world, &mut stream).await;
    assert_eq!(response.chunk().await.unwrap().unwrap(), vec![1; 10]);
    assert_eq!(read(&mut stream).await, 10);
    stream.send(data(&id, vec![2; 5], false)).await;
    assert_eq!(response.chunk().await.unwrap().unwrap(), vec![2; 5]);
    assert_eq!(read(&mut stream).await, 15);
    drop(response);
    assert_eq!(list(&mut stream).await, []);

    let (id, response) = live(&world, &mut stream).await;
    stream.send(data(&id, vec![3; 5], false)).await;
    stream.send(data(&id, Vec::new(), true)).await;
    let all = tokio::time::timeout(EVENT_TIMEOUT, response.bytes())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        all,
        [vec![1; 10], vec![3; 5]].concat(),
        "the agent's end is the end of the response"
    );
}

/// D42: a response is broken off when its agent disconnects, cannot capture, or sends more than it may.
#[tokio::test]
async fn d42_a_live_capture_breaks_off_with_its_agent() {
    let (world, agent, mut stream) = world().await;
    let (id, response) = live(&world, &mut stream).await;
    stream.send(data(&id, vec![0; STREAM_WINDOW + 1], false)).await;
    assert!(response.bytes().await.is_err(), "more than the window");
    assert_eq!(list(&mut stream).await, []);
    let (_, response) = live(&world, &mut stream).await;
    drop(stream);
    assert!(response.bytes().await.is_err(), "the agent has gone");

    let mut stream = agent.open_stream(hello_of_today(&agent)).await.unwrap();
    let asked = world.fabric(Method::POST, "capture", Some(json!({"target": "vm-a"})));
    let agent_refuses = async {
        let (id, _) = list(&mut stream).await.remove(0);
        let failed = CaptureReport {
            state: CaptureState::Error,
            error: Some(CaptureError::CaptureFailed),
            message: Some("no such network interface".into()),
            ..CaptureReport::default()
        };
        report(&stream, &id, &failed).await;
    };
    let (refused, ()) = tokio::join!(asked, agent_refuses);
    assert_eq!((refused.status.as_u16(), refused.code()), (409, "XAgentNotReached"));
    let message = refused.body["error"]["message"].as_str().unwrap();
    assert!(message.contains("no such network interface"), "{message}");
}

/// Captures are writes: the activity log has them.
#[tokio::test]
async fn captures_are_in_the_activity_log() {
    let (world, _agent, mut stream) = world().await;
    world.arm(Method::PUT, &capture("web"), Some(body())).await;
    world.arm(Method::POST, &capture("web/stop"), None).await;
    list(&mut stream).await;
    world.arm(Method::DELETE, &capture("web"), None).await;
    world
        .fabric(Method::POST, "capture", Some(json!({"target": "none"})))
        .await;
    let subscription = GROUP.split("/resourceGroups").next().unwrap();
    let path =
        format!("{subscription}/providers/Microsoft.Insights/eventtypes/management/values?api-version=2015-04-01");
    let log = world.send(Method::GET, &path, None).await;
    let operations: Vec<&str> = log.body["value"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|event| event["operationName"]["value"].as_str())
        .collect();
    for operation in ["write", "stop/action", "delete"] {
        let operation = format!("Microsoft.Network/networkWatchers/packetCaptures/{operation}");
        assert!(operations.contains(&&*operation), "{operation}: {operations:?}");
    }
    assert!(operations.contains(&"Tombolo.Fabric/capture/action"), "{operations:?}");
}
