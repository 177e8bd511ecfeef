//! Clients without a certificate announce large messages to the agents' service. The controller refuses them without reserving
//! memory.

use crate::stranger::Attacked;
use anyhow::{Result, ensure};
use tombolo_lab::topology::INTERNET;

/// The number of connections of the attack. Each connection has 32 streams, and each stream announces a message of 1
/// MiB: 640 MiB in all. If the controller accepted the messages, it would have to keep all but the last byte of each in
/// memory.
const CONNECTIONS: u64 = 20;

/// Limit for the growth of the controller's memory in bytes: a tenth of the attack.
const MAX_GROWTH: u64 = 64 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_strangers_are_not_read() -> Result<()> {
    let mut attacked = Attacked::up("bodies").await?;
    let before = attacked.memory()?;
    let arguments = format!("--state grpc --connections {CONNECTIONS} --rate 100 --seconds 60");
    let mut stranger = attacked.stranger(INTERNET, &arguments)?;
    let report = stranger.until(|r| r.refused >= CONNECTIONS * 32 * 3).await;
    let grown = attacked.memory()?.saturating_sub(before);
    println!("{report:?}, the controller has {} MiB more", grown >> 20);
    ensure!(grown < MAX_GROWTH, "the controller has {} MiB more", grown >> 20);
    report?;
    attacked.others_work().await?;
    drop(stranger);
    attacked.world.down()
}
