//! Two hostile agents advertise a few sets of routes in turn at a high rate: a VM of a peered VNet, which may advertise no
//! routes, and the gateway of a VPN connection with BGP, which may. The peers rebuild their lookup tables a few times
//! only, and not once for each message.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::time::{Duration, Instant};
use tombolo_lab::Topology;
use tombolo_lab::host::inside;
use tombolo_tests::hostile::{Hostile, tables};
use tombolo_tests::live::{PING_INTERVAL, World};

const TOPOLOGY: &str = "
name: e2e-advertisements
underlay:
  segments:
    internet: {prefix: 203.0.113.0/24}
  controller: {address: 203.0.113.10, port: 8443}
hosts:
  hub-vm: {address: 203.0.113.11, vm: {nics: [hub-nic]}}
  hub-gw: {address: 203.0.113.12, gateway: {name: hub-gw}}
  spoke-vm: {address: 203.0.113.21, vm: {nics: [spoke-nic]}}
  branch-gw: {address: 203.0.113.31, gateway: {name: branch-gw}}
  other-gw: {address: 203.0.113.41, gateway: {name: other-gw}}
  other-vm: {address: 203.0.113.42, vm: {nics: [other-nic]}}
resources:
  resourceGroup: lab
  location: region1
  virtualNetworks:
    hub:
      addressSpace: [10.1.0.0/16]
      subnets:
        workload: {addressPrefix: 10.1.0.0/24}
        GatewaySubnet: {addressPrefix: 10.1.255.0/27}
      peerings:
        to-spoke: {remoteVirtualNetwork: spoke}
    spoke:
      addressSpace: [10.2.0.0/16]
      subnets:
        workload: {addressPrefix: 10.2.0.0/24}
      peerings:
        to-hub: {remoteVirtualNetwork: hub}
    branch:
      addressSpace: [10.3.0.0/16]
      subnets:
        GatewaySubnet: {addressPrefix: 10.3.255.0/27}
    other:
      addressSpace: [10.4.0.0/16]
      subnets:
        workload: {addressPrefix: 10.4.0.0/24}
        GatewaySubnet: {addressPrefix: 10.4.255.0/27}
  networkInterfaces:
    hub-nic: {subnet: hub/workload, privateIPAddress: 10.1.0.4}
    spoke-nic: {subnet: spoke/workload, privateIPAddress: 10.2.0.4}
    other-nic: {subnet: other/workload, privateIPAddress: 10.4.0.4}
  publicIPAddresses: {hub-pip: {}, branch-pip: {}, other-pip: {}}
  virtualNetworkGateways:
    hub-gw: {virtualNetwork: hub, publicIPAddress: hub-pip, privateIPAddress: 10.1.255.4, enableBgp: true, asn: 65010}
    branch-gw: {virtualNetwork: branch, publicIPAddress: branch-pip, privateIPAddress: 10.3.255.4, enableBgp: true, asn: 65030}
    other-gw: {virtualNetwork: other, publicIPAddress: other-pip, privateIPAddress: 10.4.255.4, enableBgp: true, asn: 65040}
  connections:
    hub-to-branch: {virtualNetworkGateway1: hub-gw, virtualNetworkGateway2: branch-gw, sharedKey: OneForThese, enableBgp: true}
    branch-to-hub: {virtualNetworkGateway1: branch-gw, virtualNetworkGateway2: hub-gw, sharedKey: OneForThese, enableBgp: true}
    hub-to-other: {virtualNetworkGateway1: hub-gw, virtualNetworkGateway2: other-gw, sharedKey: AnotherForThese, enableBgp: true}
    other-to-hub: {virtualNetworkGateway1: other-gw, virtualNetworkGateway2: hub-gw, sharedKey: AnotherForThese, enableBgp: true}
";

/// Route tables that each attacker advertises in a second. A receiver rebuilds its tables at most ten times a second,
/// so most of these tables cannot have a rebuild of their own.
const RATE: u32 = 2000;
const ATTACK_TIME: Duration = Duration::from_secs(5);

/// Limit for rebuilds during the attack: the pace of one sender allows eight in the first ten seconds, and changes of links
/// cause a few more.
const MAX_REBUILDS: u64 = 14;

/// Limit for new log lines during the attack: an agent writes at most five lines of one kind in ten seconds.
const MAX_LOG_LINES: usize = 40;

/// The number at a JSON pointer of an agent's view. Fails if there is none.
async fn number(w: &World, host: &str, at: &str) -> Result<u64> {
    let view: Value = w.agent_view(host).await?;
    let number = view.pointer(at).and_then(Value::as_u64);
    number.with_context(|| format!("{host} shows no {at}: {view}"))
}

/// The number of lines in an agent's log.
fn lines(w: &World, host: &str) -> Result<usize> {
    Ok(std::fs::read_to_string(w.log(host)?)?.lines().count())
}

/// Stops a host's agent, and starts a hostile agent with the identity of the stopped one. The hostile agent has one
/// link, with `peer`.
fn hostile(w: &World, host: &str, peer: &str) -> Result<Hostile> {
    ensure!(w.stop_agent(host)?, "the agent of {host} had to be killed");
    let state = w.agent_dir(host)?;
    inside(&w.hosts().netns(host), || Hostile::new(&state, peer))?
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_that_change_all_the_time_are_built_a_few_times() -> Result<()> {
    let w = World::of(&Topology::parse(TOPOLOGY)?).await?;
    w.reach("spoke-vm", "hub-vm").await?;
    w.reach_within("hub-vm", "other-vm", Duration::from_secs(10)).await?;
    let mut neighbour = hostile(&w, "branch-gw", "hub-gw")?;
    let mut vm = hostile(&w, "spoke-vm", "hub-vm")?;
    // The test proves something only if the gateway does apply this neighbour's routes before the attack.
    let applied = number(&w, "hub-gw", "/routeAdvertisements/applied").await?;
    let mut neighbour = tokio::task::spawn_blocking(move || {
        let first = &tables(65_030, 1)[..1];
        let advertised = neighbour.advertise(first, 10, Duration::from_secs(1));
        advertised.map(|_| neighbour)
    })
    .await??;
    let begin = Instant::now();
    while number(&w, "hub-gw", "/routeAdvertisements/applied").await? <= applied {
        ensure!(
            begin.elapsed() < Duration::from_secs(10),
            "the neighbour's routes are not applied"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let victims = ["hub-gw", "hub-vm"];
    let mut before = Vec::new();
    for host in victims {
        let built = number(&w, host, "/tableRebuilds").await?;
        before.push((w.snapshot().processes[host].clone(), built, lines(&w, host)?));
    }
    let pinger = w.start_ping("hub-vm", "other-vm", PING_INTERVAL)?;
    let first = tokio::task::spawn_blocking(move || neighbour.advertise(&tables(65_030, 3), RATE, ATTACK_TIME));
    let second = tokio::task::spawn_blocking(move || vm.advertise(&tables(65_020, 3), RATE, ATTACK_TIME));
    for attack in [first, second] {
        let done = attack.await??;
        ensure!(done.count > 500, "no attack: {done:?}");
    }
    let pinged = pinger.stop()?;
    ensure!(pinged.all(), "packets between others were lost: {pinged:?}");
    for (host, (process, built, lines_before)) in victims.iter().zip(before) {
        ensure!(process.alive(), "the agent of {host} ended:\n{}", process.tail(20));
        let built = number(&w, host, "/tableRebuilds").await? - built;
        ensure!(built <= MAX_REBUILDS, "{host} built its tables {built} times");
        let written = lines(&w, host)?.saturating_sub(lines_before);
        ensure!(written <= MAX_LOG_LINES, "{host} wrote {written} lines");
    }
    // The counters prove that both attacks arrived: the hub's gateway processed the tables of the branch's gateway, and
    // the hub's VM refused the tables of the spoke's VM.
    ensure!(number(&w, "hub-gw", "/routeAdvertisements/received").await? > 500);
    ensure!(number(&w, "hub-vm", "/routeAdvertisements/refused").await? > 500);
    w.down()
}
