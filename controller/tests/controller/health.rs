//! The subcommand `health`, whose exit code container runtimes read.

use crate::world::World;
use std::path::Path;
use std::process::{Command, Output};

fn health(data: &Path, port: u16) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tombolo-controller"))
        .arg("health")
        .env("TOMBOLO_DATA_DIR", data)
        .env("TOMBOLO_LISTEN", format!("0.0.0.0:{port}"))
        .output()
        .unwrap()
}

#[tokio::test]
async fn health_is_that_of_the_own_controller() {
    let mut world = World::start(&[]).await;
    let asked = health(&world.data(), world.port);
    assert!(asked.status.success(), "{asked:?}");
    let said: serde_json::Value = serde_json::from_slice(&asked.stdout).unwrap();
    assert_eq!(said["status"], "ok");

    // If a controller with another certificate authority listens at the address, the check fails.
    let other = World::start(&[]).await;
    let asked = health(&world.data(), other.port);
    assert!(!asked.status.success(), "{asked:?}");

    assert!(world.terminate().success());
    let asked = health(&world.data(), world.port);
    let text = String::from_utf8(asked.stderr).unwrap();
    assert!(!asked.status.success() && text.contains("is not healthy"), "{text}");
}
