//! The BGP speaker with real BIRDs on other hosts, which are network namespaces.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

#[path = "../common/mod.rs"]
mod common;
mod far;
mod hostile;
mod near;
mod service;

use common::Wire;
use far::Far;
use near::{Near, announced, eventually, id, learned, neighbour, route, within};
use nix::sys::signal::{Signal, kill};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio::time::sleep;
use tombolo_proto::id::Secret;
use tombolo_proto::status::BgpPeerState;

/// Hosts on one wire, with IPv6 addresses `fd00:5::1`, … beside `192.0.2.1`, …
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

/// What `SITE` and `SITE_V6` are to the speaker.
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
    // One over IPv4, one over IPv6: both carry both families.
    let over_v4 = Far::start(&wire, 1, 65_021, &[("192.0.2.1", 65_515)], SITE, SITE_V6);
    let over_v6 = Far::start(&wire, 2, 65_022, &[("fd00:5::1", 65_515)], SITE, SITE_V6);
    within(&wire.ns[0], async || {
        let near = Near::start().await;
        near.want(|w| {
            let speaker = w.speaker.as_mut().unwrap();
            speaker.neighbours = vec![neighbour("/c/1", "192.0.2.2", 65_021)];
            w.announce.insert(id("/c/1"), announced());
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
        let status = near.status("/c/1").await;
        assert_eq!((status.received, status.sent), (3, 3), "{status:?}");

        // A second neighbour, and other routes for the first: its session stays as it is.
        let (session, since) = (over_v4.ups("n0"), status.since);
        near.want(|w| {
            let second = neighbour("/c/2", "fd00:5::3", 65_022);
            w.speaker.as_mut().unwrap().neighbours.push(second);
            w.announce.insert(id("/c/2"), announced());
            let routes = w.announce.get_mut(&id("/c/1")).unwrap();
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
        // What is announced to it does not hide what it announces.
        near.want(|w| {
            let routes = w.announce.get_mut(&id("/c/1")).unwrap();
            *routes = vec![route("10.2.30.0/25", &[9]), route("fd02::/64", &[9])];
        });
        eventually("announced over its own", async || {
            over_v4.path_of("10.2.30.0/25") == Some("65515 9".into())
        })
        .await;
        assert_eq!(near.learned("/c/1"), site(65_021));

        // Withdrawn and announced again, a few times.
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
                sleep(Duration::from_millis(50)).await;
            }
        }
        latencies.sort_unstable();
        let (median, last) = (latencies[latencies.len() / 2], latencies[latencies.len() - 1]);
        println!("from the far command to learned(): median {median:?}, longest {last:?}");
        assert!(median < Duration::from_millis(100), "{latencies:?}");
        // A neighbour that goes on like that is heard ever more rarely, and in the end it has the last word.
        let mut all = near.bgp.learned();
        let heard = async {
            let mut heard = 0;
            while all.changed().await.is_ok() {
                heard += 1;
                if heard > 30 {
                    break;
                }
            }
            heard
        };
        let flaps = async {
            for command in ["disable", "enable"].repeat(40) {
                over_v4.control(&format!("{command} s4"));
                sleep(Duration::from_millis(50)).await;
            }
        };
        let heard = tokio::select! {
            heard = heard => heard,
            () = flaps => 0,
        };
        assert!(heard <= 30, "80 changes, and more than 30 of them were heard");
        let arrived = all.wait_for(|l| learned(l, "/c/1").len() == 3);
        tokio::time::timeout(Duration::from_secs(15), arrived)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(near.learned("/c/2"), site(65_022));
        assert_eq!(over_v4.ups("n0"), session);
        assert!(near.status("/c/1").await.since > since);

        // One neighbour less, and the other one does not notice.
        let session = over_v6.ups("n0");
        near.want(|w| drop(w.speaker.as_mut().unwrap().neighbours.remove(0)));
        eventually("forgotten", async || {
            !near.bgp.learned().borrow().contains_key(&id("/c/1"))
        })
        .await;
        eventually("hung up", async || over_v4.state("n0") != "Established").await;
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
            near.want(|w| {
                let mut n = neighbour("/c/1", "192.0.2.2", 65_021);
                n.password = Some(Secret(password.into()));
                w.speaker.as_mut().unwrap().neighbours = vec![n];
            });
        };
        with(right);
        near.is("/c/1", BgpPeerState::Connected).await;
        with("wrong");
        eventually("hung up", async || far.state("n0") != "Established").await;
        near.learns("/c/1", &[]).await;
        sleep(Duration::from_secs(4)).await;
        assert_ne!(near.status("/c/1").await.state, BgpPeerState::Connected);
        with("not \" possible");
        near.is("/c/1", BgpPeerState::Stopped).await;
        let error = near.status("/c/1").await.last_error.unwrap();
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

/// G23, E13.
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
        near.want(|w| {
            let mut n = neighbour("/c/1", "192.0.2.2", 65_021);
            n.max_prefixes = 10;
            w.speaker.as_mut().unwrap().neighbours = vec![n];
        });
        near.is("/c/1", BgpPeerState::Stopped).await;
        let status = near.status("/c/1").await;
        assert!(status.last_error.unwrap().contains("Route limit exceeded"));
        near.learns("/c/1", &[]).await;
        sleep(Duration::from_secs(2)).await;
        assert_eq!(near.status("/c/1").await.state, BgpPeerState::Stopped);
        far.replace(&many(5), "");
        near.is_within("/c/1", BgpPeerState::Connected, 60).await;
        eventually("five", async || near.learned("/c/1").len() == 5).await;
        near.stop().await;
    });
}

/// D17: neither side notices more than the death of a process.
#[test]
fn a_bird_that_dies_is_started_again_and_nothing_is_lost() {
    let wire = wire("kill", 2);
    let far = Far::start(&wire, 1, 65_021, &[("192.0.2.1", 65_515)], SITE, SITE_V6);
    within(&wire.ns[0], async || {
        let near = Near::start().await;
        near.want(|w| {
            w.speaker.as_mut().unwrap().neighbours = vec![neighbour("/c/1", "192.0.2.2", 65_021)];
            w.announce.insert(id("/c/1"), announced());
        });
        near.learns("/c/1", &site(65_021)).await;
        eventually("announced", async || far.path_of("fd01::/48").is_some()).await;
        let mut changes = near.bgp.learned();
        changes.mark_unchanged();
        let before = near.pid();
        let begun = Instant::now();
        kill(before, Signal::SIGKILL).unwrap();
        let mut again = None;
        while begun.elapsed() < Duration::from_secs(8) {
            assert_eq!(near.learned("/c/1"), site(65_021));
            assert!(far.path_of("10.8.0.0/16").is_some(), "the neighbour forgot");
            if again.is_none() && far.state("n0") == "Established" && near.pid() != before {
                again = Some(begun.elapsed());
            }
            sleep(Duration::from_millis(20)).await;
        }
        println!("sessions up again {:?} after kill -9", again.unwrap());
        assert!(!changes.has_changed().unwrap(), "what is learned flickered");
        near.is("/c/1", BgpPeerState::Connected).await;
        // And it is not stale: what is withdrawn goes, both ways.
        far.control("disable s4");
        near.learns("/c/1", &site(65_021)[2..]).await;
        near.want(|w| w.announce.clear());
        eventually("withdrawn", async || far.path_of("10.8.0.0/16").is_none()).await;

        // Killed again and again, it comes back slower and slower, but it comes.
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
            near.want(|w| {
                w.speaker.as_mut().unwrap().neighbours = vec![neighbour("/c/1", "192.0.2.2", 65_021)];
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
                    near.want(|w| w.speaker = None);
                    eventually("gone", gone).await;
                    near.stop().await;
                }
            }
            println!("{way}: bird gone after {:?}", begun.elapsed());
            // It was told, and did not have to find out.
            eventually("hung up", async || far.state("n0") != "Established").await;
            let log = far.log();
            assert!(log.contains("Received: Administrative shutdown"), "{log}");
            far.forget_log();
        }
    });
}

/// Not a test: the agent in [`bird_dies_with_its_agent`], a process of its own.
#[test]
#[ignore = "a part of bird_dies_with_its_agent"]
fn an_agent() {
    let dir = std::env::var_os("TOMBOLO_TEST_DIR").unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let near = Near::start_in(dir.into()).await;
        near.want(|w| {
            w.speaker.as_mut().unwrap().neighbours = vec![neighbour("/c/1", "192.0.2.2", 65_021)];
        });
        near.learns("/c/1", &site(65_021)).await;
        // What is still on its way (the ends of the tables) is read as well: a socket that is closed with bytes unread
        // resets its connection, and with that takes back what was said last.
        sleep(Duration::from_millis(500)).await;
        std::fs::write(near.path().join("all-read"), "").unwrap();
        sleep(Duration::from_secs(60)).await;
    });
}

#[test]
fn bird_dies_with_its_agent() {
    let wire = wire("orphan", 2);
    let far = Far::start(&wire, 1, 65_021, &[("192.0.2.1", 65_515)], SITE, SITE_V6);
    let dir = tempfile::tempdir().unwrap();
    let mut agent = Command::new("ip")
        .args(["netns", "exec", &wire.ns[0]])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "an_agent", "--ignored"])
        .env("TOMBOLO_TEST_DIR", dir.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    common::eventually("session", || dir.path().join("all-read").exists());
    assert_eq!(far.state("n0"), "Established");
    let pid = near::pid_in(dir.path()).unwrap();
    agent.kill().unwrap();
    agent.wait().unwrap();
    let begun = Instant::now();
    common::eventually("bird is gone", || near::is_gone(pid));
    println!("bird gone {:?} after kill -9 of the agent", begun.elapsed());
    common::eventually("hung up", || far.state("n0") != "Established");
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
        one.want(|w| {
            w.speaker.as_mut().unwrap().neighbours = vec![neighbour("/c/1", "192.0.2.2", 65_021)];
        });
        other.want(|w| {
            let mut n = neighbour("/c/1", "192.0.2.2", 65_021);
            n.local_address = "192.0.2.101".parse().unwrap();
            let speaker = w.speaker.as_mut().unwrap();
            (speaker.asn, speaker.neighbours) = (65_516, vec![n]);
            w.announce.insert(id("/c/1"), announced());
        });
        one.learns("/c/1", &site(65_021)).await;
        other.learns("/c/1", &site(65_021)).await;
        eventually("announced", async || far.path_of("10.1.0.0/16") == Some("65516".into())).await;
        one.stop().await;
        eventually("hung up", async || far.state("n0") != "Established").await;
        assert_eq!(
            (far.state("n1").as_str(), other.learned("/c/1")),
            ("Established", site(65_021))
        );
        other.stop().await;
    });
}

/// `check link`: no hold time has to pass.
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
        near.want(|w| {
            w.speaker.as_mut().unwrap().neighbours = vec![neighbour("/c/1", "192.0.2.2", 65_021)];
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
