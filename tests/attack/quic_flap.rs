//! Finding 4 of docs/security.md: a hostile agent opens and closes QUIC connections while its peering is deleted. The
//! agent at the other end then gets events of QUIC connections although it has already removed their link, and must not
//! crash.

use anyhow::{Result, ensure};
use std::time::Duration;
use tombolo_lab::host::inside;
use tombolo_tests::hostile::Hostile;
use tombolo_tests::live::{PING_INTERVAL, World};

/// How often the peering is deleted and created again. Each deletion comes at another moment in the life of a flapping
/// connection, so several rounds test several moments.
const ROUNDS: usize = 6;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_flap_while_a_peering_ends_stop_nobody() -> Result<()> {
    let w = World::up("flap").await?;
    for spoke in ["spoke-a", "spoke-b"] {
        w.join("hub", spoke).await?;
        w.reach(&format!("{spoke}-vm"), "hub-vm").await?;
    }
    // The hostile agent's link is the last one in the list of the hub's agent. So after the removal of this link no
    // other link takes over its index, and late events have an index that is not valid any more.
    ensure!(w.stop_agent("spoke-b-vm")?, "the agent had to be killed");
    let (netns, state) = (w.hosts().netns("spoke-b-vm"), w.agent_dir("spoke-b-vm")?);
    let mut hostile = inside(&netns, || Hostile::new(&state, "hub-vm"))??;
    let victim = w.snapshot().processes["hub-vm"].clone();
    let others = w.start_ping("spoke-a-vm", "hub-vm", PING_INTERVAL)?;
    let attack = tokio::task::spawn_blocking(move || hostile.flap(Duration::from_secs(8)));
    for _ in 0..ROUNDS {
        tokio::time::sleep(Duration::from_millis(300)).await;
        for (vnet, remote) in [("hub", "spoke-b"), ("spoke-b", "hub")] {
            w.unpeer(vnet, remote).await?;
        }
        w.join("hub", "spoke-b").await?;
    }
    let done = attack.await??;
    ensure!(done.count > 20, "no attack: {done:?}");
    ensure!(victim.alive(), "the hub's agent ended:\n{}", victim.tail(20));
    let pinged = others.stop()?;
    ensure!(pinged.all(), "pings of another peer were lost: {pinged:?}");
    w.down()
}
