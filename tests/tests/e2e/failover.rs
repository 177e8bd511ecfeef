//! Failover between the instances of a gateway, and from the direct path of a peering to the VNets' gateways while that
//! path is cut. Agents detect the failure and change the path without the controller (D11, D19), which the tests therefore
//! kill.

use anyhow::{Context, Result, ensure};
use std::net::IpAddr;
use std::time::{Duration, Instant};
use tombolo_lab::Topology;
use tombolo_lab::probe::BackgroundPing;
use tombolo_tests::live::{PING_INTERVAL, World};

const LEFT: [(&str, &str); 2] = [("10.1.255.4", "left-a"), ("10.1.255.5", "left-b")];
const RIGHT: [(&str, &str); 2] = [("10.2.255.4", "right-a"), ("10.2.255.5", "right-b")];

/// A time limit that is longer than any recovery. An agent uses a link again when ten probes were answered and the
/// link's session has been up for three seconds (D19).
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(20);

async fn first_hop(w: &World, from: &str, to: &str) -> Result<Option<IpAddr>> {
    Ok(w.traceroute(from, to).await?.hops.first().copied().flatten())
}

/// Traces until the first hop is one of these addresses. Returns the host of that address.
async fn wait_for_first_hop<'h>(w: &World, from: &str, to: &str, hosts: &[(&str, &'h str)]) -> Result<&'h str> {
    let end = Instant::now() + RECOVERY_TIMEOUT;
    loop {
        let hop = first_hop(w, from, to).await?;
        let found = hosts.iter().find(|(a, _)| a.parse().ok() == hop);
        if let (Some((_, host)), Some(_)) = (found, hop) {
            return Ok(host);
        }
        ensure!(
            Instant::now() < end,
            "{from} → {to}: the first hop is {hop:?} instead of one of {hosts:?}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Waits until these agents use their links with `peers`: none of them lists one of the peers as down.
async fn wait_until_used(w: &World, peers: &[&str], agents: &[&str]) -> Result<()> {
    let end = Instant::now() + RECOVERY_TIMEOUT;
    for agent in agents {
        loop {
            let down = w.agent_status(agent).await?.down;
            if !down.iter().any(|down| peers.contains(&down.as_str())) {
                break;
            }
            ensure!(
                Instant::now() < end,
                "{agent} does not use {peers:?}: {down:?} are down"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    Ok(())
}

fn expect_no_loss(pinger: BackgroundPing) -> Result<()> {
    let pinged = pinger.stop()?;
    ensure!(pinged.all(), "{pinged:?}");
    Ok(())
}

/// G6: when one of a gateway's two instances is killed, packets are lost for a moment, until the other instance carries
/// them. When an instance stops in an orderly way, no packet is lost. When an instance returns, no packet is lost
/// either. All this holds for two active instances, and for an active and a standby one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_of_a_gateway_stands_in_for_the_other() -> Result<()> {
    let mut topology = Topology::load("failover")?;
    topology.name = "e2e-instances".into();
    let w = World::of(&topology).await?;
    for from in ["left-vm", "right-vm"] {
        w.reach_within(from, "branch-vm", RECOVERY_TIMEOUT).await?;
    }
    // An agent that starts before its peers takes them for down at first, and uses them only after they have answered for
    // three seconds (D19). Before that, there is no instance that could stand in for another.
    let instances = ["left-a", "left-b", "right-a", "right-b"];
    wait_until_used(&w, &instances, &["left-vm", "right-vm", "branch-gw"]).await?;
    wait_until_used(&w, &["branch-gw"], &instances).await?;
    w.kill_controller()?;
    // The right gateway is active-standby: its first instance carries all traffic.
    for (from, all, preferred) in [
        ("left-vm", LEFT.as_slice(), LEFT.as_slice()),
        ("right-vm", &RIGHT, &RIGHT[..1]),
    ] {
        for planned in [true, false] {
            let here = wait_for_first_hop(&w, from, "branch-vm", preferred).await?;
            let others: Vec<_> = all.iter().filter(|(_, host)| *host != here).copied().collect();
            let pinger = w.start_ping(from, "branch-vm", PING_INTERVAL)?;
            // Time for about thirty pings before the change. Without it the change could come before the first ping.
            tokio::time::sleep(Duration::from_millis(300)).await;
            if planned {
                ensure!(w.stop_agent(here)?, "{here} had to be killed");
            } else {
                w.kill_agent(here)?;
            }
            wait_for_first_hop(&w, from, "branch-vm", &others).await?;
            let pinger = if planned {
                pinger
            } else {
                drop(pinger);
                w.start_ping(from, "branch-vm", PING_INTERVAL)?
            };
            w.start_agent(here)?;
            // If both instances are active, the flow of this trace may stay at the other instance, so a trace does not
            // prove that the restarted one is back. The states of the agents do.
            wait_until_used(&w, &[here], &[from, "branch-gw"]).await?;
            wait_for_first_hop(&w, from, "branch-vm", preferred).await?;
            expect_no_loss(pinger).with_context(|| format!("{here} of {from}, planned: {planned}"))?;
        }
    }
    w.down()
}

/// D19, P25: two VNets have a Connected peering and a VPN. While the direct path between the machines of the two VNets
/// is cut, the gateways carry the packets. When the path is restored, the machines use the peering again, and no packet
/// is lost in this change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_stand_in_for_a_peering_whose_path_is_cut() -> Result<()> {
    let mut topology = Topology::load("failover")?;
    topology.name = "e2e-fallback".into();
    let w = World::of(&topology).await?;
    let direct = [("10.2.0.4", "right-vm")];
    wait_for_first_hop(&w, "left-vm", "right-vm", &direct).await?;
    w.kill_controller()?;
    w.cut_pair("left-vm", "right-vm")?;
    wait_for_first_hop(&w, "left-vm", "right-vm", &LEFT).await?;
    wait_for_first_hop(&w, "right-vm", "left-vm", &RIGHT[..1]).await?;
    let pinger = w.start_ping("left-vm", "right-vm", PING_INTERVAL)?;
    // Time for about thirty pings before the path is restored.
    tokio::time::sleep(Duration::from_millis(300)).await;
    w.restore_pair("left-vm", "right-vm")?;
    wait_for_first_hop(&w, "left-vm", "right-vm", &direct).await?;
    expect_no_loss(pinger)?;
    w.down()
}
