//! The lab of the scenarios in which a site's router turns hostile: the router announces routes, and sends packets with
//! spoofed sources.

use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant};
use tombolo_lab::command::HELPER_TIMEOUT;
use tombolo_lab::probe::Ping;
use tombolo_proto::installed::InstalledHop;
use tombolo_tests::live::World;

/// Time within which a change of routes must have reached all agents. It takes less than a second on an idle machine.
pub(crate) const ROUTES_TIMEOUT: Duration = Duration::from_secs(15);

/// A hub with a VPN gateway and two VMs, a spoke that uses the gateway, a peered VNet that does not use it, and a site
/// with BGP.
pub(crate) const TOPOLOGY: &str = r#"
name: attack
underlay:
  mtu: 1500
  segments:
    internet: {prefix: 203.0.113.0/24}
  controller: {address: 203.0.113.10, port: 8443}
hosts:
  hub-vm: {address: 203.0.113.11, vm: {nics: [hub-nic]}}
  hub-twin: {address: 203.0.113.12, vm: {nics: [hub-twin-nic]}}
  hub-vpn: {address: 203.0.113.13, gateway: {name: hub-vpn}}
  spoke-vm: {address: 203.0.113.21, vm: {nics: [spoke-nic]}}
  peer-vm: {address: 203.0.113.31, vm: {nics: [peer-nic]}}
sites:
  loc1:
    asn: 65021
    prefixes: [10.2.30.0/25]
    lan: {router: 10.2.30.3/25, hosts: {vm: 10.2.30.10}, routes: default}
    customerEdges:
      ce1: {lan: 192.168.30.0/31, address: 203.0.113.51, tunnels: [{connection: hub-loc1, address: 10.2.30.125}]}
resources:
  resourceGroup: attack
  location: region1
  virtualNetworks:
    hub:
      addressSpace: [10.1.0.0/16]
      subnets:
        workload: {addressPrefix: 10.1.0.0/24}
        GatewaySubnet: {addressPrefix: 10.1.255.0/27}
      peerings:
        to-spoke: {remoteVirtualNetwork: spoke, allowGatewayTransit: true}
        to-peer: {remoteVirtualNetwork: peer}
    spoke:
      addressSpace: [10.3.0.0/16]
      subnets:
        workload: {addressPrefix: 10.3.0.0/24}
      peerings:
        to-hub: {remoteVirtualNetwork: hub, useRemoteGateways: true}
    peer:
      addressSpace: [10.4.0.0/16]
      subnets:
        workload: {addressPrefix: 10.4.0.0/24}
      peerings:
        to-hub: {remoteVirtualNetwork: hub}
  networkInterfaces:
    hub-nic: {subnet: hub/workload, privateIPAddress: 10.1.0.4}
    hub-twin-nic: {subnet: hub/workload, privateIPAddress: 10.1.0.5}
    spoke-nic: {subnet: spoke/workload, privateIPAddress: 10.3.0.4}
    peer-nic: {subnet: peer/workload, privateIPAddress: 10.4.0.4}
  publicIPAddresses: {hub-vpn-pip: {}}
  virtualNetworkGateways:
    hub-vpn:
      virtualNetwork: hub
      publicIPAddress: hub-vpn-pip
      privateIPAddress: 10.1.255.4
      enableBgp: true
      asn: 65515
      bgpPeeringAddress: 10.1.255.30
  localNetworkGateways:
    loc1: {gatewayIpAddress: 203.0.113.51, asn: 65021, bgpPeeringAddress: 10.2.30.125}
  connections:
    hub-loc1:
      connectionType: IPsec
      virtualNetworkGateway1: hub-vpn
      localNetworkGateway2: loc1
      sharedKey: EqualOnBothEnds
      enableBgp: true
"#;

/// Runs a command in a host's namespace, and returns its standard output. Fails if the command does.
pub(crate) async fn must(w: &World, host: &str, argv: &[&str]) -> Result<String> {
    let done = w.exec(host, argv, HELPER_TIMEOUT).await?;
    ensure!(done.code == 0, "{host}: {argv:?}: {done:?}");
    Ok(done.stdout)
}

/// Makes a site's router announce further prefixes on all of its BGP sessions. A second call replaces the prefixes of the first.
pub(crate) async fn announce(w: &World, router: &str, prefixes: &[&str]) -> Result<()> {
    let routes: Vec<String> = prefixes.iter().map(|p| format!("route {p} unreachable;")).collect();
    // The router must keep routing as before. So BIRD does not install these routes in the router's kernel, and still
    // announces nothing but the default route to the site's LAN.
    let edits = [
        r#"s/export where proto = "announced" .*;/export where proto = "announced" || proto = "attack";/"#,
        r#"s/export where source ~ \[ RTS_STATIC/export where proto != "attack" \&\& source ~ [ RTS_STATIC/"#,
        r#"s/if proto = "way_out" then/if proto = "way_out" || net = 0.0.0.0\/0 then/"#,
        "/^protocol static attack/,/^}/d",
    ];
    let edits: Vec<String> = edits.iter().map(|e| format!("-e '{e}'")).collect();
    let protocol = format!(
        "protocol static attack {{\\nipv4 {{ preference 210; }};\\n{}\\n}}\\n",
        routes.join("\\n")
    );
    let script = format!(
        "sed -i {} /run/bird/bird.conf && printf '{protocol}' >> /run/bird/bird.conf && \
         birdc -s /run/bird/bird.ctl configure",
        edits.join(" ")
    );
    let reply = must(w, router, &["sh", "-c", &script]).await?;
    ensure!(reply.contains("Reconfigur"), "{router}: {reply}");
    Ok(())
}

/// Starts to count the IPv4 packets that a host receives from each of these sources. Call it once for a host. The chain
/// runs before all others (priority -400), so a packet counts even if another chain drops it.
pub(crate) async fn watch(w: &World, host: &str, sources: &[&str]) -> Result<()> {
    must(w, host, &["nft", "add table ip attack"]).await?;
    let chain = "add chain ip attack input { type filter hook prerouting priority -400; }";
    must(w, host, &["nft", chain]).await?;
    for source in sources {
        let rule = format!("add rule ip attack input ip saddr {source} counter comment \"{source}\"");
        must(w, host, &["nft", &rule]).await?;
    }
    Ok(())
}

/// The number of packets from a source that a host has received since [`watch`]. Fails if the source is not watched.
pub(crate) async fn arrived(w: &World, host: &str, source: &str) -> Result<u64> {
    let listed = must(w, host, &["nft", "list table ip attack"]).await?;
    let line = listed.lines().find(|l| l.contains(&format!("\"{source}\"")));
    let line = line.with_context(|| format!("{host} does not watch {source}: {listed}"))?;
    let count = line.split_once("packets ").and_then(|(_, rest)| rest.split(' ').next());
    Ok(count.context("a counter")?.parse()?)
}

/// Sends three pings from a router with any source address, and waits until they have been sent. Replies are not expected.
pub(crate) async fn send_as(w: &World, router: &str, source: &str, to: &str) -> Result<()> {
    let own = format!("{source}/32");
    must(w, router, &["ip", "addr", "add", &own, "dev", "lo"]).await?;
    // The address must be one of the router's own, or ping cannot use it as the source.
    let ping = ["ping", "-n", "-c", "3", "-i", "0.05", "-W", "1", "-I", source, to];
    // Replies go to the real owner of the address. So the command fails, and the failure means nothing.
    let _ = w.exec(router, &ping, HELPER_TIMEOUT).await?;
    must(w, router, &["ip", "addr", "del", &own, "dev", "lo"]).await?;
    Ok(())
}

/// Waits until a host's agent has a route to exactly this prefix through a gateway. Fails after [`ROUTES_TIMEOUT`].
pub(crate) async fn knows(w: &World, host: &str, prefix: &str) -> Result<()> {
    let end = Instant::now() + ROUTES_TIMEOUT;
    loop {
        let tables = w.agent_tables(host).await?;
        if tables
            .subnets
            .iter()
            .flat_map(|s| &s.routes)
            .any(|r| r.prefix.to_string() == prefix && matches!(r.hop, InstalledHop::Gateway { .. }))
        {
            return Ok(());
        }
        ensure!(Instant::now() < end, "{host} has no route to {prefix}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Sends pings from one host to another, three at a time, until all three are answered. Fails after [`ROUTES_TIMEOUT`].
pub(crate) async fn answers(w: &World, from: &str, to: &str) -> Result<()> {
    let end = Instant::now() + ROUTES_TIMEOUT;
    while !w.ping(from, to, Ping::UNREACHABLE).await?.all() {
        ensure!(Instant::now() < end, "{from} does not reach {to}");
    }
    Ok(())
}

/// The number of packets that a host's agent has dropped since its start because of a spoofed source.
pub(crate) async fn spoofed(w: &World, host: &str) -> Result<u64> {
    let drops = w.agent_status(host).await?.drops;
    Ok(drops.get("spoofed_source").copied().unwrap_or_default())
}
