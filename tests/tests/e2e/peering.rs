//! Peerings and traffic inside a VNet, with the states and flags of peerings and both address families.

use anyhow::{Result, ensure};
use std::time::{Duration, Instant};
use tombolo_lab::probe::BackgroundPing;
use tombolo_tests::live::{Flags, PING_INTERVAL, PLAIN, World};

/// P13, P14, P15, P17: a peering is created, its access is switched off, one half is deleted, and the peering is recovered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peering_lives_and_dies() -> Result<()> {
    let w = World::up("peering").await?;
    // D8: two agents of one VNet reach each other without a peering.
    w.reach("hub-vm", "hub-fw").await?;
    w.reach("hub-vm/6", "hub-fw/6").await?;
    w.trace_is("hub-vm", &["hub-fw"]).await?;
    w.silent("spoke-a-vm", "hub-vm").await?;

    w.peer("hub", "spoke-a", PLAIN).await?;
    assert_eq!(w.peering_state("hub", "spoke-a").await?, "Initiated");
    w.silent("spoke-a-vm", "hub-vm").await?;
    w.peer("spoke-a", "hub", PLAIN).await?;
    for (vnet, remote) in [("hub", "spoke-a"), ("spoke-a", "hub")] {
        assert_eq!(w.peering_state(vnet, remote).await?, "Connected");
    }
    w.reach("spoke-a-vm", "hub-vm").await?;
    w.reach("spoke-a-vm", "hub-fw").await?;
    w.reach("spoke-a-vm/6", "hub-vm/6").await?;
    w.trace_is("spoke-a-vm", &["hub-vm"]).await?;
    w.trace_is("spoke-a-vm", &["hub-vm/6"]).await?;
    w.agree().await?;

    // P17: `allowVirtualNetworkAccess` of either half of a peering can stop the traffic. The halves remain `Connected`.
    w.peer("hub", "spoke-a", Flags { access: false, ..PLAIN }).await?;
    w.silent("spoke-a-vm", "hub-vm").await?;
    assert_eq!(w.peering_state("spoke-a", "hub").await?, "Connected");
    w.agree().await?;
    w.peer("hub", "spoke-a", PLAIN).await?;
    w.reach("spoke-a-vm", "hub-vm").await?;

    w.unpeer("spoke-a", "hub").await?;
    assert_eq!(w.peering_state("hub", "spoke-a").await?, "Disconnected");
    w.silent("spoke-a-vm", "hub-vm").await?;
    w.agree().await?;

    // P14: recreating only the deleted half is refused. A PUT of the Disconnected half, and then a PUT of the other
    // half, recover the peering.
    let refused = w.put_half("spoke-a", "hub", PLAIN).await.expect_err("P14");
    assert_eq!(refused.code(), Some("RemotePeeringIsDisconnected"), "{refused}");
    w.silent("spoke-a-vm", "hub-vm").await?;
    w.peer("hub", "spoke-a", PLAIN).await?;
    assert_eq!(w.peering_state("hub", "spoke-a").await?, "Initiated");
    w.peer("spoke-a", "hub", PLAIN).await?;
    w.reach("spoke-a-vm", "hub-vm").await?;
    w.reach("spoke-a-vm/6", "hub-vm/6").await?;
    w.end().await
}

/// P16: while a peering is created and deleted again and again, no packet between other pairs of machines is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unrelated_changes_lose_no_packet() -> Result<()> {
    let w = World::up("churn").await?;
    w.join("hub", "spoke-a").await?;
    w.join("hub", "branch").await?;
    let pairs = [
        ("spoke-a-vm", "hub-vm"),
        ("hub-vm", "spoke-a-vm"),
        ("hub-vm", "hub-fw"),
        ("branch-vm", "hub-vm"),
    ];
    for (from, to) in pairs {
        w.reach(from, to).await?;
    }
    let pings = pairs.map(|(from, to)| w.start_ping(from, to, PING_INTERVAL));
    let start = Instant::now();
    let mut changes = 0;
    while start.elapsed() < Duration::from_secs(20) {
        w.peer("hub", "spoke-b", PLAIN).await?;
        w.peer("spoke-b", "hub", PLAIN).await?;
        w.unpeer("spoke-b", "hub").await?;
        w.unpeer("hub", "spoke-b").await?;
        changes += 4;
    }
    ensure!(changes >= 40, "only {changes} changes in 20 s");
    let pings = pings.into_iter().collect::<Result<Vec<_>>>()?;
    let names: Vec<_> = pings.iter().map(|p| p.name.clone()).collect();
    for (name, pinged) in names.iter().zip(BackgroundPing::stop_all(pings)) {
        let pinged = pinged?;
        ensure!(pinged.sent >= 1000, "{name}: only {} pings in 20 s", pinged.sent);
        ensure!(
            pinged.all(),
            "{name}: {} of {} lost: {:?}",
            pinged.missing.len(),
            pinged.sent,
            pinged.missing
        );
    }
    w.end().await
}
