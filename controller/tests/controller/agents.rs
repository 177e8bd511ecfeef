//! Tests of agents: how they join, receive and acknowledge configurations, are revoked, renew certificates, report
//! endpoints, and send probes.

use crate::fake_agent::{FakeAgent, csr, vm};
use crate::world::{World, answer, until};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use reqwest::Method;
use serde_json::json;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio_stream::wrappers::ReceiverStream;
use tombolo_proto::control_stream::agent_message::Message as FromAgent;
use tombolo_proto::control_stream::controller_message::Message as FromController;
use tombolo_proto::control_stream::{AgentMessage, Hello, ProbeResult, Rejected, Status};
use tombolo_proto::id::PublicKey;
use tombolo_proto::probe::{ProbeReport, ProbeRequest};
use tombolo_proto::status::AgentStatus;
use tonic::Code;

#[tokio::test]
async fn a_token_is_good_once_and_for_its_binding() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    let body = json!({"agent": "vm-a", "binding": vm("vm-a", "a-nic")});
    let token = world.fabric(Method::POST, "tokens", Some(body)).await;
    assert_eq!(token.status, 201);
    let text = token.body["token"].as_str().unwrap();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let join = async |token: &str, csr: String| {
        let body = json!({"token": token, "csr": csr, "publicKey": PublicKey(rand::random()), "endpoints": ["[::]:7"]});
        answer(world.client.post(world.url("/fabric/v1/join")).json(&body)).await
    };
    // A request with a wrong secret, or a malformed one, is refused, and the token can still be used afterwards.
    let id = token.body["id"].as_str().unwrap();
    let wrong = join(&format!("tmb1.{id}.wrong.00"), csr(&key)).await;
    assert_eq!((wrong.status.as_u16(), wrong.code()), (403, "XTokenInvalid"));
    let bad = join(text, "no request".into()).await;
    assert_eq!(
        (bad.status.as_u16(), bad.body["error"]["target"].as_str()),
        (400, Some("csr"))
    );
    let listed = world.fabric(Method::GET, "tokens", None).await;
    assert_eq!(listed.body["value"].as_array().map(Vec::len), Some(1));
    assert!(
        !listed.body.to_string().contains(text.split('.').nth(2).unwrap()),
        "secrets are not shown"
    );

    assert_eq!(join(text, csr(&key)).await.status, 200);
    assert_eq!(join(text, csr(&key)).await.status, 403);
    let agent = world.fabric(Method::GET, "agents/vm-a", None).await;
    assert_eq!(
        agent.body["endpoints"],
        json!(["127.0.0.1:7"]),
        "the unspecified address stands for the source address"
    );
    assert_eq!(agent.body["connected"], json!(false));
    let view = world
        .arm(Method::GET, "~/providers/Microsoft.Compute/virtualMachines/vm-a", None)
        .await;
    assert_eq!(view.status, 200, "joining creates the view of the virtual machine (D7)");
}

#[tokio::test]
async fn an_expired_token_is_refused() {
    let mut world = World::start(&[]).await;
    world.two_vnets().await;
    let body = json!({"agent": "vm-a", "binding": vm("vm-a", "a-nic"), "ttlSeconds": 1});
    let token = world.fabric(Method::POST, "tokens", Some(body)).await;
    let ends = token.body["expires"].as_u64().unwrap();
    assert!((unix_now() - 5..=unix_now() + 1).contains(&ends), "{ends}");
    // A token that has expired is refused. The test does not wait for that time, but changes the token's time of expiry
    // in the store.
    let id = token.body["id"].as_str().unwrap();
    world
        .change_document(&format!("fabric/tokens/{id}"), |token| token["expires"] = json!(1))
        .await;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let body =
        json!({"token": token.body["token"], "csr": csr(&key), "publicKey": PublicKey([1; 32]), "endpoints": []});
    let refused = answer(world.client.post(world.url("/fabric/v1/join")).json(&body)).await;
    assert_eq!((refused.status.as_u16(), refused.code()), (403, "XTokenInvalid"));
    let message = refused.body["error"]["message"].as_str().unwrap();
    assert!(message.contains("expired"), "{message}");
}

/// The time of the system clock in Unix seconds.
fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[tokio::test]
async fn a_change_reaches_only_those_that_it_concerns() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    let (a, b) = (
        FakeAgent::join(&world, "vm-a", "a-nic").await,
        FakeAgent::join(&world, "vm-b", "b-nic").await,
    );
    let (mut a, mut b) = (a.hello(0, "").await.unwrap(), b.hello(0, "").await.unwrap());
    for stream in [&mut a, &mut b] {
        let (config, parsed) = stream.config().await;
        assert!(parsed.links.is_empty());
        stream.applied(&config).await;
    }
    // The creation of another resource group changes no agent's configuration. So its revision is in force at once, and
    // the agents receive no configuration.
    let other = world
        .put(
            &format!("/subscriptions/{}/resourceGroups/other", crate::world::SUBSCRIPTION),
            json!({"location": "r"}),
        )
        .await;
    let waited = world
        .fabric(Method::GET, &format!("revisions/{}/wait", other.revision()), None)
        .await;
    assert_eq!(waited.body, json!({"inForce": true, "waitingFor": []}));
    assert!(a.quiet().await && b.quiet().await);

    world.peer("a", "b").await;
    let connected = world.peer("b", "a").await;
    assert_eq!(connected.body["properties"]["peeringState"], "Connected");
    let (config, parsed) = a.config().await;
    assert_eq!(parsed.links.len(), 1);
    assert_eq!(parsed.links[0].peer.as_str(), "vm-b");
    assert_eq!(config.revision, connected.revision());
    a.applied(&config).await;
    let path = format!("revisions/{}/wait?timeoutSeconds=0", connected.revision());
    let waited = until("a has acknowledged", async || {
        let waited = world.fabric(Method::GET, &path, None).await;
        (waited.body["waitingFor"].as_array()?.len() == 1).then_some(waited)
    });
    assert_eq!(waited.await.body, json!({"inForce": false, "waitingFor": ["vm-b"]}));

    // The REST interface shows the reason why an agent rejects a configuration. The controller does not send the
    // rejected configuration again; it sends the next configuration that differs from it.
    let (config, _) = b.config().await;
    let refusal = Rejected {
        revision: config.revision,
        digest: config.digest.clone(),
        reason: "overlaps eth0".into(),
    };
    b.send(FromAgent::Rejected(refusal)).await;
    let seen = until("the refusal is shown", async || {
        let agent = world.fabric(Method::GET, "agents/vm-b", None).await;
        agent.body["rejected"]["reason"].as_str().map(ToOwned::to_owned)
    });
    assert_eq!(seen.await, "overlaps eth0");
    assert!(b.quiet().await);
    world
        .put(
            "~/providers/Microsoft.Network/virtualNetworks/b/subnets/more",
            json!({"properties": {"addressPrefix": "10.2.9.0/24"}}),
        )
        .await;
    world.nic("a2-nic", "a", "10.1.0.5").await;
    let third = FakeAgent::join(&world, "vm-a2", "a2-nic").await;
    let (config, parsed) = b.config().await;
    assert_eq!(parsed.links.len(), 2);
    b.applied(&config).await;
    let (config, _) = a.config().await;
    a.applied(&config).await;
    let all = world.fabric(Method::GET, "revisions", None).await;
    assert_eq!(all.body["agents"].as_array().map(Vec::len), Some(3));
    drop(third);
}

#[tokio::test]
async fn an_agent_that_is_up_to_date_is_sent_nothing_after_a_restart() {
    let mut world = World::start(&[]).await;
    world.two_vnets().await;
    let agent = FakeAgent::join(&world, "vm-a", "a-nic").await;
    let mut stream = agent.hello(0, "").await.unwrap();
    let (config, _) = stream.config().await;
    stream.applied(&config).await;
    world.kill_and_restart().await;
    let mut again = agent.hello(config.revision, &config.digest).await.unwrap();
    assert!(matches!(again.next().await, Ok(Some(FromController::UpToDate(_)))));
    assert!(again.quiet().await);
    let listed = world.fabric(Method::GET, "revisions", None).await;
    assert_eq!(listed.body["agents"][0]["upToDate"], true);
    assert_eq!(listed.body["inForce"], listed.body["desired"]);
}

#[tokio::test]
async fn revoking_and_deleting_cut_the_stream_at_once() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    let (a, b) = (
        FakeAgent::join(&world, "vm-a", "a-nic").await,
        FakeAgent::join(&world, "vm-b", "b-nic").await,
    );
    let mut streams = [a.hello(0, "").await.unwrap(), b.hello(0, "").await.unwrap()];
    for stream in &mut streams {
        stream.config().await;
    }
    let begin = Instant::now();
    assert_eq!(world.fabric(Method::POST, "agents/vm-a/revoke", None).await.status, 204);
    assert_eq!(world.fabric(Method::DELETE, "agents/vm-b", None).await.status, 204);
    for stream in &mut streams {
        assert_eq!(stream.next().await.unwrap_err().code(), Code::PermissionDenied);
    }
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert_eq!(a.refused().await, Code::PermissionDenied);
    assert_eq!(b.refused().await, Code::PermissionDenied);
    let shown = world.fabric(Method::GET, "agents/vm-a", None).await;
    assert_eq!(shown.body["revoked"], true);
    assert_eq!(world.fabric(Method::GET, "agents/vm-b", None).await.status, 404);
    // The NIC can be bound again.
    FakeAgent::join(&world, "vm-b", "b-nic").await;
}

#[tokio::test]
async fn only_the_pinned_key_speaks_for_an_agent() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    let mut agent = FakeAgent::join(&world, "vm-a", "a-nic").await;
    let other = FakeAgent::join(&world, "vm-b", "b-nic").await;
    let mut anonymous = agent.connect(true).await.unwrap();
    let nobody = anonymous.sync(tokio_stream::empty()).await.unwrap_err();
    assert_eq!(nobody.code(), Code::Unauthenticated);
    let mut impostor = other;
    impostor.id = "vm-a".into();
    assert_eq!(impostor.refused().await, Code::PermissionDenied);
    // An agent may renew its certificate with a new key. From then on, the controller refuses the old key.
    let (old, new) = (
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(),
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(),
    );
    agent.renew(old).await.unwrap();
    let outdated = agent.clone_identity();
    agent.renew(new).await.unwrap();
    agent.hello(0, "").await.unwrap().config().await;
    assert_eq!(outdated.refused().await, Code::PermissionDenied);
}

#[tokio::test]
async fn an_expired_certificate_may_only_renew() {
    let world = World::start(&["--agent-certificate-lifetime", "90"]).await;
    world.two_vnets().await;
    let mut agent = FakeAgent::join(&world, "vm-a", "a-nic").await;
    let lifetime = agent.certificate_end() - i64::try_from(unix_now()).unwrap();
    assert!((60..=90).contains(&lifetime), "{lifetime} s");
    agent.expire_certificate(&world);
    assert_eq!(agent.refused().await, Code::Unauthenticated);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    agent.renew(key).await.unwrap();
    agent.hello(0, "").await.unwrap().config().await;
}

#[tokio::test]
async fn a_stream_stays_bound_to_the_host_that_opened_it() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    let first = FakeAgent::join(&world, "vm-a", "a-nic").await;
    // The controller has authorized the request for the stream, but the agent has not sent its Hello yet.
    let mut client = first.connect(false).await.unwrap();
    let (outgoing, messages) = tokio::sync::mpsc::channel(4);
    let mut silent = client.sync(ReceiverStream::new(messages)).await.unwrap().into_inner();
    assert_eq!(world.fabric(Method::DELETE, "agents/vm-a", None).await.status, 204);
    let second = FakeAgent::join(&world, "vm-a", "a-nic").await;
    let mut stream = second.hello(0, "").await.unwrap();
    stream.config().await;
    let hello = Hello {
        agent: "vm-a".into(),
        ..Default::default()
    };
    let message = Some(FromAgent::Hello(hello));
    outgoing.send(AgentMessage { message }).await.unwrap();
    assert_eq!(silent.message().await.unwrap_err().code(), Code::PermissionDenied);
    assert!(stream.quiet().await, "the successor's stream goes on");
}

#[tokio::test]
async fn what_is_in_flight_is_awaited_before_a_return_is_in_force() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    let a = FakeAgent::join(&world, "vm-a", "a-nic").await;
    let b = FakeAgent::join(&world, "vm-b", "b-nic").await;
    let (mut a, mut b) = (a.hello(0, "").await.unwrap(), b.hello(0, "").await.unwrap());
    for stream in [&mut a, &mut b] {
        let (config, _) = stream.config().await;
        stream.applied(&config).await;
    }
    world.peer("a", "b").await;
    world.peer("b", "a").await;
    let (with_link, _) = a.config().await;
    let (for_b, _) = b.config().await;
    b.applied(&for_b).await;
    for (from, to) in [("a", "b"), ("b", "a")] {
        let path = format!("~/providers/Microsoft.Network/virtualNetworks/{from}/virtualNetworkPeerings/to-{to}");
        assert!(world.arm(Method::DELETE, &path, None).await.status.is_success());
    }
    let (for_b, _) = b.config().await;
    b.applied(&for_b).await;
    let revision = world.fabric(Method::GET, "health", None).await.body["revision"].clone();
    let path = format!("revisions/{revision}/wait?timeoutSeconds=1");
    let waited = world.fabric(Method::GET, &path, None).await;
    assert_eq!(waited.body, json!({"inForce": false, "waitingFor": ["vm-a"]}));
    a.applied(&with_link).await;
    let (again, parsed) = a.config().await;
    assert!(parsed.links.is_empty());
    a.applied(&again).await;
    let waited = world
        .fabric(Method::GET, &format!("revisions/{revision}/wait"), None)
        .await;
    assert_eq!(waited.body["inForce"], true);
}

/// After an older backup was restored, an agent may report a revision that is larger than any in the controller's
/// store.
#[tokio::test]
async fn a_number_of_another_time_is_not_in_force() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    let agent = FakeAgent::join(&world, "vm-a", "a-nic").await;
    let mut stream = agent.hello(1_000_000, "of another time").await.unwrap();
    let (config, _) = stream.config().await;
    let revisions = world.fabric(Method::GET, "revisions", None).await;
    assert!(revisions.body["inForce"].as_u64() < revisions.body["desired"].as_u64());
    let path = format!("revisions/{}/wait?timeoutSeconds=0", config.revision);
    let waited = world.fabric(Method::GET, &path, None).await;
    assert_eq!(waited.body["inForce"], false);
    stream.applied(&config).await;
    let path = format!("revisions/{}/wait", config.revision);
    let waited = world.fabric(Method::GET, &path, None).await;
    assert_eq!(waited.body["inForce"], true);
}

#[tokio::test]
async fn a_newer_stream_takes_over() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    let agent = FakeAgent::join(&world, "vm-a", "a-nic").await;
    let mut first = agent.hello(0, "").await.unwrap();
    first.config().await;
    let mut second = agent.hello(0, "").await.unwrap();
    second.config().await;
    assert_eq!(first.next().await.unwrap_err().code(), Code::Aborted);
    let shown = world.fabric(Method::GET, "agents/vm-a", None).await;
    assert_eq!(shown.body["connected"], true);
}

#[tokio::test]
async fn endpoints_and_status_are_taken_in() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    let agent = FakeAgent::join(&world, "vm-a", "a-nic").await;
    let mut stream = agent.hello(0, "").await.unwrap();
    stream.config().await;
    let before = world.fabric(Method::GET, "health", None).await.body["revision"].clone();
    let status = AgentStatus {
        drops: [("NoRoute".to_owned(), 3)].into(),
        ..Default::default()
    };
    let status_with = |endpoint: &str| {
        let status = serde_json::to_vec(&status).unwrap();
        FromAgent::Status(Status {
            status,
            endpoints: vec![endpoint.to_owned()],
        })
    };
    stream.send(status_with("0.0.0.0:51820")).await;
    let drops = until("the status is shown", async || {
        let agent = world.fabric(Method::GET, "agents/vm-a", None).await;
        agent.body["status"]["drops"]["NoRoute"].as_u64()
    });
    assert_eq!(drops.await, 3);
    assert_eq!(
        world.fabric(Method::GET, "health", None).await.body["revision"],
        before,
        "known endpoints are no change"
    );
    stream.send(status_with("127.0.0.9:51821")).await;
    until("the endpoint is stored", async || {
        let agent = world.fabric(Method::GET, "agents/vm-a", None).await;
        (agent.body["endpoints"] == json!(["127.0.0.9:51821"])).then_some(())
    })
    .await;
}

/// D6, D15: the controller stores the QUIC endpoint and the number of lanes in an agent's Hello, and sends both to the
/// agents that have a link to this agent.
#[tokio::test]
async fn a_second_port_and_lanes_are_told_to_others() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    world.peer("a", "b").await;
    world.peer("b", "a").await;
    let a = FakeAgent::join(&world, "vm-a", "a-nic").await;
    let _b = FakeAgent::join(&world, "vm-b", "b-nic").await;
    let hello = Hello {
        agent: "vm-a".into(),
        endpoints: vec!["0.0.0.0:51820".into()],
        quic_endpoint: "0.0.0.0:443".into(),
        lanes: 4,
        ..Hello::default()
    };
    let stream = a.open_stream(hello).await.unwrap();
    until("lanes are stored", async || {
        let agent = world.fabric(Method::GET, "agents/vm-a", None).await;
        (agent.body["lanes"] == 4 && agent.body["quicEndpoint"] == "127.0.0.1:443").then_some(())
    })
    .await;
    let config = world.fabric(Method::GET, "agents/vm-b/config", None).await;
    let link = &config.body["links"][0];
    assert_eq!(
        (&link["lanes"], &link["quicEndpoint"]),
        (&json!(4), &json!("127.0.0.1:443")),
        "{config:?}"
    );
    // A status does not contain the number of lanes, and must not reset the number that the Hello has set.
    let status = serde_json::to_vec(&AgentStatus::default()).unwrap();
    let endpoints = vec!["127.0.0.9:51821".to_owned()];
    stream.send(FromAgent::Status(Status { status, endpoints })).await;
    until("the endpoint is stored", async || {
        let agent = world.fabric(Method::GET, "agents/vm-a", None).await;
        (agent.body["endpoints"] == json!(["127.0.0.9:51821"]) && agent.body["lanes"] == 4).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_probe_runs_on_the_agent_of_its_source() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    let agent = FakeAgent::join(&world, "vm-a", "a-nic").await;
    let probe =
        json!({"from": "vm-a", "to": "10.2.0.4", "kind": "ping", "count": 2, "timeoutMs": 100, "intervalMs": 10});
    let away = world.fabric(Method::POST, "probe", Some(probe.clone())).await;
    assert_eq!((away.status.as_u16(), away.code()), (409, "XAgentNotReached"));
    let mut stream = agent.hello(0, "").await.unwrap();
    stream.config().await;
    let answer = async {
        let Ok(Some(FromController::Probe(probe))) = stream.next().await else {
            panic!("no probe")
        };
        let request: ProbeRequest = serde_json::from_slice(&probe.request).unwrap();
        assert_eq!((request.source.to_string(), request.count), ("10.1.0.4".to_owned(), 2));
        let report = ProbeReport {
            sent: 2,
            received: 1,
            rtts_ms: vec![1.5],
            ..Default::default()
        };
        let report = serde_json::to_vec(&report).unwrap();
        stream
            .send(FromAgent::ProbeResult(ProbeResult { id: probe.id, report }))
            .await;
    };
    let (report, ()) = tokio::join!(world.fabric(Method::POST, "probe", Some(probe)), answer);
    assert_eq!(report.status, 200, "{report:?}");
    assert_eq!(
        (&report.body["received"], &report.body["from"]),
        (&json!(1), &json!("10.1.0.4"))
    );
    for (field, value) in [
        ("count", json!(0)),
        ("maxTtl", json!(65)),
        ("timeoutMs", json!(1)),
        ("extra", json!(1)),
    ] {
        let mut bad = json!({"from": "vm-a", "to": "10.2.0.4", "kind": "ping"});
        bad[field] = value;
        assert_eq!(
            world.fabric(Method::POST, "probe", Some(bad)).await.status,
            400,
            "{field}"
        );
    }
}
