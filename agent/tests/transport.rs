//! WireGuard where it works, QUIC where something on the way blocks it, and back (D6): with a real filter between real hosts.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod common;

use common::{Host, Server, Wire, config, eventually, sh};
use std::time::{Duration, Instant};
use tombolo_agent::identity::LinkKeys;
use tombolo_proto::config::Transport;

/// Blocks what looks like WireGuard: a first byte of 1 to 4. Or nothing.
fn block(wire: &Wire, on: bool) {
    let rule = if on {
        "add rule inet t c udp dport 51820 @th,64,8 < 5 counter drop"
    } else {
        ""
    };
    for ns in &wire.ns {
        sh(&format!(
            "ip netns exec {ns} nft 'add table inet t; add chain inet t c {{ type filter hook input priority 0; }}; flush chain inet t c; {rule}'"
        ));
    }
}

fn transport(host: &Host) -> String {
    let status = host.status().unwrap();
    status["status"]["links"][0]["transport"]
        .as_str()
        .unwrap_or("")
        .to_owned()
}

/// Waits until the link goes over something; how long it took.
fn switched(hosts: &[Host; 2], to: &str) -> Duration {
    let begun = Instant::now();
    eventually(&format!("over {to}"), || hosts.iter().all(|h| transport(h) == to));
    begun.elapsed()
}

#[test]
fn blocked_wireguard_gives_way_to_quic_and_no_flow_is_lost() {
    let wire = Wire::new("transport");
    let mut hosts = [Host::new(&wire.ns[0], "vm-a"), Host::new(&wire.ns[1], "vm-b")];
    let pin = |host: &Host| LinkKeys::load(&host.state).unwrap().links().pin();
    for i in 0..2 {
        let mut config = config(i, [&hosts[0], &hosts[1]]);
        config.links[0].transport = Transport::Automatic;
        config.links[0].quic = pin(&hosts[1 - i]);
        hosts[i].remember(config);
    }
    hosts.iter_mut().for_each(Host::start);
    eventually("ping", || wire.exec(0, "ping -c 1 -W 1 10.1.0.5").0);

    // One TCP connection lives through all of it, with pings beside it.
    let server = Server::start(&wire, 1);
    let run = |command: &'static str| {
        let ns = wire.ns[0].clone();
        std::thread::spawn(move || common::try_sh(&format!("ip netns exec {ns} {command}")))
    };
    let flow = run("timeout 60 iperf3 -c 10.1.0.5 -t 12 -b 5M -f m");
    let pings = run("timeout 60 ping -i 0.01 -c 1100 -q 10.1.0.5");
    std::thread::sleep(Duration::from_secs(1));
    switched(&hosts, "WireGuard");

    block(&wire, true);
    let there = switched(&hosts, "Quic");
    std::thread::sleep(Duration::from_secs(1));
    let (ok, text) = wire.exec(0, "ping -i 0.01 -c 100 -q 10.1.0.5");
    assert!(ok && text.contains("100 received"), "over QUIC: {text}");
    block(&wire, false);
    let back = switched(&hosts, "WireGuard");
    let (ok, text) = wire.exec(0, "ping -i 0.01 -c 100 -q 10.1.0.5");
    assert!(ok && text.contains("100 received"), "over WireGuard again: {text}");

    println!("to QUIC in {there:?}, back in {back:?}");
    assert!(there < Duration::from_secs(3), "to QUIC in {there:?}");
    let (_, pings) = pings.join().unwrap();
    let received = pings.split(" received").next().and_then(|t| t.rsplit(' ').next());
    let received: u32 = received.unwrap().parse().unwrap();
    // What was on its way when the filter came, until the switch.
    assert!(received > 1100 - 300, "{pings}");
    let (ok, text) = flow.join().unwrap();
    drop(server);
    assert!(ok, "the connection broke: {text}");
    for host in &hosts {
        let log = host.log();
        let switches: Vec<_> = log.lines().filter(|l| l.contains("link switched")).collect();
        assert_eq!(switches.len(), 2, "{log}");
        assert!(switches.iter().all(|l| l.contains("reason=")), "{switches:?}");
    }
}
