//! The fabric API: join tokens, API tokens, settings, explain and backup.

use crate::fake_agent::{FakeAgent, vm};
use crate::world::{World, answer};
use reqwest::Method;
use serde_json::json;
use std::process::Command;
use tombolo_proto::config::AgentConfig;

#[tokio::test]
async fn unknown_fields_are_refused() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    for (path, body) in [
        ("tokens", json!({"agent": "x", "binding": vm("x", "a-nic"), "extra": 1})),
        (
            "tokens",
            json!({"agent": "x", "binding": {"type": "vm", "vm": "v", "nics": [], "extra": 1}}),
        ),
        ("tokens", json!({"agent": "UPPER", "binding": vm("x", "a-nic")})),
        (
            "tokens",
            json!({"agent": "x", "binding": vm("x", "a-nic"), "ttlSeconds": 0}),
        ),
        (
            "tokens",
            json!({"agent": "x", "binding": vm("x", "a-nic"), "ttlSeconds": -1}),
        ),
        ("tokens", json!([])),
        ("explain", json!({"from": "a", "to": "b", "extra": 1})),
        ("explain", json!({"from": "nobody", "to": "10.1.0.4"})),
        ("api-tokens", json!({"name": "x", "extra": 1})),
        ("api-tokens", json!({"name": ""})),
        (
            "join",
            json!({"token": "t", "csr": "", "publicKey": "", "endpoints": [], "extra": 1}),
        ),
    ] {
        let refused = world.fabric(Method::POST, path, Some(body.clone())).await;
        assert_eq!(refused.status, 400, "{path} {body}: {refused:?}");
        assert!(!refused.code().is_empty());
    }
    let refused = world.fabric(Method::PUT, "settings", Some(json!({"mtv": 1400}))).await;
    assert_eq!(refused.status, 400);
    assert!(refused.body["error"]["message"].as_str().unwrap().contains("mtv"));
    // The binding has a valid form, but the rules refuse it, because its NIC does not exist.
    let body = json!({"agent": "x", "binding": vm("x", "no-nic")});
    let refused = world.fabric(Method::POST, "tokens", Some(body)).await;
    assert_eq!(
        (refused.status.as_u16(), refused.code()),
        (400, "InvalidResourceReference")
    );
}

#[tokio::test]
async fn settings_are_kept_and_reach_agents() {
    let mut world = World::start(&[]).await;
    world.two_vnets().await;
    let agent = FakeAgent::join(&world, "vm-a", "a-nic").await;
    let mut stream = agent.hello(0, "").await.unwrap();
    let (config, parsed) = stream.config().await;
    assert_eq!(parsed.mtu, 1420);
    stream.applied(&config).await;
    let set = world.fabric(Method::PUT, "settings", Some(json!({"mtu": 1380}))).await;
    assert_eq!(
        (set.status.as_u16(), &set.body["mtu"], &set.body["tunnelsPerGateway"]),
        (200, &json!(1380), &json!(30))
    );
    assert_eq!(stream.config().await.1.mtu, 1380);
    world.kill_and_restart().await;
    assert_eq!(world.fabric(Method::GET, "settings", None).await.body["mtu"], 1380);
}

#[tokio::test]
async fn explain_speaks_of_names() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    FakeAgent::join(&world, "vm-a", "a-nic").await;
    FakeAgent::join(&world, "vm-b", "b-nic").await;
    let ask = async || {
        world
            .fabric(Method::POST, "explain", Some(json!({"from": "vm-a", "to": "vm-b"})))
            .await
    };
    let before = ask().await;
    assert_eq!(
        (before.status.as_u16(), &before.body["reachable"]),
        (200, &json!(false)),
        "{before:?}"
    );
    world.peer("a", "b").await;
    world.peer("b", "a").await;
    let after = ask().await;
    assert_eq!(after.body["reachable"], true, "{after:?}");
    assert_eq!(
        after.body["trace"].as_array().map(Vec::len),
        Some(1),
        "a peering is one hop (T2)"
    );
}

#[tokio::test]
async fn keys_are_blanked_in_the_shown_configuration() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    FakeAgent::join(&world, "vm-a", "a-nic").await;
    let shown = world.fabric(Method::GET, "agents/vm-a/config", None).await;
    let config: AgentConfig = serde_json::from_value(shown.body).unwrap();
    assert_eq!(config.agent.as_str(), "vm-a");
    assert_eq!(
        world.fabric(Method::GET, "agents/nobody/config", None).await.status,
        404
    );
    assert_eq!(world.fabric(Method::GET, "agents/NOBODY", None).await.status, 404);
}

#[tokio::test]
async fn the_shown_configuration_is_never_older_than_the_last_answer() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    FakeAgent::join(&world, "vm-a", "a-nic").await;
    for mtu in 1300..1400 {
        let set = world.fabric(Method::PUT, "settings", Some(json!({"mtu": mtu}))).await;
        assert_eq!(set.status, 200);
        let shown = world.fabric(Method::GET, "agents/vm-a/config", None).await;
        assert_eq!(shown.body["mtu"], mtu);
    }
}

#[tokio::test]
async fn api_tokens_let_in_until_they_are_withdrawn() {
    let mut world = World::start(&[]).await;
    let made = world
        .fabric(Method::POST, "api-tokens", Some(json!({"name": "ci"})))
        .await;
    assert_eq!(made.status, 201);
    let (id, text) = (
        made.body["id"].as_str().unwrap(),
        made.body["token"].as_str().unwrap().to_owned(),
    );
    let listed = world.fabric(Method::GET, "api-tokens", None).await;
    assert!(!listed.body.to_string().contains(&text));
    let ask = async |world: &World, token: &str| {
        answer(world.client.get(world.url("/fabric/v1/agents")).bearer_auth(token))
            .await
            .status
            .as_u16()
    };
    assert_eq!(ask(&world, &text).await, 200);
    world.kill_and_restart().await;
    assert_eq!(ask(&world, &text).await, 200);
    let state = std::fs::read(world.data().join("state.db")).unwrap();
    let log = std::fs::read(world.data().join("state.db-wal")).unwrap_or_default();
    for secret in [&text, &world.token] {
        let found = |bytes: &[u8]| bytes.windows(secret.len()).any(|w| w == secret.as_bytes());
        assert!(!found(&state) && !found(&log), "tokens are stored hashed");
    }
    assert_eq!(
        world
            .fabric(Method::DELETE, &format!("api-tokens/{id}"), None)
            .await
            .status,
        204
    );
    assert_eq!(ask(&world, &text).await, 401);
    let kept = world.fabric(Method::DELETE, "api-tokens/admin", None).await;
    assert_eq!(kept.status, 409);
}

#[tokio::test]
async fn a_backup_is_the_whole_controller() {
    let mut world = World::start(&[]).await;
    world.two_vnets().await;
    let agent = FakeAgent::join(&world, "vm-a", "a-nic").await;
    let copy = world
        .client
        .post(world.url("/fabric/v1/backup"))
        .bearer_auth(&world.token)
        .send()
        .await
        .unwrap();
    assert_eq!(copy.status(), 200);
    let copy = copy.bytes().await.unwrap();
    world
        .put(
            "~/providers/Microsoft.Network/virtualNetworks/later",
            json!({"location": "region1", "properties": {"addressSpace": {"addressPrefixes": ["10.9.0.0/16"]}}}),
        )
        .await;

    assert!(world.terminate().success(), "{}", world.log());
    let file = world.data().with_extension("backup");
    std::fs::write(&file, &copy).unwrap();
    let restore = |data: &std::path::Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tombolo-controller"));
        command
            .args([
                "restore",
                "--data-dir",
                data.to_str().unwrap(),
                "--from",
                file.to_str().unwrap(),
            ])
            .status()
            .unwrap()
            .success()
    };
    assert!(!restore(&world.data()), "a state that is there is not overwritten");
    // The controller is restored on a new machine, which has only the backup.
    std::fs::remove_dir_all(world.data()).unwrap();
    // A restore is refused if a write-ahead log is left in the directory, because SQLite would replay that log over the
    // restored state.
    std::fs::create_dir(world.data()).unwrap();
    for name in ["state.db-wal", "state.db-shm"] {
        std::fs::write(world.data().join(name), b"of another state").unwrap();
        assert!(!restore(&world.data()), "{name}");
        std::fs::remove_file(world.data().join(name)).unwrap();
    }
    std::fs::write(world.data().join("state.restored-wal"), b"left by one that was killed").unwrap();
    assert!(restore(&world.data()));
    world.restart().await;
    let vnets = world
        .arm(Method::GET, "~/providers/Microsoft.Network/virtualNetworks", None)
        .await;
    let ids: Vec<_> = vnets.body["value"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v["name"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["a", "b"]);
    // The authority is restored too, so the agent's certificate is still accepted.
    agent.hello(0, "").await.unwrap().config().await;

    std::fs::write(&file, b"no backup").unwrap();
    let empty = world.data().with_extension("empty");
    assert!(!restore(&empty));
    assert!(!empty.join("state.db").exists());
}

#[tokio::test]
async fn metrics_say_how_far_everything_is() {
    let world = World::start(&[]).await;
    world.two_vnets().await;
    let agent = FakeAgent::join(&world, "vm-a", "a-nic").await;
    let mut stream = agent.hello(0, "").await.unwrap();
    let (config, _) = stream.config().await;
    let text = async || {
        let response = world
            .client
            .get(world.url("/metrics"))
            .bearer_auth(&world.token)
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), 200);
        response.text().await.unwrap()
    };
    assert!(text().await.contains("tombolo_agents{state=\"behind\"} 1\n"));
    stream.applied(&config).await;
    let revision = world.fabric(Method::GET, "health", None).await.body["revision"].clone();
    world
        .fabric(Method::GET, &format!("revisions/{revision}/wait"), None)
        .await;
    let text = text().await;
    for line in [
        "tombolo_agents{state=\"behind\"} 0".to_owned(),
        "tombolo_agents{state=\"connected\"} 1".to_owned(),
        format!("tombolo_revision{{state=\"desired\"}} {revision}"),
        format!("tombolo_revision{{state=\"in_force\"}} {revision}"),
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\n{text}");
    }
}
