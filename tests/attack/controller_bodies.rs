//! Bodies without a certificate: strangers announce large messages to the agents' service, and the controller reserves nothing.

use crate::stranger::Attacked;
use anyhow::{Result, ensure};
use tombolo_lab::topology::INTERNET;

/// 32 streams of 1 MiB on each connection: 640 MiB, all but the last byte of which arrive if they are taken.
const CONNECTIONS: u64 = 20;

/// Memory that the controller may take for them, bytes.
const MEMORY: u64 = 64 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_strangers_are_not_read() -> Result<()> {
    let mut attacked = Attacked::up("bodies").await?;
    let before = attacked.memory()?;
    let arguments = format!("--state grpc --connections {CONNECTIONS} --rate 100 --seconds 60");
    let mut stranger = attacked.stranger(INTERNET, &arguments)?;
    let report = stranger.until(|r| r.refused >= CONNECTIONS * 32 * 3).await;
    let grown = attacked.memory()?.saturating_sub(before);
    println!("{report:?}, the controller has {} MiB more", grown >> 20);
    ensure!(grown < MEMORY, "the controller has {} MiB more", grown >> 20);
    report?;
    attacked.others_work().await?;
    drop(stranger);
    attacked.world.down()
}
