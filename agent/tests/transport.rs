//! Links use WireGuard, switch to QUIC if the network blocks WireGuard, and switch back (D6). An nftables filter blocks
//! real packets.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod common;

use common::{Host, Server, Wire, config, eventually, sh};
use nix::sys::signal::Signal;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tombolo_agent::identity::LinkKeys;
use tombolo_proto::config::Transport;

/// Makes both hosts drop datagrams of WireGuard, whose first byte is 1 to 4. With `on` = false, unblocks them.
fn block(wire: &Wire, on: bool) {
    filter(
        wire,
        if on {
            &["udp dport 51820 @th,64,8 < 5 counter drop"]
        } else {
            &[]
        },
    );
}

/// Replaces the rules of both hosts that filter incoming packets.
fn filter(wire: &Wire, rules: &[&str]) {
    let rules: String = rules.iter().map(|rule| format!("; add rule inet t c {rule}")).collect();
    for ns in &wire.ns {
        sh(&format!(
            "ip netns exec {ns} nft 'add table inet t; add chain inet t c {{ type filter hook input priority 0; }}; flush chain inet t c{rules}'"
        ));
    }
}

/// Two hosts that know each other's QUIC keys. `second_ports` says for each host whether its agent also listens on UDP
/// port 443.
fn pair(wire: &Wire, second_ports: [bool; 2]) -> [Host; 2] {
    let mut hosts = [Host::new(&wire.ns[0], "vm-a"), Host::new(&wire.ns[1], "vm-b")];
    for (host, has) in hosts.iter_mut().zip(second_ports) {
        host.config.quic_port = has.then_some(443);
        host.config.save(&host.state).unwrap();
    }
    let pin = |host: &Host| LinkKeys::load(&host.state).unwrap().links().pin();
    for i in 0..2 {
        let mut config = config(i, [&hosts[0], &hosts[1]]);
        let link = &mut config.links[0];
        link.transport = Transport::Automatic;
        link.quic = pin(&hosts[1 - i]);
        let at = SocketAddr::from(([192, 0, 2, if i == 0 { 2 } else { 1 }], 443));
        link.quic_endpoint = second_ports[1 - i].then_some(at);
        hosts[i].remember(config);
    }
    hosts
}

/// The endpoint of the peer in the agent's status; empty if there is none.
fn endpoint(host: &Host) -> String {
    let status = host.status().unwrap();
    status["status"]["links"][0]["endpoint"]
        .as_str()
        .unwrap_or("")
        .to_owned()
}

fn transport(host: &Host) -> String {
    let status = host.status().unwrap();
    status["status"]["links"][0]["transport"]
        .as_str()
        .unwrap_or("")
        .to_owned()
}

/// Waits until both hosts use the transport `to`. Returns how long that took.
fn switched(hosts: &[Host; 2], to: &str) -> Duration {
    let begun = Instant::now();
    eventually(&format!("over {to}"), || hosts.iter().all(|h| transport(h) == to));
    begun.elapsed()
}

#[test]
fn blocked_wireguard_gives_way_to_quic_and_no_flow_is_lost() {
    let wire = Wire::new("transport");
    let mut hosts = pair(&wire, [false; 2]);
    hosts.iter_mut().for_each(Host::start);
    eventually("ping", || wire.exec(0, "ping -c 1 -W 1 10.1.0.5").0);

    // One TCP connection and a series of pings run during both switches of the transport, to QUIC and back.
    let server = Server::start(&wire, 1);
    let run = |command: &'static str| {
        let ns = wire.ns[0].clone();
        std::thread::spawn(move || common::try_sh(&format!("ip netns exec {ns} {command}")))
    };
    let flow = run("timeout 60 iperf3 -c 10.1.0.5 -t 12 -b 5M -f m");
    let pings = run("timeout 60 ping -i 0.01 -c 1100 -q 10.1.0.5");
    // The sleep lets the flows run over WireGuard for a while.
    std::thread::sleep(Duration::from_secs(1));
    switched(&hosts, "WireGuard");

    block(&wire, true);
    let there = switched(&hosts, "Quic");
    // Packets that were sent shortly before the switch may still arrive during this sleep.
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
    // Only packets that are sent between the start of the filter and the switch to QUIC are lost.
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

/// D6: a link works although the network drops all UDP except port 443. The test sets the filter first while the link
/// is up, and then before the agents start. If both ends listen on port 443, it suffices that packets to port 443 pass.
/// If only one end does, packets from port 443 must pass too.
#[test]
fn where_all_udp_is_blocked_but_port_443_links_go_over_that() {
    let wire = Wire::new("second");
    for (second_ports, blocked) in [
        ([true, true], &["udp dport != 443 counter drop"][..]),
        (
            [false, true],
            &["udp sport 443 accept", "udp dport != 443 counter drop"],
        ),
    ] {
        filter(&wire, &[]);
        let mut hosts = pair(&wire, second_ports);
        hosts.iter_mut().for_each(Host::start);
        eventually("ping", || wire.exec(0, "ping -c 1 -W 1 10.1.0.5").0);
        let pings = std::thread::spawn({
            let ns = wire.ns[0].clone();
            move || {
                common::try_sh(&format!(
                    "ip netns exec {ns} timeout 60 ping -i 0.01 -c 1000 -q 10.1.0.5"
                ))
                .1
            }
        });
        // The sleep lets the pings run over WireGuard for a while.
        std::thread::sleep(Duration::from_secs(1));
        switched(&hosts, "WireGuard");

        filter(&wire, blocked);
        let begun = Instant::now();
        eventually("traffic over port 443", || wire.exec(0, "ping -c 1 -W 0.2 10.1.0.5").0);
        let there = begun.elapsed();
        switched(&hosts, "Quic");
        let (ok, text) = wire.exec(0, "ping -i 0.01 -c 100 -q 10.1.0.5");
        assert!(ok && text.contains("100 received"), "over port 443: {text}");
        assert_eq!(endpoint(&hosts[0]), "192.0.2.2:443");

        filter(&wire, &[]);
        let back = switched(&hosts, "WireGuard");
        let (ok, text) = wire.exec(0, "ping -i 0.01 -c 100 -q 10.1.0.5");
        assert!(ok && text.contains("100 received"), "over WireGuard again: {text}");
        assert_eq!(endpoint(&hosts[0]), "192.0.2.2:51820");
        println!("{second_ports:?}: traffic after {there:?}, back in {back:?}");
        assert!(there < Duration::from_secs(3), "{there:?}");
        let pings = pings.join().unwrap();
        let received: u32 = pings
            .split(" received")
            .next()
            .and_then(|t| t.rsplit(' ').next())
            .unwrap()
            .parse()
            .unwrap();
        assert!(received > 1000 - 300, "{pings}");
        for host in &hosts {
            let log = host.log();
            let switches: Vec<_> = log.lines().filter(|l| l.contains("link switched")).collect();
            assert_eq!(switches.len(), 2, "{log}");
            assert!(switches.iter().all(|l| l.contains("reason=")), "{switches:?}");
        }

        // In this part the filter is set before the agents start and establish the link.
        for host in &mut hosts {
            host.stop(Signal::SIGTERM);
        }
        filter(&wire, blocked);
        hosts.iter_mut().for_each(Host::start);
        let begun = Instant::now();
        eventually("traffic from the start", || wire.exec(0, "ping -c 1 -W 0.2 10.1.0.5").0);
        println!("{second_ports:?}: from the start after {:?}", begun.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    }
}

/// The second port drops and counts datagrams that are not QUIC. If another program uses the second port, the agent
/// fails to start, and its error names the port.
#[test]
fn the_second_port_takes_quic_alone() {
    let wire = Wire::new("alone");
    let mut hosts = pair(&wire, [true, true]);
    hosts.iter_mut().for_each(Host::start);
    eventually("ping", || wire.exec(0, "ping -c 1 -W 1 10.1.0.5").0);
    let bad = || {
        hosts[1].status().unwrap()["status"]["drops"]["bad_datagram"]
            .as_u64()
            .unwrap_or(0)
    };
    let before = bad();
    for _ in 0..10 {
        wire.run(0, "bash -c 'head -c 148 /dev/zero > /dev/udp/192.0.2.2/443'");
    }
    eventually("counted", || bad() == before + 10);

    let mut third = Host::new(&wire.ns[1], "vm-c");
    third.config.listen_port = 51900;
    third.config.quic_port = Some(443);
    third.config.save(&third.state).unwrap();
    let run = format!(
        "{} run --state-dir {}",
        env!("CARGO_BIN_EXE_tombolo-agent"),
        third.path().display()
    );
    let (ok, text) = wire.exec(1, &format!("timeout 10 {run}"));
    assert!(!ok && text.contains("quic_port: UDP port 443 is taken"), "{text}");
}
