//! An appliance with two NICs between two spokes, with real packets (D37).

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::process::Command;
use std::time::Duration;
use tombolo_lab::Topology;
use tombolo_proto::fabric::Probe;
use tombolo_tests::live::World;

/// Two spokes that reach each other only through `nva`. The packets of spoke a arrive at the NIC `inside` and leave by
/// `outside`; those of spoke b take the same way back.
const TOPOLOGY: &str = "
name: e2e-two-nics
underlay:
  segments:
    internet: {prefix: 203.0.113.0/24}
  controller: {address: 203.0.113.10, port: 8443}
hosts:
  a: {address: 203.0.113.11, vm: {nics: [a-nic]}}
  b: {address: 203.0.113.12, vm: {nics: [b-nic]}}
  nva: {address: 203.0.113.13, vm: {nics: [outside, inside]}}
  c: {address: 203.0.113.14, vm: {nics: [c-nic]}}
resources:
  resourceGroup: lab
  location: region1
  routeTables:
    of-a: {routes: {to-b: {addressPrefix: 10.3.0.0/16, nextHopType: VirtualAppliance, nextHopIpAddress: 10.1.2.4}}}
    of-b: {routes: {to-a: {addressPrefix: 10.2.0.0/16, nextHopType: VirtualAppliance, nextHopIpAddress: 10.1.1.4}}}
    of-outside: {}
    of-inside: {}
  virtualNetworks:
    hub:
      addressSpace: [10.1.0.0/16]
      subnets:
        outside: {addressPrefix: 10.1.1.0/24, routeTable: of-outside}
        inside: {addressPrefix: 10.1.2.0/24, routeTable: of-inside}
      peerings:
        to-spoke-a: {remoteVirtualNetwork: spoke-a, allowForwardedTraffic: true}
        to-spoke-b: {remoteVirtualNetwork: spoke-b, allowForwardedTraffic: true}
    spoke-a:
      addressSpace: [10.2.0.0/16]
      subnets: {workload: {addressPrefix: 10.2.0.0/24, routeTable: of-a}}
      peerings: {to-hub: {remoteVirtualNetwork: hub, allowForwardedTraffic: true}}
    spoke-b:
      addressSpace: [10.3.0.0/16]
      subnets: {workload: {addressPrefix: 10.3.0.0/24, routeTable: of-b}}
      peerings: {to-hub: {remoteVirtualNetwork: hub, allowForwardedTraffic: true}}
  networkInterfaces:
    a-nic: {subnet: spoke-a/workload, privateIPAddress: 10.2.0.4}
    b-nic: {subnet: spoke-b/workload, privateIPAddress: 10.3.0.4}
    c-nic: {subnet: hub/inside, privateIPAddress: 10.1.2.5}
    outside: {subnet: hub/outside, privateIPAddress: 10.1.1.4, enableIPForwarding: true}
    inside:
      subnet: hub/inside
      privateIPAddress: 10.1.2.4
      enableIPForwarding: true
      tags: {tombolo-host-routes: 10.2.0.0/16}
";

/// D37, R12, R20, D25: IP forwarding, user-defined routes and security groups apply to the NIC at which a packet
/// arrives or leaves, and `explain` says the same as the packets show.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_appliance_with_two_nics_has_a_device_for_each() -> Result<()> {
    let w = World::of(&Topology::parse(TOPOLOGY)?).await?;
    // The first NIC's address is that of the host: packets go out by the second NIC, and come in by the first.
    w.reach("a", "b").await?;
    w.reach("b", "a").await?;
    w.reach("a", "nva").await?;
    let before = [received(&w, 0)?, received(&w, 1)?];
    w.reach("a", "b").await?;
    let [first, second] = [received(&w, 0)? - before[0], received(&w, 1)? - before[1]];
    ensure!(second >= 1, "the request arrives at the device of `inside`: {second}");
    ensure!(first >= 1, "the reply arrives at the device of `outside`: {first}");
    // The kernel of the appliance answers a traceroute from the NIC by which it sends to spoke a.
    w.trace_is("a", &["10.1.2.4", "10.3.0.4"]).await?;

    // A probe from each NIC leaves by the device of this NIC.
    for nic in ["inside", "outside"] {
        let from = w.group().item("networkInterfaces", nic);
        let probe: Probe = serde_json::from_value(json!({"from": from, "to": "b", "kind": "ping", "count": 2}))?;
        let answer = w.client()?.probe(&probe).await?;
        ensure!(answer.report.received == 2, "from {nic}: {answer:?}");
    }

    // R12: each NIC that the packets pass needs IP forwarding.
    for nic in ["inside", "outside"] {
        set(&w, nic, "enableIPForwarding", json!(false)).await?;
        w.silent("a", "b").await?;
        // A neighbour of `inside` reaches the address of `outside`: the answer leaves by the NIC with this address.
        w.reach("c", "nva").await?;
        set(&w, nic, "enableIPForwarding", json!(true)).await?;
        w.reach("a", "b").await?;
    }
    // R20: the routes of the subnet of the NIC by which packets leave apply.
    let client = w.client()?;
    let none = |table: &str| format!("{}/routes/stop-b", w.group().item("routeTables", table));
    let stop = json!({"properties": {"addressPrefix": "10.3.0.0/16", "nextHopType": "None"}});
    client.arm_put(&none("of-inside"), &stop).await?;
    w.in_force().await?;
    w.reach("a", "b").await?;
    client.arm_put(&none("of-outside"), &stop).await?;
    w.in_force().await?;
    w.silent("a", "b").await?;
    ensure!(client.arm_delete(&none("of-outside")).await?);
    w.in_force().await?;
    w.reach("a", "b").await?;
    // D25: a group at one NIC does not apply to packets at the other NIC.
    let group = w.group().item("networkSecurityGroups", "closed");
    let rule = |direction: &str| {
        json!({"name": format!("no-{direction}"), "properties": {
            "priority": 100, "direction": direction, "access": "Deny", "protocol": "*",
            "sourceAddressPrefix": "10.2.0.0/16", "sourcePortRange": "*",
            "destinationAddressPrefix": "*", "destinationPortRange": "*",
        }})
    };
    let rules = |direction: &str| json!({"location": "region1", "properties": {"securityRules": [rule(direction)]}});
    for (nic, closed, open) in [("inside", "Inbound", "Outbound"), ("outside", "Outbound", "Inbound")] {
        client.arm_put(&group, &rules(open)).await?;
        set(&w, nic, "networkSecurityGroup", json!({"id": group})).await?;
        w.reach("a", "b").await?;
        client.arm_put(&group, &rules(closed)).await?;
        w.in_force().await?;
        // The other direction needs no rule: replies belong to flows that the NIC has let pass (N6).
        w.silent_from("a", "b").await?;
        w.reach_within("b", "a", Duration::from_secs(5)).await?;
        set(&w, nic, "networkSecurityGroup", Value::Null).await?;
        w.reach("a", "b").await?;
    }
    w.end().await
}

/// Number of packets that the agent of `nva` has written to the device of a NIC. `nic`: the position of the NIC.
fn received(w: &World, nic: usize) -> Result<u64> {
    let interface = match nic {
        0 => "tl-nva".to_owned(),
        nic => format!("tl-nva-{nic}"),
    };
    let argv = [
        "cat".to_owned(),
        format!("/sys/class/net/{interface}/statistics/rx_packets"),
    ];
    let argv = w.hosts().wrap("nva", &argv);
    let output = Command::new(&argv[0]).args(&argv[1..]).output()?;
    let text = String::from_utf8(output.stdout)?;
    let count = text.trim().parse();
    count.with_context(|| format!("{interface}: '{text}' {}", String::from_utf8_lossy(&output.stderr)))
}

/// Changes one property of a NIC, and waits until that is in force.
async fn set(w: &World, nic: &str, property: &str, value: Value) -> Result<()> {
    let nic = w.group().item("networkInterfaces", nic);
    let client = w.client()?;
    let mut body: Value = client.arm_get(&nic).await?;
    body["properties"][property] = value;
    client.arm_put(&nic, &body).await?;
    w.in_force().await.map(drop)
}
