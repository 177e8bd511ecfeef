//! Finding 1 of docs/security.md: a site announces prefixes that contain the VNets. The gateway accepts these routes,
//! as a gateway in Azure does (G22, G24). Then the site sends packets with source addresses of the VNets' machines, and
//! agents drop these packets.

use super::site::{ROUTES_TIMEOUT, TOPOLOGY, announce, answers, arrived, knows, send_as, spoofed, watch};
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};
use tombolo_lab::Topology;
use tombolo_tests::live::World;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_super_prefix_lets_a_site_speak_for_nobody_else() -> Result<()> {
    let mut topology = Topology::parse(TOPOLOGY)?;
    topology.name = "attack-super".into();
    let w = World::of(&topology).await?;
    answers(&w, "loc1-vm", "hub-vm").await?;
    answers(&w, "loc1-vm", "spoke-vm").await?;

    announce(&w, "loc1-ce1", &["10.0.0.0/8", "0.0.0.0/0"]).await?;
    for vm in ["hub-vm", "spoke-vm"] {
        knows(&w, vm, "10.0.0.0/8").await?;
        knows(&w, vm, "0.0.0.0/0").await?;
    }
    // The spoofed sources are another machine of the hub, a machine of a peered VNet that does not use the gateway, and
    // a machine of a spoke that uses it. The permitted sources are addresses that the configuration assigns to nobody:
    // the site may really have these networks.
    let (strangers, own) = (["10.1.0.5", "10.4.0.4", "10.3.0.4"], ["10.77.0.1", "198.51.100.9"]);
    let (spoke_strangers, to_spoke) = (["10.3.0.9", "10.1.0.4"], "10.3.0.4");
    watch(&w, "hub-vm", &[&strangers[..], &own].concat()).await?;
    watch(&w, "spoke-vm", &[&spoke_strangers[..], &own].concat()).await?;
    let before = (spoofed(&w, "hub-vpn").await?, spoofed(&w, "hub-vm").await?);
    for source in own.iter().chain(&strangers) {
        send_as(&w, "loc1-ce1", source, "10.1.0.4").await?;
    }
    for source in own.iter().chain(&spoke_strangers) {
        send_as(&w, "loc1-ce1", source, to_spoke).await?;
    }
    // The gateway drops packets with sources of its own VNet and of the spoke. The gateway does not know the peered
    // VNet, which does not use it. So the VM drops the packets with sources of the peered VNet. The counted drops prove
    // that the spoofed packets were really sent, and that they reached the gateway and the VM.
    let end = Instant::now() + ROUTES_TIMEOUT;
    loop {
        let after = (spoofed(&w, "hub-vpn").await?, spoofed(&w, "hub-vm").await?);
        if after.0 > before.0 && after.1 > before.1 {
            break;
        }
        ensure!(Instant::now() < end, "{before:?} dropped, then {after:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for vm in ["hub-vm", "spoke-vm"] {
        for source in own {
            ensure!(
                arrived(&w, vm, source).await? > 0,
                "{vm} does not get packets from {source}, which is behind the site"
            );
        }
    }
    for source in strangers {
        let count = arrived(&w, "hub-vm", source).await?;
        ensure!(
            count == 0,
            "hub-vm got {count} packets of the site with the source {source}"
        );
    }
    for source in spoke_strangers {
        let count = arrived(&w, "spoke-vm", source).await?;
        ensure!(
            count == 0,
            "spoke-vm got {count} packets of the site with the source {source}"
        );
    }
    // The attack must not have stopped permitted traffic.
    for (from, to) in [
        ("loc1-vm", "hub-vm"),
        ("loc1-vm", "spoke-vm"),
        ("hub-vm", "peer-vm"),
        ("spoke-vm", "hub-vm"),
    ] {
        answers(&w, from, to).await?;
    }
    w.down()
}
