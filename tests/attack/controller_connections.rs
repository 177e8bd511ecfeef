//! Clients without a certificate try to hold 10,000 idle connections at the controller's port. Agents and users are not
//! affected.

use crate::stranger::Attacked;
use anyhow::{Result, ensure};
use std::time::Duration;
use tombolo_lab::topology::INTERNET;

/// The kinds of connections, each with the number of connections and the number opened per second: idle TCP
/// connections, incomplete TLS handshakes, HTTP/2 without requests, and request bodies that never end. The last two
/// kinds have smaller numbers, because each of their TLS handshakes costs the attacker computing time.
const STATES: [(&str, u64, u32); 4] = [
    ("tcp", 6_000, 1_000),
    ("tls", 2_400, 350),
    ("h2", 800, 100),
    ("body", 800, 100),
];

/// Time within which all agents must be connected again after the controller's restart, while the attack lasts.
const READY_TIMEOUT: Duration = Duration::from_secs(20);

/// Limit for the controller's resident memory in bytes. The limits of the port permit that connections without
/// credentials cost 300 MiB; the rest is for the controller itself.
const MAX_MEMORY: u64 = 400 << 20;

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
    // Under attack the controller prefers connections from the addresses of agents. A restarted controller has no
    // connections yet, so it must know these addresses from its store.
    attacked.world.kill_controller()?;
    attacked.world.start_controller().await?;
    attacked.world.wait_until_ready(READY_TIMEOUT).await?;
    let mut attempts = 0;
    for ((state, wanted, _), stranger) in STATES.iter().zip(&mut strangers) {
        // Proves that the attack did not end before this point: the attacker still opens connections, or holds all of
        // them.
        let before = stranger.report();
        let report = stranger
            .until(|r| r.attempts > before.attempts || r.held >= *wanted)
            .await?;
        println!("{name}: {state}: {report:?}");
        attempts += report.attempts;
    }
    println!("{name}: {attempts} attempts, the controller has {} MiB", memory >> 20);
    ensure!(memory < MAX_MEMORY, "the controller has {} MiB", memory >> 20);
    drop(strangers);
    attacked.world.down()
}

/// The attacker has the address of agent `a`, as if both were behind one NAT gateway.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_connections_of_an_agents_address() -> Result<()> {
    attack("one-address", "a", "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_connections_of_two_thousand_addresses() -> Result<()> {
    attack("addresses", INTERNET, "198.18.0.0/21").await
}
