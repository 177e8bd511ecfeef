//! The agent of a host with several addresses sends datagrams to a peer from the address to which the peer sent. An
//! nftables filter drops datagrams from other addresses.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

mod common;

use common::{Host, Wire, config, eventually, sh};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};
use tombolo_agent::identity::LinkKeys;
use tombolo_proto::config::Transport;

/// Two hosts. The configuration of the first host has the endpoint `at` of the second host. The agents do not run yet.
fn pair(wire: &Wire, transport: Transport, at: &str) -> [Host; 2] {
    let hosts = [Host::new(&wire.ns[0], "vm-a"), Host::new(&wire.ns[1], "vm-b")];
    let pin = |host: &Host| LinkKeys::load(&host.state).unwrap().links().pin();
    for i in 0..2 {
        let mut config = config(i, [&hosts[0], &hosts[1]]);
        let link = &mut config.links[0];
        (link.transport, link.quic) = (transport, pin(&hosts[1 - i]));
        if i == 0 {
            link.endpoint = Some(at.parse().unwrap());
        } else {
            // The second host has no endpoint of the first host, so it waits until the first host starts the handshake.
            link.endpoint = None;
        }
        hosts[i].remember(config);
    }
    hosts
}

/// Makes the first host drop UDP datagrams that match `not_from`, a source address of the second host.
fn strict(wire: &Wire, not_from: &str) {
    sh(&format!(
        "ip netns exec {} nft 'add table inet t; add chain inet t c {{ type filter hook input priority 0; }}; \
         flush chain inet t c; add rule inet t c {not_from} meta l4proto udp counter drop'",
        wire.ns[0]
    ));
}

#[test]
fn replies_leave_from_the_address_that_was_asked() {
    let wire = Wire::new("homed");
    // Adds second addresses in the same networks. If a socket does not choose a source address, the kernel uses the
    // first address in the network.
    for side in 0..2 {
        assert!(
            wire.exec(side, &format!("ip addr add 2001:db8::{}/64 dev wire0 nodad", side + 1))
                .0
        );
    }
    assert!(wire.exec(1, "ip addr add 192.0.2.22/24 dev wire0").0);
    assert!(
        wire.exec(1, "ip addr add 2001:db8::22/64 dev wire0 nodad preferred_lft 0")
            .0
    );
    for (at, not_from) in [
        ("192.0.2.22:51820", "ip saddr 192.0.2.2"),
        ("[2001:db8::22]:51820", "ip6 saddr 2001:db8::2"),
    ] {
        strict(&wire, not_from);
        for transport in [Transport::WireGuard, Transport::Quic] {
            let mut hosts = pair(&wire, transport, at);
            hosts.iter_mut().for_each(Host::start);
            eventually(&format!("{transport:?} at {at}"), || {
                wire.exec(0, "ping -c 1 -W 1 10.1.0.5").0
            });
            // Both ends send pings, in turn.
            for (side, to) in [(1, "10.1.0.4"), (0, "10.1.0.5"), (1, "10.1.0.4")] {
                let (ok, text) = wire.exec(side, &format!("ping -i 0.01 -c 100 -q {to}"));
                assert!(
                    ok && text.contains("100 received"),
                    "{transport:?} at {at}, from {side}: {text}"
                );
            }
            let log = hosts[1].log();
            assert!(!log.contains("halting segmentation offload"), "{log}");
            for host in &mut hosts {
                host.stop(Signal::SIGTERM);
            }
        }
    }
}

/// D18: when the local address that a link uses is removed from the host, the next datagram is sent from another
/// address, and the other end takes this address as the endpoint.
#[test]
fn an_address_that_is_gone_is_not_insisted_on() {
    let wire = Wire::new("gone");
    assert!(wire.exec(1, "ip addr add 192.0.2.22/24 dev wire0").0);
    let mut hosts = pair(&wire, Transport::WireGuard, "192.0.2.22:51820");
    hosts.iter_mut().for_each(Host::start);
    eventually("ping", || wire.exec(0, "ping -c 1 -W 1 10.1.0.5").0);
    let place = || hosts[0].status().unwrap()["status"]["links"][0]["endpoint"].to_string();
    assert_eq!(place(), "\"192.0.2.22:51820\"");
    assert!(wire.exec(1, "ip addr del 192.0.2.22/24 dev wire0").0);
    let begun = Instant::now();
    let (ok, text) = wire.exec(1, "ping -i 0.01 -c 100 -q 10.1.0.4");
    assert!(ok && text.contains("100 received"), "{text}");
    assert!(begun.elapsed() < Duration::from_secs(3));
    assert_eq!(place(), "\"192.0.2.2:51820\"", "the endpoint roamed");
    let (ok, text) = wire.exec(0, "ping -i 0.01 -c 100 -q 10.1.0.5");
    assert!(ok && text.contains("100 received"), "{text}");
}
