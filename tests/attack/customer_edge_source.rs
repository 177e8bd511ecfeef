//! Finding 8 of docs/security.md: with `circuitVnetToVnet`, a customer's router sends packets with source addresses of
//! VNets that are linked to the circuit. The circuit's edge drops these packets.

use super::site::{ROUTES_TIMEOUT, answers, arrived, send_as, spoofed, watch};
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};
use tombolo_lab::Topology;
use tombolo_tests::live::World;

/// Two VNets and a site that are joined by one circuit, with a line at its primary edge only.
const TOPOLOGY: &str = r#"
name: attack
settings: {circuitVnetToVnet: true}
underlay:
  mtu: 1500
  segments:
    internet: {prefix: 203.0.113.0/24}
  controller: {address: 203.0.113.10, port: 8443}
hosts:
  left-vm: {address: 203.0.113.11, vm: {nics: [left-nic]}}
  left-er: {address: 203.0.113.12, gateway: {name: left-er}}
  right-vm: {address: 203.0.113.21, vm: {nics: [right-nic]}}
  right-er: {address: 203.0.113.22, gateway: {name: right-er}}
  er-primary: {address: 203.0.113.41, edge: {circuit: er, link: primary}}
  er-secondary: {address: 203.0.113.42, edge: {circuit: er, link: secondary}}
sites:
  loc1:
    asn: 65021
    prefixes: [10.2.30.0/25]
    lan: {router: 10.2.30.3/25, hosts: {vm: 10.2.30.10}, routes: default}
    customerEdges:
      ce1: {lan: 192.168.30.0/31, lines: [{circuit: er, link: primary}]}
      ce2: {lines: [{circuit: er, link: secondary, enabled: false}]}
resources:
  resourceGroup: attack
  location: region1
  virtualNetworks:
    left:
      addressSpace: [10.1.0.0/16]
      subnets:
        workload: {addressPrefix: 10.1.0.0/24}
        GatewaySubnet: {addressPrefix: 10.1.255.0/27}
    right:
      addressSpace: [10.3.0.0/16]
      subnets:
        workload: {addressPrefix: 10.3.0.0/24}
        GatewaySubnet: {addressPrefix: 10.3.255.0/27}
  networkInterfaces:
    left-nic: {subnet: left/workload, privateIPAddress: 10.1.0.4}
    right-nic: {subnet: right/workload, privateIPAddress: 10.3.0.4}
  publicIPAddresses: {left-er-pip: {}, right-er-pip: {}}
  virtualNetworkGateways:
    left-er: {virtualNetwork: left, gatewayType: ExpressRoute, publicIPAddress: left-er-pip, privateIPAddress: 10.1.255.12}
    right-er: {virtualNetwork: right, gatewayType: ExpressRoute, publicIPAddress: right-er-pip, privateIPAddress: 10.3.255.12}
  expressRouteCircuits:
    er: {privatePeering: {peerAsn: 65021, primary: 192.168.30.16/30, secondary: 192.168.30.20/30, vlanId: 30}}
  connections:
    left-to-er:
      connectionType: ExpressRoute
      virtualNetworkGateway1: left-er
      expressRouteCircuit: er
      tunnelAddresses: [10.1.255.4, 10.1.255.5]
    right-to-er:
      connectionType: ExpressRoute
      virtualNetworkGateway1: right-er
      expressRouteCircuit: er
      tunnelAddresses: [10.3.255.4, 10.3.255.5]
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_customer_speaks_for_no_linked_vnet() -> Result<()> {
    let mut topology = Topology::parse(TOPOLOGY)?;
    topology.name = "attack-edge".into();
    let w = World::of(&topology).await?;
    // First the permitted traffic must pass: between the VNets, and between the site and each VNet.
    answers(&w, "left-vm", "right-vm").await?;
    answers(&w, "loc1-vm", "left-vm").await?;
    answers(&w, "loc1-vm", "right-vm").await?;

    let strangers = ["10.3.0.4", "10.3.0.99", "10.1.0.9", "10.3.255.12"];
    watch(&w, "left-vm", &[&strangers[..], &["10.2.30.99"]].concat()).await?;
    let before = spoofed(&w, "er-primary").await?;
    for source in strangers.iter().chain(&["10.2.30.99"]) {
        send_as(&w, "loc1-ce1", source, "10.1.0.4").await?;
    }
    ensure!(
        arrived(&w, "left-vm", "10.2.30.99").await? > 0,
        "left-vm does not get the site's packets"
    );
    // The counted drops prove that the spoofed packets were really sent, and that they reached the edge.
    let end = Instant::now() + ROUTES_TIMEOUT;
    loop {
        let after = spoofed(&w, "er-primary").await?;
        if after >= before + 3 * strangers.len() as u64 {
            break;
        }
        ensure!(Instant::now() < end, "{before} were dropped, then {after}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for source in strangers {
        let count = arrived(&w, "left-vm", source).await?;
        ensure!(
            count == 0,
            "left-vm got {count} packets of the customer with the source {source}"
        );
    }
    // The attack must not have stopped permitted traffic.
    for (from, to) in [
        ("left-vm", "right-vm"),
        ("right-vm", "left-vm"),
        ("loc1-vm", "left-vm"),
        ("left-vm", "loc1-vm"),
    ] {
        answers(&w, from, to).await?;
    }
    w.down()
}
