//! Limits of bandwidth, live: what a NIC sends (P32), and what passes all tunnels of a gateway (G5, X9). The upper bounds
//! hold on every machine; a busy one may carry much less.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};
use tombolo_lab::host::inside;
use tombolo_lab::topology::Topology;
use tombolo_proto::config::BANDWIDTH_TAG;
use tombolo_tests::live::World;

const PORT: u16 = 5003;
/// A transfer is measured for this time, after the time in which it uses the burst and finds its speed.
const MEASURED: Duration = Duration::from_secs(5);
const WARM_UP: Duration = Duration::from_secs(2);
/// Longest wait for a connection or for a byte.
const PATIENCE: Duration = Duration::from_secs(20);

const TOPOLOGY: &str = "
name: e2e-pool
underlay:
  segments: {internet: {prefix: 203.0.113.0/24}}
  controller: {address: 203.0.113.10, port: 8443}
hosts:
  hub-vm: {address: 203.0.113.11, vm: {nics: [hub-vm-nic]}}
  hub-gw: {address: 203.0.113.12, gateway: {name: hub-gw}}
  east-vm: {address: 203.0.113.21, vm: {nics: [east-vm-nic]}}
  east-gw: {address: 203.0.113.22, gateway: {name: east-gw}}
  west-vm: {address: 203.0.113.31, vm: {nics: [west-vm-nic]}}
  west-gw: {address: 203.0.113.32, gateway: {name: west-gw}}
resources:
  resourceGroup: lab
  location: region1
  virtualNetworks:
    hub:
      addressSpace: [10.1.0.0/16]
      subnets: {workload: {addressPrefix: 10.1.0.0/24}, GatewaySubnet: {addressPrefix: 10.1.255.0/27}}
    east:
      addressSpace: [10.2.0.0/16]
      subnets: {workload: {addressPrefix: 10.2.0.0/24}, GatewaySubnet: {addressPrefix: 10.2.255.0/27}}
    west:
      addressSpace: [10.3.0.0/16]
      subnets: {workload: {addressPrefix: 10.3.0.0/24}, GatewaySubnet: {addressPrefix: 10.3.255.0/27}}
  networkInterfaces:
    hub-vm-nic: {subnet: hub/workload, privateIPAddress: 10.1.0.4}
    east-vm-nic: {subnet: east/workload, privateIPAddress: 10.2.0.4}
    west-vm-nic: {subnet: west/workload, privateIPAddress: 10.3.0.4}
  virtualNetworkGateways:
    hub-gw: {virtualNetwork: hub, sku: Basic}
    east-gw: {virtualNetwork: east}
    west-gw: {virtualNetwork: west}
  connections:
    hub-to-east: {virtualNetworkGateway1: hub-gw, virtualNetworkGateway2: east-gw, sharedKey: SameOnBothSides}
    east-to-hub: {virtualNetworkGateway1: east-gw, virtualNetworkGateway2: hub-gw, sharedKey: SameOnBothSides}
    hub-to-west: {virtualNetworkGateway1: hub-gw, virtualNetworkGateway2: west-gw, sharedKey: SameOnBothSides}
    west-to-hub: {virtualNetworkGateway1: west-gw, virtualNetworkGateway2: hub-gw, sharedKey: SameOnBothSides}
";

/// The number of packets that an agent has dropped because of a limit.
async fn dropped(w: &World, host: &str) -> Result<u64> {
    let drops = w.agent_status(host).await?.drops;
    Ok(drops.get("bandwidth_exceeded").copied().unwrap_or_default())
}

/// Sends by TCP from one host to another for a while. Returns the bytes that arrived in [`MEASURED`], in Mbit/s.
async fn goodput(w: &World, from: &str, to: &str) -> Result<f64> {
    let (source, target) = (w.hosts().netns(from), w.hosts().netns(to));
    let address = SocketAddr::new(w.address(to)?, PORT);
    let listener = inside(&target, || TcpListener::bind(address))??;
    let receiver = tokio::task::spawn_blocking(move || receive(&listener));
    let sender = tokio::task::spawn_blocking(move || -> Result<()> {
        let mut stream = inside(&source, || TcpStream::connect_timeout(&address, PATIENCE))??;
        stream.set_write_timeout(Some(PATIENCE))?;
        // The receiver ends the transfer.
        while stream.write_all(&[7; 1 << 16]).is_ok() {}
        Ok(())
    });
    let measured = receiver.await??;
    sender.await??;
    Ok(measured)
}

fn receive(listener: &TcpListener) -> Result<f64> {
    listener.set_nonblocking(true)?;
    let start = Instant::now();
    let mut stream = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                ensure!(start.elapsed() < PATIENCE, "nobody connects");
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(e) => return Err(e.into()),
        }
    };
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = vec![0; 1 << 16];
    let begin = Instant::now() + WARM_UP;
    let mut bytes = 0;
    loop {
        let n = stream.read(&mut buffer).context("reading")?;
        ensure!(n > 0, "the sender has closed");
        let now = Instant::now();
        if now >= begin {
            bytes += n;
        }
        if now >= begin + MEASURED {
            return Ok(bytes as f64 * 8.0 / 1e6 / (now - begin).as_secs_f64());
        }
    }
}

/// Sends datagrams as fast as the host accepts them, for a second. Returns the bytes that were sent, and those that arrived,
/// both with the IPv4 and UDP headers.
async fn flood(w: &World, from: &str, to: &str) -> Result<(usize, usize)> {
    const PAYLOAD: usize = 1200;
    const HEADERS: usize = 28;
    let address = SocketAddr::new(w.address(to)?, PORT);
    let receiver = inside(&w.hosts().netns(to), || UdpSocket::bind(address))??;
    receiver.set_read_timeout(Some(Duration::from_secs(1)))?;
    let sender = inside(&w.hosts().netns(from), || UdpSocket::bind("0.0.0.0:0"))??;
    let received = tokio::task::spawn_blocking(move || {
        let mut buffer = [0; 2 * PAYLOAD];
        std::iter::from_fn(|| receiver.recv(&mut buffer).ok())
            .map(|n| n + HEADERS)
            .sum()
    });
    let sent = tokio::task::spawn_blocking(move || -> Result<usize> {
        let end = Instant::now() + Duration::from_secs(1);
        let mut sent = 0;
        while Instant::now() < end {
            sent += sender.send_to(&[7; PAYLOAD], address)? + HEADERS;
        }
        Ok(sent)
    });
    let sent = sent.await??;
    Ok((sent, received.await?))
}

/// P32: a NIC sends at most its bandwidth, by TCP and by UDP, and gets as much as others send.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn p32_a_nic_sends_at_most_its_bandwidth() -> Result<()> {
    const RATE: f64 = 50.0;
    let w = World::up("bandwidth").await?;
    w.join("hub", "spoke-a").await?;
    w.reach("spoke-a-vm", "hub-vm").await?;
    let nic = w.group().item("networkInterfaces", "spoke-a-vm-nic");
    let mut body = w.client()?.arm_get(&nic).await?;
    body["tags"][BANDWIDTH_TAG] = json!("50");
    w.client()?.arm_put(&nic, &body).await?;
    w.in_force().await?;

    let measured = goodput(&w, "spoke-a-vm", "hub-vm").await?;
    println!("TCP through a NIC of {RATE} Mbit/s: {measured:.1} Mbit/s");
    ensure!(measured <= RATE * 1.05, "{measured} Mbit/s pass");
    ensure!(measured >= RATE * 0.3, "{measured} Mbit/s pass");

    let before = dropped(&w, "spoke-a-vm").await?;
    let begin = Instant::now();
    let (sent, arrived) = flood(&w, "spoke-a-vm", "hub-vm").await?;
    let most = RATE / 8.0 * 1e6 * begin.elapsed().as_secs_f64() * 1.05;
    println!("UDP: {sent} bytes sent in a second, {arrived} arrived");
    ensure!((arrived as f64) < most, "{arrived} of {sent} bytes arrived");
    // The packets wait in the kernel, and are lost there if the queue of the device is full.
    ensure!(dropped(&w, "spoke-a-vm").await? == before, "the agent drops nothing");
    // What comes to the NIC is not limited.
    goodput(&w, "hub-vm", "spoke-a-vm").await?;
    ensure!(dropped(&w, "hub-vm").await? == 0, "another NIC has no limit");

    // Without the tag there is no limit.
    let mut body = w.client()?.arm_get(&nic).await?;
    body["tags"] = json!({});
    w.client()?.arm_put(&nic, &body).await?;
    w.in_force().await?;
    let before = dropped(&w, "spoke-a-vm").await?;
    flood(&w, "spoke-a-vm", "hub-vm").await?;
    ensure!(dropped(&w, "spoke-a-vm").await? == before, "without a limit");
    w.end().await
}

/// G5, X9: with the setting `azure`, all tunnels of a gateway of the SKU Basic carry 100 Mbit/s together. The gateway shows
/// the limit, what has passed and what was dropped.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn g5_x9_two_tunnels_share_the_bandwidth_of_their_gateway() -> Result<()> {
    const RATE: f64 = 100.0;
    let w = World::of(&Topology::parse(TOPOLOGY)?).await?;
    for (connection, host) in [("hub-to-east", "east-vm"), ("hub-to-west", "west-vm")] {
        w.connection_is(connection, "Connected").await?;
        w.reach("hub-vm", host).await?;
    }
    let path = w.group().item("virtualNetworkGateways", "hub-gw");
    let shown = w.client()?.arm_get(&path).await?["properties"]["tunnelBandwidth"].clone();
    ensure!(shown["publishedMbps"] == 100 && shown["limitMbps"].is_null(), "{shown}");
    let mut settings = w.client()?.settings().await?;
    settings["gatewayBandwidth"] = json!("azure");
    w.client()?.put_settings(&settings).await?;
    w.in_force().await?;

    let (east, west) = tokio::join!(goodput(&w, "hub-vm", "east-vm"), goodput(&w, "hub-vm", "west-vm"));
    let (east, west) = (east?, west?);
    println!("TCP through two tunnels of a gateway of {RATE} Mbit/s: {east:.1} and {west:.1} Mbit/s");
    ensure!(east + west <= RATE * 1.05, "{east} and {west} Mbit/s pass");
    ensure!(east + west >= RATE * 0.3, "{east} and {west} Mbit/s pass");

    let begin = Instant::now();
    loop {
        let shown = w.client()?.arm_get(&path).await?["properties"]["tunnelBandwidth"].clone();
        let bytes = shown["lastMinuteBytes"].as_u64().unwrap_or_default();
        let drops = shown["droppedPackets"].as_u64().unwrap_or_default();
        if shown["limitMbps"] == 100 && bytes > 10_000_000 && drops > 0 {
            break;
        }
        ensure!(begin.elapsed() < Duration::from_secs(20), "{shown}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    w.end().await
}
