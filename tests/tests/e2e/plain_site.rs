//! A dual-stack hub has a site without BGP, a site with BGP, and a connection with a branch (G18, G19, R6). The sites have real
//! WireGuard devices and routing daemons.

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use std::time::{Duration, Instant};
use tombolo_lab::topology::Topology;
use tombolo_tests::live::World;

/// The time limit for handshakes, BGP sessions and routes of a new lab. It is long, because the machine runs other tests too.
const CONVERGENCE_TIMEOUT: Duration = Duration::from_secs(40);

const TOPOLOGY: &str = "
name: e2e-plain-site
underlay:
  segments: {internet: {prefix: 203.0.113.0/24}}
  controller: {address: 203.0.113.10, port: 8443}
hosts:
  hub-vm: {address: 203.0.113.11, vm: {nics: [hub-vm-nic]}}
  hub-gw: {address: 203.0.113.12, gateway: {name: hub-gw}}
  branch-vm: {address: 203.0.113.21, vm: {nics: [branch-vm-nic]}}
  branch-gw: {address: 203.0.113.22, gateway: {name: branch-gw}}
sites:
  plain:
    asn: 65021
    prefixes: [10.3.30.0/24]
    lan: {router: 10.3.30.3/24, hosts: {vm: 10.3.30.10}}
    customerEdges:
      ce: {lan: 192.168.33.0/31, address: 203.0.113.51, tunnels: [{connection: to-plain, address: 10.3.30.125}]}
  spoken:
    asn: 65022
    prefixes: [10.2.30.0/24]
    lan: {router: 10.2.30.3/24, hosts: {vm: 10.2.30.10}}
    customerEdges:
      ce: {lan: 192.168.32.0/31, address: 203.0.113.52, tunnels: [{connection: to-spoken, address: 10.2.30.125}]}
resources:
  resourceGroup: lab
  location: region1
  virtualNetworks:
    hub:
      addressSpace: [10.1.0.0/16, 'fd5a:1f2b:3c4d::/48']
      subnets:
        workload: {addressPrefixes: [10.1.0.0/24, 'fd5a:1f2b:3c4d::/64']}
        GatewaySubnet: {addressPrefix: 10.1.255.0/27}
    branch:
      addressSpace: [10.9.0.0/16]
      subnets:
        workload: {addressPrefix: 10.9.0.0/24}
        GatewaySubnet: {addressPrefix: 10.9.255.0/27}
  networkInterfaces:
    hub-vm-nic:
      ipConfigurations:
        v4: {subnet: hub/workload, privateIPAddress: 10.1.0.4}
        v6: {subnet: hub/workload, privateIPAddress: 'fd5a:1f2b:3c4d::4'}
    branch-vm-nic: {subnet: branch/workload, privateIPAddress: 10.9.0.4}
  virtualNetworkGateways:
    hub-gw: {virtualNetwork: hub}
    branch-gw: {virtualNetwork: branch, asn: 65516}
  localNetworkGateways:
    plain: {gatewayIpAddress: 203.0.113.51, localNetworkAddressSpace: [10.3.30.0/24]}
    spoken: {gatewayIpAddress: 203.0.113.52, asn: 65022, bgpPeeringAddress: 10.2.30.125}
  connections:
    hub-to-branch: {virtualNetworkGateway1: hub-gw, virtualNetworkGateway2: branch-gw, sharedKey: SameOnBothSides, enableBgp: true}
    branch-to-hub: {virtualNetworkGateway1: branch-gw, virtualNetworkGateway2: hub-gw, sharedKey: SameOnBothSides, enableBgp: true}
    to-plain: {connectionType: IPsec, virtualNetworkGateway1: hub-gw, localNetworkGateway2: plain, sharedKey: EqualOnBothEnds}
    to-spoken:
      connectionType: IPsec
      virtualNetworkGateway1: hub-gw
      localNetworkGateway2: spoken
      sharedKey: EqualOnBothEnds
      enableBgp: true
";

/// Waits until the machine of a VNet has a gateway route to the site without BGP, or has none.
async fn wait_for_site_route(w: &World, host: &str, expected: bool) -> Result<()> {
    let prefix: IpNet = "10.3.30.0/24".parse()?;
    let end = Instant::now() + CONVERGENCE_TIMEOUT;
    loop {
        let tables = w.agent_tables(host).await?;
        let mut routes = tables.subnets.iter().flat_map(|s| &s.routes);
        if routes.any(|r| r.prefix == prefix) == expected {
            return Ok(());
        }
        ensure!(
            Instant::now() < end,
            "{host} has the route: {}, expected {expected}",
            !expected
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g18_a_site_without_bgp_is_reached_by_all_that_exchange_routes() -> Result<()> {
    let w = World::of(&Topology::parse(TOPOLOGY)?).await?;
    // The output of `device-config` contains only routes to the hub. Routes to further networks are the task of the
    // site's operator (G20), so the test adds them.
    for net in ["10.9.0.0/16", "10.2.30.0/24"] {
        let add = ["ip", "route", "add", net, "dev", "wg0"];
        let done = w.exec("plain-ce", &add, Duration::from_secs(5)).await?;
        ensure!(done.code == 0, "{add:?}: {done:?}");
    }
    for from in ["hub-vm", "branch-vm", "spoken-vm"] {
        w.reach_within(from, "plain-vm", CONVERGENCE_TIMEOUT).await?;
        w.reach_within("plain-vm", from, CONVERGENCE_TIMEOUT).await?;
    }
    // The site has no ASN, so the gateway originates the site's prefix, and the AS path has only the gateway's ASN.
    let show = [
        "birdc",
        "-s",
        "/run/bird/bird.ctl",
        "show",
        "route",
        "10.3.30.0/24",
        "all",
    ];
    let learned = w.exec("spoken-ce", &show, Duration::from_secs(5)).await?.stdout;
    let path = learned.lines().find(|l| l.contains("BGP.as_path"));
    let path = path.with_context(|| format!("no such route: {learned}"))?;
    ensure!(path.trim() == "BGP.as_path: 65515", "{learned}");
    w.agree().await?;

    // R6: while the tunnel is down, the hub's own VMs keep their route to the site, because the route is configured and
    // not learned. The hub's gateway stops advertising the site's prefix to other networks, because these may have
    // another path to the site.
    wait_for_site_route(&w, "branch-vm", true).await?;
    w.cut_pair("hub-gw", "plain-ce")?;
    w.connection_is_because("to-plain", "NotConnected", "PeerReachability")
        .await?;
    wait_for_site_route(&w, "branch-vm", false).await?;
    wait_for_site_route(&w, "hub-vm", true).await?;
    w.restore_pair("hub-gw", "plain-ce")?;
    w.reach_within("spoken-vm", "plain-vm", CONVERGENCE_TIMEOUT).await?;
    w.down()
}
