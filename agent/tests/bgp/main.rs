//! Tests the BGP speaker against real BIRDs on other hosts. The hosts are network namespaces.
#![allow(clippy::unwrap_used, reason = "a panic fails the test")]

#[path = "../common/mod.rs"]
mod common;
mod far;
mod hostile;
mod near;
mod service;

use common::{Host, Wire};
use far::Far;
use near::{Near, announced, eventually, eventually_within, id, learned, neighbour, route, within};
use nix::sys::signal::{Signal, kill};
use std::time::{Duration, Instant};
use tokio::time::sleep;
use tombolo_agent::state::file;
use tombolo_proto::config::{AgentConfig, DEFAULT_MTU, Probes, Role, SiteTtl, Space, SpaceKind, Speaker, Subnet};
use tombolo_proto::id::Secret;
use tombolo_proto::route::{EffectiveRoute, NextHop, RouteSource, RouteState};
use tombolo_proto::status::{BgpPeerState, BgpPeerStatus};

/// Hosts on one wire. They have the IPv6 addresses `fd00:5::1`, … in addition to `192.0.2.1`, …
fn wire(name: &str, hosts: usize) -> Wire {
    let wire = Wire::with_hosts(&format!("b{name}"), hosts);
    for i in 0..hosts {
        let add = format!("ip addr add fd00:5::{}/64 dev wire0 nodad", i + 1);
        assert!(wire.exec(i, &add).0);
    }
    wire
}

const SITE: &str = "\
    route 10.2.30.0/25 blackhole;\n\
    route 10.9.0.0/16 blackhole { bgp_path.prepend(64999); bgp_path.prepend(4200000009); };";
const SITE_V6: &str = "route fd02::/64 blackhole { bgp_path.prepend(64999); };";

/// The routes of `SITE` and `SITE_V6`, as the speaker learns them from a neighbour with this ASN.
fn site(asn: u32) -> Vec<(String, Vec<u32>)> {
    vec![
        ("10.2.30.0/25".into(), vec![asn]),
        ("10.9.0.0/16".into(), vec![asn, 4_200_000_009, 64_999]),
        ("fd02::/64".into(), vec![asn, 64_999]),
    ]
}

#[test]
fn routes_come_and_go_with_their_paths() {
    let wire = wire("routes", 3);
    // One session runs over IPv4 and one over IPv6. Both carry routes of both families.
    let over_v4 = Far::start(&wire, 1, 65_021, &[("192.0.2.1", 65_515)], SITE, SITE_V6);
    let over_v6 = Far::start(&wire, 2, 65_022, &[("fd00:5::1", 65_515)], SITE, SITE_V6);
    within(&wire.ns[0], async || {
        let near = Near::start().await;
        near.configure(|spec| {
            let speaker = spec.speaker.as_mut().unwrap();
            speaker.neighbours = vec![neighbour("/c/1", "192.0.2.2", 65_021)];
            spec.announce.insert(id("/c/1"), announced());
        });
        let begun = Instant::now();
        near.learns("/c/1", &site(65_021)).await;
        println!("first routes after {:?}", begun.elapsed());
        near.is("/c/1", BgpPeerState::Connected).await;
        eventually("announced", async || {
            over_v4.path_of("10.1.0.0/16") == Some("65515".into())
                && over_v4.path_of("10.8.0.0/16") == Some("65515 65023 4200000001".into())
                && over_v4.path_of("fd01::/48") == Some("65515".into())
        })
        .await;
        let status = near.status_with("/c/1", 20, |s| (s.received, s.sent) == (3, 3)).await;

        // When a second neighbour is added and the routes to the first neighbour change, the first neighbour's session
        // is not reset.
        let (session, since) = (over_v4.ups("n0"), status.since);
        near.configure(|spec| {
            let second = neighbour("/c/2", "fd00:5::3", 65_022);
            spec.speaker.as_mut().unwrap().neighbours.push(second);
            spec.announce.insert(id("/c/2"), announced());
            let routes = spec.announce.get_mut(&id("/c/1")).unwrap();
            routes.retain(|r| r.prefix.to_string() != "10.1.0.0/16");
            routes.push(route("10.7.0.0/16", &[7]));
            routes.push(route("10.8.0.0/16", &[1]));
        });
        near.learns("/c/2", &site(65_022)).await;
        eventually("changed", async || {
            over_v4.path_of("10.1.0.0/16").is_none()
                && over_v4.path_of("10.7.0.0/16") == Some("65515 7".into())
                && over_v6.path_of("10.1.0.0/16") == Some("65515".into())
                && over_v6.path_of("fd01::/48") == Some("65515".into())
        })
        .await;
        assert_eq!(over_v4.ups("n0"), session);
        // If the speaker announces a route to a prefix, it still learns the neighbour's route to the same prefix.
        near.configure(|spec| {
            let routes = spec.announce.get_mut(&id("/c/1")).unwrap();
            *routes = vec![route("10.2.30.0/25", &[9]), route("fd02::/64", &[9])];
        });
        eventually("announced over its own", async || {
            over_v4.path_of("10.2.30.0/25") == Some("65515 9".into())
        })
        .await;
        assert_eq!(near.learned("/c/1"), site(65_021));

        // The neighbour withdraws its routes and announces them again, three times.
        let mut latencies = Vec::new();
        for _ in 0..3 {
            for (command, count) in [("disable", 1), ("enable", 3)] {
                let mut all = near.bgp.learned();
                let begun = Instant::now();
                over_v4.control(&format!("{command} s4"));
                let arrived = all.wait_for(|l| learned(l, "/c/1").len() == count);
                tokio::time::timeout(Duration::from_secs(10), arrived)
                    .await
                    .unwrap()
                    .unwrap();
                latencies.push(begun.elapsed());
                // The pause is long enough that the rate limit does not delay the next change.
                sleep(Duration::from_millis(50)).await;
            }
        }
        latencies.sort_unstable();
        let (median, last) = (latencies[latencies.len() / 2], latencies[latencies.len() - 1]);
        println!("from the far command to learned(): median {median:?}, longest {last:?}");
        assert!(median < Duration::from_millis(100), "{latencies:?}");
        // While a neighbour keeps withdrawing and announcing its routes, the speaker publishes these changes more and
        // more rarely. Its last state is published in the end.
        let mut all = near.bgp.learned();
        let published = async {
            let mut published = 0;
            while all.changed().await.is_ok() {
                published += 1;
                if published > 30 {
                    break;
                }
            }
            published
        };
        let flaps = async {
            for command in ["disable", "enable"].repeat(40) {
                over_v4.control(&format!("{command} s4"));
                sleep(Duration::from_millis(50)).await;
            }
        };
        let published = tokio::select! {
            published = published => published,
            () = flaps => 0,
        };
        assert!(published <= 30, "more than 30 of 80 changes were published");
        let arrived = all.wait_for(|l| learned(l, "/c/1").len() == 3);
        tokio::time::timeout(Duration::from_secs(15), arrived)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(near.learned("/c/2"), site(65_022));
        assert_eq!(over_v4.ups("n0"), session);
        // The session stayed up for the 4 s in which the routes flapped, so its age (`since`) has grown.
        assert!(near.status("/c/1").unwrap().since > since);

        // When the first neighbour is removed, the second neighbour's session and routes stay.
        let session = over_v6.ups("n0");
        near.configure(|spec| drop(spec.speaker.as_mut().unwrap().neighbours.remove(0)));
        eventually("forgotten", async || {
            !near.bgp.learned().borrow().contains_key(&id("/c/1"))
        })
        .await;
        eventually("session closed", async || over_v4.state("n0") != "Established").await;
        assert_eq!((near.learned("/c/2"), over_v6.ups("n0")), (site(65_022), session));
        near.stop().await;
    });
}

#[test]
fn passwords_must_match() {
    let wire = wire("md5", 2);
    let right = "it's {a} #long/one; 'quoted'";
    let options = format!("password \"{right}\";");
    let far = Far::with(&wire, 1, 65_021, &[("192.0.2.1", 65_515)], SITE, SITE_V6, &options);
    within(&wire.ns[0], async || {
        let near = Near::start().await;
        let with = |password: &str| {
            near.configure(|spec| {
                let mut n = neighbour("/c/1", "192.0.2.2", 65_021);
                n.password = Some(Secret(password.into()));
                spec.speaker.as_mut().unwrap().neighbours = vec![n];
            });
        };
        with(right);
        near.is("/c/1", BgpPeerState::Connected).await;
        with("wrong");
        eventually("session closed", async || far.state("n0") != "Established").await;
        near.learns("/c/1", &[]).await;
        // With different passwords the kernels drop TCP segments because of wrong MD5 signatures, and there is no
        // session.
        let refused = || md5_failures(&wire, 0) + md5_failures(&wire, 1);
        let before = refused();
        eventually("refused connections", async || refused() >= before + 3).await;
        assert_ne!(far.state("n0"), "Established");
        assert_ne!(near.status("/c/1").unwrap().state, BgpPeerState::Connected);
        with("not \" possible");
        let stopped = near.status_with("/c/1", 20, |s| s.state == BgpPeerState::Stopped).await;
        let error = stopped.last_error.unwrap();
        assert!(
            error.starts_with("password: ") && !error.contains("not \" possible"),
            "{error}"
        );
        with(right);
        near.is("/c/1", BgpPeerState::Connected).await;
        near.learns("/c/1", &site(65_021)).await;
        near.stop().await;
    });
}

/// G23, E13: a neighbour that announces more prefixes than its limit has no session until it announces fewer.
#[test]
fn too_many_prefixes_cost_the_session_until_there_are_fewer() {
    let wire = wire("limit", 2);
    let many = |n: usize| {
        (0..n)
            .map(|i| format!("route 10.{i}.0.0/16 blackhole;\n"))
            .collect::<String>()
    };
    let mut far = Far::start(&wire, 1, 65_021, &[("192.0.2.1", 65_515)], &many(20), "");
    within(&wire.ns[0], async || {
        let near = Near::start().await;
        near.configure(|spec| {
            let mut n = neighbour("/c/1", "192.0.2.2", 65_021);
            n.max_prefixes = 10;
            spec.speaker.as_mut().unwrap().neighbours = vec![n];
        });
        let over_limit = |s: &BgpPeerStatus| {
            let error = s.last_error.as_deref().unwrap_or_default();
            s.state == BgpPeerState::Stopped && error.contains("Route limit exceeded")
        };
        near.status_with("/c/1", 20, over_limit).await;
        near.learns("/c/1", &[]).await;
        // The speaker's BIRD connects again later, and closes the session again because the neighbour still announces
        // too many prefixes.
        let sessions = far.ups("n0");
        eventually_within("another session", 60, async || far.ups("n0") > sessions).await;
        near.status_with("/c/1", 20, over_limit).await;
        near.learns("/c/1", &[]).await;
        far.replace(&many(5), "");
        near.is_within("/c/1", BgpPeerState::Connected, 60).await;
        eventually("five", async || near.learned("/c/1").len() == 5).await;
        near.stop().await;
    });
}

/// D17: while BIRD restarts after a crash, the agent keeps the neighbour's routes, and the neighbour keeps the agent's
/// routes.
#[test]
fn a_bird_that_dies_is_started_again_and_nothing_is_lost() {
    let wire = wire("kill", 2);
    let far = Far::start(&wire, 1, 65_021, &[("192.0.2.1", 65_515)], SITE, SITE_V6);
    within(&wire.ns[0], async || {
        let near = Near::start().await;
        near.configure(|spec| {
            spec.speaker.as_mut().unwrap().neighbours = vec![neighbour("/c/1", "192.0.2.2", 65_021)];
            spec.announce.insert(id("/c/1"), announced());
        });
        near.learns("/c/1", &site(65_021)).await;
        eventually("announced", async || far.path_of("fd01::/48").is_some()).await;
        let mut changes = near.bgp.learned();
        changes.mark_unchanged();
        let before = near.pid();
        let begun = Instant::now();
        kill(before, Signal::SIGKILL).unwrap();
        let mut again = None;
        // Eight seconds are longer than the restart and the 3 s after it, when BIRD and the neighbour remove stale
        // routes.
        while begun.elapsed() < Duration::from_secs(8) {
            assert_eq!(near.learned("/c/1"), site(65_021));
            assert!(far.path_of("10.8.0.0/16").is_some(), "the neighbour removed the routes");
            if again.is_none() && far.state("n0") == "Established" && near.pid() != before {
                again = Some(begun.elapsed());
            }
            sleep(Duration::from_millis(20)).await;
        }
        println!("sessions up again {:?} after kill -9", again.unwrap());
        assert!(!changes.has_changed().unwrap(), "learned routes changed");
        near.is("/c/1", BgpPeerState::Connected).await;
        // Withdrawals take effect in both directions, so no stale routes are left from before the restart.
        far.control("disable s4");
        near.learns("/c/1", &site(65_021)[2..]).await;
        near.configure(|spec| spec.announce.clear());
        eventually("withdrawn", async || far.path_of("10.8.0.0/16").is_none()).await;

        // BIRD is restarted after each of several crashes. The wait before a restart grows with each crash.
        for _ in 0..3 {
            let before = near.pid();
            kill(before, Signal::SIGKILL).unwrap();
            eventually("restarted", async || near.running().is_some_and(|p| p != before)).await;
        }
        near.learns("/c/1", &site(65_021)[2..]).await;
        near.stop().await;
    });
}

#[test]
fn stopping_closes_sessions_and_leaves_nothing() {
    let wire = wire("stop", 2);
    let far = Far::start(&wire, 1, 65_021, &[("192.0.2.1", 65_515)], SITE, SITE_V6);
    within(&wire.ns[0], async || {
        for way in ["stop", "drop", "nobody left"] {
            let near = Near::start().await;
            near.configure(|spec| {
                spec.speaker.as_mut().unwrap().neighbours = vec![neighbour("/c/1", "192.0.2.2", 65_021)];
            });
            near.learns("/c/1", &site(65_021)).await;
            let (pid, dir) = (near.pid(), near.path());
            let learned = near.bgp.learned();
            let begun = Instant::now();
            let gone = async || near::is_gone(pid) && !dir.join("bird.conf").exists() && learned.borrow().is_empty();
            match way {
                "stop" => {
                    near.stop().await;
                    assert!(gone().await);
                }
                "drop" => {
                    drop(near);
                    eventually("gone", gone).await;
                }
                _ => {
                    near.configure(|spec| spec.speaker = None);
                    eventually("gone", gone).await;
                    near.stop().await;
                }
            }
            println!("{way}: bird gone after {:?}", begun.elapsed());
            // The neighbour has received a NOTIFICATION, so it closes the session without waiting for its hold timer.
            eventually("session closed", async || far.state("n0") != "Established").await;
            let log = far.log();
            assert!(log.contains("Received: Administrative shutdown"), "{log}");
            far.forget_log();
        }
    });
}

/// The number of TCP segments that a host has dropped because of a wrong MD5 signature (RFC 2385).
fn md5_failures(wire: &Wire, host: usize) -> u64 {
    // The file `/proc/net/netstat` has a line of names, followed by a line of values.
    let text = wire.run(host, "cat /proc/net/netstat");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut counters = names.split_whitespace().zip(values.split_whitespace());
    let failures = counters.find(|(name, _)| *name == "TCPMD5Failure");
    failures.unwrap().1.parse().unwrap()
}

/// The configuration of a VPN gateway with one BGP neighbour and no links to other agents.
fn gateway(agent: &Host) -> AgentConfig {
    let (vnet, space) = (id("/vnet"), "10.1.0.0/16".parse().unwrap());
    AgentConfig {
        agent: agent.config.agent.clone(),
        vnet: vnet.clone(),
        address_space: vec![space],
        mtu: DEFAULT_MTU,
        probes: Probes::default(),
        role: Role::VpnGateway {
            gateway: id("/gateway"),
            addresses: vec!["10.1.255.4".parse().unwrap()],
            local_prefixes: vec![space],
            asn: 65_515,
            transit: vec![],
            connections: vec![],
            bgp: Some(Speaker {
                asn: 65_515,
                router_id: [192, 0, 2, 1].into(),
                neighbours: vec![neighbour("/c/1", "192.0.2.2", 65_021)],
            }),
            site_ttl: SiteTtl::SilentHop,
        },
        subnets: vec![Subnet {
            id: id("/subnet"),
            prefixes: vec![],
            routes: vec![EffectiveRoute {
                name: None,
                source: RouteSource::Default,
                state: RouteState::Active,
                prefix: space,
                next_hop: NextHop::VnetLocal {},
            }],
            isolated: false,
        }],
        spaces: vec![Space {
            vnet,
            kind: SpaceKind::Local {},
            prefixes: vec![space],
            owners: vec![],
        }],
        links: vec![],
        security: None,
        front_ends: Vec::new(),
        limits: None,
    }
}

/// D17: when the agent is killed, the kernel sends BIRD a signal, and BIRD closes its sessions and ends.
#[test]
fn bird_dies_with_its_agent() {
    let wire = wire("orphan", 2);
    let mut far = Far::start(&wire, 1, 65_021, &[("192.0.2.1", 65_515)], SITE, SITE_V6);
    let mut agent = Host::new(&wire.ns[0], "gateway");
    agent.remember(gateway(&agent));
    agent.start();
    let received = |count: u64| {
        let status = agent.status().unwrap();
        // The list of sessions is empty before the configuration is applied.
        let peer = &status["status"]["bgp"][0];
        peer["state"] == "Connected" && peer["received"] == count
    };
    common::eventually_within("session", 20, || received(3));
    // The agent must not be killed before BIRD has read all messages of the initial tables. If BIRD closes a socket
    // with unread bytes, the kernel resets the connection, and the neighbour does not get the NOTIFICATION. A route
    // that is announced after the initial tables, and has arrived, proves that BIRD has read them.
    far.replace(&format!("{SITE}\nroute 10.10.0.0/16 blackhole;"), SITE_V6);
    common::eventually("a later route", || received(4));
    let pid = near::pid_in(&agent.state.path(file::BGP)).unwrap();
    let begun = Instant::now();
    agent.stop(Signal::SIGKILL);
    common::eventually("bird is gone", || near::is_gone(pid));
    println!("bird gone {:?} after kill -9 of the agent", begun.elapsed());
    common::eventually("session closed", || far.state("n0") != "Established");
    let log = far.log();
    assert!(log.contains("Received: Administrative shutdown"), "{log}");
}

#[test]
fn two_speakers_share_a_host() {
    let wire = wire("two", 2);
    assert!(wire.exec(0, "ip addr add 192.0.2.101/24 dev wire0").0);
    let neighbours = [("192.0.2.1", 65_515), ("192.0.2.101", 65_516)];
    let far = Far::start(&wire, 1, 65_021, &neighbours, SITE, SITE_V6);
    within(&wire.ns[0], async || {
        let (one, other) = (Near::start().await, Near::start().await);
        one.configure(|spec| {
            spec.speaker.as_mut().unwrap().neighbours = vec![neighbour("/c/1", "192.0.2.2", 65_021)];
        });
        other.configure(|spec| {
            let mut n = neighbour("/c/1", "192.0.2.2", 65_021);
            n.local_address = "192.0.2.101".parse().unwrap();
            let speaker = spec.speaker.as_mut().unwrap();
            (speaker.asn, speaker.neighbours) = (65_516, vec![n]);
            spec.announce.insert(id("/c/1"), announced());
        });
        one.learns("/c/1", &site(65_021)).await;
        other.learns("/c/1", &site(65_021)).await;
        eventually("announced", async || far.path_of("10.1.0.0/16") == Some("65516".into())).await;
        one.stop().await;
        eventually("session closed", async || far.state("n0") != "Established").await;
        assert_eq!(
            (far.state("n1").as_str(), other.learned("/c/1")),
            ("Established", site(65_021))
        );
        other.stop().await;
    });
}

/// D19: if the network interface loses its carrier, BIRD withdraws the neighbour's routes at once (`check link`),
/// without waiting for the hold time.
#[test]
fn a_lost_carrier_withdraws_at_once() {
    let wire = wire("carrier", 2);
    let _far = Far::start(&wire, 1, 65_021, &[("192.0.2.1", 65_515)], SITE, SITE_V6);
    let port = |state: &str| {
        common::sh(&format!(
            "ip -n {}-net link set p0 {state}",
            wire.ns[0].trim_end_matches("-0")
        ))
    };
    within(&wire.ns[0], async || {
        let near = Near::start().await;
        near.configure(|spec| {
            spec.speaker.as_mut().unwrap().neighbours = vec![neighbour("/c/1", "192.0.2.2", 65_021)];
        });
        near.learns("/c/1", &site(65_021)).await;
        let mut all = near.bgp.learned();
        let begun = Instant::now();
        port("down");
        let lost = all.wait_for(|l| learned(l, "/c/1").is_empty());
        tokio::time::timeout(Duration::from_secs(10), lost)
            .await
            .unwrap()
            .unwrap();
        let latency = begun.elapsed();
        println!("from the lost carrier to learned(): {latency:?}");
        assert!(latency < Duration::from_secs(1), "{latency:?}");
        port("up");
        near.is_within("/c/1", BgpPeerState::Connected, 30).await;
        near.learns("/c/1", &site(65_021)).await;
        near.stop().await;
    });
}
