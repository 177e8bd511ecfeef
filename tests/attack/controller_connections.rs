//! Connections that do nothing: strangers try to hold 10,000 of them at the controller's port, and nobody else notices.

use crate::stranger::Attacked;
use anyhow::{Result, ensure};
use std::time::Duration;
use tombolo_lab::topology::INTERNET;

/// Idle TCP connections, half-done TLS handshakes, HTTP/2 without requests, bodies that never end: how many of each are wanted, and
/// how many are opened a second. The first two cost the attacker nothing but packets, the others its computing time.
const STATES: [(&str, u64, u32); 4] = [
    ("tcp", 6_000, 1_000),
    ("tls", 2_400, 350),
    ("h2", 800, 100),
    ("body", 800, 100),
];

/// Longest wait for the agents after the controller's restart.
const LIMIT: Duration = Duration::from_secs(20);

/// Resident memory that the controller may have, bytes: the limits of the port allow 300 MiB.
const MEMORY: u64 = 400 << 20;

async fn attack(name: &str, host: &str, addresses: &str) -> Result<()> {
    let mut attacked = Attacked::up(name).await?;
    if !addresses.is_empty() {
        let route = ["ip", "route", "add", "local", addresses, "dev", "lo"];
        let added = attacked.world.exec(host, &route, Duration::from_secs(5)).await?;
        ensure!(added.code == 0, "{added:?}");
    }
    let from = match addresses {
        "" => String::new(),
        addresses => format!("--addresses {addresses}"),
    };
    let mut strangers = Vec::new();
    for (state, wanted, rate) in STATES {
        let arguments = format!("--state {state} --connections {wanted} --rate {rate} --seconds 60 {from}");
        strangers.push(attacked.stranger(host, &arguments)?);
    }
    for ((_, wanted, _), stranger) in STATES.iter().zip(&mut strangers) {
        stranger.until(|r| r.attempts >= *wanted).await?;
    }
    attacked.others_work().await?;
    let memory = attacked.memory()?;
    // A controller that starts in the middle of it knows from its store where agents were.
    attacked.world.kill_controller()?;
    attacked.world.start_controller().await?;
    attacked.world.wait_until_ready(LIMIT).await?;
    let mut attempts = 0;
    for ((state, wanted, _), stranger) in STATES.iter().zip(&mut strangers) {
        // The attack lasted until here: it still opens connections, or holds all that it wants.
        let before = stranger.report();
        let report = stranger
            .until(|r| r.attempts > before.attempts || r.held >= *wanted)
            .await?;
        println!("{name}: {state}: {report:?}");
        attempts += report.attempts;
    }
    println!("{name}: {attempts} attempts, the controller has {} MiB", memory >> 20);
    ensure!(memory < MEMORY, "the controller has {} MiB", memory >> 20);
    drop(strangers);
    attacked.world.down()
}

/// The address is that of an agent: strangers sit behind the same NAT gateway.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_connections_of_an_agents_address() -> Result<()> {
    attack("one-address", "a", "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_connections_of_two_thousand_addresses() -> Result<()> {
    attack("addresses", INTERNET, "198.18.0.0/21").await
}
