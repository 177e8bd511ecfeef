//! Tests that the controller's state survives `kill -9`, SIGTERM, a lost admin token and a second writer, and tests of
//! data directories with which the controller must not start.

use crate::world::{World, answer};
use reqwest::Method;
use serde_json::json;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use tombolo_controller::store::sqlite::SqliteStore;
use tombolo_controller::store::{Store, Transaction};
use tombolo_controller::writer::Writer;

#[tokio::test]
async fn what_was_answered_is_there_after_a_kill() {
    let mut world = World::start(&[]).await;
    world.two_vnets().await;
    for round in 0..3 {
        let path = format!("~/providers/Microsoft.Network/virtualNetworks/n{round}");
        let body = json!({"location": "region1", "properties": {"addressSpace": {"addressPrefixes": [format!("10.{}.0.0/16", round + 10)]}}});
        let made = world.put(&path, body).await;
        assert_eq!(made.status, 201);
        world.kill_and_restart().await;
        let found = world.arm(Method::GET, &path, None).await;
        assert_eq!(found.body, made.body);
        let health = world.fabric(Method::GET, "health", None).await;
        assert_eq!(health.body["revision"], made.revision());
    }
}

#[tokio::test]
async fn secrets_are_private_and_sigterm_is_a_clean_end() {
    let mut world = World::start(&[]).await;
    for name in ["admin.token", "state.db", "state.db-wal"] {
        let mode = std::fs::metadata(world.data().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    assert!(world.terminate().success());
    for name in ["state.db-wal", "state.db-shm"] {
        assert!(!world.data().join(name).exists(), "{name}: everything is in one file");
    }
    let token = world.token.clone();
    world.restart().await;
    assert_eq!(world.token, token, "the admin token stays");
}

#[tokio::test]
async fn a_data_directory_has_one_controller() {
    let world = World::start(&[]).await;
    std::fs::write(world.data().join("backup-of-somebody"), b"unfinished").unwrap();
    let data = world.data();
    let second = Command::new(env!("CARGO_BIN_EXE_tombolo-controller"))
        .args(["--data-dir", data.to_str().unwrap(), "--listen", "127.0.0.1:0"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success() && text.contains("in use"), "{text}");
    let mut world = world;
    world.kill_and_restart().await;
    assert!(!data.join("backup-of-somebody").exists());
}

#[tokio::test]
async fn a_writer_that_is_not_alone_stops() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("state.db");
    let open = || Box::new(SqliteStore::open(&file).unwrap());
    let (first, _) = Writer::start(open()).unwrap();
    let (second, _) = Writer::start(open()).unwrap();
    let set = async |writer: &Writer, value: &[u8]| writer.set_document("own/x".into(), Some(value.to_vec())).await;
    set(&first, b"1").await.unwrap();
    assert!(set(&second, b"2").await.is_err());
    second.closed().await;
    assert!(!second.stop().await);
    set(&first, b"3").await.unwrap();
    assert!(first.stop().await);
    assert!(set(&first, b"4").await.is_err());
}

/// The store is compacted even if no process makes enough changes by itself, because the writer also counts the changes
/// that earlier processes have made.
#[tokio::test]
async fn the_log_is_compacted_across_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("state.db");
    let mut store = SqliteStore::open(&file).unwrap();
    let change = |n: u64| Transaction {
        compare: Vec::new(),
        changes: vec![("own/x".into(), Some(n.to_string().into_bytes()))],
    };
    let all: Vec<_> = (0..20_000).map(change).collect();
    store.commit(&all).unwrap();
    drop(store);
    let (writer, own) = Writer::start(Box::new(SqliteStore::open(&file).unwrap())).unwrap();
    assert_eq!(own["own/x"], b"19999");
    writer
        .set_document("own/x".into(), Some(b"last".to_vec()))
        .await
        .unwrap();
    assert!(writer.stop().await);
    let store = SqliteStore::open(&file).unwrap();
    assert_eq!(store.compacted().unwrap().0, 10_001);
}

#[tokio::test]
async fn a_lost_admin_token_is_replaced() {
    let mut world = World::start(&[]).await;
    let old = world.token.clone();
    world.terminate();
    std::fs::remove_file(world.data().join("admin.token")).unwrap();
    world.restart().await;
    assert_ne!(world.token, old);
    let with = async |token: &str| {
        answer(world.client.get(world.url("/fabric/v1/agents")).bearer_auth(token))
            .await
            .status
            .as_u16()
    };
    assert_eq!((with(&world.token).await, with(&old).await), (200, 401));
}

#[test]
fn a_state_that_is_none_stops_the_start() {
    for content in [
        &b"this is no database, and it is longer than a header of one, which is a hundred bytes, so that it is read"[..],
        b"short",
    ] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("state.db"), content).unwrap();
        let ended = Command::new(env!("CARGO_BIN_EXE_tombolo-controller"))
            .args(["--data-dir", dir.path().to_str().unwrap(), "--listen", "127.0.0.1:0"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&ended.stderr);
        assert!(!ended.status.success());
        assert!(text.contains("state.db"), "{text}");
        assert_eq!(
            std::fs::read(dir.path().join("state.db")).unwrap(),
            content,
            "left as it was"
        );
    }
}
