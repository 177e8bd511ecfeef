//! TCP probes, thresholds, and changes of the targets.

use super::super::{PROBE_SOURCE_V4, PROBE_SOURCE_V6, ProbeProtocol, Target};
use super::backend::Behaviour;
use super::world::World;
use super::{secs, target};
use smoltcp::socket::tcp::State;
use std::net::IpAddr;
use std::time::Duration;
use tombolo_proto::status::ProbeFailure;

const A: &str = "10.0.0.4";
const B: &str = "10.0.0.5";

fn tcp(address: &str) -> Target {
    target(address, ProbeProtocol::Tcp, 80)
}

#[test]
fn l6_a_tcp_probe_succeeds_with_the_handshake_and_closes_properly() {
    for (address, source) in [
        (A, IpAddr::from(PROBE_SOURCE_V4)),
        ("2001:db8::4", IpAddr::from(PROBE_SOURCE_V6)),
    ] {
        let mut world = World::new(&[tcp(address)]);
        world.serve(address, &[(80, Behaviour::Accept)]);
        assert!(!world.is_up(), "down until the first result");
        assert!(world.run_until(&[true]) <= secs(1), "the first result counts at once");
        assert!(world.prober.take_changed());
        world.run(secs(60));
        assert!(world.is_up() && !world.prober.take_changed(), "changed once");
        assert_eq!(world.backend(address).states(), [], "no connection is left");
        assert!(world.count(|s| s.flags.fin) >= 10, "one FIN for each probe");
        assert_eq!(
            world.count(|s| s.flags.rst || s.flags.payload > 0),
            0,
            "no reset, no data"
        );
        assert!(world.sent.iter().all(|s| s.source.ip() == source), "{address}");
    }
}

#[test]
fn l6_the_last_failure_is_the_reason_while_a_target_is_down() {
    let mut world = World::new(&[tcp(A), tcp("0.0.0.0")]);
    let reason = |world: &World| world.prober.failures().next().unwrap();
    world.serve(A, &[]);
    assert_eq!(reason(&world), Some(ProbeFailure::NotProbed));
    world.run(secs(16));
    let reasons: Vec<_> = world.prober.failures().collect();
    assert_eq!(
        reasons,
        [Some(ProbeFailure::Refused), Some(ProbeFailure::Unaddressable)]
    );
    // The reason changes while the target stays down.
    world.silence(A);
    world.run(secs(46));
    assert_eq!(reason(&world), Some(ProbeFailure::Timeout));
    world.serve(A, &[(80, Behaviour::Accept)]);
    world.run_until(&[true, false]);
    assert_eq!(reason(&world), None);
    // One failure does not make the target down (threshold 2).
    let failed = world.elapsed();
    world.serve(A, &[]);
    while world.starts("10.0.0.4:80").last().is_none_or(|(at, _)| *at <= failed) {
        world.run(Duration::from_millis(100));
    }
    world.run(secs(1));
    assert_eq!((world.is_up(), reason(&world)), (true, None));
    world.run_until(&[false, false]);
    assert_eq!(reason(&world), Some(ProbeFailure::Refused));
}

#[test]
fn l6_a_closed_port_is_down_at_once_and_silence_at_the_timeout() {
    let mut world = World::new(&[tcp(A)]);
    world.serve(A, &[(80, Behaviour::Accept)]);
    world.run_until(&[true]);
    // A reset ends each probe at once: the second of them changes the health.
    let begin = world.elapsed();
    world.serve(A, &[]);
    world.run_until(&[false]);
    let probes = world
        .starts("10.0.0.4:80")
        .into_iter()
        .filter(|(at, _)| *at > begin)
        .count();
    assert_eq!(probes, 2, "threshold 2");
    let (last, _) = *world.starts("10.0.0.4:80").last().unwrap();
    assert!(world.elapsed() - last < Duration::from_millis(20), "without a wait");

    world.serve(A, &[(80, Behaviour::Accept)]);
    world.run_until(&[true]);
    let begin = world.elapsed();
    world.silence(A);
    world.run_until(&[false]);
    let starts: Vec<Duration> = world.starts("10.0.0.4:80").into_iter().map(|(at, _)| at).collect();
    let late: Vec<&Duration> = starts.iter().filter(|at| **at > begin).collect();
    assert!(
        world.elapsed() >= *late[1] + secs(5),
        "the time-out of the second probe is the interval"
    );
    assert!(world.elapsed() <= *late[1] + secs(5) + Duration::from_millis(20));
}

#[test]
fn l6_the_timeout_is_at_most_30_seconds() {
    let mut slow = tcp(A);
    slow.probe.interval = secs(100);
    slow.probe.threshold = 1;
    let mut world = World::new(&[slow]);
    world.serve(A, &[(80, Behaviour::Accept)]);
    world.run_until(&[true]);
    world.silence(A);
    while world.starts("10.0.0.4:80").len() < 2 {
        world.run(Duration::from_millis(100));
    }
    let (start, _) = world.starts("10.0.0.4:80")[1];
    world.run_until(&[false]);
    let time = world.elapsed() - start;
    assert!(time >= secs(30) && time < secs(31), "{time:?}");
}

#[test]
fn l6_the_threshold_counts_consecutive_results_in_both_directions() {
    let mut three = tcp(A);
    three.probe.threshold = 3;
    let mut world = World::new(&[three]);
    let probes = |world: &mut World, count: usize, works: bool| {
        world.serve(A, if works { &[(80, Behaviour::Accept)] } else { &[] });
        let goal = world.starts("10.0.0.4:80").len() + count;
        while world.starts("10.0.0.4:80").len() < goal {
            world.run(Duration::from_millis(10));
        }
        world.is_up()
    };
    assert!(!probes(&mut world, 1, false), "the first result");
    assert!(!world.prober.take_changed(), "down before and after");
    assert!(!probes(&mut world, 2, true), "two are not three");
    assert!(!probes(&mut world, 1, false), "the count begins again");
    assert!(!probes(&mut world, 2, true));
    assert!(probes(&mut world, 1, true), "three");
    assert!(world.prober.take_changed());
    assert!(probes(&mut world, 2, false), "two are not three");
    assert!(probes(&mut world, 1, true), "the count begins again");
    assert!(probes(&mut world, 2, false));
    assert!(!world.prober.take_changed());
    assert!(!probes(&mut world, 1, false), "three");
    assert!(world.prober.take_changed());
}

#[test]
fn a_target_that_stays_keeps_health_and_schedule() {
    let mut world = World::new(&[tcp(A)]);
    for address in [A, B] {
        world.serve(address, &[(80, Behaviour::Accept)]);
    }
    world.run(secs(12));
    let due = world.prober.next_due();
    world.set_targets(&[tcp(B), tcp(A)]);
    assert_eq!(world.health(), [false, true], "in the new order");
    world.run_until(&[true, true]);
    world.set_targets(&[tcp(A)]);
    assert_eq!(world.health(), [true]);
    world.run(secs(30));
    let starts = world.starts("10.0.0.4:80");
    assert!(
        starts
            .iter()
            .any(|(at, _)| Some(world.now - world.elapsed() + *at) == due),
        "{starts:?}"
    );
    for pair in starts.windows(2).skip(1) {
        assert_eq!(pair[1].0 - pair[0].0, secs(5), "{starts:?}");
    }
    // A new interval changes the schedule only, a new path is another target.
    let mut changed = tcp(A);
    changed.probe.interval = secs(10);
    changed.probe.threshold = 1;
    world.set_targets(std::slice::from_ref(&changed));
    assert!(world.is_up());
    assert_eq!(world.prober.health().next().unwrap().0, &changed);
    changed.probe.path = "/other".to_owned();
    world.set_targets(&[changed]);
    assert!(!world.is_up());
    world.set_targets(&[]);
    world.run(secs(1));
    assert_eq!(world.prober.next_due(), None, "nothing is left to do");
}

#[test]
fn a_target_that_is_removed_during_its_probe_resets_the_connection() {
    let mut world = World::new(&[tcp(A)]);
    world.serve(A, &[(80, Behaviour::Hang)]);
    world.run_until(&[true]);
    assert_eq!(world.backend(A).states(), [State::CloseWait]);
    world.set_targets(&[]);
    let due = world.prober.next_due();
    assert_eq!(due, Some(world.now), "the reset is due");
    world.run(Duration::from_millis(1));
    assert_eq!(world.backend(A).states(), [], "reset");
    assert_eq!(world.prober.next_due(), None);
    // A packet of the connection that comes late is ignored.
    let packets = world.received.clone();
    for packet in packets {
        world.prober.receive(&packet, world.now);
    }
    assert_eq!(world.prober.next_due(), None);
}

#[test]
fn a_back_end_that_never_closes_is_up_and_loses_the_connection_at_the_timeout() {
    let mut world = World::new(&[tcp(A)]);
    world.serve(A, &[(80, Behaviour::Hang)]);
    world.run(secs(61));
    assert!(world.is_up());
    assert!(world.backend(A).states().len() <= 1, "one probe at a time");
    assert!(world.count(|s| s.flags.rst) >= 9, "each is reset before the next one");
}

#[test]
fn targets_of_one_endpoint_are_independent() {
    let mut other = target(A, ProbeProtocol::Http, 80);
    let mut world = World::new(&[tcp(A), tcp(A), other.clone()]);
    world.serve(A, &[(80, Behaviour::Accept)]);
    world.run(secs(20));
    assert_eq!(world.health(), [true, true, false]);
    other.probe.port = 0;
    world.set_targets(&[other, tcp(A), target("0.0.0.0", ProbeProtocol::Tcp, 80)]);
    world.run(secs(20));
    assert_eq!(world.health(), [false, true, false], "no probe of port 0 or address 0");
}

#[test]
fn a_source_port_is_not_used_again_within_60_seconds() {
    let mut fast = tcp(A);
    fast.probe.interval = secs(1);
    let mut world = World::new(&[fast.clone(), fast]);
    world.serve(A, &[(80, Behaviour::Accept)]);
    world.run(secs(120));
    let starts = world.starts("10.0.0.4:80");
    assert!(starts.len() > 230, "{}", starts.len());
    for (index, (at, port)) in starts.iter().enumerate() {
        assert!(*port >= 49_152);
        let earlier = starts[..index].iter().filter(|(_, p)| p == port);
        assert!(
            earlier.into_iter().all(|(before, _)| *at - *before >= secs(60)),
            "{port}"
        );
    }
}
