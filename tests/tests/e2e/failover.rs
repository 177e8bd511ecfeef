//! What may stand in for what: instances of a gateway for each other, gateways for a peering. The agents decide, without the
//! controller (D11, D19).

use anyhow::{Context, Result, ensure};
use std::net::IpAddr;
use std::time::{Duration, Instant};
use tombolo_lab::Topology;
use tombolo_lab::probe::BackgroundPing;
use tombolo_tests::live::{SPACING, World};

const LEFT: [(&str, &str); 2] = [("10.1.255.4", "left-a"), ("10.1.255.5", "left-b")];
const RIGHT: [(&str, &str); 2] = [("10.2.255.4", "right-a"), ("10.2.255.5", "right-b")];

/// Longer than any way takes to come back: three seconds of hold (D19), and all that goes before.
const BACK: Duration = Duration::from_secs(20);

async fn first_hop(w: &World, from: &str, to: &str) -> Result<Option<IpAddr>> {
    Ok(w.traceroute(from, to).await?.hops.first().copied().flatten())
}

/// Waits until the first step is one of these; gives the host that it is.
async fn by<'h>(w: &World, from: &str, to: &str, hosts: &[(&str, &'h str)]) -> Result<&'h str> {
    let end = Instant::now() + BACK;
    loop {
        let hop = first_hop(w, from, to).await?;
        let found = hosts.iter().find(|(a, _)| a.parse().ok() == hop);
        if let (Some((_, host)), Some(_)) = (found, hop) {
            return Ok(host);
        }
        ensure!(
            Instant::now() < end,
            "{from} → {to}: by {hop:?}, and not by one of {hosts:?}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn nothing_lost(pinger: BackgroundPing) -> Result<()> {
    let pinged = pinger.stop()?;
    ensure!(pinged.all(), "{pinged:?}");
    Ok(())
}

/// G6: an instance that is killed costs a moment, one that is stopped in an orderly way costs nothing, and neither does
/// its return; with both instances active, and with one standing by.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_of_a_gateway_stands_in_for_the_other() -> Result<()> {
    let mut topology = Topology::load("failover")?;
    topology.name = "e2e-instances".into();
    let w = World::of(&topology).await?;
    for from in ["left-vm", "right-vm"] {
        w.reach_within(from, "branch-vm", BACK).await?;
    }
    w.kill_controller()?;
    // Active-standby: the first instance has all of it.
    for (from, all, preferred) in [
        ("left-vm", LEFT.as_slice(), LEFT.as_slice()),
        ("right-vm", &RIGHT, &RIGHT[..1]),
    ] {
        for planned in [true, false] {
            let here = by(&w, from, "branch-vm", preferred).await?;
            let others: Vec<_> = all.iter().filter(|(_, host)| *host != here).copied().collect();
            let pinger = w.start_ping(from, "branch-vm", SPACING)?;
            tokio::time::sleep(Duration::from_millis(300)).await;
            if planned {
                ensure!(w.stop_agent(here)?, "{here} had to be killed");
            } else {
                w.kill_agent(here)?;
            }
            by(&w, from, "branch-vm", &others).await?;
            let pinger = if planned {
                pinger
            } else {
                drop(pinger);
                w.start_ping(from, "branch-vm", SPACING)?
            };
            w.start_agent(here)?;
            // Its share comes back, which with both active may be another pair's.
            tokio::time::sleep(Duration::from_secs(5)).await;
            by(&w, from, "branch-vm", preferred).await?;
            nothing_lost(pinger).with_context(|| format!("{here} of {from}, planned: {planned}"))?;
        }
    }
    w.down()
}

/// Both are configured, the peering is Connected and its path is cut: the gateways carry it, and give it back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_stand_in_for_a_peering_whose_path_is_cut() -> Result<()> {
    let mut topology = Topology::load("failover")?;
    topology.name = "e2e-fallback".into();
    let w = World::of(&topology).await?;
    let direct = [("10.2.0.4", "right-vm")];
    by(&w, "left-vm", "right-vm", &direct).await?;
    w.kill_controller()?;
    w.cut_pair("left-vm", "right-vm")?;
    by(&w, "left-vm", "right-vm", &LEFT).await?;
    by(&w, "right-vm", "left-vm", &RIGHT[..1]).await?;
    let pinger = w.start_ping("left-vm", "right-vm", SPACING)?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    w.restore_pair("left-vm", "right-vm")?;
    by(&w, "left-vm", "right-vm", &direct).await?;
    nothing_lost(pinger)?;
    w.down()
}
