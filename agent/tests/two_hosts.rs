//! Two VMs of one VNet run on two hosts, without a controller. The test uses real processes, real TUN devices and real
//! pings.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod common;

use common::{Host, Server, Wire, config, eventually};
use nix::sys::signal::Signal;
use tombolo_agent::apply::plan::KernelIds;
use tombolo_proto::config::DEFAULT_MTU;

fn pair(wire: &Wire) -> [Host; 2] {
    let hosts = [Host::new(&wire.ns[0], "vm-a"), Host::new(&wire.ns[1], "vm-b")];
    for i in 0..2 {
        hosts[i].remember(config(i, [&hosts[0], &hosts[1]]));
    }
    hosts
}

/// The policy-routing rules and the routes that the agent has installed in the namespace of host `side`, as `ip` shows
/// them.
fn ours(wire: &Wire, side: usize, host: &Host) -> String {
    let ids = KernelIds::of(&host.config.interface, None, host.config.fwmark);
    let mut out = Vec::new();
    for family in ["-4", "-6"] {
        let rules = wire.run(side, &format!("ip {family} rule list"));
        for table in ids.tables().map(|t| t.to_string()) {
            out.extend(rules.lines().filter(|l| l.contains(&table)).map(str::to_owned));
            // `ip` fails if the table is empty.
            if let (true, routes) = wire.exec(side, &format!("ip {family} route show table {table}")) {
                out.extend(routes.lines().map(str::to_owned));
            }
        }
    }
    out.join("\n")
}

/// The nftables tables in the namespace of host `side`.
fn filters(wire: &Wire, side: usize) -> String {
    wire.exec(side, "nft list tables").1
}

fn clean(wire: &Wire, side: usize, host: &Host) -> (bool, String) {
    let program = env!("CARGO_BIN_EXE_tombolo-agent");
    wire.exec(side, &format!("{program} clean --state-dir {}", host.path().display()))
}

#[test]
fn pings_cross_and_nothing_is_left_behind() {
    let wire = Wire::new("ping");
    let mut hosts = pair(&wire);
    hosts.iter_mut().for_each(Host::start);

    // The kernel chooses the NIC's address as source. The first packet makes the agents establish the link.
    for address in ["10.1.0.5", "fd00:1::5"] {
        eventually(&format!("ping {address}"), || {
            wire.exec(0, &format!("ping -c 1 -W 1 {address}")).0
        });
    }
    let (ok, text) = wire.exec(0, "ping -i 0.01 -c 200 -q 10.1.0.5");
    assert!(ok && text.contains("200 received"), "{text}");
    let (ok, text) = wire.exec(1, "ping -i 0.01 -c 50 -s 5000 -q 10.1.0.4");
    assert!(ok && text.contains("50 received"), "fragmented: {text}");
    // The agent drops a packet to an address that no agent owns, counts it, and sends no reply.
    assert!(!wire.exec(0, "ping -c 1 -W 1 10.1.0.77").0);
    let status = hosts[0].status().unwrap();
    assert_eq!(status["status"]["drops"]["no_owner"], 1, "{status}");
    assert_eq!(status["status"]["applied"], 7);
    assert_eq!(status["connected"], false);
    let metrics = tombolo_agent::admin::ask(&hosts[0].state, "/metrics").unwrap();
    assert!(metrics.contains("tombolo_link_up{peer=\"vm-b\"} 1"), "{metrics}");

    // Rules stay after a crash. The next start takes them over, and forwards again.
    let before = ours(&wire, 0, &hosts[0]);
    assert!(before.contains("10.1.0.0/16") && before.contains("fwmark"), "{before}");
    assert!(!hosts[0].stop(Signal::SIGKILL));
    assert!(ours(&wire, 0, &hosts[0]).contains("fwmark"));
    hosts[0].start();
    eventually("ping after a crash", || wire.exec(0, "ping -c 1 -W 1 10.1.0.5").0);
    assert_eq!(ours(&wire, 0, &hosts[0]), before);

    // After a restart of the second host's agent, traffic from that host makes the agents establish the link again.
    assert!(hosts[1].stop(Signal::SIGTERM));
    hosts[1].start();
    eventually("ping from the restarted host", || {
        wire.exec(1, "ping -c 1 -W 1 10.1.0.4").0
    });

    for (side, host) in hosts.iter_mut().enumerate() {
        assert!(host.stop(Signal::SIGTERM), "{}", host.log());
        // When the agent ends, the routes and filters stay that keep overlay packets from leaving the host in clear
        // text (D22).
        assert!(
            ours(&wire, side, host).contains("unreachable 10.1.0.0/16"),
            "{}",
            ours(&wire, side, host)
        );
        assert!(filters(&wire, side).contains("tombolo-"), "{}", filters(&wire, side));
        let (ok, text) = clean(&wire, side, host);
        assert!(ok, "{text}");
        assert_eq!((ours(&wire, side, host), filters(&wire, side)), Default::default());
        assert!(!wire.exec(side, &format!("ip link show {}", host.config.interface)).0);
        assert!(!host.path().join("admin.sock").exists());
    }
}

#[test]
fn clean_removes_what_a_crash_left() {
    let wire = Wire::new("clean");
    let mut hosts = pair(&wire);
    hosts[0].start();
    assert!(!clean(&wire, 0, &hosts[0]).0, "cleaned under a running agent");
    hosts[0].stop(Signal::SIGKILL);
    assert!(ours(&wire, 0, &hosts[0]).contains("fwmark"));
    // `clean` must not remove this rule of another program.
    assert!(wire.exec(0, "ip rule add from 198.51.100.1 lookup 100").0);
    let (ok, text) = clean(&wire, 0, &hosts[0]);
    assert!(ok, "{text}");
    assert_eq!(ours(&wire, 0, &hosts[0]), "");
    assert!(wire.run(0, "ip rule").contains("198.51.100.1"));
}

/// D22: the agent rejects a configuration with a prefix that contains a network to which the host is connected.
#[test]
fn a_configuration_over_the_hosts_own_network_is_rejected() {
    let wire = Wire::new("overlap");
    let mut hosts = pair(&wire);
    wire.run(0, "ip addr add 10.1.7.1/24 dev wire0");
    hosts[0].start();
    assert_eq!(hosts[0].status().unwrap()["status"]["digest"], "");
    assert!(hosts[0].log().contains("10.1.7.0/24"), "{}", hosts[0].log());
    assert_eq!(ours(&wire, 0, &hosts[0]), "");
}

/// D18: if no endpoint of a peer is configured, the agent uses the endpoint that it had learned before a restart.
#[test]
fn learned_endpoints_survive_a_restart() {
    let wire = Wire::new("endpoint");
    let mut hosts = pair(&wire);
    for i in 0..2 {
        let mut config = config(i, [&hosts[0], &hosts[1]]);
        config.links[0].endpoint = None;
        hosts[i].remember(config);
    }
    hosts[0].remember_endpoint("vm-b", "192.0.2.2:51820".parse().unwrap());
    hosts.iter_mut().for_each(Host::start);
    eventually("ping", || wire.exec(0, "ping -c 1 -W 1 10.1.0.5").0);
    // vm-b has learned vm-a's endpoint from received packets, and stores it.
    eventually("endpoint on disk", || {
        std::fs::read_to_string(hosts[1].path().join("endpoints.json")).is_ok_and(|t| t.contains("192.0.2.1:51820"))
    });
    for host in &mut hosts {
        host.stop(Signal::SIGKILL);
    }
    hosts.iter_mut().for_each(Host::start);
    eventually("ping after both restarted", || {
        wire.exec(1, "ping -c 1 -W 1 10.1.0.4").0
    });
}

/// D20: over an underlay with a small MTU, links carry packets as long as the inner MTU in fragments. If a packet has
/// don't-fragment, the agent tells the host the path MTU by an ICMP error.
#[test]
fn a_small_underlay_carries_full_packets() {
    let wire = Wire::new("small");
    for side in 0..2 {
        wire.run(side, "ip link set wire0 mtu 1300");
    }
    let mut hosts = pair(&wire);
    hosts.iter_mut().for_each(Host::start);
    for (address, size) in [("10.1.0.5", 1392), ("fd00:1::5", 1372)] {
        eventually("ping", || wire.exec(0, &format!("ping -c 1 -W 1 {address}")).0);
        // At the moment when the path MTU becomes known, one ping may be answered with an ICMP error instead of a
        // reply.
        eventually(&format!("full packets to {address}"), || {
            let (_, text) = wire.exec(0, &format!("ping -M dont -c 20 -i 0.01 -s {size} {address}"));
            text.contains("20 received")
        });
    }
    // The expected path MTU is the underlay's 1,300 bytes minus 20 for IPv4, 8 for UDP and 32 for WireGuard.
    eventually("a measured path", || {
        mtu(&hosts[0]).is_some_and(|m| (1238..=1240).contains(&m))
    });
    let path_mtu = mtu(&hosts[0]).unwrap();
    let (ok, text) = wire.exec(0, "ping -M do -c 5 -i 0.01 -s 1392 10.1.0.5");
    assert!(
        !ok && text.contains(&format!("mtu={path_mtu}")) || text.contains(&format!("mtu = {path_mtu}")),
        "{text}"
    );
    let (ok, text) = wire.exec(0, &format!("ping -M do -c 5 -i 0.01 -s {} 10.1.0.5", path_mtu - 28));
    assert!(ok && text.contains("5 received"), "{text}");
}

/// The path MTU of the only link, in the agent's status. None: it is not measured yet.
fn mtu(host: &Host) -> Option<u64> {
    host.status()?["status"]["links"][0]["mtu"].as_u64()
}

/// D20: on a path that drops long packets and all IP fragments without an ICMP error, packets of the overlay still
/// arrive, whatever the path's MTU is. TCP adapts by ICMP errors from the agent or by its MSS, and links fragment IPv4
/// packets without DF and IPv6 packets of up to 1,280 bytes.
#[test]
fn a_path_that_drops_long_packets_in_silence_is_no_black_hole() {
    let wire = Wire::new("hole");
    for side in 0..2 {
        // The host assumes an MTU of 9,000 bytes. Segmentation offload is off, so that the bridge sees each datagram
        // separately.
        wire.run(side, "ip link set wire0 mtu 9000");
        wire.run(side, "ethtool -K wire0 gso off tso off tx-udp-segmentation off");
    }
    for (inner, widths) in [
        (DEFAULT_MTU, &[1280, 1333, 1420, 1479, 1480, 1500, 9000][..]),
        (8900, &[1280, 1500, 5000, 9000]),
    ] {
        let mut hosts = pair(&wire);
        for i in 0..2 {
            let mut config = config(i, [&hosts[0], &hosts[1]]);
            config.mtu = inner;
            hosts[i].remember(config);
        }
        for width in widths {
            wire.set_path_mtu(*width);
            hosts.iter_mut().for_each(Host::start);
            for address in ["10.1.0.5", "fd00:1::5"] {
                wire.run(0, "ip route flush cache");
                let server = Server::start(&wire, 1);
                let (ok, text) = wire.exec(0, &format!("timeout 20 iperf3 -c {address} -n 1M -f m"));
                drop(server);
                assert!(ok, "inner {inner}, path {width}, {address}: {text}");
                let (_, text) = wire.exec(0, &format!("ping -M dont -c 10 -i 0.01 -W 2 -s 1200 {address}"));
                assert!(
                    text.contains("10 received"),
                    "inner {inner}, path {width}, {address}: {text}"
                );
            }
            let expected = u64::from(inner).min(width - 60);
            eventually(&format!("path {width}: {expected}"), || {
                mtu(&hosts[0]).is_some_and(|m| (expected - 2..=expected).contains(&m))
            });
            for host in &mut hosts {
                host.stop(Signal::SIGTERM);
            }
        }
    }
}

/// TCP works in both directions, with and without offload, and over an underlay that needs fragmentation. Pings at the
/// same time are answered. This test does not measure throughput; benchmarks do.
#[test]
fn tcp_crosses_with_and_without_super_packets() {
    let wire = Wire::new("speed");
    for (offload, mtu) in [(true, 1500), (false, 1500), (true, 1300)] {
        for side in 0..2 {
            wire.run(side, &format!("ip link set wire0 mtu {mtu}"));
        }
        let mut hosts = pair(&wire);
        for host in &mut hosts {
            host.config.offload = offload;
            host.config.save(&host.state).unwrap();
            host.start();
        }
        eventually("ping", || wire.exec(0, "ping -c 1 -W 1 10.1.0.5").0);
        for reverse in ["", "-R"] {
            let server = Server::start(&wire, 1);
            let pings = std::thread::spawn({
                let ns = wire.ns[0].clone();
                move || common::try_sh(&format!("ip netns exec {ns} ping -i 0.01 -c 20 -q 10.1.0.5")).1
            });
            let (ok, text) = wire.exec(0, &format!("iperf3 -c 10.1.0.5 -n 16M -f m {reverse}"));
            drop(server);
            assert!(ok, "offload {offload}, underlay {mtu}: {text}");
            let pings = pings.join().unwrap();
            assert!(!pings.contains(" 0 received"), "{pings}");
        }
    }
}
