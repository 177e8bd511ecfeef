//! Finding 2 of docs/security.md: a site announces the hosts' underlay network, the controller's address, and a default
//! route in two halves. Hosts keep their own routes to all of these destinations, and agents still receive new
//! configurations, also one that removes a revoked agent.

use super::site::{ROUTES_TIMEOUT, TOPOLOGY, announce, answers, knows, must};
use anyhow::{Result, ensure};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tombolo_lab::Topology;
use tombolo_proto::id::AgentId;
use tombolo_tests::live::{PLAIN, World};

/// The number of learned routes that an agent does not install in its host's kernel, by reason.
async fn left_out(w: &World, host: &str) -> Result<BTreeMap<String, u64>> {
    let refused = w.agent_status(host).await?.refused_routes;
    let of_host = refused.into_iter().filter(|r| r.sender.is_none());
    Ok(of_host.map(|r| (r.reason, r.count)).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_takes_no_networks_from_hosts() -> Result<()> {
    let mut topology = Topology::parse(TOPOLOGY)?;
    topology.name = "attack-host".into();
    let w = World::of(&topology).await?;
    answers(&w, "loc1-vm", "hub-vm").await?;

    let prefixes = [
        "203.0.113.0/24",
        "203.0.113.10/32",
        "203.0.113.8/29",
        "0.0.0.0/1",
        "128.0.0.0/1",
        "10.50.0.0/16",
    ];
    announce(&w, "loc1-ce1", &prefixes).await?;
    for vm in ["hub-vm", "spoke-vm"] {
        knows(&w, vm, "203.0.113.10/32").await?;
        knows(&w, vm, "10.50.0.0/16").await?;
    }
    // The host's kernel gets a route to the harmless prefix, 10.50.0.0/16, although each of the other five prefixes is
    // left out.
    let expected = BTreeMap::from([("host_connected".to_owned(), 3), ("host_default".to_owned(), 2)]);
    let end = Instant::now() + ROUTES_TIMEOUT;
    loop {
        let seen = left_out(&w, "hub-vm").await?;
        if seen == expected {
            break;
        }
        ensure!(Instant::now() < end, "left out: {seen:?} instead of {expected:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let device = w.agent_installed("hub-vm").await?.kernel.device;
    for (to, overlay) in [
        ("203.0.113.10", false),
        ("203.0.113.12", false),
        ("203.0.113.77", false),
        ("10.50.0.1", true),
    ] {
        let found = must(&w, "hub-vm", &["ip", "route", "get", to]).await?;
        ensure!(found.contains(&device) == overlay, "{to}: {found}");
    }

    // Agents still receive configurations while the site announces these routes: first a change of a peering, then a
    // revocation.
    w.unpeer("hub", "peer").await?;
    w.silent("hub-vm", "peer-vm").await?;
    ensure!(
        w.client()?.arm_delete(&w.half("peer", "hub")).await?,
        "the other half was there"
    );
    w.put_half("hub", "peer", PLAIN).await?;
    w.peer("peer", "hub", PLAIN).await?;
    answers(&w, "hub-vm", "peer-vm").await?;
    w.client()?.revoke_agent("hub-twin").await?;
    w.in_force().await?;
    let links = w.agent_tables("hub-vm").await?.links;
    ensure!(
        !links
            .iter()
            .any(|l| l.peer == AgentId::new("hub-twin").expect("a name")),
        "the revoked agent has a link"
    );
    for vm in ["hub-vm", "spoke-vm", "peer-vm", "hub-vpn"] {
        let agent = w.client()?.agent(vm).await?;
        ensure!(agent.connected, "{vm} lost the controller: {agent:?}");
    }
    answers(&w, "loc1-vm", "hub-vm").await?;
    w.down()
}
